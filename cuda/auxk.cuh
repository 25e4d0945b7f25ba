// The dead: who lives, who has not for a window of tokens, and how dead encoder rows begin anew. (AuxK's own pass is
// kronsae_decode_aux in decode.cuh.) Rules as trainer/src/backend/cpu/{mod,revive}.rs have them.
//
// Order in a step: list dead latents (by tokens_before) - select_dead, decode_aux - updates - note_alive - list dead
// rows (by tokens_after) - revive_rank, revive_rows, revive_decoder.
//
// kronsae_note_alive(
//     const u32* starts,           [latents + 1] of the MAIN list of latents, without AuxK's
//     u32 latents, u64* fired_at,  tokens_after where a pair touched the latent
//     u32* positive, u32 parts,    [parts, ceil(rows / 32)] bits, a part a rank; cleared, with halt too
//     u32 rows, u64* positive_at,  tokens_after where the row's bit is set in any part
//     const Numbers*, const u32* halt)     null ok; where it is not 0, fired_at and positive_at stay
//     Any grid, any block; no shared memory.
//
// kronsae_count_dead(const u64* last, u32 n, const Numbers*, u32 after, u64 window, u32* tile_counts)
// kronsae_list_dead(const u64* last, u32 n, const Numbers*, u32 after, u64 window, const u32* tile_counts, u32* list,
//                   u32* count)
//     Those of `last`, [n], that are `window` or more tokens ago: ascending into `list`, [n], how many into `count`.
//     after: 0 counts from tokens_before (latents), 1 from tokens_after (rows). tile_counts: [ceil(n / 1024)] scratch.
//     Two launches, n > 0. Any grid (a block takes 1024), any block. Bytes: 8 a latent twice, the second time from L2.
//
// kronsae_revive_rank(const f32* squares, u32 tokens, const u32* dead_rows, u32* order, u32* eligible)
//     order, [tokens] = tokens by |x_hat - x|^2 (`squares` of kronsae_decode) descending, then token ascending, without
//     those that are 0; eligible: how many. Where *dead_rows is 0 it only sets eligible = 0. Any grid, any block (a
//     warp a token).
//
// kronsae_revive_rows_{f32,bf16}(Shape s, Revival r), then kronsae_revive_decoder_{f32,bf16}(Shape s, Revival r)
//     Dead row i, for i below min(dead rows, eligible), takes the direction of -residual of token order[i], with the
//     norm of a typical row; its bias and moments become 0, its positive_at tokens_after. Then the decoder rows of all
//     its latents become the normalised sums of their encoder rows, their moments 0. Any grid, any block (a warp a
//     row). Where nothing is dead both return at once. struct Revival (184 bytes):
//     const u32* dead;             [rows] of kronsae_list_dead
//     const u32* dead_count;       device scalar
//     const u32* order;            of kronsae_revive_rank
//     const u32* eligible;         device scalar
//     const void* residual;        T [tokens, stride]
//     const f64* value_squares;    device scalar: the sum of the squares of all of W AFTER its update (value_squares
//                                  summed)
//     Weights encoder;             copy null ok
//     Weights bias;                [rows]; copy null ok
//     Weights decoder;             copy null ok
//     u64* positive_at;            [rows]
//     const Numbers* numbers;
//     const u32* halt;             null ok
//     u32* revived;                device scalar out: how many rows were
//     u32 stride;
//     u32 moment_bytes;            of encoder's and decoder's moments: 4, f32, or 2, bf16
#ifndef KRONSAE_AUXK_CUH
#define KRONSAE_AUXK_CUH
#include "row.cuh"

constexpr u32 DEAD_TILE = 1024;

struct Revival {
    const u32* dead;
    const u32* dead_count;
    const u32* order;
    const u32* eligible;
    const void* residual;
    const double* value_squares;
    Weights encoder;
    Weights bias;
    Weights decoder;
    u64* positive_at;
    const Numbers* numbers;
    const u32* halt;
    u32* revived;
    u32 stride, moment_bytes;
};

static_assert(sizeof(Revival) == 184, "as the host lays it out");

extern "C" __global__ void __launch_bounds__(KRONSAE_MOST_THREADS, 1)
    kronsae_note_alive(const u32* starts, u32 latents, u64* fired_at, u32* positive, u32 parts, u32 rows,
                       u64* positive_at, const Numbers* numbers, const u32* halt) {
    const u64 now = numbers->tokens_after, words = (rows + 31) / 32;
    const bool halted = halt && *halt != 0;
    const u32 first = blockIdx.x * blockDim.x + threadIdx.x, step = gridDim.x * blockDim.x;
    if (!halted) {
        for (u32 latent = first; latent < latents; latent += step) {
            if (starts[latent + 1] > starts[latent]) fired_at[latent] = now;
        }
    }
    // A warp has the 32 rows of a word: all of it is read before it is cleared.
    for (u32 base = first - lane_id(); base < rows; base += step) {
        const u32 row = base + lane_id();
        u32 word = 0;
        for (u32 part = 0; part < parts; ++part) word |= positive[part * words + base / 32];
        __syncwarp();
        for (u32 part = lane_id(); part < parts; part += 32) positive[part * words + base / 32] = 0;
        if (!halted && row < rows && (word >> lane_id() & 1u) != 0) positive_at[row] = now;
    }
}

static __device__ __forceinline__ bool is_dead(const u64* last, u32 i, u32 n, u64 now, u64 window) {
    return i < n && now - last[i] >= window;
}

extern "C" __global__ void __launch_bounds__(KRONSAE_MOST_THREADS, 1)
    kronsae_count_dead(const u64* last, u32 n, const Numbers* numbers, u32 after, u64 window, u32* tile_counts) {
    __shared__ u32 scratch[32];
    const u64 now = after ? numbers->tokens_after : numbers->tokens_before;
    const u32 tiles = (n + DEAD_TILE - 1) / DEAD_TILE;
    for (u32 tile = blockIdx.x; tile < tiles; tile += gridDim.x) {
        u32 count = 0;
        for (u32 i = threadIdx.x; i < DEAD_TILE; i += blockDim.x) {
            count += is_dead(last, tile * DEAD_TILE + i, n, now, window) ? 1 : 0;
        }
        count = block_sum(count, scratch);
        if (threadIdx.x == 0) tile_counts[tile] = count;
        PLANTABLE_BARRIER(112); // `scratch` is used again
    }
}

extern "C" __global__ void __launch_bounds__(KRONSAE_MOST_THREADS, 1)
    kronsae_list_dead(const u64* last, u32 n, const Numbers* numbers, u32 after, u64 window, const u32* tile_counts,
                      u32* list, u32* count) {
    __shared__ u32 scratch[2][32];
    const u64 now = after ? numbers->tokens_after : numbers->tokens_before;
    const u32 tiles = (n + DEAD_TILE - 1) / DEAD_TILE;
    for (u32 tile = blockIdx.x; tile < tiles; tile += gridDim.x) {
        u32 next = 0; // dead in the tiles before this one
        for (u32 t = threadIdx.x; t < tile; t += blockDim.x) next += tile_counts[t];
        next = block_sum(next, scratch[0]);
        if (tile == tiles - 1 && threadIdx.x == 0) *count = next + tile_counts[tile];
        for (u32 first = 0; first < DEAD_TILE; first += blockDim.x) {
            const u32 i = tile * DEAD_TILE + first + threadIdx.x;
            const bool dead = first + threadIdx.x < DEAD_TILE && is_dead(last, i, n, now, window);
            const u32 place = ordered_place(dead, next, scratch[1]);
            if (dead) list[place] = i;
            PLANTABLE_BARRIER(113); // `scratch` is used again
        }
    }
}

// A token's rank is the number of tokens before it: no sort, for this is rare.
extern "C" __global__ void __launch_bounds__(KRONSAE_MOST_THREADS, 1)
    kronsae_revive_rank(const float* squares, u32 tokens, const u32* dead_rows, u32* order, u32* eligible) {
    const u32 first = blockIdx.x * warps_in_block() + warp_id(), step = gridDim.x * warps_in_block();
    if (*dead_rows == 0) {
        if (first == 0 && lane_id() == 0) *eligible = 0;
        return;
    }
    for (u32 token = first; token < tokens; token += step) {
        const float own = squares[token];
        u32 before = 0, all = 0;
        for (u32 t = lane_id(); t < tokens; t += 32) {
            const float other = squares[t];
            all += other > 0.0f ? 1 : 0;
            before += other > own || (other == own && t < token) ? 1 : 0;
        }
        before = warp_sum(before);
        all = warp_sum(all);
        if (lane_id() != 0) continue;
        if (own > 0.0f) order[before] = token;
        if (token == 0) *eligible = all;
    }
}

static __device__ __forceinline__ u32 to_revive(const Revival& r) {
    if (r.halt && *r.halt != 0) return 0;
    return min(*r.dead_count, *r.eligible);
}

static __device__ __forceinline__ void clear_moments(const Weights& of, u64 element, u32 bytes) {
    if (bytes == sizeof(u16)) {
        static_cast<u16*>(of.first)[element] = 0;
        static_cast<u16*>(of.second)[element] = 0;
    } else {
        static_cast<float*>(of.first)[element] = 0.0f;
        static_cast<float*>(of.second)[element] = 0.0f;
    }
}

template <typename T> __device__ __forceinline__ void revive_rows(const Shape& s, const Revival& r) {
    const u32 count = to_revive(r);
    const u32 first = blockIdx.x * warps_in_block() + warp_id(), step = gridDim.x * warps_in_block();
    if (first == 0 && lane_id() == 0) *r.revived = count;
    for (u32 i = first; i < count; i += step) {
        const u32 row = r.dead[i];
        const u64 at = (u64)row * r.stride;
        const T* const residual = static_cast<const T*>(r.residual) + (u64)r.order[i] * r.stride;
        double square = 0.0;
        for (u32 c = lane_id(); c < r.stride; c += 32) {
            const double e = (double)to_float(residual[c]);
            square += e * e;
        }
        square = warp_sum(square);
        // Its rounding to T may have left nothing of a residual; the row then becomes 0, and has another turn.
        const double factor = square > 0.0 ? -sqrt(*r.value_squares / (double)s.rows) / sqrt(square) : 0.0;
        for (u32 c = lane_id(); c < r.stride; c += 32) {
            const float value = (float)((double)to_float(residual[c]) * factor);
            r.encoder.value[at + c] = value;
            clear_moments(r.encoder, at + c, r.moment_bytes);
            if (r.encoder.copy) static_cast<T*>(r.encoder.copy)[at + c] = from_float<T>(value);
        }
        if (lane_id() == 0) {
            r.bias.value[row] = 0.0f;
            if (r.bias.copy) static_cast<T*>(r.bias.copy)[row] = from_float<T>(0.0f);
            clear_moments(r.bias, row, sizeof(float));
            r.positive_at[row] = r.numbers->tokens_after;
        }
    }
}

// Whether `row` is among the first `count` of the dead.
static __device__ __forceinline__ bool is_revived(const u32* dead, u32 count, u32 row) {
    u32 low = 0, high = count;
    while (low < high) {
        const u32 middle = (low + high) / 2;
        if (dead[middle] < row) {
            low = middle + 1;
        } else {
            high = middle;
        }
    }
    return low < count && dead[low] == row;
}

template <typename T> __device__ __forceinline__ void revive_decoder(const Shape& s, const Revival& r) {
    const u32 count = to_revive(r);
    const bool kron = s.kind == KRONSAE_KRON;
    const u32 per_head = s.base + s.extension;
    const u32 most = kron ? max(s.base, s.extension) : 1; // latents of a row
    const u64 items = (u64)count * most, step = (u64)gridDim.x * warps_in_block();
    for (u64 item = (u64)blockIdx.x * warps_in_block() + warp_id(); item < items; item += step) {
        const u32 row = r.dead[item / most], j = (u32)(item % most);
        u32 latent = row;
        if (kron) {
            const u32 within = row % per_head, first = row / per_head * s.base * s.extension;
            const bool is_base = within < s.base;
            if (j >= (is_base ? s.extension : s.base)) continue;
            latent = is_base ? first + within * s.extension + j : first + j * s.extension + within - s.base;
        }
        u32 a, b;
        rows_of(s, latent, a, b);
        // A latent of two revived rows belongs to its base row.
        if (row != a && is_revived(r.dead, count, a)) continue;
        const u64 at = (u64)latent * r.stride;
        const float* const row_a = r.encoder.value + (u64)a * r.stride;
        const float* const row_b = r.encoder.value + (u64)b * r.stride;
        double square = 0.0;
        for (u32 c = lane_id(); c < r.stride; c += 32) {
            const double sum = (double)__fadd_rn(row_a[c], row_b[c]);
            square += sum * sum;
        }
        square = warp_sum(square);
        const double norm = sqrt(square) > 1e-30 ? sqrt(square) : 1e-30;
        for (u32 c = lane_id(); c < r.stride; c += 32) {
            const float value = (float)((double)__fadd_rn(row_a[c], row_b[c]) / norm);
            r.decoder.value[at + c] = value;
            clear_moments(r.decoder, at + c, r.moment_bytes);
            if (r.decoder.copy) static_cast<T*>(r.decoder.copy)[at + c] = from_float<T>(value);
        }
    }
}

#define KRONSAE_REVIVE(T, SUFFIX) \
    extern "C" __global__ void __launch_bounds__(KRONSAE_MOST_THREADS, 1) \
        kronsae_revive_rows_##SUFFIX(Shape s, Revival r) { \
        revive_rows<T>(s, r); \
    } \
    extern "C" __global__ void __launch_bounds__(KRONSAE_MOST_THREADS, 1) \
        kronsae_revive_decoder_##SUFFIX(Shape s, Revival r) { \
        revive_decoder<T>(s, r); \
    }

KRONSAE_REVIVE(float, f32)
KRONSAE_REVIVE(__nv_bfloat16, bf16)
#undef KRONSAE_REVIVE

#endif
