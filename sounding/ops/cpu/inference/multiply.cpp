// The product of multiply.h without tiles, and pieces of work for both ways.

#define KERNELS "inference/multiply.cpp"
#ifndef TARGET

#include "multiply.h"

#include <algorithm>

#include "features.h"
#include "rounding.h"

#include "../each_target.h"

namespace {

constexpr int64_t ROWS = 64;       // of a weight, in one piece of work
constexpr int64_t TOKENS = 512;    // rows of a panel that stay in the second-level cache

// Columns of one row in the panel's order, rounded where the weight wants that, zero behind.
const BFloat16* ordered(const Panel& panel, const BFloat16* x, BFloat16* room) {
    if (!panel.simulate && !panel.split && panel.width == panel.columns) return x;
    thread_local static Arena arena;
    Scope scope(arena);
    if (panel.simulate) {
        BFloat16* near = arena.take<BFloat16>(panel.width);
        round_fp8(x, panel.width, LINEAR_INPUT_BLOCK, near);
        x = near;
    }
    if (panel.split)
        for (int64_t k = 0; k < panel.width; k++) room[split_place(k, panel.width)] = x[k];
    else
        std::copy(x, x + panel.width, room);
    for (int64_t k = panel.width; k < panel.columns; k++) room[k].bits = 0;
    return room;
}

void multiply_plain(const Product& p, int64_t low, int64_t rows) {
    thread_local static Arena arena;
    Scope scope(arena);
    constexpr int64_t STEP = 16;
    const int64_t columns = p.x.columns;
    BFloat16* w = arena.take<BFloat16>(STEP * columns);
    for (int64_t row = low; row < low + rows; row += STEP) {
        const int64_t count = std::min(STEP, low + rows - row);
        for (int64_t k = 0; k < columns; k += SCALE_TILE)
            unpack(p.weight, row, count, k, std::min(SCALE_TILE, columns - k), w + k, columns);
        CALL(multiply_unpacked, p.x.data, p.x.tokens, w, count, columns, p.out + row, p.stride);
    }
}

}  // namespace

Panel make_panel(Arena& arena, int64_t tokens, const Weight& weight) {
    const int64_t columns = padded(weight.columns, 32);
    return {arena.take<BFloat16>(tokens * columns), tokens, columns, weight.split(),
            weight.simulate != 0, weight.columns};
}

void fill_block(const Panel& panel, int64_t block, const BFloat16* x, int64_t stride,
                const int64_t* index) {
    thread_local static Arena arena;
    Scope scope(arena);
    BFloat16* room = arena.take<BFloat16>(panel.columns);
    const int64_t count = panel.in_block(block), first = block * Panel::BLOCK;
    BFloat16* to = panel.data + first * panel.columns;
    for (int64_t t = 0; t < count; t++) {
        const int64_t source = index != nullptr ? index[first + t] : first + t;
        const BFloat16* row = ordered(panel, x + source * stride, room);
        if (!has_tiles() || count == 1) {  // one row alone is in order as it is
            std::copy(row, row + panel.columns, to + t * panel.columns);
            continue;
        }
        for (int64_t k = 0; k < panel.columns; k += 2)
            std::memcpy(to + (k / 2 * count + t) * 2, row + k, 4);
    }
}

void fill(const Panel& panel, const BFloat16* x, int64_t stride, int threads,
          const int64_t* index) {
    parallel_for(panel.blocks(), 1, threads, [&](int64_t low, int64_t high) {
        for (int64_t block = low; block < high; block++) fill_block(panel, block, x, stride, index);
    });
}

void multiply_rows(const Product& product, int64_t low, int64_t high) {
    for (int64_t row = low; row < high; row += ROWS) {
        const int64_t rows = std::min(ROWS, high - row);
        if (has_tiles())
            multiply_tiles(product, row, rows);
        else
            multiply_plain(product, row, rows);
    }
}

void multiply(const Product* products, int64_t count, int threads) {
    // Pieces of all products in one list: 64 rows of a weight times at most TOKENS of a panel.
    int64_t pieces = 0;
    for (int64_t i = 0; i < count; i++)
        pieces += (products[i].weight.rows + ROWS - 1) / ROWS *
                  ((products[i].x.tokens + TOKENS - 1) / TOKENS);
    // Several neighbours at once: what is asked for ahead then is what comes next.
    const int64_t grain = std::max<int64_t>(1, pieces / (8 * threads));
    parallel_for(pieces, grain, threads, [&](int64_t begin, int64_t end) {
        int64_t skip = begin;
        for (int64_t i = 0; i < count && begin < end; i++) {
            Product part = products[i];
            const int64_t strips = (part.weight.rows + ROWS - 1) / ROWS;
            const int64_t own = strips * ((part.x.tokens + TOKENS - 1) / TOKENS);
            if (skip >= own) {
                skip -= own;
                continue;
            }
            const int64_t first = skip / strips * TOKENS, row = skip % strips * ROWS;
            part.x.data += first * part.x.columns;
            part.x.tokens = std::min(TOKENS, part.x.tokens - first);
            part.out += first * part.stride;
            multiply_rows(part, row, std::min(row + ROWS, part.weight.rows));
            begin++;
            skip++;
            i--;  // the next piece may be of the same product
        }
    });
}

#else

namespace {

// <x, w_r> of R rows, sixteen partial sums each.
template <int R>
INLINE void dots(const BFloat16* x, const BFloat16* w, int64_t stride, int64_t columns, float* out) {
    Floats total[R] = {};
    for (int64_t k = 0; k < columns; k += LANES) {
        Floats left, right;
        load(x + k, left);
        for (int r = 0; r < R; r++) {
            load(w + r * stride + k, right);
            total[r] += left * right;
        }
    }
    for (int r = 0; r < R; r++) out[r] = sum(total[r]);
}

void multiply_unpacked(const BFloat16* x, int64_t tokens, const BFloat16* w, int64_t rows,
                       int64_t columns, float* out, int64_t stride) {
    for (int64_t t = 0; t < tokens; t++) {
        int64_t r = 0;
        for (; r + 4 <= rows; r += 4)
            dots<4>(x + t * columns, w + r * columns, columns, columns, out + t * stride + r);
        for (; r < rows; r++)
            dots<1>(x + t * columns, w + r * columns, columns, columns, out + t * stride + r);
    }
}

}  // namespace

#endif
