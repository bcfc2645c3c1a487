// Hyper-connections for training: each pass reads the streams once, where the reference makes a
// dozen tensors of their size. Forward and gradient of `connect` and `write` in
// ops/hyper_connection.py, whose formulas these are.
//
// A token's result depends on that token alone and is computed in the same order whatever is
// computed beside it. Tokens go in groups of 16, one per lane where the work is per coefficient.

#include <algorithm>

#include "numbers.h"
#include "parallel.h"

namespace {

constexpr int MAX_STREAMS = 8;
constexpr int MAX_ITERATIONS = 64;
constexpr int64_t GRAIN = 64;  // tokens per range; a multiple of the lanes

struct Shape {
    int64_t tokens;
    int streams, channels, iterations;
    float norm_eps, hc_eps;

    int width() const { return streams * channels; }
    int coefficients() const { return (2 + streams) * streams; }
};

using Matrix = Floats[MAX_STREAMS * MAX_STREAMS];  // one matrix per lane

// ---------------------------------------------------------------------------------------------
// Sinkhorn, 16 tokens at once

// Divide rows (or columns) by their sums; keeps 1 / (sum + eps) for the gradient.
INLINE void normalise(Matrix& a, Floats* factor, int m, bool rows, float eps) {
    for (int i = 0; i < m; i++) {
        Floats total = {};
        for (int j = 0; j < m; j++) total += a[rows ? i * m + j : j * m + i];
        factor[i] = 1.0f / (total + eps);
        for (int j = 0; j < m; j++) a[rows ? i * m + j : j * m + i] *= factor[i];
    }
}

// The gradient through b = a / (sum + eps): (g - <g, b>) / (sum + eps), per row or column.
INLINE void normalise_backward(Matrix& g, const Matrix& b, const Floats* factor, int m, bool rows) {
    for (int i = 0; i < m; i++) {
        Floats dot = {};
        for (int j = 0; j < m; j++) {
            const int at = rows ? i * m + j : j * m + i;
            dot += g[at] * b[at];
        }
        for (int j = 0; j < m; j++) {
            const int at = rows ? i * m + j : j * m + i;
            g[at] = (g[at] - dot) * factor[i];
        }
    }
}

INLINE void softmax_rows(Matrix& a, int m) {
    for (int i = 0; i < m; i++) {
        Floats top = a[i * m];
        for (int j = 1; j < m; j++) {
            const Floats other = a[i * m + j];
            top = other > top ? other : top;
        }
        Floats total = {};
        for (int j = 0; j < m; j++) {
            Floats& x = a[i * m + j];
            for (int lane = 0; lane < LANES; lane++) x[lane] = std::exp(x[lane] - top[lane]);
            total += x;
        }
        for (int j = 0; j < m; j++) a[i * m + j] /= total;
    }
}

// What the gradient needs: the softmax, and each normalised matrix with its factors.
struct Trace {
    Matrix soft;
    Matrix after[2 * MAX_ITERATIONS];
    Floats factor[2 * MAX_ITERATIONS][MAX_STREAMS];
};

INLINE void sinkhorn(Matrix& a, const Shape& s, Trace* trace) {
    const int m = s.streams, steps = 2 * s.iterations - 1;
    Floats unused[MAX_STREAMS];
    softmax_rows(a, m);
    if (trace) std::copy(a, a + m * m, trace->soft);
    for (int i = 0; i < m * m; i++) a[i] += s.hc_eps;
    for (int step = 0; step < steps; step++) {
        const bool rows = step % 2 == 1;  // columns first, and columns last
        normalise(a, trace ? trace->factor[step] : unused, m, rows, s.hc_eps);
        if (trace) std::copy(a, a + m * m, trace->after[step]);
    }
}

INLINE void sinkhorn_backward(Matrix& g, const Shape& s, const Trace& trace) {
    const int m = s.streams;
    for (int step = 2 * s.iterations - 2; step >= 0; step--)
        normalise_backward(g, trace.after[step], trace.factor[step], m, step % 2 == 1);
    for (int i = 0; i < m; i++) {
        Floats dot = {};
        for (int j = 0; j < m; j++) dot += g[i * m + j] * trace.soft[i * m + j];
        for (int j = 0; j < m; j++) g[i * m + j] = trace.soft[i * m + j] * (g[i * m + j] - dot);
    }
}

// ---------------------------------------------------------------------------------------------
// connect: coefficients, and the sub-layer's input

INLINE float sigmoid(float x) { return 1.0f / (1.0f + std::exp(-x)); }

// raw[r] = <v, row r> * rho for R rows at once: their sums do not wait for each other.
template <int R, typename T>
INLINE void project_rows(const T* v, const float* rows, float rho, float* raw, int width) {
    const int body = width - width % LANES;
    Floats dot[R] = {};
    float rest[R] = {};
    for (int i = 0; i < body; i += LANES) {
        Floats x, w;
        load(v + i, x);
        for (int r = 0; r < R; r++) {
            load(rows + int64_t(r) * width + i, w);
            dot[r] += x * w;
        }
    }
    for (int i = body; i < width; i++)
        for (int r = 0; r < R; r++) rest[r] += load_one(v + i) * rows[int64_t(r) * width + i];
    for (int r = 0; r < R; r++) raw[r] = (sum(dot[r]) + rest[r]) * rho;
}

// raw[n] = <v, fn_n> * rho, rho = rsqrt(mean v^2 + eps), for one token's flattened streams.
template <typename T>
INLINE float project(const T* v, const float* fn, float* raw, const Shape& s) {
    const int width = s.width(), body = width - width % LANES;
    Floats square = {};
    float tail = 0;
    for (int i = 0; i < body; i += LANES) {
        Floats x;
        load(v + i, x);
        square += x * x;
    }
    for (int i = body; i < width; i++) tail += load_one(v + i) * load_one(v + i);
    const float rho = 1.0f / std::sqrt((sum(square) + tail) / width + s.norm_eps);
    int n = 0;
    for (; n + 4 <= s.coefficients(); n += 4)
        project_rows<4>(v, fn + int64_t(n) * width, rho, raw + n, width);
    for (; n < s.coefficients(); n++)
        project_rows<1>(v, fn + int64_t(n) * width, rho, raw + n, width);
    return rho;
}

// The logits of the mixing matrix of up to 16 tokens, one per lane; lanes without a token are 0.
INLINE void mix_logits(const float* raw, int64_t count, const float* base, const float* scale,
                       Matrix& a, const Shape& s) {
    const int m = s.streams, n = s.coefficients();
    for (int i = 0; i < m * m; i++) {
        a[i] = Floats{};
        for (int64_t t = 0; t < count; t++)
            a[i][t] = raw[t * n + 2 * m + i] * scale[2] + base[2 * m + i];
    }
}

template <typename T>
INLINE void connect_range(int64_t low, int64_t high, const T* streams, const float* fn,
                          const float* base, const float* scale, T* x, float* post, float* mix,
                          float* raw, float* rho, const Shape& s) {
    const int m = s.streams, c = s.channels, n = s.coefficients();
    for (int64_t group = low; group < high; group += LANES) {
        const int64_t count = std::min<int64_t>(LANES, high - group);
        for (int64_t t = group; t < group + count; t++) {
            const T* v = streams + t * s.width();
            float* r = raw + t * n;
            rho[t] = project(v, fn, r, s);
            float pre[MAX_STREAMS];
            for (int j = 0; j < m; j++) {
                pre[j] = sigmoid(r[j] * scale[0] + base[j]) + s.hc_eps;
                post[t * m + j] = 2 * sigmoid(r[m + j] * scale[1] + base[m + j]);
            }
            int i = 0;
            for (; i + LANES <= c; i += LANES) {
                Floats total = {}, part;
                for (int j = 0; j < m; j++) {
                    load(v + j * c + i, part);
                    total += part * pre[j];
                }
                store(x + t * c + i, total);
            }
            for (; i < c; i++) {
                float total = 0;
                for (int j = 0; j < m; j++) total += load_one(v + j * c + i) * pre[j];
                store_one(x + t * c + i, total);
            }
        }
        Matrix a;
        mix_logits(raw + group * n, count, base, scale, a, s);
        sinkhorn(a, s, nullptr);
        for (int64_t t = 0; t < count; t++)
            for (int i = 0; i < m * m; i++) mix[(group + t) * m * m + i] = a[i][t];
    }
}

// grad_z[n] is the gradient of the pre-activations raw * scale + base; grad_raw that of <v, fn_n>.
template <typename T>
INLINE void connect_backward_range(int64_t low, int64_t high, const T* streams, const float* fn,
                                   const float* base, const float* scale, const float* raw,
                                   const float* rho, const T* grad_x, const float* grad_post,
                                   const float* grad_mix, T* grad_streams, float* grad_z,
                                   float* grad_product, const Shape& s) {
    const int m = s.streams, c = s.channels, n = s.coefficients(), width = s.width();
    thread_local static Trace trace;
    for (int64_t group = low; group < high; group += LANES) {
        const int64_t count = std::min<int64_t>(LANES, high - group);
        Matrix a, g;
        mix_logits(raw + group * n, count, base, scale, a, s);
        sinkhorn(a, s, &trace);
        for (int i = 0; i < m * m; i++) {
            g[i] = Floats{};
            for (int64_t t = 0; t < count; t++) g[i][t] = grad_mix[(group + t) * m * m + i];
        }
        sinkhorn_backward(g, s, trace);
        for (int64_t t = group; t < group + count; t++) {
            const T* v = streams + t * width;
            const T* gx = grad_x + t * c;
            const float* r = raw + t * n;
            float* z = grad_z + t * n;
            float pre[MAX_STREAMS];
            for (int j = 0; j < m; j++) {
                Floats dot = {}, left, right;
                float rest = 0;
                int i = 0;
                for (; i + LANES <= c; i += LANES) {
                    load(gx + i, left);
                    load(v + j * c + i, right);
                    dot += left * right;
                }
                for (; i < c; i++) rest += load_one(gx + i) * load_one(v + j * c + i);
                const float open = sigmoid(r[j] * scale[0] + base[j]);
                const float gate = sigmoid(r[m + j] * scale[1] + base[m + j]);
                pre[j] = open + s.hc_eps;
                z[j] = (sum(dot) + rest) * open * (1 - open);
                z[m + j] = grad_post[t * m + j] * 2 * gate * (1 - gate);
            }
            for (int i = 0; i < m * m; i++) z[2 * m + i] = g[i][t - group];
            float* product = grad_product + t * n;
            float through_rho = 0;
            for (int i = 0; i < n; i++) {
                const float grad_raw = z[i] * scale[i < m ? 0 : i < 2 * m ? 1 : 2];
                product[i] = grad_raw * rho[t];
                through_rho += grad_raw * r[i];
            }
            through_rho *= -rho[t] * rho[t] / width;
            for (int j = 0; j < m; j++) {
                int i = 0;
                for (; i + LANES <= c; i += LANES) {
                    Floats total, part;
                    load(v + j * c + i, total);
                    total *= through_rho;
                    load(gx + i, part);
                    total += part * pre[j];
                    for (int k = 0; k < n; k++) {
                        load(fn + int64_t(k) * width + j * c + i, part);
                        total += part * product[k];
                    }
                    store(grad_streams + t * width + j * c + i, total);
                }
                for (; i < c; i++) {
                    float total = load_one(v + j * c + i) * through_rho + load_one(gx + i) * pre[j];
                    for (int k = 0; k < n; k++)
                        total += fn[int64_t(k) * width + j * c + i] * product[k];
                    store_one(grad_streams + t * width + j * c + i, total);
                }
            }
        }
    }
}

// ---------------------------------------------------------------------------------------------
// write: the sub-layer's output into the mixed streams

template <typename T>
INLINE void write_range(int64_t low, int64_t high, const T* streams, const T* output,
                        const float* post, const float* mix, T* result, const Shape& s) {
    const int m = s.streams, c = s.channels;
    for (int64_t t = low; t < high; t++) {
        const T* v = streams + t * s.width();
        T* to = result + t * s.width();
        const float* a = mix + t * m * m;
        int i = 0;
        for (; i + LANES <= c; i += LANES) {
            Floats from[MAX_STREAMS], out;
            for (int j = 0; j < m; j++) load(v + j * c + i, from[j]);
            load(output + t * c + i, out);
            for (int k = 0; k < m; k++) {
                Floats total = out * post[t * m + k];
                for (int j = 0; j < m; j++) total += from[j] * a[j * m + k];
                store(to + k * c + i, total);
            }
        }
        for (; i < c; i++)
            for (int k = 0; k < m; k++) {
                float total = load_one(output + t * c + i) * post[t * m + k];
                for (int j = 0; j < m; j++) total += load_one(v + j * c + i) * a[j * m + k];
                store_one(to + k * c + i, total);
            }
    }
}

template <typename T>
INLINE void write_backward_range(int64_t low, int64_t high, const T* streams, const T* output,
                                 const float* post, const float* mix, const T* grad,
                                 T* grad_streams, T* grad_output, float* grad_post,
                                 float* grad_mix, const Shape& s) {
    const int m = s.streams, c = s.channels;
    for (int64_t t = low; t < high; t++) {
        const T* v = streams + t * s.width();
        const T* g = grad + t * s.width();
        const float* a = mix + t * m * m;
        Floats dots[MAX_STREAMS * MAX_STREAMS] = {}, outs[MAX_STREAMS] = {};
        float dot_tail[MAX_STREAMS * MAX_STREAMS] = {}, out_tail[MAX_STREAMS] = {};
        int i = 0;
        for (; i + LANES <= c; i += LANES) {
            Floats into[MAX_STREAMS], from, out, total = {};
            load(output + t * c + i, out);
            for (int k = 0; k < m; k++) {
                load(g + k * c + i, into[k]);
                total += into[k] * post[t * m + k];
                outs[k] += into[k] * out;
            }
            store(grad_output + t * c + i, total);
            for (int j = 0; j < m; j++) {
                load(v + j * c + i, from);
                total = Floats{};
                for (int k = 0; k < m; k++) {
                    total += into[k] * a[j * m + k];
                    dots[j * m + k] += into[k] * from;
                }
                store(grad_streams + t * s.width() + j * c + i, total);
            }
        }
        for (; i < c; i++) {
            float total = 0;
            for (int k = 0; k < m; k++) {
                const float into = load_one(g + k * c + i);
                total += into * post[t * m + k];
                out_tail[k] += into * load_one(output + t * c + i);
            }
            store_one(grad_output + t * c + i, total);
            for (int j = 0; j < m; j++) {
                total = 0;
                for (int k = 0; k < m; k++) {
                    const float into = load_one(g + k * c + i);
                    total += into * a[j * m + k];
                    dot_tail[j * m + k] += into * load_one(v + j * c + i);
                }
                store_one(grad_streams + t * s.width() + j * c + i, total);
            }
        }
        for (int k = 0; k < m; k++) grad_post[t * m + k] = sum(outs[k]) + out_tail[k];
        for (int k = 0; k < m * m; k++) grad_mix[t * m * m + k] = sum(dots[k]) + dot_tail[k];
    }
}

// Clones are made of plain functions, so each template is fixed to a type here.
#define FIX(T, S)                                                                                  \
    CLONED void connect_##S(int64_t low, int64_t high, const T* streams, const float* fn,          \
                            const float* base, const float* scale, T* x, float* post, float* mix,  \
                            float* raw, float* rho, const Shape& s) {                              \
        connect_range(low, high, streams, fn, base, scale, x, post, mix, raw, rho, s);             \
    }                                                                                              \
    CLONED void connect_backward_##S(                                                              \
        int64_t low, int64_t high, const T* streams, const float* fn, const float* base,           \
        const float* scale, const float* raw, const float* rho, const T* grad_x,                   \
        const float* grad_post, const float* grad_mix, T* grad_streams, float* grad_z,             \
        float* grad_product, const Shape& s) {                                                     \
        connect_backward_range(low, high, streams, fn, base, scale, raw, rho, grad_x, grad_post,   \
                               grad_mix, grad_streams, grad_z, grad_product, s);                   \
    }                                                                                              \
    CLONED void write_##S(int64_t low, int64_t high, const T* streams, const T* output,            \
                          const float* post, const float* mix, T* result, const Shape& s) {        \
        write_range(low, high, streams, output, post, mix, result, s);                             \
    }                                                                                              \
    CLONED void write_backward_##S(int64_t low, int64_t high, const T* streams, const T* output,   \
                                   const float* post, const float* mix, const T* grad,             \
                                   T* grad_streams, T* grad_output, float* grad_post,              \
                                   float* grad_mix, const Shape& s) {                              \
        write_backward_range(low, high, streams, output, post, mix, grad, grad_streams,            \
                             grad_output, grad_post, grad_mix, s);                                 \
    }

FIX(float, float)
FIX(BFloat16, bfloat16)

}  // namespace

// One entry point per pass; `bfloat16` says what the tensors of stream width hold.
#define RUN(NAME, ...)                                                                             \
    parallel_for(shape->tokens, GRAIN, threads, [&](int64_t low, int64_t high) {                   \
        if (bfloat16) {                                                                            \
            using T = BFloat16;                                                                    \
            NAME##_bfloat16(low, high, __VA_ARGS__, *shape);                                       \
        } else {                                                                                   \
            using T = float;                                                                       \
            NAME##_float(low, high, __VA_ARGS__, *shape);                                          \
        }                                                                                          \
    })

extern "C" {

void hyper_connect(const Shape* shape, int bfloat16, int threads, const void* streams,
                   const float* fn, const float* base, const float* scale, void* x, float* post,
                   float* mix, float* raw, float* rho) {
    RUN(connect, (const T*)streams, fn, base, scale, (T*)x, post, mix, raw, rho);
}

void hyper_connect_backward(const Shape* shape, int bfloat16, int threads, const void* streams,
                            const float* fn, const float* base, const float* scale,
                            const float* raw, const float* rho, const void* grad_x,
                            const float* grad_post, const float* grad_mix, void* grad_streams,
                            float* grad_z, float* grad_product) {
    RUN(connect_backward, (const T*)streams, fn, base, scale, raw, rho, (const T*)grad_x, grad_post,
        grad_mix, (T*)grad_streams, grad_z, grad_product);
}

void hyper_write(const Shape* shape, int bfloat16, int threads, const void* streams,
                 const void* output, const float* post, const float* mix, void* result) {
    RUN(write, (const T*)streams, (const T*)output, post, mix, (T*)result);
}

void hyper_write_backward(const Shape* shape, int bfloat16, int threads, const void* streams,
                          const void* output, const float* post, const float* mix,
                          const void* grad, void* grad_streams, void* grad_output,
                          float* grad_post, float* grad_mix) {
    RUN(write_backward, (const T*)streams, (const T*)output, post, mix, (const T*)grad,
        (T*)grad_streams, (T*)grad_output, grad_post, grad_mix);
}
}
