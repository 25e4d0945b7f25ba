#include "monitoring.hpp"

#include <fcntl.h>
#include <unistd.h>

#include <cstdlib>

namespace kronsae_llama {

namespace {

// The text of an error, which is freed; empty if the call was good. By reference: the call that sets it is another
// argument, and arguments are evaluated in any order.
std::string taken(kronsae_status status, kronsae_error*& error) {
    std::string text;
    if (status != KRONSAE_STATUS_OK) {
        text = kronsae_error_message(error);
        if (text.empty()) text = "status " + std::to_string(status);
    }
    kronsae_error_destroy(error);
    error = nullptr;
    return text;
}

}  // namespace

bool EventLog::open(const std::string& path) {
    if (path == "-") {
        file_ = stderr;
        return true;
    }
    const int descriptor = ::open(path.c_str(), O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC, 0600);
    if (descriptor < 0) return false;
    file_ = ::fdopen(descriptor, "a");
    if (file_ == nullptr) ::close(descriptor);
    return file_ != nullptr;
}

std::string Monitoring::start(const Settings& settings, const Llm& llm, bool check) {
    kronsae_monitor_options options = KRONSAE_MONITOR_OPTIONS_INIT;
    options.workers = settings.workers;
    options.encoder_threads = settings.encoder_threads;
    options.nice = static_cast<std::int32_t>(settings.nice);
    options.flags = settings.idle ? KRONSAE_MONITOR_SCHED_IDLE : 0;
    options.cpus = settings.cpus.empty() ? nullptr : settings.cpus.data();
    options.n_cpus = settings.cpus.size();
    options.memory_limit = settings.memory_limit;
    options.cpu_share = settings.cpu_share;
    options.least_tokens_per_second = settings.least_tokens;
    kronsae_error* error = nullptr;
    std::string failure = taken(kronsae_monitor_create(&options, &monitor_, &error), error);
    if (!failure.empty()) return failure;

    for (const ModelSetting& model : settings.models) {
        failure = add_site(settings, llm, &model, model.layer);
        if (!failure.empty()) return failure;
    }
    for (const std::int32_t layer : settings.record_layers) {
        if (check && llm.d_model == 0) continue;  // its width is known only with the LLM
        failure = add_site(settings, llm, nullptr, layer);
        if (!failure.empty()) return failure;
    }
    if (!settings.rules.empty()) {
        failure = taken(kronsae_monitor_load_rules(monitor_, settings.rules.c_str(), &error), error);
        if (!failure.empty()) return failure;
    }
    if (llm.text != nullptr && (settings.text || settings.record_text)) {
        failure = taken(kronsae_monitor_set_token_text(monitor_, llm.text, llm.text_user, &error), error);
        if (!failure.empty()) return failure;
    }
    if (!settings.events.empty() && !check) {
        if (!events_.open(settings.events)) return "--events " + settings.events + ": cannot be opened for writing";
        failure = taken(kronsae_monitor_set_event_callback(monitor_, EventLog::write, &events_, &error), error);
        if (!failure.empty()) return failure;
    }
    if (!settings.record.empty() && !check) {
        for (Site& site : sites_) {
            failure = record(settings, llm, site);
            if (!failure.empty()) return failure;
        }
    }
    if (!settings.listen.empty()) {
        kronsae_serve_options serve = KRONSAE_SERVE_OPTIONS_INIT;
        serve.address = settings.listen.c_str();
        serve.token = settings.token.empty() ? nullptr : settings.token.c_str();
        char bound[KRONSAE_ADDRESS_CAPACITY] = "";
        failure = taken(kronsae_monitor_serve(monitor_, &serve, bound, sizeof(bound), &error), error);
        if (!failure.empty()) return failure;
        address_ = bound;
    }
    return "";
}

std::string Monitoring::add_site(const Settings& settings, const Llm& llm, const ModelSetting* model, std::int32_t layer) {
    Site site;
    kronsae_error* error = nullptr;
    bool any_layer = layer >= 0;
    if (model != nullptr) {
        std::string failure = taken(kronsae_sae_open(model->file.c_str(), nullptr, &site.sae, &error), error);
        if (!failure.empty()) return failure;
        sites_.push_back(site);  // owns the model from here on
        kronsae_sae_info info = KRONSAE_SAE_INFO_INIT;
        failure = taken(kronsae_sae_get_info(site.sae, &info, &error), error);
        if (!failure.empty()) return failure;
        site.d_model = info.d_model;
        const char* own = nullptr;
        failure = taken(kronsae_sae_source(site.sae, "layer", &own, &error), error);
        if (!failure.empty()) return failure;
        if (layer < 0) {
            char* end = nullptr;
            const long said = own != nullptr ? std::strtol(own, &end, 10) : -1;
            if (own == nullptr || end == own || *end != '\0' || said < 0 || said > INT32_MAX)
                return model->file + ": does not say which layer it was trained at (source.layer): give it as --model " +
                       model->file + "@LAYER";
            layer = static_cast<std::int32_t>(said);
        }
    } else {
        site.d_model = llm.d_model;
        any_layer = false;
        sites_.push_back(site);
    }
    site.layer = layer;
    site.name = "layer-" + std::to_string(layer);
    for (std::size_t i = 0; i + 1 < sites_.size(); ++i)
        if (sites_[i].layer == layer) return "two models, or a model and --record-layer, for layer " + std::to_string(layer);
    if (llm.layers > 0 && layer >= llm.layers)
        return "layer " + std::to_string(layer) + " is wanted, and the LLM has layers 0 to " + std::to_string(llm.layers - 1);
    if (llm.d_model > 0 && site.d_model != llm.d_model)
        return model->file + ": is for activations of " + std::to_string(site.d_model) + " elements, and the LLM's have " +
               std::to_string(llm.d_model);

    kronsae_site_options options = KRONSAE_SITE_OPTIONS_INIT;
    options.name = site.name.c_str();
    options.layer = static_cast<std::uint32_t>(layer);
    options.flags = KRONSAE_SITE_HAS_LAYER | (any_layer ? KRONSAE_SITE_ANY_LAYER : 0);
    options.d_model = site.d_model;
    if (model != nullptr && !model->watch.empty()) {
        options.watch = model->watch.data();
        options.n_watch = model->watch.size();
    }
    std::uint32_t number = 0;
    std::string failure = taken(kronsae_monitor_add_site(monitor_, &options, site.sae, &number, &error), error);
    if (!failure.empty()) return failure;
    if (model != nullptr && !model->labels.empty()) {
        failure = taken(kronsae_monitor_load_labels(monitor_, number, model->labels.c_str(), &error), error);
        if (!failure.empty()) return failure;
    }
    kronsae_tap_options tap = KRONSAE_TAP_OPTIONS_INIT;
    tap.capacity = settings.queue;
    if (settings.last_prompt) tap.sampling = KRONSAE_SAMPLING_LAST_PROMPT;
    if (settings.every > 1) {
        tap.sampling = KRONSAE_SAMPLING_EVERY_NTH;
        tap.nth = settings.every;
    }
    failure = taken(kronsae_tap_create(monitor_, number, &tap, &site.tap, &error), error);
    site_numbers_.push_back(number);
    sites_.back() = site;
    return failure;
}

std::string Monitoring::record(const Settings& settings, const Llm& llm, Site& site) {
    const std::string folder = settings.record + "/" + site.name;
    kronsae_recorder_options options = KRONSAE_RECORDER_OPTIONS_INIT;
    options.folder = folder.c_str();
    options.model = llm.name.c_str();
    options.hook = "l_out";
    options.dtype = settings.record_f32 ? KRONSAE_DTYPE_F32 : KRONSAE_DTYPE_BF16;
    options.shard_tokens = settings.record_shard_tokens;
    options.most_bytes = settings.record_most_bytes;
    options.most_tokens = settings.record_most_tokens;
    options.flags = (settings.record_token_ids ? KRONSAE_RECORD_TOKEN_IDS : 0) | (settings.record_text ? KRONSAE_RECORD_TEXT : 0);
    const std::uint32_t number = site_numbers_[static_cast<std::size_t>(&site - sites_.data())];
    kronsae_error* error = nullptr;
    return taken(kronsae_recorder_start(monitor_, number, &options, &site.recorder, &error), error);
}

kronsae_monitor_status Monitoring::status() const {
    kronsae_monitor_status status = KRONSAE_MONITOR_STATUS_INIT;
    kronsae_error* error = nullptr;
    if (monitor_ != nullptr) kronsae_monitor_get_status(monitor_, &status, &error);
    kronsae_error_destroy(error);
    return status;
}

std::string Monitoring::flush(std::uint32_t milliseconds) {
    kronsae_error* error = nullptr;
    return taken(kronsae_monitor_flush(monitor_, milliseconds, &error), error);
}

void Monitoring::stop(const Settings& settings, bool loud) {
    if (monitor_ == nullptr) return;
    kronsae_error* error = nullptr;
    const std::string failure = taken(kronsae_monitor_stop(monitor_, settings.stop_seconds * 1000, &error), error);
    if (!failure.empty()) say("%s", failure.c_str());
    for (Site& site : sites_) {
        if (site.recorder == nullptr) continue;
        kronsae_recorder_status status = KRONSAE_RECORDER_STATUS_INIT;
        if (!taken(kronsae_recorder_get_status(site.recorder, &status, &error), error).empty()) continue;
        recorded_ += status.written;
        left_out_ += status.failures;
        if (loud)
            say("%s: %llu tokens recorded, %llu left out", site.name.c_str(), static_cast<unsigned long long>(status.written),
                static_cast<unsigned long long>(status.failures));
    }
}

void Monitoring::destroy() {
    for (Site& site : sites_) {
        kronsae_tap_destroy(site.tap);
        kronsae_recorder_destroy(site.recorder);
    }
    kronsae_monitor_destroy(monitor_);
    for (Site& site : sites_) kronsae_sae_destroy(site.sae);
    sites_.clear();
    monitor_ = nullptr;
}

}  // namespace kronsae_llama
