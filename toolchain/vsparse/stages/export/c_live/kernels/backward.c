/* What the interval pass keeps for backward passes, and these (docs/numerics.md, section 16). */
VS_MAYBE static void vs_magnitudes(const float *c, const float *r, int count, float *m)
{
    for (int i = 0; i < count; i++)
        m[i] = VS_MAGNITUDE(c[i]) + r[i];
}

VS_MAYBE static void vs_charge(float *cost, int count, float factor, float constant)
{
    for (int i = 0; i < count; i++)
        cost[i] = cost[i] * factor + constant;
}

/* What an activation that several operators read is charged with. */
VS_MAYBE static void vs_share(const float *c, const float *r, int count, float *cost)
{
    for (int i = 0; i < count; i++)
        cost[i] = (VS_MAGNITUDE(c[i]) + r[i]) * VS_ONE_ROUNDING + VS_FLOOR;
}

VS_MAYBE static void vs_keep(const float *c, const float *r, int count, float growth, float *centre, float *radius)
{
    for (int i = 0; i < count; i++) {
        centre[i] = c[i];
        radius[i] = r[i] + growth * (VS_MAGNITUDE(c[i]) + r[i]);
    }
}

/* Slope and offset of the line above max(., 0) where it is neither: 0 where it is 0, 1 where it changes nothing. */
VS_MAYBE static void vs_slopes(const float *c, const float *r, int count, float more, float spare, float *slope, float *offset)
{
    for (int i = 0; i < count; i++) {
        const float t = r[i] + more;
        if (c[i] <= -t) {
            slope[i] = 0.0f;
            offset[i] = VS_FLOOR;
        } else if (c[i] >= t) {
            slope[i] = 1.0f;
            offset[i] = VS_FLOOR;
        } else {
            slope[i] = (c[i] + t) / (t + t) * VS_UP + VS_FLOOR;
            offset[i] = (t - c[i]) * slope[i] * spare + VS_FLOOR;
        }
    }
}

VS_MAYBE static float vs_total(const float *a, int count)
{
    VS_SUM(VS_EIGHT(a + i), a[i]);
}

VS_MAYBE static float vs_product(const float *a, const float *b, int count)
{
    VS_SUM(VS_EIGHT(a + i) * VS_EIGHT(b + i), a[i] * b[i]);
}

VS_MAYBE static float vs_cost(const float *a, const float *cost, int count)
{
    VS_SUM(VS_EIGHT_MAGNITUDES(VS_EIGHT(a + i)) * VS_EIGHT(cost + i), VS_MAGNITUDE(a[i]) * cost[i]);
}

/* The least value of an activation's coefficients over its interval. */
VS_MAYBE static float vs_least(const float *a, const float *c, const float *r, int count)
{
    VS_SUM(VS_EIGHT(a + i) * VS_EIGHT(c + i) - VS_EIGHT_MAGNITUDES(VS_EIGHT(a + i)) * VS_EIGHT(r + i),
           a[i] * c[i] - VS_MAGNITUDE(a[i]) * r[i]);
}

/* Each channel's bias times the sum of its coefficients. */
VS_MAYBE static float vs_biases(const float *a, const float *bias, int channels, int positions)
{
    float sum = 0.0f;
    for (int o = 0; o < channels; o++)
        sum += bias[o] * vs_total(a + (long)o * positions, positions);
    return sum;
}

/* Passes coefficients through max(., 0), in place: the lower line where they are positive, the upper where they are negative. Returns what
   that takes from the bound. */
VS_MAYBE static float vs_below(const float *a, const float *offset, int count)
{
#if VS_LANES > 1
    const vs_eight none = {0}, least = none + VS_FLOOR;
#endif
    VS_SUM(VS_EIGHT(a + i) * VS_PICK(VS_EIGHT(a + i) < none, -VS_EIGHT(offset + i), least), a[i] * (a[i] < 0.0f ? -offset[i] : VS_FLOOR));
}

VS_MAYBE static float vs_relu_back(float *a, const float *slope, const float *offset, int count)
{
    const float part = vs_below(a, offset, count);
    for (int i = 0; i < count; i++)
        a[i] *= a[i] < 0.0f ? slope[i] : slope[i] > VS_HALF ? 1.0f : 0.0f;
    return part;
}

/* Maxima whose coefficients are negative are at most the highest end, but for those that are one element. */
VS_MAYBE static float vs_tops(const float *a, const float *best, const float *top, int count)
{
#if VS_LANES > 1
    const vs_eight none = {0};
#endif
    VS_SUM(VS_PICK((VS_EIGHT(a + i) < none) & (VS_EIGHT(best + i) >= none), VS_EIGHT(a + i) * VS_EIGHT(top + i), none),
           a[i] < 0.0f && best[i] >= 0.0f ? a[i] * top[i] : 0.0f);
}

/* The others are at least, or are, the element best[i], or -1 - best[i]. */
VS_MAYBE static void vs_pool_back(const float *a, const float *best, int count, int elements, float *to)
{
    memset(to, 0, (size_t)elements * sizeof(float));
    for (int i = 0; i < count; i++)
        if (!(a[i] < 0.0f && best[i] >= 0.0f))
            to[(int)(best[i] < 0.0f ? -1.0f - best[i] : best[i])] += a[i];
}

/* Adds coefficients of another reader of an activation; returns what that is charged with. */
VS_MAYBE static float vs_join(float *a, const float *more, const float *cost, int count)
{
    for (int i = 0; i < count; i++)
        a[i] += more[i];
    return vs_cost(a, cost, count);
}

#if VS_LANES > 1
typedef float vs_quad __attribute__((vector_size(16), aligned(4), may_alias));
#define VS_QUAD(FROM) (*(const vs_quad *)(FROM))
/* Adds `rows` outputs' share to four sums, whose weights lie `s` floats apart. */
static inline __attribute__((always_inline)) void vs_quad_back(const float *t, const float *w, int rows, long s, float *sums)
{
    vs_quad all = VS_QUAD(sums);
    int i = 0;
#if defined(__clang__) || __GNUC__ >= 12
    for (; i + 4 <= rows; i += 4) {
        const vs_quad r0 = VS_QUAD(w + i), r1 = VS_QUAD(w + s + i), r2 = VS_QUAD(w + 2 * s + i), r3 = VS_QUAD(w + 3 * s + i);
        const vs_quad a = __builtin_shufflevector(r0, r1, 0, 4, 1, 5), b = __builtin_shufflevector(r2, r3, 0, 4, 1, 5);
        const vs_quad c = __builtin_shufflevector(r0, r1, 2, 6, 3, 7), d = __builtin_shufflevector(r2, r3, 2, 6, 3, 7);
        all += __builtin_shufflevector(a, b, 0, 1, 4, 5) * t[i];
        all += __builtin_shufflevector(a, b, 2, 3, 6, 7) * t[i + 1];
        all += __builtin_shufflevector(c, d, 0, 1, 4, 5) * t[i + 2];
        all += __builtin_shufflevector(c, d, 2, 3, 6, 7) * t[i + 3];
    }
#endif
    for (; i < rows; i++) {
        const vs_quad column = {w[i], w[s + i], w[2 * s + i], w[3 * s + i]};
        all += column * t[i];
    }
    *(vs_quad *)sums = all;
}
#endif

/* Adds `rows` outputs' share to the coefficients of `terms` inputs, row after row: weight [terms][stride]; input k is index[k], or k. */
VS_MAYBE static void vs_rows_back(const float *t, const float *weight, int terms, int rows, int stride, const vs_index *index, float *a)
{
    int k = 0;
    for (; k + 4 <= terms; k += 4) {
        const float *const w = weight + (size_t)k * (size_t)stride;
#if VS_LANES > 1
        if (index) {
            float sums[4] = {a[index[k]], a[index[k + 1]], a[index[k + 2]], a[index[k + 3]]};
            vs_quad_back(t, w, rows, stride, sums);
            for (int j = 0; j < 4; j++)
                a[index[k + j]] = sums[j];
        } else {
            vs_quad_back(t, w, rows, stride, a + k);
        }
#else
        const float *const w1 = w + stride, *const w2 = w1 + stride, *const w3 = w2 + stride;
        float *const a0 = a + (index ? index[k] : k), *const a1 = a + (index ? index[k + 1] : k + 1);
        float *const a2 = a + (index ? index[k + 2] : k + 2), *const a3 = a + (index ? index[k + 3] : k + 3);
        float s0 = *a0, s1 = *a1, s2 = *a2, s3 = *a3;
        for (int i = 0; i < rows; i++) {
            const float v = t[i];
            s0 += w[i] * v;
            s1 += w1[i] * v;
            s2 += w2[i] * v;
            s3 += w3[i] * v;
        }
        *a0 = s0, *a1 = s1, *a2 = s2, *a3 = s3;
#endif
    }
    for (int left = terms & 3; left > 0; left--, k++) { /* at most three, which gcc knows by that alone */
        const float *const w = weight + (size_t)k * (size_t)stride;
        const size_t at = index ? (size_t)index[k] : (size_t)k;
        float sum = a[at];
        for (int i = 0; i < rows; i++)
            sum += w[i] * t[i];
        a[at] = sum;
    }
}

/* The same of rows with lists of their own, eight side by side: row i stands at place[i]. */
VS_MAYBE static void vs_lists_back(const float *t, const vs_index *index, const uint32_t *start, const float *weight, const vs_index *place,
                                   int rows, float *a)
{
    for (int i = 0; i < rows; i++) {
        const float v = t[i];
        if (v == 0.0f)
            continue;
        for (long k = start[place[i] / 8]; k < (long)start[place[i] / 8 + 1]; k++)
            a[index[8 * k + place[i] % 8]] += weight[8 * k + place[i] % 8] * v;
    }
}

/* Copies maps to rows of `pitch` floats, with zeros behind each, `step` floats a channel. */
VS_MAYBE static void vs_widen(const float *t, int channels, int height, int width, int pitch, int step, float *wide)
{
    memset(wide, 0, (size_t)channels * (size_t)step * sizeof(float));
    for (int c = 0; c < channels; c++, wide += step)
        for (int y = 0; y < height; y++, t += width)
            memcpy(wide + (long)y * pitch, t, (size_t)width * sizeof(float));
}

/* Adds the share of four output channels to the grid of the input, a tap of the filter after the other: weight [channels][taps][block]. */
VS_MAYBE static void vs_four_back(const float *t, int step, const float *weight, int block, int channels, int taps, const vs_index *at,
                                  int run, float *grid)
{
    const float *const t1 = t + step, *const t2 = t1 + step, *const t3 = t2 + step;
    for (int tap = 0; tap < taps; tap++)
        for (int k = tap; k < channels * taps; k += taps) {
            const float *const w = weight + (long)k * block;
            const float w0 = w[0], w1 = w[1], w2 = w[2], w3 = w[3];
            float *const g = grid + at[k];
#if VS_LANES > 1
            if (run > 1) { /* whole vectors: behind a run there are zeros; a map of one element has no copy, and other channels behind it */
                for (int p = 0; p < run; p += VS_LANES) {
                    vs_vec sum = *(const vs_vec *)(g + p);
                    sum += w0 * *(const vs_vec *)(t + p);
                    sum += w1 * *(const vs_vec *)(t1 + p);
                    sum += w2 * *(const vs_vec *)(t2 + p);
                    sum += w3 * *(const vs_vec *)(t3 + p);
                    *(vs_vec *)(g + p) = sum;
                }
                continue;
            }
#endif
            for (int p = 0; p < run; p++) {
                float sum = g[p];
                sum += w0 * t[p];
                sum += w1 * t1[p];
                sum += w2 * t2[p];
                sum += w3 * t3[p];
                g[p] = sum;
            }
        }
}

/* The same of one channel, a list of weights. */
VS_MAYBE static void vs_list_back(const float *t, const float *weight, int terms, const vs_index *at, int run, float *grid)
{
    for (int k = 0; k < terms; k++) {
        float *const g = grid + at[k];
#if VS_LANES > 1
        if (run > 1) {
            for (int p = 0; p < run; p += VS_LANES)
                *(vs_vec *)(g + p) += weight[k] * *(const vs_vec *)(t + p);
            continue;
        }
#endif
        for (int p = 0; p < run; p++)
            g[p] += weight[k] * t[p];
    }
}

/* Takes the coefficients of a map from its grid, zero where no window reads it. */
VS_MAYBE static void vs_from_grid(const float *grid, int channels, int height, int width, int top, int left, int sy, int sx, int rows,
                                  int pitch, float *a)
{
    const int plane = rows * pitch;
    memset(a, 0, (size_t)channels * (size_t)height * (size_t)width * sizeof(float));
    for (int c = 0; c < channels; c++, grid += (long)sy * sx * plane)
        for (int i = 0; i < height; i++, a += width) {
            const int y = i + top, row = y / sy;
            const float *const from = grid + (long)(y % sy * sx) * plane + (long)(row < rows ? row : 0) * pitch;
            for (int phase = 0; phase < sx && row < rows; phase++) /* every sx-th column is a run */
                for (int j = (phase + sx - left % sx) % sx, x = (j + left) / sx; j < width && x < pitch; j += sx, x++)
                    a[j] = from[(long)phase * plane + x];
        }
}

/* Adds each coefficient of an average to those of its window. */
VS_MAYBE static void vs_average_back(const float *t, int channels, int height, int width, int kh, int kw, int sy, int sx, int rows,
                                     int columns, float part, float *a)
{
    memset(a, 0, (size_t)channels * (size_t)rows * (size_t)columns * sizeof(float));
    for (int c = 0; c < channels; c++, a += (long)rows * columns)
        for (int i = 0; i < height; i++)
            for (int j = 0; j < width; j++) {
                float *const to = a + (long)i * sy * columns + (long)j * sx;
                const float value = *t++ * part;
                VS_STORED;
                for (int y = 0; y < kh; y++)
                    for (int x = 0; x < kw; x++)
                        to[(long)y * columns + x] += value;
            }
}
