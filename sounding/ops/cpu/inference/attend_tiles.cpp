// The two products of attention on tiles. See attend.cpp.

#include "attention.h"
#include "features.h"
#include "tiles.h"

#ifdef WITH_TILES

namespace {

// Transpose 32 keys of [key][head] to rows of heads, rounded to bfloat16.
TILES void transpose_weights(const float* weights, BFloat16* out, int64_t stride) {
    __m512 pairs[16];
    for (int p = 0; p < 16; p++) {
        const __m512 even = _mm512_loadu_ps(weights + (2 * p) * HEADS);
        const __m512 odd = _mm512_loadu_ps(weights + (2 * p + 1) * HEADS);
        const __m512i low = _mm512_cvtepu16_epi32((__m256i)_mm512_cvtneps_pbh(even));
        const __m512i high = _mm512_cvtepu16_epi32((__m256i)_mm512_cvtneps_pbh(odd));
        pairs[p] = _mm512_castsi512_ps(_mm512_or_si512(low, _mm512_slli_epi32(high, 16)));
    }
    transpose16(pairs);
    for (int h = 0; h < HEADS; h++) _mm512_storeu_ps(out + h * stride, pairs[h]);
}

}  // namespace

TILES void scores_with_tiles(const Query& query, const Keys& keys, Arena& arena, float* scores) {
    Scope scope(arena);
    const int64_t d = query.d, heads = query.heads;
    BFloat16* q = arena.take<BFloat16>(d * heads);
    for (int64_t h = 0; h < heads; h++)
        for (int64_t i = 0; i < d; i += 2)
            std::memcpy(q + (i / 2 * heads + h) * 2, query.q + h * d + i, 4);
    configure_tiles({16, 16, 16, 16, 16, 16, 16, 16},
                    {heads, heads, heads, heads, 16, 16, heads, heads});
    const BFloat16* rows = keys.rows + keys.first_block() * d;
    float* tile = arena.take<float>(256);
    for (int64_t k = 0; k < keys.count(); k += KEYS) {
        _tile_zero(0);
        _tile_zero(1);
        for (int64_t i = 0; i < d; i += 32) {
            _tile_loadd(6, q + i * heads, 4 * heads);
            _tile_loadd(4, rows + k * d + i, 2 * d);
            _tile_dpbf16ps(0, 4, 6);
            _tile_loadd(5, rows + (k + 16) * d + i, 2 * d);
            _tile_dpbf16ps(1, 5, 6);
        }
        if (heads == HEADS) {
            _tile_stored(0, scores + k * HEADS, 4 * HEADS);
            _tile_stored(1, scores + (k + 16) * HEADS, 4 * HEADS);
            continue;
        }
        const __mmask16 some = __mmask16((1u << heads) - 1);
        for (int half = 0; half < 2; half++) {
            if (half == 0)
                _tile_stored(0, tile, 4 * heads);
            else
                _tile_stored(1, tile, 4 * heads);
            for (int r = 0; r < 16; r++)
                _mm512_storeu_ps(scores + (k + 16 * half + r) * HEADS,
                                 _mm512_maskz_loadu_ps(some, tile + r * heads));
        }
    }
    _tile_release();
}

TILES void blend_with_tiles(const Query& query, const Keys (&keys)[2], const float* weights,
                            Arena& arena, float* output) {
    Scope scope(arena);
    const int64_t d = query.d, heads = query.heads, total = keys[0].count() + keys[1].count();
    BFloat16* p = arena.take<BFloat16>(HEADS * total);
    for (int64_t k = 0; k < total; k += KEYS) transpose_weights(weights + k * HEADS, p + k, total);
    configure_tiles({heads, heads, heads, heads, heads, heads, 16, 16},
                    {16, 16, 16, 16, 16, 16, 16, 16});
    int64_t i = 0;
    for (; i + 64 <= d; i += 64) {
        _tile_zero(0);
        _tile_zero(1);
        _tile_zero(2);
        _tile_zero(3);
        const BFloat16* share = p;
        for (const Keys& part : keys) {
            if (part.count() == 0) continue;
            for (int64_t k = part.first_block(); k < part.end_block(); k += KEYS, share += KEYS) {
                const BFloat16* pairs = part.pairs + (k * d + 2 * i);
                _tile_loadd(4, share, 2 * total);
                _tile_loadd(6, pairs, 4 * d);
                _tile_dpbf16ps(0, 4, 6);
                _tile_loadd(7, pairs + 32, 4 * d);
                _tile_dpbf16ps(1, 4, 7);
                _tile_loadd(6, pairs + 64, 4 * d);
                _tile_dpbf16ps(2, 4, 6);
                _tile_loadd(7, pairs + 96, 4 * d);
                _tile_dpbf16ps(3, 4, 7);
            }
        }
        _tile_stored(0, output + i, 4 * d);
        _tile_stored(1, output + i + 16, 4 * d);
        _tile_stored(2, output + i + 32, 4 * d);
        _tile_stored(3, output + i + 48, 4 * d);
    }
    for (; i < d; i += 16) {
        _tile_zero(0);
        const BFloat16* share = p;
        for (const Keys& part : keys) {
            if (part.count() == 0) continue;
            for (int64_t k = part.first_block(); k < part.end_block(); k += KEYS, share += KEYS) {
                _tile_loadd(4, share, 2 * total);
                _tile_loadd(6, part.pairs + (k * d + 2 * i), 4 * d);
                _tile_dpbf16ps(0, 4, 6);
            }
        }
        _tile_stored(0, output + i, 4 * d);
    }
    _tile_release();
}

#else

void scores_with_tiles(const Query&, const Keys&, Arena&, float*) {}
void blend_with_tiles(const Query&, const Keys (&)[2], const float*, Arena&, float*) {}

#endif
