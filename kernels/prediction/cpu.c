/* Cross-entropy of M predicted categories, weighted and divided by *total: its slope by the log-probability of what was
   to be predicted; accuracy and error [2], and the loss. With `add` these are added to, else written. */
void FN(prediction)(i64 M, i64 A, i64 add, const real *restrict logits, const i64 *restrict target,
                    const real *restrict log_prob, const real *restrict weight, const real *restrict total,
                    real *restrict d_log_prob, real *restrict statistics, real *restrict loss) {
    const real share = 1 / *total;
    double error = 0, hits = 0;
    for (i64 m = 0; m < M; m++) {
        const real w = weight[m] * share;
        d_log_prob[m] = -w;
        if (w == 0) continue;
        const real *row = logits + m * A;
        i64 best = 0;
        for (i64 a = 1; a < A; a++) best = row[a] > row[best] ? a : best;
        error -= (double)w * log_prob[m];
        hits += best == target[m] ? w : 0;
    }
    statistics[0] = (real)hits + (add ? statistics[0] : 0);
    statistics[1] = (real)error + (add ? statistics[1] : 0);
    *loss = statistics[1];
}
