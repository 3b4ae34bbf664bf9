/* Vectors of float32, as GCC and Clang know them on every processor, and what is done with them everywhere. */

#include <math.h>
#include <stdint.h>
#include <string.h>

extern int omp_get_thread_num(void); /* omp.h belongs to a compiler, the library to PyTorch */
extern int omp_get_num_threads(void);

#ifdef __AVX512F__
#include <immintrin.h>
#define LANES 16
#else
#define LANES 8
#endif
#define INLINE static inline __attribute__((always_inline))

typedef float vec __attribute__((vector_size(4 * LANES)));
typedef int32_t ivec __attribute__((vector_size(4 * LANES)));
typedef float loose __attribute__((vector_size(4 * LANES), aligned(4), may_alias)); /* anywhere in memory */

INLINE vec load(const float *p) { return *(const loose *)p; }
INLINE void store(float *p, vec v) { *(loose *)p = v; }

/* `count` < LANES numbers, and zeros. */
#ifdef __AVX512F__
INLINE vec load_part(const float *p, int64_t count) { return (vec)_mm512_maskz_loadu_ps((1u << count) - 1, p); }
INLINE void store_part(float *p, vec v, int64_t count) { _mm512_mask_storeu_ps(p, (1u << count) - 1, (__m512)v); }
#else
INLINE vec load_part(const float *p, int64_t count) {
    float all[LANES] = {0};
    for (int64_t i = 0; i < count; i++) all[i] = p[i];
    return load(all);
}
INLINE void store_part(float *p, vec v, int64_t count) {
    for (int64_t i = 0; i < count; i++) p[i] = v[i];
}
#endif

INLINE vec choose(ivec mask, vec a, vec b) { return (vec)((mask & (ivec)a) | (~mask & (ivec)b)); }

INLINE float sum(vec v) {
    float total = 0;
    for (int i = 0; i < LANES; i++) total += v[i];
    return total;
}

/* e^x for x <= 88, within two units in the last place; NaN stays NaN. e^x = 2^n e^r with |r| <= ln(2)/2. */
INLINE vec exponential(vec x) {
    const float magic = 12582912.0f; /* 1.5·2^23: adding it leaves the nearest whole number in the last bits */
    x = choose(x < -87.0f, (vec){0} - 87.0f, x);
    vec n = (x * 1.44269504f + magic) - magic;
    vec r = x - n * 0.693359375f + n * 2.12194440e-4f; /* ln 2 in two parts, the first of which has few bits */
    vec p = 1.0f + r * (1.0f + r * (0.5f + r * (1.6666667e-1f + r * (4.1666668e-2f + r * (8.3333338e-3f
          + r * (1.3888889e-3f + r * 1.9841270e-4f))))));
    ivec exponent = (__builtin_convertvector(n, ivec) + 127) << 23;
    return p * (vec)exponent;
}

/* ln x for normal x > 0, within two units in the last place; NaN stays NaN. x = 2^n m with √½ <= m < √2, and
 * ln m = 2 artanh t = 2 (t + t³/3 + t⁵/5 + …) with t = (m - 1)/(m + 1). */
INLINE vec logarithm(vec x) {
    ivec bits = (ivec)x - 0x3f3504f3; /* √½: what lies between it and √2 has n = 0 */
    ivec n = bits >> 23;
    vec m = (vec)((bits & 0x7fffff) + 0x3f3504f3);
    vec t = (m - 1.0f) / (m + 1.0f), q = t * t, e = __builtin_convertvector(n, vec);
    vec tail = q * (0.33333333f + q * (0.2f + q * (0.14285714f + q * 0.11111111f)));
    return e * 0.693359375f + (2.0f * (t + t * tail) - e * 2.12194440e-4f) + (x - x);
}

/* tanh x, within a few units in the last place: near 0, where 1 - e^(-2|x|) would cancel, by its series. */
INLINE vec tangent(vec x) {
    vec size = choose(x < 0.0f, -x, x), q = x * x;
    vec e = exponential(-2.0f * size), far = (1.0f - e) / (1.0f + e);
    vec near = x + x * q * (-0.33333333f + q * (0.13333333f + q * (-5.3968254e-2f + q * 2.1869489e-2f)));
    return choose(size < 0.25f, near, choose(x < 0.0f, -far, far));
}

/* x·Φ(x). The tail of Φ is e^(-x²/2)/2 times a polynomial in 1/(1 + 0.3275911 |x|/√2), within 1e-7: Abramowitz and
 * Stegun, Handbook of Mathematical Functions, 7.1.26. */
INLINE vec gelu(vec x) {
    vec a = choose(x < 0.0f, -x, x) * 0.70710678f;
    vec t = 1.0f / (1.0f + 0.3275911f * a);
    vec tail = t * (0.254829592f + t * (-0.284496736f + t * (1.421413741f + t * (-1.453152027f + t * 1.061405429f))));
    tail *= 0.5f * exponential(-a * a);
    return x * choose(x < 0.0f, tail, 1.0f - tail);
}
