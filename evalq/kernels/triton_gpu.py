"""The GPU kernel: low-bit weights times bfloat16 or float16 activations, on the tensor cores."""

from __future__ import annotations

from functools import lru_cache
from importlib.util import find_spec
from typing import Any

import torch
from torch import Tensor

from evalq.errors import KernelError
from evalq.kernels.base import PackedWeight
from evalq.kernels.packing import QuantizedWeight, group_count, group_size
from evalq.kernels.triton_launch import Gpu, Launch, Problem, launch_for
from evalq.kernels.triton_pack import SETS, choose_columns, pack_words
from evalq.schema import PerGroup, WeightScheme

__all__ = ["DENSE_ROWS", "TRITON", "TritonKernel", "interpreted"]

_DECODE_ROWS = 16
_OVERLAP = (9, 0)
"""Compute capability from which on a kernel may start before its predecessor has ended."""
_GLUON = ((3, 6), (3, 9))
"""The first and last version of Triton that ``gluon_decode`` and ``gluon_tiles`` compile with."""
_WARPGROUPS = 9
"""The one major capability whose warpgroups multiply together."""
DENSE_ROWS = {2: 1024, 3: 96, 4: 1024, 6: 128, 8: 256}
"""From so many rows on, a dense copy made for one product pays (benchmarks/RESULTS.md)."""
_DENSE_TILES = 1024
"""The same for the kernel of warpgroups, at every width."""
_DENSE = "dequantize, then torch"
_MOST_SPLITS = 32
_WHOLE_ROW = 2**30
"""Columns of a group that no row is longer than."""
_NO_GPU = Gpu("none", 4, 2**17)
_DTYPES = (torch.bfloat16, torch.float16)


def interpreted() -> bool:
    """Whether Triton runs kernels on the CPU, in its interpreter (``TRITON_INTERPRET=1``)."""
    if find_spec("triton") is None:
        return False
    import triton

    return bool(triton.knobs.runtime.interpret)


@lru_cache(maxsize=16)
def _gpu(index: int) -> tuple[Gpu, tuple[int, int]]:
    # torch's type stubs lack the limit that a kernel may opt in to.
    found: Any = torch.cuda.get_device_properties(index)
    capability = (found.major, found.minor)
    direct = capability >= _OVERLAP and _has_gluon()
    gpu = Gpu(
        found.name,
        found.multi_processor_count,
        found.shared_memory_per_block_optin,
        direct,
        direct and capability[0] == _WARPGROUPS,
    )
    return gpu, capability


@lru_cache(maxsize=1)
def _has_gluon() -> bool:
    """Whether this Triton is one whose Gluon the kernels are known to compile with.

    Gluon is experimental, and names in it change: a Triton that nobody tried runs the other kernel.
    """
    import triton

    version = tuple(int(part) for part in triton.__version__.split(".")[:2])
    return _GLUON[0] <= version <= _GLUON[1]


def _zero_bits(zeros: Tensor, bits: int, dtype: torch.dtype) -> Tensor:
    """Bits, as int16, of what is taken away from a code that was written into a mantissa."""
    if dtype == torch.bfloat16 and bits == 8:
        # At 8 bits the code is stored about 0.
        return (zeros.to(torch.float32) - 128).to(torch.bfloat16).view(torch.int16)
    base = 0x4300 if dtype == torch.bfloat16 else 0x6400
    return zeros.to(torch.int16) + base


def _shared_zero(packed: PackedWeight) -> int:
    """The same for a symmetric scheme, as a number."""
    if packed.dtype == torch.bfloat16 and packed.scheme.bits == 8:
        return 0
    base = 0x4300 if packed.dtype == torch.bfloat16 else 0x6400
    return base + (1 << (packed.scheme.bits - 1))


def _way(launch: Launch, problem: Problem) -> str:
    """How a product is made, in words: by the kernel of its launch, or by a dense copy."""
    if problem.rows >= (_DENSE_TILES if launch.kernel == "tiles" else DENSE_ROWS[problem.bits]):
        return _DENSE
    path = "decode" if problem.rows <= _DECODE_ROWS else "tiles"
    return (
        path + {"triton": "", "decode": " in registers", "tiles": " of warpgroups"}[launch.kernel]
    )


class TritonKernel:
    """Triton on CUDA."""

    name = "triton"
    summary = "dequantizes in registers, on the way into the tensor cores"

    def refuses(
        self,
        device: torch.device,
        dtype: torch.dtype,
        scheme: WeightScheme,
        shape: tuple[int, int],
        activation_bits: int | None,
    ) -> str | None:
        """See ``base.Kernel``."""
        if find_spec("triton") is None:
            return "needs the package triton"
        if device.type != "cuda" and not (device.type == "cpu" and interpreted()):
            return "runs on a CUDA device only"
        if dtype not in _DTYPES:
            return "takes bfloat16 and float16 activations only"
        if activation_bits is not None:
            return "keeps activations as they are"
        if scheme.bits not in SETS:
            return f"has no layout for {scheme.bits} bits (2, 3, 4, 6 and 8)"
        size = group_size(scheme, shape[1])
        if isinstance(scheme.granularity, PerGroup) and (size < 16 or size & (size - 1)):
            return "needs groups of a power of two, at least 16"
        if device.type == "cuda" and _gpu(device.index or 0)[1] < (8, 0):
            return "needs compute capability 8.0 or later"
        return None

    def path(
        self, rows: int, scheme: WeightScheme, shape: tuple[int, int], dtype: torch.dtype
    ) -> str:
        """See ``base.Kernel``; on the GPU in use, and for scales that ``dtype`` holds."""
        group = self._group(scheme, shape[1])
        width = choose_columns(scheme.bits, group, shape[1])
        chunk = SETS[scheme.bits] * width
        whole = max(chunk, group)
        padded = -(-shape[1] // whole) * whole
        problem = Problem(scheme.bits, group, width, chunk, rows, *shape, padded, True)
        gpu = _gpu(torch.cuda.current_device())[0] if torch.cuda.is_available() else _NO_GPU
        return _way(launch_for(problem, gpu)[0], problem)

    def pack(
        self,
        weight: QuantizedWeight,
        device: torch.device,
        dtype: torch.dtype,
        activation_bits: int | None,
    ) -> PackedWeight:
        """Words (``triton_pack``), scales ``[groups, out]``, bits of the zeros, and counters.

        Scales are held in ``dtype`` where that loses nothing, else in float32. Columns are padded
        to whole chunks with codes that meet activations of 0, groups with scales of 0.
        """
        group = self._group(weight.scheme, weight.shape[1])
        width = choose_columns(weight.scheme.bits, group, weight.shape[1])
        return self.pack_as(weight, device, dtype, width)

    def pack_as(
        self, weight: QuantizedWeight, device: torch.device, dtype: torch.dtype, width: int
    ) -> PackedWeight:
        """``pack`` in the layout of a given ``C``, for tuning."""
        scheme, (out, columns) = weight.scheme, weight.shape
        group = self._group(scheme, columns)
        chunk = SETS[scheme.bits] * width
        whole = max(chunk, group)
        padded = -(-columns // whole) * whole
        moved = weight.to(device)
        codes = torch.nn.functional.pad(moved.codes, (0, padded - columns))
        if scheme.bits == 8 and dtype == torch.bfloat16:
            codes = codes ^ 0x80
        words = pack_words(codes, scheme.bits, width)
        groups = padded // group if group else 1
        missing = groups - group_count(scheme, columns)
        scales = moved.scales.to(dtype)
        if not torch.equal(scales.to(torch.float32), moved.scales.to(torch.float32)):
            scales = moved.scales.to(torch.float32)
        scales = torch.nn.functional.pad(scales, (0, missing)).T.contiguous()
        zeros = moved.zeros
        if zeros is None:
            zeros = torch.full((1, 1), 1 << (scheme.bits - 1), dtype=torch.uint8, device=device)
        else:
            zeros = torch.nn.functional.pad(zeros, (0, missing))
        bits = _zero_bits(zeros, scheme.bits, dtype).T.contiguous()
        counters = torch.zeros(-(-out // 16) * 16, dtype=torch.int32, device=device)
        if device.type == "cuda":
            # A launch may fetch weights before the kernel before it has ended.
            torch.cuda.current_stream(device).synchronize()
        return PackedWeight(self.name, (words, scales, bits, counters), scheme, weight.shape, dtype)

    @staticmethod
    def _group(scheme: WeightScheme, columns: int) -> int:
        """Columns a scale; 0 where one scale serves a whole row."""
        granularity = scheme.granularity
        if isinstance(granularity, PerGroup) and granularity.size < columns:
            return granularity.size
        return 0

    def problem(self, rows: int, packed: PackedWeight) -> Problem:
        """The product of ``rows`` rows with a packed weight."""
        words, scales = packed.tensors[:2]
        bits, width = packed.scheme.bits, words.shape[3]
        out, columns = packed.shape
        return Problem(
            bits,
            self._group(packed.scheme, columns),
            width,
            SETS[bits] * width,
            rows,
            out,
            columns,
            words.shape[0] * SETS[bits] * width,
            scales.dtype == packed.dtype,
        )

    def launch(self, rows: int, packed: PackedWeight) -> tuple[Launch, bool]:
        """How ``rows`` rows are multiplied here, and whether that was tuned on this GPU."""
        device = packed.device
        gpu = _gpu(device.index or 0)[0] if device.type == "cuda" else _NO_GPU
        return launch_for(self.problem(rows, packed), gpu)

    def matmul(self, x: Tensor, packed: PackedWeight) -> Tensor:
        """See ``base.Kernel``."""
        launch = self.launch(x.shape[0], packed)[0]
        if _way(launch, self.problem(x.shape[0], packed)) == _DENSE:
            return torch.nn.functional.linear(x, self.dense(packed))
        return self.run(x, packed, launch)

    def dense(self, packed: PackedWeight) -> Tensor:
        """The dequantized weight ``[out, in]`` in the packed dtype."""
        from evalq.kernels.triton_matmul import dequantize

        problem = self.problem(1, packed)
        words, scales, zeros, _ = packed.tensors
        result = torch.empty(packed.shape, dtype=packed.dtype, device=packed.device)
        kernel: Any = dequantize
        rows = 64
        kernel[(-(-packed.shape[0] // rows), words.shape[0])](
            words, scales, zeros, result, *packed.shape,
            BITS=problem.bits,
            C=problem.width,
            GROUP=problem.group,
            ZERO=_shared_zero(packed) if packed.scheme.symmetric else -1,
            BN=rows,
            PLAIN=int(interpreted()),
            num_warps=4,
        )  # fmt: skip
        return result

    def run(self, x: Tensor, packed: PackedWeight, launch: Launch) -> Tensor:
        """``matmul`` with a given launch, for tuning and tests.

        Raises:
            KernelError: a launch that does not fit.
        """
        rows = x.shape[0]
        problem = self.problem(rows, packed)
        out = packed.shape[0]
        tiles = (-(-out // launch.bn), -(-rows // launch.bm))
        if not launch.fits(problem) or launch.split > _MOST_SPLITS:
            raise KernelError(f"{launch} does not fit {problem}")
        split = launch.split
        if split > 1 and tiles[0] * tiles[1] > packed.tensors[3].numel():
            raise KernelError(f"{launch} has more tiles than the weight has counters")
        result = x.new_empty(rows, out)
        partial = x.new_empty(split * rows * out if split > 1 else 1, dtype=torch.float32)
        words, scales, zeros, counters = packed.tensors
        operands = (
            x,
            words,
            scales,
            zeros,
            result,
            partial,
            counters,
            rows,
            out,
            x.shape[1],
            split,
        )
        same = {
            "BITS": problem.bits,
            "ZERO": _shared_zero(packed) if packed.scheme.symmetric else -1,
            "BN": launch.bn,
            "BM": launch.bm,
            "num_warps": launch.warps,
        }
        start = {"triton": _launch_triton, "decode": _launch_decode, "tiles": _launch_tiles}
        start[launch.kernel](tiles, operands, same, launch, problem)
        return result


def _launch_triton(
    tiles: tuple[int, int],
    operands: tuple[Any, ...],
    same: dict[str, Any],
    launch: Launch,
    problem: Problem,
) -> None:
    from evalq.kernels.triton_matmul import lowbit_matmul

    turns, device = launch.turns(problem), operands[0].device
    overlap = device.type == "cuda" and _gpu(device.index or 0)[1] >= _OVERLAP
    lowbit: Any = lowbit_matmul
    lowbit[(*tiles, launch.split)](
        *operands[:-1], turns, launch.split, **same,
        C=problem.width,
        GROUP=problem.group,
        EVEN_K=problem.padded == problem.columns,
        SCALED=launch.scaled,
        SPLIT=launch.split if interpreted() else min(launch.split, 2),
        KS=launch.ks,
        STEP=launch.step,
        STAGES=launch.stages,
        PLAIN=turns if interpreted() else 0,
        PDL=overlap,
        launch_pdl=overlap,
    )  # fmt: skip


def _launch_decode(
    tiles: tuple[int, int],
    operands: tuple[Any, ...],
    same: dict[str, Any],
    launch: Launch,
    problem: Problem,
) -> None:
    from evalq.kernels.gluon_decode import decode_matmul

    turns = launch.turns(problem)
    decode: Any = decode_matmul
    decode[(tiles[0], launch.split)](
        *operands, **same,
        GROUP=problem.group,
        SPLIT=min(launch.split, 2),
        MR=launch.held(problem.rows),
        KS=launch.ks,
        STEP=launch.step,
        TURNS=turns,
        DEEP=1 << (turns - 1).bit_length(),
        SUMMED=launch.summed or same["ZERO"] < 0,
        PDL=True,
        WARPS=launch.warps,
        launch_pdl=True,
    )  # fmt: skip


def _launch_tiles(
    tiles: tuple[int, int],
    operands: tuple[Any, ...],
    same: dict[str, Any],
    launch: Launch,
    problem: Problem,
) -> None:
    from evalq.kernels.gluon_tiles import tiles_matmul

    kernel: Any = tiles_matmul
    kernel[(*tiles, launch.split)](
        *operands, launch.turns(problem), **same,
        GROUP=problem.group or _WHOLE_ROW,
        EVEN_K=problem.padded == problem.columns,
        SPLIT=min(launch.split, 2),
        STAGES=launch.stages,
        PDL=True,
        WARPS=launch.warps,
        launch_pdl=True,
    )  # fmt: skip


TRITON = TritonKernel()
