/* Writes the positions that are outputs, row by row, after max(·, 0) where `relu` is set; the others are left behind. */
static inline void vs_store_planes(const float *restrict sums, int pitch, int channels, int height, int width, int columns, int relu,
                                   float *restrict out)
{
    for (int c = 0; c < channels; c++)
        for (int i = 0; i < height; i++) {
            const float *from = sums + (long)c * pitch + i * columns;
            float *to = out + ((long)c * height + i) * width;
            for (int j = 0; j < width; j++)
                to[j] = relu && from[j] < 0.0f ? 0.0f : from[j];
        }
}
