// From "what a token touched" to "what touched a row": a stable radix sort of (row, position) pairs, 8 bits a pass
// from the lowest, and the rows' starts. A stable sort has one result; it does not depend on grids, blocks or
// schedules.
//
// struct SortPass (96 bytes), the same one for a pass's three kernels, launched in this order:
//
// kronsae_sort_histogram(SortPass p)    any grid, best a block a tile: ceil(n / 2048); any block; shared: none dynamic
// kronsae_sort_scan(SortPass p)         any grid, best 32 blocks of 256 (a warp a digit); shared: none
// kronsae_sort_scatter(SortPass p)      grid as the histogram's; any block, best 256; dynamic shared
//                                       block / 32 * 1024 bytes
//
//     const u32* keys;        rows, [n]
//     const u32* positions;   null in the FIRST pass: pair i has position i, and invalid pairs are dropped
//     const u32* counts;      first pass, null ok: [n / slots]; pair i counts only where i % slots < counts[i / slots]
//     const u32* count;       null in the first pass (n pairs); then the count_out of the pass before
//     const u32* gate;        null ok; a device scalar: where it is 0, there are no pairs (AuxK with nothing dead)
//     u32* histograms;        [256, tile_stride] scratch
//     u32* totals;            [256] scratch
//     u32* keys_out;          [n]
//     u32* positions_out;     [n]
//     u32* count_out;         device scalar: pairs that are left; not the one `count` points to
//     u32 n;                  the most pairs there can be
//     u32 slots;              of `counts`; 1 where that is null
//     u32 shift;              0, 8, 16, ... in successive passes
//     u32 tile_stride;        at least ceil(n / 2048)
//
// A key of 0xFFFFFFFF is invalid in any case. Passes: ceil(bits / 8), where bits is the length of rows - 1, and at
// least one: dropping invalid pairs in the first saves the bit that would mark them. Buffers alternate; input of the
// first pass is not written to.
//
// kronsae_row_starts(const u32* keys, const u32* count, u32 rows, u32* starts /*[rows + 1]*/)
//     of the last pass' keys_out and count_out. Any grid, any block, no shared memory.
//
// Bytes per pair and pass: 4 + 8 read twice (histogram, scatter; the second time from L2), 8 written. Keys are read
// 128 bytes a warp; a tile's pairs of one digit leave in one run, 8 pairs on average, in 32-byte sectors that L2
// completes. At 820,000 pairs and two passes everything stays in L2.
#ifndef KRONSAE_SORT_CUH
#define KRONSAE_SORT_CUH
#include "row.cuh"

constexpr u32 SORT_TILE = 2048;
constexpr u32 DIGITS = 256;

struct SortPass {
    const u32* keys;
    const u32* positions;
    const u32* counts;
    const u32* count;
    const u32* gate;
    u32* histograms;
    u32* totals;
    u32* keys_out;
    u32* positions_out;
    u32* count_out;
    u32 n, slots, shift, tile_stride;
};

static_assert(sizeof(SortPass) == 96, "as the host lays it out");

__device__ __forceinline__ u32 sort_size(const SortPass& p) {
    if (p.gate && *p.gate == 0) return 0;
    return p.count ? *p.count : p.n;
}

// The key of pair i, NO_ROW where it is to be dropped.
__device__ __forceinline__ u32 sort_key(const SortPass& p, u32 i) {
    if (!p.positions && p.counts && i % p.slots >= p.counts[i / p.slots]) return NO_ROW;
    return p.keys[i];
}

extern "C" __global__ void __launch_bounds__(KRONSAE_MOST_THREADS, 1) kronsae_sort_histogram(SortPass p) {
    __shared__ u32 histogram[DIGITS];
    const u32 n = sort_size(p);
    const u32 tiles = (n + SORT_TILE - 1) / SORT_TILE;
    for (u32 tile = blockIdx.x; tile < tiles; tile += gridDim.x) {
        // A thread clears what it alone has read.
        for (u32 digit = threadIdx.x; digit < DIGITS; digit += blockDim.x) histogram[digit] = 0;
        PLANTABLE_BARRIER(104);
        const u32 end = min(n, (tile + 1) * SORT_TILE);
        for (u32 i = tile * SORT_TILE + threadIdx.x; i < end; i += blockDim.x) {
            const u32 key = sort_key(p, i);
            // Whole numbers: their sum does not depend on the order.
            if (key != NO_ROW) atomicAdd(&histogram[(key >> p.shift) % DIGITS], 1u);
        }
        PLANTABLE_BARRIER(105);
        for (u32 digit = threadIdx.x; digit < DIGITS; digit += blockDim.x) {
            p.histograms[u64(digit) * p.tile_stride + tile] = histogram[digit];
        }
    }
}

// For each digit: how many pairs of it lie in the tiles before each tile, in place; and in all of them.
extern "C" __global__ void __launch_bounds__(KRONSAE_MOST_THREADS, 1) kronsae_sort_scan(SortPass p) {
    const u32 tiles = (sort_size(p) + SORT_TILE - 1) / SORT_TILE;
    const u32 lane = lane_id(), warps = warps_in_block();
    for (u32 digit = blockIdx.x * warps + warp_id(); digit < DIGITS; digit += gridDim.x * warps) {
        u32* const row = p.histograms + u64(digit) * p.tile_stride;
        u32 before = 0;
        for (u32 first = 0; first < tiles; first += 32) {
            const u32 tile = first + lane;
            const u32 own = tile < tiles ? row[tile] : 0;
            u32 sum = own;
            for (u32 offset = 1; offset < 32; offset *= 2) {
                const u32 other = __shfl_up_sync(KRONSAE_FULL_WARP, sum, offset);
                if (lane >= offset) sum += other;
            }
            if (tile < tiles) row[tile] = before + sum - own;
            before += __shfl_sync(KRONSAE_FULL_WARP, sum, 31);
        }
        if (lane == 0) p.totals[digit] = before;
    }
}

extern "C" __global__ void __launch_bounds__(KRONSAE_MOST_THREADS, 1) kronsae_sort_scatter(SortPass p) {
    KRONSAE_DYNAMIC_SHARED(block_shared);
    u32* const next = reinterpret_cast<u32*>(block_shared); // [warps, DIGITS]: where a warp's next pair of a digit goes
    __shared__ u32 base[DIGITS];       // pairs of lower digits
    const u32 n = sort_size(p);
    const u32 tiles = (n + SORT_TILE - 1) / SORT_TILE;
    const u32 lane = lane_id(), warp = warp_id(), warps = warps_in_block();
    if (warp == 0) {
        u32 before = 0;
        for (u32 first = 0; first < DIGITS; first += 32) {
            const u32 own = p.totals[first + lane];
            u32 sum = own;
            for (u32 offset = 1; offset < 32; offset *= 2) {
                const u32 other = __shfl_up_sync(KRONSAE_FULL_WARP, sum, offset);
                if (lane >= offset) sum += other;
            }
            base[first + lane] = before + sum - own;
            before += __shfl_sync(KRONSAE_FULL_WARP, sum, 31);
        }
        if (blockIdx.x == 0 && lane == 0) *p.count_out = before;
    }
    u32* const own = next + warp * DIGITS;
    // Each warp has consecutive pairs, and takes them 32 at a time in order.
    const u32 share = ((SORT_TILE / 32 + warps - 1) / warps) * 32;

    for (u32 tile = blockIdx.x; tile < tiles; tile += gridDim.x) {
        const u32 begin = tile * SORT_TILE + min(warp * share, SORT_TILE);
        const u32 end = min(n, tile * SORT_TILE + min((warp + 1) * share, SORT_TILE));
        for (u32 digit = lane; digit < DIGITS; digit += 32) own[digit] = 0;
        __syncwarp();
        for (u32 first = begin; first < end; first += 32) {
            const u32 key = first + lane < end ? sort_key(p, first + lane) : NO_ROW;
            const u32 digit = key == NO_ROW ? DIGITS : (key >> p.shift) % DIGITS;
            const u32 peers = __match_any_sync(KRONSAE_FULL_WARP, digit);
            if (digit < DIGITS && lane == __ffs(peers) - 1u) own[digit] += __popc(peers);
            __syncwarp();
        }
        PLANTABLE_BARRIER(106);
        for (u32 digit = threadIdx.x; digit < DIGITS; digit += blockDim.x) {
            u32 at = base[digit] + p.histograms[u64(digit) * p.tile_stride + tile];
            for (u32 w = 0; w < warps; ++w) {
                const u32 count = next[w * DIGITS + digit];
                next[w * DIGITS + digit] = at;
                at += count;
            }
        }
        PLANTABLE_BARRIER(107);
        for (u32 first = begin; first < end; first += 32) {
            const u32 i = first + lane;
            const u32 key = i < end ? sort_key(p, i) : NO_ROW;
            const u32 digit = key == NO_ROW ? DIGITS : (key >> p.shift) % DIGITS;
            const u32 peers = __match_any_sync(KRONSAE_FULL_WARP, digit);
            if (digit < DIGITS) {
                const u32 at = own[digit] + __popc(peers & ((1u << lane) - 1));
                p.keys_out[at] = key;
                p.positions_out[at] = p.positions ? p.positions[i] : i;
            }
            __syncwarp();
            if (digit < DIGITS && lane == __ffs(peers) - 1u) own[digit] += __popc(peers);
            __syncwarp();
        }
    }
}

// Where each row's pairs begin, by bisection: no row waits for another, however many are empty.
extern "C" __global__ void __launch_bounds__(KRONSAE_MOST_THREADS, 1)
    kronsae_row_starts(const u32* keys, const u32* count, u32 rows, u32* starts) {
    const u32 n = *count;
    for (u32 row = blockIdx.x * blockDim.x + threadIdx.x; row <= rows; row += gridDim.x * blockDim.x) {
        u32 low = 0, high = n;
        while (low < high) {
            const u32 middle = low + (high - low) / 2;
            if (keys[middle] < row) {
                low = middle + 1;
            } else {
                high = middle;
            }
        }
        starts[row] = low;
    }
}

#endif
