/* RTRL carry with 2x2 blocks: S <- A S + sum_t (P_t l_t) x_t^T for both parts of the state, in one pass over S. Work is
   split into (copy) x (UNITS units), which do not touch each other. Vectors are gcc vector extensions of LANES elements. */
#pragma GCC optimize("O3") /* the tiles of accumulators live in registers once their loops are unrolled */
#undef LANES
#undef VECTOR
#if SINGLE
#define LANES 16
#else
#define LANES 8
#endif
#define VECTOR FN(block_vector)
#ifndef UNITS
#define UNITS 64
#endif

typedef real VECTOR __attribute__((vector_size(64), aligned(4), may_alias));

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

/* s, r <- A (S_h, S_c) of one row of D, in compute precision. A has stride UNITS. */
static inline void FN(block_mix)(i64 D, i64 bf16, const void *S, i64 at_h, i64 at_c, const real *A, real *restrict s,
                                 real *restrict r) {
    real hh = A[0], hc = A[UNITS], ch = A[2 * UNITS], cc = A[3 * UNITS];
#if SINGLE
    if (bf16) {
        const uint16_t *restrict h = (const uint16_t *)S + at_h, *restrict c = (const uint16_t *)S + at_c;
#pragma omp simd
        for (i64 d = 0; d < D; d++) {
            float x = float_of_bf16(h[d]), y = float_of_bf16(c[d]);
            s[d] = hh * x + hc * y;
            r[d] = ch * x + cc * y;
        }
        return;
    }
#endif
    const real *restrict h = (const real *)S + at_h, *restrict c = (const real *)S + at_c;
#pragma omp simd
    for (i64 d = 0; d < D; d++) {
        s[d] = hh * h[d] + hc * c[d];
        r[d] = ch * h[d] + cc * c[d];
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

/* P l of every step and gate for `units` units from n on, w [T,2,G,UNITS], and A [4,UNITS], from the last step back. */
static void FN(block_weights)(i64 T, i64 B, i64 G, i64 N, i64 b, i64 n, i64 units, const real *J, const real *l, real *A,
                              real *w) {
    for (i64 i = 0; i < units; i++) A[i] = A[3 * UNITS + i] = 1, A[UNITS + i] = A[2 * UNITS + i] = 0;
    for (i64 t = T - 1; t >= 0; t--) {
        for (i64 g = 0; g < G; g++) {
            const real *lh = l + ((t * B + b) * 2 * G + g) * N + n, *lc = lh + G * N;
            real *wh = w + (t * 2 * G + g) * UNITS, *wc = wh + G * UNITS;
#pragma omp simd
            for (i64 i = 0; i < units; i++) {
                wh[i] = A[i] * lh[i] + A[UNITS + i] * lc[i];
                wc[i] = A[2 * UNITS + i] * lh[i] + A[3 * UNITS + i] * lc[i];
            }
        }
        const real *j = J + (t * B + b) * 4 * N + n;
#pragma omp simd
        for (i64 i = 0; i < units; i++) {
            real hh = A[i], hc = A[UNITS + i], ch = A[2 * UNITS + i], cc = A[3 * UNITS + i];
            A[i] = hh * j[i] + hc * j[2 * N + i];
            A[UNITS + i] = hh * j[N + i] + hc * j[3 * N + i];
            A[2 * UNITS + i] = ch * j[i] + cc * j[2 * N + i];
            A[3 * UNITS + i] = ch * j[N + i] + cc * j[3 * N + i];
        }
    }
}

/* S [B,2,G,N,D] (uint16 bf16 if bf16), J [T,B,2,2,N], l [T,B,2,G,N], x [T,B,D]. scratch: `share` elements a thread,
   (4 + 2 T G) UNITS + (T + 2) D of them used. The copy's inputs are gathered there, as rows of x lie far apart. */
void FN(rtrl_block_advance)(i64 T, i64 B, i64 G, i64 N, i64 D, i64 threads, i64 bf16, i64 share, void *S, const real *J,
                            const real *l, const real *x, real *scratch) {
    i64 blocks = (N + UNITS - 1) / UNITS;
    int size = team(B * 2 * G * N * D, threads);
#pragma omp parallel for schedule(static) num_threads(size) if (size > 1)
    for (i64 piece = 0; piece < B * blocks; piece++) {
        i64 b = piece / blocks, n = piece % blocks * UNITS, units = MIN(UNITS, N - n);
        real *A = scratch + omp_get_thread_num() * share, *w = A + 4 * UNITS, *s = w + 2 * T * G * UNITS, *r = s + D;
        for (i64 t = 0; t < T; t++) memcpy(r + (t + 1) * D, x + (t * B + b) * D, sizeof(real) * D);
        FN(block_weights)(T, B, G, N, b, n, units, J, l, A, w);
        for (i64 g = 0; g < G; g++)
            for (i64 i = 0; i < units; i++) {
                i64 at_h = ((b * 2 * G + g) * N + n + i) * D, at_c = at_h + G * N * D;
                FN(block_mix)(D, bf16, S, at_h, at_c, A + i, s, r);
                if (i + 1 < units) /* while the processor sums, fetch the next row of both parts */
                    for (i64 byte = 0; byte < D * (i64)sizeof(real) >> bf16; byte += 64) {
                        __builtin_prefetch((const char *)S + ((at_h + D) * (i64)sizeof(real) >> bf16) + byte, 1);
                        __builtin_prefetch((const char *)S + ((at_c + D) * (i64)sizeof(real) >> bf16) + byte, 1);
                    }
                FN(block_sum)(T, D, w + g * UNITS + i, w + (G + g) * UNITS + i, 2 * G * UNITS, r + D, s, r);
                FN(block_store)(D, bf16, S, at_h, s);
                FN(block_store)(D, bf16, S, at_c, r);
            }
    }
}

/* S [B,2,K,N], l [T,B,2,K,N]. */
void FN(rtrl_block_advance_vector)(i64 T, i64 B, i64 K, i64 N, i64 threads, real *S, const real *J, const real *l) {
    int size = team(T * B * 2 * K * N, threads);
#pragma omp parallel for schedule(static) num_threads(size) if (size > 1)
    for (i64 b = 0; b < B; b++)
        for (i64 t = 0; t < T; t++)
            for (i64 k = 0; k < K; k++) {
                real *restrict h = S + (b * 2 * K + k) * N, *restrict c = h + K * N;
                const real *restrict j = J + (t * B + b) * 4 * N;
                const real *restrict lh = l + ((t * B + b) * 2 * K + k) * N, *restrict lc = lh + K * N;
#pragma omp simd
                for (i64 n = 0; n < N; n++) {
                    real p = h[n], q = c[n];
                    h[n] = j[n] * p + j[N + n] * q + lh[n];
                    c[n] = j[2 * N + n] * p + j[3 * N + n] * q + lc[n];
                }
            }
}

/* grad[g,n,d] = sum_i boundary[i,:,n] S[index[i],:,g,n,d]; index NULL means i itself. Rows of grad are split over
   threads. */
void FN(rtrl_block_boundary)(i64 count, i64 G, i64 N, i64 D, i64 threads, i64 bf16, const void *S, const real *boundary,
                             const i64 *index, real *grad) {
    int size = team(2 * count * G * N * D, threads);
#pragma omp parallel for schedule(static) num_threads(size) if (size > 1)
    for (i64 row = 0; row < G * N; row++) {
        real *restrict to = grad + row * D;
        memset(to, 0, sizeof(real) * D);
        for (i64 i = 0; i < 2 * count; i++) { /* copy i / 2, part i % 2 */
            real scale = boundary[i * N + row % N];
            i64 at = (((index ? index[i / 2] : i / 2) * 2 + i % 2) * G * N + row) * D;
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
