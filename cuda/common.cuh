// What all kernels share: the shape of an encoder, elements, order-preserving keys, and the block-wide building blocks:
// sums, scans, ordered compaction, the k-th largest key.
//
// The same source is compiled by nvcc, by NVRTC (no header but CUDA's own, no INFINITY) and, by the tests, by g++ over
// emulate/language.h. Blocks are one-dimensional, of a multiple of 32 threads, 1024 at most.
#ifndef KRONSAE_COMMON_CUH
#define KRONSAE_COMMON_CUH

#ifndef KRONSAE_EMULATE
#include <cuda_bf16.h>
#endif

typedef unsigned char u8;
typedef unsigned short u16;
typedef unsigned int u32;
typedef unsigned long long u64;

#define KRONSAE_FULL_WARP 0xFFFFFFFFu
/// The most threads of a block, for __launch_bounds__: at 1024 the compiler may use 64 registers a thread, and two
/// blocks of 512 fill a multiprocessor's register file as well as one of 1024.
#define KRONSAE_MOST_THREADS 1024

// ---------------------------------------------------------------------------------------------------------------- shape

enum { KRONSAE_KRON = 0, KRONSAE_DENSE = 1 };

/// An encoder: `#[repr(C)]` on the host's side, passed by value.
///
/// kron: row k*(m+n)+i is base row i of head k, row k*(m+n)+m+j its extension row j; latent k*m*n + i*n + j is of those.
/// dense: row f is latent f.
struct Shape {
    u32 kind;
    u32 heads;     // h; dense: 0
    u32 base;      // m
    u32 extension; // n
    u32 rows;      // h*(m+n); dense: F
    u32 latents;   // F
};

/// The base row and the extension row of a latent (kron); the same row twice (dense).
static __device__ __forceinline__ void rows_of(const Shape& s, u32 latent, u32& first, u32& second) {
    if (s.kind == KRONSAE_DENSE) {
        first = second = latent;
        return;
    }
    const u32 per_head = s.base * s.extension;
    const u32 head = latent / per_head, within = latent % per_head;
    first = head * (s.base + s.extension) + within / s.extension;
    second = head * (s.base + s.extension) + s.base + within % s.extension;
}

// ------------------------------------------------------------------------------------------------------------- elements

static __device__ __forceinline__ float to_float(float v) { return v; }
static __device__ __forceinline__ float to_float(__nv_bfloat16 v) { return __bfloat162float(v); }

template <class T> __device__ __forceinline__ T from_float(float v);
template <> __device__ __forceinline__ float from_float<float>(float v) { return v; }
template <> __device__ __forceinline__ __nv_bfloat16 from_float<__nv_bfloat16>(float v) {
    return __float2bfloat16_rn(v);
}

static __device__ __forceinline__ float infinity() { return __uint_as_float(0x7F800000u); }
/// False for NaN and +infinity; -infinity is an ordinary small pre-activation.
static __device__ __forceinline__ bool is_below_infinity(float v) { return v < infinity(); }
/// max(v, 0), and 0 for NaN.
static __device__ __forceinline__ float positive(float v) { return v > 0.0f ? v : 0.0f; }

// ----------------------------------------------------------------------------------------------------------------- keys
//
// A latent (or head) as an integer: larger keys come first in the order of the format, value descending, then index
// ascending. Only positive values have keys, so the sign bit is no part of them and the topmost byte is exactly the
// float's exponent: the first round of a radix selection spreads over octaves. No two latents have equal keys, and 0 is
// no key.

static __device__ __forceinline__ u64 key_of(float value, u32 index) {
    return ((u64)__float_as_uint(value) << 33) | (u64)(0xFFFFFFFFu - index);
}
static __device__ __forceinline__ float key_value(u64 key) { return __uint_as_float((u32)(key >> 33)); }
static __device__ __forceinline__ u32 key_index(u64 key) { return 0xFFFFFFFFu - (u32)key; }
/// The smallest key of a latent whose value reaches `value`; no latent's key is 0.
static __device__ __forceinline__ u64 key_floor(float value) { return (u64)__float_as_uint(value) << 33; }

// ---------------------------------------------------------------------------------------------------- shared memory, PTX

/// Declares a block's dynamic shared memory as an array of bytes, aligned to 16 (emulated: where the launch put it).
#ifdef KRONSAE_EMULATE
#define KRONSAE_DYNAMIC_SHARED(name) unsigned char* const name = emulate::launch.shared
static inline u32 dynamic_shared_bytes() { return emulate::launch.shared_bytes; }
static inline void copy_async_16(void* shared, const void* global) { emulate::copy_async(shared, global, 16); }
static inline void copy_async_commit() { emulate::copy_commit(); }
template <int PENDING> static inline void copy_async_wait() { emulate::copy_wait(PENDING); }
#else
#define KRONSAE_DYNAMIC_SHARED(name) extern __shared__ __align__(16) unsigned char name[]
/// What the launch asked for.
static __device__ __forceinline__ u32 dynamic_shared_bytes() {
    u32 bytes;
    asm("mov.u32 %0, %%dynamic_smem_size;" : "=r"(bytes));
    return bytes;
}
/// Starts copying 16 bytes, aligned to 16 on both sides, past the registers (and past L1: they are read once).
static __device__ __forceinline__ void copy_async_16(void* shared, const void* global) {
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16;" ::"r"((u32)__cvta_generic_to_shared(shared)), "l"(global)
                 : "memory");
}
/// Ends a group of the calling thread's copies.
static __device__ __forceinline__ void copy_async_commit() { asm volatile("cp.async.commit_group;" ::: "memory"); }
/// Waits until at most PENDING of the calling thread's groups are under way. Others see the data after a barrier.
template <int PENDING> static __device__ __forceinline__ void copy_async_wait() {
    asm volatile("cp.async.wait_group %0;" ::"n"(PENDING) : "memory");
}
#endif

/// A barrier that the tests can take out by its number, to see that the emulation finds it missing.
#ifndef KRONSAE_PLANT_RACE
#define KRONSAE_PLANT_RACE 0
#endif
#define PLANTABLE_BARRIER(number)                        \
    do {                                                 \
        if (KRONSAE_PLANT_RACE != (number)) __syncthreads(); \
    } while (0)

// ------------------------------------------------------------------------------------------------------------ reductions

static __device__ __forceinline__ u32 lane_id() { return threadIdx.x & 31; }
static __device__ __forceinline__ u32 warp_id() { return threadIdx.x >> 5; }
static __device__ __forceinline__ u32 warps_in_block() { return blockDim.x >> 5; }

/// Sum over a warp, the same bits in every lane: a fixed tree.
template <class T> static __device__ __forceinline__ T warp_sum(T v) {
    for (u32 by = 16; by > 0; by >>= 1) v += __shfl_xor_sync(KRONSAE_FULL_WARP, v, by);
    return v;
}

/// Sum over the block, the same bits in every thread: a fixed tree. `scratch` is shared, [32]; it may be used again after
/// the next barrier.
template <class T> static __device__ __forceinline__ T block_sum(T v, T* scratch) {
    v = warp_sum(v);
    if (lane_id() == 0) scratch[warp_id()] = v;
    __syncthreads();
    v = lane_id() < warps_in_block() ? scratch[lane_id()] : T(0);
    return warp_sum(v);
}

/// Sum of `v` over the threads before this one; `total` becomes that over all. `scratch` is shared, [32]; it may be used
/// again after the next barrier.
static __device__ __forceinline__ u32 block_scan(u32 v, u32& total, u32* scratch) {
    u32 through = v; // sum over this lane and those before it
    for (u32 by = 1; by < 32; by <<= 1) {
        const u32 before = __shfl_up_sync(KRONSAE_FULL_WARP, through, by);
        if (lane_id() >= by) through += before;
    }
    if (lane_id() == 31) scratch[warp_id()] = through;
    __syncthreads();
    // Every warp scans the warps' sums for itself: no second barrier.
    u32 warps = lane_id() < warps_in_block() ? scratch[lane_id()] : 0;
    for (u32 by = 1; by < 32; by <<= 1) {
        const u32 before = __shfl_up_sync(KRONSAE_FULL_WARP, warps, by);
        if (lane_id() >= by) warps += before;
    }
    total = __shfl_sync(KRONSAE_FULL_WARP, warps, 31);
    const u32 earlier = __shfl_sync(KRONSAE_FULL_WARP, warps, warp_id() == 0 ? 0 : warp_id() - 1);
    return through - v + (warp_id() == 0 ? 0 : earlier);
}

/// The place at which this thread's element goes when those of `keep` are written one behind the other in the threads'
/// order, from `next` on, which advances by their number. One barrier, as in `block_scan`.
static __device__ __forceinline__ u32 ordered_place(bool keep, u32& next, u32* scratch) {
    u32 total;
    const u32 place = next + block_scan(keep ? 1 : 0, total, scratch);
    next += total;
    return place;
}

// ----------------------------------------------------------------------------------------------------- the k-th largest

/// Shared memory of `kth_key`.
struct RadixScratch {
    u32 histogram[256];
    u32 digit;     // of the k-th largest; 256: there are fewer than k
    u32 remaining; // which of its bucket it is, from the largest
    u32 in_bucket;
};

/// A floor that selects the k largest of the keys that `each` passes to its argument in this thread, over all threads: as
/// many as reach it. If there are fewer than k, 0. Only bits from `low` on, a multiple of 8, are looked at: where keys agree
/// in those, more than k may reach the floor. Collective; k > 0.
///
/// Radix selection, a byte a round from the top. It ends as soon as the bucket of the k-th holds no key too many, after
/// three rounds where values are spread as usual. Keys are enumerated again in each round rather than kept: what they are
/// made of is in shared memory or L1. A histogram's counters are hit by integer atomics whose order cannot show.
template <class Each>
static __device__ __forceinline__ u64 kth_key(const Each& each, u32 k, int low, RadixScratch& scratch) {
    u64 prefix = 0;
    u32 remaining = k;
    for (int shift = 56;; shift -= 8) {
        for (u32 b = threadIdx.x; b < 256; b += blockDim.x) scratch.histogram[b] = 0;
        PLANTABLE_BARRIER(4);
        each([&](u64 key) {
            if (shift == 56 || key >> (shift + 8) == prefix) atomicAdd(&scratch.histogram[key >> shift & 255], 1u);
        });
        __syncthreads();
        if (threadIdx.x < 32) {
            // Each lane has eight digits, lane 0 the largest.
            const u32* const counts = &scratch.histogram[255 - lane_id() * 8];
            u32 sum = 0;
            for (int i = 0; i < 8; i++) sum += counts[-i];
            u32 through = sum;
            for (u32 by = 1; by < 32; by <<= 1) {
                const u32 before = __shfl_up_sync(KRONSAE_FULL_WARP, through, by);
                if (lane_id() >= by) through += before;
            }
            u32 before = through - sum;
            if (before < remaining && remaining <= through) {
                int i = 0;
                while (before + counts[-i] < remaining) before += counts[-i++];
                scratch.digit = 255 - lane_id() * 8 - i;
                scratch.remaining = remaining - before;
                scratch.in_bucket = counts[-i];
            } else if (lane_id() == 31 && through < remaining) {
                scratch.digit = 256;
            }
        }
        __syncthreads();
        // They are written again two barriers from now at the earliest.
        const u32 digit = scratch.digit;
        if (digit == 256) return 0;
        prefix = prefix << 8 | digit;
        remaining = scratch.remaining;
        if (scratch.in_bucket == remaining || shift == low) return prefix << shift;
    }
}

#endif
