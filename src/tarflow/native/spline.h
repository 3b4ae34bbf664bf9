/* A conditional rational-quadratic spline and the affine map after it, of LANES numbers: what `spline.c` and
 * `by_number.c` share. `model/rational_quadratic.py` has the formulas.
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

/* --- the way back ------------------------------------------------------------------------------------------------- */

/* z of the affine map to y. */
INLINE vec affine_inverse(const spline_t *s, vec z, vec v, vec shift) {
    vec scale = s->bound > 0.0f ? s->bound * tangent(v / s->bound) : v;
    vec factor = choose(scale > 88.0f, (vec){0} + INFINITY, exponential(choose(scale > 88.0f, (vec){0}, scale)));
    return z * factor + shift;
}

/* y to x; params of the widths, and on. */
INLINE vec curve_inverse(const spline_t *s, const int64_t bins, const float *p, const int how, const lanes_t *at, vec y,
                         vec *e) {
    ivec inside = within(s, y);
    vec place = placed(s, inside, y);
    bin_t bin = find(s, bins, p, how, at, place, 1, e);
    vec eta = clamped((place - bin.start[1]) / bin.size[1], 0.0f, 1.0f), mean = bin.size[1] / bin.size[0];
    vec bend = bin.slope[0] + bin.slope[1] - 2.0f * mean; /* a ξ² + b ξ = mean·η */
    vec a = mean - bin.slope[0] + eta * bend, b = bin.slope[0] - eta * bend;
    vec root = b * b + 4.0f * a * mean * eta, xi;
    for (int l = 0; l < LANES; l++) root[l] = sqrtf(root[l] > 0.0f ? root[l] : 0.0f);
    vec q = choose(b < 0.0f, -b, b) + root;
    xi = clamped(choose(b < 0.0f, 0.5f * q / a, 2.0f * mean * eta / q), 0.0f, 1.0f);
    return choose(inside, s->interval * (bin.start[0] + bin.size[0] * xi), y);
}
