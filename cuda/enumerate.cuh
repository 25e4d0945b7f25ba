// What is selected among, as keys: heads, products of heads, latents of a dense row, dead latents. Each of these passes a
// thread's share of its keys to a function; over a block's threads that is every key once. They are made anew each time
// they are asked for: from shared memory, or from rows that were read a moment ago and are in L1 or L2.
#ifndef KRONSAE_ENUMERATE_CUH
#define KRONSAE_ENUMERATE_CUH
#include "common.cuh"

/// The largest product of each head.
template <class T> struct HeadKeys {
    const Shape& s;
    const T* y;
    const float* maxima; // or null: computed again
    template <class Take> __device__ __forceinline__ void operator()(const Take& take) const {
        for (u32 head = threadIdx.x; head < s.heads; head += blockDim.x) {
            const float max = maxima != nullptr ? maxima[head] : again(head);
            if (max > 0.0f) take(key_of(max, head));
        }
    }
    __device__ __forceinline__ float again(u32 head) const {
        const T* const rows = y + (u64)head * (s.base + s.extension);
        float p = 0.0f, q = 0.0f;
#pragma unroll 1
        for (u32 i = 0; i < s.base; i++) p = fmaxf(p, to_float(rows[i]));
#pragma unroll 1
        for (u32 j = 0; j < s.extension; j++) q = fmaxf(q, to_float(rows[s.base + j]));
        return __fmul_rn(p, q);
    }
};

/// The products of some heads that reach `least`. Warps stay together.
template <class T> struct ProductKeys {
    const Shape& s;
    const T* y;
    const u64* listed; // the heads, as keys; or null: all
    u32 heads;
    const float* maxima; // where all are looked at, null or what rules out most
    float least;

    /// Which head is in a slot; false if there is nothing in it.
    __device__ __forceinline__ bool head_at(u32 slot, u32& head) const {
        head = listed != nullptr ? key_index(listed[slot]) : slot;
        return listed != nullptr || maxima == nullptr || maxima[head] >= least;
    }
    template <class Take> __device__ __forceinline__ void operator()(const Take& take) const {
        if (s.extension > 16) {
            by_warps(take);
        } else {
            by_lanes(take);
        }
    }
    /// A lane an extension row, as many heads a warp as fit.
    template <class Take> __device__ __forceinline__ void by_lanes(const Take& take) const {
        const u32 m = s.base, n = s.extension;
        u32 lanes = 1;
        while (lanes < n) lanes *= 2;
        const u32 j = threadIdx.x % lanes;
        for (u32 slot = threadIdx.x / lanes; slot < heads; slot += blockDim.x / lanes) {
            u32 head;
            if (j >= n || !head_at(slot, head)) continue;
            const T* const base = y + (u64)head * (m + n);
            const float q = positive(to_float(base[m + j]));
            for (u32 i = 0; i < m; i++) {
                const float product = __fmul_rn(positive(to_float(base[i])), q);
                if (product > 0.0f && product >= least) take(key_of(product, (head * m + i) * n + j));
            }
        }
    }
    /// A warp a head: rows of products are ruled out 32 at a time.
    template <class Take> __device__ __forceinline__ void by_warps(const Take& take) const {
        const u32 m = s.base, n = s.extension;
        for (u32 slot = warp_id(); slot < heads; slot += warps_in_block()) {
            u32 head;
            if (!head_at(slot, head)) continue; // the same in all lanes
            const T* const base = y + (u64)head * (m + n);
            const T* const extension = base + m;
            float largest = 0.0f;
            for (u32 j = lane_id(); j < n; j += 32) largest = fmaxf(largest, to_float(extension[j]));
            for (u32 by = 16; by > 0; by /= 2)
                largest = fmaxf(largest, __shfl_xor_sync(KRONSAE_FULL_WARP, largest, by));
            for (u32 first = 0; first < m; first += 32) {
                const float own = first + lane_id() < m ? to_float(base[first + lane_id()]) : 0.0f;
                // Rounded multiplication is monotone: no product of the row is above own * largest.
                const bool maybe = own > 0.0f && __fmul_rn(own, largest) >= least;
                for (u32 rows = __ballot_sync(KRONSAE_FULL_WARP, maybe); rows != 0; rows &= rows - 1) {
                    const u32 i = (u32)__ffs((int)rows) - 1;
                    const float p = __shfl_sync(KRONSAE_FULL_WARP, own, i);
#pragma unroll 1
                    for (u32 j = lane_id(); j < n; j += 32) {
                        const float product = __fmul_rn(p, positive(to_float(extension[j])));
                        if (product > 0.0f && product >= least)
                            take(key_of(product, (head * m + first + i) * n + j));
                    }
                }
            }
        }
    }
};

/// The positive latents of a dense row, and, where they have thresholds, above those.
template <class T> struct LatentKeys {
    const Shape& s;
    const T* y;
    const float* thetas;
    template <class Take> __device__ __forceinline__ void operator()(const Take& take) const {
        constexpr u32 EACH = 16 / sizeof(T);
        for (u32 first = threadIdx.x * EACH; first < s.rows; first += blockDim.x * EACH) {
            // 16 bytes at a time; a row's end is padding up to a multiple of 8 elements.
            const uint4 words = *reinterpret_cast<const uint4*>(y + first);
            const T* const part = reinterpret_cast<const T*>(&words);
            for (u32 i = 0; i < EACH; i++) {
                const float v = to_float(part[i]);
                if (v > 0.0f && first + i < s.rows && (thetas == nullptr || v > thetas[first + i]))
                    take(key_of(v, first + i));
            }
        }
    }
};

/// The products of dead latents, where they are positive.
template <class T> struct DeadKeys {
    const Shape& s;
    const T* y;
    const u32* dead;
    u32 count;
    /// Neighbours in the list are neighbours in the row more often than not: the gathers meet in L1.
    __device__ __forceinline__ float product(u32 latent) const {
        u32 a, b;
        rows_of(s, latent, a, b);
        const float p = positive(to_float(y[a]));
        return a == b ? p : __fmul_rn(p, positive(to_float(y[b])));
    }
    template <class Take> __device__ __forceinline__ void operator()(const Take& take) const {
        for (u32 i = threadIdx.x; i < count; i += blockDim.x) {
            const float v = product(dead[i]);
            if (v > 0.0f) take(key_of(v, dead[i]));
        }
    }
};

#endif
