// What is attached and how: flags of the launcher, which travel to the attached process as environment variables.
#ifndef KRONSAE_LLAMA_SETTINGS_HPP
#define KRONSAE_LLAMA_SETTINGS_HPP

#include <cerrno>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <functional>
#include <string>
#include <vector>

namespace kronsae_llama {

struct Setting {
    const char* flag;
    const char* variable;
    const char* value;  // what it takes, for the help; null: nothing
    bool repeats;       // given several times, the values are joined by ':'
    const char* help;
};

constexpr Setting settings_known[] = {
    {"--model", "KRONSAE_LLAMA_MODELS", "FILE[@LAYER]", true,
     "a model of features; the layer comes from the file, unless given here (repeat: several layers)"},
    {"--labels", "KRONSAE_LLAMA_LABELS", "FILE", true, "TSV of latent and label, for each model in turn"},
    {"--rules", "KRONSAE_LLAMA_RULES", "FILE", false, "TOML file of rules"},
    {"--watch", "KRONSAE_LLAMA_WATCH", "LATENTS", true, "latents whose values the metrics carry (1,2,3), for each model in turn"},
    {"--listen", "KRONSAE_LLAMA_LISTEN", "ADDRESS", false, "page and metrics, default 127.0.0.1:9464; none: do not listen"},
    {"--token-file", "KRONSAE_LLAMA_TOKEN_FILE", "FILE", false, "holds the bearer token that clients of the page must send"},
    {"--text", "KRONSAE_LLAMA_TEXT", nullptr, false, "show the text of tokens on the page (default: their ids)"},
    {"--events", "KRONSAE_LLAMA_EVENTS", "FILE", false, "append events as JSON lines; -: standard error"},
    {"--record", "KRONSAE_LLAMA_RECORD", "FOLDER", false, "write activations of every site to FOLDER/layer-N"},
    {"--record-layer", "KRONSAE_LLAMA_RECORD_LAYERS", "LAYER", true, "record this layer too, without a model"},
    {"--record-f32", "KRONSAE_LLAMA_RECORD_F32", nullptr, false, "record 32-bit floats (default: BF16)"},
    {"--record-most-bytes", "KRONSAE_LLAMA_RECORD_MOST_BYTES", "BYTES", false, "end recording there, default 16 GiB"},
    {"--record-most-tokens", "KRONSAE_LLAMA_RECORD_MOST_TOKENS", "N", false, "end recording there"},
    {"--record-shard-tokens", "KRONSAE_LLAMA_RECORD_SHARD_TOKENS", "N", false, "tokens of a shard, held in memory, default 4096"},
    {"--record-token-ids", "KRONSAE_LLAMA_RECORD_TOKEN_IDS", nullptr, false, "record token ids too: what users said"},
    {"--record-text", "KRONSAE_LLAMA_RECORD_TEXT", nullptr, false, "record the text of tokens too: what users said"},
    {"--sample", "KRONSAE_LLAMA_SAMPLE", "every|N|last-prompt", false, "which tokens are looked at; N: every N-th"},
    {"--first-position", "KRONSAE_LLAMA_FIRST_POSITION", "N", false,
     "leave out positions before N of each sequence, default 1: position 0 is an attention sink"},
    {"--queue", "KRONSAE_LLAMA_QUEUE", "TOKENS", false, "room of each site's queue"},
    {"--workers", "KRONSAE_LLAMA_WORKERS", "N", false, "worker threads, among which sites are dealt out"},
    {"--encoder-threads", "KRONSAE_LLAMA_ENCODER_THREADS", "N", false, "threads of each worker's encoder"},
    {"--nice", "KRONSAE_LLAMA_NICE", "N", false, "added to the workers' nice value, 1 to 19"},
    {"--idle", "KRONSAE_LLAMA_IDLE", nullptr, false, "workers run only when nothing else wants the CPU (SCHED_IDLE)"},
    {"--cpus", "KRONSAE_LLAMA_CPUS", "LIST", false, "CPUs of the workers (0,2-3)"},
    {"--cpu-share", "KRONSAE_LLAMA_CPU_SHARE", "X", false, "share of one CPU that a worker may use, above 0 to 1"},
    {"--least-tokens", "KRONSAE_LLAMA_LEAST_TOKENS", "N", false, "tokens a second that are encoded whatever --cpu-share says"},
    {"--memory-limit", "KRONSAE_LLAMA_MEMORY_LIMIT", "BYTES", false, "of queues and state"},
    {"--stop-seconds", "KRONSAE_LLAMA_STOP_SECONDS", "N", false, "time to finish what is queued when the server ends, default 5"},
    {"--required", "KRONSAE_LLAMA_REQUIRED", nullptr, false, "the server does not start if it cannot be monitored"},
};

// Also read: the bearer token itself. Not a flag, since flags are seen by every user of a machine.
constexpr const char* token_variable = "KRONSAE_LLAMA_TOKEN";
// Set by the launcher for the check: the number of a pipe.
constexpr const char* check_variable = "KRONSAE_LLAMA_CHECK";

struct ModelSetting {
    std::string file;
    std::int32_t layer = -1;  // -1: the file's own
    std::string labels;
    std::vector<std::uint32_t> watch;
};

struct Settings {
    std::vector<ModelSetting> models;
    std::vector<std::int32_t> record_layers;
    std::string rules, listen = "127.0.0.1:9464", token, events, record;
    bool text = false, record_f32 = false, record_token_ids = false, record_text = false, idle = false, required = false;
    std::uint64_t record_most_bytes = 0, record_most_tokens = 0, record_shard_tokens = 0, queue = 0, memory_limit = 0;
    std::uint32_t workers = 0, encoder_threads = 0, nice = 0, stop_seconds = 5, every = 1;
    std::int32_t first_position = 1;
    bool last_prompt = false;
    std::vector<std::uint32_t> cpus;
    float cpu_share = 0, least_tokens = 0;
};

// Reads settings; the first error, naming the flag, or an empty text.
class SettingsReader {
public:
    using Lookup = std::function<const char*(const char* variable)>;

    static std::string read(const Lookup& lookup, Settings& out) {
        SettingsReader reader(lookup);
        reader.all(out);
        return reader.error_;
    }

private:
    explicit SettingsReader(const Lookup& lookup) : lookup_(lookup) {}

    std::string text(const char* flag) const {
        for (const Setting& s : settings_known) {
            if (std::string(s.flag) != flag) continue;
            const char* value = lookup_(s.variable);
            return value != nullptr ? value : "";
        }
        return "";
    }

    static std::vector<std::string> parts(const std::string& text, char separator) {
        std::vector<std::string> out;
        if (text.empty()) return out;
        for (std::size_t begin = 0;;) {
            const std::size_t end = text.find(separator, begin);
            out.push_back(text.substr(begin, end == std::string::npos ? end : end - begin));
            if (end == std::string::npos) return out;
            begin = end + 1;
        }
    }

    void fail(const char* flag, const std::string& found, const char* expected) {
        if (error_.empty()) error_ = std::string(flag) + ": found `" + found + "`, expected " + expected;
    }

    static bool whole(const std::string& text, std::uint64_t most, std::uint64_t& out) {
        if (text.empty() || text.find_first_not_of("0123456789") != std::string::npos) return false;
        errno = 0;
        out = std::strtoull(text.c_str(), nullptr, 10);
        return errno == 0 && out <= most;
    }

    template <typename Number>
    void number(const char* flag, Number& out, std::uint64_t most, const char* expected) {
        const std::string found = text(flag);
        std::uint64_t value = 0;
        if (found.empty()) return;
        if (!whole(found, most, value)) return fail(flag, found, expected);
        out = static_cast<Number>(value);
    }

    void decimal(const char* flag, float& out, float most, const char* expected) {
        const std::string found = text(flag);
        if (found.empty()) return;
        char* end = nullptr;
        out = std::strtof(found.c_str(), &end);
        if (*end != '\0' || !(out > 0) || out > most) fail(flag, found, expected);
    }

    // Numbers and ranges, separated by commas.
    void list(const char* flag, const std::string& found, std::vector<std::uint32_t>& out) {
        for (const std::string& part : parts(found, ',')) {
            const std::size_t dash = part.find('-');
            std::uint64_t first = 0, last = 0;
            const bool good = dash == std::string::npos
                                  ? whole(part, UINT32_MAX, first) && whole(part, UINT32_MAX, last)
                                  : whole(part.substr(0, dash), UINT32_MAX, first) && whole(part.substr(dash + 1), UINT32_MAX, last);
            if (!good || last < first || last - first > 65536) return fail(flag, found, "numbers or ranges such as 0,2-3");
            for (std::uint64_t i = first; i <= last; ++i) out.push_back(static_cast<std::uint32_t>(i));
        }
    }

    void all(Settings& s) {
        const auto on = [&](const char* flag) {
            const std::string value = text(flag);
            return !value.empty() && value != "0";
        };
        constexpr std::uint64_t layers = 100000;
        for (const std::string& part : parts(text("--model"), ':')) {
            ModelSetting model;
            model.file = part;
            const std::size_t at = part.rfind('@');
            std::uint64_t layer = 0;
            if (at != std::string::npos && whole(part.substr(at + 1), layers, layer)) {
                model.file = part.substr(0, at);
                model.layer = static_cast<std::int32_t>(layer);
            }
            if (model.file.empty()) fail("--model", part, "the path of a file");
            s.models.push_back(model);
        }
        const auto in_turn = [&](const char* flag, const std::function<void(ModelSetting&, const std::string&)>& set) {
            const std::vector<std::string> values = parts(text(flag), ':');
            if (values.size() > s.models.size()) return fail(flag, text(flag), "at most one for each --model");
            for (std::size_t i = 0; i < values.size(); ++i) set(s.models[i], values[i]);
        };
        in_turn("--labels", [](ModelSetting& m, const std::string& value) { m.labels = value; });
        in_turn("--watch", [&](ModelSetting& m, const std::string& value) { list("--watch", value, m.watch); });
        for (const std::string& part : parts(text("--record-layer"), ':')) {
            std::uint64_t layer = 0;
            if (!whole(part, layers, layer)) fail("--record-layer", part, "a layer's number, from 0");
            s.record_layers.push_back(static_cast<std::int32_t>(layer));
        }
        s.rules = text("--rules");
        if (!text("--listen").empty()) s.listen = text("--listen");
        if (s.listen == "none") s.listen.clear();
        s.events = text("--events");
        s.record = text("--record");
        s.text = on("--text");
        s.record_f32 = on("--record-f32");
        s.record_token_ids = on("--record-token-ids");
        s.record_text = on("--record-text");
        s.idle = on("--idle");
        s.required = on("--required");
        number("--record-most-bytes", s.record_most_bytes, UINT64_MAX, "a number of bytes");
        number("--record-most-tokens", s.record_most_tokens, UINT64_MAX, "a number of tokens");
        number("--record-shard-tokens", s.record_shard_tokens, UINT64_MAX, "a number of tokens");
        number("--queue", s.queue, 1u << 30, "a number of tokens");
        number("--memory-limit", s.memory_limit, UINT64_MAX, "a number of bytes");
        number("--workers", s.workers, 1024, "a number up to 1024");
        number("--encoder-threads", s.encoder_threads, 1024, "a number up to 1024");
        number("--nice", s.nice, 19, "a number from 1 to 19");
        number("--stop-seconds", s.stop_seconds, 86400, "a number of seconds");
        number("--first-position", s.first_position, INT32_MAX, "a position");
        decimal("--cpu-share", s.cpu_share, 1, "a number above 0, up to 1");
        decimal("--least-tokens", s.least_tokens, 1e9f, "a number above 0");
        list("--cpus", text("--cpus"), s.cpus);
        const std::string sample = text("--sample");
        std::uint64_t every = 1;
        if (sample == "last-prompt") {
            s.last_prompt = true;
        } else if (!sample.empty() && sample != "every") {
            if (!whole(sample, UINT32_MAX, every) || every == 0) fail("--sample", sample, "every, last-prompt, or a number from 1");
            s.every = static_cast<std::uint32_t>(every);
        }
        if (const char* token = lookup_(token_variable)) s.token = token;
        const std::string token_file = text("--token-file");
        if (!token_file.empty() && !read_token(token_file, s.token))
            fail("--token-file", token_file, "a readable file with one line of text, the token");
        if (s.models.empty() && s.record_layers.empty())
            fail("--model", "nothing", "at least one model file, or --record with --record-layer");
        if (!s.record_layers.empty() && s.record.empty()) fail("--record-layer", text("--record-layer"), "--record FOLDER with it");
    }

    static bool read_token(const std::string& path, std::string& out) {
        std::FILE* file = std::fopen(path.c_str(), "re");
        if (file == nullptr) return false;
        char buffer[4096];
        const std::size_t size = std::fread(buffer, 1, sizeof(buffer), file);
        std::fclose(file);
        out.assign(buffer, size);
        out.erase(out.find_last_not_of(" \t\r\n") + 1);
        return !out.empty() && out.find('\n') == std::string::npos && size < sizeof(buffer);
    }

    const Lookup& lookup_;
    std::string error_;
};

}  // namespace kronsae_llama

#endif
