// Attention of one query: scores, a softmax with a sink, and the weighted sum of keys, which are the values.
//
// A vector has one head per lane, so the softmax needs no reduction across lanes. The result of a query
// depends on its own keys alone, in blocks that start at fixed positions: it has the same bits whatever other
// queries are computed.

#define KERNELS "inference/attend.cpp"
#ifndef TARGET

#include <algorithm>

#include "ahead.h"
#include "attention.h"
#include "features.h"

#include "../each_target.h"

void make_pairs(const BFloat16* even, const BFloat16* odd, int64_t d, BFloat16* pairs) {
    CALL(interleave, even, odd, d, pairs);
}

void attend(const Query& query, const Keys (&keys)[2], int threads, Arena& arena, float* output) {
    Scope scope(arena);
    float* scores = arena.take<float>((keys[0].count() + keys[1].count()) * HEADS);
    float* at = scores;
    float* q = nullptr;
    if (!has_pairs()) {
        q = arena.take<float>(query.heads * query.d);
        to_float(query.q, query.heads * query.d, q);
    }
    for (const Keys& part : keys) {
        if (part.count() == 0) continue;
        if (has_tiles())
            scores_with_tiles(query, part, arena, at);
        else if (has_pairs())
            scores_with_pairs(query, part, threads, arena, at);
        else
            CALL(scores_plain, query, part, q, at);
        at += part.count() * HEADS;
    }
    float sink[HEADS] = {}, totals[HEADS];
    std::copy(query.sink, query.sink + query.heads, sink);
    CALL(softmax, scores, keys, query.scale, sink, totals);
    if (has_tiles())
        blend_with_tiles(query, keys, scores, arena, output);
    else if (has_pairs())
        blend_with_pairs(query, keys, scores, threads, arena, output);
    else
        CALL(blend_plain, query, keys, scores, output);
    for (int64_t h = 0; h < query.heads; h++)
        CALL(divide, output + h * query.d, query.d, totals[h]);
}

#else

namespace {

static_assert(HEADS % LANES == 0, "heads lie side by side in registers");

void interleave(const BFloat16* even, const BFloat16* odd, int64_t d, BFloat16* pairs) {
    for (int64_t i = 0; i < d; i++) {
        pairs[2 * i] = even[i];
        pairs[2 * i + 1] = odd[i];
    }
}

#include "dots.h"

void scores_plain(const Query& query, const Keys& keys, const float* q, float* scores) {
    NobodyAsks nobody;
    multiply_wide(keys.wide + keys.first_block() * query.d, keys.count(), q, query.d, query.heads, query.d, scores,
                  HEADS, nobody);
}

// Replace the scores of a register of heads by exp(scale * score - top), and 0 for hidden keys; returns their sums
// including the sink.
INLINE Floats softmax_some(float* scores, const Keys (&keys)[2], float scale, const float* sink) {
    Floats top, logit;
    load(sink, logit);
    top = logit;
    float* at = scores;
    for (const Keys& part : keys) {
        const float* row = at - part.first_block() * HEADS;
        for (int64_t k = part.low; k < part.high; k++) {
            Floats value;
            load(row + k * HEADS, value);
            top = larger(value * scale, top);
        }
        at += part.count() * HEADS;
    }
    Floats total = exp(logit - top);
    at = scores;
    for (const Keys& part : keys) {
        if (part.count() == 0) continue;
        float* row = at - part.first_block() * HEADS;
        for (int64_t k = part.first_block(); k < part.end_block(); k++) {
            Floats value;
            load(row + k * HEADS, value);
            value = k >= part.low && k < part.high ? exp(value * scale - top) : Floats{};
            store(row + k * HEADS, value);
            total += value;
        }
        at += part.count() * HEADS;
    }
    return total;
}
void softmax(float* scores, const Keys (&keys)[2], float scale, const float* sink, float* totals) {
    for (int64_t h = 0; h < HEADS; h += LANES) store(totals + h, softmax_some(scores + h, keys, scale, sink + h));
}

// output[h][i] = sum_k weights[k][h] key_k[i] for H heads and C registers of channels from i on.
template <int H>
INLINE void blend_some(const Keys (&keys)[2], const float* weights, int64_t d, int64_t i,
                       float* output) {
    constexpr int C = 2;
    Floats sums[H][C] = {};
    for (const Keys& part : keys) {
        if (part.count() == 0) continue;
        const float* row = weights - part.first_block() * HEADS;
        for (int64_t k = part.low; k < part.high; k++)
            for (int c = 0; c < C; c++) {
                const Floats value = read(part.wide + k * d + i + c * LANES);
                for (int h = 0; h < H; h++) sums[h][c] += value * row[k * HEADS + h];
            }
        weights += part.count() * HEADS;
    }
    for (int h = 0; h < H; h++)
        for (int c = 0; c < C; c++)
            store(output + h * d + i + c * LANES, sums[h][c]);
}

void blend_plain(const Query& query, const Keys (&keys)[2], const float* weights, float* output) {
    const int64_t d = query.d;
    for (int64_t i = 0; i < d; i += 2 * LANES) {
        int64_t h = 0;
        for (; h + 4 <= query.heads; h += 4)
            blend_some<4>(keys, weights + h, d, i, output + h * d);
        for (; h < query.heads; h++) blend_some<1>(keys, weights + h, d, i, output + h * d);
    }
}

void divide(float* output, int64_t d, float total) {
    for (int64_t i = 0; i < d; i += LANES) {
        Floats value;
        load(output + i, value);
        store(output + i, value / total);
    }
}

}  // namespace

#endif
