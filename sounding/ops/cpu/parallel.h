// Threads for kernels: a pool of workers that sleep while idle.
#pragma once

#include <cstdint>

// A function over a range of indices, with its context. (std::function would allocate from the heap for every
// call.)
struct RangeWork {
    void (*function)(const void* with, int64_t begin, int64_t end);
    const void* with;

    void operator()(int64_t begin, int64_t end) const { function(with, begin, end); }
};

void run_ranges(int64_t count, int64_t grain, int threads, RangeWork work);

// Calls work(begin, end) for consecutive ranges of at most `grain` that cover [0, count), on up to `threads`
// threads, and returns when all are done. The ranges do not depend on the number of threads.
template <typename Work>
void parallel_for(int64_t count, int64_t grain, int threads, const Work& work) {
    auto function = [](const void* with, int64_t begin, int64_t end) {
        (*static_cast<const Work*>(with))(begin, end);
    };
    run_ranges(count, grain, threads, {function, &work});
}

// The x86-64 level that the kernels use: 4 (AVX-512), 3 (AVX2) or 1. The environment variable
// SOUNDING_INSTRUCTION_SET lowers it, so that all levels can be tested on one machine. It also limits what is
// used beyond a level, see inference/features.h.
int instruction_set();

// While one exists, and shortly after, workers spin for a bounded time before they sleep: a step of a network is
// about a hundred ranges of a few microseconds, and waking a thread takes longer than most of them.
struct Step {
    Step();
    ~Step();
    Step(const Step&) = delete;
    Step& operator=(const Step&) = delete;
};
