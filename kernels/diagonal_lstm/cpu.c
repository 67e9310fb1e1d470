/* Diagonal LSTM: forward, backward and local derivatives, organised as the eLSTM's (blocks of LSTM_ROWS copies; the weight
   gradient is summed over blocks in order). Gates f, g, o; v: a_f, a_g, a_o, p_f, p_o. The first state is [B, 2N]: h, c. */
#ifndef LSTM_ROWS
#define LSTM_ROWS 4
#endif

/* Row t of what step t reads of x (h or c): the first state, the step before, or zeros where the copy is reset. */
static inline const real *FN(diagonal_lstm_previous)(i64 t, i64 b, i64 B, i64 N, const real *first, const real *x,
                                                     const uint8_t *init, const real *zeros) {
    if (init[t * B + b]) return zeros;
    return t ? x + ((t - 1) * B + b) * N : first + b * 2 * N;
}

static inline void FN(diagonal_lstm_row)(i64 N, const real *restrict u, const real *restrict v, const real *restrict h,
                                         const real *restrict c, real *restrict h_out, real *restrict c_out) {
#pragma omp simd
    for (i64 n = 0; n < N; n++) {
        real f = SIGMOID(u[n] + v[n] * h[n] + v[3 * N + n] * c[n]), g = TANH(u[N + n] + v[N + n] * h[n]);
        real next = g + f * (c[n] - g);
        c_out[n] = next;
        h_out[n] = SIGMOID(u[2 * N + n] + v[2 * N + n] * h[n] + v[4 * N + n] * next) * TANH(next);
    }
}

void FN(diagonal_lstm_forward)(i64 T, i64 B, i64 N, i64 threads, const real *u, const real *v, const real *first,
                               const uint8_t *init, const real *zeros, real *h, real *c) {
#pragma omp parallel for schedule(static) num_threads(team(T * B * N, threads)) if (team(T * B * N, threads) > 1)
    for (i64 block = 0; block < B; block += LSTM_ROWS)
        for (i64 t = 0; t < T; t++)
            for (i64 b = block; b < MIN(B, block + LSTM_ROWS); b++)
                FN(diagonal_lstm_row)(N, u + (t * B + b) * 3 * N, v,
                                      FN(diagonal_lstm_previous)(t, b, B, N, first, h, init, zeros),
                                      FN(diagonal_lstm_previous)(t, b, B, N, first + N, c, init, zeros),
                                      h + (t * B + b) * N, c + (t * B + b) * N);
}

/* J [2,2,N]: d(h,c)'/d(h,c); l [2,3,N]: of the drives; k [2,5,N]: of v. The first axis is the part differentiated. */
static inline void FN(diagonal_lstm_local_row)(i64 N, real keep, const real *restrict u, const real *restrict v,
                                               const real *restrict h, const real *restrict c, real *restrict J,
                                               real *restrict l, real *restrict k) {
#pragma omp simd
    for (i64 n = 0; n < N; n++) {
        real f = SIGMOID(u[n] + v[n] * h[n] + v[3 * N + n] * c[n]), g = TANH(u[N + n] + v[N + n] * h[n]);
        real next = g + f * (c[n] - g), o = SIGMOID(u[2 * N + n] + v[2 * N + n] * h[n] + v[4 * N + n] * next);
        real s = TANH(next), lf = (c[n] - g) * f * (1 - f), lg = (1 - f) * (1 - g * g), lo = s * o * (1 - o);
        real through = o * (1 - s * s) + lo * v[4 * N + n]; /* dh'/dc' */
        real ch = lf * v[n] + lg * v[N + n], cc = f + lf * v[3 * N + n];
        J[n] = keep * (through * ch + lo * v[2 * N + n]);
        J[N + n] = keep * through * cc;
        J[2 * N + n] = keep * ch;
        J[3 * N + n] = keep * cc;
        l[n] = through * lf;
        l[N + n] = through * lg;
        l[2 * N + n] = lo;
        l[3 * N + n] = lf;
        l[4 * N + n] = lg;
        l[5 * N + n] = 0;
        k[n] = through * lf * h[n];
        k[N + n] = through * lg * h[n];
        k[2 * N + n] = lo * h[n];
        k[3 * N + n] = through * lf * c[n];
        k[4 * N + n] = lo * next;
        k[5 * N + n] = lf * h[n];
        k[6 * N + n] = lg * h[n];
        k[7 * N + n] = 0;
        k[8 * N + n] = lf * c[n];
        k[9 * N + n] = 0;
    }
}

/* state [T,B,2N] is the one before each step, unmasked. */
void FN(diagonal_lstm_local)(i64 T, i64 B, i64 N, i64 threads, const real *u, const real *v, const real *state,
                             const uint8_t *init, const real *zeros, real *J, real *l, real *k) {
#pragma omp parallel for schedule(static) num_threads(team(T * B * N, threads)) if (team(T * B * N, threads) > 1)
    for (i64 i = 0; i < T * B; i++)
        FN(diagonal_lstm_local_row)(N, init[i] ? 0 : 1, u + i * 3 * N, v, init[i] ? zeros : state + i * 2 * N,
                                    init[i] ? zeros : state + i * 2 * N + N, J + i * 4 * N, l + i * 6 * N, k + i * 10 * N);
}

/* dstate [2N] is the running gradient of h and c. */
static inline void FN(diagonal_lstm_back_row)(i64 N, real keep, const real *restrict u, const real *restrict v,
                                              const real *restrict h, const real *restrict c, const real *restrict next,
                                              const real *restrict dh, real *restrict dstate, real *restrict du,
                                              real *restrict dv) {
#pragma omp simd
    for (i64 n = 0; n < N; n++) {
        real f = SIGMOID(u[n] + v[n] * h[n] + v[3 * N + n] * c[n]), g = TANH(u[N + n] + v[N + n] * h[n]);
        real o = SIGMOID(u[2 * N + n] + v[2 * N + n] * h[n] + v[4 * N + n] * next[n]), s = TANH(next[n]);
        real d = dstate[n] + dh[n], d_o = d * s * o * (1 - o);
        real dc = dstate[N + n] + d * o * (1 - s * s) + d_o * v[4 * N + n];
        real df = dc * (c[n] - g) * f * (1 - f), dg = dc * (1 - f) * (1 - g * g);
        du[n] = df;
        du[N + n] = dg;
        du[2 * N + n] = d_o;
        dv[n] += df * h[n];
        dv[N + n] += dg * h[n];
        dv[2 * N + n] += d_o * h[n];
        dv[3 * N + n] += df * c[n];
        dv[4 * N + n] += d_o * next[n];
        dstate[n] = keep * (df * v[n] + dg * v[N + n] + d_o * v[2 * N + n]);
        dstate[N + n] = keep * (dc * f + df * v[3 * N + n]);
    }
}

/* dh or dlast may be NULL (no gradient from there). partial is [blocks, 5N]. */
void FN(diagonal_lstm_backward)(i64 T, i64 B, i64 N, i64 threads, const real *u, const real *v, const real *first,
                                const uint8_t *init, const real *zeros, const real *h, const real *c, const real *dh,
                                const real *dlast, real *du, real *partial, real *dv, real *dstate) {
    i64 blocks = (B + LSTM_ROWS - 1) / LSTM_ROWS;
#pragma omp parallel for schedule(static) num_threads(team(T * B * N, threads)) if (team(T * B * N, threads) > 1)
    for (i64 block = 0; block < blocks; block++) {
        i64 begin = block * LSTM_ROWS, end = MIN(B, begin + LSTM_ROWS);
        real *sum = partial + block * 5 * N;
        memset(sum, 0, sizeof(real) * 5 * N);
        if (dlast) memcpy(dstate + begin * 2 * N, dlast + begin * 2 * N, sizeof(real) * (end - begin) * 2 * N);
        else memset(dstate + begin * 2 * N, 0, sizeof(real) * (end - begin) * 2 * N);
        for (i64 t = T - 1; t >= 0; t--)
            for (i64 b = begin; b < end; b++)
                FN(diagonal_lstm_back_row)(N, init[t * B + b] ? 0 : 1, u + (t * B + b) * 3 * N, v,
                                           FN(diagonal_lstm_previous)(t, b, B, N, first, h, init, zeros),
                                           FN(diagonal_lstm_previous)(t, b, B, N, first + N, c, init, zeros),
                                           c + (t * B + b) * N, dh ? dh + (t * B + b) * N : zeros, dstate + b * 2 * N,
                                           du + (t * B + b) * 3 * N, sum);
    }
    memset(dv, 0, sizeof(real) * 5 * N);
    for (i64 block = 0; block < blocks; block++)
        for (i64 n = 0; n < 5 * N; n++) dv[n] += partial[block * 5 * N + n];
}
