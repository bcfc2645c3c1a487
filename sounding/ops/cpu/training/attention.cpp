// The softmax of attention and its gradient for a tile of queries, in training; PyTorch computes the matrix
// products around it. The formulas are those of ops/attention.py.
//
// A tile has `queries` consecutive queries of `heads` rows each. Its keys are `near` keys of the window,
// then `far` compressed entries. Window key j is at distance offset + i - j from query i, which sees it if
// that is in [0, window); `seen` marks the entries that a query sees.

#define KERNELS "training/attention.cpp"
#ifndef TARGET

#include <cstdint>

struct Tile {
    int64_t queries;
    int heads, near, far, offset, window;
    float scale;

    int keys() const { return near + far; }
};

constexpr int64_t GRAIN = 4;  // queries per range

#include "../each_target.h"

extern "C" {

void train_softmax(int bfloat16, int threads, const Tile* tile, void* scores, const uint8_t* seen,
                   const float* sink, float* log_sum, float* paid) {
    RUN(tile->queries, GRAIN, softmax, (T*)scores, seen, sink, log_sum, paid, *tile);
}

void train_softmax_backward(int bfloat16, int threads, const Tile* tile, void* scores, void* grad,
                            const uint8_t* seen, const float* log_sum, const float* delta) {
    RUN(tile->queries, GRAIN, softmax_backward, (T*)scores, (T*)grad, seen, log_sum, delta, *tile);
}
}

#else

// The additive mask of a query: 0 for visible keys, -infinity for the others.
void visibility(const Tile& s, int64_t query, const uint8_t* seen, float* bias) {
    const int64_t newest = s.offset + query;  // its own key
    for (int j = 0; j < s.near; j++)
        bias[j] = j <= newest && j > newest - s.window ? 0.0f : -INFINITY;
    for (int j = 0; j < s.far; j++) bias[s.near + j] = seen[query * s.far + j] ? 0.0f : -INFINITY;
}

// Replace scores by weights; log_sum gets log(sum exp) of each row, sink included.
template <typename T>
void softmax(int64_t low, int64_t high, T* scores, const uint8_t* seen,
                          const float* sink, float* log_sum, float* paid, const Tile& s) {
    const int keys = s.keys();
    float* bias = new float[2 * keys];
    float* row_weights = bias + keys;
    for (int64_t query = low; query < high; query++) {
        visibility(s, query, seen, bias);
        if (paid) std::fill(paid + query * s.far, paid + (query + 1) * s.far, 0.0f);
        for (int h = 0; h < s.heads; h++) {
            T* row = scores + (query * s.heads + h) * keys;
            Floats top = Floats{} + sink[h], x, b;
            FOR_LANES(i, count, keys) {
                load_lanes(row + i, count, x);
                load_lanes(bias + i, count, b);
                x = x * s.scale + b;
                raise(top, first_lanes(x, count, -INFINITY));
                store_lanes(row_weights + i, count, x);
            };
            const float most = maximum(top);
            Floats total = {};
            FOR_LANES(i, count, keys) {
                load_lanes(row_weights + i, count, x);
                x = exp(first_lanes(x, count, -INFINITY) - most);
                total += x;
                store_lanes(row_weights + i, count, x);
            };
            const float all = sum(total) + std::exp(sink[h] - most);
            log_sum[query * s.heads + h] = most + std::log(all);
            FOR_LANES(i, count, keys) {
                load_lanes(row_weights + i, count, x);
                x *= 1.0f / all;
                store_lanes(row + i, count, x);
            };
            if (paid)
                for (int j = 0; j < s.far; j++)
                    paid[query * s.far + j] += row_weights[s.near + j] / all;
        }
    }
    delete[] bias;
}

// Recompute the weights in place of the scores, and replace the gradient of the weights by that of the
// scores.
template <typename T>
void softmax_backward(int64_t low, int64_t high, T* scores, T* grad,
                                   const uint8_t* seen, const float* log_sum, const float* delta,
                                   const Tile& s) {
    const int keys = s.keys();
    float* bias = new float[keys];
    for (int64_t query = low; query < high; query++) {
        visibility(s, query, seen, bias);
        for (int h = 0; h < s.heads; h++) {
            const int64_t at = query * s.heads + h;
            T *row = scores + at * keys, *g = grad + at * keys;
            const float sum_of = log_sum[at], d = delta[at];
            FOR_LANES(i, count, keys) {
                Floats x, b, y;
                load_lanes(row + i, count, x);
                load_lanes(bias + i, count, b);
                load_lanes(g + i, count, y);
                x = exp(x * s.scale + b - sum_of);
                store_lanes(row + i, count, x);
                store_lanes(g + i, count, x * (y - d) * s.scale);
            };
        }
    }
    delete[] bias;
}

#endif
