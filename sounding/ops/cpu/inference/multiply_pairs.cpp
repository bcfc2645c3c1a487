// The product of multiply.h by inner products of pairs of bfloat16, without tiles.
//
// Lane i of a sum takes the columns 2i and 2i + 1 of each 32, in order; lanes are added at the end,
// eight outputs at once, always in the same tree. That is the order for one token and for many.

#include "multiply.h"

#include <algorithm>

#include "codes.h"
#include "pairs.h"

#ifdef WITH_TILES

namespace {

constexpr int64_t LEAD = 16384;  // bytes that memory is asked for ahead

// out[t * stride + r] of those of eight rows that exist.
template <int T>
AVX512 INLINE void put(const __m512 (&sums)[8][T], int64_t rows, float* out, int64_t stride) {
    const __mmask8 some = __mmask8((1u << rows) - 1);
    for (int t = 0; t < T; t++) _mm256_mask_storeu_ps(out + t * stride, some, add_lanes(sums, 0, t));
}

// What follows makes eight rows, or as many as there are, from `row` of a weight on.

// One token times rows that are decoded in registers, in the order in which they would be unpacked.
AVX512 void fp8_rows(const Product& p, int64_t row) {
    const Weight& w = p.weight;
    const uint8_t* codes = w.values + row * w.row_bytes;
    __m512 sums[8][1];
    clear(sums);
    for (int64_t k = 0; k < w.columns; k += SCALE_TILE) {
        const Fp8Table table(w.fp8_scale(row, k));
        const int64_t end = std::min(k + SCALE_TILE, w.columns);
        for (int64_t i = k; i < end; i += 64) {
            const __m512bh left = load_pairs(p.x.data + i), right = load_pairs(p.x.data + i + 32);
            for (int r = 0; r < 8; r++) {
                __m512i first, second;
                table.numbers(codes + r * w.row_bytes + i, first, second);
                sums[r][0] = _mm512_dpbf16_ps(sums[r][0], __m512bh(first), left);
                sums[r][0] = _mm512_dpbf16_ps(sums[r][0], __m512bh(second), right);
            }
        }
    }
    put(sums, 8, p.out + row, p.stride);
}
AVX512 void fp4_rows(const Product& p, int64_t row) {
    const Weight& w = p.weight;
    const Fp4Table table;
    const uint8_t *codes = w.values + row * w.row_bytes, *scales = w.scales + row * w.scale_row;
    __m512 sums[8][1];
    clear(sums);
    for (int64_t k = 0; k < w.columns; k += 128) {
        __m512bh numbers[4];
        for (int quarter = 0; quarter < 4; quarter++) numbers[quarter] = load_pairs(p.x.data + k + 32 * quarter);
        for (int r = 0; r < 8; r++) {
            const __m512i lack = table.lacking(scales + r * w.scale_row + k / FP4_BLOCK);
            const __m512i four = _mm512_loadu_si512(codes + r * w.row_bytes + k / 2);
            for (int quarter = 0; quarter < 4; quarter++)
                sums[r][0] = _mm512_dpbf16_ps(sums[r][0], __m512bh(table.numbers(four, quarter, lack)),
                                              numbers[quarter]);
        }
    }
    put(sums, 8, p.out + row, p.stride);
}

// Whether eight FP8 rows share their scales, as they do but where a slice begins within a tile.
bool in_one_tile(const Weight& w, int64_t row) {
    return (w.first + row) / SCALE_TILE == (w.first + row + 7) / SCALE_TILE;
}

// T tokens from `token` on times rows of bfloat16 that lie `apart`.
template <int T>
AVX512 INLINE void some_tokens(const Product& p, int64_t token, const BFloat16* w, int64_t apart,
                               int64_t row, int64_t rows) {
    __m512 sums[8][T];
    clear(sums);
    add_products(sums, w, apart, p.x.data + token * p.x.columns, p.x.columns, p.x.columns);
    put(sums, rows, p.out + token * p.stride + row, p.stride);
}

// `room` holds eight rows; their distance there is not a power of two, at which they would compete for the
// same cache lines.
AVX512 void multiply_rows(const Product& p, int64_t row, int64_t rows, BFloat16* room) {
    const Weight& weight = p.weight;
    const int64_t columns = p.x.columns, tokens = p.x.tokens;
    const bool alone = tokens == 1 && rows == 8;
    if (alone && weight.format == FP8 && columns % 64 == 0 && in_one_tile(weight, row))
        return fp8_rows(p, row);
    if (alone && weight.format == FP4 && columns % 128 == 0) return fp4_rows(p, row);
    const bool stored = rows == 8 && weight.format == BFLOAT16 && columns == weight.columns;
    const uint8_t* values = weight.values + row * weight.row_bytes;
    const BFloat16* w = stored ? reinterpret_cast<const BFloat16*>(values) : room;
    const int64_t apart = stored ? weight.row_bytes / 2 : columns + 32;
    if (!stored) unpack(weight, row, rows, 0, columns, room, apart, values);
    int64_t t = 0;
    for (; t + 3 <= tokens; t += 3) some_tokens<3>(p, t, w, apart, row, rows);
    if (tokens - t == 2) some_tokens<2>(p, t, w, apart, row, rows);
    if (tokens - t == 1) some_tokens<1>(p, t, w, apart, row, rows);
}

// Asks memory for strips, eight rows at a time, ahead of where they are multiplied.
class Ahead {
  public:
    Ahead(const Strip* strips, int64_t count) : strip_(strips), end_(strips + count) {}

    // Eight more rows; their bytes, or 0 behind the last.
    AVX512 int64_t ask() {
        if (strip_ == end_) return 0;
        const Weight& w = strip_->product.weight;
        const int64_t row = strip_->row + row_, bytes = 8 * w.row_bytes;
        prefetch(w.values + row * w.row_bytes, bytes);
        if (w.format == FP4) prefetch(w.scales + row * w.scale_row, 8 * w.scale_row);
        row_ += 8;
        if (row_ >= strip_->rows) {
            strip_++;
            row_ = 0;
        }
        return bytes;
    }

  private:
    AVX512 static void prefetch(const uint8_t* from, int64_t bytes) {
        for (int64_t i = 0; i < bytes; i += 64) _mm_prefetch(from + i, _MM_HINT_T0);
    }

    const Strip *strip_, *end_;
    int64_t row_ = 0;
};

}  // namespace

AVX512 void multiply_pairs(const Strip* strips, int64_t count) {
    thread_local static Arena arena;
    Ahead ahead(strips, count);
    int64_t lead = 0;  // bytes that were asked for and not multiplied yet
    for (int64_t i = 0; i < count; i++) {
        const Strip& strip = strips[i];
        Scope scope(arena);
        BFloat16* room = arena.take<BFloat16>(8 * (strip.product.x.columns + 32));
        for (int64_t row = 0; row < strip.rows; row += 8) {
            for (int64_t bytes = 1; lead < LEAD && bytes > 0; lead += bytes) bytes = ahead.ask();
            multiply_rows(strip.product, strip.row + row, std::min<int64_t>(8, strip.rows - row), room);
            lead -= 8 * strip.product.weight.row_bytes;
        }
    }
}

#else

void multiply_pairs(const Strip*, int64_t) {}

#endif
