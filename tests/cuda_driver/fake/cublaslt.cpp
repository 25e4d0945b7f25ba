// A stand-in for libcublasLt: products in f32 on the CPU, on the streams of the stand-in for libcuda. It refuses what the
// real one refuses (alignments, sizes, a workspace that is too small) and what this project must not ask for (TF32).
#include "cuda.h"

#include <cstring>
#include <vector>

namespace {
enum Status { SUCCESS = 0, INVALID_VALUE = 7, NOT_SUPPORTED = 15 };
enum { R_32F = 0, R_16BF = 14, COMPUTE_32F = 68 };

struct Layout {
    int type;
    uint64_t rows, columns;
    int64_t stride;
};
struct Desc {
    int transpose_a = 0, transpose_b = 0, epilogue = 1;
    uint64_t bias = 0;
};
struct Preference {
    size_t workspace = 0;
    unsigned alignment[4] = {256, 256, 256, 256};
};
struct Heuristic {
    uint64_t algo[8];
    size_t workspace;
    int state;
    float waves;
    int reserved[4];
};
constexpr size_t WORKSPACE = 4096;
constexpr uint64_t ALGO = 0x6B726F6E73616521;

size_t size_of(int type) { return type == R_32F ? 4 : 2; }
float read(int type, const unsigned char* at) {
    uint32_t bits = 0;
    if (type == R_32F) std::memcpy(&bits, at, 4);
    else {
        uint16_t half;
        std::memcpy(&half, at, 2);
        bits = static_cast<uint32_t>(half) << 16;
    }
    float value;
    std::memcpy(&value, &bits, 4);
    return value;
}
void write(int type, unsigned char* at, float value) {
    uint32_t bits;
    std::memcpy(&bits, &value, 4);
    if (type == R_32F) {
        std::memcpy(at, &bits, 4);
        return;
    }
    const bool nan = (bits & 0x7FFFFFFF) > 0x7F800000;
    const auto half = static_cast<uint16_t>(nan ? 0x7FFF : (bits + 0x7FFF + (bits >> 16 & 1)) >> 16);
    std::memcpy(at, &half, 2);
}
size_t extent(const Layout& layout) {
    return (static_cast<size_t>(layout.stride) * (layout.columns - 1) + layout.rows) * size_of(layout.type);
}
bool supported(const Desc& desc, const Layout& a, const Layout& b, const Layout& d) {
    return desc.transpose_a == 1 && desc.transpose_b == 0 && a.rows == b.rows && a.columns == d.rows &&
           b.columns == d.columns && a.type == b.type;
}
} // namespace

#define EXPORT extern "C" __attribute__((visibility("default")))

EXPORT int cublasLtCreate(void** out) {
    if (!fake_has_context()) return INVALID_VALUE;
    *out = new int(1);
    return SUCCESS;
}
EXPORT int cublasLtDestroy(void* handle) {
    delete static_cast<int*>(handle);
    return SUCCESS;
}
EXPORT int cublasLtMatmulDescCreate(void** out, int compute, int scale) {
    if (compute != COMPUTE_32F || scale != R_32F) return INVALID_VALUE;
    *out = new Desc;
    return SUCCESS;
}
EXPORT int cublasLtMatmulDescDestroy(void* desc) {
    delete static_cast<Desc*>(desc);
    return SUCCESS;
}
EXPORT int cublasLtMatmulDescSetAttribute(void* handle, int which, const void* value, size_t bytes) {
    auto& desc = *static_cast<Desc*>(handle);
    void* to;
    size_t expected = 4;
    switch (which) {
    case 3: to = &desc.transpose_a; break;
    case 4: to = &desc.transpose_b; break;
    case 7: to = &desc.epilogue; break;
    case 8: to = &desc.bias, expected = 8; break;
    default: return INVALID_VALUE;
    }
    if (bytes != expected) return INVALID_VALUE;
    std::memcpy(to, value, bytes);
    return SUCCESS;
}
EXPORT int cublasLtMatrixLayoutCreate(void** out, int type, uint64_t rows, uint64_t columns, int64_t stride) {
    if (stride < static_cast<int64_t>(rows)) return INVALID_VALUE;
    *out = new Layout{type, rows, columns, stride};
    return SUCCESS;
}
EXPORT int cublasLtMatrixLayoutDestroy(void* layout) {
    delete static_cast<Layout*>(layout);
    return SUCCESS;
}
EXPORT int cublasLtMatmulPreferenceCreate(void** out) {
    *out = new Preference;
    return SUCCESS;
}
EXPORT int cublasLtMatmulPreferenceDestroy(void* preference) {
    delete static_cast<Preference*>(preference);
    return SUCCESS;
}
EXPORT int cublasLtMatmulPreferenceSetAttribute(void* handle, int which, const void* value, size_t bytes) {
    auto& preference = *static_cast<Preference*>(handle);
    if (which == 1 && bytes == 8) std::memcpy(&preference.workspace, value, 8);
    else if (which >= 5 && which <= 8 && bytes == 4) std::memcpy(&preference.alignment[which - 5], value, 4);
    else return INVALID_VALUE;
    return SUCCESS;
}
EXPORT int cublasLtMatmulAlgoGetHeuristic(void*, void* desc, void* a, void* b, void*, void* d, void* preference, int most,
                                          Heuristic* out, int* found) {
    fake_log("heuristic");
    *found = 0;
    const auto& wanted = *static_cast<Preference*>(preference);
    for (unsigned alignment : wanted.alignment)
        if (alignment > 16) return NOT_SUPPORTED; // more than callers promise
    if (most < 1 || wanted.workspace < WORKSPACE) return SUCCESS;
    if (!supported(*static_cast<Desc*>(desc), *static_cast<Layout*>(a), *static_cast<Layout*>(b), *static_cast<Layout*>(d)))
        return NOT_SUPPORTED;
    *out = Heuristic{};
    out->algo[0] = ALGO;
    out->workspace = WORKSPACE;
    *found = 1;
    return SUCCESS;
}
EXPORT int cublasLtMatmul(void*, void* desc_handle, const float* alpha, const void* a, void* a_layout, const void* b,
                          void* b_layout, const float* beta, const void* c, void*, void* d, void* d_layout,
                          const uint64_t* algo, void* workspace, size_t workspace_bytes, void* stream) {
    fake_log(__func__);
    if (!fake_has_context()) return INVALID_VALUE;
    const Desc desc = *static_cast<Desc*>(desc_handle);
    const Layout w = *static_cast<Layout*>(a_layout), x = *static_cast<Layout*>(b_layout),
                 y = *static_cast<Layout*>(d_layout);
    if (*alpha != 1.0f || *beta != 0.0f || c != d || algo[0] != ALGO || workspace_bytes < WORKSPACE) return INVALID_VALUE;
    for (const void* at : {a, b, static_cast<const void*>(d)})
        if (reinterpret_cast<uintptr_t>(at) % 16 != 0) return INVALID_VALUE;
    if ((desc.epilogue == 4) != (desc.bias != 0)) return INVALID_VALUE;
    auto address = [](const void* at) { return reinterpret_cast<uint64_t>(at); };
    if (!fake_is_device(address(a), extent(w)) || !fake_is_device(address(b), extent(x)) ||
        !fake_is_device(address(d), extent(y)) || !fake_is_device(address(workspace), workspace_bytes))
        return INVALID_VALUE;
    std::function<void()> work = [=] {
        std::memset(workspace, 0xA5, workspace_bytes);
        auto at = [](const void* start, const Layout& layout, uint64_t column, uint64_t row) {
            return static_cast<const unsigned char*>(start) +
                   (column * static_cast<uint64_t>(layout.stride) + row) * size_of(layout.type);
        };
        for (uint64_t token = 0; token < x.columns; token++)
            for (uint64_t row = 0; row < w.columns; row++) {
                float sum = 0.0f;
                for (uint64_t i = 0; i < w.rows; i++) sum += read(w.type, at(a, w, row, i)) * read(x.type, at(b, x, token, i));
                if (desc.bias != 0)
                    sum += read(y.type, reinterpret_cast<const unsigned char*>(desc.bias) + row * size_of(y.type));
                write(y.type, const_cast<unsigned char*>(at(d, y, token, row)), sum);
            }
    };
    fake_enqueue(stream, &work);
    return SUCCESS;
}
