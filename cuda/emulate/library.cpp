// The kernels as a shared library of CPU functions: `kronsae_emulate_launch` runs one by name.
//
//   int kronsae_emulate_launch(const char* name, const uint32_t grid[3], const uint32_t block[3],
//                              uint64_t shared_bytes, void** args);
//       args as cuLaunchKernel takes them: a pointer to each argument's value; device pointers are host pointers.
//       0, or 1: then kronsae_emulate_error() says what went wrong, until the next launch of this thread.
//   void kronsae_emulate_schedule(int schedule);   // see Schedule in block.h; 3 + n is random with seed n
//   void kronsae_emulate_plant(int barrier);       // takes the PLANTABLE_BARRIER of this number out; 0 puts all back
//   int kronsae_emulate_knows(const char* name);   // 1 if there is such a kernel
//
// Launches of several host threads wait for each other. Blocks run one after another, so kernels whose blocks wait for
// each other cannot run here.
#include <mutex>
#include <type_traits>
#include <utility>

#include "language.h" // last: some of CUDA's names look like the standard library's own

namespace emulate {
Launch launch;
}

// Where static shared memory lies; absent if no kernel has any.
extern "C" __attribute__((weak, visibility("hidden"))) unsigned char __start_kronsae_shared[];
extern "C" __attribute__((weak, visibility("hidden"))) unsigned char __stop_kronsae_shared[];

namespace {
#include "../kronsae.cu"
#ifdef KRONSAE_EMULATE_FAULTS
#include "faults.cuh"
#endif

struct Kernel {
    const char* name;
    std::function<void(void**)> run;
};

template <class... A, size_t... I>
void call(void (*kernel)(A...), void** args, std::index_sequence<I...>) {
    (void)args;
    kernel(*static_cast<std::remove_cv_t<std::remove_reference_t<A>>*>(args[I])...);
}

template <class... A> Kernel entry(const char* name, void (*kernel)(A...)) {
    return {name, [kernel](void** args) { call(kernel, args, std::index_sequence_for<A...>{}); }};
}

const std::vector<Kernel>& kernels() {
    static const std::vector<Kernel> all = {
#define KERNEL(name) entry(#name, name),
#define TRAINING_KERNEL(name) KERNEL(name)
#include "../kernels.def"
#ifdef KRONSAE_EMULATE_FAULTS
#include "faults.def"
#endif
#undef TRAINING_KERNEL
#undef KERNEL
    };
    return all;
}

const Kernel* find(const char* name) {
    for (const Kernel& kernel : kernels())
        if (std::strcmp(kernel.name, name) == 0) return &kernel;
    return nullptr;
}

std::mutex mutex;
int schedule_number = 0;
thread_local std::string error;
/// The most that a block of an H100 or H200 can have.
constexpr uint64_t MOST_SHARED = 227 << 10;

/// Overwrites shared memory, as whatever ran on the same multiprocessor before would have: with NaNs and huge integers,
/// or with values that look plausible.
void poison(unsigned number) {
    const int pattern = number % 2 == 0 ? 0xFF : 0x3E;
    std::memset(emulate::launch.shared, pattern, emulate::launch.shared_bytes);
#if defined(__SANITIZE_ADDRESS__)
    // There are red zones between the arrays, which memset must not touch.
    for (unsigned char* at = __start_kronsae_shared; at != __stop_kronsae_shared; at++)
        if (!__asan_address_is_poisoned(at)) *at = static_cast<unsigned char>(pattern);
#else
    if (__start_kronsae_shared != nullptr)
        std::memset(__start_kronsae_shared, pattern, __stop_kronsae_shared - __start_kronsae_shared);
#endif
}

int refuse(std::string text) {
    error = std::move(text);
    return 1;
}
} // namespace

#define EXPORT extern "C" __attribute__((visibility("default")))

EXPORT const char* kronsae_emulate_error() { return error.c_str(); }

EXPORT void kronsae_emulate_schedule(int schedule) {
    std::lock_guard<std::mutex> lock(mutex);
    schedule_number = schedule;
}

EXPORT void kronsae_emulate_plant(int barrier) {
    std::lock_guard<std::mutex> lock(mutex);
    emulate::launch.planted = barrier;
}

EXPORT int kronsae_emulate_knows(const char* name) { return find(name) != nullptr; }

EXPORT int kronsae_emulate_launch(const char* name, const uint32_t grid[3], const uint32_t block[3],
                                  uint64_t shared_bytes, void** args) {
    std::lock_guard<std::mutex> lock(mutex);
    error.clear();
    const Kernel* kernel = find(name);
    if (kernel == nullptr) return refuse(std::string("no kernel `") + name + "` in kernels.def");
    const uint64_t threads = static_cast<uint64_t>(block[0]) * block[1] * block[2];
    const uint64_t blocks = static_cast<uint64_t>(grid[0]) * grid[1] * grid[2];
    if (threads == 0 || threads > emulate::MOST_THREADS || block[0] > 1024 || block[1] > 1024 || block[2] > 64)
        return refuse(std::string(name) + ": a block of " + std::to_string(threads) + " threads; 1 to 1024 can be");
    if (blocks == 0 || grid[1] > 65535 || grid[2] > 65535)
        return refuse(std::string(name) + ": a grid of no blocks, or of more than 65535 in y or z");
    if (shared_bytes > MOST_SHARED)
        return refuse(std::string(name) + ": " + std::to_string(shared_bytes) + " bytes of shared memory; a block of " +
                      "an H200 has " + std::to_string(MOST_SHARED));

    emulate::launch.grid = {grid[0], grid[1], grid[2]};
    emulate::launch.block = {block[0], block[1], block[2]};
    emulate::launch.shared_bytes = static_cast<unsigned>(shared_bytes);
    // Exactly as large as asked for: AddressSanitizer sees what is beyond.
    void* shared = nullptr;
    if (posix_memalign(&shared, 128, shared_bytes > 0 ? shared_bytes : 1) != 0)
        return refuse(std::string(name) + ": no memory for a block's shared memory");
    emulate::launch.shared = static_cast<unsigned char*>(shared);
    const auto schedule = static_cast<emulate::Schedule>(schedule_number);
    const std::function<void()> body = [&] { kernel->run(args); };
    bool fine = true;
    for (uint64_t i = 0; i < blocks && fine; i++) {
        const uint64_t b = schedule == emulate::Schedule::Reverse ? blocks - 1 - i : i;
        emulate::launch.block_index = {static_cast<unsigned>(b % grid[0]), static_cast<unsigned>(b / grid[0] % grid[1]),
                                       static_cast<unsigned>(b / grid[0] / grid[1])};
        poison(static_cast<unsigned>(i));
        std::string what;
        const uint64_t seed = static_cast<uint64_t>(schedule_number) * 0x9E3779B97F4A7C15u + i * 0xD1342543DE82EF95u;
        fine = emulate::block.run({block[0], block[1], block[2]}, schedule, seed, body, what);
        if (!fine) error = std::string(name) + ", block " + std::to_string(b) + ": " + what;
    }
    std::free(shared);
    return fine ? 0 : 1;
}
