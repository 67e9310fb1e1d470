/* h_t = a_t (m_t h_{t-1}) + b_t, forward and backward, real and complex (interleaved). A block of copies runs over all
   steps: the more of them lie side by side, the longer the runs of memory that are read and written at a time, as long as
   one step of the block stays in the first cache. Every element is independent of the others, so neither the blocks nor the
   threads change anything. With `reverse` the steps
   run from the last to the first; "previous" and "next" below are in running order. */
#ifndef SCAN_BYTES
#define SCAN_BYTES 8192 /* of one array, per step of a block */
#endif

static inline i64 FN(scan_rows)(i64 B, i64 width, i64 threads) {
    i64 fit = MAX(1, SCAN_BYTES / (i64)(sizeof(real) * width));
    return MIN(fit, (B + threads - 1) / threads);
}

/* What step s (time t) reads: h0, the step before, or zeros where the copy is reset or there is no h0. */
static inline const real *FN(scan_previous)(i64 s, i64 t, i64 b, i64 B, i64 width, i64 back, const real *h0,
                                            const real *h, const uint8_t *init, const real *zeros) {
    if (init && init[t * B + b]) return zeros;
    if (s) return h + ((t - back) * B + b) * width;
    return h0 ? h0 + b * width : zeros;
}

static inline void FN(scan_row)(i64 n, const real *restrict a, const real *restrict b, const real *restrict p,
                                real *restrict h) {
#pragma omp simd
    for (i64 i = 0; i < n; i++) h[i] = a[i] * p[i] + b[i];
}

static inline void FN(scan_row_complex)(i64 n, const real *restrict a, const real *restrict b, const real *restrict p,
                                        real *restrict h) {
#pragma omp simd
    for (i64 i = 0; i < n; i += 2) {
        h[i] = a[i] * p[i] - a[i + 1] * p[i + 1] + b[i];
        h[i + 1] = a[i] * p[i + 1] + a[i + 1] * p[i] + b[i + 1];
    }
}

/* width is N, or 2 N numbers if complex. h0 and init may be NULL. */
void FN(diag_scan_forward)(i64 T, i64 B, i64 width, i64 threads, i64 reverse, i64 is_complex, const real *a,
                           const real *b, const real *h0, const uint8_t *init, const real *zeros, real *h) {
    i64 back = reverse ? -1 : 1, size = team(T * B * width, threads), rows = FN(scan_rows)(B, width, size);
#pragma omp parallel for schedule(static) num_threads(size) if (size > 1)
    for (i64 first = 0; first < B; first += rows)
        for (i64 s = 0; s < T; s++)
            for (i64 row = first; row < MIN(B, first + rows); row++) {
                i64 t = reverse ? T - 1 - s : s, at = (t * B + row) * width;
                const real *p = FN(scan_previous)(s, t, row, B, width, back, h0, h, init, zeros);
                if (is_complex) FN(scan_row_complex)(width, a + at, b + at, p, h + at);
                else FN(scan_row)(width, a + at, b + at, p, h + at);
            }
}

static inline void FN(scan_back_row)(i64 n, real keep, const real *restrict a, const real *restrict p,
                                     const real *restrict dh, real *restrict carry, real *restrict da,
                                     real *restrict db) {
#pragma omp simd
    for (i64 i = 0; i < n; i++) {
        real d = carry[i] + dh[i];
        db[i] = d;
        da[i] = d * p[i];
        carry[i] = keep * (d * a[i]);
    }
}

static inline void FN(scan_back_row_complex)(i64 n, real keep, const real *restrict a, const real *restrict p,
                                             const real *restrict dh, real *restrict carry, real *restrict da,
                                             real *restrict db) {
#pragma omp simd
    for (i64 i = 0; i < n; i += 2) {
        real x = carry[i] + dh[i], y = carry[i + 1] + dh[i + 1];
        db[i] = x;
        db[i + 1] = y;
        da[i] = x * p[i] + y * p[i + 1];
        da[i + 1] = y * p[i] - x * p[i + 1];
        carry[i] = keep * (x * a[i] + y * a[i + 1]);
        carry[i + 1] = keep * (y * a[i] - x * a[i + 1]);
    }
}

/* dh or dfinal may be NULL (no gradient from there); dh0 doubles as the running carry. */
void FN(diag_scan_backward)(i64 T, i64 B, i64 width, i64 threads, i64 reverse, i64 is_complex, const real *a,
                            const real *h0, const uint8_t *init, const real *zeros, const real *h, const real *dh,
                            const real *dfinal, real *da, real *db, real *dh0) {
    i64 back = reverse ? -1 : 1, size = team(T * B * width, threads), rows = FN(scan_rows)(B, width, size);
#pragma omp parallel for schedule(static) num_threads(size) if (size > 1)
    for (i64 first = 0; first < B; first += rows) {
        i64 last = MIN(B, first + rows);
        if (dfinal) memcpy(dh0 + first * width, dfinal + first * width, sizeof(real) * (last - first) * width);
        else memset(dh0 + first * width, 0, sizeof(real) * (last - first) * width);
        for (i64 s = T - 1; s >= 0; s--)
            for (i64 row = first; row < last; row++) {
                i64 t = reverse ? T - 1 - s : s, at = (t * B + row) * width;
                const real *p = FN(scan_previous)(s, t, row, B, width, back, h0, h, init, zeros);
                const real *d = dh ? dh + at : zeros;
                real keep = init && init[t * B + row] ? 0 : 1;
                if (is_complex) FN(scan_back_row_complex)(width, keep, a + at, p, d, dh0 + row * width, da + at, db + at);
                else FN(scan_back_row)(width, keep, a + at, p, d, dh0 + row * width, da + at, db + at);
            }
    }
}
