/* A conditional rational-quadratic spline and the affine map after it, in float32 on a CPU: `model/spline.py` says the
 * same with PyTorch's operations, and has the formulas.
 *
 * Each of `forward`, `backward` and `inverse` reads the parameters of a number once and keeps what it makes of them in
 * registers and the first cache. They lie as (rows, 3·bins + 1, D), so that those of neighbours within a token are
 * neighbours, and LANES numbers are computed at once. Tokens of fewer numbers share a vector.
 */

#include "spline.h"

/* --- what is called ----------------------------------------------------------------------------------------------- */

/* z (rows, D) and ladj (rows), which is 0 before, of LANES numbers. */
INLINE void forward(const spline_t *s, const int64_t bins, const int how, const lanes_t *at, const float *x,
                    const float *params, float *z, float *ladj, vec *e) {
    const float *p = params + at->first / s->dim * (3 * bins + 1) * s->dim + at->first % s->dim;
    vec in = get(x, at), derivative;
    ivec inside = within(s, in);
    vec place = placed(s, inside, in);
    bin_t bin = find(s, bins, p + 2 * s->dim, how, at, place, 0, e);
    curve_t curve = curve_of(&bin, clamped((place - bin.start[0]) / bin.size[0], 0.0f, 1.0f));
    vec y = choose(inside, s->interval * (bin.start[1] + bin.size[1] * curve.eta), in);
    vec scale = log_scale(s, take(p, how, at), &derivative);
    vec out = (y - take(p + s->dim, how, at)) * exponential(-scale);
    set(z, out, at);
    vec gain = choose(inside, logarithm(slope_of(&curve)), (vec){0}) - scale;
    if (how == WHOLE) ladj[at->first / s->dim] += sum(gain);
    else
        for (int64_t l = 0; l < at->count; l++) ladj[(at->first + l) / s->dim] += gain[l];
}

/* x (rows, D) of z. */
INLINE void inverse(const spline_t *s, const int64_t bins, const int how, const lanes_t *at, const float *z,
                    const float *params, float *x, vec *e) {
    const float *p = params + at->first / s->dim * (3 * bins + 1) * s->dim + at->first % s->dim;
    vec y = affine_inverse(s, get(z, at), take(p, how, at), take(p + s->dim, how, at));
    set(x, curve_inverse(s, bins, p + 2 * s->dim, how, at, y, e), at);
}

/* Gradients by x (rows, D) and params from those by z and ladj: the forward pass again, and the chain rule. */
INLINE void backward(const spline_t *s, const int64_t bins, const int how, const lanes_t *at, const float *x,
                     const float *params, const float *by_z, const float *by_ladj, float *by_x, float *by_params,
                     vec *e) {
    const int64_t dim = s->dim, offset = at->first / dim * (3 * bins + 1) * dim + at->first % dim;
    const float *p = params + offset, room = 2.0f - 2.0f * (float)bins * s->least;
    float *to = by_params + offset;
    vec in = get(x, at), gz = get(by_z, at), gl, derivative;
    for (int64_t l = 0; l < LANES; l++) gl[l] = by_ladj[(at->first + (l < at->count ? l : 0)) / dim];
    ivec inside = within(s, in);
    vec place = placed(s, inside, in);
    bin_t bin = find(s, bins, p + 2 * dim, how, at, place, 0, e);
    curve_t c = curve_of(&bin, clamped((place - bin.start[0]) / bin.size[0], 0.0f, 1.0f));
    vec y = choose(inside, s->interval * (bin.start[1] + bin.size[1] * c.eta), in);
    vec scale = log_scale(s, take(p, how, at), &derivative), factor = exponential(-scale);
    vec gy = gz * factor;
    put(to, (-gy * (y - take(p + dim, how, at)) - gl) * derivative, how, at);
    put(to + dim, -gy, how, at);

    /* of eta and ln slope by ξ, by the mean slope and by those at the ends */
    vec slope = slope_of(&c), away = 1.0f - c.xi, turn = 1.0f - 2.0f * c.xi, over = 1.0f / c.over;
    vec under = 1.0f / c.under, bend = bin.slope[0] + bin.slope[1] - 2.0f * c.mean;
    vec g_up = choose(inside, s->interval * gy, (vec){0}), g_log = choose(inside, gl, (vec){0});
    vec g_eta = g_up * bin.size[1];
    vec g_xi = g_eta * slope / c.mean + 2.0f * g_log * ((bin.slope[1] * c.xi + c.mean * turn - bin.slope[0] * away) * over
             - bend * turn * under);
    vec g_mean = g_eta * (c.xi * c.xi - c.eta * (1.0f - 2.0f * c.theta)) * under
               + 2.0f * g_log * (1.0f / c.mean + c.theta * over - (1.0f - 2.0f * c.theta) * under);
    vec g_slope[2] = {g_eta * c.theta * (1.0f - c.eta) * under + g_log * (away * away * over - 2.0f * c.theta * under),
                      -g_eta * c.eta * c.theta * under + g_log * (c.xi * c.xi * over - 2.0f * c.theta * under)};
    vec by_width = -g_xi / bin.size[0];
    set(by_x, choose(inside, -by_width / s->interval, gy), at);

    vec g_start[2] = {by_width, g_up}; /* every bin before moves the start of this one */
    vec g_size[2] = {by_width * c.xi - g_mean * c.mean / bin.size[0], g_up * c.eta + g_mean / bin.size[0]};
    for (int i = 0; i < 2; i++) {
        vec mean = g_start[i] * bin.before[i] + g_size[i] * bin.share[i];
        for (int64_t k = 0; k < bins; k++) {
            vec g = choose(bin.index > (float)k, g_start[i], choose(bin.index == (float)k, g_size[i], (vec){0}));
            put(to + (2 + i * bins + k) * dim, room * e[i * bins + k] * (g - mean), how, at);
        }
        g_slope[i] *= bin.slope[i] * (1.0f - bin.tanh[i] * bin.tanh[i]);
    }
    for (int64_t k = 0; k + 1 < bins; k++) { /* slope k is the lower end of bin k + 1 and the upper end of bin k */
        vec g = choose(bin.index == (float)(k + 1), g_slope[0], choose(bin.index == (float)k, g_slope[1], (vec){0}));
        put(to + (2 + 2 * bins + k) * dim, g, how, at);
    }
}

/* This thread's share of the rows, in vectors; 8 bins, and numbers side by side, are compiled for themselves. */
#define EACH(call)                                                                                                     \
    const int64_t dim = s->dim, together = dim < LANES ? LANES / dim : 1, groups = (s->rows + together - 1) / together; \
    _Pragma("omp parallel num_threads(threads)") {                                                                     \
        const int thread = omp_get_thread_num(), all = omp_get_num_threads();                                          \
        vec e[2 * s->bins];                                                                                            \
        for (int64_t g = groups * thread / all; g < groups * (thread + 1) / all; g++) {                                \
            const int64_t from = g * together * dim, end = (g + 1) * together, to = (end < s->rows ? end : s->rows) * dim; \
            for (int64_t first = from; first < to; first += LANES) {                                                   \
                lanes_t at;                                                                                            \
                const int how = lanes_at(s, first, to - first < LANES ? to - first : LANES, &at);                      \
                if (how == WHOLE && s->bins == 8) call(8, WHOLE);                                                      \
                else if (how == PART && s->bins == 8) call(8, PART);                                                   \
                else call(s->bins, how);                                                                               \
            }                                                                                                          \
        }                                                                                                              \
    }

void tarflow_spline_forward(const spline_t *s, const float *x, const float *params, float *z, float *ladj, int threads) {
    memset(ladj, 0, (size_t)s->rows * sizeof(float));
#define CALL(bins, how) forward(s, bins, how, &at, x, params, z, ladj, e)
    EACH(CALL)
#undef CALL
}

void tarflow_spline_inverse(const spline_t *s, const float *z, const float *params, float *x, int threads) {
#define CALL(bins, how) inverse(s, bins, how, &at, z, params, x, e)
    EACH(CALL)
#undef CALL
}

void tarflow_spline_backward(const spline_t *s, const float *x, const float *params, const float *by_z,
                             const float *by_ladj, float *by_x, float *by_params, int threads) {
#define CALL(bins, how) backward(s, bins, how, &at, x, params, by_z, by_ladj, by_x, by_params, e)
    EACH(CALL)
#undef CALL
}
