"""The plain product against a loop in float64, and int8 activations against compressed-tensors."""

from __future__ import annotations

import pytest
import torch
from compressed_tensors.quantization import QuantizationArgs
from compressed_tensors.quantization.lifecycle.forward import fake_quantize
from compressed_tensors.quantization.utils import compute_dynamic_scales_and_zp

from evalq.errors import KernelError
from evalq.kernels.reference import quantize_activations, quantized_matmul
from evalq.schema import PerChannel, PerGroup, WeightScheme
from tests.artifacts.helpers import random_weight


@pytest.mark.parametrize("bits", [2, 3, 4, 8])
@pytest.mark.parametrize("granularity", [PerGroup(16), PerChannel()])
@pytest.mark.parametrize("symmetric", [True, False])
def test_against_a_loop(bits, granularity, symmetric):
    # With bfloat16 scales every value is exact in float32.
    weight = random_weight(5, 48, WeightScheme(bits, granularity, symmetric), torch.bfloat16)
    x = torch.randn(2, 48, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    expected = torch.zeros(2, 5, dtype=torch.float64)
    size = 16 if weight.scales.shape[1] == 3 else 48
    for o in range(5):
        for i in range(48):
            zero = 1 << (bits - 1) if symmetric else int(weight.zeros[o, i // size])
            value = (int(weight.codes[o, i]) - zero) * float(weight.scales[o, i // size])
            expected[:, o] += x[:, i] * value
    assert torch.allclose(quantized_matmul(x, weight), expected, rtol=1e-12, atol=1e-12)


def test_half_precision_is_summed_in_float32():
    weight = random_weight(4, 256, WeightScheme(4, PerGroup(64)), torch.bfloat16)
    x = torch.randn(3, 256, generator=torch.Generator().manual_seed(1)).bfloat16()
    exact = x.double() @ weight.dequantize(torch.float64).T
    got = quantized_matmul(x, weight)
    assert got.dtype == torch.bfloat16
    assert torch.allclose(got.double(), exact, rtol=2**-8, atol=1e-3)


def test_activations_are_rounded_as_compressed_tensors_does():
    x = torch.randn(2, 3, 64, generator=torch.Generator().manual_seed(2))
    x[0, 1] = 0
    args = QuantizationArgs(num_bits=8, strategy="token", dynamic=True, symmetric=True)
    scale, zero = compute_dynamic_scales_and_zp(x, args, None)
    assert torch.equal(quantize_activations(x), fake_quantize(x, scale, zero, args))


def test_what_does_not_fit_is_refused():
    weight = random_weight(4, 32, WeightScheme(4, PerGroup(32)))
    with pytest.raises(KernelError, match="cannot be multiplied"):
        quantized_matmul(torch.zeros(2, 16), weight)
    with pytest.raises(KernelError, match="16 bits"):
        quantize_activations(torch.zeros(2, 2), 16)
