"""Triton kernels of all that a decoding step does between its products, few rows at a time.

Every kernel waits for the one before it by itself (``PDL``), so that a chain of them, with the
low-bit products in between, overlaps each launch with the end of its predecessor.
"""

# Triton reads this file as its own language: neither types nor idioms of Python are its own.
# mypy: ignore-errors

from __future__ import annotations

import triton
import triton.language as tl
from triton.language.extra.cuda import gdc_launch_dependents, gdc_wait

__all__ = ["add_norm", "attend", "combine", "silu_mul", "turn_store"]


@triton.jit
def add_norm(
    h_ptr, delta_ptr, w_ptr, out_ptr, hidden, epsilon, ADD: tl.constexpr, BLOCK: tl.constexpr,
    PDL: tl.constexpr,
):  # fmt: skip
    """``h += delta`` (ADD), and ``out = rms_norm(h) * w``; one row ``[hidden]`` a program.

    Rounded as transformers rounds it: the sum, the normalized row and its product with the weight.
    """
    if PDL:
        gdc_launch_dependents()
        gdc_wait()
    dtype: tl.constexpr = h_ptr.dtype.element_ty
    at = tl.program_id(0).to(tl.int64) * hidden + tl.arange(0, BLOCK)
    inside = tl.arange(0, BLOCK) < hidden
    h = tl.load(h_ptr + at, mask=inside, other=0.0).to(tl.float32)
    if ADD:
        h += tl.load(delta_ptr + at, mask=inside, other=0.0).to(tl.float32)
        rounded = h.to(dtype)
        tl.store(h_ptr + at, rounded, mask=inside)
        h = rounded.to(tl.float32)
    scale = tl.rsqrt(tl.sum(h * h, axis=0) / hidden + epsilon)
    w = tl.load(w_ptr + tl.arange(0, BLOCK), mask=inside, other=0.0).to(tl.float32)
    x = (h * scale).to(dtype).to(tl.float32) * w
    tl.store(out_ptr + at, x.to(dtype), mask=inside)


@triton.jit
def turn_store(
    qkv_ptr, cos_ptr, sin_ptr, at_ptr, q_norm_ptr, k_norm_ptr, q_ptr, keys_ptr, values_ptr,
    length, epsilon,
    HEADS: tl.constexpr, FEW: tl.constexpr, HALF: tl.constexpr, NORM: tl.constexpr,
    PDL: tl.constexpr,
):  # fmt: skip
    """One head of one row: queries and keys turned to their position, keys and values stored.

    Args:
        qkv_ptr: ``[rows, HEADS + 2 FEW, 2 HALF]``; q_ptr: ``[rows, HEADS, 2 HALF]``.
        cos_ptr, sin_ptr: float32 ``[length, 2 HALF]``; at_ptr: int64 ``[1]``, the slot.
        keys_ptr, values_ptr: ``[rows, FEW, length, 2 HALF]``.
        NORM: heads of queries and keys are normalized first, with weights q_norm and k_norm.
    """
    if PDL:
        gdc_launch_dependents()
        gdc_wait()
    dtype: tl.constexpr = q_ptr.dtype.element_ty
    row = tl.program_id(0).to(tl.int64)
    head = tl.program_id(1)
    slot = tl.load(at_ptr)
    low = tl.arange(0, HALF)
    base = qkv_ptr + (row * (HEADS + 2 * FEW) + head) * (2 * HALF)
    a = tl.load(base + low).to(tl.float32)
    b = tl.load(base + HALF + low).to(tl.float32)
    if head < HEADS + FEW:
        if NORM:
            scale = tl.rsqrt((tl.sum(a * a, axis=0) + tl.sum(b * b, axis=0)) / (2 * HALF) + epsilon)
            wa = tl.where(head < HEADS, tl.load(q_norm_ptr + low), tl.load(k_norm_ptr + low))
            wb = tl.where(
                head < HEADS, tl.load(q_norm_ptr + HALF + low), tl.load(k_norm_ptr + HALF + low)
            )
            a = (a * scale).to(dtype).to(tl.float32) * wa.to(tl.float32)
            b = (b * scale).to(dtype).to(tl.float32) * wb.to(tl.float32)
            a = a.to(dtype).to(tl.float32)
            b = b.to(dtype).to(tl.float32)
        table = slot * (2 * HALF) + low
        first = a * tl.load(cos_ptr + table) - b * tl.load(sin_ptr + table)
        second = b * tl.load(cos_ptr + table + HALF) + a * tl.load(sin_ptr + table + HALF)
        a = first
        b = second
    kv = head - HEADS
    if head < HEADS:
        to = q_ptr + (row * HEADS + head) * (2 * HALF)
        tl.store(to + low, a.to(dtype))
        tl.store(to + HALF + low, b.to(dtype))
    elif head < HEADS + FEW:
        to = keys_ptr + ((row * FEW + kv) * length + slot) * (2 * HALF)
        tl.store(to + low, a.to(dtype))
        tl.store(to + HALF + low, b.to(dtype))
    else:
        to = values_ptr + ((row * FEW + kv - FEW) * length + slot) * (2 * HALF)
        tl.store(to + low, a.to(dtype))
        tl.store(to + HALF + low, b.to(dtype))


@triton.jit
def attend(
    q_ptr, keys_ptr, values_ptr, at_ptr, most_ptr, sum_ptr, mixed_ptr, length, scale, splits,
    GROUP: tl.constexpr, WIDE: tl.constexpr, SIZE: tl.constexpr, TILE: tl.constexpr,
    PDL: tl.constexpr,
):  # fmt: skip
    """The queries of one key-value head over one span of TILE slots.

    Program ``(row * kv_heads + kv, span)`` leaves the maximum, the sum of weights and the weighted
    values ``[SIZE]`` of each of its GROUP heads (WIDE: padded for the tensor cores). Weights are
    rounded to the dtype of the values, as transformers rounds them.

    Args:
        q_ptr: ``[rows, kv_heads * GROUP, SIZE]``; keys_ptr, values_ptr: ``[rows, kv_heads, length,
            SIZE]``; at_ptr: int64 ``[1]``, the last slot that counts.
        most_ptr, sum_ptr: float32 ``[rows * kv_heads * GROUP, splits]``; mixed_ptr: the same with
            a last axis of SIZE.
    """
    if PDL:
        gdc_launch_dependents()
        gdc_wait()
    unit = tl.program_id(0).to(tl.int64)
    span = tl.program_id(1)
    last = tl.load(at_ptr)
    g = tl.arange(0, WIDE)
    d = tl.arange(0, SIZE)
    t = span * TILE + tl.arange(0, TILE)
    seen = t <= last
    safe = tl.minimum(g, GROUP - 1)
    q = tl.load(q_ptr + (unit * GROUP + safe[:, None]) * SIZE + d[None, :])
    at = unit * length * SIZE + t[:, None] * SIZE + d[None, :]
    keys = tl.load(keys_ptr + at, mask=seen[:, None], other=0.0)
    values = tl.load(values_ptr + at, mask=seen[:, None], other=0.0)
    scores = tl.dot(q, tl.trans(keys), input_precision="ieee") * scale
    scores = tl.where(seen[None, :], scores, float("-inf"))
    most = tl.max(scores, axis=1)
    # A span beyond the last slot has no maximum, and its weights are zeros.
    weight = tl.exp(scores - tl.where(most == float("-inf"), 0.0, most)[:, None])
    mixed = tl.dot(weight.to(values.dtype), values, input_precision="ieee")
    keep = g < GROUP
    out = (unit * GROUP + g) * splits + span
    tl.store(most_ptr + out, most, mask=keep)
    tl.store(sum_ptr + out, tl.sum(weight, axis=1), mask=keep)
    tl.store(mixed_ptr + out[:, None] * SIZE + d[None, :], mixed, mask=keep[:, None])


@triton.jit
def combine(
    most_ptr, sum_ptr, mixed_ptr, out_ptr, splits, SIZE: tl.constexpr, SPLITS: tl.constexpr,
    PDL: tl.constexpr,
):  # fmt: skip
    """The spans of one head put together, in their order: ``[rows * heads, SIZE]``."""
    if PDL:
        gdc_launch_dependents()
        gdc_wait()
    unit = tl.program_id(0).to(tl.int64)
    s = tl.arange(0, SPLITS)
    d = tl.arange(0, SIZE)
    inside = s < splits
    at = unit * splits + s
    most = tl.load(most_ptr + at, mask=inside, other=float("-inf"))
    # A maximum that skips NaN would hide it; sums do not.
    share = tl.where(most == float("-inf"), 0.0, tl.exp(most - tl.max(most, axis=0)))
    total = tl.sum(tl.load(sum_ptr + at, mask=inside, other=0.0) * share, axis=0)
    mixed = tl.load(mixed_ptr + at[:, None] * SIZE + d[None, :], mask=inside[:, None], other=0.0)
    out = tl.sum(mixed * share[:, None], axis=0) / total
    tl.store(out_ptr + unit * SIZE + d, out.to(out_ptr.dtype.element_ty))


@triton.jit
def silu_mul(x_ptr, out_ptr, inner, BLOCK: tl.constexpr, PDL: tl.constexpr):
    """``silu(gate) * up`` of ``x`` ``[rows, 2 inner]``, gate first: ``[rows, inner]``."""
    if PDL:
        gdc_launch_dependents()
        gdc_wait()
    row = tl.program_id(0).to(tl.int64)
    i = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    inside = i < inner
    gate = tl.load(x_ptr + row * 2 * inner + i, mask=inside, other=0.0).to(tl.float32)
    up = tl.load(x_ptr + row * 2 * inner + inner + i, mask=inside, other=0.0).to(tl.float32)
    out = gate / (1.0 + tl.exp(-gate)) * up
    tl.store(out_ptr + row * inner + i, out.to(out_ptr.dtype.element_ty), mask=inside)
