// `connect` of ops/hyper_connection.py and its gradient on tiles, for four streams of bfloat16.
//
// Sixteen tokens at a time: their products with fn are one row of tiles, and what is done with the
// coefficients is done with a token per lane. fn is float32 and goes into its product as two numbers
// of bfloat16, which leaves 16 bits of it; bfloat16 streams are exact. The gradient through fn is
// multiplied as bfloat16, like those of all linear maps.
//
// The values between the two passes are kept by groups: raw[group][coefficient][lane].

#include "../hyper_connection.h"
#include "../parallel.h"
#include "blocks.h"

#ifdef WITH_TILES

#include <algorithm>
#include <cmath>
#include <cstring>

#include "../inference/arena.h"
#include "../inference/features.h"

#pragma GCC push_options
#pragma GCC target("avx512f,avx512bw,avx512dq,avx512vl,avx512vbmi,avx512bf16,amx-tile,amx-bf16")

namespace {

#include "../numbers.h"
#include "../sinkhorn.h"

constexpr int M = 4;                // streams
constexpr int N = (2 + M) * M;      // coefficients: pre, post, mix
constexpr int64_t GROUP = 16;       // tokens, one per lane
constexpr int64_t RANGE = 64;       // tokens whose gradients of base and scale are added up
constexpr int64_t HALVES = 2 * N;   // columns of the product: leading and remaining parts of fn

// fn as the right operand of the forward product: by 32 channels, three tiles of its two halves.
void pack_forward(const float* fn, int64_t width, BFloat16* right) {
    for (int64_t k = 0; k < width; k++)
        for (int64_t n = 0; n < N; n++) {
            const float whole = fn[n * width + k], leading = rounded(whole);
            for (int64_t half = 0; half < 2; half++) {
                const int64_t column = half * N + n;
                BFloat16* tile = right + (k / 32 * 3 + column / 16) * TILE;
                store_one(tile + k % 32 / 2 * 32 + column % 16 * 2 + k % 2, half == 0 ? leading : whole - leading);
            }
        }
}

// fn as the right operand of the gradient's product: by sixteen channels, one tile of all coefficients.
void pack_backward(const float* fn, int64_t width, BFloat16* right) {
    std::fill(right, right + width / 16 * TILE, BFloat16{0});
    for (int64_t n = 0; n < N; n++)
        for (int64_t k = 0; k < width; k++)
            store_one(right + k / 16 * TILE + n / 2 * 32 + k % 16 * 2 + n % 2, fn[n * width + k]);
}

INLINE Floats lanes(const float* p) {
    Floats value;
    load(p, value);
    return value;
}

// `rows` rows of sixteen numbers, as lanes: to[column] has a number of each row; missing rows are 0.
INLINE void transposed(const float* from, int64_t stride, int64_t rows, Floats* to) {
    Rows square;
    for (int i = 0; i < 16; i++) square[i] = i < rows ? _mm512_loadu_ps(from + i * stride) : _mm512_setzero_ps();
    transpose16(square);
    for (int i = 0; i < 16; i++) to[i] = Floats(square[i]);
}

// The other way: a row of sixteen numbers for each lane.
INLINE void put_transposed(const Floats* from, int64_t rows, float* to, int64_t stride) {
    Rows square;
    for (int i = 0; i < 16; i++) square[i] = __m512(from[i]);
    transpose16(square);
    for (int64_t i = 0; i < rows; i++) _mm512_storeu_ps(to + i * stride, square[i]);
}

// A group's tokens: as they lie, or where there are fewer than sixteen, with blank ones behind them.
INLINE const BFloat16* whole_group(const BFloat16* rows, int64_t count, int64_t width, BFloat16* room) {
    if (count == GROUP) return rows;
    std::copy(rows, rows + count * width, room);
    std::fill(room + count * width, room + GROUP * width, BFloat16{0});
    return room;
}

INLINE float dot(const BFloat16* a, const BFloat16* b, int64_t count) {
    __m512 sum = _mm512_setzero_ps();
    for (int64_t i = 0; i < count; i += 32)
        sum = _mm512_dpbf16_ps(sum, __m512bh(_mm512_loadu_si512(a + i)), __m512bh(_mm512_loadu_si512(b + i)));
    return _mm512_reduce_add_ps(sum);
}

// What the streams predict, before and after it is made a connection. One lane per token.
struct Coefficients {
    Floats raw[N];
    Floats open[M], gate[M];  // sigmoids of pre and post
    Floats mix[M * M];

    void derive(const float* base, const float* scale, const Shape& s, Trace* trace) {
        for (int j = 0; j < M; j++) {
            open[j] = sigmoid(raw[j] * scale[0] + base[j]);
            gate[j] = sigmoid(raw[M + j] * scale[1] + base[M + j]);
        }
        for (int i = 0; i < M * M; i++) mix[i] = raw[2 * M + i] * scale[2] + base[2 * M + i];
        sinkhorn(mix, M, s, trace);
    }
};

// <v, fn_n> * rho of a group, where rho = rsqrt(mean v^2 + eps).
void project(const BFloat16* v, int64_t width, const BFloat16* right, float eps, Floats* raw, float* rho) {
    alignas(64) float sums[GROUP * HALVES];
    _tile_zero(0);
    _tile_zero(1);
    _tile_zero(2);
    for (int64_t k = 0; k < width; k += 32, right += 3 * TILE) {
        _tile_loadd(3, v + k, 2 * width);
        _tile_loadd(4, right, 64);
        _tile_loadd(5, right + TILE, 64);
        _tile_loadd(6, right + 2 * TILE, 64);
        _tile_dpbf16ps(0, 3, 4);
        _tile_dpbf16ps(1, 3, 5);
        _tile_dpbf16ps(2, 3, 6);
    }
    _tile_stored(0, sums, 4 * HALVES);
    _tile_stored(1, sums + 16, 4 * HALVES);
    _tile_stored(2, sums + 32, 4 * HALVES);
    for (int64_t t = 0; t < GROUP; t++) rho[t] = 1.0f / std::sqrt(dot(v + t * width, v + t * width, width) / width + eps);
    Floats parts[HALVES];
    for (int64_t block = 0; block < HALVES; block += 16) transposed(sums + block, HALVES, GROUP, parts + block);
    for (int n = 0; n < N; n++) raw[n] = (parts[n] + parts[N + n]) * lanes(rho);
}

// x = sum_j pre_j * stream_j of one token.
void read(const BFloat16* v, int64_t channels, const float* pre, BFloat16* x) {
    for (int64_t i = 0; i < channels; i += 32) {
        __m512 left = _mm512_setzero_ps(), right = left;
        for (int j = 0; j < M; j++) {
            const __m512i pairs = _mm512_loadu_si512(v + j * channels + i);
            const __m512 by = _mm512_set1_ps(pre[j * GROUP]);
            left = _mm512_fmadd_ps(by, first_half(pairs), left);
            right = _mm512_fmadd_ps(by, last_half(pairs), right);
        }
        _mm512_storeu_si512(x + i, rounded(left, right));
    }
}

void connect(int64_t low, int64_t high, const BFloat16* streams, const BFloat16* right, const float* base,
             const float* scale, BFloat16* x, float* post, float* mix, float* raw, float* rho, const Shape& s) {
    thread_local static Arena arena;
    Scope scope(arena);
    const int64_t c = s.channels, width = M * c;
    BFloat16* room = arena.take<BFloat16>(GROUP * width);
    configure_tiles();
    for (int64_t group = low; group < high; group += GROUP) {
        const int64_t count = std::min(GROUP, high - group);
        const BFloat16* v = whole_group(streams + group * width, count, width, room);
        Coefficients by;
        alignas(64) float norms[GROUP], pre[M * GROUP];
        project(v, width, right, s.norm_eps, by.raw, norms);
        std::copy(norms, norms + count, rho + group);
        for (int n = 0; n < N; n++) store(raw + group * N + n * GROUP, by.raw[n]);
        by.derive(base, scale, s, nullptr);
        for (int j = 0; j < M; j++) {
            store(pre + j * GROUP, by.open[j] + s.hc_eps);
            for (int64_t t = 0; t < count; t++) post[(group + t) * M + j] = 2 * by.gate[j][t];
        }
        put_transposed(by.mix, count, mix + group * M * M, M * M);
        for (int64_t t = 0; t < count; t++) read(v + t * width, c, pre + t, x + (group + t) * c);
    }
    _tile_release();
}

// What a group's streams are given: the gradient of `write`, and what goes through the sub-layer's
// input, through rho and through the coefficients, whose product with fn is made on the way.
struct Spread {
    const BFloat16 *streams, *grad_through, *grad_x;
    const float *pre, *through_rho;  // by lanes
    BFloat16* grad_streams;
};

void spread(const Spread& by, int64_t count, int64_t channels, const BFloat16* product, const BFloat16* right) {
    alignas(64) float sums[2][GROUP * 32];
    const int64_t width = M * channels;
    _tile_loadd(3, product, 64);
    for (int64_t i = 0; i < width; i += 32, right += 2 * TILE) {
        float* square = sums[i / 32 % 2];
        _tile_zero(0);
        _tile_zero(1);
        _tile_loadd(4, right, 64);
        _tile_loadd(5, right + TILE, 64);
        _tile_dpbf16ps(0, 3, 4);
        _tile_dpbf16ps(1, 3, 5);
        _tile_stored(0, square, 128);
        _tile_stored(1, square + 16, 128);
        const float* pre = by.pre + i / channels * GROUP;
        for (int64_t t = 0; t < count; t++) {
            const int64_t at = t * width + i;
            const __m512i own = _mm512_loadu_si512(by.streams + at);
            const __m512i through = _mm512_loadu_si512(by.grad_through + at);
            const __m512i input = _mm512_loadu_si512(by.grad_x + t * channels + i % channels);
            const __m512 rho = _mm512_set1_ps(by.through_rho[t]), open = _mm512_set1_ps(pre[t]);
            __m512 first = _mm512_add_ps(_mm512_load_ps(square + t * 32), first_half(through));
            __m512 last = _mm512_add_ps(_mm512_load_ps(square + t * 32 + 16), last_half(through));
            first = _mm512_fmadd_ps(rho, first_half(own), first);
            last = _mm512_fmadd_ps(rho, last_half(own), last);
            first = _mm512_fmadd_ps(open, first_half(input), first);
            last = _mm512_fmadd_ps(open, last_half(input), last);
            _mm512_storeu_si512(by.grad_streams + at, rounded(first, last));
        }
    }
}

struct Gradients {
    const BFloat16* x;
    const float *post, *mix;
    const BFloat16* through;  // of the streams that `write` was given
};

// product[t][32] is the gradient of <v, fn_n>, 0 behind the last coefficient. `partial` has, for each
// range, the gradients of base and of what scale multiplies.
void connect_backward(int64_t low, int64_t high, const BFloat16* streams, const BFloat16* right, const float* base,
                      const float* scale, const float* raw, const float* rho, const Gradients& grad,
                      BFloat16* grad_streams, BFloat16* product, float* partial, const Shape& s) {
    thread_local static Trace trace;
    const int64_t c = s.channels, width = M * c;
    Floats of_base[N] = {}, of_scale[N] = {};
    configure_tiles();
    for (int64_t group = low; group < high; group += GROUP) {
        const int64_t count = std::min(GROUP, high - group);
        const BFloat16 *v = streams + group * width, *grad_x = grad.x + group * c;
        Coefficients by;
        for (int n = 0; n < N; n++) load(raw + group * N + n * GROUP, by.raw[n]);
        by.derive(base, scale, s, &trace);
        Floats z[32] = {};
        transposed(grad.mix + group * M * M, M * M, count, z + 2 * M);
        sinkhorn_backward(z + 2 * M, M, s, trace);
        alignas(64) float norms[GROUP] = {}, dots[M][GROUP] = {}, of_post[M][GROUP] = {};
        std::copy(rho + group, rho + group + count, norms);
        for (int64_t t = 0; t < count; t++)
            for (int j = 0; j < M; j++) {
                dots[j][t] = dot(grad_x + t * c, v + t * width + j * c, c);
                of_post[j][t] = grad.post[(group + t) * M + j];
            }
        alignas(64) float pre[M * GROUP], through_rho[GROUP];
        for (int j = 0; j < M; j++) {
            z[j] = lanes(dots[j]) * by.open[j] * (1.0f - by.open[j]);
            z[M + j] = lanes(of_post[j]) * 2.0f * by.gate[j] * (1.0f - by.gate[j]);
            store(pre + j * GROUP, by.open[j] + s.hc_eps);
        }
        Floats back = {};
        for (int n = 0; n < N; n++) {
            const Floats share = z[n] * by.raw[n];
            of_base[n] += z[n];
            of_scale[n] += share;
            const float own = scale[n < M ? 0 : n < 2 * M ? 1 : 2];
            back += share * own;
            z[n] *= own * lanes(norms);
        }
        store(through_rho, back * -lanes(norms) * lanes(norms) / float(width));
        alignas(64) float halves[2][GROUP * 16];
        alignas(64) BFloat16 left[TILE];
        for (int half = 0; half < 2; half++) put_transposed(z + 16 * half, GROUP, halves[half], 16);
        for (int64_t t = 0; t < GROUP; t++)
            _mm512_store_si512(left + 32 * t, rounded(_mm512_load_ps(halves[0] + 16 * t), _mm512_load_ps(halves[1] + 16 * t)));
        std::copy(left, left + 32 * count, product + group * 32);
        spread({v, grad.through + group * width, grad_x, pre, through_rho, grad_streams + group * width}, count, c,
               left, right);
    }
    _tile_release();
    float* own = partial + low / RANGE * 2 * N;
    for (int n = 0; n < N; n++) {
        own[n] = sum(of_base[n]);
        own[N + n] = sum(of_scale[n]);
    }
}

}  // namespace

#pragma GCC pop_options

#endif

extern "C" {

// Whether the kernels below run here: four streams, whose channels fill tiles.
int train_connect_serves([[maybe_unused]] int streams, [[maybe_unused]] int channels) {
#ifdef WITH_TILES
    return has_tiles() && streams == M && channels % 32 == 0;
#else
    return 0;
#endif
}

#ifdef WITH_TILES

void train_connect(const Shape* shape, int threads, const BFloat16* streams, const float* fn, const float* base,
                   const float* scale, BFloat16* x, float* post, float* mix, float* raw, float* rho) {
    thread_local static Arena arena;
    Scope scope(arena);
    const int64_t width = M * shape->channels;
    BFloat16* right = arena.take<BFloat16>(width / 32 * 3 * TILE);
    pack_forward(fn, width, right);
    parallel_for(shape->tokens, RANGE, threads, [&](int64_t low, int64_t high) {
        connect(low, high, streams, right, base, scale, x, post, mix, raw, rho, *shape);
    });
}

void train_connect_backward(const Shape* shape, int threads, const BFloat16* streams, const float* fn,
                            const float* base, const float* scale, const float* raw, const float* rho,
                            const BFloat16* grad_x, const float* grad_post, const float* grad_mix,
                            const BFloat16* grad_through, BFloat16* grad_streams, BFloat16* product, float* partial) {
    thread_local static Arena arena;
    Scope scope(arena);
    const int64_t width = M * shape->channels;
    BFloat16* right = arena.take<BFloat16>(width / 16 * TILE);
    pack_backward(fn, width, right);
    parallel_for(shape->tokens, RANGE, threads, [&](int64_t low, int64_t high) {
        connect_backward(low, high, streams, right, base, scale, raw, rho, {grad_x, grad_post, grad_mix, grad_through},
                         grad_streams, product, partial, *shape);
    });
}

#endif
}
