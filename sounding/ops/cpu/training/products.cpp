// The three products of a linear layer in training, on tiles: y = x W^T, dx = g W and dW = g^T x, for one weight
// or for a stack of them, each with its own rows. Numbers are bfloat16, sums float32.
//
// Weights are packed once for both of their products. A thread multiplies its rows with all columns: 32 rows,
// which stay in the first-level cache, times columns of the weight that stay in the second.

#include <algorithm>
#include <numeric>

#include "../inference/arena.h"
#include "../inference/features.h"
#include "../parallel.h"
#include "blocks.h"

// Rows of one of the weights: [bounds[e], bounds[e + 1]).
struct Groups {
    int64_t count;
    const int64_t* bounds;
};

#ifdef WITH_TILES

namespace {

constexpr int64_t ROWS = 256;         // per range of a thread
constexpr int64_t DEPTH = 1024;       // of a product at a time, so that both operands fit the first-level cache
constexpr int64_t NUMBERS = 1 << 18;  // of a weight, which stay in the second-level cache
// Rows at a time where they are the depth: those of both operands fit the first-level cache. It is more if the sums,
// which are read and written each time, do not fit the second-level cache.
constexpr int64_t OUTER_ROWS = 256, LONG_ROWS = 512, SUMS = 1 << 18;

// Both right operands of a weight [outputs, inputs]: of its transpose, and of itself; or its part in those of
// several stacked weights with `total` outputs, where its own begin at `begin`.
template <typename T>
TILES void pack(const T* weight, int64_t outputs, int64_t inputs, int64_t begin, int64_t total, BFloat16* turned,
                BFloat16* straight) {
    for (int64_t o = 0; o < outputs; o += 16)
        pack_both(weight + o * inputs, begin + o, total, inputs, turned, straight);
}

// Destinations of weight gradients: each group has one per stacked weight.
struct Gradients {
    int64_t count, inputs;
    const int64_t* outputs;
    float* const* to;

    // The destination of a group from an output on; it and the next 31 belong to one weight.
    float* at(int64_t group, int64_t output) const {
        int64_t i = 0;
        while (output >= outputs[i]) output -= outputs[i++];
        return to[i] + (group * outputs[i] + output) * inputs;
    }
    int64_t total() const { return std::accumulate(outputs, outputs + count, int64_t{0}); }
    bool aligned() const {
        return std::all_of(to, to + count, [](float* one) { return reinterpret_cast<uintptr_t>(one) % 64 == 0; });
    }
};

TILES INLINE void put_row(const float* numbers, BFloat16* to) {
    _mm512_storeu_si512(to, rounded(_mm512_load_ps(numbers), _mm512_load_ps(numbers + 16)));
}
TILES INLINE void put_row(const float* numbers, float* to) {
    for (int64_t half = 0; half < SPAN; half += 16) _mm512_storeu_ps(to + half, _mm512_load_ps(numbers + half));
}

// Delayed stores of squares of sums: each is written a few rows at a time while the next is computed, so that
// products do not wait for stores.
template <typename Y> class Written {
public:
    explicit Written(int64_t stride) : stride(stride) {}

    // Prefetch memory for writing while its sums are computed: a store that misses delays those after it.
    INLINE void ask(int64_t rows, const Y* to) const {
        constexpr int64_t LINE = 64 / sizeof(Y);
        for (int64_t i = 0; i < std::min(rows, SPAN); i++)
            for (int64_t column = 0; column < SPAN; column += LINE) __builtin_prefetch(to + i * stride + column, 1);
    }

    // Queue a finished square, whose first `rows` rows go to a matrix.
    TILES INLINE void take(const Squares& sums, int64_t rows, Y* to) {
        some(SPAN);
        sums.store(squares, SPAN);
        at = squares;
        left = std::min(rows, SPAN);
        y = to;
    }
    TILES INLINE void some(int64_t rows) {
        const int64_t count = std::min(rows, left);
        for (int64_t i = 0; i < count; i++) put_row(at + i * SPAN, y + i * stride);
        left -= count;
        at += count * SPAN;
        y += count * stride;
    }

private:
    const int64_t stride;
    int64_t left = 0;
    const float* at = nullptr;
    Y* y = nullptr;
    alignas(64) float squares[SPAN * SPAN];
};

// Prefetch of the next rows of a matrix, a few lines at a time while others are multiplied.
class Next {
public:
    // The number of calls of `some` before the rows are read.
    Next(const BFloat16* from, int64_t stride, int64_t rows, int64_t columns, int64_t times)
        : from(from), stride(stride), rows(rows), columns(columns), each((rows * columns / 32 + times - 1) / times) {}

    TILES INLINE void some() {
        for (int64_t i = 0; i < each && row < rows; i++) {
            _mm_prefetch(from + row * stride + column, _MM_HINT_T1);
            column += 32;
            if (column < columns) continue;
            column = 0;
            row++;
        }
    }

private:
    const BFloat16* from;
    const int64_t stride, rows, columns, each;
    int64_t row = 0, column = 0;
};

// y[rows, columns] = x[rows, depth] times a packed right operand; rows are `x_stride` and `y_stride` apart.
template <typename Y>
TILES void multiply(int64_t rows, int64_t depth, int64_t columns, const BFloat16* x, int64_t x_stride,
                    const BFloat16* right, Y* y, int64_t y_stride, Arena& arena) {
    Squares squares;
    Written<Y> written(y_stride);
    float* sums = depth > DEPTH ? arena.take<float>(ROWS * columns) : nullptr;
    BFloat16* padded = arena.take<BFloat16>(SPAN * depth);
    const int64_t whole = rows / SPAN * SPAN;
    if (whole < rows) {
        for (int64_t row = whole; row < rows; row++)
            std::copy(x + row * x_stride, x + row * x_stride + depth, padded + (row - whole) * depth);
        std::fill(padded + (rows - whole) * depth, padded + SPAN * depth, BFloat16{0});
    }
    for (int64_t k = 0; k < depth; k += DEPTH) {
        const int64_t steps = std::min(DEPTH, depth - k) / 32;
        const bool first = k == 0, last = k + DEPTH >= depth;
        const int64_t wide = std::max(SPAN, NUMBERS / (32 * steps) / SPAN * SPAN);
        for (int64_t begin = 0; begin < columns; begin += wide) {
            const int64_t end = std::min(columns, begin + wide);
            for (int64_t row = 0; row < rows; row += SPAN) {
                const bool inside = row < whole;
                const BFloat16* a = inside ? x + row * x_stride + k : padded + k;
                const int64_t stride = inside ? x_stride : depth;
                const int64_t after = begin == 0 ? std::clamp<int64_t>(rows - row - SPAN, 0, SPAN) : 0;
                Next next(x + (row + SPAN) * x_stride + k, x_stride, after, 32 * steps, (end - begin) / SPAN * steps);
                for (int64_t column = begin; column < end; column += SPAN) {
                    const BFloat16* b = right + column * depth + k / 32 * TILE;
                    float* sum = sums == nullptr ? nullptr : sums + row * columns + column;
                    Y* to = y + row * y_stride + column;
                    if (first)
                        squares.clear();
                    else
                        squares.load(sum, columns);
                    if (last) written.ask(rows - row, to);
                    squares.accumulate(a, a + 16 * stride, stride, 32, b, b + 16 * depth, steps, [&]() TILES {
                        next.some();
                        written.some(4);
                    });
                    if (last)
                        written.take(squares, rows - row, to);
                    else
                        squares.store(sum, columns);
                }
            }
        }
    }
    written.some(SPAN);
}

// out[columns of g, columns of x] = g^T x, or +=, over some rows, for 32 columns of g, which `room` holds. Stores
// bypass the caches: gradients are read only after all others are computed.
TILES void outer_strip(const BFloat16* g, int64_t g_stride, int64_t rows, const BFloat16* right, int64_t columns,
                       bool add, bool streamed, float* out, BFloat16* room, Next& next_g, Next& next_x) {
    Squares squares;
    alignas(64) float numbers[SPAN * SPAN];
    const int64_t depth = (rows + 31) / 32 * 32;
    BFloat16* turned = room + SPAN * depth;
    turn_rows(g, g_stride, rows, SPAN, room, turned);
    for (int64_t column = 0; column < columns; column += SPAN) {
        const BFloat16* b = right + column * depth;
        if (add)
            squares.load(out + column, columns);
        else
            squares.clear();
        squares.accumulate(turned, turned + 16 * depth, 32, TILE, b, b + 16 * depth, depth / 32, [&]() TILES {
            next_g.some();
            next_x.some();
        });
        if (streamed) {
            squares.store(numbers, SPAN);
            for (int64_t i = 0; i < SPAN; i++)
                for (int64_t half = 0; half < SPAN; half += 16)
                    _mm512_stream_ps(out + i * columns + column + half, _mm512_load_ps(numbers + i * SPAN + half));
        } else {
            squares.store(out + column, columns);
        }
    }
}

// The same for columns [low, high) of g.
TILES void outer(int64_t low, int64_t high, const Groups& groups, bool add, const BFloat16* g, int64_t g_stride,
                 const BFloat16* x, int64_t x_stride, const Gradients& out) {
    thread_local static Arena arena;
    Scope scope(arena);
    const int64_t inputs = out.inputs;
    BFloat16* right = arena.take<BFloat16>(LONG_ROWS * inputs);
    BFloat16* room = arena.take<BFloat16>(2 * LONG_ROWS * SPAN);
    configure_tiles();
    const bool aligned = out.aligned();
    const int64_t total = groups.bounds[groups.count];
    const bool small = out.total() * inputs <= SUMS;
    const int64_t turn = small ? OUTER_ROWS : LONG_ROWS;
    for (int64_t e = 0; e < groups.count; e++) {
        const int64_t begin = groups.bounds[e], end = groups.bounds[e + 1];
        const bool streamed = aligned && !add && end - begin <= turn;
        if (begin == end && !add)
            for (int64_t o = low; o < high; o += SPAN) std::fill(out.at(e, o), out.at(e, o) + SPAN * inputs, 0.0f);
        for (int64_t row = begin; row < end; row += turn) {
            const int64_t rows = std::min(turn, end - row), after = row + rows;
            const int64_t then = small ? std::min(turn, total - after) : 0, steps = inputs / SPAN * ((rows + 31) / 32);
            pack_rows(x + row * x_stride, x_stride, rows, inputs, right);
            Next next_x(x + after * x_stride, x_stride, then, inputs, (high - low) / SPAN * steps);
            for (int64_t o = low; o < high; o += SPAN) {
                const bool last = o + SPAN >= high;
                Next next_g = last ? Next(g + after * g_stride + low, g_stride, then, SPAN, steps)
                                   : Next(g + row * g_stride + o + SPAN, g_stride, small ? rows : 0, SPAN, steps);
                outer_strip(g + row * g_stride + o, g_stride, rows, right, inputs, add || row > begin, streamed,
                            out.at(e, o), room, next_g, next_x);
            }
        }
    }
    _mm_sfence();
    release_tiles();
}

template <typename Y>
TILES void multiply_groups(int64_t low, int64_t high, const Groups& groups, int64_t depth, int64_t columns,
                           const BFloat16* x, int64_t x_stride, const BFloat16* right, Y* y, int64_t y_stride) {
    thread_local static Arena arena;
    configure_tiles();
    for (int64_t e = 0; e < groups.count; e++) {
        const int64_t begin = std::max(low, groups.bounds[e]), end = std::min(high, groups.bounds[e + 1]);
        for (int64_t row = begin; row < end; row += ROWS) {
            Scope scope(arena);
            multiply(std::min(ROWS, end - row), depth, columns, x + row * x_stride, x_stride,
                     right + e * depth * columns, y + row * y_stride, y_stride, arena);
        }
    }
    release_tiles();
}

}  // namespace

#endif

extern "C" {

// True if this processor multiplies bfloat16, and all sizes are multiples of those of a tile.
int train_tiles_serve([[maybe_unused]] int64_t inputs, [[maybe_unused]] int64_t outputs) {
#ifdef WITH_TILES
    return has_pairs() && inputs % SPAN == 0 && outputs % SPAN == 0;
#else
    return 0;
#endif
}

#ifdef WITH_TILES

// Pack the weights of `count` layers into their two right operands, or into their part of those: the outputs from
// `begin` on of `total`.
void train_pack(int bfloat16, int threads, int64_t count, int64_t outputs, int64_t inputs, const void* weight,
                int64_t begin, int64_t total, BFloat16* turned, BFloat16* straight) {
    const int64_t size = outputs * inputs, whole = total * inputs;
    parallel_for(count, 1, threads, [&](int64_t low, int64_t high) {
        for (int64_t e = low; e < high; e++) {
            if (bfloat16)
                pack(static_cast<const BFloat16*>(weight) + e * size, outputs, inputs, begin, total, turned + e * whole,
                     straight + e * whole);
            else
                pack(static_cast<const float*>(weight) + e * size, outputs, inputs, begin, total, turned + e * whole,
                     straight + e * whole);
        }
    });
}

// y = x times right operands [depth, columns], each for its own rows; y is bfloat16 or float32.
void train_multiply(int bfloat16, int threads, int64_t count, const int64_t* bounds, int64_t depth, int64_t columns,
                    const BFloat16* x, int64_t x_stride, const BFloat16* right, void* y, int64_t y_stride) {
    const Groups groups{count, bounds};
    const int64_t rows = bounds[count];
    const int64_t share = threads == 1 ? std::max<int64_t>(rows, 1) : ROWS;
    parallel_for(rows, share, threads, [&](int64_t low, int64_t high) {
        if (bfloat16)
            multiply_groups(low, high, groups, depth, columns, x, x_stride, right, static_cast<BFloat16*>(y), y_stride);
        else
            multiply_groups(low, high, groups, depth, columns, x, x_stride, right, static_cast<float*>(y), y_stride);
    });
}

// g^T x, or +=, for the rows of each group, in float32: of `weights` stacked layers with `outputs` each, to a
// matrix [count, outputs, inputs] per layer.
void train_outer(int threads, int64_t count, const int64_t* bounds, int64_t inputs, int add, const BFloat16* g,
                 int64_t g_stride, const BFloat16* x, int64_t x_stride, int64_t weights, const int64_t* outputs,
                 float* const* to) {
    const Groups groups{count, bounds};
    const Gradients gradients{weights, inputs, outputs, to};
    const int64_t total = gradients.total();
    const int64_t share = threads == 1 ? total : (total / threads + SPAN - 1) / SPAN * SPAN;
    parallel_for(total, std::max(share, SPAN), threads, [&](int64_t low, int64_t high) {
        outer(low, high, groups, add != 0, g, g_stride, x, x_stride, gradients);
    });
}

#endif
}
