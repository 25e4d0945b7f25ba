// All kernels of kronsae: the one translation unit, for nvcc, for NVRTC and, on the CPU, for g++ (emulate/).
//
// Conventions
// - Kernels are `extern "C"`, named `kronsae_NAME`, over an element type `kronsae_NAME_f32` and `_bf16`; kernels.def lists
//   them. Scalars, `Shape` by value, pointers to device memory.
// - Any grid does: work is a loop of blocks over tokens or rows. Any block of a multiple of 32 threads, unless said.
// - Nothing in a step needs the host, so that a step can be captured in a graph: what changes from step to step is read
//   from device memory.
// - Deterministic: atomics on integers only, where their order cannot show.
// - Where a result is exact by contract (selection), arithmetic is written with the intrinsics that round once
//   (`__fmul_rn`, `__fsqrt_rn`). Compile without fast-math and without flushing to zero.
#include "common.cuh"
#include "convert.cuh"
#include "select.cuh"
#ifndef KRONSAE_ENCODE_ONLY // for the library, which compiles its kernels when it first needs them
#include "input.cuh"
#include "decode.cuh"
#include "sort.cuh"
#include "sums.cuh"
#include "update.cuh"
#include "auxk.cuh"
#endif
