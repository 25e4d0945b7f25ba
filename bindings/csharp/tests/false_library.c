// A library of another ABI version (FALSE_LIBRARY=abi), or of this one that fails with a status from the future.
#include <kronsae.h>
#include <stdlib.h>
#include <string.h>

uint32_t kronsae_abi_version(void) {
    const char *mode = getenv("FALSE_LIBRARY");
    return mode && strcmp(mode, "abi") == 0 ? 99 : KRONSAE_ABI_VERSION;
}

const char *kronsae_version_string(void) { return "99.0.0"; }

kronsae_status kronsae_sae_open(const char *path, const kronsae_sae_options *options, kronsae_sae **out, kronsae_error **error) {
    (void)path;
    (void)options;
    *out = NULL;
    *error = malloc(1);
    return 4242;
}

const char *kronsae_error_message(const kronsae_error *error) { return error ? "a later failure" : ""; }

void kronsae_error_destroy(kronsae_error *error) { free(error); }
