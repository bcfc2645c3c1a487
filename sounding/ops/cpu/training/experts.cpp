// The parts of an expert layer that are not matrix products, for training: clamped SwiGLU, and moving rows
// between tokens and experts. The formulas are those of ops/experts.py. The rows of one expert are
// contiguous, in the order of tokens.

#define KERNELS "training/experts.cpp"
#ifndef TARGET

#include <cstdint>

constexpr int64_t GRAIN = 64;  // rows per range

#include "../each_target.h"

extern "C" {

// Rows of `both` hold the gate and, beside it, the values that it multiplies.
void train_swiglu(int bfloat16, int threads, int64_t rows, int width, float limit, const void* both,
                  const float* weight, void* inner) {
    RUN(rows, GRAIN, swiglu, (const T*)both, weight, (T*)inner, width, limit);
}

void train_swiglu_backward(int bfloat16, int threads, int64_t rows, int width, float limit, const void* both,
                           const float* weight, const void* grad, void* grad_both, float* grad_weight) {
    RUN(rows, GRAIN, swiglu_backward, (const T*)both, weight, (const T*)grad, (T*)grad_both, grad_weight, width, limit);
}

void train_gather(int bfloat16, int threads, int64_t rows, int width, int from_float,
                  const void* from, const int64_t* token, void* to) {
    if (from_float)
        RUN(rows, GRAIN, gather, (const float*)from, token, (T*)to, width);
    else
        RUN(rows, GRAIN, gather, (const T*)from, token, (T*)to, width);
}

void train_combine(int bfloat16, int threads, int64_t tokens, int width, int picks, int to_float,
                   const void* from, const int64_t* places, const void* more, void* to) {
    if (to_float)
        RUN(tokens, GRAIN, combine, (const T*)from, places, (const T*)more, (float*)to, width, picks);
    else
        RUN(tokens, GRAIN, combine, (const T*)from, places, (const T*)more, (T*)to, width, picks);
}
}

#else

// inner = silu(min(gate, limit)) * clamp(up, -limit, limit) * weight
template <typename T>
void swiglu(int64_t low, int64_t high, const T* both, const float* weight, T* inner, int width, float limit) {
    for (int64_t row = low; row < high; row++) {
        const T *gate = both + row * 2 * width, *up = gate + width;
        const float by = weight ? weight[row] : 1.0f;
        FOR_LANES(i, count, width) {
            Floats g, u;
            load_lanes(gate + i, count, g);
            load_lanes(up + i, count, u);
            g = g > limit ? Floats{} + limit : g;
            u = u > limit ? Floats{} + limit : u < -limit ? Floats{} - limit : u;
            store_lanes(inner + row * width + i, count, g * sigmoid(g) * u * by);
        };
    }
}

template <typename T>
void swiglu_backward(int64_t low, int64_t high, const T* both, const float* weight, const T* grad, T* grad_both,
                     float* grad_weight, int width, float limit) {
    for (int64_t row = low; row < high; row++) {
        const T *gate = both + row * 2 * width, *up = gate + width;
        T *grad_gate = grad_both + row * 2 * width, *grad_up = grad_gate + width;
        const float by = weight ? weight[row] : 1.0f;
        Floats through_weight = {};
        FOR_LANES(i, count, width) {
            Floats g, u, d;
            load_lanes(gate + i, count, g);
            load_lanes(up + i, count, u);
            load_lanes(grad + row * width + i, count, d);
            const Floats open = g <= limit ? Floats{} + 1.0f : Floats{};
            const Floats inside = (u <= limit ? Floats{} + 1.0f : Floats{}) *
                                  (u >= -limit ? Floats{} + 1.0f : Floats{});
            g = g > limit ? Floats{} + limit : g;
            u = u > limit ? Floats{} + limit : u < -limit ? Floats{} - limit : u;
            const Floats s = sigmoid(g), silu = g * s;
            through_weight += d * silu * u;
            d *= by;
            store_lanes(grad_gate + i, count, d * u * (s + silu * (1.0f - s)) * open);
            store_lanes(grad_up + i, count, d * silu * inside);
        };
        if (grad_weight) grad_weight[row] = sum(through_weight);
    }
}

// Gather rows for experts: to[i] = from[token[i]], or 0 where the token is -1.
template <typename T, typename S>
void gather(int64_t low, int64_t high, const S* from, const int64_t* token, T* to,
                         int width) {
    for (int64_t row = low; row < high; row++) FOR_LANES(i, count, width) {
            Floats x = {};
            if (token[row] >= 0) load_lanes(from + token[row] * width + i, count, x);
            store_lanes(to + row * width + i, count, x);
        };
}

// Add rows up by token: to[t] = sum of from[places[t]] in the order of places, plus more[t] if `more` is given.
template <typename S, typename T>
void combine(int64_t low, int64_t high, const S* from, const int64_t* places, const S* more, T* to, int width,
             int picks) {
    for (int64_t t = low; t < high; t++) FOR_LANES(i, count, width) {
            Floats total = {}, x;
            for (int k = 0; k < picks; k++) {
                load_lanes(from + places[t * picks + k] * width + i, count, x);
                total += x;
            }
            if (more) {
                load_lanes(more + t * width + i, count, x);
                total += x;
            }
            store_lanes(to + t * width + i, count, total);
        };
}

#endif
