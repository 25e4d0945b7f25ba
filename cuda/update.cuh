// Row by row: the gradient as a sum over what touched the row, straight into Adam. No gradient of the size of a
// parameter exists. Structs of row.cuh; factors and norms in the order encoder.weight, encoder.bias, decoder.weight,
// decoder.bias.
//
// kronsae_hot_rows_{f32,bf16}(ByRow list, u32 rows, u32 stride, const u32* gate)
//     Sums parts of rows that more than 512 pairs touch, into list.pieces and list.piece_coefficients; before
//     kronsae_update_rows, once for each list. gate: null ok; a device scalar, 0: nothing to do. Any grid, best 2 *
//     ceil(pairs / 512) blocks; block a multiple of 32, best a thread a piece, round_up(stride * sizeof(T) / 16, 32).
//     No dynamic shared memory.
//
// kronsae_update_rows_{f32,bf16}(RowUpdate u)
// kronsae_update_rows_{f32,bf16}_moments_bf16(RowUpdate u)
//     Gradient, Adam, copy of each row; of its bias too. The weight's moments are f32, or bf16 that is rounded at random
//     (row.cuh); the bias's are f32. struct RowUpdate (280 bytes):
//     ByRow main;                  encoder: source = x; decoder: source = residual
//     ByRow aux;                   AuxK's part: a second list, summed after the first; encoder: source = x, decoder:
//                                  aux_residual
//     const u32* aux_gate;         null: no second list; device scalar 0: the second list is empty and not looked at
//     Weights weight;              [rows, stride]; copy null ok
//     Weights bias;                [rows]; value null: no bias; copy null ok
//     const Numbers* numbers;      device
//     const f32* factors;          device, null: 1; factors[0] multiplies the weight's gradient, factors[1] the bias's
//     const u32* halt;             null ok; device scalar: where it is not 0, nothing is changed (tokens that are not
//                                  finite)
//     f32* row_squares;            null ok; [rows] out: squared norm of the row's gradient before factors and
//                                  projection
//     f32* bias_squares;           null ok; [rows] out: the same of the bias
//     f32* value_squares;          null ok; [rows] out: squared norm of the row after its update
//     f32* gradient;               null, or [rows, stride]: write the gradient (before factors and projection), change
//                                  nothing
//     f32* bias_gradient;          null, or [rows], with `gradient`
//     u32 rows, stride;
//     u32 project;                 1, the decoder's: the gradient loses its part along the row, and the row is set to
//                                  norm 1
//     u32 parameter;               of the weight, for its moments' rounding: 0 encoder, 1 decoder
//     Any grid (blocks take rows in turn), best as many blocks as fit the device, about 16 a multiprocessor; block a
//     multiple of 32, best round_up(stride * sizeof(T) / 16, 32). Dynamic shared memory: 11 * stride bytes (stride <=
//     20,480).
//
// Every result has the same bits for every grid and block. Long rows: the sorted pairs are cut at multiples of 512,
// and a row of more than 512 is summed as the sums of its parts, in order: what is a part depends on the pairs alone.
//
// Bytes per element of a row: value and moments read and written once, 24 (16 with moments in bf16), the copy written,
// sizeof(T); as 16 bytes a
// lane of consecutive addresses, 512 a warp, marked as passing so that x and the residual (38 MB at B = 8192, d =
// 2304, bf16) stay in L2. Per pair: sizeof(T) * stride of `source` (512 consecutive bytes a warp, mostly from L2), 12
// bytes of lists; pairs of one token and row that are neighbours are merged first, so that wide heads do not read x
// once for every latent.
#ifndef KRONSAE_UPDATE_CUH
#define KRONSAE_UPDATE_CUH
#include "row.cuh"

struct RowUpdate {
    ByRow main;
    ByRow aux;
    const u32* aux_gate;
    Weights weight;
    Weights bias;
    const Numbers* numbers;
    const float* factors;
    const u32* halt;
    float* row_squares;
    float* bias_squares;
    float* value_squares;
    float* gradient;
    float* bias_gradient;
    u32 rows, stride, project, parameter;
};

static_assert(sizeof(RowUpdate) == 280, "as the host lays it out");

// Adds pairs begin..end of `list`, times their sources, to this thread's piece of columns, and their coefficients to
// `coefficients` (a sum for each lane). All lanes of the warp call it; those that are not `inside` the row only take
// part.
template <typename T>
__device__ __forceinline__ void gather(const ByRow& list, u32 begin, u32 end, u32 stride, u32 piece,
                                       bool inside, float (&sum)[Piece<T>::WIDTH], float& coefficients) {
    constexpr u32 WIDTH = Piece<T>::WIDTH;
    const T* const source = static_cast<const T*>(list.source);
    const u32 lane = lane_id();
    for (u32 first = begin; first < end; first += 32) {
        const u32 i = first + lane;
        u32 token = NO_ROW;
        float coefficient = 0.0f;
        if (i < end) {
            const u32 position = list.positions[i];
            token = position / list.slots;
            coefficient = list.coefficients[position];
        }
        coefficients += coefficient;
        // Neighbours of one token become one: the first takes the sum.
        const u32 before = __shfl_up_sync(KRONSAE_FULL_WARP, token, 1);
        u32 heads = __ballot_sync(KRONSAE_FULL_WARP, i < end && (lane == 0 || before != token));
        if (__popc(heads) < int(min(end - first, 32u))) {
            for (u32 offset = 1; offset < 32; offset *= 2) {
                const u32 other = __shfl_down_sync(KRONSAE_FULL_WARP, token, offset);
                const float more = __shfl_down_sync(KRONSAE_FULL_WARP, coefficient, offset);
                if (lane + offset < 32 && other == token) coefficient += more;
            }
        }
        while (heads != 0) {
            float weight[4];
            Words words[4];
#pragma unroll
            for (u32 q = 0; q < 4; ++q) {
                const bool is = heads != 0;
                const u32 from = is ? __ffs(int(heads)) - 1 : 0;
                heads &= heads - 1;
                const u32 of = __shfl_sync(KRONSAE_FULL_WARP, token, from);
                weight[q] = __shfl_sync(KRONSAE_FULL_WARP, coefficient, from);
                if (!is) weight[q] = 0.0f;
                words[q] = {};
                if (is && inside) words[q] = load_words(source + u64(of) * stride, piece);
            }
#pragma unroll
            for (u32 q = 0; q < 4; ++q) {
                float wide[WIDTH];
                Piece<T>::widen(words[q], wide);
#pragma unroll
                for (u32 c = 0; c < WIDTH; ++c) sum[c] = __fmaf_rn(weight[q], wide[c], sum[c]);
            }
        }
    }
}

// The gradient of one piece of a row from one list, and the sum of the row's coefficients.
template <typename T>
__device__ __forceinline__ void row_gradient(const ByRow& list, u32 row, u32 stride, u32 piece, bool inside,
                                             float (&sum)[Piece<T>::WIDTH], float& coefficients) {
    constexpr u32 WIDTH = Piece<T>::WIDTH;
    const u32 begin = list.starts[row], end = list.starts[row + 1];
    if (end - begin <= HOT) {
        float own = 0.0f;
        gather<T>(list, begin, end, stride, piece, inside, sum, own);
        coefficients += warp_sum(own);
        return;
    }
    for (u32 chunk = begin / HOT; chunk * HOT < end; ++chunk) {
        // As kronsae_hot_rows placed it: 2 c for a part that begins where chunk c does, 2 c + 1 for one that begins
        // inside.
        const u64 slot = 2 * u64(chunk) + (begin > chunk * HOT ? 1 : 0);
        coefficients += list.piece_coefficients[slot];
        if (!inside) continue;
#pragma unroll
        for (u32 q = 0; q < WIDTH / 4; ++q) {
            float part[4];
            load_piece<float>(list.pieces + slot * stride, piece * (WIDTH / 4) + q, part);
#pragma unroll
            for (u32 c = 0; c < 4; ++c) sum[4 * q + c] += part[c];
        }
    }
}

template <typename T>
__device__ __forceinline__ void hot_rows(const ByRow& list, u32 rows, u32 stride, const u32* gate) {
    constexpr u32 WIDTH = Piece<T>::WIDTH;
    if (gate && *gate == 0) return;
    const u32 n = list.starts[rows];
    const u32 slots = 2 * ((n + HOT - 1) / HOT);
    const u32 lane = lane_id();
    for (u32 slot = blockIdx.x; slot < slots; slot += gridDim.x) {
        // The row at the chunk's begin, or the one at its end if it begins inside.
        const u32 chunk = slot / 2 * HOT, chunk_end = min(n, chunk + HOT);
        const u32 row = list.keys[slot % 2 == 0 ? chunk : chunk_end - 1];
        const u32 begin = list.starts[row], end = list.starts[row + 1];
        if (end - begin <= HOT || (slot % 2 == 1 && begin <= chunk)) continue;
        const u32 from = max(begin, chunk), to = min(end, chunk_end);
        for (u32 base = threadIdx.x - lane; base < stride / WIDTH; base += blockDim.x) {
            const u32 piece = base + lane;
            const bool inside = piece < stride / WIDTH;
            float sum[WIDTH] = {}, own = 0.0f;
            gather<T>(list, from, to, stride, piece, inside, sum, own);
            own = warp_sum(own);
            if (piece == 0) list.piece_coefficients[slot] = own;
            if (!inside) continue;
#pragma unroll
            for (u32 q = 0; q < WIDTH / 4; ++q) {
                const float part[4] = {sum[4 * q], sum[4 * q + 1], sum[4 * q + 2], sum[4 * q + 3]};
                store_piece<float>(list.pieces + u64(slot) * stride, piece * (WIDTH / 4) + q, part);
            }
        }
    }
}

// M: the type of the weight's moments.
template <typename T, typename M>
__device__ __forceinline__ void update_rows(const RowUpdate& u, float* shared) {
    constexpr u32 WIDTH = Piece<T>::WIDTH;
    const u32 stride = u.stride, quads = stride / 4;
    float* const gradient = shared;           // [stride]
    float* const value = gradient + stride;   // [stride]
    float* const squares = value + stride;    // [quads] of the gradient
    float* const along = squares + quads;     // [quads] of the gradient by the row
    float* const lengths = along + quads;     // [quads] of the row after its update
    const u32 lane = lane_id();
    const bool capture = u.gradient != nullptr;
    if (!capture && u.halt && *u.halt != 0) return;
    const bool aux = u.aux_gate && *u.aux_gate != 0;
    const Numbers numbers = *u.numbers;
    const float factor = u.factors ? u.factors[0] : 1.0f;
    M* const first = static_cast<M*>(u.weight.first);
    M* const second = static_cast<M*>(u.weight.second);
    const u32 seed = moment_seed(numbers.seed, u.parameter);

    for (u32 row = blockIdx.x; row < u.rows; row += gridDim.x) {
        const u64 at = u64(row) * stride;
        // The row and its moments are on their way while its gradient is summed.
        if (!capture) {
            for (u32 line = threadIdx.x; line * 32 < stride; line += blockDim.x) {
                prefetch(u.weight.value + at + line * 32);
                // A line of moments in bf16 is 64 elements.
                if (sizeof(M) == 4 || line % 2 == 0) {
                    prefetch(first + at + line * 32);
                    prefetch(second + at + line * 32);
                }
            }
        }
        for (u32 base = threadIdx.x - lane; base < stride / WIDTH; base += blockDim.x) {
            const u32 piece = base + lane;
            const bool inside = piece < stride / WIDTH;
            float sum[WIDTH] = {}, coefficients = 0.0f;
            row_gradient<T>(u.main, row, stride, piece, inside, sum, coefficients);
            if (aux) row_gradient<T>(u.aux, row, stride, piece, inside, sum, coefficients);
            if (inside) {
#pragma unroll
                for (u32 q = 0; q < WIDTH / 4; ++q) {
                    const float four[4] = {sum[4 * q], sum[4 * q + 1], sum[4 * q + 2], sum[4 * q + 3]};
                    store_piece<float>(gradient, piece * (WIDTH / 4) + q, four);
                }
            }
            if (piece == 0) {
                if (u.bias_squares) u.bias_squares[row] = __fmul_rn(coefficients, coefficients);
                if (capture) {
                    if (u.bias_gradient) u.bias_gradient[row] = coefficients;
                } else if (u.bias.value) {
                    float* const bias_first = static_cast<float*>(u.bias.first);
                    float* const bias_second = static_cast<float*>(u.bias.second);
                    float b = u.bias.value[row], m = bias_first[row], v = bias_second[row];
                    adam(numbers, b, m, v, __fmul_rn(coefficients, u.factors ? u.factors[1] : 1.0f));
                    u.bias.value[row] = b, bias_first[row] = m, bias_second[row] = v;
                    if (u.bias.copy) static_cast<T*>(u.bias.copy)[row] = from_float<T>(b);
                }
            }
        }
        // From here on a thread has quads of four columns: consecutive lanes, consecutive 16 bytes of f32. (Pieces of
        // f32 are quads; then each thread goes on with its own.)
        if (WIDTH > 4) PLANTABLE_BARRIER(108);
        for (u32 quad = threadIdx.x; quad < quads; quad += blockDim.x) {
            float w[4] = {}, g[4], scaled[4], square = 0.0f, dot = 0.0f;
            if (!capture) load_stream(u.weight.value + at, quad, w);
            load_piece<float>(gradient, quad, g);
#pragma unroll
            for (u32 c = 0; c < 4; ++c) {
                square = __fmaf_rn(g[c], g[c], square);
                scaled[c] = __fmul_rn(g[c], factor);
                dot = __fmaf_rn(scaled[c], w[c], dot);
            }
            store_piece<float>(gradient, quad, scaled);
            store_piece<float>(value, quad, w);
            squares[quad] = square;
            along[quad] = dot;
            if (capture) store_stream(u.gradient + at, quad, g);
        }
        if (u.project) PLANTABLE_BARRIER(109);
        float part = 0.0f; // of the gradient along the row
        if (u.project) part = sum_parts(along, quads);
        if (!capture) {
            for (u32 quad = threadIdx.x; quad < quads; quad += blockDim.x) {
                float w[4], g[4], m[4], v[4], length = 0.0f;
                load_moments(first + at, quad, m);
                load_moments(second + at, quad, v);
                load_piece<float>(value, quad, w);
                load_piece<float>(gradient, quad, g);
#pragma unroll
                for (u32 c = 0; c < 4; ++c) {
                    if (u.project) g[c] = __fmaf_rn(-part, w[c], g[c]);
                    adam(numbers, w[c], m[c], v[c], g[c]);
                    length = __fmaf_rn(w[c], w[c], length);
                }
                store_piece<float>(value, quad, w);
                store_moments(first + at, second + at, quad, m, v, seed, u32(at) + 4 * quad);
                lengths[quad] = length;
                if (!u.project) {
                    store_stream(u.weight.value + at, quad, w);
                    if (u.weight.copy) store_copy(static_cast<T*>(u.weight.copy) + at, quad, w);
                }
            }
        }
        PLANTABLE_BARRIER(110);
        if (threadIdx.x < 32 && u.row_squares) {
            const float square = sum_parts(squares, quads);
            if (lane == 0) u.row_squares[row] = square;
        }
        if (!capture && (u.project || u.value_squares)) {
            const float square = sum_parts(lengths, quads);
            const float norm = __fsqrt_rn(square);
            const float scale = u.project && norm > 0.0f ? __fdiv_rn(1.0f, norm) : 1.0f;
            if (u.project) {
                for (u32 quad = threadIdx.x; quad < quads; quad += blockDim.x) {
                    float w[4];
                    load_piece<float>(value, quad, w);
#pragma unroll
                    for (u32 c = 0; c < 4; ++c) w[c] = __fmul_rn(w[c], scale);
                    store_stream(u.weight.value + at, quad, w);
                    if (u.weight.copy) store_copy(static_cast<T*>(u.weight.copy) + at, quad, w);
                }
            }
            if (u.value_squares && threadIdx.x == 0) u.value_squares[row] = __fmul_rn(square, __fmul_rn(scale, scale));
        }
        PLANTABLE_BARRIER(111); // the next row overwrites shared memory
    }
}

#define KRONSAE_UPDATE(T, SUFFIX) \
    extern "C" __global__ void __launch_bounds__(KRONSAE_MOST_THREADS, 1) \
        kronsae_hot_rows_##SUFFIX(ByRow list, u32 rows, u32 stride, const u32* gate) { \
        hot_rows<T>(list, rows, stride, gate); \
    } \
    extern "C" __global__ void __launch_bounds__(KRONSAE_MOST_THREADS, 1) kronsae_update_rows_##SUFFIX(RowUpdate u) { \
        KRONSAE_DYNAMIC_SHARED(block_shared); \
        update_rows<T, float>(u, reinterpret_cast<float*>(block_shared)); \
    } \
    extern "C" __global__ void __launch_bounds__(KRONSAE_MOST_THREADS, 1) \
        kronsae_update_rows_##SUFFIX##_moments_bf16(RowUpdate u) { \
        KRONSAE_DYNAMIC_SHARED(block_shared); \
        update_rows<T, __nv_bfloat16>(u, reinterpret_cast<float*>(block_shared)); \
    }

KRONSAE_UPDATE(float, f32)
KRONSAE_UPDATE(__nv_bfloat16, bf16)
#undef KRONSAE_UPDATE

#endif
