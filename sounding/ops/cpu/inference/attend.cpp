// What one query reads: scores, a softmax with a sink, and the blend of keys as values.
//
// Heads lie side by side in a vector, so the softmax needs no sums across one. A query's result
// depends on its own keys alone, in blocks counted from positions: it has the same bits whatever
// other queries are computed with it.

#define KERNELS "inference/attend.cpp"
#ifndef TARGET

#include <algorithm>

#include "attention.h"
#include "features.h"

#include "../each_target.h"

void make_pairs(const BFloat16* even, const BFloat16* odd, int64_t d, BFloat16* pairs) {
    CALL(interleave, even, odd, d, pairs);
}

void attend(const Query& query, const Keys (&keys)[2], Arena& arena, float* output) {
    Scope scope(arena);
    float* scores = arena.take<float>((keys[0].count() + keys[1].count()) * HEADS);
    float* at = scores;
    float* q = nullptr;
    if (!has_tiles()) {
        q = arena.take<float>(query.d * HEADS);
        for (int64_t i = 0; i < query.d; i++)
            for (int64_t h = 0; h < HEADS; h++)
                q[i * HEADS + h] = h < query.heads ? load_one(query.q + h * query.d + i) : 0.0f;
    }
    for (const Keys& part : keys) {
        if (part.count() == 0) continue;
        if (has_tiles())
            scores_with_tiles(query, part, arena, at);
        else
            CALL(scores_plain, q, query.d, part.rows + part.first_block() * query.d, part.count(),
                 at);
        at += part.count() * HEADS;
    }
    float sink[HEADS] = {}, totals[HEADS];
    std::copy(query.sink, query.sink + query.heads, sink);
    CALL(softmax, scores, keys, query.scale, sink, totals);
    if (has_tiles())
        blend_with_tiles(query, keys, scores, arena, output);
    else
        CALL(blend_plain, query, keys, scores, output);
    for (int64_t h = 0; h < query.heads; h++)
        CALL(divide, output + h * query.d, query.d, totals[h]);
}

#else

namespace {

static_assert(HEADS == LANES, "heads lie side by side in a vector");

void interleave(const BFloat16* even, const BFloat16* odd, int64_t d, BFloat16* pairs) {
    for (int64_t i = 0; i < d; i++) {
        pairs[2 * i] = even[i];
        pairs[2 * i + 1] = odd[i];
    }
}

// scores[k][h] = <q_h, key_k>, from queries laid out [d][HEADS].
void scores_plain(const float* q, int64_t d, const BFloat16* keys, int64_t count,
                  float* scores) {
    for (int64_t k = 0; k < count; k += 4) {
        Floats total[4] = {};
        for (int64_t i = 0; i < d; i++) {
            Floats row;
            load(q + i * HEADS, row);
            for (int j = 0; j < 4; j++) total[j] += row * load_one(keys + (k + j) * d + i);
        }
        for (int j = 0; j < 4; j++) store(scores + (k + j) * HEADS, total[j]);
    }
}

// Scores to exp(scale * score - top), zero for the hidden; returns their sum with the sink's share.
void softmax(float* scores, const Keys (&keys)[2], float scale, const float* sink,
             float* totals) {
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
    store(totals, total);
}

void blend_plain(const Query& query, const Keys (&keys)[2], const float* weights,
                 float* output) {
    for (int64_t h = 0; h < query.heads; h++)
        for (int64_t i = 0; i < query.d; i += LANES) {
            Floats total = {};
            const float* weight = weights + h;
            for (const Keys& part : keys) {
                if (part.count() == 0) continue;
                for (int64_t k = part.first_block(); k < part.end_block(); k++, weight += HEADS) {
                    if (k < part.low || k >= part.high) continue;
                    Floats value;
                    load(part.rows + k * query.d + i, value);
                    total += value * *weight;
                }
            }
            store(output + h * query.d + i, total);
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
