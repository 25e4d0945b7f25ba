// kronsae for C++17: a thin layer over kronsae.h that owns handles and errors. Header only; link with -lkronsae.
//
//     auto sae = kronsae::Sae::open("model.safetensors");
//     if (!sae) return report(sae.error().message());
//     auto encoder = kronsae::Encoder::create(*sae, 2);
//     if (!encoder) return report(encoder.error().message());
//     kronsae::Latents latents(rows, sae->info().capacity);
//     if (auto error = encoder->encode(kronsae::view(residual, rows, d_model), latents)) return report(error.message());
//     for (std::size_t i = 0; i < latents.count(0); ++i) use(latents.indices(0)[i], latents.values(0)[i]);
//
// Nothing here throws by itself, and it works with -fno-exceptions: calls that make something return a Result, others an
// Error that is true if there is one. Where exceptions are enabled, Result::or_throw() turns a failure into one. (A
// std::vector or std::string that cannot allocate still throws std::bad_alloc.)
//
// Handles are move-only. A const method may be called by any number of threads at once, another by one at a time. A
// Sae may be destroyed before its Encoders, whose calls then fail with KRONSAE_STATUS_STOPPED. A moved-from handle is
// empty: its calls fail with KRONSAE_STATUS_INVALID_ARGUMENT.

#ifndef KRONSAE_HPP
#define KRONSAE_HPP

#include "kronsae.h"

#include <atomic>
#include <cstddef>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <functional>
#include <memory>
#include <mutex>
#include <optional>
#include <stdexcept>
#include <string>
#include <string_view>
#include <utility>
#include <variant>
#include <vector>

namespace kronsae {

namespace detail {

template <typename Handle, void (*destroy)(Handle*)>
struct Destroy {
    void operator()(Handle* handle) const noexcept { destroy(handle); }
};

template <typename Handle, void (*destroy)(Handle*)>
using Owned = std::unique_ptr<Handle, Destroy<Handle, destroy>>;

}  // namespace detail

// What a call did, where it can fail: true if it did fail.
class [[nodiscard]] Error {
public:
    Error() noexcept = default;
    // Takes over `error`, which may be null.
    explicit Error(kronsae_error* error) noexcept : error_(error) {}

    explicit operator bool() const noexcept { return error_ != nullptr; }
    kronsae_status status() const noexcept { return kronsae_error_status(error_.get()); }
    // Which function failed, what was found, what was expected. Valid as long as this Error; empty if there is none.
    const char* message() const noexcept { return kronsae_error_message(error_.get()); }

private:
    detail::Owned<kronsae_error, kronsae_error_destroy> error_;
};

// A value, or why there is none.
template <typename T>
class [[nodiscard]] Result {
public:
    Result(T&& value) noexcept : state_(std::in_place_index<0>, std::move(value)) {}
    Result(Error&& error) noexcept : state_(std::in_place_index<1>, std::move(error)) {}

    explicit operator bool() const noexcept { return state_.index() == 0; }

    // The value. Without one the process is aborted, with the error on stderr: check first.
    T& operator*() & noexcept { return *checked(); }
    const T& operator*() const& noexcept { return *const_cast<Result*>(this)->checked(); }
    T&& operator*() && noexcept { return std::move(*checked()); }
    T* operator->() noexcept { return checked(); }
    const T* operator->() const noexcept { return const_cast<Result*>(this)->checked(); }

    // The error; one that is false if there is a value.
    const Error& error() const noexcept {
        static const Error none;
        const Error* error = std::get_if<1>(&state_);
        return error != nullptr ? *error : none;
    }

#if defined(__cpp_exceptions)
    // The value, or a std::runtime_error with the error's message.
    T or_throw() && {
        if (state_.index() != 0) throw std::runtime_error(error().message());
        return std::move(*std::get_if<0>(&state_));
    }
#endif

private:
    T* checked() noexcept {
        T* value = std::get_if<0>(&state_);
        if (value == nullptr) {
            std::fprintf(stderr, "kronsae: the value of a failed Result was used: %s\n", error().message());
            std::abort();
        }
        return value;
    }

    std::variant<T, Error> state_;
};

using Activations = kronsae_activations;
using ActivationsMut = kronsae_activations_mut;
using SteerTerm = kronsae_steer_term;
using Info = kronsae_sae_info;

// `rows` rows of `d_model` elements of `dtype`, of any alignment, `row_stride` bytes apart (0: contiguous).
[[nodiscard]] inline Activations view(const void* data, kronsae_dtype dtype, std::size_t rows, std::size_t d_model,
                                      std::size_t row_stride = 0) noexcept {
    Activations x = KRONSAE_ACTIVATIONS_INIT;
    x.dtype = dtype;
    x.data = data;
    x.rows = rows;
    x.d_model = d_model;
    x.row_stride = row_stride;
    return x;
}

// `rows` contiguous rows of floats.
[[nodiscard]] inline Activations view(const float* data, std::size_t rows, std::size_t d_model) noexcept {
    return view(data, KRONSAE_DTYPE_F32, rows, d_model);
}

// As view, to be written.
[[nodiscard]] inline ActivationsMut view_mut(void* data, kronsae_dtype dtype, std::size_t rows, std::size_t d_model,
                                             std::size_t row_stride = 0) noexcept {
    ActivationsMut x = KRONSAE_ACTIVATIONS_MUT_INIT;
    x.dtype = dtype;
    x.data = data;
    x.rows = rows;
    x.d_model = d_model;
    x.row_stride = row_stride;
    return x;
}

// As view, to be written.
[[nodiscard]] inline ActivationsMut view_mut(float* data, std::size_t rows, std::size_t d_model) noexcept {
    return view_mut(data, KRONSAE_DTYPE_F32, rows, d_model);
}

// Sparse latents of up to `rows` rows of up to `capacity` each, in memory of their own. Make one and use it again.
class Latents {
public:
    Latents(std::size_t rows, std::size_t capacity)
        : capacity_(capacity), counts_(rows), active_(rows), indices_(rows * capacity), values_(rows * capacity),
          flags_(rows) {}

    std::size_t rows() const noexcept { return counts_.size(); }
    std::size_t capacity() const noexcept { return capacity_; }

    // How many latents row `row` has here, strongest first: that many entries of indices(row) and values(row).
    std::uint32_t count(std::size_t row) const { return counts_.at(row); }
    const std::uint32_t* indices(std::size_t row) const noexcept { return indices_.data() + row * capacity_; }
    const float* values(std::size_t row) const noexcept { return values_.data() + row * capacity_; }
    float* values(std::size_t row) noexcept { return values_.data() + row * capacity_; }
    // How many were active before any cut.
    std::uint32_t active(std::size_t row) const { return active_.at(row); }
    // KRONSAE_ROW_* bits.
    std::uint8_t flags(std::size_t row) const { return flags_.at(row); }

    // Of the last encode: rows that were not finite, rows that were cut.
    std::size_t skipped_rows() const noexcept { return skipped_rows_; }
    std::size_t truncated_rows() const noexcept { return truncated_rows_; }

private:
    friend class Encoder;
    friend class Sae;

    // The C view. It shares the vectors' memory; decoding only reads through it.
    kronsae_latents c_view() const noexcept {
        auto* self = const_cast<Latents*>(this);
        kronsae_latents view = KRONSAE_LATENTS_INIT;
        view.rows = counts_.size();
        view.capacity = capacity_;
        view.counts = self->counts_.data();
        view.indices = self->indices_.data();
        view.values = self->values_.data();
        view.active = self->active_.data();
        view.row_flags = self->flags_.data();
        return view;
    }

    std::size_t capacity_;
    std::size_t skipped_rows_ = 0;
    std::size_t truncated_rows_ = 0;
    std::vector<std::uint32_t> counts_;
    std::vector<std::uint32_t> active_;
    std::vector<std::uint32_t> indices_;
    std::vector<float> values_;
    std::vector<std::uint8_t> flags_;
};

// A trained sparse autoencoder. All methods are const: any number of threads may use one at once.
class Sae {
public:
    // Opens a model file. `encoder_only` leaves the decoder in it, for hosts that neither decode nor steer.
    static Result<Sae> open(const char* path, bool encoder_only = false) noexcept {
        const kronsae_sae_options options = options_of(encoder_only);
        kronsae_sae* handle = nullptr;
        kronsae_error* error = nullptr;
        kronsae_sae_open(path, &options, &handle, &error);
        return made(handle, error);
    }

    static Result<Sae> open(const std::string& path, bool encoder_only = false) noexcept {
        return open(path.c_str(), encoder_only);
    }

    // Opens a model file held in memory, which may go afterwards.
    static Result<Sae> open_bytes(const void* data, std::size_t size, bool encoder_only = false) noexcept {
        const kronsae_sae_options options = options_of(encoder_only);
        kronsae_sae* handle = nullptr;
        kronsae_error* error = nullptr;
        kronsae_sae_open_bytes(data, size, &options, &handle, &error);
        return made(handle, error);
    }

    // Shape, selection, units. All zero for a moved-from Sae.
    Info info() const noexcept {
        Info info = KRONSAE_SAE_INFO_INIT;
        kronsae_sae_get_info(handle_.get(), &info, nullptr);
        return info;
    }

    // The config's JSON text. Valid as long as this Sae.
    std::string_view config_json() const noexcept {
        const char* text = nullptr;
        kronsae_sae_config_json(handle_.get(), &text, nullptr);
        return text != nullptr ? std::string_view(text) : std::string_view();
    }

    // Where the training activations came from: "model", "hook", "layer". Valid as long as this Sae.
    std::optional<std::string_view> source(const char* key) const noexcept {
        const char* text = nullptr;
        kronsae_sae_source(handle_.get(), key, &text, nullptr);
        return text != nullptr ? std::optional<std::string_view>(text) : std::nullopt;
    }

    // Reconstructs the first out.rows rows of `latents`. See kronsae_decode.
    Error decode(const Latents& latents, const ActivationsMut& out) const noexcept {
        const kronsae_latents view = latents.c_view();
        kronsae_error* error = nullptr;
        kronsae_decode(handle_.get(), &view, &out, &error);
        return Error(error);
    }

    // Adds multiples of latents' decoder rows to each row, in place. See kronsae_steer.
    Error steer(const ActivationsMut& activations, const SteerTerm* terms, std::size_t n_terms) const noexcept {
        kronsae_error* error = nullptr;
        kronsae_steer(handle_.get(), &activations, terms, n_terms, sizeof(SteerTerm), &error);
        return Error(error);
    }

    Error steer(const ActivationsMut& activations, const std::vector<SteerTerm>& terms) const noexcept {
        return steer(activations, terms.data(), terms.size());
    }

    const kronsae_sae* get() const noexcept { return handle_.get(); }

private:
    explicit Sae(kronsae_sae* handle) noexcept : handle_(handle) {}

    static kronsae_sae_options options_of(bool encoder_only) noexcept {
        kronsae_sae_options options = KRONSAE_SAE_OPTIONS_INIT;
        options.encoder_only = encoder_only ? 1 : 0;
        return options;
    }

    static Result<Sae> made(kronsae_sae* handle, kronsae_error* error) noexcept {
        if (handle == nullptr) return Error(error);
        return Sae(handle);
    }

    detail::Owned<kronsae_sae, kronsae_sae_destroy> handle_;
};

// Turns activations into sparse latents: a workspace and threads. One for each thread that encodes.
class Encoder {
public:
    // `threads`: threads of a call, the caller's included.
    static Result<Encoder> create(const Sae& sae, std::uint32_t threads = 1) noexcept {
        kronsae_encoder_options options = KRONSAE_ENCODER_OPTIONS_INIT;
        options.threads = threads;
        kronsae_encoder* handle = nullptr;
        kronsae_error* error = nullptr;
        kronsae_encoder_create(sae.get(), &options, &handle, &error);
        if (handle == nullptr) return Error(error);
        return Encoder(handle);
    }

    // Encodes a batch into the first activations.rows rows of `latents`. See kronsae_encode.
    Error encode(const Activations& activations, Latents& latents) noexcept {
        kronsae_latents view = latents.c_view();
        kronsae_error* error = nullptr;
        if (kronsae_encode(handle_.get(), &activations, &view, &error) == KRONSAE_STATUS_OK) {
            latents.skipped_rows_ = view.skipped_rows;
            latents.truncated_rows_ = view.truncated_rows;
        }
        return Error(error);
    }

    kronsae_encoder* get() noexcept { return handle_.get(); }

private:
    explicit Encoder(kronsae_encoder* handle) noexcept : handle_(handle) {}

    detail::Owned<kronsae_encoder, kronsae_encoder_destroy> handle_;
};

using LogCallback = std::function<void(kronsae_log_level, std::string_view)>;

namespace detail {

inline std::atomic<std::uint64_t> log_exceptions{0};
inline thread_local bool inside_log = false;

// What C calls: nothing may unwind from here into the library, so an exception ends here and is counted.
inline void log_trampoline(void* user_data, kronsae_log_level level, const char* message) noexcept {
    inside_log = true;
#if defined(__cpp_exceptions)
    try {
        (*static_cast<const LogCallback*>(user_data))(level, message);
    } catch (...) {
        log_exceptions.fetch_add(1, std::memory_order_relaxed);
    }
#else
    (*static_cast<const LogCallback*>(user_data))(level, message);
#endif
    inside_log = false;
}

}  // namespace detail

// Sets the one log callback of the library; an empty one silences it. The callback may run on several threads at once.
// When this returns, the previous one has returned everywhere and is destroyed. Fails if called from inside the callback.
inline Error set_log_callback(LogCallback callback) {
    static std::mutex mutex;
    // Never destroyed at exit: other threads may still be logging then.
    static LogCallback* current = nullptr;
    kronsae_error* error = nullptr;
    if (detail::inside_log) {
        // Refused by the library. Waiting for the mutex here could wait for a thread that waits for this callback.
        kronsae_set_log_callback(nullptr, nullptr, &error);
        return Error(error);
    }
    auto next = callback ? std::make_unique<LogCallback>(std::move(callback)) : nullptr;
    const std::lock_guard<std::mutex> lock(mutex);
    kronsae_set_log_callback(next ? detail::log_trampoline : nullptr, next.get(), &error);
    if (error == nullptr) delete std::exchange(current, next.release());
    return Error(error);
}

// How many exceptions log callbacks have thrown so far. Each was caught and lost.
inline std::uint64_t log_callback_exceptions() noexcept {
    return detail::log_exceptions.load(std::memory_order_relaxed);
}

}  // namespace kronsae

#endif  // KRONSAE_HPP
