// Asks memory for what will be read.
#pragma once

#include "features.h"
#include "multiply.h"

// Asks for strips before they are read, as much as is read meanwhile: a core waits for a few lines at a time, and
// those of too far ahead push each other out of the first-level cache. Weights are read once for a token. Processors of
// AMD are faster when told so; Intel's are slower by up to three times, because what does not pass their second-level
// cache is not fetched ahead.
class Ahead {
  public:
    Ahead(const Strip* strips, int64_t count) : strip_(strips), last_(strips + count) {
        next();
        further(START);
    }

    // Before a few rows: from here on further ahead, if that is not too far.
    void further() { further(STEP); }

    // In place of so many bytes that are read now; whole lines.
    template <int BYTES> INLINE void ask() {
        static_assert(BYTES % LINE == 0, "lines are asked for whole");
        for (int i = 0; i < BYTES; i += LINE) ask_for(at_ + i);
        move(BYTES);
    }

    // For whoever asks from here on himself, and then says for how much.
    const uint8_t* at() const { return at_; }
    INLINE void move(int64_t bytes) {
        at_ += bytes;
        if (at_ >= end_) next();
    }

  private:
    static constexpr int LINE = 64;
    // Bytes at first, more with every few rows, and at most.
    static constexpr int64_t START = 2048, STEP = 1024, LEAD = 8192;

    INLINE void ask_for(const uint8_t* line) const {
        if (once_)
            __builtin_prefetch(line, 0, 0);
        else
            __builtin_prefetch(line, 0, 3);
    }

    void further(int64_t bytes) {
        if (lead_ + bytes > LEAD) return;
        for (int64_t i = 0; i < bytes; i += 2 * LINE) ask<2 * LINE>();
        lead_ += bytes;
    }

    // Behind the last strip it goes on with whatever is there; memory that does not exist is not read.
    void next() {
        if (strip_ == last_) {
            end_ = reinterpret_cast<const uint8_t*>(UINTPTR_MAX);
            return;
        }
        const Weight& w = strip_->product.weight;
        at_ = strip_->begin();
        end_ = at_ + strip_->rows * w.row_bytes;
        if (w.format == FP4) {
            const uint8_t* scales = w.scales + strip_->row * w.scale_row;
            for (int64_t i = 0; i < strip_->rows * w.scale_row; i += LINE) ask_for(scales + i);
        }
        strip_++;
    }

    const uint8_t *at_ = nullptr, *end_ = nullptr;
    const Strip *strip_, *last_;
    int64_t lead_ = 0;
    const bool once_ = reads_past_caches();
};

// Who asks for nothing while rows are read.
struct NobodyAsks {
    template <int BYTES> INLINE void ask() const {}
};
