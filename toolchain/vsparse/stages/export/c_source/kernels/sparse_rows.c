/* Sixteen rows of W·x + b side by side, each the sum over its own non-zero weights; shorter rows end in weights of zero. */
#if VS_LANES > 1
typedef float vs_four __attribute__((vector_size(16), aligned(4), may_alias));
#define VS_TAKE(I) {x[index[I]], x[index[(I) + 1]], x[index[(I) + 2]], x[index[(I) + 3]]}
VS_INLINE void vs_sparse_slice(const float *x, const vs_index *index, const float *weight, int terms, const float *bias, float *sums)
{
    const vs_four *begin = (const vs_four *)bias;
    vs_four s0 = begin[0], s1 = begin[1], s2 = begin[2], s3 = begin[3];
    for (int k = 0; k < terms; k++, index += 16, weight += 16) {
        const vs_four *w = (const vs_four *)weight;
        const vs_four y0 = VS_TAKE(0), y1 = VS_TAKE(4), y2 = VS_TAKE(8), y3 = VS_TAKE(12);
        s0 += w[0] * y0;
        s1 += w[1] * y1;
        s2 += w[2] * y2;
        s3 += w[3] * y3;
    }
    vs_four *to = (vs_four *)sums;
    to[0] = s0, to[1] = s1, to[2] = s2, to[3] = s3;
}
#else
VS_INLINE void vs_sparse_slice(const float *x, const vs_index *index, const float *weight, int terms, const float *bias, float *sums)
{
    for (int i = 0; i < 16; i++) {
        float sum = bias[i];
        for (int k = 0; k < terms; k++)
            sum += weight[16 * k + i] * x[index[16 * k + i]];
        sums[i] = sum;
    }
}
#endif

/* `count` rows; slice i has the terms start[i] … start[i + 1] - 1, and row[] says which output each of its rows is. */
static void vs_sparse_rows(const float *x, const vs_index *index, const uint32_t *start, const float *weight, const float *bias,
                           const vs_index *row, int count, float *out, int relu)
{
    const int slices = (count + 15) / 16;
    VS_PARALLEL(16L * start[slices])
    for (int i = 0; i < slices; i++) {
        float sums[16];
        const long from = 16L * start[i];
        vs_sparse_slice(x, index + from, weight + from, (int)(start[i + 1] - start[i]), bias + 16 * i, sums);
        for (int r = 0; r < 16 && 16 * i + r < count; r++)
            out[row[16 * i + r]] = relu && sums[r] < 0.0f ? 0.0f : sums[r];
    }
}
