// The product of multiply.h on tiles: sixteen outputs times sixteen tokens, 32 columns a step.
//
// Weights are the left operand, in their stored layout; the blocks of a panel are the right one. The terms
// of an output are added in the order of the instruction and of the steps.

#include "multiply.h"

#include <algorithm>
#include <utility>

#include "tiles.h"

#ifdef WITH_TILES

namespace {

constexpr int64_t ROWS = STRIP / 2, STEP = 128;  // unpacked at a time for few tokens

// A strip has four accumulators, which hides the latency of the unit. Tiles 0 to 3 accumulate, 4 and 5 hold
// weights, 6 and 7 tokens; 1, 3 and 7 are for a second block. Half a strip uses 0 and 1.
TILES void configure(int64_t tokens) {
    const int64_t t = tokens;
    configure_tiles({16, 16, 16, 16, 16, 16, 16, 16}, {t, t, t, t, 16, 16, t, t});
}

// Transpose an accumulated tile from outputs by tokens to rows of tokens.
TILES void write(const float* tile, int64_t rows, int64_t tokens, float* out, int64_t stride) {
    if (tokens == 1) {
        for (int64_t r = 0; r < rows; r++) out[r] = tile[r];
        return;
    }
    __m512 r[16];
    const __mmask16 some = __mmask16((1u << tokens) - 1);
    for (int i = 0; i < 16; i++) r[i] = _mm512_maskz_loadu_ps(some, tile + i * tokens);
    transpose16(r);
    const __mmask16 kept = __mmask16((1u << rows) - 1);
    for (int64_t t = 0; t < tokens; t++) _mm512_mask_storeu_ps(out + t * stride, kept, r[t]);
}

// One block of at most sixteen tokens times a strip. If the strip is read in place, as much is prefetched from
// `soon` on.
TILES INLINE void one_block(const BFloat16* w, int64_t w_bytes, const BFloat16* x, int64_t tokens,
                            int64_t columns, const uint8_t* soon = nullptr) {
    const int64_t below = 16 * w_bytes;
    const uint8_t* at = reinterpret_cast<const uint8_t*>(w);
    for (int64_t k = 0; k < columns; k += 32) {
        if (soon != nullptr)
            for (int64_t row = 0; row < STRIP; row++, soon += 64) _mm_prefetch(soon, _MM_HINT_T1);
        _tile_loadd(6, x + k * tokens, 4 * tokens);
        _tile_loadd(4, at + 2 * k, w_bytes);
        _tile_dpbf16ps(0, 4, 6);
        _tile_loadd(5, at + 2 * k + below, w_bytes);
        _tile_dpbf16ps(1, 5, 6);
        _tile_loadd(4, at + 2 * k + 2 * below, w_bytes);
        _tile_dpbf16ps(2, 4, 6);
        _tile_loadd(5, at + 2 * k + 3 * below, w_bytes);
        _tile_dpbf16ps(3, 5, 6);
    }
}

// Two full blocks times 32 outputs.
TILES INLINE void two_blocks(const BFloat16* w, int64_t w_bytes, const BFloat16* x,
                             const BFloat16* x2, int64_t columns) {
    const uint8_t* at = reinterpret_cast<const uint8_t*>(w);
    for (int64_t k = 0; k < columns; k += 32) {
        _tile_loadd(4, at + 2 * k, w_bytes);
        _tile_loadd(6, x + k * 16, 64);
        _tile_dpbf16ps(0, 4, 6);
        _tile_loadd(7, x2 + k * 16, 64);
        _tile_dpbf16ps(1, 4, 7);
        _tile_loadd(5, at + 2 * k + 16 * w_bytes, w_bytes);
        _tile_dpbf16ps(2, 5, 6);
        _tile_dpbf16ps(3, 5, 7);
    }
}

TILES INLINE void zero() {
    _tile_zero(0);
    _tile_zero(1);
    _tile_zero(2);
    _tile_zero(3);
}

// Store accumulator `number`: outputs from 16 * part on, for the tokens of a block.
TILES void store(const Strip& strip, int number, int64_t part, int64_t block) {
    const Product& p = strip.product;
    const int64_t left = strip.rows - 16 * part;
    if (left <= 0) return;
    const int64_t tokens = p.x.in_block(block);
    float room[256];
    float* to = p.out + block * Panel::BLOCK * p.stride + strip.row + 16 * part;
    const bool straight = tokens == 1 && left >= 16;  // a column is stored as it is
    float* through = straight ? to : room;
    switch (number) {  // tile numbers are part of the instruction
        case 0: _tile_stored(0, through, 4 * tokens); break;
        case 1: _tile_stored(1, through, 4 * tokens); break;
        case 2: _tile_stored(2, through, 4 * tokens); break;
        default: _tile_stored(3, through, 4 * tokens);
    }
    if (!straight) write(room, left < 16 ? left : 16, tokens, to, p.stride);
}

// True if a weight is multiplied in place.
bool direct(const Strip& strip) {
    const Weight& weight = strip.product.weight;
    return weight.format == BFLOAT16 && strip.rows == STRIP &&
           strip.product.x.columns == weight.columns;
}

// True if there are so few tokens that a weight is better unpacked a few columns at a time.
bool few(const Strip& strip) { return strip.product.x.blocks() == 1 && !direct(strip); }

// Half a strip, or what there is of one, in a list of strips.
struct Half {
    const Strip *strip, *end;
    int64_t row;  // its first row within the strip

    bool exists() const { return strip != end; }
    Half next() const { return row + ROWS < strip->rows ? Half{strip, end, row + ROWS} : Half{strip + 1, end, 0}; }
    const uint8_t* begin() const { return strip->begin() + row * strip->product.weight.row_bytes; }
};

// Unpack some columns of eight of its rows to their place in `w`.
TILES INLINE const uint8_t* unpack_part(const Half& half, int64_t part, int64_t k, BFloat16* w,
                                        const uint8_t* soon) {
    const Strip& strip = *half.strip;
    const int64_t row = half.row + 8 * part, rows = std::min<int64_t>(8, strip.rows - row);
    if (rows <= 0) return soon;
    return unpack(strip.product.weight, strip.row + row, rows, k,
                  std::min(STEP, strip.product.x.columns - k), w + 8 * part * STEP, STEP, soon);
}

// Some tokens times 32 columns of half a strip, unpacked in `w`.
TILES INLINE void add_products(const BFloat16* w, const BFloat16* x, int64_t tokens) {
    _tile_loadd(6, x, 4 * tokens);
    _tile_loadd(4, w, 2 * STEP);
    _tile_dpbf16ps(0, 4, 6);
    _tile_loadd(5, w + 16 * STEP, 2 * STEP);
    _tile_dpbf16ps(1, 5, 6);
}

// Strips with few tokens, half a strip at a time: weights are unpacked a few columns at a time, which fit the
// first-level cache even if another thread shares it, while the accumulators stay in their tiles. The next
// columns, of this half or of the next one, are unpacked between the products of the current ones, which run in
// parallel. Missing rows of a half contain arbitrary data; their products are not stored.
TILES void multiply_few(const Strip* strips, int64_t count, const uint8_t* after, Arena& arena) {
    BFloat16* now = arena.take<BFloat16>(ROWS * STEP);
    BFloat16* then = arena.take<BFloat16>(ROWS * STEP);
    Half half{strips, strips + count, 0};
    auto behind = [&](const Half& one) {
        const Half next = one.next();
        return next.exists() ? next.begin() : after;
    };
    const uint8_t* soon = behind(half);
    for (int64_t part = 0; part < 4; part++) soon = unpack_part(half, part, 0, then, soon);
    int64_t configured = 0;
    while (half.exists()) {
        const Half next = half.next();
        const Panel& x = half.strip->product.x;
        if (x.tokens != configured)
            configure(configured = x.tokens);
        else
            zero();
        for (int64_t k = 0; k < x.columns; k += STEP) {
            std::swap(now, then);
            const bool last = k + STEP >= x.columns;
            const Half& source = last ? next : half;
            if (last && next.exists()) soon = behind(next);
            for (int64_t part = 0; part < 4; part++) {
                const int64_t at = k + 32 * part;
                if (at < x.columns) add_products(now + 32 * part, x.data + at * x.tokens, x.tokens);
                if (source.exists()) soon = unpack_part(source, part, last ? 0 : k + STEP, then, soon);
            }
        }
        for (int part = 0; part < 2; part++) store(*half.strip, part, half.row / 16 + part, 0);
        half = next;
    }
}

// A strip with more tokens, or without unpacking.
TILES void multiply_many(const Strip& strip, const uint8_t* soon, Arena& arena) {
    const Product& p = strip.product;
    const int64_t columns = p.x.columns;
    const BFloat16* w = reinterpret_cast<const BFloat16*>(strip.begin());
    int64_t stride = p.weight.row_bytes / 2;
    if (!direct(strip)) {
        stride = columns + 32;  // a power of two would let rows compete for the same cache sets
        BFloat16* room = arena.take<BFloat16>(STRIP * stride);
        if (strip.rows < STRIP) std::fill(room, room + STRIP * stride, BFloat16{0});
        unpack(p.weight, strip.row, strip.rows, 0, columns, room, stride, soon);
        soon = nullptr;
        w = room;
    }
    const int64_t pairs = p.x.tokens / 32 * 2;
    if (pairs > 0) configure(16);
    for (int64_t half = 0; half < strip.rows; half += 32)
        for (int64_t block = 0; block < pairs; block += 2) {
            zero();
            two_blocks(w + half * stride, 2 * stride, p.x.block(block), p.x.block(block + 1),
                       columns);
            for (int i = 0; i < 4; i++) store(strip, i, half / 16 + i / 2, block + i % 2);
        }
    for (int64_t block = pairs; block < p.x.blocks(); block++) {
        configure(p.x.in_block(block));
        one_block(w, 2 * stride, p.x.block(block), p.x.in_block(block), columns, soon);
        for (int part = 0; part < 4; part++) store(strip, part, part, block);
    }
}

}  // namespace

TILES void multiply_tiles(const Strip* strips, int64_t count) {
    thread_local static Arena arena;
    for (int64_t i = 0; i < count;) {
        Scope scope(arena);
        int64_t end = i;
        while (end < count && few(strips[end])) end++;
        const bool alone = end == i;
        end += alone;
        const Weight& last = strips[end - 1].product.weight;
        const uint8_t* after = end < count ? strips[end].begin()
                                           : strips[end - 1].begin() + STRIP * last.row_bytes;
        if (alone)
            multiply_many(strips[i], after, arena);
        else
            multiply_few(strips + i, end - i, after, arena);
        i = end;
    }
    _tile_release();
}

#else

void multiply_tiles(const Strip*, int64_t) {}

#endif
