// Feature monitoring in a llama.cpp program: hands the residual stream behind chosen layers to kronsae's taps.
//
//     kronsae_llama::Observer observer;
//     observer.add_site(15, tap);                     // a kronsae_tap of a site for layer 15
//     llama_context_params params = llama_context_default_params();
//     observer.attach(params);                        // before llama_init_from_model
//     llama_context* ctx = llama_init_from_model(model, params);
//     observer.seq_rm(ctx, 0, 0, -1);                 // in place of llama_memory_seq_rm(llama_get_memory(ctx), ...)
//     observer.decode(ctx, batch);                    // in place of llama_decode
//
// Include after llama.h of the llama.cpp the program is built with; link with libllama, libggml-base and libkronsae.
//
// An Observer belongs to one context and is used as the context is: by one thread at a time. Its taps are fed from inside
// decode, so no other thread may use them meanwhile. It must live until llama_free of its context; it owns no tap.
//
// What it adds to a decode: one name comparison per graph node, and a copy of the wanted rows into the taps' queues. Rows
// in the memory of another device are first copied to the host, and llama.cpp waits for that device at each observed
// node. Nothing is allocated once batches of the largest size have been seen. Nothing here throws except std::bad_alloc.

#ifndef KRONSAE_LLAMA_HPP
#define KRONSAE_LLAMA_HPP

#include "detail/micro_batches.hpp"
#include "detail/requests.hpp"

#include "ggml-backend.h"
#include "ggml.h"
#include "kronsae.h"
#include "llama.h"

#include <cstdlib>
#include <cstring>
#include <functional>
#include <string>
#include <utility>

namespace kronsae_llama {

// What an Observer has seen.
struct Counts {
    std::uint64_t tokens = 0;     // rows handed to a tap; a token counts once for each site
    std::uint64_t accepted = 0;   // of these, taken by the tap (the others are counted by the monitor)
    std::uint64_t unmapped = 0;   // rows that no token could be told for: not submitted
    std::uint64_t warm_up = 0;    // tokens of batches that were a warm-up: not submitted
    std::uint64_t refused = 0;    // rows that a tap or the layer's tensor made impossible to submit
    std::uint64_t skipped = 0;    // rows before the first wanted position: not submitted
};

class Observer {
public:
    Observer() = default;
    Observer(const Observer&) = delete;  // llama.cpp holds its address
    Observer& operator=(const Observer&) = delete;

    // Hands the residual stream behind `layer` (from 0) to `tap`. Before the first decode.
    void add_site(std::int32_t layer, kronsae_tap* tap) {
        Site site;
        site.layer = layer;
        site.tap = tap;
        sites_.push_back(site);
        last_layer_ = std::max(last_layer_, layer);
    }

    // Sets the context's evaluation callback. False, with the parameters left alone, if they have one already.
    bool attach(llama_context_params& params) {
        if (params.cb_eval != nullptr) return false;
        params.cb_eval = &Observer::evaluate;
        params.cb_eval_user_data = this;
        return true;
    }

    // Leave out what programs compute before anything real (see Requests::begin). Off by default.
    void skip_warm_up(bool skip) { requests_.skip_warm_up(skip); }
    // Stop each graph behind the highest wanted layer: for recording. Later layers and outputs are not computed then.
    void stop_early(bool stop) { stop_early_ = stop; }
    // Leave out positions before this one; 0, the default: none. Position 0 of a sequence is an attention sink in most
    // models, with a norm a hundred times the others': models of features are trained without it.
    void first_position(std::int32_t position) { first_position_ = position; }
    // Called, in the decoding thread, with the first problem of each kind.
    void on_problem(std::function<void(const std::string&)> report) { report_ = std::move(report); }

    // llama_decode, observed. Its result.
    std::int32_t decode(llama_context* ctx, const llama_batch& batch) {
        read(ctx, batch);
        before(ctx);
        const std::int32_t result = llama_decode(ctx, batch);
        after(ctx, result);
        return result;
    }

    // For another function than llama_decode: fill `batch()`, call before, that function, and after.
    std::vector<BatchToken>& batch() { return batch_; }

    void before(llama_context* ctx) {
        controls_.clear();
        active_ = !batch_.empty() && requests_.begin(batch_, tags_, controls_);
        send_controls();
        if (!active_) {
            counts_.warm_up += batch_.size();
            return;
        }
        micro_batches_.begin(batch_, llama_n_ubatch(ctx));
        known_ = 0;
        have_ids_ = have_positions_ = false;
        for (Site& site : sites_) site.evaluated = 0;
    }

    void after(llama_context* ctx, std::int32_t result) {
        if (!active_) return;
        active_ = false;
        const bool outputs = std::any_of(batch_.begin(), batch_.end(), [](const BatchToken& t) { return t.output; });
        for (Site& site : sites_) {
            if (result != 0 || !outputs || site.evaluated != 0 || site.broken || site.told_absent) continue;
            site.told_absent = true;
            problem("layer " + std::to_string(site.layer) + ": a batch was computed, and no tensor was named " + prefix +
                    std::to_string(site.layer) + ": this LLM's graph has no such layer, or names it otherwise");
        }
        requests_.finish(batch_, [&](std::int32_t sequence) {
            // Of a batch that failed, the memory says how far it got.
            return result == 0 ? -1 : llama_memory_seq_pos_max(llama_get_memory(ctx), sequence) + 1;
        });
    }

    // The sequence's next token starts a request of this id (0: the next free number). Without it requests begin where
    // a sequence begins, and where seq_rm cuts it off.
    void start_request(std::int32_t sequence, std::uint64_t request) {
        note([&] { requests_.start(sequence, request, controls_); });
    }

    // The memory calls of llama.h, observed.
    bool seq_rm(llama_context* ctx, llama_seq_id sequence, llama_pos p0, llama_pos p1) {
        const bool done = llama_memory_seq_rm(llama_get_memory(ctx), sequence, p0, p1);
        if (done) seq_removed(sequence, p0, p1);
        return done;
    }
    void seq_cp(llama_context* ctx, llama_seq_id from, llama_seq_id to, llama_pos p0, llama_pos p1) {
        llama_memory_seq_cp(llama_get_memory(ctx), from, to, p0, p1);
        seq_copied(from, to, p0, p1);
    }
    void seq_keep(llama_context* ctx, llama_seq_id sequence) {
        llama_memory_seq_keep(llama_get_memory(ctx), sequence);
        seq_kept(sequence);
    }
    void seq_add(llama_context* ctx, llama_seq_id sequence, llama_pos p0, llama_pos p1, llama_pos delta) {
        llama_memory_seq_add(llama_get_memory(ctx), sequence, p0, p1, delta);
        seq_added(sequence, p0, p1, delta);
    }
    void seq_div(llama_context* ctx, llama_seq_id sequence, llama_pos p0, llama_pos p1, int d) {
        llama_memory_seq_div(llama_get_memory(ctx), sequence, p0, p1, d);
        seq_divided(sequence, p0, p1, d);
    }
    void clear(llama_context* ctx, bool data) {
        llama_memory_clear(llama_get_memory(ctx), data);
        cleared();
    }

    // The same, where something else made the call.
    void seq_removed(llama_seq_id sequence, llama_pos p0, llama_pos p1) {
        note([&] { requests_.removed(sequence, p0, p1, controls_); });
    }
    void seq_copied(llama_seq_id from, llama_seq_id to, llama_pos, llama_pos) {
        note([&] { requests_.copied(from, to, controls_); });
    }
    void seq_kept(llama_seq_id sequence) {
        note([&] { requests_.kept(sequence, controls_); });
    }
    void seq_added(llama_seq_id sequence, llama_pos p0, llama_pos p1, llama_pos delta) {
        requests_.added(sequence, p0, p1, delta);
    }
    void seq_divided(llama_seq_id sequence, llama_pos p0, llama_pos p1, int d) {
        requests_.divided(sequence, p0, p1, d);
    }
    void seq_restored(llama_seq_id sequence) { requests_.restored(sequence); }
    // Everything is gone, by llama_memory_clear or because the context is about to be freed: ends all requests.
    void cleared() {
        note([&] { requests_.cleared(controls_); });
    }

    Counts counts() const { return counts_; }
    std::size_t alive() const { return requests_.alive(); }

    // The evaluation callback, for programs with one of their own: call it from there with the Observer as `user`.
    static bool evaluate(ggml_tensor* tensor, bool ask, void* user) {
        Observer& self = *static_cast<Observer*>(user);
        if (!self.active_) return !ask;
        return ask ? self.wanted(*tensor) : self.computed(*tensor);
    }

    // Reads a llama_batch as llama_decode does.
    void read(llama_context* ctx, const llama_batch& batch) {
        batch_.clear();
        const std::size_t count = batch.n_tokens > 0 ? static_cast<std::size_t>(batch.n_tokens) : 0;
        for (std::size_t i = 0; i < count; ++i) {
            BatchToken t;
            t.token = batch.token != nullptr ? batch.token[i] : -1;
            t.output = batch.logits != nullptr ? batch.logits[i] != 0 : i + 1 == count;
            if (batch.seq_id != nullptr && batch.n_seq_id != nullptr) {
                for (std::int32_t s = 0; s < batch.n_seq_id[i]; ++s) t.add(batch.seq_id[i][s]);
            } else {
                t.add(0);
            }
            if (batch.pos != nullptr) {
                t.position = batch.pos[i];
            } else {
                t.position = llama_memory_seq_pos_max(llama_get_memory(ctx), t.sequence) + 1;
                for (const BatchToken& earlier : batch_)
                    if (earlier.sequence == t.sequence) t.position = earlier.position + 1;
            }
            batch_.push_back(t);
        }
    }

private:
    struct Site {
        std::int32_t layer = 0;
        kronsae_tap* tap = nullptr;
        std::size_t evaluated = 0;  // micro-batches of the current batch
        bool broken = false;
        bool told_absent = false;
    };

    struct Rows {
        bool found = false;
        Indices indices;
    };

    static constexpr const char* prefix = "l_out-";
    static constexpr std::size_t prefix_length = 6;

    // The site of a tensor that is some layer's output; null if it is not, or not of a wanted layer.
    Site* site_of(const ggml_tensor& tensor) {
        if (std::strncmp(tensor.name, prefix, prefix_length) != 0) return nullptr;
        char* end = nullptr;
        const long layer = std::strtol(tensor.name + prefix_length, &end, 10);
        if (end == tensor.name + prefix_length || *end != '\0') return nullptr;
        for (Site& site : sites_)
            if (site.layer == layer) return &site;
        return nullptr;
    }

    // llama.cpp asks for each node of a graph, in order, before it computes any up to the first one that is wanted. So
    // the graph's inputs, filled but not used yet, can be read on the way: which tokens, at which positions.
    bool wanted(const ggml_tensor& tensor) {
        const Site* site = site_of(tensor);
        if (site != nullptr) return !site->broken;
        if (batch_.size() > 1) look_for_inputs(tensor);
        return false;
    }

    void look_for_inputs(const ggml_tensor& tensor) {
        const ggml_tensor* input = tensor.src[1];
        if (input == nullptr) return;
        if (tensor.op == GGML_OP_GET_ROWS && std::strstr(input->name, "inp_tokens") != nullptr) {
            have_ids_ = fetch_integers(*input, ids_);
            have_positions_ = false;
        } else if (tensor.op == GGML_OP_ROPE && have_ids_ && !have_positions_ &&
                   std::strstr(input->name, "inp_pos") != nullptr) {
            // Several numbers a token in some models: the first of each token come first.
            have_positions_ = fetch_integers(*input, positions_) && positions_.size() >= ids_.size();
        }
    }

    static const ggml_backend_buffer* buffer_of(const ggml_tensor& tensor) {
        return tensor.view_src != nullptr ? tensor.view_src->buffer : tensor.buffer;
    }

    static bool fetch_integers(const ggml_tensor& tensor, std::vector<std::int32_t>& out) {
        if (tensor.type != GGML_TYPE_I32 || buffer_of(tensor) == nullptr || tensor.ne[0] <= 0) return false;
        out.resize(static_cast<std::size_t>(tensor.ne[0]));
        ggml_backend_tensor_get(&tensor, out.data(), 0, out.size() * sizeof(out[0]));
        return true;
    }

    // A wanted node's values are there. False stops the graph.
    bool computed(ggml_tensor& tensor) {
        Site* site = site_of(tensor);
        if (site == nullptr) return true;
        submit(*site, tensor);
        return !(stop_early_ && site->layer == last_layer_);
    }

    void submit(Site& site, ggml_tensor& tensor) {
        const std::size_t rows = static_cast<std::size_t>(tensor.ne[1]);
        const std::size_t micro = site.evaluated++;
        const Rows& of = rows_of(micro, rows);
        if (rows == 0) return;
        if (tensor.type != GGML_TYPE_F32 || tensor.ne[2] != 1 || tensor.ne[3] != 1 || tensor.nb[0] != sizeof(float)) {
            counts_.refused += rows;
            site.broken = true;
            return problem("layer " + std::to_string(site.layer) + ": its output is not a matrix of 32-bit floats (found " +
                           ggml_type_name(tensor.type) + "): this site is left alone");
        }
        if (!of.found || !tag_rows(of.indices, rows)) {
            counts_.unmapped += rows;
            if (!told_unmapped_)
                problem("cannot tell which tokens the rows of a micro-batch are (" + std::to_string(rows) + " rows of layer " +
                        std::to_string(site.layer) + "): such rows are counted and left out");
            told_unmapped_ = true;
            return;
        }
        kronsae_activations x = KRONSAE_ACTIVATIONS_INIT;
        x.dtype = KRONSAE_DTYPE_F32;
        x.rows = rows;
        x.d_model = static_cast<std::size_t>(tensor.ne[0]);
        x.row_stride = tensor.nb[1];
        x.data = tensor.data;
        ggml_backend_buffer* buffer = const_cast<ggml_backend_buffer*>(buffer_of(tensor));
        if (buffer == nullptr || !ggml_backend_buffer_is_host(buffer)) {
            copy_.resize(ggml_nbytes(&tensor));
            ggml_backend_tensor_get(&tensor, copy_.data(), 0, copy_.size());
            x.data = copy_.data();
        }
        // Runs of rows that are wanted: nearly always one.
        for (std::size_t r = 0; r < rows;) {
            std::size_t end = r;
            while (end < rows && submitted_[end].position >= first_position_) ++end;
            if (end > r && !submit_rows(site, x, r, end - r)) return;
            counts_.skipped += end < rows;
            r = end + 1;
        }
    }

    // Submits `count` of the rows, from `first` on; false if the tap will not take any.
    bool submit_rows(Site& site, kronsae_activations x, std::size_t first, std::size_t count) {
        x.data = static_cast<const unsigned char*>(x.data) + first * x.row_stride;
        x.rows = count;
        std::size_t accepted = 0;
        kronsae_error* error = nullptr;
        const kronsae_status status =
            kronsae_tap_submit(site.tap, &x, submitted_.data() + first, sizeof(submitted_[0]), &accepted, &error);
        if (status == KRONSAE_STATUS_OK) {
            counts_.tokens += count;
            counts_.accepted += accepted;
            return true;
        }
        // The wrong width, or a monitor that was stopped: it will not get better.
        counts_.refused += count;
        site.broken = true;
        problem("layer " + std::to_string(site.layer) + ": " + kronsae_error_message(error) + ": this site is left alone");
        kronsae_error_destroy(error);
        return false;
    }

    // The rows of the batch's micro-batch `micro`, which the first site that gets there finds out.
    const Rows& rows_of(std::size_t micro, std::size_t rows) {
        while (known_ <= micro) {
            Seen seen;
            if (have_ids_) {
                seen.tokens = ids_.size();
                seen.ids = ids_.data();
                seen.positions = have_positions_ ? positions_.data() : nullptr;
            } else if (batch_.size() == 1) {
                seen.tokens = 1;
            } else if (batch_.front().token < 0) {
                // Embeddings: the number of rows is all there is to see (of the last layer, not even that).
                seen.tokens = rows;
            }
            have_ids_ = have_positions_ = false;
            if (known_ >= rows_.size()) rows_.emplace_back();
            Rows& next = rows_[known_++];
            const Indices* found = seen.tokens == 0 ? nullptr : micro_batches_.next(seen, [&](std::int32_t a, std::int32_t b) {
                return tags_[static_cast<std::size_t>(a)] == tags_[static_cast<std::size_t>(b)] &&
                       batch_[static_cast<std::size_t>(a)].output == batch_[static_cast<std::size_t>(b)].output;
            });
            next.found = found != nullptr;
            if (found != nullptr) next.indices = *found;
        }
        return rows_[micro];
    }

    // Fills submitted_ with the tags of a tensor's rows: all tokens of the micro-batch or, behind the last layer, those
    // with outputs. False if it has another number of rows.
    bool tag_rows(const Indices& indices, std::size_t rows) {
        submitted_.clear();
        for (const std::int32_t i : indices) {
            if (rows != indices.size() && !batch_[static_cast<std::size_t>(i)].output) continue;
            const Tag& tag = tags_[static_cast<std::size_t>(i)];
            submitted_.push_back({tag.request, tag.position, tag.token, tag.flags, 0});
        }
        return submitted_.size() == rows;
    }

    template <typename What>
    void note(const What& what) {
        controls_.clear();
        what();
        send_controls();
    }

    void send_controls() {
        for (const Control& control : controls_) {
            for (const Site& site : sites_) {
                kronsae_error* error = nullptr;
                const kronsae_status status = control.kind == Control::Kind::end
                                                  ? kronsae_tap_end_request(site.tap, control.request, &error)
                                                  : kronsae_tap_rewind(site.tap, control.request, control.position, &error);
                if (status != KRONSAE_STATUS_OK && !told_control_) {
                    told_control_ = true;
                    problem(std::string("a request's end or rewind was refused: ") + kronsae_error_message(error));
                }
                kronsae_error_destroy(error);
            }
        }
        controls_.clear();
    }

    void problem(const std::string& text) {
        if (report_) report_(text);
    }

    std::vector<Site> sites_;
    Requests requests_;
    MicroBatches micro_batches_;
    std::vector<BatchToken> batch_;
    std::vector<Tag> tags_;      // [batch]
    Controls controls_;
    std::vector<Rows> rows_;     // [micro-batches of the batch], the first known_ of them valid
    std::size_t known_ = 0;
    std::vector<kronsae_token_tag> submitted_;
    std::vector<unsigned char> copy_;
    std::vector<std::int32_t> ids_, positions_;  // the inputs of the graph being asked for
    bool have_ids_ = false;
    bool have_positions_ = false;
    bool active_ = false;
    bool stop_early_ = false;
    bool told_unmapped_ = false;
    bool told_control_ = false;
    std::int32_t last_layer_ = -1;
    std::int32_t first_position_ = 0;
    Counts counts_;
    std::function<void(const std::string&)> report_;
};

// A kronsae_token_text_callback; `user` is the program's const llama_vocab *, which must outlive the monitor.
inline std::size_t token_text(void* user, std::int32_t token, char* buffer, std::size_t capacity) {
    const llama_vocab* vocab = static_cast<const llama_vocab*>(user);
    if (token < 0 || token >= llama_vocab_n_tokens(vocab)) return 0;
    const std::int32_t room = capacity > INT32_MAX ? INT32_MAX : static_cast<std::int32_t>(capacity);
    const std::int32_t written = llama_token_to_piece(vocab, token, buffer, room, 0, true);
    return static_cast<std::size_t>(written < 0 ? -written : written);
}

}  // namespace kronsae_llama

#endif
