/* Centre and radius of numbers from `low` to `high`, whatever the rounding of these ends is worth: `more`. */
static inline void vs_ends(float low, float high, float more, float *c, float *r)
{
    const float middle = 0.5f * (low + high), up = high - middle, down = middle - low;
    *c = middle;
    *r = (up > down ? up : down) * VS_WIDER + more;
}
