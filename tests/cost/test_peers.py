"""Peers' adapters: PyTorch's own against float64, others against stand-ins of their interfaces."""

from __future__ import annotations

import sys
from importlib.machinery import ModuleSpec
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
import torch

from evalq.cost import bench_kernels as bench
from evalq.cost.peers import PEERS
from evalq.errors import KernelError
from evalq.schema import PerGroup, WeightScheme
from tests.kernels.weights import dense64, make_weight, relative_error

CPU = torch.device("cpu")
BF16 = torch.bfloat16


def put(monkeypatch: pytest.MonkeyPatch, name: str, **content: Any) -> None:
    """A module of that name, and the packages that it lies in."""
    parts = name.split(".")
    for i in range(1, len(parts) + 1):
        whole = ".".join(parts[:i])
        module = ModuleType(whole)
        module.__spec__ = ModuleSpec(whole, None)
        if i == len(parts):
            vars(module).update(content)
        elif whole in sys.modules:
            continue
        monkeypatch.setitem(sys.modules, whole, module)


@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_tinygemm_on_a_cpu_gives_the_product(symmetric: bool, dtype: torch.dtype) -> None:
    weight = make_weight(4, 64, symmetric, (48, 256), scales=dtype)
    product = PEERS["tinygemm"].make(weight, CPU, dtype)
    assert product is not None
    x = torch.randn(5, 256, generator=torch.Generator().manual_seed(0)).to(dtype)
    # Offsets are rounded to the activations' dtype.
    assert relative_error(product(x), x.double() @ dense64(weight).T) < 1e-2
    assert PEERS["tinygemm"].make(make_weight(3, 64, True, (48, 256)), CPU, dtype) is None
    assert PEERS["tinygemm"].make(make_weight(4, None, True, (48, 320)), CPU, dtype) is None


def unpacked(words: torch.Tensor, bits: int) -> torch.Tensor:
    """GPTQ's words int32 ``[K * bits / 32, N]`` as codes ``[K, N]``, by the format's own rule."""
    rows = []
    for row in words.tolist():
        for j in range(32 // bits):
            rows.append([(word >> (bits * j)) & ((1 << bits) - 1) for word in row])
    return torch.tensor(rows)


def gptqmodel(monkeypatch: pytest.MonkeyPatch, seen: dict[str, Any]) -> None:
    """GPTQModel 7.7's helpers of Marlin; the product is taken from what they were given."""

    def repack(words: Any, perm: Any, size_k: int, size_n: int, num_bits: int, dtype: Any) -> Any:
        assert perm.numel() == 0
        assert dtype == BF16, "its fp16 extension would be compiled for the repacking alone"
        seen.update(words=words, size=(size_k, size_n), bits=num_bits)
        return words

    def permute(scales: Any, size_k: int, size_n: int, group_size: int) -> Any:
        seen.update(scales=scales, group=group_size)
        assert scales.shape == (1 if group_size == -1 else size_k // group_size, size_n)
        return scales

    def apply(*, input: Any, weight: Any, weight_scale: Any, wtype: Any, **rest: Any) -> Any:
        assert wtype == f"uint{seen['bits']}"
        assert rest["is_k_full"]
        assert not rest["g_idx"].numel()
        codes = unpacked(weight, seen["bits"]) - (1 << (seen["bits"] - 1))
        spread = weight_scale.repeat_interleave(codes.shape[0] // weight_scale.shape[0], 0)
        return (input.double() @ (codes * spread.double())).to(input.dtype)

    put(
        monkeypatch,
        "gptqmodel.utils.marlin",
        gptq_marlin_repack=repack,
        marlin_permute_scales=permute,
        marlin_make_workspace_new=lambda device: torch.zeros(128, dtype=torch.int32),
        apply_gptq_marlin_linear=apply,
    )
    kinds = SimpleNamespace(uint4b8="uint4", uint8b128="uint8")
    put(monkeypatch, "gptqmodel.utils.marlin_scalar_type", scalar_types=kinds)


@pytest.mark.parametrize(("bits", "group"), [(4, 128), (4, 32), (4, None), (8, 64), (8, None)])
def test_marlin_gets_the_layout_of_gptq(
    monkeypatch: pytest.MonkeyPatch, bits: int, group: int | None
) -> None:
    seen: dict[str, Any] = {}
    gptqmodel(monkeypatch, seen)
    weight = make_weight(bits, group, True, (64, 256), scales=BF16)
    product = PEERS["marlin"].make(weight, CPU, BF16)
    assert product is not None
    x = torch.randn(3, 256, generator=torch.Generator().manual_seed(0)).to(BF16)
    assert relative_error(product(x), x.double() @ dense64(weight).T) < 5e-3
    assert seen["size"] == (256, 64)
    assert seen["group"] == (group or -1)


def test_marlin_leaves_out_what_it_does_not_run(monkeypatch: pytest.MonkeyPatch) -> None:
    gptqmodel(monkeypatch, {})
    make = PEERS["marlin"].make
    assert make(make_weight(4, 64, False, (64, 256)), CPU, BF16) is None
    assert make(make_weight(3, 64, True, (64, 256)), CPU, BF16) is None
    assert make(make_weight(4, 64, True, (48, 256)), CPU, BF16) is None
    assert make(make_weight(4, 64, True, (64, 192)), CPU, BF16) is None
    assert make(make_weight(4, 64, True, (64, 256)), CPU, torch.float32) is None


class A16Wn:
    """gemlite's helper: codes and zeros as they are."""

    def __init__(self, device: str, dtype: torch.dtype) -> None:
        assert (device, dtype) == ("cpu", BF16)

    def from_weights(self, codes: Any, scales: Any, zeros: Any, bits: int, group: int) -> Any:
        assert codes.dtype == torch.uint8
        assert int(codes.max()) < 1 << bits
        assert zeros.shape == scales.shape == (codes.shape[0], codes.shape[1] // group)
        wide = [t.double().repeat_interleave(group, 1) for t in (scales, zeros)]
        dense = (codes.double() - wide[1]) * wide[0]
        return lambda x: (x.double() @ dense.T).to(x.dtype)


@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize(("bits", "group"), [(8, 128), (4, 64), (2, 32), (4, None)])
def test_gemlite_gets_codes_scales_and_zeros(
    monkeypatch: pytest.MonkeyPatch, bits: int, group: int | None, symmetric: bool
) -> None:
    put(monkeypatch, "gemlite.helper", A16Wn=A16Wn)
    weight = make_weight(bits, group, symmetric, (48, 256), scales=BF16)
    product = PEERS["gemlite"].make(weight, CPU, BF16)
    assert product is not None
    x = torch.randn(3, 256, generator=torch.Generator().manual_seed(0)).to(BF16)
    assert relative_error(product(x), x.double() @ dense64(weight).T) < 5e-3
    assert PEERS["gemlite"].make(make_weight(3, 64, True, (48, 256)), CPU, BF16) is None


def test_a_peer_that_gives_another_product_is_not_timed(monkeypatch: pytest.MonkeyPatch) -> None:
    def twice(weight: Any, device: torch.device, dtype: torch.dtype) -> Any:
        dense = weight.dequantize(dtype)
        return lambda x: 2 * torch.nn.functional.linear(x, dense)

    changed = SimpleNamespace(make=twice, cuda=False, packages=())
    monkeypatch.setitem(bench.PEERS, "tinygemm", changed)
    scheme = WeightScheme(4, PerGroup(64))
    with pytest.raises(KernelError, match="tinygemm gives another product"):
        bench.bench_kernels([scheme], [(64, 16)], (1,), against=("tinygemm",), repeats=1)
