/* The live certificate of any finite input and any radius: a negative one, an infinite one and one that is not a number among them. The
   largest radius is asked of too small an arena alone: it is made of up to ten of the calls that stand here. */
#include <float.h>
#include "@HEADER@"
#include "__fc_builtin.h"

static volatile float any;

int main(void)
{
    static float input[@PREFIX@_INPUTS];
    float arena[@PREFIX@_LIVE_ARENA_FLOATS];
    struct @prefix@_verdict verdict;
    for (int i = 0; i < @PREFIX@_INPUTS; i++)
        input[i] = Frama_C_float_interval(-FLT_MAX, FLT_MAX);
    if (@prefix@_certify_in(arena, @PREFIX@_LIVE_ARENA_FLOATS - 1u, input, any, &verdict) != -1 || verdict.certified != 0)
        return -2;
    if (@prefix@_radius_in(arena, @PREFIX@_LIVE_ARENA_FLOATS - 1u, input) != -1.0f)
        return -2;
    (void)@prefix@_certify_in(arena, @PREFIX@_LIVE_ARENA_FLOATS, input, any, &verdict);
    return verdict.certified;
}
