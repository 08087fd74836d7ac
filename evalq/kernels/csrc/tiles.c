/* Products of many rows on a CPU with AMX: weights are dequantized to bfloat16, as in the format's
   dense model, into tiles that stay in the cache, and multiplied there with float32 sums.

   A tile of the weight is 32 inputs x 16 outputs, pairs of inputs beside each other; a thread takes
   two blocks of 16 outputs at a time. Without AMX at compile time evalq_tiles says so. */

#include <math.h>
#include <omp.h>

#include "panel.h"

#if defined(__AMX_BF16__) && defined(__AMX_TILE__) && PAIRS
#include <sys/syscall.h>
#include <unistd.h>

static int permitted(void) {
    /* ARCH_REQ_XCOMP_PERM for tile data: Linux grants it once a process. */
    static int known = -1;
    if (known < 0) known = syscall(SYS_arch_prctl, 0x1023, 18) == 0;
    return known;
}

typedef struct {
    uint8_t palette, start, reserved[14];
    uint16_t width[16];
    uint8_t rows[16];
} __attribute__((packed)) Shapes;

/* 32 rows of x times two blocks, both padded; sums [2 row tiles][2 blocks][16][16]. */
static void multiply_tiles(const uint16_t *x, const uint16_t *a, const uint16_t *b, int64_t inputs,
                           float *sums) {
    const int64_t stride = inputs * 2;
    _tile_zero(0);
    _tile_zero(1);
    _tile_zero(2);
    _tile_zero(3);
    for (int64_t k = 0; k < inputs; k += 32) {
        _tile_loadd(4, x + k, stride);
        _tile_loadd(5, x + 16 * inputs + k, stride);
        _tile_loadd(6, a + k * LANES, 64);
        _tile_loadd(7, b + k * LANES, 64);
        _tile_dpbf16ps(0, 4, 6);
        _tile_dpbf16ps(1, 4, 7);
        _tile_dpbf16ps(2, 5, 6);
        _tile_dpbf16ps(3, 5, 7);
    }
    _tile_stored(0, sums, 64);
    _tile_stored(1, sums + 256, 64);
    _tile_stored(2, sums + 512, 64);
    _tile_stored(3, sums + 768, 64);
}

static void run_blocks(const Weight *w, int bits, const uint16_t *x, int64_t rows, int64_t inputs,
                       int64_t first, int64_t last, uint16_t *panel, uint16_t *out) {
    Shapes shapes = {.palette = 1};
    for (int i = 0; i < 8; i++) {
        shapes.width[i] = 64;
        shapes.rows[i] = 16;
    }
    _tile_loadconfig(&shapes);
    float sums[4 * 256] __attribute__((aligned(64)));
    for (int64_t block = first; block < last; block += 2) {
        const int64_t next = block + 1 < w->blocks ? block + 1 : block;
        uint16_t *other = panel + inputs * LANES;
        fill_any(w, bits, block, panel, inputs);
        fill_any(w, bits, next, other, inputs);
        for (int64_t m = 0; m < rows; m += 32) {
            multiply_tiles(x + m * inputs, panel, other, inputs, sums);
            for (int tile = 0; tile < 4; tile++) {
                const int64_t column = (block + (tile & 1)) * LANES;
                const int64_t kept = w->rows_out - column;
                if ((tile & 1) && block + 1 >= last) continue;
                for (int64_t r = 0; r < 16 && m + (tile >> 1) * 16 + r < rows; r++) {
                    const float *from = sums + tile * 256 + r * LANES;
                    uint16_t *to = out + (m + (tile >> 1) * 16 + r) * w->rows_out + column;
                    uint16_t half[LANES];
                    const __m256bh rounded = _mm512_cvtneps_pbh(_mm512_loadu_ps(from));
                    memcpy(half, &rounded, sizeof half);
                    memcpy(to, half, sizeof(uint16_t) * (size_t)(kept < LANES ? kept : LANES));
                }
            }
        }
    }
    _tile_release();
}

/* out [rows][rows_out] = x [rows][in] @ w.T, all bfloat16; 0, 1 without memory, 2 without AMX. */
int evalq_tiles(const void *x, void *out, int64_t rows, int64_t in, const void *words,
                const void *scales, const void *zeros, float zero, int bits, int64_t rows_out,
                int64_t columns, int64_t groups, int64_t group_words, int threads) {
    if (!permitted()) return 2;
    const Weight w =
        describe(words, scales, zeros, zero, rows_out, columns, groups, group_words);
    const int64_t inputs = ROUND(columns * (32 / bits), 32), padded = ROUND(rows, 32);
    const int64_t panel = 2 * inputs * LANES;
    uint16_t *memory = aligned_alloc(64, sizeof(uint16_t) * (size_t)(padded * inputs + threads * panel));
    if (memory == NULL) return 1;
    memset(memory, 0, sizeof(uint16_t) * (size_t)(padded * inputs));
    for (int64_t m = 0; m < rows; m++)
        memcpy(memory + m * inputs, (const uint16_t *)x + m * in, sizeof(uint16_t) * (size_t)in);
#pragma omp parallel num_threads(threads)
    {
        const int64_t t = omp_get_thread_num(), n = omp_get_num_threads();
        const int64_t pairs = (w.blocks + 1) / 2;
        int64_t last = pairs * (t + 1) / n * 2;
        if (last > w.blocks) last = w.blocks;
        run_blocks(&w, bits, memory, rows, inputs, pairs * t / n * 2, last,
                   memory + padded * inputs + t * panel, out);
    }
    free(memory);
    return 0;
}

int evalq_has_tiles(void) { return permitted(); }

#else

int evalq_tiles(const void *x, void *out, int64_t rows, int64_t in, const void *words,
                const void *scales, const void *zeros, float zero, int bits, int64_t rows_out,
                int64_t columns, int64_t groups, int64_t group_words, int threads) {
    (void)x, (void)out, (void)rows, (void)in, (void)words, (void)scales, (void)zeros, (void)zero;
    (void)bits, (void)rows_out, (void)columns, (void)groups, (void)group_words, (void)threads;
    return 2;
}

int evalq_has_tiles(void) { return 0; }

#endif
