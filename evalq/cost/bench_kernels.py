"""Speeds of single products with low-bit weights, as ratios to the dense product in one run."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

from evalq.cost.bench import CLOCKS
from evalq.cost.peers import PEERS, Product, refuse
from evalq.errors import KernelError, PlanError, nearest

if TYPE_CHECKING:
    import torch

    from evalq.kernels.base import PackedWeight
    from evalq.schema import WeightScheme

__all__ = ["PEERS", "SHAPES", "bench_kernels"]

SHAPES = {"cpu": ((576, 1536), (2048, 8192)), "cuda": ((4096, 14336), (14336, 4096))}
"""Columns (K) by rows (N) of the weights that are timed by default, by type of device."""

_ROTATE = {"cpu": 64 * 2**20, "cuda": 192 * 2**20}
"""Bytes of weights that a timed loop passes over, beyond the caches (L2 on a GPU)."""

_WRONG = 0.05
"""The largest error, in norm, of a peer that rounds scales or sums to 16 bits."""


def _times(calls: Sequence[Callable[[], Any]], repeats: int, cuda: bool, clock: str) -> float:
    """Median seconds of one call; on CUDA of a call replayed within one graph."""
    import torch

    for call in calls[:2]:
        call()
    samples: list[float] = []
    if cuda:
        graph = torch.cuda.CUDAGraph()
        torch.cuda.synchronize()
        with torch.cuda.graph(graph):
            for call in calls:
                call()
        graph.replay()
        for _ in range(repeats):
            start = torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]
            end = torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]
            start.record()
            graph.replay()
            end.record()
            torch.cuda.synchronize()
            samples.append(start.elapsed_time(end) / 1e3 / len(calls))
        return statistics.median(samples)
    now = CLOCKS[clock]
    deadline = time.perf_counter() + 2.0
    for _ in range(repeats):
        began = now()
        for call in calls:
            call()
        samples.append((now() - began) / len(calls))
        if time.perf_counter() > deadline and len(samples) >= 3:
            break
    return statistics.median(samples)


def _weight(scheme: WeightScheme, shape: tuple[int, int], dtype: torch.dtype) -> Any:
    import torch

    from evalq.kernels.packing import QuantizedWeight, group_count

    generator = torch.Generator().manual_seed(0)
    levels = 1 << scheme.bits
    groups = group_count(scheme, shape[1])
    codes = torch.randint(0, levels, shape, dtype=torch.uint8, generator=generator)
    scales = (torch.rand(shape[0], groups, generator=generator) * 0.02 + 0.001).to(dtype)
    zeros = None
    if not scheme.symmetric:
        size = (shape[0], groups)
        zeros = torch.randint(0, levels, size, dtype=torch.uint8, generator=generator)
    return QuantizedWeight(codes, scales, zeros, scheme, shape)


def _own(name: str, weight: Any, device: torch.device, dtype: torch.dtype) -> Product | None:
    """The product by a kernel of evalq, the chosen one for ``evalq``."""
    from evalq.kernels.op import pack, quantized_matmul

    try:
        packed = pack(weight, device, dtype, None if name == "evalq" else name)
    except KernelError:
        if name == "evalq":
            raise
        return None
    return lambda x: quantized_matmul(x, packed)


def _products(name: str, weight: Any, device: torch.device, dtype: torch.dtype) -> list[Product]:
    """The product over copies of the weight, more than the caches hold; none if it is not run.

    Raises:
        KernelError: it gives another product than the dequantized weight.
    """
    import torch

    make = PEERS[name].make if name in PEERS else partial(_own, name)
    first = make(weight, device, dtype)
    if first is None:
        return []
    x = torch.randn(2, weight.shape[1], generator=torch.Generator().manual_seed(2))
    x = x.to(device, dtype)
    wanted = x.float() @ weight.dequantize(torch.float32).to(device).T
    error = float((first(x).float() - wanted).norm() / wanted.norm())
    if not error <= _WRONG:
        raise KernelError(
            f"{name} gives another product of {weight.scheme}: {error:.2g} away in norm",
            hint="Its release may read another layout than this one writes; leave it out.",
        )
    bits = 8 * dtype.itemsize if name == "torch" else weight.scheme.bits
    each = weight.shape[0] * weight.shape[1] * bits // 8
    count = max(2, min(24, -(-_ROTATE[device.type] // each)))
    more = (make(weight, device, dtype) for _ in range(count - 1))
    return [first, *(product for product in more if product is not None)]


def _check(against: Sequence[str], device: torch.device) -> None:
    from evalq.kernels.dispatch import KERNELS

    for name in against:
        if name in PEERS:
            refuse(name, PEERS[name], device)
        elif name not in KERNELS:
            raise PlanError(f"unknown peer {name!r}", hint=nearest(name, [*PEERS, *KERNELS]))


def bench_kernels(
    schemes: Sequence[WeightScheme],
    shapes: Sequence[tuple[int, int]],
    rows: Sequence[int],
    against: Sequence[str] = (),
    device: torch.device | str = "cpu",
    dtype: torch.dtype | None = None,
    repeats: int = 10,
    clock: str = "wall",
) -> list[dict[str, Any]]:
    """Time the kernel that each scheme runs on here, and its peers, beside the dense product.

    Args:
        schemes: of the weights.
        shapes: columns (K) and rows (N) of the weights.
        rows: of activations (M).
        against: ``PEERS`` and kernels by name; what cannot run a scheme is left out of its row.
        device, dtype: where and in what (bfloat16 by default).
        repeats: of which the median is taken. clock: a key of ``CLOCKS`` (on a CPU).

    Returns:
        A row a shape, number of rows and scheme: ``{M, K, N, scheme, kernel, path, dense_us,
        evalq_us, ratio, gbs, <peer>_us}``; ``ratio`` is dense over evalq, ``gbs`` the packed
        weight's bytes over the time, in GB/s.

    Raises:
        KernelError: no kernel runs a scheme here, or a peer does not run on this device or gives
            another product. MissingDependencyError: a peer's library. PlanError: an unknown peer.
    """
    import torch

    from evalq.kernels.op import pack

    target = torch.device(device)
    _check(against, target)
    kind = dtype or torch.bfloat16
    cuda = target.type == "cuda"
    out: list[dict[str, Any]] = []
    for columns, size in shapes:
        for scheme in schemes:
            # Packed and dequantized many times over: on a GPU in milliseconds, not seconds.
            weight = _weight(scheme, (size, columns), kind).to(target)
            names = ["torch", "evalq", *(n for n in against if n != "torch")]
            calls = {name: _products(name, weight, target, kind) for name in names}
            packed = pack(weight, target, kind)
            for m in rows:
                x = torch.randn(m, columns, generator=torch.Generator().manual_seed(1))
                x = x.to(target, kind)
                micro = {
                    name: 1e6 * _times([partial(c, x) for c in made], repeats, cuda, clock)
                    for name, made in calls.items()
                    if made
                }
                out.append(_row(m, packed, micro))
    return out


def _row(rows: int, packed: PackedWeight, micro: dict[str, float]) -> dict[str, Any]:
    from evalq.kernels.dispatch import KERNELS

    out, columns = packed.shape
    return {
        "M": rows,
        "K": columns,
        "N": out,
        "scheme": str(packed.scheme),
        "kernel": packed.kernel,
        "path": KERNELS.get(packed.kernel).path(rows, packed.scheme, packed.shape, packed.dtype),
        "dense_us": micro["torch"],
        "evalq_us": micro["evalq"],
        "ratio": micro["torch"] / micro["evalq"],
        "gbs": packed.bytes / micro["evalq"] / 1e3,
        **{f"{n}_us": v for n, v in micro.items() if n not in ("torch", "evalq")},
    }
