/* Both tiers of the live certificate of any finite input, any radius and any budget. */
#include <float.h>
#include "@HEADER@"
#include "__fc_builtin.h"

static volatile float any;
static volatile int passes;

int main(void)
{
    static float input[@PREFIX@_INPUTS];
    float arena[@PREFIX@_BACKWARD_ARENA_FLOATS];
    struct @prefix@_verdict verdict;
    for (int i = 0; i < @PREFIX@_INPUTS; i++)
        input[i] = Frama_C_float_interval(-FLT_MAX, FLT_MAX);
    if (@prefix@_certify_budget_in(arena, @PREFIX@_BACKWARD_ARENA_FLOATS - 1u, input, any, passes, &verdict) != -1 || verdict.certified != 0)
        return -2;
    (void)@prefix@_certify_budget_in(arena, @PREFIX@_BACKWARD_ARENA_FLOATS, input, any, passes, &verdict);
    return verdict.certified;
}
