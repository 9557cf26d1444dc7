/* The largest magnitude between a step and one that is `width` above it. */
static inline float vs_farthest(int32_t low, int32_t width)
{
    const int32_t high = low + width;
    return (float)(-low > high ? -low : high);
}
