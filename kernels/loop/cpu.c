/* Compiled calls in turn, T times from step `from` on, with nothing between them. Call k gets its `counts[k]` words, each
   moved on by its stride (bytes) with every step unless it is zero. They are the pointers of a function of (sizes,
   pointers), whose LOOP_SIZES sizes are its own; or, if `direct`, the arguments of any other function, beside up to
   LOOP_DOUBLES doubles that are read where they lie.

   A direct call passes LOOP_WORDS, 32, integers and LOOP_DOUBLES doubles to a function that takes fewer. The calling conventions
   of x86-64 and AArch64 put the first ones where the function looks for them, whatever their order among each other, and the
   caller takes the rest off the stack. */
#define LOOP_SIZES 16
#define LOOP_WORDS 32
#define LOOP_DOUBLES 8

typedef void (*FN(loop_call))(const i64 *sizes, void *const *pointers);
typedef void (*FN(loop_direct))(void *, void *, void *, void *, void *, void *, void *, void *, void *, void *, void *,
                                void *, void *, void *, void *, void *, void *, void *, void *, void *, void *, void *,
                                void *, void *, void *, void *, void *, void *, void *, void *, void *, void *, double,
                                double, double, double, double, double, double, double);

void FN(loop)(i64 from, i64 T, i64 K, const i64 *counts, const i64 *direct, void *const *functions, const i64 *sizes,
              char *const *words, const i64 *strides, const double *const *doubles) {
    for (i64 t = from; t < from + T; t++)
        for (i64 k = 0, first = 0; k < K; first += counts[k++]) {
            const i64 count = counts[k], room = count > LOOP_WORDS ? count : LOOP_WORDS;
            void *w[room];
            for (i64 i = 0; i < count; i++)
                w[i] = words[first + i] ? words[first + i] + t * strides[first + i] : NULL;
            for (i64 i = count; i < room; i++) w[i] = NULL;
            if (!direct[k]) {
                ((FN(loop_call))functions[k])(sizes + k * LOOP_SIZES, w);
                continue;
            }
            double d[LOOP_DOUBLES] = {0};
            for (i64 i = 0; i < LOOP_DOUBLES && doubles[k * LOOP_DOUBLES + i]; i++) d[i] = *doubles[k * LOOP_DOUBLES + i];
            ((FN(loop_direct))functions[k])(
                w[0], w[1], w[2], w[3], w[4], w[5], w[6], w[7], w[8], w[9], w[10], w[11], w[12], w[13], w[14], w[15], w[16],
                w[17], w[18], w[19], w[20], w[21], w[22], w[23], w[24], w[25], w[26], w[27], w[28], w[29], w[30], w[31],
                d[0], d[1], d[2], d[3], d[4], d[5], d[6], d[7]);
        }
}

/* K rounds of S segments. Segment s has `parts[s]` = {first call, calls, first word, steps}: of round j its calls are made at
   the steps j * steps .. ; with steps = 0 instead at every i of round j for which mask[s][i] is set and veto[s][i] is not,
   `rows` of them a round. After segment `guard` the `watched` numbers of round j have to be finite, or all ends. Returns the
   rounds that were gone through in `done`. */
void FN(program)(i64 K, i64 S, i64 guard, i64 watched, i64 rows, const i64 *parts, const i64 *counts, const i64 *direct,
                 void *const *functions, const i64 *sizes, char *const *words, const i64 *strides,
                 const double *const *doubles, const uint8_t *mask, const uint8_t *veto, const real *numbers, i64 *done) {
    for (i64 j = 0; j < K; j++) {
        *done = j;
        for (i64 s = 0; s < S; s++) {
            const i64 call = parts[4 * s], many = parts[4 * s + 1], word = parts[4 * s + 2], steps = parts[4 * s + 3];
#define RUN(FIRST, STEPS)                                                                                                   \
    FN(loop)(FIRST, STEPS, many, counts + call, direct + call, functions + call, sizes + call * LOOP_SIZES, words + word,     \
             strides + word, doubles + call * LOOP_DOUBLES)
            if (steps) RUN(j * steps, steps);
            else
                for (i64 i = j * rows; i < (j + 1) * rows; i++)
                    if (mask[i] && !veto[i]) RUN(i, 1);
#undef RUN
            if (s == guard)
                for (i64 i = 0; i < watched; i++)
                    if (!isfinite(numbers[j * watched + i])) return;
        }
    }
    *done = K;
}
