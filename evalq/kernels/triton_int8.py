"""W8A8 on a GPU: int8 codes of both operands, multiplied as integers on the tensor cores."""

# Triton reads the kernel as its own language: neither types nor idioms of Python are its own.
# mypy: ignore-errors

from __future__ import annotations

import triton
import triton.language as tl

__all__ = ["int8_matmul", "round_rows"]


@triton.jit(do_not_specialize=["M"])
def round_rows(x_ptr, code_ptr, scale_ptr, M, K, BLOCK: tl.constexpr):
    """One row of activations to int8 codes and a float32 scale.

    In the dtype of the activations, as ``reference.quantize_activations`` computes it: scale =
    max|x| / 127.5, codes = round(x / scale), half to even, clamped to [-128, 127].

    Args:
        x_ptr: bf16 or fp16 ``[M, K]``; code_ptr: int8 ``[M, K]``; scale_ptr: float32 ``[M]``.
        BLOCK: a power of two, at least K.
    """
    row = tl.program_id(0)
    k = tl.arange(0, BLOCK)
    at = row.to(tl.int64) * K + k
    dtype: tl.constexpr = x_ptr.dtype.element_ty
    x = tl.load(x_ptr + at, mask=k < K, other=0.0).to(tl.float32)
    # A maximum that skips NaN would hide it: NaN is put back.
    bad = tl.max((x != x).to(tl.int32), axis=0)
    largest = tl.max(tl.abs(x), axis=0)
    scale = (largest / 127.5).to(dtype).to(tl.float32)
    scale = tl.where(scale == 0, 1.0, scale)
    ratio = (x / scale).to(dtype).to(tl.float32)
    # Adding and taking away 1.5 * 2^23 rounds to an integer, half to even.
    code = (ratio + 12582912.0) - 12582912.0
    code = tl.minimum(tl.maximum(code, -128.0), 127.0)
    tl.store(code_ptr + at, code.to(tl.int8), mask=k < K)
    tl.store(scale_ptr + row, tl.where(bad > 0, float("nan"), scale))


@triton.jit(do_not_specialize=["M"])
def int8_matmul(
    x_ptr,
    w_ptr,
    xs_ptr,
    ws_ptr,
    out_ptr,
    M,
    N,
    K,
    BN: tl.constexpr,
    BM: tl.constexpr,
    BK: tl.constexpr,
    STAGES: tl.constexpr,
    TURNS: tl.constexpr,
):
    """``out[m, n] = xs[m] * ws[n] * sum_k x[m, k] * w[n, k]``, summed exactly in int32.

    Args:
        x_ptr: int8 ``[M, K]``; w_ptr: int8 ``[N, K]``; xs_ptr: float32 ``[M]``; ws_ptr: float32
            ``[N]``; out_ptr: ``[M, N]``. K is at most 2**31 / 2**14 = 131072.
        TURNS: of the loop, ``ceil(K / BK)``.
    """
    n = tl.program_id(0) * BN + tl.arange(0, BN)
    m = tl.program_id(1) * BM + tl.arange(0, BM)
    k = tl.arange(0, BK)
    n_safe = tl.minimum(n, N - 1).to(tl.int64)
    m_safe = tl.minimum(m, M - 1).to(tl.int64)
    x_at = x_ptr + m_safe[:, None] * K + k[None, :]
    w_at = w_ptr + n_safe[None, :] * K + k[:, None]
    total = tl.zeros((BM, BN), tl.int32)
    for turn in tl.range(0, TURNS, num_stages=STAGES):
        left = K - turn * BK
        x = tl.load(x_at + turn * BK, mask=k[None, :] < left, other=0)
        w = tl.load(w_at + turn * BK, mask=k[:, None] < left, other=0)
        total = tl.dot(x, w, total, out_dtype=tl.int32)
    scale = tl.load(xs_ptr + m_safe)[:, None] * tl.load(ws_ptr + n_safe)[None, :]
    result = (total.to(tl.float32) * scale).to(out_ptr.dtype.element_ty)
    keep = (m[:, None] < M) & (n[None, :] < N)
    tl.store(out_ptr + m[:, None].to(tl.int64) * N + n[None, :], result, mask=keep)
