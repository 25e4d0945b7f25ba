/* What the C and C++ tests share: counted checks, and the view of a batch. */
#ifndef KRONSAE_TESTS_CHECK_H
#define KRONSAE_TESTS_CHECK_H

#include <kronsae.h>
#include <stdio.h>
#include <string.h>

extern unsigned checks_made;
extern unsigned checks_failed;

/* Goes on after a failure, so that one run shows all of them. */
#define CHECK(condition)                                                              \
    do {                                                                              \
        checks_made++;                                                                \
        if (!(condition)) {                                                           \
            checks_failed++;                                                          \
            fprintf(stderr, "%s:%d: failed: %s\n", __FILE__, __LINE__, #condition);   \
        }                                                                             \
    } while (0)

/* The line the caller looks for, and the exit status. */
#define FINISH()                                                                      \
    (checks_failed == 0 ? (printf("ok %u checks\n", checks_made), 0)                  \
                        : (printf("%u of %u checks failed\n", checks_failed, checks_made), 1))

#endif
