// What a program and the libraries it loads import and export, read from their ELF files: whether anything can be attached
// to it by preloading a library.
#ifndef KRONSAE_LLAMA_ELF_HPP
#define KRONSAE_LLAMA_ELF_HPP

#include <elf.h>
#include <sys/stat.h>

#include <cstdint>
#include <cstring>
#include <fstream>
#include <iterator>
#include <set>
#include <string>
#include <vector>

namespace kronsae_llama {

// One file. Everything read from it is checked against its size.
struct Elf {
    std::string path, error;  // error: why it could not be read
    std::uint16_t machine = 0;
    bool interpreted = false;  // a program that the dynamic loader starts
    std::vector<std::string> needed;
    std::string rpath, runpath;
    std::set<std::string> imports, exports, contains;  // contains: symbols of the full table, where it was not stripped

    static Elf read(const std::string& path) {
        Elf elf;
        elf.path = path;
        std::ifstream file(path, std::ios::binary);
        if (!file) {
            elf.error = "cannot be read";
            return elf;
        }
        const std::vector<char> bytes((std::istreambuf_iterator<char>(file)), std::istreambuf_iterator<char>());
        elf.parse(bytes);
        return elf;
    }

private:
    template <typename T>
    static bool get(const std::vector<char>& bytes, std::uint64_t offset, T& out) {
        if (offset > bytes.size() || bytes.size() - offset < sizeof(T)) return false;
        std::memcpy(&out, bytes.data() + offset, sizeof(T));
        return true;
    }

    static std::string text(const std::vector<char>& bytes, const Elf64_Shdr& table, std::uint64_t at) {
        std::string out;
        if (at >= table.sh_size) return out;
        for (std::uint64_t i = table.sh_offset + at; i < bytes.size() && bytes[i] != '\0'; ++i) out.push_back(bytes[i]);
        return out;
    }

    void parse(const std::vector<char>& bytes) {
        Elf64_Ehdr header;
        if (!get(bytes, 0, header) || std::memcmp(header.e_ident, ELFMAG, SELFMAG) != 0) {
            error = "is not an ELF program (a script? then name the program that it starts)";
            return;
        }
        if (header.e_ident[EI_CLASS] != ELFCLASS64 || header.e_ident[EI_DATA] != ELFDATA2LSB) {
            error = "is not a 64-bit little-endian ELF file";
            return;
        }
        machine = header.e_machine;
        for (std::uint64_t i = 0; i < header.e_phnum; ++i) {
            Elf64_Phdr segment;
            if (!get(bytes, header.e_phoff + i * header.e_phentsize, segment)) break;
            interpreted = interpreted || segment.p_type == PT_INTERP;
        }
        for (std::uint64_t i = 0; i < header.e_shnum; ++i) {
            Elf64_Shdr section, strings;
            if (!get(bytes, header.e_shoff + i * header.e_shentsize, section)) break;
            if (section.sh_type != SHT_DYNSYM && section.sh_type != SHT_SYMTAB && section.sh_type != SHT_DYNAMIC) continue;
            if (!get(bytes, header.e_shoff + std::uint64_t{section.sh_link} * header.e_shentsize, strings)) continue;
            if (section.sh_type == SHT_DYNAMIC) {
                read_dynamic(bytes, section, strings);
            } else {
                read_symbols(bytes, section, strings);
            }
        }
        if (header.e_shnum == 0) error = "has no section headers: it cannot be checked";
    }

    void read_dynamic(const std::vector<char>& bytes, const Elf64_Shdr& section, const Elf64_Shdr& strings) {
        for (std::uint64_t at = 0; at + sizeof(Elf64_Dyn) <= section.sh_size; at += sizeof(Elf64_Dyn)) {
            Elf64_Dyn entry;
            if (!get(bytes, section.sh_offset + at, entry)) return;
            if (entry.d_tag == DT_NEEDED) needed.push_back(text(bytes, strings, entry.d_un.d_val));
            if (entry.d_tag == DT_RPATH) rpath = text(bytes, strings, entry.d_un.d_val);
            if (entry.d_tag == DT_RUNPATH) runpath = text(bytes, strings, entry.d_un.d_val);
        }
    }

    // Only names that matter here are kept: those of llama.cpp's C interface.
    void read_symbols(const std::vector<char>& bytes, const Elf64_Shdr& section, const Elf64_Shdr& strings) {
        for (std::uint64_t at = 0; at + sizeof(Elf64_Sym) <= section.sh_size; at += sizeof(Elf64_Sym)) {
            Elf64_Sym symbol;
            if (!get(bytes, section.sh_offset + at, symbol)) return;
            const std::string name = text(bytes, strings, symbol.st_name);
            if (name.compare(0, 6, "llama_") != 0) continue;
            if (section.sh_type == SHT_SYMTAB) {
                if (symbol.st_shndx != SHN_UNDEF) contains.insert(name);
            } else {
                (symbol.st_shndx == SHN_UNDEF ? imports : exports).insert(name);
            }
        }
    }
};

// A program and, as far as they are found, all libraries it is linked with.
class Program {
public:
    // `library_path`: LD_LIBRARY_PATH, or null.
    Program(const std::string& path, const char* library_path) {
        files_.push_back(Elf::read(path));
        if (!files_[0].error.empty()) return;
        std::set<std::string> known;
        for (std::size_t i = 0; i < files_.size(); ++i) {
            const Elf from = files_[i];  // a copy: the vector grows
            for (const std::string& name : from.needed) {
                if (!known.insert(name).second) continue;
                const std::string found = find(name, from, library_path);
                if (!found.empty()) files_.push_back(Elf::read(found));
            }
        }
    }

    // Why nothing can be attached to calls of `function`; empty if it can.
    std::string obstacle(const std::string& function, std::uint16_t machine) const {
        const Elf& program = files_[0];
        if (!program.error.empty()) return program.path + " " + program.error;
        if (program.machine != machine) return program.path + " is a program for another processor";
        const char* advice = "build llama.cpp with -DBUILD_SHARED_LIBS=ON, or compile kronsae_llama.hpp into the program";
        const std::string in_it = program.contains.count(function) != 0 ? ", with " + function + " inside it" : "";
        if (!program.interpreted || program.needed.empty())
            return program.path + " is statically linked" + in_it + ": nothing can be attached to it; " + advice;
        struct stat status;
        if (stat(program.path.c_str(), &status) == 0 && (status.st_mode & (S_ISUID | S_ISGID)) != 0)
            return program.path + " is setuid or setgid: the loader ignores LD_PRELOAD for it";
        const Elf *importer = nullptr, *exporter = nullptr;
        for (const Elf& file : files_) {
            if (importer == nullptr && file.imports.count(function) != 0) importer = &file;
            if (exporter == nullptr && file.exports.count(function) != 0) exporter = &file;
        }
        if (importer == nullptr && !in_it.empty())
            return program.path + " has llama.cpp linked into it statically: its calls of " + function + " cannot be seen; " + advice;
        if (importer == nullptr)
            return "neither " + program.path + " nor a library it is linked with imports " + function +
                   ": it is no llama.cpp program, or has llama.cpp linked into it statically; in that case " + advice;
        if (exporter == nullptr)
            return importer->path + " imports " + function + ", but no library that defines it was found: is LD_LIBRARY_PATH right?";
        return "";
    }

private:
    static std::string directory(const std::string& path) {
        const std::size_t slash = path.rfind('/');
        return slash == std::string::npos ? "." : path.substr(0, slash);
    }

    static bool exists(const std::string& path) {
        struct stat status;
        return stat(path.c_str(), &status) == 0 && S_ISREG(status.st_mode);
    }

    // In the folders of a list separated by colons, with $ORIGIN replaced.
    static std::string in(const std::string& list, const std::string& name, const std::string& origin) {
        for (std::size_t begin = 0; begin <= list.size();) {
            std::size_t end = list.find(':', begin);
            if (end == std::string::npos) end = list.size();
            std::string folder = list.substr(begin, end - begin);
            for (const char* variable : {"${ORIGIN}", "$ORIGIN"}) {
                const std::size_t at = folder.find(variable);
                if (at != std::string::npos) folder.replace(at, std::strlen(variable), origin);
            }
            if (!folder.empty() && exists(folder + "/" + name)) return folder + "/" + name;
            begin = end + 1;
        }
        return "";
    }

    std::string find(const std::string& name, const Elf& from, const char* library_path) const {
        if (name.find('/') != std::string::npos) return exists(name) ? name : "";
        const std::string origin = directory(from.path);
        std::string found;
        if (from.runpath.empty()) found = in(from.rpath, name, origin);
        // A program's own DT_RPATH serves its libraries as well.
        if (found.empty() && from.runpath.empty() && files_[0].runpath.empty())
            found = in(files_[0].rpath, name, directory(files_[0].path));
        if (found.empty() && library_path != nullptr) found = in(library_path, name, origin);
        if (found.empty()) found = in(from.runpath, name, origin);
        if (found.empty()) found = in_cache(name);
        if (found.empty())
            found = in("/lib64:/usr/lib64:/lib:/usr/lib:/usr/local/lib:/lib/x86_64-linux-gnu:/usr/lib/x86_64-linux-gnu:"
                       "/lib/aarch64-linux-gnu:/usr/lib/aarch64-linux-gnu", name, origin);
        return found;
    }

    // In the loader's cache, whose entries name a library and its file.
    static std::string in_cache(const std::string& name) {
        std::ifstream file("/etc/ld.so.cache", std::ios::binary);
        const std::string bytes((std::istreambuf_iterator<char>(file)), std::istreambuf_iterator<char>());
        const std::size_t base = bytes.find("glibc-ld.so.cache1.1");
        if (base == std::string::npos) return "";
        const auto number = [&](std::size_t at) {
            std::uint32_t value = 0;
            if (at <= bytes.size() && bytes.size() - at >= sizeof(value)) std::memcpy(&value, bytes.data() + at, sizeof(value));
            return value;
        };
        constexpr std::size_t header = 48, entry = 24, key = 4, value = 8;
        const std::size_t count = number(base + 20);
        for (std::size_t i = 0; i < count && base + header + i * entry < bytes.size(); ++i) {
            const std::size_t at = base + header + i * entry;
            const std::size_t k = base + number(at + key), v = base + number(at + value);
            if (k >= bytes.size() || v >= bytes.size() || name != bytes.c_str() + k) continue;
            const std::string path = bytes.c_str() + v;
            if (exists(path)) return path;
        }
        return "";
    }

    std::vector<Elf> files_;
};

}  // namespace kronsae_llama

#endif
