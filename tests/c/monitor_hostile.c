/* Calls to the monitor that must be refused, each with a message that names the culprit; fork and exit. */

#if !defined(_DEFAULT_SOURCE)
#define _DEFAULT_SOURCE /* fork, waitpid, MAP_ANONYMOUS */
#endif

#include "monitor.h"

#include <stdlib.h>
#include <sys/mman.h>
#include <sys/wait.h>
#include <unistd.h>

#define BAD KRONSAE_STATUS_INVALID_ARGUMENT

static void *shifted(void *pointer, size_t bytes) { return (char *)pointer + bytes; }

/* A submit of two rows, one part of which is spoilt. */
typedef struct {
    world w;
    float x[2 * D + 1];
    kronsae_activations in;
    kronsae_token_tag tags[3];
    size_t tag_size, accepted;
} submission;

static void reset(submission *s) {
    memset(s->x, 0, sizeof s->x);
    s->in = rows_of(s->x, 2);
    s->tags[0] = tag_of(1, 0);
    s->tags[1] = tag_of(1, 1);
    s->tag_size = sizeof s->tags[0];
    s->accepted = 77;
}

static void submit_refused(submission *s, const kronsae_token_tag *tags, const char *what, int line) {
    kronsae_error *error = NULL;
    const uint64_t before = status_of(s->w.monitor).submitted;
    const kronsae_status status = kronsae_tap_submit(s->w.tap, &s->in, tags, s->tag_size, &s->accepted, &error);
    check_refused(status, BAD, error, what, __FILE__, line);
    CHECK(s->accepted == 77 && status_of(s->w.monitor).submitted == before); /* nothing was written or counted */
    reset(s);
    CHECK(submit_row(s->w.tap, silent_row, 2, 0) == 1); /* and the tap still works */
}

#define SPOIL(change, what) ((change), submit_refused(s, s->tags, what, __LINE__))

void monitor_arguments(const char *tiny) {
    submission whole, *s = &whole;
    uint64_t zeroes[64] = {0};
    struct {
        kronsae_token_tag known;
        uint64_t later;
    } later[2];
    kronsae_error *error = NULL;
    kronsae_event_batch *batch = NULL;
    kronsae_event event = KRONSAE_EVENT_INIT;
    kronsae_monitor_status status = KRONSAE_MONITOR_STATUS_INIT;
    kronsae_tap *tap = NULL;
    size_t size = 0;
    char text[8];
    memset(s, 0, sizeof *s);
    make_world(&s->w, tiny, NULL, NULL);
    reset(s);

    SPOIL(s->in.struct_size = 4, "kronsae_activations: struct_size is 4");
    SPOIL(s->in.dtype = 0, "dtype is 0");
    SPOIL(s->in.data = NULL, "data is null");
    SPOIL(s->in.d_model = D - 1, "d_model");
    SPOIL(s->in.d_model = 0, "d_model");
    SPOIL(s->in.rows = SIZE_MAX, "overflow");
    SPOIL(s->in.row_stride = SIZE_MAX, "overflow");
    SPOIL(s->tag_size = 0, "tag_size is 0");
    SPOIL(s->tag_size = 20, "tag_size is 20");
    SPOIL(s->tag_size = 28, "tag_size is 28");
    SPOIL(s->tag_size = 1 << 20, "tag_size");
    SPOIL(s->tags[1].flags = 4, "tag 1");
    SPOIL(s->tags[0].reserved = 1, "tag 0");
    submit_refused(s, NULL, "tags is null", __LINE__);
    submit_refused(s, shifted(s->tags, 4), "misaligned", __LINE__);

    /* Tags of a later version: refused where they say more than this one knows, else taken. */
    memset(later, 0, sizeof later);
    later[0].known = tag_of(3, 0);
    later[1].known = tag_of(3, 1);
    later[1].later = 1;
    s->tag_size = sizeof later[0];
    submit_refused(s, &later[0].known, "tag 1 sets a field", __LINE__);
    later[1].later = 0;
    CHECK(kronsae_tap_submit(s->w.tap, &s->in, &later[0].known, sizeof later[0], NULL, NULL) == KRONSAE_STATUS_OK);

    /* No rows, and no place for the count, are no error. */
    s->in = rows_of(NULL, 0);
    CHECK(kronsae_tap_submit(s->w.tap, &s->in, NULL, s->tag_size, &s->accepted, NULL) == KRONSAE_STATUS_OK);
    CHECK(s->accepted == 0);
    reset(s);
    REFUSED(kronsae_tap_submit(s->w.tap, &s->in, s->tags, s->tag_size, shifted(zeroes, 4), &error), BAD, "accepted");
    REFUSED(kronsae_tap_submit(s->w.tap, NULL, s->tags, s->tag_size, NULL, &error), BAD, "kronsae_activations is null");
    REFUSED(kronsae_tap_submit(NULL, &s->in, s->tags, s->tag_size, NULL, &error), BAD, "kronsae_tap is null");
    REFUSED(kronsae_tap_submit((kronsae_tap *)(void *)zeroes, &s->in, s->tags, s->tag_size, NULL, &error), BAD, "not a live");
    REFUSED(kronsae_tap_submit((kronsae_tap *)(void *)s->w.monitor, &s->in, s->tags, s->tag_size, NULL, &error), BAD, "not a live");
    REFUSED(kronsae_tap_end_request(NULL, 1, &error), BAD, "null");
    REFUSED(kronsae_tap_rewind(NULL, 1, 0, &error), BAD, "null");

    REFUSED(kronsae_monitor_create(NULL, NULL, &error), BAD, "out is null");
    REFUSED(kronsae_monitor_get_status(NULL, &status, &error), BAD, "kronsae_monitor is null");
    REFUSED(kronsae_monitor_get_status(s->w.monitor, NULL, &error), BAD, "kronsae_monitor_status is null");
    REFUSED(kronsae_monitor_get_status((kronsae_monitor *)(void *)s->w.sae, &status, &error), BAD, "not a live");
    REFUSED(kronsae_monitor_flush(NULL, 0, &error), BAD, "null");
    REFUSED(kronsae_monitor_stop(NULL, 0, &error), BAD, "null");
    REFUSED(kronsae_monitor_load_rules(s->w.monitor, NULL, &error), BAD, "path is null");
    REFUSED(kronsae_monitor_set_rules(s->w.monitor, NULL, 4, &error), BAD, "toml is null");
    REFUSED(kronsae_monitor_load_labels(s->w.monitor, 0, NULL, &error), BAD, "path is null");
    REFUSED(kronsae_monitor_load_labels(s->w.monitor, 0, "/nonexistent", &error), KRONSAE_STATUS_IO, "/nonexistent");
    REFUSED(kronsae_monitor_replace_sae(s->w.monitor, 0, NULL, &error), BAD, "kronsae_sae is null");
    REFUSED(kronsae_monitor_replace_sae(s->w.monitor, 9, s->w.sae, &error), BAD, "site");
    REFUSED(kronsae_monitor_poll_events(s->w.monitor, 0, 0, &batch, &error), BAD, "most is 0");
    REFUSED(kronsae_monitor_poll_events(s->w.monitor, 1, 0, NULL, &error), BAD, "out is null");
    REFUSED(kronsae_event_batch_get(NULL, 0, &event, &error), BAD, "null");
    CHECK(kronsae_event_batch_count(NULL) == 0);
    REFUSED(kronsae_monitor_metrics(s->w.monitor, 3, text, sizeof text, &size, &error), BAD, "form is 3");
    REFUSED(kronsae_monitor_metrics(s->w.monitor, 1, NULL, 8, &size, &error), BAD, "buffer is null");
    REFUSED(kronsae_monitor_metrics(s->w.monitor, 1, text, sizeof text, NULL, &error), BAD, "size is null");
    REFUSED(kronsae_monitor_snapshot_json(NULL, text, sizeof text, &size, &error), BAD, "null");
    REFUSED(kronsae_monitor_serve(NULL, NULL, NULL, 0, &error), BAD, "null");
    REFUSED(kronsae_tap_create(s->w.monitor, 9, NULL, &tap, &error), BAD, "site");
    REFUSED(kronsae_tap_create(s->w.monitor, 0, NULL, NULL, &error), BAD, "out is null");
    REFUSED(kronsae_recorder_start(s->w.monitor, 0, NULL, NULL, &error), BAD, "out is null");
    kronsae_monitor_destroy(NULL);
    kronsae_tap_destroy(NULL);
    kronsae_recorder_destroy(NULL);
    kronsae_event_batch_destroy(NULL);
    kronsae_monitor_destroy((kronsae_monitor *)(void *)s->w.tap);
    kronsae_tap_destroy((kronsae_tap *)(void *)zeroes);
    CHECK(submit_row(s->w.tap, active_row, 1, 0) == 1);
    end_world(&s->w);
}

/* Options that make no sense, one at a time. */

static void options_refused(kronsae_monitor_options options, const char *what, int line) {
    kronsae_monitor *monitor = (kronsae_monitor *)(void *)&options;
    kronsae_error *error = NULL;
    const kronsae_status status = kronsae_monitor_create(&options, &monitor, &error);
    check_refused(status, BAD, error, what, __FILE__, line);
    CHECK(monitor == NULL);
}

static void site_refused(const world *w, kronsae_site_options options, const char *what, int line) {
    uint32_t site = 77;
    kronsae_error *error = NULL;
    const kronsae_status status = kronsae_monitor_add_site(w->monitor, &options, w->sae, &site, &error);
    check_refused(status, BAD, error, what, __FILE__, line);
    CHECK(site == 77);
}

static void tap_refused(const world *w, kronsae_tap_options options, const char *what, int line) {
    kronsae_tap *tap = w->tap;
    kronsae_error *error = NULL;
    const kronsae_status status = kronsae_tap_create(w->monitor, w->site, &options, &tap, &error);
    check_refused(status, BAD, error, what, __FILE__, line);
    CHECK(tap == NULL);
}

#define MONITOR(change, what)                                                         \
    do {                                                                              \
        kronsae_monitor_options o = KRONSAE_MONITOR_OPTIONS_INIT;                     \
        (change);                                                                     \
        options_refused(o, what, __LINE__);                                           \
    } while (0)
#define SITE(change, what)                                                            \
    do {                                                                              \
        kronsae_site_options o = KRONSAE_SITE_OPTIONS_INIT;                           \
        o.name = "another";                                                           \
        (change);                                                                     \
        site_refused(&w, o, what, __LINE__);                                          \
    } while (0)
#define TAP(change, what)                                                             \
    do {                                                                              \
        kronsae_tap_options o = KRONSAE_TAP_OPTIONS_INIT;                             \
        (change);                                                                     \
        tap_refused(&w, o, what, __LINE__);                                           \
    } while (0)

void monitor_options(const char *tiny) {
    world w;
    const uint32_t latents[2] = {3, 8}, cpus[1] = {100000};
    kronsae_site_options site = KRONSAE_SITE_OPTIONS_INIT;
    uint32_t number = 0;
    make_world(&w, tiny, NULL, NULL);
    MONITOR(o.struct_size = 3, "struct_size is 3");
    MONITOR(o.flags = 2, "flags is 0x2");
    MONITOR(o.reserved = 1, "reserved is 1");
    MONITOR(o.workers = 100000, "workers");
    MONITOR(o.encoder_threads = 100000, "threads");
    MONITOR(o.cpu_share = -0.5f, "cpu_share");
    MONITOR(o.cpu_share = 1.5f, "cpu_share");
    MONITOR(o.least_tokens_per_second = -1.0f, "least_tokens_per_second");
    MONITOR(o.half_life_tokens = -1.0, "half_life_tokens");
    MONITOR(o.nice = 40, "nice");
    MONITOR(o.n_cpus = 1, "cpus is null");
    MONITOR((o.n_cpus = 1, o.cpus = cpus), "100000");

    SITE(o.struct_size = 3, "struct_size is 3");
    SITE(o.name = NULL, "name is null");
    SITE(o.name = "", "name");
    SITE(o.name = "s", "s");
    SITE(o.name = "\xFF", "UTF-8");
    SITE(o.flags = 8, "flags is 0x8");
    SITE(o.layer = 15, "KRONSAE_SITE_HAS_LAYER");
    SITE((o.layer = 14, o.flags = KRONSAE_SITE_HAS_LAYER), "15");
    SITE(o.d_model = 9, "9");
    SITE(o.n_watch = 1, "watch is null");
    SITE((o.n_watch = 2, o.watch = latents), "8");
    SITE(o.reserved = 1, "reserved is 1");
    site.name = "the right layer";
    site.layer = 15;
    site.flags = KRONSAE_SITE_HAS_LAYER;
    CHECK(kronsae_monitor_add_site(w.monitor, &site, w.sae, &number, NULL) == KRONSAE_STATUS_OK && number == 1);
    site.name = "another layer all the same";
    site.layer = 14;
    site.flags |= KRONSAE_SITE_ANY_LAYER;
    site.watch = latents;
    site.n_watch = 1;
    CHECK(kronsae_monitor_add_site(w.monitor, &site, w.sae, &number, NULL) == KRONSAE_STATUS_OK && number == 2);

    TAP(o.struct_size = 3, "struct_size is 3");
    TAP(o.sampling = 4, "sampling is 4");
    TAP(o.sampling = -1, "sampling is -1");
    TAP(o.sampling = KRONSAE_SAMPLING_EVERY_NTH, "nth is 0");
    TAP(o.nth = 2, "nth is 2");
    TAP(o.dtype = 4, "dtype is 4");
    end_world(&w);
}

/* What a child process makes for itself. Not under ThreadSanitizer, which cannot have threads in a child. */
static void own_monitor(const char *tiny) {
#if !defined(__SANITIZE_THREAD__)
    world own;
    make_world(&own, tiny, NULL, NULL);
    CHECK(submit_row(own.tap, active_row, 1, 0) == 1);
    CHECK(kronsae_monitor_flush(own.monitor, WAIT, NULL) == KRONSAE_STATUS_OK && status_of(own.monitor).encoded == 1);
    end_world(&own);
#else
    (void)tiny;
#endif
}

/* Whether a child ended with this status. Under valgrind it ends with one of its own for what it lost: what threads of the
 * parent owned, which do not exist in a child, can be freed by nobody, and the library leaves it. */
static int ended(pid_t child, int expected) {
    const char *valgrind = getenv("KRONSAE_TEST_LOST_IN_CHILD");
    int status = -1;
    if (waitpid(child, &status, 0) != child || !WIFEXITED(status)) return 0;
    return WEXITSTATUS(status) == expected || (valgrind != NULL && WEXITSTATUS(status) == atoi(valgrind));
}

/* In a child process: monitor and tap say so, can be destroyed, and a new one works. The parent has not noticed. */
void monitor_fork(const char *tiny) {
    world w;
    kronsae_error *error = NULL;
    kronsae_event_batch *batch = NULL;
    const kronsae_activations x = rows_of(active_row, 1);
    const kronsae_token_tag tag = tag_of(1, 0);
    pid_t child;
    unsigned *failed = mmap(NULL, sizeof *failed, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    CHECK(failed != MAP_FAILED);
    if (failed == MAP_FAILED) return;
    *failed = 99;
    make_world(&w, tiny, NULL, NULL);
    set_rules(w.monitor, rule_text);
    CHECK(submit_row(w.tap, active_row, 1, 0) == 1);
    CHECK(kronsae_monitor_flush(w.monitor, WAIT, NULL) == KRONSAE_STATUS_OK);
    fflush(NULL);
    child = fork();
    CHECK(child >= 0);
    if (child == 0) {
        unsigned before = checks_failed;
        kronsae_monitor_status told = KRONSAE_MONITOR_STATUS_INIT;
        REFUSED(kronsae_tap_submit(w.tap, &x, &tag, sizeof tag, NULL, &error), KRONSAE_STATUS_FORKED, "fork");
        REFUSED(kronsae_tap_end_request(w.tap, 1, &error), KRONSAE_STATUS_FORKED, "fork");
        REFUSED(kronsae_tap_rewind(w.tap, 1, 0, &error), KRONSAE_STATUS_FORKED, "fork");
        REFUSED(kronsae_monitor_flush(w.monitor, WAIT, &error), KRONSAE_STATUS_FORKED, "fork");
        REFUSED(kronsae_monitor_stop(w.monitor, WAIT, &error), KRONSAE_STATUS_FORKED, "fork");
        REFUSED(kronsae_monitor_get_status(w.monitor, &told, &error), KRONSAE_STATUS_FORKED, "fork");
        REFUSED(kronsae_monitor_poll_events(w.monitor, 1, WAIT, &batch, &error), KRONSAE_STATUS_FORKED, "fork");
        REFUSED(kronsae_monitor_set_event_callback(w.monitor, NULL, NULL, &error), KRONSAE_STATUS_FORKED, "fork");
        kronsae_tap_destroy(w.tap);
        kronsae_monitor_destroy(w.monitor);
        kronsae_sae_destroy(w.sae);
        own_monitor(tiny);
        fflush(NULL);
        *failed = checks_failed - before; /* the parent's to read */
        _exit(0);
    }
    CHECK(ended(child, 0) && *failed == 0);
    munmap(failed, sizeof *failed);
    CHECK(submit_row(w.tap, active_row, 1, 1) == 1);
    CHECK(kronsae_monitor_flush(w.monitor, WAIT, NULL) == KRONSAE_STATUS_OK && status_of(w.monitor).encoded == 2);
    end_world(&w);
}

static void ignore(void *user_data, const kronsae_event *event) {
    (void)user_data;
    (void)event;
}

/* A program that exits with tokens in the queue: it ends, and cleanly. */
void monitor_exit(const char *tiny) {
    static world w; /* static: what is reachable from it at exit is not lost */
    pid_t child;
    fflush(NULL);
    child = fork();
    CHECK(child >= 0);
    if (child == 0) {
        const unsigned before = checks_failed;
        int i;
        make_world(&w, tiny, NULL, NULL);
        set_rules(w.monitor, rule_text);
        CHECK(kronsae_monitor_set_event_callback(w.monitor, ignore, NULL, NULL) == KRONSAE_STATUS_OK);
        for (i = 0; i < 500; i++) submit_row(w.tap, active_row, 1, i);
        exit(checks_failed == before ? 0 : 3);
    }
    CHECK(ended(child, 0));
}
