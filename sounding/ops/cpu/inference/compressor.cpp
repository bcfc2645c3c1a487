// Compressed entries of groups of tokens: gated pooling, norm, rotation and rounding.

#define KERNELS "inference/compressor.cpp"
#ifndef TARGET

#include <algorithm>

#include "network.h"
#include "rounding.h"

#include "../each_target.h"

namespace {

constexpr int64_t MAX_SLOTS = 256;

// The projections of one sequence: those of earlier tokens are in its list, those of new ones in the step.
struct Projections {
    const Rows& list;
    const float *values, *gates;
    int64_t start, width;

    const float* value(int64_t position) const {
        return position >= start ? values + (position - start) * width
                                 : reinterpret_cast<const float*>(list.at(position));
    }
    const float* gate(int64_t position) const {
        return position >= start ? gates + (position - start) * width
                                 : reinterpret_cast<const float*>(list.at(position)) + width;
    }
};

void make_entry(const Work& work, const Pooling& pooling, const Projections& from, int64_t group,
                bool index, const float* weight, const Rows& entries) {
    thread_local static Arena arena;
    Scope scope(arena);
    const Network& net = work.net;
    const int64_t ratio = work.layer.ratio, width = pooling.width;
    const float *values[MAX_SLOTS], *gates[MAX_SLOTS];
    int64_t slots = 0;
    if (ratio == CSA && group > 0)
        for (int64_t p = (group - 1) * ratio; p < group * ratio; p++, slots++) {
            values[slots] = from.value(p);
            gates[slots] = from.gate(p);
        }
    const int64_t half = ratio == CSA ? width : 0;
    for (int64_t p = group * ratio; p < (group + 1) * ratio; p++, slots++) {
        values[slots] = from.value(p) + half;
        gates[slots] = from.gate(p) + half;
    }
    float* pooled = arena.take<float>(width);
    BFloat16* entry = arena.take<BFloat16>(width);
    CALL(pool, values, gates, slots, width, pooled);
    for (int64_t i = 0; i < width; i++) pooled[i] = rounded(pooled[i]);
    rms_norm(pooled, width, weight, float(net.norm_eps), entry);
    float cos[512], sin[512];
    find_angles(group * ratio, work.layer.frequencies, net.rotary / 2, cos, sin);
    rotate(entry, width, net.rotary, {cos, sin});
    if (!index && net.simulate_kv) round_fp8(entry, width - net.rotary, KV_BLOCK, entry);
    if (index && net.simulate_index) {
        for (int64_t i = 0; i < width; i++) pooled[i] = load_one(entry + i);
        round_index(pooled, width, entry);
    }
    store_row(net, entries, entry, const_cast<uint8_t*>(entries.at(group)));
}

void keep_projections(const Projections& from, int64_t count, Rows& list) {
    const int64_t kept = std::min(count, list.slots), end = from.start + count;
    for (int64_t p = end - kept; p < end; p++) {
        float* row = reinterpret_cast<float*>(const_cast<uint8_t*>(list.at(p)));
        std::copy(from.value(p), from.value(p) + from.width, row);
        std::copy(from.gate(p), from.gate(p) + from.width, row + from.width);
    }
    list.length = end;
    list.kept = std::min(list.kept + count, list.slots);
    *list.used = list.length;
}

}  // namespace

void compress(const Work& work, const Pooling& pooling, const float* values, float* gates,
              RowsOf projections, RowsOf entries, bool index) {
    Scope scope(work.arena);
    const int64_t ratio = work.layer.ratio, width = pooling.width * (ratio == CSA ? 2 : 1);
    const float* ape = pooling.ape.floats(ratio * width, work.arena.take<float>(ratio * width));
    const float* norm = pooling.norm.floats(pooling.width, work.arena.take<float>(pooling.width));
    parallel_for(work.count, 16, work.threads, [&](int64_t low, int64_t high) {
        for (int64_t t = low; t < high; t++) {
            const float* bias = ape + work.positions[t] % ratio * width;
            for (int64_t i = 0; i < width; i++) gates[t * width + i] += bias[i];
        }
    });
    for (int64_t s = 0; s < work.sequences; s++) {
        const Span& span = work.spans[s];
        Rows &list = *span.lists[projections], &made = *span.lists[entries];
        const Projections from{list, values + span.first * width, gates + span.first * width,
                               span.start, width};
        const int64_t done = made.length, end = (span.start + span.length) / ratio;
        parallel_for(end - done, 4, work.threads, [&](int64_t low, int64_t high) {
            for (int64_t group = done + low; group < done + high; group++)
                make_entry(work, pooling, from, group, index, norm, made);
        });
        made.length = end;
        made.kept = end;
        *made.used = end;
        keep_projections(from, span.length, list);
    }
}

#else

namespace {

// entry = sum_r softmax_r(gate) * value, channel by channel, over `slots` places.
void pool(const float* const* values, const float* const* gates, int64_t slots,
          int64_t width, float* out) {
    for (int64_t i = 0; i < width; i += LANES) {
        Floats top, gate, value, total = {}, blend = {};
        load(gates[0] + i, top);
        for (int64_t r = 1; r < slots; r++) {
            load(gates[r] + i, gate);
            top = larger(gate, top);
        }
        for (int64_t r = 0; r < slots; r++) {
            load(gates[r] + i, gate);
            load(values[r] + i, value);
            const Floats share = exp(gate - top);
            total += share;
            blend += share * value;
        }
        store(out + i, blend / total);
    }
}

}  // namespace

#endif
