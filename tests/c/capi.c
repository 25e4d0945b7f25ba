/* The C ABI as a C program uses it: capi TINY THRESHOLD RANDOM, the three files of examples/make_model.rs. */

#include "check.h"
#include "hostile.h"

#include <fenv.h>
#include <math.h>
#include <stdlib.h>

unsigned checks_made = 0;
unsigned checks_failed = 0;

enum { D = 8, ROWS = 4, CAPACITY = 4 };

/* Four tokens for the models whose encoder is the identity; see make_model.rs for what their latents are. */
static float tokens[ROWS][D] = {
    {4, 1, 9, 0, 1, 0, 1, 16},         /* (0, 6) (5, 4) (2, 3) (4, 1) */
    {-1, -2, -3, -4, -5, -6, -7, -8},  /* none */
    {1, 1, 0, 1, 1, 1, 1, 1},          /* made not finite below */
    {1, 0, 4, 0, 0, 0, 0, 0},          /* (0, 2) */
};

typedef struct {
    uint32_t counts[ROWS], indices[ROWS * CAPACITY], active[ROWS];
    float values[ROWS * CAPACITY];
    uint8_t flags[ROWS];
    kronsae_latents view;
} buffers;

static void prepare(buffers *b, size_t capacity) {
    kronsae_latents view = KRONSAE_LATENTS_INIT;
    memset(b, 0xEE, sizeof *b);
    view.rows = ROWS;
    view.capacity = capacity;
    view.counts = b->counts;
    view.indices = b->indices;
    view.values = b->values;
    view.active = b->active;
    view.row_flags = b->flags;
    b->view = view;
}

static kronsae_activations view_of(const float *data, size_t rows, size_t d_model) {
    kronsae_activations x = KRONSAE_ACTIVATIONS_INIT;
    x.dtype = KRONSAE_DTYPE_F32;
    x.data = data;
    x.rows = rows;
    x.d_model = d_model;
    return x;
}

static void versions(void) {
    char text[32];
    snprintf(text, sizeof text, "%d.%d.%d", KRONSAE_VERSION_MAJOR, KRONSAE_VERSION_MINOR, KRONSAE_VERSION_PATCH);
    CHECK(strcmp(kronsae_version_string(), text) == 0);
    CHECK(kronsae_version_number() == KRONSAE_VERSION);
    CHECK(kronsae_abi_version() == KRONSAE_ABI_VERSION);
    CHECK(strcmp(kronsae_status_name(KRONSAE_STATUS_FORMAT), "bad file format") == 0);
    CHECK(strcmp(kronsae_status_name(-1), "unknown status") == 0);
}

static void model_information(const kronsae_sae *sae) {
    kronsae_sae_info info = KRONSAE_SAE_INFO_INIT;
    const char *text = NULL;
    CHECK(kronsae_sae_get_info(sae, &info, NULL) == KRONSAE_STATUS_OK);
    CHECK(info.struct_size == sizeof info);
    CHECK(info.encoder_kind == KRONSAE_ENCODER_KRON && info.selection_kind == KRONSAE_SELECTION_TOPK);
    CHECK(info.weights_dtype == KRONSAE_DTYPE_F32 && info.has_decoder == 1 && info.has_calibration == 0);
    CHECK(info.has_latent_thresholds == 0 && info.calibration_levels == 0);
    CHECK(info.d_model == D && info.latents == 8 && info.encoder_rows == 8);
    CHECK(info.heads == 2 && info.base == 2 && info.extension == 2);
    CHECK(info.k == 3 && info.max_latents == 0 && info.capacity == 3);
    CHECK(info.output_scale == 2.0f && info.theta == 0.0f);
    CHECK(kronsae_sae_config_json(sae, &text, NULL) == KRONSAE_STATUS_OK);
    CHECK(text != NULL && strstr(text, "\"encoder\":\"kron\"") != NULL);
    CHECK(kronsae_sae_source(sae, "layer", &text, NULL) == KRONSAE_STATUS_OK && strcmp(text, "15") == 0);
    CHECK(kronsae_sae_source(sae, "elsewhere", &text, NULL) == KRONSAE_STATUS_OK && text == NULL);
}

/* What a caller built with a later header sees: the fields this library knows, and zeroes after them. */
static void later_structs(const kronsae_sae *sae) {
    struct {
        kronsae_sae_info known;
        uint64_t later;
    } info;
    struct {
        kronsae_encoder_options known;
        uint64_t later;
    } options;
    kronsae_encoder *encoder = NULL;
    memset(&info, 0xEE, sizeof info);
    info.known.struct_size = sizeof info;
    CHECK(kronsae_sae_get_info(sae, &info.known, NULL) == KRONSAE_STATUS_OK);
    CHECK(info.known.struct_size == sizeof info && info.known.capacity == 3 && info.later == 0);
    memset(&options, 0, sizeof options);
    options.known.struct_size = sizeof options;
    CHECK(kronsae_encoder_create(sae, &options.known, &encoder, NULL) == KRONSAE_STATUS_OK);
    kronsae_encoder_destroy(encoder);
    options.later = 1;
    CHECK(kronsae_encoder_create(sae, &options.known, &encoder, NULL) == KRONSAE_STATUS_INVALID_ARGUMENT);
    CHECK(encoder == NULL);
}

static void encode_topk(kronsae_encoder *encoder) {
    buffers b;
    kronsae_activations x = view_of(&tokens[0][0], ROWS, D);
    prepare(&b, CAPACITY);
    CHECK(kronsae_encode(encoder, &x, &b.view, NULL) == KRONSAE_STATUS_OK);
    CHECK(b.counts[0] == 3 && b.counts[1] == 0 && b.counts[2] == 0 && b.counts[3] == 1);
    CHECK(b.indices[0] == 0 && b.indices[1] == 5 && b.indices[2] == 2);
    CHECK(b.values[0] == 6.0f && b.values[1] == 4.0f && b.values[2] == 3.0f);
    CHECK(b.indices[3 * CAPACITY] == 0 && b.values[3 * CAPACITY] == 2.0f);
    CHECK(b.indices[3] == 0xEEEEEEEE && b.indices[CAPACITY] == 0xEEEEEEEE); /* past the count: untouched */
    CHECK(b.active[0] == 3 && b.active[1] == 0 && b.active[3] == 1);
    CHECK(b.flags[0] == 0 && b.flags[1] == 0 && b.flags[2] == KRONSAE_ROW_NOT_FINITE);
    CHECK(b.view.skipped_rows == 1 && b.view.truncated_rows == 0);

    /* No rows are no error, and need no memory. */
    x = view_of(NULL, 0, D);
    b.view.rows = 0;
    b.view.counts = NULL;
    CHECK(kronsae_encode(encoder, &x, &b.view, NULL) == KRONSAE_STATUS_OK);
    CHECK(b.view.skipped_rows == 0);
}

static void encode_threshold(const char *path) {
    kronsae_sae *sae = NULL;
    kronsae_encoder *encoder = NULL;
    kronsae_sae_info info = KRONSAE_SAE_INFO_INIT;
    buffers b;
    kronsae_activations x = view_of(&tokens[0][0], ROWS, D);
    CHECK(kronsae_sae_open(path, NULL, &sae, NULL) == KRONSAE_STATUS_OK);
    CHECK(kronsae_encoder_create(sae, NULL, &encoder, NULL) == KRONSAE_STATUS_OK);
    CHECK(kronsae_sae_get_info(sae, &info, NULL) == KRONSAE_STATUS_OK);
    CHECK(info.selection_kind == KRONSAE_SELECTION_THRESHOLD && info.theta == 2.0f && info.max_latents == 4);
    prepare(&b, 2); /* a smaller capacity cuts, and says so */
    CHECK(kronsae_encode(encoder, &x, &b.view, NULL) == KRONSAE_STATUS_OK);
    CHECK(b.counts[0] == 2 && b.active[0] == 3 && b.flags[0] == KRONSAE_ROW_TRUNCATED);
    CHECK(b.indices[0] == 0 && b.indices[1] == 5 && b.values[1] == 4.0f);
    CHECK(b.counts[3] == 0 && b.flags[3] == 0); /* 2 is not above 2 */
    CHECK(b.view.truncated_rows == 1 && b.view.skipped_rows == 1);
    kronsae_encoder_destroy(encoder);
    kronsae_sae_destroy(sae);
}

static void decode(const kronsae_sae *sae, kronsae_encoder *encoder) {
    buffers b;
    float out[2][D + 2];
    kronsae_activations x = view_of(&tokens[0][0], 2, D);
    kronsae_activations_mut to = KRONSAE_ACTIVATIONS_MUT_INIT;
    const float expected[D] = {12.5f, 0.5f, 6.5f, 0.5f, 0.5f, 8.5f, 0.5f, 0.5f};
    size_t i;
    prepare(&b, CAPACITY);
    CHECK(kronsae_encode(encoder, &x, &b.view, NULL) == KRONSAE_STATUS_OK);
    memset(out, 0, sizeof out);
    to.dtype = KRONSAE_DTYPE_F32;
    to.data = &out[0][0];
    to.rows = 2;
    to.d_model = D;
    to.row_stride = sizeof out[0];
    CHECK(kronsae_decode(sae, &b.view, &to, NULL) == KRONSAE_STATUS_OK);
    for (i = 0; i < D; i++) CHECK(out[0][i] == expected[i] && out[1][i] == 0.5f);
    CHECK(out[0][D] == 0.0f && out[0][D + 1] == 0.0f); /* between the rows: untouched */
    to.row_stride = 0;
    CHECK(kronsae_decode(sae, &b.view, &to, NULL) == KRONSAE_STATUS_OK);
    for (i = 0; i < D; i++) CHECK((&out[0][0])[i] == expected[i] && (&out[0][0])[D + i] == 0.5f);
}

static void steer(const kronsae_sae *sae) {
    unsigned char raw[1 + 2 * D * sizeof(uint16_t)];
    float row[2 * D];
    const kronsae_steer_term terms[2] = {{1, 0.5f}, {6, -2.0f}};
    kronsae_activations_mut x = KRONSAE_ACTIVATIONS_MUT_INIT;
    size_t i;
    for (i = 0; i < 2 * D; i++) row[i] = 1.0f;
    x.dtype = KRONSAE_DTYPE_F32;
    x.data = row;
    x.rows = 2;
    x.d_model = D;
    CHECK(kronsae_steer(sae, &x, terms, 2, sizeof terms[0], NULL) == KRONSAE_STATUS_OK);
    for (i = 0; i < 2 * D; i++) CHECK(row[i] == (i % D == 1 ? 2.0f : i % D == 6 ? -3.0f : 1.0f));
    CHECK(kronsae_steer(sae, &x, NULL, 0, sizeof terms[0], NULL) == KRONSAE_STATUS_OK);

    /* bf16 at an odd address: 1.0 is 0x3F80, 2.0 0x4000, -3.0 0xC040 */
    for (i = 0; i < 2 * D; i++) {
        raw[1 + 2 * i] = 0x80;
        raw[2 + 2 * i] = 0x3F;
    }
    x.dtype = KRONSAE_DTYPE_BF16;
    x.data = raw + 1;
    CHECK(kronsae_steer(sae, &x, terms, 2, sizeof terms[0], NULL) == KRONSAE_STATUS_OK);
    CHECK(raw[1 + 2] == 0x00 && raw[1 + 3] == 0x40 && raw[1 + 12] == 0x40 && raw[1 + 13] == 0xC0);
    CHECK(raw[1 + 4] == 0x80 && raw[1 + 5] == 0x3F);
}

/* A model of a usual shape: the same bits row by row and as a batch, on one thread and three, from f32 and bf16. */
static void invariance(const char *path) {
    enum { N = 61, WIDTH = 100, K = 24 };
    static float x[N * WIDTH];
    static unsigned char narrow[1 + N * WIDTH * 2];
    static uint32_t counts[2][N], indices[2][N * K];
    static float values[2][N * K];
    kronsae_sae *sae = NULL;
    kronsae_encoder *one = NULL, *three = NULL;
    kronsae_encoder_options options = KRONSAE_ENCODER_OPTIONS_INIT;
    kronsae_latents to = KRONSAE_LATENTS_INIT;
    kronsae_activations from;
    uint32_t state = 1, total = 0;
    size_t i;
    for (i = 0; i < N * WIDTH; i++) {
        uint32_t bits;
        state = state * 1664525u + 1013904223u;
        x[i] = (float)(state >> 8) / 8388608.0f - 1.0f;
        memcpy(&bits, &x[i], 4);
        bits &= 0xFFFF0000u; /* exactly a bf16 */
        memcpy(&x[i], &bits, 4);
        narrow[1 + 2 * i] = (unsigned char)(bits >> 16);
        narrow[2 + 2 * i] = (unsigned char)(bits >> 24);
    }
    options.threads = 3;
    CHECK(kronsae_sae_open(path, NULL, &sae, NULL) == KRONSAE_STATUS_OK);
    CHECK(kronsae_encoder_create(sae, NULL, &one, NULL) == KRONSAE_STATUS_OK);
    CHECK(kronsae_encoder_create(sae, &options, &three, NULL) == KRONSAE_STATUS_OK);
    to.capacity = K;
    to.rows = N;
    to.counts = counts[0];
    to.indices = indices[0];
    to.values = values[0];
    from = view_of(x, N, WIDTH);
    CHECK(kronsae_encode(three, &from, &to, NULL) == KRONSAE_STATUS_OK);
    for (i = 0; i < N; i++) {
        to.rows = 1;
        to.counts = &counts[1][i];
        to.indices = &indices[1][i * K];
        to.values = &values[1][i * K];
        from.dtype = KRONSAE_DTYPE_BF16;
        from.data = narrow + 1 + i * WIDTH * 2;
        from.rows = 1;
        CHECK(kronsae_encode(one, &from, &to, NULL) == KRONSAE_STATUS_OK);
        total += counts[1][i];
    }
    CHECK(total > N * K / 2);
    CHECK(memcmp(counts[0], counts[1], sizeof counts[0]) == 0);
    CHECK(memcmp(indices[0], indices[1], sizeof indices[0]) == 0);
    CHECK(memcmp(values[0], values[1], sizeof values[0]) == 0);
    kronsae_encoder_destroy(three);
    kronsae_encoder_destroy(one);
    kronsae_sae_destroy(sae);
}

/* Buffers of exactly the size that is promised to be enough, on the heap: valgrind sees one byte read or written too far. */
static void exact_buffers(const char *path) {
    enum { N = 5, STRIDE = 37 * sizeof(float) };
    const size_t extent = (N - 1) * STRIDE + D * sizeof(float);
    kronsae_sae *sae = NULL;
    kronsae_encoder *encoder = NULL;
    kronsae_latents to = KRONSAE_LATENTS_INIT;
    kronsae_activations from = KRONSAE_ACTIVATIONS_INIT;
    kronsae_activations_mut out = KRONSAE_ACTIVATIONS_MUT_INIT;
    const kronsae_steer_term term = {2, 1.0f};
    char *x = malloc(extent), *y = malloc(extent);
    size_t r;
    CHECK(kronsae_sae_open(path, NULL, &sae, NULL) == KRONSAE_STATUS_OK);
    CHECK(kronsae_encoder_create(sae, NULL, &encoder, NULL) == KRONSAE_STATUS_OK);
    to.rows = N;
    to.capacity = 3;
    to.counts = malloc(N * sizeof *to.counts);
    to.indices = malloc(N * 3 * sizeof *to.indices);
    to.values = malloc(N * 3 * sizeof *to.values);
    to.active = malloc(N * sizeof *to.active);
    to.row_flags = malloc(N);
    CHECK(x && y && to.counts && to.indices && to.values && to.active && to.row_flags);
    for (r = 0; r < N; r++) { /* what lies between the rows is never written, so nobody may read it */
        memcpy(x + r * STRIDE, tokens[0], sizeof tokens[0]);
        memcpy(y + r * STRIDE, tokens[0], sizeof tokens[0]);
    }
    from.dtype = out.dtype = KRONSAE_DTYPE_F32;
    from.data = x;
    from.rows = out.rows = N;
    from.d_model = out.d_model = D;
    from.row_stride = out.row_stride = STRIDE;
    out.data = y;
    CHECK(kronsae_encode(encoder, &from, &to, NULL) == KRONSAE_STATUS_OK);
    CHECK(kronsae_decode(sae, &to, &out, NULL) == KRONSAE_STATUS_OK);
    CHECK(kronsae_steer(sae, &out, &term, 1, sizeof term, NULL) == KRONSAE_STATUS_OK);
    for (r = 0; r < N; r++) {
        float row[D];
        memcpy(row, y + r * STRIDE, sizeof row);
        CHECK(to.counts[r] == 3 && to.active[r] == 3 && to.row_flags[r] == 0 && to.indices[r * 3 + 1] == 5);
        CHECK(row[0] == 12.5f && row[2] == 8.5f && row[5] == 8.5f && row[7] == 0.5f);
    }
    free(to.row_flags);
    free(to.active);
    free(to.values);
    free(to.indices);
    free(to.counts);
    free(y);
    free(x);
    kronsae_encoder_destroy(encoder);
    kronsae_sae_destroy(sae);
}

/* A host that rounds downwards: the model is read and computed as ever, and the host's rounding is still there after. */
static void foreign_rounding(const char *path) {
    enum { WIDTH = 100, K = 24 };
    static float x[WIDTH], out[2][WIDTH];
    uint32_t counts[1], indices[K];
    float values[2][K];
    const int modes[2] = {FE_TONEAREST, FE_DOWNWARD};
    kronsae_latents to = KRONSAE_LATENTS_INIT;
    kronsae_activations from = view_of(x, 1, WIDTH);
    kronsae_activations_mut back = KRONSAE_ACTIVATIONS_MUT_INIT;
    size_t i;
    for (i = 0; i < WIDTH; i++) x[i] = (float)((i * 37) % 101) * 0.01f - 0.4f;
    memset(values, 0, sizeof values);
    to.rows = 1;
    to.capacity = K;
    to.counts = counts;
    to.indices = indices;
    back.dtype = KRONSAE_DTYPE_F32;
    back.rows = 1;
    back.d_model = WIDTH;
    for (i = 0; i < 2; i++) {
        kronsae_sae *sae = NULL;
        kronsae_encoder *encoder = NULL;
        kronsae_sae_info info = KRONSAE_SAE_INFO_INIT;
        to.values = values[i];
        back.data = out[i];
        CHECK(fesetround(modes[i]) == 0);
        CHECK(kronsae_sae_open(path, NULL, &sae, NULL) == KRONSAE_STATUS_OK);
        CHECK(kronsae_sae_get_info(sae, &info, NULL) == KRONSAE_STATUS_OK && info.output_scale == 0.7f);
        CHECK(kronsae_encoder_create(sae, NULL, &encoder, NULL) == KRONSAE_STATUS_OK);
        CHECK(kronsae_encode(encoder, &from, &to, NULL) == KRONSAE_STATUS_OK && counts[0] > K / 2);
        CHECK(kronsae_decode(sae, &to, &back, NULL) == KRONSAE_STATUS_OK);
        CHECK(fegetround() == modes[i]);
        kronsae_encoder_destroy(encoder);
        kronsae_sae_destroy(sae);
    }
    CHECK(fesetround(FE_TONEAREST) == 0);
    CHECK(memcmp(values[0], values[1], sizeof values[0]) == 0 && memcmp(out[0], out[1], sizeof out[0]) == 0);
}

/* The same model from bytes at an odd address, which may go afterwards. */
static void open_bytes(const char *path) {
    static unsigned char raw[1 + (1 << 16)];
    kronsae_sae *sae = NULL;
    kronsae_error *error = NULL;
    size_t size;
    FILE *file = fopen(path, "rb");
    CHECK(file != NULL);
    if (file == NULL) return;
    size = fread(raw + 1, 1, sizeof raw - 1, file);
    fclose(file);
    CHECK(kronsae_sae_open_bytes(raw + 1, size, NULL, &sae, &error) == KRONSAE_STATUS_OK);
    memset(raw, 0, size + 1);
    if (sae != NULL) model_information(sae);
    kronsae_sae_destroy(sae);
    CHECK(kronsae_sae_open_bytes(raw, size, NULL, &sae, &error) == KRONSAE_STATUS_FORMAT);
    CHECK(sae == NULL && kronsae_error_status(error) == KRONSAE_STATUS_FORMAT);
    kronsae_error_destroy(error);
}

/* A library that was built without CUDA has the functions, and they say so. */
static void without_cuda(const kronsae_sae *sae) {
    kronsae_device_options options = KRONSAE_DEVICE_OPTIONS_INIT;
    kronsae_device_latents latents = KRONSAE_DEVICE_LATENTS_INIT;
    kronsae_activations x = view_of(&tokens[0][0], ROWS, D);
    kronsae_device_sae *device = (kronsae_device_sae *)&options;
    kronsae_error *error = NULL;
    size_t bytes = 7;
    REFUSED(kronsae_device_sae_create(sae, &options, &device, &error), KRONSAE_STATUS_UNSUPPORTED,
            "built without CUDA; encode on the CPU (kronsae_encode)");
    CHECK(device == NULL);
    REFUSED(kronsae_encode_cuda_workspace(device, ROWS, KRONSAE_DTYPE_F32, &bytes, &error), KRONSAE_STATUS_UNSUPPORTED,
            "built without CUDA");
    CHECK(bytes == 7);
    REFUSED(kronsae_encode_cuda(device, &x, &latents, NULL, 0, NULL, &error), KRONSAE_STATUS_UNSUPPORTED,
            "kronsae_encode_cuda: ");
    CHECK(kronsae_encode_cuda(NULL, NULL, NULL, NULL, 0, NULL, NULL) == KRONSAE_STATUS_UNSUPPORTED);
    REFUSED(kronsae_device_sae_create(sae, &options, NULL, &error), KRONSAE_STATUS_INVALID_ARGUMENT, "out is null");
    kronsae_device_sae_destroy(device);
}

/* So has its monitor, whose device taps are none. */
static void device_taps_without_cuda(const kronsae_sae *sae) {
    kronsae_site_options at = KRONSAE_SITE_OPTIONS_INIT;
    kronsae_device_tap_options options = KRONSAE_DEVICE_TAP_OPTIONS_INIT;
    kronsae_activations x = view_of(&tokens[0][0], ROWS, D);
    kronsae_token_tag tag = {1, 0, -1, 0, 0};
    kronsae_monitor *monitor = NULL;
    kronsae_device_tap *tap = (kronsae_device_tap *)&options;
    kronsae_error *error = NULL;
    uint32_t site = 0;
    size_t accepted = 7;
    at.name = "s";
    CHECK(kronsae_monitor_create(NULL, &monitor, NULL) == KRONSAE_STATUS_OK);
    CHECK(kronsae_monitor_add_site(monitor, &at, sae, &site, NULL) == KRONSAE_STATUS_OK);
    REFUSED(kronsae_device_tap_create(monitor, site, &options, &tap, &error), KRONSAE_STATUS_UNSUPPORTED,
            "built without CUDA");
    CHECK(tap == NULL);
    REFUSED(kronsae_device_tap_create(monitor, site, NULL, NULL, &error), KRONSAE_STATUS_INVALID_ARGUMENT, "out is null");
    REFUSED(kronsae_device_tap_submit(tap, &x, &tag, sizeof tag, &accepted, NULL, &error), KRONSAE_STATUS_UNSUPPORTED,
            "kronsae_device_tap_submit: ");
    CHECK(accepted == 7);
    CHECK(kronsae_device_tap_end_request(tap, 1, NULL) == KRONSAE_STATUS_UNSUPPORTED);
    CHECK(kronsae_device_tap_rewind(tap, 1, 0, NULL) == KRONSAE_STATUS_UNSUPPORTED);
    kronsae_device_tap_destroy(tap);
    kronsae_monitor_destroy(monitor);
}

static void count_log(void *user_data, kronsae_log_level level, const char *message) {
    if (level == KRONSAE_LOG_INFO && strstr(message, "opened") != NULL) ++*(int *)user_data;
}

static void logging(const char *path) {
    int opened = 0;
    kronsae_sae *sae = NULL;
    CHECK(kronsae_set_log_callback(count_log, &opened, NULL) == KRONSAE_STATUS_OK);
    CHECK(kronsae_sae_open(path, NULL, &sae, NULL) == KRONSAE_STATUS_OK);
    CHECK(opened == 1);
    kronsae_sae_destroy(sae);
    CHECK(kronsae_set_log_callback(NULL, NULL, NULL) == KRONSAE_STATUS_OK);
    CHECK(kronsae_sae_open(path, NULL, &sae, NULL) == KRONSAE_STATUS_OK);
    CHECK(opened == 1);
    kronsae_sae_destroy(sae);
}

int main(int argc, char **argv) {
    kronsae_sae *sae = NULL;
    kronsae_encoder *encoder = NULL;
    kronsae_error *error = NULL;
    if (argc != 4) {
        fprintf(stderr, "usage: capi TINY THRESHOLD RANDOM\n");
        return 2;
    }
    tokens[2][3] = NAN;
    versions();
    if (kronsae_sae_open(argv[1], NULL, &sae, &error) || kronsae_encoder_create(sae, NULL, &encoder, &error)) {
        fprintf(stderr, "%s\n", kronsae_error_message(error));
        return 2;
    }
    model_information(sae);
    later_structs(sae);
    encode_topk(encoder);
    decode(sae, encoder);
    steer(sae);
    without_cuda(sae);
    device_taps_without_cuda(sae);
    kronsae_encoder_destroy(encoder);
    kronsae_sae_destroy(sae);
    encode_threshold(argv[2]);
    invariance(argv[3]);
    exact_buffers(argv[1]);
    foreign_rounding(argv[3]);
    open_bytes(argv[1]);
    logging(argv[1]);
    hostile_arguments(argv[1]);
    hostile_lifetimes(argv[1]);
    hostile_fork(argv[1]);
    hostile_exit(argv[1]);
    return FINISH();
}
