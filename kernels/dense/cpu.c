/* Linear layers with an activation, forward and backward; rows of inputs, outputs and gradients lie `xs`, `ys`, .. apart. */
enum { NONE, TANH_, RELU, CRELU };

/* In place, or for CRELU into 2N columns: rows of what a linear layer gave. */
static inline void FN(activate)(i64 N, i64 kind, real *restrict y) {
    if (kind == TANH_) {
#pragma omp simd
        for (i64 n = 0; n < N; n++) y[n] = TANH(y[n]);
    } else if (kind == RELU) {
#pragma omp simd
        for (i64 n = 0; n < N; n++) y[n] = y[n] > 0 ? y[n] : 0;
    } else if (kind == CRELU) {
#pragma omp simd
        for (i64 n = 0; n < N; n++) {
            real z = y[n];
            y[n] = z > 0 ? z : 0;
            y[N + n] = z < 0 ? -z : 0;
        }
    }
}

#ifndef BLOCK
#define BLOCK 64 /* rows of a piece of work */
#endif

/* y = act(x w + bias), w [K, PADDED(N)], bias [PADDED(N)]. */
void FN(dense_forward)(i64 M, i64 K, i64 N, i64 kind, i64 xs, i64 ys, i64 threads, const real *x, const real *w,
                       const real *bias, real *y) {
    int size = team(M * N * (K + 8) / 32, threads);
#pragma omp parallel for schedule(static) num_threads(size) if (size > 1)
    for (i64 first = 0; first < M; first += BLOCK) {
        const i64 rows = MIN(BLOCK, M - first);
        FN(product)(rows, K, N, x + first * xs, xs, w, PADDED(N), bias, 0, y + first * ys, ys);
        for (i64 m = first; m < first + rows; m++) FN(activate)(N, kind, y + m * ys);
    }
}

/* The same of one row, with w [N, K] as it is. */
void FN(dense_one)(i64 K, i64 N, i64 kind, const real *x, const real *w, const real *bias, real *y) {
    FN(dots)(N, K, w, x, bias, y);
    FN(activate)(N, kind, y);
}

/* The same of `width` categories a row, that is of zeros and ones: the rows offset[i] + id[i] of w added up. */
void FN(dense_columns)(i64 M, i64 width, i64 N, i64 kind, i64 ys, i64 threads, const i64 *ids, const i64 *offset,
                       const real *w, const real *bias, real *y) {
    int size = team(M * N * width / 8, threads);
#pragma omp parallel for schedule(static) num_threads(size) if (size > 1)
    for (i64 m = 0; m < M; m++) {
        enum { HELD = 64 }; /* sums that stay in registers */
        real *restrict to = y + m * ys;
        for (i64 n0 = 0; n0 < N; n0 += HELD) {
            if (n0 + HELD <= N) {
                real sum[HELD];
                memcpy(sum, bias + n0, sizeof(sum));
                for (i64 i = 0; i < width; i++) {
                    const real *restrict from = w + (offset[i] + ids[m * width + i]) * PADDED(N) + n0;
#pragma omp simd
                    for (i64 n = 0; n < HELD; n++) sum[n] += from[n];
                }
                memcpy(to + n0, sum, sizeof(sum));
                continue;
            }
            memcpy(to + n0, bias + n0, sizeof(real) * (N - n0));
            for (i64 i = 0; i < width; i++) {
                const real *restrict from = w + (offset[i] + ids[m * width + i]) * PADDED(N);
#pragma omp simd
                for (i64 n = n0; n < N; n++) to[n] += from[n];
            }
        }
        FN(activate)(N, kind, to);
    }
}

/* dz [M, N]: the gradient before the activation, from that of y; may be dy itself where y has N columns. */
void FN(dense_slope)(i64 M, i64 N, i64 kind, i64 ys, i64 ds, i64 zs, i64 threads, const real *y, const real *dy, real *dz) {
    int size = team(M * N, threads);
#pragma omp parallel for schedule(static) num_threads(size) if (size > 1)
    for (i64 m = 0; m < M; m++) {
        const real *a = y + m * ys, *d = dy + m * ds;
        real *to = dz + m * zs;
        if (kind == TANH_) {
#pragma omp simd
            for (i64 n = 0; n < N; n++) to[n] = d[n] * (1 - a[n] * a[n]);
        } else if (kind == RELU) {
#pragma omp simd
            for (i64 n = 0; n < N; n++) to[n] = a[n] > 0 ? d[n] : 0;
        } else if (kind == CRELU) {
#pragma omp simd
            for (i64 n = 0; n < N; n++) to[n] = (a[n] > 0 ? d[n] : 0) - (a[N + n] > 0 ? d[N + n] : 0);
        } else if (to != d) memcpy(to, d, sizeof(real) * N);
    }
}

/* dw [N, K] += dz^T x and dbias [N] += the sum of dz's rows. */
void FN(dense_weights)(i64 M, i64 K, i64 N, i64 xs, i64 zs, i64 threads, const real *x, const real *dz, real *dw,
                       real *dbias) {
    int size = team(M * N * K / 32, threads);
#pragma omp parallel for schedule(static) num_threads(size) if (size > 1)
    for (i64 first = 0; first < N; first += 16) FN(outer_sum)(M, first, MIN(N, first + 16), K, dz, zs, x, xs, dw, K);
    for (i64 m = 0; dbias && m < M; m++) {
        const real *restrict d = dz + m * zs;
#pragma omp simd
        for (i64 n = 0; n < N; n++) dbias[n] += d[n];
    }
}

/* The same of categories; dw [N, V]. Of many rows the sums are made category by category in `sums` [V, N], in one piece
   each, and added to dw at the end. */
void FN(dense_columns_weights)(i64 M, i64 width, i64 N, i64 V, i64 zs, const i64 *ids, const i64 *offset, const real *dz,
                               real *dw, real *dbias, real *restrict sums) {
    enum { SIDE = 16 };
    const int apart = M * width < V;
    if (!apart) memset(sums, 0, sizeof(real) * V * N);
    for (i64 m = 0; m < M; m++) {
        const real *restrict d = dz + m * zs;
        for (i64 i = 0; i < width; i++) {
            const i64 v = offset[i] + ids[m * width + i];
            if (apart)
                for (i64 n = 0; n < N; n++) dw[n * V + v] += d[n];
            else {
                real *restrict to = sums + v * N;
#pragma omp simd
                for (i64 n = 0; n < N; n++) to[n] += d[n];
            }
        }
#pragma omp simd
        for (i64 n = 0; n < N; n++) dbias[n] += d[n];
    }
    if (apart) return;
    for (i64 v0 = 0; v0 < V; v0 += SIDE)
        for (i64 n0 = 0; n0 < N; n0 += SIDE)
            for (i64 n = n0; n < MIN(N, n0 + SIDE); n++)
                for (i64 v = v0; v < MIN(V, v0 + SIDE); v++) dw[n * V + v] += sums[v * N + n];
}

/* dx [M, K] = dz w, w [N, PADDED(K)]; added to what is there if `add`. */
void FN(dense_inputs)(i64 M, i64 K, i64 N, i64 zs, i64 xs, i64 add, i64 threads, const real *dz, const real *w, real *dx) {
    int size = team(M * N * K / 32, threads);
#pragma omp parallel for schedule(static) num_threads(size) if (size > 1)
    for (i64 first = 0; first < M; first += BLOCK) {
        real *to = dx + first * xs;
        FN(product)(MIN(BLOCK, M - first), N, K, dz + first * zs, zs, w, PADDED(K), add ? to : NULL, xs, to, xs);
    }
}

/* to [columns, rows], its rows `stride` apart, = from [rows, columns], transposed; in squares that stay in the cache. */
SHARED FN(turn)(i64 rows, i64 columns, i64 stride, const real *restrict from, real *restrict to) {
    enum { SIDE = 8 };
    for (i64 c0 = 0; c0 < columns; c0 += SIDE)
        for (i64 r0 = 0; r0 < rows; r0 += SIDE)
            if (r0 + SIDE <= rows && c0 + SIDE <= columns)
#pragma GCC unroll 8
                for (int c = 0; c < SIDE; c++)
#pragma GCC unroll 8
                    for (int r = 0; r < SIDE; r++) to[(c0 + c) * stride + r0 + r] = from[(r0 + r) * columns + c0 + c];
            else
                for (i64 c = c0; c < MIN(columns, c0 + SIDE); c++)
                    for (i64 r = r0; r < MIN(rows, r0 + SIDE); r++) to[c * stride + r] = from[r * columns + c];
}

/* to [rows, PADDED(columns)] = from [rows, columns], or its transpose from [columns, rows]; zeros behind. */
void FN(dense_pack)(i64 rows, i64 columns, i64 transposed, const real *from, real *to) {
    if (transposed) FN(turn)(columns, rows, PADDED(columns), from, to);
    for (i64 r = 0; r < rows; r++) {
        real *row = to + r * PADDED(columns);
        if (!transposed) memcpy(row, from + r * columns, sizeof(real) * columns);
        memset(row + columns, 0, sizeof(real) * (PADDED(columns) - columns));
    }
}

void FN(transpose)(i64 rows, i64 columns, const real *from, real *to) { FN(turn)(rows, columns, rows, from, to); }

/* to [count] += the sum over groups of from [groups, count]. */
void FN(add_groups)(i64 groups, i64 count, const real *from, real *to) {
    for (i64 g = 0; g < groups; g++) {
        const real *restrict part = from + g * count;
#pragma omp simd
        for (i64 i = 0; i < count; i++) to[i] += part[i];
    }
}

/* to [G, N, D] += the sum over groups of from [groups, G, D, N]. */
void FN(add_transposed_groups)(i64 groups, i64 G, i64 D, i64 N, const real *from, real *to) {
    for (i64 row = 0; row < groups * G; row++)
        for (i64 d = 0; d < D; d++)
            for (i64 n = 0; n < N; n++) to[(row % G * N + n) * D + d] += from[(row * D + d) * N + n];
}

/* to [count] = a b, element by element. */
void FN(multiply)(i64 count, const real *restrict a, const real *restrict b, real *restrict to) {
#pragma omp simd
    for (i64 i = 0; i < count; i++) to[i] = a[i] * b[i];
}

/* y += x w, rows and weights as in `dense_forward`. */
void FN(dense_add)(i64 M, i64 K, i64 N, i64 xs, i64 ys, i64 threads, const real *x, const real *w, real *y) {
    int size = team(M * N * (K + 8) / 32, threads);
#pragma omp parallel for schedule(static) num_threads(size) if (size > 1)
    for (i64 first = 0; first < M; first += BLOCK) {
        real *to = y + first * ys;
        FN(product)(MIN(BLOCK, M - first), K, N, x + first * xs, xs, w, PADDED(N), to, ys, to, ys);
    }
}

/* to [T, count] = from [T, B], the items index [count] of every row, `bytes` each; those of `from` lie `apart` bytes. */
void FN(gather)(i64 T, i64 B, i64 count, i64 bytes, i64 apart, const i64 *index, const char *from, char *to) {
    for (i64 t = 0; t < T; t++)
        for (i64 i = 0; i < count; i++) memcpy(to + (t * count + i) * bytes, from + (t * B + index[i]) * apart, bytes);
}

/* x [count] with mean 0 and standard deviation 1, to 1e-8. */
void FN(standardize)(i64 count, real *restrict x) {
    double sum = 0, squares = 0;
    for (i64 i = 0; i < count; i++) sum += x[i];
    const real mean = (real)(sum / count);
    for (i64 i = 0; i < count; i++) squares += (x[i] - mean) * (x[i] - mean);
    const real size = (real)(sqrt(squares / count) + 1e-8);
#pragma omp simd
    for (i64 i = 0; i < count; i++) x[i] = (x[i] - mean) / size;
}

void FN(copy_bytes)(i64 count, const void *from, void *to) { memcpy(to, from, count); }

void FN(clear)(i64 count, real *to) { memset(to, 0, sizeof(real) * count); }

/* ---- for kernels.loop ---- */
void FN(forward_call)(const i64 *s, void *const *p) {
    FN(dense_forward)(s[0], s[1], s[2], s[3], s[4], s[5], s[6], p[0], p[1], p[2], p[3]);
}
void FN(one_call)(const i64 *s, void *const *p) { FN(dense_one)(s[0], s[1], s[2], p[0], p[1], p[2], p[3]); }
void FN(columns_call)(const i64 *s, void *const *p) {
    FN(dense_columns)(s[0], s[1], s[2], s[3], s[4], s[5], p[0], p[1], p[2], p[3], p[4]);
}
void FN(slope_call)(const i64 *s, void *const *p) {
    FN(dense_slope)(s[0], s[1], s[2], s[3], s[4], s[5], s[6], p[0], p[1], p[2]);
}
void FN(weights_call)(const i64 *s, void *const *p) {
    FN(dense_weights)(s[0], s[1], s[2], s[3], s[4], s[5], p[0], p[1], p[2], p[3]);
}
void FN(columns_weights_call)(const i64 *s, void *const *p) {
    FN(dense_columns_weights)(s[0], s[1], s[2], s[3], s[4], p[0], p[1], p[2], p[3], p[4], p[5]);
}
void FN(inputs_call)(const i64 *s, void *const *p) {
    FN(dense_inputs)(s[0], s[1], s[2], s[3], s[4], s[5], s[6], p[0], p[1], p[2]);
}
