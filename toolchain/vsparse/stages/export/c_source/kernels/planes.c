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
    else if (step == 2) {
        typedef float vs_four __attribute__((vector_size(16), aligned(4), may_alias));
        for (; j + 4 < count; j += 4)
            *(vs_four *)(to + j) =
                __builtin_shufflevector(*(const vs_four *)(from + 2 * j), *(const vs_four *)(from + 2 * j + 4), 0, 2, 4, 6);
    }
#endif
    for (; j < count; j++)
        to[j] = from[(long)j * step];
}

/* Copies every `sy`-th row and `sx`-th column of each channel, from row `top` and column `left` on, with zeros outside of the map.
   A loop that chose between zeros and a copy for each row was compiled wrongly by gcc 12 (-O3 -march=haswell); an audit found it. */
static void vs_planes(const float *in, int channels, int height, int width, int top, int left, int sy, int sx, int rows, int columns,
                      long step, float *out)
{
    const int y0 = top < 0 ? (-top + sy - 1) / sy : 0, x0 = left < 0 ? (-left + sx - 1) / sx : 0;
    const int y1 = top < height ? (height - top + sy - 1) / sy : 0, x1 = left < width ? (width - left + sx - 1) / sx : 0;
    const int ends = y1 < rows ? y1 : rows, end = x1 < columns ? x1 : columns;
    VS_PARALLEL((long)channels * rows * columns)
    for (int c = 0; c < channels; c++) {
        const float *from = in + (long)c * height * width;
        float *to = out + (long)c * step;
        if (y0 > 0 || ends < rows || x0 > 0 || end < columns)
            memset(to, 0, (size_t)rows * columns * sizeof(float));
        for (int i = y0; i < ends; i++)
            if (x0 < end)
                vs_copy(to + (long)i * columns + x0, from + ((long)i * sy + top) * width + (long)x0 * sx + left, end - x0, sx);
    }
}
