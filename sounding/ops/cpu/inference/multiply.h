// The matrix product of inference: rows of numbers times weights, for one row or thousands.
//
// An output is sum_k x[k] w[k] over bfloat16 numbers, accumulated in float32 in one fixed order, so
// its bits depend on neither the other rows nor the threads. (The order depends on the processor: with tiles, k
// goes in steps of 32, with separate sums for even and odd k; without them, each lane of a vector has its own
// sum.)
#pragma once

#include "arena.h"
#include "weight.h"

// Rows [tokens, columns] of bfloat16 as the product reads them: with tiles in blocks of sixteen rows, each with
// pairs of columns by row; without them in plain order, widened to float32 where there are no bfloat16 products.
// Columns are padded with zeros to a multiple of 32.
struct Panel {
    BFloat16* data;  // with products of bfloat16
    float* wide;     // without
    int64_t tokens, columns;
    Format order;   // columns in the order in which this format is unpacked
    bool simulate;  // numbers are rounded to FP8 with a scale per 128 columns
    int64_t width;  // columns before padding

    static constexpr int64_t BLOCK = 16;
    int64_t blocks() const { return (tokens + BLOCK - 1) / BLOCK; }
    int64_t in_block(int64_t block) const {
        const int64_t rest = tokens - block * BLOCK;
        return rest < BLOCK ? rest : BLOCK;
    }
    const BFloat16* block(int64_t index) const { return data + index * BLOCK * columns; }
    bool empty() const { return data == nullptr && wide == nullptr; }
    // True if rows that were prepared for another weight serve this one as well.
    bool serves(const Weight& weight) const;
    // A part of the tokens; `first` is a multiple of BLOCK.
    Panel part(int64_t first, int64_t count) const {
        Panel some = *this;
        if (data != nullptr) some.data += first * columns;
        if (wide != nullptr) some.wide += first * columns;
        some.tokens = count;
        return some;
    }
};

// Allocate a panel for rows that are multiplied with weights like the given one.
Panel make_panel(Arena& arena, int64_t tokens, const Weight& weight);

// Fill one block: its row t is at x + stride * (index ? index[t] : t), where t counts from the panel's first
// token.
void fill_block(const Panel& panel, int64_t block, const BFloat16* x, int64_t stride,
                const int64_t* index = nullptr);
void fill(const Panel& panel, const BFloat16* x, int64_t stride, int threads,
          const int64_t* index = nullptr);

// out[t * stride + o] = <x_t, w_o> for every row of the panel and of the weight.
struct Product {
    Weight weight;
    Panel x;
    float* out;
    int64_t stride;
};

// All products, on up to `threads` threads.
void multiply(const Product* products, int64_t count, int threads);
// The product with rows [low, high) of the weight, on the calling thread; low is a multiple of STRIP.
void multiply_rows(const Product& product, int64_t low, int64_t high);

// At most STRIP rows of a weight times a panel: the unit of work of a thread.
struct Strip {
    Product product;
    int64_t row, rows;

    const uint8_t* begin() const { return product.weight.values + row * product.weight.row_bytes; }
};

// Up to eight rows `apart` bytes from each other, addressed by two pointers: eight would take too many registers.
struct RowPointers {
    const uint8_t *low, *high;
    int64_t apart;

    RowPointers(const void* first, int64_t apart)
        : low(static_cast<const uint8_t*>(first)), high(low + 4 * apart), apart(apart) {}
    INLINE const uint8_t* operator[](int row) const { return (row < 4 ? low : high) + row % 4 * apart; }
    INLINE void advance(int64_t bytes) { low += bytes, high += bytes; }
};

// The implementations with tiles, with pairs of bfloat16 and in float32, for consecutive strips. Each strip is
// prefetched while the one before it is multiplied.
void multiply_tiles(const Strip* strips, int64_t count);
void multiply_pairs(const Strip* strips, int64_t count);
void multiply_plain(const Strip* strips, int64_t count);

// Reorder a row to the order of columns that `multiply_plain` uses for a format.
void order_plain(const BFloat16* x, int64_t columns, Format format, BFloat16* out);
