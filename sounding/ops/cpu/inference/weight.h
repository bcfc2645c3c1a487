// Weights as checkpoints store them, and how to unpack them.
#pragma once

#include "../bfloat16.h"

enum Format : int32_t { FLOAT32, BFLOAT16, FP8, FP4 };

constexpr int64_t SCALE_TILE = 128;  // FP8: one scale per 128 x 128 weights
constexpr int64_t FP4_BLOCK = 32;    // FP4: one per 32 weights of a row
constexpr int64_t STRIP = 64;        // rows that are unpacked and multiplied at a time

// A matrix [rows, columns]. Scales are e8m0 bytes: 2^(byte - 127). Rows need not be contiguous: in a packed
// state, scales lie between index entries.
struct Weight {
    const uint8_t* values;
    const uint8_t* scales;
    int64_t rows, columns;
    int64_t row_bytes, scale_row;  // strides: of rows in bytes; of rows of scales (FP8: of rows of tiles)
    int32_t format;
    int32_t simulate;  // true if inputs are rounded to FP8 first
    int64_t first;     // rows of the matrix above this slice, for the position in its tiles

    uint8_t fp8_scale(int64_t row, int64_t column) const {
        return scales[(first + row) / SCALE_TILE * scale_row + column / SCALE_TILE];
    }
    // True if FP8 rows share their scales: eight do, unless a slice begins within a tile.
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
// multiple of 128; without bfloat16 products, of 32 for FP4 and of 1 for the others. Columns past the last are zero
// up to a multiple of 32. The columns of FP4 are reordered: of every 128 from k on (or the last 32, 64 or 96) the
// first, fifth, ninth, ... come first, then the second, sixth, ..., as codes are packed in words of sixteen bits. As
// much as is read is prefetched from `soon` on; returns the address after that.
const uint8_t* unpack(const Weight& weight, int64_t row, int64_t rows, int64_t k, int64_t count,
                      BFloat16* out, int64_t stride, const uint8_t* soon);

// Reorder a row to the column order of unpacked FP4. `columns` is a multiple of 32.
void split(const BFloat16* x, int64_t columns, BFloat16* out);
