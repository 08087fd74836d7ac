/* What the products of lowbit.c and the decoding step of decode.c share. */

#ifndef EVALQ_LOWBIT_H
#define EVALQ_LOWBIT_H

#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#ifdef __AVX512F__
#include <immintrin.h>
#endif

#define LANES 16
#define INLINE static inline __attribute__((always_inline))

typedef float vf __attribute__((vector_size(64)));
typedef uint32_t vu __attribute__((vector_size(64)));
typedef int32_t vi __attribute__((vector_size(64)));
typedef uint16_t vh __attribute__((vector_size(32)));

enum { F32 = 0, BF16 = 1 };

/* Written out: `(vf){0} + value` would keep an addition, for the sake of -0. */
INLINE vf splat(float v) { return (vf){v, v, v, v, v, v, v, v, v, v, v, v, v, v, v, v}; }

INLINE float widen(uint16_t half) {
    uint32_t bits = (uint32_t)half << 16;
    float value;
    memcpy(&value, &bits, 4);
    return value;
}

/* Round to nearest even; NaN stays NaN (its lowest payload bits may be lost, so a bit is set). */
INLINE uint16_t narrow(float value) {
    uint32_t bits;
    memcpy(&bits, &value, 4);
    if ((bits & 0x7fffffff) > 0x7f800000) return (uint16_t)((bits >> 16) | 0x40);
    return (uint16_t)((bits + 0x7fff + ((bits >> 16) & 1)) >> 16);
}

typedef struct {
    const uint32_t *words;  /* [blocks][columns][16] */
    const float *scales;    /* [blocks][groups][16] */
    const float *zeros;     /* the same, or NULL where every zero is `zero` */
    float zero;
    int64_t blocks, columns, groups, group_words, rows_out;
} Weight;

/* Sums of one block of 16 output rows over 1, 2, 4 or 8 rows of x. */
typedef void (*Multiply)(const Weight *, int64_t, const float *, int64_t, vf *);

/* The same over pairs of bfloat16 activations (pairs.c), rows `ld` pairs apart: hi, and lo as well
   where each activation is the sum of two. */
typedef void (*Dot)(const Weight *, int64_t, const uint32_t *hi, const uint32_t *lo, int64_t ld,
                    vf *);

/* As evalq_kernel, and whether activations are split in two; NULL without AVX512-BF16. */
Dot evalq_dot(int bits, int shared, int split, int size);

/* Pairs of one row of x for words of so many bits, into room for `inputs` rounded up to 16 halves;
   lo may be NULL. 1 where every activation is finite, else 0, and the pairs are of no use. */
int evalq_pairs(const void *x, int kind, int64_t inputs, int bits, uint32_t *hi, uint32_t *lo);

int evalq_has_pairs(void);

/* By stored bits (2, 4, 8), whether all zeros are one, and the binary logarithm of the rows. */
Multiply evalq_kernel(int bits, int shared, int size);

static inline Weight describe(const void *words, const void *scales, const void *zeros, float zero,
                       int64_t rows_out, int64_t columns, int64_t groups, int64_t group_words) {
    return (Weight){words, scales, zeros, zero, (rows_out + LANES - 1) / LANES,
                    columns, groups, group_words, rows_out};
}

#endif
