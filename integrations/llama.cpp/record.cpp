// kronsae-llama-record: runs texts through an LLM up to a layer and writes the residual stream behind it into activation
// shards, from which `kronsae train` makes a model of its features.

#include "attach/monitoring.hpp"
#include "kronsae_llama.hpp"

#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <fstream>
#include <iterator>
#include <memory>
#include <string>
#include <sys/stat.h>
#include <thread>

using namespace kronsae_llama;

namespace {

constexpr const char* help_text =
    "kronsae-llama-record --llm GGUF --layer N --out FOLDER [options] TEXT...\n\n"
    "Writes the residual stream behind layer N (from 0) over text files into activation shards, FOLDER/layer-N, for\n"
    "`kronsae train`. Later layers are not computed. Each text is cut into sequences of --context tokens; the first\n"
    "position of each, an attention sink, is left out.\n\n"
    "  --llm GGUF            the language model\n"
    "  --layer N             may be repeated\n"
    "  --out FOLDER          where FOLDER/layer-N is made\n"
    "  --context N           tokens of a sequence, default 512\n"
    "  --most-tokens N       stop after so many\n"
    "  --shard-tokens N      tokens of a shard\n"
    "  --f32                 32-bit floats, default BF16\n"
    "  --no-text             without token ids and the text of tokens, which are in the shards otherwise: the texts are\n"
    "                        yours, and what a feature fires on can then be shown\n"
    "  --threads N           of the language model, default all\n"
    "  --gpu-layers N        layers on the GPU, default 0\n";

struct Options {
    std::string llm;
    std::vector<std::string> texts;
    Settings settings;
    std::uint32_t context = 512, threads = 0, gpu_layers = 0;
    std::uint64_t most_tokens = UINT64_MAX / 2;  // with room to add to
};

int fail(const std::string& text) {
    std::fprintf(stderr, "kronsae-llama-record: %s\n", text.c_str());
    return 1;
}

bool whole(const std::string& text, std::uint64_t& out) {
    if (text.empty() || text.size() > 18 || text.find_first_not_of("0123456789") != std::string::npos) return false;
    out = std::strtoull(text.c_str(), nullptr, 10);
    return true;
}

// Empty, or what is wrong with the arguments.
std::string parse(int argc, char** argv, Options& o) {
    o.settings.listen.clear();
    o.settings.record_text = true;
    o.settings.record_token_ids = true;
    o.settings.record_most_bytes = UINT64_MAX;  // --most-tokens is the limit here
    for (int i = 1; i < argc; ++i) {
        const std::string flag = argv[i];
        if (flag.compare(0, 2, "--") != 0) {
            o.texts.push_back(flag);
            continue;
        }
        if (flag == "--f32") {
            o.settings.record_f32 = true;
            continue;
        }
        if (flag == "--no-text") {
            o.settings.record_text = o.settings.record_token_ids = false;
            continue;
        }
        if (i + 1 >= argc) return flag + " needs a value";
        const std::string value = argv[++i];
        std::uint64_t number = 0;
        const bool is_number = whole(value, number);
        if (flag == "--llm") {
            o.llm = value;
        } else if (flag == "--out") {
            o.settings.record = value;
        } else if (!is_number && (flag == "--layer" || flag == "--context" || flag == "--most-tokens" || flag == "--shard-tokens" ||
                                  flag == "--threads" || flag == "--gpu-layers")) {
            return flag + ": found `" + value + "`, expected a number";
        } else if (flag == "--layer") {
            o.settings.record_layers.push_back(static_cast<std::int32_t>(std::min<std::uint64_t>(number, INT32_MAX)));
        } else if (flag == "--context") {
            o.context = static_cast<std::uint32_t>(std::min<std::uint64_t>(number, 1u << 20));
        } else if (flag == "--most-tokens") {
            o.most_tokens = number;
        } else if (flag == "--shard-tokens") {
            o.settings.record_shard_tokens = number;
        } else if (flag == "--threads") {
            o.threads = static_cast<std::uint32_t>(std::min<std::uint64_t>(number, 1024));
        } else if (flag == "--gpu-layers") {
            o.gpu_layers = static_cast<std::uint32_t>(std::min<std::uint64_t>(number, 1u << 20));
        } else {
            return "unknown option " + flag + "; see --help";
        }
    }
    if (o.llm.empty() || o.settings.record.empty() || o.settings.record_layers.empty() || o.texts.empty())
        return "--llm, --layer, --out and at least one text file are needed; see --help";
    if (o.context < 2) return "--context: found less than 2; the first position of a sequence is left out";
    return "";
}

// The tokens of a text file, without any that a tokenizer puts before a text.
std::string tokenize(const llama_vocab* vocab, const std::string& path, std::vector<llama_token>& out) {
    std::ifstream file(path, std::ios::binary);
    if (!file) return path + ": cannot be read";
    const std::string text((std::istreambuf_iterator<char>(file)), std::istreambuf_iterator<char>());
    if (text.size() > INT32_MAX) return path + ": is longer than 2 GiB";
    const std::int32_t size = static_cast<std::int32_t>(text.size());
    out.resize(text.size() + 16);
    const std::int32_t count = llama_tokenize(vocab, text.data(), size, out.data(), static_cast<std::int32_t>(out.size()), false, false);
    if (count < 0) return path + ": the tokenizer failed";
    out.resize(static_cast<std::size_t>(count));
    return "";
}

class Recording {
public:
    explicit Recording(const Options& options) : options_(options) {}

    std::string run();

private:
    std::string sequence(const std::vector<llama_token>& tokens, std::size_t first, std::size_t count);

    const Options& options_;
    Settings settings_;
    Observer observer_;  // before the context, which holds its address
    std::unique_ptr<llama_model, void (*)(llama_model*)> model_{nullptr, llama_model_free};
    std::unique_ptr<llama_context, void (*)(llama_context*)> context_{nullptr, llama_free};
    Monitoring monitoring_;
    std::uint64_t tokens_ = 0;
    std::string problem_;
};

// One sequence, from position 0.
std::string Recording::sequence(const std::vector<llama_token>& tokens, std::size_t first, std::size_t count) {
    std::vector<llama_token> id(tokens.begin() + static_cast<std::ptrdiff_t>(first), tokens.begin() + static_cast<std::ptrdiff_t>(first + count));
    // Without outputs nothing is computed for them. The last layer alone has rows only for tokens that have one.
    const std::int32_t last = llama_model_n_layer(model_.get()) - 1;
    const bool outputs = std::count(settings_.record_layers.begin(), settings_.record_layers.end(), last) != 0;
    std::vector<std::int8_t> logits(count, outputs ? 1 : 0);
    llama_batch batch = llama_batch_get_one(id.data(), static_cast<std::int32_t>(count));
    batch.logits = logits.data();
    observer_.clear(context_.get(), false);
    const std::int32_t result = observer_.decode(context_.get(), batch);
    if (result != 0) return "llama_decode returned " + std::to_string(result);
    tokens_ += count - 1;
    // Recording is offline: wait for the queue rather than drop.
    if (monitoring_.status().queued + options_.context * settings_.record_layers.size() > settings_.queue) return monitoring_.flush(600000);
    return problem_;
}

std::string Recording::run() {
    settings_ = options_.settings;
    settings_.queue = std::max<std::uint64_t>(8192, 4 * static_cast<std::uint64_t>(options_.context) * settings_.record_layers.size());
    settings_.stop_seconds = 600;
    llama_log_set([](ggml_log_level level, const char* text, void*) {
        if (level == GGML_LOG_LEVEL_ERROR) std::fputs(text, stderr);
    }, nullptr);
    llama_backend_init();
    llama_model_params model = llama_model_default_params();
    model.n_gpu_layers = static_cast<std::int32_t>(options_.gpu_layers);
    model_.reset(llama_model_load_from_file(options_.llm.c_str(), model));
    if (model_ == nullptr) return options_.llm + ": cannot be loaded";

    llama_context_params params = llama_context_default_params();
    params.n_ctx = params.n_batch = params.n_ubatch = options_.context;
    params.n_threads = static_cast<std::int32_t>(options_.threads != 0 ? options_.threads : std::max(1u, std::thread::hardware_concurrency()));
    params.n_threads_batch = params.n_threads;
    observer_.attach(params);
    context_.reset(llama_init_from_model(model_.get(), params));
    if (context_ == nullptr) return options_.llm + ": no context could be made";
    const llama_vocab* vocab = llama_model_get_vocab(model_.get());

    Monitoring::Llm llm;
    llm.d_model = static_cast<std::size_t>(llama_model_n_embd(model_.get()));
    llm.layers = llama_model_n_layer(model_.get());
    char name[256] = "";
    if (llama_model_meta_val_str(model_.get(), "general.name", name, sizeof(name)) < 0) llama_model_desc(model_.get(), name, sizeof(name));
    llm.name = name;
    llm.text = token_text;
    llm.text_user = const_cast<llama_vocab*>(vocab);
    mkdir(settings_.record.c_str(), 0700);  // the recorder says if it is not there then
    std::string failure = monitoring_.start(settings_, llm);
    if (!failure.empty()) return failure;
    for (const Monitoring::Site& site : monitoring_.sites()) observer_.add_site(site.layer, site.tap);
    observer_.stop_early(true);
    observer_.first_position(1);
    observer_.on_problem([this](const std::string& text) { problem_ = text; });

    for (const std::string& path : options_.texts) {
        std::vector<llama_token> tokens;
        failure = tokenize(vocab, path, tokens);
        if (!failure.empty()) return failure;
        const std::uint64_t before = tokens_;
        for (std::size_t first = 0; first + 1 < tokens.size() && tokens_ < options_.most_tokens; first += options_.context) {
            std::size_t count = std::min<std::size_t>(options_.context, tokens.size() - first);
            count = static_cast<std::size_t>(std::min<std::uint64_t>(count, options_.most_tokens - tokens_ + 1));
            if (count < 2) break;
            failure = sequence(tokens, first, count);
            if (!failure.empty()) return failure;
        }
        std::fprintf(stderr, "%s: %llu tokens\n", path.c_str(), static_cast<unsigned long long>(tokens_ - before));
    }
    observer_.cleared();
    monitoring_.stop(settings_, false);
    const std::uint64_t expected = tokens_ * settings_.record_layers.size();
    std::fprintf(stderr, "%llu tokens, %llu rows written to %s\n", static_cast<unsigned long long>(tokens_),
                 static_cast<unsigned long long>(monitoring_.recorded()), settings_.record.c_str());
    if (monitoring_.recorded() != expected)
        return std::to_string(expected) + " rows were computed, " + std::to_string(monitoring_.recorded()) + " are written, " +
               std::to_string(monitoring_.left_out()) + " could not be (not finite, or the disk is full?)";
    return "";
}

}  // namespace

int main(int argc, char** argv) {
    for (int i = 1; i < argc; ++i) {
        if (std::string(argv[i]) != "--help" && std::string(argv[i]) != "-h") continue;
        std::fputs(help_text, stdout);
        return 0;
    }
    Options options;
    std::string failure = parse(argc, argv, options);
    if (failure.empty()) failure = Recording(options).run();
    return failure.empty() ? 0 : fail(failure);
}
