/* Settles `count` results of centres c and radii r: adds `more` to radii, applies max(., 0) where `relu` is set, and enlarges radii for
   what reads them (docs/numerics.md, section 14.2). Returns 1 where one is beyond the limit or is not a number. */
static int vs_settle(float *restrict c, float *restrict r, int count, float more, float growth, int relu)
{
    int beyond = 0;
    for (int i = 0; i < count; i++) {
        float s = c[i], t = r[i] + more, m;
#if VS_LANES > 1 /* without branches, for vectors */
        if (relu) {
            const float h = (s + t) * VS_HALF_UP;
            const int active = s >= t, dead = s <= -t;
            const float a = active ? s : h, b = active ? t : h;
            s = dead ? 0.0f : a;
            t = dead ? 0.0f : b;
        }
#else
        if (relu && !(s >= t)) {
            if (s <= -t) {
                c[i] = 0.0f;
                r[i] = 0.0f;
                continue;
            }
            s = (s + t) * VS_HALF_UP;
            t = s;
        }
#endif
        m = VS_MAGNITUDE(s) + t;
        beyond |= !(m <= VS_LIMIT);
        c[i] = s;
        r[i] = t + growth * m;
    }
    return beyond;
}

/* The region of an input; returns 1 where it is outside of the data range. */
static int vs_region(const float *x, int count, float epsilon, float lowest, float highest, float more, float *c, float *r)
{
    int beyond = 0;
    for (int i = 0; i < count; i++) {
        const float low = x[i] - epsilon, high = x[i] + epsilon;
        beyond |= !(x[i] >= lowest && x[i] <= highest);
        vs_ends(low < lowest ? lowest : low, high > highest ? highest : high, more, c + i, r + i);
    }
    return beyond;
}
