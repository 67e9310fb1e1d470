/* The point-wise part of one LSTM step, forward and backward, row by row; the matrix products are torch's. */

static inline void FN(lstm_forward_row)(i64 N, const real *restrict u, const real *restrict p, real *restrict act,
                                        real *restrict c, real *restrict h, real *restrict masked) {
#pragma omp simd
    for (i64 n = 0; n < N; n++) {
        real i = SIGMOID(u[n] + act[n]), f = SIGMOID(u[N + n] + act[N + n]);
        real g = TANH(u[2 * N + n] + act[2 * N + n]), o = SIGMOID(u[3 * N + n] + act[3 * N + n]);
        real state = f * p[n] + i * g, out = o * TANH(state);
        act[n] = i;
        act[N + n] = f;
        act[2 * N + n] = g;
        act[3 * N + n] = o;
        c[n] = state;
        h[n] = out;
        masked[n] = out;
    }
}

/* act holds W h on entry and the gates i, f, g, o on exit. masked is the h that the next step reads: zero where its
   init says so (next_init may be NULL at the last step). */
void FN(lstm_forward)(i64 B, i64 N, i64 threads, const real *u, const real *c_prev, const uint8_t *init,
                      const uint8_t *next_init, const real *zeros, real *act, real *c, real *h, real *masked) {
    int size = team(4 * B * N, threads);
#pragma omp parallel for schedule(static) num_threads(size) if (size > 1)
    for (i64 b = 0; b < B; b++) {
        FN(lstm_forward_row)(N, u + b * 4 * N, init[b] ? zeros : c_prev + b * N, act + b * 4 * N, c + b * N, h + b * N,
                             masked + b * N);
        if (next_init && next_init[b]) memset(masked + b * N, 0, sizeof(real) * N);
    }
}

static inline void FN(lstm_backward_row)(i64 N, real keep, const real *restrict act, const real *restrict p,
                                         const real *restrict c, const real *restrict dh, const real *restrict dh_next,
                                         real *restrict dc, real *restrict dpre) {
#pragma omp simd
    for (i64 n = 0; n < N; n++) {
        real i = act[n], f = act[N + n], g = act[2 * N + n], o = act[3 * N + n], squashed = TANH(c[n]);
        real d = dh[n] + dh_next[n], state = dc[n] + d * o * (1 - squashed * squashed);
        dpre[n] = state * g * i * (1 - i);
        dpre[N + n] = state * p[n] * f * (1 - f);
        dpre[2 * N + n] = state * i * (1 - g * g);
        dpre[3 * N + n] = d * squashed * o * (1 - o);
        dc[n] = keep * state * f;
    }
}

/* dh_next is what flows back from step t + 1, before its reset (next_init, NULL at the last step). dh may be NULL. */
void FN(lstm_backward)(i64 B, i64 N, i64 threads, const real *act, const real *c_prev, const uint8_t *init,
                       const uint8_t *next_init, const real *zeros, const real *c, const real *dh, const real *dh_next,
                       real *dc, real *dpre) {
    int size = team(4 * B * N, threads);
#pragma omp parallel for schedule(static) num_threads(size) if (size > 1)
    for (i64 b = 0; b < B; b++)
        FN(lstm_backward_row)(N, init[b] ? 0 : 1, act + b * 4 * N, init[b] ? zeros : c_prev + b * N, c + b * N,
                              dh ? dh + b * N : zeros, next_init && next_init[b] ? zeros : dh_next + b * N, dc + b * N,
                              dpre + b * 4 * N);
}
