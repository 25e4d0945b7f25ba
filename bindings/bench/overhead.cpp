// What overhead.c does, from C++.
#include <kronsae.hpp>

#include <algorithm>
#include <chrono>

namespace {

constexpr int kCalls = 200000;
constexpr int kRounds = 15;

template <typename Call>
void print(const char* name, Call&& call) {
    double best = 1e99;
    for (int round = 0; round < kRounds; ++round) {
        const auto start = std::chrono::steady_clock::now();
        for (int i = 0; i < kCalls; ++i) call();
        const std::chrono::duration<double, std::nano> took = std::chrono::steady_clock::now() - start;
        best = std::min(best, took.count() / kCalls);
    }
    std::printf("%s %.1f ns\n", name, best);
}

}  // namespace

int main(int argc, char** argv) {
    if (argc != 2) return 2;
    auto sae = kronsae::Sae::open(argv[1]).or_throw();
    auto encoder = kronsae::Encoder::create(sae).or_throw();
    std::vector<float> token(sae.info().d_model);
    for (std::size_t i = 0; i < token.size(); ++i) token[i] = float(i * 5 % 7) - 2.5f;
    kronsae::Latents latents(1, sae.info().capacity);
    std::size_t width = 0;
    print("info", [&] { width += sae.info().d_model; });
    print("encode", [&] { encoder.encode(kronsae::view(token.data(), 1, token.size()), latents).or_throw(); });
    return width == 0;
}
