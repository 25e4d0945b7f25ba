// bf16 and f16 as CUDA's headers have them, as far as the kernels use them.
#pragma once

struct __nv_bfloat16 { unsigned short bits; };
struct alignas(4) __nv_bfloat162 { __nv_bfloat16 x, y; };
struct __half { unsigned short bits; };
struct alignas(4) __half2 { __half x, y; };

static inline unsigned short __bfloat16_as_ushort(__nv_bfloat16 v) { return v.bits; }
static inline __nv_bfloat16 __ushort_as_bfloat16(unsigned short v) { return {v}; }
static inline float __bfloat162float(__nv_bfloat16 v) { return __uint_as_float(static_cast<unsigned>(v.bits) << 16); }
/// To nearest, ties to even; every NaN becomes CUDA's one.
static inline __nv_bfloat16 __float2bfloat16_rn(float v) {
    const unsigned bits = __float_as_uint(v);
    if ((bits & 0x7FFFFFFFu) > 0x7F800000u) return {0x7FFF};
    return {static_cast<unsigned short>((bits + 0x7FFFu + (bits >> 16 & 1u)) >> 16)};
}
static inline __nv_bfloat16 __float2bfloat16(float v) { return __float2bfloat16_rn(v); }
static inline float2 __bfloat1622float2(__nv_bfloat162 v) { return {__bfloat162float(v.x), __bfloat162float(v.y)}; }
static inline __nv_bfloat162 __floats2bfloat162_rn(float x, float y) {
    return {__float2bfloat16_rn(x), __float2bfloat16_rn(y)};
}

static inline unsigned short __half_as_ushort(__half v) { return v.bits; }
static inline __half __ushort_as_half(unsigned short v) { return {v}; }
static inline float __half2float(__half v) { return static_cast<float>(emulate::bits<_Float16>(v.bits)); }
static inline __half __float2half_rn(float v) {
    return {emulate::bits<unsigned short>(static_cast<_Float16>(v))};
}
