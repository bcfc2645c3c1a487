// Building blocks of hyper-connections for training on tiles: bfloat16 streams, and the coefficients of sixteen
// tokens, one per lane. There are four streams, whose channels fill whole tiles.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstring>

#include "../hyper_connection.h"
#include "blocks.h"

#ifdef WITH_TILES

TILES_BEGIN

namespace {

#define LEVEL 4
#include "../numbers.h"
#undef LEVEL

constexpr int M = 4, GATES = 2 * M, N = GATES + M * M;  // streams; coefficients: pre and post, mix

// ---------------------------------------------------------------------------------------------
// 32 bfloat16 numbers at a time, split into even and odd positions, which is cheapest

struct Apart {
    Floats even, odd;
};

INLINE __m512i load_bits(const BFloat16* from) { return _mm512_loadu_si512(from); }
INLINE Apart load_apart(const BFloat16* from) {
    const __m512i bits = load_bits(from), high = _mm512_set1_epi32(0xffff0000);
    return {_mm512_castsi512_ps(_mm512_slli_epi32(bits, 16)), _mm512_castsi512_ps(_mm512_and_si512(bits, high))};
}
INLINE void store(BFloat16* to, const Apart& x) {
    const __m512i index = _mm512_set_epi16(31, 15, 30, 14, 29, 13, 28, 12, 27, 11, 26, 10, 25, 9, 24, 8,
                                           23, 7, 22, 6, 21, 5, 20, 4, 19, 3, 18, 2, 17, 1, 16, 0);
    _mm512_storeu_si512(to, _mm512_permutexvar_epi16(index, rounded(x.even, x.odd)));
}
INLINE void add(Apart& total, const Apart& x, float by) {
    total.even += x.even * by;
    total.odd += x.odd * by;
}

// Prefetch 64 bytes of the next tokens into the second-level cache while the current ones are processed. No
// effect beyond the last token.
INLINE void prefetch(const void* from) { _mm_prefetch(from, _MM_HINT_T1); }

// Interleave two rows: of the even columns, and of the odd ones.
INLINE void pair(__m512i one, __m512i two, BFloat16* even, BFloat16* odd) {
    constexpr __mmask32 second = 0xaaaaaaaa;
    _mm512_storeu_si512(even, _mm512_mask_blend_epi16(second, one, _mm512_slli_epi32(two, 16)));
    _mm512_storeu_si512(odd, _mm512_mask_blend_epi16(second, _mm512_srli_epi32(one, 16), two));
}

// total += <a, b> of each pair of neighbouring numbers; the products are exact.
INLINE void add_dots(Floats& total, __m512i a, __m512i b) {
    total = _mm512_dpbf16_ps(total, __m512bh(a), __m512bh(b));
}

// The sums of four vectors.
INLINE __m128 sums(const Floats (&x)[4]) {
    const __m512 a = _mm512_unpacklo_ps(x[0], x[1]) + _mm512_unpackhi_ps(x[0], x[1]);
    const __m512 b = _mm512_unpacklo_ps(x[2], x[3]) + _mm512_unpackhi_ps(x[2], x[3]);
    const __m512 c = _mm512_shuffle_ps(a, b, 0x44) + _mm512_shuffle_ps(a, b, 0xee);
    const __m256 d = _mm512_castps512_ps256(c) + _mm512_extractf32x8_ps(c, 1);
    return _mm256_castps256_ps128(d) + _mm256_extractf128_ps(d, 1);
}

// ---------------------------------------------------------------------------------------------
// Sixteen tokens at a time, one per lane

using Lanes = Floats[16];  // one number, or one matrix element, of each token

// A mask of up to sixteen lanes.
INLINE __mmask16 first(int64_t count) { return __mmask16((1u << count) - 1); }

// Load one number of each token from rows `stride` apart; 0 for missing tokens.
INLINE Floats gather(const float* from, int stride, __mmask16 some) {
    const __m512i lane = _mm512_set_epi32(15, 14, 13, 12, 11, 10, 9, 8, 7, 6, 5, 4, 3, 2, 1, 0);
    return _mm512_mask_i32gather_ps(Floats{}, some, _mm512_mullo_epi32(lane, _mm512_set1_epi32(stride)), from, 4);
}

INLINE void transpose(Lanes& x) {
    Rows rows;
    for (int i = 0; i < 16; i++) rows[i] = x[i];
    transpose16(rows);
    for (int i = 0; i < 16; i++) x[i] = rows[i];
}

INLINE Floats reciprocal(const Floats& x) {  // within one unit in the last place
    const Floats near = _mm512_rcp14_ps(x);
    return near * (2.0f - x * near);
}

// What the gradient of Sinkhorn needs: the softmax, and the divisors of rows or columns in each step. The
// intermediate matrices, which ../sinkhorn.h stores, are recomputed from these: all fits the first-level cache.
struct Trace {
    Lanes soft;
    Floats total[2 * MAX_ITERATIONS][M];
};

template <bool ROWS>
INLINE void normalise(Lanes& a, Floats (&total)[M], float eps) {
    constexpr int line = ROWS ? M : 1, step = ROWS ? 1 : M;
    for (int i = 0; i < M; i++) {
        Floats* x = a + i * line;
        total[i] = ((x[0] + x[step]) + (x[2 * step] + x[3 * step])) + eps;
        const Floats factor = reciprocal(total[i]);
        for (int j = 0; j < M; j++) x[j * step] *= factor;
    }
}

INLINE void sinkhorn(Lanes& a, const Shape& s, Trace& trace) {
    for (int i = 0; i < M; i++) {
        Floats* x = a + i * M;
        const Floats top = larger(larger(x[0], x[1]), larger(x[2], x[3]));
        Floats total = {};
        for (int j = 0; j < M; j++) total += x[j] = exp(x[j] - top);
        for (int j = 0; j < M; j++) {
            trace.soft[i * M + j] = x[j] / total;
            x[j] = trace.soft[i * M + j] + s.hc_eps;
        }
    }
    normalise<false>(a, trace.total[0], s.hc_eps);  // the first and the last step normalise columns
    for (int step = 1; step < 2 * s.iterations - 1; step += 2) {
        normalise<true>(a, trace.total[step], s.hc_eps);
        normalise<false>(a, trace.total[step + 1], s.hc_eps);
    }
}

// Backward through b = a / total, total = sum(a) + eps: with h = b * grad(b), a * grad(a) is h - b * sum(h). a is
// recomputed from b.
template <bool ROWS>
INLINE void normalise_backward(Lanes& h, Lanes& b, const Floats (&total)[M]) {
    constexpr int line = ROWS ? M : 1, step = ROWS ? 1 : M;
    for (int i = 0; i < M; i++) {
        Floats *x = b + i * line, *g = h + i * line;
        const Floats dot = (g[0] + g[step]) + (g[2 * step] + g[3 * step]);
        for (int j = 0; j < M; j++) {
            g[j * step] -= dot * x[j * step];
            x[j * step] *= total[i];
        }
    }
}

// The gradient of the logits, from the matrix and its gradient.
INLINE void sinkhorn_backward(Lanes& g, Lanes& a, const Shape& s, const Trace& trace) {
    for (int i = 0; i < M * M; i++) g[i] *= a[i];
    for (int step = 2 * s.iterations - 2; step > 0; step -= 2) {
        normalise_backward<false>(g, a, trace.total[step]);
        normalise_backward<true>(g, a, trace.total[step - 1]);
    }
    normalise_backward<false>(g, a, trace.total[0]);
    for (int i = 0; i < M; i++) {
        Floats* x = g + i * M;
        const Floats* soft = trace.soft + i * M;
        for (int j = 0; j < M; j++) x[j] *= soft[j] / (soft[j] + s.hc_eps);
        const Floats dot = (x[0] + x[1]) + (x[2] + x[3]);
        for (int j = 0; j < M; j++) x[j] -= soft[j] * dot;
    }
}

}  // namespace

TILES_END

#endif
