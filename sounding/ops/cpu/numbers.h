// Sixteen floats at a time, in the compiler's own vector type: it becomes one AVX-512 register, two
// of AVX2, or whatever the target has. Memory holds float32 or bfloat16; arithmetic is float32.
#pragma once

#include <cmath>
#include <cstdint>
#include <cstring>

// Kernels are compiled for each of these and chosen when the library is loaded.
#if defined(__x86_64__) && defined(__gnu_linux__) && !defined(SOUNDING_ONE_TARGET)
#define CLONED __attribute__((target_clones("arch=x86-64-v4", "arch=x86-64-v3", "default")))
#else
#define CLONED
#endif
#define INLINE inline __attribute__((always_inline))

constexpr int LANES = 16;
typedef float Floats __attribute__((vector_size(64)));
typedef uint32_t Words __attribute__((vector_size(64)));
typedef uint16_t Halves __attribute__((vector_size(32)));

struct BFloat16 {
    uint16_t bits;
};

INLINE float load_one(const float* p) { return *p; }
INLINE float load_one(const BFloat16* p) {
    uint32_t wide = uint32_t(p->bits) << 16;
    float value;
    std::memcpy(&value, &wide, 4);
    return value;
}

INLINE void store_one(float* p, float value) { *p = value; }
INLINE void store_one(BFloat16* p, float value) {
    uint32_t wide;
    std::memcpy(&wide, &value, 4);
    const bool nan = value != value;
    p->bits = nan ? 0x7fc0 : uint16_t((wide + 0x7fff + ((wide >> 16) & 1)) >> 16);
}

INLINE void load(const float* p, Floats& value) { std::memcpy(&value, p, sizeof value); }
INLINE void load(const BFloat16* p, Floats& value) {
    Halves halves;
    std::memcpy(&halves, p, sizeof halves);
    Words wide = __builtin_convertvector(halves, Words) << 16;
    std::memcpy(&value, &wide, sizeof value);
}

INLINE void store(float* p, const Floats& value) { std::memcpy(p, &value, sizeof value); }
INLINE void store(BFloat16* p, const Floats& value) {
    Words wide;
    std::memcpy(&wide, &value, sizeof wide);
    Words rounded = (wide + 0x7fff + ((wide >> 16) & 1)) >> 16;
    Words nan = Words(value != value);
    Words kept = (rounded & ~nan) | (nan & 0x7fc0);
    Halves halves = __builtin_convertvector(kept, Halves);
    std::memcpy(p, &halves, sizeof halves);
}

// Always the same tree, so a sum has the same bits wherever it is taken.
INLINE float sum(const Floats& value) {
    float lane[LANES];
    std::memcpy(lane, &value, sizeof lane);
    for (int width = LANES / 2; width > 0; width /= 2)
        for (int i = 0; i < width; i++) lane[i] += lane[i + width];
    return lane[0];
}
