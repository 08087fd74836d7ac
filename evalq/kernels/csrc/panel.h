/* A weight's blocks dequantized to bfloat16, in the order that dot products of pairs read. */

#ifndef EVALQ_PANEL_H
#define EVALQ_PANEL_H

#include "lowbit.h"

#define ROUND(n, m) (((n) + (m) - 1) / (m) * (m))

#if defined(__AVX512BF16__) && defined(__AVX512BW__) && defined(__AVX512VL__) && \
    defined(__AVX512DQ__)
#define PAIRS 1

INLINE vf panel_codes(vu word, int j, int bits, int shared, vf table, vf zero) {
    if (bits == 8) return __builtin_convertvector((word >> (8 * j)) & 255u, vf) - zero;
    const vf value = (vf)_mm512_permutexvar_ps((__m512i)(word >> (bits * j)), (__m512)table);
    return shared ? value : value - zero;
}

/* One block of 16 outputs, [inputs / 2][16 outputs x 2 inputs]; inputs beyond the words are 0. */
INLINE void fill(const Weight *w, int64_t block, uint16_t *to, int64_t inputs, const int BITS,
                 const int SHARED) {
    const int per = 32 / BITS;
    const uint32_t *base = w->words + block * w->columns * LANES;
    vf table;
    for (int i = 0; i < LANES; i++)
        table[i] = (float)(i & ((1 << BITS) - 1)) - (SHARED ? w->zero : 0.0f);
    const __m512i order = _mm512_set_epi16(31, 15, 30, 14, 29, 13, 28, 12, 27, 11, 26, 10, 25, 9, 24,
                                           8, 23, 7, 22, 6, 21, 5, 20, 4, 19, 3, 18, 2, 17, 1, 16, 0);
    for (int64_t g = 0; g < w->groups; g++) {
        const int64_t first = g * w->group_words;
        int64_t last = first + w->group_words;
        if (last > w->columns) last = w->columns;
        vf zero = splat(w->zero), scale;
        if (!SHARED) memcpy(&zero, w->zeros + (block * w->groups + g) * LANES, 64);
        memcpy(&scale, w->scales + (block * w->groups + g) * LANES, 64);
        for (int64_t i = first; i < last; i++) {
            vu word;
            memcpy(&word, base + i * LANES, 64);
            _mm_prefetch((const char *)(base + i * LANES) + 8192, _MM_HINT_T0);
#pragma GCC unroll 8
            for (int j = 0; j < per; j += 2) {
                const vf even = panel_codes(word, j, BITS, SHARED, table, zero) * scale;
                const vf odd = panel_codes(word, j + 1, BITS, SHARED, table, zero) * scale;
                const __m512i both =
                    (__m512i)_mm512_cvtne2ps_pbh((__m512)odd, (__m512)even);
                _mm512_storeu_si512(to + (i * per + j) * LANES,
                                    _mm512_permutexvar_epi16(order, both));
            }
        }
    }
    /* Beyond the last word; inputs within it that do not exist meet activations of 0. */
    const int64_t done = w->columns * per;
    memset(to + done * LANES, 0, sizeof(uint16_t) * (size_t)((inputs - done) * LANES));
}

static inline void fill_any(const Weight *w, int bits, int64_t block, uint16_t *to,
                            int64_t inputs) {
#define FILL(B)                                                  \
    if (bits == B) {                                             \
        if (w->zeros == NULL) fill(w, block, to, inputs, B, 1);  \
        else fill(w, block, to, inputs, B, 0);                   \
    }
    FILL(2)
    FILL(4)
    FILL(8)
#undef FILL
}
#else
#define PAIRS 0
#endif

#endif
