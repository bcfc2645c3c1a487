#include "features.h"

#include <cstdlib>

#include "../parallel.h"
#include "tiles.h"

#ifdef WITH_TILES
#include <cpuid.h>
#include <sys/syscall.h>
#include <unistd.h>

namespace {

constexpr long REQUEST_PERMISSION = 0x1023, TILE_DATA = 18;  // arch_prctl, Linux 5.16 and later

bool wanted(int set) {
    const char* highest = std::getenv("SOUNDING_INSTRUCTION_SET");
    return highest == nullptr || std::atoi(highest) >= set;
}

bool find_pairs() {
    __builtin_cpu_init();
    return wanted(5) && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
           __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl") &&
           __builtin_cpu_supports("avx512vbmi") && __builtin_cpu_supports("avx512bf16");
}

bool find_tiles() {
    unsigned a, b, c, d;
    if (!wanted(6) || !has_pairs() || !__get_cpuid_count(7, 0, &a, &b, &c, &d)) return false;
#ifdef SOFTWARE_TILES
    return true;
#else
    const bool amx = (d >> 22 & 1) && (d >> 24 & 1);  // AMX-BF16, AMX-TILE
    return amx && syscall(SYS_arch_prctl, REQUEST_PERMISSION, TILE_DATA) == 0;
#endif
}

}  // namespace

bool has_pairs() {
    static const bool found = find_pairs();
    return found;
}

bool has_tiles() {
    static const bool found = find_tiles();
    return found;
}

#else

bool has_pairs() { return false; }
bool has_tiles() { return false; }

#endif

bool reads_past_caches() {
#if defined(__x86_64__) && defined(__GNUC__)
    static const bool found = [] {
        __builtin_cpu_init();
        return __builtin_cpu_is("amd") != 0;
    }();
    return found;
#else
    return false;
#endif
}

// The instructions in use, numbered as in SOUNDING_INSTRUCTION_SET.
extern "C" int instructions_in_use() {
    return has_tiles() ? 6 : has_pairs() ? 5 : instruction_set();
}
