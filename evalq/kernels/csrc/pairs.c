/* Products by dot products of bfloat16 pairs (AVX512-BF16), float32 sums.

   Few rows: codes become bfloat16 integers, exact, by one table look-up for 16 outputs x 2 inputs;
   activations are bfloat16, or float32 as the sum of two bfloat16 numbers (16 significant bits).
   The lower half of a word then meets the upper, so code j of a word is paired with code j + per/2.
   An infinity times a part that is 0 would be NaN: rows that are not finite are left to lowbit.c.

   Many rows: the weight is dequantized a panel of 32 outputs at a time into the cache. */

#include <omp.h>

#include "panel.h"

#if PAIRS

/* Entry i: (i modulo period) * step - shift; with `wrapped`, 16 to 31 stand for -16 to -1. */
INLINE __m512i make_table(int period, int wrapped, int step, float shift) {
    vf half[2];
    for (int h = 0; h < 2; h++) {
        vu index = {0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15};
        index = wrapped ? index - (uint32_t)(16 * h) : (index + (uint32_t)(16 * h)) & (period - 1u);
        half[h] = __builtin_convertvector((vi)index, vf) * (float)step - shift;
    }
    return (__m512i)_mm512_cvtne2ps_pbh((__m512)half[1], (__m512)half[0]);
}

INLINE __m512 dot(__m512 sum, __m512i weights, const uint32_t *pair) {
    return _mm512_dpbf16_ps(sum, (__m512bh)weights, (__m512bh)_mm512_set1_epi32((int)*pair));
}

INLINE void dot_block(const Weight *w, int64_t block, const uint32_t *hi, const uint32_t *lo,
                      int64_t ld, vf *total, const int BITS, const int SHARED, const int ROWS,
                      const int SPLIT) {
    /* Eight bits are two digits of four; `steps` look-ups a word. */
    const int digit = BITS == 8 ? 4 : BITS, steps = 16 / digit, half = 16 / BITS;
    const int chains = ROWS == 1 ? 4 : ROWS == 2 ? 2 : 1, sides = SPLIT && ROWS <= 4 ? 2 : 1;
    const uint32_t *base = w->words + block * w->columns * LANES;
    /* Five bits of a look-up: the fifth is of the next code, or the sign of code - zero. */
    const int period = 1 << digit;
    const __m512i low =
        make_table(period, !SHARED, 1, SHARED && BITS != 8 ? w->zero : 0.0f);
    const __m512i high = BITS == 8 ? make_table(period, !SHARED, 16, SHARED ? w->zero : 0.0f) : low;
    const __m512i mask = _mm512_set1_epi16((1 << digit) - 1);
    for (int m = 0; m < ROWS; m++) total[m] = splat(0.0f);
    for (int64_t g = 0; g < w->groups; g++) {
        const int64_t first = g * w->group_words;
        int64_t last = first + w->group_words;
        if (last > w->columns) last = w->columns;
        vf scale;
        _mm_prefetch((const char *)(w->scales + (block * w->groups + g) * LANES) + 2048, _MM_HINT_T0);
        memcpy(&scale, w->scales + (block * w->groups + g) * LANES, 64);
        __m512i zero = _mm512_setzero_si512(), tens = zero;
        if (!SHARED) {
            const __m512i one =
                _mm512_cvtps_epi32(_mm512_loadu_ps(w->zeros + (block * w->groups + g) * LANES));
            const __m512i both = _mm512_or_si512(one, _mm512_slli_epi32(one, 16));
            zero = BITS == 8 ? _mm512_and_si512(both, mask) : both;
            tens = _mm512_srli_epi16(both, 4);
        }
        __m512 part[8][4][2];
#pragma GCC unroll 8
        for (int m = 0; m < ROWS; m++)
#pragma GCC unroll 4
            for (int c = 0; c < chains; c++)
#pragma GCC unroll 2
                for (int s = 0; s < sides; s++) part[m][c][s] = _mm512_setzero_ps();
        for (int64_t i = first; i < last; i++) {
            const __m512i word = _mm512_loadu_si512(base + i * LANES);
            _mm_prefetch((const char *)(base + i * LANES) + 8192, _MM_HINT_T0);
#pragma GCC unroll 8
            for (int s = 0; s < steps; s++) {
                __m512i code = s ? _mm512_srli_epi16(word, digit * s) : word;
                const int upper = BITS == 8 && (s & 1);
                const int64_t at = i * half + (BITS == 8 ? s / 2 : s);
                if (!SHARED)
                    code = _mm512_sub_epi16(_mm512_and_si512(code, mask), upper ? tens : zero);
                const __m512i value = _mm512_permutexvar_epi16(code, upper ? high : low);
#pragma GCC unroll 8
                for (int m = 0; m < ROWS; m++) {
                    __m512 *sums = part[m][s % chains];
                    sums[0] = dot(sums[0], value, hi + m * ld + at);
                    if (SPLIT) sums[sides - 1] = dot(sums[sides - 1], value, lo + m * ld + at);
                }
            }
        }
#pragma GCC unroll 8
        for (int m = 0; m < ROWS; m++) {
            vf sum[4];
#pragma GCC unroll 4
            for (int c = 0; c < chains; c++) {
                sum[c] = (vf)part[m][c][0];
                if (sides == 2) sum[c] += (vf)part[m][c][1];
            }
            if (chains == 2) sum[0] += sum[1];
            if (chains == 4) sum[0] = (sum[0] + sum[1]) + (sum[2] + sum[3]);
            total[m] += sum[0] * scale;
        }
    }
}

#define DOT(B, S, R, P)                                                                        \
    static void dot_##B##_##S##_##R##_##P(const Weight *w, int64_t block, const uint32_t *hi,  \
                                          const uint32_t *lo, int64_t ld, vf *total) {         \
        dot_block(w, block, hi, lo, ld, total, B, S, R, P);                                    \
    }
#define DOT_ROWS(B, S, P) DOT(B, S, 1, P) DOT(B, S, 2, P) DOT(B, S, 4, P) DOT(B, S, 8, P)
#define DOT_BITS(B) DOT_ROWS(B, 0, 0) DOT_ROWS(B, 0, 1) DOT_ROWS(B, 1, 0) DOT_ROWS(B, 1, 1)
DOT_BITS(2)
DOT_BITS(4)
DOT_BITS(8)

#define DOT_SIZES(B, S, P) \
    { dot_##B##_##S##_1_##P, dot_##B##_##S##_2_##P, dot_##B##_##S##_4_##P, dot_##B##_##S##_8_##P }
#define DOT_TABLE(B)                                \
    {{DOT_SIZES(B, 0, 0), DOT_SIZES(B, 0, 1)},      \
     {DOT_SIZES(B, 1, 0), DOT_SIZES(B, 1, 1)}}
static const Dot DOTS[3][2][2][4] = {DOT_TABLE(2), DOT_TABLE(4), DOT_TABLE(8)};

Dot evalq_dot(int bits, int shared, int split, int size) {
    return DOTS[bits == 2 ? 0 : bits == 4 ? 1 : 2][shared][split][size];
}

int evalq_pairs(const void *x, int kind, int64_t inputs, int bits, uint32_t *hi, uint32_t *lo) {
    const int per = 32 / bits;
    uint16_t order[16];
    for (int i = 0; i < 16; i++)
        order[i] = (uint16_t)(i / per * per + i % per / 2 + (i & 1) * (per / 2));
    const __m256i by = _mm256_loadu_si256((const __m256i *)order);
    __mmask16 odd = 0;
    for (int64_t i = 0; i < inputs; i += LANES) {
        const int64_t left = inputs - i;
        const __mmask16 here = left < LANES ? (__mmask16)((1u << left) - 1) : (__mmask16)0xffff;
        __m512 value;
        if (kind == F32) {
            value = _mm512_maskz_loadu_ps(here, (const float *)x + i);
        } else {
            const __m256i half = _mm256_maskz_loadu_epi16(here, (const uint16_t *)x + i);
            value = _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(half), 16));
        }
        odd |= _mm512_fpclass_ps_mask(value, 0x99); /* NaN and infinities */
        const __m256i top = (__m256i)_mm512_cvtneps_pbh(value);
        _mm256_storeu_si256((__m256i *)(hi + i / 2), _mm256_permutexvar_epi16(by, top));
        if (lo == NULL) continue;
        const __m512 back = _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(top), 16));
        const __m256i rest = (__m256i)_mm512_cvtneps_pbh(_mm512_sub_ps(value, back));
        _mm256_storeu_si256((__m256i *)(lo + i / 2), _mm256_permutexvar_epi16(by, rest));
    }
    return odd == 0;
}

#define TALL 14

/* TALL rows of x at most, times two blocks of a panel, into out; `here`: which outputs there are.
   Unrolled throughout: the sums stay in registers. */
INLINE void strip(const uint32_t *x, int64_t ld, const uint16_t *a, const uint16_t *b, int64_t pairs,
                  uint16_t *out, int64_t ldo, const __mmask16 *here, const int ROWS) {
    __m512 sum[TALL][2];
#pragma GCC unroll 14
    for (int m = 0; m < ROWS; m++) sum[m][0] = sum[m][1] = _mm512_setzero_ps();
    for (int64_t k = 0; k < pairs; k++) {
        const __m512bh left = (__m512bh)_mm512_loadu_si512(a + 32 * k);
        const __m512bh right = (__m512bh)_mm512_loadu_si512(b + 32 * k);
#pragma GCC unroll 14
        for (int m = 0; m < ROWS; m++) {
            const __m512bh value = (__m512bh)_mm512_set1_epi32((int)x[m * ld + k]);
            sum[m][0] = _mm512_dpbf16_ps(sum[m][0], left, value);
            sum[m][1] = _mm512_dpbf16_ps(sum[m][1], right, value);
        }
    }
#pragma GCC unroll 14
    for (int m = 0; m < ROWS; m++) {
        uint16_t *to = out + m * ldo;
        _mm256_mask_storeu_epi16(to, here[0], (__m256i)_mm512_cvtneps_pbh(sum[m][0]));
        _mm256_mask_storeu_epi16(to + LANES, here[1], (__m256i)_mm512_cvtneps_pbh(sum[m][1]));
    }
}

#define STRIP(R)                                                                               \
    static void strip_##R(const uint32_t *x, int64_t ld, const uint16_t *a, const uint16_t *b, \
                          int64_t pairs, uint16_t *out, int64_t ldo, const __mmask16 *here) {  \
        strip(x, ld, a, b, pairs, out, ldo, here, R);                                          \
    }
STRIP(1)
STRIP(2)
STRIP(3)
STRIP(4)
STRIP(5)
STRIP(6)
STRIP(7)
STRIP(8)
STRIP(9)
STRIP(10)
STRIP(11)
STRIP(12)
STRIP(13)
STRIP(14)

typedef void (*Strip)(const uint32_t *, int64_t, const uint16_t *, const uint16_t *, int64_t,
                      uint16_t *, int64_t, const __mmask16 *);
static const Strip STRIPS[TALL + 1] = {NULL,    strip_1,  strip_2,  strip_3,  strip_4,
                                       strip_5, strip_6,  strip_7,  strip_8,  strip_9,
                                       strip_10, strip_11, strip_12, strip_13, strip_14};

static __mmask16 outputs(const Weight *w, int64_t block) {
    const int64_t left = w->rows_out - block * LANES;
    return left <= 0 ? 0 : left >= LANES ? (__mmask16)0xffff : (__mmask16)((1u << left) - 1);
}

/* out [rows][rows_out] = x [rows][in] @ w.T, all bfloat16; 0, or 1 without memory. */
int evalq_panels(const void *x, void *out, int64_t rows, int64_t in, const void *words,
                 const void *scales, const void *zeros, float zero, int bits, int64_t rows_out,
                 int64_t columns, int64_t groups, int64_t group_words, int threads) {
    const Weight w =
        describe(words, scales, zeros, zero, rows_out, columns, groups, group_words);
    const int64_t inputs = columns * (32 / bits), panel = 2 * inputs * LANES;
    /* A line more a row: rows at a power of two from each other would share the cache's sets. */
    const int64_t ld = ROUND(inputs, 32) + 32;
    uint16_t *memory =
        aligned_alloc(64, ROUND(sizeof(uint16_t) * (size_t)(rows * ld + threads * panel), 64));
    if (memory == NULL) return 1;
    const int64_t strips = (rows + TALL - 1) / TALL;
#pragma omp parallel num_threads(threads)
    {
        const int64_t t = omp_get_thread_num(), n = omp_get_num_threads();
        for (int64_t m = rows * t / n; m < rows * (t + 1) / n; m++) {
            memcpy(memory + m * ld, (const uint16_t *)x + m * in, sizeof(uint16_t) * (size_t)in);
            memset(memory + m * ld + in, 0, sizeof(uint16_t) * (size_t)(ld - in));
        }
#pragma omp barrier
        const int64_t duos = (w.blocks + 1) / 2;
        uint16_t *a = memory + rows * ld + t * panel, *b = a + inputs * LANES;
        for (int64_t duo = duos * t / n; duo < duos * (t + 1) / n; duo++) {
            const int64_t block = 2 * duo, next = block + 1 < w.blocks ? block + 1 : block;
            const __mmask16 here[2] = {outputs(&w, block), outputs(&w, block + 1)};
            fill_any(&w, bits, block, a, inputs);
            if (next != block) fill_any(&w, bits, next, b, inputs);
            for (int64_t s = 0; s < strips; s++) {
                const int64_t m = rows * s / strips, tall = rows * (s + 1) / strips - m;
                STRIPS[tall]((const uint32_t *)(memory + m * ld), ld / 2, a,
                             next != block ? b : a, inputs / 2,
                             (uint16_t *)out + m * rows_out + block * LANES, rows_out, here);
            }
        }
    }
    free(memory);
    return 0;
}

#else

Dot evalq_dot(int bits, int shared, int split, int size) {
    (void)bits, (void)shared, (void)split, (void)size;
    return NULL;
}

int evalq_pairs(const void *x, int kind, int64_t inputs, int bits, uint32_t *hi, uint32_t *lo) {
    (void)x, (void)kind, (void)inputs, (void)bits, (void)hi, (void)lo;
    return 0;
}

int evalq_panels(const void *x, void *out, int64_t rows, int64_t in, const void *words,
                 const void *scales, const void *zeros, float zero, int bits, int64_t rows_out,
                 int64_t columns, int64_t groups, int64_t group_words, int threads) {
    (void)x, (void)out, (void)rows, (void)in, (void)words, (void)scales, (void)zeros, (void)zero;
    (void)bits, (void)rows_out, (void)columns, (void)groups, (void)group_words, (void)threads;
    return 2;
}

#endif

int evalq_has_pairs(void) { return PAIRS; }
