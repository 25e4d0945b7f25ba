/* A server in small: serving threads submit what their model computes, one thread reports what rules find.
 *
 *     monitor MODEL [RULES]
 *
 * MODEL is a model file, RULES a TOML file; without one, there is one rule, on latent 0. Activations are made up. Link it
 * with -lkronsae -pthread. */

#include <kronsae.h>

#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { SERVING_THREADS = 2, REQUESTS = 8, PROMPT = 12, GENERATED = 50 };

/* Prints and frees an error. */
static int fail(kronsae_error *error) {
    fprintf(stderr, "monitor: %s\n", kronsae_error_message(error));
    kronsae_error_destroy(error);
    return 1;
}

/* What the residual stream of a real model would be. */
static void compute(float *row, size_t d_model, uint64_t request, int32_t position) {
    uint32_t state = (uint32_t)request * 2654435761u + (uint32_t)position * 40503u + 1;
    size_t i;
    for (i = 0; i < d_model; i++) {
        state = state * 1664525u + 1013904223u;
        row[i] = (float)(state >> 8) / 8388608.0f - 1.0f;
    }
}

typedef struct {
    kronsae_tap *tap;
    size_t d_model;
    uint64_t first_request;
    int failed;
} server;

/* One serving thread. Of the monitor it calls nothing but its tap, which never makes it wait. */
static void *serve(void *argument) {
    server *self = argument;
    float *rows = malloc(PROMPT * self->d_model * sizeof *rows);
    kronsae_token_tag tags[PROMPT];
    kronsae_activations x = KRONSAE_ACTIVATIONS_INIT;
    uint64_t request;
    self->failed = rows == NULL;
    x.dtype = KRONSAE_DTYPE_F32;
    x.data = rows;
    x.d_model = self->d_model;
    for (request = self->first_request; !self->failed && request < self->first_request + REQUESTS; request++) {
        int32_t position = 0;
        while (!self->failed && position < PROMPT + GENERATED) {
            size_t i;
            x.rows = position == 0 ? PROMPT : 1; /* the prompt in one batch, then token by token */
            memset(tags, 0, sizeof tags);
            for (i = 0; i < x.rows; i++, position++) {
                compute(rows + i * self->d_model, self->d_model, request, position);
                tags[i].request = request;
                tags[i].position = position;
                tags[i].token = -1; /* a server knows it */
                tags[i].flags = position < PROMPT ? KRONSAE_TOKEN_PROMPT : 0;
                if (position == PROMPT - 1) tags[i].flags |= KRONSAE_TOKEN_LAST_PROMPT;
            }
            /* What the queue has no room for is dropped and counted, and no failure. */
            self->failed = kronsae_tap_submit(self->tap, &x, tags, sizeof tags[0], NULL, NULL) != KRONSAE_STATUS_OK;
        }
        if (!self->failed) self->failed = kronsae_tap_end_request(self->tap, request, NULL) != KRONSAE_STATUS_OK;
    }
    free(rows);
    return NULL;
}

/* Prints the events there are; a real program would do this on a thread of its own, with a timeout, until it gets
 * KRONSAE_STATUS_STOPPED. */
static int report(const kronsae_monitor *monitor, size_t *reported) {
    kronsae_error *error = NULL;
    kronsae_event_batch *batch = NULL;
    size_t i, count;
    do {
        if (kronsae_monitor_poll_events(monitor, 64, 0, &batch, &error)) {
            if (kronsae_error_status(error) != KRONSAE_STATUS_STOPPED) return fail(error);
            kronsae_error_destroy(error);
            return 0;
        }
        count = kronsae_event_batch_count(batch);
        for (i = 0; i < count; i++) {
            kronsae_event event = KRONSAE_EVENT_INIT;
            if (kronsae_event_batch_get(batch, i, &event, &error)) return fail(error);
            printf("%s: request %llu, position %d: latent %u at %g\n", event.rule, (unsigned long long)event.request,
                   (int)event.position, (unsigned)event.latents[0].latent, (double)event.latents[0].value);
        }
        *reported += count;
        kronsae_event_batch_destroy(batch);
    } while (count > 0);
    return 0;
}

int main(int argc, char **argv) {
    static const char rule[] = "[[rule]]\nname = \"first-latent\"\nwhen = { latent = 0, above = 0.1 }\n";
    kronsae_error *error = NULL;
    kronsae_sae *sae = NULL;
    kronsae_monitor *monitor = NULL;
    kronsae_site_options at = KRONSAE_SITE_OPTIONS_INIT;
    kronsae_sae_options weights = KRONSAE_SAE_OPTIONS_INIT;
    kronsae_sae_info info = KRONSAE_SAE_INFO_INIT;
    kronsae_monitor_status status = KRONSAE_MONITOR_STATUS_INIT;
    server servers[SERVING_THREADS];
    pthread_t threads[SERVING_THREADS];
    uint32_t site;
    size_t i, reported = 0;
    if (argc != 2 && argc != 3) {
        fprintf(stderr, "usage: monitor MODEL [RULES]\n");
        return 2;
    }
    weights.encoder_only = 1; /* a monitor does not decode */
    if (kronsae_sae_open(argv[1], &weights, &sae, &error)) return fail(error);
    if (kronsae_sae_get_info(sae, &info, &error)) return fail(error);
    if (kronsae_monitor_create(NULL, &monitor, &error)) return fail(error);
    at.name = "residual";
    if (kronsae_monitor_add_site(monitor, &at, sae, &site, &error)) return fail(error);
    kronsae_sae_destroy(sae); /* the monitor keeps what it needs */
    if (argc == 3 ? kronsae_monitor_load_rules(monitor, argv[2], &error)
                  : kronsae_monitor_set_rules(monitor, rule, sizeof rule - 1, &error)) {
        return fail(error);
    }

    for (i = 0; i < SERVING_THREADS; i++) {
        servers[i].d_model = info.d_model;
        servers[i].first_request = i * REQUESTS;
        servers[i].failed = 0;
        if (kronsae_tap_create(monitor, site, NULL, &servers[i].tap, &error)) return fail(error);
        if (pthread_create(&threads[i], NULL, serve, &servers[i]) != 0) return 1;
    }
    for (i = 0; i < SERVING_THREADS; i++) {
        pthread_join(threads[i], NULL);
        kronsae_tap_destroy(servers[i].tap);
        if (servers[i].failed) return 1;
    }

    if (kronsae_monitor_stop(monitor, 10000, &error)) return fail(error);
    if (report(monitor, &reported)) return 1;
    if (kronsae_monitor_get_status(monitor, &status, &error)) return fail(error);
    printf("%llu tokens submitted, %llu encoded, %llu dropped; %zu events\n", (unsigned long long)status.submitted,
           (unsigned long long)status.encoded, (unsigned long long)status.dropped, reported);
    kronsae_monitor_destroy(monitor);
    return 0;
}
