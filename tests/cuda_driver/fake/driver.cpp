// A stand-in for libcuda, for tests on machines without a GPU. Kernels run on the CPU, from the library of emulated kernels
// that FAKE_CUDA_KERNELS names. What it is for is the order of things: work that is given to a stream is done when somebody
// waits for it and not before, as late as a GPU may; copies from pinned memory read it then, copies from other memory have
// read it before the call returns; a call without the context, a wait while capturing, memory that was freed are errors.
//
// FAKE_CUDA_VERSION (13000), FAKE_CUDA_DEVICES (1), FAKE_CUDA_CAPABILITY (90), FAKE_CUDA_MEMORY (bytes, 1 GB);
// FAKE_CUDA_REFUSES=1: it takes only images that the stand-in for NVRTC made.
#include "cuda.h"

#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <deque>
#include <dlfcn.h>
#include <map>
#include <mutex>
#include <pthread.h>
#include <string>
#include <unistd.h>
#include <vector>

namespace {
enum Result {
    SUCCESS = 0,
    INVALID_VALUE = 1,
    OUT_OF_MEMORY = 2,
    NOT_INITIALIZED = 3,
    NO_DEVICE = 100,
    INVALID_DEVICE = 101,
    INVALID_IMAGE = 200,
    INVALID_CONTEXT = 201,
    UNSUPPORTED_PTX_VERSION = 222,
    INVALID_HANDLE = 400,
    NOT_FOUND = 500,
    NOT_READY = 600,
    ILLEGAL_ADDRESS = 700,
    LAUNCH_FAILED = 719,
    STREAM_CAPTURE_UNSUPPORTED = 900,
    STREAM_CAPTURE_INVALIDATED = 901,
    STREAM_CAPTURE_IMPLICIT = 906,
};
const struct {
    int number;
    const char *name, *sentence;
} NAMES[] = {
    {OUT_OF_MEMORY, "CUDA_ERROR_OUT_OF_MEMORY", "out of memory"},
    {NO_DEVICE, "CUDA_ERROR_NO_DEVICE", "no CUDA-capable device is detected"},
    {INVALID_CONTEXT, "CUDA_ERROR_INVALID_CONTEXT", "invalid device context"},
    {UNSUPPORTED_PTX_VERSION, "CUDA_ERROR_UNSUPPORTED_PTX_VERSION", "the PTX was compiled with a newer toolchain"},
    {LAUNCH_FAILED, "CUDA_ERROR_LAUNCH_FAILED", "unspecified launch failure"},
};

using Work = std::function<void()>;

struct Graph {
    std::vector<Work> work;
};
struct Stream {
    std::deque<Work> queue;
    Graph* capturing = nullptr;
    /// Whether all threads are watched while this captures, and whether one did what it must not.
    bool global = false, spoiled = false;
};
struct Event {
    /// Where it was recorded, and how much had been done there when it is reached.
    Stream* stream = nullptr;
    bool reached = true;
};
struct Module {
    void* kernels;
};

std::recursive_mutex mutex;
int sticky = SUCCESS; // a device that failed goes on failing
std::map<uint64_t, size_t> memory;
std::map<char*, size_t> pinned;
size_t in_use = 0;
bool initialised = false;
int context_word; // its address is the context
int retained = 0;
thread_local std::vector<void*> contexts;
thread_local int capture_mode = 0; // 0: global, 2: relaxed
bool refuses_launches = false, other_context = false;
Stream default_stream;
std::map<Stream*, bool> streams;

long number(const char* name, long otherwise) {
    const char* text = std::getenv(name);
    return text != nullptr ? std::strtol(text, nullptr, 10) : otherwise;
}
size_t total_memory() { return static_cast<size_t>(number("FAKE_CUDA_MEMORY", 1l << 30)); }
void* context() { return &context_word; }
Stream* stream_of(void* handle) {
    if (handle == nullptr || handle == reinterpret_cast<void*>(1)) return &default_stream;
    return static_cast<Stream*>(handle);
}
bool again = false; // the work just run waits for something that has not come yet
void run_one(Stream& stream) {
    Work work = std::move(stream.queue.front());
    stream.queue.pop_front();
    again = false;
    work();
    if (!again) return;
    stream.queue.push_front(std::move(work));
    usleep(100);
}
void finish(Stream& stream) {
    while (!stream.queue.empty()) run_one(stream);
}
void finish_all() {
    finish(default_stream);
    for (auto& entry : streams) finish(*entry.first);
}
/// What a thread may not ask while another captures globally, unless it has said that it does not mind.
bool spoils_a_capture() {
    bool spoilt = false;
    for (auto& entry : streams)
        if (entry.first->capturing != nullptr && entry.first->global && capture_mode != 2)
            spoilt = entry.first->spoiled = true;
    return spoilt;
}
} // namespace

#define EXPORT extern "C" __attribute__((visibility("default")))
#define LOCKED std::lock_guard<std::recursive_mutex> lock(mutex)
#define IN_CONTEXT                                                                                                         \
    LOCKED;                                                                                                                \
    fake_log(__func__);                                                                                                    \
    if (!fake_has_context()) return INVALID_CONTEXT;                                                                       \
    if (sticky != SUCCESS) return sticky

EXPORT void fake_log(const char* line) {
    const char* path = std::getenv("FAKE_CUDA_LOG");
    if (path == nullptr) return;
    if (FILE* file = std::fopen(path, "a")) {
        // What the library's own threads do is told apart.
        char name[16] = "";
        pthread_getname_np(pthread_self(), name, sizeof name);
        std::fprintf(file, "%s%s\n", std::strncmp(name, "kronsae-", 8) == 0 ? "worker: " : "", line);
        std::fclose(file);
    }
}
EXPORT bool fake_has_context() { return !contexts.empty() && contexts.back() == context() && retained > 0; }
EXPORT bool fake_is_device(uint64_t address, size_t bytes) {
    LOCKED;
    auto after = memory.upper_bound(address);
    if (after == memory.begin()) return false;
    --after;
    return address + bytes <= after->first + after->second;
}
EXPORT void fake_enqueue(void* handle, Work* work) {
    LOCKED;
    Stream& stream = *stream_of(handle);
    if (stream.capturing != nullptr) stream.capturing->work.push_back(std::move(*work));
    else stream.queue.push_back(std::move(*work));
}
EXPORT void fake_not_yet() { again = true; }
/// Lets launches fail, streams seem to be of another context, the device break for good.
EXPORT void fake_refuse_launches(int refuses) {
    LOCKED;
    refuses_launches = refuses != 0;
}
EXPORT void fake_other_context(int other) {
    LOCKED;
    other_context = other != 0;
}
EXPORT void fake_break(int) {
    LOCKED;
    sticky = ILLEGAL_ADDRESS;
}
/// What a GPU would do by itself sooner or later.
EXPORT void fake_finish_all() {
    LOCKED;
    finish_all();
}

EXPORT int cuInit(unsigned) {
    initialised = true;
    return number("FAKE_CUDA_DEVICES", 1) > 0 ? SUCCESS : NO_DEVICE;
}
EXPORT int cuDriverGetVersion(int* version) {
    *version = static_cast<int>(number("FAKE_CUDA_VERSION", 13000));
    return SUCCESS;
}
EXPORT int cuDeviceGetCount(int* count) {
    if (!initialised) return NOT_INITIALIZED;
    *count = static_cast<int>(number("FAKE_CUDA_DEVICES", 1));
    return SUCCESS;
}
EXPORT int cuDeviceGet(int* device, int ordinal) {
    if (ordinal >= number("FAKE_CUDA_DEVICES", 1)) return INVALID_DEVICE;
    *device = ordinal;
    return SUCCESS;
}
EXPORT int cuDeviceGetName(char* name, int room, int) {
    std::snprintf(name, static_cast<size_t>(room), "Stand-in H200");
    return SUCCESS;
}
EXPORT int cuDeviceGetAttribute(int* value, int which, int) {
    const long capability = number("FAKE_CUDA_CAPABILITY", 90);
    switch (which) {
    case 16: *value = 2; return SUCCESS;                                 // multiprocessors
    case 75: *value = static_cast<int>(capability / 10); return SUCCESS; // compute capability
    case 76: *value = static_cast<int>(capability % 10); return SUCCESS;
    case 97: *value = 227 << 10; return SUCCESS; // shared memory of a block
    default: return INVALID_VALUE;
    }
}
EXPORT int cuDevicePrimaryCtxRetain(void** out, int) {
    LOCKED;
    retained++;
    *out = context();
    return SUCCESS;
}
EXPORT int cuDevicePrimaryCtxRelease_v2(int) {
    LOCKED;
    fake_log(--retained == 0 ? "the context is gone" : "the context stays");
    if (retained == 0 && in_use > 0) fake_log("and memory with it");
    return SUCCESS;
}
EXPORT int cuCtxPushCurrent_v2(void* pushed) {
    contexts.push_back(pushed);
    return SUCCESS;
}
EXPORT int cuCtxPopCurrent_v2(void** popped) {
    if (contexts.empty()) return INVALID_CONTEXT;
    *popped = contexts.back();
    contexts.pop_back();
    return SUCCESS;
}

static int text_of(int result, const char** out, bool name) {
    for (const auto& known : NAMES)
        if (known.number == result) {
            *out = name ? known.name : known.sentence;
            return SUCCESS;
        }
    *out = nullptr;
    return INVALID_VALUE;
}
EXPORT int cuGetErrorName(int result, const char** out) { return text_of(result, out, true); }
EXPORT int cuGetErrorString(int result, const char** out) { return text_of(result, out, false); }

EXPORT int cuMemAlloc_v2(uint64_t* address, size_t bytes) {
    IN_CONTEXT;
    if (spoils_a_capture()) return STREAM_CAPTURE_UNSUPPORTED;
    if (bytes == 0) return INVALID_VALUE;
    void* start = nullptr;
    if (in_use + bytes > total_memory() || posix_memalign(&start, 256, bytes) != 0) return OUT_OF_MEMORY;
    std::memset(start, 0xCD, bytes);
    *address = reinterpret_cast<uint64_t>(start);
    memory[*address] = bytes;
    in_use += bytes;
    return SUCCESS;
}
EXPORT int cuMemFree_v2(uint64_t address) {
    IN_CONTEXT;
    if (spoils_a_capture()) return STREAM_CAPTURE_UNSUPPORTED;
    finish_all();
    auto found = memory.find(address);
    if (found == memory.end()) return INVALID_VALUE;
    std::memset(reinterpret_cast<void*>(address), 0xDD, found->second);
    std::free(reinterpret_cast<void*>(address));
    in_use -= found->second;
    memory.erase(found);
    return SUCCESS;
}
EXPORT int cuMemGetInfo_v2(size_t* free_bytes, size_t* total) {
    IN_CONTEXT;
    *total = total_memory();
    *free_bytes = *total - in_use;
    return SUCCESS;
}
EXPORT int cuMemHostAlloc(void** out, size_t bytes, unsigned flags) {
    IN_CONTEXT;
    if (spoils_a_capture()) return STREAM_CAPTURE_UNSUPPORTED;
    if (flags & 4) fake_log("write-combined");
    char* start = static_cast<char*>(std::malloc(bytes));
    std::memset(start, 0xCD, bytes);
    pinned[start] = bytes;
    *out = start;
    return SUCCESS;
}
EXPORT int cuMemFreeHost(void* start) {
    IN_CONTEXT;
    if (spoils_a_capture()) return STREAM_CAPTURE_UNSUPPORTED;
    if (pinned.erase(static_cast<char*>(start)) == 0) return INVALID_VALUE;
    std::free(start);
    return SUCCESS;
}
static bool is_pinned(const void* start) {
    auto after = pinned.upper_bound(const_cast<char*>(static_cast<const char*>(start)));
    if (after == pinned.begin()) return false;
    --after;
    return static_cast<const char*>(start) < after->first + after->second;
}
EXPORT int cuPointerGetAttribute(void* out, int which, uint64_t address) {
    IN_CONTEXT;
    if (which != 2) return INVALID_VALUE;
    const bool host = is_pinned(reinterpret_cast<void*>(address));
    if (!host && !fake_is_device(address, 1)) return INVALID_VALUE;
    *static_cast<unsigned*>(out) = host ? 1 : 2;
    return SUCCESS;
}
static void fault(const char* what) {
    fake_log(what);
    sticky = ILLEGAL_ADDRESS;
}
EXPORT int cuMemcpyHtoDAsync_v2(uint64_t to, const void* from, size_t bytes, void* stream) {
    IN_CONTEXT;
    if (!fake_is_device(to, bytes)) return INVALID_VALUE;
    Work work;
    if (is_pinned(from)) {
        work = [=] { fake_is_device(to, bytes) ? void(std::memcpy(reinterpret_cast<void*>(to), from, bytes)) : fault("copy"); };
    } else {
        const std::string now(static_cast<const char*>(from), bytes);
        work = [=] { fake_is_device(to, bytes) ? void(std::memcpy(reinterpret_cast<void*>(to), now.data(), bytes)) : fault("copy"); };
    }
    if (stream_of(stream)->capturing != nullptr) fake_log("captured a copy from the host");
    fake_enqueue(stream, &work);
    return SUCCESS;
}
EXPORT int cuMemcpyDtoHAsync_v2(void* to, uint64_t from, size_t bytes, void* stream) {
    IN_CONTEXT;
    if (!fake_is_device(from, bytes)) return INVALID_VALUE;
    const bool was_pinned = is_pinned(to);
    Work work = [=] {
        if (was_pinned && !is_pinned(to)) fault("a copy to pinned memory that was freed");
        else if (!fake_is_device(from, bytes)) fault("copy");
        else std::memcpy(to, reinterpret_cast<void*>(from), bytes);
    };
    fake_enqueue(stream, &work);
    return SUCCESS;
}
EXPORT int cuMemsetD8Async(uint64_t to, unsigned char byte, size_t bytes, void* stream) {
    IN_CONTEXT;
    if (!fake_is_device(to, bytes)) return INVALID_VALUE;
    Work work = [=] { fake_is_device(to, bytes) ? void(std::memset(reinterpret_cast<void*>(to), byte, bytes)) : fault("set"); };
    fake_enqueue(stream, &work);
    return SUCCESS;
}

EXPORT int cuStreamCreate(void** out, unsigned flags) {
    IN_CONTEXT;
    if (flags != 1) fake_log("a stream that waits for the default one");
    auto* stream = new Stream;
    streams[stream] = true;
    *out = stream;
    return SUCCESS;
}
EXPORT int cuStreamDestroy_v2(void* handle) {
    IN_CONTEXT;
    auto* stream = static_cast<Stream*>(handle);
    if (streams.count(stream) == 0) return INVALID_HANDLE;
    finish(*stream);
    streams.erase(stream);
    delete stream;
    return SUCCESS;
}
EXPORT int cuStreamGetCtx(void*, void** out) {
    *out = other_context ? static_cast<void*>(&retained) : context();
    return SUCCESS;
}
EXPORT int cuStreamSynchronize(void* handle) {
    IN_CONTEXT;
    if (spoils_a_capture()) return STREAM_CAPTURE_UNSUPPORTED;
    Stream& stream = *stream_of(handle);
    if (stream.capturing != nullptr) return STREAM_CAPTURE_UNSUPPORTED;
    finish(stream);
    return sticky;
}
EXPORT int cuStreamQuery(void* handle) {
    IN_CONTEXT;
    Stream& stream = *stream_of(handle);
    if (stream.capturing != nullptr) return STREAM_CAPTURE_UNSUPPORTED;
    // Each look finds a little more of it done.
    if (!stream.queue.empty()) run_one(stream);
    return stream.queue.empty() ? sticky : NOT_READY;
}
EXPORT int cuStreamBeginCapture_v2(void* handle, int mode) {
    IN_CONTEXT;
    Stream& stream = *stream_of(handle);
    if (stream.capturing != nullptr) return INVALID_VALUE;
    stream.capturing = new Graph;
    stream.global = mode == 0;
    stream.spoiled = false;
    return SUCCESS;
}
EXPORT int cuStreamIsCapturing(void* handle, int* status) {
    IN_CONTEXT;
    *status = stream_of(handle)->capturing != nullptr;
    if (stream_of(handle) != &default_stream) return SUCCESS;
    for (auto& entry : streams)
        if (entry.first->capturing != nullptr) return STREAM_CAPTURE_IMPLICIT;
    return SUCCESS;
}
EXPORT int cuThreadExchangeStreamCaptureMode(int* mode) {
    std::swap(*mode, capture_mode);
    return SUCCESS;
}
EXPORT int cuStreamEndCapture(void* handle, void** graph) {
    IN_CONTEXT;
    Stream& stream = *stream_of(handle);
    if (stream.capturing == nullptr) return INVALID_VALUE;
    *graph = stream.capturing;
    stream.capturing = nullptr;
    if (stream.spoiled) fake_log("a capture was spoiled");
    return stream.spoiled ? STREAM_CAPTURE_INVALIDATED : SUCCESS;
}
EXPORT int cuGraphInstantiateWithFlags(void** ready, void* graph, unsigned long long) {
    IN_CONTEXT;
    *ready = new Graph(*static_cast<Graph*>(graph));
    return SUCCESS;
}
EXPORT int cuGraphLaunch(void* ready, void* stream) {
    IN_CONTEXT;
    for (const Work& work : static_cast<Graph*>(ready)->work) {
        Work copy = work;
        fake_enqueue(stream, &copy);
    }
    return SUCCESS;
}
EXPORT int cuGraphDestroy(void* graph) {
    delete static_cast<Graph*>(graph);
    return SUCCESS;
}
EXPORT int cuGraphExecDestroy(void* ready) {
    IN_CONTEXT;
    finish_all();
    delete static_cast<Graph*>(ready);
    return SUCCESS;
}

EXPORT int cuEventCreate(void** out, unsigned) {
    IN_CONTEXT;
    *out = new Event;
    return SUCCESS;
}
EXPORT int cuEventRecord(void* handle, void* stream) {
    IN_CONTEXT;
    auto* event = static_cast<Event*>(handle);
    event->stream = stream_of(stream);
    event->reached = false;
    Work work = [=] { event->reached = true; };
    fake_enqueue(stream, &work);
    return SUCCESS;
}
static void reach(Event* event) {
    while (!event->reached && !event->stream->queue.empty()) run_one(*event->stream);
}
EXPORT int cuEventQuery(void* handle) {
    IN_CONTEXT;
    if (spoils_a_capture()) return STREAM_CAPTURE_UNSUPPORTED;
    return static_cast<Event*>(handle)->reached ? SUCCESS : NOT_READY;
}
EXPORT int cuEventSynchronize(void* handle) {
    IN_CONTEXT;
    if (spoils_a_capture()) return STREAM_CAPTURE_UNSUPPORTED;
    reach(static_cast<Event*>(handle));
    return sticky;
}
EXPORT int cuStreamWaitEvent(void* stream, void* handle, unsigned) {
    IN_CONTEXT;
    auto* event = static_cast<Event*>(handle);
    Work work = [=] { reach(event); };
    fake_enqueue(stream, &work);
    return SUCCESS;
}
EXPORT int cuEventDestroy_v2(void*) {
    // Work that waits for it may still be queued, and the real driver frees it then: a test is short enough to leak.
    return SUCCESS;
}

EXPORT int cuModuleLoadData(void** out, const void* image) {
    IN_CONTEXT;
    const bool compiled = std::strncmp(static_cast<const char*>(image), "FAKECUBIN", 9) == 0;
    if (!compiled && number("FAKE_CUDA_REFUSES", 0) != 0) return UNSUPPORTED_PTX_VERSION;
    const char* path = std::getenv("FAKE_CUDA_KERNELS");
    void* kernels = path != nullptr ? dlopen(path, RTLD_NOW | RTLD_LOCAL) : nullptr;
    if (kernels == nullptr) return INVALID_IMAGE;
    fake_log(compiled ? "loaded a compiled image" : "loaded a built-in image");
    *out = new Module{kernels};
    return SUCCESS;
}
EXPORT int cuModuleUnload(void* module) {
    IN_CONTEXT;
    finish_all();
    delete static_cast<Module*>(module);
    return SUCCESS;
}

struct Function {
    std::string name;
    int (*launch)(const char*, const uint32_t*, const uint32_t*, uint64_t, void**);
    const char* (*error)();
    int dynamic = 48 << 10;
};
EXPORT int cuModuleGetFunction(void** out, void* module, const char* name) {
    IN_CONTEXT;
    void* kernels = static_cast<Module*>(module)->kernels;
    auto knows = reinterpret_cast<int (*)(const char*)>(dlsym(kernels, "kronsae_emulate_knows"));
    if (knows == nullptr || knows(name) == 0) return NOT_FOUND;
    auto* function = new Function;
    function->name = name;
    function->launch = reinterpret_cast<decltype(function->launch)>(dlsym(kernels, "kronsae_emulate_launch"));
    function->error = reinterpret_cast<decltype(function->error)>(dlsym(kernels, "kronsae_emulate_error"));
    *out = function;
    return SUCCESS;
}
EXPORT int cuFuncGetAttribute(int* value, int which, void*) {
    if (which != 1) return INVALID_VALUE;
    *value = 1024; // static shared memory
    return SUCCESS;
}
EXPORT int cuFuncSetAttribute(void* function, int which, int value) {
    if (which != 8 || value < 0 || value > (227 << 10) - 1024) return INVALID_VALUE;
    static_cast<Function*>(function)->dynamic = value;
    return SUCCESS;
}
EXPORT int cuOccupancyMaxActiveBlocksPerMultiprocessor(int* blocks, void* function, int, size_t shared) {
    *blocks = shared <= static_cast<size_t>(static_cast<Function*>(function)->dynamic) ? 2 : 0;
    return SUCCESS;
}
EXPORT int cuLaunchKernel(void* handle, unsigned gx, unsigned gy, unsigned gz, unsigned bx, unsigned by, unsigned bz,
                          unsigned shared, void* stream, void** parameters, void**) {
    IN_CONTEXT;
    const Function& function = *static_cast<Function*>(handle);
    if (refuses_launches) return LAUNCH_FAILED;
    if (shared > static_cast<unsigned>(function.dynamic) || gx == 0 || gy == 0) return INVALID_VALUE;
    // Their values as they are now. Of their sizes nothing is known here but that none is larger than 320 bytes (the
    // largest is a RowUpdate), which are there to be read, as the caller has room for far more; the list ends with a null.
    struct alignas(16) Value {
        unsigned char bytes[320];
    };
    std::vector<Value> values;
    for (size_t i = 0; i < 64 && parameters[i] != nullptr; i++) {
        Value value;
        std::memcpy(value.bytes, parameters[i], sizeof value.bytes);
        values.push_back(value);
    }
    Work work = [=]() mutable {
        std::vector<void*> pointers;
        for (Value& value : values) pointers.push_back(value.bytes);
        const uint32_t grid[3] = {gx, gy, gz}, block[3] = {bx, by, bz};
        if (function.launch(function.name.c_str(), grid, block, shared, pointers.data()) != 0) {
            fake_log(function.error());
            sticky = LAUNCH_FAILED;
        }
    };
    fake_enqueue(stream, &work);
    return SUCCESS;
}
