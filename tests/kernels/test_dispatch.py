from __future__ import annotations

import pytest
import torch

from evalq.errors import KernelError, PlanError
from evalq.kernels import native
from evalq.kernels.dispatch import KERNELS, ORDER, choose
from evalq.kernels.listing import list_kernels
from evalq.kernels.op import pack, quantized_matmul
from evalq.schema import PerGroup, WeightScheme
from tests.kernels.weights import make_weight

W4 = WeightScheme(4, PerGroup(64))


def no_compiler(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(native, "_load", lambda: KernelError("no C compiler was found"))


def test_every_kernel_in_an_order_is_registered_under_its_own_name() -> None:
    for names in ORDER.values():
        for name in names:
            assert KERNELS.get(name).name == name


def test_reference_is_never_chosen() -> None:
    assert all("reference" not in names for names in ORDER.values())


def test_the_choice_says_why_and_names_the_path() -> None:
    if native.why_not() is not None:
        pytest.skip("no C compiler")
    few = choose("cpu", torch.float32, W4, (64, 64), rows=1)
    many = choose("cpu", torch.float32, W4, (64, 64), rows=64)
    assert few.name == many.name == "native"
    assert few.path != many.path
    assert "first in the order for cpu" in few.why


def test_without_a_compiler_the_choice_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    no_compiler(monkeypatch)
    choice = choose("cpu", torch.bfloat16, W4, (64, 64))
    assert choice.name == "torch-int4"
    assert [r.name for r in choice.rejected] == ["native"]
    assert "no C compiler" in choice.why


def test_nothing_falls_back_silently(monkeypatch: pytest.MonkeyPatch) -> None:
    no_compiler(monkeypatch)
    with pytest.raises(KernelError) as caught:
        choose("cpu", torch.float32, W4, (64, 64))
    for name in ORDER["cpu"]:
        assert name in caught.value.message
    with pytest.raises(KernelError, match="none is written"):
        choose("meta", torch.float32, W4, (64, 64))


def test_a_kernel_by_name_is_used_or_refused() -> None:
    weight = make_weight(4, 64, True, (32, 64))
    assert pack(weight, "cpu", torch.float32, "reference").kernel == "reference"
    with pytest.raises(KernelError, match="cannot run"):
        pack(weight, "cpu", torch.float32, "torch-int4")
    with pytest.raises(PlanError, match="unknown kernel"):
        pack(weight, "cpu", torch.float32, "nativ")


def test_activations_that_do_not_fit_are_refused() -> None:
    packed = pack(make_weight(4, 32, True, (16, 64)), "cpu", torch.float32, "reference")
    for x in (torch.zeros(1, 32), torch.zeros(1, 64, dtype=torch.bfloat16)):
        with pytest.raises(KernelError, match="do not fit"):
            quantized_matmul(x, packed)
    assert quantized_matmul(torch.zeros(0, 64), packed).shape == (0, 16)
    assert quantized_matmul(torch.zeros(2, 3, 64), packed).shape == (2, 3, 16)


def test_the_listing_covers_every_kernel_and_says_why_nothing_runs() -> None:
    rows = list_kernels("cpu")
    assert {k["name"] for k in rows["kernels"]} == set(KERNELS)
    assert all(row["why"] for row in rows["choices"])
    half = [r for r in rows["choices"] if r["dtype"] == "float16"]
    assert half
    assert all(r["kernel"] is None for r in half)
