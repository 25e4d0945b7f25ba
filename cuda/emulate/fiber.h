// Fibers: stacks of their own, switched by hand. Each CUDA thread of an emulated block is one.
//
// On x86-64 a switch saves what the calling convention asks a callee to keep, about ten instructions; elsewhere ucontext
// does it, with a system call each. AddressSanitizer is told of every switch, or it would take the new stack for a stray
// pointer.
#pragma once

#include <cstddef>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <sys/mman.h>
#if !defined(__x86_64__)
#include <ucontext.h>
#endif

#if defined(__SANITIZE_ADDRESS__)
#include <sanitizer/asan_interface.h>
#include <sanitizer/common_interface_defs.h>
#endif

namespace emulate {

/// Bytes of one fiber's stack. AddressSanitizer's frames are several times as large as plain ones.
constexpr size_t STACK_BYTES = 256 << 10;
constexpr size_t GUARD_BYTES = 4096;

#if defined(__x86_64__)
/// Saves the stack pointer at `save` and goes on at `load`. In block.cpp.
extern "C" __attribute__((visibility("hidden"))) void kronsae_emulate_switch(void** save, void* load);
#endif

/// A place that can be switched to: the scheduler's own stack, or a fiber's.
struct Context {
#if defined(__x86_64__)
    void* stack_pointer = nullptr;
#else
    ucontext_t context;
#endif
    // What AddressSanitizer asks about the stack that is switched to.
    const void* bottom = nullptr;
    size_t bytes = 0;
    void* fake_stack = nullptr;
};

/// Leaves `from`, which `to` may switch back to, unless it is `last`: then it never runs again.
inline void switch_context(Context& from, Context& to, bool last = false) {
#if defined(__SANITIZE_ADDRESS__)
    __sanitizer_start_switch_fiber(last ? nullptr : &from.fake_stack, to.bottom, to.bytes);
#else
    (void)last;
#endif
#if defined(__x86_64__)
    kronsae_emulate_switch(&from.stack_pointer, to.stack_pointer);
#else
    swapcontext(&from.context, &to.context);
#endif
#if defined(__SANITIZE_ADDRESS__)
    __sanitizer_finish_switch_fiber(from.fake_stack, nullptr, nullptr);
#endif
}

/// To be called first on a new fiber: notes the stack of `host`, which switched to it.
inline void arrived_from(Context& host) {
#if defined(__SANITIZE_ADDRESS__)
    __sanitizer_finish_switch_fiber(nullptr, &host.bottom, &host.bytes);
#else
    (void)host;
#endif
}

/// A stack, with a page below it that faults.
class Stack {
  public:
    Stack() {
        void* memory = mmap(nullptr, STACK_BYTES + GUARD_BYTES, PROT_READ | PROT_WRITE,
                            MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
        if (memory == MAP_FAILED || mprotect(memory, GUARD_BYTES, PROT_NONE) != 0) {
            std::fprintf(stderr, "cuda emulation: no memory for the stacks of a block's threads\n");
            std::abort();
        }
        bottom_ = static_cast<char*>(memory) + GUARD_BYTES;
    }
    Stack(const Stack&) = delete;
    Stack& operator=(const Stack&) = delete;
    ~Stack() { munmap(bottom_ - GUARD_BYTES, STACK_BYTES + GUARD_BYTES); }

    /// Makes `context` start `entry` on this stack, whatever ran on it before. `entry` must not return.
    void prepare(Context& context, void (*entry)()) {
#if defined(__SANITIZE_ADDRESS__)
        // A fiber that was given up left its frames' red zones behind.
        __asan_unpoison_memory_region(bottom_, STACK_BYTES);
#endif
        context.bottom = bottom_;
        context.bytes = STACK_BYTES;
#if defined(__x86_64__)
        // `ret` pops the entry point; above it a null return address, where the convention expects one: the stack pointer
        // is then 8 past a multiple of 16, as after a call.
        auto top = reinterpret_cast<uintptr_t*>(bottom_ + STACK_BYTES);
        *--top = 0;
        *--top = reinterpret_cast<uintptr_t>(entry);
        for (int i = 0; i < 6; i++) *--top = 0;
        context.stack_pointer = top;
#else
        getcontext(&context.context);
        context.context.uc_stack.ss_sp = bottom_;
        context.context.uc_stack.ss_size = STACK_BYTES;
        context.context.uc_link = nullptr;
        makecontext(&context.context, entry, 0);
#endif
    }

  private:
    char* bottom_;
};

} // namespace emulate
