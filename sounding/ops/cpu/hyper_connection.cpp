// Hyper-connections for training: forward and backward of `connect` and `write`, with the formulas of
// ops/hyper_connection.py. Each pass reads the streams once; the reference creates a dozen tensors of
// their size.
//
// The result of a token depends on that token alone, and is computed in the same order whatever else is
// in the batch. Tokens are processed in groups; work per coefficient has one token per lane.

#define KERNELS "hyper_connection.cpp"
#ifndef TARGET

#include "hyper_connection.h"

constexpr int64_t GRAIN = 64;  // tokens per range; a multiple of the lanes
constexpr int TOKENS = 4;      // tokens per load of a row of fn

#include "each_target.h"

extern "C" {

void hyper_connect(const Shape* shape, int bfloat16, int threads, const void* streams,
                   const float* fn, const float* base, const float* scale, void* x, float* post,
                   float* mix, float* raw, float* rho) {
    RUN(shape->tokens, GRAIN, hyper_connect, (const T*)streams, fn, base, scale, (T*)x, post, mix, raw, rho, *shape);
}

void hyper_connect_backward(const Shape* shape, int bfloat16, int threads, const void* streams,
                            const float* fn, const float* base, const float* scale,
                            const float* raw, const float* rho, const void* grad_x,
                            const float* grad_post, const float* grad_mix, const void* grad_through,
                            void* grad_streams, float* grad_z, float* grad_product) {
    RUN(shape->tokens, GRAIN, hyper_connect_backward, (const T*)streams, fn, base, scale, raw, rho, (const T*)grad_x, grad_post,
        grad_mix, (const T*)grad_through, (T*)grad_streams, grad_z, grad_product, *shape);
}

void hyper_write(const Shape* shape, int bfloat16, int threads, const void* streams,
                 const void* output, const float* post, const float* mix, void* result) {
    RUN(shape->tokens, GRAIN, hyper_write, (const T*)streams, (const T*)output, post, mix, (T*)result, *shape);
}

void hyper_write_backward(const Shape* shape, int bfloat16, int threads, const void* streams,
                          const void* output, const float* post, const float* mix,
                          const void* grad, void* grad_streams, void* grad_output,
                          float* grad_post, float* grad_mix) {
    RUN(shape->tokens, GRAIN, hyper_write_backward, (const T*)streams, (const T*)output, post, mix, (const T*)grad,
        (T*)grad_streams, (T*)grad_output, grad_post, grad_mix, *shape);
}
}

#else

#include "sinkhorn.h"

// ---------------------------------------------------------------------------------------------
// connect: coefficients, and the sub-layer's input

INLINE float sigmoid(float x) { return 1.0f / (1.0f + std::exp(-x)); }

// raw[t][r] = <v_t, row r> * rho_t for N tokens and R rows: a row is loaded once for all tokens, and the
// sums are independent. Each is accumulated in the same order whatever N and R are.
template <int N, int R, typename T>
INLINE void project_rows(const T* v, const float* rows, const float* rho, float* raw, int n,
                         int width) {
    Floats dot[N][R] = {};
    FOR_LANES(i, count, width) {
        Floats x[N], w;
        for (int t = 0; t < N; t++) load_lanes(v + int64_t(t) * width + i, count, x[t]);
        for (int r = 0; r < R; r++) {
            load_lanes(rows + int64_t(r) * width + i, count, w);
            for (int t = 0; t < N; t++) dot[t][r] += x[t] * w;
        }
    };
    for (int t = 0; t < N; t++)
        for (int r = 0; r < R; r++) raw[t * n + r] = sum(dot[t][r]) * rho[t];
}

// raw[t][n] = <v_t, fn_n> * rho_t, rho = rsqrt(mean v^2 + eps), for the flattened streams of N tokens.
template <int N, typename T>
INLINE void project(const T* v, const float* fn, float* raw, float* rho, const Shape& s) {
    const int width = s.width(), n = s.coefficients();
    for (int t = 0; t < N; t++) {
        Floats square = {}, x;
        FOR_LANES(i, count, width) {
            load_lanes(v + int64_t(t) * width + i, count, x);
            square += x * x;
        };
        rho[t] = 1.0f / std::sqrt(sum(square) / width + s.norm_eps);
    }
    int row = 0;
    for (; row + 6 <= n; row += 6)
        project_rows<N, 6>(v, fn + int64_t(row) * width, rho, raw + row, n, width);
    for (; row < n; row++)
        project_rows<N, 1>(v, fn + int64_t(row) * width, rho, raw + row, n, width);
}

// The logits of the mixing matrix of a few tokens, one per lane; lanes without a token are 0.
INLINE void mix_logits(const float* raw, int64_t count, const float* base, const float* scale,
                       Floats* a, const Shape& s) {
    const int m = s.streams, n = s.coefficients();
    for (int i = 0; i < m * m; i++) {
        a[i] = Floats{};
        for (int64_t t = 0; t < count; t++)
            a[i][t] = raw[t * n + 2 * m + i] * scale[2] + base[2 * m + i];
    }
}

template <int M, typename T>
INLINE void connect(int64_t low, int64_t high, const T* streams, const float* fn,
                          const float* base, const float* scale, T* x, float* post, float* mix,
                          float* raw, float* rho, const Shape& s) {
    const int m = M ? M : s.streams, c = s.channels, n = s.coefficients();
    for (int64_t group = low; group < high; group += LANES) {
        const int64_t count = std::min<int64_t>(LANES, high - group);
        int64_t done = group;
        for (; done + TOKENS <= group + count; done += TOKENS)
            project<TOKENS>(streams + done * s.width(), fn, raw + done * n, rho + done, s);
        for (; done < group + count; done++)
            project<1>(streams + done * s.width(), fn, raw + done * n, rho + done, s);
        for (int64_t t = group; t < group + count; t++) {
            const T* v = streams + t * s.width();
            const float* r = raw + t * n;
            float pre[MAX_STREAMS];
            for (int j = 0; j < m; j++) {
                pre[j] = sigmoid(r[j] * scale[0] + base[j]) + s.hc_eps;
                post[t * m + j] = 2 * sigmoid(r[m + j] * scale[1] + base[m + j]);
            }
            FOR_LANES(i, lanes, c) {
                Floats total = {}, part;
                for (int j = 0; j < m; j++) {
                    load_lanes(v + j * c + i, lanes, part);
                    total += part * pre[j];
                }
                store_lanes(x + t * c + i, lanes, total);
            };
        }
        Floats a[MAX_STREAMS * MAX_STREAMS];
        mix_logits(raw + group * n, count, base, scale, a, s);
        sinkhorn(a, m, s, nullptr);
        for (int64_t t = 0; t < count; t++)
            for (int i = 0; i < m * m; i++) mix[(group + t) * m * m + i] = a[i][t];
    }
}

// The gradient of the streams of N tokens: from `write`, through the sub-layer's input, through rho and
// through the coefficients.
template <int M, int N, typename T>
INLINE void spread(const T* v, const float* fn, const float* product, const float (*pre)[MAX_STREAMS],
                   const float* through_rho, const T* grad_x, const T* grad_through, T* grad_streams,
                   const Shape& s) {
    const int m = M ? M : s.streams, c = s.channels, n = (2 + m) * m, width = m * c;
    for (int j = 0; j < m; j++) FOR_LANES(i, lanes, c) {
            Floats total[N], part;
            for (int t = 0; t < N; t++) {
                const int64_t at = int64_t(t) * width + j * c + i;
                load_lanes(v + at, lanes, part);
                load_lanes(grad_through + at, lanes, total[t]);
                total[t] += part * through_rho[t];
                load_lanes(grad_x + int64_t(t) * c + i, lanes, part);
                total[t] += part * pre[t][j];
            }
            for (int k = 0; k < n; k++) {
                load_lanes(fn + int64_t(k) * width + j * c + i, lanes, part);
                for (int t = 0; t < N; t++) total[t] += part * product[t * n + k];
            }
            for (int t = 0; t < N; t++)
                store_lanes(grad_streams + int64_t(t) * width + j * c + i, lanes, total[t]);
        };
}

// grad_z[n] is the gradient of the pre-activations raw * scale + base; grad_raw that of <v, fn_n>.
template <int M, typename T>
INLINE void connect_backward(int64_t low, int64_t high, const T* streams, const float* fn,
                                   const float* base, const float* scale, const float* raw,
                                   const float* rho, const T* grad_x, const float* grad_post,
                                   const float* grad_mix, const T* grad_through, T* grad_streams,
                                   float* grad_z, float* grad_product, const Shape& s) {
    const int m = M ? M : s.streams, c = s.channels, n = s.coefficients(), width = s.width();
    thread_local static Trace trace;
    for (int64_t group = low; group < high; group += LANES) {
        const int64_t count = std::min<int64_t>(LANES, high - group);
        Floats a[MAX_STREAMS * MAX_STREAMS], g[MAX_STREAMS * MAX_STREAMS];
        mix_logits(raw + group * n, count, base, scale, a, s);
        sinkhorn(a, m, s, &trace);
        for (int i = 0; i < m * m; i++) {
            g[i] = Floats{};
            for (int64_t t = 0; t < count; t++) g[i][t] = grad_mix[(group + t) * m * m + i];
        }
        sinkhorn_backward(g, m, s, trace);
        float pre[LANES][MAX_STREAMS], through_rho[LANES];
        for (int64_t t = group; t < group + count; t++) {
            const T* v = streams + t * width;
            const T* gx = grad_x + t * c;
            const float* r = raw + t * n;
            float* z = grad_z + t * n;
            for (int j = 0; j < m; j++) {
                Floats dot = {}, left, right;
                FOR_LANES(i, lanes, c) {
                    load_lanes(gx + i, lanes, left);
                    load_lanes(v + j * c + i, lanes, right);
                    dot += left * right;
                };
                const float open = sigmoid(r[j] * scale[0] + base[j]);
                const float gate = sigmoid(r[m + j] * scale[1] + base[m + j]);
                pre[t - group][j] = open + s.hc_eps;
                z[j] = sum(dot) * open * (1 - open);
                z[m + j] = grad_post[t * m + j] * 2 * gate * (1 - gate);
            }
            for (int i = 0; i < m * m; i++) z[2 * m + i] = g[i][t - group];
            float* product = grad_product + t * n;
            float back = 0;
            for (int i = 0; i < n; i++) {
                const float grad_raw = z[i] * scale[i < m ? 0 : i < 2 * m ? 1 : 2];
                product[i] = grad_raw * rho[t];
                back += grad_raw * r[i];
            }
            through_rho[t - group] = back * -rho[t] * rho[t] / width;
        }
        int64_t done = group;
        for (; done + TOKENS <= group + count; done += TOKENS)
            spread<M, TOKENS>(streams + done * width, fn, grad_product + done * n,
                              pre + (done - group), through_rho + (done - group), grad_x + done * c,
                              grad_through + done * width, grad_streams + done * width, s);
        for (; done < group + count; done++)
            spread<M, 1>(streams + done * width, fn, grad_product + done * n, pre + (done - group),
                         through_rho + (done - group), grad_x + done * c,
                         grad_through + done * width, grad_streams + done * width, s);
    }
}

// ---------------------------------------------------------------------------------------------
// write: the sub-layer's output into the mixed streams

template <int M, typename T>
INLINE void write(int64_t low, int64_t high, const T* streams, const T* output,
                        const float* post, const float* mix, T* result, const Shape& s) {
    const int m = M ? M : s.streams, c = s.channels;
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

template <int M, typename T>
INLINE void write_backward(int64_t low, int64_t high, const T* streams, const T* output,
                                 const float* post, const float* mix, const T* grad,
                                 T* grad_streams, T* grad_output, float* grad_post,
                                 float* grad_mix, const Shape& s) {
    const int m = M ? M : s.streams, c = s.channels;
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

// With four streams, as in V4, the count is a compile-time constant, so that sums stay in registers.

template <typename T>
void hyper_connect(int64_t low, int64_t high, const T* streams, const float* fn, const float* base, const float* scale, T* x, float* post, float* mix, float* raw, float* rho, const Shape& s) {
    s.streams == 4 ? connect<4>(low, high, streams, fn, base, scale, x, post, mix, raw, rho, s) : connect<0>(low, high, streams, fn, base, scale, x, post, mix, raw, rho, s);
}

template <typename T>
void hyper_connect_backward(int64_t low, int64_t high, const T* streams, const float* fn, const float* base, const float* scale, const float* raw, const float* rho, const T* grad_x, const float* grad_post, const float* grad_mix, const T* grad_through, T* grad_streams, float* grad_z, float* grad_product, const Shape& s) {
    s.streams == 4 ? connect_backward<4>(low, high, streams, fn, base, scale, raw, rho, grad_x, grad_post, grad_mix, grad_through, grad_streams, grad_z, grad_product, s) : connect_backward<0>(low, high, streams, fn, base, scale, raw, rho, grad_x, grad_post, grad_mix, grad_through, grad_streams, grad_z, grad_product, s);
}

template <typename T>
void hyper_write(int64_t low, int64_t high, const T* streams, const T* output, const float* post, const float* mix, T* result, const Shape& s) {
    s.streams == 4 ? write<4>(low, high, streams, output, post, mix, result, s) : write<0>(low, high, streams, output, post, mix, result, s);
}

template <typename T>
void hyper_write_backward(int64_t low, int64_t high, const T* streams, const T* output, const float* post, const float* mix, const T* grad, T* grad_streams, T* grad_output, float* grad_post, float* grad_mix, const Shape& s) {
    s.streams == 4 ? write_backward<4>(low, high, streams, output, post, mix, grad, grad_streams, grad_output, grad_post, grad_mix, s) : write_backward<0>(low, high, streams, output, post, mix, grad, grad_streams, grad_output, grad_post, grad_mix, s);
}

#endif
