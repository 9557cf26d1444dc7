/* Returns the margin of the label that the centre has, and that label; -1 where something is beyond the limits. */
static float vs_live(float *arena, const float *input, float epsilon, int *label)
{
    *label = vs_bounds(arena, input, epsilon);
    return *label < 0 ? -FLT_MAX : vs_margin(arena, *label);
}

int prefix_certify_in(float *arena, size_t floats, const float *input, float epsilon, struct prefix_verdict *verdict)
{
    int label, class;
    float margin;
    verdict->label = -1;
    verdict->certified = 0;
    verdict->margin = -FLT_MAX;
    if (floats < PREFIX_LIVE_ARENA_FLOATS)
        return -1;
    if (!(epsilon >= 0.0f && epsilon <= PREFIX_HIGHEST - PREFIX_LOWEST)) {
        verdict->label = prefix_classify_in(arena, floats, input);
        return 0;
    }
    margin = vs_live(arena, input, epsilon, &label);
    if (!(margin > 0.0f)) { /* the centre's label need not be the input's */
        class = prefix_classify_in(arena + VS_LABEL_AT, floats - VS_LABEL_AT, input);
        if (label >= 0 && class >= 0 && class != label)
            margin = vs_margin(arena, class);
        label = class;
    }
    verdict->label = label;
    verdict->certified = label >= 0 && margin > 0.0f;
    verdict->margin = label >= 0 ? margin : -FLT_MAX;
    return 0;
}

float prefix_radius_in(float *arena, size_t floats, const float *input)
{
    const float range = PREFIX_HIGHEST - PREFIX_LOWEST;
    float found = -1.0f, step;
    int label, least = 0, most = 16;
    if (floats < PREFIX_LIVE_ARENA_FLOATS)
        return -1.0f;
    /* The largest power of two below the range that is certified, of the first 15: four radii. */
    while (most - least > 1) {
        const int middle = (least + most) / 2;
        const float tried = range / (float)(1L << middle);
        if (vs_live(arena, input, tried, &label) > 0.0f) {
            found = tried;
            most = middle;
        } else {
            least = middle;
        }
    }
    if (found < 0.0f) /* none: zero, the input alone */
        return vs_live(arena, input, 0.0f, &label) > 0.0f ? 0.0f : -1.0f;
    /* Between it and the double of it: five more. */
    step = found;
    for (int i = 0; i < 5; i++) {
        const float tried = found + (step *= 0.5f);
        if (vs_live(arena, input, tried, &label) > 0.0f)
            found = tried;
    }
    return found;
}

#ifndef PREFIX_NO_STATIC_ARENA
int prefix_certify(const float *input, float epsilon, struct prefix_verdict *verdict)
{
    return prefix_certify_in(vs_arena, PREFIX_LIVE_ARENA_FLOATS, input, epsilon, verdict);
}

float prefix_radius(const float *input)
{
    return prefix_radius_in(vs_arena, PREFIX_LIVE_ARENA_FLOATS, input);
}
#endif
