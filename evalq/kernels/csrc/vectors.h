/* Vectors of float32: loads that widen, a sum over lanes, the exponential. */

#ifndef EVALQ_VECTORS_H
#define EVALQ_VECTORS_H

#include "lowbit.h"

INLINE vf load(const void *data, int kind) {
    vf value;
    if (kind == F32) {
        memcpy(&value, data, 64);
        return value;
    }
#ifdef __AVX512F__
    const __m256i half = _mm256_loadu_si256((const __m256i *)data);
    return (vf)_mm512_slli_epi32(_mm512_cvtepu16_epi32(half), 16);
#else
    vh half;
    memcpy(&half, data, 32);
    return (vf)(__builtin_convertvector(half, vu) << 16);
#endif
}

INLINE float load_one(const void *data, int64_t at, int kind) {
    return kind == F32 ? ((const float *)data)[at] : widen(((const uint16_t *)data)[at]);
}

INLINE float sum(vf value) {
#ifdef __AVX512F__
    return _mm512_reduce_add_ps((__m512)value);
#else
    for (int width = LANES / 2; width; width /= 2)
        for (int i = 0; i < width; i++) value[i] += value[i + width];
    return value[0];
#endif
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

#endif
