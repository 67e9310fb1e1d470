/* The carry of RTRL, moved by the local derivatives; see sequence.c. */

/* s [PARTS,GATES+CARRIED,N] <- J s + (l, k), the carry of biases and weights of one copy; top collects the largest |J|. */
static inline void RECURRENCE_small(i64 width, i64 stride, i64 rows, const real *J, const real *l, const real *k, real *s,
                                    real *top) {
    for (i64 i = 0; i < PARTS * PARTS; i++) {
        const real *restrict j = J + i * stride;
#pragma omp simd
        for (i64 n = 0; n < width; n++) {
            real size = ABS(j[n]);
            top[n] = size <= top[n] ? top[n] : size;
        }
    }
    const real one = 1;
    for (i64 m = 0; m < GATES; m++)
        RECURRENCE_mix(width, stride, 1, &one, rows, GATES, J, l + m * stride, s + m * stride);
    for (i64 m = 0; m < CARRIED; m++)
        RECURRENCE_mix(width, stride, 1, &one, rows, CARRIED, J, k + m * stride, s + (GATES + m) * stride);
}

/* J and l as `local` has them, and in the same pass s [B,PARTS,GATES+CARRIED,N] is advanced. top [blocks,N]; scratch
   [blocks,PARTS,CARRIED,N]. */
void FN(RECURRENCE_trace)(i64 T, i64 B, i64 N, i64 threads, const real *u, const real *v, real *w, const real *state,
                          const uint8_t *init, const real *zeros, real *J, real *l, real *s, real *top, real *scratch) {
    i64 blocks = (B + ROWS - 1) / ROWS;
    RECURRENCE_hoist(N, v, w);
#pragma omp parallel for schedule(static) num_threads(team(T * B * N, threads)) if (team(T * B * N, threads) > 1)
    for (i64 block = 0; block < blocks; block++) {
        real *k = scratch + block * PARTS * CARRIED * N;
        memset(top + block * N, 0, sizeof(real) * N);
        for (i64 t = 0; t < T; t++)
            for (i64 b = block * ROWS; b < MIN(B, block * ROWS + ROWS); b++) {
                i64 at = t * B + b;
                const real *p[PARTS];
                real *j = J + at * PARTS * PARTS * N, *g = l + at * PARTS * GATES * N;
                for (i64 i = 0; i < PARTS; i++) p[i] = init[at] ? zeros : state + (at * PARTS + i) * N;
                RECURRENCE_local_row(N, N, N, init[at] ? 0 : 1, u + at * GATES * N, v, w, p, j, g, k);
                RECURRENCE_small(N, N, GATES + CARRIED, j, g, k, s + b * PARTS * (GATES + CARRIED) * N, top + block * N);
            }
    }
}

/* The whole carry for a narrow input, D <= NARROW: nothing but x, the states and S is read or written. S [B,PARTS,GATES,
   N,D] (uint16 bf16 if bf16) and s in place, weight [D,GATES,N], bias [GATES,N]. boundary [B,PARTS,N] or NULL; partial
   [groups,GATES,D,N] and partial_s [groups,GATES+CARRIED,N] are what it takes from each group of copies; top [groups,N]. */
void FN(RECURRENCE_narrow)(i64 T, i64 B, i64 D, i64 N, i64 threads, i64 bf16, i64 group, void *S, real *s, const real *x,
                           const real *weight, const real *bias, const real *v, real *w, const real *state,
                           const uint8_t *init, const real *zeros, const real *boundary, real *partial, real *partial_s,
                           real *top) {
    enum { ALL = GATES + CARRIED };
    i64 groups = (B + group - 1) / group, tiles = (N + UNITS - 1) / UNITS;
    RECURRENCE_hoist(N, v, w);
#pragma omp parallel for schedule(static) num_threads(team(T * B * N, threads)) if (team(T * B * N, threads) > 1)
    for (i64 piece = 0; piece < groups * tiles; piece++) {
        i64 g = piece / tiles, n0 = piece % tiles * UNITS, width = MIN(UNITS, N - n0);
        real *grad = boundary ? partial + g * GATES * D * N : NULL, *grad_s = boundary ? partial_s + g * ALL * N : NULL;
        real u[GATES * UNITS], J[PARTS * PARTS * UNITS], l[PARTS * GATES * UNITS], k[(PARTS * CARRIED + 1) * UNITS];
        real tile[PARTS * GATES * NARROW * UNITS], small[PARTS * ALL * UNITS];
        memset(top + g * N + n0, 0, sizeof(real) * width);
        if (grad) {
            for (i64 row = 0; row < GATES * D; row++) memset(grad + row * N + n0, 0, sizeof(real) * width);
            for (i64 row = 0; row < ALL; row++) memset(grad_s + row * N + n0, 0, sizeof(real) * width);
        }
        for (i64 b = g * group; b < MIN(B, (g + 1) * group); b++) {
            for (i64 row = 0; row < PARTS * GATES; row++)
                FN(transpose_in)(tile + row * NARROW * UNITS, UNITS, S, ((b * PARTS * GATES + row) * N + n0) * D, width, D,
                                 bf16);
            for (i64 row = 0; row < PARTS * ALL; row++)
                memcpy(small + row * UNITS, s + (b * PARTS * ALL + row) * N + n0, sizeof(real) * width);
            for (i64 i = 0; grad && i < PARTS; i++) {
                const real *restrict e = boundary + (b * PARTS + i) * N + n0;
                for (i64 row = 0; row < GATES * D; row++) {
                    const real *restrict from = tile + ((i * GATES + row / D) * NARROW + row % D) * UNITS;
                    real *restrict to = grad + row * N + n0;
                    for (i64 n = 0; n < width; n++) to[n] += e[n] * from[n];
                }
                for (i64 row = 0; row < ALL; row++)
                    for (i64 n = 0; n < width; n++) grad_s[row * N + n0 + n] += e[n] * small[(i * ALL + row) * UNITS + n];
            }
            for (i64 t = 0; t < T; t++) {
                i64 at = t * B + b;
                const real *p[PARTS];
                for (i64 i = 0; i < PARTS; i++) p[i] = init[at] ? zeros : state + (at * PARTS + i) * N + n0;
                for (i64 row = 0; row < GATES; row++) {
                    real *restrict to = u + row * UNITS;
                    memcpy(to, bias + row * N + n0, sizeof(real) * width);
                    for (i64 d = 0; d < D; d++) {
                        const real *restrict from = weight + (d * GATES + row) * N + n0;
                        real scale = x[at * D + d];
#pragma omp simd
                        for (i64 n = 0; n < width; n++) to[n] += from[n] * scale;
                    }
                }
                RECURRENCE_local_row(width, UNITS, N, init[at] ? 0 : 1, u, v + n0, w + n0, p, J, l, k);
                RECURRENCE_small(width, UNITS, ALL, J, l, k, small, top + g * N + n0);
                RECURRENCE_outer(width, UNITS, D, x + at * D, GATES * NARROW, GATES, J, l, tile);
            }
            for (i64 row = 0; row < PARTS * GATES; row++)
                FN(transpose_out)(S, ((b * PARTS * GATES + row) * N + n0) * D, tile + row * NARROW * UNITS, UNITS, width, D,
                                  bf16);
            for (i64 row = 0; row < PARTS * ALL; row++)
                memcpy(s + (b * PARTS * ALL + row) * N + n0, small + row * UNITS, sizeof(real) * width);
        }
    }
}
