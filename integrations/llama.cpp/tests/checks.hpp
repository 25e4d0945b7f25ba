// The least a test program needs: a check that says where it failed, and a count of them at the end.
#ifndef KRONSAE_LLAMA_TESTS_CHECKS_HPP
#define KRONSAE_LLAMA_TESTS_CHECKS_HPP

#include <cstdio>

static int checks_made = 0;
static int checks_failed = 0;

#define CHECK(condition)                                                             \
    do {                                                                             \
        ++checks_made;                                                               \
        if (!(condition)) {                                                          \
            ++checks_failed;                                                         \
            std::fprintf(stderr, "%s:%d: failed: %s\n", __FILE__, __LINE__, #condition); \
        }                                                                            \
    } while (0)

static inline int checks_end() {
    if (checks_failed != 0) {
        std::fprintf(stderr, "%d of %d checks failed\n", checks_failed, checks_made);
        return 1;
    }
    std::printf("ok %d checks\n", checks_made);
    return checks_made > 0 ? 0 : 1;
}

#endif
