// The product of multiply.h with pairwise bfloat16 dot products, without tiles.
//
// Lane i of a sum accumulates the columns 2i and 2i + 1 of each 32, in order; the lanes of eight outputs are
// reduced at the end in a fixed tree. The order is the same for one token and for many.

#include "multiply.h"

#include <algorithm>

#include "ahead.h"
#include "codes.h"
#include "pairs.h"

#ifdef WITH_TILES

namespace {

// Store out[t * stride + r] for those of eight rows that exist.
template <int T>
AVX512 INLINE void put(const __m512 (&sums)[8][T], int64_t rows, float* out, int64_t stride) {
    const __mmask8 some = __mmask8((1u << rows) - 1);
    for (int t = 0; t < T; t++) _mm256_mask_storeu_ps(out + t * stride, some, add_lanes(sums, 0, t));
}

// The functions below compute eight rows, or as many as there are, from `row` of a weight on.

// One token times rows decoded in registers, in the order in which they would be unpacked.
AVX512 void fp8_rows(const Product& p, int64_t row, Ahead& ahead) {
    const Weight& w = p.weight;
    RowPointers codes(w.values + row * w.row_bytes, w.row_bytes);
    __m512 sums[8][1];
    clear(sums);
    for (int64_t k = 0; k < w.columns; k += SCALE_TILE) {
        const Fp8Table table(w.fp8_scale(row, k));
        const int64_t end = std::min(k + SCALE_TILE, w.columns);
        for (int64_t i = k; i < end; i += 64, codes.advance(64)) {
            const __m512bh left = load_pairs(p.x.data + i), right = load_pairs(p.x.data + i + 32);
#pragma GCC unroll 8
            for (int r = 0; r < 8; r++) {
                __m512i first, second;
                if (r % 2 == 0) ahead.ask<128>();
                table.numbers(codes[r], first, second);
                sums[r][0] = _mm512_dpbf16_ps(sums[r][0], __m512bh(first), left);
                sums[r][0] = _mm512_dpbf16_ps(sums[r][0], __m512bh(second), right);
            }
        }
    }
    put(sums, 8, p.out + row, p.stride);
}
AVX512 void fp4_rows(const Product& p, int64_t row, Ahead& ahead) {
    const Weight& w = p.weight;
    const Fp4Table table;
    RowPointers codes(w.values + row * w.row_bytes, w.row_bytes), scales(w.scales + row * w.scale_row, w.scale_row);
    __m512 sums[8][1];
    clear(sums);
    for (int64_t k = 0; k < w.columns; k += 128, codes.advance(64), scales.advance(4)) {
        __m512bh numbers[4];
        for (int quarter = 0; quarter < 4; quarter++) numbers[quarter] = load_pairs(p.x.data + k + 32 * quarter);
#pragma GCC unroll 8
        for (int r = 0; r < 8; r++) {
            if (r % 2 == 0) ahead.ask<128>();
            const __m512i lack = table.lacking(scales[r]);
            __m512i four = _mm512_loadu_si512(codes[r]);
            asm("" : "+v"(four));  // otherwise every quarter loads it again
            for (int quarter = 0; quarter < 4; quarter++)
                sums[r][0] = _mm512_dpbf16_ps(sums[r][0], __m512bh(table.numbers(four, quarter, lack)),
                                              numbers[quarter]);
        }
    }
    put(sums, 8, p.out + row, p.stride);
}

// Rows of bfloat16 that are `apart` from each other, times T tokens from `token` on.
template <int T, typename Ahead>
AVX512 INLINE void some_tokens(const Product& p, int64_t token, const BFloat16* w, int64_t apart,
                               int64_t row, int64_t rows, Ahead& ahead) {
    __m512 sums[8][T];
    clear(sums);
    add_products(sums, w, apart, p.x.data + token * p.x.columns, p.x.columns, p.x.columns, ahead);
    put(sums, rows, p.out + token * p.stride + row, p.stride);
}
// The same for up to three tokens, as many as there are.
template <typename Ahead>
AVX512 INLINE void three_tokens(const Product& p, int64_t token, const BFloat16* w, int64_t apart, int64_t row,
                                int64_t rows, Ahead& ahead) {
    const int64_t left = p.x.tokens - token;
    if (left == 1)
        some_tokens<1>(p, token, w, apart, row, rows, ahead);
    else if (left == 2)
        some_tokens<2>(p, token, w, apart, row, rows, ahead);
    else
        some_tokens<3>(p, token, w, apart, row, rows, ahead);
}

// Rows are read from memory for the first three tokens, and from the cache for the others.
AVX512 void first_tokens(const Product& p, const BFloat16* w, int64_t apart, int64_t row, int64_t rows, Ahead& ahead) {
    three_tokens(p, 0, w, apart, row, rows, ahead);
}
AVX512 void other_tokens(const Product& p, int64_t token, const BFloat16* w, int64_t apart, int64_t row, int64_t rows) {
    NobodyAsks nobody;
    for (; token < p.x.tokens; token += 3) three_tokens(p, token, w, apart, row, rows, nobody);
}

// `room` holds eight rows, at a stride that is not a power of two: otherwise they would compete for the same
// cache sets.
AVX512 void multiply_rows(const Product& p, int64_t row, int64_t rows, BFloat16* room, Ahead& ahead) {
    const Weight& weight = p.weight;
    const int64_t columns = p.x.columns, tokens = p.x.tokens;
    if (tokens == 1 && rows == 8) {
        if (weight.format == FP8 && columns % 64 == 0 && weight.in_one_tile(row, rows)) return fp8_rows(p, row, ahead);
        if (weight.format == FP4 && columns % 128 == 0) return fp4_rows(p, row, ahead);
    }
    if (rows == 8 && weight.format == BFLOAT16 && columns == weight.columns) {
        const BFloat16* w = reinterpret_cast<const BFloat16*>(weight.values + row * weight.row_bytes);
        first_tokens(p, w, weight.row_bytes / 2, row, rows, ahead);
        other_tokens(p, 3, w, weight.row_bytes / 2, row, rows);
    } else {
        unpack(weight, row, rows, 0, columns, room, columns + 32, ahead.at());
        ahead.move(rows * weight.row_bytes);
        other_tokens(p, 0, room, columns + 32, row, rows);
    }
}

}  // namespace

AVX512 void multiply_pairs(const Strip* strips, int64_t count) {
    thread_local static Arena arena;
    Ahead ahead(strips, count);
    for (int64_t i = 0; i < count; i++) {
        const Strip& strip = strips[i];
        Scope scope(arena);
        BFloat16* room = arena.take<BFloat16>(8 * (strip.product.x.columns + 32));
        for (int64_t row = 0; row < strip.rows; row += 8) {
            ahead.further();
            multiply_rows(strip.product, strip.row + row, std::min<int64_t>(8, strip.rows - row), room, ahead);
        }
    }
}

#else

void multiply_pairs(const Strip*, int64_t) {}

#endif
