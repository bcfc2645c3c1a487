// Weights as checkpoints store them, and what they stand for.
#pragma once

#include "../bfloat16.h"

enum Format : int32_t { FLOAT32, BFLOAT16, FP8, FP4 };

constexpr int64_t SCALE_TILE = 128;  // FP8: one scale per 128 x 128 weights
constexpr int64_t FP4_BLOCK = 32;    // FP4: one per 32 weights of a row
constexpr int64_t STRIP = 64;        // rows that are unpacked and multiplied together

// A matrix [rows, columns]. Scales are e8m0 bytes: 2^(byte - 127). Rows may
// have anything between them, such as the scales of a packed index entry.
struct Weight {
    const uint8_t* values;
    const uint8_t* scales;
    int64_t rows, columns;
    int64_t row_bytes, scale_row;  // from a row to the next; FP8: from a row of tiles to the next
    int32_t format;
    int32_t simulate;  // whether inputs are rounded to FP8 first
    int64_t first;     // rows left out above, which tiles are counted with

    uint8_t fp8_scale(int64_t row, int64_t column) const {
        return scales[(first + row) / SCALE_TILE * scale_row + column / SCALE_TILE];
    }
    // Whether FP8 rows share their scales, as eight do but where a slice begins within a tile.
    bool in_one_tile(int64_t row, int64_t rows) const {
        return (first + row) / SCALE_TILE == (first + row + rows - 1) / SCALE_TILE;
    }

    Weight slice(int64_t low, int64_t high) const {
        Weight part = *this;
        part.values += low * row_bytes;
        if (format == FP4) part.scales += low * scale_row;
        part.first += low;
        part.rows = high - low;
        return part;
    }
};

// e8m0: 0 is 2^-127, and 255 is NaN.
INLINE float scale_of(uint8_t code) {
    const uint32_t bits = code == 0 ? 0x400000u : code == 255 ? 0x7fc00000u : uint32_t(code) << 23;
    float scale;
    std::memcpy(&scale, &bits, 4);
    return scale;
}

INLINE int64_t padded(int64_t count, int64_t to) { return (count + to - 1) / to * to; }

// Columns [k, k + count) of rows [row, row + rows) as bfloat16, `stride` numbers from row to row. k is a
// multiple of 128; without products of bfloat16 one of 32 does for FP4, and any for the others. Columns past the
// last are zero up to a multiple of 32. The columns of FP4 are split: of every 128 from k on (or the last 32, 64 or
// 96) the first, fifth, ninth, ... come first, then the second, sixth, ..., because that is how codes lie in words of
// sixteen bits. As much as is read is asked for from `soon` on; the result is where to go on with that.
const uint8_t* unpack(const Weight& weight, int64_t row, int64_t rows, int64_t k, int64_t count,
                      BFloat16* out, int64_t stride, const uint8_t* soon);

// A row in the order of the columns that `unpack` makes of FP4. `columns` is a multiple of 32.
void split(const BFloat16* x, int64_t columns, BFloat16* out);
