/* The point-wise part of one GRU step, forward and backward, row by row; the matrix products are torch's. */

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

/* act holds W h on entry and r, z, n on exit; q = W_n h + b_n; p is the masked h before the step; masked is the h that the
   next step reads: zero where its init says so (next_init may be NULL at the last step). */
void FN(gru_forward)(i64 B, i64 N, i64 threads, const real *u, const real *bias, const real *p,
                     const uint8_t *next_init, real *act, real *q, real *h, real *masked) {
    int size = team(4 * B * N, threads);
#pragma omp parallel for schedule(static) num_threads(size) if (size > 1)
    for (i64 b = 0; b < B; b++) {
        FN(gru_forward_row)(N, u + b * 3 * N, bias, p + b * N, act + b * 3 * N, q + b * N, h + b * N, masked + b * N);
        if (next_init && next_init[b]) memset(masked + b * N, 0, sizeof(real) * N);
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

/* dh_next is what flows back from step t + 1, before its reset (next_init, NULL at the last step). dh may be NULL.
   du: before the gates; dhh: of W h + b; direct: of h before the step, without the path through W. */
void FN(gru_backward)(i64 B, i64 N, i64 threads, const real *act, const real *q, const real *p,
                      const uint8_t *next_init, const real *zeros, const real *dh, const real *dh_next, real *du,
                      real *dhh, real *direct) {
    int size = team(4 * B * N, threads);
#pragma omp parallel for schedule(static) num_threads(size) if (size > 1)
    for (i64 b = 0; b < B; b++)
        FN(gru_backward_row)(N, act + b * 3 * N, q + b * N, p + b * N, dh ? dh + b * N : zeros,
                             next_init && next_init[b] ? zeros : dh_next + b * N, du + b * 3 * N, dhh + b * 3 * N,
                             direct + b * N);
}
