// The product of multiply.h on tiles: sixteen outputs times sixteen tokens, 32 columns a step.
//
// Weights are the left operand, whose layout is theirs; a panel's blocks are the right one. The
// order in which an output's terms are added is the instruction's and that of the steps.

#include "multiply.h"
#include "tiles.h"

#ifdef WITH_TILES

namespace {

constexpr int64_t STRIP = 64;   // outputs in flight: four tiles, which hides the unit's latency
constexpr int64_t STEP = 512;   // columns unpacked at a time for few tokens

// Tiles 0 to 3 accumulate, 4 and 5 hold weights, 6 and 7 tokens; 1, 3 and 7 are for a second block.
TILES void configure(int64_t tokens) {
    const int64_t t = tokens;
    configure_tiles({16, 16, 16, 16, 16, 16, 16, 16}, {t, t, t, t, 16, 16, t, t});
}

// An accumulated tile, outputs by tokens, to rows of tokens.
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

// One block of at most sixteen tokens times 64 outputs. `direct` says that the weight is read from
// where it is stored: then the next 64 rows of it are asked for.
TILES INLINE void one_block(const BFloat16* w, int64_t w_bytes, const BFloat16* x, int64_t tokens,
                            int64_t columns, bool direct) {
    const int64_t below = 16 * w_bytes;
    const uint8_t* at = reinterpret_cast<const uint8_t*>(w);
    for (int64_t k = 0; k < columns; k += 32) {
        if (direct)
            for (int64_t row = STRIP; row < 2 * STRIP; row++)
                _mm_prefetch(at + 2 * k + row * w_bytes, _MM_HINT_T1);
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

struct Strip {
    const Product& p;
    int64_t row, rows;
    float* tile;  // room for one

    TILES void zero() const {
        _tile_zero(0);
        _tile_zero(1);
        _tile_zero(2);
        _tile_zero(3);
    }

    // Accumulator `number` belongs to outputs from 16 * part on and to tokens of a block.
    TILES void store(int number, int64_t part, int64_t block) const {
        const int64_t left = rows - 16 * part;
        if (left <= 0) return;
        const int64_t tokens = p.x.in_block(block);
        switch (number) {  // tile numbers are part of the instruction
            case 0: _tile_stored(0, tile, 4 * tokens); break;
            case 1: _tile_stored(1, tile, 4 * tokens); break;
            case 2: _tile_stored(2, tile, 4 * tokens); break;
            default: _tile_stored(3, tile, 4 * tokens);
        }
        float* to = p.out + block * Panel::BLOCK * p.stride + row + 16 * part;
        write(tile, left < 16 ? left : 16, tokens, to, p.stride);
    }

    TILES void last_block(const BFloat16* w, int64_t stride, int64_t block, bool direct) const {
        configure(p.x.in_block(block));
        one_block(w, 2 * stride, p.x.block(block), p.x.in_block(block), p.x.columns, direct);
        for (int part = 0; part < 4; part++) store(part, part, block);
    }

    TILES void block_pairs(const BFloat16* w, int64_t stride, int64_t blocks) const {
        configure(16);
        for (int64_t half = 0; half < rows; half += 32)
            for (int64_t block = 0; block < blocks; block += 2) {
                zero();
                two_blocks(w + half * stride, 2 * stride, p.x.block(block), p.x.block(block + 1),
                           p.x.columns);
                for (int i = 0; i < 4; i++) store(i, half / 16 + i / 2, block + i % 2);
            }
    }
};

// Few tokens: weights are unpacked some columns at a time, which stay in the first-level cache,
// while the accumulators stay in their tiles.
TILES void multiply_few(const Strip& strip, Arena& arena) {
    const Product& p = strip.p;
    const int64_t columns = p.x.columns, tokens = p.x.tokens;
    BFloat16* w = arena.take<BFloat16>(STRIP * STEP);
    if (strip.rows < STRIP) std::fill(w, w + STRIP * STEP, BFloat16{0});
    configure(tokens);
    for (int64_t k = 0; k < columns; k += STEP) {
        const int64_t count = columns - k < STEP ? columns - k : STEP;
        unpack(p.weight, strip.row, strip.rows, k, count, w, STEP);
        one_block(w, 2 * STEP, p.x.data + k * tokens, tokens, count, false);
    }
    for (int part = 0; part < 4; part++) strip.store(part, part, 0);
}

}  // namespace

TILES void multiply_tiles(const Product& p, int64_t row, int64_t rows) {
    thread_local static Arena arena;
    Scope scope(arena);
    const int64_t columns = p.x.columns;
    const Strip strip{p, row, rows, arena.take<float>(256)};
    const bool direct = p.weight.format == BFLOAT16 && rows == STRIP &&
                        columns == p.weight.columns;
    const BFloat16* w;
    int64_t stride;
    if (direct) {
        stride = p.weight.row_bytes / 2;
        w = reinterpret_cast<const BFloat16*>(p.weight.values + row * p.weight.row_bytes);
    } else if (p.x.blocks() == 1) {
        multiply_few(strip, arena);
        _tile_release();
        return;
    } else {
        stride = columns + 32;  // rows a power of two apart would compete for the same cache lines
        BFloat16* room = arena.take<BFloat16>(STRIP * stride);
        if (rows < STRIP) std::fill(room, room + STRIP * stride, BFloat16{0});
        unpack(p.weight, row, rows, 0, columns, room, stride);
        w = room;
    }
    const int64_t full = p.x.tokens / 16 / 2 * 2;
    if (full > 0) strip.block_pairs(w, stride, full);
    for (int64_t block = full; block < p.x.blocks(); block++)
        strip.last_block(w, stride, block, direct);
    _tile_release();
}

#else

void multiply_tiles(const Product&, int64_t, int64_t) {}

#endif
