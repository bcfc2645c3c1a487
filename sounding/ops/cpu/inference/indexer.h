// Index scores of sixteen keys at a time, one per lane. See indexer_pairs.cpp.
#pragma once

#include "features.h"
#include "network.h"

// True if this processor computes them that way, for keys of this width.
bool index_pairs_serve(int64_t width);

// A row of a query in the order of the pairs of keys, width / 2 of them.
void order_pairs(const BFloat16* row, int64_t width, bool packed, int32_t* pairs);

// scores[q * stride + k - low] = sum_h weights[q][h] relu(<rows[q][h], key_k>) for keys [low, high), which
// are bfloat16, or FP4 followed by their scales.
void index_scores(const Weight& keys, int64_t low, int64_t high, const int32_t* rows, const float* weights,
                  int64_t queries, int64_t heads, float* scores, int64_t stride, Arena& arena);
