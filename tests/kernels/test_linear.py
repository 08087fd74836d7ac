from __future__ import annotations

import pytest
import torch
from torch import nn

from evalq.errors import KernelError
from evalq.kernels import native
from evalq.kernels.linear import QuantizedLinear, pack_module
from tests.kernels.weights import dense64, make_weight


def model() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(64, 48), nn.ReLU(), nn.Sequential(nn.Linear(48, 20, bias=False)))


def test_a_packed_module_computes_what_the_dequantized_one_does() -> None:
    if native.why_not() is not None:
        pytest.skip("no C compiler")
    layers = {"0": make_weight(4, 32, True, (48, 64)), "2.0": make_weight(8, None, False, (20, 48))}
    dense, packed = model(), model()
    with torch.no_grad():
        for name, weight in layers.items():
            dense.get_submodule(name).weight.copy_(dense64(weight))  # type: ignore[union-attr, operator]
    assert pack_module(packed, layers, "cpu", torch.float32) == "packed:native"
    assert isinstance(packed[0], QuantizedLinear)
    x = torch.randn(5, 64, generator=torch.Generator().manual_seed(2))
    with torch.inference_mode():
        torch.testing.assert_close(packed(x), dense(x), rtol=1e-5, atol=1e-5)
    assert not list(packed.parameters())


def test_an_error_leaves_the_module_as_it_was() -> None:
    module = model()
    layers = {"0": make_weight(4, 32, True, (48, 64)), "2.0": make_weight(4, 20, True, (20, 48))}
    with pytest.raises(KernelError, match=r"layer '2\.0'"):
        pack_module(module, layers, "cpu", torch.float32)
    assert isinstance(module[0], nn.Linear)


def test_names_and_shapes_are_checked() -> None:
    weight = make_weight(4, 32, True, (48, 64))
    for name in ("1", "7", "2"):
        with pytest.raises(KernelError, match="no linear layer"):
            pack_module(model(), {name: weight}, "cpu", torch.float32, "reference")
    with pytest.raises(KernelError, match="no linear layer"):
        pack_module(
            model(), {"0": make_weight(4, 32, True, (48, 32))}, "cpu", torch.float32, "reference"
        )
    with pytest.raises(KernelError, match="no quantized layer"):
        pack_module(model(), {}, "cpu", torch.float32)


def test_a_bias_must_fit() -> None:
    weight = make_weight(4, 32, True, (48, 64))
    with pytest.raises(KernelError, match="bias"):
        QuantizedLinear.build(weight, torch.zeros(47), "cpu", torch.float32, "reference")
