// Threads for kernels: a few workers that sleep when there is nothing to do.
#pragma once

#include <cstdint>

// Work on a range of indices: a function and what it works with. (Not std::function, which takes
// memory from the heap for every call.)
struct RangeWork {
    void (*function)(const void* with, int64_t begin, int64_t end);
    const void* with;

    void operator()(int64_t begin, int64_t end) const { function(with, begin, end); }
};

void run_ranges(int64_t count, int64_t grain, int threads, RangeWork work);

// Calls work(begin, end) for consecutive ranges of at most `grain` that cover [0, count), on up to
// `threads` threads; returns when all are done. Ranges do not depend on the number of threads.
template <typename Work>
void parallel_for(int64_t count, int64_t grain, int threads, const Work& work) {
    auto function = [](const void* with, int64_t begin, int64_t end) {
        (*static_cast<const Work*>(with))(begin, end);
    };
    run_ranges(count, grain, threads, {function, &work});
}

// Which x86-64 level the kernels use: 4 (AVX-512), 3 (AVX2) or 1. The environment variable
// SOUNDING_INSTRUCTION_SET lowers it, so that all of them can be tested on one machine. It also says
// what is used beyond a level, see inference/features.h.
int instruction_set();

// While one exists, and a moment longer, workers wait for their next range awake, for a bounded time:
// a step of a network is some hundred ranges of microseconds, and waking a sleeper takes longer than
// most.
struct Step {
    Step();
    ~Step();
    Step(const Step&) = delete;
    Step& operator=(const Step&) = delete;
};
