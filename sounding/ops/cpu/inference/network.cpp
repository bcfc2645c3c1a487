// Steps through a network: all its blocks for a chunk in one call, and the vocabulary head.

#include "network.h"

#include <algorithm>
#include <mutex>

#include "../parallel.h"

namespace {

// Memory of the steps; a second caller at the same time works in memory of its own.
std::mutex in_use;
Arena common;

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

}  // namespace

extern "C" {

// Runs `layers` over streams [count, m, c] in place, and takes the tokens into the states:
// lists[s][layer][RowsOf]. Returns -1, or before anything is changed the number of the first list
// (in that order) without room for its new rows.
int64_t network_run(const Network* net, const Layer* const* layers, int64_t layer_count,
                    BFloat16* streams, const int64_t* tokens, int64_t count,
                    const int64_t* lengths, int64_t sequences, Rows* const* lists,
                    int64_t* chosen, float* scores, int threads) {
    for (int64_t s = 0; s < sequences; s++)
        for (int64_t l = 0; l < layer_count; l++)
            for (int64_t i = 0; i < LISTS; i++) {
                const int64_t number = (s * layer_count + l) * LISTS + i;
                if (lists[number] == nullptr) continue;
                const int64_t start = lists[(s * layer_count + l) * LISTS]->length;
                const int64_t end = i == ENTRIES || i == INDEX_ENTRIES
                                        ? (start + lengths[s]) / layers[l]->ratio
                                        : start + lengths[s];
                if (!lists[number]->has_room(end - lists[number]->length)) return number;
            }
    std::unique_lock<std::mutex> lock(in_use, std::try_to_lock);
    Arena own;
    Arena& arena = lock.owns_lock() ? common : own;
    Scope scope(arena);
    Step step;
    int64_t* positions = arena.take<int64_t>(count);
    Span* spans = arena.take<Span>(sequences);
    for (int64_t s = 0, first = 0; s < sequences; first += lengths[s], s++) {
        spans[s] = {first, lengths[s], lists[s * layer_count * LISTS]->length, nullptr};
        for (int64_t t = 0; t < lengths[s]; t++) positions[first + t] = spans[s].start + t;
    }
    for (int64_t l = 0; l < layer_count; l++) {
        for (int64_t s = 0; s < sequences; s++)
            spans[s].lists = lists + (s * layer_count + l) * LISTS;
        const Work work{*net, *layers[l], tokens, positions, spans, count, sequences,
                        threads, arena};
        run_block(work, streams, chosen + l * count * net->choices,
                  scores + l * count * net->experts);
    }
    return -1;
}

// out[t * weight.rows + o] = <x_t, w_o>
void network_linear(const Weight* weight, const BFloat16* x, int64_t count, float* out,
                    int threads) {
    std::unique_lock<std::mutex> lock(in_use, std::try_to_lock);
    Arena own;
    Arena& arena = lock.owns_lock() ? common : own;
    Scope scope(arena);
    Step step;
    const Product product{*weight, make_panel(arena, count, *weight), out, weight->rows};
    fill(product.x, x, weight->columns, threads);
    multiply(&product, 1, threads);
}
}
