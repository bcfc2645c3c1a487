// Tiles (AMX): eight registers of sixteen rows of 64 bytes, and the vector code around them.
#pragma once

#include "../bfloat16.h"

// They need a compiler that supports them; has_tiles() tells if the processor does. AVX512 marks functions
// without tiles, for which has_pairs() suffices.
#if defined(__x86_64__) && defined(__gnu_linux__)
#define WITH_TILES
#define AVX512 __attribute__((target("avx512f,avx512bw,avx512dq,avx512vl,avx512vbmi,avx512bf16")))
#define TILES __attribute__((target("avx512f,avx512bw,avx512dq,avx512vl,avx512vbmi,avx512bf16,amx-tile,amx-bf16")))
// The same for all code in between: vectors are lowered for the target in force where they are written.
#define TILES_BEGIN                 \
    _Pragma("GCC push_options")     \
    _Pragma("GCC target(\"avx512f,avx512bw,avx512dq,avx512vl,avx512vbmi,avx512bf16,amx-tile,amx-bf16\")")
#define TILES_END _Pragma("GCC pop_options")
// GCC 12's intrinsics leave an operand uninitialised that a full mask hides.
#pragma GCC diagnostic ignored "-Wmaybe-uninitialized"
#pragma GCC diagnostic ignored "-Wuninitialized"
#include <immintrin.h>

// Configure the rows of each tile and its columns of four bytes. Clears the tiles.
TILES inline void configure_tiles(const int64_t (&rows)[8], const int64_t (&columns)[8]) {
    struct alignas(64) {
        uint8_t palette = 1, start = 0, reserved[14] = {};
        uint16_t column_bytes[16] = {};
        uint8_t rows[16] = {};
    } shapes;
    for (int tile = 0; tile < 8; tile++) {
        shapes.rows[tile] = uint8_t(rows[tile]);
        shapes.column_bytes[tile] = uint16_t(4 * columns[tile]);
    }
    // GCC's intrinsic declares that it reads eight bytes, so stores of the others could be dropped.
    asm volatile("" : "+m"(shapes));
    _tile_loadconfig(&shapes);
}

AVX512 INLINE void transpose16(__m512 (&r)[16]) {
    __m512 t[16];
    for (int i = 0; i < 16; i += 2) {
        t[i] = _mm512_unpacklo_ps(r[i], r[i + 1]);
        t[i + 1] = _mm512_unpackhi_ps(r[i], r[i + 1]);
    }
    for (int i = 0; i < 16; i += 4)
        for (int j = 0; j < 2; j++) {
            const __m512d a = _mm512_castps_pd(t[i + j]), b = _mm512_castps_pd(t[i + j + 2]);
            r[i + 2 * j] = _mm512_castpd_ps(_mm512_unpacklo_pd(a, b));
            r[i + 2 * j + 1] = _mm512_castpd_ps(_mm512_unpackhi_pd(a, b));
        }
    for (int i = 0; i < 16; i += 8)
        for (int j = 0; j < 4; j++) {
            t[i + j] = _mm512_shuffle_f32x4(r[i + j], r[i + j + 4], 0x88);
            t[i + j + 4] = _mm512_shuffle_f32x4(r[i + j], r[i + j + 4], 0xdd);
        }
    for (int j = 0; j < 8; j++) {
        r[j] = _mm512_shuffle_f32x4(t[j], t[j + 8], 0x88);
        r[j + 8] = _mm512_shuffle_f32x4(t[j], t[j + 8], 0xdd);
    }
}

#endif
