/* Magnitudes: of a number, of four lanes, of a vector. */
#if defined(__GNUC__)
#define VS_MAGNITUDE(value) __builtin_fabsf(value)
#else
#define VS_MAGNITUDE(value) vs_absolute(value)
static inline float vs_absolute(float value)
{
    uint32_t bits;
    memcpy(&bits, &value, sizeof bits);
    bits &= 0x7FFFFFFFu;
    memcpy(&value, &bits, sizeof bits);
    return value;
}
#endif
#if VS_LANES > 1
typedef int32_t vs_four_bits __attribute__((vector_size(16), aligned(4), may_alias));
typedef int32_t vs_vec_bits __attribute__((vector_size(4 * VS_LANES), aligned(4), may_alias));
#define VS_MAGNITUDES(value) ((vs_four)((vs_four_bits)(value) & 0x7FFFFFFF))
#define vs_magnitude(value) ((vs_vec)((vs_vec_bits)(value) & 0x7FFFFFFF))
#endif
