/* Vectors of float32, as GCC and Clang know them on every processor, and what is done with them everywhere. */

#include <math.h>
#include <stdint.h>
#include <string.h>

extern int omp_get_thread_num(void); /* omp.h belongs to a compiler, the library to PyTorch */
extern int omp_get_num_threads(void);

#ifdef __AVX512F__
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
