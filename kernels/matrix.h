/* Matrix products in tiles of registers, written with gcc's vector extensions. Sums over k or over rows run in order, so
   a result depends neither on the threads nor on how many rows are computed together. */
#pragma GCC push_options
#pragma GCC optimize("O3") /* tiles live in registers once their loops are unrolled */
#define WIDE ((i64)(VECTOR_BYTES / sizeof(real)))
#define PADDED(n) (((n) + WIDE - 1) / WIDE * WIDE)
typedef real FN(wide) __attribute__((vector_size(VECTOR_BYTES), aligned(sizeof(real)), may_alias));

static inline FN(wide) FN(load)(const real *p) { return *(const FN(wide) *)p; }

/* The first `count` numbers, then zeros. */
static inline FN(wide) FN(load_some)(const real *p, i64 count) {
    FN(wide) v = {0};
    memcpy(&v, p, sizeof(real) * MIN(count, WIDE));
    return v;
}

/* The first `count` numbers of v. */
static inline void FN(store_some)(real *p, FN(wide) v, i64 count) {
    if (count == WIDE) *(FN(wide) *)p = v;
    else memcpy(p, &v, sizeof(real) * count); /* of a copy, so that sums stay in registers */
}

/* y[r, 0:columns] = init[r] + x[r, 0:K] w[0:K] for R rows and V vectors of columns. Rows of w can be read up to V vectors;
   `columns` may be less if V is 1. init NULL is zero. */
static inline __attribute__((always_inline)) void FN(product_tile)(
    const int R, const int V, i64 K, const real *x, i64 xs, const real *w, i64 ws, const real *init, i64 is, real *y,
    i64 ys, i64 columns) {
    FN(wide) sum[8][4];
    const int whole = columns >= V * WIDE;
    for (int r = 0; r < R; r++)
        for (int v = 0; v < V; v++)
            sum[r][v] = !init ? (FN(wide)){0} : whole ? FN(load)(init + r * is + v * WIDE) : FN(load_some)(init + r * is, columns);
    for (i64 k = 0; k < K; k++) {
        FN(wide) b[4];
#pragma GCC unroll 4
        for (int v = 0; v < V; v++) b[v] = FN(load)(w + k * ws + v * WIDE);
#pragma GCC unroll 8
        for (int r = 0; r < R; r++)
#pragma GCC unroll 4
            for (int v = 0; v < V; v++) sum[r][v] += x[r * xs + k] * b[v];
    }
    for (int r = 0; r < R; r++)
        for (int v = 0; v < V; v++)
            FN(store_some)(y + r * ys + v * WIDE, sum[r][v], whole ? WIDE : columns);
}

/* y[M, N] = init + x[M, K] w[K, N]. Rows of x, w, init and y lie xs, ws, is and ys apart; a row of w can be read up to
   PADDED(N). is = 0: the same for all rows. y may be init. */
SHARED FN(product)(i64 M, i64 K, i64 N, const real *x, i64 xs, const real *w, i64 ws, const real *init, i64 is, real *y,
                   i64 ys) {
    enum { ROWS_AT_ONCE = 64 }; /* whose x stays in the first cache while all columns are gone through */
    for (i64 first = 0; first < M; first += ROWS_AT_ONCE) {
        const i64 end = MIN(M, first + ROWS_AT_ONCE);
        for (i64 n = 0; n < N;) {
            const i64 left = N - n, V = end - first == 1 && left >= 4 * WIDE ? 4 : left >= 2 * WIDE ? 2 : 1;
            i64 m = first;
#define TILE_AT(R, C) \
    FN(product_tile)(R, C, K, x + m * xs, xs, w + n, ws, init ? init + m * is + n : NULL, is, y + m * ys + n, ys, MIN(left, C * WIDE))
            if (V == 4) TILE_AT(1, 4);
            else if (V == 2) {
                if (WIDE_MACHINE)
                    for (; m + 8 <= end; m += 8) TILE_AT(8, 2);
                for (; m + 4 <= end; m += 4) TILE_AT(4, 2);
                for (; m < end; m++) TILE_AT(1, 2);
            } else {
                for (; m + 8 <= end; m += 8) TILE_AT(8, 1);
                for (; m < end; m++) TILE_AT(1, 1);
            }
#undef TILE_AT
            n += V * WIDE;
        }
    }
}

/* to[r, 0:columns] += sum_m a[m, r] x[m, 0:columns] for R rows and V vectors; from row `safe` on x is read from `rest`. */
static inline __attribute__((always_inline)) void FN(outer_tile)(const int R, const int V, i64 M, i64 safe, const real *a,
                                                                 i64 as, const real *x, i64 xs, const real *rest, real *to,
                                                                 i64 ts, i64 columns) {
    FN(wide) sum[8][2];
    const int whole = columns >= V * WIDE;
    for (int r = 0; r < R; r++)
        for (int v = 0; v < V; v++) sum[r][v] = whole ? FN(load)(to + r * ts + v * WIDE) : FN(load_some)(to + r * ts, columns);
    for (i64 m = 0; m < M; m++) {
        const real *row = m < safe ? x + m * xs : rest + (m - safe) * WIDE;
        FN(wide) b[2];
#pragma GCC unroll 2
        for (int v = 0; v < V; v++) b[v] = FN(load)(row + v * WIDE);
#pragma GCC unroll 8
        for (int r = 0; r < R; r++)
#pragma GCC unroll 2
            for (int v = 0; v < V; v++) sum[r][v] += a[m * as + r] * b[v];
    }
    for (int r = 0; r < R; r++)
        for (int v = 0; v < V; v++)
            FN(store_some)(to + r * ts + v * WIDE, sum[r][v], whole ? WIDE : columns);
}

/* to[N, K] += a[M, N]^T x[M, K], for the rows of `to` from `first` to `end`. Nothing behind the last
   row of x is read. */
SHARED FN(outer_sum)(i64 M, i64 first, i64 end, i64 K, const real *a, i64 as, const real *x, i64 xs, real *to, i64 ts) {
    enum { ROWS_AT_ONCE = 256 };
    for (i64 from = 0; from < M; from += ROWS_AT_ONCE) {
        const i64 rows = MIN(M - from, ROWS_AT_ONCE);
        const real *am = a + from * as, *xm = x + from * xs;
        for (i64 k = 0; k < K;) {
            const i64 left = K - k, V = left >= 2 * WIDE ? 2 : 1;
            real rest[VECTOR_BYTES / sizeof(real)][VECTOR_BYTES / sizeof(real)]; /* rows whose vectors would end behind x */
            const i64 safe = left >= WIDE ? rows : MAX(0, rows - (WIDE - left - 1) / xs - 1);
            for (i64 m = safe; m < rows; m++) *(FN(wide) *)rest[m - safe] = FN(load_some)(xm + m * xs + k, left);
            i64 n = first;
#define TILE_AT(R, C) \
    FN(outer_tile)(R, C, rows, safe, am + n, as, xm + k, xs, rest[0], to + n * ts + k, ts, MIN(left, C * WIDE))
            if (V == 2) {
                if (WIDE_MACHINE)
                    for (; n + 8 <= end; n += 8) TILE_AT(8, 2);
                for (; n + 4 <= end; n += 4) TILE_AT(4, 2);
                for (; n < end; n++) TILE_AT(1, 2);
            } else {
                for (; n + 8 <= end; n += 8) TILE_AT(8, 1);
                for (; n < end; n++) TILE_AT(1, 1);
            }
#undef TILE_AT
            k += V * WIDE;
        }
    }
}
/* y[n] = init[n] + the product of row n of w [N, K] and x [K]: for one x, whatever w would have to be packed for. */
SHARED FN(dots)(i64 N, i64 K, const real *w, const real *x, const real *init, real *y) {
    enum { AT_ONCE = 4 };
    const i64 whole = K / WIDE * WIDE;
    for (i64 n = 0; n < N; n += AT_ONCE) {
        const i64 rows = MIN(AT_ONCE, N - n);
        const real *row[AT_ONCE];
        for (int r = 0; r < AT_ONCE; r++) row[r] = w + (n + MIN(r, rows - 1)) * K;
        real parts[AT_ONCE][VECTOR_BYTES / sizeof(real)] = {{0}};
        if (whole) {
            FN(wide) sum[AT_ONCE] = {{0}};
            for (i64 k = 0; k < whole; k += WIDE)
#pragma GCC unroll 4
                for (int r = 0; r < AT_ONCE; r++) sum[r] += FN(load)(row[r] + k) * FN(load)(x + k);
            memcpy(parts, sum, sizeof parts);
            for (i64 half = WIDE / 2; half; half /= 2)
                for (int r = 0; r < AT_ONCE; r++)
                    for (i64 i = 0; i < half; i++) parts[r][i] += parts[r][i + half];
        }
        for (i64 k = whole; k < K; k++)
#pragma GCC unroll 4
            for (int r = 0; r < AT_ONCE; r++) parts[r][0] += row[r][k] * x[k];
        for (i64 r = 0; r < rows; r++) y[n + r] = init[n + r] + parts[r][0];
    }
}
#pragma GCC pop_options
