/* Decoding the numbers of a token one after the other: `inverse` and `guided_inverse` of `model/by_number.py`, in
 * float32 on a CPU.
 *
 * A lane is a token. The D steps of LANES tokens are taken side by side, with each weight read once for all of them, and
 * each hidden unit computed once, when all that it sees is known.
 */

#include "spline.h"

typedef struct {
    spline_t one; /* the transform of a number, with LANES of them as its row; which has bins where there is a spline */
    int64_t rows, dim, hidden, kinds; /* kinds of parameters: 1 for the additive transform */
    const int64_t *ends;              /* (D,), the hidden units that each number sees */
    const float *into, *out;          /* (H, D) and (k, D, H) */
    int64_t stable;                   /* the rule of guidance */
} by_number_t;

typedef struct {
    const float *params[LANES]; /* of each token, k·D and H of them */
    float *hidden, *numbers;    /* (H, LANES); (k, LANES), those of one number */
} branch_t;

/* Hidden units `from` … `to`, which see the numbers before `place`. */
static void units(const by_number_t *b, branch_t *branch, const float *x, int64_t from, int64_t to, int64_t place,
                  int64_t count) {
    const int64_t base = b->kinds * b->dim;
    for (int64_t unit = from; unit < to; unit++) {
        float brought[LANES] = {0};
        for (int64_t l = 0; l < count; l++) brought[l] = branch->params[l][base + unit];
        vec total = load(brought);
        for (int64_t e = 0; e < place; e++) total += load(x + e * LANES) * b->into[unit * b->dim + e];
        store(branch->hidden + unit * LANES, gelu(total));
    }
}

/* The parameters of the number at `place`, from the hidden units that it sees. */
static void parameters(const by_number_t *b, branch_t *branch, int64_t place, int64_t count) {
    const int64_t end = b->ends[place];
    for (int64_t kind = 0; kind < b->kinds; kind++) {
        const int64_t at = kind * b->dim + place;
        const float *weight = b->out + at * b->hidden;
        float base[LANES] = {0};
        for (int64_t l = 0; l < count; l++) base[l] = branch->params[l][at];
        vec total[4] = {load(base)}; /* so that no sum waits for the one before */
        int64_t unit = 0;
        for (; unit + 4 <= end; unit += 4)
#pragma GCC unroll 4
            for (int j = 0; j < 4; j++) total[j] += load(branch->hidden + (unit + j) * LANES) * weight[unit + j];
        for (; unit < end; unit++) total[0] += load(branch->hidden + unit * LANES) * weight[unit];
        store(branch->numbers + kind * LANES, (total[0] + total[1]) + (total[2] + total[3]));
    }
}

/* Parameters of both branches to those that are used, in place of the first: `combine` of the transforms. */
static void combine(const by_number_t *b, float *c, const float *u, vec g) {
    if (!b->stable || b->kinds == 1) {
        for (int64_t k = 0; k < b->kinds; k++) {
            vec conditional = load(c + k * LANES);
            store(c + k * LANES, conditional + g * (conditional - load(u + k * LANES)));
        }
        return;
    }
    vec v = load(c), shift = load(c + LANES), wider = 2.0f * (v - load(u));
    vec s = exponential(choose(wider > 0.0f, (vec){0}, wider)), share = 1.0f + g - g * s;
    store(c, v - 0.5f * logarithm(share));
    store(c + LANES, ((1.0f + g) * shift - g * s * load(u + LANES)) / share);
}

/* z of LANES numbers to x. */
static void number(const by_number_t *b, const float *z, const float *params, float *x, vec *e) {
    const lanes_t at = {.first = 0, .count = LANES};
    vec y = load(z) + load(params);
    if (b->kinds > 1) y = affine_inverse(&b->one, load(z), load(params), load(params + LANES));
    if (b->kinds > 2) y = curve_inverse(&b->one, b->one.bins, params + 2 * LANES, WHOLE, &at, y, e);
    store(x, y);
}

int64_t tarflow_lanes(void) { return LANES; }

/* z (rows, D) to x. params and unguided: (rows, k·D + H), the second of which is none without guidance; strength: (rows).
 * scratch has room for 2·(H + k) + D + 1 numbers of LANES tokens for each thread. */
void tarflow_by_number_inverse(const by_number_t *b, const float *z, const float *params, const float *unguided,
                               const float *strength, float *x, float *scratch, int threads) {
    const int64_t dim = b->dim, size = b->kinds * dim + b->hidden, groups = (b->rows + LANES - 1) / LANES;
#pragma omp parallel num_threads(threads)
    {
        const int thread = omp_get_thread_num(), all = omp_get_num_threads();
        vec e[2 * b->one.bins + 1];
        float *own = scratch + thread * (2 * (b->hidden + b->kinds) + dim + 1) * LANES;
        float *known = own, *now = known + dim * LANES, *rest = now + LANES;
        branch_t branches[2];
        for (int i = 0; i < 2; i++) {
            branches[i].hidden = rest + i * (b->hidden + b->kinds) * LANES;
            branches[i].numbers = branches[i].hidden + b->hidden * LANES;
        }
        for (int64_t group = groups * thread / all; group < groups * (thread + 1) / all; group++) {
            const int64_t first = group * LANES, count = b->rows - first < LANES ? b->rows - first : LANES;
            float g[LANES] = {0};
            for (int64_t l = 0; l < count; l++) {
                branches[0].params[l] = params + (first + l) * size;
                if (unguided) branches[1].params[l] = unguided + (first + l) * size, g[l] = strength[first + l];
            }
            for (int64_t place = 0, seen = 0; place < dim; seen = b->ends[place++]) {
                for (int i = 0; i < (unguided ? 2 : 1); i++) {
                    units(b, branches + i, known, seen, b->ends[place], place, count);
                    parameters(b, branches + i, place, count);
                }
                if (unguided) combine(b, branches[0].numbers, branches[1].numbers, load(g));
                memset(now, 0, LANES * sizeof(float));
                for (int64_t l = 0; l < count; l++) now[l] = z[(first + l) * dim + place];
                number(b, now, branches[0].numbers, known + place * LANES, e);
                for (int64_t l = 0; l < count; l++) x[(first + l) * dim + place] = known[place * LANES + l];
            }
        }
    }
}
