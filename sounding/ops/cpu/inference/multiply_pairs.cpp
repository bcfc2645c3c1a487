// The product of multiply.h by inner products of pairs of bfloat16, without tiles.
//
// Lane i of a sum takes the columns 2i and 2i + 1 of each 32, in order; lanes are added at the end,
// eight outputs at once, always in the same tree. That is the order for one token and for many.

#include "multiply.h"

#include <algorithm>

#include "pairs.h"

#ifdef WITH_TILES

namespace {

constexpr int64_t STEP = 128;  // columns unpacked at a time for few tokens
constexpr int64_t FEW = 3;     // so many tokens, or fewer

// out[t * stride + r] of R rows that exist.
template <int R, int T>
AVX512 INLINE void put(const __m512 (&sums)[R][T], int64_t rows, float* out, int64_t stride) {
    for (int t = 0; t < T; t++)
        for (int r = 0; r < R; r += 8) {
            const __m256 eight = add_lanes(sums, r, t);
            const int64_t left = rows - r;
            float* to = out + t * stride + r;
            if (left >= 8)
                _mm256_storeu_ps(to, eight);
            else if (left > 0)
                _mm256_mask_storeu_ps(to, __mmask8((1u << left) - 1), eight);
        }
}

// Whether rows are multiplied from where they are stored.
bool direct(const Strip& strip) {
    const Weight& weight = strip.product.weight;
    return weight.format == BFLOAT16 && strip.product.x.columns == weight.columns;
}

// R rows of a strip from `row` on, times T tokens. `room` holds R rows of STEP numbers.
template <int R, int T>
AVX512 const uint8_t* some_rows(const Strip& strip, int64_t row, BFloat16* room, const uint8_t* soon) {
    const Product& p = strip.product;
    const int64_t columns = p.x.columns, rows = std::min<int64_t>(R, strip.rows - row);
    __m512 sums[R][T];
    clear(sums);
    if (direct(strip) && rows == R) {
        const BFloat16* w = reinterpret_cast<const BFloat16*>(strip.begin() + row * p.weight.row_bytes);
        const int64_t apart = p.weight.row_bytes / 2;
        for (int64_t i = 0; i < R * columns * 2; i += 64) _mm_prefetch(soon + i, _MM_HINT_T1);
        soon += R * columns * 2;
        add_products(sums, w, apart, p.x.data, columns, columns);
    } else {
        for (int64_t k = 0; k < columns; k += STEP) {
            const int64_t some = std::min(STEP, columns - k);
            soon = unpack(p.weight, strip.row + row, rows, k, some, room, STEP, soon);
            add_products(sums, room, STEP, p.x.data + k, columns, some);
        }
    }
    put(sums, rows, p.out + strip.row + row, p.stride);
    return soon;
}

template <int R, int T>
AVX512 const uint8_t* few_tokens(const Strip& strip, BFloat16* room, const uint8_t* soon) {
    for (int64_t row = 0; row < strip.rows; row += R) soon = some_rows<R, T>(strip, row, room, soon);
    return soon;
}

template <int T>
AVX512 INLINE void eight_rows(const Product& p, const BFloat16* w, int64_t apart, int64_t token,
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
        for (; t + 3 <= tokens; t += 3) eight_rows<3>(p, w, apart, t, strip.row + row, rows);
        if (tokens - t == 2) eight_rows<2>(p, w, apart, t, strip.row + row, rows);
        if (tokens - t == 1) eight_rows<1>(p, w, apart, t, strip.row + row, rows);
    }
}

}  // namespace

AVX512 void multiply_pairs(const Strip* strips, int64_t count) {
    thread_local static Arena arena;
    Scope scope(arena);
    BFloat16* room = arena.take<BFloat16>(16 * STEP);
    for (int64_t i = 0; i < count; i++) {
        const Strip& strip = strips[i];
        const Weight& weight = strip.product.weight;
        const uint8_t* soon = i + 1 < count ? strips[i + 1].begin() : strip.begin() + STRIP * weight.row_bytes;
        switch (strip.product.x.tokens) {
            case 1: few_tokens<16, 1>(strip, room, soon); break;
            case 2: few_tokens<8, 2>(strip, room, soon); break;
            case FEW: few_tokens<8, 3>(strip, room, soon); break;
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
