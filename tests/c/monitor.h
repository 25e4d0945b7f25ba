/* What the C tests of the monitor share: one monitor with one site, and calls that must succeed. */
#ifndef KRONSAE_TESTS_MONITOR_H
#define KRONSAE_TESTS_MONITOR_H

#include "check.h"

enum { D = 8, WAIT = 60000 /* ms: far more than anything here takes, even under valgrind */ };

/* Latents of the identity model (see make_model.rs) for these rows: (0, 6) (5, 4) (2, 3), and none. */
extern const float active_row[D], silent_row[D];

/* A monitor with one site "s" of the model at `path`, and one tap. */
typedef struct {
    kronsae_sae *sae;
    kronsae_monitor *monitor;
    kronsae_tap *tap;
    uint32_t site;
} world;

/* options may be NULL. */
void make_world(world *w, const char *path, const kronsae_monitor_options *monitor, const kronsae_tap_options *tap);
void end_world(world *w);

kronsae_activations rows_of(const float *data, size_t rows);
kronsae_token_tag tag_of(uint64_t request, int32_t position);

/* Submits one row; 1 if it was accepted. */
size_t submit_row(kronsae_tap *tap, const float *row, uint64_t request, int32_t position);

/* Takes one event within WAIT; its texts live until `batch` is destroyed. 0 if there is none. */
int next_event(const kronsae_monitor *monitor, kronsae_event *event, kronsae_event_batch **batch);

kronsae_monitor_status status_of(const kronsae_monitor *monitor);

/* A rule for the rows above. */
extern const char rule_text[];
void set_rules(const kronsae_monitor *monitor, const char *toml);

/* monitor_hostile.c */
void monitor_arguments(const char *tiny);
void monitor_options(const char *tiny);
void monitor_fork(const char *tiny);
void monitor_exit(const char *tiny);

/* monitor_lives.c */
void monitor_orders(const char *tiny);
void monitor_destroyed_in_use(const char *tiny);
void monitor_callbacks(const char *tiny);
void monitor_blocked_callback(const char *tiny);

#endif
