// Steps through a network: all its blocks for a chunk in one call, and the vocabulary head.

#include "network.h"

#include <algorithm>
#include <mutex>

#include "../parallel.h"

namespace {

// Memory of a step; a second caller at the same time works in memory of its own.
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

// A network, some sequences' states (lists[s][layer][RowsOf]) and how many tokens each takes in.
struct Task {
    const Network& net;
    const Layer* const* layers;
    int64_t layer_count;
    const int64_t *tokens, *lengths;
    int64_t count, sequences;
    Rows* const* lists;
    int threads;

    int64_t number(int64_t s, int64_t layer) const { return (s * layer_count + layer) * LISTS; }

    // The number of the first list without room for its new rows, or -1.
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

void run_block(const Work& work, BFloat16* streams, int64_t* chosen, float* scores) {
    Scope scope(work.arena);
    BFloat16* output = work.arena.take<BFloat16>(work.count * work.net.channels);
    {
        Scope inner(work.arena);
        const Connection by = connect(work, streams, work.layer.attn_hc, work.layer.attn_norm);
        attention(work, by.x, output);
        write_back(work, streams, by, output);
    }
    const Connection by = connect(work, streams, work.layer.ffn_hc, work.layer.ffn_norm);
    experts(work, by.x, output, chosen, scores);
    write_back(work, streams, by, output);
}

void run_blocks(const Task& task, BFloat16* streams, int64_t* chosen, float* scores, Arena& arena) {
    Scope scope(arena);
    const int64_t count = task.count;
    int64_t* positions = arena.take<int64_t>(count);
    Span* spans = arena.take<Span>(task.sequences);
    for (int64_t s = 0, first = 0; s < task.sequences; first += task.lengths[s], s++) {
        spans[s] = {first, task.lengths[s], task.lists[task.number(s, 0)]->length, nullptr};
        for (int64_t t = 0; t < task.lengths[s]; t++) positions[first + t] = spans[s].start + t;
    }
    for (int64_t l = 0; l < task.layer_count; l++) {
        for (int64_t s = 0; s < task.sequences; s++) spans[s].lists = task.lists + task.number(s, l);
        const Work work{task.net, *task.layers[l], task.tokens, positions, spans, count,
                        task.sequences, task.threads, arena};
        run_block(work, streams, chosen + l * count * task.net.choices,
                  scores + l * count * task.net.experts);
    }
}

// out[t * weight.rows + o] = <x_t, w_o>
void linear(const Weight& weight, const BFloat16* x, int64_t count, float* out, int threads, Arena& arena) {
    Scope scope(arena);
    const Product product{weight, make_panel(arena, count, weight), out, weight.rows};
    fill(product.x, x, weight.columns, threads);
    multiply(&product, 1, threads);
}

// Every stream begins as the token's vector.
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

}  // namespace

extern "C" {

// Runs `layers` over streams [count, m, c] in place, and takes the tokens into the states:
// lists[s][layer][RowsOf]. With `ends` it goes from tokens, whose embedding it writes to the streams, to
// logits[row_count, vocabulary] of some rows. Returns -1, or before anything is changed the number of the
// first list (in that order) without room for its new rows, or -2 where a token is none.
int64_t network_run(const Network* net, const Layer* const* layers, int64_t layer_count,
                    const Ends* ends, BFloat16* streams, const int64_t* tokens, int64_t count,
                    const int64_t* lengths, int64_t sequences, Rows* const* lists,
                    int64_t* chosen, float* scores, const int64_t* rows, int64_t row_count,
                    float* logits, int threads) {
    const Task task{*net, layers, layer_count, tokens, lengths, count, sequences, lists, threads};
    if (ends != nullptr)
        for (int64_t t = 0; t < count; t++)
            if (tokens[t] < 0 || tokens[t] >= ends->embedding.rows) return -2;
    const int64_t crowded = task.crowded();
    if (crowded >= 0) return crowded;
    Memory memory;
    Step step;
    if (ends != nullptr) embed(task, ends->embedding, streams);
    run_blocks(task, streams, chosen, scores, memory.arena());
    if (ends != nullptr) read_logits(task, *ends, streams, rows, row_count, logits, memory.arena());
    return -1;
}

void network_linear(const Weight* weight, const BFloat16* x, int64_t count, float* out,
                    int threads) {
    Memory memory;
    Step step;
    linear(*weight, x, count, out, threads, memory.arena());
}
}
