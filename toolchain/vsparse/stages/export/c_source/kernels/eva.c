/* Every input in the stated range, once with an arena that is too small and once with one of the stated size. */
#include "@HEADER@"
#include "__fc_builtin.h"

int main(void)
{
    static float input[@PREFIX@_INPUTS];
    float arena[@PREFIX@_ARENA_FLOATS];
    for (int i = 0; i < @PREFIX@_INPUTS; i++)
        input[i] = Frama_C_float_interval(@LOWEST@, @HIGHEST@);
    if (@prefix@_classify_in(arena, @PREFIX@_ARENA_FLOATS - 1u, input) != -1)
        return -2;
    return @prefix@_classify_in(arena, @PREFIX@_ARENA_FLOATS, input);
}
