/* The loops around the generated rows of one recurrence, whose numbers PARTS, GATES, VECTORS (weights a unit), CARRIED (of
   them, those that the carry covers), HOISTED and KEPT are filled in. Work is split over blocks of ROWS copies whatever
   the number of threads, and sums over copies are made block by block in order, so results do not depend on it.
   u [T,B,GATES,N], v [VECTORS,N], w [HOISTED,N] scratch, first [B,PARTS,N], init [T,B], states [PARTS,T,B,N] after each
   step, state [T,B,PARTS,N] before each step and before any reset, kept [T,B,KEPT,N], or scratch [blocks,KEPT,N] if not
   `keep`. */

/* The parts of the state that step t of copy b reads: the first, those of the step before, or zeros where it is reset. */
static inline void RECURRENCE_before(i64 t, i64 b, i64 T, i64 B, i64 N, const real *first, const real *states,
                                     const uint8_t *init, const real *zeros, const real **p) {
    for (i64 i = 0; i < PARTS; i++)
        p[i] = init[t * B + b] ? zeros : t ? states + ((i * T + t - 1) * B + b) * N : first + (b * PARTS + i) * N;
}

void FN(RECURRENCE_forward)(i64 T, i64 B, i64 N, i64 threads, i64 keep, const real *u, const real *v, real *w,
                            const real *first, const uint8_t *init, const real *zeros, real *states, real *kept) {
    RECURRENCE_hoist(N, v, w);
#pragma omp parallel for schedule(static) num_threads(team(T * B * N, threads)) if (team(T * B * N, threads) > 1)
    for (i64 block = 0; block < B; block += ROWS)
        for (i64 t = 0; t < T; t++)
            for (i64 b = block; b < MIN(B, block + ROWS); b++) {
                const real *p[PARTS];
                real *a[PARTS];
                RECURRENCE_before(t, b, T, B, N, first, states, init, zeros, p);
                for (i64 i = 0; i < PARTS; i++) a[i] = states + ((i * T + t) * B + b) * N;
                RECURRENCE_forward_row(N, N, u + (t * B + b) * GATES * N, v, w, p, a,
                                       kept + (keep ? t * B + b : block / ROWS) * KEPT * N);
            }
}

/* e: the gradients of the parts after each step, [T,B,N] each or NULL; last [B,PARTS,N], that of the state after the last
   step, or NULL. partial is [blocks,VECTORS,N]; dfirst doubles as the running gradient. */
void FN(RECURRENCE_backward)(i64 T, i64 B, i64 N, i64 threads, const real *u, const real *v, real *w, const real *first,
                             const uint8_t *init, const real *zeros, const real *states, const real *kept,
                             const real *const *e, const real *last, real *du, real *partial, real *dv, real *dfirst) {
    i64 blocks = (B + ROWS - 1) / ROWS;
    RECURRENCE_hoist(N, v, w);
#pragma omp parallel for schedule(static) num_threads(team(T * B * N, threads)) if (team(T * B * N, threads) > 1)
    for (i64 block = 0; block < blocks; block++) {
        i64 begin = block * ROWS, end = MIN(B, begin + ROWS);
        real *sum = partial + block * VECTORS * N;
        memset(sum, 0, sizeof(real) * VECTORS * N);
        if (last) memcpy(dfirst + begin * PARTS * N, last + begin * PARTS * N, sizeof(real) * (end - begin) * PARTS * N);
        else memset(dfirst + begin * PARTS * N, 0, sizeof(real) * (end - begin) * PARTS * N);
        for (i64 t = T - 1; t >= 0; t--)
            for (i64 b = begin; b < end; b++) {
                i64 at = t * B + b;
                const real *p[PARTS], *a[PARTS], *d[PARTS];
                RECURRENCE_before(t, b, T, B, N, first, states, init, zeros, p);
                for (i64 i = 0; i < PARTS; i++) {
                    a[i] = states + (i * T * B + at) * N;
                    d[i] = e[i] ? e[i] + at * N : zeros;
                }
                RECURRENCE_backward_row(N, N, init[at] ? 0 : 1, u + at * GATES * N, v, w, p, a,
                                        kept + at * KEPT * N, d, dfirst + b * PARTS * N,
                                        du + at * GATES * N, sum);
            }
    }
    memset(dv, 0, sizeof(real) * VECTORS * N);
    for (i64 block = 0; block < blocks; block++)
        for (i64 n = 0; n < VECTORS * N; n++) dv[n] += partial[block * VECTORS * N + n];
}

/* J [T,B,PARTS,PARTS,N]: of the state after each step by that before it, zero where it was reset; l [T,B,PARTS,GATES,N]
   and k [T,B,PARTS,CARRIED,N]: by the drives and the weights. */
void FN(RECURRENCE_local)(i64 T, i64 B, i64 N, i64 threads, const real *u, const real *v, real *w, const real *state,
                          const uint8_t *init, const real *zeros, real *J, real *l, real *k) {
    RECURRENCE_hoist(N, v, w);
#pragma omp parallel for schedule(static) num_threads(team(T * B * N, threads)) if (team(T * B * N, threads) > 1)
    for (i64 at = 0; at < T * B; at++) {
        const real *p[PARTS];
        for (i64 i = 0; i < PARTS; i++) p[i] = init[at] ? zeros : state + (at * PARTS + i) * N;
        RECURRENCE_local_row(N, N, N, init[at] ? 0 : 1, u + at * GATES * N, v, w, p, J + at * PARTS * PARTS * N,
                             l + at * PARTS * GATES * N, k + at * PARTS * CARRIED * N);
    }
}

/* For code that is compiled itself and steps by address (`Recurrence.acting`): w [HOISTED,N] from v, after every change of
   v; and one step of B copies, in this thread. u [B,GATES,N], state and next [B,PARTS,N], which do not overlap. Copies are
   independent: any of them may be stepped apart, in any thread. */
void FN(RECURRENCE_prepare)(i64 N, const real *v, real *w) { RECURRENCE_hoist(N, v, w); }

void FN(RECURRENCE_act)(i64 B, i64 N, const real *u, const real *v, const real *w, const real *state, const uint8_t *init,
                        const real *zeros, real *next) {
    real kept[KEPT * N + 1]; /* for the backward pass, which does not follow */
    for (i64 b = 0; b < B; b++) {
        const real *p[PARTS];
        real *a[PARTS];
        for (i64 i = 0; i < PARTS; i++) {
            p[i] = init[b] ? zeros : state + (b * PARTS + i) * N;
            a[i] = next + (b * PARTS + i) * N;
        }
        RECURRENCE_forward_row(N, N, u + b * GATES * N, v, w, p, a, kept);
    }
}
