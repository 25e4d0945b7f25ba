/* Who may go before whom, what goes on in other threads meanwhile, and callbacks. */

#if !defined(_POSIX_C_SOURCE)
#define _POSIX_C_SOURCE 200809L /* nanosleep */
#endif

#include "monitor.h"

#include <pthread.h>
#include <stdatomic.h>
#include <time.h>

static void sleep_ms(long ms) {
    struct timespec time;
    time.tv_sec = ms / 1000;
    time.tv_nsec = ms % 1000 * 1000000;
    nanosleep(&time, NULL);
}

/* Every order of what ends a monitor's life that the header allows. */

enum { DESTROY_SAE, DESTROY_TAP, DESTROY_MONITOR, FLUSH, STOP, ENDS };

static void one_order(const char *tiny, const int *order) {
    world w;
    int i, stopped = 0;
    make_world(&w, tiny, NULL, NULL);
    set_rules(w.monitor, rule_text);
    CHECK(submit_row(w.tap, active_row, 1, 0) == 1);
    for (i = 0; i < ENDS; i++) {
        switch (order[i]) {
        case DESTROY_SAE:
            kronsae_sae_destroy(w.sae);
            break;
        case DESTROY_TAP:
            kronsae_tap_destroy(w.tap);
            w.tap = NULL;
            break;
        case DESTROY_MONITOR:
            kronsae_monitor_destroy(w.monitor);
            w.monitor = NULL;
            stopped = 1;
            break;
        case FLUSH:
            if (w.monitor == NULL) break;
            CHECK(kronsae_monitor_flush(w.monitor, WAIT, NULL) == KRONSAE_STATUS_OK);
            CHECK(status_of(w.monitor).queued == 0);
            break;
        case STOP:
            if (w.monitor == NULL) break;
            CHECK(kronsae_monitor_stop(w.monitor, WAIT, NULL) == KRONSAE_STATUS_OK);
            CHECK(status_of(w.monitor).queued == 0);
            stopped = 1;
            break;
        default:
            break;
        }
        if (w.tap != NULL && !stopped) {
            CHECK(submit_row(w.tap, active_row, 1, i + 1) == 1);
        } else if (w.tap != NULL) {
            const kronsae_activations x = rows_of(active_row, 1);
            const kronsae_token_tag tag = tag_of(1, i + 1);
            kronsae_error *error = NULL;
            REFUSED(kronsae_tap_submit(w.tap, &x, &tag, sizeof tag, NULL, &error), KRONSAE_STATUS_STOPPED, "stopped");
            REFUSED(kronsae_tap_end_request(w.tap, 1, &error), KRONSAE_STATUS_STOPPED, "stopped");
            REFUSED(kronsae_tap_rewind(w.tap, 1, 0, &error), KRONSAE_STATUS_STOPPED, "stopped");
        }
    }
}

/* order[0..n] is fixed; tries all that may follow. */
static unsigned orders_from(const char *tiny, int *order, int n) {
    unsigned done = 0;
    int next, i;
    if (n == ENDS) {
        one_order(tiny, order);
        return 1;
    }
    for (next = 0; next < ENDS; next++) {
        for (i = 0; i < n && order[i] != next; i++) {}
        if (i < n) continue;
        order[n] = next;
        done += orders_from(tiny, order, n + 1);
    }
    return done;
}

void monitor_orders(const char *tiny) {
    int order[ENDS];
    CHECK(orders_from(tiny, order, 0) == 120);
}

/* A monitor destroyed while other threads submit: they are told, and can still destroy their taps. */

static void *submit_until_stopped(void *argument) {
    kronsae_tap *tap = argument;
    const kronsae_activations x = rows_of(active_row, 1);
    kronsae_status status = KRONSAE_STATUS_OK;
    int32_t position;
    for (position = 0; status == KRONSAE_STATUS_OK && position < 100000000; position++) {
        const kronsae_token_tag tag = tag_of(1, position);
        status = kronsae_tap_submit(tap, &x, &tag, sizeof tag, NULL, NULL);
    }
    if (status == KRONSAE_STATUS_STOPPED) status = kronsae_tap_end_request(tap, 1, NULL);
    kronsae_tap_destroy(tap);
    return status == KRONSAE_STATUS_STOPPED ? NULL : "not stopped";
}

void monitor_destroyed_in_use(const char *tiny) {
    int round, i;
    for (round = 0; round < 10; round++) {
        world w;
        pthread_t threads[3];
        make_world(&w, tiny, NULL, NULL);
        set_rules(w.monitor, rule_text);
        for (i = 0; i < 3; i++) {
            kronsae_tap *tap = NULL;
            CHECK(kronsae_tap_create(w.monitor, w.site, NULL, &tap, NULL) == KRONSAE_STATUS_OK);
            CHECK(pthread_create(&threads[i], NULL, submit_until_stopped, tap) == 0);
        }
        while (status_of(w.monitor).encoded < 100) sleep_ms(1);
        if (round % 2 == 0) CHECK(kronsae_monitor_stop(w.monitor, WAIT, NULL) == KRONSAE_STATUS_OK);
        kronsae_monitor_destroy(w.monitor);
        w.monitor = NULL;
        for (i = 0; i < 3; i++) {
            void *failed = "not joined";
            CHECK(pthread_join(threads[i], &failed) == 0 && failed == NULL);
        }
        end_world(&w);
    }
}

/* Callbacks: where they are called, with what, and what they may not do. */

typedef struct {
    _Atomic(kronsae_monitor *) monitor;
    atomic_int calls, refused, blocked, release;
} listener;

static void listen(void *user_data, const kronsae_event *event) {
    listener *to = user_data;
    kronsae_monitor_status status = KRONSAE_MONITOR_STATUS_INIT;
    kronsae_monitor *m = to->monitor;
    if (event->request == 5 && event->n_latents == 1 && strcmp(event->rule, "zero") == 0) to->calls++;
    /* Calls that would wait for the worker this runs on. */
    to->refused += kronsae_monitor_flush(m, 0, NULL) == KRONSAE_STATUS_INVALID_ARGUMENT;
    to->refused += kronsae_monitor_stop(m, 0, NULL) == KRONSAE_STATUS_INVALID_ARGUMENT;
    to->refused += kronsae_monitor_set_event_callback(m, NULL, NULL, NULL) == KRONSAE_STATUS_INVALID_ARGUMENT;
    to->refused += kronsae_monitor_set_token_text(m, NULL, NULL, NULL) == KRONSAE_STATUS_INVALID_ARGUMENT;
    to->refused += kronsae_monitor_set_rules(m, NULL, 0, NULL) == KRONSAE_STATUS_INVALID_ARGUMENT;
    kronsae_monitor_destroy(m); /* logged, and nothing else */
    to->refused += kronsae_monitor_get_status(m, &status, NULL) == KRONSAE_STATUS_OK && status.submitted > 0;
}

void monitor_callbacks(const char *tiny) {
    world w;
    listener to;
    kronsae_event_batch *batch = NULL;
    memset(&to, 0, sizeof to);
    make_world(&w, tiny, NULL, NULL);
    to.monitor = w.monitor;
    set_rules(w.monitor, rule_text);
    CHECK(kronsae_monitor_set_event_callback(w.monitor, listen, &to, NULL) == KRONSAE_STATUS_OK);
    CHECK(submit_row(w.tap, active_row, 5, 0) == 1 && submit_row(w.tap, active_row, 5, 1) == 1);
    CHECK(kronsae_monitor_flush(w.monitor, WAIT, NULL) == KRONSAE_STATUS_OK);
    CHECK(to.calls == 2 && to.refused == 12);
    CHECK(kronsae_monitor_poll_events(w.monitor, 9, 0, &batch, NULL) == KRONSAE_STATUS_OK);
    CHECK(kronsae_event_batch_count(batch) == 0); /* the callback had them */
    kronsae_event_batch_destroy(batch);

    /* Without it, events can be polled again, and it is not called any more. */
    CHECK(kronsae_monitor_set_event_callback(w.monitor, NULL, NULL, NULL) == KRONSAE_STATUS_OK);
    CHECK(submit_row(w.tap, active_row, 5, 2) == 1);
    CHECK(kronsae_monitor_flush(w.monitor, WAIT, NULL) == KRONSAE_STATUS_OK);
    CHECK(to.calls == 2);
    CHECK(kronsae_monitor_poll_events(w.monitor, 9, 0, &batch, NULL) == KRONSAE_STATUS_OK);
    CHECK(kronsae_event_batch_count(batch) == 1);
    kronsae_event_batch_destroy(batch);
    end_world(&w);
}

static void block(void *user_data, const kronsae_event *event) {
    listener *to = user_data;
    (void)event;
    to->blocked = 1;
    while (!to->release) sleep_ms(1);
    to->calls++;
}

static void *release_soon(void *argument) {
    listener *to = argument;
    sleep_ms(100);
    to->release = 1;
    return NULL;
}

/* A callback that does not come back: submits drop and return, waits run out, and destroy waits for its return. */
void monitor_blocked_callback(const char *tiny) {
    world w;
    listener to;
    kronsae_error *error = NULL;
    kronsae_tap_options tap = KRONSAE_TAP_OPTIONS_INIT;
    kronsae_monitor_status status;
    pthread_t releasing;
    uint64_t accepted = 0;
    int32_t i;
    memset(&to, 0, sizeof to);
    tap.capacity = 16;
    make_world(&w, tiny, NULL, &tap);
    set_rules(w.monitor, rule_text);
    CHECK(kronsae_monitor_set_event_callback(w.monitor, block, &to, NULL) == KRONSAE_STATUS_OK);
    accepted += submit_row(w.tap, active_row, 1, 0);
    while (!to.blocked) sleep_ms(1);
    for (i = 1; i < 1000; i++) accepted += submit_row(w.tap, active_row, 1, i);
    CHECK(accepted < 100);
    REFUSED(kronsae_monitor_flush(w.monitor, 10, &error), KRONSAE_STATUS_TIMEOUT, "");
    status = status_of(w.monitor);
    CHECK(status.submitted == 1000 && status.dropped == 1000 - accepted);
    CHECK(kronsae_tap_end_request(w.tap, 1, NULL) == KRONSAE_STATUS_OK); /* a full queue has room for this */

    CHECK(pthread_create(&releasing, NULL, release_soon, &to) == 0);
    CHECK(kronsae_monitor_set_event_callback(w.monitor, NULL, NULL, NULL) == KRONSAE_STATUS_OK);
    CHECK(to.calls >= 1); /* it had returned when the call above did */
    CHECK(pthread_join(releasing, NULL) == 0);
    CHECK(kronsae_monitor_flush(w.monitor, WAIT, NULL) == KRONSAE_STATUS_OK);
    status = status_of(w.monitor);
    CHECK(status.encoded == accepted && status.queued == 0);

    /* The same with the monitor destroyed. */
    to.blocked = to.release = 0;
    CHECK(kronsae_monitor_set_event_callback(w.monitor, block, &to, NULL) == KRONSAE_STATUS_OK);
    CHECK(submit_row(w.tap, active_row, 2, 0) == 1);
    while (!to.blocked) sleep_ms(1);
    REFUSED(kronsae_monitor_stop(w.monitor, 10, &error), KRONSAE_STATUS_TIMEOUT, "");
    CHECK(pthread_create(&releasing, NULL, release_soon, &to) == 0);
    kronsae_monitor_destroy(w.monitor);
    CHECK(to.release == 1);
    w.monitor = NULL;
    CHECK(pthread_join(releasing, NULL) == 0);
    end_world(&w);
}
