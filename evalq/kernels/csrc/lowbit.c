/* Products with low-bit weights on a CPU: exact integer codes, float32 sums.

   Weights are stored as words [blocks][words][16]: lane l of block b is output row 16 b + l, and
   a 32-bit word holds 32 / BITS consecutive input columns, lowest bits first. One vector load
   then serves 16 rows, an activation is broadcast, and no sum crosses lanes or threads, so the
   result does not depend on the number of threads. A product is taken as
   scale * sum((code - zero) * x) over each group, all in float32; bfloat16 activations take the
   shorter way of pairs.c where the CPU has it.

   Vectors are GCC's own (vector_size), which any target of gcc or clang can lower; one function,
   codes(), has a shorter form for AVX-512. */

#include "lowbit.h"

/* Code j of each word, less the zero; table holds code - zero where all lanes share one zero. */
INLINE vf codes(vu word, int j, int bits, int shared, vf table, vf zero) {
    if (bits == 8) {
        /* 2^23 + code as a float, by writing the code into the mantissa. */
        union { vu u; vf f; } raised;
        raised.u = ((word >> (8 * j)) & 255u) | 0x4b000000u;
        return raised.f - (zero + 8388608.0f);
    }
#ifdef __AVX512F__
    /* vpermps looks at the four lowest bits of an index: no mask is needed. */
    vf value = (vf)_mm512_permutexvar_ps((__m512i)(word >> (bits * j)), (__m512)table);
#else
    (void)table;
    vf value = __builtin_convertvector((word >> (bits * j)) & ((1u << bits) - 1), vf);
    if (shared) return value - zero;
#endif
    return shared ? value : value - zero;
}

INLINE vf make_table(int bits, float shift) {
    vf table;
    for (int i = 0; i < LANES; i++) table[i] = (float)(i & ((1 << bits) - 1)) - shift;
    return table;
}

#define VISIT_GROUPS(BITS, SHARED)                                                         \
    const int per = 32 / (BITS);                                                           \
    const vf table = make_table(BITS, (SHARED) ? w->zero : 0.0f);                          \
    const uint32_t *base = w->words + block * w->columns * LANES;                          \
    for (int64_t g = 0; g < w->groups; g++) {                                              \
        const int64_t first = g * w->group_words;                                          \
        int64_t last = first + w->group_words;                                             \
        if (last > w->columns) last = w->columns;                                          \
        vf zero = splat(w->zero), scale;                                                   \
        if (!(SHARED)) memcpy(&zero, w->zeros + (block * w->groups + g) * LANES, 64);           \
        memcpy(&scale, w->scales + (block * w->groups + g) * LANES, 64);

/* Sums of one block of 16 rows over ROWS rows of x. Few rows get several chains each, so that the
   latency of one multiply-add is hidden. */
INLINE void multiply_block(const Weight *w, int64_t block, const float *x, int64_t ldx, vf *total,
                           const int BITS, const int SHARED, const int ROWS) {
    const int chains = ROWS == 1 ? 4 : ROWS == 2 ? 2 : 1;
    for (int m = 0; m < ROWS; m++) total[m] = splat(0.0f);
    VISIT_GROUPS(BITS, SHARED)
        vf part[8][4];
        for (int m = 0; m < ROWS; m++)
            for (int c = 0; c < chains; c++) part[m][c] = splat(0.0f);
        for (int64_t i = first; i < last; i++) {
            vu word;
            memcpy(&word, base + i * LANES, 64);
#pragma GCC unroll 16
            for (int j = 0; j < per; j++) {
                const vf value = codes(word, j, BITS, SHARED, table, zero);
#pragma GCC unroll 8
                for (int m = 0; m < ROWS; m++)
                    part[m][j % chains] += value * splat(x[m * ldx + i * per + j]);
            }
        }
#pragma GCC unroll 8
        for (int m = 0; m < ROWS; m++) {
            vf sum = part[m][0];
            if (chains == 2) sum += part[m][1];
            if (chains == 4) sum = (sum + part[m][1]) + (part[m][2] + part[m][3]);
            total[m] += sum * scale;
        }
    }
}

INLINE void dequantize_block(const Weight *w, int64_t block, int64_t at, void *out, int kind,
                             int64_t ldo, int64_t inputs, const int BITS, const int SHARED) {
    VISIT_GROUPS(BITS, SHARED)
        for (int64_t i = first; i < last; i++) {
            vu word;
            memcpy(&word, base + i * LANES, 64);
#pragma GCC unroll 16
            for (int j = 0; j < per; j++) {
                const int64_t k = i * per + j;
                if (k >= inputs) break;
                const vf value = codes(word, j, BITS, SHARED, table, zero) * scale;
                if (kind == F32) {
                    memcpy((float *)out + k * ldo + at, &value, 64);
                } else {
                    const vu bits = (vu)value;
                    const vu rounded = (bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16;
                    const vh half = __builtin_convertvector(rounded, vh);
                    memcpy((uint16_t *)out + k * ldo + at, &half, 32);
                }
            }
        }
    }
}

#define MULTIPLY(B, S, R)                                                                  \
    static void multiply_##B##_##S##_##R(const Weight *w, int64_t block, const float *x,   \
                                         int64_t ldx, vf *total) {                         \
        multiply_block(w, block, x, ldx, total, B, S, R);                                  \
    }
#define MULTIPLY_ROWS(B, S) MULTIPLY(B, S, 1) MULTIPLY(B, S, 2) MULTIPLY(B, S, 4) MULTIPLY(B, S, 8)
MULTIPLY_ROWS(2, 0)
MULTIPLY_ROWS(2, 1)
MULTIPLY_ROWS(4, 0)
MULTIPLY_ROWS(4, 1)
MULTIPLY_ROWS(8, 0)
MULTIPLY_ROWS(8, 1)

#define ENTRIES(B, S)                                                                      \
    { multiply_##B##_##S##_1, multiply_##B##_##S##_2, multiply_##B##_##S##_4,              \
      multiply_##B##_##S##_8 }
static const Multiply TABLE[3][2][4] = {{ENTRIES(2, 0), ENTRIES(2, 1)},
                                        {ENTRIES(4, 0), ENTRIES(4, 1)},
                                        {ENTRIES(8, 0), ENTRIES(8, 1)}};

Multiply evalq_kernel(int bits, int shared, int size) {
    return TABLE[bits == 2 ? 0 : bits == 4 ? 1 : 2][shared][size];
}

static void store(void *out, int kind, int64_t at, vf value, int64_t kept) {
    for (int64_t l = 0; l < kept; l++) {
        if (kind == F32) ((float *)out)[at + l] = value[l];
        else ((uint16_t *)out)[at + l] = narrow(value[l]);
    }
}

/* Rows `first` to `last` of one block, in tiles of 8, 4, 2 and 1. */
static void multiply_rows(const Weight *w, int bits, int64_t block, const float *x, int64_t ldx,
                          int64_t first, int64_t last, void *out, int kind) {
    const Multiply *kernels = TABLE[bits == 2 ? 0 : bits == 4 ? 1 : 2][w->zeros == NULL];
    int64_t kept = w->rows_out - block * LANES;
    if (kept > LANES) kept = LANES;
    for (int64_t m = first; m < last;) {
        const int64_t left = last - m;
        const int size = left >= 8 ? 3 : left >= 4 ? 2 : left >= 2 ? 1 : 0;
        vf total[8];
        kernels[size](w, block, x + m * ldx, ldx, total);
        for (int i = 0; i < (1 << size); i++)
            store(out, kind, (m + i) * w->rows_out + block * LANES, total[i], kept);
        m += 1 << size;
    }
}

/* The same over pairs of bfloat16; a row that is not `finite` by itself, from its float32 copy. */
static void multiply_pairs(const Weight *w, int bits, int64_t block, const uint32_t *pairs,
                           int64_t ld, const uint8_t *finite, const float *x, int64_t ldx,
                           int64_t rows, uint16_t *out) {
    int64_t kept = w->rows_out - block * LANES;
    if (kept > LANES) kept = LANES;
    for (int64_t m = 0; m < rows;) {
        const int64_t left = rows - m;
        const int size = left >= 8 ? 3 : left >= 4 ? 2 : left >= 2 ? 1 : 0;
        vf total[8];
        evalq_dot(bits, w->zeros == NULL, 0, size)(w, block, pairs + m * ld, NULL, ld, total);
        for (int i = 0; i < (1 << size); i++)
            store(out, BF16, (m + i) * w->rows_out + block * LANES, total[i], kept);
        m += 1 << size;
    }
    for (int64_t m = 0; m < rows; m++)
        if (!finite[m]) multiply_rows(w, bits, block, x, ldx, m, m + 1, out, BF16);
}

static float *widened(const void *x, int kind, int64_t rows, int64_t inputs, int64_t ldx) {
    float *copy = malloc(sizeof(float) * (size_t)(rows * ldx));
    if (copy == NULL) return NULL;
    for (int64_t m = 0; m < rows; m++) {
        for (int64_t k = 0; k < inputs; k++)
            copy[m * ldx + k] = kind == F32 ? ((const float *)x)[m * inputs + k]
                                            : widen(((const uint16_t *)x)[m * inputs + k]);
        memset(copy + m * ldx + inputs, 0, sizeof(float) * (size_t)(ldx - inputs));
    }
    return copy;
}

/* x [rows][inputs] and out [rows][rows_out], of the kind given; 0, or 1 without memory. */
int evalq_multiply(const void *x, void *out, int kind, int64_t rows, int64_t inputs,
                   const void *words, const void *scales, const void *zeros, float zero, int bits,
                   int64_t rows_out, int64_t columns, int64_t groups, int64_t group_words,
                   int threads) {
    const Weight w =
        describe(words, scales, zeros, zero, rows_out, columns, groups, group_words);
    const int64_t ldx = columns * (32 / bits), ld = (ldx / 2 + LANES - 1) & ~(int64_t)(LANES - 1);
    uint32_t *pairs = NULL;
    uint8_t *finite = NULL;
    int odd = 1;
    if (kind == BF16 && evalq_has_pairs()) {
        pairs = calloc((size_t)(rows * ld) + (size_t)(rows + 3) / 4, sizeof(uint32_t));
        if (pairs == NULL) return 1;
        finite = (uint8_t *)(pairs + rows * ld);
        odd = 0;
        for (int64_t m = 0; m < rows; m++) {
            const uint16_t *row = (const uint16_t *)x + m * inputs;
            finite[m] = (uint8_t)evalq_pairs(row, kind, inputs, bits, pairs + m * ld, NULL);
            odd |= !finite[m];
        }
    }
    const float *wide = x;
    float *copy = NULL;
    if (odd && (kind != F32 || ldx != inputs)) {
        wide = copy = widened(x, kind, rows, inputs, ldx);
        if (copy == NULL) {
            free(pairs);
            return 1;
        }
    }
#pragma omp parallel for schedule(static) num_threads(threads)
    for (int64_t block = 0; block < w.blocks; block++) {
        if (pairs != NULL)
            multiply_pairs(&w, bits, block, pairs, ld, finite, wide, ldx, rows, out);
        else multiply_rows(&w, bits, block, wide, ldx, 0, rows, out, kind);
    }
    free(copy);
    free(pairs);
    return 0;
}

/* Blocks first to last (not included) of the transposed weight, [inputs][16 * (last - first)]. */
int evalq_dequantize(void *out, int kind, int64_t inputs, int64_t first, int64_t last,
                     const void *words, const void *scales, const void *zeros, float zero, int bits,
                     int64_t rows_out, int64_t columns, int64_t groups, int64_t group_words,
                     int threads) {
    const Weight w =
        describe(words, scales, zeros, zero, rows_out, columns, groups, group_words);
    const int64_t ldo = (last - first) * LANES;
#define CASE(B)                                                                            \
    if (bits == B) {                                                                       \
        if (zeros == NULL) dequantize_block(&w, block, at, out, kind, ldo, inputs, B, 1);  \
        else dequantize_block(&w, block, at, out, kind, ldo, inputs, B, 0);                \
    }
#pragma omp parallel for schedule(static) num_threads(threads)
    for (int64_t block = first; block < last; block++) {
        const int64_t at = (block - first) * LANES;
        CASE(2)
        CASE(4)
        CASE(8)
    }
    return 0;
}
