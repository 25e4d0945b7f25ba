// From rows as they are in a shard, or as the host normalised them, to what training reads; and AuxK's late factor.
//
// kronsae_input_{f32,bf16,f16}_{f32,bf16}(     the type of the rows, then T
//     const FROM* rows,             [tokens, row_stride]
//     u32 tokens, u32 d,
//     u32 row_stride,               elements from one row to the next, at least d
//     const f32* mean,              [d]; null: nothing is subtracted and nothing multiplied
//     f32 inverse_scale,            with `mean`: x = (row - mean) * inverse_scale, rounded after each operation as on the CPU
//     T* x, u32 stride)             [tokens, stride] out; columns from d on are zeroed
//
// kronsae_scale_by_total(
//     f32* values, u64 n,           in place: values *= coefficient * 2 / total
//     const f64* total,             device scalar; below 1e-30 it counts as that
//     f32 coefficient,
//     const u32* gate)              device scalar; where it is 0 nothing is done
//
// Any grid, any block, no shared memory. Bytes: rows in and x out once; values in and out once.
#ifndef KRONSAE_INPUT_CUH
#define KRONSAE_INPUT_CUH
#include "row.cuh"

// binary16, as bits: it is only ever widened, which is exact.
struct Half {
    u16 bits;
};

static __device__ __forceinline__ float to_float(Half half) {
    const u32 sign = (u32)(half.bits & 0x8000u) << 16, rest = half.bits & 0x7FFFu;
    if (rest < 0x0400u) {
        const float small = __fmul_rn((float)rest, 5.9604644775390625e-8f); // 2^-24 each
        return sign != 0 ? -small : small;
    }
    return __uint_as_float(sign | ((rest << 13) + (rest >= 0x7C00u ? 0x70000000u : 0x38000000u)));
}

template <typename From, typename T>
__device__ __forceinline__ void input_rows(const From* __restrict__ rows, u32 tokens, u32 d,
                                           u32 row_stride, const float* __restrict__ mean, float inverse_scale,
                                           T* __restrict__ x, u32 stride) {
    constexpr u32 WIDTH = Piece<T>::WIDTH;
    const u32 pieces = stride / WIDTH;
    const u64 all = u64(tokens) * pieces;
    for (u64 at = u64(blockIdx.x) * blockDim.x + threadIdx.x; at < all; at += u64(gridDim.x) * blockDim.x) {
        const u32 token = u32(at / pieces), piece = u32(at % pieces);
        float out[WIDTH];
#pragma unroll
        for (u32 i = 0; i < WIDTH; ++i) {
            const u32 column = piece * WIDTH + i;
            float value = 0.0f;
            if (column < d) {
                value = to_float(rows[u64(token) * row_stride + column]);
                if (mean) value = __fmul_rn(__fadd_rn(value, -mean[column]), inverse_scale);
            }
            out[i] = value;
        }
        store_piece(x + u64(token) * stride, piece, out);
    }
}

#define KRONSAE_INPUT(FROM, FROM_SUFFIX, T, SUFFIX)                                                                     \
    extern "C" __global__ void __launch_bounds__(KRONSAE_MOST_THREADS) kronsae_input_##FROM_SUFFIX##_##SUFFIX(                          \
        const FROM* rows, u32 tokens, u32 d, u32 row_stride, const float* mean, float inverse_scale,     \
        T* x, u32 stride) {                                                                                        \
        input_rows<FROM, T>(rows, tokens, d, row_stride, mean, inverse_scale, x, stride);                               \
    }

KRONSAE_INPUT(float, f32, float, f32)
KRONSAE_INPUT(float, f32, __nv_bfloat16, bf16)
KRONSAE_INPUT(__nv_bfloat16, bf16, float, f32)
KRONSAE_INPUT(__nv_bfloat16, bf16, __nv_bfloat16, bf16)
KRONSAE_INPUT(Half, f16, float, f32)
KRONSAE_INPUT(Half, f16, __nv_bfloat16, bf16)
#undef KRONSAE_INPUT

extern "C" __global__ void __launch_bounds__(KRONSAE_MOST_THREADS) kronsae_scale_by_total(float* values, u64 n, const double* total,
                                                                          float coefficient, const u32* gate) {
    if (*gate == 0) return;
    const double sum = *total;
    const float factor = float(double(coefficient) * 2.0 / (sum > 1e-30 ? sum : 1e-30));
    for (u64 at = u64(blockIdx.x) * blockDim.x + threadIdx.x; at < n; at += u64(gridDim.x) * blockDim.x) {
        values[at] = __fmul_rn(values[at], factor);
    }
}

#endif
