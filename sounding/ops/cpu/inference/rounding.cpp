// Rounds activations block by block: scales first, numbers in vectors below.

#define KERNELS "inference/rounding.cpp"
#ifndef TARGET

#include "rounding.h"

#include <algorithm>
#include <cmath>

#include "weight.h"

#include "../each_target.h"

namespace {

// The exponent of the smallest power of two that scales `amax` to at most `top`.
INLINE int scale_exponent(float amax, float top, float floor) {
    const float ratio = (amax > floor ? amax : floor) / top;
    int exponent;
    const float mantissa = std::frexp(ratio, &exponent);
    return exponent - (mantissa == 0.5f);
}

// The largest absolute value. The bits of absolute values have the same order, with NaN above all others.
INLINE float largest(const BFloat16* x, int64_t count) {
    int16_t most = 0;
    for (int64_t i = 0; i < count; i++) most = std::max(most, int16_t(x[i].bits & 0x7fff));
    const BFloat16 value{uint16_t(most)};
    return load_one(&value);
}

constexpr float FP8_FLOOR = 1e-4f;
const float FP4_FLOOR = std::ldexp(6.0f, -126);

}  // namespace

void round_fp8(const BFloat16* x, int64_t count, int64_t block, BFloat16* out) {
    for (int64_t low = 0; low < count; low += block) {
        const int64_t width = std::min(block, count - low);
        const float amax = largest(x + low, width);
        if (!(amax < INFINITY)) {  // as in the reference: infinity over infinity
            for (int64_t i = low; i < low + width; i++) out[i].bits = 0x7fc0;
            continue;
        }
        const float scale = std::ldexp(1.0f, scale_exponent(amax, 448, FP8_FLOOR));
        CALL(round_fp8_block, x + low, width, scale, out + low);
    }
}

void encode_fp8(const BFloat16* x, int64_t count, int64_t block, uint8_t* codes, uint8_t* scales) {
    for (int64_t low = 0; low < count; low += block) {
        const int64_t width = std::min(block, count - low);
        const float amax = largest(x + low, width);
        const int exponent = amax < INFINITY ? scale_exponent(amax, 448, FP8_FLOOR) : 128;
        scales[low / block] = uint8_t(exponent + 127);
        for (int64_t i = low; i < low + width; i++) {
            const float value = load_one(x + i);
            const uint8_t sign = std::signbit(value) ? 128 : 0;
            const float size = std::min(std::ldexp(std::fabs(value), -exponent), 448.0f);
            int e;
            std::frexp(size, &e);
            const int power = std::max(e - 1, -6);
            const int steps = int(std::nearbyint(std::ldexp(size, 3 - power)));  // 8..16, or below
            const int code = steps < 8 ? steps : (power + 7) * 8 + steps - 8;
            codes[i] = amax < INFINITY ? uint8_t(sign | code) : uint8_t(127);
        }
    }
}

void decode_fp8(const uint8_t* codes, const uint8_t* scales, int64_t count, int64_t block,
                BFloat16* out) {
    const Weight row{codes, scales, 1, block, 0, 1, FP8, 0, 0};
    for (int64_t low = 0; low < count; low += block) {
        Weight part = row;
        part.values += low;
        part.scales += low / block;
        part.columns = std::min(block, count - low);
        unpack(part, 0, 1, 0, part.columns, out + low, 0, part.values);
    }
}

void round_index(const float* x, int64_t count, BFloat16* out) {
    float turned[1024];
    std::copy(x, x + count, turned);
    for (int64_t span = 1; span < count; span *= 2)
        for (int64_t base = 0; base < count; base += 2 * span)
            for (int64_t i = base; i < base + span; i++) {
                const float low = turned[i], high = turned[i + span];
                turned[i] = low + high;
                turned[i + span] = low - high;
            }
    const float factor = 1 / std::sqrt(float(count));
    for (int64_t low = 0; low < count; low += INDEX_BLOCK) {
        float amax = 0;
        for (int64_t i = low; i < low + INDEX_BLOCK; i++) {
            turned[i] = rounded(turned[i] * factor);
            if (!(std::fabs(turned[i]) <= amax)) amax = std::fabs(turned[i]);
        }
        if (!(amax < INFINITY)) {
            for (int64_t i = low; i < low + INDEX_BLOCK; i++) out[i].bits = 0x7fc0;
            continue;
        }
        const float scale = std::ldexp(1.0f, scale_exponent(amax, 6, FP4_FLOOR));
        CALL(round_fp4_block, turned + low, scale, out + low);
    }
}

void encode_fp4(const BFloat16* x, int64_t count, uint8_t* codes, uint8_t* scales) {
    constexpr uint8_t CODE[13] = {0, 1, 2, 3, 4, 4, 5, 5, 6, 6, 6, 6, 7};  // indexed by twice the value
    for (int64_t low = 0; low < count; low += INDEX_BLOCK) {
        const float amax = largest(x + low, INDEX_BLOCK);
        const int exponent = amax < INFINITY ? scale_exponent(amax, 6, FP4_FLOOR) : 128;
        scales[low / INDEX_BLOCK] = uint8_t(exponent + 127);
        float values[INDEX_BLOCK], near[INDEX_BLOCK];
        for (int64_t i = 0; i < INDEX_BLOCK; i++)
            values[i] = std::ldexp(load_one(x + low + i), -exponent);
        CALL(round_fp4_block, values, 1.0f, near);
        for (int64_t i = low; i < low + INDEX_BLOCK; i++) {
            const float value = values[i - low], size = std::fabs(near[i - low]);
            const uint8_t sign = std::signbit(value) ? 8 : 0;
            const uint8_t code = uint8_t(sign | (size == size ? CODE[int(size * 2)] : 7));
            codes[i / 2] = i % 2 == 0 ? code : uint8_t(codes[i / 2] | code << 4);
        }
    }
}

#else

namespace {

// Round to the nearest multiple of `step`, ties to even: adding 1.5 * 2^23 steps drops all lower bits.
INLINE Floats to_multiple(const Floats& x, const Floats& step) {
    const Floats magic = step * 12582912.0f;
    return (x + magic) - magic;
}

INLINE Floats nearest_fp8(Floats y) {
    y = y > 448.0f ? all(448.0f) : y;
    y = y < -448.0f ? all(-448.0f) : y;
    Integers exponent = to_bits(y) & 0x7f800000;
    const Integers least = Integers{} + ((127 - 6) << 23);
    exponent = exponent > least ? exponent : least;
    return to_multiple(y, from_bits(exponent) * 0.125f);
}

INLINE Floats nearest_fp4(Floats y) {
    y = y > 6.0f ? all(6.0f) : y;
    y = y < -6.0f ? all(-6.0f) : y;
    const Floats size = y < 0.0f ? -y : y;
    const Floats step = size < 2.0f ? all(0.5f) : (size < 4.0f ? all(1.0f) : all(2.0f));
    return to_multiple(y, step);
}

void round_fp8_block(const BFloat16* x, int64_t count, float scale, BFloat16* out) {
    const float inverse = 1 / scale;
    FOR_LANES(i, some, count) {
        Floats value;
        load_lanes(x + i, some, value);
        store_lanes(out + i, some, nearest_fp8(value * inverse) * scale);
    };
}

template <typename T>
void round_fp4_block(const float* x, float scale, T* out) {
    for (int64_t i = 0; i < INDEX_BLOCK; i += LANES) {
        Floats value;
        load(x + i, value);
        store(out + i, nearest_fp4(value / scale) * scale);
    }
}

}  // namespace

#endif
