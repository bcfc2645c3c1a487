// Decodes FP8 and FP4 codes to bfloat16, which holds them exactly, by table look-ups in registers.
#pragma once

#include <cstring>

#include "tiles.h"

#ifdef WITH_TILES

// The bytes of the positive e4m3 numbers for each scale, defined in unpack.cpp.
struct Fp8Bytes {
    uint8_t low[256][128], high[256][128];

    Fp8Bytes();
};
extern const Fp8Bytes fp8_bytes;

// The 128 positive e4m3 numbers for one scale, low and high bytes separately.
struct Fp8Table {
    __m512i low[2], high[2];

    AVX512 INLINE explicit Fp8Table(uint8_t scale) {
        for (int half = 0; half < 2; half++) {
            low[half] = _mm512_loadu_si512(fp8_bytes.low[scale] + 64 * half);
            high[half] = _mm512_loadu_si512(fp8_bytes.high[scale] + 64 * half);
        }
    }

    // Decode 64 codes to two times 32 numbers.
    AVX512 INLINE void numbers(const uint8_t* codes, __m512i& first, __m512i& last) const {
        const __m512i order = _mm512_setr_epi64(0, 4, 1, 5, 2, 6, 3, 7);
        const __m512i sign = _mm512_set1_epi8(int8_t(0x80));
        const __m512i code = _mm512_permutexvar_epi64(order, _mm512_loadu_si512(codes));
        const __m512i below = _mm512_permutex2var_epi8(low[0], code, low[1]);
        const __m512i size = _mm512_permutex2var_epi8(high[0], code, high[1]);
        const __m512i above = _mm512_ternarylogic_epi64(size, code, sign, 0xf8);  // size | (code & sign)
        first = _mm512_unpacklo_epi8(below, above);
        last = _mm512_unpackhi_epi8(below, above);
    }
};

struct alignas(64) Fp4Lanes {
    uint16_t words[32], places[32];  // places: moves the scale of each lane to the high bytes of its words

    constexpr Fp4Lanes() : words(), places() {
        constexpr uint16_t NUMBERS[8] = {0, 0x3f00, 0x3f80, 0x3fc0, 0x4000, 0x4040, 0x4080, 0x40c0};
        for (int i = 0; i < 32; i++) {
            const uint16_t number = NUMBERS[i & 7];
            words[i] = number == 0 ? 0 : uint16_t((number + 126 * 128) | (i & 8) << 12);
            places[i] = uint16_t(i / 8 << 8 | 0x80);
        }
    }
};
inline constexpr Fp4Lanes FP4_LANES;

// 128 columns at a time, as 32 words of four codes: each word gives one number to each quarter of the output, so
// that one vector of scales serves all quarters.
//
// A number is its table entry minus (253 - scale) exponents, saturated at zero, so that zero needs no special
// case. Only the low five bits of an index count, and the fifth belongs to the next code: the table is stored
// twice.
struct Fp4Table {
    __m512i words, most, place;

    AVX512 INLINE Fp4Table()
        : words(_mm512_load_si512(FP4_LANES.words)), most(_mm512_set1_epi16(253 * 128)),
          place(_mm512_load_si512(FP4_LANES.places)) {}

    // The exponents to subtract for four scales of 32 columns each.
    AVX512 INLINE __m512i lacking(const uint8_t* scales) const {
        int32_t four;
        std::memcpy(&four, scales, 4);
        const __m512i scale = _mm512_shuffle_epi8(_mm512_set1_epi32(four), place);
        return _mm512_sub_epi16(most, _mm512_srli_epi16(scale, 1));
    }
    AVX512 INLINE __m512i numbers(__m512i codes, int quarter, __m512i lack) const {
        const __m512i index = _mm512_srli_epi16(codes, unsigned(4 * quarter));
        return _mm512_subs_epu16(_mm512_permutexvar_epi16(index, words), lack);
    }
};

#endif
