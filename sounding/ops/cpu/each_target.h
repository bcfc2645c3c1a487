// Compiles the file KERNELS (a path from this folder) once per instruction set, each time in its own namespace,
// and selects one when a kernel is called.
//
// The compiler's `target_clones` would be shorter, but it lowers some vector operations, above all comparisons,
// for the lowest instruction set before it makes the clones. Templates of the standard library are compiled for
// the lowest set, outside. LEVEL is the x86-64 level that a kernel is compiled for (0 on other processors);
// the compiler's macros, such as __AVX2__, do not change with it.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>

#include "bfloat16.h"
#include "parallel.h"

// FOR_LANES(i, count, size) { body } runs the body for each register of `size` numbers: `count` of them from i on,
// fewer in the last group. In the body of whole groups `count` is a constant.
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

// CALL(kernel<T>, arguments...) runs the kernel for the best instruction set of this processor.
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

// Run NAME<T>(low, high, arguments...) over ranges of `rows`, where T is the tensors' number type.
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
