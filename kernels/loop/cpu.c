/* Compiled calls in turn, T times from step `from` on, with nothing between them. Call k gets its `counts[k]` pointers,
   each moved on by its stride (bytes) with every step unless it is NULL, and its LOOP_SIZES sizes. */
#define LOOP_SIZES 16
#define LOOP_POINTERS 64

typedef void (*FN(loop_call))(const i64 *sizes, void *const *pointers);

void FN(loop)(i64 from, i64 T, i64 K, const i64 *counts, void *const *functions, const i64 *sizes, char *const *pointers,
              const i64 *strides) {
    for (i64 t = from; t < from + T; t++)
        for (i64 k = 0, first = 0; k < K; first += counts[k++]) {
            void *here[LOOP_POINTERS];
            for (i64 i = 0; i < counts[k]; i++)
                here[i] = pointers[first + i] ? pointers[first + i] + t * strides[first + i] : NULL;
            ((FN(loop_call))functions[k])(sizes + k * LOOP_SIZES, here);
        }
}
