/* A compiler that makes wrong masked vectors: gcc 12.2 with AVX-512VL (docs/c.md). Prints how many of 1,000 sums are wrong.

       gcc -O3 -ffp-contract=off -march=skylake-avx512 masked_sums.c -o masked_sums && ./masked_sums
*/
#include <stdio.h>

#define ONE (a[i] < 0.0f && b[3 * i] > 0.0f ? a[i] * b[3 * i + 1] : -__builtin_fabsf(a[i]) * b[3 * i + 2])
#define NEXT(SUM) SUM += ONE; if (++i == count) break

__attribute__((noinline)) static float in_lanes(const float *a, const float *b, int count)
{
    float s0 = 0, s1 = 0, s2 = 0, s3 = 0, s4 = 0, s5 = 0, s6 = 0, s7 = 0;
    for (int i = 0; i < count;) {
        NEXT(s0);
        NEXT(s1);
        NEXT(s2);
        NEXT(s3);
        NEXT(s4);
        NEXT(s5);
        NEXT(s6);
        s7 += ONE;
        i++;
    }
    return ((s0 + s4) + (s2 + s6)) + ((s1 + s5) + (s3 + s7));
}

__attribute__((noinline)) static float one_by_one(const float *a, const float *b, int count)
{
    float s[8] = {0};
    for (volatile int at = 0; at < count; at++) {
        const int i = at;
        s[i % 8] += ONE;
    }
    return ((s[0] + s[4]) + (s[2] + s[6])) + ((s[1] + s[5]) + (s[3] + s[7]));
}

static float drawn(unsigned *state)
{
    *state = *state * 1664525u + 1013904223u;
    return (float)(int)*state / 2147483648.f;
}

int main(void)
{
    static float a[32], b[96];
    unsigned state = 1;
    int wrong = 0;
    for (int t = 0; t < 1000; t++) {
        for (int i = 0; i < 96; i++)
            b[i] = drawn(&state);
        for (int i = 0; i < 32; i++)
            a[i] = drawn(&state);
        wrong += in_lanes(a, b, 32) != one_by_one(a, b, 32);
    }
    printf("%d of 1000 sums are wrong\n", wrong);
    return 0;
}
