// Attention of single queries, for a group of heads.
#pragma once

#include "network.h"

constexpr int64_t HEADS = 16;  // of one query, processed together
constexpr int64_t KEYS = 32;   // keys per block; the last block is padded with zeros

// Consecutive keys, and which of them a query sees. Tiles also need them in pairs, pairs[k / 2][d][k % 2]; on
// processors without bfloat16 products they are float32.
struct Keys {
    const BFloat16* rows;
    const BFloat16* pairs;
    const float* wide;
    int64_t low, high;  // the visible range

    int64_t first_block() const { return low / KEYS * KEYS; }
    int64_t end_block() const { return padded(high, KEYS); }
    int64_t count() const { return high > low ? end_block() - first_block() : 0; }
};

struct Query {
    const BFloat16* q;  // [heads, d]
    int64_t heads, d;
    const float* sink;
    float scale;
};

void make_pairs(const BFloat16* even, const BFloat16* odd, int64_t d, BFloat16* pairs);

// output[h * d + i] = sum_k softmax_k(scale <q_h, k>, sink_h) k[i] over both lists of keys. Several threads help
// only if no other query runs, and only with pairs of bfloat16.
void attend(const Query& query, const Keys (&keys)[2], int threads, Arena& arena, float* output);

// The two products of `attend` with tiles and with pairs of bfloat16: scores[k][HEADS] for blocks of keys
// [low, high), which the softmax turns into weights, and the outputs.
void scores_with_tiles(const Query& query, const Keys& keys, Arena& arena, float* scores);
void blend_with_tiles(const Query& query, const Keys (&keys)[2], const float* weights, Arena& arena,
                      float* output);
void scores_with_pairs(const Query& query, const Keys& keys, int threads, Arena& arena, float* scores);
void blend_with_pairs(const Query& query, const Keys (&keys)[2], const float* weights, int threads, Arena& arena,
                      float* output);
