// `connect` of ops/hyper_connection.py and its gradient on tiles, for four bfloat16 streams.
//
// Streams are far larger than the caches, so each pass reads them from memory once and finishes a block of
// tokens while it is in the second-level cache. fn is float32: it is split into two or three bfloat16 parts
// that add up to it, with a product for each. The bits of a token do not depend on the other tokens: it is
// a row of a tile, and rows of tiles are not combined.

#include "../inference/arena.h"
#include "../inference/features.h"
#include "../parallel.h"
#include "hyper_tiles.h"

#ifdef WITH_TILES

TILES_BEGIN

namespace {

constexpr int64_t PADDED = 32;  // coefficients in two tiles: pre and post, then mix
constexpr int64_t BLOCK = 128;  // tokens whose streams and gradients stay in the second-level cache
constexpr int64_t CHUNK = 128;  // columns of a block at a time, which fit the first-level cache
constexpr int64_t RANGE = 256;  // tokens per range of a thread, with a partial sum over them

// The index of a coefficient among the padded ones.
constexpr int place(int i) { return i < GATES ? i : 16 + i - GATES; }

// x - near, the remainder after rounding to bfloat16; 0 where `near` is not finite, instead of NaN.
INLINE Floats rest(const Floats& x, const Floats& near) {
    constexpr int NOT_FINITE = 0x99;
    return _mm512_maskz_sub_ps(_knot_mask16(_mm512_fpclass_ps_mask(near, NOT_FINITE)), x, near);
}

// ---------------------------------------------------------------------------------------------
// fn as right operands

// The parts of fn, each [PADDED, width], with zero rows as padding.
void split(const float* fn, int64_t width, int parts, BFloat16* to) {
    std::fill(to, to + parts * PADDED * width, BFloat16{0});
    for (int n = 0; n < N; n++)
        for (int64_t i = 0; i < width; i += 32) {
            Floats left = _mm512_loadu_ps(fn + n * width + i), right = _mm512_loadu_ps(fn + n * width + i + 16);
            for (int part = 0; part < parts; part++) {
                const __m512i near = rounded(left, right);
                _mm512_storeu_si512(to + (part * PADDED + place(n)) * width + i, near);
                left = rest(left, first_half(near));
                right = rest(right, last_half(near));
            }
        }
}

// fn^T in three parts: for each 32 columns the tile of the first coefficients, then that of the last.
constexpr int PROJECTED = 3;
BFloat16* pack_projection(const float* fn, int64_t width, Arena& arena) {
    BFloat16* right = arena.take<BFloat16>(PROJECTED * PADDED * width);
    Scope scope(arena);
    BFloat16* parts = arena.take<BFloat16>(PROJECTED * PADDED * width);
    split(fn, width, PROJECTED, parts);
    BFloat16* to = right;
    PairRows rows;
    for (int64_t i = 0; i < width; i += 32)
        for (int64_t row = 0; row < PADDED; row += 16)
            for (int part = 0; part < PROJECTED; part++, to += TILE) {
                load_pairs(parts + (part * PADDED + row) * width + i, width, rows);
                turn(rows, to);
            }
    return right;
}

// fn in two parts: for each 32 columns the tile of the even ones, then that of the odd. (Two are enough for a
// bfloat16 result.)
constexpr int SPREAD = 2;
BFloat16* pack_spread(const float* fn, int64_t width, Arena& arena) {
    BFloat16* right = arena.take<BFloat16>(SPREAD * PADDED * width);
    Scope scope(arena);
    BFloat16* parts = arena.take<BFloat16>(SPREAD * PADDED * width);
    split(fn, width, SPREAD, parts);
    BFloat16* to = right;
    for (int64_t i = 0; i < width; i += 32)
        for (int part = 0; part < SPREAD; part++, to += 2 * TILE)
            for (int row = 0; row < 16; row++) {
                const BFloat16* from = parts + (part * PADDED + 2 * row) * width + i;
                pair(load_bits(from), load_bits(from + width), to + 32 * row, to + TILE + 32 * row);
            }
    return right;
}

// ---------------------------------------------------------------------------------------------
// connect

// 32 rows of streams times fn^T, 32 columns at a time, for each part.
INLINE void project(const BFloat16* v, int64_t width, const BFloat16* right, float* products) {
    Squares squares;
    squares.clear();
    for (int64_t i = 0; i < width; i += 32, right += 2 * PROJECTED * TILE) {
        for (int64_t row = 0; row < SPAN; row++) prefetch(v + (SPAN + row) * width + i);
        squares.accumulate(v + i, v + 16 * width + i, width, 0, right, right + PROJECTED * TILE, PROJECTED);
    }
    squares.store(products, PADDED);
}

INLINE float mean_square(const BFloat16* v, int64_t width) {
    Floats total[4] = {};
    for (int64_t i = 0; i < width; i += 128)
        for (int k = 0; k < 4; k++) {
            const __m512i bits = load_bits(v + i + 32 * k);
            add_dots(total[k], bits, bits);
        }
    return _mm512_reduce_add_ps((total[0] + total[1]) + (total[2] + total[3])) / float(width);
}

// x = sum_j pre_j stream_j
INLINE void read(const BFloat16* v, const float* pre, int64_t c, BFloat16* x) {
    for (int64_t i = 0; i < c; i += 32) {
        Apart total = {};
        for (int j = 0; j < M; j++) add(total, load_apart(v + j * c + i), pre[j]);
        store(x + i, total);
    }
}

struct Predicted {
    float *post, *mix, *raw, *rho;
};

// Coefficients of up to sixteen tokens from their products with fn, in rows of PADDED, `pre` first.
INLINE void coefficients(const float* products, int64_t count, const float* base, const float* scale,
                         const Predicted& to, float (&pre)[16][M], const Shape& s) {
    Lanes gates = {}, mix = {};
    for (int64_t t = 0; t < count; t++) {
        gates[t] = Floats(_mm512_loadu_ps(products + t * PADDED)) * to.rho[t];
        mix[t] = Floats(_mm512_loadu_ps(products + t * PADDED + 16)) * to.rho[t];
        _mm512_mask_storeu_ps(to.raw + t * N, first(GATES), gates[t]);
        _mm512_storeu_ps(to.raw + t * N + GATES, mix[t]);
    }
    transpose(gates);
    for (int j = 0; j < M; j++) {
        gates[j] = sigmoid(gates[j] * scale[0] + base[j]) + s.hc_eps;
        gates[M + j] = 2 * sigmoid(gates[M + j] * scale[1] + base[M + j]);
    }
    transpose(gates);
    transpose(mix);
    for (int i = 0; i < M * M; i++) mix[i] = mix[i] * scale[2] + base[GATES + i];
    Trace trace;
    sinkhorn(mix, s, trace);
    transpose(mix);
    for (int64_t t = 0; t < count; t++) {
        _mm_storeu_ps(pre[t], _mm512_castps512_ps128(gates[t]));
        _mm_storeu_ps(to.post + t * M, _mm512_extractf32x4_ps(gates[t], 1));
        _mm512_storeu_ps(to.mix + t * M * M, mix[t]);
    }
}

void connect(int64_t low, int64_t high, const BFloat16* streams, const BFloat16* right, const float* base,
             const float* scale, BFloat16* x, const Predicted& out, const Shape& s) {
    thread_local static Arena arena;
    Scope scope(arena);
    const int64_t c = s.channels, width = s.width();
    BFloat16* padded = arena.take<BFloat16>(SPAN * width);
    alignas(64) float products[SPAN * PADDED], pre[16][M];
    configure_tiles();
    for (int64_t t = low; t < high; t += SPAN) {
        const int64_t count = std::min(SPAN, high - t);
        const BFloat16* v = streams + t * width;
        for (int64_t i = 0; i < count; i++)
            out.rho[t + i] = 1.0f / std::sqrt(mean_square(v + i * width, width) + s.norm_eps);
        if (count < SPAN) {
            std::copy(v, v + count * width, padded);
            std::fill(padded + count * width, padded + SPAN * width, BFloat16{0});
        }
        project(count < SPAN ? padded : v, width, right, products);
        for (int64_t half = 0; half < count; half += 16) {
            const int64_t at = t + half, some = std::min<int64_t>(16, count - half);
            const Predicted to{out.post + at * M, out.mix + at * M * M, out.raw + at * N, out.rho + at};
            coefficients(products + half * PADDED, some, base, scale, to, pre, s);
            for (int64_t i = 0; i < some; i++) read(v + (half + i) * width, pre[i], c, x + (at + i) * c);
        }
    }
    release_tiles();
}

// ---------------------------------------------------------------------------------------------
// The gradient of connect

struct Given {
    const BFloat16 *streams, *grad_x, *grad_through;
    const float *base, *scale, *raw, *rho, *grad_post, *grad_mix;
};

// Sums over the tokens of a range: gradients of fn (in padded order), base and scale.
struct Sums {
    float* fn;
    Floats base[N], scale[3];
};

// Intermediate results of a group of tokens: weights of its sub-layer input and of its streams.
struct Weights {
    float pre[M][16], through_rho[16];
};

// <grad_x, stream_j> of some tokens.
INLINE void dot_with_streams(const BFloat16* v, const BFloat16* grad_x, int64_t count, int64_t c,
                             float (&dots)[16][M]) {
    for (int64_t t = 0; t < count; t++, v += M * c, grad_x += c) {
        Floats total[M] = {};
        for (int64_t i = 0; i < c; i += 32)
            for (int j = 0; j < M; j++) add_dots(total[j], load_bits(grad_x + i), load_bits(v + j * c + i));
        _mm_storeu_ps(dots[t], sums(total));
    }
}

// Up to sixteen tokens from t on: gradients of their products with fn, in rows of BLOCK tokens.
INLINE void coefficients_backward(const Given& by, int64_t t, int64_t count, const Shape& s, Sums& to,
                                  Weights& weights, float* products) {
    alignas(64) float dots[16][M];
    dot_with_streams(by.streams + t * s.width(), by.grad_x + t * s.channels, count, s.channels, dots);
    const __mmask16 some = first(count);
    const Floats rho = gather(by.rho + t, 1, some);
    Floats back = {};
    const auto hand_on = [&](int i, const Floats& raw, const Floats& grad) __attribute__((always_inline)) {
        const int kind = i < M ? 0 : i < GATES ? 1 : 2;
        to.base[i] += grad;
        to.scale[kind] += grad * raw;
        const Floats grad_raw = grad * by.scale[kind];
        back += grad_raw * raw;
        _mm512_storeu_ps(products + place(i) * BLOCK, grad_raw * rho);
    };
    for (int j = 0; j < M; j++) {
        const Floats raw = gather(by.raw + t * N + j, N, some), raw_post = gather(by.raw + t * N + M + j, N, some);
        const Floats open = sigmoid(raw * by.scale[0] + by.base[j]);
        const Floats gate = sigmoid(raw_post * by.scale[1] + by.base[M + j]);
        _mm512_storeu_ps(weights.pre[j], open + s.hc_eps);
        hand_on(j, raw, gather(dots[0] + j, M, some) * open * (1 - open));
        hand_on(M + j, raw_post, gather(by.grad_post + t * M + j, M, some) * 2 * gate * (1 - gate));
    }
    Lanes raw, mix, grad;
    Trace trace;
    for (int i = 0; i < M * M; i++) {
        raw[i] = gather(by.raw + t * N + GATES + i, N, some);
        grad[i] = gather(by.grad_mix + t * M * M + i, M * M, some);
        mix[i] = raw[i] * by.scale[2] + by.base[GATES + i];
    }
    sinkhorn(mix, s, trace);
    sinkhorn_backward(grad, mix, s, trace);
    for (int i = 0; i < M * M; i++) hand_on(GATES + i, raw[i], grad[i]);
    _mm512_storeu_ps(weights.through_rho, back * -rho * rho / float(s.width()));
}

// Gradients of the products of up to sixteen tokens, as a left operand in two parts.
INLINE void turn_products(const float* products, BFloat16* tiles) {
    Rows left, right;
    load_rows(products, BLOCK, left);
    load_rows(products + 16 * BLOCK, BLOCK, right);
    transpose16(left);
    transpose16(right);
    for (int t = 0; t < 16; t++) {
        const __m512i near = rounded(left[t], right[t]);
        _mm512_storeu_si512(tiles + 32 * t, near);
        const Floats left_rest = rest(left[t], first_half(near)), right_rest = rest(right[t], last_half(near));
        _mm512_storeu_si512(tiles + TILE + 32 * t, rounded(left_rest, right_rest));
    }
}

// The product gradients of sixteen tokens times fn, to rows of `room`: in each 32 columns the even ones come
// first. Both factors have two parts; the product of the two small parts is negligible.
INLINE void through_products(const BFloat16* products, const BFloat16* right, int64_t width, float* room) {
    if (!has_tiles()) {
        for (int64_t i = 0; i < width; i += 32, right += 2 * SPREAD * TILE)
            for (int64_t row = 0; row < 16; row += 8) {
                const BFloat16 *near = products + 32 * row, *rest = near + TILE;
                EightRows sums = {};
                add_products(near, 32, right, right + TILE, sums);
                add_products(rest, 32, right, right + TILE, sums);
                add_products(near, 32, right + 2 * TILE, right + 3 * TILE, sums);
                store_sums(sums, room + row * width + i, width);
            }
        return;
    }
    _tile_loadd(2, products, 64);
    _tile_loadd(3, products + TILE, 64);
    for (int64_t i = 0; i < width; i += 32, right += 2 * SPREAD * TILE) {
        _tile_zero(0);
        _tile_zero(1);
        _tile_loadd(4, right, 64);
        _tile_dpbf16ps(0, 2, 4);
        _tile_loadd(5, right + TILE, 64);
        _tile_dpbf16ps(1, 2, 5);
        _tile_dpbf16ps(0, 3, 4);
        _tile_dpbf16ps(1, 3, 5);
        _tile_loadd(6, right + 2 * TILE, 64);
        _tile_dpbf16ps(0, 2, 6);
        _tile_loadd(7, right + 3 * TILE, 64);
        _tile_dpbf16ps(1, 2, 7);
        _tile_stored(0, room + i, 4 * width);
        _tile_stored(1, room + i + 16, 4 * width);
    }
}

// The gradient of the streams of up to sixteen tokens: from `write`, through the sub-layer's input, through rho
// and through the coefficients. `room` holds 16 rows of streams.
INLINE void spread(const Given& by, int64_t t, int64_t count, const BFloat16* products, const BFloat16* right,
                   const Weights& weights, const Shape& s, float* room, BFloat16* grad_streams) {
    const int64_t c = s.channels, width = s.width();
    through_products(products, right, width, room);
    for (int64_t k = 0; k < count; k++)
        for (int j = 0; j < M; j++) {
            const int64_t at = (t + k) * width + j * c;
            for (int64_t i = 0; i < c; i += 32) {
                const float* through = room + k * width + j * c + i;
                prefetch(by.grad_through + at + i + 2 * width);
                prefetch(grad_streams + at + i + 2 * width);
                Apart total = load_apart(by.grad_through + at + i);
                total.even += Floats(_mm512_loadu_ps(through));
                total.odd += Floats(_mm512_loadu_ps(through + 16));
                add(total, load_apart(by.streams + at + i), weights.through_rho[k]);
                add(total, load_apart(by.grad_x + (t + k) * c + i), weights.pre[j][k]);
                store(grad_streams + at + i, total);
            }
        }
}

constexpr int64_t STEPS = BLOCK / 32;  // tiles of a block's tokens

// The product gradients of a block as left operand, with tokens as depth.
INLINE void turn_block(const float* products, BFloat16* left) {
    for (int64_t row = 0; row < PADDED; row++)
        for (int64_t step = 0; step < STEPS; step++) {
            const float* from = products + row * BLOCK + step * 32;
            _mm512_storeu_si512(left + (row / 16 * STEPS + step) * TILE + row % 16 * 32,
                                rounded(_mm512_loadu_ps(from), _mm512_loadu_ps(from + 16)));
        }
}

// out[PADDED, CHUNK] += left operand of a block times the streams of up to BLOCK tokens; in each 32 columns the
// even ones come first.
INLINE void add_outer(const BFloat16* left, const BFloat16* v, int64_t count, int64_t width, float* out) {
    alignas(64) BFloat16 right[CHUNK / 16 * STEPS * TILE];
    Squares squares;
    const int64_t depth = (count + 31) / 32 * 32;
    for (int64_t t = 0; t < depth; t += 2)
        for (int64_t i = 0; i < CHUNK; i += 32) {
            const __m512i one = t < count ? load_bits(v + t * width + i) : __m512i{};
            const __m512i two = t + 1 < count ? load_bits(v + (t + 1) * width + i) : __m512i{};
            BFloat16* to = right + i * BLOCK + 16 * t;
            pair(one, two, to, to + STEPS * TILE);
        }
    for (int64_t i = 0; i < CHUNK; i += 32) {
        const BFloat16* own = right + i * BLOCK;
        squares.load(out + i, width);
        squares.accumulate(left, left + STEPS * TILE, 32, TILE, own, own + STEPS * TILE, depth / 32);
        squares.store(out + i, width);
    }
}

// Process one range of tokens; `sums` receives its gradients of fn, base and scale.
void connect_backward(int64_t low, int64_t high, const Given& by, const BFloat16* right, BFloat16* grad_streams,
                      float* sums, const Shape& s) {
    thread_local static Arena arena;
    Scope scope(arena);
    const int64_t width = s.width();
    Sums total = {arena.take<float>(PADDED * width), {}, {}};
    std::fill(total.fn, total.fn + PADDED * width, 0.0f);
    float* room = arena.take<float>(16 * width);
    alignas(64) float products[PADDED * BLOCK];
    alignas(64) BFloat16 left[2 * TILE], turned[BLOCK * PADDED];
    Weights weights;
    configure_tiles();
    for (int64_t t = low; t < high; t += BLOCK) {
        const int64_t count = std::min(BLOCK, high - t);
        std::fill(products, products + PADDED * BLOCK, 0.0f);
        for (int64_t k = 0; k < count; k += 16) {
            const int64_t some = std::min<int64_t>(16, count - k);
            coefficients_backward(by, t + k, some, s, total, weights, products + k);
            turn_products(products + k, left);
            spread(by, t + k, some, left, right, weights, s, room, grad_streams);
        }
        turn_block(products, turned);
        for (int64_t i = 0; i < width; i += CHUNK)
            add_outer(turned, by.streams + t * width + i, count, width, total.fn + i);
    }
    release_tiles();
    // Interleave even and odd columns again.
    const __m512i lower = _mm512_set_epi32(23, 7, 22, 6, 21, 5, 20, 4, 19, 3, 18, 2, 17, 1, 16, 0);
    const __m512i upper = _mm512_add_epi32(lower, _mm512_set1_epi32(8));
    for (int n = 0; n < N; n++, sums += width)
        for (int64_t i = 0; i < width; i += 32) {
            const float* from = total.fn + place(n) * width + i;
            const __m512 even = _mm512_loadu_ps(from), odd = _mm512_loadu_ps(from + 16);
            _mm512_storeu_ps(sums + i, _mm512_permutex2var_ps(even, lower, odd));
            _mm512_storeu_ps(sums + i + 16, _mm512_permutex2var_ps(even, upper, odd));
        }
    for (int i = 0; i < N; i++) *sums++ = sum(total.base[i]);
    for (int i = 0; i < 3; i++) *sums++ = sum(total.scale[i]);
}

}  // namespace

TILES_END

#endif

extern "C" {

// True if the kernels below and in write_tiles.cpp can run: four streams whose channels fill whole tiles.
int train_connect_serves([[maybe_unused]] int streams, [[maybe_unused]] int channels) {
#ifdef WITH_TILES
    return has_pairs() && streams == M && channels % 32 == 0;
#else
    return 0;
#endif
}

#ifdef WITH_TILES

void train_connect(const Shape* shape, int threads, const BFloat16* streams, const float* fn, const float* base,
                   const float* scale, BFloat16* x, float* post, float* mix, float* raw, float* rho) {
    thread_local static Arena arena;
    Scope scope(arena);
    const BFloat16* right = pack_projection(fn, shape->width(), arena);
    parallel_for(shape->tokens, RANGE, threads, [&](int64_t low, int64_t high) {
        connect(low, high, streams, right, base, scale, x, {post, mix, raw, rho}, *shape);
    });
}

// `sums` receives, for each RANGE of tokens, partial gradients of fn, base and scale, in this order.
void train_connect_backward(const Shape* shape, int threads, const BFloat16* streams, const float* fn,
                            const float* base, const float* scale, const float* raw, const float* rho,
                            const BFloat16* grad_x, const float* grad_post, const float* grad_mix,
                            const BFloat16* grad_through, BFloat16* grad_streams, float* sums) {
    thread_local static Arena arena;
    Scope scope(arena);
    const Given given{streams, grad_x, grad_through, base, scale, raw, rho, grad_post, grad_mix};
    const BFloat16* right = pack_spread(fn, shape->width(), arena);
    const int64_t size = N * (shape->width() + 1) + 3;
    parallel_for(shape->tokens, RANGE, threads, [&](int64_t low, int64_t high) {
        connect_backward(low, high, given, right, grad_streams, sums + low / RANGE * size, *shape);
    });
}

#endif
}
