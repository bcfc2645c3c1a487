// What this processor can do beyond the instruction sets that kernels are compiled for.
//
// No level of x86-64 contains these: SOUNDING_INSTRUCTION_SET turns pairs and tiles off below 5, and tiles below 6.
#pragma once

// Inner products of bfloat16, pair by pair, and AVX-512 to permute bytes with: Zen 4 and Sapphire Rapids
// on.
bool has_pairs();
// Tiles (AMX) with bfloat16 besides, and the kernel's permission to use them.
bool has_tiles();
// Whether memory that is read once is better asked for as such, past all caches but the first: AMD's.
bool reads_past_caches();
