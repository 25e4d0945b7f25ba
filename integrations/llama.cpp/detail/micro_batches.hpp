// Which tokens of a batch are the rows of each micro-batch. Knows neither llama.cpp's headers nor kronsae's.
//
// llama.cpp cuts a batch into micro-batches of at most n_ubatch tokens, in one of several ways that depend on the kind of
// memory (KV cache with one stream or several, sliding window, recurrent, hybrid) and even on how full it is. Neither the
// way nor the order is told to anyone outside. So all ways are followed at once, and each micro-batch as computed (its
// number of tokens, their ids, their positions, as found in the graph's inputs) rules out those that do not fit. What is
// left is the order; if two are left that differ in what a row is, the micro-batch is refused, never guessed.

#ifndef KRONSAE_LLAMA_MICRO_BATCHES_HPP
#define KRONSAE_LLAMA_MICRO_BATCHES_HPP

#include <algorithm>
#include <bitset>
#include <cstddef>
#include <cstdint>
#include <vector>

namespace kronsae_llama {

// The most sequences a llama.cpp context can have.
constexpr std::size_t max_sequences = 256;
using SequenceSet = std::bitset<max_sequences>;

// One entry of a batch.
struct BatchToken {
    std::int32_t token = -1;  // -1: given as an embedding
    std::int32_t position = 0;
    std::int32_t sequence = 0;  // the lowest of its sequences
    bool output = false;        // logits or embeddings of it are wanted
    SequenceSet sequences;

    static BatchToken of(std::int32_t token, std::int32_t position, std::int32_t sequence, bool output) {
        BatchToken t;
        t.token = token;
        t.position = position;
        t.output = output;
        t.add(sequence);
        return t;
    }
    // Adds a sequence; false if its number is out of range.
    bool add(std::int32_t id) {
        if (id < 0 || static_cast<std::size_t>(id) >= max_sequences) return false;
        sequence = sequences.none() ? id : std::min(sequence, id);
        sequences.set(static_cast<std::size_t>(id));
        return true;
    }
};

using Indices = std::vector<std::int32_t>;

// One way to cut a batch, as a generator of micro-batches.
class Split {
public:
    enum class Kind {
        simple,            // in the batch's order
        equal,             // several sequence sets, the same number of tokens of each, one set after the other
        equal_sequential,  // as equal, of sequences with consecutive numbers only
        by_sequence,       // one sequence set at a time
    };

    void begin(Kind kind, const std::vector<BatchToken>& batch, std::size_t most) {
        kind_ = kind;
        batch_ = &batch;
        most_ = std::max<std::size_t>(most, 1);
        used_.assign(batch.size(), false);
        coupled_ = std::any_of(batch.begin(), batch.end(), [](const BatchToken& t) { return t.sequences.count() > 1; });
    }

    // The next micro-batch; empty if there is none, or if this way cannot cut the batch.
    const Indices& next() {
        out_.clear();
        switch (kind_) {
            case Kind::simple: simple(); break;
            case Kind::by_sequence: by_sequence(); break;
            case Kind::equal: equal(false); break;
            case Kind::equal_sequential:
                if (!coupled_) equal(true);
                break;
        }
        return out_;
    }

private:
    void take(std::size_t i) {
        used_[i] = true;
        out_.push_back(static_cast<std::int32_t>(i));
    }

    void simple() {
        for (std::size_t i = 0; i < used_.size() && out_.size() < most_; ++i)
            if (!used_[i]) take(i);
    }

    // Tokens of the first unused token's sequence set; the set may only shrink on the way.
    void by_sequence() {
        SequenceSet current;
        for (std::size_t i = 0; i < used_.size() && out_.size() < most_; ++i) {
            const SequenceSet& set = (*batch_)[i].sequences;
            if (used_[i] || (!out_.empty() && (current & set) != set)) continue;
            current = set;
            take(i);
        }
    }

    void equal(bool sequential) {
        sets_.clear();
        SequenceSet taken;
        std::int32_t last = -1;
        for (std::size_t i = 0; i < used_.size() && sets_.size() <= most_; ++i) {
            const BatchToken& t = (*batch_)[i];
            if (used_[i] || (taken & t.sequences).any()) continue;
            if (sequential && !sets_.empty() && t.sequence != last + 1) continue;
            sets_.push_back(t.sequences);
            taken |= t.sequences;
            last = t.sequence;
        }
        if (sets_.empty()) return;
        // As many tokens of each set as the shortest has, and as fit.
        std::size_t each = std::max<std::size_t>(most_ / sets_.size(), 1);
        for (const SequenceSet& set : sets_) {
            std::size_t left = 0;
            for (std::size_t i = 0; i < used_.size(); ++i) left += !used_[i] && (*batch_)[i].sequences == set;
            each = std::min(each, left);
        }
        for (const SequenceSet& set : sets_) {
            std::size_t left = each;
            for (std::size_t i = 0; i < used_.size() && left > 0; ++i) {
                if (used_[i] || (*batch_)[i].sequences != set) continue;
                take(i);
                --left;
            }
        }
    }

    Kind kind_ = Kind::simple;
    const std::vector<BatchToken>* batch_ = nullptr;
    std::size_t most_ = 1;
    bool coupled_ = false;
    std::vector<bool> used_;
    std::vector<SequenceSet> sets_;
    Indices out_;
};

// What is known of a micro-batch from the graph that computes it. Null or 0: not known.
struct Seen {
    std::size_t tokens = 0;                 // number of tokens
    const std::int32_t* ids = nullptr;      // [tokens]
    const std::int32_t* positions = nullptr;  // [tokens]
};

// Follows one batch through its micro-batches. One thread at a time.
class MicroBatches {
public:
    // `batch` must live, unchanged, until the next begin.
    void begin(const std::vector<BatchToken>& batch, std::size_t most) {
        batch_ = &batch;
        alive_.clear();
        lost_ = batch.empty();
        for (std::size_t k = 0; k < ways; ++k) {
            if (batch.size() == 1 && k > 0) break;  // all ways are the same
            splits_[k].begin(kinds[k], batch, most);
            alive_.push_back(k);
        }
    }

    // The batch indices of the next micro-batch's rows; null if they cannot be told, and then neither can those of the
    // batch's later ones. `same(a, b)`: whether tokens a and b of the batch would be reported as the same.
    template <typename Same>
    const Indices* next(const Seen& seen, const Same& same) {
        if (lost_) return nullptr;
        const Indices* found = nullptr;
        std::size_t kept = 0;
        for (const std::size_t k : alive_) {
            const Indices& rows = splits_[k].next();
            if (!fits(rows, seen)) continue;
            alive_[kept++] = k;
            if (found == nullptr) {
                found = &rows;
            } else if (!std::equal(rows.begin(), rows.end(), found->begin(), found->end(), same)) {
                lost_ = true;
            }
        }
        alive_.resize(kept);
        lost_ = lost_ || found == nullptr;
        return lost_ ? nullptr : found;
    }

private:
    bool fits(const Indices& rows, const Seen& seen) const {
        if (rows.empty() || (seen.tokens != 0 && rows.size() != seen.tokens)) return false;
        for (std::size_t r = 0; r < rows.size() && seen.tokens != 0; ++r) {
            const BatchToken& t = (*batch_)[static_cast<std::size_t>(rows[r])];
            if (seen.ids != nullptr && t.token >= 0 && t.token != seen.ids[r]) return false;
            if (seen.positions != nullptr && t.position != seen.positions[r]) return false;
        }
        return true;
    }

    static constexpr std::size_t ways = 4;
    static constexpr Split::Kind kinds[ways] = {Split::Kind::simple, Split::Kind::equal_sequential, Split::Kind::equal,
                                                Split::Kind::by_sequence};
    const std::vector<BatchToken>* batch_ = nullptr;
    Split splits_[ways];
    std::vector<std::size_t> alive_;
    bool lost_ = true;
};

}  // namespace kronsae_llama

#endif
