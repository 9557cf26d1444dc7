/* The certificate is about IEEE 754 single precision, and about sums whose terms are added in the order that is written here. */
#include <float.h>
#include <stdint.h>
#include <string.h>

#if defined(__FAST_MATH__) || defined(__ASSOCIATIVE_MATH__) || defined(__RECIPROCAL_MATH__) || defined(_M_FP_FAST)
#error "compile without -ffast-math and its parts: they reorder sums, and the certificate does not cover that"
#endif
#if defined(__FINITE_MATH_ONLY__) && __FINITE_MATH_ONLY__
#error "compile without -ffinite-math-only: an overflow must stay visible"
#endif
#if !defined(FLT_EVAL_METHOD) || (FLT_EVAL_METHOD != 0 && FLT_EVAL_METHOD != 16) /* 16: half precision is not widened, float neither */
#error "float must be evaluated as float (FLT_EVAL_METHOD 0 or 16): on 32-bit x86 compile with -msse2 -mfpmath=sse"
#endif
#if FLT_RADIX != 2 || FLT_MANT_DIG != 24 || FLT_MAX_EXP != 128
#error "float must be the IEEE 754 single precision format"
#endif
/* Some options leave no macro behind (clang's -fassociative-math, -freciprocal-math, -fno-honor-nans): what follows undoes them. */
#if defined(_MSC_VER)
#pragma float_control(precise, on)
#pragma fp_contract(off)
#elif defined(__clang__)
#pragma clang diagnostic push
#pragma clang diagnostic ignored "-Wignored-pragmas" /* Arm has none of these, only the second */
#pragma float_control(precise, on)
#pragma clang diagnostic pop
#pragma clang fp reassociate(off) contract(off)
#elif defined(__GNUC__)
/* gcc 12 vectorises neighbouring scalars into fused instructions (vfmaddsub), whatever -ffp-contract says; and the pragma alone would
   switch on an -fassociative-math that gcc ignores without its companions. */
#pragma GCC optimize("no-tree-slp-vectorize", "no-associative-math")
#if defined(__AVX512VL__)
/* gcc 12 makes wrong masked vectors of sums of one product or another (seen: c ? a * b : -|a| * d), without any option that reorders. */
#pragma GCC optimize("no-tree-loop-if-convert")
#endif
#else
#pragma STDC FP_CONTRACT OFF
#endif

/* Vectors hold independent outputs, one a lane, and never terms of one sum. Without them there is a text of its own. */
#if VS_VECTORS
#if defined(__AVX512F__)
#define VS_LANES 16
#elif defined(__AVX__)
#define VS_LANES 8
#else
#define VS_LANES 4
#endif
typedef float vs_vec __attribute__((vector_size(4 * VS_LANES), aligned(4), may_alias));
#define VS_ZERO {0}
/* What vectors may read beyond the end of a table. */
#define VS_SLACK 15
#define VS_ALIGNED __attribute__((aligned(64)))
#else
#define VS_LANES 1
#define VS_SLACK 0
#define VS_ALIGNED
#endif
/* A product that is an operator's result is rounded and stored before anything reads it, so that all its readers see one value. */
#if defined(__GNUC__)
#define VS_STORED __asm__ volatile("" ::: "memory")
/* The network is compiled once; inlined into each of its callers it was a third slower (gcc 12, -O3 -march=native). */
#define VS_ONCE __attribute__((noinline))
#else
#define VS_STORED (void)0
#define VS_ONCE
#endif

/* A divisor that clang does not know: where no pragma undoes -freciprocal-math it would multiply by the reciprocal of a known one. */
#if defined(__clang__) && !defined(__x86_64__) && !defined(__i386__)
static inline __attribute__((unused)) float vs_divisor(float value)
{
    __asm__ volatile("" : "+r"(value));
    return value;
}
#else
#define vs_divisor(value) (value)
#endif

/* Without a floating-point unit a term costs some fifty instructions; one whose input is zero changes no sum, and is left out. */
#if defined(__SOFTFP__) || (defined(__riscv) && !defined(__riscv_flen)) || defined(_SOFT_FLOAT) || defined(__mips_soft_float)
static inline int vs_is_zero(float value)
{
    uint32_t bits;
    memcpy(&bits, &value, sizeof bits);
    return (bits & 0x7FFFFFFFu) == 0u;
}
#define VS_UNLESS_ZERO(value) if (!vs_is_zero(value))
#else
#define VS_UNLESS_ZERO(value)
#endif
