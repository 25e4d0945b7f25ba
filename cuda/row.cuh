// What the training kernels share: rows in 16-byte pieces, sums in an order that no block size changes, and the structs
// that carry their arguments.
//
// Structs are passed by value and laid out as C lays them out (Rust: #[repr(C)], pointers as u64). All pointers are
// device pointers; every struct's size is a multiple of 8.
//
//   Numbers   48 bytes, in DEVICE memory: the host writes it before each step, so that a captured graph stays valid.
//   Weights   32 bytes: a parameter, Adam's moments, and its copy in T.
//   ByRow     64 bytes: what touched each row (sort.cuh makes it).
#ifndef KRONSAE_ROW_CUH
#define KRONSAE_ROW_CUH
#include "common.cuh"

// What changes from step to step.
struct Numbers {
    float beta1, beta2, epsilon;
    float rate;             // learning rate over the bias correction of the mean
    float root;             // reciprocal root of the bias correction of the square
    float clip;             // norm to clip each parameter's gradient to; 0: no clipping
    u64 tokens_before; // trained on before this step
    u64 tokens_after;  // and after it
    u32 seed;          // of moments' rounding, where they are bf16
    u32 reserved;
};

// A parameter, [rows, stride] in f32, with its moments: of the encoder's and decoder's weights f32 or bf16, of all others
// f32. `copy` is what the other kernels read, in T; null where T is
// f32 and they read `value` itself.
struct Weights {
    float* value;
    void* first;
    void* second;
    void* copy;
};

// What touched each row, in the order (row, position); position = token * slots + slot.
struct ByRow {
    const u32* keys;       // [count] rows, ascending
    const u32* positions;  // [count]
    const u32* starts;     // [rows + 1]; starts[rows] = count
    const float* coefficients;  // [tokens * slots], by position
    const void* source;         // T [tokens, stride]: what the coefficients multiply
    float* pieces;              // [2 * ceil(tokens * slots / HOT), stride]: sums of parts of long rows (update.cuh)
    float* piece_coefficients;  // [2 * ceil(tokens * slots / HOT)]: their sums of coefficients
    u32 slots;
    u32 reserved;
};

// Kernels say __launch_bounds__(1024, 1): 64 registers a thread, with which none of them spills. Left to itself ptxas
// takes 32 for some.

// Marks a list's unused slots.
constexpr u32 NO_ROW = 0xFFFFFFFFu;
// A row that more than HOT pairs touch is summed in parts, so that no block has it alone.
constexpr u32 HOT = 512;
// The most latents of a token.
constexpr u32 MOST_LATENTS = 512;

static_assert(sizeof(Numbers) == 48 && sizeof(Weights) == 32 && sizeof(ByRow) == 64, "as the host lays them out");

// 16 bytes, moved as one.
struct alignas(16) Words {
    u32 word[4];
};

// WIDTH elements of T in 16 bytes, widened exactly and rounded to nearest even.
template <typename T>
struct Piece;

template <>
struct Piece<float> {
    static constexpr u32 WIDTH = 4;
    static __device__ __forceinline__ void widen(const Words& from, float (&to)[WIDTH]) {
#pragma unroll
        for (u32 i = 0; i < WIDTH; ++i) to[i] = __uint_as_float(from.word[i]);
    }
    static __device__ __forceinline__ Words round(const float (&from)[WIDTH]) {
        Words to;
#pragma unroll
        for (u32 i = 0; i < WIDTH; ++i) to.word[i] = __float_as_uint(from[i]);
        return to;
    }
};

// Two f32 as bf16 in one word, the first in its lower half, rounded to nearest even.
__device__ __forceinline__ u32 bf16_pair(float low, float high) {
    const __nv_bfloat162 pair = __floats2bfloat162_rn(low, high);
    return *reinterpret_cast<const u32*>(&pair);
}

template <>
struct Piece<__nv_bfloat16> {
    static constexpr u32 WIDTH = 8;
    static __device__ __forceinline__ void widen(const Words& from, float (&to)[WIDTH]) {
#pragma unroll
        for (u32 i = 0; i < 4; ++i) {
            to[2 * i] = __uint_as_float(from.word[i] << 16);
            to[2 * i + 1] = __uint_as_float(from.word[i] & 0xFFFF0000u);
        }
    }
    static __device__ __forceinline__ Words round(const float (&from)[WIDTH]) {
        Words to;
#pragma unroll
        for (u32 i = 0; i < 4; ++i) to.word[i] = bf16_pair(from[2 * i], from[2 * i + 1]);
        return to;
    }
};

// One piece of a row of T. `row` is 16-byte aligned: strides are multiples of 16 elements.
template <typename T>
__device__ __forceinline__ Words load_words(const T* row, u32 piece) {
    return reinterpret_cast<const Words*>(row)[piece];
}

template <typename T>
__device__ __forceinline__ void load_piece(const T* row, u32 piece, float (&to)[Piece<T>::WIDTH]) {
    Piece<T>::widen(load_words(row, piece), to);
}

template <typename T>
__device__ __forceinline__ void store_piece(T* row, u32 piece, const float (&from)[Piece<T>::WIDTH]) {
    reinterpret_cast<Words*>(row)[piece] = Piece<T>::round(from);
}

// Four f32 that are read or written once a step: past the caches, which are left to what is read often.
__device__ __forceinline__ void load_stream(const float* row, u32 quad, float (&to)[4]) {
#if defined(__CUDA_ARCH__)
    const float4 from = __ldcs(reinterpret_cast<const float4*>(row) + quad);
    to[0] = from.x, to[1] = from.y, to[2] = from.z, to[3] = from.w;
#else
    load_piece<float>(row, quad, to);
#endif
}

__device__ __forceinline__ void store_stream(float* row, u32 quad, const float (&from)[4]) {
#if defined(__CUDA_ARCH__)
    __stcs(reinterpret_cast<float4*>(row) + quad, make_float4(from[0], from[1], from[2], from[3]));
#else
    store_piece<float>(row, quad, from);
#endif
}

// Four elements of a copy in T.
__device__ __forceinline__ void store_copy(float* row, u32 quad, const float (&from)[4]) {
    store_piece<float>(row, quad, from);
}

__device__ __forceinline__ void store_copy(__nv_bfloat16* row, u32 quad, const float (&from)[4]) {
    struct alignas(8) Half {
        u32 word[2];
    };
    reinterpret_cast<Half*>(row)[quad] = {{bf16_pair(from[0], from[1]), bf16_pair(from[2], from[3])}};
}

// Bits to round an element's two moments by, 16 each, as trainer/src/backend/moments.rs has them: a function of step,
// parameter and element alone.
__device__ __forceinline__ u32 mix(u32 x) {
    x ^= x >> 16;
    x *= 0x21F0AAADu;
    x ^= x >> 15;
    x *= 0x735A2D97u;
    return x ^ x >> 15;
}

__device__ __forceinline__ u32 moment_seed(u32 step_seed, u32 parameter) {
    return mix(step_seed ^ (parameter + 1) * 0x9E3779B9u);
}

// bf16 in the upper half: up with probability `bits` / 65536 of what is cut off, so that it is right on average. bf16 moves
// in steps of 1/256 or 1/128, a second moment by less than 1/1000: rounded to nearest it would stand still.
__device__ __forceinline__ u32 round_at_random(float value, u32 bits) {
    return (__float_as_uint(value) + bits) & 0xFFFF0000u;
}

// Two moments of four elements of a row, which are read and written once a step.
__device__ __forceinline__ void load_moments(const float* row, u32 quad, float (&to)[4]) { load_stream(row, quad, to); }

__device__ __forceinline__ void load_moments(const __nv_bfloat16* row, u32 quad, float (&to)[4]) {
#if defined(__CUDA_ARCH__)
    const uint2 from = __ldcs(reinterpret_cast<const uint2*>(row) + quad);
    const u32 word[2] = {from.x, from.y};
#else
    const u32* const word = reinterpret_cast<const u32*>(row) + 2 * quad;
#endif
#pragma unroll
    for (u32 i = 0; i < 2; ++i) {
        to[2 * i] = __uint_as_float(word[i] << 16);
        to[2 * i + 1] = __uint_as_float(word[i] & 0xFFFF0000u);
    }
}

// `element` is the number of the first of the four in its parameter.
__device__ __forceinline__ void store_moments(float* first, float* second, u32 quad, const float (&m)[4],
                                              const float (&v)[4], u32 seed, u32 element) {
    (void)seed, (void)element;
    store_stream(first, quad, m);
    store_stream(second, quad, v);
}

__device__ __forceinline__ void store_moments(__nv_bfloat16* first, __nv_bfloat16* second, u32 quad, const float (&m)[4],
                                              const float (&v)[4], u32 seed, u32 element) {
    u32 of_first[4], of_second[4];
#pragma unroll
    for (u32 i = 0; i < 4; ++i) {
        const u32 bits = mix(seed + element + i);
        of_first[i] = round_at_random(m[i], bits & 0xFFFFu);
        of_second[i] = round_at_random(v[i], bits >> 16);
    }
    const auto store = [&](__nv_bfloat16* row, const u32 (&of)[4]) {
        const u32 low = of[0] >> 16 | of[1], high = of[2] >> 16 | of[3];
#if defined(__CUDA_ARCH__)
        __stcs(reinterpret_cast<uint2*>(row) + quad, make_uint2(low, high));
#else
        u32* const to = reinterpret_cast<u32*>(row) + 2 * quad;
        to[0] = low, to[1] = high;
#endif
    };
    store(first, of_first);
    store(second, of_second);
}

// Asks for the 128 bytes at `address`, which are read soon.
__device__ __forceinline__ void prefetch(const void* address) {
#if defined(__CUDA_ARCH__)
    asm volatile("prefetch.global.L2 [%0];" ::"l"(address));
#else
    (void)address;
#endif
}

// The sum of `count` numbers in shared memory by one warp, in all its lanes. Its order depends on `count` alone; every
// warp of a block may do it, which saves a barrier and a broadcast.
__device__ __forceinline__ float sum_parts(const float* parts, u32 count) {
    float sum = 0.0f;
    for (u32 i = lane_id(); i < count; i += 32) sum += parts[i];
    return warp_sum(sum);
}

// One element of Adam, as trainer/src/backend/cpu/kernels.rs has it: the same roundings.
__device__ __forceinline__ void adam(const Numbers& n, float& value, float& first, float& second, float gradient) {
    first = __fmaf_rn(__fadd_rn(gradient, -first), 1.0f - n.beta1, first);
    second = __fmaf_rn(__fadd_rn(__fmul_rn(gradient, gradient), -second), 1.0f - n.beta2, second);
    const float denominator = __fmaf_rn(__fsqrt_rn(second), n.root, n.epsilon);
    value -= __fdiv_rn(__fmul_rn(n.rate, first), denominator);
}

#endif
