/* PPO's loss and its derivatives by log-probability, entropy and value, all [count]; statistics [7]. Sums are in double.
   All steps are seen twice: variances need their means first. Blocks of BLOCK steps are vectorised. */
#ifndef BLOCK
#define BLOCK 256
#endif

void FN(ppo_loss)(i64 count, double clip_, double value_weight_, double entropy_weight_,
                  const real *restrict log_prob, const real *restrict entropy, const real *restrict value,
                  const real *restrict old_log_prob, const real *restrict advantage, const real *restrict target,
                  const real *restrict weight, const real *restrict total, real *restrict loss,
                  real *restrict statistics, real *restrict d_log_prob, real *restrict d_entropy,
                  real *restrict d_value) {
    const real low = (real)(1 - clip_), high = (real)(1 + clip_), share = 1 / *total;
    const real value_weight = (real)value_weight_, entropy_weight = (real)entropy_weight_;
    double objective = 0, squares = 0, mean_entropy = 0, kl = 0, fraction = 0, errors = 0, targets = 0;
    real largest = 0;
    for (i64 first = 0; first < count; first += BLOCK) {
        i64 end = MIN(first + BLOCK, count);
        real s0 = 0, s1 = 0, s2 = 0, s3 = 0, s4 = 0, s5 = 0, s6 = 0, top = largest;
#pragma omp simd reduction(+ : s0, s1, s2, s3, s4, s5, s6) reduction(max : top)
        for (i64 i = first; i < end; i++) {
            real log_ratio = log_prob[i] - old_log_prob[i], ratio = FN(exp)(log_ratio);
            real clipped = ratio < low ? low : ratio, w = weight[i] * share;
            clipped = clipped > high ? high : clipped;
            real free_ = ratio * advantage[i], held = clipped * advantage[i], error = value[i] - target[i];
            real size = ratio < 1 ? 1 - ratio : ratio - 1;
            d_log_prob[i] = free_ <= held ? -free_ * w : 0;
            d_entropy[i] = -entropy_weight * w;
            d_value[i] = value_weight * w * error;
            s0 += w * (free_ < held ? free_ : held);
            s1 += w * error * error;
            s2 += w * entropy[i];
            s3 += w * (ratio - 1 - log_ratio);
            s4 += ratio != clipped ? w : 0;
            s5 += error;
            s6 += target[i];
            top = size > top ? size : top;
        }
        objective += s0;
        squares += s1;
        mean_entropy += s2;
        kl += s3;
        fraction += s4;
        errors += s5;
        targets += s6;
        largest = top;
    }
    const real mean_error = (real)(errors / count), mean_target = (real)(targets / count);
    double error_spread = 0, target_spread = 0;
    for (i64 first = 0; first < count; first += BLOCK) {
        i64 end = MIN(first + BLOCK, count);
        real e = 0, r = 0;
#pragma omp simd reduction(+ : e, r)
        for (i64 i = first; i < end; i++) {
            real a = value[i] - target[i] - mean_error, b = target[i] - mean_target;
            e += a * a;
            r += b * b;
        }
        error_spread += e;
        target_spread += r;
    }
    *loss = (real)(-objective + 0.5 * value_weight_ * squares - entropy_weight_ * mean_entropy);
    statistics[0] = (real)-objective;
    statistics[1] = (real)(0.5 * squares);
    statistics[2] = (real)mean_entropy;
    statistics[3] = (real)(1 - error_spread / MAX(target_spread, 1e-8 * (double)(count - 1)));
    statistics[4] = (real)kl;
    statistics[5] = (real)fraction;
    statistics[6] = largest;
}
