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
// Monitoring, on the way of a server's tokens:
//
//     auto monitor = kronsae::Monitor::create();
//     auto site = monitor->add_site(kronsae::SiteOptions("residual"), *sae);
//     auto tap = monitor->tap(*site);                         // one for each serving thread
//     // Copies and returns; a full queue drops, and counts what it dropped:
//     if (auto error = tap->submit(kronsae::view(residual, rows, d_model), tags)) return report(error.message());
//     ...
//     auto events = monitor->poll_events(100, 1000);          // elsewhere: what rules found, waiting up to a second
//     for (const kronsae::Event& event : *events) report(event.request, event.position, event.rule);
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
#include <exception>
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

#if __cplusplus >= 202002L && __has_include(<span>)
#include <span>
#define KRONSAE_HAS_SPAN 1
#endif

namespace kronsae {

namespace detail {

template <typename Handle, void (*destroy)(Handle*)>
struct Destroy {
    void operator()(Handle* handle) const noexcept { destroy(handle); }
};

template <typename Handle, void (*destroy)(Handle*)>
using Owned = std::unique_ptr<Handle, Destroy<Handle, destroy>>;

}  // namespace detail

#if defined(__cpp_exceptions)
class Error;

// What or_throw() throws: the error's message and its status.
class Exception : public std::runtime_error {
public:
    explicit Exception(const Error& error);
    kronsae_status status() const noexcept { return status_; }

private:
    kronsae_status status_;
};
#endif

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

#if defined(__cpp_exceptions)
    // Throws an Exception if there is an error.
    void or_throw() const {
        if (error_ != nullptr) throw Exception(*this);
    }
#endif

private:
    detail::Owned<kronsae_error, kronsae_error_destroy> error_;
};

#if defined(__cpp_exceptions)
inline Exception::Exception(const Error& error) : std::runtime_error(error.message()), status_(error.status()) {}
#endif

// The library that is loaded: its version as KRONSAE_VERSION composes it and as text, its ABI version.
[[nodiscard]] inline std::uint32_t version_number() noexcept { return kronsae_version_number(); }
[[nodiscard]] inline std::string_view version_string() noexcept { return kronsae_version_string(); }
[[nodiscard]] inline std::uint32_t abi_version() noexcept { return kronsae_abi_version(); }
// A short name of a status, for logs.
[[nodiscard]] inline std::string_view status_name(kronsae_status status) noexcept { return kronsae_status_name(status); }

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
    // The value, or an Exception.
    T or_throw() && {
        if (state_.index() != 0) throw Exception(error());
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

#if defined(KRONSAE_HAS_SPAN)
// As many contiguous rows of `d_model` floats as `data` has whole; bf16 and f16, as their bits, with their dtype.
[[nodiscard]] inline Activations view(std::span<const float> data, std::size_t d_model) noexcept {
    return view(data.data(), KRONSAE_DTYPE_F32, d_model == 0 ? 0 : data.size() / d_model, d_model);
}
[[nodiscard]] inline Activations view(std::span<const std::uint16_t> data, kronsae_dtype dtype, std::size_t d_model) noexcept {
    // As F32 there would be half as many elements.
    const std::size_t size = dtype == KRONSAE_DTYPE_F32 ? data.size() / 2 : data.size();
    return view(data.data(), dtype, d_model == 0 ? 0 : size / d_model, d_model);
}
[[nodiscard]] inline ActivationsMut view_mut(std::span<float> data, std::size_t d_model) noexcept {
    return view_mut(data.data(), KRONSAE_DTYPE_F32, d_model == 0 ? 0 : data.size() / d_model, d_model);
}
[[nodiscard]] inline ActivationsMut view_mut(std::span<std::uint16_t> data, kronsae_dtype dtype, std::size_t d_model) noexcept {
    const std::size_t size = dtype == KRONSAE_DTYPE_F32 ? data.size() / 2 : data.size();
    return view_mut(data.data(), dtype, d_model == 0 ? 0 : size / d_model, d_model);
}
#endif

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
#if defined(KRONSAE_HAS_SPAN)
    // The row's latents and their values, strongest first.
    std::span<const std::uint32_t> index_span(std::size_t row) const { return {indices(row), count(row)}; }
    std::span<const float> value_span(std::size_t row) const { return {values(row), count(row)}; }
#endif
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
    friend class Tap;

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

#if defined(KRONSAE_HAS_SPAN)
    static Result<Sae> open_bytes(std::span<const std::byte> data, bool encoder_only = false) noexcept {
        return open_bytes(data.data(), data.size(), encoder_only);
    }
#endif

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

#if defined(KRONSAE_HAS_SPAN)
    // A template, so that `{}` means the vector above.
    template <std::size_t Extent>
    Error steer(const ActivationsMut& activations, std::span<const SteerTerm, Extent> terms) const noexcept {
        return steer(activations, terms.data(), terms.size());
    }
#endif

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

// How a model is put on a CUDA device: the options of the C header, with their starting values.
struct DeviceOptions : kronsae_device_options {
    DeviceOptions() noexcept : kronsae_device_options KRONSAE_DEVICE_OPTIONS_INIT {}
};
// Buffers for latents in a device's memory, with their starting values. They are the caller's.
struct DeviceLatents : kronsae_device_latents {
    DeviceLatents() noexcept : kronsae_device_latents KRONSAE_DEVICE_LATENTS_INIT {}
};

// A model's encoder in the memory of a CUDA device. All methods are const: any number of threads and streams may use one
// at once. A library that was built without CUDA answers KRONSAE_STATUS_UNSUPPORTED.
class DeviceSae {
public:
    static Result<DeviceSae> create(const Sae& sae, const DeviceOptions& options = {}) noexcept {
        kronsae_device_sae* handle = nullptr;
        kronsae_error* error = nullptr;
        kronsae_device_sae_create(sae.get(), &options, &handle, &error);
        if (handle == nullptr) return Error(error);
        return DeviceSae(handle);
    }

    // Bytes of workspace that batches of up to `rows` rows need. See kronsae_encode_cuda_workspace.
    Result<std::size_t> workspace(std::size_t rows, kronsae_dtype dtype) const noexcept {
        std::size_t bytes = 0;
        kronsae_error* error = nullptr;
        if (kronsae_encode_cuda_workspace(handle_.get(), rows, dtype, &bytes, &error) != KRONSAE_STATUS_OK) {
            return Error(error);
        }
        return bytes;
    }

    // Enqueues the encoding of a batch in the device's memory on `stream`, a cudaStream_t. See kronsae_encode_cuda.
    Error encode(const kronsae_activations& activations, const kronsae_device_latents& latents, void* workspace,
                 std::size_t workspace_bytes, void* stream) const noexcept {
        kronsae_error* error = nullptr;
        kronsae_encode_cuda(handle_.get(), &activations, &latents, workspace, workspace_bytes, stream, &error);
        return Error(error);
    }

    const kronsae_device_sae* get() const noexcept { return handle_.get(); }

private:
    explicit DeviceSae(kronsae_device_sae* handle) noexcept : handle_(handle) {}

    detail::Owned<kronsae_device_sae, kronsae_device_sae_destroy> handle_;
};

// What a call of the host's has to say of each row it submits: request, position, token, KRONSAE_TOKEN_* flags.
using TokenTag = kronsae_token_tag;
using Event = kronsae_event;
using MonitorStatus = kronsae_monitor_status;
using RecorderStatus = kronsae_recorder_status;

// The options of the C header, with their starting values.
struct MonitorOptions : kronsae_monitor_options {
    MonitorOptions() noexcept : kronsae_monitor_options KRONSAE_MONITOR_OPTIONS_INIT {}
};
struct SiteOptions : kronsae_site_options {
    // `name`, UTF-8, is not copied.
    explicit SiteOptions(const char* site_name) noexcept : kronsae_site_options KRONSAE_SITE_OPTIONS_INIT {
        name = site_name;
    }
    // At a layer of the host's model, which must be the one the SAE was trained at.
    SiteOptions(const char* site_name, std::uint32_t site_layer) noexcept : SiteOptions(site_name) {
        layer = site_layer;
        flags |= KRONSAE_SITE_HAS_LAYER;
    }
};
struct TapOptions : kronsae_tap_options {
    TapOptions() noexcept : kronsae_tap_options KRONSAE_TAP_OPTIONS_INIT {}
};
struct ServeOptions : kronsae_serve_options {
    ServeOptions() noexcept : kronsae_serve_options KRONSAE_SERVE_OPTIONS_INIT {}
    explicit ServeOptions(const char* listen_address) noexcept : ServeOptions() { address = listen_address; }
};
struct RecorderOptions : kronsae_recorder_options {
    // `folder` is not copied.
    explicit RecorderOptions(const char* to_folder) noexcept : kronsae_recorder_options KRONSAE_RECORDER_OPTIONS_INIT {
        folder = to_folder;
    }
};

// Events that were polled together. Needs no monitor any more. What its events point to is valid as long as the batch.
class EventBatch {
public:
    std::size_t size() const noexcept { return kronsae_event_batch_count(handle_.get()); }
    bool empty() const noexcept { return size() == 0; }

    // The event at `index`, the oldest first. All zero past the end.
    Event operator[](std::size_t index) const noexcept {
        Event event = KRONSAE_EVENT_INIT;
        kronsae_event_batch_get(handle_.get(), index, &event, nullptr);
        return event;
    }

    class iterator {
    public:
        iterator(const EventBatch* batch, std::size_t index) noexcept : batch_(batch), index_(index) {}
        Event operator*() const noexcept { return (*batch_)[index_]; }
        iterator& operator++() noexcept {
            ++index_;
            return *this;
        }
        bool operator!=(const iterator& other) const noexcept { return index_ != other.index_; }

    private:
        const EventBatch* batch_;
        std::size_t index_;
    };
    iterator begin() const noexcept { return iterator(this, 0); }
    iterator end() const noexcept { return iterator(this, size()); }

private:
    friend class Monitor;
    explicit EventBatch(kronsae_event_batch* handle) noexcept : handle_(handle) {}

    detail::Owned<kronsae_event_batch, kronsae_event_batch_destroy> handle_;
};

// Where one serving thread hands activations to a monitor. May outlive it; its calls then fail with
// KRONSAE_STATUS_STOPPED.
class Tap {
public:
    // Copies the rows and their tags, one for each row, into the tap's queue. Never waits and never allocates unless it
    // fails; rows for which there is no room are dropped and counted. `accepted`: how many were not. See
    // kronsae_tap_submit.
    Error submit(const Activations& activations, const TokenTag* tags, std::size_t* accepted = nullptr) noexcept {
        kronsae_error* error = nullptr;
        kronsae_tap_submit(handle_.get(), &activations, tags, sizeof(TokenTag), accepted, &error);
        return Error(error);
    }

    // Encodes on this thread, for hosts that act on the result, and hands the rows to the monitor as submit does;
    // `accepted`: how many of them it took. See
    // kronsae_tap_encode.
    Error encode(const Activations& activations, const TokenTag* tags, Latents& latents,
                 std::size_t* accepted = nullptr) noexcept {
        kronsae_latents view = latents.c_view();
        kronsae_error* error = nullptr;
        if (kronsae_tap_encode(handle_.get(), &activations, tags, sizeof(TokenTag), &view, accepted, &error) ==
            KRONSAE_STATUS_OK) {
            latents.skipped_rows_ = view.skipped_rows;
            latents.truncated_rows_ = view.truncated_rows;
        }
        return Error(error);
    }

    // The request is over. See kronsae_tap_end_request.
    Error end_request(std::uint64_t request) noexcept {
        kronsae_error* error = nullptr;
        kronsae_tap_end_request(handle_.get(), request, &error);
        return Error(error);
    }

    // Tokens of the request from `position` on are taken back. See kronsae_tap_rewind.
    Error rewind(std::uint64_t request, std::int32_t position) noexcept {
        kronsae_error* error = nullptr;
        kronsae_tap_rewind(handle_.get(), request, position, &error);
        return Error(error);
    }

    kronsae_tap* get() noexcept { return handle_.get(); }

private:
    friend class Monitor;
    explicit Tap(kronsae_tap* handle) noexcept : handle_(handle) {}

    detail::Owned<kronsae_tap, kronsae_tap_destroy> handle_;
};

// How a device tap works: the options of the C header, with their starting values.
struct DeviceTapOptions : kronsae_device_tap_options {
    DeviceTapOptions() noexcept : kronsae_device_tap_options KRONSAE_DEVICE_TAP_OPTIONS_INIT {}
};

// Where a serving thread hands over activations in a CUDA device's memory, which are encoded there: see
// kronsae_device_tap. Move-only; for one thread at a time.
class DeviceTap {
public:
    // Enqueues a batch in the device's memory on `stream`, a cudaStream_t, and never waits. tags: one for each row, in the
    // host's memory. accepted: how many rows were taken; the others are sampled out or dropped, by count. See
    // kronsae_device_tap_submit.
    Error submit(const kronsae_activations& activations, const TokenTag* tags, void* stream,
                 std::size_t* accepted = nullptr) noexcept {
        kronsae_error* error = nullptr;
        kronsae_device_tap_submit(handle_.get(), &activations, tags, sizeof(TokenTag), accepted, stream, &error);
        return Error(error);
    }

    // The request is over. See kronsae_device_tap_end_request.
    Error end_request(std::uint64_t request) noexcept {
        kronsae_error* error = nullptr;
        kronsae_device_tap_end_request(handle_.get(), request, &error);
        return Error(error);
    }

    // Tokens of the request from `position` on are taken back. See kronsae_device_tap_rewind.
    Error rewind(std::uint64_t request, std::int32_t position) noexcept {
        kronsae_error* error = nullptr;
        kronsae_device_tap_rewind(handle_.get(), request, position, &error);
        return Error(error);
    }

    kronsae_device_tap* get() noexcept { return handle_.get(); }

private:
    friend class Monitor;
    explicit DeviceTap(kronsae_device_tap* handle) noexcept : handle_(handle) {}

    detail::Owned<kronsae_device_tap, kronsae_device_tap_destroy> handle_;
};

// A recording of one site. Its end closes the last shard.
class Recorder {
public:
    Result<RecorderStatus> status() const noexcept {
        RecorderStatus status = KRONSAE_RECORDER_STATUS_INIT;
        kronsae_error* error = nullptr;
        if (kronsae_recorder_get_status(handle_.get(), &status, &error) != KRONSAE_STATUS_OK) return Error(error);
        return status;
    }

    const kronsae_recorder* get() const noexcept { return handle_.get(); }

private:
    friend class Monitor;
    explicit Recorder(kronsae_recorder* handle) noexcept : handle_(handle) {}

    detail::Owned<kronsae_recorder, kronsae_recorder_destroy> handle_;
};

// Receives events as they are made, on a worker of the monitor, whose tokens wait meanwhile. See kronsae_event_callback.
using EventCallback = std::function<void(const Event&)>;
// Gives the bytes of a token's text; empty if it has none. Called on workers of the monitor.
using TokenTextCallback = std::function<std::string(std::int32_t token)>;

namespace detail {

inline thread_local bool inside_monitor = false;

// How many exceptions the callbacks of one monitor threw, and what the last one said.
class Exceptions {
public:
    void caught(const char* what) noexcept {
        const std::lock_guard<std::mutex> lock(mutex_);
        ++count_;
        std::snprintf(last_, sizeof last_, "%s", what);
    }
    std::uint64_t count() const noexcept {
        const std::lock_guard<std::mutex> lock(mutex_);
        return count_;
    }
    std::string last() const {
        const std::lock_guard<std::mutex> lock(mutex_);
        return last_;
    }

private:
    mutable std::mutex mutex_;
    std::uint64_t count_ = 0;
    char last_[256] = "";
};

// Callbacks made, begun, ended and dropped. The library itself sees to it that none is called before it is set or after it
// is replaced; this says the same to thread checkers, which do not see into the library.
inline std::atomic<std::uint64_t> turns{0};

// A callback where the library's user_data points.
template <typename Call>
struct Hook {
    Hook(Call&& with, Exceptions& to) : call(std::move(with)), exceptions(to) {
        turns.fetch_add(1, std::memory_order_release);
    }
    ~Hook() { turns.fetch_add(1, std::memory_order_acquire); }
    Hook(const Hook&) = delete;
    Hook& operator=(const Hook&) = delete;

    // Runs `body` for the library: nothing may unwind into it, so an exception ends here and is counted.
    template <typename Body>
    void run(Body&& body) noexcept {
        turns.fetch_add(1, std::memory_order_acquire);
        const bool was = std::exchange(inside_monitor, true);
#if defined(__cpp_exceptions)
        try {
            body(call);
        } catch (const std::exception& thrown) {
            exceptions.caught(thrown.what());
        } catch (...) {
            exceptions.caught("something that is no std::exception");
        }
#else
        body(call);
#endif
        inside_monitor = was;
        turns.fetch_add(1, std::memory_order_release);
    }

    const Call call;
    Exceptions& exceptions;
};

inline void event_trampoline(void* user_data, const kronsae_event* event) noexcept {
    static_cast<Hook<EventCallback>*>(user_data)->run([&](const EventCallback& call) { call(*event); });
}

inline std::size_t token_text_trampoline(void* user_data, std::int32_t token, char* buffer,
                                         std::size_t capacity) noexcept {
    std::size_t size = 0;
    static_cast<Hook<TokenTextCallback>*>(user_data)->run([&](const TokenTextCallback& call) {
        const std::string text = call(token);
        text.copy(buffer, capacity);
        size = text.size();
    });
    return size;
}

}  // namespace detail

// Watches which latents fire while a host serves: sites, taps that are fed there, workers that encode. All methods are
// const, so any number of threads may use one at once; none is for serving threads, which use a Tap. See kronsae_monitor.
class Monitor {
public:
    static Result<Monitor> create(const MonitorOptions& options = MonitorOptions()) {
        auto state = std::make_unique<State>();
        kronsae_monitor* handle = nullptr;
        kronsae_error* error = nullptr;
        kronsae_monitor_create(&options, &handle, &error);
        if (handle == nullptr) return Error(error);
        state->handle.reset(handle);
        return Monitor(std::move(state));
    }

    // Adds a site, and returns its number. The Sae may be destroyed afterwards.
    Result<std::uint32_t> add_site(const SiteOptions& options, const Sae& sae) const noexcept {
        return add_site(options, sae.get());
    }

    // A site where tokens are only recorded, since there is no model yet: options.d_model says how wide they are.
    Result<std::uint32_t> add_recording_site(const SiteOptions& options) const noexcept {
        return add_site(options, nullptr);
    }

    // Puts another model in force, while taps go on.
    Error replace_sae(std::uint32_t site, const Sae& sae) const noexcept {
        return call([&](auto* self, auto** error) { kronsae_monitor_replace_sae(self, site, sae.get(), error); });
    }

    // Rules from a TOML file. If it is refused, the old ones stay in force.
    Error load_rules(const char* path) const noexcept {
        return call([&](auto* self, auto** error) { kronsae_monitor_load_rules(self, path, error); });
    }

    // Rules from TOML text.
    Error set_rules(std::string_view toml) const noexcept {
        return call([&](auto* self, auto** error) { kronsae_monitor_set_rules(self, toml.data(), toml.size(), error); });
    }

    // Labels of a site's latents, from a TSV file of index and text.
    Error load_labels(std::uint32_t site, const char* path) const noexcept {
        return call([&](auto* self, auto** error) { kronsae_monitor_load_labels(self, site, path, error); });
    }

    // Sets the event callback; an empty one removes it. When this returns, the previous one has returned everywhere and
    // is destroyed. What it throws is caught and counted. Fails if called from inside a callback of a monitor.
    Error set_event_callback(EventCallback callback) const {
        return set(&State::event, std::move(callback), [](auto* self, auto* hook, auto** error) {
            kronsae_monitor_set_event_callback(self, hook ? detail::event_trampoline : nullptr, hook, error);
        });
    }

    // Sets how the text of tokens is found; an empty one removes it. Without it no text appears anywhere. The rest as in
    // set_event_callback; a token whose callback throws has no text.
    Error set_token_text(TokenTextCallback callback) const {
        return set(&State::text, std::move(callback), [](auto* self, auto* hook, auto** error) {
            kronsae_monitor_set_token_text(self, hook ? detail::token_text_trampoline : nullptr, hook, error);
        });
    }

    // How many exceptions this monitor's callbacks have thrown so far, and the last one's what(), or its beginning.
    std::uint64_t callback_exceptions() const noexcept { return state_ ? state_->exceptions.count() : 0; }
    std::string last_callback_exception() const { return state_ ? state_->exceptions.last() : std::string(); }

    // At most `most` events, the oldest first; waits up to timeout_ms for the first. The batch may be empty.
    Result<EventBatch> poll_events(std::size_t most, std::uint32_t timeout_ms = 0) const noexcept {
        kronsae_event_batch* batch = nullptr;
        kronsae_error* error = nullptr;
        kronsae_monitor_poll_events(get(), most, timeout_ms, &batch, &error);
        if (batch == nullptr) return Error(error);
        return EventBatch(batch);
    }

    // State and counters.
    Result<MonitorStatus> status() const noexcept {
        MonitorStatus status = KRONSAE_MONITOR_STATUS_INIT;
        kronsae_error* error = nullptr;
        if (kronsae_monitor_get_status(get(), &status, &error) != KRONSAE_STATUS_OK) return Error(error);
        return status;
    }

    // Metrics as text, for the endpoint a host serves to Prometheus. form: KRONSAE_METRICS_*.
    Result<std::string> metrics(kronsae_metrics_form form = KRONSAE_METRICS_PROMETHEUS) const {
        return text([&](char* buffer, std::size_t capacity, std::size_t* size, kronsae_error** error) {
            return kronsae_monitor_metrics(get(), form, buffer, capacity, size, error);
        });
    }

    // All that is counted, as a JSON object.
    Result<std::string> snapshot_json() const {
        return text([&](char* buffer, std::size_t capacity, std::size_t* size, kronsae_error** error) {
            return kronsae_monitor_snapshot_json(get(), buffer, capacity, size, error);
        });
    }

    // Serves the live page until the monitor is destroyed, and returns the address it listens at.
    Result<std::string> serve(const ServeOptions& options = ServeOptions()) const {
        char bound[KRONSAE_ADDRESS_CAPACITY] = "";
        kronsae_error* error = nullptr;
        if (kronsae_monitor_serve(get(), &options, bound, sizeof bound, &error) != KRONSAE_STATUS_OK) {
            return Error(error);
        }
        return std::string(bound);
    }

    // A tap at a site: one for each thread that submits.
    Result<Tap> tap(std::uint32_t site, const TapOptions& options = TapOptions()) const noexcept {
        kronsae_tap* tap = nullptr;
        kronsae_error* error = nullptr;
        kronsae_tap_create(get(), site, &options, &tap, &error);
        if (tap == nullptr) return Error(error);
        return Tap(tap);
    }

    // A tap at a site for activations in a CUDA device's memory: one for each thread that submits. A library that was built
    // without CUDA answers KRONSAE_STATUS_UNSUPPORTED.
    Result<DeviceTap> device_tap(std::uint32_t site, const DeviceTapOptions& options = DeviceTapOptions()) const noexcept {
        kronsae_device_tap* tap = nullptr;
        kronsae_error* error = nullptr;
        kronsae_device_tap_create(get(), site, &options, &tap, &error);
        if (tap == nullptr) return Error(error);
        return DeviceTap(tap);
    }

    // Starts to record what a site's taps take in.
    Result<Recorder> record(std::uint32_t site, const RecorderOptions& options) const noexcept {
        kronsae_recorder* recorder = nullptr;
        kronsae_error* error = nullptr;
        kronsae_recorder_start(get(), site, &options, &recorder, &error);
        if (recorder == nullptr) return Error(error);
        return Recorder(recorder);
    }

    // Waits until what was submitted before is encoded; KRONSAE_STATUS_TIMEOUT if that takes longer.
    Error flush(std::uint32_t timeout_ms) const noexcept {
        return call([&](auto* self, auto** error) { kronsae_monitor_flush(self, timeout_ms, error); });
    }

    // Drains, closes recordings and ends the workers. Counters can still be asked for.
    Error stop(std::uint32_t timeout_ms) const noexcept {
        return call([&](auto* self, auto** error) { kronsae_monitor_stop(self, timeout_ms, error); });
    }

    const kronsae_monitor* get() const noexcept { return state_ ? state_->handle.get() : nullptr; }

private:
    // The handle is declared last and so destroyed first: no callback runs any more when the others go.
    struct State {
        detail::Exceptions exceptions;
        std::mutex setting;
        std::unique_ptr<detail::Hook<EventCallback>> event;
        std::unique_ptr<detail::Hook<TokenTextCallback>> text;
        detail::Owned<kronsae_monitor, kronsae_monitor_destroy> handle;
    };

    explicit Monitor(std::unique_ptr<State> state) noexcept : state_(std::move(state)) {}

    template <typename Call>
    Error call(Call&& function) const noexcept {
        kronsae_error* error = nullptr;
        function(get(), &error);
        return Error(error);
    }

    Result<std::uint32_t> add_site(const SiteOptions& options, const kronsae_sae* sae) const noexcept {
        std::uint32_t site = 0;
        kronsae_error* error = nullptr;
        if (kronsae_monitor_add_site(get(), &options, sae, &site, &error) != KRONSAE_STATUS_OK) return Error(error);
        return Result<std::uint32_t>(std::move(site));
    }

    template <typename Callback, typename Set>
    Error set(std::unique_ptr<detail::Hook<Callback>> State::* member, Callback&& callback, Set&& in_c) const {
        kronsae_error* error = nullptr;
        if (detail::inside_monitor || !state_) {
            // Refused by the library. Waiting for the mutex here could wait for a thread that waits for this callback.
            in_c(get(), static_cast<detail::Hook<Callback>*>(nullptr), &error);
            return Error(error);
        }
        std::unique_ptr<detail::Hook<Callback>> next;
        if (callback) next = std::make_unique<detail::Hook<Callback>>(std::move(callback), state_->exceptions);
        const std::lock_guard<std::mutex> lock(state_->setting);
        in_c(get(), next.get(), &error);
        if (error == nullptr) std::swap((*state_).*member, next);
        return Error(error);
    }

    // Asks for a text with room enough: it may grow between the calls.
    template <typename Write>
    static Result<std::string> text(Write&& write) {
        std::string text(4096, '\0');
        for (;;) {
            std::size_t size = 0;
            kronsae_error* error = nullptr;
            if (write(text.data(), text.size(), &size, &error) != KRONSAE_STATUS_OK) return Error(error);
            if (size < text.size()) {
                text.resize(size);
                return text;
            }
            text.assign(size + size / 8 + 1, '\0');
        }
    }

    std::unique_ptr<State> state_;
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
