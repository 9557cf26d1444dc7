/* Stores the steps of a grid from one to another: the lower (an int8 as inference keeps it), and how many the upper is above it. */
VS_INLINE void vs_enclose(int32_t low, int32_t high, int8_t *out, uint8_t *width)
{
    *out = (int8_t)low;
    *width = (uint8_t)(high - low);
}

/* The same of two values in units of the grid. */
VS_INLINE void vs_between(float low, float high, float least, float most, int32_t first, int8_t *out, uint8_t *width)
{
    vs_enclose(vs_step(low, least, most, first), vs_step(high, least, most, first), out, width);
}

#if VS_DSP
/* Unsigned bytes 0 and 2, and 1 and 3, of a word, as two numbers of 16 bits. */
VS_INLINE uint32_t vs_even_unsigned(uint32_t word)
{
    uint32_t pair;
    __asm__ volatile("uxtb16 %0, %1" : "=r"(pair) : "r"(word));
    return pair;
}

VS_INLINE uint32_t vs_odd_unsigned(uint32_t word)
{
    uint32_t pair;
    __asm__ volatile("uxtb16 %0, %1, ror #8" : "=r"(pair) : "r"(word));
    return pair;
}

/* max(., 0) of two numbers of 16 bits, of at most 127. */
VS_INLINE uint32_t vs_above(uint32_t pair)
{
    uint32_t result;
    __asm__ volatile("usat16 %0, #7, %1" : "=r"(result) : "r"(pair));
    return result;
}
#endif
