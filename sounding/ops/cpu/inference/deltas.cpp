// What adapters add to products: two small products more, for the rows of their sequences only.

#include "network.h"

#include "../parallel.h"

namespace {

constexpr int64_t SMALL = 1 << 18;  // multiplications that are done before other threads have begun

}  // namespace

void add_delta(const Delta& delta, const BFloat16* x, int64_t stride, const int64_t* from, const int64_t* to,
               int64_t count, float* out, int64_t out_stride, int threads, Arena& arena) {
    const int64_t rank = delta.low.rows, outputs = delta.high.rows;
    if (rank == 0 || count == 0) return;
    if (count * rank * (delta.low.columns + outputs) < SMALL) threads = 1;
    Scope scope(arena);
    float* lowered = arena.take<float>(count * rank);
    const Product down{delta.low, make_panel(arena, count, delta.low), lowered, rank};
    fill(down.x, x, stride, threads, from);
    multiply(&down, 1, threads);
    const float factor = float(delta.factor);
    for (int64_t i = 0; i < count * rank; i++) lowered[i] *= factor;
    BFloat16* near = arena.take<BFloat16>(count * rank);
    to_bfloat16(lowered, count * rank, near);
    float* raised = arena.take<float>(count * outputs);
    const Product up{delta.high, make_panel(arena, count, delta.high), raised, outputs};
    fill(up.x, near, rank, threads);
    multiply(&up, 1, threads);
    parallel_for(count, 16, threads, [&](int64_t low, int64_t high) {
        for (int64_t i = low; i < high; i++) {
            float* total = out + to[i] * out_stride;
            for (int64_t k = 0; k < outputs; k++) total[k] += raised[i * outputs + k];
        }
    });
}

void add_deltas(const Work& work, Delta AdapterLayer::*which, const BFloat16* x, int64_t stride, float* out,
                int64_t out_stride) {
    for (int64_t a = 0; a < work.adapters; a++) {
        const Adapted& some = work.adapted[a];
        add_delta(some.layer->*which, x, stride, some.rows, some.rows, some.count, out, out_stride, work.threads,
                  work.arena);
    }
}

void add_grouped_deltas(const Work& work, Delta AdapterLayer::*which, const BFloat16* x, int64_t stride, float* out,
                        int64_t out_stride) {
    const int64_t groups = work.net.groups;
    for (int64_t a = 0; a < work.adapters; a++) {
        const Adapted& some = work.adapted[a];
        const Delta& whole = some.layer->*which;
        const int64_t outputs = whole.high.rows / groups;
        for (int64_t g = 0; g < groups && whole.low.rows > 0; g++) {
            const Delta part{whole.low, whole.high.slice(g * outputs, (g + 1) * outputs), whole.factor};
            add_delta(part, x + g * (stride / groups), stride, some.rows, some.rows, some.count, out + g * outputs,
                      out_stride, work.threads, work.arena);
        }
    }
}
