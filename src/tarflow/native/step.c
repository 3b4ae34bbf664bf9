/* The Transformer of one block in float32 on a CPU: what `sampling/cpu/step.py` says with PyTorch's operations, in one
 * call.
 *
 * Products of few rows are bound by how weights come in, and what lies between them by being called at all. Here the
 * weights lie in panels of PANEL columns, (N/PANEL, K, PANEL), each of which is read once from end to end and multiplied
 * with all rows while it is in the cache; all else happens in passing. Threads share the columns of the products and the
 * heads of the attention, and meet five times a layer. How many there are changes no bit of the result.
 *
 * `sampling/cpu/native.py` calls it.
 */

#include "vectors.h"

#define PANEL (2 * LANES)
#define ROWS 6 /* rows times two vectors of sums, two of weights and one factor: the registers of AVX2 */

typedef struct {
    const float *norm1_weight, *norm1_bias, *qkv_weight, *qkv_bias, *out_weight, *out_bias;
    const float *norm2_weight, *norm2_bias, *up_weight, *up_bias, *down_weight, *down_bias;
    float norm1_eps, norm2_eps;
} layer_t;

typedef struct {
    int64_t layers, width, hidden, head_dim, dim, outputs; /* dim: numbers in a patch */
    int64_t length;                                        /* positions that `entry` has room for */
    int64_t prefix;                                        /* places of the cache before the first position */
    const layer_t *layer;
    const float *in_weight, *proj_weight, *proj_bias;
    const float *entry;                               /* (B, length, W), what a token is before x is added */
    int64_t entry_batch;                              /* numbers from one sequence to the next in it, 0 where shared */
    const float *scale;                               /* (B,), the queries' factors */
    const float *cos, *sin;                           /* (length, K/2), by which queries and keys are turned, or none */
    float *store;                                     /* (layers, 2, B, H, prefix + positions, K) */
    int64_t store_layer, store_kind, store_batch, store_head; /* its strides, in numbers */
} block_t;

int tarflow_panel(void) { return PANEL; }

/* --- products ----------------------------------------------------------------------------------------------------- */

enum { SET, ADD, GELU }; /* what becomes of a product: it replaces, is added to, or replaces after a GELU */

/* `rows` rows of x (rows, K) times one panel (K, PANEL). All loops over rows and vectors are unrolled. */
INLINE void tile(const int rows, const float *x, int64_t k, int64_t x_row, const float *panel, const float *bias,
                 float *out, int64_t out_row, int64_t columns, int then) {
    vec total[ROWS][2];
#pragma GCC unroll 6
    for (int r = 0; r < rows; r++) {
        total[r][0] = bias ? load(bias) : (vec){0};
        total[r][1] = bias ? load(bias + LANES) : (vec){0};
    }
    for (int64_t i = 0; i < k; i++) {
        vec a = load(panel + i * PANEL), b = load(panel + i * PANEL + LANES);
#pragma GCC unroll 6
        for (int r = 0; r < rows; r++) {
            total[r][0] += a * x[r * x_row + i];
            total[r][1] += b * x[r * x_row + i];
        }
    }
#pragma GCC unroll 6
    for (int r = 0; r < rows; r++) {
        float *to = out + r * out_row;
        if (columns < PANEL) { /* the last panel is filled up with zeros, for which `out` has no room */
            float all[PANEL];
            store(all, total[r][0]), store(all + LANES, total[r][1]);
            if (then == GELU) store(all, gelu(total[r][0])), store(all + LANES, gelu(total[r][1]));
            for (int c = 0; c < columns; c++) to[c] = then == ADD ? to[c] + all[c] : all[c];
            continue;
        }
        if (then == ADD) total[r][0] += load(to), total[r][1] += load(to + LANES);
        if (then == GELU) total[r][0] = gelu(total[r][0]), total[r][1] = gelu(total[r][1]);
        store(to, total[r][0]), store(to + LANES, total[r][1]);
    }
}

/* One row: four sums for each vector, so that no multiplication waits for the one before. */
static void single(const float *x, int64_t k, const float *panel, const float *bias, float *out, int64_t columns,
                   int then) {
    vec total[4][2] = {{{0}}};
    int64_t i = 0;
    for (; i + 4 <= k; i += 4) {
#pragma GCC unroll 4
        for (int j = 0; j < 4; j++) {
            total[j][0] += load(panel + (i + j) * PANEL) * x[i + j];
            total[j][1] += load(panel + (i + j) * PANEL + LANES) * x[i + j];
        }
    }
    float rest[PANEL];
    store(rest, (total[0][0] + total[1][0]) + (total[2][0] + total[3][0]));
    store(rest + LANES, (total[0][1] + total[1][1]) + (total[2][1] + total[3][1]));
    for (int c = 0; bias && c < PANEL; c++) rest[c] += bias[c];
    tile(1, x + i, k - i, 0, panel + i * PANEL, rest, out, 0, columns, then);
}

/* out (rows, N) from x (rows, K): this thread's share of the panels. */
static void product(const float *x, int64_t rows, int64_t k, const float *weight, const float *bias, float *out,
                    int64_t n, int then, int thread, int threads) {
    int64_t panels = (n + PANEL - 1) / PANEL;
    int64_t first = panels * thread / threads, last = panels * (thread + 1) / threads;
    for (int64_t p = first; p < last; p++) {
        const float *panel = weight + p * k * PANEL, *b = bias ? bias + p * PANEL : 0;
        float *to = out + p * PANEL;
        int64_t columns = n - p * PANEL < PANEL ? n - p * PANEL : PANEL, r = 0;
        if (rows == 1) {
            single(x, k, panel, b, to, columns, then);
            continue;
        }
        for (; r + ROWS <= rows; r += ROWS) tile(ROWS, x + r * k, k, k, panel, b, to + r * n, n, columns, then);
        x += r * k, to += r * n;
        switch (rows - r) {
            case 5: tile(5, x, k, k, panel, b, to, n, columns, then); break;
            case 4: tile(4, x, k, k, panel, b, to, n, columns, then); break;
            case 3: tile(3, x, k, k, panel, b, to, n, columns, then); break;
            case 2: tile(2, x, k, k, panel, b, to, n, columns, then); break;
            case 1: tile(1, x, k, k, panel, b, to, n, columns, then); break;
        }
        x -= r * k;
    }
}

/* --- between the products ----------------------------------------------------------------------------------------- */

static void layer_norm(const float *x, int64_t rows, int64_t n, const float *weight, const float *bias, float eps,
                       float *out) {
    for (int64_t r = 0; r < rows; r++, x += n, out += n) {
        vec totals = {0}, squares = {0};
        float total = 0, square = 0;
        int64_t i = 0;
        for (; i + LANES <= n; i += LANES) totals += load(x + i);
        for (total = sum(totals); i < n; i++) total += x[i];
        const float mean = total / (float)n;
        for (i = 0; i + LANES <= n; i += LANES) {
            vec d = load(x + i) - mean;
            squares += d * d;
        }
        for (square = sum(squares); i < n; i++) square += (x[i] - mean) * (x[i] - mean);
        const float factor = 1.0f / sqrtf(square / (float)n + eps);
        for (i = 0; i + LANES <= n; i += LANES)
            store(out + i, (load(x + i) - mean) * factor * load(weight + i) + load(bias + i));
        for (; i < n; i++) out[i] = (x[i] - mean) * factor * weight[i] + bias[i];
    }
}

/* softmax(q·kᵀ) v over `end` keys and values that lie in one run, (end, size); `score` has room for end + LANES. */
INLINE void attend(const float *q, const float *k, const float *v, int64_t end, const int64_t size, float factor,
                   float *score, float *out) {
    float highest = -INFINITY;
    for (int64_t t = 0; t < end; t++, k += size) {
        for (int64_t i = 0; i < size; i += 16) __builtin_prefetch(v + t * size + i); /* wanted next */
        vec parts = {0};
        int64_t i = 0;
        for (; i + LANES <= size; i += LANES) parts += load(q + i) * load(k + i);
        float s = sum(parts);
        for (; i < size; i++) s += q[i] * k[i];
        s *= factor;
        score[t] = s;
        highest = s > highest ? s : highest;
    }
    vec totals = {0};
    store(score + end, (vec){0} - INFINITY);
    for (int64_t t = 0; t < end; t += LANES) {
        vec e = exponential(load(score + t) - highest);
        if (t + LANES > end) /* what lies beyond the keys counts nothing */
            for (int j = 0; j < LANES; j++)
                if (t + j >= end) e[j] = 0;
        store(score + t, e);
        totals += e;
    }
    const float share = 1.0f / sum(totals);
    const int64_t whole = size / LANES * LANES;
    for (int64_t i = 0; i < whole; i += 8 * LANES) { /* eight vectors of sums stay in registers */
        const int64_t wide = (whole - i) / LANES;
        vec sums[8] = {{0}};
        if (wide >= 8) {
            for (int64_t t = 0; t < end; t++)
#pragma GCC unroll 8
                for (int j = 0; j < 8; j++) sums[j] += load(v + t * size + i + j * LANES) * score[t];
        } else {
            for (int64_t t = 0; t < end; t++)
                for (int j = 0; j < wide; j++) sums[j] += load(v + t * size + i + j * LANES) * score[t];
        }
        for (int j = 0; j < 8 && j < wide; j++) store(out + i + j * LANES, sums[j] * share);
    }
    for (int64_t i = whole; i < size; i++) {
        float s = 0;
        for (int64_t t = 0; t < end; t++) s += score[t] * v[t * size + i];
        out[i] = s * share;
    }
}

/* Channel i and channel i + half as a point in the plane, turned. `to` may be `from`. */
static void turn(float *to, const float *from, const float *cos, const float *sin, int64_t half) {
    for (int64_t i = 0; i < half; i++) {
        const float a = from[i], b = from[i + half];
        to[i] = a * cos[i] - b * sin[i];
        to[i + half] = a * sin[i] + b * cos[i];
    }
}

/* --- the step ----------------------------------------------------------------------------------------------------- */

/* Numbers of scratch memory, which is the caller's. */
int64_t tarflow_scratch(const block_t *b, int64_t rows, int64_t threads) {
    return rows * (5 * b->width + b->hidden) + threads * (rows * b->width + b->prefix + b->length + 2 * LANES);
}

/* x (B·n, D), patches start … start+n-1 of each sequence, to out (B·n, O); their keys and values go into the cache. */
void tarflow_step(const block_t *b, const float *x, float *out, float *scratch, int64_t batch, int64_t count,
                  int64_t start, int threads) {
    const int64_t rows = batch * count, width = b->width, size = b->head_dim, heads = width / size;
    float *h = scratch, *qkv = h + rows * width, *seen = qkv + rows * 3 * width, *inner = seen + rows * width;
    float *own = inner + rows * b->hidden;
    const float root = 1.0f / sqrtf((float)size);
#pragma omp parallel num_threads(threads)
    {
        const int thread = omp_get_thread_num(), all = omp_get_num_threads();
        float *normed = own + thread * (rows * width + b->prefix + b->length + 2 * LANES), *score = normed + rows * width;
        const int64_t pairs = batch * heads, first = pairs * thread / all, last = pairs * (thread + 1) / all;

        if (thread == 0) { /* D is small */
            for (int64_t i = 0; i < rows; i++)
                memcpy(h + i * width, b->entry + i / count * b->entry_batch + (start + i % count) * width,
                       (size_t)width * sizeof(float));
            product(x, rows, b->dim, b->in_weight, 0, h, width, ADD, 0, 1);
        }
#pragma omp barrier
        for (int64_t l = 0; l < b->layers; l++) {
            const layer_t *w = b->layer + l;
            layer_norm(h, rows, width, w->norm1_weight, w->norm1_bias, w->norm1_eps, normed);
            product(normed, rows, width, w->qkv_weight, w->qkv_bias, qkv, 3 * width, SET, thread, all);
#pragma omp barrier
            for (int64_t pair = first; pair < last; pair++) {
                const int64_t sequence = pair / heads, head = pair % heads;
                float *keys = b->store + l * b->store_layer + sequence * b->store_batch + head * b->store_head;
                float *values = keys + b->store_kind;
                for (int64_t j = 0; j < count; j++) {
                    float *from = qkv + (sequence * count + j) * 3 * width + head * size;
                    if (b->cos) {
                        const float *cos = b->cos + (start + j) * size / 2, *sin = b->sin + (start + j) * size / 2;
                        turn(from, from, cos, sin, size / 2);
                        turn(from + width, from + width, cos, sin, size / 2);
                    }
                    const int64_t place = (b->prefix + start + j) * size;
                    memcpy(keys + place, from + width, (size_t)size * sizeof(float));
                    memcpy(values + place, from + 2 * width, (size_t)size * sizeof(float));
                }
                for (int64_t j = 0; j < count; j++) {
                    const int64_t row = sequence * count + j, end = b->prefix + start + j + 1;
                    const float *q = qkv + row * 3 * width + head * size;
                    const float factor = b->scale ? root * b->scale[sequence] : root;
                    float *to = seen + row * width + head * size;
                    if (size == 64) attend(q, keys, values, end, 64, factor, score, to);
                    else attend(q, keys, values, end, size, factor, score, to);
                }
            }
#pragma omp barrier
            product(seen, rows, width, w->out_weight, w->out_bias, h, width, ADD, thread, all);
#pragma omp barrier
            layer_norm(h, rows, width, w->norm2_weight, w->norm2_bias, w->norm2_eps, normed);
            product(normed, rows, width, w->up_weight, w->up_bias, inner, b->hidden, GELU, thread, all);
#pragma omp barrier
            product(inner, rows, b->hidden, w->down_weight, w->down_bias, h, width, ADD, thread, all);
#pragma omp barrier
        }
        product(h, rows, width, b->proj_weight, b->proj_bias, out, b->outputs, SET, thread, all);
    }
}
