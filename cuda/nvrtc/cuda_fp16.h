// For NVRTC alone: binary16 as far as the kernels use it; see cuda_bf16.h.
#ifndef KRONSAE_NVRTC_CUDA_FP16_H
#define KRONSAE_NVRTC_CUDA_FP16_H

struct __half {
    unsigned short bits;
};

static __device__ __forceinline__ unsigned short __half_as_ushort(__half v) { return v.bits; }
static __device__ __forceinline__ __half __ushort_as_half(unsigned short v) {
    __half r;
    r.bits = v;
    return r;
}
static __device__ __forceinline__ float __half2float(__half v) {
    float r;
    asm("cvt.f32.f16 %0, %1;" : "=f"(r) : "h"(v.bits));
    return r;
}

#endif
