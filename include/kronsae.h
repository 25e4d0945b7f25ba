/*
 * kronsae: sparse latents of a language model's activations, on the CPU.
 *
 * A trained sparse autoencoder (a KronSAE, or an ordinary "dense" one) comes as one file. This library opens it,
 * encodes activation vectors into sparse latents, decodes latents back, and steers activations with them; and it monitors
 * a model while it serves: which latents fire, for which request and token. It needs no Python and no GPU. For C++ there is
 * kronsae.hpp, a thin layer over this header.
 *
 *
 * A complete program. Link it with -lkronsae.
 *
 * @code{.c}
 * #include <kronsae.h>
 * #include <stdio.h>
 * #include <stdlib.h>
 *
 * static int fail(kronsae_error *error) {
 *     fprintf(stderr, "%s\n", kronsae_error_message(error));
 *     kronsae_error_destroy(error);
 *     return 1;
 * }
 *
 * int main(int argc, char **argv) {
 *     kronsae_error *error = NULL;
 *     kronsae_sae *sae = NULL;
 *     if (kronsae_sae_open(argc > 1 ? argv[1] : "model.safetensors", NULL, &sae, &error)) return fail(error);
 *     kronsae_sae_info info = KRONSAE_SAE_INFO_INIT;
 *     if (kronsae_sae_get_info(sae, &info, &error)) return fail(error);
 *
 *     kronsae_encoder_options options = KRONSAE_ENCODER_OPTIONS_INIT;
 *     options.threads = 2;
 *     kronsae_encoder *encoder = NULL;
 *     if (kronsae_encoder_create(sae, &options, &encoder, &error)) return fail(error);
 *
 *     // One token; a server has these from its model's residual stream.
 *     float *token = malloc(info.d_model * sizeof *token);
 *     uint32_t count = 0, *indices = malloc(info.capacity * sizeof *indices);
 *     float *values = malloc(info.capacity * sizeof *values);
 *     if (!token || !indices || !values) return 1;
 *     for (size_t i = 0; i < info.d_model; i++) token[i] = 0.01f * (float)(i + 1);
 *
 *     kronsae_activations x = KRONSAE_ACTIVATIONS_INIT;
 *     x.dtype = KRONSAE_DTYPE_F32;
 *     x.data = token;
 *     x.rows = 1;
 *     x.d_model = info.d_model;
 *     kronsae_latents latents = KRONSAE_LATENTS_INIT;
 *     latents.rows = 1;
 *     latents.capacity = info.capacity;
 *     latents.counts = &count;
 *     latents.indices = indices;
 *     latents.values = values;
 *     if (kronsae_encode(encoder, &x, &latents, &error)) return fail(error);
 *     for (uint32_t i = 0; i < count; i++) printf("latent %u fires at %g\n", (unsigned)indices[i], (double)values[i]);
 *
 *     free(values);
 *     free(indices);
 *     free(token);
 *     kronsae_encoder_destroy(encoder);
 *     kronsae_sae_destroy(sae);
 *     return 0;
 * }
 * @endcode
 *
 *
 * Monitoring, inside a process that serves a language model: a serving thread hands each micro-batch's residual stream to
 * its tap, which copies it and returns; workers encode it, keep statistics, and make events of what rules look for.
 * (examples/c/monitor.c is a larger one, with threads.)
 *
 * @code{.c}
 * #include <kronsae.h>
 * #include <stdio.h>
 *
 * static int fail(kronsae_error *error) {
 *     fprintf(stderr, "%s\n", kronsae_error_message(error));
 *     kronsae_error_destroy(error);
 *     return 1;
 * }
 *
 * int main(int argc, char **argv) {
 *     const char rules[] = "[[rule]]\nname = \"seen\"\nwhen = { latent = 0, above = 5.0 }\n";
 *     kronsae_error *error = NULL;
 *     kronsae_sae *sae = NULL;
 *     kronsae_monitor *monitor = NULL;
 *     kronsae_site_options at = KRONSAE_SITE_OPTIONS_INIT;
 *     kronsae_tap *tap = NULL;
 *     uint32_t site;
 *     at.name = "residual";
 *     if (kronsae_sae_open(argc > 1 ? argv[1] : "model.safetensors", NULL, &sae, &error)) return fail(error);
 *     if (kronsae_monitor_create(NULL, &monitor, &error)) return fail(error);
 *     if (kronsae_monitor_add_site(monitor, &at, sae, &site, &error)) return fail(error);
 *     if (kronsae_monitor_set_rules(monitor, rules, sizeof rules - 1, &error)) return fail(error);
 *     if (kronsae_tap_create(monitor, site, NULL, &tap, &error)) return fail(error);
 *
 *     // On the serving thread, for each micro-batch; here one token of d_model 8.
 *     const float residual[8] = {4, 1, 9, 0, 1, 0, 1, 16};
 *     kronsae_activations x = KRONSAE_ACTIVATIONS_INIT;
 *     x.dtype = KRONSAE_DTYPE_F32;
 *     x.data = residual;
 *     x.rows = 1;
 *     x.d_model = 8;
 *     const kronsae_token_tag tag = {7, 0, -1, 0, 0}; // request 7, position 0
 *     if (kronsae_tap_submit(tap, &x, &tag, sizeof tag, NULL, &error)) return fail(error);
 *
 *     // On another: what was found, waiting up to a second.
 *     kronsae_event_batch *events = NULL;
 *     kronsae_event event = KRONSAE_EVENT_INIT;
 *     if (kronsae_monitor_poll_events(monitor, 100, 1000, &events, &error)) return fail(error);
 *     for (size_t i = 0; i < kronsae_event_batch_count(events); i++) {
 *         if (kronsae_event_batch_get(events, i, &event, &error)) return fail(error);
 *         printf("%s: request %d, position %d\n", event.rule, (int)event.request, (int)event.position);
 *     }
 *     kronsae_event_batch_destroy(events);
 *     kronsae_tap_destroy(tap);
 *     kronsae_monitor_destroy(monitor);
 *     kronsae_sae_destroy(sae);
 *     return 0;
 * }
 * @endcode
 *
 *
 * Errors. Every call that can fail returns a kronsae_status, 0 for success, and takes a kronsae_error ** last, which may
 * be NULL. On failure it receives an error to read (what was found, what was expected) and to free with
 * kronsae_error_destroy; on success it receives NULL. What it held before is overwritten, not freed. A failed call has
 * written nothing else, except where its description says so. No call ends the process: a bug inside the library is
 * caught and returned as KRONSAE_STATUS_INTERNAL. The non-const handle it happened on then returns
 * KRONSAE_STATUS_POISONED; a shared model goes on working. A bug caught in a monitor's worker makes the monitor fail: what
 * its taps take is counted as dropped, the host goes on.
 *
 * Threads. A const handle may be used by any number of threads at once, a non-const one by one thread at a time, and
 * destroying one is like any other non-const use. Each type says so again. The library starts threads only for monitors,
 * and where an option asks for them.
 *
 * Serving threads. Of a monitor, a thread that must not wait calls kronsae_tap_submit, kronsae_tap_end_request and
 * kronsae_tap_rewind, on a tap of its own, and nothing else. On success, and where a full queue makes it drop tokens, such a
 * call takes no lock, allocates nothing, waits for nothing and logs nothing; its one system call, if any, wakes a worker
 * that sleeps. kronsae_tap_encode takes as long as encoding. Every other call on a monitor may lock, allocate, read files
 * or wait for a worker; put those on other threads. Callbacks run on the library's threads; what they may not do is said
 * at kronsae_event_callback.
 *
 * Tokens. What is submitted is never held back for want of room: the newest tokens of a full queue are dropped, and counted
 * with all others. Ends of requests and rewinds have slots of their own. With tensor parallelism the residual stream after
 * the all-reduce is the same on each rank: tap one. With sequence parallelism each rank taps its rows, at a
 * site of its own: a site takes the tokens of a request in order.
 *
 * Ownership. What a _create or an _open returns is freed by the _destroy of its type, which accepts NULL. Handles keep
 * alive what they need: a kronsae_sae may be destroyed before its encoders, whose calls then return
 * KRONSAE_STATUS_STOPPED, and a kronsae_monitor before its taps and recorders, in whatever order, also while other threads
 * are in calls on those. A kronsae_sae may be destroyed as soon as it was given to a monitor. Buffers stay the caller's and are used during the call only. Text that belongs to a handle is
 * valid until that is destroyed. A handle used after its _destroy is often noticed and refused, but cannot always be.
 *
 * Structs. Each struct that may grow begins with struct_size, set by its _INIT macro; zero means default. A library that
 * is older than the header refuses fields it does not know, unless they are 0; a newer one fills in the defaults.
 *
 * fork(). In a child process a kronsae_sae goes on working; an encoder, a monitor, its taps and recorders return
 * KRONSAE_STATUS_FORKED (make new ones). _destroy is fine on all of them. exit() with live monitors is fine, too; tokens
 * in their queues are lost.
 *
 * The library sets no signal handler and no atexit hook, computes in its own floating-point environment and restores the
 * caller's (flush-to-zero, rounding), and prints nothing, except that a caught bug leaves a line on stderr.
 */

/* Generated from src/capi/ by `cargo xtask header`; edit there. */

#ifndef KRONSAE_H
#define KRONSAE_H

#include <stddef.h>
#include <stdint.h>

/** The version of this header as one number, to compare in #if: 10000 * major + 100 * minor + patch. */
#define KRONSAE_VERSION \
    (KRONSAE_VERSION_MAJOR * 10000 + KRONSAE_VERSION_MINOR * 100 + KRONSAE_VERSION_PATCH)

/** Starting values: struct_size set, everything else the default. */
#define KRONSAE_SAE_OPTIONS_INIT { sizeof(kronsae_sae_options), 0 }

/** Starting values: struct_size set, everything else the default. */
#define KRONSAE_ENCODER_OPTIONS_INIT { sizeof(kronsae_encoder_options), 0, 0, 0 }

/** Starting values: struct_size set, everything else 0. */
#define KRONSAE_SAE_INFO_INIT \
    { sizeof(kronsae_sae_info), 0, 0, 0, 0, 0, 0, 0, 0.0f, 0.0f, 0, 0, 0, 0, 0, 0, 0, 0, 0 }

/** Starting values: struct_size set; dtype, data, rows and d_model are for you to set. */
#define KRONSAE_ACTIVATIONS_INIT { sizeof(kronsae_activations), 0, NULL, 0, 0, 0 }

/** Starting values: struct_size set; dtype, data, rows and d_model are for you to set. */
#define KRONSAE_ACTIVATIONS_MUT_INIT { sizeof(kronsae_activations_mut), 0, NULL, 0, 0, 0 }

/** Starting values: struct_size set; rows, capacity, counts, indices and values are for you to set. */
#define KRONSAE_LATENTS_INIT \
    { sizeof(kronsae_latents), 0, 0, 0, NULL, NULL, NULL, NULL, NULL, 0, 0 }

/** Starting values: struct_size set, everything else the default. */
#define KRONSAE_DEVICE_OPTIONS_INIT { sizeof(kronsae_device_options), 0, 0, 0 }

/** Starting values: struct_size set; rows, capacity, counts, indices and values are for you to set. */
#define KRONSAE_DEVICE_LATENTS_INIT \
    { sizeof(kronsae_device_latents), 0, 0, 0, NULL, NULL, NULL, NULL, NULL, NULL }

/** Starting values: struct_size set, everything else the default. */
#define KRONSAE_DEVICE_TAP_OPTIONS_INIT \
    { sizeof(kronsae_device_tap_options), 0, 0, 0, 0, 0, 0, 0, 0 }

/** Starting values: struct_size set, everything else the default. */
#define KRONSAE_MONITOR_OPTIONS_INIT \
    { sizeof(kronsae_monitor_options), 0, 0, 0, 0, 0, 0, 0, 0, 0.0f, 0.0f, 0, 0.0, NULL, 0, 0 }

/** Starting values: struct_size set, everything else 0. */
#define KRONSAE_MONITOR_STATUS_INIT \
    { sizeof(kronsae_monitor_status), 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0.0, 0.0 }

/** Starting values: struct_size set, everything else the default; name is for you to set. */
#define KRONSAE_SITE_OPTIONS_INIT { sizeof(kronsae_site_options), 0, 0, 0, NULL, NULL, 0, 0 }

/** Starting values: struct_size set, everything else the default. */
#define KRONSAE_TAP_OPTIONS_INIT { sizeof(kronsae_tap_options), 0, 0, 0, 0, 0 }

/** Starting values: struct_size set, everything else 0. */
#define KRONSAE_EVENT_INIT \
    { sizeof(kronsae_event), 0, 0, 0, 0, 0, 0, 0, 0, 0, NULL, NULL, NULL, NULL, 0 }

/** Starting values: struct_size set, everything else the default. */
#define KRONSAE_SERVE_OPTIONS_INIT { sizeof(kronsae_serve_options), 0, NULL, NULL, NULL, 0 }

/** Starting values: struct_size set, everything else the default; folder is for you to set. */
#define KRONSAE_RECORDER_OPTIONS_INIT \
    { sizeof(kronsae_recorder_options), 0, 0, 0, 0, 0, 0, NULL, NULL, NULL }

/** Starting values: struct_size set, everything else 0. */
#define KRONSAE_RECORDER_STATUS_INIT { sizeof(kronsae_recorder_status), 0, 0, 0 }


/** Major version of the header. While it is 0, minor versions may change functions; after that, only major ones. */
#define KRONSAE_VERSION_MAJOR 0

/** Minor version of the header. */
#define KRONSAE_VERSION_MINOR 1

/** Patch version of the header. */
#define KRONSAE_VERSION_PATCH 0

/**
 * Version of the binary interface, the number in `libkronsae.so.0`: raised whenever programs must be recompiled. A
 * library runs programs built against any earlier header of its ABI version.
 */
#define KRONSAE_ABI_VERSION 0

/** Bit of a row's flags: a pre-activation or a product was not finite; the row has no latents. */
#define KRONSAE_ROW_NOT_FINITE 1

/**
 * Bit of a row's flags: more latents were active than the model's `max_latents` or the capacity; the strongest were
 * kept.
 */
#define KRONSAE_ROW_TRUNCATED 2

/** Bit of a monitor's flags: workers run under SCHED_IDLE, so that they have only CPU time that nobody else wants. */
#define KRONSAE_MONITOR_SCHED_IDLE 1

/** Bit of a site's flags: its layer field says which layer the site is at. */
#define KRONSAE_SITE_HAS_LAYER 1

/** Bit of a site's flags: a model that was trained at another layer is taken all the same. */
#define KRONSAE_SITE_ANY_LAYER 2

/** Bit of a token's flags: it belongs to a prompt (it was read, not generated). */
#define KRONSAE_TOKEN_PROMPT 1

/** Bit of a token's flags: the last of a prompt, whose activations decide the first generated token. */
#define KRONSAE_TOKEN_LAST_PROMPT 2

/** The most bytes of text that a token can have; longer text is cut. */
#define KRONSAE_TOKEN_TEXT_MOST 4096

/** Room for any address that `kronsae_monitor_serve` writes, with its NUL. */
#define KRONSAE_ADDRESS_CAPACITY 64

/** Bit of a recording's flags: the token ids of requests are written too. Off by default: they are what users said. */
#define KRONSAE_RECORD_TOKEN_IDS 1

/** Bit of a recording's flags: the tokens' text is written too, where `kronsae_monitor_set_token_text` gives it. */
#define KRONSAE_RECORD_TEXT 2

/**
 * Bit of a recording's flags: tokens at position 0 are recorded, too. Off by default: they are attention sinks, of a
 * hundred times the norm, and no good for training.
 */
#define KRONSAE_RECORD_POSITION_0 4

/**
 * A model's encoder in the memory of a CUDA device: uploaded once.
 *
 * Threads: immutable. Any number of threads and streams may use one at once, except for `kronsae_device_sae_destroy`.
 *
 * Lifetime: the `kronsae_sae` it was made of must outlive its use; destroying that one stops it.
 */
typedef struct kronsae_device_sae kronsae_device_sae;

/**
 * Where a serving thread hands activations in a device's memory to a monitor: they are encoded there, on the caller's
 * stream, and of a token 8 K + 5 bytes are copied to the host.
 *
 * Threads: one at a time; make one for each thread that submits. A call that overlaps another on the same tap is refused
 * with `KRONSAE_STATUS_INVALID_ARGUMENT`. In a child process its calls return `KRONSAE_STATUS_FORKED`.
 *
 * Lifetime: destroying the monitor under a tap is legal, also during a call; later ones return
 * `KRONSAE_STATUS_STOPPED`.
 */
typedef struct kronsae_device_tap kronsae_device_tap;

/**
 * Turns activations into sparse latents: a model, a workspace, and threads of its own.
 *
 * Threads: one at a time; make one for each thread that encodes. A call that overlaps another on the same encoder is
 * refused with `KRONSAE_STATUS_INVALID_ARGUMENT`. Its threads sleep between calls, block all signals but faults and
 * are named `kronsae-*`. In a child process its calls return `KRONSAE_STATUS_FORKED`.
 */
typedef struct kronsae_encoder kronsae_encoder;

/**
 * Why a call failed: a status and a sentence. Owned by whoever received it; free it with `kronsae_error_destroy`.
 *
 * Threads: immutable. Any number of threads may read one at once; one destroys it, when the others are done.
 */
typedef struct kronsae_error kronsae_error;

/**
 * Events that were polled together. Owned by whoever polled it; free it with `kronsae_event_batch_destroy`. It does not
 * need its monitor any more.
 *
 * Threads: immutable. Any number of threads may read one at once; one destroys it, when the others are done.
 */
typedef struct kronsae_event_batch kronsae_event_batch;

/**
 * Watches which latents fire while a host serves: sites (a place in the model, and a SAE), taps that are fed there, and
 * workers that encode what the taps take in.
 *
 * Threads: const, so any number of threads may use one at once, except for `kronsae_monitor_destroy`. Its workers block
 * all signals but faults and real-time signals, by which managed runtimes stop threads that run their callbacks, and are
 * named `kronsae-*`. In a child process its calls return `KRONSAE_STATUS_FORKED`.
 *
 * Serving threads call `kronsae_tap_submit`, `kronsae_tap_end_request` and `kronsae_tap_rewind` and nothing else of a
 * monitor: those never wait. Every other call may lock, allocate, read a file or wait for a worker, and belongs on a
 * thread that may.
 *
 * Lifetime: taps, recorders and batches of events keep what they need of it alive. Destroying it under them is legal;
 * taps and recorders return `KRONSAE_STATUS_STOPPED` then.
 */
typedef struct kronsae_monitor kronsae_monitor;

/**
 * A recording of one site: what its taps take in is written into activation shards, from which a SAE for this very host
 * can be trained.
 *
 * Threads: const, so any number of threads may use one at once, except for `kronsae_recorder_destroy`. In a child
 * process its calls return `KRONSAE_STATUS_FORKED`.
 *
 * Lifetime: stopping the monitor closes the shards; destroying it is legal and closes them, too, and later calls return
 * `KRONSAE_STATUS_STOPPED`.
 */
typedef struct kronsae_recorder kronsae_recorder;

/**
 * A trained sparse autoencoder, opened from a model file.
 *
 * Threads: immutable. Any number of threads may use one at once, except for `kronsae_sae_destroy`. It has no threads of
 * its own, and a child process may go on using the one it inherited over fork().
 *
 * Lifetime: encoders keep what they need of it alive. Destroying it under them is legal, and stops them.
 */
typedef struct kronsae_sae kronsae_sae;

/**
 * Where a serving thread hands activations to a monitor: a bounded queue of one site.
 *
 * Threads: one at a time; make one for each thread that submits. A call that overlaps another on the same tap is refused
 * with `KRONSAE_STATUS_INVALID_ARGUMENT`. In a child process its calls return `KRONSAE_STATUS_FORKED`.
 *
 * Lifetime: destroying the monitor under a tap is legal, also during a call; later ones return
 * `KRONSAE_STATUS_STOPPED`.
 */
typedef struct kronsae_tap kronsae_tap;

/**
 * What a call did: `KRONSAE_STATUS_OK` or one of the other `KRONSAE_STATUS_*`. Numbers are never reused or renumbered;
 * later versions may return new ones, to be treated as failures.
 */
typedef int32_t kronsae_status;

/** How grave a log message is: one of `KRONSAE_LOG_*`. Later versions may add levels. */
typedef int32_t kronsae_log_level;

/**
 * Receives log messages. `message` is UTF-8 without a newline, valid during the call only; `user_data` is what was
 * given to `kronsae_set_log_callback`.
 *
 * It runs on the thread that called the library, or on a worker of a monitor; several threads may be in it at once, and it
 * must return: no exception, longjmp or thread exit may leave it (the process is aborted if one does). What it logs by
 * calling this library again is dropped.
 */
typedef void (*kronsae_log_callback)(void *user_data, kronsae_log_level level, const char *message);

/** How a model is opened. Start from `KRONSAE_SAE_OPTIONS_INIT`; zero means default. */
typedef struct kronsae_sae_options {
    /** sizeof(kronsae_sae_options). */
    uint32_t struct_size;
    /**
     * 1: leave the decoder in the file. Saves its memory (F * d_model elements) in a host that neither decodes nor
     * steers. 0: load it.
     */
    uint32_t encoder_only;
} kronsae_sae_options;

/** How an encoder turns pre-activations into latents: one of `KRONSAE_ENCODER_*`. */
typedef int32_t kronsae_encoder_kind;

/** Which latents of a token are reported: one of `KRONSAE_SELECTION_*`. */
typedef int32_t kronsae_selection_kind;

/** An element type: one of `KRONSAE_DTYPE_*`, little-endian. */
typedef int32_t kronsae_dtype;

/** What a model is. Start from `KRONSAE_SAE_INFO_INIT`; filled by `kronsae_sae_get_info`. */
typedef struct kronsae_sae_info {
    /** sizeof(kronsae_sae_info). Written by the caller. */
    uint32_t struct_size;
    /** `KRONSAE_ENCODER_*`. */
    kronsae_encoder_kind encoder_kind;
    /** `KRONSAE_SELECTION_*`. */
    kronsae_selection_kind selection_kind;
    /** `KRONSAE_DTYPE_*` of the encoder's weights in memory: F32 or BF16 (F16 is widened). */
    kronsae_dtype weights_dtype;
    /** 1 if the decoder is loaded: the model can decode and steer. Otherwise 0. */
    uint32_t has_decoder;
    /** 1 if the file knows how often and how strongly its latents fire. Otherwise 0. */
    uint32_t has_calibration;
    /** 1 if each latent has a threshold of its own, in place of theta. Otherwise 0. */
    uint32_t has_latent_thresholds;
    /** Quantiles of each latent's value in the calibration, or 0. */
    uint32_t calibration_levels;
    /** Threshold selection: latents of a larger value are active. TopK: 0. */
    float theta;
    /** s: a latent of value v adds `s * v * decoder row` to the reconstruction, in raw activation units. */
    float output_scale;
    /** Elements of an activation vector. */
    size_t d_model;
    /** F, the number of latents. */
    size_t latents;
    /** Rows of the encoder matrix: heads * (base + extension), or F. */
    size_t encoder_rows;
    /** Kron: number of heads. Dense: 0. */
    size_t heads;
    /** Kron: base rows of a head. Dense: 0. */
    size_t base;
    /**
     * Kron: extension rows of a head. Dense: 0. Latent `k*base*extension + i*extension + j` is the soft AND of base row
     * i and extension row j of head k.
     */
    size_t extension;
    /** TopK: the most latents a token has. Threshold: 0. */
    size_t k;
    /** Threshold: the most latents a token keeps. TopK: 0. */
    size_t max_latents;
    /** The capacity of kronsae_latents that never cuts anything: k, or max_latents. */
    size_t capacity;
} kronsae_sae_info;

/** How an encoder finds its results: one of `KRONSAE_PATH_*`. */
typedef int32_t kronsae_path;

/** How an encoder works. Start from `KRONSAE_ENCODER_OPTIONS_INIT`; zero means default. */
typedef struct kronsae_encoder_options {
    /** sizeof(kronsae_encoder_options). */
    uint32_t struct_size;
    /**
     * Threads of a call, the caller's included, at most 1024; never more are used. 0: one, the caller's. Results do not
     * depend on it.
     */
    uint32_t threads;
    /** `KRONSAE_PATH_*`. */
    kronsae_path path;
    /** 0. */
    uint32_t reserved;
} kronsae_encoder_options;

/**
 * A batch of activations to read, [rows, d_model], in the caller's memory. Start from `KRONSAE_ACTIVATIONS_INIT`.
 *
 * Any alignment will do. Bytes between rows are never read. Nobody may write to the rows during the call.
 */
typedef struct kronsae_activations {
    /** sizeof(kronsae_activations). */
    uint32_t struct_size;
    /** `KRONSAE_DTYPE_*`. There is no default. */
    kronsae_dtype dtype;
    /** The first row. May be NULL if rows is 0. */
    const void *data;
    /** Number of rows (tokens). */
    size_t rows;
    /** Elements of a row; must be the model's d_model. */
    size_t d_model;
    /** Bytes from one row to the next; 0: the rows are contiguous. Rows may overlap. */
    size_t row_stride;
} kronsae_activations;

/**
 * Sparse latents of a batch, in buffers of the caller. Start from `KRONSAE_LATENTS_INIT`.
 *
 * Row r is at `r * capacity` of `indices` and `values`: its first `counts[r]` entries, strongest first (by the
 * product under the root; equal products by index); entries past them stay untouched. Buffers must be aligned for their
 * type and must not overlap.
 */
typedef struct kronsae_latents {
    /** sizeof(kronsae_latents). */
    uint32_t struct_size;
    /** 0. */
    uint32_t reserved;
    /** Rows the buffers have room for, at least as many as the activations have. */
    size_t rows;
    /**
     * Entries a row. With TopK selection at least K; with a threshold, rows of more keep the strongest and are flagged.
     */
    size_t capacity;
    /** [rows]: entries written. */
    uint32_t *counts;
    /** [rows, capacity]: latent indices, below F. */
    uint32_t *indices;
    /** [rows, capacity]: latent values, in units of normalised activations. */
    float *values;
    /** [rows], or NULL: how many latents were active before any cut. With TopK selection the same as counts. */
    uint32_t *active;
    /** [rows], or NULL: `KRONSAE_ROW_*` bits. */
    uint8_t *row_flags;
    /** Output of kronsae_encode: rows with KRONSAE_ROW_NOT_FINITE. */
    size_t skipped_rows;
    /** Output of kronsae_encode: rows with KRONSAE_ROW_TRUNCATED. */
    size_t truncated_rows;
} kronsae_latents;

/**
 * A batch of activations to write, [rows, d_model], in the caller's memory. Start from `KRONSAE_ACTIVATIONS_MUT_INIT`.
 *
 * Rows must not overlap, and bytes between them are not touched. Nobody else may touch the rows during the call.
 */
typedef struct kronsae_activations_mut {
    /** sizeof(kronsae_activations_mut). */
    uint32_t struct_size;
    /** `KRONSAE_DTYPE_*`. There is no default. */
    kronsae_dtype dtype;
    /** The first row. May be NULL if rows is 0. */
    void *data;
    /** Number of rows (tokens). */
    size_t rows;
    /** Elements of a row; must be the model's d_model. */
    size_t d_model;
    /** Bytes from one row to the next; 0: the rows are contiguous. */
    size_t row_stride;
} kronsae_activations_mut;

/** A latent to add to activations, and how much of it. An array of these is passed with the size of one. */
typedef struct kronsae_steer_term {
    /** The latent's index, below F. */
    uint32_t latent;
    /** How much is added, in units of latent values: a row changes by `coefficient * output_scale * decoder row`. */
    float coefficient;
} kronsae_steer_term;

/**
 * In which arithmetic a device computes pre-activations: one of `KRONSAE_COMPUTE_*`. They are accumulated, and selected
 * from, in f32 either way.
 */
typedef int32_t kronsae_compute;

/** How a model is put on a device. Start from `KRONSAE_DEVICE_OPTIONS_INIT`; zero means default. */
typedef struct kronsae_device_options {
    /** sizeof(kronsae_device_options). */
    uint32_t struct_size;
    /** Which of the devices that the driver shows to this process, counted from 0, as cudaSetDevice counts. */
    uint32_t device;
    /** `KRONSAE_COMPUTE_*`. */
    kronsae_compute compute;
    /**
     * Rows whose pre-activations exist at a time; they bound the workspace. 0: as many as take 256 MB, at least 128.
     */
    uint32_t tile_rows;
} kronsae_device_options;

/**
 * Sparse latents of a batch, in buffers of the caller in the device's memory. Start from `KRONSAE_DEVICE_LATENTS_INIT`.
 *
 * Row r is at `r * capacity` of `indices` and `values`, as in kronsae_latents. Buffers must be aligned for their type and
 * must not overlap.
 */
typedef struct kronsae_device_latents {
    /** sizeof(kronsae_device_latents). */
    uint32_t struct_size;
    /** 0. */
    uint32_t reserved;
    /** Rows the buffers have room for, at least as many as the activations have. */
    size_t rows;
    /**
     * Entries a row. With TopK selection at least K; with a threshold, rows of more keep the strongest and are flagged.
     */
    size_t capacity;
    /** [rows], device memory: entries written. */
    uint32_t *counts;
    /** [rows, capacity], device memory: latent indices, below F. */
    uint32_t *indices;
    /** [rows, capacity], device memory: latent values, in units of normalised activations. */
    float *values;
    /** [rows], device memory, or NULL: how many latents were active before any cut. */
    uint32_t *active;
    /** [rows], device memory, or NULL: `KRONSAE_ROW_*` bits. */
    uint8_t *row_flags;
    /**
     * One number, device memory, or NULL: rows with KRONSAE_ROW_NOT_FINITE are added to it. The caller sets it to 0.
     */
    uint32_t *skipped_rows;
} kronsae_device_latents;

/** How a monitor works. Start from `KRONSAE_MONITOR_OPTIONS_INIT`; zero means default. */
typedef struct kronsae_monitor_options {
    /** sizeof(kronsae_monitor_options). */
    uint32_t struct_size;
    /** `KRONSAE_MONITOR_*` bits. */
    uint32_t flags;
    /** Workers, among which sites are dealt out. 0: 1. */
    uint32_t workers;
    /** Threads of each worker's encoder, the worker itself included. 0: 1. */
    uint32_t encoder_threads;
    /** Requests of a site with state at a time; the oldest is given up for a new one, and counted. 0: 4096. */
    uint32_t requests;
    /** Events that wait for `kronsae_monitor_poll_events`; of more, the oldest are lost, and counted. 0: 4096. */
    uint32_t events;
    /** Tokens of a site that the live page can look back on. 0: 512. */
    uint32_t recent_tokens;
    /** The most watched latents of a site, each of which adds series to the metrics. 0: 64. */
    uint32_t watched;
    /** The workers' nice value, -20 to 19; below the host's it needs privileges. 0: the host's. */
    int32_t nice;
    /** The share of one CPU's time that a worker may use, above 0 to 1. 0: 1, all of it. */
    float cpu_share;
    /**
     * Tokens a second that each worker encodes whatever cpu_share says, so that a busy host still sees some. 0: none.
     */
    float least_tokens_per_second;
    /** 0. */
    uint32_t reserved;
    /** Tokens after which an observation counts half in rates and drift. 0: 10,000. */
    double half_life_tokens;
    /**
     * CPUs that workers may run on, n_cpus numbers. NULL, with n_cpus 0: those of the thread that makes the monitor.
     */
    const uint32_t *cpus;
    /** Numbers in cpus. */
    size_t n_cpus;
    /**
     * Bytes of the host's memory that queues and state may take, pinned memory of device taps included; what would need more
     * is refused. 0: no limit.
     */
    size_t memory_limit;
} kronsae_monitor_options;

/** What a monitor is doing: one of `KRONSAE_MONITOR_STATE_*`. Later versions may add states. */
typedef int32_t kronsae_monitor_state;

/**
 * Where the tokens of all taps went. Start from `KRONSAE_MONITOR_STATUS_INIT`; filled by
 * `kronsae_monitor_get_status`.
 *
 * Always, and exactly: submitted = encoded + sampled_out + dropped + not_finite + queued.
 */
typedef struct kronsae_monitor_status {
    /** sizeof(kronsae_monitor_status). Written by the caller. */
    uint32_t struct_size;
    /** `KRONSAE_MONITOR_STATE_*`. */
    kronsae_monitor_state state;
    /** Tokens handed to submit. */
    uint64_t submitted;
    /** Tokens encoded. */
    uint64_t encoded;
    /** Tokens that a tap's sampling left out. */
    uint64_t sampled_out;
    /** Tokens for which a queue had no room, and those left when the monitor ended without draining. */
    uint64_t dropped;
    /** Tokens whose activations, or products of them, were not finite. */
    uint64_t not_finite;
    /** Tokens in queues now. */
    uint64_t queued;
    /** Events made. */
    uint64_t events;
    /** Events that were lost because polling was too slow. */
    uint64_t events_lost;
    /** Bytes of queues and state. */
    uint64_t memory;
    /** CPU time of the workers, in seconds. */
    double cpu_seconds;
    /** Seconds since the monitor was made. */
    double uptime;
} kronsae_monitor_status;

/**
 * A place in the host's model where activations are tapped. Start from `KRONSAE_SITE_OPTIONS_INIT`; zero means default.
 */
typedef struct kronsae_site_options {
    /** sizeof(kronsae_site_options). */
    uint32_t struct_size;
    /** `KRONSAE_SITE_*` bits. */
    uint32_t flags;
    /**
     * With KRONSAE_SITE_HAS_LAYER: the layer, from 0. It must be the one that the model file says it was trained at, if
     * it says so. Otherwise 0.
     */
    uint32_t layer;
    /** 0. */
    uint32_t reserved;
    /**
     * The site's name, UTF-8, 1 to 128 characters, unique in the monitor; it appears in events, in metrics and on the live
     * page. There is no default.
     */
    const char *name;
    /**
     * Latents to watch, n_watch indices: the metrics carry them, and with a model that selects by threshold only they are
     * computed, exactly; rules may look at no others then. NULL, with n_watch 0: all latents are computed.
     */
    const uint32_t *watch;
    /** Indices in watch. */
    size_t n_watch;
    /** Without a model: elements of an activation vector. Otherwise 0, or the model's. */
    size_t d_model;
} kronsae_site_options;

/** Which tokens of a tap are encoded: one of `KRONSAE_SAMPLING_*`. The others are counted as sampled out. */
typedef int32_t kronsae_sampling;

/** How a tap works. Start from `KRONSAE_TAP_OPTIONS_INIT`; zero means default. */
typedef struct kronsae_tap_options {
    /** sizeof(kronsae_tap_options). */
    uint32_t struct_size;
    /** `KRONSAE_SAMPLING_*`. 0: every token. */
    kronsae_sampling sampling;
    /** With KRONSAE_SAMPLING_EVERY_NTH: n, at least 1. Otherwise 0. */
    uint32_t nth;
    /**
     * `KRONSAE_DTYPE_*` of the widest elements that will be submitted, for which the queue's memory is laid out. 0: F32,
     * so any.
     */
    kronsae_dtype dtype;
    /** Tokens the queue has room for, at most 2^24. 0: 1024. */
    size_t capacity;
    /**
     * Ends of requests and rewinds the queue has room for besides, in slots that tokens cannot take, at most 2^24.
     * 0: 1024.
     */
    size_t controls;
} kronsae_tap_options;

/** Whose token a row of activations is. An array of these is passed with the size of one. */
typedef struct kronsae_token_tag {
    /** The request; the host's numbering, unique among requests alive at a time. */
    uint64_t request;
    /** Its position in the request's sequence, from 0. */
    int32_t position;
    /** The token's id in the LLM's vocabulary; -1 if unknown. */
    int32_t token;
    /** `KRONSAE_TOKEN_*` bits. */
    uint32_t flags;
    /** 0. */
    uint32_t reserved;
} kronsae_token_tag;

/** How a device tap works. Start from `KRONSAE_DEVICE_TAP_OPTIONS_INIT`; zero means default. */
typedef struct kronsae_device_tap_options {
    /** sizeof(kronsae_device_tap_options). */
    uint32_t struct_size;
    /** Which of the devices that the driver shows to this process, counted from 0, as cudaSetDevice counts. */
    uint32_t device;
    /** `KRONSAE_COMPUTE_*`. */
    kronsae_compute compute;
    /**
     * Rows whose pre-activations exist at a time; they bound the workspace. 0: as many as take 256 MB, at least 128.
     */
    uint32_t tile_rows;
    /** `KRONSAE_SAMPLING_*`. 0: every token. */
    kronsae_sampling sampling;
    /** With KRONSAE_SAMPLING_EVERY_NTH: n, at least 1. Otherwise 0. */
    uint32_t nth;
    /** Batches in flight, from a submit until a worker has taken them, at most 1,024. 0: 8. */
    uint32_t slots;
    /**
     * Most rows of a batch, at most 4,096; a submit of more takes several slots. Memory is taken for as many. 0: 512.
     */
    uint32_t rows;
    /**
     * Ends of requests and rewinds the queue has room for besides, in slots that tokens cannot take, at most 2^24.
     * 0: 1024.
     */
    size_t controls;
} kronsae_device_tap_options;

/** What an event says: one of `KRONSAE_EVENT_*`. Later versions may add kinds. */
typedef int32_t kronsae_event_kind;

/** How much a match matters, as the rule's author says: one of `KRONSAE_SEVERITY_*`. */
typedef int32_t kronsae_severity;

/** A latent of the token that completed a match. This struct never grows. */
typedef struct kronsae_event_latent {
    /** Its index, below F. */
    uint32_t latent;
    /** Its value on the token, in units of normalised activations; 0 if it is not active. */
    float value;
} kronsae_event_latent;

/** A match of a rule, or its retraction. Start from `KRONSAE_EVENT_INIT`; filled by `kronsae_event_batch_get`. */
typedef struct kronsae_event {
    /** sizeof(kronsae_event). Written by the caller; in a callback by the library, which may know more fields. */
    uint32_t struct_size;
    /** `KRONSAE_EVENT_*`. */
    kronsae_event_kind kind;
    /** `KRONSAE_SEVERITY_*`. */
    kronsae_severity severity;
    /** 1 if tokens of the rule's window were missing (dropped, or not finite): the rule saw less than the model did. */
    uint32_t gap;
    /** Position of the token that completed the match. */
    int32_t position;
    /** That token's id, or -1. */
    int32_t token;
    /** Ascending in a monitor, from 1, without gaps: a consumer that misses a number has lost an event. */
    uint64_t id;
    /** When it was found: nanoseconds since 1970, UTC. */
    uint64_t unix_nanos;
    /** The request. */
    uint64_t request;
    /** Of a retraction: the id of the event taken back. Otherwise 0. */
    uint64_t retracts;
    /**
     * The site's name, UTF-8. This and the texts and latents below belong to the batch, or to the callback's caller.
     */
    const char *site;
    /** The model that was in force: the first 16 hexadecimal digits of its file's SHA-256. */
    const char *model;
    /** The rule's name, UTF-8. */
    const char *rule;
    /** The rule's latents on that token, in the rule's order. */
    const struct kronsae_event_latent *latents;
    /** Entries in latents. */
    size_t n_latents;
} kronsae_event;

/**
 * Receives an event. `event` and all it points to are valid during the call only; `user_data` is what was given to
 * `kronsae_monitor_set_event_callback`.
 *
 * It runs on a worker of the monitor, whose tokens wait meanwhile; of several workers, several may be in it at once. It
 * must return: no exception, longjmp or thread exit may leave it (the process is aborted if one does). It may submit to
 * taps of its own and ask for status, metrics and snapshots; calls that would wait for a worker are refused.
 */
typedef void (*kronsae_event_callback)(void *user_data, const struct kronsae_event *event);

/**
 * Gives the text of a token: writes its bytes, at most `capacity`, to `buffer`, and returns how many it has, 0 if the
 * token has no text. If that is more than `capacity` it is called a second time with enough room, up to
 * `KRONSAE_TOKEN_TEXT_MOST`. The bytes need not be UTF-8 by themselves. `user_data` is what was given to
 * `kronsae_monitor_set_token_text`.
 *
 * It runs on the thread of the live page, and on workers that record text, under the rules of
 * `kronsae_event_callback`; several threads may be in it at once. Never on a serving thread.
 */
typedef size_t (*kronsae_token_text_callback)(void *user_data, int32_t token, char *buffer, size_t capacity);

/** A text form of metrics: one of `KRONSAE_METRICS_*`. */
typedef int32_t kronsae_metrics_form;

/** How the live page is served. Start from `KRONSAE_SERVE_OPTIONS_INIT`; zero means default. */
typedef struct kronsae_serve_options {
    /** sizeof(kronsae_serve_options). */
    uint32_t struct_size;
    /** Clients that may follow the stream of events at a time, at most 1024; further ones are turned away. 0: 16. */
    uint32_t clients;
    /**
     * Where to listen: an IP address and a port, "127.0.0.1:9464" or "[::1]:9464". Port 0: any that is free. NULL:
     * "127.0.0.1:9464". Beyond the loopback interface it needs a token.
     */
    const char *address;
    /** What clients must send as `Authorization: Bearer ...`, at least 16 visible ASCII characters. NULL: nothing. */
    const char *token;
    /**
     * Names, besides IP addresses and "localhost", by which clients may call the server, without port; n_hosts strings.
     * A request by another name is refused. NULL, with n_hosts 0: none.
     */
    const char *const *hosts;
    /** Strings in hosts. */
    size_t n_hosts;
} kronsae_serve_options;

/** What is recorded. Start from `KRONSAE_RECORDER_OPTIONS_INIT`; zero means default. */
typedef struct kronsae_recorder_options {
    /** sizeof(kronsae_recorder_options). */
    uint32_t struct_size;
    /** `KRONSAE_RECORD_*` bits. */
    uint32_t flags;
    /** `KRONSAE_DTYPE_F32` or `KRONSAE_DTYPE_BF16`. 0: BF16. */
    kronsae_dtype dtype;
    /** Seconds after its first token when a shard is written at the latest, full or not. 0: 60. */
    uint32_t shard_seconds;
    /** Tokens of a shard, so many of which are held in memory. 0: 4096. */
    uint64_t shard_tokens;
    /**
     * Recording ends before the folder's shards, those found there included, are larger. 0: 16 GiB; UINT64_MAX: no limit.
     */
    uint64_t most_bytes;
    /** Recording ends after so many tokens. 0: no limit. */
    uint64_t most_tokens;
    /**
     * The folder to write to, made if it is missing; shards that are there stay. On Unix its name in bytes, elsewhere
     * UTF-8. Files are readable by their owner only. There is no default.
     */
    const char *folder;
    /** Written into the shards: which LLM, UTF-8. NULL: not said. */
    const char *model;
    /** Written into the shards: which activations, UTF-8, "l_out" say. NULL: not said. */
    const char *hook;
} kronsae_recorder_options;

/** What a recording has done. Start from `KRONSAE_RECORDER_STATUS_INIT`; filled by `kronsae_recorder_get_status`. */
typedef struct kronsae_recorder_status {
    /** sizeof(kronsae_recorder_status). Written by the caller. */
    uint32_t struct_size;
    /**
     * 1 while it records. 0 once the shards are closed: the monitor has come to its end, or a limit was reached (which
     * shows within two seconds).
     */
    uint32_t recording;
    /** Tokens in finished shards. */
    uint64_t written;
    /** Tokens it had to leave out: the disk was full, say. */
    uint64_t failures;
} kronsae_recorder_status;

/** Success. */
#define KRONSAE_STATUS_OK 0

/** An argument is wrong: null, misaligned, too short, out of range. */
#define KRONSAE_STATUS_INVALID_ARGUMENT 1

/** The operating system refused to open or read a file. */
#define KRONSAE_STATUS_IO 2

/** A file is not what it claims to be: truncated, malformed, inconsistent or of an unknown format. */
#define KRONSAE_STATUS_FORMAT 3

/** The request is valid but this build, CPU or model cannot serve it. */
#define KRONSAE_STATUS_UNSUPPORTED 4

/** Memory for a size taken from a file or a caller could not be allocated. */
#define KRONSAE_STATUS_OUT_OF_MEMORY 5

/** The object this one depends on was destroyed. */
#define KRONSAE_STATUS_STOPPED 6

/** An earlier internal error was caught inside this object; it can only be destroyed. */
#define KRONSAE_STATUS_POISONED 7

/** The process was forked after this object was made; its threads do not exist in the child. */
#define KRONSAE_STATUS_FORKED 8

/** A bug inside the library was caught. Please report it with its message. */
#define KRONSAE_STATUS_INTERNAL 9

/** What was waited for did not happen in the given time; nothing is lost, and it may be waited for again. */
#define KRONSAE_STATUS_TIMEOUT 10

/** A bounded queue has no room at the moment; nothing was done, and it may be tried again. */
#define KRONSAE_STATUS_FULL 11

/**
 * A GPU or its driver failed: it was lost, ran into an error of memory, or an earlier kernel did, whosever it was. What lies
 * on the device is in doubt; the host's own data is not.
 */
#define KRONSAE_STATUS_DEVICE 12

/** A bug inside the library was caught. */
#define KRONSAE_LOG_ERROR 1

/** Something was ignored that the caller should know of: a destroy of what is no live handle, say. */
#define KRONSAE_LOG_WARN 2

/** Rare events of normal work: a model was opened. */
#define KRONSAE_LOG_INFO 3

/** IEEE 754 binary32. */
#define KRONSAE_DTYPE_F32 1

/** IEEE 754 binary16. */
#define KRONSAE_DTYPE_F16 2

/** bfloat16: the upper half of a binary32. */
#define KRONSAE_DTYPE_BF16 3

/** KronSAE: heads of base and extension rows. */
#define KRONSAE_ENCODER_KRON 1

/** An ordinary SAE: one row a latent. */
#define KRONSAE_ENCODER_DENSE 2

/** The k strongest positive latents. */
#define KRONSAE_SELECTION_TOPK 1

/** Every latent above a threshold; of more than max_latents, the strongest. */
#define KRONSAE_SELECTION_THRESHOLD 2

/**
 * Whichever is faster, by a measured rule; or what the environment variable KRONSAE_ENCODE names, `plain` or `screened`.
 */
#define KRONSAE_PATH_AUTO 0

/** All rows of the encoder are computed exactly. */
#define KRONSAE_PATH_PLAIN 1

/**
 * An int8 copy of the encoder tells, with proven bounds, which rows can matter; those are computed exactly. Same results.
 */
#define KRONSAE_PATH_SCREENED 2

/**
 * As screened, with bounds that hold only very likely. Not exact: now and then a latent may be missing. Values that are
 * reported are still exact.
 */
#define KRONSAE_PATH_FAST 3

/** As the model file has the encoder: BF16 weights in bf16, others in f32. */
#define KRONSAE_COMPUTE_AUTO 0

/** True f32, without TF32. */
#define KRONSAE_COMPUTE_F32 1

/** Weights and activations are rounded to bfloat16; their products are exact. */
#define KRONSAE_COMPUTE_BF16 2

/** Workers encode what taps take in. */
#define KRONSAE_MONITOR_STATE_RUNNING 1

/** It was stopped; taps return `KRONSAE_STATUS_STOPPED`. */
#define KRONSAE_MONITOR_STATE_STOPPED 2

/** A bug was caught in a worker. What taps take in is counted as dropped; the snapshot says why. */
#define KRONSAE_MONITOR_STATE_FAILED 3

/** Every token. */
#define KRONSAE_SAMPLING_EVERY 1

/** Tokens whose position is a multiple of n. */
#define KRONSAE_SAMPLING_EVERY_NTH 2

/** Tokens with KRONSAE_TOKEN_LAST_PROMPT. */
#define KRONSAE_SAMPLING_LAST_PROMPT 3

/** A rule matched. */
#define KRONSAE_EVENT_MATCHED 1

/** Tokens that an earlier match rests on were taken back by a rewind. */
#define KRONSAE_EVENT_RETRACTED 2

/** Worth knowing. */
#define KRONSAE_SEVERITY_INFO 1

/** Worth looking at. */
#define KRONSAE_SEVERITY_WARNING 2

/** Worth being woken for. */
#define KRONSAE_SEVERITY_CRITICAL 3

/** Prometheus text format 0.0.4. Its content type is `text/plain; version=0.0.4; charset=utf-8`. */
#define KRONSAE_METRICS_PROMETHEUS 1

/** OpenMetrics 1.0. Its content type is `application/openmetrics-text; version=1.0.0; charset=utf-8`. */
#define KRONSAE_METRICS_OPENMETRICS 2

#ifdef __cplusplus
extern "C" {
#endif // __cplusplus

/**
 * The ABI version of the library that is loaded. Compare it with `KRONSAE_ABI_VERSION`, that of the header compiled
 * against: a program that loads the library by `dlopen` should refuse another number.
 *
 * Threads: any, at any time.
 *
 * Since 0.1.0.
 */
uint32_t kronsae_abi_version(void);

/**
 * The version of the library that is loaded, as `KRONSAE_VERSION` composes it: 10000 * major + 100 * minor + patch.
 *
 * Threads: any, at any time.
 *
 * Since 0.1.0.
 */
uint32_t kronsae_version_number(void);

/**
 * The version of the library that is loaded, as text: "0.1.0". A constant of the library; not to be freed.
 *
 * Threads: any, at any time.
 *
 * Since 0.1.0.
 */
const char *kronsae_version_string(void);

/**
 * A short name of a status, for logs: "invalid argument". "unknown status" for a number this library does not know.
 * A constant of the library; not to be freed.
 *
 * Threads: any, at any time.
 *
 * Since 0.1.0.
 */
const char *kronsae_status_name(kronsae_status status);

/**
 * The status of an error, the same as the failed call returned. `KRONSAE_STATUS_OK` for NULL.
 *
 * Threads: any number at once.
 *
 * Since 0.1.0.
 */
kronsae_status kronsae_error_status(const struct kronsae_error *error);

/**
 * The message of an error: which function failed, what was found, what was expected. UTF-8, without a newline; valid
 * until the error is destroyed. An empty string for NULL.
 *
 * Threads: any number at once.
 *
 * Since 0.1.0.
 */
const char *kronsae_error_message(const struct kronsae_error *error);

/**
 * Frees an error and its message. NULL is allowed.
 *
 * Threads: one, when no other uses the error any more.
 *
 * Since 0.1.0.
 */
void kronsae_error_destroy(struct kronsae_error *error);

/**
 * Sets the one log callback of the library, or removes it (NULL, the initial state: the library is silent).
 *
 * When this returns, the previous callback has returned on every thread and will not be called again, so that what its
 * `user_data` points to may be freed. Set it before the first fork(), and not between fork() and exec().
 *
 * Errors: `KRONSAE_STATUS_INVALID_ARGUMENT` if called from inside the callback.
 *
 * Threads: any, at any time.
 *
 * Since 0.1.0.
 */
kronsae_status kronsae_set_log_callback(kronsae_log_callback callback,
                                        void *user_data,
                                        struct kronsae_error **error);

/**
 * Opens a model file: reads all of it into memory and validates it.
 *
 * path: on Unix the file's name in bytes, elsewhere UTF-8. options: NULL for defaults. out: receives the model, to be
 * freed with `kronsae_sae_destroy`; NULL on failure.
 *
 * Errors: `KRONSAE_STATUS_IO` if it cannot be read; `KRONSAE_STATUS_FORMAT` if it is not a valid model file, with a
 * message that says what is wrong where; `KRONSAE_STATUS_OUT_OF_MEMORY`; `KRONSAE_STATUS_INVALID_ARGUMENT`.
 *
 * Threads: any number at once.
 *
 * Since 0.1.0.
 */
kronsae_status kronsae_sae_open(const char *path,
                                const struct kronsae_sae_options *options,
                                struct kronsae_sae **out,
                                struct kronsae_error **error);

/**
 * Opens a model file held in memory. The bytes are copied, and may go when this returns.
 *
 * data: size bytes, of any alignment. The rest as in `kronsae_sae_open`.
 *
 * Errors: as `kronsae_sae_open`, without `KRONSAE_STATUS_IO`.
 *
 * Threads: any number at once.
 *
 * Since 0.1.0.
 */
kronsae_status kronsae_sae_open_bytes(const void *data,
                                      size_t size,
                                      const struct kronsae_sae_options *options,
                                      struct kronsae_sae **out,
                                      struct kronsae_error **error);

/**
 * Describes a model.
 *
 * info: its struct_size says how much is filled; fields that this library does not know become 0.
 *
 * Errors: `KRONSAE_STATUS_INVALID_ARGUMENT`.
 *
 * Threads: any number at once.
 *
 * Since 0.1.0.
 */
kronsae_status kronsae_sae_get_info(const struct kronsae_sae *sae,
                                    struct kronsae_sae_info *info,
                                    struct kronsae_error **error);

/**
 * The model's config, a JSON object as UTF-8 text, unknown keys included.
 *
 * out: receives the text, which belongs to the model and is valid until `kronsae_sae_destroy`.
 *
 * Errors: `KRONSAE_STATUS_INVALID_ARGUMENT`.
 *
 * Threads: any number at once.
 *
 * Since 0.1.0.
 */
kronsae_status kronsae_sae_config_json(const struct kronsae_sae *sae,
                                       const char **out,
                                       struct kronsae_error **error);

/**
 * Where the activations that the model was trained on came from.
 *
 * key: a key of the config's `source` object: "model", "hook", "layer". out: receives its value as UTF-8 text ("15" for
 * a number), which belongs to the model and is valid until `kronsae_sae_destroy`; NULL, with `KRONSAE_STATUS_OK`, if the
 * file does not say.
 *
 * Errors: `KRONSAE_STATUS_INVALID_ARGUMENT`.
 *
 * Threads: any number at once.
 *
 * Since 0.1.0.
 */
kronsae_status kronsae_sae_source(const struct kronsae_sae *sae,
                                  const char *key,
                                  const char **out,
                                  struct kronsae_error **error);

/**
 * Destroys a model. NULL is allowed.
 *
 * Legal while encoders made from it exist: a call in progress ends normally, later ones return
 * `KRONSAE_STATUS_STOPPED`. The weights are freed with the last of them.
 *
 * Threads: one, when no other uses the handle itself any more.
 *
 * Since 0.1.0.
 */
void kronsae_sae_destroy(struct kronsae_sae *sae);

/**
 * Asks the system to let this process use AMX, the matrix tiles of recent Intel CPUs, with which encoders made afterwards
 * encode large batches several times as fast. The library never asks by itself: the permission is the whole process's,
 * for good, and with it alternate signal stacks (sigaltstack) must be some kilobytes larger. Inference engines that use
 * AMX have asked already.
 *
 * Errors: `KRONSAE_STATUS_UNSUPPORTED` if the CPU has none or the system refuses. Nothing has changed then, and
 * everything works without.
 *
 * Threads: any, at any time.
 *
 * Since 0.1.0.
 */
kronsae_status kronsae_request_amx(struct kronsae_error **error);

/**
 * Makes an encoder: allocates its workspace, starts its threads. The first encoder of a model whose batches are worth it
 * also makes an int8 copy of the weights, about two bytes a weight, which all encoders of that model share.
 *
 * options: NULL for defaults. out: receives the encoder, to be freed with `kronsae_encoder_destroy`; NULL on failure.
 *
 * Errors: `KRONSAE_STATUS_OUT_OF_MEMORY` if there is no memory or the system gives no thread;
 * `KRONSAE_STATUS_UNSUPPORTED` if the environment variable KRONSAE_ISA names an instruction set this CPU lacks, or
 * KRONSAE_ENCODE something other than plain or screened; `KRONSAE_STATUS_INVALID_ARGUMENT`.
 *
 * Threads: any number at once.
 *
 * Since 0.1.0.
 */
kronsae_status kronsae_encoder_create(const struct kronsae_sae *sae,
                                      const struct kronsae_encoder_options *options,
                                      struct kronsae_encoder **out,
                                      struct kronsae_error **error);

/**
 * Encodes a batch: activations [rows, d_model] to the latents of each row. Works for any number of rows; the first call
 * done, it allocates nothing.
 *
 * Results are a function of each row and the model alone: batch size, the row's place in it, threads and instruction set
 * never change a bit.
 *
 * activations: raw, as the LLM computes them, in any of the three dtypes. latents: the caller's buffers; those of the
 * first activations->rows rows are written, as are skipped_rows and truncated_rows. A row that is not finite has
 * count 0 and its flag, and is no error.
 *
 * Errors: `KRONSAE_STATUS_INVALID_ARGUMENT`, also if d_model is not the model's or a capacity is below k (TopK);
 * `KRONSAE_STATUS_STOPPED` if the model was destroyed; `KRONSAE_STATUS_FORKED`; `KRONSAE_STATUS_POISONED`. Nothing is
 * written then. `KRONSAE_STATUS_INTERNAL` leaves the buffers' contents unspecified and the encoder poisoned.
 *
 * Threads: one at a time on one encoder.
 *
 * Since 0.1.0.
 */
kronsae_status kronsae_encode(struct kronsae_encoder *encoder,
                              const struct kronsae_activations *activations,
                              struct kronsae_latents *latents,
                              struct kronsae_error **error);

/**
 * Destroys an encoder and ends its threads. NULL is allowed. May come before or after `kronsae_sae_destroy`.
 *
 * Threads: one, when no other uses the encoder any more.
 *
 * Since 0.1.0.
 */
void kronsae_encoder_destroy(struct kronsae_encoder *encoder);

/**
 * Reconstructs activations from latents: `out[r] = output_scale * sum of value * decoder row + decoder bias`, in raw
 * units, F32.
 *
 * latents: counts, indices and values of the first out->rows rows, as `kronsae_encode` wrote them or changed since; the
 * other fields are not looked at. Terms are added in the order given. out: rows, [rows, d_model], dtype
 * `KRONSAE_DTYPE_F32`, data and row_stride multiples of 4.
 *
 * Errors: `KRONSAE_STATUS_INVALID_ARGUMENT`, also for a count above the capacity or an index not below F;
 * `KRONSAE_STATUS_UNSUPPORTED` if the model was opened encoder-only or out is not F32. Nothing is written then.
 *
 * Threads: any number at once on one model.
 *
 * Since 0.1.0.
 */
kronsae_status kronsae_decode(const struct kronsae_sae *sae,
                              const struct kronsae_latents *latents,
                              const struct kronsae_activations_mut *out,
                              struct kronsae_error **error);

/**
 * Adds multiples of latents' decoder rows to activations, in place: the same to each row. The sum of the terms is formed
 * in F32, then added to each element with one rounding to F32 and one to the dtype.
 *
 * activations: [rows, d_model], any dtype, any alignment. terms: n_terms elements, term_size (sizeof(kronsae_steer_term))
 * bytes each; may be NULL if n_terms is 0.
 *
 * Errors: `KRONSAE_STATUS_INVALID_ARGUMENT`, also for a latent not below F or a coefficient that is not finite;
 * `KRONSAE_STATUS_UNSUPPORTED` if the model was opened encoder-only; `KRONSAE_STATUS_OUT_OF_MEMORY`. Nothing is changed
 * then.
 *
 * Threads: any number at once on one model, on different activations.
 *
 * Since 0.1.0.
 */
kronsae_status kronsae_steer(const struct kronsae_sae *sae,
                             const struct kronsae_activations_mut *activations,
                             const struct kronsae_steer_term *terms,
                             size_t n_terms,
                             size_t term_size,
                             struct kronsae_error **error);

/**
 * Uploads a model's encoder to a CUDA device: weights, biases, thresholds. The decoder is not needed.
 *
 * The first call in a process opens the driver and loads the kernels. A library that was built without them compiles them
 * then, which takes some seconds once on a machine: they are kept in `$XDG_CACHE_HOME/kronsae`. The device's primary
 * context is used, the one of the CUDA runtime; what was current on the calling thread is current afterwards.
 *
 * options: NULL for defaults. out: receives the model on its device, to be freed with `kronsae_device_sae_destroy`; NULL on
 * failure.
 *
 * Errors: `KRONSAE_STATUS_UNSUPPORTED`, also if the library was built without CUDA, or something it needs is not there, and
 * the message names it: the driver, one that is new enough, a device, one that is new enough (Ampere), cuBLASLt, or kernels
 * (built in, or libnvrtc to compile them); or if the model selects more than 512 latents a row;
 * `KRONSAE_STATUS_OUT_OF_MEMORY`, also of the device's; `KRONSAE_STATUS_STOPPED` if the model was destroyed;
 * `KRONSAE_STATUS_DEVICE` if the device fails; `KRONSAE_STATUS_INVALID_ARGUMENT`.
 *
 * Threads: any number at once. Waits for the device; not while a stream is being captured in a graph.
 *
 * Unstable: it was tested over emulated kernels and never on a device.
 * Since 0.1.0.
 */
kronsae_status kronsae_device_sae_create(const struct kronsae_sae *sae,
                                         const struct kronsae_device_options *options,
                                         struct kronsae_device_sae **out,
                                         struct kronsae_error **error);

/**
 * Frees a model on its device. NULL is allowed. May come before or after `kronsae_sae_destroy`.
 *
 * Threads: one, when no other uses it any more and all work that was enqueued with it is done.
 *
 * Unstable: it was tested over emulated kernels and never on a device.
 * Since 0.1.0.
 */
void kronsae_device_sae_destroy(struct kronsae_device_sae *device_sae);

/**
 * Bytes of workspace that `kronsae_encode_cuda` needs for batches of up to `rows` rows of `dtype`. It also decides how the
 * products of such batches are computed, so that encoding them need not.
 *
 * The workspace grows with the rows up to those of a tile (see kronsae_device_options), and with no more. One workspace
 * serves one stream at a time.
 *
 * bytes: receives the size; the workspace must start at a multiple of 256, as all that cudaMalloc gives does.
 *
 * Errors: `KRONSAE_STATUS_UNSUPPORTED`, also if the library was built without CUDA; `KRONSAE_STATUS_STOPPED` if the model
 * was destroyed; `KRONSAE_STATUS_FORKED`; `KRONSAE_STATUS_INVALID_ARGUMENT`.
 *
 * Threads: any number at once. Does not touch the device.
 *
 * Unstable: it was tested over emulated kernels and never on a device.
 * Since 0.1.0.
 */
kronsae_status kronsae_encode_cuda_workspace(const struct kronsae_device_sae *device_sae,
                                             size_t rows,
                                             kronsae_dtype dtype,
                                             size_t *bytes,
                                             struct kronsae_error **error);

/**
 * Enqueues the encoding of a batch on the caller's stream: activations [rows, d_model] in the device's memory to the latents
 * of each row there. It allocates nothing and waits for nothing.
 *
 * Selection is exact on the pre-activations that the device computed, in the order of kronsae_latents. Results are the same
 * for the same shape, device and library versions. They are not, bit for bit, those of `kronsae_encode`, nor those of
 * another batch size: products are summed in another order.
 *
 * activations: data is an address on the device, of any alignment; rows that start at multiples of 16 bytes and have the
 * dtype of the computation (see kronsae_compute) are read in place, others are converted first. latents: the caller's
 * buffers on the device; those of the first activations->rows rows are written, when the stream gets there. workspace,
 * workspace_bytes: as `kronsae_encode_cuda_workspace` asks for. stream: a cudaStream_t (or CUstream) of that device's primary
 * context; NULL is the default stream.
 *
 * Errors: `KRONSAE_STATUS_INVALID_ARGUMENT`, also if d_model is not the model's, a capacity is below k (TopK), the workspace
 * is too small, or the stream is of another device: nothing was enqueued then. `KRONSAE_STATUS_UNSUPPORTED`, also if the
 * library was built without CUDA; `KRONSAE_STATUS_STOPPED` if the model was destroyed; `KRONSAE_STATUS_FORKED`;
 * `KRONSAE_STATUS_DEVICE` if the device fails: what is written is unspecified then. A failure of what was enqueued shows
 * where the caller waits for the stream.
 *
 * Graphs: may be captured, after one call with as many rows outside of a capture; buffers, workspace and the model on its
 * device must then live as long as the graph is launched.
 *
 * Threads: any number at once, with buffers and a workspace each.
 *
 * Unstable: it was tested over emulated kernels and never on a device.
 * Since 0.1.0.
 */
kronsae_status kronsae_encode_cuda(const struct kronsae_device_sae *device_sae,
                                   const struct kronsae_activations *activations,
                                   const struct kronsae_device_latents *latents,
                                   void *workspace,
                                   size_t workspace_bytes,
                                   void *stream,
                                   struct kronsae_error **error);

/**
 * Makes a monitor without sites, and starts its workers, which sleep until a tap is fed.
 *
 * options: NULL for defaults. out: receives the monitor, to be freed with `kronsae_monitor_destroy`; NULL on failure.
 *
 * Errors: `KRONSAE_STATUS_INVALID_ARGUMENT`, also for a CPU, share or nice value that is none;
 * `KRONSAE_STATUS_OUT_OF_MEMORY`, also if memory_limit is too low or the system gives no thread;
 * `KRONSAE_STATUS_UNSUPPORTED` if the system refuses the scheduling asked for.
 *
 * Threads: any number at once.
 *
 * Since 0.1.0.
 */
kronsae_status kronsae_monitor_create(const struct kronsae_monitor_options *options,
                                      struct kronsae_monitor **out,
                                      struct kronsae_error **error);

/**
 * Says what a monitor is doing and where its tokens went.
 *
 * status: its struct_size says how much is filled; fields that this library does not know become 0.
 *
 * Errors: `KRONSAE_STATUS_INVALID_ARGUMENT`; `KRONSAE_STATUS_FORKED`.
 *
 * Threads: any number at once; not for serving threads.
 *
 * Since 0.1.0.
 */
kronsae_status kronsae_monitor_get_status(const struct kronsae_monitor *monitor,
                                          struct kronsae_monitor_status *status,
                                          struct kronsae_error **error);

/**
 * Waits until all that was submitted before is encoded and its events are made and delivered: tokens, ends of requests
 * and rewinds.
 *
 * Errors: `KRONSAE_STATUS_TIMEOUT` if it takes longer than timeout_ms, and it may be waited for again;
 * `KRONSAE_STATUS_STOPPED` if the monitor is stopped before that; `KRONSAE_STATUS_POISONED` if a worker failed;
 * `KRONSAE_STATUS_FORKED`; `KRONSAE_STATUS_INVALID_ARGUMENT`, also if called from inside a callback of a monitor, whose
 * worker it would wait for.
 *
 * Threads: any number at once; not for serving threads.
 *
 * Since 0.1.0.
 */
kronsae_status kronsae_monitor_flush(const struct kronsae_monitor *monitor,
                                     uint32_t timeout_ms,
                                     struct kronsae_error **error);

/**
 * Ends a monitor's work: taps refuse from now on, what they took in is encoded, recordings are closed, workers end.
 * Counters, events and metrics can still be asked for. Stopping again is no error.
 *
 * Errors: `KRONSAE_STATUS_TIMEOUT` if that takes longer than timeout_ms: taps refuse all the same, workers go on, and
 * it may be called again. `KRONSAE_STATUS_FORKED`; `KRONSAE_STATUS_INVALID_ARGUMENT`, also if called from inside a
 * callback of a monitor.
 *
 * Threads: any number at once; not for serving threads.
 *
 * Since 0.1.0.
 */
kronsae_status kronsae_monitor_stop(const struct kronsae_monitor *monitor,
                                    uint32_t timeout_ms,
                                    struct kronsae_error **error);

/**
 * Destroys a monitor. If it was not stopped, its workers end at the next batch boundary; what is queued is lost. NULL is
 * allowed.
 *
 * Legal while taps and recorders of it exist, and while other threads are in calls on those: later ones return
 * `KRONSAE_STATUS_STOPPED`. Waits for a callback in progress; when it returns, none is called any more. From inside a
 * callback it does nothing but log.
 *
 * Threads: one, when no other uses the handle itself any more; not a serving thread.
 *
 * Since 0.1.0.
 */
void kronsae_monitor_destroy(struct kronsae_monitor *monitor);

/**
 * Adds a site to a monitor. Rules in force that name no site apply to it, too.
 *
 * options: must not be NULL; name has no default. sae: the model, of which the monitor keeps what it needs, so that the
 * handle may be destroyed; opened encoder-only it does. NULL: there is no model yet, tokens are only recorded. site:
 * receives the site's number, for taps.
 *
 * Errors: `KRONSAE_STATUS_INVALID_ARGUMENT`, also if the name is taken, the model was trained at another layer, or a
 * rule in force does not fit the model; `KRONSAE_STATUS_IO` if the model's file has changed since it was opened;
 * `KRONSAE_STATUS_OUT_OF_MEMORY`, also where memory_limit is reached; `KRONSAE_STATUS_TIMEOUT` if the worker is busy for
 * a minute (in a callback, say), and nothing was changed; `KRONSAE_STATUS_STOPPED`; `KRONSAE_STATUS_POISONED` if a worker
 * failed; `KRONSAE_STATUS_FORKED`.
 *
 * Threads: any number at once; not for serving threads.
 *
 * Since 0.1.0.
 */
kronsae_status kronsae_monitor_add_site(const struct kronsae_monitor *monitor,
                                        const struct kronsae_site_options *options,
                                        const struct kronsae_sae *sae,
                                        uint32_t *site,
                                        struct kronsae_error **error);

/**
 * Puts another model in force at a site, at a batch boundary, while taps go on. The site's statistics start anew.
 *
 * sae: of the same d_model as the one before, and rules in force must fit it, or the old one stays in force. As in
 * `kronsae_monitor_add_site` the handle may be destroyed afterwards. Device taps of the site have it copied to their devices;
 * what the old one has encoded there and is not on the host yet is counted as dropped.
 *
 * Errors: as `kronsae_monitor_add_site`; with device taps, also those of `kronsae_device_sae_create`. The old model stays in
 * force then.
 *
 * Threads: any number at once; not for serving threads.
 *
 * Since 0.1.0.
 */
kronsae_status kronsae_monitor_replace_sae(const struct kronsae_monitor *monitor,
                                           uint32_t site,
                                           const struct kronsae_sae *sae,
                                           struct kronsae_error **error);

/**
 * Reads a TOML file of rules and puts them in force at all sites that they name, in place of those before. Requests
 * in progress go on under the new rules, their windows start anew.
 *
 * A rule may name a site that there is not yet, so that rules can be loaded before sites are added: it waits, is checked
 * when a site of that name is added, and stands in the snapshot under `unbound_rules` until then. The log callback is
 * told (warning), as it may as well be a mistaken name.
 *
 * path: on Unix the file's name in bytes, elsewhere UTF-8.
 *
 * Errors: `KRONSAE_STATUS_IO`; `KRONSAE_STATUS_FORMAT` if it is not TOML or not rules, with a message that says where;
 * `KRONSAE_STATUS_INVALID_ARGUMENT` if a rule does not fit the model of a site it is for (a latent
 * that it does not have, a quantile without a calibration); `KRONSAE_STATUS_TIMEOUT`, `KRONSAE_STATUS_STOPPED`,
 * `KRONSAE_STATUS_POISONED` and `KRONSAE_STATUS_FORKED` as in `kronsae_monitor_add_site`. The old rules stay in force
 * then.
 *
 * Threads: any number at once; not for serving threads.
 *
 * Since 0.1.0.
 */
kronsae_status kronsae_monitor_load_rules(const struct kronsae_monitor *monitor,
                                          const char *path,
                                          struct kronsae_error **error);

/**
 * As `kronsae_monitor_load_rules`, from memory.
 *
 * toml: size bytes of UTF-8, without a NUL at their end. Of no bytes there are no rules.
 *
 * Errors: as `kronsae_monitor_load_rules`, without `KRONSAE_STATUS_IO`.
 *
 * Threads: any number at once; not for serving threads.
 *
 * Since 0.1.0.
 */
kronsae_status kronsae_monitor_set_rules(const struct kronsae_monitor *monitor,
                                         const char *toml,
                                         size_t size,
                                         struct kronsae_error **error);

/**
 * Reads labels of a site's latents, a TSV file of index and text, in place of those before. The live page and the
 * metrics show them.
 *
 * path: on Unix the file's name in bytes, elsewhere UTF-8.
 *
 * Errors: `KRONSAE_STATUS_IO`; `KRONSAE_STATUS_FORMAT`, with a message that says which line;
 * `KRONSAE_STATUS_INVALID_ARGUMENT`, also for a label of a latent that the model does not have; `KRONSAE_STATUS_FORKED`.
 * The old labels stay then.
 *
 * Threads: any number at once; not for serving threads.
 *
 * Since 0.1.0.
 */
kronsae_status kronsae_monitor_load_labels(const struct kronsae_monitor *monitor,
                                           uint32_t site,
                                           const char *path,
                                           struct kronsae_error **error);

/**
 * Makes a tap at a site: allocates its queue.
 *
 * options: NULL for defaults. out: receives the tap, to be freed with `kronsae_tap_destroy`; NULL on failure.
 *
 * Errors: `KRONSAE_STATUS_INVALID_ARGUMENT`, also if there is no such site; `KRONSAE_STATUS_OUT_OF_MEMORY`, also where
 * memory_limit is reached; `KRONSAE_STATUS_STOPPED`; `KRONSAE_STATUS_FORKED`.
 *
 * Threads: any number at once; not for serving threads.
 *
 * Since 0.1.0.
 */
kronsae_status kronsae_tap_create(const struct kronsae_monitor *monitor,
                                  uint32_t site,
                                  const struct kronsae_tap_options *options,
                                  struct kronsae_tap **out,
                                  struct kronsae_error **error);

/**
 * Hands over a batch: copies activations [rows, d_model] and their tags into the tap's queue, and returns. Made for
 * serving threads: on success, and when it drops tokens, it takes no lock, allocates nothing, logs nothing and never
 * waits.
 *
 * activations: raw, as the LLM computes them, in any of the three dtypes. tags: one for each row, of tag_size
 * (sizeof(kronsae_token_tag)) bytes each; tokens of a request in ascending order of position. accepted: NULL, or
 * receives how many rows were queued. The others are counted: those that sampling leaves out, and those that are dropped
 * because the queue has no room, the last ones of a batch. That is no error.
 *
 * Errors: `KRONSAE_STATUS_INVALID_ARGUMENT`, also if d_model is not the site's or the dtype is wider than the tap's;
 * `KRONSAE_STATUS_STOPPED` if the monitor was stopped or destroyed; `KRONSAE_STATUS_FORKED`; `KRONSAE_STATUS_POISONED`.
 * No row is queued or counted then.
 *
 * Threads: one at a time on one tap.
 *
 * Since 0.1.0.
 */
kronsae_status kronsae_tap_submit(struct kronsae_tap *tap,
                                  const struct kronsae_activations *activations,
                                  const struct kronsae_token_tag *tags,
                                  size_t tag_size,
                                  size_t *accepted,
                                  struct kronsae_error **error);

/**
 * Encodes a batch on the calling thread, for hosts that act on the result, and hands it to the monitor's statistics and
 * rules as `kronsae_tap_submit` does.
 *
 * activations, tags: as in `kronsae_tap_submit`. latents: as in `kronsae_encode`, all rows, whatever the tap samples.
 * accepted: NULL, or receives how many rows were queued for statistics and rules; the others are counted, as in
 * `kronsae_tap_submit`. This takes as long as encoding does. The first call allocates an encoder; later ones of no more rows allocate nothing.
 *
 * Errors: as `kronsae_tap_submit` and `kronsae_encode`; `KRONSAE_STATUS_UNSUPPORTED` at a site without a model.
 *
 * Threads: one at a time on one tap.
 *
 * Since 0.1.0.
 */
kronsae_status kronsae_tap_encode(struct kronsae_tap *tap,
                                  const struct kronsae_activations *activations,
                                  const struct kronsae_token_tag *tags,
                                  size_t tag_size,
                                  struct kronsae_latents *latents,
                                  size_t *accepted,
                                  struct kronsae_error **error);

/**
 * Says that a request is over: its state is freed once the tokens submitted before are encoded. It travels in the
 * tap's queue, in order, in slots that tokens cannot fill.
 *
 * A request that ends without this call is given up when its room is needed.
 *
 * Errors: `KRONSAE_STATUS_FULL` if the slots are full of such calls, and nothing was done; `KRONSAE_STATUS_STOPPED`;
 * `KRONSAE_STATUS_FORKED`; `KRONSAE_STATUS_POISONED`; `KRONSAE_STATUS_INVALID_ARGUMENT`.
 *
 * Threads: one at a time on one tap. Made for serving threads, as `kronsae_tap_submit`.
 *
 * Since 0.1.0.
 */
kronsae_status kronsae_tap_end_request(struct kronsae_tap *tap,
                                       uint64_t request,
                                       struct kronsae_error **error);

/**
 * Takes back the tokens of a request from a position on (speculative decoding, a regenerated answer): they leave the
 * windows of rules, and a match that rests on them is followed by an event of kind `KRONSAE_EVENT_RETRACTED`.
 * Statistics keep them: they were computed. It travels in the tap's queue as `kronsae_tap_end_request` does.
 *
 * Errors: as `kronsae_tap_end_request`.
 *
 * Threads: one at a time on one tap. Made for serving threads, as `kronsae_tap_submit`.
 *
 * Since 0.1.0.
 */
kronsae_status kronsae_tap_rewind(struct kronsae_tap *tap,
                                  uint64_t request,
                                  int32_t position,
                                  struct kronsae_error **error);

/**
 * Destroys a tap. What it took in is still encoded, and its counters stay in the monitor's sums. NULL is allowed. May
 * come before or after `kronsae_monitor_destroy`.
 *
 * Threads: one, when no other uses the tap any more.
 *
 * Since 0.1.0.
 */
void kronsae_tap_destroy(struct kronsae_tap *tap);

/**
 * Makes a device tap at a site: copies the site's model to the device, unless another tap of the site with the same
 * options has it there, and allocates memory for the batches in flight, there and, pinned, on the host. The latter counts
 * in memory_limit; the snapshot has the former as device_memory.
 *
 * options: NULL for defaults. out: receives the tap, to be freed with `kronsae_device_tap_destroy`; NULL on failure.
 *
 * The site's model may be replaced at any time. Batches that the former one has encoded and no worker has taken are
 * counted as dropped then. A site with a device tap cannot record, as its activations never reach the host.
 *
 * Errors: `KRONSAE_STATUS_UNSUPPORTED`, as `kronsae_device_sae_create`, and if the site has no model or records;
 * `KRONSAE_STATUS_INVALID_ARGUMENT`, also if there is no such site; `KRONSAE_STATUS_OUT_OF_MEMORY`, also the device's, and
 * where memory_limit is reached; `KRONSAE_STATUS_TIMEOUT` if the worker is busy for a minute; `KRONSAE_STATUS_STOPPED`;
 * `KRONSAE_STATUS_POISONED` if a worker failed; `KRONSAE_STATUS_FORKED`; `KRONSAE_STATUS_DEVICE` if the device fails.
 *
 * Threads: any number at once; not for serving threads. Waits for the device; not while a stream is being captured in a
 * graph, and not in a callback of a monitor.
 *
 * Unstable: it was tested over emulated kernels and never on a device.
 * Since 0.1.0.
 */
kronsae_status kronsae_device_tap_create(const struct kronsae_monitor *monitor,
                                         uint32_t site,
                                         const struct kronsae_device_tap_options *options,
                                         struct kronsae_device_tap **out,
                                         struct kronsae_error **error);

/**
 * Hands over a batch: enqueues on the caller's stream its encoding, the copy of the latents to the host and an event that a
 * worker looks for, and returns. Made for serving threads: it waits for nothing, neither the device nor a lock, allocates
 * nothing and logs nothing.
 *
 * activations: data is an address on the device; the rows are read when the stream gets there, and may be overwritten by
 * what is enqueued on it afterwards. tags: in the host's memory, one for each row, of tag_size (sizeof(kronsae_token_tag))
 * bytes each; tokens of a request in ascending order of position; copied before the call returns. accepted: NULL, or
 * receives how many rows were taken. The others are counted: those that sampling leaves out, and those that are dropped
 * because no slot is free, whole batches at the end. That is no error; nor is a device that failed, after which everything
 * is dropped, the log says so once, and the snapshot why. stream: a cudaStream_t (or CUstream) of that device's primary
 * context; NULL is the default stream. It may be another one at each call.
 *
 * Sampled rows that lie equally far apart are encoded alone, others with the rows between them; where sampling takes no
 * row, nothing is enqueued.
 *
 * Errors: `KRONSAE_STATUS_INVALID_ARGUMENT`, also if d_model is not the site's, the stream is of another device, or it is
 * being captured in a graph (the capture goes on); `KRONSAE_STATUS_UNSUPPORTED` if the library was built without CUDA;
 * `KRONSAE_STATUS_STOPPED` if the monitor was stopped or destroyed; `KRONSAE_STATUS_FORKED`; `KRONSAE_STATUS_POISONED`. No
 * row is enqueued or counted then.
 *
 * Graphs: refused while capturing. A host that launches a graph submits behind each launch, on the same stream.
 *
 * Threads: one at a time on one tap.
 *
 * Unstable: it was tested over emulated kernels and never on a device.
 * Since 0.1.0.
 */
kronsae_status kronsae_device_tap_submit(struct kronsae_device_tap *tap,
                                         const struct kronsae_activations *activations,
                                         const struct kronsae_token_tag *tags,
                                         size_t tag_size,
                                         size_t *accepted,
                                         void *stream,
                                         struct kronsae_error **error);

/**
 * Says that a request is over, in order with its tokens, as `kronsae_tap_end_request` does.
 *
 * Errors: as `kronsae_tap_end_request`; `KRONSAE_STATUS_UNSUPPORTED` if the library was built without CUDA.
 *
 * Threads: one at a time on one tap. Made for serving threads. Does not touch the device.
 *
 * Unstable: it was tested over emulated kernels and never on a device.
 * Since 0.1.0.
 */
kronsae_status kronsae_device_tap_end_request(struct kronsae_device_tap *tap,
                                              uint64_t request,
                                              struct kronsae_error **error);

/**
 * Takes back the tokens of a request from a position on, in order with its tokens, as `kronsae_tap_rewind` does.
 *
 * Errors: as `kronsae_device_tap_end_request`.
 *
 * Threads: one at a time on one tap. Made for serving threads. Does not touch the device.
 *
 * Unstable: it was tested over emulated kernels and never on a device.
 * Since 0.1.0.
 */
kronsae_status kronsae_device_tap_rewind(struct kronsae_device_tap *tap,
                                         uint64_t request,
                                         int32_t position,
                                         struct kronsae_error **error);

/**
 * Destroys a device tap. What it took in is still encoded, and its counters stay in the monitor's sums; where the monitor is
 * gone, the call waits for what the device still does for it. NULL is allowed. May come before or after
 * `kronsae_monitor_destroy`.
 *
 * Threads: one, when no other uses the tap any more.
 *
 * Unstable: it was tested over emulated kernels and never on a device.
 * Since 0.1.0.
 */
void kronsae_device_tap_destroy(struct kronsae_device_tap *tap);

/**
 * Takes the oldest events, at most `most`, out of a monitor's queue. Waits up to timeout_ms for the first; 0 does not
 * wait.
 *
 * out: receives the batch, which may be empty, to be freed with `kronsae_event_batch_destroy`; NULL on failure.
 *
 * Errors: `KRONSAE_STATUS_STOPPED` once the monitor has come to its end, or a worker failed, and no event is left, so that
 * a loop can end (while a stop drains, events still come); `KRONSAE_STATUS_FORKED`;
 * `KRONSAE_STATUS_INVALID_ARGUMENT`, also if most is 0.
 *
 * Threads: any number at once, each event going to one of them; not for serving threads.
 *
 * Since 0.1.0.
 */
kronsae_status kronsae_monitor_poll_events(const struct kronsae_monitor *monitor,
                                           size_t most,
                                           uint32_t timeout_ms,
                                           struct kronsae_event_batch **out,
                                           struct kronsae_error **error);

/**
 * How many events a batch has. 0 for NULL.
 *
 * Threads: any number at once.
 *
 * Since 0.1.0.
 */
size_t kronsae_event_batch_count(const struct kronsae_event_batch *batch);

/**
 * Gives one event of a batch, the oldest first.
 *
 * index: below the batch's count. event: its struct_size says how much is filled. What it points to belongs to the batch
 * and is valid until that is destroyed.
 *
 * Errors: `KRONSAE_STATUS_INVALID_ARGUMENT`.
 *
 * Threads: any number at once.
 *
 * Since 0.1.0.
 */
kronsae_status kronsae_event_batch_get(const struct kronsae_event_batch *batch,
                                       size_t index,
                                       struct kronsae_event *event,
                                       struct kronsae_error **error);

/**
 * Frees a batch of events and all that its events point to. NULL is allowed.
 *
 * Threads: one, when no other uses the batch any more.
 *
 * Since 0.1.0.
 */
void kronsae_event_batch_destroy(struct kronsae_event_batch *batch);

/**
 * Sets the one event callback of a monitor, or removes it (NULL, the initial state). While there is one it receives the
 * events as they are made, and polling receives none.
 *
 * When this returns, the previous callback has returned on every worker and will not be called again, so that what its
 * `user_data` points to may be freed. It waits for that as long as it takes.
 *
 * Errors: `KRONSAE_STATUS_INVALID_ARGUMENT`, also if called from inside a callback of a monitor; `KRONSAE_STATUS_FORKED`.
 *
 * Threads: any number at once; not for serving threads.
 *
 * Since 0.1.0.
 */
kronsae_status kronsae_monitor_set_event_callback(const struct kronsae_monitor *monitor,
                                                  kronsae_event_callback callback,
                                                  void *user_data,
                                                  struct kronsae_error **error);

/**
 * Sets how the text of tokens is found, or removes it (NULL, the initial state: no text appears anywhere, token ids do).
 *
 * With it, the live page shows the text of recent tokens to whoever may see the page, and a recording that asks for
 * text has it. The rest as in `kronsae_monitor_set_event_callback`.
 *
 * Errors: as `kronsae_monitor_set_event_callback`.
 *
 * Threads: any number at once; not for serving threads.
 *
 * Since 0.1.0.
 */
kronsae_status kronsae_monitor_set_token_text(const struct kronsae_monitor *monitor,
                                              kronsae_token_text_callback callback,
                                              void *user_data,
                                              struct kronsae_error **error);

/**
 * Writes the metrics of a monitor as text, for the endpoint that a host serves to Prometheus.
 *
 * form: `KRONSAE_METRICS_*`; 0: Prometheus. buffer: capacity bytes; may be NULL if capacity is 0. size: receives the
 * bytes of the text, without the NUL that follows it. The text was written if that is below capacity; otherwise there
 * is nothing but a NUL, and it may be tried again with more room (a little more than size: the text changes meanwhile).
 * That is no error.
 *
 * Errors: `KRONSAE_STATUS_INVALID_ARGUMENT`; `KRONSAE_STATUS_FORKED`.
 *
 * Threads: any number at once, with buffers of their own; not for serving threads.
 *
 * Since 0.1.0.
 */
kronsae_status kronsae_monitor_metrics(const struct kronsae_monitor *monitor,
                                       kronsae_metrics_form form,
                                       char *buffer,
                                       size_t capacity,
                                       size_t *size,
                                       struct kronsae_error **error);

/**
 * Writes all that a monitor counts as a JSON object, UTF-8: state, sites, taps, statistics, histograms, rules. Numbers
 * that do not exist (the mean of a latent that never fired) are null.
 *
 * buffer, capacity, size: as in `kronsae_monitor_metrics`.
 *
 * Errors: as `kronsae_monitor_metrics`.
 *
 * Threads: any number at once, with buffers of their own; not for serving threads.
 *
 * Since 0.1.0.
 */
kronsae_status kronsae_monitor_snapshot_json(const struct kronsae_monitor *monitor,
                                             char *buffer,
                                             size_t capacity,
                                             size_t *size,
                                             struct kronsae_error **error);

/**
 * Serves the live page of a monitor, `/metrics`, a JSON snapshot and a stream of events over HTTP, read-only, on threads
 * of its own, until the monitor is destroyed: after `kronsae_monitor_stop` the last numbers can still be fetched. One
 * page a monitor.
 *
 * options: NULL for defaults. bound: NULL with capacity 0, or receives the address it listens at, with the port, as
 * "127.0.0.1:41234" and a NUL; capacity at least `KRONSAE_ADDRESS_CAPACITY`.
 *
 * Errors: `KRONSAE_STATUS_IO` if it cannot listen there (the port is in use, say); `KRONSAE_STATUS_INVALID_ARGUMENT`,
 * also for an address beyond loopback without a token, or if the page is served already; `KRONSAE_STATUS_UNSUPPORTED`
 * if the library was built without the feature `live`; `KRONSAE_STATUS_FORKED`.
 *
 * Threads: any number at once; not for serving threads.
 *
 * Since 0.1.0.
 */
kronsae_status kronsae_monitor_serve(const struct kronsae_monitor *monitor,
                                     const struct kronsae_serve_options *options,
                                     char *bound,
                                     size_t capacity,
                                     struct kronsae_error **error);

/**
 * Starts to record what the taps of a site take in, from the next batch on. One recording a site at a time.
 *
 * options: must not be NULL; folder has no default. out: receives the recorder, to be freed with
 * `kronsae_recorder_destroy`; NULL on failure.
 *
 * Errors: `KRONSAE_STATUS_IO` if the folder cannot be made or written to; `KRONSAE_STATUS_INVALID_ARGUMENT`, also if
 * there is no such site or it is recorded already; `KRONSAE_STATUS_UNSUPPORTED` if it has device taps, whose activations
 * never reach the host; `KRONSAE_STATUS_OUT_OF_MEMORY`; `KRONSAE_STATUS_STOPPED`; `KRONSAE_STATUS_FORKED`.
 *
 * Threads: any number at once; not for serving threads.
 *
 * Since 0.1.0.
 */
kronsae_status kronsae_recorder_start(const struct kronsae_monitor *monitor,
                                      uint32_t site,
                                      const struct kronsae_recorder_options *options,
                                      struct kronsae_recorder **out,
                                      struct kronsae_error **error);

/**
 * Says how far a recording is.
 *
 * status: its struct_size says how much is filled; fields that this library does not know become 0.
 *
 * Errors: `KRONSAE_STATUS_STOPPED` if the monitor was destroyed; `KRONSAE_STATUS_INVALID_ARGUMENT`;
 * `KRONSAE_STATUS_FORKED`.
 *
 * Threads: any number at once; not for serving threads.
 *
 * Since 0.1.0.
 */
kronsae_status kronsae_recorder_get_status(const struct kronsae_recorder *recorder,
                                           struct kronsae_recorder_status *status,
                                           struct kronsae_error **error);

/**
 * Ends a recording: writes the last shard, and forgets it. NULL is allowed. May come before or after
 * `kronsae_monitor_destroy`, which ends it too. From inside a callback of a monitor it does nothing but log.
 *
 * Threads: one, when no other uses the recorder any more; not a serving thread.
 *
 * Since 0.1.0.
 */
void kronsae_recorder_destroy(struct kronsae_recorder *recorder);

#ifdef __cplusplus
}  // extern "C"
#endif  // __cplusplus

#endif  /* KRONSAE_H */
