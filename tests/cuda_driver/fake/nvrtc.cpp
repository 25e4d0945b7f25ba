// A stand-in for libnvrtc: it compiles nothing, but looks at what it is given. FAKE_NVRTC_VERSION (13000);
// FAKE_NVRTC_FAILS=1: the source does not compile; FAKE_NVRTC_NEWEST: the newest architecture it knows (120).
#include <cstdlib>
#include <cstring>
#include <string>
#include <vector>

extern "C" void fake_log(const char*);

namespace {
struct Program {
    std::string source, log, result;
    std::vector<std::string> headers;
};
long number(const char* name, long otherwise) {
    const char* text = std::getenv(name);
    return text != nullptr ? std::strtol(text, nullptr, 10) : otherwise;
}
enum { SUCCESS = 0, INVALID_INPUT = 3, INVALID_OPTION = 5, COMPILATION = 6 };
std::vector<int> known() {
    std::vector<int> all;
    for (int architecture : {80, 90, 100, 120})
        if (architecture <= number("FAKE_NVRTC_NEWEST", 120)) all.push_back(architecture);
    return all;
}
} // namespace

#define EXPORT extern "C" __attribute__((visibility("default")))

EXPORT int nvrtcVersion(int* major, int* minor) {
    *major = static_cast<int>(number("FAKE_NVRTC_VERSION", 13000) / 1000);
    *minor = static_cast<int>(number("FAKE_NVRTC_VERSION", 13000) % 1000 / 10);
    return SUCCESS;
}
EXPORT const char* nvrtcGetErrorString(int result) { return result == COMPILATION ? "NVRTC_ERROR_COMPILATION" : "NVRTC_ERROR"; }
EXPORT int nvrtcGetNumSupportedArchs(int* count) {
    *count = static_cast<int>(known().size());
    return SUCCESS;
}
EXPORT int nvrtcGetSupportedArchs(int* out) {
    for (int architecture : known()) *out++ = architecture;
    return SUCCESS;
}
EXPORT int nvrtcCreateProgram(void** out, const char* source, const char*, int headers, const char* const* texts,
                              const char* const* names) {
    auto* program = new Program;
    program->source = source;
    for (int i = 0; i < headers; i++)
        if (std::strlen(texts[i]) > 0) program->headers.push_back(names[i]);
    *out = program;
    return SUCCESS;
}
EXPORT int nvrtcCompileProgram(void* handle, int count, const char* const* options) {
    auto& program = *static_cast<Program*>(handle);
    std::string all;
    for (int i = 0; i < count; i++) all += std::string(options[i]) + " ";
    fake_log(("compiled for " + all).c_str());
    // Every file that the source includes has to be among the headers, by its name.
    for (const char* wanted : {"common.cuh", "select.cuh", "cuda_bf16.h", "cuda_fp16.h"}) {
        bool there = false;
        for (const std::string& header : program.headers) there = there || header == wanted;
        if (!there) program.log += std::string("no header ") + wanted + "\n";
    }
    if (number("FAKE_NVRTC_FAILS", 0) != 0) program.log += "kronsae.cu(7): error: planted\n";
    if (all.find("fast") != std::string::npos) program.log += "fast-math\n";
    if (!program.log.empty()) return COMPILATION;
    program.result = "FAKECUBIN for " + all;
    return SUCCESS;
}
EXPORT int nvrtcGetProgramLogSize(void* program, size_t* bytes) {
    *bytes = static_cast<Program*>(program)->log.size() + 1;
    return SUCCESS;
}
EXPORT int nvrtcGetProgramLog(void* program, char* out) {
    std::strcpy(out, static_cast<Program*>(program)->log.c_str());
    return SUCCESS;
}
static int size_of(void* program, size_t* bytes) {
    *bytes = static_cast<Program*>(program)->result.size() + 1;
    return SUCCESS;
}
static int get(void* program, char* out) {
    std::strcpy(out, static_cast<Program*>(program)->result.c_str());
    return SUCCESS;
}
EXPORT int nvrtcGetCUBINSize(void* program, size_t* bytes) { return size_of(program, bytes); }
EXPORT int nvrtcGetCUBIN(void* program, char* out) { return get(program, out); }
EXPORT int nvrtcGetPTXSize(void* program, size_t* bytes) { return size_of(program, bytes); }
EXPORT int nvrtcGetPTX(void* program, char* out) { return get(program, out); }
EXPORT int nvrtcDestroyProgram(void** program) {
    delete static_cast<Program*>(*program);
    *program = nullptr;
    return SUCCESS;
}
