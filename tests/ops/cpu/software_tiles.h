// Tiles (AMX) in software, to compile kernels with (-include) that are written for them and to run these on
// processors that have none: `scripts/sanitize` does so. Slow, but to the last bit what the hardware computes.
#pragma once

#include <cmath>
#include <cstdint>
#include <cstring>
#include <immintrin.h>

struct SoftwareTiles {
    float numbers[8][16][16];
    int rows[8], columns[8];  // columns of four bytes

    void configure(const void* shapes) {
        const auto* bytes = static_cast<const uint8_t*>(shapes);
        for (int tile = 0; tile < 8; tile++) {
            uint16_t width;
            std::memcpy(&width, bytes + 16 + 2 * tile, sizeof width);
            columns[tile] = width / 4;
            rows[tile] = bytes[48 + tile];
            zero(tile);
        }
    }
    void zero(int tile) { std::memset(numbers[tile], 0, sizeof numbers[tile]); }
    void load(int tile, const void* from, int64_t stride) {
        for (int row = 0; row < rows[tile]; row++)
            std::memcpy(numbers[tile][row], static_cast<const char*>(from) + row * stride, 4 * columns[tile]);
    }
    void store(int tile, void* to, int64_t stride) const {
        for (int row = 0; row < rows[tile]; row++)
            std::memcpy(static_cast<char*>(to) + row * stride, numbers[tile][row], 4 * columns[tile]);
    }
    // Products of even and of odd numbers are summed apart, each rounded once, then together; what is smaller
    // than a normal number counts as zero. (Intel's manual; compared with a processor's results.)
    void multiply(int sums, int left, int right) {
        const unsigned modes = _mm_getcsr();
        _mm_setcsr(modes | _MM_FLUSH_ZERO_ON | 0x40);  // denormals are zeros
        for (int m = 0; m < rows[sums]; m++)
            for (int n = 0; n < columns[sums]; n++) {
                float even = 0, odd = 0;
                for (int k = 0; k < columns[left]; k++) {
                    const float a = numbers[left][m][k], b = numbers[right][k][n];
                    even = std::fma(half(a, 0), half(b, 0), even);
                    odd = std::fma(half(a, 1), half(b, 1), odd);
                }
                numbers[sums][m][n] += even + odd;
            }
        _mm_setcsr(modes);
    }
    // Whoever uses tiles without configuring them finds nonsense.
    void release() { std::memset(this, 0xff, sizeof *this); }

    static float half(float pair, int odd) {
        uint32_t bits;
        std::memcpy(&bits, &pair, sizeof bits);
        bits = odd ? bits & 0xffff0000u : bits << 16;
        std::memcpy(&pair, &bits, sizeof pair);
        return pair;
    }
};
inline thread_local SoftwareTiles software_tiles;

#undef _tile_loadd
#undef _tile_stored
#undef _tile_zero
#undef _tile_dpbf16ps
#define _tile_loadconfig(shapes) software_tiles.configure(shapes)
#define _tile_release() software_tiles.release()
#define _tile_loadd(tile, from, stride) software_tiles.load(tile, from, stride)
#define _tile_stored(tile, to, stride) software_tiles.store(tile, to, stride)
#define _tile_zero(tile) software_tiles.zero(tile)
#define _tile_dpbf16ps(sums, left, right) software_tiles.multiply(sums, left, right)
