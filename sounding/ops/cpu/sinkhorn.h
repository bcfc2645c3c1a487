// Sinkhorn normalisation of m by m matrices and its gradient, for a register of tokens at a time: a matrix is
// an array of m * m vectors with one token per lane. The formulas are those of ops/hyper_connection.py.
//
// Included once per instruction set, like numbers.h: no include guard.

// Divide rows (or columns) by their sums; stores 1 / (sum + eps) for the gradient.
INLINE void normalise(Floats* a, Floats* factor, int m, bool rows, float eps) {
    for (int i = 0; i < m; i++) {
        Floats total = {};
        for (int j = 0; j < m; j++) total += a[rows ? i * m + j : j * m + i];
        factor[i] = 1.0f / (total + eps);
        for (int j = 0; j < m; j++) a[rows ? i * m + j : j * m + i] *= factor[i];
    }
}

// The gradient through b = a / (sum + eps): (g - <g, b>) / (sum + eps), per row or column.
INLINE void normalise_backward(Floats* g, const Floats* b, const Floats* factor, int m, bool rows) {
    for (int i = 0; i < m; i++) {
        Floats dot = {};
        for (int j = 0; j < m; j++) {
            const int at = rows ? i * m + j : j * m + i;
            dot += g[at] * b[at];
        }
        for (int j = 0; j < m; j++) {
            const int at = rows ? i * m + j : j * m + i;
            g[at] = (g[at] - dot) * factor[i];
        }
    }
}

INLINE void softmax_rows(Floats* a, int m) {
    for (int i = 0; i < m; i++) {
        Floats top = a[i * m];
        for (int j = 1; j < m; j++) {
            const Floats other = a[i * m + j];
            top = other > top ? other : top;
        }
        Floats total = {};
        for (int j = 0; j < m; j++) {
            Floats& x = a[i * m + j];
            x = exp(x - top);
            total += x;
        }
        for (int j = 0; j < m; j++) a[i * m + j] /= total;
    }
}

// What the gradient needs: the softmax, then each normalised matrix with its factors.
struct Trace {
    Floats soft[MAX_STREAMS * MAX_STREAMS];
    Floats after[2 * MAX_ITERATIONS * MAX_STREAMS * MAX_STREAMS];
    Floats factor[2 * MAX_ITERATIONS * MAX_STREAMS];
};

INLINE void sinkhorn(Floats* a, int m, const Shape& s, Trace* trace) {
    const int steps = 2 * s.iterations - 1;
    Floats unused[MAX_STREAMS];
    softmax_rows(a, m);
    if (trace) std::copy(a, a + m * m, trace->soft);
    for (int i = 0; i < m * m; i++) a[i] += s.hc_eps;
    for (int step = 0; step < steps; step++) {
        const bool rows = step % 2 == 1;  // the first and the last step normalise columns
        normalise(a, trace ? trace->factor + step * m : unused, m, rows, s.hc_eps);
        if (trace) std::copy(a, a + m * m, trace->after + step * m * m);
    }
}

INLINE void sinkhorn_backward(Floats* g, int m, const Shape& s, const Trace& trace) {
    for (int step = 2 * s.iterations - 2; step >= 0; step--)
        normalise_backward(g, trace.after + step * m * m, trace.factor + step * m, m, step % 2 == 1);
    for (int i = 0; i < m; i++) {
        Floats dot = {};
        for (int j = 0; j < m; j++) dot += g[i * m + j] * trace.soft[i * m + j];
        for (int j = 0; j < m; j++) g[i * m + j] = trace.soft[i * m + j] * (g[i * m + j] - dot);
    }
}
