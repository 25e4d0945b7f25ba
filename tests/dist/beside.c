/* kronsae's static library beside another Rust static library: both work, and each unwinds by itself. */
#include <kronsae.h>
#include <stdio.h>

int other_unwinds(void);

int main(int argc, char **argv) {
    kronsae_sae *sae = NULL;
    kronsae_error *error = NULL;
    if (argc != 2 || kronsae_sae_open(argv[1], NULL, &sae, &error)) return 1;
    kronsae_sae_destroy(sae);
    if (kronsae_sae_open("/nonexistent", NULL, &sae, &error) != KRONSAE_STATUS_IO) return 2;
    kronsae_error_destroy(error);
    if (!other_unwinds()) return 3;
    puts("both work");
    return 0;
}
