/* VECTORS·VS_LANES rows of W·x + b: bias, then W[·][0]·x[0], W[·][1]·x[1], …; the weight of term k begins at weight[k·step]. */
#define VS_ROWS(NAME, VECTORS)                                                                                            \
    static inline void NAME(const float *x, const float *weight, int terms, int step, const float *bias, float *out)     \
    {                                                                                                                    \
        vs_vec sum[VECTORS];                                                                                             \
        for (int v = 0; v < VECTORS; v++)                                                                                \
            sum[v] = *(const vs_vec *)(bias + v * VS_LANES);                                                             \
        for (int k = 0; k < terms; k++)                                                                                  \
            for (int v = 0; v < VECTORS; v++)                                                                            \
                sum[v] += *(const vs_vec *)(weight + (long)k * step + v * VS_LANES) * x[k];                              \
        for (int v = 0; v < VECTORS; v++)                                                                                \
            *(vs_vec *)(out + v * VS_LANES) = sum[v];                                                                    \
    }
VS_ROWS(vs_rows_8, 8)
VS_ROWS(vs_rows_4, 4)
VS_ROWS(vs_rows_2, 2)
VS_ROWS(vs_rows_1, 1)

/* `width` rows (a multiple of 16), weight [terms][step]; of the last ones of a layer, those from `step` on are never stored: what they
   read there are weights of the next term, and VS_SLACK zeros after the last. */
static inline void vs_dense_rows(const float *x, const float *weight, int terms, int width, int step, const float *bias,
                                 float *out)
{
    int r = 0;
    for (; r + 8 * VS_LANES <= width; r += 8 * VS_LANES)
        vs_rows_8(x, weight + r, terms, step, bias + r, out + r);
    for (; r + 4 * VS_LANES <= width; r += 4 * VS_LANES)
        vs_rows_4(x, weight + r, terms, step, bias + r, out + r);
    for (; r + 2 * VS_LANES <= width; r += 2 * VS_LANES)
        vs_rows_2(x, weight + r, terms, step, bias + r, out + r);
    for (; r < width; r += VS_LANES)
        vs_rows_1(x, weight + r, terms, step, bias + r, out + r);
}
