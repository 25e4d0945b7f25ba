/*
 * What cgo needs besides kronsae.h: structs that point to slices are built here, on the C stack, from plain arguments.
 * Pointers that are arguments themselves are pinned by cgo for the call; pointers inside a Go struct would have to be
 * pinned one by one. Results come back by value, so that no Go variable has to escape to the heap.
 */
#ifndef KRONSAE_GO_SHIM_H
#define KRONSAE_GO_SHIM_H

#include <kronsae.h>

typedef struct go_done {
    kronsae_status status;
    kronsae_error *error;
} go_done;

typedef struct go_encoded {
    go_done done;
    size_t skipped;
    size_t truncated;
} go_encoded;

typedef struct go_submitted {
    go_done done;
    size_t accepted;
} go_submitted;

typedef struct go_tapped {
    go_encoded encoded;
    size_t accepted;
} go_tapped;

typedef struct go_info {
    go_done done;
    kronsae_sae_info info;
} go_info;

/* Activations of the caller; data may be NULL if rows is 0. */
typedef struct go_rows {
    kronsae_dtype dtype;
    size_t rows;
    size_t d_model;
    size_t stride; /* bytes, or 0 */
} go_rows;

static inline kronsae_activations go_activations(const unsigned char *data, go_rows rows) {
    kronsae_activations x = KRONSAE_ACTIVATIONS_INIT;
    x.dtype = rows.dtype;
    x.data = data;
    x.rows = rows.rows;
    x.d_model = rows.d_model;
    x.row_stride = rows.stride;
    return x;
}

static inline kronsae_latents go_latents(size_t rows, size_t capacity, uint32_t *counts, uint32_t *indices,
                                         float *values, uint32_t *active, uint8_t *flags) {
    kronsae_latents latents = KRONSAE_LATENTS_INIT;
    latents.rows = rows;
    latents.capacity = capacity;
    latents.counts = counts;
    latents.indices = indices;
    latents.values = values;
    latents.active = active;
    latents.row_flags = flags;
    return latents;
}

static inline go_info go_sae_info(const kronsae_sae *sae) {
    go_info out = {{0, NULL}, KRONSAE_SAE_INFO_INIT};
    out.done.status = kronsae_sae_get_info(sae, &out.info, &out.done.error);
    return out;
}

static inline go_encoded go_encode(kronsae_encoder *encoder, const unsigned char *data, go_rows rows,
                                   size_t out_rows, size_t capacity, uint32_t *counts, uint32_t *indices,
                                   float *values, uint32_t *active, uint8_t *flags) {
    const kronsae_activations x = go_activations(data, rows);
    kronsae_latents latents = go_latents(out_rows, capacity, counts, indices, values, active, flags);
    go_encoded out = {{0, NULL}, 0, 0};
    out.done.status = kronsae_encode(encoder, &x, &latents, &out.done.error);
    out.skipped = latents.skipped_rows;
    out.truncated = latents.truncated_rows;
    return out;
}

static inline go_done go_decode(const kronsae_sae *sae, size_t latent_rows, size_t capacity, uint32_t *counts,
                                uint32_t *indices, float *values, float *data, size_t rows, size_t d_model) {
    const kronsae_latents latents = go_latents(latent_rows, capacity, counts, indices, values, NULL, NULL);
    kronsae_activations_mut x = KRONSAE_ACTIVATIONS_MUT_INIT;
    x.dtype = KRONSAE_DTYPE_F32;
    x.data = data;
    x.rows = rows;
    x.d_model = d_model;
    go_done out = {0, NULL};
    out.status = kronsae_decode(sae, &latents, &x, &out.error);
    return out;
}

static inline go_done go_steer(const kronsae_sae *sae, unsigned char *data, go_rows rows,
                               const kronsae_steer_term *terms, size_t n_terms) {
    kronsae_activations_mut x = KRONSAE_ACTIVATIONS_MUT_INIT;
    x.dtype = rows.dtype;
    x.data = data;
    x.rows = rows.rows;
    x.d_model = rows.d_model;
    x.row_stride = rows.stride;
    go_done out = {0, NULL};
    out.status = kronsae_steer(sae, &x, terms, n_terms, sizeof(kronsae_steer_term), &out.error);
    return out;
}

static inline go_submitted go_submit(kronsae_tap *tap, const unsigned char *data, go_rows rows,
                                     const kronsae_token_tag *tags) {
    const kronsae_activations x = go_activations(data, rows);
    go_submitted out = {{0, NULL}, 0};
    out.done.status = kronsae_tap_submit(tap, &x, tags, sizeof *tags, &out.accepted, &out.done.error);
    return out;
}

static inline go_tapped go_tap_encode(kronsae_tap *tap, const unsigned char *data, go_rows rows,
                                      const kronsae_token_tag *tags, size_t out_rows, size_t capacity,
                                      uint32_t *counts, uint32_t *indices, float *values, uint32_t *active,
                                      uint8_t *flags) {
    const kronsae_activations x = go_activations(data, rows);
    kronsae_latents latents = go_latents(out_rows, capacity, counts, indices, values, active, flags);
    go_tapped out = {{{0, NULL}, 0, 0}, 0};
    out.encoded.done.status =
        kronsae_tap_encode(tap, &x, tags, sizeof *tags, &latents, &out.accepted, &out.encoded.done.error);
    out.encoded.skipped = latents.skipped_rows;
    out.encoded.truncated = latents.truncated_rows;
    return out;
}

static inline go_done go_end_request(kronsae_tap *tap, uint64_t request) {
    go_done out = {0, NULL};
    out.status = kronsae_tap_end_request(tap, request, &out.error);
    return out;
}

static inline go_done go_rewind(kronsae_tap *tap, uint64_t request, int32_t position) {
    go_done out = {0, NULL};
    out.status = kronsae_tap_rewind(tap, request, position, &out.error);
    return out;
}

#endif
