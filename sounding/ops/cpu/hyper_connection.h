// Shared by the hyper-connection kernels: the shape struct, and size limits.
#pragma once

#include <cstdint>

constexpr int MAX_STREAMS = 8;
constexpr int MAX_ITERATIONS = 64;

struct Shape {
    int64_t tokens;
    int streams, channels, iterations;
    float norm_eps, hc_eps;

    int width() const { return streams * channels; }
    int coefficients() const { return (2 + streams) * streams; }
};
