/* The largest radius of any finite input. */
#include <float.h>
#include "@HEADER@"
#include "__fc_builtin.h"

int main(void)
{
    static float input[@PREFIX@_INPUTS];
    float arena[@PREFIX@_LIVE_ARENA_FLOATS], found;
    for (int i = 0; i < @PREFIX@_INPUTS; i++)
        input[i] = Frama_C_float_interval(-FLT_MAX, FLT_MAX);
    found = @prefix@_radius_in(arena, @PREFIX@_LIVE_ARENA_FLOATS, input);
    return found >= 0.0f;
}
