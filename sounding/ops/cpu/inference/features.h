// What this processor can do beyond the instruction sets that kernels are compiled for.
#pragma once

// Tiles (AMX) with bfloat16, the AVX-512 they are fed with, and the kernel's permission to use them.
// No level of x86-64 contains them: SOUNDING_INSTRUCTION_SET, whatever it says, turns them off.
bool has_tiles();
