/* Tables of bytes begin where words do. */
#if defined(__GNUC__)
#define VS_WORDS __attribute__((aligned(4)))
#define VS_INLINE static inline __attribute__((always_inline, unused))
#else
#define VS_WORDS
#define VS_INLINE static inline
#endif
/* Whether a value is not a number. By its bits: an option that assumes that all are numbers (clang's -fno-honor-nans) leaves them alone.
   Otherwise as C99 says it, which a tool that interprets the text on intervals follows. */
VS_INLINE uint32_t vs_is_nan(float value)
{
#if defined(__GNUC__)
    uint32_t bits;
    memcpy(&bits, &value, sizeof bits);
    return (bits & 0x7FFFFFFFu) > 0x7F800000u ? 1u : 0u;
#else
    return !(value <= FLT_MAX) && !(value > FLT_MAX) ? 1u : 0u;
#endif
}

/* Sums of products of int8 in int32, exact in any order: with vectors of 16 (MVE), or two products at a time (the DSP extension). */
#if defined(__GNUC__) && defined(__ARM_FEATURE_MVE)
#include <arm_mve.h>
#define VS_MVE 1
#define VS_DSP 0
#elif defined(__GNUC__) && defined(__ARM_FEATURE_DSP) && defined(__thumb__)
#define VS_MVE 0
#define VS_DSP 1
#else
#define VS_MVE 0
#define VS_DSP 0
#endif

#if VS_DSP
VS_INLINE uint32_t vs_word(const int8_t *from)
{
    uint32_t word;
    memcpy(&word, from, sizeof word);
    return word;
}

/* Bytes 0 and 2, and 1 and 3, of a word, as two numbers of 16 bits. */
VS_INLINE uint32_t vs_even(uint32_t word)
{
    uint32_t pair;
    __asm__ volatile("sxtb16 %0, %1" : "=r"(pair) : "r"(word));
    return pair;
}

VS_INLINE uint32_t vs_odd(uint32_t word)
{
    uint32_t pair;
    __asm__ volatile("sxtb16 %0, %1, ror #8" : "=r"(pair) : "r"(word));
    return pair;
}

VS_INLINE int32_t vs_pair(int32_t sum, uint32_t a, uint32_t b)
{
    int32_t more;
    __asm__ volatile("smlad %0, %1, %2, %3" : "=r"(more) : "r"(a), "r"(b), "r"(sum));
    return more;
}
#endif

/* Rounds half to even and clamps to the steps from `low` to `high`: 1.5 * 2^23 leaves the integer in the low bits. Returns the distance
   from `first`, the least step of the grid, minus 128. */
VS_INLINE int8_t vs_step(float value, float low, float high, int32_t first)
{
    uint32_t bits;
    value = value > low ? value : low;
    value = value < high ? value : high;
    value += 12582912.0f;
    memcpy(&bits, &value, sizeof bits);
    return (int8_t)(int32_t)(bits - 0x4B400000u - (uint32_t)(first + 128));
}

/* The same for a value of at most 2^22 in magnitude, which is rounded before it is clamped, from `least` on. */
VS_INLINE int8_t vs_near(float value, int32_t least, int32_t first)
{
    uint32_t bits;
    int32_t step;
    value += 12582912.0f;
    memcpy(&bits, &value, sizeof bits);
    step = (int32_t)bits - 0x4B400000 - first - 128;
    step = step < 127 ? step : 127;
    return (int8_t)(step > least ? step : least);
}
