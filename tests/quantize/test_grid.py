import numpy as np
import pytest
import torch
from compressed_tensors.quantization import QuantizationArgs, QuantizationStrategy
from compressed_tensors.quantization.lifecycle.forward import fake_quantize
from compressed_tensors.quantization.utils import calculate_qparams

from evalq.errors import QuantizationError
from evalq.quantize.grid import encode, group_error, grouped, minmax_grid, search_grid
from evalq.quantize.rtn import rtn_weight
from evalq.schema import BITS, PerChannel, PerGroup, WeightScheme


def weights(rows=24, columns=128, seed=0):
    return torch.randn(rows, columns, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("bits", BITS)
@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize("granularity", [PerChannel(), PerGroup(32), PerGroup(64), PerGroup(128)])
def test_rounding_is_that_of_compressed_tensors(bits, symmetric, granularity):
    weight = weights()
    size = getattr(granularity, "size", None)
    args = QuantizationArgs(
        num_bits=bits,
        symmetric=symmetric,
        strategy=QuantizationStrategy.GROUP if size else QuantizationStrategy.CHANNEL,
        group_size=size,
    )
    blocks = weight.reshape(24, -1, size or 128)
    scale, zero = calculate_qparams(blocks.amin(-1), blocks.amax(-1), args)
    expected = fake_quantize(weight, scale, zero, args)
    ours = rtn_weight(weight, WeightScheme(bits, granularity, symmetric), torch.float32)
    torch.testing.assert_close(ours.scales, scale, rtol=1e-6, atol=0)
    # A value halfway between two levels may go either way.
    apart = (ours.dequantize() - expected).abs() > 1e-5
    assert apart.float().mean() < 1e-3


@pytest.mark.parametrize("bits", BITS)
@pytest.mark.parametrize("symmetric", [True, False])
def test_no_weight_in_range_is_further_than_half_a_step(bits, symmetric):
    weight = weights()
    quantized = rtn_weight(weight, WeightScheme(bits, PerGroup(32), symmetric), torch.float32)
    steps = quantized.scales.repeat_interleave(32, dim=1)
    # Asymmetric zeros are whole numbers, which can shift the range by half a step.
    assert ((quantized.dequantize() - weight).abs() <= steps * 1.001).all()


@pytest.mark.parametrize("bits", [2, 3, 4, 8])
@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize("kind", ["plain", "diagonal", "block"])
def test_the_search_never_loses_to_the_range(bits, symmetric, kind):
    weight = weights(seed=bits)
    scheme = WeightScheme(bits, PerGroup(32), symmetric)
    inputs = torch.randn(500, 4, 32, generator=torch.Generator().manual_seed(7)) * 3
    importance = {
        "plain": None,
        "diagonal": inputs.square().mean(0),
        "block": torch.einsum("ngi,ngj->gij", inputs, inputs) / 500,
    }[kind]

    def error(grid):
        difference = encode(weight, grid, scheme).dequantize() - weight
        return group_error(grouped(difference, scheme), importance)

    searched = error(search_grid(weight, scheme, importance))
    ranged = error(minmax_grid(weight, scheme))
    assert (searched <= ranged * (1 + 1e-5)).all()
    if bits < 8:
        assert searched.sum() < 0.97 * ranged.sum()


def test_group_error_against_numpy():
    rng = np.random.default_rng(0)
    difference = rng.normal(size=(5, 3, 8))
    inputs = rng.normal(size=(50, 3, 8))
    hessian = np.einsum("ngi,ngj->gij", inputs, inputs)
    expected = np.square(np.einsum("ngi,ogi->nog", inputs, difference)).sum(0)
    ours = group_error(torch.tensor(difference), torch.tensor(hessian))
    np.testing.assert_allclose(ours.numpy(), expected, rtol=1e-10)


@pytest.mark.parametrize("symmetric", [True, False])
def test_a_group_of_zeros_stays_zero(symmetric):
    weight = weights()
    weight[3, 32:64] = 0
    for clip in ("minmax", "mse"):
        scheme = WeightScheme(3, PerGroup(32), symmetric)
        quantized = rtn_weight(weight, scheme, torch.float16, clip)
        assert (quantized.dequantize()[3, 32:64] == 0).all()


def test_a_scale_that_half_precision_cannot_hold_is_refused():
    with pytest.raises(QuantizationError, match="scale_dtype"):
        rtn_weight(weights() * 1e6, WeightScheme(2, PerChannel()), torch.float16)


def test_codes_are_found_on_the_scales_as_stored():
    weight = weights()
    quantized = rtn_weight(weight, WeightScheme(8, PerGroup(32)), torch.bfloat16)
    scales = quantized.scales.float().repeat_interleave(32, dim=1)
    assert quantized.scales.dtype == torch.bfloat16
    inside = quantized.codes < 255
    assert ((quantized.dequantize() - weight).abs() <= scales * 0.5001)[inside].all()


def test_groups_that_do_not_divide():
    with pytest.raises(QuantizationError, match="groups of 48 do not divide 128"):
        rtn_weight(weights(), WeightScheme(4, PerGroup(48)), torch.float32)
