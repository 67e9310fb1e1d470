/* Included once per element type, before each cpu.c. */
#undef SIGMOID
#undef TANH
#define SIGMOID FN(sigmoid)
#define TANH FN(tanh)

/* exp of any sign */
static inline real FN(exp)(real x) {
#if SINGLE
    float e = exp_neg(fabsf(x));
    return x < 0 ? e : 1 / e;
#else
    return exp(x);
#endif
}

/* `width` rows of D stored numbers (bfloat16 if bf16) from `offset` on, to or from D columns that lie `stride` apart. */
SHARED FN(transpose_in)(real *to, i64 stride, const void *from, i64 offset, i64 width, i64 D, i64 bf16) {
    for (i64 n = 0; n < width; n++)
        for (i64 d = 0; d < D; d++)
            to[d * stride + n] = bf16 ? (real)float_of_bf16(((const uint16_t *)from)[offset + n * D + d])
                                      : ((const real *)from)[offset + n * D + d];
}

SHARED FN(transpose_out)(void *to, i64 offset, const real *from, i64 stride, i64 width, i64 D, i64 bf16) {
    for (i64 n = 0; n < width; n++)
        for (i64 d = 0; d < D; d++)
            if (bf16) ((uint16_t *)to)[offset + n * D + d] = bf16_of((float)from[d * stride + n]);
            else ((real *)to)[offset + n * D + d] = from[d * stride + n];
}
