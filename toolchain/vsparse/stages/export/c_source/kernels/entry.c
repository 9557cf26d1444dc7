int prefix_logits_in(float *arena, size_t floats, const float *input, float *logits)
{
    if (floats < PREFIX_ARENA_FLOATS)
        return -1;
    vs_network(arena, input, logits);
    return 0;
}

int prefix_classify_in(float *arena, size_t floats, const float *input)
{
    float logits[PREFIX_CLASSES];
    int best = 0;
    if (prefix_logits_in(arena, floats, input, logits) != 0)
        return -1;
    for (int i = 0; i < PREFIX_CLASSES; i++) {
        if (!(logits[i] >= -FLT_MAX && logits[i] <= FLT_MAX))
            return -1;
        if (logits[i] > logits[best])
            best = i;
    }
    return best;
}

#ifndef PREFIX_NO_STATIC_ARENA
static float vs_arena[PREFIX_ARENA_FLOATS] VS_ALIGNED;

void prefix_logits(const float *input, float *logits)
{
    vs_network(vs_arena, input, logits);
}

int prefix_classify(const float *input)
{
    return prefix_classify_in(vs_arena, PREFIX_ARENA_FLOATS, input);
}
#endif
