#include "features.h"

#include <cstdlib>

#include "tiles.h"

#ifdef WITH_TILES
#include <cpuid.h>
#include <sys/syscall.h>
#include <unistd.h>

namespace {

constexpr long REQUEST_PERMISSION = 0x1023, TILE_DATA = 18;  // arch_prctl, Linux 5.16 and later

bool cpu_has_tiles() {
    unsigned a, b, c, d;
    if (!__get_cpuid_count(7, 0, &a, &b, &c, &d)) return false;
    return (d >> 22 & 1) && (d >> 24 & 1);  // AMX-BF16, AMX-TILE
}

bool find_tiles() {
    if (std::getenv("SOUNDING_INSTRUCTION_SET") != nullptr) return false;
    __builtin_cpu_init();
    return __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
           __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512vbmi") &&
           __builtin_cpu_supports("avx512bf16") && cpu_has_tiles() &&
           syscall(SYS_arch_prctl, REQUEST_PERMISSION, TILE_DATA) == 0;
}

}  // namespace

bool has_tiles() {
    static const bool found = find_tiles();
    return found;
}

#else

bool has_tiles() { return false; }

#endif
