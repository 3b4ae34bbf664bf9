/* A conditional rational-quadratic spline and the affine map after it, in float32 on a CPU: `model/spline.py` says the
 * same with PyTorch's operations, and has the formulas.
 *
 * Each of `forward`, `backward` and `inverse` reads the parameters of a number once and keeps what it makes of them in
 * registers and the first cache. They lie as (rows, 3·bins + 1, D), so that those of neighbours within a token are
 * neighbours, and LANES numbers are computed at once. Tokens of fewer numbers share a vector.
 */

#include "vectors.h"

typedef struct {
    int64_t rows, dim, bins;
    float interval; /* b: the spline maps [-b, b] onto itself */
    float bound;    /* of the log-scale, 0 for none */
    float largest;  /* beyond which the log-scale is cut off, where its bound lets it get there; 0 where not */
    float least;    /* share of the interval that a bin takes at least */
    float steepest; /* of the slopes' logarithms */
} spline_t;

/* --- LANES numbers, wherever they lie ------------------------------------------------------------------------------ */

enum { WHOLE, PART, SPREAD }; /* all of them side by side, less of them side by side, tokens of few numbers */

typedef struct {
    int64_t first, count; /* the first of them, of `count` that are there */
    int64_t place[LANES]; /* SPREAD: where the first parameter of each lies, from that of the first */
} lanes_t;

INLINE int lanes_at(const spline_t *s, int64_t first, int64_t count, lanes_t *at) {
    at->first = first, at->count = count;
    if (2 * s->dim > LANES) return count == LANES ? WHOLE : PART;
    for (int64_t l = 0; l < count; l++) at->place[l] = l / s->dim * (3 * s->bins + 1) * s->dim + l % s->dim;
    return SPREAD;
}

/* Parameters of one kind, from that of the first. */
INLINE vec take(const float *p, const int how, const lanes_t *at) {
    if (how == WHOLE) return load(p);
    if (how == PART) return load_part(p, at->count);
    float v[LANES] = {0};
    for (int64_t l = 0; l < at->count; l++) v[l] = p[at->place[l]];
    return load(v);
}

INLINE void put(float *p, vec v, const int how, const lanes_t *at) {
    if (how == WHOLE) store(p, v);
    else if (how == PART) store_part(p, v, at->count);
    else
        for (int64_t l = 0; l < at->count; l++) p[at->place[l]] = v[l];
}

/* x, z and their gradients, which lie side by side whatever the tokens are. */
INLINE vec get(const float *p, const lanes_t *at) {
    return at->count == LANES ? load(p + at->first) : load_part(p + at->first, at->count);
}
INLINE void set(float *p, vec v, const lanes_t *at) {
    if (at->count == LANES) store(p + at->first, v);
    else store_part(p + at->first, v, at->count);
}

/* --- the bin that a number is in ---------------------------------------------------------------------------------- */

typedef struct {
    vec index, before[2], share[2]; /* of the softmax of widths and of heights: all bins before it, and itself */
    vec raw[2];                     /* parameters of the slopes at its ends */
    vec start[2], size[2];          /* left and width, bottom and height, in units of the interval's half */
    vec tanh[2], slope[2];
} bin_t;

/* exp(logit - largest) of all bins to e; 1/Σ e comes back. */
INLINE vec softmax(const float *p, int64_t bins, int64_t dim, const int how, const lanes_t *at, vec *e) {
    vec most = take(p, how, at), total = {0};
    e[0] = most;
    for (int64_t k = 1; k < bins; k++) {
        vec logit = e[k] = take(p + k * dim, how, at);
        most = choose(logit > most, logit, most);
    }
    for (int64_t k = 0; k < bins; k++) total += e[k] = exponential(e[k] - most);
    return 1.0f / total;
}

/* The bin in which x lies, from -1 to 1, by widths (which = 0) or by heights (1); params of the widths, and on. */
INLINE bin_t find(const spline_t *s, const int64_t bins, const float *p, const int how, const lanes_t *at, vec x,
                  const int which, vec *e) {
    const int64_t dim = s->dim;
    const float least = 2.0f * s->least, room = 2.0f - (float)bins * least;
    vec inverse[2], before[2] = {{0}}, low = {0};
    bin_t bin = {0};
    for (int i = 0; i < 2; i++) inverse[i] = softmax(p + i * bins * dim, bins, dim, how, at, e + i * bins);
    for (int64_t k = 0; k < bins; k++) {
        vec high = k + 1 < bins ? take(p + (2 * bins + k) * dim, how, at) : (vec){0};
        ivec here = k ? x >= (float)k * least - 1.0f + room * before[which] : (ivec){0} - 1;
        bin.index = choose(here, (vec){0} + (float)k, bin.index);
        bin.raw[0] = choose(here, low, bin.raw[0]);
        bin.raw[1] = choose(here, high, bin.raw[1]);
        for (int i = 0; i < 2; i++) {
            vec share = e[i * bins + k] *= inverse[i];
            bin.before[i] = choose(here, before[i], bin.before[i]);
            bin.share[i] = choose(here, share, bin.share[i]);
            before[i] += share;
        }
        low = high;
    }
    for (int i = 0; i < 2; i++) {
        bin.start[i] = bin.index * least - 1.0f + room * bin.before[i];
        bin.size[i] = least + room * bin.share[i];
        bin.tanh[i] = tangent(bin.raw[i] / s->steepest);
        bin.slope[i] = exponential(s->steepest * bin.tanh[i]);
    }
    return bin;
}

/* --- the curve within a bin --------------------------------------------------------------------------------------- */

typedef struct {
    vec xi, theta, mean; /* place in the bin, ξ(1-ξ), and the mean slope */
    vec under, over;     /* denominator of the curve, numerator of its slope */
    vec eta;             /* height within the bin */
} curve_t;

INLINE vec clamped(vec x, float low, float high) {
    x = choose(x < low, (vec){0} + low, x);
    return choose(x > high, (vec){0} + high, x);
}

INLINE curve_t curve_of(const bin_t *b, vec xi) {
    curve_t c = {.xi = xi, .theta = xi * (1.0f - xi), .mean = b->size[1] / b->size[0]};
    c.under = c.mean * (1.0f - 2.0f * c.theta) + (b->slope[0] + b->slope[1]) * c.theta;
    c.over = b->slope[1] * xi * xi + 2.0f * c.mean * c.theta + b->slope[0] * (1.0f - xi) * (1.0f - xi);
    c.eta = (c.mean * xi * xi + b->slope[0] * c.theta) / c.under;
    return c;
}

INLINE vec slope_of(const curve_t *c) {
    vec ratio = c->mean / c->under;
    return ratio * ratio * c->over;
}

INLINE ivec within(const spline_t *s, vec x) { return (x >= -s->interval) & (x <= s->interval); }

/* x in units of the interval's half, -1 to 1; what lies outside, or is NaN, is 0 for as long as it takes. */
INLINE vec placed(const spline_t *s, ivec inside, vec x) { return choose(inside, x / s->interval, (vec){0}); }

/* log-scale of v, and its derivative. */
INLINE vec log_scale(const spline_t *s, vec v, vec *derivative) {
    vec t = s->bound > 0.0f ? tangent(v / s->bound) : (vec){0}, result = s->bound > 0.0f ? s->bound * t : v;
    *derivative = 1.0f - t * t;
    if (s->largest > 0.0f) {
        *derivative = choose((result < -s->largest) | (result > s->largest), (vec){0}, *derivative);
        result = clamped(result, -s->largest, s->largest);
    }
    return result;
}

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
    vec v = take(p, how, at);
    vec scale = s->bound > 0.0f ? s->bound * tangent(v / s->bound) : v;
    vec factor = choose(scale > 88.0f, (vec){0} + INFINITY, exponential(choose(scale > 88.0f, (vec){0}, scale)));
    vec y = get(z, at) * factor + take(p + s->dim, how, at);
    ivec inside = within(s, y);
    vec place = placed(s, inside, y);
    bin_t bin = find(s, bins, p + 2 * s->dim, how, at, place, 1, e);
    vec eta = clamped((place - bin.start[1]) / bin.size[1], 0.0f, 1.0f), mean = bin.size[1] / bin.size[0];
    vec bend = bin.slope[0] + bin.slope[1] - 2.0f * mean; /* a ξ² + b ξ = mean·η */
    vec a = mean - bin.slope[0] + eta * bend, b = bin.slope[0] - eta * bend;
    vec root = b * b + 4.0f * a * mean * eta, xi;
    for (int l = 0; l < LANES; l++) root[l] = sqrtf(root[l] > 0.0f ? root[l] : 0.0f);
    vec q = choose(b < 0.0f, -b, b) + root;
    xi = clamped(choose(b < 0.0f, 0.5f * q / a, 2.0f * mean * eta / q), 0.0f, 1.0f);
    set(x, choose(inside, s->interval * (bin.start[0] + bin.size[0] * xi), y), at);
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
