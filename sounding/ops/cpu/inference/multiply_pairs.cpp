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

constexpr int64_t STEP = 128;  // columns unpacked at a time for few tokens
constexpr int64_t FEW = 3;     // so many tokens, or fewer

// out[t * stride + r] of those of eight rows that exist.
template <int T>
AVX512 INLINE void put(const __m512 (&sums)[8][T], int64_t rows, float* out, int64_t stride) {
    const __mmask8 some = __mmask8((1u << rows) - 1);
    for (int t = 0; t < T; t++) _mm256_mask_storeu_ps(out + t * stride, some, add_lanes(sums, 0, t));
}

// Whether rows are multiplied from where they are stored.
bool direct(const Strip& strip) {
    const Weight& weight = strip.product.weight;
    return weight.format == BFLOAT16 && strip.product.x.columns == weight.columns;
}

// Eight rows times one token, decoded in registers; in the order in which they would be unpacked.
AVX512 INLINE void add_fp8(__m512 (&sums)[8][1], const Weight& w, int64_t row, const BFloat16* x) {
    const uint8_t* codes = w.values + row * w.row_bytes;
    for (int64_t k = 0; k < w.columns; k += SCALE_TILE) {
        const Fp8Table table(w.fp8_scale(row, k));
        const int64_t end = std::min(k + SCALE_TILE, w.columns);
        for (int64_t i = k; i < end; i += 64) {
            const __m512bh left = load_pairs(x + i), right = load_pairs(x + i + 32);
            for (int r = 0; r < 8; r++) {
                __m512i first, second;
                table.numbers(codes + r * w.row_bytes + i, first, second);
                sums[r][0] = _mm512_dpbf16_ps(sums[r][0], __m512bh(first), left);
                sums[r][0] = _mm512_dpbf16_ps(sums[r][0], __m512bh(second), right);
            }
        }
    }
}
AVX512 INLINE void add_fp4(__m512 (&sums)[8][1], const Weight& w, int64_t row, const BFloat16* x) {
    const Fp4Table table;
    const uint8_t *codes = w.values + row * w.row_bytes, *scales = w.scales + row * w.scale_row;
    for (int64_t k = 0; k < w.columns; k += 128) {
        __m512bh numbers[4];
        for (int quarter = 0; quarter < 4; quarter++) numbers[quarter] = load_pairs(x + k + 32 * quarter);
        for (int r = 0; r < 8; r++) {
            const __m512i lack = table.lacking(scales + r * w.scale_row + k / FP4_BLOCK);
            const __m512i four = _mm512_loadu_si512(codes + r * w.row_bytes + k / 2);
            for (int quarter = 0; quarter < 4; quarter++)
                sums[r][0] = _mm512_dpbf16_ps(sums[r][0], __m512bh(table.numbers(four, quarter, lack)),
                                              numbers[quarter]);
        }
    }
}

// Whether eight rows are that way: their columns fill registers, and they share their scales.
bool in_registers(const Weight& w, int64_t row, int64_t rows) {
    if (rows < 8) return false;
    if (w.format == FP4) return w.columns % 128 == 0;
    return w.format == FP8 && w.columns % 64 == 0 &&
           (w.first + row) / SCALE_TILE == (w.first + row + 7) / SCALE_TILE;
}

AVX512 const uint8_t* ask_for(const uint8_t* soon, int64_t bytes) {
    for (int64_t i = 0; i < bytes; i += 64) _mm_prefetch(soon + i, _MM_HINT_T1);
    return soon + bytes;
}

// Eight rows of a strip from `row` on, times T tokens. `room` holds eight rows of STEP numbers.
template <int T>
AVX512 const uint8_t* eight_rows(const Strip& strip, int64_t row, BFloat16* room, const uint8_t* soon) {
    const Product& p = strip.product;
    const Weight& w = p.weight;
    const int64_t columns = p.x.columns, rows = std::min<int64_t>(8, strip.rows - row), first = strip.row + row;
    __m512 sums[8][T];
    clear(sums);
    if (direct(strip) && rows == 8) {
        const BFloat16* from = reinterpret_cast<const BFloat16*>(w.values + first * w.row_bytes);
        soon = ask_for(soon, 8 * w.row_bytes);
        add_products(sums, from, w.row_bytes / 2, p.x.data, columns, columns);
    } else if (T == 1 && in_registers(w, first, rows)) {
        soon = ask_for(soon, 8 * w.row_bytes);
        if constexpr (T == 1) w.format == FP8 ? add_fp8(sums, w, first, p.x.data) : add_fp4(sums, w, first, p.x.data);
    } else {
        for (int64_t k = 0; k < columns; k += STEP) {
            const int64_t some = std::min(STEP, columns - k);
            soon = unpack(w, first, rows, k, some, room, STEP, soon);
            add_products(sums, room, STEP, p.x.data + k, columns, some);
        }
    }
    put(sums, rows, p.out + first, p.stride);
    return soon;
}

template <int T>
AVX512 void few_tokens(const Strip& strip, BFloat16* room, const uint8_t* soon) {
    for (int64_t row = 0; row < strip.rows; row += 8) soon = eight_rows<T>(strip, row, room, soon);
}

template <int T>
AVX512 INLINE void multiply_some(const Product& p, const BFloat16* w, int64_t apart, int64_t token,
                                 int64_t row, int64_t rows) {
    __m512 sums[8][T];
    clear(sums);
    add_products(sums, w, apart, p.x.data + token * p.x.columns, p.x.columns, p.x.columns);
    put(sums, rows, p.out + token * p.stride + row, p.stride);
}

AVX512 void many_tokens(const Strip& strip, Arena& arena, const uint8_t* soon) {
    const Product& p = strip.product;
    const int64_t columns = p.x.columns, tokens = p.x.tokens;
    const BFloat16* w = reinterpret_cast<const BFloat16*>(strip.begin());
    int64_t apart = p.weight.row_bytes / 2;
    if (!direct(strip) || strip.rows % 8 != 0) {
        apart = columns + 32;  // rows a power of two apart would compete for the same cache lines
        BFloat16* room = arena.take<BFloat16>(padded(strip.rows, 8) * apart);
        unpack(p.weight, strip.row, strip.rows, 0, columns, room, apart, soon);
        w = room;
    }
    for (int64_t row = 0; row < strip.rows; row += 8, w += 8 * apart) {
        const int64_t rows = std::min<int64_t>(8, strip.rows - row);
        int64_t t = 0;
        for (; t + 3 <= tokens; t += 3) multiply_some<3>(p, w, apart, t, strip.row + row, rows);
        if (tokens - t == 2) multiply_some<2>(p, w, apart, t, strip.row + row, rows);
        if (tokens - t == 1) multiply_some<1>(p, w, apart, t, strip.row + row, rows);
    }
}

}  // namespace

AVX512 void multiply_pairs(const Strip* strips, int64_t count) {
    thread_local static Arena arena;
    Scope scope(arena);
    BFloat16* room = arena.take<BFloat16>(8 * STEP);
    for (int64_t i = 0; i < count; i++) {
        const Strip& strip = strips[i];
        const Weight& weight = strip.product.weight;
        const uint8_t* soon = i + 1 < count ? strips[i + 1].begin() : strip.begin() + STRIP * weight.row_bytes;
        switch (strip.product.x.tokens) {
            case 1: few_tokens<1>(strip, room, soon); break;
            case 2: few_tokens<2>(strip, room, soon); break;
            case FEW: few_tokens<3>(strip, room, soon); break;
            default: {
                Scope inner(arena);
                many_tokens(strip, arena, soon);
            }
        }
    }
}

#else

void multiply_pairs(const Strip*, int64_t) {}

#endif
