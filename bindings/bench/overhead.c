// Nanoseconds a call from C, the best of several rounds: overhead MODEL. overhead.cpp and bench/Bench.cs do the same.
#include <kronsae.h>
#include <stdio.h>
#include <stdlib.h>
#include <time.h>

enum { CALLS = 200000, ROUNDS = 15 };

static double now(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec * 1e9 + (double)t.tv_nsec;
}

static void check(kronsae_status status) {
    if (status) {
        fprintf(stderr, "%s\n", kronsae_status_name(status));
        exit(1);
    }
}

int main(int argc, char **argv) {
    kronsae_sae *sae;
    kronsae_encoder *encoder;
    kronsae_sae_info info = KRONSAE_SAE_INFO_INIT;
    if (argc != 2) return 2;
    check(kronsae_sae_open(argv[1], NULL, &sae, NULL));
    check(kronsae_sae_get_info(sae, &info, NULL));
    check(kronsae_encoder_create(sae, NULL, &encoder, NULL));
    float *token = malloc(info.d_model * sizeof *token), *values = malloc(info.capacity * sizeof *values);
    uint32_t count, active, *indices = malloc(info.capacity * sizeof *indices);
    uint8_t flags;
    if (!token || !values || !indices) return 1;
    for (int i = 0; i < (int)info.d_model; i++) token[i] = (float)(i * 5 % 7) - 2.5f;
    double best[2] = {1e99, 1e99};
    for (int round = 0; round < ROUNDS; round++) {
        double start = now();
        for (int i = 0; i < CALLS; i++) {
            kronsae_sae_info again = KRONSAE_SAE_INFO_INIT;
            kronsae_error *error;
            check(kronsae_sae_get_info(sae, &again, &error));
        }
        double took = (now() - start) / CALLS;
        if (took < best[0]) best[0] = took;
        start = now();
        for (int i = 0; i < CALLS; i++) {
            kronsae_error *error;
            kronsae_activations x = {sizeof x, KRONSAE_DTYPE_F32, token, 1, info.d_model, 0};
            kronsae_latents y = {sizeof y, 0, 1, info.capacity, &count, indices, values, &active, &flags, 0, 0};
            check(kronsae_encode(encoder, &x, &y, &error));
        }
        took = (now() - start) / CALLS;
        if (took < best[1]) best[1] = took;
    }
    printf("info %.1f ns\nencode %.1f ns\n", best[0], best[1]);
    free(token);
    free(values);
    free(indices);
    kronsae_encoder_destroy(encoder);
    kronsae_sae_destroy(sae);
    return 0;
}
