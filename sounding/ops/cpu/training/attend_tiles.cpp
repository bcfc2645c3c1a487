// Attention for training, on tiles: forward, and the gradients of queries and keys. The formulas are those of
// ops/attention.py; inputs and outputs are bfloat16, scores and sums float32.
//
// All heads share the keys, which are also the values. A row is one head of a query, so that rows times
// keys are one product. Keys are those of the window, then the entries, each padded with zeros to blocks
// of 32. They are packed once: as K^T for scores, and as K for the outputs. A thread processes ROWS rows
// at a time and only the blocks of keys that one of them sees. Their scores fit the second-level cache,
// so that the softmax of a row needs a single pass.
//
// The gradient of a key is a sum over rows that several threads compute. Rows are processed in groups: first
// each thread computes the weights and score gradients of ROWS rows, then for each block of keys one thread
// adds up their contributions in the order of rows. Bits do not depend on the number of threads.

#include <algorithm>
#include <cmath>
#include <vector>

#include "../inference/arena.h"
#include "../parallel.h"
#include "blocks.h"

// The arguments of attention and their sizes: q [queries, heads, width], window [before + queries, width],
// entries [num_entries, width], and selected [queries, picks], which is null if every entry is.
struct Attention {
    int64_t queries, heads, width, before, num_entries, picks, start, sliding_window, ratio;
    const BFloat16 *q, *window, *entries;
    const int64_t* selected;
    const float* sink;

    int64_t rows() const { return queries * heads; }
    int64_t near_blocks() const { return (before + queries + 31) / 32; }
    int64_t far_blocks() const { return (num_entries + 31) / 32; }
    int64_t blocks() const { return near_blocks() + far_blocks(); }
    float scale() const { return 1.0f / std::sqrt(float(width)); }
};

#ifdef WITH_TILES

namespace {

constexpr int64_t ROWS = 64;  // a multiple of 32
constexpr float LOG2E = 1.44269504f, LN2 = 0.693147181f;

struct Keys {
    BFloat16 *turned, *straight;
};

// The address of a block's keys.
struct Place {
    bool near;
    int64_t at, rows;

    Place(const Attention& a, int64_t block) : near(block < a.near_blocks()) {
        const int64_t first = SPAN * (near ? block : block - a.near_blocks());
        at = first * a.width;
        rows = std::min(SPAN, (near ? a.before + a.queries : a.num_entries) - first);
    }
    template <typename T> T* of(T* window, T* entries) const { return (near ? window : entries) + at; }
};

// The next `whole` rows of a matrix with `rows` rows left: in place, or a copy padded with zero rows.
const BFloat16* whole_rows(const BFloat16* from, int64_t rows, int64_t whole, int64_t width, Arena& arena) {
    if (rows == whole) return from;
    BFloat16* padded = arena.take<BFloat16>(whole * width);
    std::copy(from, from + rows * width, padded);
    std::fill(padded + rows * width, padded + whole * width, BFloat16{0});
    return padded;
}

// The blocks of keys that are visible to any of ROWS rows, with a bit per row and key.
struct Sight {
    int64_t count = 0;
    int64_t* blocks;
    uint32_t* seen;  // [count, ROWS]

    Sight(int64_t room, Arena& arena)
        : blocks(arena.take<int64_t>(room)), seen(arena.take<uint32_t>(room * ROWS)) {}
};

int64_t most_blocks(const Attention& a) {
    const int64_t queries = ROWS / a.heads + 2;
    return std::min(a.near_blocks(), (a.sliding_window + queries) / SPAN + 2) + a.far_blocks();
}

// A mask of the lowest `count` bits, 0 to 32.
INLINE uint32_t lowest(int32_t count) { return count <= 0 ? 0 : count >= 32 ? ~0u : (1u << count) - 1; }

// Bits of the selected entries: [far_blocks, ROWS].
void mark_chosen(const Attention& a, int64_t first, int64_t rows, uint32_t* chosen) {
    std::fill(chosen, chosen + a.far_blocks() * ROWS, 0);
    for (int64_t r = 0; r < rows; r++) {
        if (r > 0 && (first + r) % a.heads != 0) {  // the same query
            for (int64_t block = 0; block < a.far_blocks(); block++)
                chosen[block * ROWS + r] = chosen[block * ROWS + r - 1];
            continue;
        }
        const int64_t* picks = a.selected + (first + r) / a.heads * a.picks;
        for (int64_t i = 0; i < a.picks; i++)
            if (uint64_t(picks[i]) < uint64_t(a.num_entries)) chosen[uint64_t(picks[i]) / 32 * ROWS + r] |= 1u << picks[i] % 32;
    }
}

// A row sees the keys [oldest, newest) of the window and the first `visible` entries.
TILES void look(const Attention& a, int64_t first, int64_t rows, Sight& sight, Arena& arena) {
    Scope scope(arena);
    int32_t oldest[ROWS] = {}, newest[ROWS] = {}, visible[ROWS] = {};
    for (int64_t r = 0; r < rows; r++) {
        const int64_t query = (first + r) / a.heads, own = a.before + query;
        oldest[r] = int32_t(std::max<int64_t>(0, own + 1 - a.sliding_window));
        newest[r] = int32_t(own + 1);
        if (a.num_entries > 0) visible[r] = int32_t(std::min(a.num_entries, (a.start + query + 1) / a.ratio));
    }
    const auto keep = [&](int64_t block) {
        const uint32_t* seen = sight.seen + sight.count * ROWS;
        if (std::any_of(seen, seen + ROWS, [](uint32_t bits) { return bits != 0; }))
            sight.blocks[sight.count++] = block;
    };
    for (int32_t block = oldest[0] / 32; 32 * block < newest[rows - 1]; block++) {
        uint32_t* seen = sight.seen + sight.count * ROWS;
        for (int64_t r = 0; r < ROWS; r++)
            seen[r] = lowest(newest[r] - 32 * block) & ~lowest(oldest[r] - 32 * block);
        keep(block);
    }
    uint32_t* chosen = a.selected == nullptr ? nullptr : arena.take<uint32_t>(a.far_blocks() * ROWS);
    if (chosen != nullptr) mark_chosen(a, first, rows, chosen);
    const int64_t far = chosen != nullptr ? a.far_blocks() : (visible[rows - 1] + 31) / 32;
    for (int32_t block = 0; block < far; block++) {
        uint32_t* seen = sight.seen + sight.count * ROWS;
        for (int64_t r = 0; r < ROWS; r++)
            seen[r] = chosen != nullptr ? chosen[block * ROWS + r] : lowest(visible[r] - 32 * block);
        keep(a.near_blocks() + block);
    }
}

TILES void pack_block(const Attention& a, int64_t block, const Keys& keys) {
    thread_local static Arena arena;
    Scope scope(arena);
    const Place place(a, block);
    const BFloat16* from = whole_rows(place.of(a.window, a.entries), place.rows, SPAN, a.width, arena);
    for (int64_t half = 0; half < SPAN; half += 16)
        pack_both(from + half * a.width, SPAN * block + half, SPAN * a.blocks(), a.width, keys.turned,
                  keys.straight);
}

// Split the blocks into one range per thread.
int64_t share_of(int64_t blocks, int threads) { return std::max<int64_t>(1, (blocks + threads - 1) / threads); }

Keys pack_keys(const Attention& a, int threads, Arena& arena) {
    const int64_t size = a.blocks() * SPAN * a.width;
    const Keys keys{arena.take<BFloat16>(size), arena.take<BFloat16>(size)};
    parallel_for(a.blocks(), share_of(a.blocks(), threads), threads, [&](int64_t low, int64_t high) {
        for (int64_t block = low; block < high; block++) pack_block(a, block, keys);
    });
    return keys;
}

// 32 rows times the transpose of a block of keys.
TILES INLINE void multiply_block(const BFloat16* rows, const Keys& keys, int64_t block, int64_t width,
                                 float* numbers) {
    Squares squares;
    const BFloat16* right = keys.turned + block * SPAN * width;
    squares.clear();
    squares.accumulate(rows, rows + 16 * width, width, 32, right, right + 16 * width, width / 32);
    squares.store(numbers, SPAN);
}

// Outputs of rows: weights times keys, each row times its factor. Weights are tiles [ROWS / 16, count].
TILES void blend(const Attention& a, const Sight& sight, const BFloat16* weights, const Keys& keys,
                 const float* factors, int64_t rows, BFloat16* output) {
    Squares squares;
    alignas(64) float numbers[SPAN * SPAN];
    const int64_t band = sight.count * TILE, depth = SPAN * a.blocks();
    for (int64_t column = 0; column < a.width; column += SPAN)
        for (int64_t row = 0; row < rows; row += SPAN) {
            const BFloat16* share = weights + row / 16 * band;
            squares.clear();
            for (int64_t b = 0; b < sight.count; b++, share += TILE) {
                const BFloat16* right = keys.straight + column * depth + sight.blocks[b] * TILE;
                squares.accumulate(share, share + band, 32, TILE, right, right + 16 * depth, 1);
            }
            squares.store(numbers, SPAN);
            for (int64_t i = 0; i < std::min(SPAN, rows - row); i++) {
                const __m512 factor = _mm512_set1_ps(factors[row + i]);
                const __m512 left = _mm512_mul_ps(_mm512_load_ps(numbers + i * SPAN), factor);
                const __m512 right = _mm512_mul_ps(_mm512_load_ps(numbers + i * SPAN + 16), factor);
                _mm512_storeu_si512(output + (row + i) * a.width + column, rounded(left, right));
            }
        }
}

// 2^x in the lanes of the mask, 0 in the others; relative error 3e-6, for x <= 0 or NaN. The result is at least
// 2^-125, which is lost in any sum with a larger weight: subnormal numbers would be slow.
TILES INLINE __m512 power(__m512 x, __mmask16 mask) {
    const __m512 inside = _mm512_max_ps(_mm512_set1_ps(-125.0f), x);  // returns the second operand if one is NaN
    const __m512 r = _mm512_reduce_ps(inside, _MM_FROUND_TO_NEG_INF | _MM_FROUND_NO_EXC);  // x - floor(x)
    __m512 p = _mm512_fmadd_ps(r, _mm512_set1_ps(0.0135341679f), _mm512_set1_ps(0.0520114606f));
    p = _mm512_fmadd_ps(p, r, _mm512_set1_ps(0.241442757f));
    p = _mm512_fmadd_ps(p, r, _mm512_set1_ps(0.693003834f));
    p = _mm512_fmadd_ps(p, r, _mm512_set1_ps(1.00000259f));
    return _mm512_maskz_scalef_ps(mask, p, inside);  // times 2^floor(x)
}

// 2^(scale * score - less) of 32 scores; 0 for keys that are not visible.
TILES INLINE void powers(const float* scores, float scale, float less, uint32_t seen, __m512& left,
                         __m512& right) {
    const __m512 by = _mm512_set1_ps(scale), minus = _mm512_set1_ps(less);
    left = power(_mm512_fmsub_ps(_mm512_load_ps(scores), by, minus), __mmask16(seen));
    right = power(_mm512_fmsub_ps(_mm512_load_ps(scores + 16), by, minus), __mmask16(seen >> 16));
}

// Outputs of the rows from `first` on. Normalisation by the sum of weights follows the product with the keys.
TILES void attend(const Attention& a, const Keys& keys, int64_t first, BFloat16* output, float* log_sum) {
    thread_local static Arena arena;
    Scope scope(arena);
    const int64_t rows = std::min(ROWS, a.rows() - first);
    Sight sight(most_blocks(a), arena);
    look(a, first, rows, sight, arena);
    const BFloat16* q = whole_rows(a.q + first * a.width, rows, ROWS, a.width, arena);
    float* scores = arena.take<float>(sight.count * ROWS * SPAN);  // [count, ROWS, 32]
    BFloat16* weights = arena.take<BFloat16>(sight.count * ROWS * SPAN);
    __m512 sums[ROWS], tops[ROWS];
    for (int64_t r = 0; r < ROWS; r++) {
        sums[r] = _mm512_setzero_ps();
        tops[r] = _mm512_set1_ps(-INFINITY);
    }
    for (int64_t b = 0; b < sight.count; b++)
        for (int64_t row = 0; row < ROWS; row += SPAN) {
            float* squares = scores + (b * ROWS + row) * SPAN;
            multiply_block(q + row * a.width, keys, sight.blocks[b], a.width, squares);
            for (int64_t r = row; r < row + SPAN; r++, squares += SPAN) {
                const uint32_t seen = sight.seen[b * ROWS + r];
                tops[r] = _mm512_mask_max_ps(tops[r], __mmask16(seen), tops[r], _mm512_load_ps(squares));
                tops[r] = _mm512_mask_max_ps(tops[r], __mmask16(seen >> 16), tops[r], _mm512_load_ps(squares + 16));
            }
        }
    const float scale = a.scale() * LOG2E;  // exponentials have base two
    float most[ROWS], factors[ROWS];
    for (int64_t r = 0; r < ROWS; r++)
        most[r] = std::max(_mm512_reduce_max_ps(tops[r]) * scale, a.sink[(first + r) % a.heads] * LOG2E);
    for (int64_t b = 0; b < sight.count; b++)
        for (int64_t r = 0; r < ROWS; r++) {
            const int64_t at = b * ROWS + r;
            __m512 left, right;
            powers(scores + at * SPAN, scale, most[r], sight.seen[at], left, right);
            sums[r] = _mm512_add_ps(sums[r], _mm512_add_ps(left, right));
            _mm512_store_si512(weights + (r / 16 * sight.count + b) * TILE + r % 16 * 32, rounded(left, right));
        }
    for (int64_t r = 0; r < rows; r++) {
        const float sum = _mm512_reduce_add_ps(sums[r]) + std::exp2(a.sink[(first + r) % a.heads] * LOG2E - most[r]);
        log_sum[first + r] = (most[r] + std::log2(sum)) * LN2;
        factors[r] = 1.0f / sum;
    }
    blend(a, sight, weights, keys, factors, rows, output + first * a.width);
}

// Contributions of ROWS rows to the gradients of keys, as operands of products over rows: on the left the
// queries and the output gradients, on the right, for each visible block, the weights and the gradients of
// scores.
struct Share {
    Sight sight;
    BFloat16 *queries, *outer, *weights, *moved;

    Share(const Attention& a, Arena& arena) : sight(most_blocks(a), arena) {
        queries = arena.take<BFloat16>(ROWS * a.width);
        outer = arena.take<BFloat16>(ROWS * a.width);
        weights = arena.take<BFloat16>(most_blocks(a) * ROWS * SPAN);
        moved = arena.take<BFloat16>(most_blocks(a) * ROWS * SPAN);
    }
};

// Inputs and outputs of the backward pass.
struct Gradient {
    const BFloat16 *output, *grad;
    const float* log_sum;
    float* delta;  // <grad, output> of each row
    BFloat16 *grad_q, *grad_window, *grad_entries;
};

// Write two rows to row `row / 2` of the tiles of a right operand of depth ROWS.
TILES INLINE void put_pair(__m512i even, __m512i odd, int64_t row, BFloat16* right) {
    __m512i first, last;
    interleave(even, odd, first, last);
    _mm512_store_si512(right + row * 16, first);
    _mm512_store_si512(right + ROWS * 16 + row * 16, last);
}

TILES INLINE float dot(const BFloat16* x, const BFloat16* y, int64_t width) {
    __m512 sum = _mm512_setzero_ps();
    for (int64_t i = 0; i < width; i += 32) {
        const __m512i a = _mm512_loadu_si512(x + i), b = _mm512_loadu_si512(y + i);
        sum = _mm512_fmadd_ps(first_half(a), first_half(b), sum);
        sum = _mm512_fmadd_ps(last_half(a), last_half(b), sum);
    }
    return _mm512_reduce_add_ps(sum);
}

// The contributions of ROWS rows from `first` on, and what belongs to them alone: delta and the gradient of q.
TILES void differentiate(const Attention& a, const Keys& keys, int64_t first, const Gradient& g, Share& share) {
    thread_local static Arena arena;
    Scope scope(arena);
    const int64_t rows = std::min(ROWS, a.rows() - first);
    Sight& sight = share.sight;
    sight.count = 0;
    look(a, first, rows, sight, arena);
    const BFloat16* q = whole_rows(a.q + first * a.width, rows, ROWS, a.width, arena);
    const BFloat16* outer = whole_rows(g.grad + first * a.width, rows, ROWS, a.width, arena);
    BFloat16* room = arena.take<BFloat16>(ROWS * a.width);
    turn_rows(q, a.width, ROWS, a.width, room, share.queries);
    turn_rows(outer, a.width, ROWS, a.width, room, share.outer);
    float delta[ROWS] = {}, log_sum[ROWS] = {}, ones[ROWS];
    for (int64_t r = 0; r < rows; r++) {
        delta[r] = g.delta[first + r] = dot(outer + r * a.width, g.output + (first + r) * a.width, a.width);
        log_sum[r] = g.log_sum[first + r] * LOG2E;
    }
    std::fill(ones, ones + ROWS, 1.0f);
    alignas(64) float scores[SPAN * SPAN], grads[SPAN * SPAN];
    BFloat16* moved = arena.take<BFloat16>(sight.count * ROWS * SPAN);  // tiles [ROWS / 16, count]
    const float by = a.scale() * LOG2E;
    const __m512 scale = _mm512_set1_ps(a.scale());
    for (int64_t b = 0; b < sight.count; b++)
        for (int64_t row = 0; row < ROWS; row += SPAN) {
            multiply_block(q + row * a.width, keys, sight.blocks[b], a.width, scores);
            multiply_block(outer + row * a.width, keys, sight.blocks[b], a.width, grads);
            const auto row_of = [&](int64_t i, __m512i& weight, __m512i& change) TILES {
                const int64_t r = row + i;
                __m512 left, right;
                powers(scores + i * SPAN, by, log_sum[r], sight.seen[b * ROWS + r], left, right);
                weight = rounded(left, right);
                const __m512 mean = _mm512_set1_ps(delta[r]);
                const __m512 first_grads = _mm512_sub_ps(_mm512_load_ps(grads + i * SPAN), mean);
                const __m512 last_grads = _mm512_sub_ps(_mm512_load_ps(grads + i * SPAN + 16), mean);
                change = rounded(_mm512_mul_ps(_mm512_mul_ps(left, scale), first_grads),
                                 _mm512_mul_ps(_mm512_mul_ps(right, scale), last_grads));
                _mm512_store_si512(moved + (r / 16 * sight.count + b) * TILE + r % 16 * 32, change);
            };
            for (int64_t i = 0; i < SPAN; i += 2) {
                __m512i weight, next_weight, change, next_change;
                row_of(i, weight, change);
                row_of(i + 1, next_weight, next_change);
                put_pair(weight, next_weight, row + i, share.weights + b * ROWS * SPAN);
                put_pair(change, next_change, row + i, share.moved + b * ROWS * SPAN);
            }
        }
    blend(a, sight, moved, keys, ones, rows, g.grad_q + first * a.width);
}

// Add the contributions of some rows to the gradient of a block of keys, transposed: [width, 32] in float32.
TILES void add_share(const Attention& a, int64_t block, const Share& share, float* gradient) {
    const Sight& sight = share.sight;
    const int64_t b = std::find(sight.blocks, sight.blocks + sight.count, block) - sight.blocks;
    if (b == sight.count) return;
    Squares squares;
    const BFloat16 *moved = share.moved + b * ROWS * SPAN, *weights = share.weights + b * ROWS * SPAN;
    for (int64_t column = 0; column < a.width; column += SPAN) {
        const BFloat16 *queries = share.queries + column * ROWS, *outer = share.outer + column * ROWS;
        squares.load(gradient + column * SPAN, SPAN);
        squares.accumulate(queries, queries + 16 * ROWS, 32, TILE, moved, moved + 16 * ROWS, ROWS / 32);
        squares.accumulate(outer, outer + 16 * ROWS, 32, TILE, weights, weights + 16 * ROWS, ROWS / 32);
        squares.store(gradient + column * SPAN, SPAN);
    }
}

// Write the gradient of a block as rows of bfloat16.
TILES void put_keys(const Attention& a, int64_t block, const float* gradient, const Gradient& g) {
    const Place place(a, block);
    BFloat16* to = place.of(g.grad_window, g.grad_entries);
    Rows left, right;
    for (int64_t half = 0; half < place.rows; half += 16)
        for (int64_t column = 0; column < a.width; column += SPAN) {
            load_rows(gradient + column * SPAN + half, SPAN, left);
            load_rows(gradient + (column + 16) * SPAN + half, SPAN, right);
            transpose16(left);
            transpose16(right);
            for (int64_t i = 0; i < std::min<int64_t>(16, place.rows - half); i++)
                _mm512_storeu_si512(to + (half + i) * a.width + column, rounded(left[i], right[i]));
        }
}

}  // namespace

extern "C" {

// Requires train_tiles_serve(width). log_sum is log(sum exp) of each row, sink included.
void train_attend(int threads, const Attention* attention, BFloat16* output, float* log_sum) {
    const Attention& a = *attention;
    thread_local static Arena arena;
    Scope scope(arena);
    const Keys keys = pack_keys(a, threads, arena);
    parallel_for((a.rows() + ROWS - 1) / ROWS, 1, threads, [&](int64_t low, int64_t high) TILES {
        configure_tiles();
        for (int64_t i = low; i < high; i++) attend(a, keys, i * ROWS, output, log_sum);
        release_tiles();
    });
}

void train_attend_backward(int threads, const Attention* attention, const Gradient* gradient) {
    const Attention& a = *attention;
    thread_local static Arena arena;
    Scope scope(arena);
    const Keys keys = pack_keys(a, threads, arena);
    const int64_t size = SPAN * a.width, parts = (a.rows() + ROWS - 1) / ROWS;
    const int64_t group = threads == 1 ? 1 : 2 * threads;
    float* sums = arena.take<float>(a.blocks() * size);
    std::fill(sums, sums + a.blocks() * size, 0.0f);
    std::vector<Share> shares;
    for (int64_t i = 0; i < group; i++) shares.emplace_back(a, arena);
    for (int64_t first = 0; first < parts; first += group) {
        const int64_t count = std::min(group, parts - first);
        parallel_for(count, 1, threads, [&](int64_t low, int64_t high) TILES {
            configure_tiles();
            for (int64_t i = low; i < high; i++) differentiate(a, keys, (first + i) * ROWS, *gradient, shares[i]);
            release_tiles();
        });
        parallel_for(a.blocks(), share_of(a.blocks(), threads), threads, [&](int64_t low, int64_t high) TILES {
            configure_tiles();
            for (int64_t block = low; block < high; block++)
                for (int64_t i = 0; i < count; i++) add_share(a, block, shares[i], sums + block * size);
            release_tiles();
        });
    }
    parallel_for(a.blocks(), share_of(a.blocks(), threads), threads, [&](int64_t low, int64_t high) {
        for (int64_t block = low; block < high; block++) put_keys(a, block, sums + block * size, *gradient);
    });
}
}

#endif
