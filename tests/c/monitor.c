/* The monitor as a C program uses it: monitor TINY THRESHOLD RANDOM, the three files of examples/make_model.rs. */

#if !defined(_POSIX_C_SOURCE)
#define _POSIX_C_SOURCE 200809L /* mkdtemp */
#endif

#include "monitor.h"
#include "json.h"

#include <dirent.h>
#include <math.h>
#include <pthread.h>
#include <stdlib.h>
#include <sys/stat.h>
#include <unistd.h>

unsigned checks_made = 0;
unsigned checks_failed = 0;

const float active_row[D] = {4, 1, 9, 0, 1, 0, 1, 16};
const float silent_row[D] = {-1, -2, -3, -4, -5, -6, -7, -8};
const char rule_text[] = "[[rule]]\nname = \"zero\"\nseverity = \"warning\"\nwhen = { latent = 0, above = 5.0 }\n";

void make_world(world *w, const char *path, const kronsae_monitor_options *monitor, const kronsae_tap_options *tap) {
    kronsae_site_options site = KRONSAE_SITE_OPTIONS_INIT;
    memset(w, 0, sizeof *w);
    site.name = "s";
    CHECK(kronsae_sae_open(path, NULL, &w->sae, NULL) == KRONSAE_STATUS_OK);
    CHECK(kronsae_monitor_create(monitor, &w->monitor, NULL) == KRONSAE_STATUS_OK);
    CHECK(kronsae_monitor_add_site(w->monitor, &site, w->sae, &w->site, NULL) == KRONSAE_STATUS_OK);
    CHECK(kronsae_tap_create(w->monitor, w->site, tap, &w->tap, NULL) == KRONSAE_STATUS_OK);
}

void end_world(world *w) {
    kronsae_tap_destroy(w->tap);
    kronsae_monitor_destroy(w->monitor);
    kronsae_sae_destroy(w->sae);
}

kronsae_activations rows_of(const float *data, size_t rows) {
    kronsae_activations x = KRONSAE_ACTIVATIONS_INIT;
    x.dtype = KRONSAE_DTYPE_F32;
    x.data = data;
    x.rows = rows;
    x.d_model = D;
    return x;
}

kronsae_token_tag tag_of(uint64_t request, int32_t position) {
    kronsae_token_tag tag = {0, 0, 0, 0, 0};
    tag.request = request;
    tag.position = position;
    tag.token = 100 + position;
    return tag;
}

size_t submit_row(kronsae_tap *tap, const float *row, uint64_t request, int32_t position) {
    const kronsae_activations x = rows_of(row, 1);
    const kronsae_token_tag tag = tag_of(request, position);
    size_t accepted = 99;
    CHECK(kronsae_tap_submit(tap, &x, &tag, sizeof tag, &accepted, NULL) == KRONSAE_STATUS_OK && accepted <= 1);
    return accepted;
}

int next_event(const kronsae_monitor *monitor, kronsae_event *event, kronsae_event_batch **batch) {
    const kronsae_event start = KRONSAE_EVENT_INIT;
    *event = start;
    CHECK(kronsae_monitor_poll_events(monitor, 1, WAIT, batch, NULL) == KRONSAE_STATUS_OK);
    if (kronsae_event_batch_count(*batch) != 1) return 0;
    CHECK(kronsae_event_batch_get(*batch, 0, event, NULL) == KRONSAE_STATUS_OK);
    return 1;
}

kronsae_monitor_status status_of(const kronsae_monitor *monitor) {
    kronsae_monitor_status status = KRONSAE_MONITOR_STATUS_INIT;
    CHECK(kronsae_monitor_get_status(monitor, &status, NULL) == KRONSAE_STATUS_OK);
    return status;
}

void set_rules(const kronsae_monitor *monitor, const char *toml) {
    CHECK(kronsae_monitor_set_rules(monitor, toml, strlen(toml), NULL) == KRONSAE_STATUS_OK);
}

/* Threads that submit what is too much for their queues: every token is accounted for. */

typedef struct {
    kronsae_tap *tap;
    uint64_t request, rows, accepted, not_finite, failures;
} producer;

static void *produce(void *argument) {
    producer *p = argument;
    float x[7 * D];
    kronsae_token_tag tags[7];
    int32_t position = 0;
    int batch;
    size_t i;
    for (i = 0; i < 7; i++) memcpy(x + i * D, i % 2 ? silent_row : active_row, sizeof active_row);
    for (batch = 0; batch < 2000; batch++) {
        const size_t rows = (size_t)(batch % 8);
        const kronsae_activations in = rows_of(x, rows);
        size_t accepted = 99;
        x[3] = batch % 16 == 1 ? NAN : 0.0f; /* the only row of every sixteenth batch */
        for (i = 0; i < rows; i++) tags[i] = tag_of(p->request, position++);
        p->failures += kronsae_tap_submit(p->tap, &in, tags, sizeof tags[0], &accepted, NULL) != KRONSAE_STATUS_OK;
        p->failures += accepted > rows;
        p->rows += rows;
        p->accepted += accepted;
        if (batch % 100 == 99) {
            p->failures += kronsae_tap_end_request(p->tap, p->request, NULL) != KRONSAE_STATUS_OK;
            p->request += 10;
            position = 0;
        }
    }
    return NULL;
}

static void accounting(const char *tiny) {
    enum { THREADS = 4 };
    world w;
    producer producers[THREADS];
    pthread_t threads[THREADS];
    kronsae_monitor_options options = KRONSAE_MONITOR_OPTIONS_INIT;
    kronsae_tap_options tap = KRONSAE_TAP_OPTIONS_INIT;
    kronsae_monitor_status status;
    uint64_t rows = 0, accepted = 0;
    size_t i;
    options.workers = 2;
    tap.capacity = 32;
    make_world(&w, tiny, &options, &tap);
    for (i = 0; i < THREADS; i++) {
        memset(&producers[i], 0, sizeof producers[i]);
        producers[i].request = i;
        tap.sampling = i == 1 ? KRONSAE_SAMPLING_EVERY_NTH : 0;
        tap.nth = i == 1 ? 3 : 0;
        CHECK(kronsae_tap_create(w.monitor, w.site, &tap, &producers[i].tap, NULL) == KRONSAE_STATUS_OK);
        CHECK(pthread_create(&threads[i], NULL, produce, &producers[i]) == 0);
    }
    for (i = 0; i < THREADS; i++) {
        CHECK(pthread_join(threads[i], NULL) == 0);
        CHECK(producers[i].failures == 0);
        rows += producers[i].rows;
        accepted += producers[i].accepted;
    }
    CHECK(kronsae_monitor_flush(w.monitor, WAIT, NULL) == KRONSAE_STATUS_OK);
    status = status_of(w.monitor);
    CHECK(status.state == KRONSAE_MONITOR_STATE_RUNNING && status.queued == 0);
    CHECK(status.submitted == rows && rows == 4 * 250 * 28);
    CHECK(status.submitted == status.encoded + status.sampled_out + status.dropped + status.not_finite);
    CHECK(status.submitted == accepted + status.dropped + status.sampled_out);
    CHECK(status.encoded > 0 && status.sampled_out > 0 && status.not_finite > 0);
    CHECK(status.memory > 0 && status.cpu_seconds > 0 && status.uptime > 0);
    for (i = 0; i < THREADS; i++) kronsae_tap_destroy(producers[i].tap);
    CHECK(kronsae_monitor_stop(w.monitor, WAIT, NULL) == KRONSAE_STATUS_OK);
    CHECK(status_of(w.monitor).submitted == rows && status_of(w.monitor).state == KRONSAE_MONITOR_STATE_STOPPED);
    end_world(&w);
}

static void events(const char *tiny) {
    world w;
    kronsae_event event;
    kronsae_event_batch *batch = NULL;
    kronsae_error *error = NULL;
    uint64_t first;
    make_world(&w, tiny, NULL, NULL);
    set_rules(w.monitor, rule_text);
    CHECK(submit_row(w.tap, silent_row, 7, 0) == 1 && submit_row(w.tap, active_row, 7, 1) == 1);
    CHECK(next_event(w.monitor, &event, &batch));
    CHECK(event.struct_size == sizeof event && event.kind == KRONSAE_EVENT_MATCHED && event.id == 1);
    CHECK(event.severity == KRONSAE_SEVERITY_WARNING && event.gap == 0 && event.retracts == 0);
    CHECK(event.request == 7 && event.position == 1 && event.token == 101 && event.unix_nanos > 0);
    CHECK(strcmp(event.site, "s") == 0 && strcmp(event.rule, "zero") == 0 && strlen(event.model) == 16);
    CHECK(event.n_latents == 1 && event.latents[0].latent == 0 && event.latents[0].value == 6.0f);
    REFUSED(kronsae_event_batch_get(batch, 1, &event, &error), KRONSAE_STATUS_INVALID_ARGUMENT, "index is 1");
    first = event.id;
    kronsae_event_batch_destroy(batch);

    /* The token is taken back, and with it the event. */
    CHECK(kronsae_tap_rewind(w.tap, 7, 1, NULL) == KRONSAE_STATUS_OK);
    CHECK(next_event(w.monitor, &event, &batch));
    CHECK(event.kind == KRONSAE_EVENT_RETRACTED && event.retracts == first && event.id == 2 && event.request == 7);
    kronsae_event_batch_destroy(batch);
    CHECK(kronsae_tap_end_request(w.tap, 7, NULL) == KRONSAE_STATUS_OK);
    CHECK(kronsae_monitor_flush(w.monitor, WAIT, NULL) == KRONSAE_STATUS_OK);

    /* Nothing more: an empty batch, at once. */
    CHECK(kronsae_monitor_poll_events(w.monitor, 10, 0, &batch, NULL) == KRONSAE_STATUS_OK);
    CHECK(batch != NULL && kronsae_event_batch_count(batch) == 0);
    kronsae_event_batch_destroy(batch);

    /* A batch outlives its monitor. */
    CHECK(submit_row(w.tap, active_row, 8, 0) == 1);
    CHECK(next_event(w.monitor, &event, &batch));
    end_world(&w);
    CHECK(event.request == 8 && strcmp(event.rule, "zero") == 0);
    kronsae_event_batch_destroy(batch);
}

static void write_file(const char *path, const char *text) {
    FILE *file = fopen(path, "w");
    CHECK(file != NULL);
    if (file == NULL) return;
    CHECK(fputs(text, file) >= 0);
    CHECK(fclose(file) == 0);
}

static void rules(const char *tiny, const char *folder) {
    world w;
    kronsae_event event;
    kronsae_event_batch *batch = NULL;
    kronsae_error *error = NULL;
    char path[512];
    make_world(&w, tiny, NULL, NULL);
    snprintf(path, sizeof path, "%s/rules.toml", folder);
    write_file(path, rule_text);
    CHECK(kronsae_monitor_load_rules(w.monitor, path, NULL) == KRONSAE_STATUS_OK);

    /* Whatever is wrong with the next ones, those stay. */
    write_file(path, "[[rule]]\nname = \"broken");
    REFUSED(kronsae_monitor_load_rules(w.monitor, path, &error), KRONSAE_STATUS_FORMAT, "rules.toml");
    unlink(path);
    REFUSED(kronsae_monitor_load_rules(w.monitor, path, &error), KRONSAE_STATUS_IO, "rules.toml");
#define BAD_RULES(text, status, what) REFUSED(kronsae_monitor_set_rules(w.monitor, text, sizeof text - 1, &error), status, what)
    BAD_RULES("[[rule]]\nname = \"a\"\n", KRONSAE_STATUS_FORMAT, "when");
    BAD_RULES("\xFF\xFE", KRONSAE_STATUS_FORMAT, "UTF-8");
    BAD_RULES("[[rule]]\nname = \"far\"\nwhen = { latent = 8, above = 1.0 }\n", KRONSAE_STATUS_INVALID_ARGUMENT, "far");
    BAD_RULES("[[rule]]\nname = \"w\"\nwhen = { latent = 0, above = 1.0 }\nwindow = { at_least = 9, of_last = 3 }\n",
              KRONSAE_STATUS_FORMAT, "w");
    BAD_RULES("[[rule]]\nname = \"q\"\nwhen = { latent = 0, above_quantile = 0.9 }\n", KRONSAE_STATUS_INVALID_ARGUMENT, "q");
#undef BAD_RULES
    CHECK(submit_row(w.tap, active_row, 1, 0) == 1);
    CHECK(next_event(w.monitor, &event, &batch) && strcmp(event.rule, "zero") == 0);
    kronsae_event_batch_destroy(batch);

    /* No text is no rules. */
    CHECK(kronsae_monitor_set_rules(w.monitor, NULL, 0, NULL) == KRONSAE_STATUS_OK);
    CHECK(submit_row(w.tap, active_row, 1, 1) == 1);
    CHECK(kronsae_monitor_flush(w.monitor, WAIT, NULL) == KRONSAE_STATUS_OK && status_of(w.monitor).events == 1);
    end_world(&w);
}

typedef kronsae_status (*text_call)(const kronsae_monitor *, char *, size_t, size_t *);

static kronsae_status prometheus(const kronsae_monitor *m, char *buffer, size_t capacity, size_t *size) {
    return kronsae_monitor_metrics(m, 0, buffer, capacity, size, NULL);
}
static kronsae_status openmetrics(const kronsae_monitor *m, char *buffer, size_t capacity, size_t *size) {
    return kronsae_monitor_metrics(m, KRONSAE_METRICS_OPENMETRICS, buffer, capacity, size, NULL);
}
static kronsae_status snapshot(const kronsae_monitor *m, char *buffer, size_t capacity, size_t *size) {
    return kronsae_monitor_snapshot_json(m, buffer, capacity, size, NULL);
}

/* The text, to be freed: asked for its size first, then with too little room, then with enough. */
static char *text_of(const kronsae_monitor *monitor, text_call call) {
    size_t size = 0, written = 0, capacity;
    char small[16];
    char *text;
    CHECK(call(monitor, NULL, 0, &size) == KRONSAE_STATUS_OK && size > sizeof small);
    memset(small, 'x', sizeof small);
    CHECK(call(monitor, small, sizeof small, &written) == KRONSAE_STATUS_OK && written >= sizeof small);
    CHECK(small[0] == '\0' && small[1] == 'x'); /* not a torn text */
    capacity = size + size / 2;
    text = malloc(capacity);
    CHECK(text != NULL);
    if (text == NULL) abort();
    CHECK(call(monitor, text, capacity, &written) == KRONSAE_STATUS_OK && written < capacity);
    CHECK(strlen(text) == written);
    return text;
}

static void outputs(const char *tiny, const char *folder) {
    world w;
    kronsae_error *error = NULL;
    char path[512];
    char *text;
    make_world(&w, tiny, NULL, NULL);
    set_rules(w.monitor, rule_text);
    snprintf(path, sizeof path, "%s/labels.tsv", folder);
    write_file(path, "0\ta \"quoted\" label\n5\tfive\n");
    CHECK(kronsae_monitor_load_labels(w.monitor, w.site, path, NULL) == KRONSAE_STATUS_OK);
    REFUSED(kronsae_monitor_load_labels(w.monitor, 9, path, &error), KRONSAE_STATUS_INVALID_ARGUMENT, "site 9");
    unlink(path);
    CHECK(submit_row(w.tap, active_row, 1, 0) == 1);
    CHECK(kronsae_monitor_flush(w.monitor, WAIT, NULL) == KRONSAE_STATUS_OK);

    text = text_of(w.monitor, prometheus);
    CHECK(strstr(text, "# TYPE kronsae_") != NULL && strstr(text, "site=\"s\"") != NULL);
    CHECK(strstr(text, "rule=\"zero\"") != NULL && strstr(text, "# EOF") == NULL);
    free(text);
    text = text_of(w.monitor, openmetrics);
    CHECK(strlen(text) > 6 && strcmp(text + strlen(text) - 6, "# EOF\n") == 0);
    free(text);
    text = text_of(w.monitor, snapshot);
    CHECK(is_json(text) && strstr(text, "\"encoded\":1") != NULL && strstr(text, "\"site\":\"s\"") != NULL);
    free(text);
    end_world(&w);
}

static void encode(const char *tiny) {
    world w;
    float x[2 * D];
    uint32_t counts[2] = {9, 9}, indices[2 * 3];
    float values[2 * 3];
    kronsae_token_tag tags[2];
    kronsae_activations in;
    kronsae_latents out = KRONSAE_LATENTS_INIT;
    kronsae_event event;
    kronsae_event_batch *batch = NULL;
    kronsae_error *error = NULL;
    memcpy(x, active_row, sizeof active_row);
    memcpy(x + D, silent_row, sizeof silent_row);
    in = rows_of(x, 2);
    tags[0] = tag_of(3, 0);
    tags[1] = tag_of(3, 1);
    out.rows = 2;
    out.capacity = 3;
    out.counts = counts;
    out.indices = indices;
    out.values = values;
    make_world(&w, tiny, NULL, NULL);
    set_rules(w.monitor, rule_text);
    CHECK(kronsae_tap_encode(w.tap, &in, tags, sizeof tags[0], &out, NULL) == KRONSAE_STATUS_OK);
    CHECK(counts[0] == 3 && indices[0] == 0 && values[0] == 6.0f && indices[1] == 5 && counts[1] == 0);
    CHECK(out.skipped_rows == 0 && out.truncated_rows == 0);
    CHECK(next_event(w.monitor, &event, &batch) && event.request == 3 && event.position == 0);
    kronsae_event_batch_destroy(batch);
    REFUSED(kronsae_tap_encode(w.tap, &in, NULL, sizeof tags[0], &out, &error), KRONSAE_STATUS_INVALID_ARGUMENT, "tags");
    CHECK(kronsae_monitor_stop(w.monitor, WAIT, NULL) == KRONSAE_STATUS_OK);
    REFUSED(kronsae_tap_encode(w.tap, &in, tags, sizeof tags[0], &out, &error), KRONSAE_STATUS_STOPPED, "");
    end_world(&w);
}

/* Text of 100 bytes, longer than the first buffer; token 110 asks for more than it had asked for, token 111 has none. */
static size_t long_text(void *user_data, int32_t token, char *buffer, size_t capacity) {
    size_t i;
    ++*(unsigned *)user_data;
    if (token == 111) return 0;
    for (i = 0; i < capacity && i < 100; i++) buffer[i] = (char)('A' + token % 26);
    return token == 110 ? capacity + 1 : 100;
}

/* Whether the file has `count` bytes `byte` one after the other, and no more. */
static int has_run(const char *path, int byte, unsigned count) {
    unsigned run = 0;
    int found = 0, next;
    FILE *file = fopen(path, "rb");
    CHECK(file != NULL);
    if (file == NULL) return 0;
    do {
        next = fgetc(file);
        if (next != byte) found |= run == count;
        run = next == byte ? run + 1 : 0;
    } while (next != EOF);
    fclose(file);
    return found;
}

/* A site without a model, recorded: one finished shard that its owner alone can read. */
static void record(const char *folder) {
    kronsae_monitor *monitor = NULL;
    kronsae_tap *tap = NULL;
    kronsae_recorder *recorder = NULL, *second = NULL;
    kronsae_error *error = NULL;
    kronsae_site_options site = KRONSAE_SITE_OPTIONS_INIT;
    kronsae_recorder_options options = KRONSAE_RECORDER_OPTIONS_INIT;
    kronsae_recorder_status status = KRONSAE_RECORDER_STATUS_INIT;
    char path[256], file[1024] = "";
    struct dirent *entry;
    struct stat found;
    DIR *shards;
    uint32_t number = 99;
    unsigned texts = 0; /* one worker */
    int i, files = 0;
    snprintf(path, sizeof path, "%s/shards", folder);
    site.name = "recorded";
    CHECK(kronsae_monitor_create(NULL, &monitor, NULL) == KRONSAE_STATUS_OK);
    REFUSED(kronsae_monitor_add_site(monitor, &site, NULL, &number, &error), KRONSAE_STATUS_INVALID_ARGUMENT, "d_model");
    site.d_model = D;
    CHECK(kronsae_monitor_add_site(monitor, &site, NULL, &number, NULL) == KRONSAE_STATUS_OK && number == 0);
    CHECK(kronsae_tap_create(monitor, number, NULL, &tap, NULL) == KRONSAE_STATUS_OK);
    REFUSED(kronsae_recorder_start(monitor, number, &options, &recorder, &error), KRONSAE_STATUS_INVALID_ARGUMENT, "folder");
    CHECK(recorder == NULL);
    CHECK(kronsae_monitor_set_token_text(monitor, long_text, &texts, NULL) == KRONSAE_STATUS_OK);
    options.folder = path;
    options.dtype = KRONSAE_DTYPE_F32;
    options.flags = KRONSAE_RECORD_TOKEN_IDS | KRONSAE_RECORD_TEXT | KRONSAE_RECORD_POSITION_0;
    options.model = "a test";
    options.hook = "none";
    CHECK(kronsae_recorder_start(monitor, number, &options, &recorder, NULL) == KRONSAE_STATUS_OK);
    REFUSED(kronsae_recorder_start(monitor, number, &options, &second, &error), KRONSAE_STATUS_INVALID_ARGUMENT, "record");
    for (i = 0; i < 20; i++) CHECK(submit_row(tap, active_row, 1, i) == 1);
    CHECK(kronsae_monitor_flush(monitor, WAIT, NULL) == KRONSAE_STATUS_OK);
    CHECK(kronsae_recorder_get_status(recorder, &status, NULL) == KRONSAE_STATUS_OK);
    CHECK(status.recording == 1 && status.failures == 0);
    CHECK(kronsae_monitor_stop(monitor, WAIT, NULL) == KRONSAE_STATUS_OK);
    CHECK(kronsae_recorder_get_status(recorder, &status, NULL) == KRONSAE_STATUS_OK);
    CHECK(status.recording == 0 && status.written == 20 && status.failures == 0);
    kronsae_monitor_destroy(monitor);
    REFUSED(kronsae_recorder_get_status(recorder, &status, &error), KRONSAE_STATUS_STOPPED, "destroyed");
    kronsae_recorder_destroy(recorder);
    kronsae_tap_destroy(tap);
    shards = opendir(path);
    CHECK(shards != NULL);
    while (shards != NULL && (entry = readdir(shards)) != NULL) {
        if (entry->d_name[0] == '.') continue;
        files++;
        snprintf(file, sizeof file, "%s/%s", path, entry->d_name);
        CHECK(strstr(file, ".safetensors") != NULL);
        CHECK(stat(file, &found) == 0 && (found.st_mode & 0777) == 0600 && found.st_size > 20 * D * 4);
        CHECK(has_run(file, 'A' + 105 % 26, 100) && has_run(file, 'A' + 119 % 26, 100));
        unlink(file);
    }
    CHECK(texts == 2 * 20 - 1);
    if (shards != NULL) closedir(shards);
    CHECK(files == 1);
    CHECK(rmdir(path) == 0);
}

/* The page needs the cargo feature `live`, which libraries may be built without; the function is always there. */
static void serve(const char *tiny) {
    world w;
    char bound[KRONSAE_ADDRESS_CAPACITY] = "x";
    kronsae_serve_options options = KRONSAE_SERVE_OPTIONS_INIT;
    kronsae_error *error = NULL;
    kronsae_status status;
    make_world(&w, tiny, NULL, NULL);
    options.address = "127.0.0.1:0";
    status = kronsae_monitor_serve(w.monitor, &options, bound, sizeof bound, &error);
    CHECK(status == KRONSAE_STATUS_OK || status == KRONSAE_STATUS_UNSUPPORTED);
    if (status == KRONSAE_STATUS_OK) {
        CHECK(strncmp(bound, "127.0.0.1:", 10) == 0 && strcmp(bound, options.address) != 0);
        REFUSED(kronsae_monitor_serve(w.monitor, &options, NULL, 0, &error), KRONSAE_STATUS_INVALID_ARGUMENT, bound);
    } else {
        check_refused(status, KRONSAE_STATUS_UNSUPPORTED, error, "live", __FILE__, __LINE__);
        CHECK(bound[0] == 'x');
    }
    error = NULL;
    REFUSED(kronsae_monitor_serve(w.monitor, &options, bound, 8, &error), KRONSAE_STATUS_INVALID_ARGUMENT, "bound");
    end_world(&w);
}

int main(int argc, char **argv) {
    char folder[] = "/tmp/kronsae-monitor-XXXXXX";
    if (argc != 4 || mkdtemp(folder) == NULL) {
        fprintf(stderr, "usage: monitor TINY THRESHOLD RANDOM, with room in /tmp\n");
        return 2;
    }
    accounting(argv[1]);
    events(argv[1]);
    rules(argv[1], folder);
    outputs(argv[1], folder);
    encode(argv[1]);
    record(folder);
    serve(argv[1]);
    monitor_arguments(argv[1]);
    monitor_options(argv[1]);
    monitor_orders(argv[1]);
    monitor_destroyed_in_use(argv[1]);
    monitor_callbacks(argv[1]);
    monitor_blocked_callback(argv[1]);
    monitor_fork(argv[1]);
    monitor_exit(argv[1]);
    CHECK(rmdir(folder) == 0);
    return FINISH();
}
