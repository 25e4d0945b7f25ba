// Sparse decoding, the residual, the loss, the gradients of the latents' values and mAND's backward, in one pass.
//
// kronsae_decode_{f32,bf16}(
//     Shape s, u32 tokens, u32 stride,
//     u32 k,                        slots of a token in counts/indices/values' arrays, at most 512
//     const u32* counts,            [tokens]
//     const u32* indices,           [tokens, k] latents
//     const f32* values,            [tokens, k]
//     const T* D,                   [latents, stride]
//     const f32* b_dec,             [stride], padding zero
//     const T* x,                   [tokens, stride], padding zero
//     const T* y, u32 ldy,          [tokens, ldy] pre-activations
//     f32 scale,                    2 / (batch * d)
//     f32 mand_epsilon,
//     T* residual,                  [tokens, stride] out: (x_hat - x) * scale, the loss's gradient by x_hat
//     f32* squares, f32* norms,     [tokens] out: |x_hat - x|^2 and |x|^2
//     u32* row_ids,                 [tokens, row_slots] out: encoder rows; 0xFFFFFFFF in unused slots
//     f32* row_coefficients,        [tokens, row_slots] out: gradients of their pre-activations
//     u32 row_slots)                2 k (kron), k (dense)
//
// kronsae_decode_aux_{f32,bf16}(      AuxK, see auxk.cuh: the dead explain what the living left over
//     Shape s, u32 tokens, u32 stride, u32 k, counts, indices, values, const T* D, const T* y, u32 ldy,
//     const T* residual, f32 scale,  as kronsae_decode wrote them
//     f32 mand_epsilon,
//     const f64* total_squares,     device scalar: the sum of `squares` over the batch
//     f32 coefficient,              of AuxK's loss
//     T* aux_residual,              [tokens, stride] out: (e_hat - e) * coefficient * 2 / total_squares
//     f32* aux_squares,             [tokens] out: |e_hat - e|^2; AuxK's loss is their sum over total_squares
//     u32* row_ids, f32* row_coefficients, u32 row_slots,     arrays of their own, as above
//     const u32* gate)              the number of dead latents; 0: aux_squares is zeroed, nothing else is written
//
// Nothing may be null. Any grid (blocks take tokens in turn), any block of 32 to 1024 threads; best: a thread a piece,
// round_up(stride * sizeof(T) / 16, 32). Dynamic shared memory: 4 * stride bytes. The same bits for every grid and
// block.
//
// Bytes per token: count * stride * sizeof(T) of D twice (for d = 2304, K = 50, bf16: 230 KB; the second time as far
// as L2 kept them), x and residual once each (4.6 KB each), lists 12 bytes a latent. A warp reads 512 consecutive
// bytes of one row of D at a time in 16-byte pieces: four full 128-byte lines a request, with four rows in flight per
// thread.
#ifndef KRONSAE_DECODE_CUH
#define KRONSAE_DECODE_CUH
#include "row.cuh"

// One token at a time; AUX: see kronsae_decode_aux.
template <typename T, bool AUX>
__device__ __forceinline__ void decode_tokens(
    const Shape s, u32 tokens, u32 stride, u32 k, const u32* __restrict__ counts,
    const u32* __restrict__ indices, const float* __restrict__ values, const T* __restrict__ D,
    const float* __restrict__ b_dec, const T* __restrict__ x, const T* __restrict__ y, u32 ldy, float input_scale,
    float output_scale, float mand_epsilon, T* __restrict__ residual, float* __restrict__ squares,
    float* __restrict__ norms, u32* __restrict__ row_ids, float* __restrict__ row_coefficients, u32 row_slots,
    float* difference) {
    constexpr u32 WIDTH = Piece<T>::WIDTH;
    __shared__ u32 latents[MOST_LATENTS];
    __shared__ float weights[MOST_LATENTS];
    const u32 pieces = stride / WIDTH;
    const u32 lane = lane_id(), warp = warp_id(), warps = warps_in_block();

    for (u32 token = blockIdx.x; token < tokens; token += gridDim.x) {
        const u32 count = counts[token];
        for (u32 j = threadIdx.x; j < count; j += blockDim.x) {
            latents[j] = indices[u64(token) * k + j];
            weights[j] = values[u64(token) * k + j];
        }
        PLANTABLE_BARRIER(101);

        // x_hat - x (AUX: e_hat - e), a piece of columns a thread, latents in their order. In shared memory, part q of
        // piece p lies at quad q * pieces + p, so that neighbouring threads touch neighbouring quads.
        const T* const input = x + u64(token) * stride;
        T* const output = residual + u64(token) * stride;
        for (u32 piece = threadIdx.x; piece < pieces; piece += blockDim.x) {
            float in[WIDTH], sum[WIDTH];
            load_piece(input, piece, in);
#pragma unroll
            for (u32 q = 0; q < WIDTH / 4; ++q) {
                float start[4];
                if (!AUX) load_piece<float>(b_dec, piece * (WIDTH / 4) + q, start);
#pragma unroll
                for (u32 c = 0; c < 4; ++c) sum[4 * q + c] = AUX ? __fdiv_rn(in[4 * q + c], input_scale) : start[c];
            }
            u32 j = 0;
            for (; j + 4 <= count; j += 4) {
                Words row[4];
#pragma unroll
                for (u32 q = 0; q < 4; ++q) row[q] = load_words(D + u64(latents[j + q]) * stride, piece);
#pragma unroll
                for (u32 q = 0; q < 4; ++q) {
                    float wide[WIDTH];
                    Piece<T>::widen(row[q], wide);
#pragma unroll
                    for (u32 i = 0; i < WIDTH; ++i) sum[i] = __fmaf_rn(weights[j + q], wide[i], sum[i]);
                }
            }
            for (; j < count; ++j) {
                float wide[WIDTH];
                load_piece(D + u64(latents[j]) * stride, piece, wide);
#pragma unroll
                for (u32 i = 0; i < WIDTH; ++i) sum[i] = __fmaf_rn(weights[j], wide[i], sum[i]);
            }
            float scaled[WIDTH];
#pragma unroll
            for (u32 i = 0; i < WIDTH; ++i) {
                if (!AUX) sum[i] = __fadd_rn(sum[i], -in[i]);
                scaled[i] = __fmul_rn(sum[i], output_scale);
            }
#pragma unroll
            for (u32 q = 0; q < WIDTH / 4; ++q) {
                const float part[4] = {sum[4 * q], sum[4 * q + 1], sum[4 * q + 2], sum[4 * q + 3]};
                store_piece<float>(difference, q * pieces + piece, part);
            }
            store_piece(output, piece, scaled);
        }
        PLANTABLE_BARRIER(102);

        // Two latents a warp at a time: the products of their decoder rows with the residual. The last turn is |x_hat
        // - x|^2.
        const u32 pairs = (count + 1) / 2;
        for (u32 turn = warp; turn <= pairs; turn += warps) {
            if (turn == pairs) {
                float square = 0.0f, norm = 0.0f;
                for (u32 piece = lane; piece < pieces; piece += 32) {
                    float in[WIDTH];
                    if (!AUX) load_piece(input, piece, in);
#pragma unroll
                    for (u32 q = 0; q < WIDTH / 4; ++q) {
                        float e[4];
                        load_piece<float>(difference, q * pieces + piece, e);
#pragma unroll
                        for (u32 c = 0; c < 4; ++c) {
                            square = __fmaf_rn(e[c], e[c], square);
                            if (!AUX) norm = __fmaf_rn(in[4 * q + c], in[4 * q + c], norm);
                        }
                    }
                }
                square = warp_sum(square);
                if (!AUX) norm = warp_sum(norm);
                if (lane == 0) {
                    squares[token] = square;
                    if (!AUX) norms[token] = norm;
                }
                continue;
            }
            const u32 first = 2 * turn;
            const bool two = first + 1 < count;
            const T* const row_a = D + u64(latents[first]) * stride;
            const T* const row_b = two ? D + u64(latents[first + 1]) * stride : row_a;
            float dot_a = 0.0f, dot_b = 0.0f;
#pragma unroll 2
            for (u32 piece = lane; piece < pieces; piece += 32) {
                float a[WIDTH], b[WIDTH];
                load_piece(row_a, piece, a);
                load_piece(row_b, piece, b);
#pragma unroll
                for (u32 q = 0; q < WIDTH / 4; ++q) {
                    float e[4];
                    load_piece<float>(difference, q * pieces + piece, e);
#pragma unroll
                    for (u32 c = 0; c < 4; ++c) {
                        dot_a = __fmaf_rn(a[4 * q + c], e[c], dot_a);
                        dot_b = __fmaf_rn(b[4 * q + c], e[c], dot_b);
                    }
                }
            }
            dot_a = warp_sum(dot_a);
            dot_b = warp_sum(dot_b);
            // Lanes 0 and 1: from the gradient of a value to those of the pre-activations behind it.
            const u32 j = first + lane;
            if (lane < 2 && j < count) {
                const float gradient = __fmul_rn(lane == 0 ? dot_a : dot_b, output_scale);
                u32 a, b;
                rows_of(s, latents[j], a, b);
                const u64 at = u64(token) * row_slots;
                if (s.kind == KRONSAE_DENSE) {
                    row_ids[at + j] = a;
                    row_coefficients[at + j] = gradient;
                } else {
                    const float p = to_float(y[u64(token) * ldy + a]), q = to_float(y[u64(token) * ldy + b]);
                    const float half = __fdiv_rn(__fmul_rn(gradient, 0.5f), __fsqrt_rn(__fmaf_rn(p, q, mand_epsilon)));
                    row_ids[at + 2 * j] = a;
                    row_ids[at + 2 * j + 1] = b;
                    row_coefficients[at + 2 * j] = __fmul_rn(half, q);
                    row_coefficients[at + 2 * j + 1] = __fmul_rn(half, p);
                }
            }
        }
        const u32 used = s.kind == KRONSAE_DENSE ? count : 2 * count;
        for (u32 slot = used + threadIdx.x; slot < row_slots; slot += blockDim.x) {
            row_ids[u64(token) * row_slots + slot] = NO_ROW;
        }
        PLANTABLE_BARRIER(103); // the next token overwrites the shared lists
    }
}

template <typename T>
__device__ __forceinline__ void decode_aux(
    const Shape s, u32 tokens, u32 stride, u32 k, const u32* counts, const u32* indices,
    const float* values, const T* D, const T* y, u32 ldy, const T* residual, float scale, float mand_epsilon,
    const double* total_squares, float coefficient, T* aux_residual, float* aux_squares, u32* row_ids,
    float* row_coefficients, u32 row_slots, const u32* gate, float* difference) {
    if (*gate == 0) {
        for (u32 token = blockIdx.x * blockDim.x + threadIdx.x; token < tokens; token += gridDim.x * blockDim.x) {
            aux_squares[token] = 0.0f;
        }
        return;
    }
    const double total = *total_squares;
    const float gradient_scale = float(double(coefficient) * 2.0 / (total > 1e-30 ? total : 1e-30));
    decode_tokens<T, true>(s, tokens, stride, k, counts, indices, values, D, nullptr, residual, y, ldy, scale,
                           gradient_scale, mand_epsilon, aux_residual, aux_squares, nullptr, row_ids, row_coefficients,
                           row_slots, difference);
}

#define KRONSAE_DECODE(T, SUFFIX) \
    extern "C" __global__ void __launch_bounds__(KRONSAE_MOST_THREADS, 1) kronsae_decode_##SUFFIX( \
        Shape s, u32 tokens, u32 stride, u32 k, const u32* counts, const u32* indices, \
        const float* values, const T* D, const float* b_dec, const T* x, const T* y, u32 ldy, float scale, \
        float mand_epsilon, T* residual, float* squares, float* norms, u32* row_ids, float* row_coefficients, \
        u32 row_slots) { \
        KRONSAE_DYNAMIC_SHARED(block_shared); \
        decode_tokens<T, false>(s, tokens, stride, k, counts, indices, values, D, b_dec, x, y, ldy, scale, scale, \
                                mand_epsilon, residual, squares, norms, row_ids, row_coefficients, row_slots, \
                                reinterpret_cast<float*>(block_shared)); \
    } \
    extern "C" __global__ void __launch_bounds__(KRONSAE_MOST_THREADS, 1) kronsae_decode_aux_##SUFFIX( \
        Shape s, u32 tokens, u32 stride, u32 k, const u32* counts, const u32* indices, \
        const float* values, const T* D, const T* y, u32 ldy, const T* residual, float scale, float mand_epsilon, \
        const double* total_squares, float coefficient, T* aux_residual, float* aux_squares, u32* row_ids, \
        float* row_coefficients, u32 row_slots, const u32* gate) { \
        KRONSAE_DYNAMIC_SHARED(block_shared); \
        decode_aux<T>(s, tokens, stride, k, counts, indices, values, D, y, ldy, residual, scale, mand_epsilon, \
                      total_squares, coefficient, aux_residual, aux_squares, row_ids, row_coefficients, row_slots, \
                      gate, reinterpret_cast<float*>(block_shared)); \
    }

KRONSAE_DECODE(float, f32)
KRONSAE_DECODE(__nv_bfloat16, bf16)
#undef KRONSAE_DECODE

#endif
