/* The eLSTM layer. Work is split over blocks of ROWS batch rows or groups of them whatever the number of threads, and
   gradients of weights are summed over groups in order, so results do not depend on the thread count. */
#ifndef ROWS
#define ROWS 4
#endif

/* Row t of the state that step t reads: c0, the step before, or zeros where the copy is reset. */
static inline const real *FN(elstm_previous)(i64 t, i64 b, i64 B, i64 N, const real *c0, const real *c,
                                             const uint8_t *init, const real *zeros) {
    if (init[t * B + b]) return zeros;
    return t ? c + ((t - 1) * B + b) * N : c0 + b * N;
}

SHARED FN(elstm_forward_row)(i64 N, const real *restrict u, const real *restrict v, const real *restrict p,
                             real *restrict out) {
#pragma omp simd
    for (i64 n = 0; n < N; n++) {
        real f = SIGMOID(u[n] + v[n] * p[n]);
        real z = TANH(u[N + n] + v[N + n] * p[n]);
        out[n] = z + f * (p[n] - z);
    }
}

/* ---- the layer for an input of D <= NARROW: drives are computed where they are used and never stored ---- */
#ifndef NARROW
#define NARROW 16
#define UNITS 64
#endif

/* y[0:width] += sum_d w[d, 0:width] x[d]; rows of w lie `stride` apart. */
static inline void FN(elstm_drive)(i64 width, i64 D, i64 stride, const real *restrict x, const real *restrict w,
                                   real *restrict y) {
    for (i64 d = 0; d < D; d++)
#pragma omp simd
        for (i64 n = 0; n < width; n++) y[n] += w[d * stride + n] * x[d];
}

/* c [T,B,N], and o [T,B,N] the part of the output gate that comes from x and the bias. weight [D,2N], weight_out [D,N]. */
void FN(elstm_forward_narrow)(i64 T, i64 B, i64 D, i64 N, i64 threads, const real *x, const real *weight,
                              const real *bias, const real *v, const real *weight_out, const real *bias_out,
                              const real *c0, const uint8_t *init, const real *zeros, real *c, real *o) {
#pragma omp parallel for schedule(static) num_threads(team(T * B * N, threads)) if (team(T * B * N, threads) > 1)
    for (i64 first = 0; first < B; first += ROWS)
        for (i64 t = 0; t < T; t++)
            for (i64 b = first; b < MIN(B, first + ROWS); b++) {
                i64 i = t * B + b;
                const real *before = FN(elstm_previous)(t, b, B, N, c0, c, init, zeros);
                for (i64 n0 = 0; n0 < N; n0 += UNITS) {
                    i64 width = MIN(UNITS, N - n0);
                    real u[2 * UNITS], vs[2 * UNITS];
                    for (i64 gate = 0; gate < 2; gate++) {
                        memcpy(u + gate * width, bias + gate * N + n0, sizeof(real) * width);
                        memcpy(vs + gate * width, v + gate * N + n0, sizeof(real) * width);
                        FN(elstm_drive)(width, D, 2 * N, x + i * D, weight + gate * N + n0, u + gate * width);
                    }
                    FN(elstm_forward_row)(width, u, vs, before + n0, c + i * N + n0);
                    memcpy(o + i * N + n0, bias_out + n0, sizeof(real) * width);
                    FN(elstm_drive)(width, D, N, x + i * D, weight_out + n0, o + i * N + n0);
                }
            }
}

/* Rows of a group's sums [3 D + 5, N]: dweight of both drives and of the output gate (D each), their biases, both v. */
void FN(elstm_backward_narrow)(i64 T, i64 B, i64 D, i64 N, i64 threads, i64 group, const real *x, const real *weight,
                               const real *bias, const real *v, const real *weight_out, const real *c0,
                               const uint8_t *init, const real *zeros, const real *c, const real *dc,
                               const real *dfinal, const real *dgate, real *sums, real *dc0, real *dx) {
    i64 groups = (B + group - 1) / group, rows = 3 * D + 5;
#pragma omp parallel for schedule(static) num_threads(team(T * B * N, threads)) if (team(T * B * N, threads) > 1)
    for (i64 g = 0; g < groups; g++) {
        real *sum = sums + g * rows * N;
        memset(sum, 0, sizeof(real) * rows * N);
        for (i64 b = g * group; b < MIN(B, (g + 1) * group); b++) {
            real *carry = dc0 + b * N;
            if (dfinal) memcpy(carry, dfinal + b * N, sizeof(real) * N);
            else memset(carry, 0, sizeof(real) * N);
            for (i64 t = T - 1; t >= 0; t--) {
                i64 i = t * B + b;
                real keep = init[i] ? 0 : 1;
                const real *before = FN(elstm_previous)(t, b, B, N, c0, c, init, zeros), *xi = x + i * D;
                if (dx) memset(dx + i * D, 0, sizeof(real) * D);
                for (i64 n0 = 0; n0 < N; n0 += UNITS) {
                    i64 width = MIN(UNITS, N - n0);
                    real uf[UNITS], uz[UNITS];
                    memcpy(uf, bias + n0, sizeof(real) * width);
                    memcpy(uz, bias + N + n0, sizeof(real) * width);
                    FN(elstm_drive)(width, D, 2 * N, xi, weight + n0, uf);
                    FN(elstm_drive)(width, D, 2 * N, xi, weight + N + n0, uz);
                    const real *restrict p = before + n0, *restrict e = dc + i * N + n0, *restrict q = dgate + i * N + n0;
                    const real *restrict vf = v + n0, *restrict vz = v + N + n0;
                    real *restrict k = carry + n0, *restrict tail = sum + 3 * D * N + n0;
#pragma omp simd
                    for (i64 n = 0; n < width; n++) {
                        real f = SIGMOID(uf[n] + vf[n] * p[n]);
                        real z = TANH(uz[n] + vz[n] * p[n]);
                        real d = k[n] + e[n];
                        real df = d * (p[n] - z) * f * (1 - f);
                        real dz = d * (1 - f) * (1 - z * z);
                        k[n] = keep * (d * f + vf[n] * df + vz[n] * dz);
                        tail[n] += df;
                        tail[N + n] += dz;
                        tail[2 * N + n] += q[n];
                        tail[3 * N + n] += df * p[n];
                        tail[4 * N + n] += dz * p[n];
                        uf[n] = df;
                        uz[n] = dz;
                    }
                    for (i64 d = 0; d < D; d++) {
                        real *restrict to_f = sum + d * N + n0, *restrict to_z = sum + (D + d) * N + n0;
                        real *restrict to_o = sum + (2 * D + d) * N + n0, scale = xi[d];
#pragma omp simd
                        for (i64 n = 0; n < width; n++) {
                            to_f[n] += uf[n] * scale;
                            to_z[n] += uz[n] * scale;
                            to_o[n] += q[n] * scale;
                        }
                        if (dx) {
                            const real *restrict wf = weight + d * 2 * N + n0, *restrict wo = weight_out + d * N + n0;
                            real total = 0;
#pragma omp simd reduction(+ : total)
                            for (i64 n = 0; n < width; n++) total += uf[n] * wf[n] + uz[n] * wf[N + n] + q[n] * wo[n];
                            dx[i * D + d] += total;
                        }
                    }
                }
            }
        }
    }
}

/* The output gate over `count` numbers: o = sigmoid(o) in place, h = o c. */
void FN(elstm_gate)(i64 count, i64 threads, const real *restrict c, real *restrict o, real *restrict h) {
#pragma omp parallel for simd schedule(static) num_threads(team(count, threads)) if (team(count, threads) > 1)
    for (i64 i = 0; i < count; i++) {
        o[i] = SIGMOID(o[i]);
        h[i] = o[i] * c[i];
    }
}

/* dgate: gradient before the sigmoid; dc: gradient of c through h, plus `extra` unless NULL. */
void FN(elstm_gate_backward)(i64 count, i64 threads, const real *restrict c, const real *restrict o,
                             const real *restrict dh, const real *restrict extra, real *restrict dgate,
                             real *restrict dc) {
#pragma omp parallel num_threads(team(count, threads)) if (team(count, threads) > 1)
    {
#pragma omp for simd schedule(static)
        for (i64 i = 0; i < count; i++) {
            real h = dh[i] * o[i];
            dc[i] = h;
            dgate[i] = h * c[i] * (1 - o[i]);
        }
        if (extra) { /* a branch inside the loop would keep it from being vectorised */
#pragma omp for simd schedule(static)
            for (i64 i = 0; i < count; i++) dc[i] += extra[i];
        }
    }
}

#pragma GCC optimize("O3") /* from here on: tiles of accumulators live in registers once their loops are unrolled */

/* y[r, 0:M] += x[r, 0:K] w[0:K, 0:M] for up to ACT_ROWS rows; w is input-major, so that a tile of outputs stays in
   registers. */
#define LANES (VECTOR_BYTES / sizeof(real))
#ifndef ACT_ROWS
#define ACT_ROWS 8
#define TILE_ROWS (WIDE_MACHINE ? 8 : 4)
#endif
typedef real FN(vec) __attribute__((vector_size(VECTOR_BYTES), aligned(sizeof(real)), may_alias));

SHARED FN(matvec_rows)(i64 rows, i64 K, i64 M, const real *restrict x, i64 x_stride, const real *restrict w,
                       real *restrict y) {
    i64 m = 0;
    if (rows == ACT_ROWS)
        for (; m + 2 * (i64)LANES <= M; m += 2 * LANES)
            for (i64 first = 0; first < ACT_ROWS; first += TILE_ROWS) {
                FN(vec) sum[TILE_ROWS][2];
                const real *from = x + first * x_stride;
                real *to = y + first * M + m;
                for (int r = 0; r < TILE_ROWS; r++)
                    for (int j = 0; j < 2; j++) sum[r][j] = *(const FN(vec) *)(to + r * M + j * LANES);
                for (i64 k = 0; k < K; k++) {
                    const FN(vec) a = *(const FN(vec) *)(w + k * M + m), b = *(const FN(vec) *)(w + k * M + m + LANES);
#pragma GCC unroll 8
                    for (int r = 0; r < TILE_ROWS; r++) {
                        sum[r][0] += from[r * x_stride + k] * a;
                        sum[r][1] += from[r * x_stride + k] * b;
                    }
                }
                for (int r = 0; r < TILE_ROWS; r++)
                    for (int j = 0; j < 2; j++) *(FN(vec) *)(to + r * M + j * LANES) = sum[r][j];
            }
    for (i64 r = 0; r < rows; r++)
        for (i64 k = 0; k < K; k++)
            for (i64 i = m; i < M; i++) y[r * M + i] += x[r * x_stride + k] * w[k * M + i];
}

/* A whole step of the layer and a linear read-out of its output: drive, recurrence, output gate [B, N], `read` [B, P].
   Weights are input-major, [D, 2N], [D, N], [N, N], but for the read-out's [P, N]. scratch is [blocks, ACT_ROWS, 2N]. */
void FN(elstm_act)(i64 B, i64 D, i64 N, i64 P, i64 threads, const real *x, const real *weight, const real *bias,
                   const real *v, const real *weight_out, const real *recurrent_out, const real *bias_out,
                   const real *weight_read, const real *bias_read, const real *c, const uint8_t *init,
                   const real *zeros, real *scratch, real *read, real *next, real *gate) {
    i64 blocks = (B + ACT_ROWS - 1) / ACT_ROWS, work = B * N * (16 + 3 * D + N + P) / 16;
#pragma omp parallel for schedule(static) num_threads(team(work, threads)) if (team(work, threads) > 1)
    for (i64 block = 0; block < blocks; block++) {
        i64 first = block * ACT_ROWS, rows = MIN(ACT_ROWS, B - first);
        real *h = scratch + block * ACT_ROWS * 2 * N, *u = h, *o = gate + first * N;
        for (i64 r = 0; r < rows; r++) {
            memcpy(u + r * 2 * N, bias, sizeof(real) * 2 * N);
            memcpy(o + r * N, bias_out, sizeof(real) * N);
        }
        FN(matvec_rows)(rows, D, 2 * N, x + first * D, D, weight, u);
        FN(matvec_rows)(rows, D, N, x + first * D, D, weight_out, o);
        for (i64 r = 0; r < rows; r++)
            FN(elstm_forward_row)(N, u + r * 2 * N, v, init[first + r] ? zeros : c + (first + r) * N,
                                  next + (first + r) * N);
        FN(matvec_rows)(rows, N, N, next + first * N, N, recurrent_out, o);
        for (i64 r = 0; r < rows; r++) {
            real *restrict g = o + r * N;
            const real *restrict after = next + (first + r) * N;
#pragma omp simd
            for (i64 n = 0; n < N; n++) {
                g[n] = SIGMOID(g[n]);
                h[n] = g[n] * after[n];
            }
            for (i64 p = 0; p < P; p++) {
                const real *restrict w = weight_read + p * N;
                real sum = 0;
#pragma omp simd reduction(+ : sum)
                for (i64 n = 0; n < N; n++) sum += h[n] * w[n];
                read[(first + r) * P + p] = sum + bias_read[p];
            }
        }
    }
}

/* The same of one copy, with all weights as the layer has them; scratch is [2N]. */
void FN(elstm_act_one)(i64 D, i64 N, i64 P, const real *x, const real *weight, const real *bias, const real *v,
                       const real *weight_out, const real *recurrent_out, const real *bias_out, const real *weight_read,
                       const real *bias_read, const real *c, const uint8_t *init, const real *zeros, real *scratch,
                       real *read, real *next, real *gate) {
    FN(dots)(2 * N, D, weight, x, bias, scratch);
    FN(elstm_forward_row)(N, scratch, v, *init ? zeros : c, next);
    FN(dots)(N, D, weight_out, x, bias_out, gate);
    FN(dots)(N, N, recurrent_out, next, gate, gate);
    real *restrict h = scratch, *restrict g = gate;
    const real *restrict after = next;
#pragma omp simd
    for (i64 n = 0; n < N; n++) {
        g[n] = SIGMOID(g[n]);
        h[n] = g[n] * after[n];
    }
    FN(dots)(P, N, weight_read, h, bias_read, read);
}

/* For kernels.loop. */
void FN(elstm_one_call)(const i64 *s, void *const *p) {
    FN(elstm_act_one)(s[1], s[2], s[3], p[0], p[1], p[2], p[3], p[4], p[5], p[6], p[7], p[8], p[9], p[10], p[11], p[12],
                      p[13], p[14], p[15]);
}
void FN(elstm_act_call)(const i64 *s, void *const *p) {
    FN(elstm_act)(s[0], s[1], s[2], s[3], s[4], p[0], p[1], p[2], p[3], p[4], p[5], p[6], p[7], p[8], p[9], p[10], p[11],
                  p[12], p[13], p[14], p[15]);
}
#undef LANES
