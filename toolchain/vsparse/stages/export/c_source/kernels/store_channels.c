/* Writes sums [points][16] of up to 16 output channels to out [channel][positions], after max(·, 0) where `relu` is set. */
static inline void vs_store_channels(const float *sums, int points, int channels, float *out, int positions, int relu)
{
    for (int c = 0; c < 16 && c < channels; c++)
        for (int p = 0; p < points; p++)
            out[c * positions + p] = relu && sums[16 * p + c] < 0.0f ? 0.0f : sums[16 * p + c];
}
