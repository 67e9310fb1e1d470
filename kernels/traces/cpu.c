/* One step of a streaming actor-critic over one copy: its error, what its score is made of, and the trace. */

/* delta = r + gamma v' - v, where v' is `bootstrap`, `final` if the episode was cut off, 0 if it ended. The slopes of
   value_weight v + log pi + entropy_weight sign(delta) H; loss: delta^2 / 2; statistics: |delta|, v, H. */
void FN(streaming_slopes)(double gamma, double value_weight, double entropy_weight, const real *reward, const real *value,
                          const real *bootstrap, const real *final, const uint8_t *terminated, const uint8_t *truncated,
                          const real *entropy, real *delta, real *d_log_prob, real *d_entropy, real *d_value, real *loss,
                          real *statistics) {
    const real after = *terminated ? 0 : *truncated ? *final : *bootstrap;
    const real error = *reward + (real)gamma * after - *value;
    *delta = error;
    *d_log_prob = 1;
    *d_entropy = (real)entropy_weight * (real)((error > 0) - (error < 0));
    *d_value = (real)value_weight;
    *loss = (real)0.5 * error * error;
    statistics[0] = error < 0 ? -error : error;
    statistics[1] = *value;
    statistics[2] = *entropy;
}

/* z = keep z + g of `count` tensors, keep = decay but 0 where an episode begins; then g = -scale delta z, with scale =
   1 / max(1, lr kappa max(|delta|, 1) |z|_1) if `bounded`, else 1. */
void FN(trace)(i64 count, i64 bounded, double decay, double lr, double kappa, const real *delta, const uint8_t *init,
               const i64 *sizes, real *const *traces, real *const *grads) {
    const real keep = *init ? 0 : (real)decay;
    double norm = 0;
    for (i64 k = 0; k < count; k++) {
        real *restrict z = traces[k];
        const real *restrict g = grads[k];
        real sum = 0;
#pragma omp simd reduction(+ : sum)
        for (i64 i = 0; i < sizes[k]; i++) {
            z[i] = keep * z[i] + g[i];
            sum += z[i] < 0 ? -z[i] : z[i];
        }
        norm += sum;
    }
    const double error = *delta, size = error < 0 ? -error : error;
    const double over = bounded ? lr * kappa * (size > 1 ? size : 1) * norm : 1;
    const real factor = (real)(-error / (over > 1 ? over : 1));
    for (i64 k = 0; k < count; k++) {
        const real *restrict z = traces[k];
        real *restrict g = grads[k];
#pragma omp simd
        for (i64 i = 0; i < sizes[k]; i++) g[i] = factor * z[i];
    }
}
