// A monitor with its sites, taps, rules, recordings and page, as the settings say.
#ifndef KRONSAE_LLAMA_MONITORING_HPP
#define KRONSAE_LLAMA_MONITORING_HPP

#include "settings.hpp"

#include "kronsae.h"

#include <cstdarg>
#include <cstdio>
#include <mutex>
#include <string>
#include <vector>

namespace kronsae_llama {

// A line on standard error.
__attribute__((format(printf, 1, 2))) inline void say(const char* format, ...) {
    va_list arguments;
    va_start(arguments, format);
    char line[2048];
    const int size = std::vsnprintf(line, sizeof(line), format, arguments);
    va_end(arguments);
    if (size >= 0) std::fprintf(stderr, "kronsae: %s\n", line);  // one call: lines of several threads stay whole
}

// Events as JSON lines, from the monitor's workers.
class EventLog {
public:
    EventLog() = default;
    EventLog(const EventLog&) = delete;
    EventLog& operator=(const EventLog&) = delete;
    ~EventLog() {
        if (file_ != nullptr && file_ != stderr) std::fclose(file_);
    }

    // False if the file cannot be opened. Readable by its owner only.
    bool open(const std::string& path);

    static void write(void* user, const kronsae_event* event) { static_cast<EventLog*>(user)->line(*event); }

private:
    static std::string quoted(const char* text) {
        std::string out = "\"";
        for (const char* c = text; c != nullptr && *c != '\0'; ++c) {
            const unsigned char byte = static_cast<unsigned char>(*c);
            char escape[8];
            if (byte < 0x20 || byte == '"' || byte == '\\') {
                std::snprintf(escape, sizeof(escape), "\\u%04x", byte);
                out += escape;
            } else {
                out.push_back(*c);
            }
        }
        return out + "\"";
    }

    void line(const kronsae_event& e) {
        char text[512];
        std::snprintf(text, sizeof(text),
                      "{\"id\":%llu,\"unix_nanos\":%llu,\"kind\":\"%s\",\"request\":%llu,\"position\":%d,\"token\":%d,\"gap\":%s,"
                      "\"severity\":%d,\"retracts\":%llu",
                      static_cast<unsigned long long>(e.id), static_cast<unsigned long long>(e.unix_nanos),
                      e.kind == KRONSAE_EVENT_RETRACTED ? "retracted" : "matched", static_cast<unsigned long long>(e.request),
                      static_cast<int>(e.position), static_cast<int>(e.token), e.gap != 0 ? "true" : "false",
                      static_cast<int>(e.severity), static_cast<unsigned long long>(e.retracts));
        std::string out = text;
        out += ",\"site\":" + quoted(e.site) + ",\"model\":" + quoted(e.model) + ",\"rule\":" + quoted(e.rule) + ",\"latents\":[";
        for (std::size_t i = 0; i < e.n_latents; ++i) {
            std::snprintf(text, sizeof(text), "%s{\"latent\":%u,\"value\":%.9g}", i == 0 ? "" : ",",
                          static_cast<unsigned>(e.latents[i].latent), static_cast<double>(e.latents[i].value));
            out += text;
        }
        out += "]}\n";
        const std::lock_guard<std::mutex> lock(mutex_);
        std::fwrite(out.data(), 1, out.size(), file_);
        std::fflush(file_);
    }

    std::mutex mutex_;
    std::FILE* file_ = nullptr;
};

// One thread at a time. Its taps are for one producing thread.
class Monitoring {
public:
    struct Site {
        std::int32_t layer = -1;
        std::size_t d_model = 0;
        kronsae_tap* tap = nullptr;
        kronsae_sae* sae = nullptr;  // null: recorded only
        kronsae_recorder* recorder = nullptr;
        std::string name;
    };

    // What the program's LLM is; zero and null: not known yet.
    struct Llm {
        std::size_t d_model = 0;
        std::int32_t layers = 0;
        std::string name;
        kronsae_token_text_callback text = nullptr;
        void* text_user = nullptr;
    };

    Monitoring() = default;
    Monitoring(const Monitoring&) = delete;
    Monitoring& operator=(const Monitoring&) = delete;
    ~Monitoring() { destroy(); }

    // Opens and starts everything; what went wrong, or an empty text. `check`: nothing is written, to find out beforehand
    // whether it would work.
    std::string start(const Settings& settings, const Llm& llm, bool check = false);

    // Waits until everything submitted is encoded and recorded; what went wrong, or an empty text.
    std::string flush(std::uint32_t milliseconds);
    // Ends it within the settings' time: what is queued is encoded, shards are closed. `loud`: says what was recorded.
    void stop(const Settings& settings, bool loud = true);
    // After stop: tokens that all recordings wrote, and that they had to leave out.
    std::uint64_t recorded() const { return recorded_; }
    std::uint64_t left_out() const { return left_out_; }

    std::vector<Site>& sites() { return sites_; }
    // Where the page is, or empty.
    const std::string& address() const { return address_; }
    kronsae_monitor_status status() const;

private:
    std::string add_site(const Settings& settings, const Llm& llm, const ModelSetting* model, std::int32_t layer);
    std::string record(const Settings& settings, const Llm& llm, Site& site);
    void destroy();

    kronsae_monitor* monitor_ = nullptr;
    std::vector<Site> sites_;
    std::vector<std::uint32_t> site_numbers_;  // [sites]
    std::string address_;
    std::uint64_t recorded_ = 0;
    std::uint64_t left_out_ = 0;
    EventLog events_;
};

}  // namespace kronsae_llama

#endif
