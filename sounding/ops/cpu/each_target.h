// Compiles the file named KERNELS, a path from this folder, for each instruction set, each time in a
// namespace of its own, and chooses among them when a kernel runs.
//
// The compiler's `target_clones` would be shorter, but it lowers some of what is written on vectors,
// comparisons above all, for the lowest set before it makes the clones. Templates of the standard
// library are compiled for the lowest set, outside. LEVEL says which level of x86-64 a kernel is
// compiled for (0 elsewhere), which the compiler's own macros, such as __AVX2__, do not.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>

#include "bfloat16.h"
#include "parallel.h"

// FOR_LANES(i, count, size) { body } runs body for each register of `size`, from i on, `count` of
// them: the last group may be shorter. Whole groups get a body in which count is a constant.
#define FOR_LANES(i, count, size)                                                                  \
    for_lanes{int(size)} << [&](const int i, const auto count) __attribute__((always_inline))

#if defined(__x86_64__) && defined(__GNUC__)

#include <immintrin.h>

#define TARGET
#pragma GCC push_options
#pragma GCC target("arch=x86-64-v4")
#define LEVEL 4
namespace v4 {
#include "numbers.h"
#include KERNELS
}  // namespace v4
#undef LEVEL
#pragma GCC pop_options
#pragma GCC push_options
#pragma GCC target("arch=x86-64-v3")
#define LEVEL 3
namespace v3 {
#include "numbers.h"
#include KERNELS
}  // namespace v3
#undef LEVEL
#pragma GCC pop_options
#define LEVEL 1
namespace base {
#include "numbers.h"
#include KERNELS
}  // namespace base
#undef LEVEL
#undef TARGET

// CALL(kernel<T>, arguments...) runs the best one that this processor has.
#define CALL(NAME, ...)                                                                            \
    (instruction_set() == 4   ? v4::NAME(__VA_ARGS__)                                              \
     : instruction_set() == 3 ? v3::NAME(__VA_ARGS__)                                              \
                              : base::NAME(__VA_ARGS__))

#else

#define TARGET
#define LEVEL 0
namespace base {
#include "numbers.h"
#include KERNELS
}  // namespace base
#undef LEVEL
#undef TARGET
#define CALL(NAME, ...) base::NAME(__VA_ARGS__)

#endif

// NAME<T>(low, high, arguments...) over ranges of `rows`, where T is what the tensors hold.
#define RUN(ROWS, GRAIN, NAME, ...)                                                                \
    parallel_for(ROWS, GRAIN, threads, [&](int64_t low, int64_t high) {                            \
        if (bfloat16) {                                                                            \
            using T = BFloat16;                                                                    \
            CALL(NAME<T>, low, high, __VA_ARGS__);                                                 \
        } else {                                                                                   \
            using T = float;                                                                       \
            CALL(NAME<T>, low, high, __VA_ARGS__);                                                 \
        }                                                                                          \
    })
