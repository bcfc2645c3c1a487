// Cross-entropy of rows of logits, for training: loss and gradient in one pass, in place. The formulas are
// those of ops/loss.py.

#define KERNELS "training/loss.cpp"
#ifndef TARGET

#include <cstdint>

constexpr int64_t GRAIN = 4;      // rows per range

#include "../each_target.h"

extern "C" void train_cross_entropy(int bfloat16, int threads, int64_t rows, int vocab,
                                    void* logits, const int64_t* target, float* loss) {
    RUN(rows, GRAIN, cross_entropy, (T*)logits, target, loss, vocab);
}

#else

constexpr int64_t IGNORED = -100;  // target of a row without loss

// Replace logits by softmax - one_hot(target), or 0 in ignored rows; the loss is -log softmax.
template <typename T>
void cross_entropy(int64_t low, int64_t high, T* logits, const int64_t* target,
                                float* loss, int vocab) {
    for (int64_t row = low; row < high; row++) {
        T* x = logits + row * vocab;
        if (target[row] == IGNORED) {
            loss[row] = 0;
            FOR_LANES(i, count, vocab) { store_lanes(x + i, count, Floats{}); };
            continue;
        }
        const float aimed = load_one(x + target[row]);
        Floats top = Floats{} - INFINITY, v;
        FOR_LANES(i, count, vocab) {
            load_lanes(x + i, count, v);
            raise(top, first_lanes(v, count, -INFINITY));
        };
        const float most = maximum(top);
        Floats total = {};
        FOR_LANES(i, count, vocab) {
            load_lanes(x + i, count, v);
            v = exp(first_lanes(v, count, -INFINITY) - most);
            total += v;
            store_lanes(x + i, count, v);
        };
        const float all = sum(total), share = 1.0f / all;
        loss[row] = std::log(all) + most - aimed;
        FOR_LANES(i, count, vocab) {
            load_lanes(x + i, count, v);
            store_lanes(x + i, count, v * share);
        };
        store_one(x + target[row], std::exp(aimed - most) * share - 1.0f);
    }
}

#endif
