// `write` of ops/hyper_connection.py and its gradient for four bfloat16 streams. It uses no tiles, only the
// bfloat16 arithmetic of the same processors. See hyper_tiles.cpp.

#include "../parallel.h"
#include "hyper_tiles.h"

#ifdef WITH_TILES

TILES_BEGIN

namespace {

constexpr int64_t RANGE = 64;  // tokens per range of a thread

void write(int64_t low, int64_t high, const BFloat16* streams, const BFloat16* output, const float* post,
           const float* mix, BFloat16* result, const Shape& s) {
    const int64_t c = s.channels;
    for (int64_t t = low; t < high; t++) {
        const BFloat16* v = streams + t * M * c;
        const float* a = mix + t * M * M;
        for (int64_t i = 0; i < c; i += 32) {
            Apart from[M];
            for (int j = 0; j < M; j++) from[j] = load_apart(v + j * c + i);
            const Apart out = load_apart(output + t * c + i);
            for (int k = 0; k < M; k++) {
                Apart total = {};
                add(total, out, post[t * M + k]);
                for (int j = 0; j < M; j++) add(total, from[j], a[j * M + k]);
                store(result + (t * M + k) * c + i, total);
            }
        }
    }
}

void write_backward(int64_t low, int64_t high, const BFloat16* streams, const BFloat16* output, const float* post,
                    const float* mix, const BFloat16* grad, BFloat16* grad_streams, BFloat16* grad_output,
                    float* grad_post, float* grad_mix, const Shape& s) {
    const int64_t c = s.channels;
    for (int64_t t = low; t < high; t++) {
        const BFloat16 *v = streams + t * M * c, *g = grad + t * M * c;
        const float* a = mix + t * M * M;
        Floats posts[M] = {}, mixes[M][M] = {};
        for (int64_t i = 0; i < c; i += 32)
            for (int k = 0; k < M; k++) {
                const __m512i into = load_bits(g + k * c + i);
                add_dots(posts[k], into, load_bits(output + t * c + i));
                for (int j = 0; j < M; j++) add_dots(mixes[j][k], into, load_bits(v + j * c + i));
            }
        _mm_storeu_ps(grad_post + t * M, sums(posts));
        for (int j = 0; j < M; j++) _mm_storeu_ps(grad_mix + (t * M + j) * M, sums(mixes[j]));
        for (int64_t i = 0; i < c; i += 32) {
            Apart into[M], total = {};
            for (int k = 0; k < M; k++) {
                into[k] = load_apart(g + k * c + i);
                add(total, into[k], post[t * M + k]);
            }
            store(grad_output + t * c + i, total);
            for (int j = 0; j < M; j++) {
                total = Apart{};
                for (int k = 0; k < M; k++) add(total, into[k], a[j * M + k]);
                store(grad_streams + (t * M + j) * c + i, total);
            }
        }
    }
}

}  // namespace

TILES_END

extern "C" {

void train_write(const Shape* shape, int threads, const BFloat16* streams, const BFloat16* output,
                 const float* post, const float* mix, BFloat16* result) {
    parallel_for(shape->tokens, RANGE, threads, [&](int64_t low, int64_t high) {
        write(low, high, streams, output, post, mix, result, *shape);
    });
}

void train_write_backward(const Shape* shape, int threads, const BFloat16* streams, const BFloat16* output,
                          const float* post, const float* mix, const BFloat16* grad, BFloat16* grad_streams,
                          BFloat16* grad_output, float* grad_post, float* grad_mix) {
    parallel_for(shape->tokens, RANGE, threads, [&](int64_t low, int64_t high) {
        write_backward(low, high, streams, output, post, mix, grad, grad_streams, grad_output, grad_post, grad_mix,
                       *shape);
    });
}
}

#endif
