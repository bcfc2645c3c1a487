// Decodes FP8 and FP4 codes to float32, which holds them exactly, one register of codes at a time. The numbers are
// passed to `take(i, numbers)` register by register. (An array of them would be in memory.)
//
// Included after dots.h where kernels are compiled for each instruction set: no include guard.

typedef uint8_t Bytes __attribute__((vector_size(REGISTER)));
typedef uint16_t Shorts __attribute__((vector_size(REGISTER)));

INLINE Bytes load_codes(const uint8_t* codes) {
    Bytes value;
    std::memcpy(&value, codes, sizeof value);
    return value;
}

// --------------------------------------------------------------------------------------------------
// FP8

// The scale of a tile times 2^120, which corrects the exponent of a code placed in a float; scales above 2^7 are
// clamped to what fits in a float.
constexpr int FP8_LARGEST_SCALE = 127 + 7;
INLINE float fp8_factor(uint8_t scale) { return scale_of(uint8_t(std::min<int>(scale, FP8_LARGEST_SCALE) + 120)); }

// Sign, exponent and mantissa of e4m3 are moved unchanged into a float, whose exponent is then 120 too low. NaN, the
// largest code, becomes 480: see `find_nan`. Register j receives every fourth column from column j on.
template <typename Take> INLINE void decode_fp8(const uint8_t* codes, float factor, const Take& take) {
    typedef int16_t SignedShorts __attribute__((vector_size(REGISTER)));
    const SignedShorts all = SignedShorts(load_codes(codes));
    const Words even = Words(all << 8 >> 4 & int16_t(0x87f0)), odd = Words(all >> 4 & int16_t(0x87f0));
    take(0, Floats(even << 16) * factor);
    take(1, Floats(odd << 16) * factor);
    take(2, Floats(even & 0xffff0000u) * factor);
    take(3, Floats(odd & 0xffff0000u) * factor);
}
// Set all bits of codes that are NaN, in addition to those of `before`.
INLINE Bytes find_nan(const uint8_t* codes, const Bytes& before) {
    return before | Bytes((load_codes(codes) & 127) == 127);
}
INLINE bool any(const Bytes& found) {
#if LEVEL == 4
    return _mm512_test_epi8_mask(__m512i(found), __m512i(found)) != 0;
#elif LEVEL == 3
    return !_mm256_testz_si256(__m256i(found), __m256i(found));
#else
    uint8_t all = 0;
    for (int i = 0; i < REGISTER; i++) all |= found[i];
    return all != 0;
#endif
}

// --------------------------------------------------------------------------------------------------
// FP4

// Columns whose codes fill a register. Each 128 bits hold the codes of 32 columns, which share a scale.
constexpr int64_t FP4_COLUMNS = 8 * LANES;

// table[index] for every byte, with a table of sixteen in each 128 bits.
INLINE Bytes look_up(const Bytes& table, const Bytes& index) {
#if LEVEL == 4
    return Bytes(_mm512_shuffle_epi8(__m512i(table), __m512i(index)));
#elif LEVEL == 3
    return Bytes(_mm256_shuffle_epi8(__m256i(table), __m256i(index)));
#else
    return __builtin_shuffle(table, index);
#endif
}
// Interleave bytes of `low` and `high`, of the first or the second half of each 128 bits.
template <int HALF> INLINE Shorts pair_up(const Bytes& low, const Bytes& high) {
#if LEVEL == 4
    const __m512i a = __m512i(low), b = __m512i(high);
    return Shorts(HALF == 0 ? _mm512_unpacklo_epi8(a, b) : _mm512_unpackhi_epi8(a, b));
#elif LEVEL == 3
    const __m256i a = __m256i(low), b = __m256i(high);
    return Shorts(HALF == 0 ? _mm256_unpacklo_epi8(a, b) : _mm256_unpackhi_epi8(a, b));
#else
    constexpr uint8_t first = 8 * HALF;
    const Bytes places = {0, 16, 1, 17, 2, 18, 3, 19, 4, 20, 5, 21, 6, 22, 7, 23};
    return Shorts(__builtin_shuffle(low, high, places + first));
#endif
}

// For each 128 bits the table for the scale of their columns.
INLINE Bytes load_tables(const uint8_t (&tables)[256][16], const uint8_t* scales) {
#if LEVEL >= 3
    auto two = [&](const uint8_t* of) __attribute__((always_inline)) {
        const __m128i first = _mm_load_si128(reinterpret_cast<const __m128i*>(tables[of[0]]));
        const __m128i last = _mm_load_si128(reinterpret_cast<const __m128i*>(tables[of[1]]));
        return _mm256_inserti128_si256(_mm256_castsi128_si256(first), last, 1);
    };
#endif
#if LEVEL == 4
    return Bytes(_mm512_inserti64x4(_mm512_castsi256_si512(two(scales)), two(scales + 2), 1));
#elif LEVEL == 3
    return Bytes(two(scales));
#else
    return load_codes(tables[*scales]);
#endif
}

// Lane 4l + i of register 4n + 2u + p receives column 32l + 16u + 4i + 2p + n: nibble n of every byte is looked up,
// half u of each 128 bits becomes numbers of 16 bits, and of every two of them number p becomes the high half of a
// float.
template <typename Take> INLINE void decode_fp4(const uint8_t* codes, const uint8_t* scales, const Take& take) {
    const Bytes low = load_tables(fp4_bytes.low, scales), high = load_tables(fp4_bytes.high, scales);
    const Bytes both = load_codes(codes);
#pragma GCC unroll 2
    for (int n = 0; n < 2; n++) {
        const Bytes index = Bytes(n == 0 ? Shorts(both) : Shorts(both) >> 4) & 15;
        const Bytes below = look_up(low, index), above = look_up(high, index);
        const Words first = Words(pair_up<0>(below, above)), last = Words(pair_up<1>(below, above));
        take(4 * n, Floats(first << 16));
        take(4 * n + 1, Floats(first & 0xffff0000u));
        take(4 * n + 2, Floats(last << 16));
        take(4 * n + 3, Floats(last & 0xffff0000u));
    }
}
