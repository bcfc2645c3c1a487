// Routing and experts: every token is processed by its chosen experts and by the shared one.

#define KERNELS "inference/experts.cpp"
#ifndef TARGET

#include <algorithm>

#include "network.h"

#include "../each_target.h"

namespace {

constexpr int64_t ROWS_IN_TURN = 16;

// The indices of the k largest in ascending order; ties go to the lower index, NaN counts as -1.
void choose_experts(const float* scores, const Vector& bias, int64_t count, int64_t k,
                    int64_t* chosen) {
    thread_local static Arena arena;
    Scope scope(arena);
    float* ranked = arena.take<float>(count);
    for (int64_t e = 0; e < count; e++) {
        ranked[e] = scores[e] + bias.at(e);
        if (ranked[e] != ranked[e]) ranked[e] = -1;
    }
    for (int64_t i = 0; i < k; i++) {
        int64_t best = 0;
        for (int64_t e = 1; e < count; e++)
            if (ranked[e] > ranked[best]) best = e;
        chosen[i] = best;
        ranked[best] = -INFINITY;
    }
    std::sort(chosen, chosen + k);
}

// The (token, choice) pairs sorted by expert.
struct Groups {
    int64_t* starts;           // first pair of each expert, and the end
    int64_t *tokens, *places;  // the token of each pair, and the pair of each (token, choice)
    float* weights;            // of each pair

    Groups(Arena& arena, const int64_t* chosen, const float* shares, int64_t count, int64_t k,
           int64_t experts)
        : starts(arena.take<int64_t>(experts + 1)), tokens(arena.take<int64_t>(count * k)),
          places(arena.take<int64_t>(count * k)), weights(arena.take<float>(count * k)) {
        std::fill_n(starts, experts + 1, 0);
        for (int64_t i = 0; i < count * k; i++) starts[chosen[i] + 1]++;
        for (int64_t e = 0; e < experts; e++) starts[e + 1] += starts[e];
        int64_t* next = arena.take<int64_t>(experts);
        std::copy_n(starts, experts, next);
        for (int64_t i = 0; i < count * k; i++) {
            const int64_t pair = next[chosen[i]]++;
            tokens[pair] = i / k;
            weights[pair] = shares[i];
            places[i] = pair;
        }
    }
    int64_t count(int64_t expert) const { return starts[expert + 1] - starts[expert]; }
};

void route(const Work& work, const float* logits, float* scores, int64_t* chosen, float* shares) {
    const Network& net = work.net;
    const int64_t experts = net.experts, k = net.choices;
    parallel_for(work.count, 16, work.threads, [&](int64_t low, int64_t high) {
        for (int64_t t = low; t < high; t++) {
            CALL(affinity, logits + t * experts, experts, scores + t * experts);
            if (work.layer.table != nullptr)
                std::copy_n(work.layer.table + work.tokens[t] * k, k, chosen + t * k);
            else
                choose_experts(scores + t * experts, work.layer.bias, experts, k, chosen + t * k);
            float total = 0;
            for (int64_t i = 0; i < k; i++) total += scores[t * experts + chosen[t * k + i]];
            for (int64_t i = 0; i < k; i++)
                shares[t * k + i] = scores[t * experts + chosen[t * k + i]] / total *
                                    float(net.routed_scale);
        }
    });
}

// Some experts, the pairs of each, and where their rows lie in an array of the rows of these experts alone.
struct Chosen {
    List<int64_t> experts, firsts;  // firsts[i] is the first row of experts[i]
    int64_t rows = 0;

    Chosen(Arena& arena, const Groups& groups, const int64_t* given, int64_t count)
        : experts(arena, count), firsts(arena, count) {
        for (int64_t i = 0; i < count; i++) {
            experts.push_back(given[i]);
            firsts.push_back(rows);
            rows += groups.count(given[i]);
        }
    }
};

// Which pairs of each expert belong to which adapter of the step.
struct AdaptedPairs {
    const Work& work;
    const Groups& groups;
    int64_t* adapter;  // of each token, -1 for the base

    AdaptedPairs(const Work& work, const Groups& groups) : work(work), groups(groups), adapter(nullptr) {
        if (work.adapters == 0) return;
        adapter = work.arena.take<int64_t>(work.count);
        std::fill_n(adapter, work.count, int64_t{-1});
        for (int64_t a = 0; a < work.adapters; a++)
            for (int64_t i = 0; i < work.adapted[a].count; i++) adapter[work.adapted[a].rows[i]] = a;
    }

    // Adds deltas to out. Row p of it, and of x unless that is by token, is that of pair p, or with `packed` of the
    // chosen experts' pairs alone.
    void add(const Chosen& chosen, const Delta* AdapterLayer::*which, const BFloat16* x, int64_t stride,
             bool by_token, float* out, int64_t out_stride, bool packed) const {
        if (work.adapters == 0) return;
        parallel_for(chosen.experts.size(), 1, work.threads, [&](int64_t low, int64_t high) {
            thread_local static Arena own;
            for (int64_t i = low; i < high; i++) {
                Scope scope(own);
                const int64_t e = chosen.experts[i], first = groups.starts[e], end = groups.starts[e + 1];
                int64_t* from = own.take<int64_t>(end - first);
                int64_t* to = own.take<int64_t>(end - first);
                for (int64_t a = 0; a < work.adapters; a++) {
                    int64_t count = 0;
                    for (int64_t p = first; p < end; p++) {
                        if (adapter[groups.tokens[p]] != a) continue;
                        const int64_t row = p - first + chosen.firsts[i];
                        from[count] = by_token ? groups.tokens[p] : row;
                        to[count++] = packed ? row : p;
                    }
                    const Delta* deltas = work.adapted[a].layer->*which;
                    if (deltas != nullptr) add_delta(deltas[e], x, stride, from, to, count, out, out_stride, 1, own);
                }
            }
        });
    }
};

// One step of a layer's experts: its input x[t, c], and the results of each pair and of the shared expert.
struct Mixture {
    const Work& work;
    const BFloat16* x;
    const Groups& groups;
    const AdaptedPairs& adapted;
    const float *shared_gates, *shared_ups;  // [t, inner]
    float *results, *shared_results;         // [pairs, c] and [t, c]

    // Computes the results of some experts, and with `shared` those of the shared expert. A row's bits do not depend
    // on which experts are computed together.
    void compute(const int64_t* experts, int64_t count, bool shared) const;
};

void Mixture::compute(const int64_t* experts, int64_t count, bool shared) const {
    const Network& net = work.net;
    const Layer& layer = work.layer;
    Arena& arena = work.arena;
    Scope scope(arena);
    const int64_t c = net.channels, inner = net.inner, t_count = shared ? work.count : 0;
    const Chosen chosen(arena, groups, experts, count);
    const int64_t pairs = chosen.rows;
    List<Product> products(arena, 2 * count + 1);
    float* gates = arena.take<float>(pairs * inner);
    float* ups = arena.take<float>(pairs * inner);
    float* weights = arena.take<float>(pairs);
    for (int64_t i = 0; i < count; i++) {
        const int64_t e = experts[i], at = chosen.firsts[i];
        std::copy_n(groups.weights + groups.starts[e], groups.count(e), weights + at);
        const Panel panel = make_panel(arena, groups.count(e), layer.w1[e]);
        products.push_back({layer.w1[e], panel, gates + at * inner, inner});
        products.push_back({layer.w3[e], panel, ups + at * inner, inner});
    }
    // Experts per range of a thread when rows are packed: distributing less work takes longer than doing it.
    const int64_t in_turn = std::max<int64_t>(1, ROWS_IN_TURN * count / std::max<int64_t>(pairs, 1));
    parallel_for(count, in_turn, work.threads, [&](int64_t low, int64_t high) {
        for (int64_t i = low; i < high; i++)
            fill(products[2 * i].x, x, c, 1, &groups.tokens[groups.starts[experts[i]]]);
    });
    multiply(products.data(), 2 * count, work.threads);
    adapted.add(chosen, &AdapterLayer::w1, x, c, true, gates, inner, true);
    adapted.add(chosen, &AdapterLayer::w3, x, c, true, ups, inner, true);

    BFloat16* acted = arena.take<BFloat16>(pairs * inner);
    BFloat16* shared_acted = arena.take<BFloat16>(t_count * inner);
    const float limit = float(net.swiglu_limit);
    parallel_for(pairs + t_count, 32, work.threads, [&](int64_t low, int64_t high) {
        for (int64_t i = low; i < high; i++) {
            if (i < pairs) {
                CALL(activate, gates + i * inner, ups + i * inner, inner, limit, weights[i], acted + i * inner);
            } else {
                const int64_t t = i - pairs;
                CALL(activate, shared_gates + t * inner, shared_ups + t * inner, inner, limit, 1.0f,
                     shared_acted + t * inner);
            }
        }
    });
    products.clear();
    for (int64_t i = 0; i < count; i++) {
        const int64_t e = experts[i];
        products.push_back({layer.w2[e], make_panel(arena, groups.count(e), layer.w2[e]),
                            results + groups.starts[e] * c, c});
    }
    if (shared)
        products.push_back({layer.shared_w2, make_panel(arena, t_count, layer.shared_w2), shared_results, c});
    parallel_for(products.size(), in_turn, work.threads, [&](int64_t low, int64_t high) {
        for (int64_t i = low; i < high; i++)
            fill(products[i].x, i < count ? acted + chosen.firsts[i] * inner : shared_acted, inner, 1);
    });
    multiply(products.data(), products.size(), work.threads);
    adapted.add(chosen, &AdapterLayer::w2, acted, inner, false, results, c, false);
    if (shared) add_deltas(work, &AdapterLayer::shared_w2, shared_acted, inner, shared_results, c);
}

// Computes all experts of a step, in the order in which their source has them in memory. Returns false if that fails.
bool compute_from(const ExpertSource& source, const Mixture& mixture, const List<int64_t>& active, Arena& arena) {
    const int64_t layer = mixture.work.layer.number, count = active.size();
    int64_t* last = arena.take<int64_t>(count);
    // The pairs of an expert are in the order of their tokens.
    for (int64_t i = 0; i < count; i++) last[i] = mixture.groups.tokens[mixture.groups.starts[active[i] + 1] - 1];
    if (source.need(layer, active.data(), last, count) < 0) return false;
    int64_t* ready = arena.take<int64_t>(count);
    for (int64_t done = 0, turn = 0; done < count; turn++) {
        const int64_t given = source.next(layer, ready);
        if (given < 0) return false;
        mixture.compute(ready, given, turn == 0);
        done += given;
    }
    return true;
}

}  // namespace

bool experts(const Work& work, const BFloat16* x, BFloat16* output, int64_t* chosen,
             float* scores) {
    const Network& net = work.net;
    const Layer& layer = work.layer;
    Arena& arena = work.arena;
    const int64_t t_count = work.count, k = net.choices, c = net.channels, inner = net.inner;
    const int64_t pairs = t_count * k;

    // The gate and the shared expert process every token.
    List<Product> products(arena, 3);
    auto whole = [&](const Weight& weight, const BFloat16* rows, int64_t stride) {
        const Panel panel = make_panel(arena, t_count, weight);
        fill(panel, rows, stride, work.threads);
        return panel;
    };
    const Panel plain = whole(layer.gate, x, c);
    const Panel for_gate = plain.serves(layer.shared_w1) ? plain : whole(layer.shared_w1, x, c);
    const Panel for_up = for_gate.serves(layer.shared_w3) ? for_gate : whole(layer.shared_w3, x, c);
    float* logits = arena.take<float>(t_count * net.experts);
    float* shared_gates = arena.take<float>(t_count * inner);
    float* shared_ups = arena.take<float>(t_count * inner);
    products.push_back({layer.gate, plain, logits, net.experts});
    products.push_back({layer.shared_w1, for_gate, shared_gates, inner});
    products.push_back({layer.shared_w3, for_up, shared_ups, inner});
    multiply(products.data(), 3, work.threads);
    add_deltas(work, &AdapterLayer::shared_w1, x, c, shared_gates, inner);
    add_deltas(work, &AdapterLayer::shared_w3, x, c, shared_ups, inner);
    float* shares = arena.take<float>(pairs);
    route(work, logits, scores, chosen, shares);

    const Groups groups(arena, chosen, shares, t_count, k, net.experts);
    const AdaptedPairs adapted(work, groups);
    float* results = arena.take<float>(pairs * c);
    float* shared_results = arena.take<float>(t_count * c);
    const Mixture mixture{work, x, groups, adapted, shared_gates, shared_ups, results, shared_results};
    List<int64_t> active(arena, net.experts);
    for (int64_t e = 0; e < net.experts; e++)
        if (groups.count(e) > 0) active.push_back(e);
    if (layer.source == nullptr)
        mixture.compute(active.data(), active.size(), true);
    else if (!compute_from(*layer.source, mixture, active, arena))
        return false;

    parallel_for(t_count, 16, work.threads, [&](int64_t low, int64_t high) {
        thread_local static Arena own;
        Scope scope(own);
        float* total = own.take<float>(c);
        int64_t* order = own.take<int64_t>(k);
        for (int64_t t = low; t < high; t++) {
            // Pairs are sorted by expert, which is the order of the sum.
            std::copy_n(&groups.places[t * k], k, order);
            std::sort(order, order + k);
            std::fill_n(total, c, 0.0f);
            for (int64_t i = 0; i < k; i++)
                CALL(add_rounded, results + order[i] * c, c, total);
            CALL(add_rounded, shared_results + t * c, c, total);
            to_bfloat16(total, c, output + t * c);
        }
    });
    return true;
}

#else

namespace {

// sqrt(softplus(x)), at least 1e-19 as in ops/experts.py.
void affinity(const float* logits, int64_t count, float* scores) {
    FOR_LANES(i, some, count) {
        Floats x;
        load_lanes(logits + i, some, x);
        const Floats size = x < 0.0f ? -x : x;
        const Floats soft = (x < 0.0f ? Floats{} : x) + log_one_plus(exp(-size));
        store_lanes(scores + i, some, soft < 1.17549435e-38f ? all(1.17549435e-38f) : soft);
        for (int lane = 0; lane < some; lane++) scores[i + lane] = std::sqrt(scores[i + lane]);
    };
}

// silu(min(gate, limit)) * clamp(up, -limit, limit) * weight
void activate(const float* gates, const float* ups, int64_t count, float limit, float weight,
              BFloat16* out) {
    for (int64_t i = 0; i < count; i += LANES) {
        Floats gate, up;
        load(gates + i, gate);
        load(ups + i, up);
        gate = gate > limit ? all(limit) : gate;
        up = up > limit ? all(limit) : up;
        up = up < -limit ? all(-limit) : up;
        store(out + i, gate / (1.0f + exp(-gate)) * up * weight);
    }
}

void add_rounded(const float* x, int64_t count, float* total) {
    for (int64_t i = 0; i < count; i += LANES) {
        Floats value, sum_so_far;
        BFloat16 near[LANES];
        load(x + i, value);
        store(near, value);
        load(near, value);
        load(total + i, sum_so_far);
        store(total + i, sum_so_far + value);
    }
}

}  // namespace

#endif
