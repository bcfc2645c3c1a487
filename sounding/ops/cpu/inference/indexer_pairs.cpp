// Index scores with pairwise bfloat16 dot products, without tiles: sixteen keys at a time, one per lane.
//
// Keys have few columns, so reducing the lanes of a register for each product would take as long as the
// products. With one key per lane no reduction is needed, and queries are processed one by one.

#include "indexer.h"

#include <algorithm>

#include "codes.h"
#include "pairs.h"

#ifdef WITH_TILES

namespace {

constexpr int64_t COLUMNS = 128;                   // whose codes fill a register
constexpr int64_t GROUPS = 4, KEYS = 16 * GROUPS;  // groups of keys, and keys, at a time

using Sixteen = __m512[16];

// The 32 columns from 32 * part on of sixteen rows of bfloat16, as sixteen pairs of columns.
AVX512 INLINE void turn_stored(const uint8_t* const (&rows)[16], int64_t part, __m512i* pairs) {
    Sixteen keys;
    for (int i = 0; i < 16; i++) keys[i] = _mm512_loadu_ps(rows[i] + 64 * part);
    transpose16(keys);
    for (int i = 0; i < 16; i++) pairs[i] = _mm512_castps_si512(keys[i]);
}

// The 128 columns from 128 * part on of sixteen rows of FP4: a word of 32 bits has eight codes, of which the
// first and the fifth, the second and the sixth, and so on become pairs.
AVX512 INLINE void turn_packed(const uint8_t* const (&rows)[16], int64_t width, int64_t part, const Fp4Table& table,
                               __m512i* pairs) {
    Sixteen keys;
    int32_t four[16];
    for (int i = 0; i < 16; i++) {
        keys[i] = _mm512_loadu_ps(rows[i] + 64 * part);
        std::memcpy(&four[i], rows[i] + width / 2 + 4 * part, 4);
    }
    transpose16(keys);
    const __m512i scales = _mm512_loadu_si512(four);
    for (int block = 0; block < 4; block++) {
        const __m512i scale = _mm512_and_si512(_mm512_srli_epi32(scales, unsigned(8 * block)), _mm512_set1_epi32(255));
        const __m512i both = _mm512_or_si512(scale, _mm512_slli_epi32(scale, 16));
        const __m512i lack = _mm512_sub_epi16(table.most, _mm512_slli_epi16(both, 7));
        for (int word = 4 * block; word < 4 * block + 4; word++)
            for (int code = 0; code < 4; code++)
                *pairs++ = table.numbers(_mm512_castps_si512(keys[word]), code, lack);
    }
}

AVX512 void turn(const uint8_t* const (&rows)[16], const Weight& keys, const Fp4Table& table, __m512i* pairs) {
    if (keys.format == FP4)
        for (int64_t part = 0; part < keys.columns / COLUMNS; part++)
            turn_packed(rows, keys.columns, part, table, pairs + part * COLUMNS / 2);
    else
        for (int64_t part = 0; part < keys.columns / 32; part++) turn_stored(rows, part, pairs + 16 * part);
}

// totals[query][key] += weight * relu(<query, key>) for R rows of queries and GROUPS times sixteen keys, as
// independent products.
template <int R>
AVX512 INLINE void add_rows(const __m512i* keys, int64_t pairs, const int32_t* rows, const float* weights,
                            int64_t first, int64_t heads, float* totals) {
    __m512 sums[R][GROUPS];
    clear(sums);
    for (int64_t p = 0; p < pairs; p++) {
        __m512bh key[GROUPS];
        for (int g = 0; g < GROUPS; g++) key[g] = __m512bh(keys[g * pairs + p]);
        for (int r = 0; r < R; r++) {
            const __m512bh query = __m512bh(_mm512_set1_epi32(rows[r * pairs + p]));
            for (int g = 0; g < GROUPS; g++) sums[r][g] = _mm512_dpbf16_ps(sums[r][g], query, key[g]);
        }
    }
    for (int r = 0; r < R; r++)
        for (int g = 0; g < GROUPS; g++) {
            float* total = totals + (first + r) / heads * KEYS + 16 * g;
            const __m512 open = _mm512_max_ps(_mm512_setzero_ps(), sums[r][g]);  // NaN is kept
            _mm512_storeu_ps(total, _mm512_fmadd_ps(open, _mm512_set1_ps(weights[r]), _mm512_loadu_ps(total)));
        }
}

}  // namespace

bool index_pairs_serve(int64_t width) { return has_pairs() && !has_tiles() && width % COLUMNS == 0; }

void order_pairs(const BFloat16* row, int64_t width, bool packed, int32_t* pairs) {
    for (int64_t i = 0; i < width; i += packed ? 8 : 2)
        for (int64_t code = 0; code < (packed ? 4 : 1); code++) {
            const BFloat16 pair[2] = {row[i + code], row[i + code + (packed ? 4 : 1)]};
            std::memcpy(pairs++, pair, sizeof pair);
        }
}

AVX512 void index_scores(const Weight& keys, int64_t low, int64_t high, const int32_t* rows, const float* weights,
                         int64_t queries, int64_t heads, float* scores, int64_t stride, Arena& arena) {
    Scope scope(arena);
    const Fp4Table table;
    const int64_t width = keys.columns, pairs = width / 2, count = queries * heads;
    __m512i* turned = arena.take<__m512i>(GROUPS * pairs);
    float* totals = arena.take<float>(queries * KEYS);
    for (int64_t key = low; key < high; key += KEYS) {
        for (int64_t g = 0; g < GROUPS; g++) {
            const uint8_t* each[16];
            for (int64_t i = 0; i < 16; i++)
                each[i] = keys.values + std::min(key + 16 * g + i, high - 1) * keys.row_bytes;
            turn(each, keys, table, turned + g * pairs);
            const uint8_t* next = keys.values + (key + KEYS + 16 * g) * keys.row_bytes;
            for (int64_t i = 0; i < 16 * keys.row_bytes; i += 64) _mm_prefetch(next + i, _MM_HINT_NTA);
        }
        std::fill(totals, totals + queries * KEYS, 0.0f);
        int64_t row = 0;
        for (; row + 4 <= count; row += 4)
            add_rows<4>(turned, pairs, rows + row * pairs, weights + row, row, heads, totals);
        for (; row < count; row++)
            add_rows<1>(turned, pairs, rows + row * pairs, weights + row, row, heads, totals);
        for (int64_t q = 0; q < queries; q++)
            std::copy_n(totals + q * KEYS, std::min(KEYS, high - key), scores + q * stride + key - low);
    }
}

#else

bool index_pairs_serve(int64_t) { return false; }
void order_pairs(const BFloat16*, int64_t, bool, int32_t*) {}
void index_scores(const Weight&, int64_t, int64_t, const int32_t*, const float*, int64_t, int64_t, float*, int64_t,
                  Arena&) {}

#endif
