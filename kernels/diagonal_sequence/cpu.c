/* Diagonal GRU: forward, backward and local derivatives, organised as the eLSTM's (blocks of DIAGONAL_ROWS copies; the
   weight gradient is summed over blocks in order). Gates z, r, c; v: the diagonal recurrent weights in that order. */
#ifndef DIAGONAL_ROWS
#define DIAGONAL_ROWS 4
#endif

static inline const real *FN(diagonal_previous)(i64 t, i64 b, i64 B, i64 N, const real *h0, const real *h,
                                                const uint8_t *init, const real *zeros) {
    if (init[t * B + b]) return zeros;
    return t ? h + ((t - 1) * B + b) * N : h0 + b * N;
}

static inline void FN(diagonal_gru_row)(i64 N, const real *restrict u, const real *restrict v, const real *restrict p,
                                        real *restrict h) {
#pragma omp simd
    for (i64 n = 0; n < N; n++) {
        real z = SIGMOID(u[n] + v[n] * p[n]), r = SIGMOID(u[N + n] + v[N + n] * p[n]);
        real c = TANH(u[2 * N + n] + v[2 * N + n] * p[n] * r);
        h[n] = p[n] + z * (c - p[n]);
    }
}

void FN(diagonal_gru_forward)(i64 T, i64 B, i64 N, i64 threads, const real *u, const real *v, const real *h0,
                              const uint8_t *init, const real *zeros, real *h) {
#pragma omp parallel for schedule(static) num_threads(team(T * B * N, threads)) if (team(T * B * N, threads) > 1)
    for (i64 first = 0; first < B; first += DIAGONAL_ROWS)
        for (i64 t = 0; t < T; t++)
            for (i64 b = first; b < MIN(B, first + DIAGONAL_ROWS); b++)
                FN(diagonal_gru_row)(N, u + (t * B + b) * 3 * N, v,
                                     FN(diagonal_previous)(t, b, B, N, h0, h, init, zeros), h + (t * B + b) * N);
}

/* l: dh'/du of the three gates; a: dh'/dh. */
static inline void FN(diagonal_gru_local_row)(i64 N, real keep, const real *restrict u, const real *restrict v,
                                              const real *restrict p, real *restrict a, real *restrict l) {
#pragma omp simd
    for (i64 n = 0; n < N; n++) {
        real z = SIGMOID(u[n] + v[n] * p[n]), r = SIGMOID(u[N + n] + v[N + n] * p[n]), w = v[2 * N + n];
        real c = TANH(u[2 * N + n] + w * p[n] * r);
        real lz = (c - p[n]) * z * (1 - z), lc = z * (1 - c * c), lr = lc * w * p[n] * r * (1 - r);
        l[n] = lz;
        l[N + n] = lr;
        l[2 * N + n] = lc;
        a[n] = keep * (1 - z + lz * v[n] + lr * v[N + n] + lc * w * r);
    }
}

/* h_prev is the state before each step, unmasked. */
void FN(diagonal_gru_local)(i64 T, i64 B, i64 N, i64 threads, const real *u, const real *v, const real *h_prev,
                            const uint8_t *init, const real *zeros, real *a, real *l) {
#pragma omp parallel for schedule(static) num_threads(team(T * B * N, threads)) if (team(T * B * N, threads) > 1)
    for (i64 i = 0; i < T * B; i++)
        FN(diagonal_gru_local_row)(N, init[i] ? 0 : 1, u + i * 3 * N, v, init[i] ? zeros : h_prev + i * N, a + i * N,
                                   l + i * 3 * N);
}

static inline void FN(diagonal_gru_back_row)(i64 N, real keep, const real *restrict u, const real *restrict v,
                                             const real *restrict p, const real *restrict dh, real *restrict carry,
                                             real *restrict du, real *restrict dv) {
#pragma omp simd
    for (i64 n = 0; n < N; n++) {
        real z = SIGMOID(u[n] + v[n] * p[n]), r = SIGMOID(u[N + n] + v[N + n] * p[n]), w = v[2 * N + n];
        real c = TANH(u[2 * N + n] + w * p[n] * r);
        real d = carry[n] + dh[n];
        real dz = d * (c - p[n]) * z * (1 - z), dc = d * z * (1 - c * c), dr = dc * w * p[n] * r * (1 - r);
        du[n] = dz;
        du[N + n] = dr;
        du[2 * N + n] = dc;
        dv[n] += dz * p[n];
        dv[N + n] += dr * p[n];
        dv[2 * N + n] += dc * p[n] * r;
        carry[n] = keep * (d * (1 - z) + dz * v[n] + dr * v[N + n] + dc * w * r);
    }
}

/* dh or dfinal may be NULL (no gradient from there). partial is [blocks, 3N]; dh0 doubles as the running carry. */
void FN(diagonal_gru_backward)(i64 T, i64 B, i64 N, i64 threads, const real *u, const real *v, const real *h0,
                               const uint8_t *init, const real *zeros, const real *h, const real *dh,
                               const real *dfinal, real *du, real *partial, real *dv, real *dh0) {
    i64 blocks = (B + DIAGONAL_ROWS - 1) / DIAGONAL_ROWS;
#pragma omp parallel for schedule(static) num_threads(team(T * B * N, threads)) if (team(T * B * N, threads) > 1)
    for (i64 block = 0; block < blocks; block++) {
        i64 first = block * DIAGONAL_ROWS, last = MIN(B, first + DIAGONAL_ROWS);
        real *sum = partial + block * 3 * N;
        memset(sum, 0, sizeof(real) * 3 * N);
        if (dfinal) memcpy(dh0 + first * N, dfinal + first * N, sizeof(real) * (last - first) * N);
        else memset(dh0 + first * N, 0, sizeof(real) * (last - first) * N);
        for (i64 t = T - 1; t >= 0; t--)
            for (i64 b = first; b < last; b++)
                FN(diagonal_gru_back_row)(N, init[t * B + b] ? 0 : 1, u + (t * B + b) * 3 * N, v,
                                          FN(diagonal_previous)(t, b, B, N, h0, h, init, zeros),
                                          dh ? dh + (t * B + b) * N : zeros, dh0 + b * N, du + (t * B + b) * 3 * N, sum);
    }
    memset(dv, 0, sizeof(real) * 3 * N);
    for (i64 block = 0; block < blocks; block++)
        for (i64 n = 0; n < 3 * N; n++) dv[n] += partial[block * 3 * N + n];
}
