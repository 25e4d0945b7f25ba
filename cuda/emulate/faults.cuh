// Kernels with a fault each, and some without: the tests of the emulation itself.

/// Reverses each block's 32*w numbers in shared memory. With a barrier it is right; without, some schedule must show it.
template <bool BARRIER> __device__ void reverse_block(const u32* in, u32* out) {
    __shared__ u32 numbers[KRONSAE_MOST_THREADS];
    numbers[threadIdx.x] = in[blockIdx.x * blockDim.x + threadIdx.x];
    if (BARRIER) __syncthreads();
    out[blockIdx.x * blockDim.x + threadIdx.x] = numbers[blockDim.x - 1 - threadIdx.x];
}
extern "C" __global__ void fault_none(const u32* in, u32* out) { reverse_block<true>(in, out); }
extern "C" __global__ void fault_missing_barrier(const u32* in, u32* out) { reverse_block<false>(in, out); }

/// Half of a block waits at one barrier, half at another.
extern "C" __global__ void fault_divergent_barrier() {
    if (threadIdx.x < blockDim.x / 2) {
        __syncthreads();
    } else {
        __syncthreads();
    }
}

/// One thread returns where the others wait.
extern "C" __global__ void fault_early_return() {
    if (threadIdx.x == blockDim.x - 1) return;
    __syncthreads();
}

/// A warp operation for all lanes that half of them call.
extern "C" __global__ void fault_missing_lanes(u32* out) {
    if (threadIdx.x % 32 < 16) out[threadIdx.x] = __ballot_sync(0xFFFFFFFFu, 1);
    __syncthreads();
}

/// A shuffle from a lane that takes no part.
extern "C" __global__ void fault_foreign_lane(u32* out) {
    if (threadIdx.x % 32 < 16) out[threadIdx.x] = __shfl_sync(0x0000FFFFu, threadIdx.x, 20);
}

/// An asynchronous copy that is read before it was waited for, and one that is not waited for at all.
extern "C" __global__ void fault_unwaited_copy(const uint4* in, uint4* out, u32 wait) {
    __shared__ uint4 staged[KRONSAE_MOST_THREADS];
    copy_async_16(&staged[threadIdx.x], &in[threadIdx.x]);
    copy_async_commit();
    if (wait == 1) copy_async_wait<0>();
    out[threadIdx.x] = staged[threadIdx.x];
    if (wait == 2) copy_async_wait<0>();
}

/// Reads one element past the end of dynamic shared memory.
extern "C" __global__ void fault_out_of_bounds(u32* out) {
    KRONSAE_DYNAMIC_SHARED(memory);
    const u32* numbers = reinterpret_cast<const u32*>(memory);
    out[threadIdx.x] = numbers[dynamic_shared_bytes() / 4 + threadIdx.x];
}

/// One key a thread.
struct OwnKey {
    u32 v;
    template <class Take> __device__ void operator()(const Take& take) const {
        if (v > 0) take(key_of((float)v, threadIdx.x));
    }
};

/// Every building block of common.cuh: sums, scan, compaction, k-th key; a word a thread each.
extern "C" __global__ void fault_none_collectives(const u32* in, u32* scans, u32* totals, u32* places, float* sums,
                                                  u64* floors, u32 k) {
    __shared__ u32 scratch[32], scratch2[32];
    __shared__ float floats[32];
    __shared__ RadixScratch radix;
    const u32 v = in[threadIdx.x];
    scans[threadIdx.x] = block_scan(v, totals[threadIdx.x], scratch);
    u32 next = 0;
    const u32 place = ordered_place(v % 3 == 0, next, scratch2);
    if (v % 3 == 0) places[place] = v;
    sums[threadIdx.x] = block_sum((float)v, floats);
    floors[threadIdx.x] = kth_key(OwnKey{v}, k, 0, radix);
}
