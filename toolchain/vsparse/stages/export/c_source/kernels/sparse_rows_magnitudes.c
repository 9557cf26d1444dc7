/* Eight rows of |W|·x + b side by side, each the sum over its own non-zero weights; shorter rows end in weights of zero. */
static inline void vs_sparse_rows_magnitudes(const float *x, const vs_index *index, const float *weight, int terms, const float *bias,
                                  float *out)
{
    float a = bias[0], b = bias[1], c = bias[2], d = bias[3], e = bias[4], f = bias[5], g = bias[6], h = bias[7];
    for (int k = 0; k < terms; k++, index += 8, weight += 8) {
        a += VS_MAGNITUDE(weight[0]) * x[index[0]];
        b += VS_MAGNITUDE(weight[1]) * x[index[1]];
        c += VS_MAGNITUDE(weight[2]) * x[index[2]];
        d += VS_MAGNITUDE(weight[3]) * x[index[3]];
        e += VS_MAGNITUDE(weight[4]) * x[index[4]];
        f += VS_MAGNITUDE(weight[5]) * x[index[5]];
        g += VS_MAGNITUDE(weight[6]) * x[index[6]];
        h += VS_MAGNITUDE(weight[7]) * x[index[7]];
    }
    out[0] = a, out[1] = b, out[2] = c, out[3] = d, out[4] = e, out[5] = f, out[6] = g, out[7] = h;
}
