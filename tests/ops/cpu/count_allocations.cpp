// Counts what the heap is asked for while one call runs, by any thread. Loaded before everything
// else (LD_PRELOAD), so that the C library's own allocator stands behind these.

#include <atomic>
#include <cstddef>
#include <cstdint>

extern "C" {

void* __libc_malloc(size_t);
void* __libc_calloc(size_t, size_t);
void* __libc_realloc(void*, size_t);
void* __libc_memalign(size_t, size_t);

static std::atomic<bool> counting{false};
static std::atomic<int64_t> requests{0};

static void note() {
    if (counting) requests++;
}

void* malloc(size_t size) {
    note();
    return __libc_malloc(size);
}
void* calloc(size_t count, size_t size) {
    note();
    return __libc_calloc(count, size);
}
void* realloc(void* data, size_t size) {
    note();
    return __libc_realloc(data, size);
}
void* aligned_alloc(size_t alignment, size_t size) {
    note();
    return __libc_memalign(alignment, size);
}

int64_t requests_so_far() { return requests; }

using Word = void*;
using Run = int64_t (*)(Word, Word, Word, Word, Word, Word, Word, Word, Word, Word, Word, Word, Word,
                        Word, Word, Word, Word, Word, int, Word);
static Run target;

void set_target(void* function) { target = reinterpret_cast<Run>(function); }

// network_run of sounding/ops/cpu/inference/network.cpp
int64_t counted_run(Word a, Word b, Word c, Word d, Word e, Word f, Word g, Word h, Word i, Word j,
                    Word k, Word l, Word m, Word n, Word o, Word p, Word q, Word r, int threads,
                    Word s) {
    counting = true;
    const int64_t result = target(a, b, c, d, e, f, g, h, i, j, k, l, m, n, o, p, q, r, threads, s);
    counting = false;
    return result;
}
}
