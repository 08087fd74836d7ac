import numpy as np
import pytest
import torch

from evalq.quantize.awq import awq_weight, output_error, search_scales
from evalq.quantize.grid import minmax_grid
from evalq.quantize.job import InputStatistics, Reading
from evalq.quantize.rtn import rtn_weight
from evalq.schema import PerGroup, WeightScheme


def problem(outliers=3, seed=0):
    """Inputs of which a few channels are far larger than the rest."""
    generator = torch.Generator().manual_seed(seed)
    inputs = torch.randn(800, 64, generator=generator)
    inputs[:, torch.randperm(64, generator=generator)[:outliers]] *= 30
    weight = torch.randn(48, 64, generator=generator)
    return weight, inputs


def search(weight, inputs, scheme, **options):
    return search_scales([reading(weight, inputs)], torch.arange(64), 64, scheme, **options)


def reading(weight, inputs):
    statistics = InputStatistics.empty(64, torch.device("cpu"))
    statistics.add(inputs)
    return Reading(weight, statistics)


def true_error(weight, inputs, scales, scheme):
    """Mean squared output error by a real product in float64."""
    quantized = rtn_weight(weight * scales, scheme, torch.float32).dequantize().double()
    left = (inputs / scales).double() @ quantized.T - inputs.double() @ weight.double().T
    return float(left.square().sum(1).mean())


@pytest.mark.parametrize("bits", [3, 4])
def test_scales_protect_outlier_channels(bits):
    weight, inputs = problem()
    scheme = WeightScheme(bits, PerGroup(32))
    choice = search(weight, inputs, scheme)
    assert choice.strength > 0
    plain = true_error(weight, inputs, torch.ones(64), scheme)
    scaled = true_error(weight, inputs, choice.scales, scheme)
    assert scaled < 0.6 * plain
    assert choice.plain_error == pytest.approx(plain, rel=1e-3)
    assert choice.error == pytest.approx(scaled, rel=1e-3)


def test_no_scaling_is_kept_when_it_is_best():
    # Codes and scales that hit every weight exactly: any other scale only loses.
    codes = torch.randint(0, 16, (48, 64), generator=torch.Generator().manual_seed(0)).float()
    codes[:, 0], codes[:, 32] = 0, 0
    codes[:, 1], codes[:, 33] = 15, 15
    weight = codes - 7
    choice = search(weight, problem()[1], WeightScheme(4, PerGroup(32), symmetric=False))
    assert choice.strength == -1
    assert torch.equal(choice.scales, torch.ones(64))


def test_several_columns_may_read_one_channel():
    weight, inputs = problem()
    rows = torch.arange(64) // 2 + 10
    choice = search_scales([reading(weight, inputs)], rows, 50, WeightScheme(3, PerGroup(32)))
    assert choice.scales.shape == (50,)
    assert (choice.scales[:10] == 1).all()
    assert (choice.scales[42:] == 1).all()
    assert (choice.scales[10:42] != 1).any()


def test_output_error_against_numpy():
    weight, inputs = problem()
    expected = np.square(inputs.double().numpy() @ weight.double().numpy().T).sum(1).mean()
    assert output_error(weight, inputs.T @ inputs / len(inputs)) == pytest.approx(
        expected, rel=1e-5
    )


@pytest.mark.parametrize("symmetric", [True, False])
def test_the_clip_search_lowers_the_output_error(symmetric):
    weight, inputs = problem()
    hessian = inputs.T @ inputs / len(inputs)
    scheme = WeightScheme(3, PerGroup(32), symmetric)
    clipped = awq_weight(weight, hessian, scheme, torch.float32, clip=True).dequantize()
    spanned = awq_weight(weight, hessian, scheme, torch.float32, clip=False)
    assert torch.equal(spanned.scales, minmax_grid(weight, scheme).scales)
    before = output_error(spanned.dequantize() - weight, hessian)
    assert output_error(clipped - weight, hessian) < 0.95 * before
