#include "block.h"

#if defined(__x86_64__)
asm(R"(
    .text
    .hidden kronsae_emulate_switch
    .globl kronsae_emulate_switch
    .type kronsae_emulate_switch, @function
kronsae_emulate_switch:
    pushq %rbp
    pushq %rbx
    pushq %r12
    pushq %r13
    pushq %r14
    pushq %r15
    movq %rsp, (%rdi)
    movq %rsi, %rsp
    popq %r15
    popq %r14
    popq %r13
    popq %r12
    popq %rbx
    popq %rbp
    ret
    .size kronsae_emulate_switch, .-kronsae_emulate_switch
)");
#endif

namespace emulate {

Block block;

void Block::entry() {
    arrived_from(block.host_);
    (*block.body_)();
    block.current_->state = Thread::State::Done;
    switch_context(block.current_->context, block.host_, true);
    std::abort(); // a thread that is done is never run again
}

void Block::wait(Thread::State state, const char* file, int line) {
    Thread& self = *current_;
    self.state = state;
    self.file = file;
    self.line = line;
    switch_context(self.context, host_);
}

bool Block::run(Index3 extent, Schedule schedule, uint64_t seed, const std::function<void()>& body,
                std::string& error) {
    const unsigned threads = extent.x * extent.y * extent.z;
    while (stacks_.size() < threads) stacks_.push_back(std::make_unique<Stack>());
    schedule_ = schedule;
    state_ = seed | 1;
    body_ = &body;
    error_.clear();
    threads_.assign(threads, Thread{});
    warps_ = (threads + WARP - 1) / WARP;
    std::memset(ready_, 0, sizeof ready_);
    warp_ = schedule == Schedule::Reverse ? warps_ - 1 : 0;
    alive_ = threads;
    at_barrier_ = 0;
    for (unsigned t = 0; t < threads; t++) {
        Thread& thread = threads_[t];
        thread.number = t;
        thread.index = {t % extent.x, t / extent.x % extent.y, t / extent.x / extent.y};
        stacks_[t]->prepare(thread.context, entry);
        set_ready(thread);
    }
    while (alive_ > 0 && error_.empty()) {
        Thread* thread = next();
        if (thread == nullptr) {
            fail("deadlock: no thread can go on.%s", waiting().c_str());
            break;
        }
        ready_[thread->number / WARP] &= ~(1u << (thread->number % WARP));
        current_ = thread;
        switch_context(host_, thread->context);
        switch (thread->state) {
        case Thread::State::AtBarrier: arrive_at_barrier(*thread); break;
        case Thread::State::InWarp: arrive_in_warp(*thread); break;
        case Thread::State::Done: leave(*thread); break;
        case Thread::State::Ready: break; // it only let others go first
        }
    }
    current_ = nullptr;
    error = error_;
    return error_.empty();
}

Thread* Block::next() {
    // The warp: the one that ran last where that is the schedule, else the next that can.
    unsigned able = 0;
    for (unsigned w = 0; w < warps_; w++) able |= (ready_[w] != 0) << w;
    if (able == 0) return nullptr;
    unsigned lane = 0;
    if (schedule_ >= Schedule::Random) {
        do warp_ = static_cast<unsigned>(random() % warps_);
        while (ready_[warp_] == 0);
        do lane = static_cast<unsigned>(random() % WARP);
        while ((ready_[warp_] >> lane & 1) == 0);
    } else if (schedule_ == Schedule::Reverse) {
        if (ready_[warp_] == 0) warp_ = 31 - static_cast<unsigned>(__builtin_clz(able));
        lane = 31 - static_cast<unsigned>(__builtin_clz(ready_[warp_]));
    } else {
        if (ready_[warp_] == 0) {
            const unsigned after = warp_ + 1 < WARP ? able & (~0u << (warp_ + 1)) : 0;
            // Lockstep goes round; greedy always goes back to the first.
            const unsigned from = schedule_ == Schedule::Lockstep && after != 0 ? after : able;
            warp_ = static_cast<unsigned>(__builtin_ctz(from));
        }
        lane = static_cast<unsigned>(__builtin_ctz(ready_[warp_]));
    }
    return &threads_[warp_ * WARP + lane];
}

void Block::arrive_at_barrier(Thread& thread) {
    if (alive_ < threads_.size()) {
        fail("thread %u waits at the barrier %s:%d, but %zu threads of the block have returned", thread.number,
             thread.file, thread.line, threads_.size() - alive_);
        return;
    }
    at_barrier_++;
    if (at_barrier_ < alive_) return;
    const Thread& first = threads_[0];
    unsigned count = 0;
    for (const Thread& other : threads_) {
        if (other.line != first.line || other.barrier != first.barrier || std::strcmp(other.file, first.file) != 0) {
            fail("threads of a block are at different barriers: thread 0 at %s:%d, thread %u at %s:%d", first.file,
                 first.line, other.number, other.file, other.line);
            return;
        }
        count += other.value != 0;
    }
    uint64_t result = 0;
    switch (first.barrier) {
    case BarrierKind::Sync: break;
    case BarrierKind::Or: result = count > 0; break;
    case BarrierKind::And: result = count == alive_; break;
    case BarrierKind::Count: result = count; break;
    }
    at_barrier_ = 0;
    for (Thread& other : threads_) {
        other.result = result;
        set_ready(other);
    }
}

void Block::arrive_in_warp(Thread& thread) {
    const unsigned lane = thread.number % WARP, first = thread.number - lane;
    const size_t there = threads_.size() - first;
    if ((thread.mask >> lane & 1) == 0) {
        fail("%s:%d: lane %u calls a warp operation whose mask %#x does not name it", thread.file, thread.line, lane,
             thread.mask);
        return;
    }
    for (unsigned l = 0; l < WARP; l++) {
        if ((thread.mask >> l & 1) == 0) continue;
        if (l >= there || threads_[first + l].state == Thread::State::Done) {
            fail("%s:%d: the mask %#x names lane %u, which has returned or never was", thread.file, thread.line,
                 thread.mask, l);
            return;
        }
        const Thread& other = threads_[first + l];
        if (other.state != Thread::State::InWarp) return; // not there yet
        if (other.mask != thread.mask || other.operation != thread.operation || other.line != thread.line) {
            // It waits for other lanes; that may end, and it may come here then.
            if ((other.mask & thread.mask) == other.mask && other.mask != thread.mask) return;
            fail("lanes of a warp are in different operations: lane %u at %s:%d (mask %#x), lane %u at %s:%d (mask %#x)",
                 lane, thread.file, thread.line, thread.mask, l, other.file, other.line, other.mask);
            return;
        }
    }
    uint64_t all = 0;
    bool begun = false;
    for (unsigned l = 0; l < WARP; l++) {
        if ((thread.mask >> l & 1) == 0) continue;
        const uint64_t value = threads_[first + l].value;
        switch (thread.operation) {
        case Operation::Ballot: all |= static_cast<uint64_t>(value != 0) << l; break;
        case Operation::Add: all += value; break;
        case Operation::Min: all = begun && all < value ? all : value; break;
        case Operation::Max: all = begun && all > value ? all : value; break;
        case Operation::And: all = begun ? all & value : value; break;
        case Operation::Or: all |= value; break;
        case Operation::Xor: all ^= value; break;
        default: break;
        }
        begun = true;
    }
    for (unsigned l = 0; l < WARP; l++) {
        if ((thread.mask >> l & 1) == 0) continue;
        Thread& to = threads_[first + l];
        to.result = all;
        if (thread.operation == Operation::Shuffle) {
            if ((thread.mask >> to.source & 1) == 0) {
                fail("%s:%d: lane %u shuffles from lane %u, which is not in the mask %#x", to.file, to.line, l,
                     to.source, to.mask);
                return;
            }
            to.result = threads_[first + to.source].value;
        } else if (thread.operation == Operation::MatchAny) {
            to.result = 0;
            for (unsigned o = 0; o < WARP; o++) {
                const bool same = (thread.mask >> o & 1) != 0 && threads_[first + o].value == to.value;
                to.result |= static_cast<uint64_t>(same) << o;
            }
        }
        set_ready(to);
    }
}

void Block::leave(Thread& thread) {
    alive_--;
    if (!thread.copies.empty()) {
        fail("thread %u returned with %zu asynchronous copies that it did not wait for", thread.number,
             thread.copies.size());
    } else if (at_barrier_ > 0) {
        fail("thread %u returned while %u threads of its block wait at a barrier.%s", thread.number, at_barrier_,
             waiting().c_str());
    }
}

std::string Block::waiting() const {
    std::string text;
    unsigned shown = 0;
    for (const Thread& thread : threads_) {
        const bool waits = thread.state == Thread::State::AtBarrier || thread.state == Thread::State::InWarp;
        const bool repeats = thread.number > 0 && threads_[thread.number - 1].state == thread.state &&
                             threads_[thread.number - 1].line == thread.line;
        if (!waits || repeats || shown == 8) continue;
        char line[512];
        std::snprintf(line, sizeof line, " From thread %u: waiting %s at %s:%d, mask %#x.", thread.number,
                      thread.state == Thread::State::AtBarrier ? "at a barrier" : "for lanes of its warp", thread.file,
                      thread.line, thread.mask);
        text += line;
        shown++;
    }
    return text;
}

void Block::fail(const char* format, ...) {
    char text[4096];
    va_list arguments;
    va_start(arguments, format);
    std::vsnprintf(text, sizeof text, format, arguments);
    va_end(arguments);
    if (error_.empty()) error_ = text;
}

} // namespace emulate
