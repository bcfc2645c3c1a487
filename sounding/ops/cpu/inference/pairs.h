// Sums of pairwise bfloat16 dot products, in registers of sixteen sums each.
#pragma once

#include "ahead.h"
#include "tiles.h"

#ifdef WITH_TILES

template <int R, int T>
AVX512 INLINE void clear(__m512 (&sums)[R][T]) {
#pragma GCC unroll 8  // otherwise they would be cleared in memory and loaded
    for (int r = 0; r < R; r++)
        for (int t = 0; t < T; t++) sums[r][t] = _mm512_setzero_ps();
}

AVX512 INLINE __m512bh load_pairs(const void* from) { return __m512bh(_mm512_loadu_si512(from)); }

// sums[r][t] += w_r x_t, over `columns`, a multiple of 32. For every two lines of w `ahead` prefetches two more.
template <int R, int T, typename Ahead>
AVX512 INLINE void add_products(__m512 (&sums)[R][T], const BFloat16* w, int64_t apart,
                                const BFloat16* x, int64_t between, int64_t columns, Ahead& ahead) {
    RowPointers rows(w, 2 * apart);
    for (int64_t k = 0; k < columns; k += 32, rows.advance(64)) {
        __m512bh right[T];
        for (int t = 0; t < T; t++) right[t] = load_pairs(x + t * between + k);
#pragma GCC unroll 8
        for (int r = 0; r < R; r++) {
            if (r % 2 == 0) ahead.template ask<128>();
            const __m512bh left = load_pairs(rows[r]);
            for (int t = 0; t < T; t++) sums[r][t] = _mm512_dpbf16_ps(sums[r][t], left, right[t]);
        }
    }
}

// Add up the lanes of the sums of eight rows: one result each.
template <int R, int T>
AVX512 INLINE __m256 add_lanes(const __m512 (&sums)[R][T], int row, int t) {
    __m512 two[4];  // in each 128 bits: a0 + a2, b0 + b2, a1 + a3, b1 + b3 of rows a and b
    for (int i = 0; i < 4; i++) {
        const __m512 a = sums[row + 2 * i][t], b = sums[row + 2 * i + 1][t];
        two[i] = _mm512_unpacklo_ps(a, b) + _mm512_unpackhi_ps(a, b);
    }
    __m256 four[2];
    for (int i = 0; i < 2; i++) {
        const __m512d a = _mm512_castps_pd(two[2 * i]), b = _mm512_castps_pd(two[2 * i + 1]);
        const __m512 each = _mm512_castpd_ps(_mm512_unpacklo_pd(a, b)) + _mm512_castpd_ps(_mm512_unpackhi_pd(a, b));
        four[i] = _mm512_castps512_ps256(each) + _mm512_extractf32x8_ps(each, 1);
    }
    return _mm256_permute2f128_ps(four[0], four[1], 0x20) + _mm256_permute2f128_ps(four[0], four[1], 0x31);
}

#endif
