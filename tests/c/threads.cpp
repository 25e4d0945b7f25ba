// Eight threads on one model, each with an encoder of its own: threads TINY THRESHOLD RANDOM, the files of
// examples/make_model.rs. They go on for two seconds; with KRONSAE_LONG in the environment for a minute.

#include <kronsae.hpp>

#include "check.h"

#include <atomic>
#include <chrono>
#include <cstring>
#include <fstream>
#include <thread>

unsigned checks_made = 0;
unsigned checks_failed = 0;

namespace {

using Clock = std::chrono::steady_clock;

constexpr std::size_t kThreads = 8;
constexpr std::size_t kRows = 5;
// What the allocator may keep for threads that come and go; a leak of one encoder in a thousand calls would be more.
constexpr long kMostGrowth = 16 * 1024;

std::vector<float> input(std::size_t width) {
    std::vector<float> x(kRows * width);
    for (std::size_t i = 0; i < x.size(); ++i) x[i] = float(int(i * 13 % 37) - 18);
    return x;
}

bool same(const kronsae::Latents& a, const kronsae::Latents& b) {
    for (std::size_t row = 0; row < kRows; ++row) {
        const std::size_t n = a.count(row);
        if (n == 0 || n != b.count(row) || std::memcmp(a.indices(row), b.indices(row), n * sizeof *a.indices(row)) != 0 ||
            std::memcmp(a.values(row), b.values(row), n * sizeof *a.values(row)) != 0) {
            return false;
        }
    }
    return true;
}

long resident_kib() {
    std::ifstream status("/proc/self/status");
    for (std::string line; std::getline(status, line);) {
        if (line.rfind("VmRSS:", 0) == 0) return std::strtol(line.c_str() + 6, nullptr, 10);
    }
    return -1;
}

// Right results for as long as it goes on, from encoders that are made anew now and then, and memory that does not grow.
void side_by_side(const char* path) {
    auto sae = kronsae::Sae::open(path);
    CHECK(sae);
    if (!sae) return;
    const kronsae::Info info = sae->info();
    const std::vector<float> x = input(info.d_model);
    kronsae::Latents expected(kRows, info.capacity);
    {
        auto encoder = kronsae::Encoder::create(*sae, 2);
        CHECK(encoder && !encoder->encode(kronsae::view(x.data(), kRows, info.d_model), expected));
    }
    const auto lasts = std::chrono::milliseconds(std::getenv("KRONSAE_LONG") != nullptr ? 60000 : 2000);
    const auto until = Clock::now() + lasts;
    std::atomic<std::uint64_t> calls{0}, wrong{0};
    std::vector<std::thread> threads;
    for (std::size_t number = 0; number < kThreads; ++number) {
        threads.emplace_back([&] {
            kronsae::Latents found(kRows, info.capacity);
            while (Clock::now() < until) {
                auto encoder = kronsae::Encoder::create(*sae);
                for (int i = 0; encoder && i < 100 && Clock::now() < until; ++i) {
                    const bool failed = bool(encoder->encode(kronsae::view(x.data(), kRows, info.d_model), found));
                    if (failed || !same(expected, found) || sae->info().d_model != info.d_model) ++wrong;
                    ++calls;
                }
                if (!encoder) ++wrong;
            }
        });
    }
    std::this_thread::sleep_for(lasts / 4);
    const long early = resident_kib();
    std::this_thread::sleep_until(until);
    const long late = resident_kib();
    for (std::thread& thread : threads) thread.join();
    CHECK(calls > 0 && wrong == 0);
    CHECK(early > 0 && late < early + kMostGrowth);
    std::fprintf(stderr, "8 threads: %llu calls in %lld ms, %llu wrong; resident %ld KiB after a quarter, %ld at the end\n",
                 static_cast<unsigned long long>(calls), static_cast<long long>(lasts.count()),
                 static_cast<unsigned long long>(wrong), early, late);
}

// A model destroyed while encoders are in calls: those end well, later ones are refused.
void destroyed_during_use(const char* path) {
    for (int round = 0; round < 20; ++round) {
        auto opened = kronsae::Sae::open(path);
        CHECK(opened);
        if (!opened) return;
        auto sae = std::make_unique<kronsae::Sae>(std::move(*opened));
        const kronsae::Info info = sae->info();
        const std::vector<float> x = input(info.d_model);
        std::atomic<std::size_t> started{0}, stopped{0};
        std::vector<std::thread> threads;
        for (std::size_t number = 0; number < 4; ++number) {
            auto encoder = kronsae::Encoder::create(*sae);
            CHECK(encoder);
            if (!encoder) return;
            threads.emplace_back([&, encoder = std::move(*encoder)]() mutable {
                kronsae::Latents found(kRows, info.capacity);
                kronsae_status status = KRONSAE_STATUS_OK;
                for (bool first = true; status == KRONSAE_STATUS_OK; first = false) {
                    status = encoder.encode(kronsae::view(x.data(), kRows, info.d_model), found).status();
                    if (first) ++started;
                }
                if (status == KRONSAE_STATUS_STOPPED) ++stopped;
            });
        }
        while (started < threads.size()) std::this_thread::yield();
        sae.reset();
        for (std::thread& thread : threads) thread.join();
        CHECK(stopped == threads.size());
    }
}

}  // namespace

int main(int argc, char** argv) {
    if (argc != 4) return 2;
    destroyed_during_use(argv[3]);
    side_by_side(argv[3]);
    return FINISH();
}
