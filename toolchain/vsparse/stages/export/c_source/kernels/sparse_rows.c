/* Sixteen rows of W·x + b side by side, each the sum over its own non-zero weights; shorter rows end in weights of zero. */
#if VS_LANES > 1
/* Four inputs; four indexes of 16 bits are one load, where the first of them has the lowest bits. */
VS_INLINE vs_four vs_take(const float *x, const vs_index *index)
{
#if defined(__BYTE_ORDER__) && __BYTE_ORDER__ == __ORDER_LITTLE_ENDIAN__ && (defined(__x86_64__) || defined(__aarch64__))
    if (sizeof(vs_index) == 2) {
        uint64_t four;
        memcpy(&four, index, sizeof four);
        const vs_four taken = {x[four & 0xffff], x[four >> 16 & 0xffff], x[four >> 32 & 0xffff], x[four >> 48]};
        return taken;
    }
#endif
    const vs_four taken = {x[index[0]], x[index[1]], x[index[2]], x[index[3]]};
    return taken;
}

VS_INLINE void vs_sparse_slice(const float *x, const vs_index *index, const float *weight, int terms, const float *bias, float *sums)
{
    const vs_four *begin = (const vs_four *)bias;
    vs_four s0 = begin[0], s1 = begin[1], s2 = begin[2], s3 = begin[3];
    for (int k = 0; k < terms; k++, index += 16, weight += 16) {
        const vs_four *w = (const vs_four *)weight;
        const vs_four y0 = vs_take(x, index), y1 = vs_take(x, index + 4), y2 = vs_take(x, index + 8), y3 = vs_take(x, index + 12);
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
