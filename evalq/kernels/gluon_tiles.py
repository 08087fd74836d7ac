"""The kernel for many rows on Hopper: weights become numbers while the tensor cores multiply.

A tile is ``out.T [BN, BM] = W [BN, K] @ x.T [K, BM]``: every warpgroup has 64 rows of the weight,
in registers, and activations come through shared memory. A product of 32 columns is asked for and
not waited for until the next 32 columns have been dequantized, and two warpgroups share a
multiprocessor: so the tensor cores work while either of them computes. Triton's own pipeline waits
before it overwrites the registers of an operand, which is why this is written in Gluon, the
language below it (``triton.experimental``); see ``gluon_decode.py``. Dequantization, layout and the
rounding of scaled weights are those of ``triton_matmul.py`` with ``SCALED``.
"""

# Gluon reads this file as its own language: neither types nor idioms of Python are its own.
# mypy: ignore-errors
# ruff: noqa: SIM300

from __future__ import annotations

from triton.experimental import gluon
from triton.experimental.gluon import language as gl
from triton.experimental.gluon.language.nvidia.hopper import (
    async_copy,
    fence_async_shared,
    warpgroup_mma,
    warpgroup_mma_wait,
)
from triton.runtime.jit import constexpr_function

from evalq.kernels.gluon_decode import (
    _barrier,
    _launch_dependents,
    _load_groups,
    _load_turn,
    _shifted,
    _wait,
)
from evalq.kernels.triton_bits import (
    less_zero_asm,
    less_zero_form,
    part_of,
    parts_of,
    place_of,
    sets_of,
    unit,
    words_of,
)

__all__ = ["tiles_matmul"]

# Triton 3.9 gave it another name.
_async_load = getattr(async_copy, "async_load", None) or async_copy.async_copy_global_to_shared


@constexpr_function
def _stage_of(column):
    return column // 64


@constexpr_function
def _inside(column):
    return column % 64


@constexpr_function
def _starts(column):
    """Whether a stage's columns begin with this one."""
    return column % 64 == 0


@gluon.jit
def _scaled(a, b, c, zero, scale, j: gl.constexpr, BITS: gl.constexpr, DTYPE: gl.constexpr):
    """``(code - zero) * scale`` of set ``j``, rounded to DTYPE; see ``triton_matmul``."""
    BF16: gl.constexpr = DTYPE == gl.bfloat16
    PARTS: gl.constexpr = parts_of(BITS, j)
    TEXT: gl.constexpr = less_zero_asm(BITS, j, BF16, True)
    FORM: gl.constexpr = less_zero_form(PARTS)
    FIRST: gl.constexpr = part_of(BITS, j, 0, BF16, 0)
    first = a if FIRST == 0 else (b if FIRST == 1 else c)
    first = _shifted(first, part_of(BITS, j, 0, BF16, 1))
    if PARTS == 3:
        second = _shifted(b, part_of(BITS, j, 1, BF16, 1))
        third = _shifted(c, part_of(BITS, j, 2, BF16, 1))
        return gl.inline_asm_elementwise(
            TEXT, FORM, [zero, scale, first, second, third], dtype=DTYPE.value, is_pure=True, pack=2
        )
    if PARTS == 2:
        second = _shifted(c, part_of(BITS, j, 1, BF16, 1))
        return gl.inline_asm_elementwise(
            TEXT, FORM, [zero, scale, first, second], dtype=DTYPE.value, is_pure=True, pack=2
        )
    return gl.inline_asm_elementwise(
        TEXT, FORM, [zero, scale, first], dtype=DTYPE.value, is_pure=True, pack=2
    )


@gluon.jit
def _zero_at(zero, j: gl.constexpr, BITS: gl.constexpr, BF16: gl.constexpr):
    """Bits of a zero as they are stored, moved to the place of ``j``."""
    PLACE: gl.constexpr = place_of(BITS, j, BF16)
    if PLACE == 0:
        return zero
    return (((zero - unit(0, BF16)) << PLACE) + unit(PLACE, BF16)).to(gl.int16)


@gluon.jit
def _copy(stages, at, last, x_at, column, there, K, STAGES: gl.constexpr, EVEN_K: gl.constexpr):
    """Begin to copy the activations of 64 columns into their stage; one group of copies."""
    there = there & (at < last)
    if not EVEN_K:
        there = there & (column + at * 64 < K)
    _async_load(stages.index(at % STAGES), x_at + at * 64, mask=there)
    async_copy.commit_group()


@gluon.jit(do_not_specialize=["M", "splits", "turns"])
def tiles_matmul(
    x_ptr, w_ptr, s_ptr, z_ptr, out_ptr, part_ptr, count_ptr, M, N, K, splits, turns,
    BITS: gl.constexpr, GROUP: gl.constexpr, ZERO: gl.constexpr, EVEN_K: gl.constexpr,
    SPLIT: gl.constexpr, BN: gl.constexpr, BM: gl.constexpr, STAGES: gl.constexpr,
    PDL: gl.constexpr, WARPS: gl.constexpr,
):  # fmt: skip
    """One tile of BN output rows and BM rows of activations, over one split of K.

    Arguments are those of ``triton_matmul.lowbit_matmul`` (where ``C`` is 32), and

    Args:
        turns: of a split, each a chunk of columns; at least one.
        GROUP: columns a scale, 32 or more; a chunk is whole groups or a group whole chunks.
        STAGES: of 64 columns of activations; at least 4.
    """
    DTYPE: gl.constexpr = x_ptr.dtype.element_ty
    BF16: gl.constexpr = DTYPE == gl.bfloat16
    SETS: gl.constexpr = sets_of(BITS)
    WORDS: gl.constexpr = words_of(BITS)
    CHUNK: gl.constexpr = SETS * 32
    COPIES: gl.constexpr = CHUNK // 64
    MMA: gl.constexpr = gl.NVMMADistributedLayout([3, 0], [WARPS, 1], [16, BM, 16])
    LEFT: gl.constexpr = gl.DotOperandLayout(0, MMA, 2)
    SHARED: gl.constexpr = gl.NVMMASharedLayout(128, 16, rank=2)
    FILL: gl.constexpr = gl.BlockedLayout([1, 8], [4, 8], [WARPS, 1], [1, 0])
    COUNT: gl.constexpr = max(1, CHUNK // GROUP)
    tile = gl.program_id(0)
    # Rows beyond the edge read the last row again, and are not stored.
    n = tile * BN + gl.arange(0, BN, layout=gl.SliceLayout(1, LEFT))
    row = gl.minimum(n, N - 1)[:, None]
    c = gl.arange(0, 32, layout=gl.SliceLayout(0, LEFT))[None, :]
    first = gl.program_id(2) * turns
    stride = N.to(gl.int64) * 32
    w_at = w_ptr + ((first * WORDS).to(gl.int64) * stride + (row * 32 + c))
    words = _load_turn(w_at, 0, stride, WORDS)
    # Activations: 64 columns a stage.
    m = gl.program_id(1) * BM + gl.arange(0, BM, layout=gl.SliceLayout(1, FILL))[:, None]
    k = gl.arange(0, 64, layout=gl.SliceLayout(0, FILL))[None, :]
    column = first * CHUNK + k
    x_at = x_ptr + (gl.minimum(m, M - 1).to(gl.int64) * K + column)
    rows_there = (m < M) & (k >= 0)
    stages = gl.allocate_shared_memory(DTYPE, (STAGES, BM, 64), SHARED)
    if PDL:
        _launch_dependents()
        _wait()
    last = turns * COPIES
    for stage in gl.static_range(STAGES - 2):
        _copy(stages, stage, last, x_at, column, rows_there, K, STAGES, EVEN_K)
    acc = gl.zeros((BN, BM), gl.float32, MMA)
    scales = _load_groups(s_ptr + row, first * CHUNK // GROUP, N, COUNT)
    zeros = (gl.full((BN, 1), ZERO if ZERO >= 0 else 0, gl.int16, LEFT),)
    if ZERO < 0:
        zeros = _load_groups(z_ptr + row, first * CHUNK // GROUP, N, COUNT)
    for turn in range(turns):
        # All of the next turn is on its way while this one is multiplied.
        following = gl.minimum(turn + 1, turns - 1)
        words_next = _load_turn(w_at, following, stride, WORDS)
        group = (first + following) * CHUNK // GROUP
        scales_next = _load_groups(s_ptr + row, group, N, COUNT)
        zeros_next = zeros
        if ZERO < 0:
            zeros_next = _load_groups(z_ptr + row, group, N, COUNT)
        for j in gl.static_range(SETS):
            at = turn * COPIES + _stage_of(j * 32)
            w = _scaled(
                words[0],
                words[1 if WORDS == 3 else 0],
                words[2 if WORDS == 3 else 0],
                _zero_at(zeros[_which(j, GROUP) if ZERO < 0 else 0], j, BITS, BF16),
                scales[_which(j, GROUP)].to(gl.int16, bitcast=True),
                j, BITS, DTYPE,
            )  # fmt: skip
            if _starts(j * 32):
                # Copies of this stage have arrived; products of the stage before the last are
                # done in every warp, so that its place can be filled again.
                async_copy.wait_group(STAGES - 3)
                fence_async_shared()
                _barrier()
                _copy(stages, at + STAGES - 2, last, x_at, column, rows_there, K, STAGES, EVEN_K)
            x = stages.index(at % STAGES).slice(_inside(j * 32), 32, dim=1).permute((1, 0))
            acc = warpgroup_mma(w, x, acc, is_async=True)
            acc = warpgroup_mma_wait(1, deps=(acc,))
        words = words_next
        scales = scales_next
        zeros = zeros_next
    acc = warpgroup_mma_wait(0, deps=(acc,))
    _finish(acc, out_ptr, part_ptr, count_ptr, tile, M, N, splits, BN, BM, SPLIT, WARPS)


@constexpr_function
def _which(j, group):
    """Which of a chunk's groups a set lies in."""
    return j * 32 // group


@gluon.jit
def _finish(
    total, out_ptr, part_ptr, count_ptr, tile, M, N, splits,
    BN: gl.constexpr, BM: gl.constexpr, SPLIT: gl.constexpr, WARPS: gl.constexpr,
):  # fmt: skip
    """Store a tile, or, where K is split, its part; the last split adds all of them in order."""
    DTYPE: gl.constexpr = out_ptr.dtype.element_ty
    ACROSS: gl.constexpr = gl.BlockedLayout([8, 1], [16, 2], [1, WARPS], [0, 1])
    n = tile * BN + gl.arange(0, BN, layout=gl.SliceLayout(1, ACROSS))[:, None]
    m = gl.program_id(1) * BM + gl.arange(0, BM, layout=gl.SliceLayout(0, ACROSS))[None, :]
    keep = (n < N) & (m < M)
    at = m.to(gl.int64) * N + n
    if SPLIT == 1:
        gl.store(out_ptr + at, gl.convert_layout(total.to(DTYPE), ACROSS), mask=keep)
    else:
        size = M.to(gl.int64) * N
        split = gl.program_id(2)
        gl.store(part_ptr + split * size + at, gl.convert_layout(total, ACROSS), mask=keep)
        _barrier()
        counter = count_ptr + gl.program_id(1) * gl.num_programs(0) + tile
        done = gl.atomic_add(counter, 1, sem="acq_rel", scope="gpu")
        if done == splits - 1:
            summed = gl.full((BN, BM), 0.0, gl.float32, ACROSS)
            for other in range(splits):
                summed += gl.load(
                    part_ptr + other * size + at, mask=keep, other=0.0, cache_modifier=".cg"
                )
            gl.store(out_ptr + at, summed.to(DTYPE), mask=keep)
            gl.store(counter, 0)
