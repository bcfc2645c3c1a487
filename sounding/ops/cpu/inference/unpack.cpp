// Weights to bfloat16, which holds them exactly: e4m3 and e2m1 have three significant bits at most,
// and scales are powers of two. Values are looked up in a table that already has the scale in it.

#include "weight.h"

#include <algorithm>
#include <cmath>

#include "features.h"
#include "tiles.h"

namespace {

constexpr uint16_t FP4_WORDS[8] = {0, 0x3f00, 0x3f80, 0x3fc0, 0x4000, 0x4040, 0x4080, 0x40c0};

// A finite nonzero number times 2^(scale - 127), by its exponent bits.
INLINE uint16_t scaled(uint16_t word, int scale) {
    const uint16_t magnitude = word & 0x7fff;
    return magnitude == 0 || magnitude > 0x7f80 ? word : uint16_t(word + (scale - 127) * 128);
}

struct Tables {
    uint16_t fp8[128];  // bfloat16 bits of the positive e4m3 numbers
    uint8_t low[256][128], high[256][128];  // their bytes under each scale

    Tables() {
        for (int code = 0; code < 128; code++) {
            const int exponent = code >> 3, mantissa = code & 7;
            float value = exponent == 0 ? std::ldexp(float(mantissa), -9)
                                        : std::ldexp(float(8 + mantissa), exponent - 10);
            if (code == 127) value = NAN;
            BFloat16 half;
            store_one(&half, value);
            fp8[code] = half.bits;
            for (int scale = 0; scale < 256; scale++) {
                const uint16_t word = scaled(half.bits, scale);
                low[scale][code] = uint8_t(word);
                high[scale][code] = uint8_t(word >> 8);
            }
        }
    }
};
const Tables tables;

void unpack_row(const Weight& w, int64_t row, int64_t k, int64_t count, BFloat16* out) {
    const uint8_t* values = w.values + row * w.row_bytes;
    if (w.format == FLOAT32) {
        for (int64_t i = 0; i < count; i++) {
            float value;
            std::memcpy(&value, values + (k + i) * 4, 4);
            store_one(out + i, value);
        }
    } else if (w.format == BFLOAT16) {
        std::memcpy(out, values + k * 2, count * 2);
    } else if (w.format == FP8) {
        const uint8_t* scales = w.scales + (w.first + row) / SCALE_TILE * w.scale_row;
        for (int64_t i = 0; i < count; i++) {
            const uint8_t code = values[k + i];
            const uint16_t word = scaled(tables.fp8[code & 127], scales[(k + i) / SCALE_TILE]);
            out[i].bits = uint16_t(word | (code & 128) << 8);
        }
    } else {
        const uint8_t* scales = w.scales + row * w.scale_row;
        for (int64_t i = 0; i < count; i++) {
            const int code = values[(k + i) / 2] >> (i % 2 * 4) & 15;
            const uint16_t word = scaled(FP4_WORDS[code & 7], scales[(k + i) / FP4_BLOCK]);
            out[split_place(k + i, w.columns) - k].bits = uint16_t(word | (code & 8) << 12);
        }
    }
    for (int64_t i = count; i < padded(count, 32); i++) out[i].bits = 0;
}

#ifdef WITH_TILES

// The 128 positive e4m3 numbers under one scale, low and high bytes apart.
struct Fp8Table {
    __m512i low[2], high[2];

    TILES explicit Fp8Table(uint8_t scale)
        : low{_mm512_loadu_si512(tables.low[scale]), _mm512_loadu_si512(tables.low[scale] + 64)},
          high{_mm512_loadu_si512(tables.high[scale]), _mm512_loadu_si512(tables.high[scale] + 64)} {}
};

// 64 numbers at a time; `columns` is a multiple of 64 within one tile.
TILES void fp8_columns(const uint8_t* values, const Fp8Table& table, int64_t columns,
                       BFloat16* out) {
    const __m512i order = _mm512_setr_epi64(0, 4, 1, 5, 2, 6, 3, 7);
    const __m512i sign = _mm512_set1_epi8(int8_t(0x80));
    for (int64_t i = 0; i < columns; i += 64) {
        const __m512i codes = _mm512_permutexvar_epi64(order, _mm512_loadu_si512(values + i));
        const __m512i low = _mm512_permutex2var_epi8(table.low[0], codes, table.low[1]);
        __m512i high = _mm512_permutex2var_epi8(table.high[0], codes, table.high[1]);
        high = _mm512_ternarylogic_epi64(high, codes, sign, 0xf8);  // high | (codes & sign)
        _mm512_storeu_si512(out + i, _mm512_unpacklo_epi8(low, high));
        _mm512_storeu_si512(out + i + 32, _mm512_unpackhi_epi8(low, high));
    }
}

TILES const uint8_t* unpack_fp8(const Weight& w, int64_t row, int64_t rows, int64_t k, int64_t count,
                                BFloat16* out, int64_t stride, const uint8_t* soon) {
    for (int64_t low = 0; low < count; low += SCALE_TILE) {
        const int64_t columns = std::min(SCALE_TILE, count - low);
        uint8_t last = 0;
        Fp8Table table(last);
        for (int64_t r = 0; r < rows; r++) {
            const uint8_t* values = w.values + (row + r) * w.row_bytes + k + low;
            const int64_t tile = (w.first + row + r) / SCALE_TILE;
            const uint8_t scale = w.scales[tile * w.scale_row + (k + low) / SCALE_TILE];
            if (scale != last) table = Fp8Table(scale);
            last = scale;
            for (int64_t i = 0; i < columns; i += 64, soon += 64) _mm_prefetch(soon, _MM_HINT_T1);
            fp8_columns(values, table, columns, out + r * stride + low);
        }
    }
    return soon;
}

// 128 columns at a time: as 32 words of four codes, of which each gives one number to each quarter
// of what comes out, so that one vector of scales serves all four.
TILES const uint8_t* unpack_fp4(const Weight& w, int64_t row, int64_t rows, int64_t k, int64_t count,
                                BFloat16* out, int64_t stride, const uint8_t* soon) {
    // A number is its table entry less (253 - scale) exponents, never below zero: nothing has to
    // know that it is zero. Only the low five bits of an index count, of which the fifth is the
    // next code's: the table stands there twice.
    alignas(64) uint16_t words[32];
    for (int i = 0; i < 32; i++) {
        const uint16_t word = FP4_WORDS[i & 7];
        words[i] = word == 0 ? 0 : uint16_t((word + 126 * 128) | (i & 8) << 12);
    }
    const __m512i table = _mm512_load_si512(words);
    const __m512i most = _mm512_set1_epi16(253 * 128);
    alignas(64) uint16_t lanes[32];  // each lane's scale to the high bytes of its words
    for (int i = 0; i < 32; i++) lanes[i] = uint16_t(i / 8 << 8 | 0x80);
    const __m512i place = _mm512_load_si512(lanes);
    for (int64_t r = 0; r < rows; r++) {
        const uint8_t* values = w.values + (row + r) * w.row_bytes + k / 2;
        const uint8_t* scales = w.scales + (row + r) * w.scale_row + k / FP4_BLOCK;
        BFloat16* to = out + r * stride;
        _mm_prefetch(scales + STRIP * w.scale_row, _MM_HINT_T1);
        for (int64_t i = 0; i < count; i += 128) {
            _mm_prefetch(soon, _MM_HINT_T1);
            soon += 64;
            int32_t four;
            std::memcpy(&four, scales + i / FP4_BLOCK, 4);
            const __m512i scale = _mm512_shuffle_epi8(_mm512_set1_epi32(four), place);
            const __m512i less = _mm512_sub_epi16(most, _mm512_srli_epi16(scale, 1));
            const __m512i codes = _mm512_loadu_si512(values + i / 2);
            for (int quarter = 0; quarter < 4; quarter++) {
                const __m512i index = _mm512_srli_epi16(codes, 4 * quarter);
                _mm512_storeu_si512(to + i + 32 * quarter, _mm512_subs_epu16(
                    _mm512_permutexvar_epi16(index, table), less));
            }
        }
    }
    return soon;
}

#endif

}  // namespace

const uint8_t* unpack(const Weight& weight, int64_t row, int64_t rows, int64_t k, int64_t count,
                      BFloat16* out, int64_t stride, const uint8_t* soon) {
    count = std::min(count, weight.columns - k);
    int64_t fast = 0;
#ifdef WITH_TILES
    if (has_tiles() && (weight.format == FP8 || weight.format == FP4)) {
        fast = weight.format == FP8 ? count / 64 * 64 : count / 128 * 128;
        if (weight.format == FP8)
            soon = unpack_fp8(weight, row, rows, k, fast, out, stride, soon);
        else
            soon = unpack_fp4(weight, row, rows, k, fast, out, stride, soon);
    }
#endif
    if (fast < count)
        for (int64_t r = 0; r < rows; r++)
            unpack_row(weight, row + r, k + fast, count - fast, out + r * stride + fast);
    return soon;
}
