// What the launcher decides before anything runs: its settings, and whether a program can be attached to.

#include "checks.hpp"

#include "../attach/elf.hpp"
#include "../attach/settings.hpp"

#include <unistd.h>

#include <map>

using namespace kronsae_llama;

namespace {

using Variables = std::map<std::string, std::string>;

std::string read(const Variables& variables, Settings& out) {
    return SettingsReader::read(
        [&](const char* variable) -> const char* {
            const auto found = variables.find(variable);
            return found == variables.end() ? nullptr : found->second.c_str();
        },
        out);
}

bool names(const std::string& text, const char* part) { return text.find(part) != std::string::npos; }

void settings_are_read() {
    Settings s;
    const Variables all = {{"KRONSAE_LLAMA_MODELS", "a.safetensors:dir/b@x.safetensors@7"},
                           {"KRONSAE_LLAMA_LABELS", "a.tsv"},
                           {"KRONSAE_LLAMA_WATCH", "1,5-7:2"},
                           {"KRONSAE_LLAMA_RECORD", "out"},
                           {"KRONSAE_LLAMA_RECORD_LAYERS", "3:4"},
                           {"KRONSAE_LLAMA_RECORD_F32", "1"},
                           {"KRONSAE_LLAMA_RECORD_TEXT", "0"},
                           {"KRONSAE_LLAMA_SAMPLE", "4"},
                           {"KRONSAE_LLAMA_CPU_SHARE", "0.25"},
                           {"KRONSAE_LLAMA_CPUS", "0,2-3"},
                           {"KRONSAE_LLAMA_LISTEN", "none"},
                           {"KRONSAE_LLAMA_TOKEN", "secret"}};
    CHECK(read(all, s).empty());
    CHECK(s.models.size() == 2 && s.models[0].file == "a.safetensors" && s.models[0].layer == -1);
    CHECK(s.models[1].file == "dir/b@x.safetensors" && s.models[1].layer == 7);
    CHECK(s.models[0].labels == "a.tsv" && s.models[1].labels.empty());
    CHECK((s.models[0].watch == std::vector<std::uint32_t>{1, 5, 6, 7}) && s.models[1].watch.size() == 1);
    CHECK((s.record_layers == std::vector<std::int32_t>{3, 4}) && s.record_f32 && !s.record_text);
    CHECK(s.every == 4 && !s.last_prompt && s.cpu_share == 0.25f && s.listen.empty() && s.token == "secret");
    CHECK((s.cpus == std::vector<std::uint32_t>{0, 2, 3}) && s.first_position == 1);
}

void wrong_settings_name_their_flag() {
    const auto wrong = [](const char* variable, const char* value) {
        Settings s;
        Variables v = {{"KRONSAE_LLAMA_MODELS", "m"}};
        v[variable] = value;
        return read(v, s);
    };
    Settings s;
    CHECK(names(read({}, s), "--model"));
    CHECK(names(wrong("KRONSAE_LLAMA_SAMPLE", "0"), "--sample: found `0`"));
    CHECK(names(wrong("KRONSAE_LLAMA_SAMPLE", "often"), "--sample"));
    CHECK(names(wrong("KRONSAE_LLAMA_NICE", "20"), "--nice"));
    CHECK(names(wrong("KRONSAE_LLAMA_WORKERS", "-1"), "--workers"));
    CHECK(names(wrong("KRONSAE_LLAMA_CPU_SHARE", "1.5"), "--cpu-share"));
    CHECK(names(wrong("KRONSAE_LLAMA_CPU_SHARE", "nan"), "--cpu-share"));
    CHECK(names(wrong("KRONSAE_LLAMA_CPUS", "3-1"), "--cpus"));
    CHECK(names(wrong("KRONSAE_LLAMA_CPUS", "a"), "--cpus"));
    CHECK(names(wrong("KRONSAE_LLAMA_LABELS", "a:b"), "--labels"));
    CHECK(names(wrong("KRONSAE_LLAMA_RECORD_LAYERS", "3"), "--record FOLDER"));
    CHECK(names(wrong("KRONSAE_LLAMA_TOKEN_FILE", "/nonexistent"), "--token-file"));
    CHECK(names(wrong("KRONSAE_LLAMA_MODELS", "a::b"), "--model"));
    CHECK(names(wrong("KRONSAE_LLAMA_RECORD_MOST_BYTES", "99999999999999999999"), "--record-most-bytes"));
}

std::uint16_t own_machine() { return Elf::read("/proc/self/exe").machine; }

void programs_are_refused_for_a_reason() {
    const auto why = [](const char* path, std::uint16_t machine) {
        return Program(path, nullptr).obstacle("llama_init_from_model", machine);
    };
    CHECK(own_machine() != 0);
    CHECK(names(why("/proc/self/exe", own_machine()), "imports llama_init_from_model"));
    CHECK(names(why("/proc/self/exe", EM_68K), "another processor"));
    CHECK(names(why("/nonexistent", own_machine()), "cannot be read"));
    CHECK(names(why("/etc/passwd", own_machine()), "not an ELF program"));
    // This program's libraries are found: some of them import what C programs do.
    const Elf self = Elf::read("/proc/self/exe");
    CHECK(self.error.empty() && self.interpreted && !self.needed.empty());
}

// Whatever a file holds, reading it ends.
void damaged_files_are_survived() {
    std::ifstream file("/proc/self/exe", std::ios::binary);
    const std::string good((std::istreambuf_iterator<char>(file)), std::istreambuf_iterator<char>());
    char path[] = "/tmp/kronsae-elf-XXXXXX";
    const int descriptor = mkstemp(path);
    CHECK(descriptor >= 0);
    close(descriptor);
    std::uint32_t random = 1;
    for (int round = 0; round < 60; ++round) {
        std::string bad = good.substr(0, round % 3 == 0 ? good.size() * static_cast<std::size_t>(round) / 60 : good.size());
        for (std::size_t i = 0; i < 64 && i < bad.size(); ++i) {
            random = random * 1664525 + 1013904223;
            if (round % 3 == 1) bad[i] = static_cast<char>(random >> 24);                        // the header
            if (round % 3 == 2) bad[bad.size() - 1 - (random >> 8) % 4096] = static_cast<char>(random);  // the section headers
        }
        if (round % 3 == 1) bad.replace(0, 6, good.substr(0, 6));
        std::ofstream(path, std::ios::binary) << bad;
        CHECK(!Program(path, nullptr).obstacle("llama_init_from_model", own_machine()).empty());
    }
    unlink(path);
}

}  // namespace

int main() {
    settings_are_read();
    wrong_settings_name_their_flag();
    programs_are_refused_for_a_reason();
    damaged_files_are_survived();
    return checks_end();
}
