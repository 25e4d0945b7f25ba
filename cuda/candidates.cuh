// Lists of candidates in shared memory: collected above a floor, cut back to the first k, sorted and written.
//
// Everywhere, `each` is an object that passes this thread's share of some keys to its argument, any number of times over.
// (Structs rather than generic lambdas, which NVRTC takes for functions of the host.)
// The order in which threads append to a list is not defined; keys are unique, and every list is sorted or cut by key
// before it shows.
#ifndef KRONSAE_CANDIDATES_CUH
#define KRONSAE_CANDIDATES_CUH
#include "common.cuh"

/// Candidates that a block's list has room for, at least; twice the latents wanted where that is more.
#ifndef KRONSAE_LIST
#define KRONSAE_LIST 1024
#endif
/// Up to so many are sorted by rank: c^2 comparisons spread over the block, one barrier in all. A bitonic sort has
/// log2(c)^2 / 2 of them and wins beyond.
#define KRONSAE_MOST_RANKED 256

struct Lists {
    u64* found; // [room] candidates
    u64* kept;  // [kept_room] of which the first are kept; a power of two
    u32 room, kept_room;
};

/// What a block's threads share beside the lists.
struct SelectScratch {
    RadixScratch radix;
    u32 count;
};

/// Appends the keys from `floor` on to `list` as long as there is room; returns how many there are.
template <class Each>
static __device__ __forceinline__ u32 collect(const Each& each, u64 floor, u64* list, u32 room, SelectScratch& scratch) {
    __syncthreads(); // all have read the list and the count of before
    if (threadIdx.x == 0) scratch.count = 0;
    __syncthreads();
    each([&](u64 key) {
        if (key < floor) return;
        const u32 at = atomicAdd(&scratch.count, 1u);
        if (at < room) list[at] = key;
    });
    PLANTABLE_BARRIER(2);
    return scratch.count;
}

/// Those of `each` that reach `floor`.
template <class Each> struct KeysFrom {
    const Each& each;
    u64 floor;
    template <class Take> __device__ __forceinline__ void operator()(const Take& take) const {
        each([&](u64 key) { if (key >= floor) take(key); });
    }
};

/// The keys of a list.
struct KeysOf {
    const u64* list;
    u32 count;
    template <class Take> __device__ __forceinline__ void operator()(const Take& take) const {
        for (u32 i = threadIdx.x; i < count; i += blockDim.x) take(list[i]);
    }
};

/// Collects keys from `floor` on, which it raises if it must: at least the first `k` of them, at most what there is room
/// for. Returns how many are in the list; `total` becomes how many reached the floor that was given.
template <class Each>
static __device__ __forceinline__ u32 collect_first(const Each& each, u64& floor, u32 k, const Lists& lists, u32& total,
                                                    SelectScratch& scratch) {
    total = collect(each, floor, lists.found, lists.room, scratch);
    if (total <= lists.room) return total;
    // Many are equal, or the floor was none. Exactly k reach the new one.
    floor = kth_key(KeysFrom<Each>{each, floor}, k, 0, scratch.radix);
    return collect(each, floor, lists.found, lists.room, scratch);
}

/// Of `count` candidates, those that come first, `k` at most, into `lists.kept`; returns how many. `floor` is raised to one
/// that all of them reach.
static __device__ __forceinline__ u32 keep_first(u32 count, u64& floor, u32 k, const Lists& lists,
                                                 SelectScratch& scratch) {
    const KeysOf found = {lists.found, count};
    if (count > k) floor = kth_key(found, k, 0, scratch.radix);
    return collect(found, floor, lists.kept, lists.kept_room, scratch);
}

/// Writes the first `wanted` of the `count` keys of `list` in order. Groups of lanes count, for a key each, how many are
/// before it.
template <class Write>
static __device__ __forceinline__ void write_ranked(const u64* list, u32 count, u32 wanted, Write write) {
    u32 lanes = 1;
    while (lanes < 32 && lanes * 2 * count <= blockDim.x) lanes *= 2;
    const u32 groups = blockDim.x / lanes, lane = threadIdx.x % lanes;
    for (u32 first = 0; first < count; first += groups) {
        const u32 at = first + threadIdx.x / lanes;
        const u64 key = at < count ? list[at] : 0;
        u32 rank = 0;
        // In step with its neighbours where a group is one lane: the reads are broadcasts.
        for (u32 i = lane; i < count; i += lanes) rank += list[i] > key;
        for (u32 by = lanes / 2; by > 0; by /= 2) rank += __shfl_xor_sync(KRONSAE_FULL_WARP, rank, by);
        if (at < count && lane == 0 && rank < wanted) write(rank, key);
    }
}

/// Sorts the first `count` keys of `list`, the largest first; there is room for a power of two of them.
static __device__ __forceinline__ void sort_keys(u64* list, u32 count) {
    u32 size = 1;
    while (size < count) size *= 2;
    for (u32 i = count + threadIdx.x; i < size; i += blockDim.x) list[i] = 0;
    __syncthreads();
    for (u32 run = 2; run <= size; run *= 2) {
        for (u32 stride = run / 2; stride > 0; stride /= 2) {
            for (u32 i = threadIdx.x; i < size / 2; i += blockDim.x) {
                const u32 low = 2 * i - (i & (stride - 1)), high = low + stride;
                const u64 a = list[low], b = list[high];
                if ((a < b) == ((low & run) == 0)) list[low] = b, list[high] = a;
            }
            PLANTABLE_BARRIER(3);
        }
    }
}

/// Writes the first `k` of the `count` candidates in order; returns how many that is. Collective.
template <class Write>
static __device__ __forceinline__ u32 write_first(u32 count, u32 k, const Lists& lists, SelectScratch& scratch,
                                                  Write write) {
    const u64* list = lists.found;
    if (count > KRONSAE_MOST_RANKED) {
        u64 floor = 1; // every key
        count = keep_first(count, floor, k, lists, scratch);
        list = lists.kept;
    }
    const u32 wanted = min(count, k);
    if (count <= KRONSAE_MOST_RANKED) {
        write_ranked(list, count, wanted, write);
    } else {
        sort_keys(lists.kept, count);
        for (u32 i = threadIdx.x; i < wanted; i += blockDim.x) write(i, lists.kept[i]);
    }
    return wanted;
}

#endif
