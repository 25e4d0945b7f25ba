/* See hostile.h. */

#if !defined(_POSIX_C_SOURCE)
#define _POSIX_C_SOURCE 200809L /* fork, waitpid */
#endif

#include "hostile.h"
#include "check.h"

#include <math.h>
#include <stdlib.h>
#include <sys/wait.h>
#include <unistd.h>

enum { D = 8, ROWS = 2, CAPACITY = 3 };

/* Everything a call needs, valid until a test spoils one part of it. */
typedef struct {
    kronsae_sae *sae;
    kronsae_encoder *encoder;
    float x[ROWS * D + 2];
    uint32_t counts[ROWS + 1], indices[ROWS * CAPACITY + 1], active[ROWS + 1];
    float values[ROWS * CAPACITY + 1];
    uint8_t flags[ROWS];
    kronsae_activations in;
    kronsae_activations_mut out;
    kronsae_latents latents;
    kronsae_steer_term term;
} scene;

static void *shifted(void *pointer, size_t bytes) { return (char *)pointer + bytes; }

static void reset(scene *s) {
    const kronsae_activations in = KRONSAE_ACTIVATIONS_INIT;
    const kronsae_activations_mut out = KRONSAE_ACTIVATIONS_MUT_INIT;
    const kronsae_latents latents = KRONSAE_LATENTS_INIT;
    size_t i;
    for (i = 0; i < ROWS * D; i++) s->x[i] = 1.0f;
    memset(s->counts, 0, sizeof s->counts);
    memset(s->indices, 0, sizeof s->indices);
    memset(s->values, 0, sizeof s->values);
    s->in = in;
    s->in.dtype = KRONSAE_DTYPE_F32;
    s->in.data = s->x;
    s->in.rows = ROWS;
    s->in.d_model = D;
    s->out = out;
    s->out.dtype = KRONSAE_DTYPE_F32;
    s->out.data = s->x;
    s->out.rows = ROWS;
    s->out.d_model = D;
    s->latents = latents;
    s->latents.rows = ROWS;
    s->latents.capacity = CAPACITY;
    s->latents.counts = s->counts;
    s->latents.indices = s->indices;
    s->latents.values = s->values;
    s->latents.active = s->active;
    s->latents.row_flags = s->flags;
    s->term.latent = 1;
    s->term.coefficient = 1.0f;
}

static void encode_refused(scene *s, kronsae_status expected, const char *what, int line) {
    kronsae_error *error = NULL;
    kronsae_status status;
    s->counts[0] = 77;
    status = kronsae_encode(s->encoder, &s->in, &s->latents, &error);
    check_refused(status, expected, error, what, __FILE__, line);
    CHECK(s->counts[0] == 77); /* nothing was written */
    reset(s);
    CHECK(kronsae_encode(s->encoder, &s->in, &s->latents, NULL) == KRONSAE_STATUS_OK); /* and the encoder still works */
    reset(s);
}

static void decode_refused(scene *s, kronsae_status expected, const char *what, int line) {
    kronsae_error *error = NULL;
    kronsae_status status;
    s->x[0] = 77.0f;
    status = kronsae_decode(s->sae, &s->latents, &s->out, &error);
    check_refused(status, expected, error, what, __FILE__, line);
    CHECK(s->x[0] == 77.0f);
    reset(s);
    CHECK(kronsae_decode(s->sae, &s->latents, &s->out, NULL) == KRONSAE_STATUS_OK);
    reset(s);
}

static void steer_refused(scene *s, const kronsae_steer_term *terms, size_t n, size_t size, const char *what, int line) {
    kronsae_error *error = NULL;
    kronsae_status status = kronsae_steer(s->sae, &s->out, terms, n, size, &error);
    check_refused(status, KRONSAE_STATUS_INVALID_ARGUMENT, error, what, __FILE__, line);
    CHECK(s->x[0] == 1.0f && s->x[1] == 1.0f);
    reset(s);
}

#define BAD KRONSAE_STATUS_INVALID_ARGUMENT
#define SPOIL_ENCODE(change, what) ((change), encode_refused(s, BAD, what, __LINE__))
#define SPOIL_DECODE(change, what) ((change), decode_refused(s, BAD, what, __LINE__))
#define SPOIL_STEER(change, what) ((change), steer_refused(s, &s->term, 1, sizeof s->term, what, __LINE__))

static void hostile_encode(scene *s) {
    SPOIL_ENCODE(s->in.struct_size = 0, "struct_size is 0");
    SPOIL_ENCODE(s->in.struct_size -= 8, "kronsae_activations: struct_size");
    SPOIL_ENCODE(s->in.struct_size = 0xFFFFFFFF, "struct_size is 4294967295");
    SPOIL_ENCODE(s->in.dtype = 0, "dtype is 0");
    SPOIL_ENCODE(s->in.dtype = 4, "dtype is 4");
    SPOIL_ENCODE(s->in.dtype = -1, "dtype is -1");
    SPOIL_ENCODE(s->in.data = NULL, "data is null");
    SPOIL_ENCODE(s->in.d_model = D - 1, "d_model 7, the model expects 8");
    SPOIL_ENCODE(s->in.d_model = 0, "d_model");
    SPOIL_ENCODE(s->in.d_model = SIZE_MAX, "overflow");
    SPOIL_ENCODE(s->in.rows = ROWS + 1, "room for 2 rows, the activations have 3");
    SPOIL_ENCODE((s->in.rows = SIZE_MAX, s->latents.rows = SIZE_MAX), "overflow");
    SPOIL_ENCODE(s->in.row_stride = SIZE_MAX, "overflow");
    SPOIL_ENCODE(s->latents.struct_size = 8, "kronsae_latents: struct_size is 8");
    SPOIL_ENCODE(s->latents.reserved = 1, "reserved is 1");
    SPOIL_ENCODE(s->latents.capacity = CAPACITY - 1, "capacity 2 is below K = 3");
    SPOIL_ENCODE(s->latents.capacity = 0, "capacity");
    SPOIL_ENCODE(s->latents.capacity = SIZE_MAX, "overflow");
    SPOIL_ENCODE(s->latents.capacity = SIZE_MAX / 16, "overlap");
    SPOIL_ENCODE(s->latents.counts = NULL, "counts is null");
    SPOIL_ENCODE(s->latents.indices = NULL, "indices is null");
    SPOIL_ENCODE(s->latents.values = NULL, "values is null");
    SPOIL_ENCODE(s->latents.counts = shifted(s->counts, 2), "misaligned");
    SPOIL_ENCODE(s->latents.indices = shifted(s->indices, 1), "indices at");
    SPOIL_ENCODE(s->latents.values = shifted(s->values, 3), "values at");
    SPOIL_ENCODE(s->latents.active = shifted(s->active, 2), "active at");
    SPOIL_ENCODE(s->latents.active = s->counts, "counts and active overlap");
    SPOIL_ENCODE(s->latents.indices = shifted(s->values, 4), "indices and values overlap");
    SPOIL_ENCODE(s->latents.values = s->x, "values and activations overlap");
}

static void hostile_decode(scene *s) {
    SPOIL_DECODE(s->out.struct_size = 4, "kronsae_activations_mut: struct_size is 4");
    SPOIL_DECODE(s->out.data = NULL, "data is null");
    SPOIL_DECODE(s->out.data = shifted(s->x, 2), "misaligned");
    SPOIL_DECODE(s->out.row_stride = D * 4 + 2, "multiple of 4");
    SPOIL_DECODE(s->out.row_stride = D * 4 - 4, "overlap");
    SPOIL_DECODE(s->out.d_model = D + 1, "d_model 9");
    SPOIL_DECODE(s->out.rows = ROWS + 1, "room for 2 rows");
    SPOIL_DECODE(s->latents.struct_size = 0, "struct_size is 0");
    SPOIL_DECODE(s->latents.counts = NULL, "counts is null");
    SPOIL_DECODE(s->latents.indices = shifted(s->indices, 2), "misaligned");
    SPOIL_DECODE(s->counts[1] = CAPACITY + 1, "count 4 of row 1 is above the capacity 3");
    SPOIL_DECODE((s->counts[1] = 1, s->indices[CAPACITY] = 8), "index 8 in row 1 is not below F = 8");
    SPOIL_DECODE(s->latents.values = s->x, "overlap");
    s->out.dtype = KRONSAE_DTYPE_BF16;
    decode_refused(s, KRONSAE_STATUS_UNSUPPORTED, "F32", __LINE__);
}

static void hostile_steer(scene *s) {
    kronsae_steer_term later[2][2] = {{{1, 1.0f}, {0, 0.0f}}, {{2, 1.0f}, {5, 0.0f}}};
    SPOIL_STEER(s->term.latent = 8, "latent 8 is not below F = 8");
    SPOIL_STEER(s->term.coefficient = NAN, "coefficient");
    SPOIL_STEER(s->out.dtype = 9, "dtype is 9");
    SPOIL_STEER(s->out.data = NULL, "data is null");
    SPOIL_STEER(s->out.d_model = 3, "d_model 3");
    SPOIL_STEER(s->out.row_stride = 4, "overlap");
    SPOIL_STEER(s->out.struct_size = 1, "struct_size is 1");
    steer_refused(s, NULL, 1, sizeof s->term, "terms is null", __LINE__);
    steer_refused(s, shifted(&s->term, 2), 1, sizeof s->term, "misaligned", __LINE__);
    steer_refused(s, &s->term, 1, 4, "term_size is 4", __LINE__);
    steer_refused(s, &s->term, 1, 10, "term_size is 10", __LINE__);
    steer_refused(s, &s->term, 1, 1 << 20, "term_size", __LINE__);
    steer_refused(s, &s->term, SIZE_MAX / 4, sizeof s->term, "terms", __LINE__);
    steer_refused(s, (const kronsae_steer_term *)(const void *)s->x, 1, sizeof s->term, "overlap", __LINE__);
    /* Terms of a later version: refused where they ask for more than this one knows, else taken. */
    steer_refused(s, later[0], 2, sizeof later[0], "term 1 sets a field", __LINE__);
    later[1][1].latent = 0;
    CHECK(kronsae_steer(s->sae, &s->out, later[0], 2, sizeof later[0], NULL) == KRONSAE_STATUS_OK);
    CHECK(s->x[0] == 1.0f && s->x[1] == 3.0f && s->x[2] == 3.0f);
    reset(s);
}

static void hostile_handles(scene *s, const char *tiny) {
    uint64_t zeroes[64] = {0};
    kronsae_error *error = NULL;
    kronsae_sae *sae = s->sae;
    kronsae_encoder *encoder = s->encoder;
    kronsae_sae_options options = KRONSAE_SAE_OPTIONS_INIT;
    kronsae_encoder_options threads = KRONSAE_ENCODER_OPTIONS_INIT;
    kronsae_sae_info info = KRONSAE_SAE_INFO_INIT;
    const char *text = "";

    kronsae_sae_destroy(NULL);
    kronsae_encoder_destroy(NULL);
    kronsae_error_destroy(NULL);
    CHECK(kronsae_error_status(NULL) == KRONSAE_STATUS_OK && kronsae_error_message(NULL)[0] == '\0');

    s->encoder = NULL;
    REFUSED(kronsae_encode(NULL, &s->in, &s->latents, &error), BAD, "kronsae_encoder is null");
    REFUSED(kronsae_encode(encoder, NULL, &s->latents, &error), BAD, "kronsae_activations is null");
    REFUSED(kronsae_encode(encoder, &s->in, NULL, &error), BAD, "kronsae_latents is null");
    REFUSED(kronsae_encode(encoder, shifted(&s->in, 4), &s->latents, &error), BAD, "misaligned");
    REFUSED(kronsae_encode(shifted(encoder, 4), &s->in, &s->latents, &error), BAD, "misaligned");
    /* Neither zeroes nor a handle of another type pass for one; destroying them does nothing. */
    REFUSED(kronsae_encode((kronsae_encoder *)(void *)zeroes, &s->in, &s->latents, &error), BAD, "not a live");
    REFUSED(kronsae_encode((kronsae_encoder *)(void *)sae, &s->in, &s->latents, &error), BAD, "not a live");
    REFUSED(kronsae_decode((kronsae_sae *)(void *)encoder, &s->latents, &s->out, &error), BAD, "not a live");
    kronsae_sae_destroy((kronsae_sae *)(void *)zeroes);
    kronsae_sae_destroy((kronsae_sae *)(void *)encoder);
    s->encoder = encoder;

    REFUSED(kronsae_decode(NULL, &s->latents, &s->out, &error), BAD, "kronsae_sae is null");
    REFUSED(kronsae_decode(sae, NULL, &s->out, &error), BAD, "null");
    REFUSED(kronsae_decode(sae, &s->latents, NULL, &error), BAD, "null");
    REFUSED(kronsae_steer(sae, NULL, &s->term, 1, sizeof s->term, &error), BAD, "null");
    REFUSED(kronsae_sae_get_info(sae, NULL, &error), BAD, "kronsae_sae_info is null");
    info.struct_size = 12;
    REFUSED(kronsae_sae_get_info(sae, &info, &error), BAD, "struct_size is 12");
    REFUSED(kronsae_sae_config_json(sae, NULL, &error), BAD, "out is null");
    REFUSED(kronsae_sae_config_json(NULL, &text, &error), BAD, "kronsae_sae is null");
    CHECK(text == NULL);
    REFUSED(kronsae_sae_source(sae, NULL, &text, &error), BAD, "key is null");

    REFUSED(kronsae_sae_open(NULL, NULL, &sae, &error), BAD, "path is null");
    CHECK(sae == NULL);
    REFUSED(kronsae_sae_open(tiny, NULL, NULL, &error), BAD, "out is null");
    REFUSED(kronsae_sae_open("/nonexistent/model", NULL, &sae, &error), KRONSAE_STATUS_IO, "/nonexistent/model");
    REFUSED(kronsae_sae_open_bytes(NULL, 8, NULL, &sae, &error), BAD, "data is null");
    REFUSED(kronsae_sae_open_bytes(tiny, SIZE_MAX, NULL, &sae, &error), BAD, "data");
    REFUSED(kronsae_sae_open_bytes("", 0, NULL, &sae, &error), KRONSAE_STATUS_FORMAT, "model bytes");
    options.encoder_only = 2;
    REFUSED(kronsae_sae_open(tiny, &options, &sae, &error), BAD, "encoder_only is 2");
    threads.threads = 1025;
    REFUSED(kronsae_encoder_create(s->sae, &threads, &encoder, &error), BAD, "1025");
    CHECK(encoder == NULL);
    REFUSED(kronsae_encoder_create(NULL, NULL, &encoder, &error), BAD, "kronsae_sae is null");

    /* No place for the error is no reason to fail, and no place to write is one. */
    CHECK(kronsae_sae_open(NULL, NULL, &sae, NULL) == BAD);
    CHECK(kronsae_sae_get_info(s->sae, &info, (kronsae_error **)shifted(zeroes, 1)) == BAD);
    error = (kronsae_error *)(void *)zeroes;
    info.struct_size = sizeof info;
    CHECK(kronsae_sae_get_info(s->sae, &info, &error) == KRONSAE_STATUS_OK && error == NULL);

    /* Encoder-only: encodes, and says why it does not decode. */
    options.encoder_only = 1;
    CHECK(kronsae_sae_open(tiny, &options, &sae, NULL) == KRONSAE_STATUS_OK);
    CHECK(kronsae_sae_get_info(sae, &info, NULL) == KRONSAE_STATUS_OK && info.has_decoder == 0);
    REFUSED(kronsae_decode(sae, &s->latents, &s->out, &error), KRONSAE_STATUS_UNSUPPORTED, "encoder-only");
    REFUSED(kronsae_steer(sae, &s->out, &s->term, 1, sizeof s->term, &error), KRONSAE_STATUS_UNSUPPORTED, "encoder-only");
    kronsae_sae_destroy(sae);
}

void hostile_arguments(const char *tiny) {
    scene whole, *s = &whole;
    memset(s, 0, sizeof *s);
    CHECK(kronsae_sae_open(tiny, NULL, &s->sae, NULL) == KRONSAE_STATUS_OK);
    CHECK(kronsae_encoder_create(s->sae, NULL, &s->encoder, NULL) == KRONSAE_STATUS_OK);
    reset(s);
    hostile_encode(s);
    hostile_decode(s);
    hostile_steer(s);
    hostile_handles(s, tiny);
    kronsae_encoder_destroy(s->encoder);
    kronsae_sae_destroy(s->sae);
}

/* A model destroyed under its encoders: they say so, and can still be destroyed. */
void hostile_lifetimes(const char *tiny) {
    scene whole, *s = &whole;
    kronsae_error *error = NULL;
    kronsae_encoder_options options = KRONSAE_ENCODER_OPTIONS_INIT;
    int i;
    memset(s, 0, sizeof *s);
    options.threads = 3;
    CHECK(kronsae_sae_open(tiny, NULL, &s->sae, NULL) == KRONSAE_STATUS_OK);
    CHECK(kronsae_encoder_create(s->sae, &options, &s->encoder, NULL) == KRONSAE_STATUS_OK);
    reset(s);
    CHECK(kronsae_encode(s->encoder, &s->in, &s->latents, NULL) == KRONSAE_STATUS_OK);
    kronsae_sae_destroy(s->sae);
    for (i = 0; i < 2; i++) {
        REFUSED(kronsae_encode(s->encoder, &s->in, &s->latents, &error), KRONSAE_STATUS_STOPPED, "destroyed");
    }
    kronsae_encoder_destroy(s->encoder);
}

/* In a child process: the encoder refuses, the model works, and everything can be destroyed. */
void hostile_fork(const char *tiny) {
    scene whole, *s = &whole;
    kronsae_encoder_options options = KRONSAE_ENCODER_OPTIONS_INIT;
    kronsae_error *error = NULL;
    kronsae_encoder *own = NULL;
    int status = -1;
    pid_t child;
    memset(s, 0, sizeof *s);
    options.threads = 2;
    CHECK(kronsae_sae_open(tiny, NULL, &s->sae, NULL) == KRONSAE_STATUS_OK);
    CHECK(kronsae_encoder_create(s->sae, &options, &s->encoder, NULL) == KRONSAE_STATUS_OK);
    reset(s);
    /* All its threads have started after this: what one owns that has not, a child would lose. */
    CHECK(kronsae_encode(s->encoder, &s->in, &s->latents, NULL) == KRONSAE_STATUS_OK);
    fflush(NULL);
    child = fork();
    CHECK(child >= 0);
    if (child == 0) {
        unsigned before = checks_failed;
        REFUSED(kronsae_encode(s->encoder, &s->in, &s->latents, &error), KRONSAE_STATUS_FORKED, "fork");
        CHECK(kronsae_decode(s->sae, &s->latents, &s->out, NULL) == KRONSAE_STATUS_OK);
        CHECK(kronsae_encoder_create(s->sae, &options, &own, NULL) == KRONSAE_STATUS_OK);
        reset(s);
        CHECK(kronsae_encode(own, &s->in, &s->latents, NULL) == KRONSAE_STATUS_OK && s->counts[0] == 3);
        kronsae_encoder_destroy(own);
        kronsae_encoder_destroy(s->encoder);
        kronsae_sae_destroy(s->sae);
        fflush(NULL);
        _exit(checks_failed == before ? 0 : 1);
    }
    CHECK(waitpid(child, &status, 0) == child && WIFEXITED(status) && WEXITSTATUS(status) == 0);
    /* The parent has not noticed. */
    CHECK(kronsae_encode(s->encoder, &s->in, &s->latents, NULL) == KRONSAE_STATUS_OK && s->counts[0] == 3);
    kronsae_encoder_destroy(s->encoder);
    kronsae_sae_destroy(s->sae);
}

/* A program that exits while an encoder's threads live: it ends, and cleanly. */
void hostile_exit(const char *tiny) {
    static scene whole; /* static: what is reachable from it at exit is not lost */
    scene *s = &whole;
    kronsae_encoder_options options = KRONSAE_ENCODER_OPTIONS_INIT;
    int status = -1;
    pid_t child;
    options.threads = 3;
    fflush(NULL);
    child = fork();
    CHECK(child >= 0);
    if (child == 0) {
        if (kronsae_sae_open(tiny, NULL, &s->sae, NULL) != KRONSAE_STATUS_OK) exit(1);
        if (kronsae_encoder_create(s->sae, &options, &s->encoder, NULL) != KRONSAE_STATUS_OK) exit(2);
        reset(s);
        exit(kronsae_encode(s->encoder, &s->in, &s->latents, NULL) == KRONSAE_STATUS_OK ? 0 : 3);
    }
    CHECK(waitpid(child, &status, 0) == child && WIFEXITED(status) && WEXITSTATUS(status) == 0);
}
