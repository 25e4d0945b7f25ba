// From a token's pre-activations to the largest product of each head: one pass over the row, which is all of the row that
// selection reads but for the heads it takes.
//
// Where time goes at d = 2304, h = 8192, (m, n) = (2, 4), bf16: a row is 96 KB; 8,192 of them are 0.8 GB, 0.17 ms of an H200's
// memory, or 2.7 us a token for each of its 132 multiprocessors. Everything else has to hide behind that:
// - Rows come through a ring of tiles in shared memory by asynchronous copies of 16 bytes a thread: coalesced whatever m
//   and n are, with no registers held, and several tiles ahead. The ring runs on into the block's next token, so memory
//   is busy while the selection of this one runs.
// - A head is read from shared memory by a group of LANES lanes, in words of two bf16 where m and n are even. Heads lie
//   W words apart; 32 / LANES of them are read at a time, and their banks collide gcd(W, 32) / LANES-fold. So LANES is that
//   gcd where a head's sides have so many words, which costs log2(LANES) shuffles, and more for wide heads, so that a
//   tile's heads keep all warps busy.
// - Head maxima stay in shared memory where they fit (32 KB here); with 48 KB of ring and 8 KB of lists two blocks of 512
//   threads share a multiprocessor, so that one streams while the other selects.
#ifndef KRONSAE_STREAM_CUH
#define KRONSAE_STREAM_CUH
#include "common.cuh"

#ifndef KRONSAE_TILE_BYTES
#define KRONSAE_TILE_BYTES 16384
#endif
/// Tiles of the ring: one is read while the others arrive.
#define KRONSAE_STAGES 3

/// How a row of an encoder's pre-activations is cut up.
struct Cut {
    u32 width;      // rows of a head; dense: 1
    u32 tile_rows;  // a multiple of 32, whole heads; 0: heads are too wide for a tile
    u32 tiles;
    u32 lanes;      // lanes that share a head: a power of two, 32 at most
    bool pairs;     // whether elements are read two at a time
};

/// The largest power of two up to `v`, at least 1.
static constexpr __device__ u32 floor_power_of_two(u32 v) {
    u32 power = 1;
    while (power <= v / 2) power *= 2;
    return power;
}

/// Lanes that share a head of so many words, `base_words` of which are base rows.
static constexpr __device__ u32 lanes_of(u32 words, u32 base_words) {
    const u32 bank_stride = words & (0u - words), base = floor_power_of_two(base_words); // its gcd with powers of two
    const u32 against_conflicts = bank_stride < base ? bank_stride : base;
    const u32 for_width = floor_power_of_two(words / 8);
    const u32 lanes = against_conflicts > for_width ? against_conflicts : for_width;
    return lanes < 32 ? lanes : 32;
}

template <class T> static __device__ __forceinline__ Cut cut_rows(const Shape& s) {
    Cut cut;
    cut.width = s.kind == KRONSAE_DENSE ? 1 : s.base + s.extension;
    // 32 heads are whole words of the mask of positive rows, each of which then belongs to one warp.
    const u64 group = (u64)cut.width * 32;
    cut.tile_rows = (u32)(KRONSAE_TILE_BYTES / sizeof(T) / group * group);
    cut.tiles = cut.tile_rows == 0 ? 0 : (s.rows + cut.tile_rows - 1) / cut.tile_rows;
    cut.pairs = sizeof(T) == 2 && s.base % 2 == 0 && s.extension % 2 == 0 && s.kind == KRONSAE_KRON;
    const u32 step = cut.pairs ? 2 : 1;
    cut.lanes = cut.tile_rows == 0 ? 32 : lanes_of(cut.width / step, s.base / step);
    return cut;
}

/// The tokens of a block as one sequence of tiles.
template <class T> struct Stream {
    const T* y;
    u32 ldy, tokens, rows;
    Cut cut;
    unsigned char* ring;
    u32 token, tile; // the next to be asked for
    u32 asked;       // how many were

    /// Asks for the next tile, if there is one.
    __device__ __forceinline__ void ask() {
        if (token < tokens) {
            const u32 first = tile * cut.tile_rows;
            const u32 chunks = (u32)((min(cut.tile_rows, rows - first) * sizeof(T) + 15) / 16);
            const unsigned char* from = reinterpret_cast<const unsigned char*>(y + (u64)token * ldy + first);
            unsigned char* to = ring + asked % KRONSAE_STAGES * KRONSAE_TILE_BYTES;
            for (u32 c = threadIdx.x; c < chunks; c += blockDim.x) copy_async_16(to + c * 16, from + c * 16);
            if (++tile == cut.tiles) tile = 0, token += gridDim.x;
        }
        asked++;
        copy_async_commit(); // an empty group counts too, so that the number to wait for is always the same
    }

    __device__ __forceinline__ void start() {
        token = blockIdx.x, tile = 0, asked = 0;
        for (u32 i = 0; i + 1 < KRONSAE_STAGES; i++) ask();
    }

    /// The tile that was asked for first of those not yet taken; the one taken before it is overwritten. Collective.
    __device__ __forceinline__ const T* take() {
        copy_async_wait<KRONSAE_STAGES - 2>();
        PLANTABLE_BARRIER(1); // all threads' copies are there, and all have read the tile before
        const u32 stage = (asked - (KRONSAE_STAGES - 1)) % KRONSAE_STAGES;
        ask();
        return reinterpret_cast<const T*>(ring + stage * KRONSAE_TILE_BYTES);
    }
};

/// What a thread learns of a row as it goes by.
struct Seen {
    float largest; // of the head maxima that were its own: every head is one thread's
    bool bad;      // something was NaN or not below infinity
};

static __device__ __forceinline__ void see(float v, float& largest, bool& bad) {
    bad |= !is_below_infinity(v);
    largest = v > largest ? v : largest;
}

/// The largest positive value of `count` elements of one side of a head, or 0: those of this lane among `lanes`. Where
/// everything but the lane is known to the compiler and `EVEN` says that lanes divide the elements, the loop is unrolled.
template <bool EVEN, class T>
static __device__ __forceinline__ float side_max(const T* from, u32 count, u32 lane, u32 lanes, bool pairs, bool& bad) {
    float largest = 0.0f;
    const u32 words = pairs ? count / 2 : count;
    const auto see_word = [&](u32 e) {
        if (pairs) {
            const u32 word = reinterpret_cast<const u32*>(from)[e];
            see(__uint_as_float(word << 16), largest, bad);
            see(__uint_as_float(word & 0xFFFF0000u), largest, bad);
        } else {
            see(to_float(from[e]), largest, bad);
        }
    };
    if (EVEN) {
#pragma unroll
        for (u32 i = 0; i < words / lanes; i++) see_word(lane + i * lanes);
    } else {
#pragma unroll 2
        for (u32 e = lane; e < words; e += lanes) see_word(e);
    }
    return largest;
}

/// `head_maxima` for heads of M x N, or, where these are 0, of any shape.
template <u32 M, u32 N, class T, class Store>
static __device__ __forceinline__ void maxima_of(const Shape& s, const Cut& cut, const T* from, u32 count, Seen& seen,
                                                 Store store) {
    constexpr bool KNOWN = M != 0;
    constexpr bool PAIRS = sizeof(T) == 2 && M % 2 == 0 && N % 2 == 0;
    constexpr u32 STEP = PAIRS ? 2 : 1;
    constexpr u32 LANES = lanes_of((M + N) / STEP, M / STEP);
    static_assert(!KNOWN || (M / STEP % LANES == 0 && N / STEP % LANES == 0), "lanes divide both sides");
    const u32 m = KNOWN ? M : s.base, n = KNOWN ? N : s.extension, lanes = KNOWN ? LANES : cut.lanes;
    const bool pairs = sizeof(T) == 2 && (KNOWN ? PAIRS : cut.pairs);
    const u32 groups = blockDim.x / lanes, group = threadIdx.x / lanes, lane = threadIdx.x % lanes;
    u32 turn = 0;
    for (u32 first = 0; first < count; first += groups, turn++) {
        const u32 head = first + group;
        float p = 0.0f, q = 0.0f;
        bool bad = false;
        if (head < count) {
            const T* rows = from + (u64)head * (m + n);
            p = side_max<KNOWN>(rows, m, lane, lanes, pairs, bad);
            q = side_max<KNOWN>(rows + m, n, lane, lanes, pairs, bad);
            if (bad) p = infinity(); // so that the whole group learns of it: the product is infinite or NaN
        }
        for (u32 by = lanes / 2; by > 0; by /= 2) {
            const float other_p = __shfl_xor_sync(KRONSAE_FULL_WARP, p, by);
            const float other_q = __shfl_xor_sync(KRONSAE_FULL_WARP, q, by);
            p = other_p > p ? other_p : p;
            q = other_q > q ? other_q : q;
        }
        const float product = __fmul_rn(p, q);
        seen.bad |= !is_below_infinity(product);
        // The lanes of a group take turns in owning its heads.
        if (lane == turn % lanes && product > seen.largest) seen.largest = product;
        if (head < count && lane == 0) store(head, product);
    }
}

/// Head maxima of `count` heads that lie one behind the other at `from`, in shared or global memory; `store(head, max)` is
/// called once a head, `head` counted from 0; it is infinite or NaN where anything in the head is not finite.
template <class T, class Store>
static __device__ __forceinline__ void head_maxima(const Shape& s, const Cut& cut, const T* from, u32 count, Seen& seen,
                                                   Store store) {
    // The shapes that models have: no loop within a head is left then.
    if (s.base == 2 && s.extension == 4) {
        maxima_of<2, 4>(s, cut, from, count, seen, store);
    } else if (s.base == 4 && s.extension == 4) {
        maxima_of<4, 4>(s, cut, from, count, seen, store);
    } else if (s.base == 4 && s.extension == 8) {
        maxima_of<4, 8>(s, cut, from, count, seen, store);
    } else if (s.base == 8 && s.extension == 8) {
        maxima_of<8, 8>(s, cut, from, count, seen, store);
    } else {
        maxima_of<0, 0>(s, cut, from, count, seen, store);
    }
}

/// ORs into `mask`, 32 rows a word, which of `count` rows are positive; `from` is the first word's first row. Words that
/// are full already, which is most of them after some tokens, cost a comparison. A word is one warp's.
template <class T>
static __device__ __forceinline__ void mark_positive(const T* from, u32 count, u32* mask, bool shared) {
    const u32 words = (count + 31) / 32;
    for (u32 first = warp_id() * 32; first < words; first += blockDim.x) {
        const u32 word = first + lane_id();
        const u32 rows = word < words ? min(count - word * 32, 32u) : 0;
        const u32 full = rows == 32 ? 0xFFFFFFFFu : (1u << rows) - 1;
        const u32 have = word < words ? *reinterpret_cast<volatile u32*>(mask + word) : 0;
        const bool missing = (have & full) != full;
        u32 found = 0;
        for (u32 todo = __ballot_sync(KRONSAE_FULL_WARP, missing); todo != 0; todo &= todo - 1) {
            const u32 at = (u32)__ffs((int)todo) - 1;
            const u32 row = (first + at) * 32 + lane_id();
            const u32 bits = __ballot_sync(KRONSAE_FULL_WARP, row < count && to_float(from[row]) > 0.0f);
            if (lane_id() == at) found = bits;
        }
        if ((found & ~have) == 0) continue;
        if (shared) {
            mask[word] = have | found;
        } else {
            atomicOr(mask + word, found); // other blocks have it, too
        }
    }
}

#endif
