// Software prefetch of weights.
#pragma once

#include "features.h"
#include "multiply.h"

// Prefetches strips before they are read, at the pace of reading: a core has few outstanding misses, and lines fetched
// too early evict each other from the first-level cache. Weights are read once per token. AMD processors are faster
// with the non-temporal hint; Intel's are up to three times slower, because data that bypasses their second-level cache
// is not prefetched by hardware.
class Ahead {
  public:
    Ahead(const Strip* strips, int64_t count) : strip_(strips), last_(strips + count) {
        next();
        further(START);
    }

    // Called before a few rows: increase the distance, up to a limit.
    void further() { further(STEP); }

    // Prefetch as many bytes as are being read now, in whole lines.
    template <int BYTES> INLINE void ask() {
        static_assert(BYTES % LINE == 0, "lines are asked for whole");
        for (int i = 0; i < BYTES; i += LINE) ask_for(at_ + i);
        move(BYTES);
    }

    // For callers that prefetch by themselves from `at` on, and then report how much.
    const uint8_t* at() const { return at_; }
    INLINE void move(int64_t bytes) {
        at_ += bytes;
        if (at_ >= end_) next();
    }

  private:
    static constexpr int LINE = 64;
    // Distance in bytes: at first, its increase every few rows, and at most.
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

    // After the last strip it continues with whatever follows: prefetches of unmapped memory are ignored.
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

// No prefetch.
struct NobodyAsks {
    template <int BYTES> INLINE void ask() const {}
};
