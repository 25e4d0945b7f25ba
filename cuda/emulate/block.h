// One thread block: its threads as fibers, its warps, barriers and warp-wide operations, and who runs next.
//
// A thread runs until it waits: at a block's barrier, or in an operation of its warp for the lanes its mask names. Then
// the schedule says who is next. What a kernel may rely on is only what CUDA promises: so a result that differs between
// schedules, or from the reference under one of them, is a missing barrier. Faults that a GPU answers with a hang or with
// garbage are errors here, with a sentence: a barrier that not all threads reach or that they reach in different places, a
// warp operation whose mask names a lane that is elsewhere, a shuffle from a lane that takes no part.
#pragma once

#include "fiber.h"

#include <cstdarg>
#include <cstring>
#include <functional>
#include <memory>
#include <string>
#include <vector>

namespace emulate {

constexpr unsigned WARP = 32;
constexpr unsigned MOST_THREADS = 1024;

struct Index3 {
    unsigned x, y, z;
};

/// Who runs next.
enum class Schedule {
    /// Warps take turns; all lanes of a warp go on to where they wait next.
    Lockstep = 0,
    /// One warp runs for as long as it can, the first first.
    Greedy = 1,
    /// The same from the last warp and lane to the first; blocks too.
    Reverse = 2,
    /// Any lane that can run, also between atomic operations; `Random + n` is seed n.
    Random = 3,
};

enum class Operation : unsigned char { None, Sync, Shuffle, Ballot, MatchAny, Add, Min, Max, And, Or, Xor };
enum class BarrierKind : unsigned char { Sync, Or, And, Count };

/// An asynchronous copy to shared memory that was started and not yet waited for.
struct PendingCopy {
    void* to;
    const void* from;
    size_t bytes;
    unsigned group;
};

struct Thread {
    enum class State : unsigned char { Ready, AtBarrier, InWarp, Done };

    Index3 index{};
    unsigned number = 0;
    State state = State::Ready;
    Context context;
    // Where it waits.
    const char* file = "";
    int line = 0;
    // Its part in an operation of its warp, or a barrier's predicate and result.
    Operation operation = Operation::None;
    BarrierKind barrier = BarrierKind::Sync;
    unsigned mask = 0;
    unsigned source = 0;
    uint64_t value = 0;
    uint64_t result = 0;
    // Asynchronous copies; those of `group` are not committed yet.
    std::vector<PendingCopy> copies;
    unsigned group = 0;
};

class Block {
  public:
    /// Runs `body` once a thread. False on a fault, which `error` then describes.
    bool run(Index3 extent, Schedule schedule, uint64_t seed, const std::function<void()>& body, std::string& error);

    [[nodiscard]] Thread& current() { return *current_; }

    /// A block's barrier; returns what its kind makes of all predicates.
    unsigned barrier(BarrierKind kind, int predicate, const char* file, int line) {
        Thread& self = *current_;
        self.barrier = kind;
        self.value = predicate != 0;
        wait(Thread::State::AtBarrier, file, line);
        return static_cast<unsigned>(self.result);
    }

    /// An operation of the lanes in `mask`, of which the caller is one.
    uint64_t warp(Operation operation, unsigned mask, uint64_t value, unsigned source, const char* file, int line) {
        Thread& self = *current_;
        self.operation = operation;
        self.mask = mask;
        self.value = value;
        self.source = source;
        wait(Thread::State::InWarp, file, line);
        return self.result;
    }

    /// Ends the block with a fault, as a kernel does that finds its arguments impossible.
    [[noreturn]] void trap(const char* file, int line) {
        fail("%s:%d: the kernel trapped", file, line);
        switch_context(current_->context, host_, true);
        std::abort(); // a block with a fault is never run again
    }

    /// Lets others run, now and then, where the schedule is random.
    void maybe_yield() {
        if (schedule_ < Schedule::Random || random() % 4 != 0) return;
        set_ready(*current_);
        switch_context(current_->context, host_);
    }

  private:
    static void entry();
    void wait(Thread::State state, const char* file, int line);
    void set_ready(Thread& thread) {
        thread.state = Thread::State::Ready;
        ready_[thread.number / WARP] |= 1u << (thread.number % WARP);
    }
    Thread* next();
    void arrive_at_barrier(Thread& thread);
    void arrive_in_warp(Thread& thread);
    void leave(Thread& thread);
    void fail(const char* format, ...) __attribute__((format(printf, 2, 3)));
    std::string waiting() const;
    uint64_t random() {
        state_ ^= state_ << 13;
        state_ ^= state_ >> 7;
        state_ ^= state_ << 17;
        return state_ * 0x2545F4914F6CDD1Du >> 32;
    }

    std::vector<std::unique_ptr<Stack>> stacks_;
    std::vector<Thread> threads_;
    /// Lanes of each warp that can run.
    unsigned ready_[MOST_THREADS / WARP] = {};
    unsigned warps_ = 0;
    unsigned warp_ = 0;
    unsigned alive_ = 0;
    unsigned at_barrier_ = 0;
    Thread* current_ = nullptr;
    Context host_;
    Schedule schedule_ = Schedule::Lockstep;
    uint64_t state_ = 1;
    const std::function<void()>* body_ = nullptr;
    std::string error_;
};

/// The block that runs: one at a time.
extern Block block;

} // namespace emulate
