// Processor features beyond the instruction sets that kernels are compiled for.
//
// They belong to no x86-64 level: SOUNDING_INSTRUCTION_SET disables pairs and tiles below 5, and tiles below 6.
#pragma once

// Pairwise bfloat16 dot products, and byte permutations of AVX-512: from Zen 4 and Sapphire Rapids on.
bool has_pairs();
// In addition tiles (AMX) with bfloat16, and the operating system's permission to use them.
bool has_tiles();
// True if memory that is read once is better prefetched with a non-temporal hint: on AMD processors.
bool reads_past_caches();
