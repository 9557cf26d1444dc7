/* What the interval pass keeps of steps for backward passes, and what these do element by element (docs/numerics.md, section 17). */

/* A line above or below the steps first .. last of a sum T that is m * T in units of their grid, as slope and offset by which T less its
   bias is passed: `slope` in units of the grid, `corner` where the line may touch, `sign` 1 above and -1 below. */
VS_MAYBE static void vs_line(float *line, float slope, float corner, float first, float last, float end, float sign, float size, float m,
                             float bias, float back, float spare)
{
    const float one = last - slope * corner, other = first - slope * end, step = slope * m;
    float offset = (sign * one > sign * other ? one : other) + step * bias;
    offset += sign * (VS_MAGNITUDE(offset) * spare + size * VS_FEW + slope * back);
    line[0] = step;
    line[1] = offset;
}

/* Both lines of one unit: `least` and `most` are the ends of m * T, of magnitudes up to `size`; its steps are low .. low + width, each taken
   within `half` of it. Slopes are those of the envelopes of the stairs at the middle, and of max(., 0) 0 or 1 below. */
VS_MAYBE static void vs_lines(float *line, float least, float most, float size, float m, float bias, float half, float back, int32_t low,
                              int32_t width, float spare, int relu)
{
    const float first = (float)low, last = (float)(low + width), span = (float)width, middle = 0.5f * (least + most);
    const float above = last - half, below = first + half;
    const float ends = VS_MAGNITUDE(first) + VS_MAGNITUDE(last) + half, reach = size + VS_MAGNITUDE(bias) * m;
    float up = 0.0f, down = 0.0f;
    if (width == 0) {
        line[0] = line[2] = 0.0f;
        line[1] = first - VS_MAGNITUDE(first) * spare;
        line[3] = first + VS_MAGNITUDE(first) * spare;
        return;
    }
    if (middle < above)
        up = span < above - least ? span / (above - least) : 1.0f;
    if (relu && least < 0.0f && most > 0.0f)
        down = most > -least ? 1.0f : 0.0f;
    else if (middle > below)
        down = span < most - below ? span / (most - below) : 1.0f;
    vs_line(line, down, most < below ? most : below, last, first, most, -1.0f, ends + down * reach, m, bias, back, spare);
    vs_line(line + 2, up, least > above ? least : above, first, last, least, 1.0f, ends + up * reach, m, bias, back, spare);
}

/* The same of an exact sum between two ends, whose rounding to the grid moves by `error`. */
VS_MAYBE static void vs_sum_lines(float *line, int32_t least, int32_t most, float m, float bias, float error, int32_t low, int32_t width,
                                  float share, float spare, int relu)
{
    const float lower = (float)least * m, upper = (float)most * m, size = upper > -lower ? upper : -lower;
    const float back = ((error - VS_STEP) + error * VS_TINY) * share;
    vs_lines(line, lower, upper, size, m, bias, (0.5f + error) * VS_UP, back, low, width, spare, relu);
}

VS_MAYBE static float vs_smaller(float one, float other)
{
    return one < other ? one : other;
}

/* The lower or upper end of one of `count` activations, `steps` and behind them their widths, moved outward for the sum that it is in. */
VS_INLINE float vs_end(const int8_t *steps, int count, int i, int zero, float spare, int above)
{
    const float end = (float)(steps[i] - zero + (above ? (int)(uint8_t)steps[count + i] : 0));
    return above ? end + VS_MAGNITUDE(end) * spare : end - VS_MAGNITUDE(end) * spare;
}

VS_MAYBE static float vs_farther(const int8_t *steps, int count, int i, int zero, float spare)
{
    const float low = vs_end(steps, count, i, zero, spare, 0), high = vs_end(steps, count, i, zero, spare, 1);
    return -low > high ? -low : high;
}

/* The least value of coefficients over an activation. */
VS_MAYBE static float vs_least(const float *a, const int8_t *steps, int count, int zero, float spare)
{
    VS_SUM(0.0f, a[i] * vs_end(steps, count, i, zero, spare, a[i] < 0.0f));
}

VS_MAYBE static float vs_offsets(const float *a, const float *line, int count)
{
    VS_SUM(0.0f, a[i] * line[4 * i + (a[i] < 0.0f ? 3 : 1)]);
}

/* Passes coefficients to the sums behind the steps, in place: the lower line where they are positive, the upper where they are negative.
   Returns what the offsets of these lines add to the bound. */
VS_MAYBE static float vs_unround(float *a, const float *line, int count)
{
    const float part = vs_offsets(a, line, count);
    for (int i = 0; i < count; i++)
        a[i] *= line[4 * i + (a[i] < 0.0f ? 2 : 0)];
    return part;
}

/* Adds a multiple of integers to coefficients. */
VS_INLINE void vs_spread_row(float t, const int8_t *w, int count, float *a)
{
    int k = 0;
    for (; k + 4 <= count; k += 4) {
        const float w0 = (float)w[k], w1 = (float)w[k + 1], w2 = (float)w[k + 2], w3 = (float)w[k + 3];
        a[k] += w0 * t;
        a[k + 1] += w1 * t;
        a[k + 2] += w2 * t;
        a[k + 3] += w3 * t;
    }
    for (; k < count; k++)
        a[k] += (float)w[k] * t;
}

/* Maxima of windows, three numbers for each: the element with the highest lower end as its index and one, negative where it is the largest,
   0 where there is no window; the highest end; and what a unit of a coefficient costs that is passed to the element. */
VS_MAYBE static float vs_tops(const float *a, const float *best, int count)
{
    VS_SUM(0.0f, a[i] < 0.0f && best[3 * i] > 0.0f ? a[i] * best[3 * i + 1] : -VS_MAGNITUDE(a[i]) * best[3 * i + 2]);
}

VS_MAYBE static void vs_pool_back(const float *a, const float *best, int count, float *to)
{
    for (int i = 0; i < count; i++) {
        const float at = best[3 * i];
        if (at != 0.0f && !(a[i] < 0.0f && at > 0.0f))
            to[(int)(at < 0.0f ? -at : at) - 1] += a[i];
    }
}
