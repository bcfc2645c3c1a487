// Inner products of float32 rows, for processors without tiles.
//
// Included where kernels are compiled for each instruction set: no include guard.

// Tokens whose sums fit in the 32 or 16 registers.
constexpr int MOST_TOKENS = LEVEL == 4 ? 6 : 3;

template <typename T> INLINE Floats read(const T* p) {
    Floats value;
    load(p, value);
    return value;
}

// <x_t, w_r> of T tokens and R rows, which are `apart` from each other. `ahead` prefetches as much as is read, if that
// is whole lines.
template <int R, int T, typename W, typename Ahead>
INLINE void dots(const float* x, const W* w, int64_t apart, int64_t columns, float* out, int64_t stride, Ahead& ahead) {
    constexpr int STEP = R * LANES * int(sizeof(W));
    RowPointers rows(w, apart * int64_t(sizeof(W)));
    Floats sums[R][T] = {};
    for (int64_t k = 0; k < columns; k += LANES, rows.advance(LANES * sizeof(W))) {
        if constexpr (STEP % 64 == 0) ahead.template ask<STEP>();
        Floats left[T];
        for (int t = 0; t < T; t++) left[t] = read(x + t * columns + k);
        for (int r = 0; r < R; r++) {
            const Floats right = read(reinterpret_cast<const W*>(rows[r]));
            for (int t = 0; t < T; t++) sums[r][t] += left[t] * right;
        }
    }
    for (int r = 0; r < R; r++)
        for (int t = 0; t < T; t++) out[t * stride + r] = sum(sums[r][t]);
}

// T tokens times all rows; with few tokens more rows at a time, for as many independent sums.
template <int T, typename W, typename Ahead>
INLINE void some_tokens(const float* x, const W* w, int64_t apart, int64_t rows, int64_t columns, float* out,
                        int64_t stride, Ahead& ahead) {
    constexpr int R = T == 1 ? 8 : 4;
    NobodyAsks nobody;
    int64_t r = 0;
    for (; r + R <= rows; r += R) dots<R, T>(x, w + r * apart, apart, columns, out + r, stride, ahead);
    for (; r < rows; r++) dots<1, T>(x, w + r * apart, apart, columns, out + r, stride, nobody);
}

// Process up to MOST_TOKENS tokens and return their number.
template <typename W, typename Ahead>
INLINE int64_t next_tokens(const float* x, int64_t tokens, const W* w, int64_t apart, int64_t rows, int64_t columns,
                           float* out, int64_t stride, Ahead& ahead) {
    if (tokens >= MOST_TOKENS) {
        some_tokens<MOST_TOKENS>(x, w, apart, rows, columns, out, stride, ahead);
        return MOST_TOKENS;
    }
    if (tokens >= 2) {
        some_tokens<2>(x, w, apart, rows, columns, out, stride, ahead);
        return 2;
    }
    some_tokens<1>(x, w, apart, rows, columns, out, stride, ahead);
    return 1;
}

// Rows are prefetched for the first tokens; the others find them in the cache.
template <typename W, typename Ahead>
void multiply_wide(const float* x, int64_t tokens, const W* w, int64_t apart, int64_t rows, int64_t columns, float* out,
                   int64_t stride, Ahead& ahead) {
    if (tokens == 0) return;
    int64_t t = next_tokens(x, tokens, w, apart, rows, columns, out, stride, ahead);
    NobodyAsks nobody;
    while (t < tokens)
        t += next_tokens(x + t * columns, tokens - t, w, apart, rows, columns, out + t * stride, stride, nobody);
}
