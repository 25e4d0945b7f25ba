// The C++ layer as a C++ program uses it: capi_cpp TINY THRESHOLD RANDOM, the three files of examples/make_model.rs.
// Compiled a second time with -fno-exceptions.

#include <kronsae.hpp>

#include "check.h"

#include <cstring>
#include <thread>
#include <type_traits>

unsigned checks_made = 0;
unsigned checks_failed = 0;

static_assert(!std::is_copy_constructible_v<kronsae::Sae> && std::is_nothrow_move_constructible_v<kronsae::Sae>);
static_assert(!std::is_copy_constructible_v<kronsae::Encoder> && std::is_nothrow_move_assignable_v<kronsae::Encoder>);

namespace {

constexpr std::size_t kWidth = 8;
const std::vector<float> kTokens = {4, 1, 9, 0, 1, 0, 1, 16, 1, 0, 4, 0, 0, 0, 0, 0};

void encode_decode_steer(const kronsae::Sae& sae, kronsae::Encoder& encoder) {
    const kronsae::Info info = sae.info();
    CHECK(info.d_model == kWidth && info.latents == 8 && info.capacity == 3);
    CHECK(sae.config_json().find("\"topk\":3") != std::string_view::npos);
    CHECK(sae.source("layer") == "15" && !sae.source("nowhere"));

    kronsae::Latents latents(2, info.capacity);
    CHECK(!encoder.encode(kronsae::view(kTokens.data(), 2, kWidth), latents));
    CHECK(latents.count(0) == 3 && latents.count(1) == 1 && latents.skipped_rows() == 0);
    CHECK(latents.indices(0)[0] == 0 && latents.indices(0)[1] == 5 && latents.indices(0)[2] == 2);
    CHECK(latents.values(0)[0] == 6.0f && latents.values(1)[0] == 2.0f && latents.flags(0) == 0);

    std::vector<float> out(2 * kWidth);
    latents.values(1)[0] = 3.0f;
    CHECK(!sae.decode(latents, kronsae::view_mut(out.data(), 2, kWidth)));
    CHECK(out[0] == 12.5f && out[5] == 8.5f && out[7] == 0.5f && out[kWidth] == 6.5f);
    CHECK(!sae.steer(kronsae::view_mut(out.data(), 2, kWidth), {{7, 0.25f}}));
    CHECK(out[7] == 1.0f && out[kWidth + 7] == 1.0f && out[0] == 12.5f);
}

// A library that was built without CUDA says so.
void without_cuda(const kronsae::Sae& sae) {
    const auto device = kronsae::DeviceSae::create(sae);
    CHECK(!device && device.error().status() == KRONSAE_STATUS_UNSUPPORTED);
    CHECK(std::strstr(device.error().message(), "built without CUDA") != nullptr);
    const auto create = [&sae] { return kronsae::DeviceSae::create(sae, kronsae::DeviceOptions()); };
    static_assert(std::is_same_v<decltype(create()), kronsae::Result<kronsae::DeviceSae>>);
}

#if defined(KRONSAE_HAS_SPAN)
void spans(const kronsae::Sae& sae, kronsae::Encoder& encoder) {
    kronsae::Latents latents(2, sae.info().capacity);
    CHECK(!encoder.encode(kronsae::view(std::span<const float>(kTokens), kWidth), latents));
    CHECK(latents.index_span(0).size() == 3 && latents.index_span(0)[1] == 5 && latents.value_span(0)[0] == 6.0f);
    CHECK(latents.index_span(1).size() == 1 && latents.value_span(1)[0] == 2.0f);
    // The same as bfloat16: these numbers are exact in it.
    std::vector<std::uint16_t> bits;
    for (const float value : kTokens) {
        std::uint32_t word;
        std::memcpy(&word, &value, sizeof word);
        bits.push_back(std::uint16_t(word >> 16));
    }
    kronsae::Latents again(2, sae.info().capacity);
    CHECK(!encoder.encode(kronsae::view(std::span<const std::uint16_t>(bits), KRONSAE_DTYPE_BF16, kWidth), again));
    CHECK(again.count(0) == 3 && again.index_span(0)[2] == 2 && again.value_span(0)[0] == 6.0f);
    const std::vector<kronsae::SteerTerm> terms = {{7, 0.25f}};
    std::vector<float> out(kWidth);
    CHECK(!sae.steer(kronsae::view_mut(std::span<float>(out), kWidth), std::span<const kronsae::SteerTerm>(terms)));
    CHECK(out[7] == 0.5f && out[0] == 0.0f);
    CHECK(kronsae::view(std::span<const float>(kTokens), 0).rows == 0);
    const std::byte none[8] = {};
    CHECK(kronsae::Sae::open_bytes(std::span<const std::byte>(none)).error().status() == KRONSAE_STATUS_FORMAT);
}
#endif

void versions() {
    CHECK(kronsae::version_number() == KRONSAE_VERSION && kronsae::abi_version() == KRONSAE_ABI_VERSION);
    CHECK(kronsae::version_string() == std::to_string(KRONSAE_VERSION_MAJOR) + "." + std::to_string(KRONSAE_VERSION_MINOR) +
                                           "." + std::to_string(KRONSAE_VERSION_PATCH));
    CHECK(kronsae::status_name(KRONSAE_STATUS_FULL) == "queue full" && kronsae::status_name(-1) == "unknown status");
}

void errors(const char* tiny) {
    const auto missing = kronsae::Sae::open("/nonexistent/model");
    CHECK(!missing && missing.error().status() == KRONSAE_STATUS_IO);
    CHECK(std::string_view(missing.error().message()).find("/nonexistent/model") != std::string_view::npos);
    CHECK(kronsae::Sae::open_bytes("no model", 8).error().status() == KRONSAE_STATUS_FORMAT);

    auto sae = kronsae::Sae::open(std::string(tiny), true);
    CHECK(sae && sae->info().has_decoder == 0 && !sae.error());
    CHECK(kronsae::Encoder::create(*sae, 100000).error().status() == KRONSAE_STATUS_INVALID_ARGUMENT);
    auto encoder = kronsae::Encoder::create(*sae);
    CHECK(bool(encoder));
    kronsae::Latents narrow(1, 2), room(1, 3);
    const auto error = encoder->encode(kronsae::view(kTokens.data(), 1, kWidth), narrow);
    CHECK(error && error.status() == KRONSAE_STATUS_INVALID_ARGUMENT);
    CHECK(sae->steer(kronsae::view_mut(nullptr, 0, kWidth), {}).status() == KRONSAE_STATUS_UNSUPPORTED);

    // Moving keeps the handle alive and leaves an empty one behind.
    kronsae::Sae moved = std::move(*sae);
    CHECK(moved.info().d_model == kWidth && sae->info().d_model == 0 && sae->config_json().empty());
    CHECK(!encoder->encode(kronsae::view(kTokens.data(), 1, kWidth), room));
    // A model that goes before its encoder stops it.
    { const kronsae::Sae gone = std::move(moved); }
    CHECK(encoder->encode(kronsae::view(kTokens.data(), 1, kWidth), room).status() == KRONSAE_STATUS_STOPPED);
    kronsae::Encoder last = std::move(*encoder);
    CHECK(encoder->encode(kronsae::view(kTokens.data(), 1, kWidth), room).status() == KRONSAE_STATUS_INVALID_ARGUMENT);

#if defined(__cpp_exceptions)
    bool thrown = false;
    try {
        kronsae::Sae::open("/nonexistent/model").or_throw();
    } catch (const kronsae::Exception& caught) {
        thrown = caught.status() == KRONSAE_STATUS_IO && std::string_view(caught.what()).find("/nonexistent/model") != std::string_view::npos;
    }
    CHECK(thrown);
    CHECK(kronsae::Sae::open(tiny).or_throw().info().d_model == kWidth);
    kronsae::Error().or_throw();
    thrown = false;
    try {
        kronsae::Encoder::create(*sae).or_throw();
    } catch (const std::runtime_error&) {
        thrown = true;
    }
    CHECK(thrown);
#endif
}

void logging(const char* tiny) {
    unsigned messages = 0;
    CHECK(!kronsae::set_log_callback([&](kronsae_log_level level, std::string_view message) {
        if (level == KRONSAE_LOG_INFO && message.find("opened") != std::string_view::npos) ++messages;
        CHECK(kronsae::set_log_callback({}).status() == KRONSAE_STATUS_INVALID_ARGUMENT);
    }));
    CHECK(bool(kronsae::Sae::open(tiny)) && messages == 1);
#if defined(__cpp_exceptions)
    CHECK(!kronsae::set_log_callback([](kronsae_log_level, std::string_view) { throw 1; }));
    CHECK(bool(kronsae::Sae::open(tiny)) && kronsae::log_callback_exceptions() == 1);
#endif
    CHECK(!kronsae::set_log_callback({}));
    CHECK(bool(kronsae::Sae::open(tiny)) && messages == 1);
}

// One model, four threads with an encoder each, all decoding as well: the same bits as alone.
void threads(const char* random) {
    constexpr std::size_t rows = 20, width = 100;
    const auto sae = kronsae::Sae::open(random);
    CHECK(bool(sae));
    std::vector<float> x(rows * width);
    for (std::size_t i = 0; i < x.size(); ++i) x[i] = float((i * 2654435761u) % 1000) / 500.0f - 1.0f;
    std::vector<std::vector<float>> outputs(4, std::vector<float>(rows * width));
    std::vector<unsigned> failures(4, 1);
    std::vector<std::thread> workers;
    for (std::size_t t = 0; t < 4; ++t) {
        workers.emplace_back([&, t] {
            auto encoder = kronsae::Encoder::create(*sae, t == 0 ? 2 : 1);
            kronsae::Latents latents(rows, sae->info().capacity);
            unsigned failed = 0;
            for (int round = 0; round < 10; ++round) {
                failed += bool(encoder->encode(kronsae::view(x.data(), rows, width), latents));
                failed += bool(sae->decode(latents, kronsae::view_mut(outputs[t].data(), rows, width)));
            }
            failures[t] = failed;
        });
    }
    for (auto& worker : workers) worker.join();
    for (std::size_t t = 0; t < 4; ++t) CHECK(failures[t] == 0 && outputs[t] == outputs[0]);
    CHECK(outputs[0][0] != 0.5f || outputs[0][1] != 0.5f);
}

}  // namespace

int main(int argc, char** argv) {
    if (argc != 4) {
        std::fprintf(stderr, "usage: capi_cpp TINY THRESHOLD RANDOM\n");
        return 2;
    }
    {
        auto sae = kronsae::Sae::open(argv[1]);
        if (!sae) {
            std::fprintf(stderr, "%s\n", sae.error().message());
            return 2;
        }
        auto encoder = kronsae::Encoder::create(*sae, 2);
        CHECK(bool(encoder));
        encode_decode_steer(*sae, *encoder);
        without_cuda(*sae);
#if defined(KRONSAE_HAS_SPAN)
        spans(*sae, *encoder);
#endif
    }
    versions();
    errors(argv[1]);
    logging(argv[1]);
    threads(argv[3]);
    return FINISH();
}
