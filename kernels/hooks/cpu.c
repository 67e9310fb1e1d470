/* What strategies do between a gradient and the parameters that follow from it, over many tensors in one call. Those that
   come after the optimiser's step do nothing where one of `many` watched numbers is not finite, as the step itself. */

static inline int all_finite(i64 many, const real *watched) {
    for (i64 i = 0; i < many; i++)
        if (!isfinite(watched[i])) return 0;
    return 1;
}

/* *out = base */
void FN(set_number)(double base, double *out) { *out = base; }

/* *now = weight * max(0, 1 - (step - begun) / length), added to *out; a multiple of `every` has begun last, if that is not 0. */
void FN(ramp)(i64 begun, i64 every, double weight, double length, const i64 *step, double *now, double *out) {
    const i64 first = every ? *step / every * every : begun;
    const double left = 1 - (double)(*step - first) / length;
    *now = every && first == 0 ? 0 : weight * MAX(0, left);
    *out += *now;
}

/* *step += by */
void FN(count)(i64 by, i64 *step) { *step += by; }

/* strength / 2 * sum of F (p - a)^2 goes to *penalty and is added to *loss, its gradients to those of p. */
void FN(penalty)(i64 count, double strength, const i64 *sizes, const real *const *params, real *const *grads,
                 const real *const *importances, const real *const *anchors, real *penalty, real *loss) {
    double total = 0;
    for (i64 k = 0; k < count; k++) {
        const real *restrict p = params[k], *restrict f = importances[k], *restrict a = anchors[k];
        real *restrict g = grads[k];
        for (i64 first = 0; first < sizes[k]; first += 4096) {
            real sum = 0;
            const i64 end = MIN(sizes[k], first + 4096);
#pragma omp simd reduction(+ : sum)
            for (i64 i = first; i < end; i++) {
                const real gap = p[i] - a[i], pull = f[i] * gap;
                g[i] += (real)strength * pull;
                sum += pull * gap;
            }
            total += sum;
        }
    }
    *penalty = (real)(0.5 * strength * total);
    *loss += *penalty;
}

/* Where the parameters are before a step, and the gradients without those of `penalty`, of which nothing is known if
   `held` is 0. */
void FN(path_begin)(i64 count, i64 held, double strength, const i64 *sizes, const real *const *params,
                    const real *const *grads, const real *const *importances, const real *const *anchors,
                    real *const *slopes, real *const *before) {
    for (i64 k = 0; k < count; k++) {
        memcpy(before[k], params[k], sizes[k] * sizeof(real));
        memcpy(slopes[k], grads[k], sizes[k] * sizeof(real));
        if (!held) continue;
        const real *restrict p = params[k], *restrict f = importances[k], *restrict a = anchors[k];
        real *restrict s = slopes[k];
#pragma omp simd
        for (i64 i = 0; i < sizes[k]; i++) s[i] -= (real)strength * f[i] * (p[i] - a[i]);
    }
}

/* omega -= slope * step */
void FN(path_end)(i64 count, i64 many, const real *watched, const i64 *sizes, const real *const *params,
                  const real *const *slopes, const real *const *before, real *const *omegas) {
    if (!all_finite(many, watched)) return;
    for (i64 k = 0; k < count; k++) {
        const real *restrict p = params[k], *restrict s = slopes[k], *restrict b = before[k];
        real *restrict w = omegas[k];
#pragma omp simd
        for (i64 i = 0; i < sizes[k]; i++) w[i] -= s[i] * (p[i] - b[i]);
    }
}

/* Every parameter within -bound and bound. */
void FN(bound)(i64 count, i64 many, const real *watched, const i64 *sizes, const double *bounds, real *const *params) {
    if (!all_finite(many, watched)) return;
    for (i64 k = 0; k < count; k++) {
        real *restrict p = params[k];
        const real b = (real)bounds[k];
#pragma omp simd
        for (i64 i = 0; i < sizes[k]; i++) p[i] = p[i] > b ? b : p[i] < -b ? -b : p[i];
    }
}

/* TRAC before a step: where the parameters are, and *along, the product of gradients and paths. */
void FN(trac_begin)(i64 count, const i64 *sizes, const real *const *params, const real *const *grads,
                    const real *const *paths, real *const *before, double *along) {
    double total = 0;
    for (i64 k = 0; k < count; k++) {
        const real *restrict g = grads[k], *restrict d = paths[k];
        memcpy(before[k], params[k], sizes[k] * sizeof(real));
#pragma omp simd reduction(+ : total)
        for (i64 i = 0; i < sizes[k]; i++) total += (double)g[i] * (double)d[i];
    }
    *along = total;
}

/* erfi: 2 / sqrt(pi) * sum of x^(2n + 1) / (n! (2n + 1)), of |x| <= 9. */
static double erfi_(double x) {
    const double square = x * x;
    double power = x, sum = 0;
    for (int n = 0; n < 320; n++) {
        sum += power / (2 * n + 1);
        power *= square / (n + 1);
    }
    return 1.1283791670955126 * sum;
}

/* TRAC after a step: its tuners, and p = before + (S path - what that was before), with the step added to the path. */
void FN(trac_end)(i64 count, i64 many, i64 tuners, double eps, double unit, double largest, const real *watched,
                  const double *betas, double *variance, double *sigma, double *scale, const double *along,
                  const i64 *sizes, real *const *params, real *const *paths, const real *const *before) {
    if (!all_finite(many, watched)) return;
    const double h = *along;
    const real old = (real)*scale;
    double sum = 0;
    for (i64 j = 0; j < tuners; j++) {
        variance[j] = variance[j] * betas[j] * betas[j] + h * h;
        sigma[j] = sigma[j] * betas[j] - h;
        const double x = sigma[j] / (sqrt(2 * variance[j]) + eps);
        sum += unit * erfi_(MAX(-largest, MIN(largest, x)));
    }
    *scale = MAX(0, sum);
    const real now = (real)*scale;
    for (i64 k = 0; k < count; k++) {
        real *restrict p = params[k], *restrict d = paths[k];
        const real *restrict b = before[k];
#pragma omp simd
        for (i64 i = 0; i < sizes[k]; i++) {
            const real gone = old * d[i];
            d[i] += p[i] - b[i];
            p[i] = b[i] + (now * d[i] - gone);
        }
    }
}
