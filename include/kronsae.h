/*
 * kronsae: sparse latents of a language model's activations, on the CPU.
 *
 * A trained sparse autoencoder (a KronSAE, or an ordinary "dense" one) comes as one file. This library opens it,
 * encodes activation vectors into sparse latents, decodes latents back, and steers activations with them. It needs no
 * Python and no GPU. For C++ there is kronsae.hpp, a thin layer over this header.
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
 * Errors. Every call that can fail returns a kronsae_status, 0 for success, and takes a kronsae_error ** last, which may
 * be NULL. On failure it receives an error to read (what was found, what was expected) and to free with
 * kronsae_error_destroy; on success it receives NULL. What it held before is overwritten, not freed. A failed call has
 * written nothing else, except where its description says so. No call ends the process: a bug inside the library is
 * caught and returned as KRONSAE_STATUS_INTERNAL. The non-const handle it happened on then returns
 * KRONSAE_STATUS_POISONED; a shared model goes on working.
 *
 * Threads. A const handle may be used by any number of threads at once, a non-const one by one thread at a time, and
 * destroying one is like any other non-const use. Each type says so again. The library starts threads only where an
 * option asks for them.
 *
 * Ownership. What a _create or an _open returns is freed by the _destroy of its type, which accepts NULL. Handles keep
 * alive what they need: a kronsae_sae may be destroyed before its encoders, whose calls then return
 * KRONSAE_STATUS_STOPPED. Buffers stay the caller's and are used during the call only. Text that belongs to a handle is
 * valid until that is destroyed. A handle used after its _destroy is often noticed and refused, but cannot always be.
 *
 * Structs. Each struct that may grow begins with struct_size, set by its _INIT macro; zero means default. A library that
 * is older than the header refuses fields it does not know, unless they are 0; a newer one fills in the defaults.
 *
 * fork(). In a child process a kronsae_sae goes on working, an encoder returns KRONSAE_STATUS_FORKED (make a new one),
 * and _destroy is fine on both.
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
#define KRONSAE_ENCODER_OPTIONS_INIT { sizeof(kronsae_encoder_options), 0 }

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

/**
 * Turns activations into sparse latents: a model, a workspace, and threads of its own.
 *
 * Threads: one at a time; make one for each thread that encodes. A call that overlaps another on the same encoder is
 * refused with `KRONSAE_STATUS_INVALID_ARGUMENT`. Its threads sleep between calls, block all signals and are named
 * `kronsae-*`. In a child process its calls return `KRONSAE_STATUS_FORKED`.
 */
typedef struct kronsae_encoder kronsae_encoder;

/**
 * Why a call failed: a status and a sentence. Owned by whoever received it; free it with `kronsae_error_destroy`.
 *
 * Threads: immutable. Any number of threads may read one at once; one destroys it, when the others are done.
 */
typedef struct kronsae_error kronsae_error;

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
 * It runs on the thread that called the library, several threads may be in it at once, and it must return: no exception,
 * longjmp or thread exit may leave it (the process is aborted if one does). What it logs by calling this library again
 * is dropped.
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

/** How an encoder works. Start from `KRONSAE_ENCODER_OPTIONS_INIT`; zero means default. */
typedef struct kronsae_encoder_options {
    /** sizeof(kronsae_encoder_options). */
    uint32_t struct_size;
    /**
     * Threads of a call, the caller's included, at most 1024; never more are used. 0: one, the caller's. Results do not
     * depend on it.
     */
    uint32_t threads;
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
 * Makes an encoder: allocates its workspace, starts its threads. The first encoder of a model whose small batches are worth
 * it also makes an int8 copy of the weights, about a byte a weight, which all encoders of that model share.
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

#ifdef __cplusplus
}  // extern "C"
#endif  // __cplusplus

#endif  /* KRONSAE_H */
