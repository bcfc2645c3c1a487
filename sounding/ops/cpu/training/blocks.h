// Matrices in tiles of sixteen rows and 32 columns of bfloat16, and products of two by two tiles: with AMX on
// processors that have it, with pairwise bfloat16 dot products in vectors on others. Both accumulate in float32
// but in different orders, so bits differ between these processors.
//
// The tiles of a left operand are blocks of its rows, which may stay in place. A right operand is packed in
// pairs of rows: row i of a tile interleaves rows 2i and 2i + 1 of sixteen columns.
#pragma once

#include <cstring>

#include "../inference/features.h"
#include "../inference/tiles.h"

#ifdef WITH_TILES

constexpr int64_t TILE = 16 * 32;  // numbers
constexpr int64_t SPAN = 32;       // rows and columns of a product of two by two tiles

using Rows = __m512[16];
using PairRows = __m512i[16];

// Configures tiles for its lifetime; without tiles it does nothing.
TILES inline void configure_tiles() {
    const int64_t whole[8] = {16, 16, 16, 16, 16, 16, 16, 16};
    if (has_tiles()) configure_tiles(whole, whole);
}
TILES inline void release_tiles() {
    if (has_tiles()) _tile_release();
}

TILES INLINE void load_rows(const float* from, int64_t stride, Rows& rows) {
    for (int i = 0; i < 16; i++) rows[i] = _mm512_loadu_ps(from + i * stride);
}

// The first and the second half of 32 numbers.
TILES INLINE __m512 first_half(__m512i numbers) {
    return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(_mm512_castsi512_si256(numbers)), 16));
}
TILES INLINE __m512 last_half(__m512i numbers) {
    return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(_mm512_extracti64x4_epi64(numbers, 1)), 16));
}

TILES INLINE __m512i rounded(__m512 left, __m512 right) {
    return __m512i(_mm512_cvtne2ps_pbh(right, left));
}

// Rows of 32 numbers from two squares of sixteen by sixteen, side by side.
TILES INLINE void put(const Rows& left, const Rows& right, BFloat16* to, int64_t stride = 32) {
    for (int i = 0; i < 16; i++) _mm512_storeu_si512(to + stride * i, rounded(left[i], right[i]));
}

TILES INLINE void load_pairs(const BFloat16* from, int64_t stride, PairRows& rows) {
    for (int i = 0; i < 16; i++) rows[i] = _mm512_loadu_si512(from + i * stride);
}
TILES INLINE void load_pairs(const float* from, int64_t stride, PairRows& rows) {
    for (int i = 0; i < 16; i++)
        rows[i] = rounded(_mm512_loadu_ps(from + i * stride), _mm512_loadu_ps(from + i * stride + 16));
}

// Transpose sixteen rows of 32 numbers in pairs: from a left operand X to the right operand X^T.
TILES INLINE void turn(const PairRows& pairs, BFloat16* tile) {
    Rows rows;
    for (int i = 0; i < 16; i++) rows[i] = _mm512_castsi512_ps(pairs[i]);
    transpose16(rows);
    for (int i = 0; i < 16; i++) _mm512_storeu_ps(tile + 32 * i, rows[i]);
}

// Interleave two rows: of the first sixteen columns, and of the last.
TILES INLINE void interleave(__m512i even, __m512i odd, __m512i& first, __m512i& last) {
    const __m512i index = _mm512_set_epi16(47, 15, 46, 14, 45, 13, 44, 12, 43, 11, 42, 10, 41, 9, 40, 8,
                                           39, 7, 38, 6, 37, 5, 36, 4, 35, 3, 34, 2, 33, 1, 32, 0);
    first = _mm512_permutex2var_epi16(even, index, odd);
    last = _mm512_permutex2var_epi16(even, _mm512_add_epi16(index, _mm512_set1_epi16(16)), odd);
}

// Pack sixteen rows from `row` on, of a matrix [rows, columns], into its two right operands: of its transpose
// and of itself.
template <typename T>
TILES inline void pack_both(const T* from, int64_t row, int64_t rows, int64_t columns, BFloat16* turned,
                            BFloat16* straight) {
    PairRows pairs;
    for (int64_t column = 0; column < columns; column += 32) {
        load_pairs(from + column, columns, pairs);
        turn(pairs, turned + row * columns + column / 32 * TILE);
        BFloat16* first = straight + column * rows + row / 32 * TILE + 32 * (row % 32 / 2);
        BFloat16* last = first + 16 * rows;
        for (int i = 0; i < 8; i++, first += 32, last += 32) {
            __m512i one, two;
            interleave(pairs[2 * i], pairs[2 * i + 1], one, two);
            _mm512_storeu_si512(first, one);
            _mm512_storeu_si512(last, two);
        }
    }
}

// Pack rows of x as a right operand with rows as depth; zero rows fill the last tile.
TILES inline void pack_rows(const BFloat16* x, int64_t stride, int64_t rows, int64_t columns, BFloat16* right) {
    const int64_t depth = (rows + 31) / 32 * 32;
    for (int64_t row = 0; row < depth; row += 2)
        for (int64_t column = 0; column < columns; column += 32) {
            const BFloat16* from = x + row * stride + column;
            const __m512i zero = _mm512_setzero_si512();
            const __m512i even = row < rows ? _mm512_loadu_si512(from) : zero;
            const __m512i odd = row + 1 < rows ? _mm512_loadu_si512(from + stride) : zero;
            __m512i first, last;
            interleave(even, odd, first, last);
            BFloat16* to = right + column * depth + row / 32 * TILE + 32 * (row % 32 / 2);
            _mm512_storeu_si512(to, first);
            _mm512_storeu_si512(to + 16 * depth, last);
        }
}

// Pack rows of x as a left operand with rows as depth, i.e. transposed. `room` holds as many numbers.
TILES inline void turn_rows(const BFloat16* x, int64_t stride, int64_t rows, int64_t columns, BFloat16* room,
                            BFloat16* left) {
    PairRows pairs;
    pack_rows(x, stride, rows, columns, room);
    for (int64_t at = 0; at < (rows + 31) / 32 * 32 * columns; at += TILE) {
        load_pairs(room + at, 32, pairs);
        turn(pairs, left + at);
    }
}

// Eight rows of 32 sums. They take half of the registers, and are enough independent chains to hide the latency
// of a product.
using EightRows = __m512[8][2];

AVX512 INLINE void load_sums(const float* from, int64_t stride, EightRows& sums) {
    for (int i = 0; i < 8; i++)
        for (int half = 0; half < 2; half++) sums[i][half] = _mm512_loadu_ps(from + i * stride + 16 * half);
}
AVX512 INLINE void store_sums(const EightRows& sums, float* to, int64_t stride) {
    for (int i = 0; i < 8; i++)
        for (int half = 0; half < 2; half++) _mm512_storeu_ps(to + i * stride + 16 * half, sums[i][half]);
}

// sums += eight rows, `stride` numbers apart, times a tile of each of two columns.
AVX512 INLINE void add_products(const BFloat16* left, int64_t stride, const BFloat16* right, const BFloat16* right2,
                                EightRows& sums) {
    for (int64_t i = 0; i < 32; i += 2) {
        const __m512bh first = __m512bh(_mm512_loadu_si512(right + 16 * i));
        const __m512bh last = __m512bh(_mm512_loadu_si512(right2 + 16 * i));
        for (int row = 0; row < 8; row++) {
            int32_t pair;
            std::memcpy(&pair, left + row * stride + i, sizeof pair);
            const __m512bh pairs = __m512bh(_mm512_set1_epi32(pair));
            sums[row][0] = _mm512_dpbf16_ps(sums[row][0], pairs, first);
            sums[row][1] = _mm512_dpbf16_ps(sums[row][1], pairs, last);
        }
    }
}

// 32 by 32 sums in four squares: tiles 0 to 3 (so only one object may exist at a time) or, on processors without
// tiles, memory, from which eight rows at a time are loaded into registers.
class Squares {
public:
    TILES INLINE void clear() {
        if (tiles) {
            _tile_zero(0);
            _tile_zero(1);
            _tile_zero(2);
            _tile_zero(3);
        } else {
            for (int64_t i = 0; i < SPAN * SPAN; i += 16) _mm512_store_ps(numbers + i, _mm512_setzero_ps());
        }
    }

    // Load from and store to a float32 matrix.
    TILES INLINE void load(const float* from, int64_t stride) {
        if (tiles) {
            _tile_loadd(0, from, 4 * stride);
            _tile_loadd(1, from + 16, 4 * stride);
            _tile_loadd(2, from + 16 * stride, 4 * stride);
            _tile_loadd(3, from + 16 * stride + 16, 4 * stride);
        } else {
            copy(from, stride, numbers, SPAN);
        }
    }
    TILES INLINE void store(float* to, int64_t stride) const {
        if (tiles) {
            _tile_stored(0, to, 4 * stride);
            _tile_stored(1, to + 16, 4 * stride);
            _tile_stored(2, to + 16 * stride, 4 * stride);
            _tile_stored(3, to + 16 * stride + 16, 4 * stride);
        } else {
            copy(numbers, SPAN, to, stride);
        }
    }

    // += two rows of tiles (16 rows `stride` numbers apart, or consecutive tiles if `step` is TILE and `stride`
    // is 32) times two columns of tiles. `between` is called for each tile of columns.
    template <typename Between>
    TILES INLINE void accumulate(const BFloat16* left, const BFloat16* left2, int64_t stride, int64_t step,
                                 const BFloat16* right, const BFloat16* right2, int64_t count,
                                 const Between& between) {
        if (!tiles) {
            for (int64_t row = 0; row < 16; row += 8) {
                accumulate_rows(row, left + row * stride, stride, step, right, right2, count);
                accumulate_rows(16 + row, left2 + row * stride, stride, step, right, right2, count);
            }
            for (int64_t k = 0; k < count; k++) between();
            return;
        }
        for (int64_t k = 0; k < count; k++, left += step, left2 += step, right += TILE, right2 += TILE) {
            _tile_loadd(4, left, 2 * stride);
            _tile_loadd(6, right, 64);
            _tile_dpbf16ps(0, 4, 6);
            _tile_loadd(7, right2, 64);
            _tile_dpbf16ps(1, 4, 7);
            _tile_loadd(5, left2, 2 * stride);
            _tile_dpbf16ps(2, 5, 6);
            _tile_dpbf16ps(3, 5, 7);
            between();
        }
    }
    TILES INLINE void accumulate(const BFloat16* left, const BFloat16* left2, int64_t stride, int64_t step,
                                 const BFloat16* right, const BFloat16* right2, int64_t count) {
        accumulate(left, left2, stride, step, right, right2, count, []() TILES {});
    }

private:
    AVX512 INLINE static void copy(const float* from, int64_t stride, float* to, int64_t to_stride) {
        EightRows rows;
        for (int64_t row = 0; row < SPAN; row += 8) {
            load_sums(from + row * stride, stride, rows);
            store_sums(rows, to + row * to_stride, to_stride);
        }
    }

    // The same for eight rows from `row` on.
    AVX512 void accumulate_rows(int64_t row, const BFloat16* left, int64_t stride, int64_t step, const BFloat16* right,
                                const BFloat16* right2, int64_t count) {
        EightRows sums;
        load_sums(numbers + row * SPAN, SPAN, sums);
        for (int64_t k = 0; k < count; k++, left += step, right += TILE, right2 += TILE)
            add_products(left, stride, right, right2, sums);
        store_sums(sums, numbers + row * SPAN, SPAN);
    }

    const bool tiles = has_tiles();
    alignas(64) float numbers[SPAN * SPAN];
};

#endif
