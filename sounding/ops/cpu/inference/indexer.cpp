// The entries that each token of a CSA layer attends to: those with the highest index scores.
//
// Scores are computed block by block and not stored; at most twice the limit of candidates per query is kept,
// so memory does not grow with the context. Candidates are ordered by score and ties by index, so that the
// choice does not depend on how keys are distributed over threads.

#define KERNELS "inference/indexer.cpp"
#ifndef TARGET

#include <algorithm>
#include <atomic>
#include <new>

#include "indexer.h"

constexpr int64_t QUERIES = 16;      // scored at a time
constexpr int64_t KEYS = 256;        // per block
constexpr int64_t STRETCH = 2048;    // at least so many keys per range of a thread if queries are few

#include "../each_target.h"

namespace {

// A lower bound on chosen scores of a query, shared by threads: enough keys are known to reach it.
using Bound = std::atomic<float>;

// Keeps the best `limit` keys of those shown, which come in ascending order; of equal scores the first.
class Best {
  public:
    Best(Arena& arena, int64_t limit, Bound& bound)
        : scores_(arena.take<float>(3 * limit + KEYS)), entries_(arena.take<int32_t>(3 * limit + KEYS)),
          limit_(limit), bound_(&bound) {}

    void show(const float* scores, int64_t count, int64_t first) {
        int32_t places[KEYS];
        const int64_t better = CALL(find_better, scores, count, least_, bound_->load(), places);
        for (int64_t i = 0; i < better; i++) push(scores[places[i]], int32_t(first + places[i]));
        if (count_ >= 2 * limit_) narrow();
    }
    // Merge the candidates of another thread. All keys have been scored, so the bound excludes most of them.
    void add(const Best& other) {
        narrow();  // the other has at most twice the limit
        const float bound = *bound_;
        for (int64_t i = 0; i < other.count_; i++)
            if (other.scores_[i] >= bound) push(other.scores_[i], other.entries_[i]);
    }
    int64_t finish(int32_t* chosen) {
        narrow();
        std::copy_n(entries_, count_, chosen);
        return count_;
    }

  private:
    void push(float score, int32_t entry) {
        scores_[count_] = score;
        entries_[count_++] = entry;
    }

    void narrow() {
        if (count_ <= limit_) return;
        thread_local static Arena arena;
        Scope scope(arena);
        least_ = CALL(find_nth, scores_, count_, limit_, arena.take<int32_t>(count_));
        int64_t equal = limit_ - std::count_if(scores_, scores_ + count_, [&](float s) { return s > least_; });
        int64_t kept = 0;
        for (int64_t i = 0; i < count_; i++) {
            const bool same = scores_[i] == least_, keep = scores_[i] > least_ || (same && equal > 0);
            equal -= same;
            scores_[kept] = scores_[i];
            entries_[kept] = entries_[i];
            kept += keep;
        }
        count_ = kept;
        for (float bound = *bound_; bound < least_ && !bound_->compare_exchange_weak(bound, least_);) {
        }
    }

    float* scores_;
    int32_t* entries_;
    int64_t count_ = 0, limit_;
    float least_ = -INFINITY;  // a later key with an equal score loses
    Bound* bound_;
};

Weight keys_of(const Network& net, const Rows& rows, int64_t count) {
    Weight keys{};
    keys.values = rows.data;
    keys.rows = count;
    keys.columns = net.index_width;
    keys.row_bytes = rows.row_bytes;
    keys.format = rows.format == ROW_INDEX ? FP4 : BFLOAT16;
    keys.scales = rows.data + net.index_width / 2;
    keys.scale_row = rows.row_bytes;
    return keys;
}

// A unit of work: some queries of a span and a range of keys.
struct Piece {
    int64_t span, first, count, low, high;
};

void score(const Work& work, const Piece& piece, const BFloat16* queries, const float* weights,
           Best* best) {
    thread_local static Arena arena;
    Scope scope(arena);
    const Network& net = work.net;
    const Span& span = work.spans[piece.span];
    const Rows& list = *span.lists[INDEX_ENTRIES];
    const int64_t heads = net.index_heads, width = net.index_width;
    const int64_t token = span.first + piece.first, count = piece.count * heads;
    const BFloat16* rows = queries + token * heads * width;
    const float* shares = weights + token * heads;
    const Weight keys = keys_of(net, list, list.length);
    const bool side_by_side = index_pairs_serve(width);
    Product product{keys, {}, nullptr, KEYS};
    int32_t* pairs = nullptr;
    if (side_by_side) {
        pairs = arena.take<int32_t>(count * width / 2);
        for (int64_t r = 0; r < count; r++)
            order_pairs(rows + r * width, width, keys.format == FP4, pairs + r * width / 2);
    } else {
        product.x = make_panel(arena, count, keys);
        for (int64_t block = 0; block < product.x.blocks(); block++) fill_block(product.x, block, rows, width);
    }
    float* products = arena.take<float>(side_by_side ? 0 : count * KEYS);
    float* scores = arena.take<float>(piece.count * KEYS);
    for (int64_t low = piece.low; low < piece.high; low += KEYS) {
        const int64_t high = std::min(low + KEYS, piece.high);
        if (side_by_side) {
            index_scores(keys, low, high, pairs, shares, piece.count, heads, scores, KEYS, arena);
        } else {
            product.out = products - low;
            multiply_rows(product, low, high);
            for (int64_t q = 0; q < piece.count; q++)
                CALL(combine, products + q * heads * KEYS, shares + q * heads, heads, scores + q * KEYS);
        }
        for (int64_t q = 0; q < piece.count; q++) {
            const int64_t visible = (span.start + piece.first + q + 1) / CSA;
            if (visible > low) best[q].show(scores + q * KEYS, std::min(high, visible) - low, low);
        }
    }
}

}  // namespace

void choose(const Work& work, const BFloat16* queries, const float* weights, int32_t* chosen,
            int32_t* counts) {
    Arena& arena = work.arena;
    Scope scope(arena);
    const int64_t limit = work.net.index_limit;
    int64_t tiles = 0, most = 0;
    for (int64_t s = 0; s < work.sequences; s++)
        tiles += (work.spans[s].length + QUERIES - 1) / QUERIES;
    for (int64_t s = 0; s < work.sequences; s++) {
        const Span& span = work.spans[s];
        most = std::max(most, (span.start + span.length) / CSA / STRETCH + 1);
    }
    List<Piece> pieces(arena, tiles * most);
    for (int64_t s = 0; s < work.sequences; s++) {
        const Span& span = work.spans[s];
        for (int64_t first = 0; first < span.length; first += QUERIES) {
            const int64_t count = std::min(QUERIES, span.length - first);
            const int64_t visible = (span.start + first + count) / CSA;
            if (visible <= limit) {
                for (int64_t t = first; t < first + count; t++) {
                    const int64_t own = (span.start + t + 1) / CSA, row = span.first + t;
                    for (int64_t i = 0; i < own; i++) chosen[row * limit + i] = int32_t(i);
                    counts[row] = int32_t(own);
                }
                continue;
            }
            const int64_t shared = std::max(STRETCH, visible / (4 * work.threads) + 1);
            const int64_t stretch = tiles >= 2 * work.threads ? visible : shared;
            for (int64_t low = 0; low < visible; low += stretch)
                pieces.push_back({s, first, count, low, std::min(low + stretch, visible)});
        }
    }
    // The consecutive units of a query share its bound.
    Bound* bounds = arena.take<Bound>(pieces.size() * QUERIES);
    List<Best> best(arena, pieces.size() * QUERIES);
    for (int64_t i = 0, first = 0; i < pieces.size(); i++) {
        if (pieces[i].low == 0) first = i;
        for (int64_t q = 0; q < QUERIES; q++) {
            new (&bounds[i * QUERIES + q]) Bound(-INFINITY);
            best.push_back(Best(arena, limit, bounds[first * QUERIES + q]));
        }
    }
    parallel_for(pieces.size(), 1, work.threads, [&](int64_t low, int64_t high) {
        for (int64_t i = low; i < high; i++)
            score(work, pieces[i], queries, weights, &best[i * QUERIES]);
    });
    for (int64_t i = 0; i < pieces.size();) {
        int64_t same = i + 1;
        while (same < pieces.size() && pieces[same].low > 0) same++;
        for (int64_t q = 0; q < pieces[i].count; q++) {
            const int64_t row = work.spans[pieces[i].span].first + pieces[i].first + q;
            for (int64_t other = i + 1; other < same; other++)
                best[i * QUERIES + q].add(best[other * QUERIES + q]);
            counts[row] = int32_t(best[i * QUERIES + q].finish(chosen + row * limit));
        }
        i = same;
    }
}

#else

namespace {

// sum_h weight_h relu(product_h) for one query.
void combine(const float* products, const float* weights, int64_t heads, float* scores) {
    for (int64_t i = 0; i < KEYS; i += LANES) {
        Floats total = {}, product;
        for (int64_t h = 0; h < heads; h++) {
            load(products + h * KEYS + i, product);
            product = product < 0.0f ? Floats{} : product;
            total += product * weights[h];
        }
        store(scores + i, total);
    }
}

// Find the scores above `least` and not below `bound` among at most KEYS; returns their number.
int64_t find_better(const float* scores, int64_t count, float least, float bound, int32_t* places) {
    int64_t found = 0;
    FOR_LANES(i, some, count) {
        Floats score;
        load_lanes(scores + i, some, score);
        const Integers better = (score > all(least)) & (score >= all(bound));
        int32_t lanes[LANES], any = 0;
        std::memcpy(lanes, &better, sizeof lanes);
        for (const int32_t lane : lanes) any |= lane;
        if (any == 0) return;
        for (int lane = 0; lane < some; lane++) {
            places[found] = i + lane;
            found -= lanes[lane];  // true is -1
        }
    };
    return found;
}

// The n-th largest score, without NaN. `room` holds as many numbers.
float find_nth(const float* scores, int64_t count, int64_t n, int32_t* room) {
    const int64_t whole = (count + LANES - 1) / LANES * LANES;
    // Scores become integers of the same order; then the largest value that n of them reach is found bit by bit.
    FOR_LANES(i, some, count) {
        Floats score;
        load_lanes(scores + i, some, score);
        const Integers bits = to_bits(score), order = bits ^ (bits >> 31 & INT32_MAX);
        std::memcpy(room + i, &order, sizeof order);
    };
    std::fill(room + count, room + whole, INT32_MIN);
    int32_t nth = INT32_MIN;
    for (int bit = 31; bit >= 0; bit--) {
        const int32_t wanted = int32_t(uint32_t(nth) + (1u << bit));
        Integers enough = {};
        for (int64_t i = 0; i < whole; i += LANES) {
            Integers order;
            std::memcpy(&order, room + i, sizeof order);
            enough += order >= wanted;  // true is -1
        }
        int32_t lanes[LANES];
        std::memcpy(lanes, &enough, sizeof lanes);
        int64_t found = 0;
        for (const int32_t lane : lanes) found -= lane;
        if (found >= n) nth = wanted;
    }
    const int32_t bits = nth ^ (nth >> 31 & INT32_MAX);
    float score;
    std::memcpy(&score, &bits, sizeof score);
    return score;
}

}  // namespace

#endif
