// Exact selection: from pre-activations to latents, in the order of the format (value descending, index ascending).
//
// kronsae_select_{f32,bf16}(Shape s, const T* y, u32 ldy, u32 tokens, u32 k, u32 mode, float theta, const float* thetas,
//                           u32* counts, u32* indices, float* values, u32 capacity, u32* active, u8* flags,
//                           u32* positive, u32* skipped)
//     y           [tokens, ldy], before ReLU, bias included; 16-byte aligned, ldy a multiple of 8 and at least s.rows
//     k, mode     0: the k largest; 1: those above a threshold, k at most (max_latents)
//     theta       mode 1: active iff the latent's value is above it, strictly
//     thetas      [latents] or null: dense and mode 1: instead of theta
//     counts      [tokens]; indices, values [tokens, capacity]: row t at t * capacity; what is past its count is untouched.
//                 At most min(k, capacity) latents are written; mode 0 wants capacity >= k
//     active      [tokens] or null: how many were active before any cut
//     flags       [tokens] or null: bit 0 not finite (count 0), bit 1 more were active than written
//     positive    [ceil(rows / 32)] or null: bit r % 32 of word r / 32 is set if row r is positive on any token; else left
//     skipped     or null: rows that were not finite are added to it
//
// kronsae_head_maxima_{f32,bf16}(Shape s, const T* y, u32 ldy, u32 tokens, float* maxima, u32* positive)
//     maxima      [tokens, heads]: the largest product of each head; infinite or NaN where the head is not finite
//     grid (blocks, tokens): the blocks of a column share a token. No shared memory. kron only.
// kronsae_select_maxima_{f32,bf16}(as kronsae_select, without positive, and behind skipped: const float* maxima)
//     With the kernel before it for few tokens, where one block a token would leave the chip idle while it reads the row.
//     Does not look at y but for the heads it takes. kron only.
//
// kronsae_select_dead_{f32,bf16}(Shape s, const T* y, u32 ldy, u32 tokens, const u32* dead, const u32* dead_count,
//                                u32 k_aux, u32* counts, u32* indices, float* values, u32 capacity)
//     dead        latents, ascending; *dead_count of them. The k_aux strongest are selected, capacity >= k_aux.
//     A token of which a dead latent's product is not finite has none.
//
// Launch. Blocks of any multiple of 32 threads, 512 is meant; a block takes tokens blockIdx.x, + gridDim.x, ..., so that as
// many blocks as fit on the chip do. Dynamic shared memory, with K = min(k, capacity) rounded up to a power of two (k_aux
// likewise) and LIST = max(KRONSAE_LIST, 2 K):
//     needed      8 K + 8 LIST, and KRONSAE_STAGES * KRONSAE_TILE_BYTES more for kronsae_select      (K 50: 57,856 bytes)
//     better      + 4 heads (kron: head maxima are kept), + 4 ceil(rows / 32) where positive is not null, each rounded up
//                 to 16 bytes. What does not fit is computed again or kept in global memory. Never more than helps.
// A launch with less than needed, or with K = 0, traps. Beyond 48 KB CUDA wants to be asked first (cuFuncSetAttribute,
// MAX_DYNAMIC_SHARED_SIZE_BYTES). At h = 8192, m = 2, n = 4, K = 50: 96,768 bytes, which with at most 64 registers a thread
// lets two blocks of 512 threads share a multiprocessor of an H100 or H200.
//
// How (kron, the k largest). M_k, the largest product of head k; the K heads first in (M descending, head ascending) hold
// all K latents, and the K-th of them is a floor that no selected latent is below. So:
//   1. the row streams by (stream.cuh); each thread keeps the largest M of its own heads
//   2. the K-th largest of those, to 16 bits, is a floor that at least K heads reach and few more: a radix selection over one
//      key a thread instead of one a head
//   3. heads that reach it are listed, and cut to exactly K (candidates.cuh)
//   4. products of those that reach the K-th's maximum are listed: p * max(q) below it rules out whole rows of wide heads
//   5. and sorted.
// Where a list overflows, as where many are equal, the floor is found by radix selection over everything, keys made on
// the fly; that is slow and exact.
#ifndef KRONSAE_SELECT_CUH
#define KRONSAE_SELECT_CUH
#include "candidates.cuh"
#include "enumerate.cuh"
#include "stream.cuh"

#define KRONSAE_ROW_NOT_FINITE 1
#define KRONSAE_ROW_TRUNCATED 2

enum { KRONSAE_TOPK = 0, KRONSAE_THRESHOLD = 1 };

/// What is selected and where it goes.
struct Selection {
    u32 k, mode;
    float theta;
    const float* thetas;
    u32* counts;
    u32* indices;
    float* values;
    u32 capacity;
    u32* active;
    u8* flags;
    u32* skipped;
};

/// The smallest f32 whose rounded square root is above `theta`.
static __device__ __forceinline__ float square_floor(float theta) {
    if (!(theta < infinity())) return infinity(); // nothing finite is above it
    if (theta < 0.0f) theta = 0.0f;
    u32 bits = __float_as_uint(__fmul_rn(theta, theta));
    // The product is within a few ulps of it wherever it does not underflow.
    while (bits > 0 && __fsqrt_rn(__uint_as_float(bits)) > theta) bits--;
    while (__fsqrt_rn(__uint_as_float(bits)) <= theta) bits++;
    return __uint_as_float(bits);
}

/// The smallest f32 above `theta`, and positive.
static __device__ __forceinline__ float next_above(float theta) {
    if (!(theta < infinity())) return infinity();
    return __uint_as_float(theta <= 0.0f ? 1u : __float_as_uint(theta) + 1);
}

/// A block's dynamic shared memory, as the launch comment has it.
struct Room {
    Lists lists;
    unsigned char* ring;
    unsigned char* next; // what is left
    u32 left;
};

static __device__ __forceinline__ Room divide_shared(unsigned char* shared, u32 k, u32 ring_bytes) {
    Room room;
    u32 kept = 1;
    while (kept < k) kept *= 2;
    room.lists.kept_room = kept;
    room.lists.room = max((u32)KRONSAE_LIST, 2 * kept);
    const u32 needed = ring_bytes + 8 * (kept + room.lists.room);
    if (k == 0 || dynamic_shared_bytes() < needed) __trap();
    room.ring = shared; // first, for its alignment
    room.lists.found = reinterpret_cast<u64*>(shared + ring_bytes);
    room.lists.kept = room.lists.found + room.lists.room;
    room.next = reinterpret_cast<unsigned char*>(room.lists.kept + kept);
    room.left = dynamic_shared_bytes() - needed;
    return room;
}

/// `bytes` of what is left, rounded up to 16, or null.
static __device__ __forceinline__ unsigned char* reserve(Room& room, u64 bytes) {
    bytes = (bytes + 15) / 16 * 16;
    if (bytes > room.left) return nullptr;
    unsigned char* const at = room.next;
    room.next += bytes;
    room.left -= (u32)bytes;
    return at;
}

/// The selected latents of token `token` from `count` candidates; `total` were active.
static __device__ __forceinline__ void write_token(const Selection& to, bool kron, u32 token, u32 count, u32 k, u32 total,
                                                   const Lists& lists, SelectScratch& scratch) {
    u32* const indices = to.indices + (u64)token * to.capacity;
    float* const values = to.values + (u64)token * to.capacity;
    const u32 written = write_first(count, k, lists, scratch, [&](u32 rank, u64 key) {
        indices[rank] = key_index(key);
        values[rank] = kron ? __fsqrt_rn(key_value(key)) : key_value(key);
    });
    if (threadIdx.x == 0) {
        to.counts[token] = written;
        if (to.active != nullptr) to.active[token] = to.mode == KRONSAE_TOPK ? written : total;
        if (to.flags != nullptr)
            to.flags[token] = to.mode == KRONSAE_THRESHOLD && total > written ? KRONSAE_ROW_TRUNCATED : 0;
    }
}

static __device__ __forceinline__ void write_not_finite(const Selection& to, u32 token) {
    if (threadIdx.x != 0) return;
    to.counts[token] = 0;
    if (to.active != nullptr) to.active[token] = 0;
    if (to.flags != nullptr) to.flags[token] = KRONSAE_ROW_NOT_FINITE;
    if (to.skipped != nullptr) atomicAdd(to.skipped, 1u);
}

/// One number a thread, where it is positive.
struct PartKey {
    float largest;
    template <class Take> __device__ __forceinline__ void operator()(const Take& take) const {
        if (largest > 0.0f) take(key_of(largest, 0));
    }
};

/// The least key of a value that at least `k` of the threads' numbers reach; where fewer are positive, the least of all keys.
/// To 16 bits, in two rounds: a few candidates more than an exact floor would leave.
static __device__ __forceinline__ u64 floor_of_parts(float largest, u32 k, SelectScratch& scratch) {
    if (k > blockDim.x) return 1;
    const u64 floor = kth_key(PartKey{largest}, k, 48, scratch.radix);
    return floor == 0 ? 1 : floor;
}

/// Selects from a row's head maxima and the row. `maxima` may be null: they are computed again then.
template <class T>
static __device__ __forceinline__ void select_kron(const Shape& s, const Selection& to, const T* y, u32 token,
                                                   const float* maxima, float largest, float theta_floor,
                                                   const Lists& lists, SelectScratch& scratch) {
    const u32 k = min(to.k, to.capacity);
    u32 total;
    ProductKeys<T> products = {s, y, nullptr, s.heads, maxima, theta_floor};
    if (to.mode == KRONSAE_TOPK) {
        u64 floor = floor_of_parts(largest, k, scratch);
        const u32 found = collect_first(HeadKeys<T>{s, y, maxima}, floor, k, lists, total, scratch);
        products.heads = keep_first(found, floor, k, lists, scratch);
        products.listed = lists.kept;
        // Where fewer than k heads are positive, the floor is still the least of all keys, and any of their products may be in.
        products.least = key_value(floor);
    }
    u64 floor = 1;
    const u32 count = collect_first(products, floor, k, lists, total, scratch);
    write_token(to, true, token, count, k, total, lists, scratch);
}

/// Selects from a dense row; `largest` is that of this thread's part of it.
template <class T>
static __device__ __forceinline__ void select_dense(const Shape& s, const Selection& to, const T* y, u32 token,
                                                    float largest, float theta_floor, const Lists& lists,
                                                    SelectScratch& scratch) {
    const u32 k = min(to.k, to.capacity);
    const float* const thetas = to.mode == KRONSAE_THRESHOLD ? to.thetas : nullptr;
    u64 floor = to.mode == KRONSAE_TOPK ? floor_of_parts(largest, k, scratch)
                : thetas == nullptr     ? key_floor(theta_floor)
                                        : 1;
    u32 total;
    const u32 count = collect_first(LatentKeys<T>{s, y, thetas}, floor, k, lists, total, scratch);
    write_token(to, false, token, count, k, total, lists, scratch);
}

template <class T>
static __device__ __forceinline__ void select_tokens(const Shape& s, const T* y, u32 ldy, u32 tokens,
                                                     const Selection& to, u32* positive) {
    KRONSAE_DYNAMIC_SHARED(shared);
    __shared__ SelectScratch scratch;
    const bool kron = s.kind == KRONSAE_KRON;
    Room room = divide_shared(shared, min(to.k, to.capacity), KRONSAE_STAGES * KRONSAE_TILE_BYTES);
    float* const maxima = kron ? reinterpret_cast<float*>(reserve(room, 4ull * s.heads)) : nullptr;
    const u32 words = (s.rows + 31) / 32;
    u32* const mask = positive == nullptr ? nullptr : reinterpret_cast<u32*>(reserve(room, 4ull * words));
    for (u32 w = threadIdx.x; mask != nullptr && w < words; w += blockDim.x) mask[w] = 0;
    float theta_floor = 0.0f;
    if (to.mode == KRONSAE_THRESHOLD) theta_floor = kron ? square_floor(to.theta) : next_above(to.theta);

    Stream<T> stream;
    stream.y = y, stream.ldy = ldy, stream.tokens = tokens, stream.rows = s.rows;
    stream.cut = cut_rows<T>(s);
    stream.ring = room.ring;
    const Cut& cut = stream.cut;
    if (cut.tiles > 0) stream.start();
    __syncthreads(); // the mask is clear

    for (u32 token = blockIdx.x; token < tokens; token += gridDim.x) {
        const T* const row = y + (u64)token * ldy;
        Seen seen = {0.0f, false};
        const auto see_rows = [&](const T* from, u32 first, u32 rows) {
            if (kron) {
                const u32 head = first / cut.width;
                head_maxima(s, cut, from, rows / cut.width, seen, [&](u32 at, float max) {
                    if (maxima != nullptr) maxima[head + at] = max;
                });
            } else {
                for (u32 f = threadIdx.x; f < rows; f += blockDim.x) see(to_float(from[f]), seen.largest, seen.bad);
            }
            if (positive != nullptr)
                mark_positive(from, rows, (mask != nullptr ? mask : positive) + first / 32, mask != nullptr);
        };
        if (cut.tiles == 0) see_rows(row, 0, s.rows);
        for (u32 tile = 0; tile < cut.tiles; tile++) {
            const u32 first = tile * cut.tile_rows;
            see_rows(stream.take(), first, min(cut.tile_rows, s.rows - first));
        }
        if (__syncthreads_or(seen.bad)) { // and the maxima are all there
            write_not_finite(to, token);
        } else if (kron) {
            select_kron(s, to, row, token, maxima, seen.largest, theta_floor, room.lists, scratch);
        } else {
            select_dense(s, to, row, token, seen.largest, theta_floor, room.lists, scratch);
        }
        // No barrier: whatever was read of shared memory was read before the last barrier of a collection, or is written
        // behind the first of the next.
    }

    if (mask == nullptr) return;
    __syncthreads();
    for (u32 w = threadIdx.x; w < words; w += blockDim.x) {
        const u32 bits = mask[w];
        // Most blocks find what others have found: no atomic then.
        if ((bits & ~*reinterpret_cast<volatile u32*>(positive + w)) != 0) atomicOr(positive + w, bits);
    }
}

template <class T>
static __device__ __forceinline__ void select_from_maxima(const Shape& s, const T* y, u32 ldy, u32 tokens,
                                                          const Selection& to, const float* maxima) {
    KRONSAE_DYNAMIC_SHARED(shared);
    __shared__ SelectScratch scratch;
    Room room = divide_shared(shared, min(to.k, to.capacity), 0);
    float* const copy = reinterpret_cast<float*>(reserve(room, 4ull * s.heads));
    const float theta_floor = to.mode == KRONSAE_THRESHOLD ? square_floor(to.theta) : 0.0f;
    for (u32 token = blockIdx.x; token < tokens; token += gridDim.x) {
        const float* const from = maxima + (u64)token * s.heads;
        Seen seen = {0.0f, false};
        for (u32 head = threadIdx.x; head < s.heads; head += blockDim.x) {
            const float max = from[head];
            see(max, seen.largest, seen.bad);
            if (copy != nullptr) copy[head] = max;
        }
        if (__syncthreads_or(seen.bad)) {
            write_not_finite(to, token);
        } else {
            select_kron(s, to, y + (u64)token * ldy, token, copy != nullptr ? copy : from, seen.largest, theta_floor,
                        room.lists, scratch);
        }
    }
}

template <class T>
static __device__ __forceinline__ void maxima_of_heads(const Shape& s, const T* y, u32 ldy, u32 tokens, float* maxima,
                                                       u32* positive) {
    const Cut cut = cut_rows<T>(s);
    // A block's share: whole words of the mask of positive rows, so 32 heads at a time.
    const u32 share = (s.heads + gridDim.x * 32 - 1) / (gridDim.x * 32) * 32;
    const u64 first = (u64)blockIdx.x * share;
    if (first >= s.heads) return;
    const u32 heads = (u32)min((u64)share, s.heads - first);
    for (u32 token = blockIdx.y; token < tokens; token += gridDim.y) {
        const T* const row = y + (u64)token * ldy + first * cut.width;
        float* const out = maxima + (u64)token * s.heads + first;
        Seen seen = {0.0f, false};
        head_maxima(s, cut, row, heads, seen, [&](u32 head, float max) { out[head] = max; });
        if (positive != nullptr) mark_positive(row, heads * cut.width, positive + first * cut.width / 32, false);
    }
}

template <class T>
static __device__ __forceinline__ void select_dead(const Shape& s, const T* y, u32 ldy, u32 tokens, const u32* dead,
                                                   const u32* dead_count, const Selection& to) {
    KRONSAE_DYNAMIC_SHARED(shared);
    __shared__ SelectScratch scratch;
    const u32 k = min(to.k, to.capacity), among = *dead_count;
    const Room room = divide_shared(shared, k, 0);
    for (u32 token = blockIdx.x; token < tokens; token += gridDim.x) {
        const T* const row = y + (u64)token * ldy;
        const DeadKeys<T> keys = {s, row, dead, among};
        Seen seen = {0.0f, false};
        for (u32 i = threadIdx.x; i < among; i += blockDim.x) see(keys.product(dead[i]), seen.largest, seen.bad);
        if (__syncthreads_or(seen.bad)) {
            if (threadIdx.x == 0) to.counts[token] = 0;
            continue;
        }
        u64 floor = floor_of_parts(seen.largest, k, scratch);
        u32 total;
        const u32 count = collect_first(keys, floor, k, room.lists, total, scratch);
        write_token(to, s.kind == KRONSAE_KRON, token, count, k, total, room.lists, scratch);
    }
}

#define KRONSAE_SELECT_KERNELS(T, suffix)                                                                              \
    extern "C" __global__ void __launch_bounds__(KRONSAE_MOST_THREADS, 1) kronsae_select_##suffix(                        \
        Shape s, const T* y, u32 ldy, u32 tokens, u32 k, u32 mode, float theta, const float* thetas, u32* counts,      \
        u32* indices, float* values, u32 capacity, u32* active, u8* flags, u32* positive, u32* skipped) {              \
        const Selection to = {k, mode, theta, thetas, counts, indices, values, capacity, active, flags, skipped};      \
        select_tokens(s, y, ldy, tokens, to, positive);                                                                \
    }                                                                                                                  \
    extern "C" __global__ void __launch_bounds__(KRONSAE_MOST_THREADS, 1) kronsae_head_maxima_##suffix(                   \
        Shape s, const T* y, u32 ldy, u32 tokens, float* maxima, u32* positive) {                                      \
        maxima_of_heads(s, y, ldy, tokens, maxima, positive);                                                          \
    }                                                                                                                  \
    extern "C" __global__ void __launch_bounds__(KRONSAE_MOST_THREADS, 1) kronsae_select_maxima_##suffix(                 \
        Shape s, const T* y, u32 ldy, u32 tokens, u32 k, u32 mode, float theta, const float* thetas, u32* counts,      \
        u32* indices, float* values, u32 capacity, u32* active, u8* flags, u32* skipped, const float* maxima) {        \
        const Selection to = {k, mode, theta, thetas, counts, indices, values, capacity, active, flags, skipped};      \
        select_from_maxima(s, y, ldy, tokens, to, maxima);                                                             \
    }

KRONSAE_SELECT_KERNELS(float, f32)
KRONSAE_SELECT_KERNELS(__nv_bfloat16, bf16)
#undef KRONSAE_SELECT_KERNELS

#ifndef KRONSAE_ENCODE_ONLY
#define KRONSAE_SELECT_DEAD(T, suffix)                                                                                \
    extern "C" __global__ void __launch_bounds__(KRONSAE_MOST_THREADS, 1) kronsae_select_dead_##suffix(                   \
        Shape s, const T* y, u32 ldy, u32 tokens, const u32* dead, const u32* dead_count, u32 k_aux, u32* counts,      \
        u32* indices, float* values, u32 capacity) {                                                                   \
        const Selection to = {k_aux,   KRONSAE_TOPK, 0.0f,    nullptr, counts, indices,                                \
                              values,  capacity,     nullptr, nullptr, nullptr};                                       \
        select_dead(s, y, ldy, tokens, dead, dead_count, to);                                                          \
    }

KRONSAE_SELECT_DEAD(float, f32)
KRONSAE_SELECT_DEAD(__nv_bfloat16, bf16)
#undef KRONSAE_SELECT_DEAD
#endif

#endif
