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

/* Log-probability of each row's action, entropy, and `size`, the logarithm of the sum of exp(logit - largest logit); the
   number of actions that are none. Rows of logits lie `stride` apart. */
void FN(log_prob)(i64 M, i64 A, i64 stride, i64 threads, const real *restrict logits, const i64 *restrict action,
                  real *restrict log_prob, real *restrict entropy, real *restrict size, i64 *restrict invalid) {
    i64 wrong = 0;
#pragma omp parallel for schedule(static) num_threads(team(M * A, threads)) if (team(M * A, threads) > 1) reduction(+ : wrong)
    for (i64 m = 0; m < M; m++) {
        const real *row = logits + m * stride;
        real top = row[0], total = 0, mean = 0;
        for (i64 a = 1; a < A; a++) top = row[a] > top ? row[a] : top;
        for (i64 a = 0; a < A; a++) {
            real x = row[a] - top, e = FN(exp)(x);
            total += e;
            mean += e > 0 ? e * x : 0;
        }
        int known = action[m] >= 0 && action[m] < A;
        wrong += !known;
        size[m] = (real)log((double)total);
        entropy[m] = size[m] - mean / total;
        log_prob[m] = known ? row[action[m]] - top - size[m] : 0;
    }
    *invalid = wrong;
}

/* d [M, A]: gradient of the logits, given that of the log-probability and that of the entropy. */
void FN(log_prob_backward)(i64 M, i64 A, i64 stride, i64 threads, const real *restrict logits,
                           const i64 *restrict action, const real *restrict entropy, const real *restrict size,
                           const real *restrict d_log_prob, const real *restrict d_entropy, real *restrict d) {
#pragma omp parallel for schedule(static) num_threads(team(M * A, threads)) if (team(M * A, threads) > 1)
    for (i64 m = 0; m < M; m++) {
        const real *row = logits + m * stride;
        real top = row[0];
        for (i64 a = 1; a < A; a++) top = row[a] > top ? row[a] : top;
        for (i64 a = 0; a < A; a++) {
            real log_p = row[a] - top - size[m], p = FN(exp)(log_p);
            real pull = p > 0 ? d_entropy[m] * p * (log_p + entropy[m]) : 0;
            d[m * A + a] = (a == action[m] ? d_log_prob[m] : 0) - d_log_prob[m] * p - pull;
        }
    }
}
