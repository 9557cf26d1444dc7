#if defined(__GNUC__)
#define VS_MAYBE __attribute__((unused))
#else
#define VS_MAYBE inline
#endif
/* Adds a part of a bound to its sum, and its magnitude to that of all parts. */
#define VS_PART(VALUE) (part = (VALUE), sum += part, size += VS_MAGNITUDE(part))

/* Sums of elements: element i in lane i mod 8, the lanes as a tree. */
#if VS_LANES > 1
typedef float vs_eight __attribute__((vector_size(32), aligned(4), may_alias));
typedef int32_t vs_eight_bits __attribute__((vector_size(32), aligned(4), may_alias));
#define VS_EIGHT(FROM) (*(const vs_eight *)(FROM))
#define VS_PICK(MASK, ONE, OTHER) ((vs_eight)(((MASK) & (vs_eight_bits)(ONE)) | (~(MASK) & (vs_eight_bits)(OTHER))))
#define VS_EIGHT_MAGNITUDES(VALUE) ((vs_eight)((vs_eight_bits)(VALUE) & 0x7FFFFFFF))
#define VS_SUM(EIGHT, ONE)                                                                          \
    vs_eight all = {0};                                                                             \
    float lanes[8];                                                                                 \
    int i = 0;                                                                                      \
    for (; i + 8 <= count; i += 8)                                                                  \
        all += (EIGHT);                                                                             \
    *(vs_eight *)lanes = all;                                                                       \
    for (int lane = 0; lane < 8 && i < count; i++, lane++)                                          \
        lanes[lane] += (ONE);                                                                       \
    return ((lanes[0] + lanes[4]) + (lanes[2] + lanes[6])) + ((lanes[1] + lanes[5]) + (lanes[3] + lanes[7]))
#else
#define VS_SUM(EIGHT, ONE)                                                                          \
    float s0 = 0.0f, s1 = 0.0f, s2 = 0.0f, s3 = 0.0f, s4 = 0.0f, s5 = 0.0f, s6 = 0.0f, s7 = 0.0f;   \
    for (int i = 0; i < count;) {                                                                   \
        s0 += (ONE);                                                                                \
        if (++i == count)                                                                           \
            break;                                                                                  \
        s1 += (ONE);                                                                                \
        if (++i == count)                                                                           \
            break;                                                                                  \
        s2 += (ONE);                                                                                \
        if (++i == count)                                                                           \
            break;                                                                                  \
        s3 += (ONE);                                                                                \
        if (++i == count)                                                                           \
            break;                                                                                  \
        s4 += (ONE);                                                                                \
        if (++i == count)                                                                           \
            break;                                                                                  \
        s5 += (ONE);                                                                                \
        if (++i == count)                                                                           \
            break;                                                                                  \
        s6 += (ONE);                                                                                \
        if (++i == count)                                                                           \
            break;                                                                                  \
        s7 += (ONE);                                                                                \
        i++;                                                                                        \
    }                                                                                               \
    return ((s0 + s4) + (s2 + s6)) + ((s1 + s5) + (s3 + s7))
#endif
