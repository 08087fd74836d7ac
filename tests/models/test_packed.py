"""An artifact on the low-bit kernels computes what it computes dequantized."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM

from evalq.artifacts.compressed_tensors import CompressedTensors
from evalq.errors import KernelError
from evalq.kernels import native
from evalq.kernels.linear import QuantizedLinear
from evalq.models.load import load_artifact, timed_dtype
from evalq.plan import EnginePlan
from evalq.schema import PerChannel, PerGroup, WeightScheme
from tests.artifacts.helpers import write
from tests.artifacts.test_architectures import artifact

PLAN = EnginePlan(device="cpu")
IDS = torch.arange(1, 33)[None]
needs_compiler = pytest.mark.skipif(native.why_not() is not None, reason="no C compiler")


@needs_compiler
@pytest.mark.parametrize(
    ("scheme", "activation_bits"),
    [
        (WeightScheme(4, PerGroup(32)), None),
        (WeightScheme(3, PerGroup(32), symmetric=False), None),
        (WeightScheme(8, PerChannel()), None),
        (WeightScheme(8, PerChannel()), 8),
    ],
    ids=str,
)
def test_logits_are_those_of_transformers(
    tmp_path: Path, scheme: WeightScheme, activation_bits: int | None
) -> None:
    path = tmp_path / "made"
    _, layers = write(path, CompressedTensors(), scheme, activation_bits=activation_bits)
    model = load_artifact(path, PLAN, packed=True)
    assert model.execution == "packed:native"
    for name in layers:
        assert isinstance(model.module.get_submodule(name), QuantizedLinear)
    peer = AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32).eval()
    # An activation that lies between two codes may be rounded up here and down there.
    limit = 1e-4 if activation_bits is None else 1e-3
    for width in (1, 7, 32):
        ours = model.module(IDS[:, :width]).logits
        theirs = peer(IDS[:, :width]).logits
        torch.testing.assert_close(ours, theirs, atol=limit, rtol=limit)


@needs_compiler
def test_gpt2_keeps_its_weights_the_other_way_round(tmp_path: Path) -> None:
    _, made = artifact("gpt2", tmp_path)
    dense = load_artifact(made.path, PLAN).module
    packed = load_artifact(made.path, PLAN, packed=True)
    assert packed.execution == "packed:native"
    torch.testing.assert_close(packed.module(IDS).logits, dense(IDS).logits, rtol=1e-4, atol=1e-4)


def test_experts_in_one_tensor_are_refused_by_name(tmp_path: Path) -> None:
    _, made = artifact("mixtral", tmp_path)
    with pytest.raises(KernelError, match="experts"):
        load_artifact(made.path, PLAN, packed=True)


def test_without_a_kernel_it_is_an_error(tmp_path: Path) -> None:
    path = tmp_path / "made"
    write(path, CompressedTensors(), WeightScheme(4, PerGroup(32)))
    with pytest.raises(KernelError, match="no kernel runs"):
        load_artifact(path, EnginePlan(device="cpu", dtype="float16"), packed=True)


def test_weights_take_the_memory_of_their_codes(tmp_path: Path) -> None:
    path = tmp_path / "made"
    _, layers = write(path, CompressedTensors(), WeightScheme(4, PerGroup(32)))
    model = load_artifact(path, PLAN, packed=True)
    held = 0
    for name, weight in layers.items():
        layer = model.module.get_submodule(name)
        assert isinstance(layer, QuantizedLinear)
        held += layer.packed.bytes
        assert layer.packed.bytes <= weight.codes.numel() * (4 + 32 / 32) / 8 * 1.05
    dense = sum(p.numel() for p in model.module.parameters())
    whole = sum(p.numel() for p in load_artifact(path, PLAN).module.parameters())
    assert dense == whole - sum(w.codes.numel() for w in layers.values())


def test_costs_are_taken_in_the_precision_that_is_shipped(monkeypatch: pytest.MonkeyPatch) -> None:
    assert timed_dtype(PLAN, "float32") == "float32"
    for fast, expected in ((True, "bfloat16"), (False, "float32")):
        monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda fast=fast: fast)
        monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: False)
        assert timed_dtype(PLAN, "bfloat16") == timed_dtype(PLAN, "float16") == expected
