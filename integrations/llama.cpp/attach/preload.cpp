// The library that is preloaded into a llama.cpp program: takes the place of the functions through which a program makes
// contexts, computes batches and handles sequences, looks at what goes by, and calls the real ones.
//
// Until the program makes its first real context nothing happens here: no thread, no socket, no file. A context for which
// llama.cpp only works out memory sizes (its model was loaded with no_alloc) is not one.

#include "abi.hpp"
#include "monitoring.hpp"

#include "../kronsae_llama.hpp"

#include <dlfcn.h>
#include <sys/stat.h>
#include <unistd.h>

#include <atomic>
#include <exception>
#include <map>
#include <mutex>
#include <set>
#include <unordered_map>

#define KRONSAE_HOOK extern "C" __attribute__((visibility("default")))
// The function that this one stands in front of.
#define REAL(name) static const auto real = reinterpret_cast<decltype(&name)>(dlsym(RTLD_NEXT, #name))

namespace kronsae_llama {
namespace {

// What the environment said when the process began. Never freed: hooks may be called while a process exits.
struct Configuration {
    bool given = false;
    std::map<std::string, std::string> variables;
};

Configuration& configuration() {
    static Configuration* const it = new Configuration;
    return *it;
}

// A context that is being monitored. Made and freed by the thread that makes and frees the context.
struct Guest {
    Settings settings;
    Observer observer;
    Monitoring monitoring;
    llama_context* context = nullptr;
    llama_memory_t memory = nullptr;
    pid_t process = getpid();
};

// One context at a time: the first real one; after it was freed, the next.
std::atomic<Guest*> guest{nullptr};
std::atomic<bool> beginning{false};

// The guest if it is the one to tell, and not in a child of its process.
Guest* guest_of(const llama_context* context) {
    Guest* g = guest.load(std::memory_order_acquire);
    return g != nullptr && g->context == context && g->process == getpid() ? g : nullptr;
}

Guest* guest_of_memory(llama_memory_t memory) {
    Guest* g = guest.load(std::memory_order_acquire);
    return g != nullptr && memory != nullptr && g->memory == memory && g->process == getpid() ? g : nullptr;
}

// Runs what must not throw into the program.
template <typename What>
void guarded(const What& what) noexcept {
    try {
        what();
    } catch (const std::exception& e) {
        say("%s", e.what());
    } catch (...) {
        say("an unknown exception");
    }
}

// Models that were loaded without their weights.
struct Unreal {
    std::mutex mutex;
    std::set<const llama_model*> models;

    static Unreal& all() {
        static Unreal* const it = new Unreal;
        return *it;
    }
    static void loaded(const llama_model* model, bool no_alloc) {
        const std::lock_guard<std::mutex> lock(all().mutex);
        // An address may be used again for a real one.
        if (no_alloc && model != nullptr) {
            all().models.insert(model);
        } else {
            all().models.erase(model);
        }
    }
    static bool is(const llama_model* model) {
        const std::lock_guard<std::mutex> lock(all().mutex);
        return all().models.count(model) != 0;
    }
};

std::string start(Guest& g, const llama_model* model) {
    Monitoring::Llm llm;
    llm.d_model = static_cast<std::size_t>(llama_model_n_embd(model));
    llm.layers = llama_model_n_layer(model);
    char name[256] = "";
    if (llama_model_meta_val_str(model, "general.name", name, sizeof(name)) < 0) llama_model_desc(model, name, sizeof(name));
    llm.name = name;
    llm.text = token_text;
    llm.text_user = const_cast<llama_vocab*>(llama_model_get_vocab(model));
    if (!g.settings.record.empty()) mkdir(g.settings.record.c_str(), 0700);  // the recorder says if it is not there then
    const std::string failure = g.monitoring.start(g.settings, llm);
    if (!failure.empty()) return failure;
    std::string layers;
    for (const Monitoring::Site& site : g.monitoring.sites()) {
        g.observer.add_site(site.layer, site.tap);
        layers += (layers.empty() ? "" : ", ") + std::to_string(site.layer);
    }
    g.observer.skip_warm_up(true);
    g.observer.first_position(g.settings.first_position);
    g.observer.on_problem([](const std::string& text) { say("%s", text.c_str()); });
    const std::string& address = g.monitoring.address();
    say("attached to %s at layer %s%s%s", name, layers.c_str(), address.empty() ? "" : "; live at http://", address.c_str());
    return "";
}

void stop(Guest& g) {
    g.observer.cleared();
    g.monitoring.stop(g.settings);
    const kronsae_monitor_status s = g.monitoring.status();
    const Counts c = g.observer.counts();
    const auto number = [](std::uint64_t value) { return static_cast<unsigned long long>(value); };
    say("ended: submitted %llu = encoded %llu + sampled out %llu + dropped %llu + not finite %llu; %llu events; "
        "not submitted: %llu unmapped, %llu refused, %llu before the first position, %llu of a warm-up",
        number(s.submitted), number(s.encoded), number(s.sampled_out), number(s.dropped), number(s.not_finite), number(s.events),
        number(c.unmapped), number(c.refused), number(c.skipped), number(c.warm_up));
}

#ifdef KRONSAE_LLAMA_BATCH_EXT
// What is in each llama_batch_ext, kept by watching the calls that fill it: its own layout is nobody's business.
struct Mirrors {
    struct Mirror {
        std::vector<BatchToken> tokens;
        bool complete = true;
    };
    std::mutex mutex;
    std::unordered_map<const llama_batch_ext*, Mirror> batches;

    static Mirrors& all() {
        static Mirrors* const it = new Mirrors;
        return *it;
    }

    template <typename What>
    static void change(const llama_batch_ext* batch, const What& what) {
        guarded([&] {
            const std::lock_guard<std::mutex> lock(all().mutex);
            what(all().batches[batch]);
        });
    }
    // The token `index` of the batch, if it is known.
    template <typename What>
    static void change_token(const llama_batch_ext* batch, std::int32_t index, const What& what) {
        change(batch, [&](Mirror& m) {
            if (index >= 0 && static_cast<std::size_t>(index) < m.tokens.size()) {
                what(m.tokens[static_cast<std::size_t>(index)]);
            } else {
                m.complete = false;
            }
        });
    }
    static void added(const llama_batch_ext* batch, std::int32_t index, llama_seq_id sequence, llama_token id) {
        if (index < 0) {
            // Refused, or half done: what is in the batch then is unknown.
            if (index == -2) change(batch, [](Mirror& m) { m.complete = false; });
            return;
        }
        change(batch, [&](Mirror& m) {
            m.complete = m.complete && static_cast<std::size_t>(index) == m.tokens.size();
            m.tokens.push_back(BatchToken::of(id, 0, sequence, false));
        });
    }
    static bool copy(const llama_batch_ext* batch, std::vector<BatchToken>& out) {
        const std::lock_guard<std::mutex> lock(all().mutex);
        const auto found = all().batches.find(batch);
        if (found == all().batches.end() || !found->second.complete) return false;
        out = found->second.tokens;
        return true;
    }
};
#endif

// Computes a batch with the guest looking on.
template <typename Fill, typename Compute>
std::int32_t observed(Guest& g, llama_context* context, const Fill& fill, const Compute& compute) {
    guarded([&] {
        fill();
        g.observer.before(context);
    });
    const std::int32_t result = compute();
    guarded([&] { g.observer.after(context, result); });
    return result;
}

// Takes this library out of LD_PRELOAD, so that no child process gets it.
void leave_children_alone() {
    Dl_info self;
    const char* preload = getenv("LD_PRELOAD");
    if (preload == nullptr || dladdr(reinterpret_cast<const void*>(&leave_children_alone), &self) == 0) return;
    const std::string own = self.dli_fname, before = preload;
    const std::string own_name = own.substr(own.rfind('/') + 1);
    std::string after;
    for (std::size_t begin = 0; begin < before.size();) {
        std::size_t end = before.find_first_of(": ", begin);
        if (end == std::string::npos) end = before.size();
        const std::string entry = before.substr(begin, end - begin);
        if (!entry.empty() && entry.substr(entry.rfind('/') + 1) != own_name) after += (after.empty() ? "" : ":") + entry;
        begin = end + 1;
    }
    if (after.empty()) {
        unsetenv("LD_PRELOAD");
    } else {
        setenv("LD_PRELOAD", after.c_str(), 1);
    }
}

__attribute__((constructor)) void loaded() {
    guarded([] {
        Configuration& c = configuration();
        const auto take = [&](const char* variable) {
            const char* value = getenv(variable);
            if (value == nullptr) return;
            c.variables[variable] = value;
            // Also where the kernel shows how the process was started.
            if (std::strcmp(variable, token_variable) == 0) std::memset(const_cast<char*>(value), '*', std::strlen(value));
            unsetenv(variable);
        };
        for (const Setting& setting : settings_known) take(setting.variable);
        c.given = !c.variables.empty();
        take(token_variable);
        take(check_variable);
        leave_children_alone();
        const auto check = c.variables.find(check_variable);
        if (check == c.variables.end()) return;
        // The launcher wants to know whether this would work, not to run the program.
        const std::string found = AbiCheck::run();
        const std::string answer = found.empty() ? "ok" : found;
        const ssize_t written = write(std::atoi(check->second.c_str()), answer.data(), answer.size());
        _exit(written == static_cast<ssize_t>(answer.size()) ? 0 : 1);
    });
}

// Makes the guest for a context about to be made; null if it is none of ours.
Guest* begin(const llama_model* model, llama_context_params& params) {
    if (!configuration().given || Unreal::is(model) || guest.load() != nullptr || beginning.exchange(true)) return nullptr;
    Guest* g = nullptr;
    guarded([&] {
        std::string failure = AbiCheck::run();
        g = new Guest;
        const auto& variables = configuration().variables;
        const std::string wrong = SettingsReader::read(
            [&](const char* variable) -> const char* {
                const auto found = variables.find(variable);
                return found == variables.end() ? nullptr : found->second.c_str();
            },
            g->settings);
        if (failure.empty()) failure = wrong;
        if (failure.empty() && !g->observer.attach(params)) failure = "the program evaluates graphs with a callback of its own";
        if (failure.empty()) return;
        say("not attached: %s", failure.c_str());
        delete g;
        g = nullptr;
    });
    if (g == nullptr) configuration().given = false;  // said once
    beginning = false;
    return g;
}

}  // namespace
}  // namespace kronsae_llama

using namespace kronsae_llama;

KRONSAE_HOOK llama_model* llama_model_load_from_file(const char* path, llama_model_params params) {
    REAL(llama_model_load_from_file);
    llama_model* const model = real(path, params);
    guarded([&] { Unreal::loaded(model, params.no_alloc); });
    return model;
}

KRONSAE_HOOK llama_model* llama_model_load_from_splits(const char** paths, std::size_t n_paths, llama_model_params params) {
    REAL(llama_model_load_from_splits);
    llama_model* const model = real(paths, n_paths, params);
    guarded([&] { Unreal::loaded(model, params.no_alloc); });
    return model;
}

KRONSAE_HOOK llama_context* llama_init_from_model(llama_model* model, llama_context_params params) {
    REAL(llama_init_from_model);
    Guest* const g = begin(model, params);
    llama_context* const context = real(model, params);
    if (g == nullptr) return context;
    if (context == nullptr) {
        delete g;
        return nullptr;
    }
    std::string failure = "out of memory";
    guarded([&] { failure = start(*g, model); });
    const bool required = g->settings.required;
    if (!failure.empty()) {
        // The context has the observer's address: it stays, and is never active.
        say("not attached: %s", failure.c_str());
        configuration().given = false;
        if (required) {
            static const auto release = reinterpret_cast<decltype(&llama_free)>(dlsym(RTLD_NEXT, "llama_free"));
            release(context);
            delete g;
            return nullptr;
        }
        return context;
    }
    g->context = context;
    g->memory = llama_get_memory(context);
    guest.store(g, std::memory_order_release);
    return context;
}

KRONSAE_HOOK void llama_free(llama_context* context) {
    REAL(llama_free);
    Guest* const g = context != nullptr ? guest_of(context) : nullptr;
    if (g != nullptr) guarded([&] { stop(*g); });
    real(context);
    if (g != nullptr) {
        guest.store(nullptr, std::memory_order_release);
        delete g;
    }
}

KRONSAE_HOOK std::int32_t llama_decode(llama_context* context, llama_batch batch) {
    REAL(llama_decode);
    Guest* const g = guest_of(context);
    if (g == nullptr) return real(context, batch);
    return observed(*g, context, [&] { g->observer.read(context, batch); }, [&] { return real(context, batch); });
}

#ifdef KRONSAE_LLAMA_BATCH_EXT

KRONSAE_HOOK std::int32_t llama_process(llama_context* context, llama_process_type type, llama_batch_ext* batch) {
    REAL(llama_process);
    Guest* const g = type == LLAMA_PROCESS_TYPE_DECODE ? guest_of(context) : nullptr;
    if (g == nullptr) return real(context, type, batch);
    return observed(
        *g, context,
        [&] {
            if (Mirrors::copy(batch, g->observer.batch())) return;
            g->observer.batch().clear();
            static std::atomic<bool> told{false};
            if (!told.exchange(true)) say("a batch was filled by functions that are not known here: such batches are left out");
        },
        [&] { return real(context, type, batch); });
}

KRONSAE_HOOK llama_batch_ext* llama_batch_ext_init(llama_context* context) {
    REAL(llama_batch_ext_init);
    llama_batch_ext* const batch = real(context);
    Mirrors::change(batch, [](Mirrors::Mirror& m) { m = Mirrors::Mirror{}; });
    return batch;
}

KRONSAE_HOOK void llama_batch_ext_free(llama_batch_ext* batch) {
    REAL(llama_batch_ext_free);
    guarded([&] {
        const std::lock_guard<std::mutex> lock(Mirrors::all().mutex);
        Mirrors::all().batches.erase(batch);
    });
    real(batch);
}

KRONSAE_HOOK void llama_batch_ext_clear(llama_batch_ext* batch) {
    REAL(llama_batch_ext_clear);
    real(batch);
    Mirrors::change(batch, [](Mirrors::Mirror& m) {
        m.tokens.clear();  // keeps its room
        m.complete = true;
    });
}

KRONSAE_HOOK std::int32_t llama_batch_ext_add(llama_batch_ext* batch, llama_seq_id sequence) {
    REAL(llama_batch_ext_add);
    const std::int32_t index = real(batch, sequence);
    Mirrors::added(batch, index, sequence, -1);
    return index;
}

KRONSAE_HOOK std::int32_t llama_batch_ext_add_token(llama_batch_ext* batch, llama_seq_id sequence, llama_token id) {
    REAL(llama_batch_ext_add_token);
    const std::int32_t index = real(batch, sequence, id);
    Mirrors::added(batch, index, sequence, id);
    return index;
}

KRONSAE_HOOK std::int32_t llama_batch_ext_add_embd(llama_batch_ext* batch, llama_seq_id sequence, llama_embd embd) {
    REAL(llama_batch_ext_add_embd);
    const std::int32_t index = real(batch, sequence, embd);
    Mirrors::added(batch, index, sequence, -1);
    return index;
}

KRONSAE_HOOK bool llama_batch_ext_add_seq(llama_batch_ext* batch, std::int32_t index, llama_seq_id sequence) {
    REAL(llama_batch_ext_add_seq);
    const bool done = real(batch, index, sequence);
    if (done) Mirrors::change_token(batch, index, [&](BatchToken& t) { t.add(sequence); });
    return done;
}

KRONSAE_HOOK bool llama_batch_ext_set_pos(llama_batch_ext* batch, std::int32_t index, const llama_pos* position) {
    REAL(llama_batch_ext_set_pos);
    const bool done = real(batch, index, position);
    if (done) Mirrors::change_token(batch, index, [&](BatchToken& t) { t.position = position[0]; });
    return done;
}

KRONSAE_HOOK bool llama_batch_ext_set_output_logits(llama_batch_ext* batch, std::int32_t index, bool value) {
    REAL(llama_batch_ext_set_output_logits);
    const bool done = real(batch, index, value);
    if (done) Mirrors::change_token(batch, index, [&](BatchToken& t) { t.output = value; });
    return done;
}

KRONSAE_HOOK bool llama_batch_ext_set_output_embd(llama_batch_ext* batch, std::int32_t index, bool value) {
    REAL(llama_batch_ext_set_output_embd);
    const bool done = real(batch, index, value);
    if (done) Mirrors::change_token(batch, index, [&](BatchToken& t) { t.output = value; });
    return done;
}

#endif

KRONSAE_HOOK void llama_memory_clear(llama_memory_t memory, bool data) {
    REAL(llama_memory_clear);
    real(memory, data);
    if (Guest* g = guest_of_memory(memory)) guarded([&] { g->observer.cleared(); });
}

KRONSAE_HOOK bool llama_memory_seq_rm(llama_memory_t memory, llama_seq_id sequence, llama_pos p0, llama_pos p1) {
    REAL(llama_memory_seq_rm);
    const bool done = real(memory, sequence, p0, p1);
    Guest* const g = done ? guest_of_memory(memory) : nullptr;
    if (g != nullptr) guarded([&] { g->observer.seq_removed(sequence, p0, p1); });
    return done;
}

KRONSAE_HOOK void llama_memory_seq_cp(llama_memory_t memory, llama_seq_id from, llama_seq_id to, llama_pos p0, llama_pos p1) {
    REAL(llama_memory_seq_cp);
    real(memory, from, to, p0, p1);
    if (Guest* g = guest_of_memory(memory)) guarded([&] { g->observer.seq_copied(from, to, p0, p1); });
}

KRONSAE_HOOK void llama_memory_seq_keep(llama_memory_t memory, llama_seq_id sequence) {
    REAL(llama_memory_seq_keep);
    real(memory, sequence);
    if (Guest* g = guest_of_memory(memory)) guarded([&] { g->observer.seq_kept(sequence); });
}

KRONSAE_HOOK void llama_memory_seq_add(llama_memory_t memory, llama_seq_id sequence, llama_pos p0, llama_pos p1, llama_pos delta) {
    REAL(llama_memory_seq_add);
    real(memory, sequence, p0, p1, delta);
    if (Guest* g = guest_of_memory(memory)) guarded([&] { g->observer.seq_added(sequence, p0, p1, delta); });
}

KRONSAE_HOOK void llama_memory_seq_div(llama_memory_t memory, llama_seq_id sequence, llama_pos p0, llama_pos p1, int d) {
    REAL(llama_memory_seq_div);
    real(memory, sequence, p0, p1, d);
    if (Guest* g = guest_of_memory(memory)) guarded([&] { g->observer.seq_divided(sequence, p0, p1, d); });
}

namespace {
// A state was loaded into a sequence of the context; -1: into all.
void restored(llama_context* context, llama_seq_id sequence) {
    if (Guest* g = guest_of(context)) guarded([&] { g->observer.seq_restored(sequence); });
}
}  // namespace

KRONSAE_HOOK std::size_t llama_state_set_data(llama_context* context, const std::uint8_t* source, std::size_t size) {
    REAL(llama_state_set_data);
    const std::size_t read = real(context, source, size);
    restored(context, -1);
    return read;
}

KRONSAE_HOOK bool llama_state_load_file(llama_context* context, const char* path, llama_token* tokens, std::size_t capacity, std::size_t* count) {
    REAL(llama_state_load_file);
    const bool done = real(context, path, tokens, capacity, count);
    restored(context, -1);
    return done;
}

KRONSAE_HOOK std::size_t llama_state_seq_set_data(llama_context* context, const std::uint8_t* source, std::size_t size, llama_seq_id sequence) {
    REAL(llama_state_seq_set_data);
    const std::size_t read = real(context, source, size, sequence);
    restored(context, sequence);
    return read;
}

KRONSAE_HOOK std::size_t llama_state_seq_set_data_ext(llama_context* context, const std::uint8_t* source, std::size_t size,
                                                      llama_seq_id sequence, llama_state_seq_flags flags) {
    REAL(llama_state_seq_set_data_ext);
    const std::size_t read = real(context, source, size, sequence, flags);
    restored(context, sequence);
    return read;
}

KRONSAE_HOOK std::size_t llama_state_seq_load_file(llama_context* context, const char* path, llama_seq_id sequence, llama_token* tokens,
                                                   std::size_t capacity, std::size_t* count) {
    REAL(llama_state_seq_load_file);
    const std::size_t read = real(context, path, sequence, tokens, capacity, count);
    restored(context, sequence);
    return read;
}
