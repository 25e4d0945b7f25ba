// Activations as the host has them, into rows as the product takes them.
//
// kronsae_convert_{f32,bf16}(const u8* in, u32 dtype, u64 row_stride, u32 tokens, u32 d, T* out, u32 stride)
//   in: tokens rows of d elements of `dtype` (the numbers of include/kronsae.h: 1 f32, 2 f16, 3 bf16), row_stride bytes
//       apart, of any alignment; bytes between rows are not read.
//   out: [tokens, stride] of T, aligned to 16; elements d..stride are set to zero.
//   Widening is exact; to bf16, f32 and f16 are rounded to nearest, ties to even, and a NaN stays a NaN.
#ifndef KRONSAE_CONVERT_CUH
#define KRONSAE_CONVERT_CUH

#ifndef KRONSAE_EMULATE
#include <cuda_fp16.h>
#endif

#include "common.cuh"

enum { KRONSAE_DTYPE_F32 = 1, KRONSAE_DTYPE_F16 = 2, KRONSAE_DTYPE_BF16 = 3 };

/// A number of two or four bytes at any address: whole where it is aligned, which it nearly always is, else by bytes.
static __device__ __forceinline__ u32 load_16(const u8* at) {
    if (((u64)at & 1) == 0) return *(const u16*)at;
    return (u32)at[0] | (u32)at[1] << 8;
}
static __device__ __forceinline__ u32 load_32(const u8* at) {
    if (((u64)at & 3) == 0) return *(const u32*)at;
    return (u32)at[0] | (u32)at[1] << 8 | (u32)at[2] << 16 | (u32)at[3] << 24;
}

static __device__ __forceinline__ float load_as_float(const u8* row, u32 dtype, u32 at) {
    switch (dtype) {
    case KRONSAE_DTYPE_F32: return __uint_as_float(load_32(row + (u64)at * 4));
    case KRONSAE_DTYPE_F16: return __half2float(__ushort_as_half((u16)load_16(row + (u64)at * 2)));
    default: return __uint_as_float(load_16(row + (u64)at * 2) << 16);
    }
}

template <class T>
static __device__ __forceinline__ void convert(const u8* in, u32 dtype, u64 row_stride, u32 tokens, u32 d, T* out,
                                               u32 stride) {
    for (u32 token = blockIdx.x; token < tokens; token += gridDim.x) {
        const u8* row = in + token * row_stride;
        T* to = out + (u64)token * stride;
        for (u32 i = threadIdx.x; i < stride; i += blockDim.x)
            to[i] = from_float<T>(i < d ? load_as_float(row, dtype, i) : 0.0f);
    }
}

extern "C" __global__ void __launch_bounds__(KRONSAE_MOST_THREADS)
    kronsae_convert_f32(const u8* in, u32 dtype, u64 row_stride, u32 tokens, u32 d, float* out, u32 stride) {
    convert<float>(in, dtype, row_stride, tokens, d, out, stride);
}
extern "C" __global__ void __launch_bounds__(KRONSAE_MOST_THREADS)
    kronsae_convert_bf16(const u8* in, u32 dtype, u64 row_stride, u32 tokens, u32 d, __nv_bfloat16* out, u32 stride) {
    convert<__nv_bfloat16>(in, dtype, row_stride, tokens, d, out, stride);
}

#endif
