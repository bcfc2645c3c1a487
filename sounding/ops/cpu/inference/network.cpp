// Entry points: all blocks of a network for a chunk in one call, and the vocabulary head.

#include "network.h"

#include <algorithm>
#include <cstddef>
#include <mutex>

#include "../parallel.h"
#include "rounding.h"

namespace {

// Scratch memory of a step; a concurrent caller has its own.
class Memory {
  public:
    Memory() : lock_(in_use_, std::try_to_lock), scope_(arena()) {}
    Arena& arena() { return lock_.owns_lock() ? common_ : own_; }

  private:
    static std::mutex in_use_;
    static Arena common_;
    std::unique_lock<std::mutex> lock_;
    Arena own_;
    Scope scope_;
};
std::mutex Memory::in_use_;
Arena Memory::common_;

// A network, the states of some sequences (lists[s][layer][RowsOf]), and the number of new tokens of each.
struct Task {
    const Network& net;
    const Layer* const* layers;
    int64_t layer_count;
    const int64_t *tokens, *lengths;
    int64_t count, sequences;
    Rows* const* lists;
    int threads;
    const AdapterLayer* const* adapters;  // of each sequence, all its layers, or null

    int64_t number(int64_t s, int64_t layer) const { return (s * layer_count + layer) * LISTS; }

    // The index of the first list without room for its new rows, or -1.
    int64_t crowded() const {
        for (int64_t s = 0; s < sequences; s++)
            for (int64_t l = 0; l < layer_count; l++)
                for (int64_t i = 0; i < LISTS; i++) {
                    const int64_t at = number(s, l) + i;
                    if (lists[at] == nullptr) continue;
                    const int64_t start = lists[number(s, l)]->length;
                    const int64_t end = i == ENTRIES || i == INDEX_ENTRIES
                                            ? (start + lengths[s]) / layers[l]->ratio
                                            : start + lengths[s];
                    if (!lists[at]->has_room(end - lists[at]->length)) return at;
                }
        return -1;
    }
};

bool run_block(const Work& work, BFloat16* streams, int64_t* chosen, float* scores) {
    Scope scope(work.arena);
    BFloat16* output = work.arena.take<BFloat16>(work.count * work.net.channels);
    {
        Scope inner(work.arena);
        const Connection by = connect(work, streams, work.layer.attn_hc, work.layer.attn_norm);
        attention(work, by.x, output);
        write_back(work, streams, by, output);
    }
    const Connection by = connect(work, streams, work.layer.ffn_hc, work.layer.ffn_norm);
    if (!experts(work, by.x, output, chosen, scores)) return false;
    write_back(work, streams, by, output);
    return true;
}

// The rows of each adapter of a step, with the adapter's first layer.
List<Adapted> group_by_adapter(const Task& task, Arena& arena) {
    List<Adapted> groups(arena, task.sequences);
    if (task.adapters == nullptr) return groups;
    for (int64_t s = 0; s < task.sequences; s++) {
        const AdapterLayer* const layers = task.adapters[s];
        bool known = layers == nullptr;
        for (int64_t a = 0; a < groups.size() && !known; a++) known = groups[a].layer == layers;
        if (known) continue;
        int64_t* rows = arena.take<int64_t>(task.count);
        int64_t found = 0;
        for (int64_t other = 0, first = 0; other < task.sequences; first += task.lengths[other], other++)
            for (int64_t t = 0; t < task.lengths[other] && task.adapters[other] == layers; t++)
                rows[found++] = first + t;
        groups.push_back({layers, rows, found});
    }
    return groups;
}

// The means of the streams behind some layers: that of layer l is row place[l], or -1, of out[t, count, c].
struct Taps {
    const int64_t* place;
    int64_t count;
    BFloat16* out;

    void take(const Network& net, int64_t layer, const BFloat16* streams, int64_t tokens, int threads) const {
        if (place == nullptr || place[layer] < 0) return;
        const int64_t m = net.streams, c = net.channels;
        parallel_for(tokens, 32, threads, [&](int64_t low, int64_t high) {
            for (int64_t t = low; t < high; t++)
                for (int64_t i = 0; i < c; i++) {
                    float sum = 0;
                    for (int64_t j = 0; j < m; j++) sum += load_one(streams + (t * m + j) * c + i);
                    store_one(out + (t * count + place[layer]) * c + i, sum / float(m));
                }
        });
    }
};

// Spans without lists, and the positions of their rows.
void lay_out(const Task& task, Span* spans, int64_t* positions) {
    for (int64_t s = 0, first = 0; s < task.sequences; first += task.lengths[s], s++) {
        spans[s] = {first, task.lengths[s], task.lists[task.number(s, 0)]->length, nullptr};
        for (int64_t t = 0; t < task.lengths[s]; t++) positions[first + t] = spans[s].start + t;
    }
}

// False if the source of some experts ended the step.
bool run_blocks(const Task& task, BFloat16* streams, int64_t* chosen, float* scores, const Taps& taps, bool block,
                Arena& arena) {
    Scope scope(arena);
    const int64_t count = task.count;
    const List<Adapted> adapted = group_by_adapter(task, arena);
    int64_t* positions = arena.take<int64_t>(count);
    Span* spans = arena.take<Span>(task.sequences);
    lay_out(task, spans, positions);
    for (int64_t l = 0; l < task.layer_count; l++) {
        for (int64_t s = 0; s < task.sequences; s++) spans[s].lists = task.lists + task.number(s, l);
        const Work work{task.net, *task.layers[l], task.tokens, positions, spans, count,
                        task.sequences, task.threads, arena, adapted.data(), adapted.size(), block};
        if (!run_block(work, streams, chosen + l * count * task.net.choices,
                       scores + l * count * task.net.experts))
            return false;
        for (int64_t a = 0; a < adapted.size(); a++) adapted[a].layer++;
        taps.take(task.net, l, streams, count, task.threads);
    }
    return true;
}

// out[t * weight.rows + o] = <x_t, w_o>
void linear(const Weight& weight, const BFloat16* x, int64_t count, float* out, int threads, Arena& arena) {
    Scope scope(arena);
    const Product product{weight, make_panel(arena, count, weight), out, weight.rows};
    fill(product.x, x, weight.columns, threads);
    multiply(&product, 1, threads);
}

// All streams start as the embedding of the token.
void embed(const Task& task, const Weight& embedding, BFloat16* streams) {
    const int64_t m = task.net.streams, c = task.net.channels;
    for (int64_t t = 0; t < task.count; t++) {
        BFloat16* to = streams + t * m * c;
        unpack(embedding, task.tokens[t], 1, 0, c, to, 0, embedding.values);
        for (int64_t j = 1; j < m; j++) std::copy(to, to + c, to + j * c);
    }
}

void read_logits(const Task& task, const Ends& ends, const BFloat16* streams, const int64_t* rows,
                 int64_t count, float* logits, Arena& arena) {
    Scope scope(arena);
    BFloat16* hidden = arena.take<BFloat16>(count * task.net.channels);
    collapse(task.net, ends.hc, ends.norm, streams, rows, count, hidden, task.threads);
    linear(ends.head, hidden, count, logits, task.threads, arena);
}

void begin_draft(const Network& net, const DraftEnds& ends, const BFloat16* streams, const int64_t* tokens,
                 int64_t count, BFloat16* out, int threads, Arena& arena) {
    Scope scope(arena);
    const int64_t m = net.streams, c = net.channels, rows = count * m;
    auto weights_of = [&](const Vector& norm) { return norm.floats(c, arena.take<float>(c)); };
    const float *enorm = weights_of(ends.enorm), *hnorm = weights_of(ends.hnorm);
    BFloat16* embedded = arena.take<BFloat16>(count * c);
    BFloat16* normed = arena.take<BFloat16>(rows * c);
    float* wide = arena.take<float>(c);
    for (int64_t t = 0; t < count; t++) {
        unpack(ends.embedding, tokens[t], 1, 0, c, embedded + t * c, 0, ends.embedding.values);
        to_float(embedded + t * c, c, wide);
        rms_norm(wide, c, enorm, float(net.norm_eps), embedded + t * c);
    }
    for (int64_t i = 0; i < rows; i++) {
        to_float(streams + i * c, c, wide);
        rms_norm(wide, c, hnorm, float(net.norm_eps), normed + i * c);
    }
    float* from_token = arena.take<float>(count * c);
    float* from_streams = arena.take<float>(rows * c);
    linear(ends.e_proj, embedded, count, from_token, threads, arena);
    linear(ends.h_proj, normed, rows, from_streams, threads, arena);
    // Both terms are rounded to bfloat16, then added, as in a network that computes in bfloat16.
    to_bfloat16(from_token, count * c, embedded);
    to_float(embedded, count * c, from_token);
    to_bfloat16(from_streams, rows * c, normed);
    to_float(normed, rows * c, from_streams);
    for (int64_t i = 0; i < rows; i++)
        for (int64_t k = 0; k < c; k++) from_streams[i * c + k] += from_token[i / m * c + k];
    to_bfloat16(from_streams, rows * c, out);
}

// Appends the keys that DSpark blocks make of the taps [t, taps * c] of tokens of the network.
void read_context(const Task& task, const Weight& main_proj, const Vector& main_norm, const BFloat16* taps,
                  Arena& arena) {
    Scope scope(arena);
    const Network& net = task.net;
    const int64_t count = task.count, c = net.channels, d = net.head_dim, pairs = net.rotary / 2;
    const float eps = float(net.norm_eps);
    float* wide = arena.take<float>(count * std::max(c, d));
    BFloat16* x = arena.take<BFloat16>(count * c);
    int64_t* positions = arena.take<int64_t>(count);
    Span* spans = arena.take<Span>(task.sequences);
    lay_out(task, spans, positions);
    linear(main_proj, taps, count, wide, task.threads, arena);
    const float* norm = main_norm.floats(c, arena.take<float>(c));
    for (int64_t t = 0; t < count; t++) rms_norm(wide + t * c, c, norm, eps, x + t * c);
    BFloat16* row = arena.take<BFloat16>(d);
    float *cos = arena.take<float>(pairs), *sin = arena.take<float>(pairs);
    for (int64_t l = 0; l < task.layer_count; l++) {
        Scope inner(arena);
        const Layer& layer = *task.layers[l];
        const float* kv_norm = layer.kv_norm.floats(d, arena.take<float>(d));
        linear(layer.wkv, x, count, wide, task.threads, arena);
        for (int64_t s = 0; s < task.sequences; s++) {
            Rows& list = *task.lists[task.number(s, l) + WINDOW];
            uint8_t* packed = arena.take<uint8_t>(list.row_bytes);
            for (int64_t t = spans[s].first; t < spans[s].first + spans[s].length; t++) {
                rms_norm(wide + t * d, d, kv_norm, eps, row);
                find_angles(positions[t], layer.frequencies, pairs, cos, sin);
                rotate(row, d, net.rotary, {cos, sin});
                if (net.simulate_kv) round_fp8(row, d - net.rotary, KV_BLOCK, row);
                store_row(net, list, row, packed);
                append(list, packed, 1);
            }
        }
    }
}

}  // namespace

extern "C" {

// Runs `layers` over streams [count, m, c] in place, and appends the tokens to the states
// lists[s][layer][RowsOf]. With `places` it takes taps[count, tap_count, c] (see Taps). With `ends` it starts from
// tokens, whose embedding it writes to the streams, and computes logits[row_count, vocabulary] of some rows.
// adapters[s] are the deltas of all layers for sequence s, or null; `adapters` is null where no sequence has any.
// Returns -1 on success. Before anything is changed it returns the index of the first list (in that order) without
// room for its new rows, or -2 for an unknown token. -3 says that the source of some experts ended the step; the
// states then hold rows of some layers only.
int64_t network_run(const Network* net, const Layer* const* layers, int64_t layer_count,
                    const Ends* ends, BFloat16* streams, const int64_t* tokens, int64_t count,
                    const int64_t* lengths, int64_t sequences, Rows* const* lists,
                    int64_t* chosen, float* scores, const int64_t* rows, int64_t row_count,
                    float* logits, const int64_t* places, int64_t tap_count, BFloat16* taps, int threads,
                    const AdapterLayer* const* adapters) {
    const Task task{*net, layers, layer_count, tokens, lengths, count, sequences, lists, threads, adapters};
    if (ends != nullptr)
        for (int64_t t = 0; t < count; t++)
            if (tokens[t] < 0 || tokens[t] >= ends->embedding.rows) return -2;
    const int64_t crowded = task.crowded();
    if (crowded >= 0) return crowded;
    Memory memory;
    Step step;
    if (ends != nullptr) embed(task, ends->embedding, streams);
    if (!run_blocks(task, streams, chosen, scores, {places, tap_count, taps}, false, memory.arena())) return -3;
    if (ends != nullptr) read_logits(task, *ends, streams, rows, row_count, logits, memory.arena());
    return -1;
}

// The input of an MTP block: out[t, j] = e_proj(enorm(embedding of token t)) + h_proj(hnorm(streams[t, j])), each
// term rounded to bfloat16, then their sum. Returns -1 on success, or -2 for an unknown token.
int64_t network_begin_draft(const Network* net, const DraftEnds* ends, const BFloat16* streams,
                            const int64_t* tokens, int64_t count, BFloat16* out, int threads) {
    for (int64_t t = 0; t < count; t++)
        if (tokens[t] < 0 || tokens[t] >= ends->embedding.rows) return -2;
    Memory memory;
    Step step;
    begin_draft(*net, *ends, streams, tokens, count, out, threads, memory.arena());
    return -1;
}

// Appends the keys of tokens, by their taps [count, taps * c], to the states of a DSpark drafter. Returns -1 on
// success, or the index of the first list without room.
int64_t network_read_context(const Network* net, const Layer* const* layers, int64_t layer_count,
                             const Weight* main_proj, const Vector* main_norm, const BFloat16* taps, int64_t count,
                             const int64_t* lengths, int64_t sequences, Rows* const* lists, int threads) {
    const Task task{*net, layers, layer_count, nullptr, lengths, count, sequences, lists, threads};
    const int64_t crowded = task.crowded();
    if (crowded >= 0) return crowded;
    Memory memory;
    Step step;
    read_context(task, *main_proj, *main_norm, taps, memory.arena());
    return -1;
}

// Runs the blocks of a DSpark drafter over blocks of known tokens: hidden[count, c] before the norm of the head,
// and logits[count, vocabulary]. The states stay as they are. Returns -1 on success, or -3 if the source of some
// experts ended the step.
int64_t network_draft_block(const Network* net, const Layer* const* layers, int64_t layer_count, const Ends* ends,
                         const int64_t* tokens, int64_t count, const int64_t* lengths, int64_t sequences,
                         Rows* const* lists, BFloat16* hidden, float* logits, int threads) {
    const Task task{*net, layers, layer_count, tokens, lengths, count, sequences, lists, threads};
    Memory memory;
    Step step;
    Arena& arena = memory.arena();
    Scope scope(arena);
    const int64_t c = net->channels;
    BFloat16* streams = arena.take<BFloat16>(count * net->streams * c);
    int64_t* chosen = arena.take<int64_t>(layer_count * count * net->choices);
    float* scores = arena.take<float>(layer_count * count * net->experts);
    embed(task, ends->embedding, streams);
    if (!run_blocks(task, streams, chosen, scores, {}, true, arena)) return -3;
    collapse(*net, ends->hc, {}, streams, nullptr, count, hidden, threads);
    BFloat16* normed = arena.take<BFloat16>(count * c);
    const float* norm = ends->norm.floats(c, arena.take<float>(c));
    float* wide = arena.take<float>(c);
    for (int64_t t = 0; t < count; t++) {
        to_float(hidden + t * c, c, wide);
        rms_norm(wide, c, norm, float(net->norm_eps), normed + t * c);
    }
    linear(ends->head, normed, count, logits, threads, arena);
    return -1;
}

// logits[count, vocabulary] from streams [count, m, c].
void network_logits(const Network* net, const Ends* ends, const BFloat16* streams, int64_t count,
                    float* logits, int threads) {
    Memory memory;
    Step step;
    Scope scope(memory.arena());
    BFloat16* hidden = memory.arena().take<BFloat16>(count * net->channels);
    collapse(*net, ends->hc, ends->norm, streams, nullptr, count, hidden, threads);
    linear(ends->head, hidden, count, logits, threads, memory.arena());
}

// Sizes and field offsets of the structs that Python fills, with -1 after each struct.
int64_t network_layout(int64_t* out) {
    int64_t* to = out;
#define AT(type, field) *to++ = int64_t(offsetof(type, field));
#define END(type) *to++ = int64_t(sizeof(type)), *to++ = -1;
    AT(Weight, values) AT(Weight, scales) AT(Weight, rows) AT(Weight, columns) AT(Weight, row_bytes)
    AT(Weight, scale_row) AT(Weight, format) AT(Weight, simulate) AT(Weight, first) END(Weight)
    AT(Vector, data) AT(Vector, bfloat16) END(Vector)
    AT(HyperConnection, fn) AT(HyperConnection, base) AT(HyperConnection, scale) END(HyperConnection)
    AT(Pooling, wkv) AT(Pooling, wgate) AT(Pooling, ape) AT(Pooling, norm) AT(Pooling, width) END(Pooling)
    AT(ExpertSource, need) AT(ExpertSource, next) END(ExpertSource)
    AT(Layer, ratio) AT(Layer, frequencies) AT(Layer, attn_norm) AT(Layer, ffn_norm) AT(Layer, q_norm)
    AT(Layer, kv_norm) AT(Layer, sink) AT(Layer, attn_hc) AT(Layer, ffn_hc) AT(Layer, wq_a) AT(Layer, wq_b)
    AT(Layer, wkv) AT(Layer, wo_a) AT(Layer, wo_b) AT(Layer, compressor) AT(Layer, index_compressor)
    AT(Layer, index_wq_b) AT(Layer, index_weights) AT(Layer, gate) AT(Layer, bias) AT(Layer, table)
    AT(Layer, w1) AT(Layer, w2) AT(Layer, w3) AT(Layer, shared_w1) AT(Layer, shared_w2) AT(Layer, shared_w3)
    AT(Layer, source) AT(Layer, number)
    END(Layer)
    AT(Delta, low) AT(Delta, high) AT(Delta, factor) END(Delta)
    AT(AdapterLayer, wq_a) AT(AdapterLayer, wq_b) AT(AdapterLayer, wkv) AT(AdapterLayer, wo_a)
    AT(AdapterLayer, wo_b) AT(AdapterLayer, w1) AT(AdapterLayer, w2) AT(AdapterLayer, w3)
    AT(AdapterLayer, shared_w1) AT(AdapterLayer, shared_w2) AT(AdapterLayer, shared_w3) END(AdapterLayer)
    AT(Network, channels) AT(Network, streams) AT(Network, heads) AT(Network, head_dim) AT(Network, rotary)
    AT(Network, q_rank) AT(Network, groups) AT(Network, o_rank) AT(Network, window) AT(Network, index_heads)
    AT(Network, index_width) AT(Network, index_limit) AT(Network, experts) AT(Network, choices)
    AT(Network, inner) AT(Network, vocabulary) AT(Network, iterations) AT(Network, simulate_kv)
    AT(Network, simulate_index) AT(Network, norm_eps) AT(Network, hc_eps) AT(Network, swiglu_limit)
    AT(Network, routed_scale) END(Network)
    AT(Ends, embedding) AT(Ends, head) AT(Ends, hc) AT(Ends, norm) END(Ends)
    AT(DraftEnds, embedding) AT(DraftEnds, e_proj) AT(DraftEnds, h_proj) AT(DraftEnds, enorm)
    AT(DraftEnds, hnorm) END(DraftEnds)
    AT(Rows, data) AT(Rows, used) AT(Rows, slots) AT(Rows, row_bytes) AT(Rows, length) AT(Rows, kept)
    AT(Rows, bounded) AT(Rows, shared) AT(Rows, format) END(Rows)
#undef AT
#undef END
    return to - out;
}

void network_linear(const Weight* weight, const BFloat16* x, int64_t count, float* out,
                    int threads) {
    Memory memory;
    Step step;
    linear(*weight, x, count, out, threads, memory.arena());
}
}
