/* Eight rows of |W|·x + b side by side are a slice, each row the sum over its own non-zero weights; shorter rows end in weights of zero. */

/* Two slices together, the second `apart` elements behind the first and with at most as many terms. */
VS_INLINE void vs_two_slices_magnitudes(const float *x, const vs_index *index, const float *weight, long apart, int terms, int shorter,
                             const float *bias, const float *second, float *sums)
{
    vs_four s0 = *(const vs_four *)bias, s1 = *(const vs_four *)(bias + 4);
    vs_four s2 = *(const vs_four *)second, s3 = *(const vs_four *)(second + 4);
    int k = 0;
    for (; k < shorter; k++, index += 8, weight += 8) {
        const vs_four y0 = vs_take(x, index), y1 = vs_take(x, index + 4);
        s0 += VS_MAGNITUDES(*(const vs_four *)weight) * y0;
        s1 += VS_MAGNITUDES(*(const vs_four *)(weight + 4)) * y1;
        const vs_four y2 = vs_take(x, index + apart), y3 = vs_take(x, index + apart + 4);
        s2 += VS_MAGNITUDES(*(const vs_four *)(weight + apart)) * y2;
        s3 += VS_MAGNITUDES(*(const vs_four *)(weight + apart + 4)) * y3;
    }
    for (; k < terms; k++, index += 8, weight += 8) {
        const vs_four y0 = vs_take(x, index), y1 = vs_take(x, index + 4);
        s0 += VS_MAGNITUDES(*(const vs_four *)weight) * y0;
        s1 += VS_MAGNITUDES(*(const vs_four *)(weight + 4)) * y1;
    }
    vs_four *to = (vs_four *)sums;
    to[0] = s0, to[1] = s1, to[2] = s2, to[3] = s3;
}

/* `count` rows; slice i has the terms start[i] … start[i + 1] - 1, and row[] says which output each of its rows is. */
static void vs_sparse_slices_magnitudes(const float *x, const vs_index *index, const uint32_t *start, const float *weight, const float *bias,
                             const vs_index *row, int count, float *out, int relu)
{
    const int slices = (count + 7) / 8;
    VS_PARALLEL(8L * start[slices])
    for (int i = 0; i < slices; i += 2) {
        float sums[16];
        const int j = i + 1 < slices ? i + 1 : i; /* an odd one at the end is alone */
        const long from = 8L * start[i];
        vs_two_slices_magnitudes(x, index + from, weight + from, 8L * start[j] - from, (int)(start[i + 1] - start[i]),
                      j > i ? (int)(start[j + 1] - start[j]) : 0, bias + 8 * i, bias + 8 * j, sums);
        for (int r = 0; r < 16 && 8 * i + r < count; r++)
            out[row[8 * i + r]] = relu && sums[r] < 0.0f ? 0.0f : sums[r];
    }
}
