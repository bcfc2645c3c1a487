// Unpacks weights to bfloat16, which holds them exactly: e4m3 and e2m1 have at most four significant bits, and
// scales are powers of two.

#define KERNELS "inference/unpack.cpp"
#ifndef TARGET

#include "weight.h"

#include <algorithm>
#include <cmath>

#include "codes.h"
#include "features.h"

#include "../each_target.h"

#ifdef WITH_TILES

namespace {

// A finite nonzero number times 2^(scale - 127), by adding to its exponent bits.
INLINE uint16_t scaled(uint16_t word, int scale) {
    const uint16_t magnitude = word & 0x7fff;
    return magnitude == 0 || magnitude > 0x7f80 ? word : uint16_t(word + (scale - 127) * 128);
}

// `count` is a multiple of 64.
AVX512 const uint8_t* unpack_fp8(const Weight& w, int64_t row, int64_t rows, int64_t k, int64_t count,
                                 BFloat16* out, int64_t stride, const uint8_t* soon) {
    for (int64_t low = 0; low < count; low += SCALE_TILE) {
        const int64_t parts = std::min(SCALE_TILE, count - low) / 64;
        for (int64_t r = 0; r < rows;) {
            const Fp8Table table(w.fp8_scale(row + r, k + low));
            const int64_t same = SCALE_TILE - (w.first + row + r) % SCALE_TILE, end = std::min(rows, r + same);
            const uint8_t* values = w.values + (row + r) * w.row_bytes + k + low;
            BFloat16* to = out + r * stride + low;
            for (; r < end; r++, values += w.row_bytes, to += stride)
                for (int64_t i = 0; i < parts; i++, soon += 64) {
                    _mm_prefetch(soon, _MM_HINT_T1);
                    __m512i first, second;
                    table.numbers(values + 64 * i, first, second);
                    _mm512_storeu_si512(to + 64 * i, first);
                    _mm512_storeu_si512(to + 64 * i + 32, second);
                }
        }
    }
    return soon;
}

// `count` is a multiple of 128.
AVX512 const uint8_t* unpack_fp4(const Weight& w, int64_t row, int64_t rows, int64_t k, int64_t count,
                                 BFloat16* out, int64_t stride, const uint8_t* soon) {
    const Fp4Table table;
    const uint8_t* values = w.values + row * w.row_bytes + k / 2;
    const uint8_t* scales = w.scales + row * w.scale_row + k / FP4_BLOCK;
    const int64_t row_bytes = w.row_bytes, scale_row = w.scale_row, blocks = count / 128;
    for (int64_t r = 0; r < rows; r++, values += row_bytes, scales += scale_row, out += stride) {
        _mm_prefetch(scales + STRIP * scale_row, _MM_HINT_T1);
        for (int64_t i = 0; i < blocks; i++, soon += 64) {
            _mm_prefetch(soon, _MM_HINT_T1);
            const __m512i lack = table.lacking(scales + 4 * i);
            const __m512i codes = _mm512_loadu_si512(values + 64 * i);
            for (int quarter = 0; quarter < 4; quarter++)
                _mm512_storeu_si512(out + 128 * i + 32 * quarter, table.numbers(codes, quarter, lack));
        }
    }
    return soon;
}

// Reorder whole blocks of 128: each quarter is gathered within 32 columns, then across four times 32.
AVX512 void split_blocks(const BFloat16* x, int64_t columns, BFloat16* out) {
    alignas(64) uint16_t places[32];
    for (int i = 0; i < 32; i++) places[i] = uint16_t(i % 8 * 4 + i / 8);
    const __m512i place = _mm512_load_si512(places);
    for (int64_t i = 0; i < columns; i += 128) {
        __m512i r[4];
        for (int part = 0; part < 4; part++)
            r[part] = _mm512_permutexvar_epi16(place, _mm512_loadu_si512(x + i + 32 * part));
        const __m512i a = _mm512_shuffle_i32x4(r[0], r[1], 0x44), b = _mm512_shuffle_i32x4(r[2], r[3], 0x44);
        const __m512i c = _mm512_shuffle_i32x4(r[0], r[1], 0xee), d = _mm512_shuffle_i32x4(r[2], r[3], 0xee);
        _mm512_storeu_si512(out + i, _mm512_shuffle_i32x4(a, b, 0x88));
        _mm512_storeu_si512(out + i + 32, _mm512_shuffle_i32x4(a, b, 0xdd));
        _mm512_storeu_si512(out + i + 64, _mm512_shuffle_i32x4(c, d, 0x88));
        _mm512_storeu_si512(out + i + 96, _mm512_shuffle_i32x4(c, d, 0xdd));
    }
}

}  // namespace

Fp8Bytes::Fp8Bytes() {
    for (int code = 0; code < 128; code++) {
        const int exponent = code >> 3, mantissa = code & 7;
        float value = exponent == 0 ? std::ldexp(float(mantissa), -9)
                                    : std::ldexp(float(8 + mantissa), exponent - 10);
        if (code == 127) value = NAN;
        BFloat16 half;
        store_one(&half, value);
        for (int scale = 0; scale < 256; scale++) {
            const uint16_t word = scaled(half.bits, scale);
            low[scale][code] = uint8_t(word);
            high[scale][code] = uint8_t(word >> 8);
        }
    }
}
const Fp8Bytes fp8_bytes;

#endif

const uint8_t* unpack(const Weight& weight, int64_t row, int64_t rows, int64_t k, int64_t count,
                      BFloat16* out, int64_t stride, const uint8_t* soon) {
    count = std::min(count, weight.columns - k);
    int64_t fast = 0;
#ifdef WITH_TILES
    if (has_pairs() && (weight.format == FP8 || weight.format == FP4)) {
        fast = weight.format == FP8 ? count / 64 * 64 : count / 128 * 128;
        if (weight.format == FP8)
            soon = unpack_fp8(weight, row, rows, k, fast, out, stride, soon);
        else
            soon = unpack_fp4(weight, row, rows, k, fast, out, stride, soon);
    }
#endif
    if (fast < count)
        for (int64_t r = 0; r < rows; r++)
            CALL(unpack_row, weight, row + r, k + fast, count - fast,
                 out + r * stride + fast);
    return soon;
}

void split(const BFloat16* x, int64_t columns, BFloat16* out) {
    int64_t block = 0;
#ifdef WITH_TILES
    if (has_pairs()) {
        block = columns / 128 * 128;
        split_blocks(x, block, out);
    }
#endif
    for (; block < columns; block += 128) {
        const int64_t width = std::min<int64_t>(128, columns - block);
        for (int64_t i = 0; i < width; i++) out[block + i % 4 * (width / 4) + i / 4] = x[block + i];
    }
}

#else

namespace {

typedef float Eight __attribute__((vector_size(32)));
typedef uint32_t EightWords __attribute__((vector_size(32)));
typedef uint16_t EightHalves __attribute__((vector_size(16)));

INLINE void store_eight(BFloat16* to, const EightWords& bits) {
    const EightHalves halves = __builtin_convertvector(bits >> 16, EightHalves);
    std::memcpy(to, &halves, 16);
}

// The compiler's conversions take several instructions.
INLINE EightWords widen(const uint8_t* bytes) {
#if LEVEL >= 3
    return EightWords(_mm256_cvtepu8_epi32(_mm_loadl_epi64(reinterpret_cast<const __m128i*>(bytes))));
#else
    EightWords words;
    for (int i = 0; i < 8; i++) words[i] = bytes[i];
    return words;
#endif
}
INLINE EightWords widen_halves(const uint8_t* bytes) {
    EightHalves halves;
    std::memcpy(&halves, bytes, 16);
#if LEVEL >= 3
    return EightWords(_mm256_cvtepu16_epi32(__m128i(halves)));
#else
    return __builtin_convertvector(halves, EightWords);
#endif
}

// Sign, exponent and mantissa of e4m3 are moved unchanged into a float, whose exponent is then 120 too low.
INLINE void unpack_fp8(const uint8_t* codes, float scale, int64_t count, BFloat16* out) {
    auto eight = [scale](const uint8_t* from, BFloat16* to) __attribute__((always_inline)) {
        const EightWords words = widen(from), size = words & 127;
        const EightWords bits = (words & 128) << 24 | size << 20;
        store_eight(to, EightWords(Eight(bits) * 0x1p120f * scale) | EightWords(size == 127));
    };
    int64_t i = 0;
    for (; i + 8 <= count; i += 8) eight(codes + i, out + i);
    if (i == count) return;
    uint8_t last[8] = {};
    BFloat16 numbers[8];
    std::memcpy(last, codes + i, count - i);
    eight(last, numbers);
    std::memcpy(out + i, numbers, (count - i) * sizeof(BFloat16));
}

// Unpack a block of 32 columns: eight words of four codes, whose numbers are written `apart` from each other.
INLINE void unpack_fp4(const uint8_t* codes, float scale, int64_t apart, BFloat16* out) {
    const Eight table = Eight{0, 0.5f, 1, 1.5f, 2, 3, 4, 6} * scale;
    const EightWords words = widen_halves(codes);
    for (int quarter = 0; quarter < 4; quarter++) {
        const EightWords sign = words << (28 - 4 * quarter) & 0x80000000u;
        const Eight size = __builtin_shuffle(table, words >> (4 * quarter));
        store_eight(out + quarter * apart, EightWords(size) | sign);
    }
}

// Unpack columns [k, k + count) of one row, padded with zeros to a multiple of 32.
void unpack_row(const Weight& w, int64_t row, int64_t k, int64_t count, BFloat16* out) {
    const uint8_t* values = w.values + row * w.row_bytes;
    if (w.format == FLOAT32) {
        for (int64_t i = 0; i < count; i++) {
            float value;
            std::memcpy(&value, values + (k + i) * 4, 4);
            store_one(out + i, rounded(value));
        }
    } else if (w.format == BFLOAT16) {
        const BFloat16* from = reinterpret_cast<const BFloat16*>(values) + k;
        std::copy(from, from + count, out);
    } else if (w.format == FP8) {
        const uint8_t* scales = w.scales + (w.first + row) / SCALE_TILE * w.scale_row;
        for (int64_t i = 0; i < count;) {
            const int64_t tile = (k + i) / SCALE_TILE;
            const int64_t some = std::min(count - i, (tile + 1) * SCALE_TILE - (k + i));
            unpack_fp8(values + k + i, scale_of(scales[tile]), some, out + i);
            i += some;
        }
    } else {
        const uint8_t* scales = w.scales + row * w.scale_row + k / FP4_BLOCK;
        for (int64_t i = 0; i < count; i += FP4_BLOCK) {
            const int64_t block = i / 128 * 128, apart = std::min<int64_t>(128, count - block) / 4;
            unpack_fp4(values + (k + i) / 2, scale_of(scales[i / FP4_BLOCK]), apart,
                       out + block + (i - block) / 4);
        }
    }
    for (int64_t i = count; i < padded(count, 32); i++) store_one(out + i, 0.0f);
}

}  // namespace

#endif
