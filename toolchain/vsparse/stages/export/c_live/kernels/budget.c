/* The second tier: every margin over the last activation, then those that are open back to the input, where they are at most `budget`.
   Returns the least margin, no less than the one that is given. */
static float vs_second(float *arena, float *kept, int label, int budget, float least)
{
    float *const margin = kept + VS_MARGINS_AT;
    int open = 0, at = 0;
    for (int i = 0; i < PREFIX_CLASSES; i++) {
        margin[i] = i == label ? FLT_MAX : vs_backward(arena, kept, label, i, 0);
        open += !(margin[i] > 0.0f);
    }
    for (int going = open <= budget;;) {
        float found;
        at = 0;
        for (int i = 1; i < PREFIX_CLASSES; i++)
            at = margin[i] < margin[at] ? i : at;
        if (!going || margin[at] > 0.0f)
            return margin[at] > least ? margin[at] : least;
        found = vs_backward(arena, kept, label, at, 1);
        going = found > 0.0f; /* else this one stays open, and no other is worth a pass */
        margin[at] = found > margin[at] ? found : margin[at];
    }
}

int prefix_certify_budget_in(float *arena, size_t floats, const float *input, float epsilon, int budget, struct prefix_verdict *verdict)
{
    float *const kept = arena + VS_KEPT_AT;
    float margin = -FLT_MAX;
    int label, class;
    if (budget <= 0)
        return prefix_certify_in(arena, floats, input, epsilon, verdict);
    verdict->label = -1;
    verdict->certified = 0;
    verdict->margin = -FLT_MAX;
    if (floats < PREFIX_BACKWARD_ARENA_FLOATS)
        return -1;
    if (!(epsilon >= 0.0f && epsilon <= PREFIX_HIGHEST - PREFIX_LOWEST)) { /* a radius that is none */
        verdict->label = prefix_classify_in(arena + VS_LABEL_AT, floats - VS_LABEL_AT, input);
        return 0;
    }
    label = vs_trace(arena, input, epsilon, kept);
    if (label >= 0)
        margin = vs_margin(arena, label);
    if (!(margin > 0.0f)) {
        class = prefix_classify_in(arena + VS_LABEL_AT, floats - VS_LABEL_AT, input);
        if (label >= 0 && class >= 0) {
            if (class != label)
                margin = vs_margin(arena, class);
            if (!(margin > 0.0f))
                margin = vs_second(arena, kept, class, budget, margin);
        }
        label = class;
    }
    verdict->label = label;
    verdict->certified = label >= 0 && margin > 0.0f;
    verdict->margin = label >= 0 ? margin : -FLT_MAX;
    return 0;
}

#ifndef PREFIX_NO_STATIC_ARENA
int prefix_certify_budget(const float *input, float epsilon, int budget, struct prefix_verdict *verdict)
{
    return prefix_certify_budget_in(vs_arena, PREFIX_BACKWARD_ARENA_FLOATS, input, epsilon, budget, verdict);
}
#endif
