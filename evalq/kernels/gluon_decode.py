"""The decode kernel for GPUs that launch a kernel before its predecessor has ended.

Few rows of activations (up to 16) against low-bit weights: what takes time is the weights' way from
memory. A program therefore asks for its first weights, whole turns of them, straight into
registers, and for more into the L2 cache, *before* it waits for the kernel that computes its
activations: weights are constants. In a chain of products the memory works without a pause, and
what is left between two of them is the arithmetic on weights that are there already.

It reads the layout of ``triton_pack.py``. Sixteen bytes of a row, eight words, are eight columns
next to each other; the tensor cores' fragment wants other columns in one thread, but a sum over
columns does not care for their order: both operands are permuted alike within 32 columns, and the
words that a thread loads are the fragment that it multiplies. So weights never pass through shared
memory, and no barrier is in the loop. Layouts must be spelled out for that, which Triton's language
cannot do and Gluon, the language below it, can (https://triton-lang.org, ``triton.experimental``).
Dequantization is that of ``triton_matmul.py``, but for the zero: with ``SUMMED`` a code is left too
large, and what that adds to a product is taken from the sum of the activations, once for a whole
group. The error of that is that of a float32 sum of terms some 30 times as large as the product's
own, far below the rounding of its result. But a row of activations that holds an infinity, or
numbers beyond 1e36, has differences of infinities, and comes out as NaN throughout where its
products alone would be infinite or NaN.
"""

# Gluon reads this file as its own language: neither types nor idioms of Python are its own.
# mypy: ignore-errors
# ruff: noqa: RUF005, SIM300

from __future__ import annotations

from triton.experimental import gluon
from triton.experimental.gluon import language as gl
from triton.experimental.gluon.language.nvidia.ampere import mma_v2
from triton.runtime.jit import constexpr_function

from evalq.kernels.triton_bits import (
    excess_of,
    level_of,
    lowest_of,
    part_of,
    parts_of,
    raw_asm,
    raw_form,
    sets_of,
    shift_asm,
    words_of,
)

__all__ = ["decode_matmul"]

# Triton 3.7 gave it another name.
_barrier = getattr(gl, "thread_barrier", None) or gl.barrier


@constexpr_function
def _bits(count):
    return count.bit_length() - 1


@constexpr_function
def _words_layout(across, parts, rows):
    """Words ``[parts, rows, 32]``: a thread has eight next to each other, of rows r and r + 8.

    ``across`` warps share out the rows, in sixteens; ``parts`` times as many the parts of K.
    """
    more = [[0, 16 * across << i, 0] for i in range(_bits(rows // (16 * across)))]
    return gl.DistributedLinearLayout(
        [[0, 0, 1], [0, 0, 2], [0, 0, 4], [0, 8, 0], *more],
        [[0, 0, 8], [0, 0, 16], [0, 1, 0], [0, 2, 0], [0, 4, 0]],
        [[0, 16 << i, 0] for i in range(_bits(across))]
        + [[1 << i, 0, 0] for i in range(_bits(parts))],
        [],
        [parts, rows, 32],
    )


@constexpr_function
def _x_layout(across, parts, rows):
    """Activations ``[1, parts, rows, 32]`` likewise; the warps of a part have all its rows."""
    return gl.DistributedLinearLayout(
        [[0, 0, 0, 1], [0, 0, 0, 2], [0, 0, 0, 4], *([[0, 0, 8, 0]] if rows == 16 else [])],
        [[0, 0, 0, 8], [0, 0, 0, 16], [0, 0, 1, 0], [0, 0, 2, 0], [0, 0, 4, 0]],
        [[0, 0, 0, 0]] * _bits(across) + [[0, 1 << i, 0, 0] for i in range(_bits(parts))],
        [],
        [1, parts, rows, 32],
    )


@constexpr_function
def _sum_layout(across, parts, rows):
    """A number a row of activations, ``[1, parts, 1, rows]``, as products hold their columns."""
    none = [0, 0, 0, 0]
    many = rows > 1
    return gl.DistributedLinearLayout(
        [[0, 0, 0, 1 << i] for i in (0, 3) if 1 << i < rows],
        [[0, 0, 0, 2] if many else none, [0, 0, 0, 4] if many else none, none, none, none],
        [none] * _bits(across) + [[0, 1 << i, 0, 0] for i in range(_bits(parts))],
        [],
        [1, parts, 1, rows],
    )


@constexpr_function
def _fill_layout(warps, columns):
    """``[rows, columns]``: eight columns a thread, a row a warp."""
    across = min(32, columns // 8)
    return gl.BlockedLayout([1, 8], [32 // across, across], [warps, 1], [1, 0])


@constexpr_function
def _group_of(column, group):
    """Which of a turn's groups a column lies in."""
    return column // group if group else 0


@constexpr_function
def _ends(column, span):
    """Whether a span ends with the 32 columns from this one on."""
    return (column + 32) % span == 0


@gluon.jit
def _fragment(value, PARTS: gl.constexpr, ROWS: gl.constexpr):
    """Columns in the order of the tensor cores: those of a thread are pairs eight apart."""
    value = gl.reshape(value, (PARTS, ROWS, 2, 2, 2, 2, 2))
    return gl.reshape(gl.permute(value, (0, 1, 4, 5, 2, 3, 6)), (PARTS, ROWS, 32))


@gluon.jit
def _shifted(word, SHIFT: gl.constexpr):
    if SHIFT == 0:
        return word
    TEXT: gl.constexpr = shift_asm(SHIFT)
    return gl.inline_asm_elementwise(TEXT, "=r,r", [word], dtype=gl.int16, is_pure=True, pack=2)


@gluon.jit
def _values(
    a, b, c, j: gl.constexpr, BITS: gl.constexpr, DTYPE: gl.constexpr, ZERO: gl.constexpr
):  # fmt: skip
    """Codes of set ``j`` as numbers, each too large by ``_excess``, or less ZERO (bits)."""
    BF16: gl.constexpr = DTYPE == gl.bfloat16
    PARTS: gl.constexpr = parts_of(BITS, j)
    TEXT: gl.constexpr = raw_asm(BITS, j, BF16, ZERO)
    FORM: gl.constexpr = raw_form(PARTS)
    FIRST: gl.constexpr = part_of(BITS, j, 0, BF16, 0)
    first = a if FIRST == 0 else (b if FIRST == 1 else c)
    first = _shifted(first, part_of(BITS, j, 0, BF16, 1))
    if PARTS == 3:
        second = _shifted(b, part_of(BITS, j, 1, BF16, 1))
        third = _shifted(c, part_of(BITS, j, 2, BF16, 1))
        return gl.inline_asm_elementwise(
            TEXT, FORM, [first, second, third], dtype=DTYPE.value, is_pure=True, pack=2
        )
    if PARTS == 2:
        second = _shifted(c, part_of(BITS, j, 1, BF16, 1))
        return gl.inline_asm_elementwise(
            TEXT, FORM, [first, second], dtype=DTYPE.value, is_pure=True, pack=2
        )
    return gl.inline_asm_elementwise(TEXT, FORM, [first], dtype=DTYPE.value, is_pure=True, pack=2)


@gluon.jit
def _sums(x, ROWS: gl.constexpr, STEP: gl.constexpr, SPAN: gl.constexpr, BITS: gl.constexpr,
          BF16: gl.constexpr):  # fmt: skip
    """Sums of activations over each span of a group, plain and times what codes are too large by.

    ``x`` ``[ROWS, STEP]``; both results float32 ``[ROWS, STEP / SPAN]``.
    """
    SETS: gl.constexpr = sets_of(BITS)
    by_set = gl.sum(gl.reshape(x.to(gl.float32), (ROWS, STEP // 32, 32)), axis=2)
    index = gl.arange(0, STEP // 32, layout=gl.SliceLayout(0, by_set.type.layout)) % SETS
    excess = gl.full((STEP // 32,), 0.0, gl.float32, gl.SliceLayout(0, by_set.type.layout))
    for j in gl.static_range(SETS):
        excess = gl.where(index == j, excess_of(BITS, j, BF16), excess)
    scaled = by_set * excess[None, :]
    plain = gl.sum(gl.reshape(by_set, (ROWS, STEP // SPAN, SPAN // 32)), axis=2)
    return plain, gl.sum(gl.reshape(scaled, (ROWS, STEP // SPAN, SPAN // 32)), axis=2)


@gluon.jit
def _load_turn(w_at, turn, stride, BLOCKS: gl.constexpr):
    """All words of a turn: a tuple of ``[BN, 32]``."""
    words = ()
    for block in gl.static_range(BLOCKS):
        words = words + (gl.load(w_at + (turn * BLOCKS + block) * stride),)
    return words


@gluon.jit
def _load_groups(at, group, N, COUNT: gl.constexpr):
    """Scales or zeros of the groups of a turn."""
    found = ()
    for index in gl.static_range(COUNT):
        found = found + (gl.load(at + (group + index) * N),)
    return found


@gluon.jit(do_not_specialize=["M", "splits"])
def decode_matmul(
    x_ptr, w_ptr, s_ptr, z_ptr, out_ptr, part_ptr, count_ptr, M, N, K, splits,
    BITS: gl.constexpr, GROUP: gl.constexpr, ZERO: gl.constexpr, SPLIT: gl.constexpr,
    BN: gl.constexpr, BM: gl.constexpr, MR: gl.constexpr, KS: gl.constexpr, STEP: gl.constexpr,
    TURNS: gl.constexpr, DEEP: gl.constexpr, SUMMED: gl.constexpr, PDL: gl.constexpr,
    WARPS: gl.constexpr,
):  # fmt: skip
    """One tile of BN output rows, all rows of activations, over one split of K.

    Arguments are those of ``triton_matmul.lowbit_matmul`` (where ``C`` is 32), and

    Args:
        MR: rows of activations that are held: one, or BM (8 or 16).
        KS: parts of a split, each its own warps, in turns of STEP columns.
        TURNS: of each part; DEEP: the next power of two.
        SUMMED: what codes are too large by is taken from sums of activations, which each program
            forms for itself; else (with one zero for all) from every code.
    """
    DTYPE: gl.constexpr = x_ptr.dtype.element_ty
    BF16: gl.constexpr = DTYPE == gl.bfloat16
    SETS: gl.constexpr = sets_of(BITS)
    WORDS: gl.constexpr = words_of(BITS)
    CHUNK: gl.constexpr = SETS * 32
    CHUNKS: gl.constexpr = STEP // CHUNK
    BLOCKS: gl.constexpr = CHUNKS * WORDS
    ACROSS: gl.constexpr = WARPS // KS
    ROWS: gl.constexpr = DEEP * KS * MR
    HELD: gl.constexpr = _words_layout(ACROSS, KS, BN)
    HELD_X: gl.constexpr = _x_layout(ACROSS, KS, BM)
    SUM: gl.constexpr = _sum_layout(ACROSS, KS, MR)
    FILL: gl.constexpr = _fill_layout(WARPS, STEP)
    MMA: gl.constexpr = gl.NVMMADistributedLayout([2, 0], [KS, ACROSS, 1], [1, 16, 8])
    LEFT: gl.constexpr = gl.DotOperandLayout(0, MMA, 2)
    RIGHT: gl.constexpr = gl.DotOperandLayout(1, MMA, 2)
    BY_ROW: gl.constexpr = gl.SliceLayout(2, MMA)
    # Scales and zeros of a turn: one a group, or one for the turn where a group is longer.
    COUNT: gl.constexpr = max(1, STEP // GROUP) if GROUP > 0 else 1
    SPAN: gl.constexpr = min(STEP, GROUP) if GROUP > 0 else STEP
    SPANS: gl.constexpr = STEP // SPAN
    # A stored zero is the bits of itself more than this; see triton_gpu.
    LOWEST: gl.constexpr = lowest_of(BITS, BF16)
    ZERO_LEVEL: gl.constexpr = level_of(ZERO, BITS, BF16)
    tile = gl.program_id(0)
    split = gl.program_id(1)
    # Rows beyond the edge read the last row again, and are not stored.
    n = tile * BN + gl.arange(0, BN, layout=gl.SliceLayout(0, gl.SliceLayout(2, HELD)))
    row = gl.minimum(n, N - 1)[None, :, None]
    n = tile * BN + gl.arange(0, BN, layout=gl.SliceLayout(0, BY_ROW))
    row_out = gl.minimum(n, N - 1)[None, :]
    part = gl.arange(0, KS, layout=gl.SliceLayout(1, gl.SliceLayout(2, HELD)))
    first = ((split * KS + part) * TURNS)[:, None, None]
    c = gl.arange(0, 32, layout=gl.SliceLayout(0, gl.SliceLayout(1, HELD)))[None, None, :]
    stride = N.to(gl.int64) * 32
    w_at = w_ptr + ((first * BLOCKS) * stride + (row * 32 + c))
    words = _load_turn(w_at, 0, stride, BLOCKS)
    part_out = gl.arange(0, KS, layout=gl.SliceLayout(1, BY_ROW))
    first_out = ((split * KS + part_out) * TURNS)[:, None]
    if GROUP > 0:
        scales = _load_groups(s_ptr + row_out, first_out * STEP // GROUP, N, COUNT)
    else:
        scales = (gl.load(s_ptr + row_out + first_out * 0),)
    zeros = scales
    if ZERO < 0:
        if GROUP > 0:
            zeros = _load_groups(z_ptr + row_out, first_out * STEP // GROUP, N, COUNT)
        else:
            zeros = (gl.load(z_ptr + row_out + first_out * 0),)
    if PDL:
        _launch_dependents()
        _wait()
    # Activations of this split, once for all warps. A row is one of (turn, part, activation).
    r = gl.arange(0, ROWS, layout=gl.SliceLayout(1, FILL))[:, None]
    k = gl.arange(0, STEP, layout=gl.SliceLayout(0, FILL))[None, :]
    turn_of = r // (KS * MR)
    column = ((split * KS + r // MR % KS) * TURNS + turn_of) * STEP + k
    x_at = x_ptr + (gl.minimum(r % MR, M - 1) * K + column)
    x_all = gl.load(x_at, mask=(turn_of < TURNS) & (column < K), other=0.0)
    shared = gl.allocate_shared_memory(
        DTYPE, (DEEP, KS, MR, STEP), gl.SwizzledSharedLayout(8, 1, 8, [3, 2, 1, 0])
    )
    shared.store(gl.reshape(x_all, (DEEP, KS, MR, STEP)))
    flat: gl.constexpr = gl.SwizzledSharedLayout(1, 1, 1, [3, 2, 1, 0])
    excess = gl.allocate_shared_memory(gl.float32, (DEEP, KS, SPANS, MR), flat)
    plain = excess
    if SUMMED:
        once, more = _sums(x_all, ROWS, STEP, SPAN, BITS, BF16)
        if ZERO >= 0:
            more += once * ZERO_LEVEL
        else:
            plain = gl.allocate_shared_memory(gl.float32, (DEEP, KS, SPANS, MR), flat)
            plain.store(gl.permute(gl.reshape(once, (DEEP, KS, MR, SPANS)), (0, 1, 3, 2)))
        excess.store(gl.permute(gl.reshape(more, (DEEP, KS, MR, SPANS)), (0, 1, 3, 2)))
    none = gl.full((1, KS, BM, 32), 0, gl.int16, HELD_X)
    total = gl.zeros((KS, BN, BM), gl.float32, MMA)
    _barrier()
    # Unrolled: what a loop carries would be taken apart into halves of registers.
    for turn in gl.static_range(TURNS):
        words_next = words
        scales_next = scales
        zeros_next = zeros
        if turn + 1 < TURNS:
            words_next = _load_turn(w_at, turn + 1, stride, BLOCKS)
            if GROUP > 0:
                group = (first_out + turn + 1) * STEP // GROUP
                scales_next = _load_groups(s_ptr + row_out, group, N, COUNT)
                if ZERO < 0:
                    zeros_next = _load_groups(z_ptr + row_out, group, N, COUNT)
        here = shared.slice(turn, 1, dim=0)
        part = gl.zeros((KS, BN, BM), gl.float32, MMA)
        for block in gl.static_range(CHUNKS):
            a = words[block * WORDS]
            b = a
            d = a
            if WORDS == 3:
                b = words[block * WORDS + 1]
                d = words[block * WORDS + 2]
            for j in gl.static_range(SETS):
                w = _values(a, b, d, j, BITS, DTYPE, -1 if SUMMED else ZERO)
                x = here.slice(block * CHUNK + j * 32, 32, dim=3).load(HELD_X)
                if MR < BM:
                    x = (x.to(gl.int16, bitcast=True) | none).to(DTYPE, bitcast=True)
                left = gl.convert_layout(_fragment(w, KS, BN), LEFT)
                x = _fragment(gl.reshape(x, (KS, BM, 32)), KS, BM)
                right = gl.convert_layout(gl.permute(x, (0, 2, 1)), RIGHT)
                part = mma_v2(left, right, part)
                if _ends(block * CHUNK + j * 32, SPAN):
                    if SUMMED:
                        at = excess.slice(turn, 1, dim=0)
                        at = at.slice(_group_of(block * CHUNK + j * 32, SPAN), 1, dim=2)
                        part -= _column_sums(at, KS, MR, SUM, MMA)
                    if ZERO < 0:
                        zero = zeros[_group_of(block * CHUNK + j * 32, GROUP)]
                        level = zero.to(DTYPE, bitcast=True).to(gl.float32) - LOWEST
                        at = plain.slice(turn, 1, dim=0)
                        at = at.slice(_group_of(block * CHUNK + j * 32, SPAN), 1, dim=2)
                        part -= _column_sums(at, KS, MR, SUM, MMA) * level[:, :, None]
                    if GROUP > 0:
                        scale = scales[_group_of(block * CHUNK + j * 32, GROUP)]
                        part *= scale.to(gl.float32)[:, :, None]
                    total += part
                    part = gl.zeros((KS, BN, BM), gl.float32, MMA)
        words = words_next
        scales = scales_next
        zeros = zeros_next
    if GROUP == 0:
        total *= scales[0].to(gl.float32)[:, :, None]
    _store(gl.sum(total, axis=0), out_ptr, part_ptr, count_ptr, tile, split, M, N, splits,
           BN, BM, SPLIT)  # fmt: skip


@gluon.jit
def _column_sums(at, KS: gl.constexpr, MR: gl.constexpr, SUM: gl.constexpr, MMA: gl.constexpr):
    found = gl.reshape(at.load(SUM), (KS, 1, MR))
    return gl.convert_layout(found, MMA, assert_trivial=True)


@gluon.jit
def _launch_dependents():
    gl.inline_asm_elementwise(
        "griddepcontrol.launch_dependents; // dummy $0", "=r", [], dtype=gl.int32,
        is_pure=False, pack=1,
    )  # fmt: skip


@gluon.jit
def _wait():
    gl.inline_asm_elementwise(
        "griddepcontrol.wait; // dummy $0", "=r", [], dtype=gl.int32, is_pure=False, pack=1
    )


@gluon.jit
def _store(
    total, out_ptr, part_ptr, count_ptr, tile, split, M, N, splits,
    BN: gl.constexpr, BM: gl.constexpr, SPLIT: gl.constexpr,
):  # fmt: skip
    """Store a tile, or, where K is split, its part; the last split adds all of them in order."""
    DTYPE: gl.constexpr = out_ptr.dtype.element_ty
    n = tile * BN + gl.arange(0, BN, layout=gl.SliceLayout(1, total.type.layout))[:, None]
    m = gl.arange(0, BM, layout=gl.SliceLayout(0, total.type.layout))[None, :]
    keep = (n < N) & (m < M)
    at = m.to(gl.int64) * N + n
    if SPLIT == 1:
        gl.store(out_ptr + at, total.to(DTYPE), mask=keep)
    else:
        size = M.to(gl.int64) * N
        gl.store(part_ptr + split * size + at, total, mask=keep)
        _barrier()
        done = gl.atomic_add(count_ptr + tile, 1, sem="acq_rel", scope="gpu")
        if done == splits - 1:
            total = gl.full((BN, BM), 0.0, gl.float32, total.type.layout)
            # Eight at a time are under way; they are added in their order.
            for other in range(0, splits, 8):
                for i in gl.static_range(8):
                    total += gl.load(
                        part_ptr + (other + i) * size + at,
                        mask=keep & (other + i < splits),
                        other=0.0,
                        cache_modifier=".cg",
                    )
            gl.store(out_ptr + at, total.to(DTYPE), mask=keep)
            gl.store(count_ptr + tile, 0)
