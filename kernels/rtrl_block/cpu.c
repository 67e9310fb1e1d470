/* RTRL carry with PxP blocks: S <- A S + sum_t (P_t l_t) x_t^T for all P parts of the state, in one pass over S. Work is
   split into (copy) x (UNITS units), which do not touch each other. Vectors are gcc vector extensions of LANES elements. */
#pragma GCC optimize("O3") /* the tiles of accumulators live in registers once their loops are unrolled */
#undef LANES
#undef VECTOR
#define LANES ((i64)(VECTOR_BYTES / sizeof(real)))
#define VECTOR FN(block_vector)
#ifndef UNITS
#define UNITS 64
#define VECTOR_PARTS 16
#endif

typedef real VECTOR __attribute__((vector_size(VECTOR_BYTES), aligned(4), may_alias));

static inline VECTOR *FN(block_at)(const real *p) { return (VECTOR *)p; }

/* s[d] += sum_t w[t] x[t,d] and r[d] += sum_t q[t] x[t,d]: eight accumulators in registers, x read once for both. */
static inline void FN(block_sum)(i64 T, i64 D, const real *w, const real *q, i64 stride, const real *x, real *s,
                                 real *r) {
    i64 d = 0;
    for (; d + 4 * LANES <= D; d += 4 * LANES) {
        VECTOR s0 = FN(block_at)(s + d)[0], s1 = FN(block_at)(s + d)[1], s2 = FN(block_at)(s + d)[2];
        VECTOR s3 = FN(block_at)(s + d)[3], r0 = FN(block_at)(r + d)[0], r1 = FN(block_at)(r + d)[1];
        VECTOR r2 = FN(block_at)(r + d)[2], r3 = FN(block_at)(r + d)[3];
        for (i64 t = 0; t < T; t++) {
            const VECTOR *from = FN(block_at)(x + t * D + d);
            VECTOR x0 = from[0], x1 = from[1], x2 = from[2], x3 = from[3];
            real a = w[t * stride], b = q[t * stride];
            s0 += x0 * a, s1 += x1 * a, s2 += x2 * a, s3 += x3 * a;
            r0 += x0 * b, r1 += x1 * b, r2 += x2 * b, r3 += x3 * b;
        }
        FN(block_at)(s + d)[0] = s0, FN(block_at)(s + d)[1] = s1, FN(block_at)(s + d)[2] = s2;
        FN(block_at)(s + d)[3] = s3, FN(block_at)(r + d)[0] = r0, FN(block_at)(r + d)[1] = r1;
        FN(block_at)(r + d)[2] = r2, FN(block_at)(r + d)[3] = r3;
    }
    for (i64 t = 0; t < T && d < D; t++) {
        real a = w[t * stride], b = q[t * stride];
#pragma omp simd
        for (i64 k = d; k < D; k++) {
            s[k] += a * x[t * D + k];
            r[k] += b * x[t * D + k];
        }
    }
}

/* s = a[0] S[at] + a[1] S[bt] and r = b[0] S[at] + b[1] S[bt] (each added to what is there if `more`) of rows of D stored
   numbers, in compute precision. */
static inline void FN(block_mix)(i64 D, i64 bf16, const void *S, i64 at, i64 bt, const real *a, const real *b, int more,
                                 real *restrict s, real *restrict r) {
    real a0 = a[0], a1 = a[1], b0 = b[0], b1 = b[1];
#if SINGLE
    if (bf16) {
        const uint16_t *restrict h = (const uint16_t *)S + at, *restrict c = (const uint16_t *)S + bt;
#pragma omp simd
        for (i64 d = 0; d < D; d++) {
            float x = float_of_bf16(h[d]), y = float_of_bf16(c[d]);
            s[d] = (more ? s[d] : 0) + a0 * x + a1 * y; /* what is there at first may be no number */
            r[d] = (more ? r[d] : 0) + b0 * x + b1 * y;
        }
        return;
    }
#endif
    const real *restrict h = (const real *)S + at, *restrict c = (const real *)S + bt;
#pragma omp simd
    for (i64 d = 0; d < D; d++) {
        real x = h[d], y = c[d];
        s[d] = (more ? s[d] : 0) + a0 * x + a1 * y;
        r[d] = (more ? r[d] : 0) + b0 * x + b1 * y;
    }
}

/* Writes a row. */
static inline void FN(block_store)(i64 D, i64 bf16, void *S, i64 at, const real *restrict s) {
#if SINGLE
    if (bf16) {
        uint16_t *restrict to = (uint16_t *)S + at;
#pragma omp simd
        for (i64 d = 0; d < D; d++) to[d] = bf16_of(s[d]);
        return;
    }
#endif
    memcpy((real *)S + at, s, sizeof(real) * D);
}

/* to = sum_k a[k] from[k] over P rows, those of a UNITS and those of from `apart` from each other. */
static inline void FN(block_dot)(i64 P, i64 units, const real *a, const real *from, i64 apart, real *restrict to) {
    for (i64 k = 0; k < P; k += 2) {
        i64 next = k + 1 < P; /* two at a time; a last one alone counts half twice */
        const real *restrict a0 = a + k * UNITS, *restrict a1 = a0 + next * UNITS;
        const real *restrict f0 = from + k * apart, *restrict f1 = f0 + next * apart;
        real share = next ? 1 : (real)0.5;
#pragma omp simd
        for (i64 u = 0; u < units; u++) to[u] = (k ? to[u] : 0) + share * (a0[u] * f0[u] + a1[u] * f1[u]);
    }
}

/* P_t l_t of every step, part and gate for `units` units from n on, w [T,P,G,UNITS], and A [P,P,UNITS], from the last step
   back. row is scratch, [P,UNITS]. */
static void FN(block_weights)(i64 T, i64 B, i64 P, i64 G, i64 N, i64 b, i64 n, i64 units, const real *J, const real *l,
                              real *A, real *row, real *w) {
    for (i64 i = 0; i < P * P; i++)
        for (i64 u = 0; u < units; u++) A[i * UNITS + u] = i % (P + 1) == 0;
    for (i64 t = T - 1; t >= 0; t--) {
        const real *lt = l + (t * B + b) * P * G * N + n, *Jt = J + (t * B + b) * P * P * N + n;
        for (i64 i = 0; i < P; i++) {
            real *a = A + i * P * UNITS;
            for (i64 g = 0; g < G; g++)
                FN(block_dot)(P, units, a, lt + g * N, G * N, w + ((t * P + i) * G + g) * UNITS);
            for (i64 j = 0; j < P; j++) FN(block_dot)(P, units, a, Jt + j * N, P * N, row + j * UNITS);
            memcpy(a, row, sizeof(real) * P * UNITS);
        }
    }
}

/* All rows of one gate for `units` units: mixed by A, summed with w, stored. `at` is the first row of the first part, the
   other parts lie `apart`. s has P + 1 rows of D, the last of them spare. */
static inline __attribute__((always_inline)) void FN(block_rows)(const i64 P, i64 T, i64 D, i64 stride, i64 units, i64 bf16,
                                                                 void *S, i64 at, i64 apart, const real *A, const real *w,
                                                                 i64 part, const real *x, real *s) {
    for (i64 u = 0; u < units; u++, at += D) {
        for (i64 i = 0; i < P; i += 2)
            for (i64 k = 0; k < P; k += 2) {
                int pair = k + 1 < P;
                const real *first = A + (i * P + k) * UNITS + u, *second = first + (i + 1 < P) * P * UNITS;
                real f[2] = {*first, pair ? first[UNITS] : 0}, g[2] = {*second, pair ? second[UNITS] : 0};
                FN(block_mix)(D, bf16, S, at + k * apart, at + (k + pair) * apart, f, g, k > 0, s + i * D, s + (i + 1) * D);
            }
        if (u + 1 < units) /* while the processor sums, fetch the next row of all parts */
            for (i64 i = 0; i < P; i++)
                for (i64 byte = 0; byte < D * (i64)sizeof(real) >> bf16; byte += 64)
                    __builtin_prefetch((char *)S + ((at + i * apart + D) * (i64)sizeof(real) >> bf16) + byte, 1);
        for (i64 i = 0; i < P; i += 2)
            FN(block_sum)(T, D, w + i * part + u, w + (i + (i + 1 < P)) * part + u, stride, x, s + i * D, s + (i + 1) * D);
        for (i64 i = 0; i < P; i++) FN(block_store)(D, bf16, S, at + i * apart, s + i * D);
    }
}

/* S [B,P,G,N,D] (uint16 bf16 if bf16), J [T,B,P,P,N], l [T,B,P,G,N], x [T,B,D]. scratch: `share` elements a thread,
   (P P + P + P T G) UNITS + (T + P + 1) D of them used. The copy's inputs are gathered there, as rows of x lie far apart. */
void FN(rtrl_block_advance)(i64 T, i64 B, i64 P, i64 G, i64 N, i64 D, i64 threads, i64 bf16, i64 share, void *S,
                            const real *J, const real *l, const real *x, real *scratch) {
    i64 blocks = (N + UNITS - 1) / UNITS, apart = G * N * D;
    int size = team(B * P * G * N * D, threads);
#pragma omp parallel for schedule(static) num_threads(size) if (size > 1)
    for (i64 piece = 0; piece < B * blocks; piece++) {
        i64 b = piece / blocks, n = piece % blocks * UNITS, units = MIN(UNITS, N - n);
        real *A = scratch + omp_get_thread_num() * share, *row = A + P * P * UNITS, *w = row + P * UNITS;
        real *s = w + P * T * G * UNITS, *inputs = s + (P + 1) * D;
        for (i64 t = 0; t < T; t++) memcpy(inputs + t * D, x + (t * B + b) * D, sizeof(real) * D);
        FN(block_weights)(T, B, P, G, N, b, n, units, J, l, A, row, w);
        for (i64 g = 0; g < G; g++) {
            i64 at = ((b * P * G + g) * N + n) * D;
            if (P == 2) /* the usual case, with its loops unrolled */
                FN(block_rows)(2, T, D, P * G * UNITS, units, bf16, S, at, apart, A, w + g * UNITS, G * UNITS, inputs, s);
            else
                FN(block_rows)(P, T, D, P * G * UNITS, units, bf16, S, at, apart, A, w + g * UNITS, G * UNITS, inputs, s);
        }
    }
}

/* S [B,P,K,N], l [T,B,P,K,N]; P is at most VECTOR_PARTS. */
void FN(rtrl_block_advance_vector)(i64 T, i64 B, i64 P, i64 K, i64 N, i64 threads, real *S, const real *J,
                                   const real *l) {
    int size = team(T * B * P * K * N, threads);
#pragma omp parallel for schedule(static) num_threads(size) if (size > 1)
    for (i64 b = 0; b < B; b++)
        for (i64 t = 0; t < T; t++)
            for (i64 k = 0; k < K; k++)
                for (i64 n0 = 0; n0 < N; n0 += UNITS) {
                    i64 width = MIN(UNITS, N - n0);
                    real old[VECTOR_PARTS * UNITS];
                    for (i64 i = 0; i < P; i++)
                        memcpy(old + i * UNITS, S + ((b * P + i) * K + k) * N + n0, sizeof(real) * width);
                    for (i64 i = 0; i < P; i++) {
                        real *restrict to = S + ((b * P + i) * K + k) * N + n0;
                        memcpy(to, l + (((t * B + b) * P + i) * K + k) * N + n0, sizeof(real) * width);
                        for (i64 j = 0; j < P; j++) {
                            const real *restrict by = J + (((t * B + b) * P + i) * P + j) * N + n0;
                            const real *restrict from = old + j * UNITS;
#pragma omp simd
                            for (i64 n = 0; n < width; n++) to[n] += by[n] * from[n];
                        }
                    }
                }
}

/* grad[g,n,d] = sum_i boundary[i,:,n] S[index[i],:,g,n,d]; index NULL means i itself. Rows of grad are split over
   threads. */
void FN(rtrl_block_boundary)(i64 count, i64 P, i64 G, i64 N, i64 D, i64 threads, i64 bf16, const void *S,
                             const real *boundary, const i64 *index, real *grad) {
    int size = team(P * count * G * N * D, threads);
#pragma omp parallel for schedule(static) num_threads(size) if (size > 1)
    for (i64 row = 0; row < G * N; row++) {
        real *restrict to = grad + row * D;
        memset(to, 0, sizeof(real) * D);
        for (i64 i = 0; i < P * count; i++) { /* copy i / P, part i % P */
            real scale = boundary[i * N + row % N];
            i64 at = (((index ? index[i / P] : i / P) * P + i % P) * G * N + row) * D;
#if SINGLE
            if (bf16) {
                const uint16_t *restrict from = (const uint16_t *)S + at;
#pragma omp simd
                for (i64 d = 0; d < D; d++) to[d] += scale * float_of_bf16(from[d]);
                continue;
            }
#endif
            const real *restrict from = (const real *)S + at;
#pragma omp simd
            for (i64 d = 0; d < D; d++) to[d] += scale * from[d];
        }
    }
}
