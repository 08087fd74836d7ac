import numpy as np
import pytest
import torch

from evalq.errors import NonFiniteError, QuantizationError
from evalq.quantize.gptq import GptqSettings, block_importance, gptq_weight, inverse_factor
from evalq.quantize.grid import minmax_grid
from evalq.quantize.rtn import rtn_weight
from evalq.schema import PerChannel, PerGroup, WeightScheme


def problem(rows=20, columns=96, tokens=600, seed=0):
    """A weight and the Hessian of correlated inputs whose channels differ in size."""
    rng = np.random.default_rng(seed)
    mix = rng.normal(size=(columns, columns)) * np.exp(rng.normal(size=columns))
    inputs = rng.normal(size=(tokens, columns)) @ mix.T / columns**0.5
    weight = rng.normal(size=(rows, columns))
    return weight, inputs.T @ inputs / tokens


def output_error(weight, quantized, hessian):
    difference = quantized.dequantize().double().numpy() - weight
    return np.trace(difference @ hessian @ difference.T)


def naive_gptq(weight, hessian, scales, zeros, size, top, damping, order):
    """The paper's equations 2 and 3, one column at a time, the inverse updated by elimination."""
    weight = weight.copy()
    columns = weight.shape[1]
    hessian = hessian + damping * np.mean(np.diag(hessian)) * np.eye(columns)
    inverse = np.linalg.inv(hessian)
    codes = np.zeros_like(weight)
    left = list(order)
    while left:
        j = left.pop(0)
        scale, zero = scales[:, j // size], zeros[:, j // size]
        codes[:, j] = np.clip(np.round(weight[:, j] / scale + zero), 0, top)
        error = (weight[:, j] - (codes[:, j] - zero) * scale) / inverse[j, j]
        weight -= np.outer(error, inverse[j])
        inverse = inverse - np.outer(inverse[:, j], inverse[j]) / inverse[j, j]
    return codes


@pytest.mark.parametrize("act_order", [False, True])
@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize(("bits", "block"), [(2, 7), (3, 128), (4, 32), (8, 1)])
def test_codes_are_those_of_the_paper(act_order, symmetric, bits, block):
    weight, hessian = problem(seed=bits)
    scheme = WeightScheme(bits, PerGroup(32), symmetric)
    settings = GptqSettings(0.01, act_order, block, "minmax")
    ours, _ = gptq_weight(
        torch.tensor(weight).float(), torch.tensor(hessian).float(), scheme, torch.float32, settings
    )
    grid = minmax_grid(torch.tensor(weight).float(), scheme)
    order = np.argsort(-np.diag(hessian), kind="stable") if act_order else np.arange(96)
    expected = naive_gptq(
        weight,
        hessian,
        grid.scales.double().numpy(),
        grid.zeros.double().numpy(),
        32,
        2**bits - 1,
        0.01,
        order,
    )
    # A tie broken otherwise in float32 shifts what follows in that row: rows may differ, few do.
    same = (ours.codes.numpy() == expected).all(axis=1).mean()
    assert same >= 0.85
    assert (ours.codes.numpy() == expected).mean() > 0.97


@pytest.mark.parametrize("granularity", [PerChannel(), PerGroup(32)])
@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize("bits", [2, 3, 4, 8])
@pytest.mark.parametrize("search", ["minmax", "mse", "weighted"])
def test_outputs_are_closer_than_by_rounding(granularity, symmetric, bits, search):
    weight, hessian = problem(seed=3)
    scheme = WeightScheme(bits, granularity, symmetric)
    tensors = torch.tensor(weight).float(), torch.tensor(hessian).float()
    ours, _ = gptq_weight(*tensors, scheme, torch.float32, GptqSettings(scale_search=search))
    plain = rtn_weight(tensors[0], scheme, torch.float32)
    ratio = output_error(weight, ours, hessian) / output_error(weight, plain, hessian)
    assert ratio < 0.8


def test_uncorrelated_inputs_leave_rounding_to_nearest():
    weight, _ = problem()
    scheme = WeightScheme(4, PerGroup(32))
    ours, _ = gptq_weight(
        torch.tensor(weight).float(),
        torch.eye(96),
        scheme,
        torch.float32,
        GptqSettings(scale_search="minmax"),
    )
    plain = rtn_weight(torch.tensor(weight).float(), scheme, torch.float32)
    assert torch.equal(ours.codes, plain.codes)


def test_inputs_that_are_always_zero_are_rounded_to_nearest():
    weight, hessian = problem()
    hessian[5] = hessian[:, 5] = 0
    scheme = WeightScheme(4, PerGroup(32))
    weight = torch.tensor(weight).float()
    settings = GptqSettings(scale_search="minmax")
    ours, stats = gptq_weight(
        weight, torch.tensor(hessian).float(), scheme, torch.float32, settings
    )
    plain = rtn_weight(weight, scheme, torch.float32)
    assert stats.dead_columns == 1
    assert torch.equal(ours.codes[:, 5], plain.codes[:, 5])


def test_fewer_tokens_than_inputs_need_no_escalation_thanks_to_damping():
    weight, hessian = problem(tokens=20)
    _, stats = gptq_weight(
        torch.tensor(weight).float(),
        torch.tensor(hessian).float(),
        WeightScheme(4, PerGroup(32)),
        torch.float32,
        GptqSettings(),
    )
    assert (stats.damping, stats.escalations) == (0.01, 0)


def test_damping_is_raised_and_recorded():
    matrix = torch.diag(torch.tensor([1.0, 1.0, 1.0, -0.05]))
    factor, damping, escalations = inverse_factor(matrix, 0.01)
    assert escalations == 1
    assert damping == pytest.approx(0.1)
    damped = matrix + 0.1 * matrix.diagonal().mean() * torch.eye(4)
    torch.testing.assert_close(factor.T @ factor, torch.linalg.inv(damped))


def test_a_hessian_beyond_damping_is_refused():
    with pytest.raises(QuantizationError, match="not positive definite"):
        inverse_factor(torch.diag(torch.tensor([1.0, 1.0, 1.0, -2.0])), 0.01)


def test_a_hessian_with_nan_is_refused():
    hessian = torch.eye(96)
    hessian[3, 4] = float("nan")
    with pytest.raises(NonFiniteError):
        gptq_weight(
            torch.ones(4, 96), hessian, WeightScheme(4, PerGroup(32)), torch.float32, GptqSettings()
        )


def test_blocks_of_the_hessian():
    hessian = torch.arange(36.0).reshape(6, 6)
    blocks = block_importance(hessian, WeightScheme(4, PerGroup(3)))
    assert torch.equal(blocks[0], hessian[:3, :3])
    assert torch.equal(blocks[1], hessian[3:, 3:])
    channel = block_importance(hessian, WeightScheme(4, PerChannel()))
    assert torch.equal(channel[0], hessian.diagonal())
