/* The loss of advantage actor-critic and its derivatives by log-probability, entropy and value, all [count]; statistics [4].
   Sums are in double over blocks of BLOCK steps that are vectorised. */
#ifndef BLOCK
#define BLOCK 256
#endif

void FN(actor_critic_loss)(i64 count, double value_weight_, double entropy_weight_, const real *restrict log_prob,
                           const real *restrict entropy, const real *restrict value, const real *restrict advantage,
                           const real *restrict target, const real *restrict weight, const real *restrict total,
                           real *restrict loss, real *restrict statistics, real *restrict error,
                           real *restrict d_log_prob, real *restrict d_entropy, real *restrict d_value) {
    const real share = 1 / *total, value_weight = (real)value_weight_, entropy_weight = (real)entropy_weight_;
    double gain = 0, squares = 0, mean_entropy = 0, errors = 0, targets = 0;
    for (i64 first = 0; first < count; first += BLOCK) {
        const i64 end = MIN(first + BLOCK, count);
        real s0 = 0, s1 = 0, s2 = 0, s3 = 0, s4 = 0;
#pragma omp simd reduction(+ : s0, s1, s2, s3, s4)
        for (i64 i = first; i < end; i++) {
            const real w = weight[i] * share, e = value[i] - target[i];
            error[i] = e;
            d_log_prob[i] = -advantage[i] * w;
            d_entropy[i] = -entropy_weight * w;
            d_value[i] = value_weight * w * e;
            s0 += w * log_prob[i] * advantage[i];
            s1 += w * e * e;
            s2 += w * entropy[i];
            s3 += e;
            s4 += target[i];
        }
        gain += s0;
        squares += s1;
        mean_entropy += s2;
        errors += s3;
        targets += s4;
    }
    const real mean_error = (real)(errors / count), mean_target = (real)(targets / count);
    double error_spread = 0, target_spread = 0;
    for (i64 first = 0; first < count; first += BLOCK) {
        const i64 end = MIN(first + BLOCK, count);
        real a = 0, b = 0;
#pragma omp simd reduction(+ : a, b)
        for (i64 i = first; i < end; i++) {
            const real e = error[i] - mean_error, r = target[i] - mean_target;
            a += e * e;
            b += r * r;
        }
        error_spread += a;
        target_spread += b;
    }
    *loss = (real)(-gain + 0.5 * value_weight_ * squares - entropy_weight_ * mean_entropy);
    statistics[0] = (real)-gain;
    statistics[1] = (real)(0.5 * squares);
    statistics[2] = (real)mean_entropy;
    statistics[3] = (real)(1 - error_spread / MAX(target_spread, 1e-8 * (double)(count - 1)));
}
