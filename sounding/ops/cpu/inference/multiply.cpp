// Panels, and the distribution of the product of multiply.h over threads in strips.

#include "multiply.h"

#include <algorithm>
#include <array>

#include "features.h"
#include "network.h"
#include "rounding.h"

#include "../parallel.h"

namespace {

constexpr int64_t TOKENS = 512;  // rows of a panel that stay in the second-level cache

// Unpacked FP4 columns are always reordered; FP8 columns only without bfloat16 products.
Format order_of(const Weight& weight) {
    return weight.format == FP4 || (weight.format == FP8 && !has_pairs()) ? Format(weight.format) : BFLOAT16;
}

// Write one row in the panel's order of columns, rounded if the weight requires it, and padded with zeros.
const BFloat16* ordered(const Panel& panel, const BFloat16* x, BFloat16* room) {
    if (!panel.simulate && panel.order == BFLOAT16 && panel.width == panel.columns) return x;
    thread_local static Arena arena;
    Scope scope(arena);
    if (panel.simulate) {
        BFloat16* near = arena.take<BFloat16>(panel.width);
        round_fp8(x, panel.width, LINEAR_INPUT_BLOCK, near);
        x = near;
    }
    if (has_pairs() && panel.order == FP4)
        split(x, panel.width, room);
    else
        order_plain(x, panel.width, panel.order, room);
    for (int64_t k = panel.width; k < panel.columns; k++) room[k].bits = 0;
    return room;
}

void multiply_strips(const Strip* strips, int64_t count) {
    if (has_tiles())
        multiply_tiles(strips, count);
    else if (has_pairs())
        multiply_pairs(strips, count);
    else
        multiply_plain(strips, count);
}

}  // namespace

Panel make_panel(Arena& arena, int64_t tokens, const Weight& weight) {
    const int64_t columns = padded(weight.columns, 32), size = tokens * columns;
    BFloat16* data = has_pairs() ? arena.take<BFloat16>(size) : nullptr;
    float* wide = has_pairs() ? nullptr : arena.take<float>(size);
    return {data, wide, tokens, columns, order_of(weight), weight.simulate != 0, weight.columns};
}

bool Panel::serves(const Weight& weight) const {
    return order == order_of(weight) && simulate == (weight.simulate != 0);
}

void fill_block(const Panel& panel, int64_t block, const BFloat16* x, int64_t stride,
                const int64_t* index) {
    thread_local static Arena arena;
    Scope scope(arena);
    BFloat16* room = arena.take<BFloat16>(panel.columns);
    const int64_t count = panel.in_block(block), first = block * Panel::BLOCK;
    for (int64_t t = 0; t < count; t++) {
        const int64_t source = index != nullptr ? index[first + t] : first + t;
        const BFloat16* row = ordered(panel, x + source * stride, room);
        if (!has_pairs()) {
            to_float(row, panel.columns, panel.wide + (first + t) * panel.columns);
            continue;
        }
        BFloat16* to = panel.data + first * panel.columns;
        if (!has_tiles() || count == 1) {  // the pairs of a single row are in order already
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

namespace {

// The unit in rows of the threads' shares. Tiles need whole strips; smaller units make shares more even.
int64_t unit() { return has_tiles() ? STRIP : STRIP / 4; }

int64_t units_of(const Weight& weight) { return (weight.rows + unit() - 1) / unit(); }

int64_t units_of(const Product& product) {
    return units_of(product.weight) * ((product.x.tokens + TOKENS - 1) / TOKENS);
}

// The strip that begins with unit `index`, counted over all products, and ends at unit `end` or before, times at
// most TOKENS of a panel.
Strip find_strip(const Product* products, int64_t index, int64_t end) {
    for (; index >= units_of(*products); products++) {
        index -= units_of(*products);
        end -= units_of(*products);
    }
    Product part = *products;
    const int64_t in_weight = units_of(part.weight), first = index / in_weight * TOKENS;
    part.x = part.x.part(first, std::min(TOKENS, part.x.tokens - first));
    part.out += first * part.stride;
    const int64_t row = index % in_weight * unit();
    return {part, row, std::min({STRIP, part.weight.rows - row, (end - index) * unit()})};
}

}  // namespace

void multiply_rows(const Product& product, int64_t low, int64_t high) {
    std::array<Strip, 8> some;
    while (low < high) {
        size_t count = 0;
        for (; low < high && count < some.size(); low += STRIP)
            some[count++] = {product, low, std::min(STRIP, high - low)};
        multiply_strips(some.data(), int64_t(count));
    }
}

void multiply(const Product* products, int64_t count, int threads) {
    int64_t total = 0;
    for (int64_t i = 0; i < count; i++) total += units_of(products[i]);
    // Sequential reads are fastest, and the start of a range was not prefetched. So each thread takes
    // most of its share in one range, and small ranges balance the rest.
    const int64_t large = total * 7 / 8 / threads, rest = total - large * threads;
    const int64_t small = large > 0 ? (rest + 2 * threads - 1) / (2 * threads) : 1;
    const int64_t heads = large > 0 ? threads : 0;  // large ranges, which come first
    auto begin_of = [&](int64_t range) {
        return range <= heads ? range * large
                              : std::min(total, heads * large + (range - heads) * small);
    };
    const int64_t ranges = large > 0 ? 3 * threads : total;
    parallel_for(ranges, 1, threads, [&](int64_t range, int64_t) {
        const int64_t begin = begin_of(range), end = begin_of(range + 1);
        thread_local static Arena arena;
        Scope scope(arena);
        List<Strip> some(arena, end - begin);
        for (int64_t i = begin; i < end; i += (some.back().rows + unit() - 1) / unit())
            some.push_back(find_strip(products, i, end));
        multiply_strips(some.data(), some.size());
    });
}
