// Hyper-connections for inference: the formulas of ops/hyper_connection.py on bfloat16 streams.
//
// The projection reads the largest float32 parameter of a layer, so its rows are distributed over the
// threads even for one token. The bits of a token do not depend on the other tokens: sums are accumulated
// per token and row in a fixed order, and the rest is computed with one token per lane.

#define KERNELS "inference/hyper.cpp"
#ifndef TARGET

#include <algorithm>

#include "network.h"

constexpr int MAX_STREAMS = 8;
constexpr int64_t TOKENS = 4, ROWS = 4;  // of a projection, at a time
constexpr int64_t SIDE_BY_SIDE = 16;     // tokens
constexpr int64_t AHEAD = 512;           // prefetch distance in numbers, with the non-temporal hint

#include "../each_target.h"

Connection connect(const Work& work, const BFloat16* streams, const HyperConnection& hc,
                   const Vector& norm) {
    const Network& net = work.net;
    const int64_t m = net.streams, c = net.channels, n = (2 + m) * m, width = m * c;
    Connection by{work.arena.take<BFloat16>(work.count * c), work.arena.take<float>(work.count * m),
                  work.arena.take<float>(work.count * m * m)};
    Scope scope(work.arena);
    float* raw = work.arena.take<float>(work.count * n);
    const float* weight = norm.floats(c, work.arena.take<float>(c));
    float* x = work.arena.take<float>(work.count * c);
    const int64_t groups = (n + ROWS - 1) / ROWS, blocks = (work.count + TOKENS - 1) / TOKENS;
    parallel_for(groups * blocks, std::max<int64_t>(1, std::min(groups, blocks * groups / 8)),
                 work.threads, [&](int64_t low, int64_t high) {
        for (int64_t i = low; i < high; i++) {
            const int64_t token = i / groups * TOKENS, row = i % groups * ROWS;
            CALL(project_some, streams + token * width, std::min(TOKENS, work.count - token),
                 hc.fn + row * width, std::min(ROWS, n - row), width, raw + token * n + row, n);
        }
    });
    parallel_for(work.count, SIDE_BY_SIDE, work.threads, [&](int64_t low, int64_t high) {
        CALL(coefficients, net, hc, streams + low * width, raw + low * n, high - low, x + low * c,
             by.post + low * m, by.mix + low * m * m);
        for (int64_t t = low; t < high; t++)
            rms_norm(x + t * c, c, weight, float(net.norm_eps), by.x + t * c);
    });
    return by;
}

void write_back(const Work& work, BFloat16* streams, const Connection& by,
                const BFloat16* output) {
    const int64_t m = work.net.streams, c = work.net.channels;
    parallel_for(work.count, SIDE_BY_SIDE, work.threads, [&](int64_t low, int64_t high) {
        CALL(write_rows, streams + low * m * c, output + low * c, by.post + low * m,
             by.mix + low * m * m, high - low, int(m), c);
    });
}

void collapse(const Network& net, const HyperConnection& hc, const Vector& norm, const BFloat16* streams,
              const int64_t* rows, int64_t count, BFloat16* out, int threads) {
    thread_local static Arena arena;
    Scope scope(arena);
    const float* weight = norm.floats(net.channels, arena.take<float>(net.channels));
    const int64_t width = net.streams * net.channels;
    parallel_for(count, 8, threads, [&](int64_t low, int64_t high) {
        thread_local static Arena own;
        Scope inner(own);
        float* x = own.take<float>(net.channels);
        for (int64_t i = low; i < high; i++)
            CALL(collapse_row, net, hc, streams + (rows != nullptr ? rows[i] : i) * width, weight,
                 out + i * net.channels, x);
    });
}

#else

namespace {

static_assert(SIDE_BY_SIDE % LANES == 0, "one token per lane");

using Matrix = Floats[MAX_STREAMS * MAX_STREAMS];  // one matrix per lane

INLINE void normalise(Matrix& a, int m, bool rows, float eps) {
    for (int i = 0; i < m; i++) {
        Floats total = {};
        for (int j = 0; j < m; j++) total += a[rows ? i * m + j : j * m + i];
        const Floats factor = 1.0f / (total + eps);
        for (int j = 0; j < m; j++) a[rows ? i * m + j : j * m + i] *= factor;
    }
}

INLINE void sinkhorn(Matrix& a, int m, int iterations, float eps) {
    for (int i = 0; i < m; i++) {
        Floats top = a[i * m], total = {};
        for (int j = 1; j < m; j++) top = larger(top, a[i * m + j]);
        for (int j = 0; j < m; j++) total += a[i * m + j] = exp(a[i * m + j] - top);
        for (int j = 0; j < m; j++) a[i * m + j] = a[i * m + j] / total + eps;
    }
    for (int step = 0; step < 2 * iterations - 1; step++) normalise(a, m, step % 2 == 1, eps);
}

// raw[t][r] = <v_t, fn_r> for a few tokens and rows, as independent sums.
template <int T, int R>
INLINE void project(const BFloat16* v, const float* fn, int64_t width, float* raw, int64_t stride) {
    Floats total[T][R] = {};
    for (int64_t i = 0; i < width; i += LANES) {
        Floats row[R], x;
        for (int r = 0; r < R; r++) {
            __builtin_prefetch(fn + r * width + i + AHEAD, 0, 0);
            load(fn + r * width + i, row[r]);
        }
        for (int t = 0; t < T; t++) {
            load(v + t * width + i, x);
            for (int r = 0; r < R; r++) total[t][r] += x * row[r];
        }
    }
    for (int t = 0; t < T; t++)
        for (int r = 0; r < R; r++) raw[t * stride + r] = sum(total[t][r]);
}

void project_some(const BFloat16* v, int64_t tokens, const float* fn, int64_t rows,
                  int64_t width, float* raw, int64_t stride) {
    if (tokens == TOKENS && rows == ROWS) {
        project<TOKENS, ROWS>(v, fn, width, raw, stride);
        return;
    }
    for (int64_t t = 0; t < tokens; t++) {
        float* to = raw + t * stride;
        if (rows == ROWS)
            project<1, ROWS>(v + t * width, fn, width, to, stride);
        else
            for (int64_t r = 0; r < rows; r++)
                project<1, 1>(v + t * width, fn + r * width, width, to + r, stride);
    }
}

INLINE float mean_square(const BFloat16* v, int64_t width) {
    Floats square = {};
    for (int64_t i = 0; i < width; i += LANES) {
        Floats x;
        load(v + i, x);
        square += x * x;
    }
    return sum(square) / width;
}

// sum_j pre_j stream_j as float32, rounded to bfloat16 as in the reference.
INLINE void read(const BFloat16* v, const float* pre, int m, int64_t c, float* x) {
    for (int64_t i = 0; i < c; i += LANES) {
        Floats total = {}, part;
        for (int j = 0; j < m; j++) {
            load(v + j * c + i, part);
            total += part * pre[j];
        }
        BFloat16 near[LANES];
        store(near, total);
        load(near, total);
        store(x + i, total);
    }
}

// Coefficient i of a few tokens, one per lane, before its activation function.
INLINE Floats logit(const float* raw, int64_t count, const Floats& rho, const HyperConnection& hc,
                    int m, int i) {
    const int n = (2 + m) * m;
    float lanes[LANES] = {};
    for (int64_t t = 0; t < count; t++) lanes[t] = raw[t * n + i];
    Floats value;
    load(lanes, value);
    return value * rho * hc.scale[i < m ? 0 : i < 2 * m ? 1 : 2] + hc.base[i];
}

// Coefficients from raw projections and the sub-layer's input, for a few tokens, one per lane.
INLINE void some_coefficients(const Network& net, const HyperConnection& hc, const BFloat16* v,
                              const float* raw, int64_t count, float* x, float* post, float* mix) {
    const int m = int(net.streams);
    const int64_t width = m * net.channels;
    float factor[LANES] = {};
    for (int64_t t = 0; t < count; t++)
        factor[t] = 1.0f / std::sqrt(mean_square(v + t * width, width) + float(net.norm_eps));
    Floats rho;
    load(factor, rho);
    float pre[LANES][MAX_STREAMS];
    for (int j = 0; j < m; j++) {
        float open[LANES], gate[LANES];
        store(open, sigmoid(logit(raw, count, rho, hc, m, j)) + float(net.hc_eps));
        store(gate, 2 * sigmoid(logit(raw, count, rho, hc, m, m + j)));
        for (int64_t t = 0; t < count; t++) {
            pre[t][j] = open[t];
            post[t * m + j] = gate[t];
        }
    }
    Matrix a;
    for (int i = 0; i < m * m; i++) a[i] = logit(raw, count, rho, hc, m, 2 * m + i);
    sinkhorn(a, m, int(net.iterations), float(net.hc_eps));
    for (int i = 0; i < m * m; i++) {
        float lanes[LANES];
        store(lanes, a[i]);
        for (int64_t t = 0; t < count; t++) mix[t * m * m + i] = lanes[t];
    }
    for (int64_t t = 0; t < count; t++)
        read(v + t * width, pre[t], m, net.channels, x + t * net.channels);
}

void coefficients(const Network& net, const HyperConnection& hc, const BFloat16* v,
                  const float* raw, int64_t count, float* x, float* post, float* mix) {
    const int64_t m = net.streams, c = net.channels;
    for (int64_t t = 0; t < count; t += LANES)
        some_coefficients(net, hc, v + t * m * c, raw + t * (2 + m) * m, std::min<int64_t>(LANES, count - t),
                          x + t * c, post + t * m, mix + t * m * m);
}

void write_rows(BFloat16* v, const BFloat16* output, const float* post, const float* mix,
                int64_t count, int m, int64_t c) {
    for (int64_t t = 0; t < count; t++, v += m * c, output += c, post += m, mix += m * m)
        for (int64_t i = 0; i < c; i += LANES) {
            Floats from[MAX_STREAMS], out;
            for (int j = 0; j < m; j++) load(v + j * c + i, from[j]);
            load(output + i, out);
            for (int k = 0; k < m; k++) {
                Floats total = out * post[k];
                for (int j = 0; j < m; j++) total += from[j] * mix[j * m + k];
                store(v + k * c + i, total);
            }
        }
}

void collapse_row(const Network& net, const HyperConnection& hc, const BFloat16* v, const float* norm,
                  BFloat16* out, float* x) {
    const int m = int(net.streams);
    const int64_t width = m * net.channels;
    float pre[MAX_STREAMS], raw[MAX_STREAMS];
    project_some(v, 1, hc.fn, m, width, raw, 0);
    const float rho = 1.0f / std::sqrt(mean_square(v, width) + float(net.norm_eps));
    for (int j = 0; j < m; j++)
        pre[j] = sigmoid(all(raw[j] * rho * hc.scale[0] + hc.base[j]))[0] + float(net.hc_eps);
    read(v, pre, m, net.channels, x);
    if (norm == nullptr) return to_bfloat16(x, net.channels, out);
    rms_norm(x, net.channels, norm, float(net.norm_eps), out);
}

}  // namespace

#endif
