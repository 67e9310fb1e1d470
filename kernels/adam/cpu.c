/* Clipping of the gradients' norm and a step of Adam or AdamW over many tensors in one call. */
#undef SQRT
#define SQRT(x) (SINGLE ? (real)sqrtf((float)(x)) : (real)sqrt((double)(x)))

/* Every gradient of `count` times min(1, max_norm / (norm + 1e-6)), in place; norm [1] is that of all of them before. */
void FN(clip)(i64 count, double max_norm, const i64 *sizes, real *const *grads, real *norm) {
    double total = 0;
    for (i64 k = 0; k < count; k++) {
        const real *restrict g = grads[k];
        for (i64 first = 0; first < sizes[k]; first += 4096) {
            real sum = 0;
            const i64 end = MIN(sizes[k], first + 4096);
#pragma omp simd reduction(+ : sum)
            for (i64 i = first; i < end; i++) sum += g[i] * g[i];
            total += sum;
        }
    }
    *norm = (real)sqrt(total);
    const real scale = (real)(max_norm / ((double)*norm + 1e-6));
    if (!(scale < 1)) return;
    for (i64 k = 0; k < count; k++) {
        real *restrict g = grads[k];
#pragma omp simd
        for (i64 i = 0; i < sizes[k]; i++) g[i] *= scale;
    }
}

/* steps [1] each, in float, are counted up. Weight decay is added to the gradient, or `decoupled` taken off the weights.
   Nothing is done if one of `many` watched numbers is not finite. */
void FN(adam)(i64 count, i64 decoupled, i64 many, double lr, double beta1, double beta2, double eps, double decay,
              const real *watched, const i64 *sizes, real *const *params, const real *const *grads, real *const *means, real *const *squares,
              float *const *steps) {
    for (i64 i = 0; i < many; i++)
        if (!isfinite(watched[i])) return;
    for (i64 k = 0; k < count; k++) {
        const double step = *steps[k] += 1;
        const double root = sqrt(1 - pow(beta2, step)); /* of both terms below the bar: one division */
        const real size = (real)(lr / (1 - pow(beta1, step)) * root), tiny = (real)(eps * root);
        const real a = (real)(1 - beta1), b = (real)beta2, c = (real)(1 - beta2);
        const real added = decoupled ? 0 : (real)decay, kept = decoupled ? (real)(1 - lr * decay) : 1;
        real *restrict p = params[k], *restrict m = means[k], *restrict v = squares[k];
        const real *restrict g = grads[k];
#pragma omp simd
        for (i64 i = 0; i < sizes[k]; i++) {
            const real w = p[i] * kept, d = g[i] + added * w;
            m[i] += a * (d - m[i]);
            v[i] = b * v[i] + c * d * d;
            p[i] = w - size * m[i] / (SQRT(v[i]) + tiny);
        }
    }
}

/* Gradient descent: p -= lr (g + decay p). Nothing is done if one of `many` watched numbers is not finite. */
void FN(descend)(i64 count, i64 many, double lr, double decay, const real *watched, const i64 *sizes, real *const *params,
                 const real *const *grads) {
    for (i64 i = 0; i < many; i++)
        if (!isfinite(watched[i])) return;
    for (i64 k = 0; k < count; k++) {
        real *restrict p = params[k];
        const real *restrict g = grads[k];
#pragma omp simd
        for (i64 i = 0; i < sizes[k]; i++) p[i] -= (real)lr * (g[i] + (real)decay * p[i]);
    }
}
