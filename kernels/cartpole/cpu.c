/* One explicit Euler step a copy, then the autoreset. */
void FN(cartpole)(i64 B, const real *restrict physics, const i64 *restrict action, const real *restrict fresh,
                  const i64 *restrict age, const real *restrict returns, const i64 *restrict limit,
                  const real *restrict constants, real *restrict next, real *restrict final, i64 *restrict next_age,
                  real *restrict next_return, i64 *restrict final_age, real *restrict final_return,
                  real *restrict reward, uint8_t *restrict terminated, uint8_t *restrict truncated,
                  uint8_t *restrict done) {
    const real x_limit = (real)2.4, theta_limit = (real)(12 * 2 * 3.14159265358979323846 / 360);
    const real *push = constants, *pole_share = push + B, *inertia = pole_share + B, *mass_share = inertia + B;
    const real *tau = mass_share + B, *gravity = tau + B;
    for (i64 b = 0; b < B; b++) {
        const real *s = physics + 4 * b;
        real *f = final + 4 * b;
        real sine = (real)sin((double)s[2]), cosine = (real)cos((double)s[2]);
        real force = action[b] == 1 ? push[b] : -push[b];
        real temp = force + pole_share[b] * sine * (s[3] * s[3]);
        real spin_rate = (gravity[b] * sine - cosine * temp) / (inertia[b] - mass_share[b] * cosine * cosine);
        real acceleration = temp - pole_share[b] * spin_rate * cosine;
        f[0] = s[0] + tau[b] * s[1];
        f[1] = s[1] + tau[b] * acceleration;
        f[2] = s[2] + tau[b] * s[3];
        f[3] = s[3] + tau[b] * spin_rate;
        int fell = f[0] > x_limit || f[0] < -x_limit || f[2] > theta_limit || f[2] < -theta_limit;
        int late = limit[b] > 0 && age[b] + 1 >= limit[b], over = fell || late;
        reward[b] = 1;
        terminated[b] = (uint8_t)fell;
        truncated[b] = (uint8_t)late;
        done[b] = (uint8_t)over;
        final_age[b] = age[b] + 1;
        final_return[b] = returns[b] + 1;
        next_age[b] = over ? 0 : final_age[b];
        next_return[b] = over ? 0 : final_return[b];
        const real *source = over ? fresh + 4 * b : f;
        for (int i = 0; i < 4; i++) next[4 * b + i] = source[i];
    }
}

/* For kernels.loop. */
void FN(cartpole_call)(const i64 *s, void *const *p) {
    FN(cartpole)(s[0], p[0], p[1], p[2], p[3], p[4], p[5], p[6], p[7], p[8], p[9], p[10], p[11], p[12], p[13], p[14], p[15],
                 p[16]);
}
