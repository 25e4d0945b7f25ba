// Which request a token belongs to, from what a program does with a context's sequences. Knows neither llama.cpp's headers
// nor kronsae's.
//
// A sequence of a context (in llama-server: a slot) serves one request after the other. With prompt caching the next one
// goes on at the end of what both have in common: the only sign of it is llama_memory_seq_rm(sequence, p0, -1). The same
// call takes back the rejected tokens of a speculative draft, in the middle of a request. They are told apart at the next
// batch: a draft was a batch of several tokens with outputs, after the prompt; it is taken back once, and never wholly.
// And before the first output a call that takes nothing away comes between pieces of one prompt.
//
// Positions are those of the request: they count on where the program shifts the context (llama_memory_seq_add), though
// the positions in the KV cache go back.

#ifndef KRONSAE_LLAMA_REQUESTS_HPP
#define KRONSAE_LLAMA_REQUESTS_HPP

#include "micro_batches.hpp"

#include <limits>

namespace kronsae_llama {

// As kronsae_token_tag.
struct Tag {
    static constexpr std::uint32_t prompt = 1;
    static constexpr std::uint32_t last_prompt = 2;

    std::uint64_t request = 0;
    std::int32_t position = 0;
    std::int32_t token = -1;
    std::uint32_t flags = 0;

    bool operator==(const Tag& o) const {
        return request == o.request && position == o.position && token == o.token && flags == o.flags;
    }
};

// What a monitor is to be told between tokens, in this order.
struct Control {
    enum class Kind { end, rewind };
    Kind kind = Kind::end;
    std::uint64_t request = 0;
    std::int32_t position = 0;  // rewind: tokens from here on are taken back

    bool operator==(const Control& o) const {
        return kind == o.kind && request == o.request && position == o.position;
    }
};
using Controls = std::vector<Control>;

// The sequences of one context. One thread at a time. Request ids count up from 1, or from where the owner says.
class Requests {
public:
    explicit Requests(std::uint64_t first = 1) : sequences_(max_sequences), next_request_(first) {}

    // Skip what programs compute to warm up or to try out the memory before anything real: see `begin`.
    void skip_warm_up(bool skip) { skip_warm_up_ = skip; }

    // llama_memory_seq_rm, which succeeded. sequence < 0: all of them; p0 < 0: 0; p1 < 0: to the end.
    void removed(std::int32_t sequence, std::int32_t p0, std::int32_t p1, Controls& out) {
        each(sequence, [&](Sequence& s) {
            const std::int32_t from = std::max(p0, 0);
            s.touched = true;
            if (p1 >= 0 && p1 < s.next) return;  // a hole: later tokens stay
            if (from == 0) return end(s, out);
            // llama-server makes the call before each piece of a long prompt: nothing goes, and the prompt goes on.
            if (s.request != 0 && !s.generating && from >= s.next) return;
            s.removals += 1;
            s.next = std::min(s.next, from);
        });
    }

    // llama_memory_seq_cp: what is computed next in `to` is a request of its own, going on behind a shared beginning.
    void copied(std::int32_t from, std::int32_t to, Controls& out) {
        const Sequence* source = find(from);
        Sequence* target = find(to);
        if (source == nullptr || target == nullptr || source == target) return;
        const std::int32_t next = source->next;
        end(*target, out);
        target->touched = true;
        target->next = next;
    }

    // llama_memory_seq_keep.
    void kept(std::int32_t sequence, Controls& out) {
        for (std::size_t i = 0; i < sequences_.size(); ++i)
            if (static_cast<std::int32_t>(i) != sequence) end(sequences_[i], out);
    }

    // llama_memory_clear, or the context is freed.
    void cleared(Controls& out) {
        for (Sequence& s : sequences_) {
            end(s, out);
            s.touched = false;
        }
    }

    // llama_memory_seq_add: [p0, p1) moves by delta.
    void added(std::int32_t sequence, std::int32_t p0, std::int32_t p1, std::int32_t delta) {
        each(sequence, [&](Sequence& s) {
            if (!holds_end(s, p0, p1)) return;
            s.move(s.next + delta);
        });
    }

    // llama_memory_seq_div: positions of [p0, p1) are divided by d.
    void divided(std::int32_t sequence, std::int32_t p0, std::int32_t p1, std::int32_t d) {
        if (d <= 1) return;
        each(sequence, [&](Sequence& s) {
            if (!holds_end(s, p0, p1)) return;
            s.move((s.next - 1) / d + 1);
        });
    }

    // A saved state was loaded into the sequence: where it goes on shows with the next batch.
    void restored(std::int32_t sequence) {
        each(sequence, [](Sequence& s) { s.touched = s.restored = true; });
    }

    // The program itself says that the sequence's next token starts request `request` (0: the next free id).
    void start(std::int32_t sequence, std::uint64_t request, Controls& out) {
        Sequence* s = find(sequence);
        if (s == nullptr) return;
        const std::int32_t next = s->next;
        end(*s, out);
        s->next = next;
        s->touched = true;
        s->wanted = request;
    }

    // A batch is about to be computed: gives each token its tag, false if the batch is a warm-up. That is, if it is asked
    // for, one of at most two tokens from position 0 in a sequence that no seq_rm, seq_cp or state has opened, before any
    // other token of the context.
    bool begin(const std::vector<BatchToken>& batch, std::vector<Tag>& tags, Controls& out) {
        tags.clear();
        parts_.clear();
        for (const BatchToken& t : batch) {
            Sequence* s = find(t.sequence);
            if (s == nullptr) return false;
            Part& part = part_of(t);
            part.count += 1;
            part.all_outputs = part.all_outputs && t.output;
        }
        if (skip_warm_up_ && !observed_ && batch.size() <= 2) {
            const bool warm_up = std::all_of(parts_.begin(), parts_.end(), [&](const Part& part) {
                return part.start == 0 && !sequences_[static_cast<std::size_t>(part.sequence)].touched;
            });
            if (warm_up) return false;
        }
        observed_ = observed_ || !batch.empty();
        for (const Part& part : parts_) place(part, out);
        for (const BatchToken& t : batch) {
            Sequence& s = sequences_[static_cast<std::size_t>(t.sequence)];
            Part& part = part_of(t);
            Tag tag;
            tag.request = s.request;
            tag.position = t.position + s.shift;
            tag.token = t.token;
            const bool generated = s.generating || part.generating;
            if (!generated) tag.flags = Tag::prompt | (t.output ? Tag::last_prompt : 0);
            part.generating = part.generating || t.output;
            tags.push_back(tag);
        }
        return true;
    }

    // The batch was computed up to `end_of(sequence)`, one past the last position the memory holds now; negative: wholly.
    // A batch that was a warm-up is not finished.
    template <typename EndOf>
    void finish(const std::vector<BatchToken>& batch, const EndOf& end_of) {
        for (const Part& part : parts_) {
            Sequence& s = sequences_[static_cast<std::size_t>(part.sequence)];
            const std::int32_t end = end_of(part.sequence);
            std::int32_t past = s.next;
            bool generating = s.generating;
            for (const BatchToken& t : batch) {
                if (t.sequence != part.sequence || (end >= 0 && t.position >= end)) continue;
                past = std::max(past, t.position + 1);
                generating = generating || t.output;
            }
            s.draft = s.generating && part.all_outputs && part.count > 1;
            s.draft_start = part.start;
            s.draft_end = past;
            s.next = past;
            s.generating = generating;
            // Tokens of several sequences go by the lowest one; the others have them too.
            for (const BatchToken& t : batch) {
                if (t.sequence != part.sequence || t.sequences.count() < 2) continue;
                for (std::size_t i = 0; i < max_sequences; ++i) {
                    if (!t.sequences.test(i) || static_cast<std::int32_t>(i) == t.sequence) continue;
                    Sequence* other = find(static_cast<std::int32_t>(i));
                    other->next = std::max(other->next, std::min(past, t.position + 1));
                }
            }
        }
        parts_.clear();
    }

    // Requests that have not ended.
    std::size_t alive() const {
        return static_cast<std::size_t>(
            std::count_if(sequences_.begin(), sequences_.end(), [](const Sequence& s) { return s.request != 0; }));
    }

private:
    struct Sequence {
        std::uint64_t request = 0;  // 0: none
        std::uint64_t wanted = 0;   // the id its next request gets; 0: the next free one
        std::int32_t next = 0;      // the position that goes on, in the memory
        std::int32_t shift = 0;     // position in the request minus position in the memory
        bool touched = false;       // opened by the program
        bool restored = false;
        std::uint32_t removals = 0;  // calls that cut off the end, since the last batch
        bool generating = false;     // an output of this request has been computed
        bool draft = false;          // the last batch had several tokens, all with outputs, behind the prompt
        std::int32_t draft_start = 0;
        std::int32_t draft_end = 0;

        // The token at `next - 1` and all the request's later ones now have other positions in the memory.
        void move(std::int32_t to) {
            const std::int32_t by = to - next;
            next = to;
            shift -= by;
            draft_start += by;
            draft_end += by;
        }
    };

    // A batch's tokens of one sequence.
    struct Part {
        std::int32_t sequence = 0;
        std::int32_t start = 0;
        std::uint32_t count = 0;
        bool embedded = false;
        bool all_outputs = true;
        bool generating = false;
    };

    static bool holds_end(const Sequence& s, std::int32_t p0, std::int32_t p1) {
        return s.next > 0 && s.next - 1 >= std::max(p0, 0) && (p1 < 0 || s.next <= p1);
    }

    Sequence* find(std::int32_t sequence) {
        const bool known = sequence >= 0 && static_cast<std::size_t>(sequence) < max_sequences;
        return known ? &sequences_[static_cast<std::size_t>(sequence)] : nullptr;
    }

    template <typename Do>
    void each(std::int32_t sequence, const Do& what) {
        if (sequence < 0) {
            for (Sequence& s : sequences_) what(s);
        } else if (Sequence* s = find(sequence)) {
            what(*s);
        }
    }

    Part& part_of(const BatchToken& t) {
        for (Part& part : parts_)
            if (part.sequence == t.sequence) return part;
        Part part;
        part.sequence = t.sequence;
        part.start = t.position;
        part.embedded = t.token < 0;
        parts_.push_back(part);
        return parts_.back();
    }

    void end(Sequence& s, Controls& out) {
        if (s.request != 0) out.push_back({Control::Kind::end, s.request, 0});
        const bool touched = s.touched;
        s = Sequence{};
        s.touched = touched;
    }

    // Decides whether the part goes on with the sequence's request, and where.
    void place(const Part& part, Controls& out) {
        Sequence& s = sequences_[static_cast<std::size_t>(part.sequence)];
        const bool cut = s.removals > 0 || s.restored;
        bool same = s.request != 0;
        if (same && cut) {
            // A restored state may also take back the token before the draft, to compute it again with what was accepted.
            const std::int32_t first = s.restored ? s.draft_start : s.draft_start + 1;
            same = s.draft && s.removals <= 1 && part.all_outputs && part.start >= first && part.start <= s.draft_end;
            if (same && part.start < s.draft_end)
                out.push_back({Control::Kind::rewind, s.request, part.start + s.shift});
        } else if (same) {
            // Rows of an image share a position. Going back otherwise means that the memory was changed unseen.
            same = part.start >= s.next || (part.embedded && part.start + 1 == s.next);
        }
        if (!same) {
            const std::uint64_t wanted = s.wanted;
            end(s, out);
            s.touched = true;
            s.request = wanted != 0 ? wanted : next_request_++;
        }
        s.next = part.start;
        s.removals = 0;
        s.restored = false;
    }

    std::vector<Sequence> sequences_;  // [max_sequences], so that references to them stay
    std::vector<Part> parts_;
    std::uint64_t next_request_;
    bool skip_warm_up_ = false;
    bool observed_ = false;
};

}  // namespace kronsae_llama

#endif
