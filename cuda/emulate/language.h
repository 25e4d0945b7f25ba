// CUDA C++ as g++ sees it: the names that the kernels use, over the fibers of block.h.
//
// The kernels' source is not changed for this; common.cuh asks for `KRONSAE_EMULATE` where inline PTX needs a body in C++,
// and for the declaration of dynamic shared memory. Static shared memory lies in one section of the library, so that it can
// be overwritten before each block: the kernels are compiled in an unnamed namespace, for statics of templates cannot be put
// into a section otherwise.
#pragma once

#include "block.h"

#include <cmath>
#include <type_traits>

#define KRONSAE_EMULATE 1
#ifndef KRONSAE_PLANT_RACE
#define KRONSAE_PLANT_RACE (emulate::launch.planted)
#endif

#define __global__
#define __device__
#define __host__
#define __forceinline__ inline
#define __constant__ static const
#define __shared__ static __attribute__((section("kronsae_shared")))
#define __align__(bytes) __attribute__((aligned(bytes)))
#define __launch_bounds__(...)
#define __grid_constant__

struct alignas(8) uint2 { unsigned x, y; };
struct uint3 { unsigned x, y, z; };
struct alignas(16) uint4 { unsigned x, y, z, w; };
struct alignas(8) int2 { int x, y; };
struct alignas(16) int4 { int x, y, z, w; };
struct alignas(8) float2 { float x, y; };
struct alignas(16) float4 { float x, y, z, w; };
struct alignas(16) double2 { double x, y; };
struct alignas(16) ulonglong2 { unsigned long long x, y; };
struct dim3 { unsigned x = 1, y = 1, z = 1; };

static inline uint2 make_uint2(unsigned x, unsigned y) { return {x, y}; }
static inline uint4 make_uint4(unsigned x, unsigned y, unsigned z, unsigned w) { return {x, y, z, w}; }
static inline int2 make_int2(int x, int y) { return {x, y}; }
static inline int4 make_int4(int x, int y, int z, int w) { return {x, y, z, w}; }
static inline float2 make_float2(float x, float y) { return {x, y}; }
static inline float4 make_float4(float x, float y, float z, float w) { return {x, y, z, w}; }

namespace emulate {

/// What all threads of a launch see.
struct Launch {
    dim3 grid, block, block_index;
    unsigned char* shared = nullptr;
    unsigned shared_bytes = 0;
    int planted = 0; // number of the barrier that is taken out: PLANTABLE_BARRIER in common.cuh
};
extern Launch launch;

template <class To, class From> inline To bits(From from) {
    static_assert(sizeof(To) == sizeof(From));
    To to;
    std::memcpy(&to, &from, sizeof to);
    return to;
}

template <class T> inline uint64_t to_word(T value) {
    static_assert(sizeof(T) <= 8);
    uint64_t word = 0;
    std::memcpy(&word, &value, sizeof value);
    return word;
}

template <class T> inline T from_word(uint64_t word) {
    T value;
    std::memcpy(&value, &word, sizeof value);
    return value;
}

inline unsigned lane() { return block.current().number % WARP; }

/// The lane to take from when `width` lanes each are a group; the own where there is none.
inline unsigned up(unsigned by, unsigned width) { return lane() % width >= by ? lane() - by : lane(); }
inline unsigned down(unsigned by, unsigned width) { return lane() % width + by < width ? lane() + by : lane(); }
inline unsigned exclusive(unsigned with, unsigned width) {
    const unsigned to = lane() ^ with;
    return to / width <= lane() / width ? to : lane();
}
inline unsigned indexed(unsigned from, unsigned width) { return lane() / width * width + from % width; }

template <class T> inline T shuffle(unsigned mask, T value, unsigned source, const char* file, int line) {
    return from_word<T>(block.warp(Operation::Shuffle, mask, to_word(value), source, file, line));
}

/// An integer changed by one thread at a time. Only integers: the order of float additions would show.
template <class T, class Change> inline T atomic(T* at, Change change) {
    static_assert(std::is_integral_v<T>);
    block.maybe_yield();
    const T old = *at;
    *at = change(old);
    return old;
}

/// A copy that happens when it is waited for: what reads it earlier reads what was there before.
inline void copy_async(void* to, const void* from, size_t bytes) {
    Thread& self = block.current();
    self.copies.push_back({to, from, bytes, self.group});
}
inline void copy_commit() { block.current().group++; }
/// Waits until at most `pending` committed groups are under way.
inline void copy_wait(unsigned pending) {
    Thread& self = block.current();
    size_t done = 0;
    for (; done < self.copies.size() && self.copies[done].group + pending < self.group; done++) {
        const PendingCopy& copy = self.copies[done];
        std::memcpy(copy.to, copy.from, copy.bytes);
    }
    self.copies.erase(self.copies.begin(), self.copies.begin() + static_cast<std::ptrdiff_t>(done));
}

} // namespace emulate

#define threadIdx (emulate::block.current().index)
#define blockIdx (emulate::launch.block_index)
#define blockDim (emulate::launch.block)
#define gridDim (emulate::launch.grid)
static constexpr int warpSize = 32;

#define EMULATE_HERE __FILE__, __LINE__
#define __syncthreads() ((void)emulate::block.barrier(emulate::BarrierKind::Sync, 0, EMULATE_HERE))
#define __syncthreads_or(p) ((int)emulate::block.barrier(emulate::BarrierKind::Or, (p) != 0, EMULATE_HERE))
#define __syncthreads_and(p) ((int)emulate::block.barrier(emulate::BarrierKind::And, (p) != 0, EMULATE_HERE))
#define __syncthreads_count(p) ((int)emulate::block.barrier(emulate::BarrierKind::Count, (p) != 0, EMULATE_HERE))

#define EMULATE_WARP(operation, mask, value) \
    emulate::block.warp(emulate::Operation::operation, (mask), (value), 0, EMULATE_HERE)
#define EMULATE_FULL 0xFFFFFFFFu
// `__syncwarp()` has a default argument.
#define EMULATE_MASK(first, ...) (first)
#define __syncwarp(...) ((void)EMULATE_WARP(Sync, EMULATE_MASK(__VA_ARGS__ __VA_OPT__(, ) EMULATE_FULL, 0), 0))
#define __ballot_sync(mask, p) ((unsigned)EMULATE_WARP(Ballot, mask, (p) != 0))
#define __any_sync(mask, p) ((int)(EMULATE_WARP(Ballot, mask, (p) != 0) != 0))
#define __all_sync(mask, p) ((int)(EMULATE_WARP(Ballot, mask, (p) == 0) == 0))
#define __match_any_sync(mask, v) ((unsigned)EMULATE_WARP(MatchAny, mask, emulate::to_word(v)))
#define __reduce_add_sync(mask, v) ((unsigned)EMULATE_WARP(Add, mask, (unsigned)(v)))
#define __reduce_min_sync(mask, v) ((unsigned)EMULATE_WARP(Min, mask, (unsigned)(v)))
#define __reduce_max_sync(mask, v) ((unsigned)EMULATE_WARP(Max, mask, (unsigned)(v)))
#define __reduce_and_sync(mask, v) ((unsigned)EMULATE_WARP(And, mask, (unsigned)(v)))
#define __reduce_or_sync(mask, v) ((unsigned)EMULATE_WARP(Or, mask, (unsigned)(v)))
#define __reduce_xor_sync(mask, v) ((unsigned)EMULATE_WARP(Xor, mask, (unsigned)(v)))

// The last argument, the width, may be left out.
#define EMULATE_WIDTH(width, ...) (width)
#define EMULATE_SHUFFLE(way, mask, value, by, ...)                                                                   \
    emulate::shuffle((mask), (value),                                                                               \
                     emulate::way((unsigned)(by), EMULATE_WIDTH(__VA_ARGS__ __VA_OPT__(, ) emulate::WARP, 0)),        \
                     EMULATE_HERE)
#define __shfl_sync(mask, value, ...) EMULATE_SHUFFLE(indexed, mask, value, __VA_ARGS__)
#define __shfl_up_sync(mask, value, ...) EMULATE_SHUFFLE(up, mask, value, __VA_ARGS__)
#define __shfl_down_sync(mask, value, ...) EMULATE_SHUFFLE(down, mask, value, __VA_ARGS__)
#define __shfl_xor_sync(mask, value, ...) EMULATE_SHUFFLE(exclusive, mask, value, __VA_ARGS__)

static inline void __threadfence() {}
static inline void __threadfence_block() {}
#define __trap() emulate::block.trap(EMULATE_HERE)

// The second operand's type follows the first's, as the overloads of CUDA convert it.
template <class T> struct EmulateSame { using Type = T; };
template <class T> using EmulateOperand = typename EmulateSame<T>::Type;
template <class T> static inline T atomicAdd(T* at, EmulateOperand<T> v) {
    return emulate::atomic(at, [v](T old) { return static_cast<T>(old + v); });
}
template <class T> static inline T atomicSub(T* at, EmulateOperand<T> v) {
    return emulate::atomic(at, [v](T old) { return static_cast<T>(old - v); });
}
template <class T> static inline T atomicMax(T* at, EmulateOperand<T> v) {
    return emulate::atomic(at, [v](T old) { return old > v ? old : v; });
}
template <class T> static inline T atomicMin(T* at, EmulateOperand<T> v) {
    return emulate::atomic(at, [v](T old) { return old < v ? old : v; });
}
template <class T> static inline T atomicOr(T* at, EmulateOperand<T> v) {
    return emulate::atomic(at, [v](T old) { return static_cast<T>(old | v); });
}
template <class T> static inline T atomicAnd(T* at, EmulateOperand<T> v) {
    return emulate::atomic(at, [v](T old) { return static_cast<T>(old & v); });
}
template <class T> static inline T atomicXor(T* at, EmulateOperand<T> v) {
    return emulate::atomic(at, [v](T old) { return static_cast<T>(old ^ v); });
}
template <class T> static inline T atomicExch(T* at, EmulateOperand<T> v) {
    return emulate::atomic(at, [v](T) { return v; });
}
template <class T> static inline T atomicCAS(T* at, EmulateOperand<T> expected, EmulateOperand<T> v) {
    return emulate::atomic(at, [=](T old) { return old == expected ? v : old; });
}

template <class T> static inline T __ldg(const T* at) { return *at; }
template <class T> static inline T __ldcg(const T* at) { return *at; }
template <class T> static inline T __ldcs(const T* at) { return *at; }
template <class T> static inline void __stcs(T* at, EmulateOperand<T> v) { *at = v; }
template <class T> static inline void __stcg(T* at, EmulateOperand<T> v) { *at = v; }

static inline int __popc(unsigned v) { return __builtin_popcount(v); }
static inline int __popcll(unsigned long long v) { return __builtin_popcountll(v); }
static inline int __clz(int v) { return v == 0 ? 32 : __builtin_clz(static_cast<unsigned>(v)); }
static inline int __clzll(long long v) { return v == 0 ? 64 : __builtin_clzll(static_cast<unsigned long long>(v)); }
static inline int __ffs(int v) { return __builtin_ffs(v); }
static inline int __ffsll(long long v) { return __builtin_ffsll(v); }
static inline unsigned __umulhi(unsigned a, unsigned b) {
    return static_cast<unsigned>(static_cast<uint64_t>(a) * b >> 32);
}

static inline unsigned __float_as_uint(float v) { return emulate::bits<unsigned>(v); }
static inline float __uint_as_float(unsigned v) { return emulate::bits<float>(v); }
static inline int __float_as_int(float v) { return emulate::bits<int>(v); }
static inline float __int_as_float(int v) { return emulate::bits<float>(v); }
static inline long long __double_as_longlong(double v) { return emulate::bits<long long>(v); }
static inline double __longlong_as_double(long long v) { return emulate::bits<double>(v); }

// The library is compiled with -ffp-contract=off: each of these is one rounding.
static inline float __fmul_rn(float a, float b) { return a * b; }
static inline float __fadd_rn(float a, float b) { return a + b; }
static inline float __fsub_rn(float a, float b) { return a - b; }
static inline float __fdiv_rn(float a, float b) { return a / b; }
static inline float __fmaf_rn(float a, float b, float c) { return std::fmaf(a, b, c); }
static inline float __fsqrt_rn(float a) { return std::sqrt(a); }
static inline float __frcp_rn(float a) { return 1.0f / a; }
static inline float rsqrtf(float a) { return 1.0f / std::sqrt(a); }
static inline double __dmul_rn(double a, double b) { return a * b; }
static inline double __dadd_rn(double a, double b) { return a + b; }
static inline double __fma_rn(double a, double b, double c) { return std::fma(a, b, c); }

// As CUDA's overloads: mixed operands of one signedness meet in their common type.
template <class A, class B> static inline std::common_type_t<A, B> min(A a, B b) {
    using T = std::common_type_t<A, B>;
    return static_cast<T>(b) < static_cast<T>(a) ? static_cast<T>(b) : static_cast<T>(a);
}
template <class A, class B> static inline std::common_type_t<A, B> max(A a, B b) {
    using T = std::common_type_t<A, B>;
    return static_cast<T>(a) < static_cast<T>(b) ? static_cast<T>(b) : static_cast<T>(a);
}

#include "reduced.h"
