// Attention and its gradient on tiles, for training. Formulas are those of ops/attention.py.
//
// A row is one head of one query; all heads share the keys, which are values too. ROWS rows at a time
// meet all keys that any of them sees, first those of the window, then compressed entries, 32 by 32:
// their scores, or in the gradient pass their weights and the gradients of their scores, stay in the
// second-level cache until both products with them are done. What a row does not see weighs 0.

#include "../parallel.h"
#include "blocks.h"

#ifdef WITH_TILES

#include <algorithm>
#include <cmath>
#include <cstring>

#include "../inference/arena.h"

#pragma GCC push_options
#pragma GCC target("avx512f,avx512bw,avx512dq,avx512vl,avx512vbmi,avx512bf16,amx-tile,amx-bf16")

namespace {

#include "../numbers.h"

constexpr int64_t ROWS = 128;  // a multiple of SPAN

// As ops/cpu/training/attention.py has it.
struct Sight {
    int64_t queries, window_keys, entries, start;  // of the sequence; the window ends with the last query's key
    int64_t window, ratio;                         // how far back is seen, and how many tokens make an entry
    int32_t heads, width;
    float scale;
};

INLINE int64_t whole(int64_t count) { return (count + SPAN - 1) / SPAN * SPAN; }

// The sequence's keys, window and entries each filled up to a multiple of 32, in both right operands.
struct Keys {
    int64_t near, far;
    BFloat16 *turned, *straight;

    Keys(const Sight& s, const BFloat16* window, const BFloat16* entries, Arena& arena)
        : near(whole(s.window_keys)), far(whole(s.entries)) {
        const int64_t d = s.width, total = near + far;
        turned = arena.take<BFloat16>(total * d);
        straight = arena.take<BFloat16>(total * d);
        BFloat16* rows = arena.take<BFloat16>(total * d);
        BFloat16* end = std::copy(window, window + s.window_keys * d, rows);
        std::fill(end, rows + near * d, BFloat16{0});
        end = std::copy(entries, entries + s.entries * d, rows + near * d);
        std::fill(end, rows + total * d, BFloat16{0});
        pack(rows, total, d, turned, straight);
    }

    int64_t total() const { return near + far; }
};

// Some rows, and the keys they meet: `near` of the window from `first` on, and the first `far` entries.
struct Block {
    const Sight& s;
    int64_t row, rows;  // blank ones fill them up to a multiple of 32
    int64_t first, near, far;

    Block(const Sight& s, int64_t row) : s(s), row(row), rows(std::min(ROWS, s.queries * s.heads - row)) {
        const int64_t query = row / s.heads, last = (row + rows - 1) / s.heads, before = s.window_keys - s.queries;
        first = std::max<int64_t>(0, before + query - s.window + 1) / SPAN * SPAN;
        near = whole(before + last + 1) - first;
        far = s.ratio ? whole(std::min(s.entries, (s.start + last + 1) / s.ratio)) : 0;
    }

    int64_t padded() const { return whole(rows); }
    int64_t keys() const { return near + far; }
    // Where a key of the block stands among all, and in a right operand whose depth they are.
    int64_t place(const Keys& keys, int64_t key) const { return key < near ? first + key : keys.near + key - near; }

    void copy(const BFloat16* from, BFloat16* to) const {
        const int64_t d = s.width;
        BFloat16* end = std::copy(from + row * d, from + (row + rows) * d, to);
        std::fill(end, to + padded() * d, BFloat16{0});
    }
};

// What one row sees: keys [low, high) of the window's part and [0, entries) of the others, of these
// only where `seen` says so, if there is one. All counted within the block.
struct View {
    int64_t low = 0, high = 0, near, entries = 0;
    const uint8_t* seen = nullptr;

    View(const Block& block, int64_t row, const uint8_t* chosen) : near(block.near) {
        if (row >= block.rows) return;
        const Sight& s = block.s;
        const int64_t query = (block.row + row) / s.heads, newest = s.window_keys - s.queries + query - block.first;
        low = std::max<int64_t>(0, newest - s.window + 1);
        high = newest + 1;
        if (s.ratio) entries = std::min(s.entries, (s.start + query + 1) / s.ratio);
        if (chosen) seen = chosen + query * s.entries;
    }

    // Of sixteen keys from `key` on, a bit for each that is seen.
    INLINE __mmask16 of(int64_t key) const {
        if (key < near) return below(high - key) & ~below(low - key);
        const __mmask16 visible = below(entries - (key - near));
        if (!seen || !visible) return visible;
        const __m128i bytes = _mm_maskz_loadu_epi8(visible, seen + key - near);
        return _mm_test_epi8_mask(bytes, bytes);
    }

  private:
    static INLINE __mmask16 below(int64_t count) {
        return count <= 0 ? __mmask16(0) : count >= 16 ? __mmask16(0xffff) : __mmask16((1 << count) - 1);
    }
};

// squares[32][32] = 32 rows of x times 32 keys.
INLINE void product(const BFloat16* x, int64_t d, const BFloat16* turned, float* squares, int64_t stride) {
    clear();
    accumulate(x, x + 16 * d, d, 32, turned, turned + 16 * d, d / 32);
    store_squares(squares, stride);
}

// 32 rows and 32 channels of what rows of weights [rows, keys] give.
INLINE void blend(const Block& block, const Keys& keys, const BFloat16* weights, int64_t channel, float* squares) {
    const int64_t stride = block.keys(), total = keys.total();
    const BFloat16* right = keys.straight + channel * total;
    const BFloat16 *near = right + block.first * 16, *far = right + keys.near * 16;
    clear();
    accumulate(weights, weights + 16 * stride, stride, 32, near, near + 16 * total, block.near / 32);
    weights += block.near;
    accumulate(weights, weights + 16 * stride, stride, 32, far, far + 16 * total, block.far / 32);
    store_squares(squares, SPAN);
}

// A row of scores to weights as they are before they are divided by their sum, which is returned.
float weigh(const View& view, float* scores, int64_t count, float scale, float sink, BFloat16* weights, float& log_sum) {
    const __m512 factor = _mm512_set1_ps(scale);
    Floats top = all(sink), total = {};
    for (int64_t k = 0; k < count; k += 16) {
        const __mmask16 mask = view.of(k);
        const __m512 hidden = _mm512_set1_ps(-INFINITY);
        const __m512 x = _mm512_mask_mul_ps(hidden, mask, _mm512_load_ps(scores + k), factor);
        _mm512_store_ps(scores + k, x);
        raise(top, Floats(x));
    }
    const float most = maximum(top);
    for (int64_t k = 0; k < count; k += 32) {
        const Floats left = exp(Floats(_mm512_load_ps(scores + k)) - most);
        const Floats right = exp(Floats(_mm512_load_ps(scores + k + 16)) - most);
        total += left + right;
        _mm512_storeu_si512(weights + k, rounded(__m512(left), __m512(right)));
    }
    const float sum_of = sum(total) + std::exp(sink - most);
    log_sum = most + std::log(sum_of);
    return sum_of;
}

void attend(const Block& block, const Keys& keys, const BFloat16* q, const uint8_t* seen, const float* sink,
            BFloat16* output, float* log_sums, Arena& arena) {
    Scope scope(arena);
    const int64_t d = block.s.width, count = block.keys(), rows = block.padded();
    BFloat16* queries = arena.take<BFloat16>(rows * d);
    float* scores = arena.take<float>(rows * count);
    BFloat16* weights = arena.take<BFloat16>(rows * count);
    alignas(64) float squares[SPAN * SPAN], sums[ROWS], unused;
    block.copy(q, queries);
    configure_tiles();
    for (int64_t k = 0; k < count; k += SPAN)
        for (int64_t r = 0; r < rows; r += SPAN)
            product(queries + r * d, d, keys.turned + block.place(keys, k) * d, scores + r * count + k, count);
    for (int64_t r = 0; r < rows; r++) {
        const View view(block, r, seen);
        const float own = sink[(block.row + r) % block.s.heads];
        float& log_sum = r < block.rows ? log_sums[block.row + r] : unused;
        sums[r] = weigh(view, scores + r * count, count, block.s.scale, own, weights + r * count, log_sum);
    }
    for (int64_t i = 0; i < d; i += SPAN)
        for (int64_t r = 0; r < rows; r += SPAN) {
            blend(block, keys, weights + r * count, i, squares);
            for (int64_t t = 0; t < std::min(SPAN, block.rows - r); t++) {
                const __m512 share = _mm512_set1_ps(1.0f / sums[r + t]);
                const __m512 left = _mm512_mul_ps(share, _mm512_load_ps(squares + t * SPAN));
                const __m512 right = _mm512_mul_ps(share, _mm512_load_ps(squares + t * SPAN + 16));
                _mm512_storeu_si512(output + (block.row + r + t) * d + i, rounded(left, right));
            }
        }
    _tile_release();
}

struct Given {
    const BFloat16 *q, *output, *grad;
    const uint8_t* seen;
    const float* log_sums;
};

// The weights of 32 rows and keys, and the gradients of their scores.
INLINE void weights_again(const View* views, const float* log_sums, const float* deltas, int64_t key, float scale,
                          const float* scores, const float* moved, BFloat16* weights, BFloat16* of_scores,
                          int64_t stride) {
    for (int64_t t = 0; t < SPAN; t++) {
        Floats p[2], g[2];
        for (int half = 0; half < 2; half++) {
            const int64_t at = t * SPAN + 16 * half;
            const Floats score = Floats(_mm512_load_ps(scores + at)) * scale;
            p[half] = Floats(_mm512_maskz_mov_ps(views[t].of(key + 16 * half), __m512(exp(score - log_sums[t]))));
            g[half] = p[half] * (Floats(_mm512_load_ps(moved + at)) - deltas[t]) * scale;
        }
        _mm512_storeu_si512(weights + t * stride, rounded(__m512(p[0]), __m512(p[1])));
        _mm512_storeu_si512(of_scores + t * stride, rounded(__m512(g[0]), __m512(g[1])));
    }
}

// Adds to grad_keys, which lie as `keys` do.
void attend_backward(const Block& block, const Keys& keys, const Given& given, BFloat16* grad_q, float* grad_keys,
                     float* deltas, Arena& arena) {
    Scope scope(arena);
    const int64_t d = block.s.width, count = block.keys(), rows = block.padded();
    BFloat16* queries = arena.take<BFloat16>(rows * d);
    BFloat16* outer = arena.take<BFloat16>(rows * d);
    BFloat16* weights = arena.take<BFloat16>(rows * count);
    BFloat16* of_scores = arena.take<BFloat16>(rows * count);
    BFloat16* right_queries = arena.take<BFloat16>(rows * d);
    BFloat16* right_outer = arena.take<BFloat16>(rows * d);
    BFloat16* room = arena.take<BFloat16>(3 * SPAN * rows);
    View* views = arena.take<View>(rows);
    alignas(64) float squares[2][SPAN * SPAN], log_sum[ROWS] = {}, delta[ROWS] = {};
    block.copy(given.q, queries);
    block.copy(given.grad, outer);
    std::copy(given.log_sums + block.row, given.log_sums + block.row + block.rows, log_sum);
    for (int64_t r = 0; r < rows; r++) views[r] = View(block, r, given.seen);
    for (int64_t r = 0; r < block.rows; r++) {
        __m512 total = _mm512_setzero_ps();
        for (int64_t i = 0; i < d; i += 32) {
            const __m512i mine = _mm512_loadu_si512(outer + r * d + i);
            const __m512i read = _mm512_loadu_si512(given.output + (block.row + r) * d + i);
            total = _mm512_dpbf16_ps(total, __m512bh(mine), __m512bh(read));
        }
        deltas[block.row + r] = delta[r] = _mm512_reduce_add_ps(total);
    }
    for (int64_t k = 0; k < count; k += SPAN) {
        const BFloat16* turned = keys.turned + block.place(keys, k) * d;
        for (int64_t r = 0; r < rows; r += SPAN) {
            product(queries + r * d, d, turned, squares[0], SPAN);
            product(outer + r * d, d, turned, squares[1], SPAN);
            weights_again(views + r, log_sum + r, delta + r, k, block.s.scale, squares[0], squares[1],
                          weights + r * count + k, of_scores + r * count + k, count);
        }
    }
    for (int64_t i = 0; i < d; i += SPAN)
        for (int64_t r = 0; r < rows; r += SPAN) {
            blend(block, keys, of_scores + r * count, i, squares[0]);
            for (int64_t t = 0; t < std::min(SPAN, block.rows - r); t++) {
                const __m512 left = _mm512_load_ps(squares[0] + t * SPAN), right = _mm512_load_ps(squares[0] + t * SPAN + 16);
                _mm512_storeu_si512(grad_q + (block.row + r + t) * d + i, rounded(left, right));
            }
        }
    pack_rows(queries, d, rows, d, right_queries);
    pack_rows(outer, d, rows, d, right_outer);
    BFloat16 *left_scores = room + SPAN * rows, *left_weights = left_scores + SPAN * rows;
    for (int64_t k = 0; k < count; k += SPAN) {
        pack_columns(of_scores + k, count, rows, room, left_scores);
        pack_columns(weights + k, count, rows, room, left_weights);
        float* to = grad_keys + block.place(keys, k) * d;
        for (int64_t i = 0; i < d; i += SPAN) {
            const BFloat16 *q = right_queries + i * rows, *g = right_outer + i * rows;
            load_squares(to + i, d);
            accumulate(left_scores, left_scores + 16 * rows, 32, TILE, q, q + 16 * rows, rows / 32);
            accumulate(left_weights, left_weights + 16 * rows, 32, TILE, g, g + 16 * rows, rows / 32);
            store_squares(to + i, d);
        }
    }
}

void attend_backward(const Sight& s, const Keys& keys, const Given& given, BFloat16* grad_q, float* grad_keys,
                     float* deltas, Arena& arena) {
    configure_tiles();
    for (int64_t row = 0; row < s.queries * s.heads; row += ROWS)
        attend_backward(Block(s, row), keys, given, grad_q, grad_keys, deltas, arena);
    _tile_release();
}

void put_rounded(const float* from, int64_t count, BFloat16* to) {
    for (int64_t i = 0; i < count; i += 32)
        _mm512_storeu_si512(to + i, rounded(_mm512_loadu_ps(from + i), _mm512_loadu_ps(from + i + 16)));
}

}  // namespace

#pragma GCC pop_options

extern "C" {

// seen[query][entry] is null where every complete entry is seen.
void train_attend(const Sight* sight, int threads, const BFloat16* q, const BFloat16* window, const BFloat16* entries,
                  const uint8_t* seen, const float* sink, BFloat16* output, float* log_sums) {
    thread_local static Arena arena;
    Scope scope(arena);
    const Keys keys(*sight, window, entries, arena);
    parallel_for(sight->queries * sight->heads, ROWS, threads, [&](int64_t low, int64_t) {
        thread_local static Arena own;
        attend(Block(*sight, low), keys, q, seen, sink, output, log_sums, own);
    });
}

// Gradients of keys are sums over queries: one thread adds them up, in order.
void train_attend_backward(const Sight* sight, const BFloat16* q, const BFloat16* window, const BFloat16* entries,
                           const uint8_t* seen, const BFloat16* output, const float* log_sums, const BFloat16* grad,
                           BFloat16* grad_q, BFloat16* grad_window, BFloat16* grad_entries, float* deltas) {
    thread_local static Arena arena;
    Scope scope(arena);
    const Keys keys(*sight, window, entries, arena);
    const int64_t d = sight->width;
    float* grad_keys = arena.take<float>(keys.total() * d);
    std::fill(grad_keys, grad_keys + keys.total() * d, 0.0f);
    attend_backward(*sight, keys, {q, output, grad, seen, log_sums}, grad_q, grad_keys, deltas, arena);
    put_rounded(grad_keys, sight->window_keys * d, grad_window);
    put_rounded(grad_keys + keys.near * d, sight->entries * d, grad_entries);
}
}

#endif
