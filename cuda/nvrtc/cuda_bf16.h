// For NVRTC alone: bfloat16 as far as the kernels use it, under the name of CUDA's own header, which is not on hosts that
// have a driver and no toolkit. nvcc takes CUDA's own.
#ifndef KRONSAE_NVRTC_CUDA_BF16_H
#define KRONSAE_NVRTC_CUDA_BF16_H

struct __nv_bfloat16 {
    unsigned short bits;
};
struct __align__(4) __nv_bfloat162 {
    __nv_bfloat16 x, y;
};

static __device__ __forceinline__ unsigned short __bfloat16_as_ushort(__nv_bfloat16 v) { return v.bits; }
static __device__ __forceinline__ __nv_bfloat16 __ushort_as_bfloat16(unsigned short v) {
    __nv_bfloat16 r;
    r.bits = v;
    return r;
}
static __device__ __forceinline__ float __bfloat162float(__nv_bfloat16 v) {
    return __uint_as_float((unsigned int)v.bits << 16);
}
static __device__ __forceinline__ __nv_bfloat16 __float2bfloat16_rn(float v) {
    __nv_bfloat16 r;
    asm("cvt.rn.bf16.f32 %0, %1;" : "=h"(r.bits) : "f"(v));
    return r;
}
static __device__ __forceinline__ __nv_bfloat16 __float2bfloat16(float v) { return __float2bfloat16_rn(v); }
static __device__ __forceinline__ float2 __bfloat1622float2(__nv_bfloat162 v) {
    return make_float2(__bfloat162float(v.x), __bfloat162float(v.y));
}
static __device__ __forceinline__ __nv_bfloat162 __floats2bfloat162_rn(float x, float y) {
    __nv_bfloat162 r;
    r.x = __float2bfloat16_rn(x);
    r.y = __float2bfloat16_rn(y);
    return r;
}

#endif
