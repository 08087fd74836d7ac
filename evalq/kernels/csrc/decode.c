/* One decoding step of a plain decoder on a CPU: every layer in one call, on one team of threads.

   Activations and sums are float32 throughout; weights are dense (float32, bfloat16) or packed as in
   lowbit.c; keys and values are kept in float32 or bfloat16. With a bfloat16 cache and AVX512-BF16
   an activation meets packed weights as the sum of two bfloat16 numbers (pairs.c). Threads take
   whole blocks of outputs and whole heads, so a result does not depend on their number. */

#include <math.h>
#include <omp.h>

#include "vectors.h"

#define CHUNK 8
#define PAD(n) (((n) + 31) & ~(int64_t)31)
/* Bytes between a load of dense weights and the prefetch beside it: one core then reads about twice
   as fast as the hardware's own prefetching lets it. */
#define AHEAD 8192

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
    int64_t ldh, lda, ldi, ldq, ldkv, rows;
    int thread, threads;
    /* What the products read now, and by stored bits (2, 4, 8) its pairs where `ready` says so. */
    const float *input;
    int64_t ld, ldp;     /* ldp pairs a row: hi, then as many lo */
    uint32_t *pairs;     /* [3][rows][2 * ldp], or NULL where float32 meets packed weights */
    uint8_t *finite;     /* [3][rows] */
    int ready;
} Work;

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
                __builtin_prefetch(rows[u] + i * size + AHEAD);
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

/* What the next products read: x [rows][ld], which no product writes. */
static void begin(Work *w, const float *x, int64_t ld) {
    w->input = x;
    w->ld = ld;
    w->ready = 0;
}

/* Pairs of the input for words of so many bits, [rows][2 * ldp], and which rows are finite. */
static const uint32_t *pairs_of(Work *w, const Matrix *m, const uint8_t **finite) {
    const int slot = m->bits == 2 ? 0 : m->bits == 4 ? 1 : 2;
    uint32_t *pairs = w->pairs + slot * w->rows * 2 * w->ldp;
    uint8_t *good = w->finite + slot * w->rows;
    if (!(w->ready >> slot & 1)) {
        for (int64_t r = 0; r < w->rows; r++) {
            uint32_t *hi = pairs + r * 2 * w->ldp;
            good[r] =
                (uint8_t)evalq_pairs(w->input + r * w->ld, F32, m->in, m->bits, hi, hi + w->ldp);
        }
        w->ready |= 1 << slot;
    }
    *finite = good;
    return pairs;
}

/* The product over pairs; a row that is not finite goes the long way, and changes no other. */
static void product_of_pairs(const Matrix *m, const Weight *weight, int64_t block, Work *w, int64_t r,
                             int size, vf *out) {
    const uint8_t *finite;
    const uint32_t *hi = pairs_of(w, m, &finite) + r * 2 * w->ldp;
    const int shared = m->zeros == NULL;
    evalq_dot(m->bits, shared, 1, size)(weight, block, hi, hi + w->ldp, 2 * w->ldp, out);
    for (int64_t i = 0; i < (1 << size); i++)
        if (!finite[r + i])
            evalq_kernel(m->bits, shared, 0)(weight, block, w->input + (r + i) * w->ld, w->ld,
                                             out + i);
}

/* Block `block` of 16 outputs for up to 8 rows of the input from row r on, into out [8][16]; returns
   how many rows. */
static int product(const Matrix *m, int64_t block, Work *w, int64_t r, float *out) {
    const int64_t rows = w->rows - r, ldx = w->ld;
    const float *x = w->input + r * ldx;
    const int size = rows >= 8 ? 3 : rows >= 4 ? 2 : rows >= 2 ? 1 : 0;
    const int64_t first = block * LANES;
    const int kept = m->out - first < LANES ? (int)(m->out - first) : LANES;
    if (m->kind == PACKED) {
        const Weight weight = describe(m->data, m->scales, m->zeros, m->zero, m->out, m->columns,
                                       m->groups, m->group_words);
        if (w->pairs != NULL) product_of_pairs(m, &weight, block, w, r, size, (vf *)out);
        else evalq_kernel(m->bits, m->zeros == NULL, size)(&weight, block, x, ldx, (vf *)out);
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

/* out[rows][ldo] = (or +=) input @ m.T, this block only. */
static void store_block(const Matrix *m, int64_t block, Work *w, float *out, int64_t ldo, int add) {
    float part[CHUNK * LANES] __attribute__((aligned(64)));
    const int64_t first = block * LANES;
    const int kept = m->out - first < LANES ? (int)(m->out - first) : LANES;
    for (int64_t r = 0; r < w->rows;) {
        const int done = product(m, block, w, r, part);
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

static void normalize_rows(const Model *m, const float *weight, Work *w) {
    for (int64_t r = 0; r < w->rows; r++)
        normalize(w->h + r * w->ldh, weight, w->x + r * w->ldh, m->hidden, m->epsilon);
    begin(w, w->x, w->ldh);
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
        int64_t j = 0;
        for (; j + 4 <= position; j += 4)
#pragma GCC unroll 4
            for (int u = 0; u < 4; u++)
                part[u] += load(values + ((j + u) * size + i) * bytes, KIND) * w->scores[j + u];
        for (; j < position; j++)
            part[0] += load(values + (j * size + i) * bytes, KIND) * w->scores[j];
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
static void gate_block(const Layer *layer, int64_t block, Work *w) {
    float gate[CHUNK * LANES] __attribute__((aligned(64)));
    float up[CHUNK * LANES] __attribute__((aligned(64)));
    const int64_t first = block * LANES;
    const int64_t left = layer->gate.out - first;
    const int kept = left < LANES ? (int)left : LANES;
    for (int64_t r = 0; r < w->rows;) {
        const int done = product(&layer->gate, block, w, r, gate);
        product(&layer->up, block, w, r, up);
        for (int i = 0; i < done; i++) {
            vf g = load(gate + i * LANES, F32), u = load(up + i * LANES, F32);
            g = g * (1.0f / (1.0f + exponential(-g))) * u;
            memcpy(w->inner + (r + i) * w->ldi + first, &g, sizeof(float) * (size_t)kept);
        }
        r += done;
    }
}

static void run_layer(const Model *m, const Layer *layer, const int64_t *positions, Work *w) {
    normalize_rows(m, layer->attention_norm, w);
    const int64_t nq = blocks(&layer->q), nk = blocks(&layer->k), nv = blocks(&layer->v);
    SHARE(b, nq + nk + nv) {
        if (b < nq) store_block(&layer->q, b, w, w->q, w->ldq, 0);
        else if (b < nq + nk) store_block(&layer->k, b - nq, w, w->k, w->ldkv, 0);
        else store_block(&layer->v, b - nq - nk, w, w->v, w->ldkv, 0);
    }
#pragma omp barrier
    SHARE(unit, w->rows * m->heads) {
        const int64_t row = unit / m->heads;
        attend(m, layer, row, unit % m->heads, positions[row], w);
    }
#pragma omp barrier
    begin(w, w->attended, w->lda);
    SHARE(b, blocks(&layer->o)) store_block(&layer->o, b, w, w->h, w->ldh, 1);
#pragma omp barrier
    normalize_rows(m, layer->feed_forward_norm, w);
    SHARE(b, blocks(&layer->gate)) gate_block(layer, b, w);
#pragma omp barrier
    begin(w, w->inner, w->ldi);
    SHARE(b, blocks(&layer->down)) store_block(&layer->down, b, w, w->h, w->ldh, 1);
#pragma omp barrier
}

static void run_step(const Model *m, const int64_t *tokens, const int64_t *positions, float *logits,
                     Work *w) {
    if (w->thread == 0)
        for (int64_t r = 0; r < w->rows; r++)
            for (int64_t i = 0; i < m->hidden; i++)
                w->h[r * w->ldh + i] =
                    load_one(m->embedding, tokens[r] * m->hidden + i, m->embedding_kind);
#pragma omp barrier
    for (int64_t i = 0; i < m->count; i++) run_layer(m, m->layers + i, positions, w);
    normalize_rows(m, m->norm, w);
    SHARE(b, blocks(&m->head)) store_block(&m->head, b, w, logits, m->head.out, 0);
}

/* Reads tokens[r] at positions[r] into row r of the caches, and gives the logits [rows][vocabulary]
   of what follows; 0, or 1 without memory. */
int evalq_step(const Model *m, const int64_t *tokens, const int64_t *positions, int64_t rows,
               float *logits, int threads) {
    const int64_t ldh = PAD(m->hidden), lda = PAD(m->heads * m->head_dim), ldi = PAD(m->inner);
    const int64_t ldkv = PAD(m->kv_heads * m->head_dim);
    const int64_t shared = rows * (ldh + 2 * lda + 2 * ldkv + ldi);
    const int paired = m->cache_kind == BF16 && evalq_has_pairs();
    int64_t widest = ldh > lda ? ldh : lda;
    if (ldi > widest) widest = ldi;
    const int64_t split = paired ? 3 * rows * widest + PAD(rows) : 0;
    const int64_t own = rows * ldh + PAD(m->length + LANES) + split;
    float *memory = aligned_alloc(64, sizeof(float) * (size_t)PAD(shared + threads * own));
    if (memory == NULL) return 1;
    /* The tails of padded rows meet codes of 0 and have to be numbers. */
    memset(memory, 0, sizeof(float) * (size_t)(shared + threads * own));
#pragma omp parallel num_threads(threads)
    {
        Work w = {.ldh = ldh, .lda = lda, .ldi = ldi, .ldq = lda, .ldkv = ldkv, .rows = rows};
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
        if (paired) {
            w.ldp = widest / 2;
            w.pairs = (uint32_t *)(w.scores + PAD(m->length + LANES));
            w.finite = (uint8_t *)(w.pairs + 3 * rows * widest);
        }
        run_step(m, tokens, positions, logits, &w);
    }
    free(memory);
    return 0;
}
