// Inner products of float32 rows, as processors without tiles make them.
//
// Included where kernels are compiled for each instruction set: no include guard.

// As wide as a register is: these sums must stay in registers, of which there are 32, or 16.
constexpr int REGISTER = LEVEL == 4 ? 64 : LEVEL == 3 ? 32 : 16, MOST_TOKENS = LEVEL == 4 ? 6 : 3;
typedef float Register __attribute__((vector_size(REGISTER)));
constexpr int64_t WIDTH = REGISTER / 4;

INLINE Register read(const float* p) {
    Register value;
    std::memcpy(&value, p, sizeof value);
    return value;
}
INLINE Register read(const BFloat16* p) {
#if LEVEL == 3  // the compiler's own conversion takes several instructions
    const __m128i halves = _mm_loadu_si128(reinterpret_cast<const __m128i*>(p));
    return Register(_mm256_slli_epi32(_mm256_cvtepu16_epi32(halves), 16));
#else
    typedef uint16_t Narrow __attribute__((vector_size(REGISTER / 2)));
    typedef uint32_t Wide __attribute__((vector_size(REGISTER)));
    Narrow halves;
    std::memcpy(&halves, p, sizeof halves);
    return Register(__builtin_convertvector(halves, Wide) << 16);
#endif
}

// <x_t, w_r> of T tokens and R rows. Rows of weights are `apart` from each other.
template <int R, int T, typename W>
INLINE void dots(const float* x, const W* w, int64_t apart, int64_t columns, float* out,
                 int64_t stride) {
    Register sums[R][T] = {};
    for (int64_t k = 0; k < columns; k += WIDTH) {
        Register left[T];
        for (int t = 0; t < T; t++) left[t] = read(x + t * columns + k);
        for (int r = 0; r < R; r++) {
            const Register right = read(w + r * apart + k);
            for (int t = 0; t < T; t++) sums[r][t] += left[t] * right;
        }
    }
    for (int r = 0; r < R; r++)
        for (int t = 0; t < T; t++) out[t * stride + r] = sum(sums[r][t]);
}

// T tokens times all rows; few tokens take more rows at once, to have as many sums under way.
template <int T, typename W>
INLINE void some_tokens(const float* x, const W* w, int64_t apart, int64_t rows, int64_t columns,
                        float* out, int64_t stride) {
    constexpr int R = T == 1 ? 8 : 4;
    int64_t r = 0;
    for (; r + R <= rows; r += R) dots<R, T>(x, w + r * apart, apart, columns, out + r, stride);
    for (; r < rows; r++) dots<1, T>(x, w + r * apart, apart, columns, out + r, stride);
}

template <typename W>
void multiply_wide(const float* x, int64_t tokens, const W* w, int64_t apart, int64_t rows,
                   int64_t columns, float* out, int64_t stride) {
    int64_t t = 0;
    for (; t + MOST_TOKENS <= tokens; t += MOST_TOKENS)
        some_tokens<MOST_TOKENS>(x + t * columns, w, apart, rows, columns, out + t * stride, stride);
    for (; t + 2 <= tokens; t += 2)
        some_tokens<2>(x + t * columns, w, apart, rows, columns, out + t * stride, stride);
    for (; t < tokens; t++)
        some_tokens<1>(x + t * columns, w, apart, rows, columns, out + t * stride, stride);
}
