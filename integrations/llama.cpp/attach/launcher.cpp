// kronsae-llama-attach: starts an unmodified llama.cpp program with monitoring attached, after making sure that it can be.

#include "elf.hpp"
#include "monitoring.hpp"

#include <fcntl.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cerrno>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <map>

using namespace kronsae_llama;

namespace {

#if defined(__x86_64__)
constexpr std::uint16_t own_machine = EM_X86_64;
#elif defined(__aarch64__)
constexpr std::uint16_t own_machine = EM_AARCH64;
#else
#error "kronsae-llama-attach is for x86-64 and AArch64"
#endif

// What a launcher that starts nothing exits with, apart from 127: no such program.
constexpr int exit_usage = 2;
constexpr int exit_refused = 3;

void help() {
    std::printf(
        "kronsae-llama-attach [options] -- PROGRAM [arguments]\n\n"
        "Starts a llama.cpp program, llama-server for one, with live monitoring of features attached. The program need not\n"
        "be built for it; it must use libllama as a shared library.\n\n"
        "  kronsae-llama-attach --model model.safetensors --rules rules.toml -- llama-server -m llm.gguf\n\n");
    for (const Setting& s : settings_known) {
        const std::string left = std::string(s.flag) + (s.value != nullptr ? std::string(" ") + s.value : "");
        std::printf("  %-28s %s\n", left.c_str(), s.help);
    }
    std::printf("  %-28s %s\n  %-28s %s\n", "--preload FILE", "the library to preload, default: beside this program", "--check",
                "only say whether it would work");
    std::printf(
        "\nEach option can be given as an environment variable as well: --record-f32 is KRONSAE_LLAMA_RECORD_F32=1. The token\n"
        "of the page may be in %s. Exit status: the program's own; %d: wrong options; %d: nothing can\n"
        "be attached, for the reason given; 127: no such program.\n",
        token_variable, exit_usage, exit_refused);
}

int fail(int status, const std::string& text) {
    std::fprintf(stderr, "kronsae-llama-attach: %s\n", text.c_str());
    return status;
}

// The file that `name` means, as the shell would find it; empty if there is none.
std::string find_program(const std::string& name) {
    if (name.find('/') != std::string::npos) return access(name.c_str(), X_OK) == 0 ? name : "";
    const char* variable = getenv("PATH");
    const std::string path = variable != nullptr ? variable : "/usr/local/bin:/usr/bin:/bin";
    for (std::size_t begin = 0; begin <= path.size();) {
        std::size_t end = path.find(':', begin);
        if (end == std::string::npos) end = path.size();
        const std::string file = (end > begin ? path.substr(begin, end - begin) : ".") + "/" + name;
        struct stat status;
        if (stat(file.c_str(), &status) == 0 && S_ISREG(status.st_mode) && access(file.c_str(), X_OK) == 0) return file;
        begin = end + 1;
    }
    return "";
}

std::string own_folder() {
    char path[4096];
    const ssize_t size = readlink("/proc/self/exe", path, sizeof(path) - 1);
    if (size <= 0) return ".";
    const std::string file(path, static_cast<std::size_t>(size));
    return file.substr(0, file.rfind('/'));
}

// Loads the program with everything it needs, as the system's loader does it, and has the preloaded library look at the
// libllama that is there. Nothing of the program itself runs. Empty, or what is wrong.
std::string try_loading(const std::string& program, const std::string& preload) {
    int ends[2];
    if (pipe(ends) != 0) return std::string("pipe: ") + std::strerror(errno);
    const pid_t child = fork();
    if (child < 0) return std::string("fork: ") + std::strerror(errno);
    if (child == 0) {
        close(ends[0]);
        setenv("LD_PRELOAD", preload.c_str(), 1);
        setenv(check_variable, std::to_string(ends[1]).c_str(), 1);
        char* const arguments[] = {const_cast<char*>(program.c_str()), nullptr};
        execv(program.c_str(), arguments);
        _exit(127);
    }
    close(ends[1]);
    std::string answer;
    char buffer[512];
    ssize_t size = 0;
    while ((size = read(ends[0], buffer, sizeof(buffer))) > 0) answer.append(buffer, static_cast<std::size_t>(size));
    close(ends[0]);
    int status = 0;
    waitpid(child, &status, 0);
    if (answer == "ok" && WIFEXITED(status) && WEXITSTATUS(status) == 0) return "";
    if (!answer.empty() && answer != "ok") return answer + "; build integrations/llama.cpp with the headers of that llama.cpp";
    return program + " could not be loaded with " + preload + " (its message is above, if it left one)";
}

}  // namespace

int main(int argc, char** argv) {
    std::string preload = own_folder() + "/libkronsae_llama_attach.so";
    bool only_check = false;
    std::map<std::string, std::string> given;
    int at = 1;
    for (; at < argc && std::strcmp(argv[at], "--") != 0; ++at) {
        std::string flag = argv[at], value;
        if (flag == "--help" || flag == "-h") {
            help();
            return 0;
        }
        if (flag == "--check") {
            only_check = true;
            continue;
        }
        const std::size_t equals = flag.find('=');
        const bool inlined = equals != std::string::npos;
        if (inlined) {
            value = flag.substr(equals + 1);
            flag.resize(equals);
        }
        const Setting* found = nullptr;
        for (const Setting& s : settings_known)
            if (flag == s.flag) found = &s;
        if (found == nullptr && flag != "--preload")
            return fail(exit_usage, "unknown option " + flag + "; the program to start comes after --; see --help");
        if (found != nullptr && found->value == nullptr) {
            if (inlined) return fail(exit_usage, flag + " takes no value");
            value = "1";
        } else if (!inlined) {
            if (at + 1 >= argc || std::strcmp(argv[at + 1], "--") == 0) return fail(exit_usage, flag + " needs a value; see --help");
            value = argv[++at];
        }
        if (found == nullptr) {
            preload = value;
            continue;
        }
        if (found->repeats && value.find(':') != std::string::npos)
            return fail(exit_usage, flag + " " + value + ": a value with a colon cannot be passed on; use another path");
        std::string& all = given[found->variable];
        if (!all.empty() && !found->repeats) return fail(exit_usage, flag + " is given twice");
        all += (all.empty() ? "" : ":") + value;
    }
    if (at >= argc - 1) return fail(exit_usage, "no program to start: kronsae-llama-attach [options] -- llama-server ...; see --help");
    for (const auto& [variable, value] : given) setenv(variable.c_str(), value.c_str(), 1);

    Settings settings;
    const std::string wrong = SettingsReader::read([](const char* variable) -> const char* { return getenv(variable); }, settings);
    if (!wrong.empty()) return fail(exit_usage, wrong);

    const std::string program = find_program(argv[at + 1]);
    if (program.empty()) return fail(127, std::string(argv[at + 1]) + ": no such program");
    std::string obstacle = Program(program, getenv("LD_LIBRARY_PATH")).obstacle("llama_init_from_model", own_machine);
    if (!obstacle.empty()) return fail(exit_refused, obstacle);
    if (access(preload.c_str(), R_OK) != 0) return fail(exit_refused, preload + ": cannot be read; say where it is with --preload");
    if (preload.find('/') == std::string::npos) preload = "./" + preload;
    const char* before = getenv("LD_PRELOAD");
    if (before != nullptr && *before != '\0') preload += std::string(":") + before;
    obstacle = try_loading(program, preload);
    if (!obstacle.empty()) return fail(exit_refused, obstacle);

    {
        // Model files, rules, labels, the address to listen on: all that can be found out before the program starts.
        Monitoring rehearsal;
        obstacle = rehearsal.start(settings, {}, true);
        if (!obstacle.empty()) return fail(exit_refused, obstacle);
    }
    if (only_check) {
        std::printf("ok\n");
        return 0;
    }
    setenv("LD_PRELOAD", preload.c_str(), 1);
    execv(program.c_str(), argv + at + 1);
    return fail(127, program + ": " + std::strerror(errno));
}
