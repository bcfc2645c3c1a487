// The two products of attention with pairwise bfloat16 dot products. See attend.cpp.

#include "attention.h"
#include "pairs.h"
#include "../parallel.h"

#ifdef WITH_TILES

namespace {

constexpr int64_t TOGETHER = 8;  // heads
constexpr int64_t IN_TURN = 96;  // keys per range of a thread, which scores three at a time

// Scores of eight heads and T keys.
template <int T>
AVX512 INLINE void some_scores(const BFloat16* q, const BFloat16* rows, int64_t d, float* scores) {
    __m512 sums[TOGETHER][T];
    clear(sums);
    NobodyAsks ahead;
    add_products(sums, q, d, rows, d, d, ahead);
    for (int t = 0; t < T; t++) _mm256_storeu_ps(scores + t * HEADS, add_lanes(sums, 0, t));
}

// The weights of two keys, side by side for each head.
AVX512 INLINE __m512i pair_weights(const float* weights) {
    const __m512i even = _mm512_cvtepu16_epi32(__m256i(_mm512_cvtneps_pbh(_mm512_loadu_ps(weights))));
    const __m512i odd = _mm512_cvtepu16_epi32(__m256i(_mm512_cvtneps_pbh(_mm512_loadu_ps(weights + HEADS))));
    return _mm512_or_si512(even, _mm512_slli_epi32(odd, 16));
}
AVX512 void store_pair_weights(const float* weights, int64_t keys, int32_t* pairs) {
    for (int64_t k = 0; k < keys; k += 2)
        _mm512_storeu_si512(pairs + k / 2 * HEADS, pair_weights(weights + k * HEADS));
}

// The output channels [i, i + 32) of at most eight heads. Rows are interleaved four channels at a time, so `first`
// and `last` are reordered at the end.
AVX512 void blend_channels(const Keys (&keys)[2], const int32_t* weights, int64_t d, int64_t i,
                           int64_t heads, float* output) {
    __m512 first[TOGETHER], last[TOGETHER];
    for (int h = 0; h < TOGETHER; h++) first[h] = last[h] = _mm512_setzero_ps();
    for (const Keys& part : keys) {
        if (part.count() == 0) continue;
        const BFloat16* rows = part.rows + part.first_block() * d + i;
        for (int64_t k = 0; k < part.count(); k += 2, rows += 2 * d, weights += HEADS) {
            const __m512i even = _mm512_loadu_si512(rows), odd = _mm512_loadu_si512(rows + d);
            const __m512bh low = __m512bh(_mm512_unpacklo_epi16(even, odd));
            const __m512bh high = __m512bh(_mm512_unpackhi_epi16(even, odd));
            for (int h = 0; h < TOGETHER; h++) {
                const __m512bh weight = __m512bh(_mm512_set1_epi32(weights[h]));
                first[h] = _mm512_dpbf16_ps(first[h], weight, low);
                last[h] = _mm512_dpbf16_ps(last[h], weight, high);
            }
        }
    }
    const __m512i order = _mm512_setr_epi32(0, 1, 2, 3, 16, 17, 18, 19, 4, 5, 6, 7, 20, 21, 22, 23);
    const __m512i behind = _mm512_add_epi32(order, _mm512_set1_epi32(8));
    for (int h = 0; h < heads; h++) {
        float* to = output + h * d + i;
        _mm512_storeu_ps(to, _mm512_permutex2var_ps(first[h], order, last[h]));
        _mm512_storeu_ps(to + 16, _mm512_permutex2var_ps(first[h], behind, last[h]));
    }
}

// Scores of `count` keys.
AVX512 void score_keys(const Query& query, const BFloat16* q, const BFloat16* rows, int64_t count, float* scores) {
    const int64_t d = query.d;
    for (int64_t h = 0; h < HEADS; h += TOGETHER) {
        if (h >= query.heads) {
            for (int64_t k = 0; k < count; k++) _mm256_storeu_ps(scores + k * HEADS + h, _mm256_setzero_ps());
            continue;
        }
        int64_t k = 0;
        for (; k + 3 <= count; k += 3) some_scores<3>(q + h * d, rows + k * d, d, scores + k * HEADS + h);
        for (; k < count; k++) some_scores<1>(q + h * d, rows + k * d, d, scores + k * HEADS + h);
    }
}

}  // namespace

void scores_with_pairs(const Query& query, const Keys& keys, int threads, Arena& arena, float* scores) {
    Scope scope(arena);
    const int64_t d = query.d;
    BFloat16* q = arena.take<BFloat16>(HEADS * d);
    std::copy(query.q, query.q + query.heads * d, q);
    std::fill(q + query.heads * d, q + HEADS * d, BFloat16{0});
    const BFloat16* rows = keys.rows + keys.first_block() * d;
    parallel_for(keys.count(), IN_TURN, threads, [&](int64_t low, int64_t high) {
        score_keys(query, q, rows + low * d, high - low, scores + low * HEADS);
    });
}

void blend_with_pairs(const Query& query, const Keys (&keys)[2], const float* weights, int threads, Arena& arena,
                      float* output) {
    Scope scope(arena);
    const int64_t total = keys[0].count() + keys[1].count();
    int32_t* pairs = arena.take<int32_t>(total / 2 * HEADS);
    store_pair_weights(weights, total, pairs);
    const int64_t parts = query.d / 32;  // 32 channels of some heads at a time
    const int64_t all = (query.heads + TOGETHER - 1) / TOGETHER * parts;
    parallel_for(all, (parts + 1) / 2, threads, [&](int64_t low, int64_t high) {
        for (int64_t part = low; part < high; part++) {
            const int64_t h = part / parts * TOGETHER;
            blend_channels(keys, pairs + h, query.d, part % parts * 32, std::min(TOGETHER, query.heads - h),
                           output + h * query.d);
        }
    });
}

#else

void scores_with_pairs(const Query&, const Keys&, int, Arena&, float*) {}
void blend_with_pairs(const Query&, const Keys (&)[2], const float*, int, Arena&, float*) {}

#endif
