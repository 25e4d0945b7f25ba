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
#pragma once
#include "row.cuh"

template <typename From, typename T>
__device__ __forceinline__ void input_rows(const From* __restrict__ rows, uint32_t tokens, uint32_t d,
                                           uint32_t row_stride, const float* __restrict__ mean, float inverse_scale,
                                           T* __restrict__ x, uint32_t stride) {
    constexpr uint32_t WIDTH = Piece<T>::WIDTH;
    const uint32_t pieces = stride / WIDTH;
    const uint64_t all = uint64_t(tokens) * pieces;
    for (uint64_t at = uint64_t(blockIdx.x) * blockDim.x + threadIdx.x; at < all; at += uint64_t(gridDim.x) * blockDim.x) {
        const uint32_t token = uint32_t(at / pieces), piece = uint32_t(at % pieces);
        float out[WIDTH];
#pragma unroll
        for (uint32_t i = 0; i < WIDTH; ++i) {
            const uint32_t column = piece * WIDTH + i;
            float value = 0.0f;
            if (column < d) {
                value = to_float(rows[uint64_t(token) * row_stride + column]);
                if (mean) value = __fmul_rn(__fadd_rn(value, -mean[column]), inverse_scale);
            }
            out[i] = value;
        }
        store_piece(x + uint64_t(token) * stride, piece, out);
    }
}

#define KRONSAE_INPUT(FROM, FROM_SUFFIX, T, SUFFIX)                                                                     \
    extern "C" __global__ void __launch_bounds__(1024) kronsae_input_##FROM_SUFFIX##_##SUFFIX(                          \
        const FROM* rows, uint32_t tokens, uint32_t d, uint32_t row_stride, const float* mean, float inverse_scale,     \
        T* x, uint32_t stride) {                                                                                        \
        input_rows<FROM, T>(rows, tokens, d, row_stride, mean, inverse_scale, x, stride);                               \
    }

KRONSAE_INPUT(float, f32, float, f32)
KRONSAE_INPUT(float, f32, bf16, bf16)
KRONSAE_INPUT(bf16, bf16, float, f32)
KRONSAE_INPUT(bf16, bf16, bf16, bf16)
KRONSAE_INPUT(f16, f16, float, f32)
KRONSAE_INPUT(f16, f16, bf16, bf16)
#undef KRONSAE_INPUT

extern "C" __global__ void __launch_bounds__(1024) kronsae_scale_by_total(float* values, uint64_t n, const double* total,
                                                                          float coefficient, const uint32_t* gate) {
    if (*gate == 0) return;
    const double sum = *total;
    const float factor = float(double(coefficient) * 2.0 / (sum > 1e-30 ? sum : 1e-30));
    for (uint64_t at = uint64_t(blockIdx.x) * blockDim.x + threadIdx.x; at < n; at += uint64_t(gridDim.x) * blockDim.x) {
        values[at] = __fmul_rn(values[at], factor);
    }
}
