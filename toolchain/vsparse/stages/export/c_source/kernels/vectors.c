/* Whole vectors: a load and a store from any address, max(·, 0) that lets NaN through, and a store of the first elements alone. */
#if defined(__GNUC__)
#define VS_INLINE static inline __attribute__((always_inline, unused))
#else
#define VS_INLINE static inline
#endif
#if defined(__AVX512F__) || defined(__aarch64__)
#define VS_REGISTERS 32
#else
#define VS_REGISTERS 16
#endif
#if VS_LANES == 16
#define VS_FILL(f) {f, f, f, f, f, f, f, f, f, f, f, f, f, f, f, f}
#elif VS_LANES == 8
#define VS_FILL(f) {f, f, f, f, f, f, f, f}
#elif VS_LANES == 4
#define VS_FILL(f) {f, f, f, f}
#else
#define VS_FILL(f) f
#endif

/* With -fopenmp and -DVS_THREADS=n, n threads share the outputs of a layer; a sum is always one thread's, so no order changes. */
#if defined(VS_THREADS) && defined(_OPENMP)
#define VS_PRAGMA(TEXT) _Pragma(#TEXT)
#define VS_PARALLEL(WORK) VS_PRAGMA(omp parallel for schedule(static) num_threads(VS_THREADS) if ((WORK) > 65536))
#else
#define VS_PARALLEL(WORK)
#endif

#if VS_LANES > 1
typedef float vs_four __attribute__((vector_size(16), aligned(4), may_alias));
#endif

VS_INLINE vs_vec vs_load(const float *from)
{
    return *(const vs_vec *)from;
}

VS_INLINE vs_vec vs_positive(vs_vec value)
{
#if VS_LANES > 1
    typedef int32_t vs_bits __attribute__((vector_size(4 * VS_LANES)));
    const vs_vec zero = VS_FILL(0.0f);
    return (vs_vec)((vs_bits)value & ~(vs_bits)(value < zero));
#else
    return value < 0.0f ? 0.0f : value;
#endif
}

/* Stores the first `count` elements, after max(·, 0) where `relu` is set. */
VS_INLINE void vs_put(float *to, vs_vec value, int relu, int count)
{
    if (relu)
        value = vs_positive(value);
    if (count >= VS_LANES) {
        *(vs_vec *)to = value;
    } else {
        float some[VS_LANES];
        *(vs_vec *)some = value;
        for (int i = 0; i < VS_LANES; i++)
            if (i < count)
                to[i] = some[i];
    }
}
