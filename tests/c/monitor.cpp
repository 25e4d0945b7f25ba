// The monitor's C++ layer as a C++ program uses it: monitor_cpp TINY THRESHOLD RANDOM, the three files of
// examples/make_model.rs. Compiled a second time with -fno-exceptions.

#include <kronsae.hpp>

#include "check.h"
#include "json.h"

#include <chrono>
#include <cstring>
#include <filesystem>
#include <thread>
#include <type_traits>
#include <unistd.h>

unsigned checks_made = 0;
unsigned checks_failed = 0;

static_assert(!std::is_copy_constructible_v<kronsae::Monitor> && std::is_nothrow_move_constructible_v<kronsae::Monitor>);
static_assert(!std::is_copy_constructible_v<kronsae::Tap> && std::is_nothrow_move_assignable_v<kronsae::Tap>);
static_assert(!std::is_copy_constructible_v<kronsae::DeviceTap> && std::is_nothrow_move_assignable_v<kronsae::DeviceTap>);
static_assert(!std::is_copy_constructible_v<kronsae::EventBatch> && !std::is_copy_constructible_v<kronsae::Recorder>);

namespace {

constexpr std::size_t kWidth = 8;
constexpr std::uint32_t kWait = 60000;  // ms: far more than anything here takes, even under valgrind
const std::vector<float> kActive = {4, 1, 9, 0, 1, 0, 1, 16};  // latents (0, 6) (5, 4) (2, 3)
constexpr std::string_view kRule = "[[rule]]\nname = \"zero\"\nwhen = { latent = 0, above = 5.0 }\n";

std::size_t submit(kronsae::Tap& tap, std::uint64_t request, std::int32_t position) {
    const kronsae::TokenTag tag = {request, position, 100 + position, 0, 0};
    std::size_t accepted = 9;
    CHECK(!tap.submit(kronsae::view(kActive.data(), 1, kWidth), &tag, &accepted));
    return accepted;
}

// A monitor with one site and the rule above.
struct World {
    explicit World(const char* tiny)
        : sae(check(kronsae::Sae::open(tiny))), monitor(check(kronsae::Monitor::create())),
          site(check(monitor.add_site(kronsae::SiteOptions("s", 15), sae))), tap(check(monitor.tap(site))) {
        CHECK(!monitor.set_rules(kRule));
    }

    template <typename T>
    static T check(kronsae::Result<T>&& made) {
        CHECK(bool(made));
        return std::move(*made);
    }

    kronsae::Sae sae;
    kronsae::Monitor monitor;
    std::uint32_t site;
    kronsae::Tap tap;
};

// A library that was built without CUDA says so.
void without_cuda(const char* tiny) {
    const World w(tiny);
    kronsae::DeviceTapOptions options;
    options.slots = 2;
    const auto tap = w.monitor.device_tap(w.site, options);
    CHECK(!tap && tap.error().status() == KRONSAE_STATUS_UNSUPPORTED);
    CHECK(std::strstr(tap.error().message(), "built without CUDA") != nullptr);
}

void events(const char* tiny) {
    World w(tiny);
    CHECK(submit(w.tap, 7, 0) == 1 && submit(w.tap, 7, 1) == 1);
    CHECK(!w.monitor.flush(kWait));
    const auto batch = w.monitor.poll_events(10, kWait);
    CHECK(batch && batch->size() == 2 && !batch->empty());
    std::int32_t position = 0;
    for (const kronsae::Event& event : *batch) {
        CHECK(event.request == 7 && event.position == position++ && std::string_view(event.rule) == "zero");
        CHECK(event.n_latents == 1 && event.latents[0].value == 6.0f);
    }
    CHECK(position == 2 && (*batch)[2].id == 0);
    CHECK(!w.tap.rewind(7, 1) && !w.tap.end_request(7) && !w.monitor.flush(kWait));
    const auto retracted = w.monitor.poll_events(10);
    CHECK(retracted && retracted->size() == 1 && (*retracted)[0].kind == KRONSAE_EVENT_RETRACTED);

    kronsae::Latents latents(1, 3);
    const kronsae::TokenTag tag = {8, 0, -1, KRONSAE_TOKEN_PROMPT, 0};
    CHECK(!w.tap.encode(kronsae::view(kActive.data(), 1, kWidth), &tag, latents));
    CHECK(latents.count(0) == 3 && latents.values(0)[0] == 6.0f);
}

void outputs(const char* tiny) {
    World w(tiny);
    CHECK(submit(w.tap, 1, 0) == 1 && !w.monitor.flush(kWait));
    const auto status = w.monitor.status();
    CHECK(status && status->submitted == 1 && status->encoded == 1 && status->state == KRONSAE_MONITOR_STATE_RUNNING);
    const auto prometheus = w.monitor.metrics();
    CHECK(prometheus && prometheus->find("# TYPE kronsae_") != std::string::npos);
    const auto open = w.monitor.metrics(KRONSAE_METRICS_OPENMETRICS);
    CHECK(open && open->size() > 6 && open->compare(open->size() - 6, 6, "# EOF\n") == 0);
    const auto json = w.monitor.snapshot_json();
    CHECK(json && is_json(json->c_str()));
    const auto bound = w.monitor.serve(kronsae::ServeOptions("127.0.0.1:0"));
    CHECK(bound ? bound->rfind("127.0.0.1:", 0) == 0 : bound.error().status() == KRONSAE_STATUS_UNSUPPORTED);
}

void errors(const char* tiny) {
    World w(tiny);
    CHECK(w.monitor.set_rules("[[rule]]").status() == KRONSAE_STATUS_FORMAT);
    CHECK(w.monitor.load_rules("/nonexistent/rules").status() == KRONSAE_STATUS_IO);
    CHECK(w.monitor.load_labels(w.site, "/nonexistent/labels").status() == KRONSAE_STATUS_IO);
    CHECK(w.monitor.tap(9).error().status() == KRONSAE_STATUS_INVALID_ARGUMENT);
    CHECK(w.monitor.add_recording_site(kronsae::SiteOptions("r")).error().status() == KRONSAE_STATUS_INVALID_ARGUMENT);
    CHECK(w.monitor.record(9, kronsae::RecorderOptions("/nonexistent")).error().status() ==
          KRONSAE_STATUS_INVALID_ARGUMENT);
    CHECK(!w.monitor.replace_sae(w.site, w.sae));
    kronsae::MonitorOptions options;
    options.cpu_share = 2.0f;
    CHECK(kronsae::Monitor::create(options).error().status() == KRONSAE_STATUS_INVALID_ARGUMENT);

    // Moving keeps everything alive and leaves an empty monitor behind.
    kronsae::Monitor moved = std::move(w.monitor);
    CHECK(w.monitor.flush(0).status() == KRONSAE_STATUS_INVALID_ARGUMENT && w.monitor.callback_exceptions() == 0);
    CHECK(w.monitor.set_event_callback([](const kronsae::Event&) {}).status() == KRONSAE_STATUS_INVALID_ARGUMENT);
    CHECK(submit(w.tap, 1, 0) == 1 && !moved.flush(kWait));
    CHECK(!moved.set_event_callback([](const kronsae::Event&) {}));
    // Assigning another destroys this one, its callbacks last.
    moved = World::check(kronsae::Monitor::create());
    const kronsae::TokenTag tag = {1, 1, -1, 0, 0};
    const auto gone = w.tap.submit(kronsae::view(kActive.data(), 1, kWidth), &tag);
    CHECK(gone && gone.status() == KRONSAE_STATUS_STOPPED);
    CHECK(!moved.stop(kWait));
}

// Records `tokens` tokens of a request with their text.
void record(World& w, std::uint64_t request, std::int32_t tokens) {
    const auto folder = std::filesystem::temp_directory_path() / ("kronsae-monitor-cpp-" + std::to_string(getpid()));
    kronsae::RecorderOptions options(folder.c_str());
    options.flags = KRONSAE_RECORD_TEXT | KRONSAE_RECORD_POSITION_0;
    {
        const auto recorder = w.monitor.record(w.site, options);
        CHECK(bool(recorder));
        for (std::int32_t position = 0; position < tokens; ++position) CHECK(submit(w.tap, request, position) == 1);
        CHECK(!w.monitor.flush(kWait) && recorder->status()->recording == 1);
    }
    CHECK(std::filesystem::remove_all(folder) == 2);  // the folder and one shard
}

void callbacks(const char* tiny) {
    World w(tiny);
    std::atomic<int> calls{0}, texts{0}, refused{0};
    CHECK(!w.monitor.set_token_text([&](std::int32_t token) {
        ++texts;
        return std::string(static_cast<std::size_t>(token), 'x');  // longer than the first buffer
    }));
    CHECK(!w.monitor.set_event_callback([&](const kronsae::Event& event) {
        if (event.request == 1) ++calls;
        if (w.monitor.set_event_callback({}).status() == KRONSAE_STATUS_INVALID_ARGUMENT) ++refused;
        if (w.monitor.flush(0).status() == KRONSAE_STATUS_INVALID_ARGUMENT) ++refused;
    }));
    CHECK(submit(w.tap, 1, 0) == 1 && !w.monitor.flush(kWait));
    CHECK(calls == 1 && refused == 2);
    record(w, 8, 4);
    CHECK(texts == 8);  // each is asked for again with more room
    const auto exceptions = w.monitor.callback_exceptions();
    CHECK(exceptions == 0);

#if defined(__cpp_exceptions)
    // What a callback throws is caught, counted and told, and the monitor goes on.
    CHECK(!w.monitor.set_event_callback([&](const kronsae::Event& event) {
        ++calls;
        if (event.position % 2 == 0) throw 1;
        throw std::runtime_error("thrown on purpose");
    }));
    CHECK(!w.monitor.set_token_text([](std::int32_t) -> std::string { throw std::runtime_error("no text"); }));
    record(w, 9, 4);
    CHECK(calls == 5 && w.monitor.callback_exceptions() == 8 && !w.monitor.last_callback_exception().empty());
    CHECK(!w.monitor.set_token_text({}));
    CHECK(submit(w.tap, 2, 5) == 1 && !w.monitor.flush(kWait));
    CHECK(w.monitor.callback_exceptions() == 9 && w.monitor.last_callback_exception() == "thrown on purpose");
    CHECK(w.monitor.status()->state == KRONSAE_MONITOR_STATE_RUNNING);
#endif
    calls = 0;
    CHECK(!w.monitor.set_event_callback({}));
    CHECK(submit(w.tap, 3, 0) == 1 && !w.monitor.flush(kWait) && calls == 0);
}

// Callbacks replaced while events are made, taps on several threads, a monitor that ends under them.
void threads(const char* tiny) {
    std::atomic<std::uint64_t> calls{0};
    std::atomic<unsigned> wrong{0};
    std::vector<std::thread> serving;
    {
        World w(tiny);
        for (std::uint64_t t = 0; t < 3; ++t) {
            serving.emplace_back([&wrong, t, tap = World::check(w.monitor.tap(w.site))]() mutable {
                for (std::int32_t position = 0;; ++position) {
                    const kronsae::TokenTag tag = {t, position, -1, 0, 0};
                    const auto error = tap.submit(kronsae::view(kActive.data(), 1, kWidth), &tag);
                    if (!error) continue;
                    if (error.status() != KRONSAE_STATUS_STOPPED) ++wrong;
                    return;
                }
            });
        }
        for (int round = 0; round < 20; ++round) {
            // What the callback points to lives on the heap and goes with it: a late call would be seen.
            auto mine = std::make_shared<std::uint64_t>(0);
            CHECK(!w.monitor.set_event_callback([mine, &calls](const kronsae::Event&) {
                ++*mine;
                ++calls;
            }));
            const std::uint64_t before = calls;
            while (calls == before) std::this_thread::sleep_for(std::chrono::milliseconds(1));
        }
        const auto status = w.monitor.status();
        CHECK(status && status->submitted >= status->encoded && status->encoded > 0);
    }
    for (auto& thread : serving) thread.join();
    CHECK(wrong == 0 && calls >= 20);
}

}  // namespace

int main(int argc, char** argv) {
    if (argc != 4) {
        std::fprintf(stderr, "usage: monitor_cpp TINY THRESHOLD RANDOM\n");
        return 2;
    }
    without_cuda(argv[1]);
    events(argv[1]);
    outputs(argv[1]);
    errors(argv[1]);
    callbacks(argv[1]);
    threads(argv[1]);
    return FINISH();
}
