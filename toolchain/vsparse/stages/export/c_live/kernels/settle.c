#if VS_LANES > 1
#define VS_CHOICE(mask, one, other) ((vs_vec)(((vs_vec_bits)(one) & (mask)) | ((vs_vec_bits)(other) & ~(mask))))

/* Whether a lane is set. */
static inline int vs_any(vs_vec_bits mask)
{
    int any = 0;
    for (int i = 0; i < VS_LANES; i++)
        any |= mask[i];
    return any != 0;
}
#endif

/* Settles `count` results of centres c and radii r: adds `more` to radii, applies max(., 0) where `relu` is set, and enlarges radii for
   what reads them (docs/numerics.md, section 14.2). Returns 1 where one is beyond the limit or is not a number. */
static int vs_settle(float *restrict c, float *restrict r, int count, float more, float growth, int relu)
{
    int beyond = 0, i = 0;
#if VS_LANES > 1
    vs_vec_bits over = {0};
    for (; i + VS_LANES <= count; i += VS_LANES) {
        vs_vec s = *(const vs_vec *)(c + i), t = *(const vs_vec *)(r + i) + more, m;
        if (relu) {
            const vs_vec h = (s + t) * VS_HALF_UP;
            const vs_vec_bits active = (vs_vec_bits)(s >= t), alive = ~(vs_vec_bits)(s <= -t);
            s = (vs_vec)((vs_vec_bits)VS_CHOICE(active, s, h) & alive);
            t = (vs_vec)((vs_vec_bits)VS_CHOICE(active, t, h) & alive);
        }
        m = vs_magnitude(s) + t;
        over |= ~(vs_vec_bits)(m <= VS_LIMIT);
        *(vs_vec *)(c + i) = s;
        *(vs_vec *)(r + i) = t + growth * m;
    }
    beyond = vs_any(over);
#endif
    for (; i < count; i++) {
        float s = c[i], t = r[i] + more, m;
        if (relu) {
            if (s <= -t) {
                c[i] = 0.0f;
                r[i] = 0.0f;
                continue;
            }
            if (!(s >= t)) {
                s = (s + t) * VS_HALF_UP;
                t = s;
            }
        }
        m = VS_MAGNITUDE(s) + t;
        beyond |= !(m <= VS_LIMIT);
        c[i] = s;
        r[i] = t + growth * m;
    }
    return beyond;
}

/* The region of an input; returns 1 where it is outside of the data range. */
static int vs_region(const float *x, int count, float epsilon, float lowest, float highest, float more, float *restrict c,
                     float *restrict r)
{
    int beyond = 0, i = 0;
#if VS_LANES > 1
    vs_vec_bits over = {0};
    for (; i + VS_LANES <= count; i += VS_LANES) {
        const vs_vec at = *(const vs_vec *)(x + i), zero = VS_ZERO, least = zero + lowest, most = zero + highest;
        const vs_vec below = at - epsilon, above = at + epsilon;
        const vs_vec low = VS_CHOICE((vs_vec_bits)(below < least), least, below), high = VS_CHOICE((vs_vec_bits)(above > most), most, above);
        const vs_vec middle = 0.5f * (low + high), up = high - middle, down = middle - low;
        over |= ~((vs_vec_bits)(at >= least) & (vs_vec_bits)(at <= most));
        *(vs_vec *)(c + i) = middle;
        *(vs_vec *)(r + i) = VS_CHOICE((vs_vec_bits)(up > down), up, down) * VS_WIDER + more;
    }
    beyond = vs_any(over);
#endif
    for (; i < count; i++) {
        const float low = x[i] - epsilon, high = x[i] + epsilon;
        beyond |= !(x[i] >= lowest && x[i] <= highest);
        vs_ends(low < lowest ? lowest : low, high > highest ? highest : high, more, c + i, r + i);
    }
    return beyond;
}
