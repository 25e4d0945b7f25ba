// Tokens to rows and rows to requests: everything of the mapping that can be shown without a model.

#include "checks.hpp"

#include "../detail/micro_batches.hpp"
#include "../detail/requests.hpp"

#include <map>

using namespace kronsae_llama;
using Batch = std::vector<BatchToken>;

namespace {

// A program's context: batches go through whole, and everything the monitor would be told is kept.
struct Context {
    Requests requests;
    Controls controls;
    std::vector<Tag> tags;
    bool observed = false;

    explicit Context(bool skip_warm_up = false) { requests.skip_warm_up(skip_warm_up); }

    const std::vector<Tag>& run(const Batch& batch) {
        controls.clear();
        observed = requests.begin(batch, tags, controls);
        if (observed) requests.finish(batch, [](std::int32_t) { return -1; });
        return tags;
    }
    // A prompt from `start` on, its last token with an output.
    const std::vector<Tag>& prompt(std::int32_t sequence, std::int32_t start, std::int32_t count) {
        Batch batch;
        for (std::int32_t i = 0; i < count; ++i)
            batch.push_back(BatchToken::of(100 + i, start + i, sequence, i + 1 == count));
        return run(batch);
    }
    const std::vector<Tag>& generate(std::int32_t sequence, std::int32_t position) {
        return run({BatchToken::of(7, position, sequence, true)});
    }
    // A sampled token and a draft behind it.
    const std::vector<Tag>& verify(std::int32_t sequence, std::int32_t position, std::int32_t count) {
        Batch batch;
        for (std::int32_t i = 0; i < count; ++i) batch.push_back(BatchToken::of(7, position + i, sequence, true));
        return run(batch);
    }
    void rm(std::int32_t sequence, std::int32_t p0, std::int32_t p1 = -1) {
        controls.clear();
        requests.removed(sequence, p0, p1, controls);
    }
};

const Control ended(std::uint64_t request) { return {Control::Kind::end, request, 0}; }
const Control rewound(std::uint64_t request, std::int32_t position) {
    return {Control::Kind::rewind, request, position};
}

void flags_of_a_request() {
    Context c;
    c.rm(0, 0);
    c.prompt(0, 0, 3);
    CHECK(c.tags.size() == 3);
    CHECK(c.tags[0].flags == Tag::prompt && c.tags[1].flags == Tag::prompt);
    CHECK(c.tags[2].flags == (Tag::prompt | Tag::last_prompt));
    CHECK(c.tags[0].request == 1 && c.tags[2].position == 2 && c.tags[2].token == 102);
    c.generate(0, 3);
    CHECK(c.tags[0].flags == 0 && c.tags[0].request == 1 && c.tags[0].position == 3);
    CHECK(c.controls.empty());
}

void a_long_prompt_in_several_batches() {
    Context c;
    Batch first;
    for (std::int32_t i = 0; i < 4; ++i) first.push_back(BatchToken::of(i, i, 0, false));
    c.run(first);
    CHECK(c.tags[3].flags == Tag::prompt);
    c.prompt(0, 4, 2);
    CHECK(c.tags[0].request == 1 && c.tags[1].flags == (Tag::prompt | Tag::last_prompt));
}

// llama-server cuts the sequence off where it ends before each piece.
void a_long_prompt_with_calls_in_between() {
    Context c;
    const auto piece = [&](std::int32_t start) {
        c.rm(0, start);
        CHECK(c.controls.empty());
        c.run({BatchToken::of(1, start, 0, false), BatchToken::of(1, start + 1, 0, false)});
        CHECK(c.controls.empty());
    };
    piece(0);
    piece(2);
    piece(4);
    CHECK(c.tags[1].request == 1 && c.tags[1].position == 5 && c.tags[1].flags == Tag::prompt);
    c.rm(0, 6);
    c.prompt(0, 6, 2);
    CHECK(c.tags[1].request == 1 && c.tags[1].flags == (Tag::prompt | Tag::last_prompt));
    // Behind the answer it is another request, in pieces as well.
    c.generate(0, 8);
    c.rm(0, 9);
    c.run({BatchToken::of(1, 9, 0, false)});
    CHECK(c.tags[0].request == 2);
    c.rm(0, 10);
    c.run({BatchToken::of(1, 10, 0, false)});
    CHECK(c.tags[0].request == 2);
    // A prompt that was given up: the next one shares only a part of it.
    c.rm(0, 10);
    c.run({BatchToken::of(2, 10, 0, false)});
    CHECK(c.tags[0].request == 3);
}

void interleaved_sequences() {
    Context c;
    c.rm(0, 0);
    c.rm(1, 0);
    Batch batch;
    for (std::int32_t i = 0; i < 4; ++i) {
        batch.push_back(BatchToken::of(10 + i, i, 0, i == 3));
        batch.push_back(BatchToken::of(20 + i, i, 1, i == 3));
    }
    c.run(batch);
    CHECK(c.tags[0].request == 1 && c.tags[1].request == 2 && c.tags[6].request == 1 && c.tags[7].request == 2);
    CHECK(c.tags[6].flags == (Tag::prompt | Tag::last_prompt) && c.tags[7].flags == c.tags[6].flags);
    // One goes on, the other's slot takes a new request.
    c.rm(1, 2);
    c.run({BatchToken::of(1, 4, 0, true), BatchToken::of(2, 2, 1, false), BatchToken::of(3, 3, 1, true)});
    CHECK(c.tags[0].request == 1 && c.tags[0].flags == 0);
    CHECK(c.tags[1].request == 3 && c.tags[1].flags == Tag::prompt && c.tags[1].position == 2);
    CHECK(c.controls == Controls{ended(2)});
}

void two_turns_of_a_cached_chat() {
    Context c;
    c.rm(0, 0);
    c.prompt(0, 0, 5);
    c.generate(0, 5);
    c.generate(0, 6);
    CHECK(c.tags[0].request == 1);
    // All of the first turn is kept; nothing is really removed, but the call says that a new request begins.
    c.rm(0, 7);
    c.prompt(0, 7, 4);
    CHECK(c.tags[0].request == 2 && c.tags[0].position == 7 && c.tags[0].flags == Tag::prompt);
    CHECK(c.controls == Controls{ended(1)});
    // The same prompt again: only its last token is computed.
    c.generate(0, 11);
    c.rm(0, 10);
    c.prompt(0, 10, 1);
    CHECK(c.tags[0].request == 3 && c.tags[0].flags == (Tag::prompt | Tag::last_prompt));
    CHECK(c.controls == Controls{ended(2)});
}

void rejected_drafts_are_rewinds() {
    Context c;
    c.rm(0, 0);
    c.prompt(0, 0, 5);
    c.verify(0, 5, 4);  // positions 5 to 8, of which 7 and 8 are rejected
    c.rm(0, 7);
    CHECK(c.controls.empty());
    c.verify(0, 7, 4);
    CHECK(c.tags[0].request == 1 && c.tags[0].position == 7 && c.tags[0].flags == 0);
    CHECK(c.controls == Controls{rewound(1, 7)});
    // All accepted: the call removes nothing, and the request goes on.
    c.rm(0, 11);
    c.generate(0, 11);
    CHECK(c.tags[0].request == 1 && c.controls.empty());
    // A draft, its removal, and then the next request's call.
    c.rm(0, 12);
    c.verify(0, 12, 3);
    CHECK(c.tags[0].request == 2);
}

void a_new_request_after_a_draft() {
    Context c;
    c.rm(0, 0);
    c.prompt(0, 0, 5);
    c.verify(0, 5, 3);
    c.rm(0, 7);  // one token rejected; the request ends here
    c.rm(0, 7);  // the next turn begins
    c.verify(0, 7, 2);
    CHECK(c.tags[0].request == 2);
    CHECK(c.controls == Controls{ended(1)});
    // A prompt token, which has no output, is no draft.
    c.verify(0, 9, 3);
    c.rm(0, 10);
    c.prompt(0, 10, 4);
    CHECK(c.tags[0].request == 3);
}

void regeneration() {
    Context c;
    c.rm(0, 0);
    c.prompt(0, 0, 5);
    c.generate(0, 5);
    c.generate(0, 6);
    c.rm(0, 4);
    c.prompt(0, 4, 1);
    CHECK(c.tags[0].request == 2 && c.tags[0].position == 4);
}

void a_restored_state() {
    Context c;
    c.rm(0, 0);
    c.prompt(0, 0, 5);
    // A memory that cannot cut: the state before the draft is loaded and the accepted tokens are computed again.
    c.verify(0, 5, 4);
    c.requests.restored(0);
    c.rm(0, 5);
    c.verify(0, 5, 2);
    CHECK(c.tags[0].request == 1 && c.controls == Controls{rewound(1, 5)});
    // A prompt cache loads another conversation into the slot.
    c.generate(0, 7);
    c.requests.restored(0);
    c.rm(0, 40);
    c.prompt(0, 40, 3);
    CHECK(c.tags[0].request == 2 && c.tags[0].position == 40 && c.controls == Controls{ended(1)});
}

void a_copied_sequence() {
    Context c;
    c.rm(0, 0);
    c.prompt(0, 0, 5);
    c.rm(1, -1);
    c.requests.copied(0, 1, c.controls);
    c.run({BatchToken::of(1, 5, 0, true), BatchToken::of(2, 5, 1, true)});
    CHECK(c.tags[0].request == 1 && c.tags[1].request == 2 && c.tags[1].position == 5);
    c.controls.clear();
    c.requests.copied(0, 1, c.controls);
    CHECK(c.controls == Controls{ended(2)});
    c.controls.clear();
    c.requests.copied(0, 0, c.controls);
    CHECK(c.controls.empty());
    CHECK(c.requests.alive() == 1);
}

void a_shifted_context() {
    Context c;
    c.rm(0, 0);
    c.prompt(0, 0, 20);
    c.rm(0, 4, 10);
    CHECK(c.controls.empty());
    c.requests.added(0, 10, 20, -6);
    c.generate(0, 14);
    CHECK(c.tags[0].request == 1 && c.tags[0].position == 20 && c.controls.empty());
    // A rewind after it is in the request's positions too.
    c.verify(0, 15, 3);
    CHECK(c.tags[0].position == 21);
    c.rm(0, 16);
    c.generate(0, 16);
    CHECK(c.tags[0].request == 1 && c.tags[0].position == 22);
    CHECK(c.controls == Controls{rewound(1, 22)});
    // Dividing (self-extend) moves the end as well: 17 tokens, the last at 16, which goes to 8.
    c.requests.divided(0, 0, -1, 2);
    c.generate(0, 9);
    CHECK(c.tags[0].request == 1 && c.tags[0].position == 23);
    // Moving what is not at the end changes nothing.
    c.requests.added(0, 2, 4, 1);
    c.generate(0, 10);
    CHECK(c.tags[0].position == 24);
    // The next request's positions are those of the memory again.
    c.rm(0, 3);
    c.prompt(0, 3, 2);
    CHECK(c.tags[0].request == 2 && c.tags[0].position == 3);
}

void clearing_ends_requests() {
    Context c;
    c.rm(0, 0);
    c.rm(1, 0);
    c.prompt(0, 0, 2);
    c.prompt(1, 0, 2);
    CHECK(c.requests.alive() == 2);
    c.rm(0, -1);
    CHECK(c.controls == Controls{ended(1)});
    c.controls.clear();
    c.requests.cleared(c.controls);
    CHECK(c.controls == Controls{ended(2)});
    c.prompt(1, 0, 2);
    CHECK(c.tags[0].request == 3);
    c.prompt(0, 0, 2);
    c.controls.clear();
    c.requests.kept(0, c.controls);
    CHECK(c.controls == Controls{ended(3)});
    // Position 0 again without any call: whatever happened to the memory, it is another request.
    c.prompt(0, 0, 2);
    CHECK(c.tags[0].request == 5 && c.controls == Controls{ended(4)});
}

void warm_up_is_skipped() {
    Context c(true);
    c.run({BatchToken::of(1, 0, 0, true), BatchToken::of(2, 1, 0, true)});
    CHECK(!c.observed && c.tags.empty());
    c.requests.cleared(c.controls);
    c.run({BatchToken::of(0, 0, 0, true), BatchToken::of(0, 1, 0, true)});
    CHECK(!c.observed);
    c.rm(0, 1);
    c.requests.cleared(c.controls);
    // A real prompt of one token, in a sequence that the program opened.
    c.rm(0, 0);
    c.prompt(0, 0, 1);
    CHECK(c.observed && c.tags[0].request == 1);
    c.requests.cleared(c.controls);
    c.prompt(0, 0, 1);
    CHECK(c.observed);
    // A program that never calls seq_rm.
    Context plain(true);
    plain.prompt(0, 0, 3);
    CHECK(plain.observed && plain.tags[0].request == 1);
}

void a_batch_that_failed_is_tried_again() {
    Context c;
    c.rm(0, 0);
    Batch batch;
    for (std::int32_t i = 0; i < 6; ++i) batch.push_back(BatchToken::of(i, i, 0, i == 5));
    CHECK(c.requests.begin(batch, c.tags, c.controls));
    c.requests.finish(batch, [](std::int32_t) { return 0; });  // no room: nothing was computed
    const Batch half(batch.begin(), batch.begin() + 3);
    c.run(half);
    CHECK(c.tags[0].request == 1 && c.tags[2].flags == Tag::prompt && c.controls.empty());
    c.run(Batch(batch.begin() + 3, batch.end()));
    CHECK(c.tags[0].request == 1 && c.tags[2].flags == (Tag::prompt | Tag::last_prompt) && c.controls.empty());
}

void the_program_names_its_requests() {
    Context c;
    c.requests.start(0, 4711, c.controls);
    c.prompt(0, 0, 2);
    CHECK(c.tags[0].request == 4711);
    c.controls.clear();
    c.requests.start(0, 4712, c.controls);
    CHECK(c.controls == Controls{ended(4711)});
    c.prompt(0, 2, 2);
    CHECK(c.tags[0].request == 4712 && c.tags[0].position == 2);
}

void images_share_a_position() {
    Context c;
    c.rm(0, 0);
    c.prompt(0, 0, 3);
    Batch image;
    for (int i = 0; i < 4; ++i) image.push_back(BatchToken::of(-1, 3, 0, false));
    c.run(image);
    CHECK(c.tags[0].request == 1 && c.tags[0].token == -1);
    c.run(image);
    CHECK(c.tags[0].request == 1);
    c.generate(0, 9);
    CHECK(c.tags[0].request == 1 && c.tags[0].position == 9);
}

// ---- micro-batches

Batch two_prompts(std::int32_t a, std::int32_t b) {
    Batch batch;
    for (std::int32_t i = 0; i < a; ++i) batch.push_back(BatchToken::of(100 + i, i, 0, i + 1 == a));
    for (std::int32_t i = 0; i < b; ++i) batch.push_back(BatchToken::of(200 + i, i, 1, i + 1 == b));
    return batch;
}

// What the graph's inputs would show if the batch were cut this way.
std::vector<Indices> cut(const Batch& batch, Split::Kind kind, std::size_t most) {
    Split split;
    split.begin(kind, batch, most);
    std::vector<Indices> all;
    for (Indices rows = split.next(); !rows.empty(); rows = split.next()) all.push_back(rows);
    return all;
}

// Shows `batch`, cut as `kind`, to MicroBatches; true if it found every row, false if it refused.
bool follows(const Batch& batch, Split::Kind kind, std::size_t most, const std::vector<Tag>& tags, bool ids = true) {
    MicroBatches micro;
    micro.begin(batch, most);
    for (const Indices& rows : cut(batch, kind, most)) {
        std::vector<std::int32_t> tokens, positions;
        for (const std::int32_t i : rows) {
            tokens.push_back(batch[static_cast<std::size_t>(i)].token);
            positions.push_back(batch[static_cast<std::size_t>(i)].position);
        }
        const Seen seen = {rows.size(), ids ? tokens.data() : nullptr, ids ? positions.data() : nullptr};
        const Indices* found = micro.next(seen, [&](std::int32_t a, std::int32_t b) {
            return tags[static_cast<std::size_t>(a)] == tags[static_cast<std::size_t>(b)];
        });
        if (found == nullptr) return false;
        for (std::size_t r = 0; r < rows.size(); ++r)
            CHECK(tags[static_cast<std::size_t>((*found)[r])] == tags[static_cast<std::size_t>(rows[r])]);
    }
    return true;
}

std::vector<Tag> tags_of(const Batch& batch) {
    Requests requests;
    std::vector<Tag> tags;
    Controls controls;
    CHECK(requests.begin(batch, tags, controls));
    return tags;
}

void every_way_to_cut_covers_the_batch() {
    Batch batch = two_prompts(7, 4);
    batch.push_back(BatchToken::of(300, 9, 3, true));
    for (const auto kind : {Split::Kind::simple, Split::Kind::equal, Split::Kind::equal_sequential, Split::Kind::by_sequence}) {
        for (std::size_t most = 1; most < 14; ++most) {
            std::map<std::int32_t, int> seen;
            for (const Indices& rows : cut(batch, kind, most))
                for (const std::int32_t i : rows) seen[i] += 1;
            CHECK(seen.size() == batch.size());
            for (const auto& [i, times] : seen) CHECK(times == 1);
        }
    }
}

void the_ways_to_cut() {
    const Batch batch = two_prompts(5, 3);
    CHECK((cut(batch, Split::Kind::simple, 6) == std::vector<Indices>{{0, 1, 2, 3, 4, 5}, {6, 7}}));
    CHECK((cut(batch, Split::Kind::equal, 8) == std::vector<Indices>{{0, 1, 2, 5, 6, 7}, {3, 4}}));
    CHECK((cut(batch, Split::Kind::equal, 4) == std::vector<Indices>{{0, 1, 5, 6}, {2, 7}, {3, 4}}));
    CHECK((cut(batch, Split::Kind::by_sequence, 4) == std::vector<Indices>{{0, 1, 2, 3}, {4}, {5, 6, 7}}));
    // Sequences 0 and 2 are not neighbours.
    const Batch apart = {BatchToken::of(1, 4, 0, true), BatchToken::of(2, 4, 2, true)};
    CHECK((cut(apart, Split::Kind::equal_sequential, 8) == std::vector<Indices>{{0}, {1}}));
    CHECK((cut(apart, Split::Kind::equal, 8) == std::vector<Indices>{{0, 1}}));
    // A token of two sequences cannot be cut sequentially.
    Batch coupled = {BatchToken::of(1, 0, 0, false), BatchToken::of(2, 1, 0, true), BatchToken::of(3, 1, 1, true)};
    CHECK(coupled[0].add(1) && !coupled[0].add(256) && !coupled[0].add(-1));
    CHECK(cut(coupled, Split::Kind::equal_sequential, 8).empty());
    CHECK((cut(coupled, Split::Kind::by_sequence, 8) == std::vector<Indices>{{0, 1}, {2}}));
}

void micro_batches_are_followed_whatever_the_memory() {
    Batch interleaved;
    for (std::int32_t i = 0; i < 6; ++i)
        for (std::int32_t s = 0; s < 3; ++s) interleaved.push_back(BatchToken::of(1000 * s + i, i, s, i == 5));
    for (const Batch& batch : {two_prompts(5, 3), two_prompts(64, 64), two_prompts(1, 1), interleaved}) {
        const std::vector<Tag> tags = tags_of(batch);
        for (const auto kind : {Split::Kind::simple, Split::Kind::equal, Split::Kind::equal_sequential, Split::Kind::by_sequence})
            for (const std::size_t most : {1, 2, 3, 4, 7, 16, 512}) CHECK(follows(batch, kind, most, tags));
    }
}

void what_cannot_be_told_is_refused() {
    // Two sequences with the same tokens at the same positions, in another order than the batch's: by tokens alone,
    // nobody can tell whose row is whose.
    Batch batch;
    for (std::int32_t i = 0; i < 4; ++i)
        for (std::int32_t s = 0; s < 2; ++s) batch.push_back(BatchToken::of(50, i, s, false));
    const std::vector<Tag> tags = tags_of(batch);
    MicroBatches micro;
    micro.begin(batch, 8);
    const std::vector<std::int32_t> fifty(8, 50);
    const auto never = [&](std::int32_t a, std::int32_t b) {
        return tags[static_cast<std::size_t>(a)] == tags[static_cast<std::size_t>(b)];
    };
    CHECK(micro.next({8, fifty.data(), nullptr}, never) == nullptr);
    CHECK(micro.next({8, fifty.data(), nullptr}, never) == nullptr);
    // A graph that computes tokens of no batch known.
    const Batch one = two_prompts(3, 0);
    const std::vector<std::int32_t> other = {9, 9, 9};
    micro.begin(one, 8);
    CHECK(micro.next({3, other.data(), nullptr}, never) == nullptr);
    micro.begin(one, 8);
    CHECK(micro.next({2, nullptr, nullptr}, never) == nullptr);
    micro.begin(one, 8);
    const std::vector<std::int32_t> positions = {0, 1, 3};
    CHECK(micro.next({3, nullptr, positions.data()}, never) == nullptr);
    // More micro-batches than the batch has.
    micro.begin(one, 8);
    CHECK(micro.next({3, nullptr, nullptr}, never) != nullptr);
    CHECK(micro.next({3, nullptr, nullptr}, never) == nullptr);
    micro.begin({}, 8);
    CHECK(micro.next({}, never) == nullptr);
}

}  // namespace

int main() {
    flags_of_a_request();
    a_long_prompt_in_several_batches();
    a_long_prompt_with_calls_in_between();
    interleaved_sequences();
    two_turns_of_a_cached_chat();
    rejected_drafts_are_rewinds();
    a_new_request_after_a_draft();
    regeneration();
    a_restored_state();
    a_copied_sequence();
    a_shifted_context();
    clearing_ends_requests();
    warm_up_is_skipped();
    a_batch_that_failed_is_tried_again();
    the_program_names_its_requests();
    images_share_a_position();
    every_way_to_cut_covers_the_batch();
    the_ways_to_cut();
    micro_batches_are_followed_whatever_the_memory();
    what_cannot_be_told_is_refused();
    return checks_end();
}
