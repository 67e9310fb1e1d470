/* Sequences in and out of a replay's rows, and what is learned from them beside the objective. A field has T rows of
   items of `bytes`; where its rows and its items begin is told in bytes. */

#define EACH(type)                                                                                                  \
    for (i64 t = 0; t < T; t++)                                                                                     \
        for (i64 i = 0; i < n; i++)                                                                                 \
            if (from_index(i) >= 0 && to_index(i) >= 0)                                                             \
                *(type *)(to + t * to_row + to_index(i) * to_item) =                                                \
                    *(const type *)(from + t * from_row + from_index(i) * from_item);

#define MOVE                                                                                                        \
    if (bytes == 1) {                                                                                               \
        EACH(uint8_t)                                                                                               \
    } else if (bytes == 4) {                                                                                        \
        EACH(int32_t)                                                                                               \
    } else if (bytes == 8) {                                                                                        \
        EACH(i64)                                                                                                   \
    } else {                                                                                                        \
        for (i64 t = 0; t < T; t++)                                                                                 \
            for (i64 i = 0; i < n; i++)                                                                             \
                if (from_index(i) >= 0 && to_index(i) >= 0)                                                         \
                    memcpy(to + t * to_row + to_index(i) * to_item, from + t * from_row + from_index(i) * from_item, \
                           bytes);                                                                                  \
    }

/* Item index[i] to item i. */
void FN(take)(i64 T, i64 n, i64 bytes, i64 from_row, i64 from_item, i64 to_row, i64 to_item, const i64 *index,
              const char *from, char *to) {
#define from_index(i) index[i]
#define to_index(i) (i)
    MOVE
#undef from_index
#undef to_index
}

/* Item i to item index[i]; nowhere if that is negative. */
void FN(put)(i64 T, i64 n, i64 bytes, i64 from_row, i64 from_item, i64 to_row, i64 to_item, const i64 *index,
             const char *from, char *to) {
#define from_index(i) (i)
#define to_index(i) index[i]
    MOVE
#undef from_index
#undef to_index
}

static inline int cut(const uint8_t *truncated, const uint8_t *terminated, i64 at) {
    return truncated[at] && !terminated[at];
}

/* The S slots of truncated steps: their step [S, capacity], T if empty, and last observation. Slots that another copy has
   use for hold the last row, others zeros. */
void FN(put_slots)(i64 T, i64 B, i64 S, i64 capacity, i64 bytes, const i64 *index, const uint8_t *truncated,
                   const uint8_t *terminated, const char *final_obs, i64 *step, char *obs) {
    i64 used = 0;
    for (i64 i = 0; i < B; i++) {
        i64 count = 0;
        for (i64 t = 0; t < T; t++) count += cut(truncated, terminated, t * B + i);
        used = MAX(used, count);
    }
    for (i64 i = 0; i < B; i++) {
        if (index[i] < 0) continue;
        i64 s = 0;
        for (i64 t = 0; t < T; t++)
            if (cut(truncated, terminated, t * B + i) && s < S) {
                step[s * capacity + index[i]] = t;
                memcpy(obs + (s++ * capacity + index[i]) * bytes, final_obs + (t * B + i) * bytes, bytes);
            }
        for (; s < S; s++) {
            char *to = obs + (s * capacity + index[i]) * bytes;
            step[s * capacity + index[i]] = T;
            if (s < used)
                memcpy(to, final_obs + ((T - 1) * B + i) * bytes, bytes);
            else
                memset(to, 0, bytes);
        }
    }
}

/* Of what came after, N copies after the last step and S slots of them: memory [(1 + S) N, Z], whether it is reset, task,
   and the cell's inputs from column `first` on, `width` of them the action, one the reward, `shown` the task. */
void FN(following)(i64 T, i64 N, i64 S, i64 Z, i64 D, i64 first, i64 width, i64 category, i64 rewarded, i64 shown,
                   const i64 *step, const uint8_t *next_is_init, const real *states, const void *action,
                   const real *bounds, const real *reward, const i64 *task, real *state, real *x, uint8_t *init,
                   i64 *whose) {
    for (i64 k = 0; k < (1 + S) * N; k++) {
        const i64 n = k % N, t = k < N ? T - 1 : MIN(step[k - N], T - 1), at = t * N + n;
        const int reset = k < N && next_is_init[n];
        memcpy(state + k * Z, states + ((t + 1) * N + n) * Z, sizeof(real) * Z);
        init[k] = (uint8_t)reset;
        whose[k] = task[at];
        real *to = x + k * D + first;
        for (i64 i = 0; i < width; i++) {
            const real a = category ? (real)(((const i64 *)action)[at] == i) : ((const real *)action)[at * width + i];
            to[i] = reset ? 0 : category ? a : MAX(bounds[i], MIN(bounds[width + i], a));
        }
        to += width;
        if (rewarded) *to++ = reset ? 0 : reward[at];
        for (i64 i = 0; i < shown; i++) to[i] = task[at] == i;
    }
}

/* The values [S, N] of truncated steps where they belong, [T, N]; zeros elsewhere. */
void FN(place_final)(i64 T, i64 N, i64 S, const i64 *step, const real *value, real *final) {
    memset(final, 0, sizeof(real) * T * N);
    for (i64 k = 0; k < S * N; k++)
        if (step[k] < T) final[step[k] * N + k % N] = value[k];
}

void FN(columns_one_hot)(i64 T, i64 N, i64 row, i64 item, i64 many, const i64 *task, real *to) {
    for (i64 t = 0; t < T; t++)
        for (i64 n = 0; n < N; n++)
            for (i64 i = 0; i < many; i++) to[t * row + n * item + i] = task[t * N + n] == i;
}

void FN(subtract)(i64 count, const real *restrict a, const real *restrict b, real *restrict to) {
#pragma omp simd
    for (i64 i = 0; i < count; i++) to[i] = a[i] - b[i];
}

/* How much steps [T, N] count: as stored, where `asked` (if it is given); and that times a factor [N]. The first is added
   up over `count` of the copies in *own, which is at least 1. */
void FN(weigh)(i64 T, i64 N, i64 count, const real *weight, const uint8_t *asked, const real *factor, real *plain, real *own,
               real *to) {
    double sum = 0;
    for (i64 t = 0; t < T; t++)
        for (i64 n = 0; n < N; n++) {
            const real w = asked && !asked[t * N + n] ? 0 : weight[t * N + n];
            plain[t * N + n] = w;
            to[t * N + n] = w * factor[n];
            sum += n < count ? w : 0;
        }
    *own = (real)MAX(1, sum);
}

/* The sum of weights, at least 1. */
void FN(total)(i64 count, const real *restrict weight, real *restrict to) {
    double sum = 0;
    for (i64 i = 0; i < count; i++) sum += weight[i];
    *to = (real)MAX(1, sum);
}

/* The weighted mean of the entropy of some steps, whose weights are divided by *total, is (now - before) times more in the
   loss. */
void FN(more_entropy)(i64 count, double before, double now, const real *restrict entropy, const real *restrict weight,
                      const real *restrict total, real *restrict d_entropy, real *loss) {
    double sum = 0;
    const real share = (real)(now - before) / *total;
    for (i64 i = 0; i < count; i++) {
        sum += weight[i] * entropy[i];
        d_entropy[i] -= share * weight[i];
    }
    *loss -= (real)(sum * share);
}

/* Slopes of a distance of parameters `now` from `then` (P each), to `slope`; returns the distance. */
static double FN(squared)(i64 P, const real *now, const real *then, real *slope) {
    double sum = 0;
    for (i64 i = 0; i < P; i++) {
        const real gap = now[i] - then[i];
        sum += gap * gap;
        slope[i] = 2 * gap;
    }
    return sum;
}

/* The logarithm of the sum of exponentials. */
static double FN(log_sum)(i64 P, const real *x) {
    real top = x[0];
    for (i64 i = 1; i < P; i++) top = MAX(top, x[i]);
    double sum = 0;
    for (i64 i = 0; i < P; i++) sum += exp((double)(x[i] - top));
    return (double)top + log(sum);
}

/* Of categories: KL(then || now). */
static double FN(kl_categories)(i64 P, const real *now, const real *then, real *slope) {
    const double a = FN(log_sum)(P, then), b = FN(log_sum)(P, now);
    double sum = 0;
    for (i64 i = 0; i < P; i++) {
        const double p = then[i] - a, q = now[i] - b, chance = exp(p);
        sum += chance * (p - q);
        slope[i] = (real)(exp(q) - chance);
    }
    return sum;
}

/* Of Gaussians, means and then logarithms of deviations. */
static double FN(kl_gaussians)(i64 P, const real *now, const real *then, real *slope) {
    double sum = 0;
    const i64 A = P / 2;
    for (i64 i = 0; i < A; i++) {
        const double narrow = exp(-(double)now[A + i]), gap = (double)(now[i] - then[i]) * narrow;
        const double spread = exp(2 * (double)(then[A + i] - now[A + i])) + gap * gap;
        sum += now[A + i] - then[A + i] + 0.5 * (spread - 1);
        slope[i] = (real)(gap * narrow);
        slope[A + i] = (real)(1 - spread);
    }
    return sum;
}

/* Parameters [T * N, P] and values of the first `count` of N copies are held to what they were:
   (policy_weight * distance + value_weight * squared distance of values), weighted and divided by *over, is added to
   *loss, its slopes to those of the first A parameters [T * N, A], to `spread` [P - A], and to those of the values. The
   weighted means of both distances go to means [2]. */
void FN(match)(i64 T, i64 N, i64 count, i64 P, i64 A, i64 kind, double policy_weight, double value_weight,
               const real *now, const real *then, const real *value_now, const real *value_then, const real *weight,
               const real *own, const real *over, real *d_policy, real *spread, real *d_value, real *means, real *loss) {
    double distance = 0, squares = 0, wide[P];
    real slope[P];
    for (i64 i = 0; i < P; i++) wide[i] = 0;
    for (i64 t = 0; t < T; t++)
        for (i64 n = 0; n < count; n++) {
            const i64 m = t * N + n;
            if (weight[m] == 0) continue;
            const real *a = now + m * P, *b = then + m * P, share = weight[m] / *over;
            distance += weight[m] * (kind == 0   ? FN(squared)(P, a, b, slope)
                                     : kind == 1 ? FN(kl_categories)(P, a, b, slope)
                                                 : FN(kl_gaussians)(P, a, b, slope));
            for (i64 i = 0; i < A; i++) d_policy[m * A + i] += (real)policy_weight * share * slope[i];
            for (i64 i = A; i < P; i++) wide[i] += policy_weight * share * slope[i];
            const real gap = value_now[m] - value_then[m];
            squares += weight[m] * gap * gap;
            d_value[m] += (real)value_weight * share * 2 * gap;
        }
    for (i64 i = A; i < P; i++) spread[i - A] += (real)wide[i];
    means[0] = (real)(distance / *own);
    means[1] = (real)(squares / *own);
    *loss += (real)((policy_weight * distance + value_weight * squares) / *over);
}
