/* What surrounds the cell in one step of acting, for kernels.loop; rows lie apart where a stride is given. */

/* to [B, n] = from [B, n] */
void FN(place_call)(const i64 *s, void *const *p) {
    for (i64 b = 0; b < s[0]; b++) memcpy((real *)p[1] + b * s[3], (const real *)p[0] + b * s[2], sizeof(real) * s[1]);
}

/* to [B, n]: the action [B, parts] one-hot, category i of part k at offset[k] + i; zeros where init. */
void FN(one_hot_call)(const i64 *s, void *const *p) {
    const i64 B = s[0], n = s[1], parts = s[2], stride = s[3], *action = p[0], *offset = p[1];
    const uint8_t *init = p[2];
    for (i64 b = 0; b < B; b++) {
        real *to = (real *)p[3] + b * stride;
        memset(to, 0, sizeof(real) * n);
        for (i64 k = 0; k < parts && !init[b]; k++) to[offset[k] + action[b * parts + k]] = 1;
    }
}

/* to [B, n] = from [B, n], zeros where init. */
void FN(masked_call)(const i64 *s, void *const *p) {
    const i64 B = s[0], n = s[1], stride = s[2];
    const real *from = p[0];
    const uint8_t *init = p[1];
    for (i64 b = 0; b < B; b++)
        for (i64 i = 0; i < n; i++) ((real *)p[2])[b * stride + i] = init[b] ? 0 : from[b * n + i];
}

/* reward [B] *= scale [B]; to [B], `stride` apart: the same, 0 where init, if `shown`. */
void FN(reward_call)(const i64 *s, void *const *p) {
    const i64 B = s[0], stride = s[1], shown = s[2];
    real *reward = p[0];
    const real *scale = p[1];
    const uint8_t *init = p[2];
    for (i64 b = 0; b < B; b++) {
        reward[b] *= scale[b];
        if (shown) ((real *)p[3])[b * stride] = init[b] ? 0 : reward[b];
    }
}

/* From read [B, heads P + values]: logits or means [B, P] of the copy's head and its value [B]. Actions outside mask [B, A]
   get `none`. With `spread`, log standard deviations [heads, P] follow: parameters [B, 2P]. */
void FN(heads_call)(const i64 *s, void *const *p) {
    const i64 B = s[0], P = s[1], heads = s[2], values = s[3], masked = s[4], spread = s[5], width = heads * P + values;
    const real *read = p[0], none = *(const real *)p[3], *log_std = p[4];
    const i64 *task = p[1];
    const uint8_t *mask = p[2];
    for (i64 b = 0; b < B; b++) {
        const i64 head = heads > 1 ? task[b] : 0;
        const real *from = read + b * width + head * P;
        real *to = (real *)p[5] + b * (spread ? 2 * P : P);
        for (i64 i = 0; i < P; i++) to[i] = !masked || mask[b * P + i] ? from[i] : none;
        if (spread) memcpy(to + P, log_std + head * P, sizeof(real) * P);
        ((real *)p[6])[b] = read[b * width + heads * P + (values > 1 ? task[b] : 0)];
    }
}

/* action [B] = where row b of logits [B, A], `stride` apart, is largest, the first of equals. */
void FN(mode_call)(const i64 *s, void *const *p) {
    const i64 B = s[0], A = s[1], stride = s[2];
    for (i64 b = 0; b < B; b++) {
        const real *row = (const real *)p[0] + b * stride;
        i64 best = 0;
        for (i64 a = 1; a < A; a++) best = row[a] > row[best] ? a : best;
        ((i64 *)p[1])[b] = best;
    }
}

/* action [B, A] = mean + exp(log std) noise, or the mean; `clipped` to the bounds; `given` as the environment has it:
   middle + half clipped within its own bounds, if `rescaled`. */
void FN(gaussian_call)(const i64 *s, void *const *p) {
    const i64 B = s[0], A = s[1], rescaled = s[2];
    const real *params = p[0], *noise = p[1], *bounds = p[2]; /* low, high; then middle, half, low and high outside */
    real *action = p[3], *clipped = p[4], *given = p[5];
    for (i64 b = 0; b < B; b++)
        for (i64 i = 0; i < A; i++) {
            const i64 at = b * A + i;
            real x = params[2 * b * A + i];
            if (noise) x = x + (real)exp((double)params[(2 * b + 1) * A + i]) * noise[at];
            action[at] = x;
            real c = x < bounds[i] ? bounds[i] : x;
            clipped[at] = c = c > bounds[A + i] ? bounds[A + i] : c;
            if (rescaled) {
                real y = bounds[2 * A + i] + bounds[3 * A + i] * c;
                y = y < bounds[4 * A + i] ? bounds[4 * A + i] : y;
                given[at] = y > bounds[5 * A + i] ? bounds[5 * A + i] : y;
            }
        }
}

/* A function of compiled code by its address (`kernels.recurrence.Acting`). */
void FN(prepare_call)(const i64 *s, void *const *p) { ((void (*)(i64, const real *, real *))p[0])(s[0], p[1], p[2]); }
void FN(recurrence_call)(const i64 *s, void *const *p) {
    ((void (*)(i64, i64, const real *, const real *, const real *, const real *, const uint8_t *, const real *, real *))p[0])(
        s[0], s[1], p[1], p[2], p[3], p[4], p[5], p[6], p[7]);
}
