/* RTRL carry: S <- A S + sum_t (P_t l_t) x_t^T, and the boundary gradient sum_b boundary S_old, in one pass over S.
   Work is split into (group of copies) x (STATE_ROWS states) x (`columns` inputs) whatever the number of threads, and the
   gradient is summed within a group, then over groups, in order. Vectors are gcc vector extensions of LANES elements. */
#pragma GCC optimize("O3") /* the tiles of accumulators live in registers once their loops are unrolled */
#undef LANES
#undef VECTOR
#undef PANEL
#undef STRIP
#define LANES ((i64)(VECTOR_BYTES / sizeof(real)))
#define VECTOR FN(rtrl_vector)
#define PANEL ((i64)(256 / sizeof(real))) /* columns of S that are packed together, as in cpu.py */
#define STRIP (4 * LANES)                 /* those of them updated by one call of the micro-kernel */
#ifndef STATE_ROWS
#define STATE_ROWS 64
#define TILE (WIDE_MACHINE ? 4 : 2)
#define GRADIENT_ROWS 16
#endif

typedef real VECTOR __attribute__((vector_size(VECTOR_BYTES), aligned(sizeof(real)), may_alias));

static inline VECTOR FN(rtrl_load)(const real *p) { return *(const VECTOR *)p; }

static inline void FN(rtrl_store)(real *p, VECTOR v) { *(VECTOR *)p = v; }

#if SINGLE
typedef uint16_t rtrl_half __attribute__((vector_size(VECTOR_BYTES / 2), aligned(2), may_alias));
typedef uint32_t rtrl_word __attribute__((vector_size(VECTOR_BYTES), aligned(4), may_alias));

static inline VECTOR rtrl_load_bf16(const uint16_t *p) {
    return (VECTOR)(__builtin_convertvector(*(const rtrl_half *)p, rtrl_word) << 16);
}

/* Round to nearest even; NaN keeps its quiet bit. */
static inline void rtrl_store_bf16(uint16_t *p, VECTOR v) {
    rtrl_word w = (rtrl_word)v;
    rtrl_word rounded = (w + 0x7fff + ((w >> 16) & 1)) >> 16;
    rtrl_word isnan = (rtrl_word)(v != v);
    *(rtrl_half *)p = __builtin_convertvector((rounded & ~isnan) | (((w >> 16) | 0x40) & isnan), rtrl_half);
}
#endif

/* Copies `width` <= PANEL stored elements to a panel-wide row in compute precision, and back. */
static inline void FN(rtrl_unpack)(real *to, const void *from, i64 offset, i64 width, i64 bf16) {
#if SINGLE
    if (bf16) {
        const uint16_t *source = (const uint16_t *)from + offset;
        for (i64 d = 0; d < width; d++) to[d] = float_of_bf16(source[d]);
        return;
    }
#endif
    memcpy(to, (const real *)from + offset, sizeof(real) * width);
}

static inline void FN(rtrl_pack)(void *to, const real *from, i64 offset, i64 width, i64 bf16) {
#if SINGLE
    if (bf16) {
        uint16_t *target = (uint16_t *)to + offset;
        for (i64 d = 0; d < width; d++) target[d] = bf16_of(from[d]);
        return;
    }
#endif
    memcpy((real *)to + offset, from, sizeof(real) * width);
}

/* `rows` <= TILE rows by STRIP columns: new = A old + sum_t w[t] x[t], grad += boundary old. w has stride ws over t,
   x is a packed panel. `rows` is a constant at every call, so the accumulators live in registers. */
static inline __attribute__((always_inline)) void FN(rtrl_tile)(
    const int rows, const int bf16, i64 T, const real *A, const real *w, i64 ws, const real *x, const real *boundary,
    const void *old, void *new, i64 offset, i64 stride, real *grad, i64 grad_stride) {
    VECTOR sum[TILE][4];
#pragma GCC unroll 4
    for (int r = 0; r < rows; r++)
#pragma GCC unroll 4
        for (int k = 0; k < 4; k++) {
            i64 at = offset + r * stride + k * LANES;
            VECTOR s;
#if SINGLE
            if (bf16) s = rtrl_load_bf16((const uint16_t *)old + at);
            else
#endif
                s = FN(rtrl_load)((const real *)old + at);
            sum[r][k] = s * A[r];
            if (grad) {
                real *g = grad + r * grad_stride + k * LANES;
                FN(rtrl_store)(g, FN(rtrl_load)(g) + s * boundary[r]);
            }
        }
    for (i64 t = 0; t < T; t++) {
        VECTOR x0 = FN(rtrl_load)(x + t * PANEL), x1 = FN(rtrl_load)(x + t * PANEL + LANES);
        VECTOR x2 = FN(rtrl_load)(x + t * PANEL + 2 * LANES), x3 = FN(rtrl_load)(x + t * PANEL + 3 * LANES);
#ifdef __AVX512F__ /* keep gcc from reloading x for every row */
        __asm__("" : "+v"(x0), "+v"(x1), "+v"(x2), "+v"(x3));
#endif
#pragma GCC unroll 4
        for (int r = 0; r < rows; r++) {
            real scale = w[t * ws + r];
            sum[r][0] += x0 * scale;
            sum[r][1] += x1 * scale;
            sum[r][2] += x2 * scale;
            sum[r][3] += x3 * scale;
        }
    }
#pragma GCC unroll 4
    for (int r = 0; r < rows; r++)
#pragma GCC unroll 4
        for (int k = 0; k < 4; k++) {
            i64 at = offset + r * stride + k * LANES;
#if SINGLE
            if (bf16) rtrl_store_bf16((uint16_t *)new + at, sum[r][k]);
            else
#endif
                FN(rtrl_store)((real *)new + at, sum[r][k]);
        }
}

/* A ragged tile goes through a small buffer. */
static void FN(rtrl_edge)(i64 rows, i64 width, i64 bf16, i64 T, const real *A, const real *w, i64 ws, const real *x,
                          const real *boundary, const void *old, void *new, i64 offset, i64 stride, real *grad,
                          i64 grad_stride) {
    real from[PANEL], to[PANEL];
    memset(from, 0, sizeof from);
    for (i64 r = 0; r < rows; r++) {
        FN(rtrl_unpack)(from, old, offset + r * stride, width, bf16);
        for (i64 c = 0; c < width; c += STRIP)
            FN(rtrl_tile)(1, 0, T, A + r, w + r, ws, x + c, boundary ? boundary + r : NULL, from, to, c, 0, NULL, 0);
        if (grad)
            for (i64 d = 0; d < width; d++) grad[r * grad_stride + d] += boundary[r] * from[d];
        FN(rtrl_pack)(new, to, offset + r * stride, width, bf16);
    }
}

static inline void FN(rtrl_rows)(i64 rows, i64 width, i64 bf16, i64 T, const real *A, const real *w, i64 ws,
                                 const real *x, const real *boundary, const void *old, void *new, i64 offset,
                                 i64 stride, real *grad, i64 grad_stride) {
    i64 r = 0;
    if (width == PANEL)
        for (; r + TILE <= rows; r += TILE) {
            real *g = grad ? grad + r * grad_stride : NULL;
            const real *e = boundary ? boundary + r : NULL;
            for (i64 k = r + TILE; k < MIN(rows, r + 2 * TILE); k++) /* the next tile: rows lie apart */
                for (i64 byte = 0; byte < (i64)sizeof(real) * PANEL >> bf16; byte += 64)
                    __builtin_prefetch((const char *)old + ((offset + k * stride) * (i64)sizeof(real) >> bf16) + byte, 1);
            for (i64 c = 0; c < PANEL; c += STRIP) {
                const i64 at = offset + r * stride + c;
                real *gc = g ? g + c : NULL;
                if (bf16) FN(rtrl_tile)(TILE, 1, T, A + r, w + r, ws, x + c, e, old, new, at, stride, gc, grad_stride);
                else FN(rtrl_tile)(TILE, 0, T, A + r, w + r, ws, x + c, e, old, new, at, stride, gc, grad_stride);
            }
        }
    if (r < rows)
        FN(rtrl_edge)(rows - r, width, bf16, T, A + r, w + r, ws, x, boundary ? boundary + r : NULL, old, new,
                      offset + r * stride, stride, grad ? grad + r * grad_stride : NULL, grad_stride);
}

/* to[j] += scale[j * step] S[at + j] for `count` stored numbers; step is 0 or 1. */
static inline __attribute__((always_inline)) void FN(rtrl_add)(i64 count, i64 bf16, const void *S, i64 at,
                                                               const real *restrict scale, const int step,
                                                               real *restrict to) {
#if SINGLE
    if (bf16) {
        const uint16_t *restrict from = (const uint16_t *)S + at;
#pragma omp simd
        for (i64 j = 0; j < count; j++) to[j] += scale[j * step] * float_of_bf16(from[j]);
        return;
    }
#endif
    const real *restrict from = (const real *)S + at;
#pragma omp simd
    for (i64 j = 0; j < count; j++) to[j] += scale[j * step] * from[j];
}

/* old, new [B,G,N,D] (may be the same memory; uint16 bf16 if bf16), a [T,B,N], l [T,B,G,N], x [T,B,D], boundary [B,N] or
   NULL, partial [groups,G,N,D] the boundary gradient of each group of copies, or NULL. Scratch: packed [B, D up to PANEL,
   T, PANEL], weights [pieces, (1 + T G) STATE_ROWS]. */
void FN(rtrl_advance)(i64 T, i64 B, i64 G, i64 N, i64 D, i64 threads, i64 bf16, i64 columns, i64 group, const void *old,
                      void *new, const real *a, const real *l, const real *x, const real *boundary, real *partial,
                      real *packed, real *weights) {
    i64 panels = (D + PANEL - 1) / PANEL;
    int size = team(B * G * N * D, threads);
#pragma omp parallel num_threads(size) if (size > 1)
    {
#pragma omp for schedule(static)
        for (i64 b = 0; b < B; b++)
            for (i64 p = 0; p < panels; p++)
                for (i64 t = 0; t < T; t++) {
                    i64 width = MIN(PANEL, D - p * PANEL);
                    real *to = packed + ((b * panels + p) * T + t) * PANEL;
                    memcpy(to, x + (t * B + b) * D + p * PANEL, sizeof(real) * width);
                    memset(to + width, 0, sizeof(real) * (PANEL - width));
                }
        i64 row_blocks = (N + STATE_ROWS - 1) / STATE_ROWS, column_blocks = (D + columns - 1) / columns;
        i64 groups = (B + group - 1) / group;
#pragma omp for schedule(static)
        for (i64 piece = 0; piece < groups * row_blocks * column_blocks; piece++) {
            i64 column = piece % column_blocks * columns, n = piece / column_blocks % row_blocks * STATE_ROWS;
            i64 first = piece / column_blocks / row_blocks * group;
            i64 rows = MIN(STATE_ROWS, N - n), width = MIN(D - column, columns);
            real *grad = partial ? partial + piece / column_blocks / row_blocks * G * N * D : NULL;
            if (grad)
                for (i64 g = 0; g < G; g++)
                    for (i64 r = n; r < n + rows; r++) memset(grad + (g * N + r) * D + column, 0, sizeof(real) * width);
            real *A = weights + piece * (1 + T * G) * STATE_ROWS, *w = A + STATE_ROWS;
            for (i64 b = first; b < MIN(B, first + group); b++) {
                for (i64 r = 0; r < rows; r++) A[r] = 1;
                for (i64 t = T - 1; t >= 0; t--) {
                    const real *at = a + (t * B + b) * N + n, *lt = l + (t * B + b) * G * N + n;
                    for (i64 g = 0; g < G; g++)
                        for (i64 r = 0; r < rows; r++) w[(t * G + g) * STATE_ROWS + r] = A[r] * lt[g * N + r];
                    for (i64 r = 0; r < rows; r++) A[r] *= at[r];
                }
                for (i64 g = 0; g < G; g++)
                    for (i64 d = column; d < column + width; d += PANEL)
                        FN(rtrl_rows)(rows, MIN(PANEL, D - d), bf16, T, A, w + g * STATE_ROWS, G * STATE_ROWS,
                                      packed + (b * panels + d / PANEL) * T * PANEL, boundary ? boundary + b * N + n : NULL,
                                      old, new, ((b * G + g) * N + n) * D + d, D,
                                      grad ? grad + (g * N + n) * D + d : NULL, D);
            }
        }
    }
}

/* grad[g,n,d] = sum_i boundary[i,n] S[index[i],g,n,d]; index NULL means i itself. Rows of grad are split over threads; a
   block of rows lies together in memory, so it is one loop over (n, d), with each boundary[i,n] repeated D times. */
void FN(rtrl_boundary)(i64 count, i64 G, i64 N, i64 D, i64 threads, i64 bf16, const void *S, const real *boundary,
                       const i64 *index, real *grad) {
    int size = team(count * G * N * D, threads);
#pragma omp parallel for collapse(2) schedule(static) num_threads(size) if (size > 1)
    for (i64 g = 0; g < G; g++)
        for (i64 block = 0; block < (N + GRADIENT_ROWS - 1) / GRADIENT_ROWS; block++) {
            i64 n = block * GRADIENT_ROWS, rows = MIN(GRADIENT_ROWS, N - n);
            real *restrict to = grad + (g * N + n) * D;
            memset(to, 0, sizeof(real) * rows * D);
            for (i64 i = 0; i < count; i++) {
                i64 at = (((index ? index[i] : i) * G + g) * N + n) * D;
                if (D >= LANES)
                    for (i64 r = 0; r < rows; r++)
                        FN(rtrl_add)(D, bf16, S, at + r * D, boundary + i * N + n + r, 0, to + r * D);
                else {
                    real scale[GRADIENT_ROWS * LANES];
                    for (i64 r = 0; r < rows; r++)
                        for (i64 d = 0; d < D; d++) scale[r * D + d] = boundary[i * N + n + r];
                    FN(rtrl_add)(rows * D, bf16, S, at, scale, 1, to);
                }
            }
        }
}

/* old, new [B,K,N], a [T,B,N], l [T,B,K,N]; grad [K,N] = sum_b boundary old, or NULL. */
void FN(rtrl_advance_vector)(i64 T, i64 B, i64 K, i64 N, i64 threads, const real *old, real *new, const real *a,
                             const real *l, const real *boundary, real *grad) {
    int size = team(T * B * K * N, threads);
    if (grad) {
        memset(grad, 0, sizeof(real) * K * N);
        for (i64 b = 0; b < B; b++)
            for (i64 k = 0; k < K; k++)
                for (i64 n = 0; n < N; n++) grad[k * N + n] += boundary[b * N + n] * old[(b * K + k) * N + n];
    }
#pragma omp parallel for schedule(static) num_threads(size) if (size > 1)
    for (i64 b = 0; b < B; b++) {
        const real *s = old + b * K * N;
        for (i64 t = 0; t < T; t++) {
            const real *restrict at = a + (t * B + b) * N;
            for (i64 k = 0; k < K; k++) {
                const real *from = (t ? new + b * K * N : s) + k * N, *restrict lt = l + ((t * B + b) * K + k) * N;
                real *to = new + (b * K + k) * N;
#pragma omp simd
                for (i64 n = 0; n < N; n++) to[n] = at[n] * from[n] + lt[n];
            }
        }
    }
}
