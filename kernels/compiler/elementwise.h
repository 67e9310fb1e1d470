/* Element-wise functions of the compiler's C beyond those of common.h and template.h, which gcc can vectorise in float.
   Included after template.h, once per element type. */
#undef EXP
#undef EXPM1
#undef LOG
#undef LOG1P
#undef SOFTPLUS
#undef SQRT
#undef SIN
#undef COS
#undef POW
#undef ABS
#undef MAXIMUM
#undef MINIMUM
#undef FMA
#undef FLOOR
#undef CEIL
#undef TRUNC
#undef ROUND
#undef FMOD
#define EXP FN(exp)
#define LOG FN(any_log)
#define LOG1P FN(any_log1p)
#define SOFTPLUS FN(softplus)
#define SIN FN(any_sin)
#define COS FN(any_cos)
#define MAXIMUM FN(maximum)
#define MINIMUM FN(minimum)

#ifndef FLOOR_DIV
#define FLOOR_DIV
static inline i64 floor_div(i64 a, i64 b) { return b == 0 ? 0 : a / b - (a % b != 0 && (a % b < 0) != (b < 0)); }
static inline i64 floor_mod(i64 a, i64 b) {
    i64 rest = b == 0 ? 0 : a % b;
    return rest != 0 && (rest < 0) != (b < 0) ? rest + b : rest;
}
#endif

/* As torch's: NaN if either is. */
static inline real FN(maximum)(real a, real b) { return a > b || a != a ? a : b; }
static inline real FN(minimum)(real a, real b) { return a < b || a != a ? a : b; }

#if SINGLE
#define SQRT sqrtf
#define ABS fabsf
#define POW powf
#define EXPM1 expm1f
#define FMA fmaf
#define FLOOR floorf
#define CEIL ceilf
#define TRUNC truncf
#define ROUND rintf
#define FMOD fmodf

static inline float any_log_f32(float x) {
    float y = x > 0 ? log_f32(x < 3.0e38f ? x : 3.0e38f) : x == 0 ? -INFINITY : NAN;
    return x > 3.0e38f ? x : y;
}

/* log(1 + x): what rounding 1 + x lost is given back by the ratio. */
static inline float any_log1p_f32(float x) {
    float w = 1.0f + x, d = w - 1.0f;
    float y = any_log_f32(w) * (x / (d == 0 ? 1.0f : d));
    return d == 0 || w > 3.0e38f ? x : y;
}

static inline float softplus_f32(float x) {
    return (x < 0 ? 0.0f : x) + any_log1p_f32(exp_neg(fabsf(x)));
}

/* sin(x + quadrants pi/2): reduced in double, then Cephes polynomials, about 1 ulp up to |x| of 10^9. */
static inline float sine_f32(float x, int32_t quadrants) {
    double scaled = (double)x * 0.63661977236758134308, shifted = scaled + 6755399441055744.0; /* 1.5 * 2^52 */
    double n = shifted - 6755399441055744.0;
    float r = (float)((double)x - n * 1.57079632679489661923), z = r * r;
    int32_t q = (int32_t)n + quadrants;
    float s = r + r * z * ((-1.9515295891e-4f * z + 8.3321608736e-3f) * z - 1.6666654611e-1f);
    float c = 1.0f - 0.5f * z + z * z * ((2.443315711809948e-5f * z - 1.388731625493765e-3f) * z + 4.166664568298827e-2f);
    float y = q & 1 ? c : s;
    return q & 2 ? -y : y;
}
static inline float any_sin_f32(float x) { return sine_f32(x, 0); }
static inline float any_cos_f32(float x) { return sine_f32(x, 1); }
#else
#define SQRT sqrt
#define ABS fabs
#define POW pow
#define EXPM1 expm1
#define FMA fma
#define FLOOR floor
#define CEIL ceil
#define TRUNC trunc
#define ROUND rint
#define FMOD fmod
static inline double any_log_f64(double x) { return log(x); }
static inline double any_log1p_f64(double x) { return log1p(x); }
static inline double softplus_f64(double x) { return (x < 0 ? 0.0 : x) + log1p(exp(-fabs(x))); }
static inline double any_sin_f64(double x) { return sin(x); }
static inline double any_cos_f64(double x) { return cos(x); }
#endif
