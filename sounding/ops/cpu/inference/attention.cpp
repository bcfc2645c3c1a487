// Attention of one layer: input projections, window and entries, attention, output projections.

#include "attention.h"

#include <algorithm>
#include <cmath>

#include "features.h"
#include "../parallel.h"
#include "rounding.h"

namespace {

constexpr int64_t TOGETHER = 4;  // queries per range of a thread

// The keys that all queries of a span share: its window, and in HCA layers every entry.
struct Shared {
    int64_t base;  // position of the first key of the window
    Keys window, entries;
};

// Keys in the forms that the products of this processor read.
Keys keys_of(const BFloat16* rows, int64_t count, int64_t d, int threads, Arena& arena) {
    if (has_tiles()) {
        BFloat16* pairs = arena.take<BFloat16>(count * d);
        parallel_for(count / 2, 128, threads, [&](int64_t low, int64_t high) {
            for (int64_t k = low; k < high; k++)
                make_pairs(rows + 2 * k * d, rows + (2 * k + 1) * d, d, pairs + 2 * k * d);
        });
        return {rows, pairs, nullptr, 0, 0};
    }
    if (has_pairs()) return {rows, nullptr, nullptr, 0, 0};
    float* wide = arena.take<float>(count * d);
    parallel_for(count, 256, threads, [&](int64_t low, int64_t high) {
        to_float(rows + low * d, (high - low) * d, wide + low * d);
    });
    return {rows, nullptr, wide, 0, 0};
}

Shared share(const Work& work, const Span& span, const BFloat16* kv) {
    const Network& net = work.net;
    const int64_t d = net.head_dim, end = span.start + span.length;
    Rows& list = *span.lists[WINDOW];
    const int64_t before = work.block ? net.window : net.window - 1;
    const int64_t first = std::max<int64_t>(0, span.start - before);
    Shared shared{};
    shared.base = first / KEYS * KEYS;
    const int64_t count = padded(end - shared.base, KEYS);
    BFloat16* rows = work.arena.take<BFloat16>(count * d);
    std::fill(rows, rows + (first - shared.base) * d, BFloat16{0});
    parallel_for(span.start - first, 64, work.threads, [&](int64_t low, int64_t high) {
        for (int64_t p = first + low; p < first + high; p++)
            load_row(net, list, list.at(p), rows + (p - shared.base) * d);
    });
    // New rows are rounded to the list's format too, so that results do not depend on where a chunk ends.
    uint8_t* packed = work.arena.take<uint8_t>(span.length * list.row_bytes);
    parallel_for(span.length, 32, work.threads, [&](int64_t low, int64_t high) {
        for (int64_t t = low; t < high; t++) {
            uint8_t* row = packed + t * list.row_bytes;
            store_row(net, list, kv + (span.first + t) * d, row);
            load_row(net, list, row, rows + (span.start + t - shared.base) * d);
        }
    });
    if (!work.block) append(list, packed, span.length);
    std::fill(rows + (end - shared.base) * d, rows + count * d, BFloat16{0});
    shared.window = keys_of(rows, count, d, work.threads, work.arena);
    if (work.layer.ratio == 0 || work.layer.ratio == CSA) return shared;

    const Rows& entries = *span.lists[ENTRIES];
    const int64_t total = padded(entries.length, KEYS);
    BFloat16* all = work.arena.take<BFloat16>(total * d);
    parallel_for(entries.length, 128, work.threads, [&](int64_t low, int64_t high) {
        for (int64_t i = low; i < high; i++) load_row(net, entries, entries.at(i), all + i * d);
    });
    std::fill(all + entries.length * d, all + total * d, BFloat16{0});
    shared.entries = keys_of(all, total, d, work.threads, work.arena);
    return shared;
}

// Gathered copies of the entries that a query of a CSA layer chose.
Keys gather(const Network& net, const Rows& entries, const int32_t* chosen, int64_t count, int threads,
            Arena& arena) {
    const int64_t d = net.head_dim, total = padded(count, KEYS);
    BFloat16* rows = arena.take<BFloat16>(total * d);
    parallel_for(count, 64, threads, [&](int64_t low, int64_t high) {
        for (int64_t i = low; i < high; i++) load_row(net, entries, entries.at(chosen[i]), rows + i * d);
    });
    std::fill(rows + count * d, rows + total * d, BFloat16{0});
    Keys keys = keys_of(rows, total, d, threads, arena);
    keys.high = count;
    return keys;
}

struct Choices {
    const int32_t *chosen, *counts;  // null outside CSA layers
};

void read(const Work& work, const Shared* shared, const BFloat16* q, const float* sink,
          const Choices& choices, const float* cos, const float* sin, BFloat16* output) {
    const Network& net = work.net;
    const int64_t d = net.head_dim, pairs = net.rotary / 2;
    int64_t* owner = work.arena.take<int64_t>(work.count);
    for (int64_t s = 0; s < work.sequences; s++)
        std::fill_n(owner + work.spans[s].first, work.spans[s].length, s);
    // Few queries are processed one by one, each by all threads.
    const int threads = work.count <= TOGETHER ? work.threads : 1;
    parallel_for(work.count, TOGETHER, work.threads, [&](int64_t low, int64_t high) {
        thread_local static Arena arena;
        Scope scope(arena);
        float* blended = arena.take<float>(HEADS * d);
        for (int64_t t = low; t < high; t++) {
            Scope query_scope(arena);
            const Span& span = work.spans[owner[t]];
            const Shared& own = shared[owner[t]];
            const int64_t position = work.positions[t];
            Keys keys[2] = {own.window, own.entries};
            const int64_t last = work.block ? span.start - 1 : position;  // of the window
            keys[0].low = std::max<int64_t>(0, last - net.window + 1) - own.base;
            keys[0].high = (work.block ? span.start + span.length : position + 1) - own.base;
            if (choices.chosen != nullptr)
                keys[1] = gather(net, *span.lists[ENTRIES], choices.chosen + t * net.index_limit,
                                 choices.counts[t], threads, arena);
            else if (work.layer.ratio != 0)
                keys[1].high = (position + 1) / work.layer.ratio;
            const Angles back{cos + t * pairs, sin + t * pairs};
            for (int64_t h = 0; h < net.heads; h += HEADS) {
                const int64_t heads = std::min(HEADS, net.heads - h);
                const Query query{q + (t * net.heads + h) * d, heads, d, sink + h,
                                  1 / std::sqrt(float(d))};
                attend(query, keys, threads, arena, blended);
                for (int64_t i = 0; i < heads; i++) {
                    BFloat16* to = output + (t * net.heads + h + i) * d;
                    to_bfloat16(blended + i * d, d, to);
                    rotate(to, d, net.rotary, back);
                }
            }
        }
    });
}

// The projections of the input, computed together.
struct Projected {
    float *qr, *kv, *values, *gates, *index_values, *index_gates, *index_weights;
};

Projected project(const Work& work, const BFloat16* x) {
    const Network& net = work.net;
    const Layer& layer = work.layer;
    Arena& arena = work.arena;
    List<Product> products(arena, 7);
    auto add = [&](const Weight& weight) {
        Panel panel{};
        for (int64_t i = 0; i < products.size() && panel.empty(); i++)
            if (products[i].x.serves(weight)) panel = products[i].x;
        if (panel.empty()) {
            panel = make_panel(arena, work.count, weight);
            fill(panel, x, net.channels, work.threads);
        }
        float* out = arena.take<float>(work.count * weight.rows);
        products.push_back({weight, panel, out, weight.rows});
        return out;
    };
    Projected made{};
    made.qr = add(layer.wq_a);
    made.kv = add(layer.wkv);
    if (layer.ratio != 0) {
        made.values = add(layer.compressor.wkv);
        made.gates = add(layer.compressor.wgate);
    }
    if (layer.ratio == CSA) {
        made.index_values = add(layer.index_compressor.wkv);
        made.index_gates = add(layer.index_compressor.wgate);
        made.index_weights = add(layer.index_weights);
    }
    multiply(products.data(), products.size(), work.threads);
    add_deltas(work, &AdapterLayer::wq_a, x, net.channels, made.qr, net.q_rank);
    add_deltas(work, &AdapterLayer::wkv, x, net.channels, made.kv, net.head_dim);
    return made;
}

}  // namespace

void attention(const Work& work, const BFloat16* x, BFloat16* output) {
    const Network& net = work.net;
    const Layer& layer = work.layer;
    Arena& arena = work.arena;
    const int64_t d = net.head_dim, wide = net.heads * d, pairs = net.rotary / 2;
    const int64_t index_wide = net.index_heads * net.index_width, t_count = work.count;
    const float eps = float(net.norm_eps);
    const bool csa = layer.ratio == CSA;
    Projected made = project(work, x);

    BFloat16* qr = arena.take<BFloat16>(t_count * net.q_rank);
    BFloat16* kv = arena.take<BFloat16>(t_count * d);
    float* cos = arena.take<float>(t_count * pairs);
    float* sin = arena.take<float>(t_count * pairs);
    const float* q_norm = layer.q_norm.floats(net.q_rank, arena.take<float>(net.q_rank));
    const float* kv_norm = layer.kv_norm.floats(d, arena.take<float>(d));
    parallel_for(t_count, 8, work.threads, [&](int64_t low, int64_t high) {
        for (int64_t t = low; t < high; t++) {
            const Angles by{cos + t * pairs, sin + t * pairs};
            find_angles(work.positions[t], layer.frequencies, pairs, cos + t * pairs,
                        sin + t * pairs);
            rms_norm(made.qr + t * net.q_rank, net.q_rank, q_norm, eps, qr + t * net.q_rank);
            rms_norm(made.kv + t * d, d, kv_norm, eps, kv + t * d);
            rotate(kv + t * d, d, net.rotary, by);
            if (net.simulate_kv) round_fp8(kv + t * d, d - net.rotary, KV_BLOCK, kv + t * d);
        }
    });
    if (layer.ratio != 0)
        compress(work, layer.compressor, made.values, made.gates, PROJECTIONS, ENTRIES, false);
    if (csa)
        compress(work, layer.index_compressor, made.index_values, made.index_gates,
                 INDEX_PROJECTIONS, INDEX_ENTRIES, true);

    Product up[2] = {{layer.wq_b, make_panel(arena, t_count, layer.wq_b),
                      arena.take<float>(t_count * wide), wide},
                     {layer.index_wq_b, {}, nullptr, index_wide}};
    fill(up[0].x, qr, net.q_rank, work.threads);
    if (csa) {
        up[1].x = up[0].x;
        if (!up[1].x.serves(layer.index_wq_b)) {
            up[1].x = make_panel(arena, t_count, layer.index_wq_b);
            fill(up[1].x, qr, net.q_rank, work.threads);
        }
        up[1].out = arena.take<float>(t_count * index_wide);
    }
    multiply(up, csa ? 2 : 1, work.threads);
    add_deltas(work, &AdapterLayer::wq_b, qr, net.q_rank, up[0].out, wide);
    BFloat16* q = arena.take<BFloat16>(t_count * wide);
    BFloat16* index_q = csa ? arena.take<BFloat16>(t_count * index_wide) : nullptr;
    parallel_for(t_count, 8, work.threads, [&](int64_t low, int64_t high) {
        thread_local static Arena own;
        Scope scope(own);
        float* room = own.take<float>(net.index_width);
        for (int64_t t = low; t < high; t++) {
            const Angles by{cos + t * pairs, sin + t * pairs};
            for (int64_t h = 0; h < net.heads; h++) {
                BFloat16* row = q + t * wide + h * d;
                rms_norm(up[0].out + t * wide + h * d, d, nullptr, eps, row);
                rotate(row, d, net.rotary, by);
            }
            if (!csa) continue;
            const float factor = 1 / std::sqrt(float(net.index_width) * float(net.index_heads));
            for (int64_t h = 0; h < net.index_heads; h++) {
                float& weight = made.index_weights[t * net.index_heads + h];
                weight = rounded(rounded(weight) * factor);
                BFloat16* row = index_q + t * index_wide + h * net.index_width;
                to_bfloat16(up[1].out + t * index_wide + h * net.index_width, net.index_width, row);
                rotate(row, net.index_width, net.rotary, by);
                if (!net.simulate_index) continue;
                for (int64_t i = 0; i < net.index_width; i++) room[i] = load_one(row + i);
                round_index(room, net.index_width, row);
            }
        }
    });
    int32_t *chosen = nullptr, *counts = nullptr;
    if (csa) {
        chosen = arena.take<int32_t>(t_count * net.index_limit);
        counts = arena.take<int32_t>(t_count);
        choose(work, index_q, made.index_weights, chosen, counts);
    }

    List<Shared> shared(arena, work.sequences);
    for (int64_t s = 0; s < work.sequences; s++) shared.push_back(share(work, work.spans[s], kv));
    const float* sink = layer.sink.floats(net.heads, arena.take<float>(net.heads));
    BFloat16* o = arena.take<BFloat16>(t_count * wide);
    for (int64_t i = 0; i < t_count * pairs; i++) sin[i] = -sin[i];  // the inverse rotation
    read(work, shared.data(), q, sink, {chosen, counts}, cos, sin, o);

    List<Product> down(arena, net.groups);
    const int64_t lowered = net.groups * net.o_rank, width = wide / net.groups;
    float* low = arena.take<float>(t_count * lowered);
    for (int64_t g = 0; g < net.groups; g++) {
        const Weight part = layer.wo_a.slice(g * net.o_rank, (g + 1) * net.o_rank);
        down.push_back({part, make_panel(arena, t_count, part), low + g * net.o_rank, lowered});
        fill(down.back().x, o + g * width, wide, work.threads);
    }
    multiply(down.data(), net.groups, work.threads);
    add_grouped_deltas(work, &AdapterLayer::wo_a, o, wide, low, lowered);
    BFloat16* near = arena.take<BFloat16>(t_count * lowered);
    to_bfloat16(low, t_count * lowered, near);
    Product last{layer.wo_b, make_panel(arena, t_count, layer.wo_b),
                 arena.take<float>(t_count * net.channels), net.channels};
    fill(last.x, near, lowered, work.threads);
    multiply(&last, 1, work.threads);
    add_deltas(work, &AdapterLayer::wo_b, near, lowered, last.out, net.channels);
    parallel_for(t_count, 16, work.threads, [&](int64_t first, int64_t end) {
        to_bfloat16(last.out + first * net.channels, (end - first) * net.channels,
                    output + first * net.channels);
    });
}
