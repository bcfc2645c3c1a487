// Cross-entropy of rows of logits, for training: loss and gradient in one go, in place. Formulas are
// those of ops/loss.py.

#include <algorithm>

#include "../numbers.h"
#include "../parallel.h"

namespace {

constexpr int64_t GRAIN = 4;      // rows per range
constexpr int64_t IGNORED = -100;  // target of a row that does not count

// logits become softmax - one_hot(target), or 0 in rows that do not count; loss is -log softmax.
template <typename T>
INLINE void cross_entropy_range(int64_t low, int64_t high, T* logits, const int64_t* target,
                                float* loss, int vocab) {
    for (int64_t row = low; row < high; row++) {
        T* x = logits + row * vocab;
        if (target[row] == IGNORED) {
            loss[row] = 0;
            FOR_LANES(i, count, vocab) store_lanes(x + i, count, Floats{});
            continue;
        }
        const float aimed = load_one(x + target[row]);
        Floats top = Floats{} - INFINITY, v;
        FOR_LANES(i, count, vocab) {
            load_lanes(x + i, count, v);
            for (int lane = count; lane < LANES; lane++) v[lane] = -INFINITY;
            top = v > top || v != v ? v : top;
        }
        float most = top[0];
        for (int lane = 1; lane < LANES; lane++)
            most = top[lane] > most || top[lane] != top[lane] ? top[lane] : most;
        Floats total = {};
        FOR_LANES(i, count, vocab) {
            load_lanes(x + i, count, v);
            for (int lane = count; lane < LANES; lane++) v[lane] = -INFINITY;
            total += exp(v - most);
        }
        const float all = sum(total);
        loss[row] = std::log(all) + most - aimed;
        const float log_sum = most + std::log(all);
        FOR_LANES(i, count, vocab) {
            load_lanes(x + i, count, v);
            store_lanes(x + i, count, exp(v - log_sum));
        }
        store_one(x + target[row], std::exp(aimed - log_sum) - 1.0f);
    }
}

#define FIX(T, S)                                                                                  \
    CLONED void cross_entropy_##S(int64_t low, int64_t high, T* logits, const int64_t* target,     \
                                  float* loss, int vocab) {                                        \
        cross_entropy_range(low, high, logits, target, loss, vocab);                               \
    }

FIX(float, float)
FIX(BFloat16, bfloat16)

}  // namespace

extern "C" void train_cross_entropy(int bfloat16, int threads, int64_t rows, int vocab,
                                    void* logits, const int64_t* target, float* loss) {
    parallel_for(rows, GRAIN, threads, [&](int64_t low, int64_t high) {
        if (bfloat16)
            cross_entropy_bfloat16(low, high, (BFloat16*)logits, target, loss, vocab);
        else
            cross_entropy_float(low, high, (float*)logits, target, loss, vocab);
    });
}
