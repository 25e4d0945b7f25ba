/* A libllama of another layout: just enough to be taken for one by its symbols. */
struct llama_context_params {
    unsigned n_ctx, n_batch, n_ubatch, n_seq_max;
    void *cb_eval;
};
struct llama_context_params llama_context_default_params(void) {
    struct llama_context_params params = {512, 2048, 512, 1, 0};
    return params;
}
void *llama_init_from_model(void *model, struct llama_context_params params) {
    (void)params;
    return model;
}
