/* GAE and V-trace in one reverse scan: blocks of COPIES copies, vectorised over the copies of a block. */
#ifndef COPIES
#define COPIES 128
#define SELECT(condition, yes, no) ((condition) ? (yes) : (no))
#endif

/* next[i]: value after step t: 0 if terminated, the final value if truncated, else value[t + 1] or the bootstrap. */
static inline void FN(next_value)(i64 count, const uint8_t *restrict terminated, const uint8_t *restrict truncated,
                                  const real *restrict final, const real *restrict following, real *restrict next,
                                  real *restrict keep) {
#pragma omp simd
    for (i64 i = 0; i < count; i++) {
        int over = terminated[i] | truncated[i];
        real value = SELECT(truncated[i] != 0, final[i], following[i]);
        next[i] = SELECT(terminated[i] != 0, (real)0, value);
        keep[i] = SELECT(over != 0, (real)0, (real)1);
    }
}

void FN(gae)(i64 T, i64 B, i64 threads, double gamma_, double lambda_, const real *reward, const real *value,
             const real *bootstrap, const uint8_t *terminated, const uint8_t *truncated, const real *final,
             real *advantage, real *returns) {
    const real gamma = (real)gamma_, decay = (real)(gamma_ * lambda_);
#pragma omp parallel for schedule(static) num_threads(team(T * B, threads)) if (team(T * B, threads) > 1)
    for (i64 first = 0; first < B; first += COPIES) {
        i64 count = MIN(COPIES, B - first);
        real next[COPIES], keep[COPIES], sum[COPIES];
        memset(sum, 0, sizeof sum);
        for (i64 t = T - 1; t >= 0; t--) {
            i64 at = t * B + first;
            const real *following = t + 1 < T ? value + at + B : bootstrap + first;
            FN(next_value)(count, terminated + at, truncated + at, final + at, following, next, keep);
            for (i64 i = 0; i < count; i++) {
                real delta = reward[at + i] + gamma * next[i] - value[at + i];
                sum[i] = delta + decay * keep[i] * sum[i];
                advantage[at + i] = sum[i];
                returns[at + i] = sum[i] + value[at + i];
            }
        }
    }
}

void FN(vtrace)(i64 T, i64 B, i64 threads, double gamma_, double lambda_, double rho_bar_, double c_bar_,
                double mix_, const real *log_ratio, const real *reward, const real *value, const real *bootstrap,
                const uint8_t *terminated, const uint8_t *truncated, const real *final, real *target, real *advantage) {
    const real gamma = (real)gamma_, lambda = (real)lambda_, rho_bar = (real)rho_bar_, c_bar = (real)c_bar_;
    const real decay = (real)(gamma_ * mix_);
#pragma omp parallel for schedule(static) num_threads(team(T * B, threads)) if (team(T * B, threads) > 1)
    for (i64 first = 0; first < B; first += COPIES) {
        i64 count = MIN(COPIES, B - first);
        real next[COPIES], keep[COPIES], excess[COPIES]; /* excess: vs - V of the step after */
        memset(excess, 0, sizeof excess);
        for (i64 t = T - 1; t >= 0; t--) {
            i64 at = t * B + first;
            const real *following = t + 1 < T ? value + at + B : bootstrap + first;
            FN(next_value)(count, terminated + at, truncated + at, final + at, following, next, keep);
            for (i64 i = 0; i < count; i++) {
                real ratio = FN(exp)(log_ratio[at + i]);
                real rho = ratio > rho_bar ? rho_bar : ratio, c = lambda * (ratio > c_bar ? c_bar : ratio);
                real after = keep[i] * excess[i], base = reward[at + i] + gamma * next[i] - value[at + i];
                advantage[at + i] = rho * (base + decay * after);
                excess[i] = rho * base + gamma * c * after;
                target[at + i] = excess[i] + value[at + i];
            }
        }
    }
}
