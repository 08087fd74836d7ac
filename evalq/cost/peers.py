"""The products that evalq's kernels are timed against, one adapter a library.

A library is imported only when its peer is asked for. An adapter packs a weight for its library
and gives the product; a weight that the library does not run (its width, its group) is left out of
the table, a library that cannot run here (not installed, no CUDA) is an error by name. The caller
checks the product before it is timed, so a layout that a new release reads otherwise is found.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from importlib import import_module
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

from evalq.errors import KernelError, MissingDependencyError

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from evalq.kernels.packing import QuantizedWeight

__all__ = ["PEERS", "Peer", "Product", "refuse"]

Product = Callable[["Tensor"], Any]
"""Activations ``[M, K]`` to ``[M, N]``, by a weight that is packed already."""


@dataclass(frozen=True, slots=True)
class Peer:
    """A library's product.

    Args:
        summary: which function it is.
        make: packs a weight; ``None`` where the library does not run such a weight.
        packages: import names of which one has to be here.
        install: the hint where none is.
        cuda: whether it runs on CUDA only.
    """

    summary: str
    make: Callable[[QuantizedWeight, torch.device, torch.dtype], Product | None]
    packages: tuple[str, ...] = ()
    install: str = ""
    cuda: bool = False


def refuse(name: str, peer: Peer, device: torch.device) -> None:
    """Raise where a peer cannot run here.

    Raises:
        MissingDependencyError: its package is not installed.
        KernelError: it needs a CUDA device, and this is none.
    """
    if peer.cuda and device.type != "cuda":
        raise KernelError(
            f"{name} runs on a CUDA device only",
            hint=f"Leave {name} out of --against, or use CUDA.",
        )
    if peer.packages and not any(find_spec(package) for package in peer.packages):
        raise MissingDependencyError(f"{name} is not installed", hint=peer.install)


def _group(weight: QuantizedWeight) -> int:
    """Columns that share a scale."""
    return weight.shape[1] // weight.groups


def _zeros(weight: QuantizedWeight) -> Tensor:
    """Zero points as uint8 ``[out, groups]``, those of a symmetric scheme written out."""
    import torch

    if weight.zeros is not None:
        return weight.zeros
    return torch.full_like(weight.scales, 1 << (weight.scheme.bits - 1), dtype=torch.uint8)


def _torch(weight: QuantizedWeight, device: torch.device, dtype: torch.dtype) -> Product:
    import torch

    dense = weight.dequantize(dtype).to(device)
    return lambda x: torch.nn.functional.linear(x, dense)


def _tinygemm(weight: QuantizedWeight, device: torch.device, dtype: torch.dtype) -> Product | None:
    """``(code - 8) * scale + offset``, scale and offset in the activations' dtype."""
    import torch

    size = _group(weight)
    whole = weight.shape[1] % size == 0 and weight.shape[0] % 16 == 0
    if weight.scheme.bits != 4 or size not in (32, 64, 128, 256) or not whole:
        return None
    scales = weight.scales.to(device, torch.float32)
    offsets = (8 - _zeros(weight).to(device, torch.float32)) * scales
    pair = torch.stack([scales.T, offsets.T], -1).to(dtype).contiguous()
    codes = weight.codes.to(device).to(torch.int32)
    if device.type == "cpu":
        words = torch._convert_weight_to_int4pack_for_cpu(codes, 1)
        return lambda x: torch._weight_int4pack_mm_for_cpu(x, words, size, pair)
    if dtype != torch.bfloat16:
        return None
    words = torch._convert_weight_to_int4pack((codes[:, ::2] << 4 | codes[:, 1::2]).byte(), 8)
    return lambda x: torch._weight_int4pack_mm(x, words, size, pair)


def _gemlite(weight: QuantizedWeight, device: torch.device, dtype: torch.dtype) -> Product | None:
    """gemlite (0.6): its launches are its own.

    They come from the configurations that it ships for a GPU's name; for another GPU it tunes
    each of them at its first product, which takes seconds a shape and number of rows.
    """
    size, columns = _group(weight), weight.shape[1]
    if weight.scheme.bits not in (8, 4, 2) or columns % 32 or columns % size or size < 16:
        return None
    helper = import_module("gemlite.helper")
    layer: Product = helper.A16Wn(device=str(device), dtype=dtype).from_weights(
        weight.codes.to(device),
        weight.scales.to(device),
        _zeros(weight).to(device),
        weight.scheme.bits,
        size,
    )
    return layer


def _marlin_modules(dtype: torch.dtype) -> tuple[Any, Callable[..., Any], Any]:
    """Marlin's helpers, its repacking, and the types of its weights."""
    if find_spec("vllm"):
        utils = import_module("vllm.model_executor.layers.quantization.utils.marlin_utils")
        repack = import_module("vllm._custom_ops").gptq_marlin_repack
        return utils, repack, import_module("vllm.scalar_type").scalar_types
    utils = import_module("gptqmodel.utils.marlin")
    # GPTQModel compiles an extension a dtype, of minutes each: the one that multiplies repacks too.
    repack = partial(utils.gptq_marlin_repack, dtype=dtype)
    return utils, repack, import_module("gptqmodel.utils.marlin_scalar_type").scalar_types


def _marlin(weight: QuantizedWeight, device: torch.device, dtype: torch.dtype) -> Product | None:
    """Marlin as vLLM has it, or else GPTQModel (7.7): symmetric 4 and 8 bits."""
    import torch

    bits, (out, columns) = weight.scheme.bits, weight.shape
    size = _group(weight)
    groups = size in (32, 64, 128) or size == columns
    if bits not in (4, 8) or not weight.scheme.symmetric or not groups:
        return None
    if columns % 128 or out % 64 or dtype not in (torch.float16, torch.bfloat16):
        return None
    utils, repack, types = _marlin_modules(dtype)
    per = 32 // bits
    codes = weight.codes.to(device).T.reshape(columns // per, per, out).to(torch.int64)
    shifts = torch.arange(per, device=device, dtype=torch.int64)[None, :, None] * bits
    # The top code's bits reach the sign of an int32.
    words = (codes << shifts).sum(1).to(torch.int32).contiguous()
    none = torch.empty(0, dtype=torch.int32, device=device)
    packed = repack(words, none, columns, out, bits)
    scales = utils.marlin_permute_scales(
        weight.scales.to(device, dtype).T.contiguous(),
        columns,
        out,
        -1 if size == columns else size,
    )
    workspace = utils.marlin_make_workspace_new(device)
    kind = types.uint4b8 if bits == 4 else types.uint8b128

    def product(x: Tensor) -> Any:
        return utils.apply_gptq_marlin_linear(
            input=x,
            weight=packed,
            weight_scale=scales,
            weight_zp=none,
            g_idx=none,
            g_idx_sort_indices=none,
            workspace=workspace,
            wtype=kind,
            output_size_per_partition=out,
            input_size_per_partition=columns,
            is_k_full=True,
        )

    return product


PEERS: dict[str, Peer] = {
    "torch": Peer("the dense product in the activations' dtype; always the baseline", _torch),
    "tinygemm": Peer(
        "PyTorch's _weight_int4pack_mm on CUDA, _weight_int4pack_mm_for_cpu on a CPU (4 bits)",
        _tinygemm,
    ),
    "gemlite": Peer(
        "gemlite's Triton kernels (8, 4 and 2 bits)",
        _gemlite,
        ("gemlite",),
        "pip install gemlite, beside a CUDA build of torch.",
        cuda=True,
    ),
    "marlin": Peer(
        "Marlin of vLLM or GPTQModel (symmetric 4 and 8 bits)",
        _marlin,
        ("vllm", "gptqmodel"),
        "pip install vllm (or gptqmodel), beside a CUDA build of torch.",
        cuda=True,
    ),
}
"""What a kernel can be timed against beside evalq's own kernels, by name."""
