// Index scores by inner products of pairs of bfloat16, without tiles: sixteen keys side by side.
//
// Keys are few columns wide, so adding up the lanes of a register for each product would take as long as
// the products. With a key in each lane there is nothing to add up, and queries come one by one.

#include "indexer.h"

#include <algorithm>

#include "codes.h"
#include "pairs.h"

#ifdef WITH_TILES

namespace {

constexpr int64_t COLUMNS = 128;                   // that one register has the codes of
constexpr int64_t GROUPS = 4, KEYS = 16 * GROUPS;  // of keys, and keys, at a time

using Sixteen = __m512[16];

// Columns 32 * part ... of sixteen rows of bfloat16 as sixteen pairs of columns.
AVX512 INLINE void turn_stored(const uint8_t* const (&rows)[16], int64_t part, __m512i* pairs) {
    Sixteen keys;
    for (int i = 0; i < 16; i++) keys[i] = _mm512_loadu_ps(rows[i] + 64 * part);
    transpose16(keys);
    for (int i = 0; i < 16; i++) pairs[i] = _mm512_castps_si512(keys[i]);
}

// Columns 128 * part ... of sixteen rows of FP4: a word of 32 bits has eight codes, of which the first and
// the fifth, the second and the sixth, and so on become pairs.
struct Packed {
    Sixteen words;
    __m512i scales;  // of four blocks of columns each

    AVX512 INLINE void load(const uint8_t* const (&rows)[16], int64_t width, int64_t part) {
        int32_t four[16];
        for (int i = 0; i < 16; i++) {
            words[i] = _mm512_loadu_ps(rows[i] + 64 * part);
            std::memcpy(&four[i], rows[i] + width / 2 + 4 * part, 4);
        }
        transpose16(words);
        scales = _mm512_loadu_si512(four);
    }
    // What the exponents of a block lack, see Fp4Table.
    AVX512 INLINE __m512i lacking(int block, const Fp4Table& table) const {
        const __m512i scale = _mm512_and_si512(_mm512_srli_epi32(scales, unsigned(8 * block)), _mm512_set1_epi32(255));
        const __m512i both = _mm512_or_si512(scale, _mm512_slli_epi32(scale, 16));
        return _mm512_sub_epi16(table.most, _mm512_slli_epi16(both, 7));
    }
};
AVX512 INLINE void turn_packed(const uint8_t* const (&rows)[16], int64_t width, int64_t part, const Fp4Table& table,
                               __m512i* pairs) {
    Packed keys;
    keys.load(rows, width, part);
    for (int block = 0; block < 4; block++) {
        const __m512i lack = keys.lacking(block, table);
        for (int word = 4 * block; word < 4 * block + 4; word++)
            for (int code = 0; code < 4; code++)
                *pairs++ = table.numbers(_mm512_castps_si512(keys.words[word]), code, lack);
    }
}

AVX512 void turn(const uint8_t* const (&rows)[16], const Weight& keys, const Fp4Table& table, __m512i* pairs) {
    if (keys.format == FP4)
        for (int64_t part = 0; part < keys.columns / COLUMNS; part++)
            turn_packed(rows, keys.columns, part, table, pairs + part * COLUMNS / 2);
    else
        for (int64_t part = 0; part < keys.columns / 32; part++) turn_stored(rows, part, pairs + 16 * part);
}

// totals[query][key] += weight * relu(<query, key>) of R rows of queries and GROUPS times sixteen keys:
// products that do not wait for each other.
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
            const __m512 open = _mm512_max_ps(_mm512_setzero_ps(), sums[r][g]);  // not a number stays one
            _mm512_storeu_ps(total, _mm512_fmadd_ps(open, _mm512_set1_ps(weights[r]), _mm512_loadu_ps(total)));
        }
}

// The same of FEW rows, which are one query, and twice sixteen packed keys, whose numbers are multiplied as they are
// made: to write them down and read them again takes longer than so few products.
constexpr int FEW = 4, TWICE = 2;
AVX512 INLINE void score_few(const uint8_t* const (&keys)[TWICE][16], int64_t width, const int32_t* rows,
                             const float* weights, const Fp4Table& table, float* totals) {
    __m512 sums[FEW][TWICE];
    clear(sums);
    const int32_t* pair = rows;
    for (int64_t part = 0; part < width / COLUMNS; part++) {
        Packed packed[TWICE];
        for (int g = 0; g < TWICE; g++) packed[g].load(keys[g], width, part);
        for (int block = 0; block < 4; block++) {
            __m512i lack[TWICE];
            for (int g = 0; g < TWICE; g++) lack[g] = packed[g].lacking(block, table);
            for (int word = 4 * block; word < 4 * block + 4; word++)
                for (int code = 0; code < 4; code++, pair++) {
                    __m512bh key[TWICE];
                    for (int g = 0; g < TWICE; g++)
                        key[g] = __m512bh(table.numbers(_mm512_castps_si512(packed[g].words[word]), code, lack[g]));
                    for (int r = 0; r < FEW; r++) {
                        const __m512bh query = __m512bh(_mm512_set1_epi32(pair[r * width / 2]));
                        for (int g = 0; g < TWICE; g++) sums[r][g] = _mm512_dpbf16_ps(sums[r][g], query, key[g]);
                    }
                }
        }
    }
    for (int g = 0; g < TWICE; g++) {
        __m512 total = _mm512_setzero_ps();
        for (int r = 0; r < FEW; r++) {
            const __m512 open = _mm512_max_ps(_mm512_setzero_ps(), sums[r][g]);
            total = _mm512_fmadd_ps(open, _mm512_set1_ps(weights[r]), total);
        }
        _mm512_storeu_ps(totals + 16 * g, total);
    }
}

// Sixteen keys from one on, the last of them again behind it; those that follow soon are asked for.
AVX512 INLINE void find_keys(const Weight& keys, int64_t key, int64_t high, const uint8_t* (&each)[16]) {
    for (int64_t i = 0; i < 16; i++) each[i] = keys.values + std::min(key + i, high - 1) * keys.row_bytes;
    const uint8_t* next = keys.values + (key + KEYS) * keys.row_bytes;
    for (int64_t i = 0; i < 16 * keys.row_bytes; i += 64) _mm_prefetch(next + i, _MM_HINT_NTA);
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
    float* totals = arena.take<float>(queries * KEYS);
    if (queries == 1 && heads == FEW && keys.format == FP4) {
        for (int64_t key = low; key < high; key += 16 * TWICE) {
            const uint8_t* each[TWICE][16];
            for (int g = 0; g < TWICE; g++) find_keys(keys, key + 16 * g, high, each[g]);
            score_few(each, width, rows, weights, table, totals);
            std::copy_n(totals, std::min<int64_t>(16 * TWICE, high - key), scores + key - low);
        }
        return;
    }
    __m512i* turned = arena.take<__m512i>(GROUPS * pairs);
    for (int64_t key = low; key < high; key += KEYS) {
        for (int64_t g = 0; g < GROUPS; g++) {
            const uint8_t* each[16];
            find_keys(keys, key + 16 * g, high, each);
            turn(each, keys, table, turned + g * pairs);
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
