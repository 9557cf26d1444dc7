/* Stores what lies between two values in units of the grid; returns 0, and stores nothing of use, where they have other steps moved outward
   by `many` than by `few`. Most values that a ReLU reads are below zero, and done at once; a call of the rest takes little beside sums of
   so many terms that they need it. */
VS_ONCE static int vs_settled_apart(
    float low, float high, float few, float many, float least, float most, int32_t first, int8_t *out, uint8_t *width)
{
    const int8_t lower = vs_step(low - many, least, most, first), upper = vs_step(high + many, least, most, first);
    vs_enclose(lower, upper, out, width);
    return lower == vs_step(low - few, least, most, first) && upper == vs_step(high + few, least, most, first);
}

VS_INLINE int vs_settled(
    float low, float high, float few, float many, float least, float most, int32_t first, int8_t *out, uint8_t *width)
{
    if (high + many <= least + 0.25f) {
        vs_enclose(vs_step(least, least, most, first), vs_step(least, least, most, first), out, width);
        return 1;
    }
    return vs_settled_apart(low, high, few, many, least, most, first, out, width);
}

/* Stores what lies between two values in units of the grid that both move outward by an error. */
VS_ONCE static void vs_moved(
    float low, float high, float error, float least, float most, int32_t first, int8_t *out, uint8_t *width)
{
    vs_between(low - error, high + error, least, most, first, out, width);
}
