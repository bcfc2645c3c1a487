// Index scores of sixteen keys side by side. See indexer_pairs.cpp.
#pragma once

#include "features.h"
#include "network.h"

// Whether they are made that way on this processor, for keys of this width.
bool index_pairs_serve(int64_t width);

// A query's row in the order of its keys' pairs, width / 2 of them.
void order_pairs(const BFloat16* row, int64_t width, bool packed, int32_t* pairs);

// scores[q * stride + k - low] = sum_h weights[q][h] relu(<rows[q][h], key_k>) for keys [low, high), which
// are bfloat16, or FP4 with the scales of each behind it.
void index_scores(const Weight& keys, int64_t low, int64_t high, const int32_t* rows, const float* weights,
                  int64_t queries, int64_t heads, float* scores, int64_t stride, Arena& arena);
