#include <stdio.h>
struct llama_context_params {
    unsigned n_ctx, n_batch, n_ubatch, n_seq_max;
    void *cb_eval;
};
struct llama_context_params llama_context_default_params(void);
void *llama_init_from_model(void *model, struct llama_context_params params);
int main(void) {
    puts("started");
    return llama_init_from_model(0, llama_context_default_params()) != 0;
}
