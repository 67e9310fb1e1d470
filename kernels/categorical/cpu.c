/* Rows of logits lie `stride` apart. Two passes a row: the total, then the first action whose cumulative weight exceeds its share. */
void FN(sample)(i64 M, i64 A, i64 stride, const real *restrict logits, const real *restrict uniform, i64 *restrict action) {
    for (i64 m = 0; m < M; m++) {
        const real *row = logits + m * stride;
        real top = row[0], total = 0, sum = 0;
        for (i64 a = 1; a < A; a++) top = row[a] > top ? row[a] : top;
        for (i64 a = 0; a < A; a++) total += (real)exp((double)(row[a] - top));
        i64 chosen = 0;
        for (; chosen < A - 1; chosen++) {
            sum += (real)exp((double)(row[chosen] - top));
            if (sum > uniform[m] * total) break;
        }
        action[m] = chosen;
    }
}

/* For kernels.loop. */
void FN(sample_call)(const i64 *s, void *const *p) { FN(sample)(s[0], s[1], s[2], p[0], p[1], p[2]); }
