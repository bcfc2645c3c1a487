// The product of multiply.h in float32, for processors without bfloat16 products.
//
// Every lane of a register accumulates its own sum, over the columns in the order of the panel; lanes are reduced at
// the end in a fixed tree. The order is the same for one token and for many.

#define KERNELS "inference/multiply_plain.cpp"
#ifndef TARGET

#include "multiply.h"

#include <algorithm>
#include <cmath>

#include "ahead.h"

namespace {

constexpr int64_t FEW = 8;  // tokens that read a row while it is in the first-level cache

// The sixteen FP4 numbers for each scale as bfloat16, low and high bytes separately.
struct alignas(64) Fp4Bytes {
    uint8_t low[256][16], high[256][16];

    Fp4Bytes() {
        constexpr float SIZES[8] = {0, 0.5f, 1, 1.5f, 2, 3, 4, 6};
        for (int scale = 0; scale < 256; scale++)
            for (int code = 0; code < 16; code++) {
                BFloat16 number;
                store_one(&number, std::ldexp(code < 8 ? SIZES[code] : -SIZES[code - 8], scale - 127));
                low[scale][code] = uint8_t(number.bits), high[scale][code] = uint8_t(number.bits >> 8);
            }
    }
};
const Fp4Bytes fp4_bytes;

}  // namespace

#include "../each_target.h"

void multiply_plain(const Strip* strips, int64_t count) { CALL(multiply_strips, strips, count); }

void order_plain(const BFloat16* x, int64_t columns, Format format, BFloat16* out) {
    CALL(order_row, x, columns, format, out);
}

#else

namespace {

#include "dots.h"
#include "decode.h"

// Of sixteen numbers every fourth, starting at each of the first four.
INLINE void deal(const BFloat16* x, BFloat16* first, BFloat16* second, BFloat16* third, BFloat16* fourth) {
    typedef uint16_t Eight __attribute__((vector_size(16)));
    typedef uint64_t Two __attribute__((vector_size(16)));
    Eight half[2];
    std::memcpy(half, x, sizeof half);
    for (Eight& each : half) each = __builtin_shuffle(each, Eight{0, 4, 1, 5, 2, 6, 3, 7});
    const Two low = Two(__builtin_shuffle(half[0], half[1], Eight{0, 1, 8, 9, 2, 3, 10, 11}));
    const Two high = Two(__builtin_shuffle(half[0], half[1], Eight{4, 5, 12, 13, 6, 7, 14, 15}));
    const uint64_t four[4] = {low[0], low[1], high[0], high[1]};
    std::memcpy(first, &four[0], 8);
    std::memcpy(second, &four[1], 8);
    std::memcpy(third, &four[2], 8);
    std::memcpy(fourth, &four[3], 8);
}

void order_row(const BFloat16* x, int64_t columns, Format format, BFloat16* out) {
    int64_t k = 0;
    if (format == FP8)
        for (; k + REGISTER <= columns; k += REGISTER)
            for (int64_t i = 0; i < REGISTER; i += 16) {
                BFloat16* to = out + k + i / 4;
                deal(x + k + i, to, to + LANES, to + 2 * LANES, to + 3 * LANES);
            }
    if (format == FP4)
        for (; k + FP4_COLUMNS <= columns; k += FP4_COLUMNS)
            for (int64_t i = 0; i < FP4_COLUMNS; i += 16) {
                BFloat16* to = out + k + i / 16 % 2 * 2 * LANES + i / 32 * 4;
                deal(x + k + i, to, to + 4 * LANES, to + LANES, to + 5 * LANES);
            }
    if (format == FP4)
        split(x + k, columns - k, out + k);
    else
        std::copy(x + k, x + columns, out + k);
}

// --------------------------------------------------------------------------------------------------
// Rows unpacked to memory

// Store registers to memory.
struct Put {
    float* out;
    float factor = 1;
    INLINE void operator()(int i, const Floats& numbers) const { store(out + i * LANES, numbers * factor); }
};

// Unpack a row in the order of the panel, padded with zeros.
void unpack_row(const Weight& w, int64_t row, float* out) {
    const uint8_t* values = w.values + row * w.row_bytes;
    int64_t k = 0;
    if (w.format == FP8) {
        for (; k + REGISTER <= w.columns; k += REGISTER) {
            const uint8_t scale = w.fp8_scale(row, k);
            const float rest = scale_of(uint8_t(127 + std::max(scale - FP8_LARGEST_SCALE, 0)));
            decode_fp8(values + k, fp8_factor(scale), Put{out + k, rest});
            if (!any(find_nan(values + k, Bytes{}))) continue;
            for (int64_t i = 0; i < REGISTER; i++)
                if ((values[k + i] & 127) == 127) out[k + i % 4 * LANES + i / 4] = NAN;
        }
    } else if (w.format == FP4) {
        const uint8_t* scales = w.scales + row * w.scale_row;
        for (; k + FP4_COLUMNS <= w.columns; k += FP4_COLUMNS)
            decode_fp4(values + k / 2, scales + k / FP4_BLOCK, Put{out + k});
    } else if (w.format == BFLOAT16) {
        for (; k + LANES <= w.columns; k += LANES) store(out + k, read(reinterpret_cast<const BFloat16*>(values) + k));
    }
    for (; k < w.columns; k += 128) {  // the rest, which fills no register
        BFloat16 rest[128];
        const int64_t count = std::min<int64_t>(128, w.columns - k);
        unpack(w, row, 1, k, count, rest, 0, values);
        for (int64_t i = 0; i < count; i++) out[k + i] = load_one(rest + i);
    }
    std::fill(out + w.columns, out + padded(w.columns, 32), 0.0f);
}

// --------------------------------------------------------------------------------------------------
// Rows decoded in registers, times few tokens

constexpr int TOGETHER = LEVEL == 3 ? 4 : 8;      // rows, so that whole cache lines of each are read
constexpr int MOST_DECODED = LEVEL >= 3 ? 3 : 1;  // tokens, whose sums must fit in registers with the rest

template <int T> using Sums = Floats[TOGETHER][T];

// Unrolled early: otherwise sums would be kept in memory.
template <int T> INLINE void clear(Sums<T>& sums) {
#pragma GCC unroll 8
    for (int r = 0; r < TOGETHER; r++)
#pragma GCC unroll 3
        for (int t = 0; t < T; t++) sums[r][t] = Floats{};
}
template <int T> INLINE void add_up(const Sums<T>& sums, float* out, int64_t stride) {
#pragma GCC unroll 8
    for (int r = 0; r < TOGETHER; r++)
#pragma GCC unroll 3
        for (int t = 0; t < T; t++) out[t * stride + r] = sum(sums[r][t]);
}

// Registers of a row times those of T tokens. Tokens are loaded again for each row: kept in registers, they would
// leave no room for the sums.
template <int T> struct Add {
    const float* x;
    int64_t columns;  // from a token to the next
    Floats (&sums)[T];
    INLINE Add(const float* x, int64_t columns, Floats (&sums)[T]) : x(x), columns(columns), sums(sums) {
        asm volatile("" : "+r"(this->x));
    }
    INLINE void operator()(int i, const Floats& numbers) const {
#pragma GCC unroll 3
        for (int t = 0; t < T; t++) sums[t] += read(x + t * columns + i * LANES) * numbers;
    }
};

// Prefetch for a loop over rows that reads one register of codes of each: two lines at a time.
INLINE void ask_beside(int r, Ahead& ahead) {
    if (r * REGISTER % 128 == 0) ahead.ask<128>();
}

// Returns false if the result is wrong, because a code is NaN or a scale too large.
template <int T> bool fp8_rows(const Product& p, int64_t row, Ahead& ahead) {
    const Weight& w = p.weight;
    RowPointers codes(w.values + row * w.row_bytes, w.row_bytes);
    Sums<T> sums;
    clear<T>(sums);
    Bytes nan{};
    int largest = 0;
    for (int64_t k = 0; k < w.columns; k += REGISTER, codes.advance(REGISTER)) {
        const uint8_t scale = w.fp8_scale(row, k);
        const float factor = fp8_factor(scale);
        largest = std::max<int>(largest, scale);
#pragma GCC unroll 8
        for (int r = 0; r < TOGETHER; r++) {
            ask_beside(r, ahead);
            decode_fp8(codes[r], factor, Add<T>{p.x.wide + k, p.x.columns, sums[r]});
            nan = find_nan(codes[r], nan);
        }
    }
    add_up<T>(sums, p.out + row, p.stride);
    return largest <= FP8_LARGEST_SCALE && !any(nan);
}
template <int T> void fp4_rows(const Product& p, int64_t row, Ahead& ahead) {
    const Weight& w = p.weight;
    RowPointers codes(w.values + row * w.row_bytes, w.row_bytes), scales(w.scales + row * w.scale_row, w.scale_row);
    Sums<T> sums;
    clear<T>(sums);
    for (int64_t k = 0; k < w.columns; k += FP4_COLUMNS, codes.advance(REGISTER), scales.advance(REGISTER / 16)) {
#pragma GCC unroll 8
        for (int r = 0; r < TOGETHER; r++) {
            ask_beside(r, ahead);
            decode_fp4(codes[r], scales[r], Add<T>{p.x.wide + k, p.x.columns, sums[r]});
        }
    }
    add_up<T>(sums, p.out + row, p.stride);
}

// Returns false if rows have to be unpacked, for their shape or because the result was wrong.
template <int T> bool decoded_rows(const Product& p, int64_t row, int64_t rows, Ahead& ahead) {
    const Weight& w = p.weight;
    bool right = true;
    if (w.format == FP4 && w.columns % FP4_COLUMNS == 0) {
        for (int64_t r = 0; r < rows; r += TOGETHER) fp4_rows<T>(p, row + r, ahead);
    } else if (w.format == FP8 && w.columns % REGISTER == 0 && w.in_one_tile(row, rows)) {
        for (int64_t r = 0; r < rows; r += TOGETHER) right &= fp8_rows<T>(p, row + r, ahead);
    } else {
        return false;
    }
    return right;
}

// --------------------------------------------------------------------------------------------------

// A few rows, with the method that suits their weight. Unpacked rows are read from the first-level cache.
void multiply_rows(const Product& p, int64_t row, int64_t rows, float* room, Ahead& ahead) {
    const Weight& w = p.weight;
    const int64_t columns = p.x.columns, tokens = p.x.tokens;
    float* out = p.out + row;
    if (tokens <= MOST_DECODED && rows % TOGETHER == 0) {
        const bool done = tokens == 1   ? decoded_rows<1>(p, row, rows, ahead)
                          : tokens == 2 ? decoded_rows<std::min(2, MOST_DECODED)>(p, row, rows, ahead)
                                        : decoded_rows<MOST_DECODED>(p, row, rows, ahead);
        if (done) return;
    }
    if (tokens < FEW && w.format == BFLOAT16 && columns == w.columns) {
        const BFloat16* numbers = reinterpret_cast<const BFloat16*>(w.values + row * w.row_bytes);
        multiply_wide(p.x.wide, tokens, numbers, w.row_bytes / 2, rows, columns, out, p.stride, ahead);
        return;
    }
    for (int64_t r = 0; r < rows; r++) unpack_row(w, row + r, room + r * columns);
    NobodyAsks nobody;
    multiply_wide(p.x.wide, tokens, room, columns, rows, columns, out, p.stride, nobody);
    ahead.move(rows * w.row_bytes);
}

void multiply_strips(const Strip* strips, int64_t count) {
    thread_local static Arena arena;
    Ahead ahead(strips, count);
    for (int64_t i = 0; i < count; i++) {
        const Strip& strip = strips[i];
        const int64_t end = strip.row + strip.rows, step = strip.product.x.tokens < FEW ? 8 : 16;
        Scope scope(arena);
        float* room = arena.take<float>(step * strip.product.x.columns);
        for (int64_t row = strip.row; row < end; row += step) {
            ahead.further();
            multiply_rows(strip.product, row, std::min(step, end - row), room, ahead);
        }
    }
}

}  // namespace

#endif
