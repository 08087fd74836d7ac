/* One decoding step of a plain decoder on a CPU: every layer in one call, on one team of threads.

   Activations and sums are float32 throughout; weights are dense (float32, bfloat16) or packed as in
   lowbit.c; keys and values are kept in float32 or bfloat16. Threads take whole blocks of outputs
   and whole heads, so a result does not depend on their number. */

#include <math.h>
#include <omp.h>

#include "lowbit.h"

#define CHUNK 8
#define PAD(n) (((n) + 31) & ~(int64_t)31)

enum { PACKED = 2 };

typedef struct {
    const void *data;    /* [out][in], or words as in lowbit.c */
    const float *scales, *zeros;
    const float *bias;   /* [out] or NULL */
    int64_t out, in, columns, groups, group_words;
    float zero;
    int32_t kind, bits;
} Matrix;

typedef struct {
    Matrix q, k, v, o, gate, up, down;
    const float *attention_norm, *feed_forward_norm, *q_norm, *k_norm;
    void *keys, *values; /* [rows][kv_heads][length][head_dim] */
} Layer;

typedef struct {
    const Layer *layers;
    Matrix head;
    const void *embedding; /* [vocabulary][hidden] */
    const float *norm, *cos, *sin; /* [hidden], [length][head_dim] twice */
    int64_t count, hidden, inner, heads, kv_heads, head_dim, length;
    float epsilon, scale;
    int32_t embedding_kind, cache_kind;
} Model;

typedef struct {
    float *h, *q, *k, *v, *attended, *inner; /* shared, [rows][...] */
    float *x, *scores; /* of this thread */
    int64_t ldh, lda, ldi, ldq, ldkv;
    int thread, threads;
} Work;

INLINE vf load(const void *data, int kind) {
    vf value;
    if (kind == F32) {
        memcpy(&value, data, 64);
        return value;
    }
    vh half;
    memcpy(&half, data, 32);
    return (vf)(__builtin_convertvector(half, vu) << 16);
}

INLINE float load_one(const void *data, int64_t at, int kind) {
    return kind == F32 ? ((const float *)data)[at] : widen(((const uint16_t *)data)[at]);
}

INLINE float sum(vf value) {
    float total = 0;
    for (int width = LANES / 2; width; width /= 2)
        for (int i = 0; i < width; i++) value[i] += value[i + width];
    total = value[0];
    return total;
}

/* Lanes of a where the comparison holds, else of b. */
#define pick(mask, a, b) ((vf)(((vu)(mask) & (vu)(a)) | (~(vu)(mask) & (vu)(b))))

/* e^x to 2e-7 for x in [-87, 88]; beyond, that of the bound. NaN stays NaN. */
INLINE vf exponential(vf x) {
    x = pick(x < -87.0f, splat(-87.0f), x);
    x = pick(x > 88.0f, splat(88.0f), x);
    const vf shifted = x * 1.44269504f + 12582912.0f;
    const vf n = shifted - 12582912.0f;
    const vf r = (x - n * 0.693359375f) + n * 2.12194440e-4f;
    vf p = r * (1.0f / 720) + 1.0f / 120;
    p = p * r + 1.0f / 24;
    p = p * r + 1.0f / 6;
    p = p * r + 0.5f;
    p = p * r + 1.0f;
    p = p * r + 1.0f;
    return p * (vf)(((vu)shifted << 23) + 0x3f800000u);
}

INLINE void dense_block(const Matrix *m, int64_t first, int kept, const float *x, int64_t ldx,
                        float *out, const int KIND, const int ROWS, const int WIDE) {
    const int size = KIND == F32 ? 4 : 2;
    const int64_t whole = m->in & ~(int64_t)(LANES - 1);
    for (int l = 0; l < kept; l += WIDE) {
        vf part[8][4];
        const char *rows[4];
        for (int u = 0; u < WIDE; u++) {
            const int64_t row = first + (l + u < kept ? l + u : kept - 1);
            rows[u] = (const char *)m->data + row * m->in * size;
            for (int r = 0; r < ROWS; r++) part[r][u] = splat(0.0f);
        }
        for (int64_t i = 0; i < whole; i += LANES)
#pragma GCC unroll 4
            for (int u = 0; u < WIDE; u++) {
                const vf w = load(rows[u] + i * size, KIND);
#pragma GCC unroll 8
                for (int r = 0; r < ROWS; r++) part[r][u] += w * load(x + r * ldx + i, F32);
            }
        for (int u = 0; u < WIDE && l + u < kept; u++)
            for (int r = 0; r < ROWS; r++) {
                float total = sum(part[r][u]);
                for (int64_t i = whole; i < m->in; i++)
                    total += load_one(rows[u], i, KIND) * x[r * ldx + i];
                out[r * LANES + l + u] = total;
            }
    }
}

/* Block `block` of 16 outputs for up to 8 rows, into out [8][16]; returns how many rows. */
static int product(const Matrix *m, int64_t block, const float *x, int64_t ldx, int64_t rows,
                   float *out) {
    const int size = rows >= 8 ? 3 : rows >= 4 ? 2 : rows >= 2 ? 1 : 0;
    const int64_t first = block * LANES;
    const int kept = m->out - first < LANES ? (int)(m->out - first) : LANES;
    if (m->kind == PACKED) {
        const Weight w = describe(m->data, m->scales, m->zeros, m->zero, m->out, m->columns,
                                  m->groups, m->group_words);
        evalq_kernel(m->bits, m->zeros == NULL, size)(&w, block, x, ldx, (vf *)out);
    } else {
#define DENSE(K)                                                          \
    if (size == 0) dense_block(m, first, kept, x, ldx, out, K, 1, 4);     \
    else if (size == 1) dense_block(m, first, kept, x, ldx, out, K, 2, 4); \
    else if (size == 2) dense_block(m, first, kept, x, ldx, out, K, 4, 2); \
    else dense_block(m, first, kept, x, ldx, out, K, 8, 1);
        if (m->kind == F32) { DENSE(F32) } else { DENSE(BF16) }
    }
    if (m->bias != NULL)
        for (int r = 0; r < (1 << size); r++)
            for (int l = 0; l < kept; l++) out[r * LANES + l] += m->bias[first + l];
    return 1 << size;
}

static int64_t blocks(const Matrix *m) { return (m->out + LANES - 1) / LANES; }

/* This thread's share of `total` pieces of work. */
#define SHARE(i, total)                                                       \
    for (int64_t i = (total) * w->thread / w->threads,                        \
                 i##_end = (total) * (w->thread + 1) / w->threads; i < i##_end; i++)

/* out[rows][ldo] = (or +=) x @ m.T, this block only. */
static void store_block(const Matrix *m, int64_t block, const float *x, int64_t ldx, int64_t rows,
                        float *out, int64_t ldo, int add) {
    float part[CHUNK * LANES] __attribute__((aligned(64)));
    const int64_t first = block * LANES;
    const int kept = m->out - first < LANES ? (int)(m->out - first) : LANES;
    for (int64_t r = 0; r < rows;) {
        const int done = product(m, block, x + r * ldx, ldx, rows - r, part);
        for (int i = 0; i < done; i++)
            for (int l = 0; l < kept; l++) {
                float *to = out + (r + i) * ldo + first + l;
                *to = add ? *to + part[i * LANES + l] : part[i * LANES + l];
            }
        r += done;
    }
}

static void normalize(const float *x, const float *weight, float *out, int64_t size, float epsilon) {
    float squares[LANES] = {0};
    for (int64_t i = 0; i < size; i++) squares[i % LANES] += x[i] * x[i];
    float total = 0;
    for (int i = 0; i < LANES; i++) total += squares[i];
    const float scale = 1.0f / sqrtf(total / (float)size + epsilon);
    for (int64_t i = 0; i < size; i++) out[i] = weight[i] * (x[i] * scale);
}

static void normalize_rows(const Model *m, const float *weight, int64_t rows, const Work *w) {
    for (int64_t r = 0; r < rows; r++)
        normalize(w->h + r * w->ldh, weight, w->x + r * w->ldh, m->hidden, m->epsilon);
}

/* A head's query or key: normalized, turned to its position. */
static void turn(const Model *m, const float *from, const float *norm, int64_t position, float *to) {
    const int64_t size = m->head_dim, half = size / 2;
    const float *cosine = m->cos + position * size, *sine = m->sin + position * size;
    float plain[size];
    if (norm != NULL) normalize(from, norm, plain, size, m->epsilon);
    else memcpy(plain, from, sizeof(float) * (size_t)size);
    for (int64_t i = 0; i < half; i++) to[i] = plain[i] * cosine[i] - plain[i + half] * sine[i];
    for (int64_t i = half; i < size; i++) to[i] = plain[i] * cosine[i] + plain[i - half] * sine[i];
}

static void keep(void *cache, int64_t at, float *values, int64_t size, int kind) {
    for (int64_t i = 0; i < size; i++) {
        if (kind == F32) ((float *)cache)[at + i] = values[i];
        else ((uint16_t *)cache)[at + i] = narrow(values[i]);
    }
}

INLINE void attend_as(const Model *m, const Layer *layer, int64_t row, int64_t head,
                      int64_t position, const Work *w, const int KIND) {
    const int64_t size = m->head_dim, group = m->heads / m->kv_heads, kv = head / group;
    const int64_t base = (row * m->kv_heads + kv) * m->length * size;
    const int bytes = KIND == F32 ? 4 : 2;
    const char *keys = (const char *)layer->keys + base * bytes;
    const char *values = (const char *)layer->values + base * bytes;
    float query[size], key[size], value[size];
    turn(m, w->q + row * w->ldq + head * size, layer->q_norm, position, query);
    turn(m, w->k + row * w->ldkv + kv * size, layer->k_norm, position, key);
    memcpy(value, w->v + row * w->ldkv + kv * size, sizeof value);
    if (head % group == 0) {
        keep(layer->keys, base + position * size, key, size, KIND);
        keep(layer->values, base + position * size, value, size, KIND);
    }
    /* Other threads may read this key and value before they are stored: each uses its own. */
    if (KIND != F32)
        for (int64_t i = 0; i < size; i++) {
            key[i] = widen(narrow(key[i]));
            value[i] = widen(narrow(value[i]));
        }
    const int64_t count = position + 1, padded = (count + LANES - 1) / LANES * LANES;
    float most = -INFINITY;
    for (int64_t j = 0; j < count; j++) {
        const int last = j == position;
        vf part = splat(0.0f);
        for (int64_t i = 0; i < size; i += LANES) {
            const vf k = last ? load(key + i, F32) : load(keys + (j * size + i) * bytes, KIND);
            part += k * load(query + i, F32);
        }
        w->scores[j] = sum(part) * m->scale;
        if (w->scores[j] > most) most = w->scores[j];
    }
    for (int64_t j = count; j < padded; j++) w->scores[j] = -INFINITY;
    vf total = splat(0.0f);
    for (int64_t j = 0; j < padded; j += LANES) {
        vf weight = exponential(load(w->scores + j, F32) - most);
        if (j + LANES > count)
            for (int64_t i = count - j; i < LANES; i++) weight[i] = 0.0f;
        memcpy(w->scores + j, &weight, 64);
        total += weight;
    }
    const float inverse = 1.0f / sum(total);
    float *out = w->attended + row * w->lda + head * size;
    for (int64_t i = 0; i < size; i += LANES) {
        vf part[4] = {splat(0.0f), splat(0.0f), splat(0.0f), splat(0.0f)};
        for (int64_t j = 0; j < position; j++)
            part[j & 3] += load(values + (j * size + i) * bytes, KIND) * w->scores[j];
        vf mixed = (part[0] + part[1]) + (part[2] + part[3]);
        mixed = (mixed + load(value + i, F32) * w->scores[position]) * inverse;
        memcpy(out + i, &mixed, 64);
    }
}

static void attend(const Model *m, const Layer *layer, int64_t row, int64_t head, int64_t position,
                   const Work *w) {
    if (m->cache_kind == F32) attend_as(m, layer, row, head, position, w, F32);
    else attend_as(m, layer, row, head, position, w, BF16);
}

/* Gate and up of one block, and silu(gate) * up. */
static void gate_block(const Layer *layer, int64_t block, int64_t rows, const Work *w) {
    float gate[CHUNK * LANES] __attribute__((aligned(64)));
    float up[CHUNK * LANES] __attribute__((aligned(64)));
    const int64_t first = block * LANES;
    const int64_t left = layer->gate.out - first;
    const int kept = left < LANES ? (int)left : LANES;
    for (int64_t r = 0; r < rows;) {
        const float *x = w->x + r * w->ldh;
        const int done = product(&layer->gate, block, x, w->ldh, rows - r, gate);
        product(&layer->up, block, x, w->ldh, rows - r, up);
        for (int i = 0; i < done; i++) {
            vf g = load(gate + i * LANES, F32), u = load(up + i * LANES, F32);
            g = g * (1.0f / (1.0f + exponential(-g))) * u;
            memcpy(w->inner + (r + i) * w->ldi + first, &g, sizeof(float) * (size_t)kept);
        }
        r += done;
    }
}

static void run_layer(const Model *m, const Layer *layer, const int64_t *positions, int64_t rows,
                      const Work *w) {
    normalize_rows(m, layer->attention_norm, rows, w);
    const int64_t nq = blocks(&layer->q), nk = blocks(&layer->k), nv = blocks(&layer->v);
    SHARE(b, nq + nk + nv) {
        if (b < nq) store_block(&layer->q, b, w->x, w->ldh, rows, w->q, w->ldq, 0);
        else if (b < nq + nk) store_block(&layer->k, b - nq, w->x, w->ldh, rows, w->k, w->ldkv, 0);
        else store_block(&layer->v, b - nq - nk, w->x, w->ldh, rows, w->v, w->ldkv, 0);
    }
#pragma omp barrier
    SHARE(unit, rows * m->heads) {
        const int64_t row = unit / m->heads;
        attend(m, layer, row, unit % m->heads, positions[row], w);
    }
#pragma omp barrier
    SHARE(b, blocks(&layer->o))
        store_block(&layer->o, b, w->attended, w->lda, rows, w->h, w->ldh, 1);
#pragma omp barrier
    normalize_rows(m, layer->feed_forward_norm, rows, w);
    SHARE(b, blocks(&layer->gate)) gate_block(layer, b, rows, w);
#pragma omp barrier
    SHARE(b, blocks(&layer->down))
        store_block(&layer->down, b, w->inner, w->ldi, rows, w->h, w->ldh, 1);
#pragma omp barrier
}

static void run_step(const Model *m, const int64_t *tokens, const int64_t *positions, int64_t rows,
                     float *logits, const Work *w) {
    if (w->thread == 0)
        for (int64_t r = 0; r < rows; r++)
            for (int64_t i = 0; i < m->hidden; i++)
                w->h[r * w->ldh + i] =
                    load_one(m->embedding, tokens[r] * m->hidden + i, m->embedding_kind);
#pragma omp barrier
    for (int64_t i = 0; i < m->count; i++) run_layer(m, m->layers + i, positions, rows, w);
    normalize_rows(m, m->norm, rows, w);
    SHARE(b, blocks(&m->head))
        store_block(&m->head, b, w->x, w->ldh, rows, logits, m->head.out, 0);
}

/* Reads tokens[r] at positions[r] into row r of the caches, and gives the logits [rows][vocabulary]
   of what follows; 0, or 1 without memory. */
int evalq_step(const Model *m, const int64_t *tokens, const int64_t *positions, int64_t rows,
               float *logits, int threads) {
    const int64_t ldh = PAD(m->hidden), lda = PAD(m->heads * m->head_dim), ldi = PAD(m->inner);
    const int64_t ldkv = PAD(m->kv_heads * m->head_dim);
    const int64_t shared = rows * (ldh + 2 * lda + 2 * ldkv + ldi);
    const int64_t own = rows * ldh + PAD(m->length + LANES);
    float *memory = aligned_alloc(64, sizeof(float) * (size_t)PAD(shared + threads * own));
    if (memory == NULL) return 1;
    /* The tails of padded rows meet codes of 0 and have to be numbers. */
    memset(memory, 0, sizeof(float) * (size_t)(shared + threads * own));
#pragma omp parallel num_threads(threads)
    {
        Work w = {.ldh = ldh, .lda = lda, .ldi = ldi, .ldq = lda, .ldkv = ldkv};
        w.h = memory;
        w.q = w.h + rows * ldh;
        w.k = w.q + rows * lda;
        w.v = w.k + rows * ldkv;
        w.attended = w.v + rows * ldkv;
        w.inner = w.attended + rows * lda;
        w.thread = omp_get_thread_num();
        w.threads = omp_get_num_threads();
        w.x = memory + shared + w.thread * own;
        w.scores = w.x + rows * ldh;
        run_step(m, tokens, positions, rows, logits, &w);
    }
    free(memory);
    return 0;
}
