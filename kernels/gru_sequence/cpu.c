/* A GRU over T steps, the product of every step fused with its gates. Copies are independent: blocks of ROWS of them go
   through all steps, so that what a step left is still in the cache at the next. */
#ifndef ROWS
#define ROWS 16
#endif

static inline void FN(gru_forward_row)(i64 N, const real *restrict u, const real *restrict bias, const real *restrict p,
                                       real *restrict act, real *restrict q, real *restrict h, real *restrict masked) {
#pragma omp simd
    for (i64 n = 0; n < N; n++) {
        real r = SIGMOID(u[n] + act[n]), z = SIGMOID(u[N + n] + act[N + n]), s = act[2 * N + n] + bias[n];
        real c = TANH(u[2 * N + n] + r * s), out = c + z * (p[n] - c);
        act[n] = r;
        act[N + n] = z;
        act[2 * N + n] = c;
        q[n] = s;
        h[n] = out;
        masked[n] = out;
    }
}

/* u [T,B,3N] drives; w [N,PADDED(3N)] the recurrent weight, input-major. act [T,B,3N]: the gates r, z, n; q [T,B,N]:
   W_n h + b_n; h [T,B,N]; masked [T,B,N]: what the next step reads, zero where it is reset; first [B,N]: h0, zero where the
   first step is reset. */
void FN(gru_forward)(i64 T, i64 B, i64 N, i64 threads, const real *u, const real *w, const real *bias,
                     const real *h0, const uint8_t *init, real *act, real *q, real *h, real *masked, real *first) {
    int size = team(T * B * N * (N + 16) / 16, threads);
#pragma omp parallel for schedule(static) num_threads(size) if (size > 1)
    for (i64 b0 = 0; b0 < B; b0 += ROWS) {
        const i64 rows = MIN(ROWS, B - b0);
        for (i64 b = b0; b < b0 + rows; b++)
            if (init[b]) memset(first + b * N, 0, sizeof(real) * N);
            else memcpy(first + b * N, h0 + b * N, sizeof(real) * N);
        const real *p = first + b0 * N;
        for (i64 t = 0; t < T; t++) {
            const i64 at = t * B + b0;
            FN(product)(rows, N, 3 * N, p, N, w, PADDED(3 * N), NULL, 0, act + at * 3 * N, 3 * N);
            for (i64 r = 0; r < rows; r++) {
                FN(gru_forward_row)(N, u + (at + r) * 3 * N, bias, p + r * N, act + (at + r) * 3 * N, q + (at + r) * N,
                                    h + (at + r) * N, masked + (at + r) * N);
                if (t + 1 < T && init[at + B + r]) memset(masked + (at + r) * N, 0, sizeof(real) * N);
            }
            p = masked + at * N;
        }
    }
}

static inline void FN(gru_backward_row)(i64 N, const real *restrict act, const real *restrict q,
                                        const real *restrict p, const real *restrict dh, const real *restrict dh_next,
                                        real *restrict du, real *restrict dhh, real *restrict direct) {
#pragma omp simd
    for (i64 n = 0; n < N; n++) {
        real r = act[n], z = act[N + n], c = act[2 * N + n], d = dh[n] + dh_next[n];
        real dn = d * (1 - z) * (1 - c * c), dz = d * (p[n] - c) * z * (1 - z), dr = dn * q[n] * r * (1 - r);
        du[n] = dr;
        du[N + n] = dz;
        du[2 * N + n] = dn;
        dhh[n] = dr;
        dhh[N + n] = dz;
        dhh[2 * N + n] = dn * r;
        direct[n] = d * z;
    }
}

/* w [3N,PADDED(N)]: the recurrent weight. dh [T,B,N] or NULL; dh0 [B,N] holds the gradient of the last h on entry, that of
   h0 on exit. du [T,B,3N]: before the gates; dhh [T,B,3N]: of W h + b; scratch [B,N]. */
void FN(gru_backward)(i64 T, i64 B, i64 N, i64 threads, const real *w, const uint8_t *init, const real *zeros,
                      const real *act, const real *q, const real *first, const real *masked, const real *dh, real *du,
                      real *dhh, real *dh0, real *scratch) {
    int size = team(T * B * N * (N + 16) / 16, threads);
#pragma omp parallel for schedule(static) num_threads(size) if (size > 1)
    for (i64 b0 = 0; b0 < B; b0 += ROWS) {
        const i64 rows = MIN(ROWS, B - b0);
        for (i64 t = T - 1; t >= 0; t--) {
            const i64 at = t * B + b0;
            const real *p = t ? masked + (at - B) * N : first + b0 * N;
            for (i64 r = 0; r < rows; r++)
                FN(gru_backward_row)(N, act + (at + r) * 3 * N, q + (at + r) * N, p + r * N,
                                     dh ? dh + (at + r) * N : zeros, dh0 + (b0 + r) * N, du + (at + r) * 3 * N,
                                     dhh + (at + r) * 3 * N, scratch + (b0 + r) * N);
            FN(product)(rows, 3 * N, N, dhh + at * 3 * N, 3 * N, w, PADDED(N), scratch + b0 * N, N, dh0 + b0 * N, N);
            for (i64 r = 0; r < rows; r++)
                if (init[at + r]) memset(dh0 + (b0 + r) * N, 0, sizeof(real) * N);
        }
    }
}

/* For kernels.loop: one step. */
void FN(gru_call)(const i64 *s, void *const *p) {
    FN(gru_forward)(1, s[0], s[1], s[2], p[0], p[1], p[2], p[3], p[4], p[5], p[6], p[7], p[8], p[9]);
}
