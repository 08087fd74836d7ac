"""The Triton kernel of products with low-bit weights: one body for decode and for prefill.

It computes the transpose, ``out.T [N, M] = W [N, K] @ x.T [K, M]``, so that the weight is the
operand that the tensor cores take from registers. Codes are packed (``triton_pack.py``) so that a
16-bit word holds codes of the same row that lie ``C`` columns apart: a tile of words goes through
shared memory once, in its packed form, and lands in registers as the fragment of the product. All
that is left is to turn a pair of words into a pair of half-precision numbers, by bit tricks and not
by conversion: a code is written into the low mantissa bits of 128 (bfloat16) or of 1024 (float16),
and 128 (or 1024) plus the zero is taken away, both exactly. So a product is exact up to its float32
sum, and scales are applied in float32, except with ``SCALED``, where weights are scaled (and
rounded) in half precision, as a dequantized model's are.

Splits along K write float32 partial sums; the split that finishes last, known by an integer count,
adds all of them in order. The sum's order never depends on timing: results are bitwise repeatable.

The bit tricks are inline PTX, which Triton's interpreter does not run: with ``PLAIN`` the same
values come from ordinary arithmetic.
"""

# Triton reads this file as its own language: neither types nor idioms of Python are its own.
# mypy: ignore-errors
# ruff: noqa: SIM300, SIM108, SIM102

from __future__ import annotations

import triton
import triton.language as tl
from triton.language.extra.cuda import gdc_launch_dependents, gdc_wait

from evalq.kernels.triton_bits import (
    less_zero_asm,
    less_zero_form,
    magic,
    part_of,
    parts_of,
    place_of,
    sets_of,
    shift_asm,
    unit,
    words_of,
)

__all__ = ["dequantize", "lowbit_matmul"]


@triton.jit
def _shifted(word, SHIFT: tl.constexpr):
    """Pairs of words shifted right as one; bits that cross over are masked away later."""
    if SHIFT == 0:
        return word
    TEXT: tl.constexpr = shift_asm(SHIFT)
    return tl.inline_asm_elementwise(TEXT, "=r,r", [word], dtype=tl.int16, is_pure=True, pack=2)


@triton.jit
def _plain(a, b, c, j: tl.constexpr, BITS: tl.constexpr):
    """Code ``j`` as float32, by shifts and masks; two's complement at 8 bits."""
    a = a.to(tl.int32)
    b = b.to(tl.int32)
    c = c.to(tl.int32)
    if BITS == 3:
        if j == 15:
            code = ((a >> 15) & 1) | ((b >> 14) & 2) | ((c >> 13) & 4)
        else:
            word = a if j < 5 else (b if j < 10 else c)
            code = (word >> (3 * (j % 5))) & 7
    elif BITS == 6:
        if j >= 6:
            code = (((a if j == 6 else b) >> 12) & 15) | ((c >> (8 if j == 6 else 10)) & 48)
        else:
            word = a if j < 2 else (b if j < 4 else c)
            code = (word >> (6 * (j % 2))) & 63
    else:
        code = (a >> (BITS * j)) & ((1 << BITS) - 1)
    return code.to(tl.float32)


@triton.jit
def _values(
    a,
    b,
    c,
    zero,
    scale,
    j: tl.constexpr,
    BITS: tl.constexpr,
    DTYPE: tl.constexpr,
    SCALED: tl.constexpr,
    PLAIN: tl.constexpr,
):
    """``code - zero`` of set ``j`` (times ``scale`` with SCALED) in DTYPE, ``[BN, C]``.

    ``zero`` holds the bits of the zero at the place of ``j``; see ``_zero_at``.
    """
    BF16: tl.constexpr = DTYPE == tl.bfloat16
    if PLAIN:
        code = _plain(a, b, c, j, BITS)
        level = zero.to(DTYPE, bitcast=True).to(tl.float32)
        if BITS == 8 and BF16:
            # Stored as two's complement; the zero is that of the centred code.
            code = tl.where(code >= 128, code - 256, code)
            value = code - level
        else:
            value = code - (level - magic(place_of(BITS, j, BF16), BF16))
        if SCALED:
            value = value * scale.to(DTYPE, bitcast=True).to(tl.float32)
        return value.to(DTYPE)
    PARTS: tl.constexpr = parts_of(BITS, j)
    TEXT: tl.constexpr = less_zero_asm(BITS, j, BF16, SCALED)
    FORM: tl.constexpr = less_zero_form(PARTS)
    FIRST: tl.constexpr = part_of(BITS, j, 0, BF16, 0)
    first = a if FIRST == 0 else (b if FIRST == 1 else c)
    first = _shifted(first, part_of(BITS, j, 0, BF16, 1))
    if PARTS == 3:
        second = _shifted(b, part_of(BITS, j, 1, BF16, 1))
        third = _shifted(c, part_of(BITS, j, 2, BF16, 1))
        return tl.inline_asm_elementwise(
            TEXT, FORM, [zero, scale, first, second, third], dtype=DTYPE.value, is_pure=True, pack=2
        )
    if PARTS == 2:
        second = _shifted(c, part_of(BITS, j, 1, BF16, 1))
        return tl.inline_asm_elementwise(
            TEXT, FORM, [zero, scale, first, second], dtype=DTYPE.value, is_pure=True, pack=2
        )
    return tl.inline_asm_elementwise(
        TEXT, FORM, [zero, scale, first], dtype=DTYPE.value, is_pure=True, pack=2
    )


@triton.jit
def _zero_at(zero, j: tl.constexpr, BITS: tl.constexpr, BF16: tl.constexpr):
    """Bits of a zero as they are stored (at the mantissa's lowest bit), moved to the place of j."""
    PLACE: tl.constexpr = place_of(BITS, j, BF16)
    if PLACE == 0:
        return zero
    return (((zero - unit(0, BF16)) << PLACE) + unit(PLACE, BF16)).to(tl.int16)


# Neither is worth a kernel of its own when it is 1 or a multiple of 16.
@triton.jit(do_not_specialize=["M", "turns", "splits"])
def lowbit_matmul(
    x_ptr,
    w_ptr,
    s_ptr,
    z_ptr,
    out_ptr,
    part_ptr,
    count_ptr,
    M,
    N,
    K,
    turns,
    splits,
    BITS: tl.constexpr,
    C: tl.constexpr,
    GROUP: tl.constexpr,
    ZERO: tl.constexpr,
    EVEN_K: tl.constexpr,
    SCALED: tl.constexpr,
    SPLIT: tl.constexpr,
    BN: tl.constexpr,
    BM: tl.constexpr,
    KS: tl.constexpr,
    STEP: tl.constexpr,
    STAGES: tl.constexpr,
    PLAIN: tl.constexpr,
    PDL: tl.constexpr,
):
    """One tile of BN output rows and BM rows of activations, over one split of K.

    Args:
        x_ptr: bf16 or fp16 ``[M, K]``.
        w_ptr: int16 ``[chunks, words, N, C]``.
        s_ptr: scales ``[groups, N]``, any float dtype (the dtype of x with SCALED).
        z_ptr: int16 ``[groups, N]``, the bits of what is taken away (ZERO == -1), else unused.
        out_ptr: ``[M, N]`` in the dtype of x.
        part_ptr: float32 ``[splits, M, N]``, count_ptr: int32, zero, one a tile; for SPLIT > 1.
        turns: of the loop: columns as packed / STEP / splits / KS.
        KS: parts of K that a program takes at a time, each its own warps.
        splits: of K. SPLIT: 1 where there is one, else 2 (in the interpreter, splits itself).
        GROUP: columns a scale; 0 for one scale a row.
        ZERO: bits of what is taken away from every code, or -1 to read it from z_ptr.
        PLAIN: in the interpreter the number of turns (it cannot loop to a tensor), else 0.
        PDL: launched while the kernel before may still run, which is waited for here.
    """
    DTYPE: tl.constexpr = x_ptr.dtype.element_ty
    SETS: tl.constexpr = sets_of(BITS)
    WORDS: tl.constexpr = words_of(BITS)
    CHUNK: tl.constexpr = SETS * C
    CHUNKS: tl.constexpr = STEP // CHUNK
    FEW: tl.constexpr = BM <= 16
    tile = tl.program_id(0)
    row = tl.program_id(1)
    split = tl.program_id(2)
    n = tile * BN + tl.arange(0, BN)
    m = row * BM + tl.arange(0, BM)
    c = tl.arange(0, C)
    # Rows beyond the edge read the last row again, and are not stored.
    n_safe = tl.minimum(n, N - 1)
    m_safe = tl.minimum(m, M - 1)
    # Warps share out K where KS > 1: the tiles then have a leading axis of that many parts of K.
    if KS == 1:
        first = split * turns
        rows = n_safe[:, None]
        from_k = c[:, None]
        x_at = x_ptr + (m_safe[None, :].to(tl.int64) * K + from_k + first * STEP)
        w_at = w_ptr + (first * CHUNKS * WORDS).to(tl.int64) * N * C + (rows * C + c[None, :])
        real = (m < M)[None, :] & (c[:, None] >= 0)
        total = tl.zeros((BN, BM), tl.float32)
        shape: tl.constexpr = (BN, C)
        column: tl.constexpr = (BN, 1)
    else:
        first = ((split * KS + tl.arange(0, KS)) * turns)[:, None, None]
        rows = n_safe[None, :, None]
        from_k = c[None, :, None]
        x_at = x_ptr + (m_safe[None, None, :].to(tl.int64) * K + from_k + first * STEP)
        w_at = w_ptr + (first * CHUNKS * WORDS).to(tl.int64) * N * C
        w_at += rows * C + c[None, None, :]
        real = (m < M)[None, None, :] & (c[None, :, None] >= 0)
        total = tl.zeros((KS, BN, BM), tl.float32)
        shape: tl.constexpr = (KS, BN, C)
        column: tl.constexpr = (KS, BN, 1)
    if PDL:
        # The next kernel's programs may take their places; they wait for these to end.
        gdc_launch_dependents()
        gdc_wait()
    if ZERO >= 0:
        zero_row = tl.full(column, ZERO, tl.int16)
    else:
        zero_row = tl.broadcast_to(tl.load(z_ptr + rows), column)
    scale_row = tl.full(column, 0, tl.int16)
    stride = N.to(tl.int64) * (WORDS * C)
    for turn in tl.range(0, PLAIN if PLAIN else turns, num_stages=STAGES):
        if GROUP == 0 or SCALED:
            part = total
        else:
            part = tl.zeros_like(total)
        zero = zero_row
        scale = scale_row
        for t in tl.static_range(CHUNKS):
            word = (turn * CHUNKS + t) * stride
            a = tl.load(w_at + word)
            b = a
            d = a
            if WORDS == 3:
                b = tl.load(w_at + (word + N * C))
                d = tl.load(w_at + (word + 2 * N * C))
            for j in tl.static_range(SETS):
                inside = t * CHUNK + j * C
                if GROUP > 0:
                    group = ((first + turn) * STEP + inside) // GROUP
                    if inside % GROUP == 0 or inside == 0:
                        if ZERO < 0:
                            zero = tl.load(z_ptr + (group * N + rows))
                        if SCALED:
                            scale = tl.load(s_ptr + (group * N + rows)).to(tl.int16, bitcast=True)
                k = turn * STEP + inside
                if FEW:
                    # Rows that are not there are zeros that cost no traffic.
                    inside_x = real if EVEN_K else real & (first * STEP + from_k + k < K)
                    x = tl.load(x_at + k, mask=inside_x, other=0.0)
                elif EVEN_K:
                    x = tl.load(x_at + k)
                else:
                    x = tl.load(x_at + k, mask=first * STEP + from_k + k < K, other=0.0)
                zeros = tl.broadcast_to(_zero_at(zero, j, BITS, DTYPE == tl.bfloat16), shape)
                scales = tl.broadcast_to(scale, shape)
                w = _values(a, b, d, zeros, scales, j, BITS, DTYPE, SCALED, PLAIN)
                if PLAIN:  # the interpreter would multiply the bits of bfloat16 numbers
                    part = tl.dot(w.to(tl.float32), x.to(tl.float32), part)
                else:
                    part = tl.dot(w, x, part)
                if GROUP > 0 and not SCALED:
                    if (inside + C) % GROUP == 0 or inside + C == STEP:
                        total += part * tl.load(s_ptr + (group * N + rows)).to(tl.float32)
                        part = tl.zeros_like(total)
        if GROUP == 0 or SCALED:
            total = part
    if GROUP == 0:
        total *= tl.load(s_ptr + rows).to(tl.float32)
    if KS > 1:
        total = tl.sum(total, axis=0)
    keep = (n[:, None] < N) & (m[None, :] < M)
    at = m[None, :].to(tl.int64) * N + n[:, None]
    if SPLIT == 1:
        tl.store(out_ptr + at, total.to(DTYPE), mask=keep)
    else:
        size = M.to(tl.int64) * N
        tl.store(part_ptr + split * size + at, total, mask=keep)
        tl.debug_barrier()
        counter = count_ptr + row * tl.num_programs(0) + tile
        done = tl.atomic_add(counter, 1, sem="acq_rel", scope="gpu")
        if done == splits - 1:
            total = tl.zeros((BN, BM), tl.float32)
            # Of small tiles eight are under way at a time; they are added in their order.
            for other in tl.range(0, SPLIT if PLAIN else splits, 8 if FEW else 1):
                for i in tl.static_range(8 if FEW else 1):
                    total += tl.load(
                        part_ptr + (other + i) * size + at,
                        mask=keep & (other + i < splits),
                        other=0.0,
                        cache_modifier=".cg",
                    )
            tl.store(out_ptr + at, total.to(DTYPE), mask=keep)
            tl.store(counter, 0)


@triton.jit
def dequantize(
    w_ptr,
    s_ptr,
    z_ptr,
    out_ptr,
    N,
    K,
    BITS: tl.constexpr,
    C: tl.constexpr,
    GROUP: tl.constexpr,
    ZERO: tl.constexpr,
    BN: tl.constexpr,
    PLAIN: tl.constexpr,
):
    """One chunk of BN rows of the weight, ``[N, K]`` in the dtype of ``out_ptr``.

    Scales come in that dtype or in float32, and a product is rounded once. Other arguments are
    those of ``lowbit_matmul``.
    """
    DTYPE: tl.constexpr = out_ptr.dtype.element_ty
    SETS: tl.constexpr = sets_of(BITS)
    WORDS: tl.constexpr = words_of(BITS)
    n = tl.program_id(0) * BN + tl.arange(0, BN)
    chunk = tl.program_id(1)
    c = tl.arange(0, C)
    rows = tl.minimum(n, N - 1)[:, None]
    w_at = w_ptr + chunk.to(tl.int64) * WORDS * N * C + (rows * C + c[None, :])
    a = tl.load(w_at)
    b = a
    d = a
    if WORDS == 3:
        b = tl.load(w_at + N * C)
        d = tl.load(w_at + 2 * N * C)
    zero = tl.full((BN, 1), ZERO if ZERO >= 0 else 0, tl.int16)
    if ZERO < 0 and GROUP == 0:
        zero = tl.load(z_ptr + rows)
    scale = tl.load(s_ptr + rows)
    for j in tl.static_range(SETS):
        k = chunk * (SETS * C) + j * C + c[None, :]
        if GROUP > 0:
            group = (chunk * (SETS * C) + j * C) // GROUP
            scale = tl.load(s_ptr + (group * N + rows))
            if ZERO < 0:
                zero = tl.load(z_ptr + (group * N + rows))
        zeros = tl.broadcast_to(_zero_at(zero, j, BITS, DTYPE == tl.bfloat16), (BN, C))
        value = _values(a, b, d, zeros, zeros, j, BITS, DTYPE, False, PLAIN)
        value = (value.to(tl.float32) * scale.to(tl.float32)).to(DTYPE)
        at = rows.to(tl.int64) * K + k
        tl.store(out_ptr + at, value, mask=(n[:, None] < N) & (k < K))
