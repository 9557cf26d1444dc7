/* Stores what lies between two values on a grid: centre (an int8 as inference keeps it) and radius, rounded outward. */
VS_INLINE void vs_enclose(int32_t low, int32_t high, int8_t *c, uint8_t *r)
{
    const int32_t middle = (low + high + 256) / 2 - 128;
    *c = (int8_t)middle;
    *r = (uint8_t)(high - middle);
}

/* The same of two values in units of the grid. */
VS_INLINE void vs_between(float low, float high, float least, float most, int32_t first, int8_t *c, uint8_t *r)
{
    vs_enclose(vs_step(low, least, most, first), vs_step(high, least, most, first), c, r);
}

#if VS_DSP
/* Unsigned bytes 0 and 2, and 1 and 3, of a word, as two numbers of 16 bits. */
VS_INLINE uint32_t vs_even_unsigned(uint32_t word)
{
    return word & 0x00FF00FFu;
}

VS_INLINE uint32_t vs_odd_unsigned(uint32_t word)
{
    return word >> 8 & 0x00FF00FFu;
}

/* The magnitudes of two numbers of 16 bits. */
VS_INLINE uint32_t vs_magnitudes(uint32_t pair)
{
    uint32_t result;
    __asm__ volatile("ssub16 %0, %1, %2\n\tsel %0, %0, %2" : "=&r"(result) : "r"(0), "r"(pair) : "cc");
    return result;
}
#endif
