/* Copies every `sy`-th row and `sx`-th column of each channel, from row `top` and column `left` on, with zeros outside of the map.
   A loop that chose between zeros and a copy for each row was compiled wrongly by gcc 12 (-O3 -march=haswell); an audit found it. */
static inline void vs_planes(const float *restrict in, int channels, int height, int width, int top, int left, int sy, int sx,
                             int rows, int columns, int step, float *restrict out)
{
    const int y0 = top < 0 ? (-top + sy - 1) / sy : 0, x0 = left < 0 ? (-left + sx - 1) / sx : 0;
    const int y1 = top < height ? (height - top + sy - 1) / sy : 0, x1 = left < width ? (width - left + sx - 1) / sx : 0;
    const int ends = y1 < rows ? y1 : rows, end = x1 < columns ? x1 : columns;
    for (int c = 0; c < channels; c++) {
        const float *from = in + (long)c * height * width;
        float *to = out + (long)c * step;
        memset(to, 0, (size_t)rows * (size_t)columns * sizeof(float));
        for (int i = y0; i < ends; i++)
            for (int j = x0; j < end; j++)
                to[i * columns + j] = from[(i * sy + top) * width + j * sx + left];
    }
}
