// Muon's update of one weight on tiles: momentum, Newton-Schulz and step of one matrix while it is in the
// second-level cache; PyTorch makes each pass over all matrices. See ops/muon.py.
//
// A matrix X of n rows and m >= n columns (a tall one is read transposed) is kept in bfloat16 in tiles of
// sixteen rows and 32 columns, in three forms: as left operand; as right operand of X X^T, with each tile
// transposed in pairs of numbers; and as right operand of A X. X X^T and its polynomial are symmetric: half
// of their tiles are computed, and the others are mirror images.

#include <algorithm>
#include <cfloat>
#include <cmath>
#include <vector>

#include "../parallel.h"
#include "blocks.h"

#ifdef WITH_TILES

namespace {

struct Round {
    float a, b, c;  // X <- a X + (b A + c A A) X, with A = X X^T
};

// A matrix of tiles in row-major order.
struct Tiles {
    BFloat16* data;
    int64_t in_row;

    BFloat16* row(int64_t index) const { return data + index * in_row * TILE; }
    BFloat16* tile(int64_t row, int64_t column) const { return data + (row * in_row + column) * TILE; }
};

struct Room {
    int64_t n, m;
    std::vector<float> floats;
    std::vector<BFloat16> halves;
    Tiles x, turned, right, next, gram, gram_turned, polynomial;

    Room(int64_t n, int64_t m) : n(n), m(m), floats(n * m), halves(4 * n * m + 3 * n * n) {
        BFloat16* at = halves.data();
        auto take = [&](int64_t rows, int64_t columns) {
            const Tiles tiles{at, columns / 32};
            at += rows * columns;
            return tiles;
        };
        x = take(n, m);
        turned = take(n, m);
        right = take(m, n);  // by columns of X: its tiles have 32 rows of 16
        next = take(m, n);
        gram = take(n, n);
        gram_turned = take(n, n);
        polynomial = take(n, n);
    }
};

// The other two forms of a tile of X: rows 2i and 2i + 1 become row i of a right operand.
TILES INLINE void spread(const Room& room, int64_t row, int64_t column, const Tiles& right) {
    PairRows pairs;
    load_pairs(room.x.tile(row, column), 32, pairs);
    turn(pairs, room.turned.tile(row, column));
    for (int i = 0; i < 8; i++) {
        __m512i first, last;
        interleave(pairs[2 * i], pairs[2 * i + 1], first, last);
        const int64_t at = 32 * (8 * (row % 2) + i);
        _mm512_storeu_si512(right.tile(2 * column, row / 2) + at, first);
        _mm512_storeu_si512(right.tile(2 * column + 1, row / 2) + at, last);
    }
}

// Product of two rows of tiles with two others: 32 by 32 numbers.
TILES INLINE void product(const Tiles& left, int64_t row, const Tiles& right, int64_t column, float* numbers) {
    Squares squares;
    squares.clear();
    squares.accumulate(left.row(row), left.row(row + 1), 32, TILE, right.row(column), right.row(column + 1),
                       left.in_row);
    squares.store(numbers, SPAN);
}

// Build a symmetric matrix from the squares of its upper half: finish(row, column, left, right) gets the
// position of each tile and its two squares.
template <typename Finish>
TILES INLINE void symmetric(const Tiles& left, const Tiles& right, int64_t n, const Finish& finish) {
    alignas(64) float squares[SPAN * SPAN];
    Rows one, two;
    for (int64_t i = 0; i < n / SPAN; i++)
        for (int64_t j = i; j < n / SPAN; j++) {
            product(left, 2 * i, right, 2 * j, squares);
            for (int half = 0; half < 2; half++) {
                load_rows(squares + 16 * SPAN * half, SPAN, one);
                load_rows(squares + 16 * SPAN * half + 16, SPAN, two);
                finish(2 * i + half, j, one, two);
                if (i == j) continue;
                load_rows(squares + 16 * half, SPAN, one);
                load_rows(squares + 16 * SPAN + 16 * half, SPAN, two);
                transpose16(one);
                transpose16(two);
                finish(2 * j + half, i, one, two);
            }
        }
}

TILES void iterate(Room& room, const Round& round) {
    const __m512 a = _mm512_set1_ps(round.a), b = _mm512_set1_ps(round.b), c = _mm512_set1_ps(round.c);
    symmetric(room.x, room.turned, room.n, [&](int64_t row, int64_t column, Rows& left, Rows& right) TILES {
        PairRows pairs;
        for (int i = 0; i < 16; i++) pairs[i] = rounded(left[i], right[i]);
        for (int i = 0; i < 16; i++) _mm512_storeu_si512(room.gram.tile(row, column) + 32 * i, pairs[i]);
        turn(pairs, room.gram_turned.tile(row, column));
    });
    symmetric(room.gram, room.gram_turned, room.n, [&](int64_t row, int64_t column, Rows& left, Rows& right) TILES {
        const BFloat16* gram = room.gram.tile(row, column);
        for (int i = 0; i < 16; i++) {
            const __m512i pairs = _mm512_loadu_si512(gram + 32 * i);
            left[i] = _mm512_fmadd_ps(c, left[i], _mm512_mul_ps(b, first_half(pairs)));
            right[i] = _mm512_fmadd_ps(c, right[i], _mm512_mul_ps(b, last_half(pairs)));
        }
        put(left, right, room.polynomial.tile(row, column));
    });
    alignas(64) float squares[SPAN * SPAN];
    Rows left, right;
    for (int64_t i = 0; i < room.n / SPAN; i++)
        for (int64_t j = 0; j < room.m / SPAN; j++) {
            product(room.polynomial, 2 * i, room.right, 2 * j, squares);
            for (int half = 0; half < 2; half++) {
                BFloat16* tile = room.x.tile(2 * i + half, j);
                load_rows(squares + 16 * SPAN * half, SPAN, left);
                load_rows(squares + 16 * SPAN * half + 16, SPAN, right);
                for (int r = 0; r < 16; r++) {
                    const __m512i pairs = _mm512_loadu_si512(tile + 32 * r);
                    left[r] = _mm512_fmadd_ps(a, first_half(pairs), left[r]);
                    right[r] = _mm512_fmadd_ps(a, last_half(pairs), right[r]);
                }
                put(left, right, tile);
                spread(room, 2 * i + half, j, room.next);
            }
        }
    std::swap(room.right, room.next);
}

// Call visit(row, column, place, stride) for every square of X. `place` is the index of its first number in a
// matrix that is stored like the weight; the squares of a tall weight are transposed there.
template <typename Visit>
TILES INLINE void each_tile(const Room& room, bool tall, const Visit& visit) {
    for (int64_t row = 0; row < room.n / 16; row++)
        for (int64_t column = 0; column < room.m / 32; column++) {
            const int64_t r = 16 * row, c = 32 * column;
            if (tall)
                visit(row, column, c * room.n + r, 16 * room.n, room.n);
            else
                visit(row, column, r * room.m + c, 16, room.m);
        }
}

// Nesterov momentum, and the sum of its squares.
TILES float look_ahead(int64_t size, const float* gradient, float* momentum, float* ahead, float mu) {
    const __m512 kept = _mm512_set1_ps(mu);
    double squares = 0;
    for (int64_t begin = 0; begin < size; begin += TILE) {
        __m512 sum = _mm512_setzero_ps();
        for (int64_t i = begin; i < begin + TILE; i += 16) {
            const __m512 g = _mm512_loadu_ps(gradient + i);
            const __m512 m = _mm512_fmadd_ps(kept, _mm512_loadu_ps(momentum + i), g);
            const __m512 far = _mm512_fmadd_ps(kept, m, g);
            _mm512_storeu_ps(momentum + i, m);
            _mm512_storeu_ps(ahead + i, far);
            sum = _mm512_fmadd_ps(far, far, sum);
        }
        squares += double(_mm512_reduce_add_ps(sum));
    }
    return float(squares);
}

TILES void update(Room& room, bool tall, float* weight, const float* gradient, float* momentum, float mu,
                  float shrink, float length, const Round* rounds, int num_rounds) {
    float* ahead = room.floats.data();
    const float norm = std::sqrt(look_ahead(room.n * room.m, gradient, momentum, ahead, mu));
    const __m512 scale = _mm512_set1_ps(1.0f / (norm < FLT_MIN ? FLT_MIN : norm));
    Rows left, right;
    each_tile(room, tall, [&](int64_t row, int64_t column, int64_t at, int64_t beside, int64_t stride) TILES {
        load_rows(ahead + at, stride, left);
        load_rows(ahead + at + beside, stride, right);
        if (tall) {
            transpose16(left);
            transpose16(right);
        }
        for (int i = 0; i < 16; i++) {
            left[i] = _mm512_mul_ps(left[i], scale);
            right[i] = _mm512_mul_ps(right[i], scale);
        }
        put(left, right, room.x.tile(row, column));
        spread(room, row, column, room.right);
    });
    for (int i = 0; i < num_rounds; i++) iterate(room, rounds[i]);
    const __m512 kept = _mm512_set1_ps(shrink), moved = _mm512_set1_ps(length);
    each_tile(room, tall, [&](int64_t row, int64_t column, int64_t at, int64_t beside, int64_t stride) TILES {
        const BFloat16* tile = room.x.tile(row, column);
        for (int i = 0; i < 16; i++) {
            const __m512i pairs = _mm512_loadu_si512(tile + 32 * i);
            left[i] = first_half(pairs);
            right[i] = last_half(pairs);
        }
        if (tall) {
            transpose16(left);
            transpose16(right);
        }
        for (int i = 0; i < 16; i++) {
            float *one = weight + at + i * stride, *other = one + beside;
            _mm512_storeu_ps(one, _mm512_fnmadd_ps(moved, left[i], _mm512_mul_ps(kept, _mm512_loadu_ps(one))));
            _mm512_storeu_ps(other, _mm512_fnmadd_ps(moved, right[i], _mm512_mul_ps(kept, _mm512_loadu_ps(other))));
        }
    });
}

TILES void update_all(int64_t low, int64_t high, int64_t rows, int64_t columns, float* weight,
                      const float* gradient, float* momentum, float mu, float shrink, float length,
                      const Round* rounds, int num_rounds) {
    Room room(std::min(rows, columns), std::max(rows, columns));
    configure_tiles();
    for (int64_t i = low; i < high; i++) {
        const int64_t at = i * rows * columns;
        update(room, rows > columns, weight + at, gradient + at, momentum + at, mu, shrink, length, rounds, num_rounds);
    }
    release_tiles();
}

}  // namespace

#endif

extern "C" {

// Requires train_tiles_serve.
void train_muon([[maybe_unused]] int threads, [[maybe_unused]] int64_t count, [[maybe_unused]] int64_t rows,
                [[maybe_unused]] int64_t columns, [[maybe_unused]] float* weight,
                [[maybe_unused]] const float* gradient, [[maybe_unused]] float* momentum,
                [[maybe_unused]] float mu, [[maybe_unused]] float shrink, [[maybe_unused]] float length,
                [[maybe_unused]] const float* rounds, [[maybe_unused]] int num_rounds) {
#ifdef WITH_TILES
    parallel_for(count, std::max<int64_t>(1, count / threads), threads, [&](int64_t low, int64_t high) {
        update_all(low, high, rows, columns, weight, gradient, momentum, mu, shrink, length,
                   reinterpret_cast<const Round*>(rounds), num_rounds);
    });
#endif
}
}
