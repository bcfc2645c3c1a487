// RMS normalisation and rotary embedding for training, forward and backward. The formulas are those of
// ops/norm.py and ops/rope.py.

#define KERNELS "training/norm.cpp"
#ifndef TARGET

#include <cstdint>

constexpr int64_t GRAIN = 64;  // rows per range, which also share a partial gradient of the weight

#include "../each_target.h"

extern "C" {

void train_rms_norm(int bfloat16, int threads, int64_t rows, int width, float eps, const void* x,
                    const float* weight, void* y, float* rho) {
    RUN(rows, GRAIN, rms_norm, (const T*)x, weight, (T*)y, rho, width, eps);
}

void train_rms_norm_backward(int bfloat16, int threads, int64_t rows, int width, const void* x,
                             const float* weight, const float* rho, const void* grad, void* grad_x,
                             float* partial) {
    RUN(rows, GRAIN, rms_norm_backward, (const T*)x, weight, rho, (const T*)grad, (T*)grad_x, partial, width);
}

void train_rotate(int bfloat16, int threads, int64_t rows, int heads, int width, int pairs,
                  float sign, const void* x, const float* cos, const float* sin, void* y) {
    RUN(rows, GRAIN, rotate, (const T*)x, cos, sin, (T*)y, heads, width, pairs, sign);
}
}

#else

template <typename T>
void rms_norm(int64_t low, int64_t high, const T* x, const float* weight, T* y,
                           float* rho, int width, float eps) {
    for (int64_t row = low; row < high; row++) {
        const T* from = x + row * width;
        Floats square = {}, v, w;
        FOR_LANES(i, count, width) {
            load_lanes(from + i, count, v);
            square += v * v;
        };
        rho[row] = 1.0f / std::sqrt(sum(square) / width + eps);
        FOR_LANES(i, count, width) {
            load_lanes(from + i, count, v);
            v *= rho[row];
            if (weight) {
                load_lanes(weight + i, count, w);
                v *= w;
            }
            store_lanes(y + row * width + i, count, v);
        };
    }
}

// `partial` has a row for each range: the contribution of its rows to the gradient of the weight.
template <typename T>
void rms_norm_backward(int64_t low, int64_t high, const T* x, const float* weight,
                                    const float* rho, const T* grad, T* grad_x, float* partial,
                                    int width) {
    float* own = partial ? partial + low / GRAIN * width : nullptr;
    if (own) std::fill(own, own + width, 0.0f);
    for (int64_t row = low; row < high; row++) {
        const T *from = x + row * width, *g = grad + row * width;
        Floats dot = {}, v, d, w;
        FOR_LANES(i, count, width) {
            load_lanes(from + i, count, v);
            load_lanes(g + i, count, d);
            if (weight) {
                Floats so_far;
                load_lanes(own + i, count, so_far);
                store_lanes(own + i, count, so_far + d * v * rho[row]);
                load_lanes(weight + i, count, w);
                d *= w;
            }
            dot += v * d;
        };
        const float back = sum(dot) * rho[row] * rho[row] / width;
        FOR_LANES(i, count, width) {
            load_lanes(from + i, count, v);
            load_lanes(g + i, count, d);
            if (weight) {
                load_lanes(weight + i, count, w);
                d *= w;
            }
            store_lanes(grad_x + row * width + i, count, (d - v * back) * rho[row]);
        };
    }
}

// Rotate pairs of channels; both channels of a pair hold its cosine and sine.
INLINE Floats turned(const Floats& x, const Floats& cos, const Floats& sin) {
    const Integers lane = lane_numbers();
    const Floats sign = (lane & 1) == 0 ? all(-1.0f) : all(1.0f);
    return x * cos + __builtin_shuffle(x, lane ^ 1) * (sin * sign);
}

// Rotate the last 2 * pairs channels of each head of each token; sign -1 is the inverse.
template <typename T>
void rotate(int64_t low, int64_t high, const T* x, const float* cos, const float* sin,
                         T* y, int heads, int width, int pairs, float sign) {
    const int plain = width - 2 * pairs;
    const Integers first = lane_numbers() >> 1, last = first + LANES / 2;
    for (int64_t t = low; t < high; t++)
        for (int h = 0; h < heads; h++) {
            const T* from = x + (t * heads + h) * width;
            T* to = y + (t * heads + h) * width;
            std::copy(from, from + plain, to);
            from += plain, to += plain;
            int i = 0;
            for (; i + LANES <= pairs; i += LANES) {
                Floats c, s, left, right;
                load(cos + t * pairs + i, c);
                load(sin + t * pairs + i, s);
                s *= sign;
                load(from + 2 * i, left);
                load(from + 2 * i + LANES, right);
                store(to + 2 * i, turned(left, __builtin_shuffle(c, first), __builtin_shuffle(s, first)));
                store(to + 2 * i + LANES, turned(right, __builtin_shuffle(c, last), __builtin_shuffle(s, last)));
            }
            for (; i < pairs; i++) {
                const float even = load_one(from + 2 * i), odd = load_one(from + 2 * i + 1);
                const float c = cos[t * pairs + i], s = sign * sin[t * pairs + i];
                store_one(to + 2 * i, even * c - odd * s);
                store_one(to + 2 * i + 1, even * s + odd * c);
            }
        }
}

#endif
