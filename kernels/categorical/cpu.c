/* Rows of logits lie `stride` apart. Two passes a row: the total, then the first action whose cumulative weight exceeds its share. */
void FN(sample)(i64 M, i64 A, i64 stride, const real *restrict logits, const real *restrict uniform, i64 *restrict action) {
    for (i64 m = 0; m < M; m++) {
        const real *row = logits + m * stride;
        real top = row[0], total = 0, sum = 0;
        for (i64 a = 1; a < A; a++) top = row[a] > top ? row[a] : top;
        for (i64 a = 0; a < A; a++) total += (real)exp((double)(row[a] - top));
        i64 chosen = 0;
        for (; chosen < A - 1; chosen++) {
            sum += (real)exp((double)(row[chosen] - top));
            if (sum > uniform[m] * total) break;
        }
        action[m] = chosen;
    }
}

/* For kernels.loop. */
void FN(sample_call)(const i64 *s, void *const *p) { FN(sample)(s[0], s[1], s[2], p[0], p[1], p[2]); }

/* ---- log-probabilities, in blocks of rows that are vectorised over the rows ---- */
#ifndef ROWS
#define ROWS 64
#endif

/* The largest logit of `count` rows. */
SHARED FN(largest)(i64 count, i64 A, i64 stride, const real *restrict block, real *restrict top) {
    for (i64 m = 0; m < count; m++) top[m] = block[m * stride];
    for (i64 a = 1; a < A; a++)
        for (i64 m = 0; m < count; m++) {
            real x = block[m * stride + a];
            top[m] = x > top[m] ? x : top[m];
        }
}

/* Log-probability of each row's action, entropy, and `size`, the logarithm of the sum of exp(logit - largest logit); the
   number of actions that are none. Rows of logits lie `stride` apart. */
void FN(log_prob)(i64 M, i64 A, i64 stride, i64 threads, const real *restrict logits, const i64 *restrict action,
                  real *restrict log_prob, real *restrict entropy, real *restrict size, i64 *restrict invalid) {
    i64 wrong = 0;
#pragma omp parallel for schedule(static) num_threads(team(M * A, threads)) if (team(M * A, threads) > 1) reduction(+ : wrong)
    for (i64 first = 0; first < M; first += ROWS) {
        const i64 count = MIN(ROWS, M - first);
        const real *block = logits + first * stride;
        real top[ROWS], total[ROWS] = {0}, mean[ROWS] = {0};
        FN(largest)(count, A, stride, block, top);
        for (i64 a = 0; a < A; a++)
#pragma omp simd
            for (i64 m = 0; m < count; m++) {
                real x = block[m * stride + a] - top[m], e = FN(exp)(x);
                total[m] += e;
                mean[m] += e > 0 ? e * x : 0;
            }
#pragma omp simd
        for (i64 m = 0; m < count; m++) {
            size[first + m] = FN(log)(total[m]);
            entropy[first + m] = size[first + m] - mean[m] / total[m];
        }
        for (i64 m = 0; m < count; m++) {
            i64 a = action[first + m];
            int known = a >= 0 && a < A;
            wrong += !known;
            log_prob[first + m] = known ? block[m * stride + a] - top[m] - size[first + m] : 0;
        }
    }
    *invalid = wrong;
}

/* d [M, A]: gradient of the logits, given that of the log-probability and that of the entropy. */
void FN(log_prob_backward)(i64 M, i64 A, i64 stride, i64 threads, const real *restrict logits,
                           const i64 *restrict action, const real *restrict entropy, const real *restrict size,
                           const real *restrict d_log_prob, const real *restrict d_entropy, real *restrict d) {
#pragma omp parallel for schedule(static) num_threads(team(M * A, threads)) if (team(M * A, threads) > 1)
    for (i64 first = 0; first < M; first += ROWS) {
        const i64 count = MIN(ROWS, M - first);
        const real *block = logits + first * stride;
        real top[ROWS];
        FN(largest)(count, A, stride, block, top);
        for (i64 a = 0; a < A; a++)
#pragma omp simd
            for (i64 m = 0; m < count; m++) {
                i64 i = first + m;
                real log_p = block[m * stride + a] - top[m] - size[i], p = FN(exp)(log_p);
                real pull = p > 0 ? d_entropy[i] * p * (log_p + entropy[i]) : 0;
                d[i * A + a] = -d_log_prob[i] * p - pull;
            }
        for (i64 m = 0; m < count; m++) d[(first + m) * A + action[first + m]] += d_log_prob[first + m];
    }
}
