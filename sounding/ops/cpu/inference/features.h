// What this processor can do beyond the instruction sets that kernels are cloned for.
#pragma once

// Tiles (AMX) with bfloat16, the AVX-512 they are fed with, and the kernel's permission to use them.
// SOUNDING_CPU=generic in the environment turns them off: tests compare both.
bool has_tiles();
