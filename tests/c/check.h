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

/* Checks a refusal: its status, and that the message says `what`. Frees the error. */
static inline void check_refused(kronsae_status found, kronsae_status expected, kronsae_error *error, const char *what,
                                 const char *file, int line) {
    const char *message = kronsae_error_message(error);
    int right = found == expected && kronsae_error_status(error) == expected && strstr(message, what) != NULL;
    CHECK(right);
    if (!right) {
        fprintf(stderr, "%s:%d: status %d, expected %d with `%s`: %s\n", file, line, (int)found, (int)expected, what, message);
    }
    kronsae_error_destroy(error);
}

/* A call that must be refused, its last argument `&error`. Calls first and looks at `error` after: C leaves the order of
 * arguments open. */
#define REFUSED(call, expected, what)                                                 \
    do {                                                                              \
        kronsae_status found = (call);                                                \
        check_refused(found, expected, error, what, __FILE__, __LINE__);              \
        error = NULL;                                                                 \
    } while (0)

/* The line the caller looks for, and the exit status. */
#define FINISH()                                                                      \
    (checks_failed == 0 ? (printf("ok %u checks\n", checks_made), 0)                  \
                        : (printf("%u of %u checks failed\n", checks_failed, checks_made), 1))

#endif
