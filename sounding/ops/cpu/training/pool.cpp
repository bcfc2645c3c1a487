// Pooling of groups of tokens into compressed entries, for training. The formulas are those of ops/pool.py. Rows
// hold values and gates side by side, as projected, and are read in place.

#define KERNELS "training/pool.cpp"
#ifndef TARGET

#include <cstdint>

constexpr int64_t GRAIN = 16;     // groups per range
constexpr int64_t CHANNELS = 64;  // per range, in sums over tokens

// struct _Pooling of pool.py.
struct Pooling {
    int64_t count, ratio, width;  // groups, tokens of each, channels of an entry
    int32_t overlapping, leads;   // leads: no group lies before the first

    int64_t stride() const { return (overlapping ? 4 : 2) * width; }
    int64_t slots() const { return overlapping ? 2 * ratio : ratio; }
    int64_t gate() const { return stride() / 2; }  // offset from a value to its gate
    int64_t before() const { return overlapping && !leads ? 1 : 0; }
    int64_t first_slot(int64_t group) const { return overlapping && leads && group == 0 ? ratio : 0; }
    // Start of the values of a slot: with overlap the previous group comes first.
    int64_t slot(int64_t group, int64_t index) const {
        const int64_t row = (group + before()) * ratio + index;
        if (!overlapping) return row * stride();
        return (row - ratio) * stride() + (index < ratio ? 0 : width);
    }
};

#include "../each_target.h"

extern "C" {

void train_pool(int threads, const Pooling* groups, const float* rows, float* entries) {
    parallel_for(groups->count, GRAIN, threads,
                 [&](int64_t low, int64_t high) { CALL(pool, low, high, *groups, rows, entries); });
}

void train_pool_backward(int threads, const Pooling* groups, const float* rows, const float* grad, float* grad_rows) {
    parallel_for(groups->count, GRAIN, threads,
                 [&](int64_t low, int64_t high) { CALL(pool_backward, low, high, *groups, rows, grad, grad_rows); });
}

// gates[t] += bias[place[t]], for rows `stride` numbers apart.
void train_add_places(int threads, int64_t tokens, int64_t width, int64_t stride, const int64_t* place,
                      const float* bias, float* gates) {
    parallel_for(tokens, GRAIN, threads, [&](int64_t low, int64_t high) {
        CALL(add_places, low, high, width, stride, place, bias, gates);
    });
}

// grad_bias[place] = sum of the gradients of the gates with that place.
void train_sum_places(int threads, int64_t tokens, int64_t width, int64_t stride, const int64_t* place,
                      const float* grad, int64_t places, float* grad_bias) {
    std::fill(grad_bias, grad_bias + places * width, 0.0f);
    parallel_for(width, CHANNELS, threads, [&](int64_t low, int64_t high) {
        CALL(sum_places, low, high, tokens, width, stride, place, grad, grad_bias);
    });
}
}

#else

INLINE void add_row(int64_t width, const float* from, float* to) {
    FOR_LANES(i, count, width) {
        Floats x, y;
        load_lanes(from + i, count, x);
        load_lanes(to + i, count, y);
        store_lanes(to + i, count, x + y);
    };
}

void add_places(int64_t low, int64_t high, int64_t width, int64_t stride, const int64_t* place, const float* bias,
                float* gates) {
    for (int64_t t = low; t < high; t++) add_row(width, bias + place[t] * width, gates + t * stride);
}

// For some channels of all tokens.
void sum_places(int64_t low, int64_t high, int64_t tokens, int64_t width, int64_t stride, const int64_t* place,
                const float* grad, float* grad_bias) {
    for (int64_t t = 0; t < tokens; t++)
        add_row(high - low, grad + t * stride + low, grad_bias + place[t] * width + low);
}

// Some channels of an entry, with the maximum of their gates and the sum of exp(gate - maximum).
struct Blend {
    Floats top, total, entry;

    INLINE Floats share(const Floats& gate) const { return exp(gate - top) / total; }
};

template <typename Count>
INLINE Blend blend(const Pooling& groups, int64_t group, const float* rows, int64_t i, Count count) {
    Blend by = {Floats{} - INFINITY, {}, {}};
    const float *values = rows + i, *gates = values + groups.gate();
    const int64_t first = groups.first_slot(group), slots = groups.slots();
    Floats z, v;
    for (int64_t s = first; s < slots; s++) {
        load_lanes(gates + groups.slot(group, s), count, z);
        raise(by.top, z);
    }
    for (int64_t s = first; s < slots; s++) {
        load_lanes(gates + groups.slot(group, s), count, z);
        by.total += exp(z - by.top);
    }
    for (int64_t s = first; s < slots; s++) {
        load_lanes(gates + groups.slot(group, s), count, z);
        load_lanes(values + groups.slot(group, s), count, v);
        by.entry += by.share(z) * v;
    }
    return by;
}

void pool(int64_t low, int64_t high, const Pooling& groups, const float* rows, float* entries) {
    for (int64_t group = low; group < high; group++) FOR_LANES(i, count, groups.width) {
            store_lanes(entries + group * groups.width + i, count, blend(groups, group, rows, i, count).entry);
        };
}

// Zero the gradients of one half of a group's rows, where no entry reads it: the later half before the first
// entry, the earlier half of the last group.
INLINE void clear_half(const Pooling& groups, int64_t row, int64_t half, float* grad_rows) {
    for (int64_t t = row; t < row + groups.ratio; t++)
        for (int64_t part = 0; part < 2; part++) {
            float* from = grad_rows + t * groups.stride() + part * groups.gate() + half * groups.width;
            std::fill(from, from + groups.width, 0.0f);
        }
}

// Each half of a row belongs to one group, which writes its gradient.
void pool_backward(int64_t low, int64_t high, const Pooling& groups, const float* rows, const float* grad,
                   float* grad_rows) {
    for (int64_t group = low; group < high; group++) FOR_LANES(i, count, groups.width) {
            const Blend by = blend(groups, group, rows, i, count);
            Floats z, v, g;
            load_lanes(grad + group * groups.width + i, count, g);
            for (int64_t s = groups.first_slot(group); s < groups.slots(); s++) {
                const int64_t at = groups.slot(group, s) + i;
                load_lanes(rows + groups.gate() + at, count, z);
                load_lanes(rows + at, count, v);
                const Floats through = by.share(z) * g;
                store_lanes(grad_rows + at, count, through);
                store_lanes(grad_rows + groups.gate() + at, count, through * (v - by.entry));
            }
        };
    if (!groups.overlapping) return;
    if (low == 0 && !groups.leads) clear_half(groups, 0, 1, grad_rows);
    if (high == groups.count) clear_half(groups, (groups.count - 1 + groups.before()) * groups.ratio, 0, grad_rows);
}

#endif
