// Package cloop times the library's calls in a loop of C: what the Go binding's benchmarks are compared with.
package cloop

/*
#include <kronsae.h>
#include <stdlib.h>

static int cloop_info(const char *path, long n) {
    kronsae_sae *sae = NULL;
    int failed = kronsae_sae_open(path, NULL, &sae, NULL);
    for (long i = 0; i < n && !failed; i++) {
        kronsae_sae_info info = KRONSAE_SAE_INFO_INIT;
        failed = kronsae_sae_get_info(sae, &info, NULL);
    }
    kronsae_sae_destroy(sae);
    return failed;
}

static int cloop_encode(const char *path, const float *x, size_t d_model, size_t k, long n) {
    kronsae_sae *sae = NULL;
    kronsae_encoder *encoder = NULL;
    uint32_t counts[1], active[1], indices[64];
    uint8_t flags[1];
    float values[64];
    int failed = kronsae_sae_open(path, NULL, &sae, NULL);
    if (!failed) failed = kronsae_encoder_create(sae, NULL, &encoder, NULL);
    for (long i = 0; i < n && !failed; i++) {
        kronsae_activations in = KRONSAE_ACTIVATIONS_INIT;
        in.dtype = KRONSAE_DTYPE_F32;
        in.data = x;
        in.rows = 1;
        in.d_model = d_model;
        kronsae_latents out = KRONSAE_LATENTS_INIT;
        out.rows = 1;
        out.capacity = k;
        out.counts = counts;
        out.indices = indices;
        out.values = values;
        out.active = active;
        out.row_flags = flags;
        failed = kronsae_encode(encoder, &in, &out, NULL);
    }
    kronsae_encoder_destroy(encoder);
    kronsae_sae_destroy(sae);
    return failed;
}
*/
import "C"

import "unsafe"

// Info asks n times what a model is; false if a call failed.
func Info(path string, n int) bool {
	name := C.CString(path)
	defer C.free(unsafe.Pointer(name))
	return C.cloop_info(name, C.long(n)) == 0
}

// Encode encodes one token n times with a model of capacity k, at most 64; false if a call failed.
func Encode(path string, token []float32, k, n int) bool {
	if k > 64 {
		return false
	}
	name := C.CString(path)
	defer C.free(unsafe.Pointer(name))
	return C.cloop_encode(name, (*C.float)(unsafe.SliceData(token)), C.size_t(len(token)), C.size_t(k), C.long(n)) == 0
}
