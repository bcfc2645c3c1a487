// Number types in memory, float32 and bfloat16; arithmetic is float32.
#pragma once

#include <cstdint>
#include <cstring>

#define INLINE inline __attribute__((always_inline))

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

INLINE float rounded(float value) {  // to bfloat16
    BFloat16 half;
    store_one(&half, value);
    return load_one(&half);
}
