// A llama.cpp program to attach to, that does what llama-server does not. `host MODE [GGUF]`:
//   look   says what the process has before any context, and starts a child that says what it was given
//   fork   computes, forks, computes in the child and in the parent
//   exit   computes, and exits without freeing anything
//   draft  generates with rejected drafts: 8 prompt tokens, then 3 of 4 drafted tokens taken back

#include "llama.h"

#include <dirent.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <string>
#include <vector>

namespace {

int entries(const char* folder) {
    int count = 0;
    if (DIR* d = opendir(folder)) {
        while (const dirent* e = readdir(d)) count += e->d_name[0] != '.';
        closedir(d);
    }
    return count;
}

struct Context {
    llama_model* model;
    llama_context* ctx;

    explicit Context(const char* path) {
        llama_log_set([](ggml_log_level, const char*, void*) {}, nullptr);
        model = llama_model_load_from_file(path, llama_model_default_params());
        llama_context_params params = llama_context_default_params();
        params.n_ctx = 256;
        params.n_threads = params.n_threads_batch = 1;
        ctx = model != nullptr ? llama_init_from_model(model, params) : nullptr;
        if (ctx == nullptr) std::exit(9);
    }
    // `count` tokens from `position` on, all with outputs or only the last one.
    void decode(int position, int count, bool outputs) {
        llama_batch batch = llama_batch_init(count, 0, 1);
        for (int i = 0; i < count; ++i) {
            batch.token[i] = 1000 + position + i;
            batch.pos[i] = position + i;
            batch.n_seq_id[i] = 1;
            batch.seq_id[i][0] = 0;
            batch.logits[i] = outputs || i + 1 == count;
        }
        batch.n_tokens = count;
        if (llama_decode(ctx, batch) != 0) std::exit(8);
        llama_batch_free(batch);
    }
    void rm(int position) {
        if (!llama_memory_seq_rm(llama_get_memory(ctx), 0, position, -1)) std::exit(7);
    }
    void free() {
        llama_free(ctx);
        llama_model_free(model);
    }
};

}  // namespace

int main(int argc, char** argv) {
    const std::string mode = argc > 1 ? argv[1] : "";
    if (mode == "look") {
        std::printf("threads %d\nfiles %d\n", entries("/proc/self/task"), entries("/proc/self/fd"));
        std::fflush(stdout);
        return std::system("env | grep -e LD_PRELOAD -e KRONSAE_LLAMA | grep -v -c -e KRONSAE_LLAMA_DIR -e KRONSAE_LLAMA_GGUF") == -1;
    }
    if (argc < 3) return 2;
    Context c(argv[2]);
    c.rm(0);
    c.decode(0, 8, false);
    if (mode == "fork") {
        const pid_t child = fork();
        if (child == 0) {
            c.decode(8, 1, true);
            c.free();
            _exit(0);
        }
        int status = 0;
        waitpid(child, &status, 0);
        c.decode(8, 1, true);
        c.free();
        return WIFEXITED(status) ? WEXITSTATUS(status) : 6;
    }
    if (mode == "exit") std::exit(0);
    if (mode == "draft") {
        c.decode(8, 5, true);
        c.rm(10);
        c.decode(10, 1, true);
        c.rm(4);
        c.decode(4, 3, false);
        c.free();
        return 0;
    }
    return 2;
}
