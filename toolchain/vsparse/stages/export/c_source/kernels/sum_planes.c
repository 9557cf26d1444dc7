/* ROWS output channels at VECTORS·VS_LANES positions: bias, then weight[0]·in[offset[0] + position], weight[1]·…, one after the other. */
#define VS_SUM(NAME, ROWS, VECTORS)                                                                                      \
    static inline void NAME(const float *in, const vs_index *offset, const float *weight, int terms, const float *bias,  \
                            float *out, int pitch)                                                                       \
    {                                                                                                                    \
        vs_vec sum[ROWS][VECTORS];                                                                                       \
        for (int r = 0; r < ROWS; r++)                                                                                   \
            for (int v = 0; v < VECTORS; v++) {                                                                          \
                const vs_vec zero = VS_ZERO;                                                                             \
                sum[r][v] = zero + bias[r];                                                                              \
            }                                                                                                            \
        for (int k = 0; k < terms; k++) {                                                                                \
            const float *x = in + offset[k];                                                                             \
            for (int v = 0; v < VECTORS; v++) {                                                                          \
                const vs_vec value = *(const vs_vec *)(x + v * VS_LANES);                                                \
                for (int r = 0; r < ROWS; r++)                                                                           \
                    sum[r][v] += weight[k * ROWS + r] * value;                                                           \
            }                                                                                                            \
        }                                                                                                                \
        for (int r = 0; r < ROWS; r++)                                                                                   \
            for (int v = 0; v < VECTORS; v++)                                                                            \
                *(vs_vec *)(out + (long)r * pitch + v * VS_LANES) = sum[r][v];                                           \
    }
VS_SUM(vs_sum4_2, 4, 2)
VS_SUM(vs_sum4_1, 4, 1)
VS_SUM(vs_sum1_8, 1, 8)
VS_SUM(vs_sum1_4, 1, 4)
VS_SUM(vs_sum1_2, 1, 2)
VS_SUM(vs_sum1_1, 1, 1)

/* Four output channels (weight [terms][4]) at all positions; `out` and what follows `in` have room for whole vectors. */
static inline void vs_sum4(const float *in, const vs_index *offset, const float *weight, int terms, const float *bias,
                           float *out, int positions, int pitch)
{
    int p = 0;
    for (; p + VS_LANES < positions; p += 2 * VS_LANES)
        vs_sum4_2(in + p, offset, weight, terms, bias, out + p, pitch);
    for (; p < positions; p += VS_LANES)
        vs_sum4_1(in + p, offset, weight, terms, bias, out + p, pitch);
}

/* One output channel (weight [terms], with the offsets of its own non-zero weights) at all positions. */
static inline void vs_sum1(const float *in, const vs_index *offset, const float *weight, int terms, const float *bias,
                           float *out, int positions)
{
    int p = 0;
    for (; p + 7 * VS_LANES < positions; p += 8 * VS_LANES)
        vs_sum1_8(in + p, offset, weight, terms, bias, out + p, 0);
    for (; p + 3 * VS_LANES < positions; p += 4 * VS_LANES)
        vs_sum1_4(in + p, offset, weight, terms, bias, out + p, 0);
    for (; p + VS_LANES < positions; p += 2 * VS_LANES)
        vs_sum1_2(in + p, offset, weight, terms, bias, out + p, 0);
    for (; p < positions; p += VS_LANES)
        vs_sum1_1(in + p, offset, weight, terms, bias, out + p, 0);
}
