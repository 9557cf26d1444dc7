/* Copies `count` elements, each `step`-th one; nothing behind the last is read. */
VS_INLINE void vs_copy(float *to, const float *from, int count, int step)
{
    int j = 0;
    if (step == 1) {
        for (; j + VS_LANES <= count; j += VS_LANES)
            *(vs_vec *)(to + j) = vs_load(from + j);
        if (j < count && count >= VS_LANES) { /* the last vector overlaps the one before it */
            *(vs_vec *)(to + count - VS_LANES) = vs_load(from + count - VS_LANES);
            return;
        }
    }
#if VS_LANES > 1 && (defined(__clang__) || __GNUC__ >= 12)
#define VS_EVEN(J) \
    *(vs_four *)(to + (J)) = __builtin_shufflevector(*(const vs_four *)(from + 2 * (J)), *(const vs_four *)(from + 2 * (J) + 3), 0, 2, 5, 7)
    else if (step == 2) {
        for (; j + 4 <= count; j += 4)
            VS_EVEN(j);
        if (j < count && count >= 4) {
            VS_EVEN(count - 4);
            return;
        }
    }
#undef VS_EVEN
#endif
    for (; j < count; j++)
        to[j] = from[(long)j * step];
}

/* Copies every `sy`-th row and `sx`-th column of each channel, from row `top` and column `left` on, with zeros outside of the map.
   A loop that chose between zeros and a copy for each row was compiled wrongly by gcc 12 (-O3 -march=haswell); an audit found it. */
static void vs_planes(const float *in, int channels, int height, int width, int top, int left, int sy, int sx, int rows, int columns,
                      long step, float *out)
{
    const int above = top < 0 ? (-top + sy - 1) / sy : 0, before = left < 0 ? (-left + sx - 1) / sx : 0;
    const int below = top < height ? (height - top + sy - 1) / sy : 0, behind = left < width ? (width - left + sx - 1) / sx : 0;
    const int y0 = above < rows ? above : rows, x0 = before < columns ? before : columns;
    const int y1 = below < y0 ? y0 : below < rows ? below : rows, x1 = behind < x0 ? x0 : behind < columns ? behind : columns;
    VS_PARALLEL((long)channels * rows * columns)
    for (int c = 0; c < channels; c++) {
        const float *from = in + (long)c * height * width;
        float *to = out + (long)c * step;
        if (y0 > 0)
            memset(to, 0, (size_t)y0 * (size_t)columns * sizeof(float));
        if (y1 < rows)
            memset(to + (long)y1 * columns, 0, (size_t)(rows - y1) * (size_t)columns * sizeof(float));
        if (sx == 1 && sy == 1 && columns == width) { /* all rows are one run; what of it wraps around is overwritten */
            const long shift = (long)top * width + left, all = (long)height * width;
            const long first = (long)y0 * columns + shift < 0 ? -shift : (long)y0 * columns;
            const long end = (long)y1 * columns + shift > all ? all - shift : (long)y1 * columns;
            long begin = first;
            if (end - first >= 2 * VS_LANES) { /* stores of whole vectors from an even address on */
                *(vs_vec *)(to + first) = vs_load(from + first + shift);
                begin = (first / VS_LANES + 1) * VS_LANES;
            }
            vs_copy(to + begin, from + begin + shift, (int)(end - begin), 1);
        } else {
            for (int i = y0; i < y1; i++)
                vs_copy(to + (long)i * columns + x0, from + ((long)i * sy + top) * width + (long)x0 * sx + left, x1 - x0, sx);
        }
        for (int j = 0; j < columns; j++)
            if (j < x0 || j >= x1)
                for (int i = y0; i < y1; i++)
                    to[(long)i * columns + j] = 0.0f;
    }
}
