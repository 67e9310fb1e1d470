/* An LSTM over T steps, the product of every step fused with its gates. Copies are independent: blocks of ROWS of them go
   through all steps, so that what a step left is still in the cache at the next. */
#ifndef ROWS
#define ROWS 16
#endif

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

/* u [T,B,4N] drives; w [N,PADDED(4N)] the recurrent weight, input-major; state [B,2N]: h, then c. act [T,B,4N]: the gates
   i, f, g, o; c, h [T,B,N]; masked [T,B,N]: the h that the next step reads, zero where it is reset; first, c0 [B,N]: those
   that the first step reads, c before any reset; last [B,2N]. */
void FN(lstm_forward)(i64 T, i64 B, i64 N, i64 threads, const real *u, const real *w, const real *state,
                      const uint8_t *init, const real *zeros, real *act, real *c, real *h, real *masked, real *first,
                      real *c0, real *last) {
    int size = team(T * B * N * (N + 16) / 16, threads);
#pragma omp parallel for schedule(static) num_threads(size) if (size > 1)
    for (i64 b0 = 0; b0 < B; b0 += ROWS) {
        const i64 rows = MIN(ROWS, B - b0);
        for (i64 b = b0; b < b0 + rows; b++) {
            memcpy(first + b * N, init[b] ? zeros : state + b * 2 * N, sizeof(real) * N);
            memcpy(c0 + b * N, state + (b * 2 + 1) * N, sizeof(real) * N);
        }
        const real *p = first + b0 * N;
        for (i64 t = 0; t < T; t++) {
            const i64 at = t * B + b0;
            FN(product)(rows, N, 4 * N, p, N, w, PADDED(4 * N), NULL, 0, act + at * 4 * N, 4 * N);
            for (i64 r = 0; r < rows; r++) {
                const i64 i = at + r;
                const real *before = init[i] ? zeros : t ? c + (i - B) * N : c0 + (b0 + r) * N;
                FN(lstm_forward_row)(N, u + i * 4 * N, before, act + i * 4 * N, c + i * N, h + i * N, masked + i * N);
                if (t + 1 < T && init[i + B]) memset(masked + i * N, 0, sizeof(real) * N);
            }
            p = masked + at * N;
        }
        for (i64 b = b0; b < b0 + rows; b++) {
            memcpy(last + b * 2 * N, h + ((T - 1) * B + b) * N, sizeof(real) * N);
            memcpy(last + (b * 2 + 1) * N, c + ((T - 1) * B + b) * N, sizeof(real) * N);
        }
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

/* w [4N,PADDED(N)]: the recurrent weight. dh [T,B,N] or NULL; dh0 and dc0 [B,N] hold the gradient of the last state on
   entry, that of the first on exit. du [T,B,4N]: before the gates. */
void FN(lstm_backward)(i64 T, i64 B, i64 N, i64 threads, const real *w, const uint8_t *init, const real *zeros,
                       const real *act, const real *c, const real *c0, const real *dh, real *du, real *dh0, real *dc0) {
    int size = team(T * B * N * (N + 16) / 16, threads);
#pragma omp parallel for schedule(static) num_threads(size) if (size > 1)
    for (i64 b0 = 0; b0 < B; b0 += ROWS) {
        const i64 rows = MIN(ROWS, B - b0);
        for (i64 t = T - 1; t >= 0; t--) {
            const i64 at = t * B + b0;
            for (i64 r = 0; r < rows; r++) {
                const i64 i = at + r;
                const real *before = init[i] ? zeros : t ? c + (i - B) * N : c0 + (b0 + r) * N;
                FN(lstm_backward_row)(N, init[i] ? 0 : 1, act + i * 4 * N, before, c + i * N, dh ? dh + i * N : zeros,
                                      dh0 + (b0 + r) * N, dc0 + (b0 + r) * N, du + i * 4 * N);
            }
            FN(product)(rows, 4 * N, N, du + at * 4 * N, 4 * N, w, PADDED(N), NULL, 0, dh0 + b0 * N, N);
            for (i64 r = 0; r < rows; r++)
                if (init[at + r]) memset(dh0 + (b0 + r) * N, 0, sizeof(real) * N);
        }
    }
}

/* For kernels.loop: one step. */
void FN(lstm_call)(const i64 *s, void *const *p) {
    FN(lstm_forward)(1, s[0], s[1], s[2], p[0], p[1], p[2], p[3], p[4], p[5], p[6], p[7], p[8], p[9], p[10], p[11]);
}
