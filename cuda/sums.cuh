// Sums over tokens and over rows, in orders that no grid and no block changes: b_dec's gradient and its update, the
// loss, norms, and the factors of clipping.
//
// kronsae_column_sums_{f32,bf16}(const T* in, u32 tokens, u32 stride, f32* partial /*[ceil(tokens / 64), stride]*/)
//     First stage of b_dec's gradient: sums over 64 tokens. Any grid, any block (a warp takes 64 tokens x 512 bytes).
// kronsae_update_decoder_bias(BiasUpdate u)
//     Second stage, and Adam. Any grid, any block (a thread a column). struct BiasUpdate (88 bytes):
//     const f32* partial;          of kronsae_column_sums
//     Weights weight;              [stride]; copy unused
//     const Numbers* numbers;
//     const f32* factor;           device, null: 1
//     const u32* halt;             null ok
//     f32* squares;                [stride] out: squares of the gradient's elements
//     f32* gradient;               null, or [stride]: write the gradient, change nothing
//     u32 chunks;                  ceil(tokens / 64)
//     u32 stride;
//
// kronsae_sum_chunks(SumLists s), kronsae_sum_totals(SumLists s)
//     Sums of up to 8 lists in f64, in two launches. Any grid, any block (a warp takes 1024 elements; a warp a list).
//     struct SumLists (128 bytes):
//     const f32* values[8];
//     f64* partial;                [lists, chunks] scratch
//     f64* totals;                 [lists] out
//     u32 lengths[8];
//     u32 lists;
//     u32 chunks;                  at least ceil(length / 1024) for the longest
//     u32 roots;                   bit i: the root of list i's sum is taken (norms from squares)
//     u32 reserved;
//
// kronsae_sum_counts(const u32* counts /*[parts, n]*/, u32 parts, u32 n, u32* totals /*[n]*/)
//     Sums over parts: of each rank's count, that of all. Any grid, any block (a thread a count).
//
// kronsae_clip_factors(const Numbers*, const f64* norms /*[4]*/, f32* factors /*[4]*/)
//     clip / norm where clip > 0 and norm > clip, otherwise 1, by the norms of the PREVIOUS step (zeros before the
//     first). Launch it before this step's norms overwrite them. One block of 32.
//
// Bytes: the residual once (sizeof(T) * stride a token, 512 consecutive bytes a warp) and its sums over 64 tokens; 4 a
// row or token of each list.
#ifndef KRONSAE_SUMS_CUH
#define KRONSAE_SUMS_CUH
#include "row.cuh"

struct BiasUpdate {
    const float* partial;
    Weights weight;
    const Numbers* numbers;
    const float* factor;
    const u32* halt;
    float* squares;
    float* gradient;
    u32 chunks, stride;
};

constexpr u32 SUM_LISTS = 8;
constexpr u32 SUM_CHUNK = 1024;

struct SumLists {
    const float* values[SUM_LISTS];
    double* partial;
    double* totals;
    u32 lengths[SUM_LISTS];
    u32 lists, chunks, roots, reserved;
};

static_assert(sizeof(BiasUpdate) == 88 && sizeof(SumLists) == 128, "as the host lays them out");

template <typename T>
__device__ __forceinline__ void column_sums(const T* __restrict__ in, u32 tokens, u32 stride,
                                            float* __restrict__ partial) {
    constexpr u32 WIDTH = Piece<T>::WIDTH;
    constexpr u32 CHUNK = 64;
    const u32 pieces = stride / WIDTH, across = (pieces + 31) / 32, chunks = (tokens + CHUNK - 1) / CHUNK;
    const u32 lane = lane_id(), warps = warps_in_block();
    for (u64 item = u64(blockIdx.x) * warps + warp_id(); item < u64(chunks) * across;
         item += u64(gridDim.x) * warps) {
        const u32 chunk = u32(item / across), piece = u32(item % across) * 32 + lane;
        if (piece >= pieces) continue;
        float sum[WIDTH] = {};
        const u32 end = min(tokens, (chunk + 1) * CHUNK);
#pragma unroll 4
        for (u32 token = chunk * CHUNK; token < end; ++token) {
            float row[WIDTH];
            load_piece(in + u64(token) * stride, piece, row);
#pragma unroll
            for (u32 c = 0; c < WIDTH; ++c) sum[c] += row[c];
        }
#pragma unroll
        for (u32 q = 0; q < WIDTH / 4; ++q) {
            const float part[4] = {sum[4 * q], sum[4 * q + 1], sum[4 * q + 2], sum[4 * q + 3]};
            store_piece<float>(partial + u64(chunk) * stride, piece * (WIDTH / 4) + q, part);
        }
    }
}

extern "C" __global__ void __launch_bounds__(KRONSAE_MOST_THREADS, 1)
    kronsae_column_sums_f32(const float* in, u32 tokens, u32 stride, float* partial) {
    column_sums(in, tokens, stride, partial);
}

extern "C" __global__ void __launch_bounds__(KRONSAE_MOST_THREADS, 1)
    kronsae_column_sums_bf16(const __nv_bfloat16* in, u32 tokens, u32 stride, float* partial) {
    column_sums(in, tokens, stride, partial);
}

extern "C" __global__ void __launch_bounds__(KRONSAE_MOST_THREADS, 1) kronsae_update_decoder_bias(BiasUpdate u) {
    if (!u.gradient && u.halt && *u.halt != 0) return;
    const Numbers numbers = *u.numbers;
    const float factor = u.factor ? *u.factor : 1.0f;
    for (u32 column = blockIdx.x * blockDim.x + threadIdx.x; column < u.stride; column += gridDim.x * blockDim.x) {
        float gradient = 0.0f;
#pragma unroll 8
        for (u32 chunk = 0; chunk < u.chunks; ++chunk) gradient += u.partial[u64(chunk) * u.stride + column];
        u.squares[column] = __fmul_rn(gradient, gradient);
        if (u.gradient) {
            u.gradient[column] = gradient;
            continue;
        }
        float* const first = static_cast<float*>(u.weight.first);
        float* const second = static_cast<float*>(u.weight.second);
        float b = u.weight.value[column], m = first[column], v = second[column];
        adam(numbers, b, m, v, __fmul_rn(gradient, factor));
        u.weight.value[column] = b, first[column] = m, second[column] = v;
    }
}

// Each chunk by one warp. (__grid_constant__: the lists are indexed in place, not in a copy in local memory.)
extern "C" __global__ void __launch_bounds__(KRONSAE_MOST_THREADS, 1)
    kronsae_sum_chunks(const __grid_constant__ SumLists s) {
    const u32 lane = lane_id(), warps = warps_in_block();
    for (u32 item = blockIdx.x * warps + warp_id(); item < s.lists * s.chunks; item += gridDim.x * warps) {
        const u32 list = item / s.chunks, chunk = item % s.chunks;
        const u32 length = s.lengths[list];
        double sum = 0.0;
        for (u32 i = chunk * SUM_CHUNK + lane; i < min(length, (chunk + 1) * SUM_CHUNK); i += 32) {
            sum += double(s.values[list][i]);
        }
        sum = warp_sum(sum);
        if (lane == 0) s.partial[item] = sum;
    }
}

// Each list by one warp.
extern "C" __global__ void __launch_bounds__(KRONSAE_MOST_THREADS, 1)
    kronsae_sum_totals(const __grid_constant__ SumLists s) {
    const u32 lane = lane_id(), warps = warps_in_block();
    for (u32 list = blockIdx.x * warps + warp_id(); list < s.lists; list += gridDim.x * warps) {
        double sum = 0.0;
        for (u32 chunk = lane; chunk < s.chunks; chunk += 32) sum += s.partial[list * s.chunks + chunk];
        sum = warp_sum(sum);
        if (lane == 0) s.totals[list] = (s.roots >> list & 1u) != 0 ? sqrt(sum) : sum;
    }
}

extern "C" __global__ void __launch_bounds__(KRONSAE_MOST_THREADS, 1)
    kronsae_sum_counts(const u32* counts, u32 parts, u32 n, u32* totals) {
    for (u32 i = blockIdx.x * blockDim.x + threadIdx.x; i < n; i += gridDim.x * blockDim.x) {
        u32 total = 0;
        for (u32 part = 0; part < parts; ++part) total += counts[u64(part) * n + i];
        totals[i] = total;
    }
}

extern "C" __global__ void __launch_bounds__(KRONSAE_MOST_THREADS, 1)
    kronsae_clip_factors(const Numbers* numbers, const double* norms, float* factors) {
    if (blockIdx.x > 0 || threadIdx.x >= 4) return;
    const double clip = double(numbers->clip), norm = norms[threadIdx.x];
    factors[threadIdx.x] = clip > 0.0 && norm > clip ? float(clip / norm) : 1.0f;
}

#endif
