// Whether the llama.cpp that a process has loaded is laid out as the headers this was compiled with. It is asked, not
// guessed from a version: structs are filled by its own functions, and known values must be found where they belong.
//
// Include after llama.h and ggml.h.
#ifndef KRONSAE_LLAMA_ABI_HPP
#define KRONSAE_LLAMA_ABI_HPP

#include "ggml.h"
#include "llama.h"

#include <dlfcn.h>

#include <cstddef>
#include <cstring>
#include <memory>
#include <new>
#include <string>

namespace kronsae_llama {

class AbiCheck {
public:
    // Empty, or what is different. Calls nothing that has an effect.
    static std::string run() {
        for (const char* name : functions)
            if (dlsym(RTLD_DEFAULT, name) == nullptr) return std::string("this libllama has no function ") + name;
#ifndef KRONSAE_LLAMA_BATCH_EXT
        if (dlsym(RTLD_DEFAULT, "llama_process") != nullptr)
            return "this libllama has llama_process, which the headers that this was built with do not know";
#endif
        std::string found = context_params();
        if (found.empty()) found = model_params();
        if (found.empty()) found = batch();
        if (found.empty()) found = tensor();
        return found;
    }

private:
    static constexpr const char* functions[] = {
        "llama_init_from_model", "llama_free", "llama_decode", "llama_context_default_params", "llama_model_default_params",
        "llama_model_load_from_file", "llama_batch_get_one", "llama_get_memory", "llama_memory_seq_rm", "llama_memory_seq_pos_max",
        "llama_n_ubatch", "llama_get_model", "llama_model_get_vocab", "llama_model_n_layer", "llama_model_n_embd",
        "llama_vocab_n_tokens", "llama_token_to_piece", "ggml_backend_tensor_get", "ggml_backend_buffer_is_host",
        "ggml_nbytes", "ggml_type_name", "ggml_init", "ggml_free", "ggml_new_tensor_2d", "ggml_set_name", "ggml_op_name",
#ifdef KRONSAE_LLAMA_BATCH_EXT
        "llama_process", "llama_batch_ext_init", "llama_batch_ext_add_token", "llama_batch_ext_set_pos",
#endif
    };

    // Room for a struct that turns out larger than expected.
    struct Room {
        unsigned char bytes[8192];
    };

    // Calls a function that returns a struct of unknown size: what it wrote, over `fill`.
    template <typename... Arguments>
    __attribute__((noinline)) static void call(const char* name, unsigned char fill, Room* out, Arguments... arguments) {
        using Function = Room (*)(Arguments...);
        const Function function = reinterpret_cast<Function>(dlsym(RTLD_DEFAULT, name));
        std::memset(out, fill, sizeof(*out));
        __asm__ volatile("" : : "r"(out) : "memory");  // the fill is read: the function writes less than the whole
        new (out) Room(function(arguments...));          // a large struct is returned into its destination
        __asm__ volatile("" : : "r"(out) : "memory");
    }

    // One past the last byte that the function wrote.
    template <typename... Arguments>
    static std::size_t written(const char* name, Room& room, Arguments... arguments) {
        const std::unique_ptr<Room> other(new Room);
        call(name, 0x5A, other.get(), arguments...);
        call(name, 0xA5, &room, arguments...);
        std::size_t end = sizeof(Room);
        while (end > 0 && room.bytes[end - 1] == 0xA5 && other->bytes[end - 1] == 0x5A) --end;
        return end;
    }

    static std::string size(const char* what, std::size_t found, std::size_t expected) {
        // Padding at the end may stay unwritten.
        if (found <= expected && expected - found < alignof(void*)) return "";
        return std::string(what) + " has " + std::to_string(found) + " bytes in this libllama, and " + std::to_string(expected) +
               " in the headers that this was built with";
    }

    static std::string value(bool right, const char* what) {
        return right ? "" : std::string(what) + " is not where the headers that this was built with have it";
    }

    static std::string context_params() {
        const std::unique_ptr<Room> room(new Room);
        const std::size_t end = written("llama_context_default_params", *room);
        const std::string found = size("llama_context_params", end, sizeof(llama_context_params));
        if (!found.empty()) return found;
        llama_context_params p;
        std::memcpy(&p, room->bytes, sizeof(p));
        return value(p.n_ctx == 512 && p.n_batch == 2048 && p.n_ubatch == 512 && p.n_seq_max == 1 && p.n_threads > 0 &&
                         p.rope_scaling_type == LLAMA_ROPE_SCALING_TYPE_UNSPECIFIED &&
                         p.attention_type == LLAMA_ATTENTION_TYPE_UNSPECIFIED && p.yarn_ext_factor == -1.0f &&
                         p.cb_eval == nullptr && p.cb_eval_user_data == nullptr && p.type_k == GGML_TYPE_F16 &&
                         p.type_v == GGML_TYPE_F16 && p.abort_callback == nullptr && p.offload_kqv,
                     "a known value of llama_context_params");
    }

    static std::string model_params() {
        const std::unique_ptr<Room> room(new Room);
        const std::size_t end = written("llama_model_default_params", *room);
        const std::string found = size("llama_model_params", end, sizeof(llama_model_params));
        if (!found.empty()) return found;
        llama_model_params p;
        std::memcpy(&p, room->bytes, sizeof(p));
        return value(p.split_mode == LLAMA_SPLIT_MODE_LAYER && p.main_gpu == 0 && p.tensor_split == nullptr &&
                         p.progress_callback == nullptr && !p.vocab_only && !p.check_tensors && !p.no_alloc,
                     "a known value of llama_model_params");
    }

    static std::string batch() {
        const std::unique_ptr<Room> room(new Room);
        llama_token token = 0;
        const std::size_t end = written("llama_batch_get_one", *room, &token, std::int32_t{5});
        const std::string found = size("llama_batch", end, sizeof(llama_batch));
        if (!found.empty()) return found;
        llama_batch b;
        std::memcpy(&b, room->bytes, sizeof(b));
        return value(b.n_tokens == 5 && b.token == &token && b.embd == nullptr && b.pos == nullptr && b.n_seq_id == nullptr &&
                         b.seq_id == nullptr && b.logits == nullptr,
                     "a field of llama_batch");
    }

    static std::string tensor() {
        if (std::strcmp(ggml_op_name(GGML_OP_GET_ROWS), "GET_ROWS") != 0 || std::strcmp(ggml_op_name(GGML_OP_ROPE), "ROPE") != 0)
            return "ggml's operations have other numbers than in the headers that this was built with";
        if (std::strcmp(ggml_type_name(GGML_TYPE_I32), "i32") != 0) return "ggml's types have other numbers than expected";
        const ggml_init_params params = {1 << 16, nullptr, true};
        ggml_context* context = ggml_init(params);
        if (context == nullptr) return "ggml_init failed";
        ggml_tensor* t = ggml_new_tensor_2d(context, GGML_TYPE_F32, 3, 5);
        ggml_set_name(t, "kronsae-check");
        const bool right = t->type == GGML_TYPE_F32 && t->ne[0] == 3 && t->ne[1] == 5 && t->ne[2] == 1 && t->nb[0] == 4 &&
                           t->nb[1] == 12 && t->op == GGML_OP_NONE && t->src[1] == nullptr && t->view_src == nullptr &&
                           t->buffer == nullptr && t->data == nullptr && std::strcmp(t->name, "kronsae-check") == 0 &&
                           ggml_nbytes(t) == 60;
        ggml_free(context);
        return value(right, "a field of ggml_tensor");
    }
};

}  // namespace kronsae_llama

#endif
