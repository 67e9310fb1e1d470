/* Shared by every cpu.c: integer types, thread choice, and float exp, sigmoid and tanh that gcc can vectorise. */
#include <math.h>
#include <omp.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

typedef int64_t i64;

#define MIN(a, b) ((a) < (b) ? (a) : (b))
#define MAX(a, b) ((a) > (b) ? (a) : (b))

/* A register of the machine, and how many of them hold sums while a product goes on: a wider vector than the machine's, or
   more of them than there are registers, would go through memory at every step. */
#ifdef __AVX512F__
#define VECTOR_BYTES 64
#define WIDE_MACHINE 1
#else
#define VECTOR_BYTES 32
#define WIDE_MACHINE 0
#endif

/* A function with several callers and much work in it: a copy in each of them would only take the compiler's time. */
#define SHARED static __attribute__((noinline, unused)) void

/* Threads for a job of `work` element updates: starting a team costs about as much as 10^4 of them. */
static inline int team(i64 work, i64 threads) { return work < 16384 ? 1 : (int)threads; }

static inline int32_t bits_of(float x) { union { float f; int32_t i; } u; u.f = x; return u.i; }
static inline float float_of(int32_t i) { union { float f; int32_t i; } u; u.i = i; return u.f; }

/* bfloat16 as its bits: rounded to nearest even; NaN keeps its quiet bit. */
static inline float float_of_bf16(uint16_t h) { return float_of((int32_t)((uint32_t)h << 16)); }
static inline uint16_t bf16_of(float x) {
    uint32_t w = (uint32_t)bits_of(x);
    return (uint16_t)(x != x ? (w >> 16) | 0x40 : (w + 0x7fff + ((w >> 16) & 1)) >> 16);
}

/* exp(-x) for x >= 0, 0 above 87.3 (the smallest normal float), NaN for NaN. Cephes polynomial, about 1 ulp. */
static inline float exp_neg(float x) {
    float y = x > 87.3f ? 87.3f : x;
    float shifted = 12582912.0f - y * 1.44269504088896341f; /* 1.5 * 2^23: rounds to nearest into the low bits */
    float n = shifted - 12582912.0f;
    float r = -y - n * 0.693359375f + n * 2.12194440e-4f;
    float p = 1.9875691500e-4f;
    p = p * r + 1.3981999507e-3f;
    p = p * r + 8.3334519073e-3f;
    p = p * r + 4.1665795894e-2f;
    p = p * r + 1.6666665459e-1f;
    p = p * r + 5.0000001201e-1f;
    p = p * r * r + r + 1.0f;
    float e = p * float_of((int32_t)((uint32_t)bits_of(shifted) << 23) + 0x3f800000);
    return x > 87.3f ? 0.0f : e;
}

/* log(x) for normal x > 0. Cephes polynomial, about 1 ulp. */
static inline float log_f32(float x) {
    int32_t bits = bits_of(x);
    int32_t power = (bits - 0x3f3504f3) >> 23; /* x = 2^power (1 + m), 1 + m from sqrt(1/2) on */
    float m = float_of(bits - (int32_t)((uint32_t)power << 23)) - 1.0f, e = (float)power, z = m * m;
    float p = 7.0376836292e-2f;
    p = p * m - 1.1514610310e-1f;
    p = p * m + 1.1676998740e-1f;
    p = p * m - 1.2420140846e-1f;
    p = p * m + 1.4249322787e-1f;
    p = p * m - 1.6668057665e-1f;
    p = p * m + 2.0000714765e-1f;
    p = p * m - 2.4999993993e-1f;
    p = p * m + 3.3333331174e-1f;
    float y = m * z * p - 2.12194440e-4f * e - 0.5f * z;
    return m + y + 0.693359375f * e;
}

static inline double log_f64(double x) { return log(x); }

static inline float sigmoid_f32(float x) {
    float e = exp_neg(fabsf(x));
    return (x < 0.0f ? e : 1.0f) / (1.0f + e);
}

static inline float tanh_f32(float x) {
    float y = fabsf(x), z = x * x;
    float e = exp_neg(2.0f * y);
    float large = (1.0f - e) / (1.0f + e);
    float p = -5.70498872745e-3f;
    p = p * z + 2.06390887954e-2f;
    p = p * z - 5.37397155531e-2f;
    p = p * z + 1.33314422036e-1f;
    p = p * z - 3.33332819422e-1f;
    float small = x + x * z * p;
    return y < 0.625f ? small : (x < 0.0f ? -large : large);
}

static inline double sigmoid_f64(double x) {
    double e = exp(-fabs(x));
    return (x < 0.0 ? e : 1.0) / (1.0 + e);
}

static inline double tanh_f64(double x) { return tanh(x); }
