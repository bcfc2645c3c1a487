// Weights to bfloat16, which holds them exactly: e4m3 and e2m1 have three significant bits at most,
// and scales are powers of two. Values are looked up in a table that already has the scale in it.

#include "weight.h"

#include <algorithm>
#include <cmath>

#include "features.h"
#include "tiles.h"

namespace {

constexpr uint16_t FP4_WORDS[8] = {0, 0x3f00, 0x3f80, 0x3fc0, 0x4000, 0x4040, 0x4080, 0x40c0};

struct Tables {
    uint16_t fp8[128];  // bfloat16 bits of the positive e4m3 numbers

    Tables() {
        for (int code = 0; code < 128; code++) {
            const int exponent = code >> 3, mantissa = code & 7;
            float value = exponent == 0 ? std::ldexp(float(mantissa), -9)
                                        : std::ldexp(float(8 + mantissa), exponent - 10);
            if (code == 127) value = NAN;
            BFloat16 half;
            store_one(&half, value);
            fp8[code] = half.bits;
        }
    }
};
const Tables tables;

// A finite nonzero number times 2^(scale - 127), by its exponent bits.
INLINE uint16_t scaled(uint16_t word, int scale) {
    const uint16_t magnitude = word & 0x7fff;
    return magnitude == 0 || magnitude > 0x7f80 ? word : uint16_t(word + (scale - 127) * 128);
}

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
};

TILES Fp8Table fp8_table(uint8_t scale) {
    const __m512i shift = _mm512_set1_epi16(int16_t((scale - 127) * 128));
    Fp8Table table;
    for (int half = 0; half < 2; half++) {
        __m256i low[2], high[2];
        for (int part = 0; part < 2; part++) {
            __m512i words = _mm512_loadu_si512(tables.fp8 + half * 64 + part * 32);
            const __mmask32 plain = _mm512_test_epi16_mask(words, words) &
                                    _mm512_cmple_epu16_mask(words, _mm512_set1_epi16(0x7f80));
            words = _mm512_mask_add_epi16(words, plain, words, shift);
            low[part] = _mm512_cvtepi16_epi8(words);
            high[part] = _mm512_cvtepi16_epi8(_mm512_srli_epi16(words, 8));
        }
        table.low[half] = _mm512_inserti64x4(_mm512_castsi256_si512(low[0]), low[1], 1);
        table.high[half] = _mm512_inserti64x4(_mm512_castsi256_si512(high[0]), high[1], 1);
    }
    return table;
}

constexpr int64_t AHEAD = 16;  // rows: memory is asked for while what came before is unpacked

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

TILES void unpack_fp8(const Weight& w, int64_t row, int64_t rows, int64_t k, int64_t count,
                      BFloat16* out, int64_t stride) {
    for (int64_t low = 0; low < count; low += SCALE_TILE) {
        const int64_t columns = std::min(SCALE_TILE, count - low);
        int last = -1;
        Fp8Table table;
        for (int64_t r = 0; r < rows; r++) {
            const uint8_t* values = w.values + (row + r) * w.row_bytes + k + low;
            const int64_t tile = (w.first + row + r) / SCALE_TILE;
            const uint8_t scale = w.scales[tile * w.scale_row + (k + low) / SCALE_TILE];
            if (scale != last) table = fp8_table(scale);
            last = scale;
            _mm_prefetch(values + AHEAD * w.row_bytes, _MM_HINT_T0);
            if (columns > 64) _mm_prefetch(values + AHEAD * w.row_bytes + 64, _MM_HINT_T0);
            fp8_columns(values, table, columns, out + r * stride + low);
        }
    }
}

TILES void unpack_fp4(const Weight& w, int64_t row, int64_t rows, int64_t k, int64_t count,
                      BFloat16* out, int64_t stride) {
    // Entry i of the table is code i under the first scale, 16 + i under the second; exponents are
    // stored less the bias of the scale, so that adding its byte is all.
    alignas(64) uint16_t words[32];
    for (int i = 0; i < 32; i++) {
        const uint16_t word = FP4_WORDS[i & 7];
        words[i] = uint16_t((word ? word - 127 * 128 : 0) ^ (i & 8 ? 0x8000 : 0));
    }
    const __m512i base = _mm512_load_si512(words);
    const __mmask32 nonzero = 0xfefefefe;
    const __m512i nibble = _mm512_set1_epi16(15);
    const __m512i second = _mm512_inserti64x4(_mm512_setzero_si512(), _mm256_set1_epi16(16), 1);
    const __m512i place = _mm512_inserti64x4(_mm512_setzero_si512(), _mm256_set1_epi16(8), 1);
    const __m512i byte = _mm512_set1_epi16(255);
    for (int64_t r = 0; r < rows; r++) {
        const uint8_t* values = w.values + (row + r) * w.row_bytes + k / 2;
        const uint8_t* scales = w.scales + (row + r) * w.scale_row + k / FP4_BLOCK;
        BFloat16* to = out + r * stride;
        for (int64_t i = 0; i < count; i += 64) {
            if (i % 128 == 0) _mm_prefetch(values + i / 2 + AHEAD * w.row_bytes, _MM_HINT_T0);
            int16_t pair;
            std::memcpy(&pair, scales + i / FP4_BLOCK, 2);
            const __m512i scale = _mm512_srlv_epi16(_mm512_set1_epi16(pair), place);
            const __m512i exponents = _mm512_slli_epi16(_mm512_and_si512(scale, byte), 7);
            const __m512i table = _mm512_mask_add_epi16(base, nonzero, base, exponents);
            const __m512i bytes = _mm512_cvtepu8_epi16(
                _mm256_loadu_si256(reinterpret_cast<const __m256i*>(values + i / 2)));
            const __m512i even = _mm512_or_si512(_mm512_and_si512(bytes, nibble), second);
            const __m512i odd = _mm512_or_si512(_mm512_srli_epi16(bytes, 4), second);
            _mm512_storeu_si512(to + i, _mm512_permutexvar_epi16(even, table));
            _mm512_storeu_si512(to + i + 32, _mm512_permutexvar_epi16(odd, table));
        }
    }
}

#endif

}  // namespace

void unpack(const Weight& weight, int64_t row, int64_t rows, int64_t k, int64_t count,
            BFloat16* out, int64_t stride) {
    count = std::min(count, weight.columns - k);
    int64_t fast = 0;
#ifdef WITH_TILES
    if (has_tiles() && (weight.format == FP8 || weight.format == FP4)) {
        fast = count / 64 * 64;
        if (weight.format == FP8)
            unpack_fp8(weight, row, rows, k, fast, out, stride);
        else
            unpack_fp4(weight, row, rows, k, fast, out, stride);
    }
#endif
    if (fast < count)
        for (int64_t r = 0; r < rows; r++)
            unpack_row(weight, row + r, k + fast, count - fast, out + r * stride + fast);
}
