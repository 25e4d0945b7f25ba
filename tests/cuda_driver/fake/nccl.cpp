// A stand-in for libnccl, over the stand-in for libcuda: ranks are processes, and what they gather goes through files in a
// folder that the group's mark names. What was enqueued is done when the stream comes to it, in any process as late as its
// others need. It refuses what the real one refuses or does not survive: memory that is not the device's, a gather that is not
// in place, ranks that do not agree about a size.
//
// FAKE_NCCL_FOLDER: where groups have their folders (/tmp); FAKE_NCCL_FAILS: the name of a function that fails.
#include "cuda.h"

#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <memory>
#include <string>
#include <sys/stat.h>
#include <unistd.h>
#include <vector>

namespace {
enum Status { SUCCESS = 0, SYSTEM_ERROR = 2, INVALID_ARGUMENT = 4, INVALID_USAGE = 5, REMOTE_ERROR = 6 };

struct Id {
    char text[128];
};
struct Group {
    std::string folder;
    int rank, ranks;
    uint64_t done = 0;    // collectives that ran
    uint64_t removed = 0; // of whose files this rank's are gone
    bool aborted = false;
    int failed = SUCCESS;
};
/// What the groups' work looks at lives as long as that does.
using Shared = std::shared_ptr<Group>;

int depth = 0; // of ncclGroupStart
std::string last_error;

std::string path(const Group& group, const char* kind, uint64_t number, int rank) {
    return group.folder + "/" + kind + "-" + std::to_string(number) + "-" + std::to_string(rank);
}
bool write_whole(const std::string& to, const void* bytes, size_t count) {
    const std::string beside = to + ".tmp";
    FILE* file = std::fopen(beside.c_str(), "wb");
    if (file == nullptr) return false;
    const bool written = std::fwrite(bytes, 1, count, file) == count;
    return std::fclose(file) == 0 && written && std::rename(beside.c_str(), to.c_str()) == 0;
}
/// 1: read; 0: not there yet; -1: of another size.
int read_whole(const std::string& from, void* bytes, size_t count) {
    struct stat found;
    if (stat(from.c_str(), &found) != 0) return 0;
    if (static_cast<size_t>(found.st_size) != count) return -1;
    FILE* file = std::fopen(from.c_str(), "rb");
    if (file == nullptr) return 0;
    const bool read = std::fread(bytes, 1, count, file) == count;
    std::fclose(file);
    return read ? 1 : -1;
}
bool planted(const char* function) {
    const char* fails = std::getenv("FAKE_NCCL_FAILS");
    if (fails == nullptr || std::strcmp(fails, function) != 0) return false;
    last_error = std::string("planted in ") + function;
    return true;
}
/// How far one collective has come in this process; made anew for every replay.
struct Course {
    uint64_t number = 0;
    bool begun = false, sent = false;
    std::vector<bool> received;
};
/// The ranks' parts at `to`, `each` bytes apart; or, with a root, its bytes to all.
void enqueue(const Shared& group, char* to, size_t each, int root, void* stream) {
    // A copy of this object is one run: what the graph holds stays as it was captured.
    Course course;
    std::function<void()> work = [=]() mutable {
        Group& g = *group;
        if (g.aborted || g.failed != SUCCESS) return;
        if (!course.begun) {
            course.begun = true;
            course.number = g.done++;
            course.received.assign(static_cast<size_t>(g.ranks), false);
        }
        auto place = [&](int rank) { return root >= 0 ? to : to + static_cast<size_t>(rank) * each; };
        if (!course.sent && (root < 0 || root == g.rank)) {
            if (!write_whole(path(g, "part", course.number, g.rank), place(g.rank), each)) {
                g.failed = SYSTEM_ERROR;
                return;
            }
            course.sent = true;
        }
        for (int rank = 0; rank < g.ranks; rank++) {
            if (rank == g.rank || (root >= 0 && rank != root) || course.received[static_cast<size_t>(rank)]) continue;
            const int read = read_whole(path(g, "part", course.number, rank), place(rank), each);
            if (read < 0) {
                last_error = "ranks disagree about the size of a part";
                g.failed = REMOTE_ERROR;
                return;
            }
            if (read == 0) return fake_not_yet();
            course.received[static_cast<size_t>(rank)] = true;
        }
        // All have begun this gather, so they are done with what came before it.
        for (; root < 0 && g.removed < course.number; g.removed++) std::remove(path(g, "part", g.removed, g.rank).c_str());
    };
    fake_enqueue(stream, &work);
}
Shared& of(void* handle) { return *static_cast<Shared*>(handle); }
} // namespace

#define EXPORT extern "C" __attribute__((visibility("default")))
#define BEGIN                                                                                                              \
    fake_log(__func__);                                                                                                    \
    if (planted(__func__)) return SYSTEM_ERROR

EXPORT const char* ncclGetErrorString(int result) {
    switch (result) {
    case SUCCESS: return "no error";
    case SYSTEM_ERROR: return "unhandled system error";
    case INVALID_ARGUMENT: return "invalid argument";
    case INVALID_USAGE: return "invalid usage";
    case REMOTE_ERROR: return "remote process exited or there was a network error";
    default: return "unknown result code";
    }
}
EXPORT const char* ncclGetLastError(void*) { return last_error.c_str(); }
EXPORT int ncclGetUniqueId(Id* out) {
    BEGIN;
    const char* where = std::getenv("FAKE_NCCL_FOLDER");
    std::string folder = std::string(where != nullptr ? where : "/tmp") + "/fake-nccl-XXXXXX";
    if (folder.size() >= sizeof(out->text) || mkdtemp(folder.data()) == nullptr) return SYSTEM_ERROR;
    std::memset(out, 0, sizeof(*out));
    std::memcpy(out->text, folder.c_str(), folder.size());
    return SUCCESS;
}
EXPORT int ncclCommInitRank(void** out, int ranks, Id id, int rank) {
    BEGIN;
    if (!fake_has_context()) return INVALID_USAGE;
    if (rank < 0 || rank >= ranks || id.text[0] == 0) return INVALID_ARGUMENT;
    const auto group = std::make_shared<Group>(Group{id.text, rank, ranks, 0, 0, false, SUCCESS});
    if (!write_whole(path(*group, "here", 0, rank), &ranks, sizeof ranks)) return SYSTEM_ERROR;
    for (int other = 0; other < ranks; other++) {
        int theirs = 0;
        for (int waited = 0; read_whole(path(*group, "here", 0, other), &theirs, sizeof theirs) != 1; waited++) {
            if (waited > 60000) return REMOTE_ERROR;
            usleep(1000);
        }
        if (theirs != ranks) return INVALID_USAGE;
    }
    *out = new Shared(group);
    return SUCCESS;
}
EXPORT int ncclCommDestroy(void* comm) {
    BEGIN;
    delete static_cast<Shared*>(comm);
    return SUCCESS;
}
EXPORT int ncclCommAbort(void* comm) {
    BEGIN;
    of(comm)->aborted = true;
    delete static_cast<Shared*>(comm);
    return SUCCESS;
}
EXPORT int ncclCommGetAsyncError(void* comm, int* state) {
    *state = of(comm)->failed;
    return SUCCESS;
}
EXPORT int ncclGroupStart() {
    BEGIN;
    depth++;
    return SUCCESS;
}
EXPORT int ncclGroupEnd() {
    BEGIN;
    if (depth == 0) return INVALID_USAGE;
    depth--;
    return SUCCESS;
}
EXPORT int ncclAllGather(const void* from, void* to, size_t count, int type, void* comm, void* stream) {
    BEGIN;
    const Shared& group = of(comm);
    if (!fake_has_context() || type != 1 || depth != 1) return INVALID_USAGE;
    char* const all = static_cast<char*>(to);
    if (from != all + static_cast<size_t>(group->rank) * count) {
        last_error = "not in place";
        return INVALID_ARGUMENT;
    }
    if (!fake_is_device(reinterpret_cast<uint64_t>(to), count * static_cast<size_t>(group->ranks))) return INVALID_ARGUMENT;
    enqueue(group, all, count, -1, stream);
    return SUCCESS;
}
EXPORT int ncclBroadcast(const void* from, void* to, size_t count, int type, int root, void* comm, void* stream) {
    BEGIN;
    const Shared& group = of(comm);
    if (!fake_has_context() || type != 1 || from != to) return INVALID_USAGE;
    if (root < 0 || root >= group->ranks || !fake_is_device(reinterpret_cast<uint64_t>(to), count)) return INVALID_ARGUMENT;
    enqueue(group, static_cast<char*>(to), count, root, stream);
    return SUCCESS;
}
