// The examples at the head of kronsae.hpp, as they stand there, in functions that have what they name: front_page TINY ...

#include <kronsae.hpp>

#include "check.h"

#include <unistd.h>

unsigned checks_made = 0;
unsigned checks_failed = 0;

namespace {

unsigned reports = 0;
std::vector<std::pair<std::uint32_t, float>> used;

template <typename... What>
int report(const What&...) {
    ++reports;
    return 1;
}

void use(std::uint32_t latent, float value) { used.emplace_back(latent, value); }

int encode(const float* residual, std::size_t rows, std::size_t d_model) {
#include "front_page_encode.inc"
    return 0;
}

int monitor(kronsae::Result<kronsae::Sae>& sae, const float* residual, std::size_t rows, std::size_t d_model,
            const kronsae::TokenTag* tags) {
#include "front_page_monitor.inc"
    auto status = monitor->status();
    CHECK(status && status->submitted == 1);
    return 0;
}

}  // namespace

int main(int argc, char** argv) {
    char folder[] = "/tmp/kronsae-front-page-XXXXXX";
    if (argc < 2 || mkdtemp(folder) == nullptr || chdir(folder) != 0) return 2;
    const float residual[] = {4, 1, 9, 0, 1, 0, 1, 16};
    const kronsae::TokenTag tag = {7, 0, -1, 0, 0};
    CHECK(encode(residual, 1, 8) == 1 && reports == 1);  // There is no model yet.
    CHECK(symlink(argv[1], "model.safetensors") == 0);
    CHECK(encode(residual, 1, 8) == 0 && reports == 1);
    CHECK(used.size() == 3 && used[0].first == 0 && used[0].second == 6.0f);
    auto sae = kronsae::Sae::open(argv[1]);
    CHECK(sae && monitor(sae, residual, 1, 8, &tag) == 0 && reports == 1);
    CHECK(unlink("model.safetensors") == 0 && rmdir(folder) == 0);
    return FINISH();
}
