// Rounds activations as the deployed network does. See ops/quant.py.
#pragma once

#include "../bfloat16.h"

constexpr int64_t LINEAR_INPUT_BLOCK = 128, KV_BLOCK = 64, INDEX_BLOCK = 32;

// Round to e4m3 with a power-of-two scale per `block` numbers.
void round_fp8(const BFloat16* x, int64_t count, int64_t block, BFloat16* out);

// The same as codes and e8m0 scale bytes, as in packed states.
void encode_fp8(const BFloat16* x, int64_t count, int64_t block, uint8_t* codes, uint8_t* scales);
void decode_fp8(const uint8_t* codes, const uint8_t* scales, int64_t count, int64_t block,
                BFloat16* out);

// Hadamard rotation of a power-of-two width, then rounding to e2m1 with a scale per 32 numbers.
void round_index(const float* x, int64_t count, BFloat16* out);
void encode_fp4(const BFloat16* x, int64_t count, uint8_t* codes, uint8_t* scales);
