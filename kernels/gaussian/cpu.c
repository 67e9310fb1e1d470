/* Diagonal Gaussians: parameters [M, 2A] are means, then logarithms of standard deviations. */

/* Log-probability of the actions [M, A] and entropy, [M] each. */
void FN(gaussian_log_prob)(i64 M, i64 A, const real *restrict params, const real *restrict action, real *restrict log_prob,
                           real *restrict entropy) {
    const real half_log_two_pi = (real)0.91893853320467274178, half = (real)0.5;
    for (i64 m = 0; m < M; m++) {
        const real *mean = params + 2 * m * A, *log_std = mean + A;
        real sum = 0, spread = 0;
        for (i64 i = 0; i < A; i++) {
            const real z = (action[m * A + i] - mean[i]) * (real)exp(-(double)log_std[i]);
            sum += half * z * z + log_std[i] + half_log_two_pi;
            spread += log_std[i] + (half + half_log_two_pi);
        }
        log_prob[m] = -sum;
        entropy[m] = spread;
    }
}

/* The slopes of both [M] to those of the means [M, A]; those of the logarithms [A], which all rows share, are added up. */
void FN(gaussian_log_prob_backward)(i64 M, i64 A, const real *restrict params, const real *restrict action,
                                    const real *restrict d_log_prob, const real *restrict d_entropy,
                                    real *restrict d_mean, real *restrict d_log_std) {
    for (i64 i = 0; i < A; i++) {
        double total = 0;
        for (i64 m = 0; m < M; m++) {
            const real *mean = params + 2 * m * A, *log_std = mean + A;
            const real narrow = (real)exp(-(double)log_std[i]), z = (action[m * A + i] - mean[i]) * narrow;
            d_mean[m * A + i] = d_log_prob[m] * z * narrow;
            total += d_log_prob[m] * (z * z - 1) + d_entropy[m];
        }
        d_log_std[i] += (real)total;
    }
}
