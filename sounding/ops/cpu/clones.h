// The vectors of numbers.h for kernels that the compiler clones for each instruction set.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <initializer_list>

#define CLONED __attribute__((target_clones("arch=x86-64-v4", "arch=x86-64-v3", "default")))
#if !(defined(__x86_64__) && defined(__gnu_linux__)) || defined(SOUNDING_ONE_TARGET)
#undef CLONED
#define CLONED
#endif
// Tiles need a compiler that knows them; whether the processor does is asked when the library runs.
#if defined(__x86_64__) && defined(__gnu_linux__) && !defined(SOUNDING_ONE_TARGET)
#define WITH_TILES
#define TILES __attribute__((target("avx512f,avx512bw,avx512dq,avx512vl,avx512vbmi,avx512bf16,amx-tile,amx-bf16")))
#endif
#define INLINE inline __attribute__((always_inline))

struct BFloat16 {
    uint16_t bits;
};

#include "numbers.h"
