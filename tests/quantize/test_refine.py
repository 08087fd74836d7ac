"""Refinement and the columns' inner loops: what they minimize, and the fused kernels."""

import pytest
import torch

from evalq.quantize.awq import output_error
from evalq.quantize.columns import descend_block, round_block
from evalq.quantize.gptq import GptqSettings, gptq_weight
from evalq.quantize.refine import refine_weight, row_errors
from evalq.quantize.rtn import rtn_weight
from evalq.schema import PerChannel, PerGroup, WeightScheme


def problem(out=48, width=96, seed=0):
    generator = torch.Generator().manual_seed(seed)
    inputs = torch.randn(2048, width, generator=generator)
    inputs = inputs @ torch.randn(width, width, generator=generator)
    weight = torch.randn(out, width, generator=generator)
    return weight, inputs.T @ inputs / 2048


@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize("granularity", [PerGroup(32), PerChannel()])
@pytest.mark.parametrize("bits", [2, 3, 4, 8])
def test_refinement_never_raises_the_error_of_a_row_and_lowers_the_whole(
    bits, granularity, symmetric
):
    weight, hessian = problem()
    scheme = WeightScheme(bits, granularity, symmetric)
    start = rtn_weight(weight, scheme, torch.float16, "minmax")
    before = row_errors(weight - start.dequantize(), hessian)
    after = row_errors(weight - refine_weight(weight, start, hessian, 2).dequantize(), hessian)
    assert bool((after <= before * (1 + 1e-4)).all())
    assert float(after.sum()) < 0.7 * float(before.sum())
    ours, plain = (
        gptq_weight(weight, hessian, scheme, torch.float16, GptqSettings(refine=n))[0]
        for n in (2, 0)
    )
    errors = [output_error(weight - w.dequantize(), hessian) for w in (ours, plain)]
    assert errors[0] < errors[1]


def test_every_code_is_at_its_best_level_given_the_others_when_descent_has_converged():
    weight, hessian = problem(out=8, width=32)
    scheme = WeightScheme(3, PerGroup(32), symmetric=True)
    start = rtn_weight(weight, scheme, torch.float32, "minmax")
    found = refine_weight(weight, start, hessian, 60)
    base = row_errors((weight - found.dequantize()).double(), hessian.double())
    for column in range(32):
        for step in (-1, 1):
            codes = found.codes.clone().int()
            codes[:, column] = (codes[:, column] + step).clamp(0, 7)
            trial = (codes.double() - 4) * found.scales.double()
            error = row_errors(weight.double() - trial, hessian.double())
            assert bool((error >= base * (1 - 1e-5)).all())


def test_scales_that_solve_the_least_squares_problem_have_no_gradient():
    from evalq.quantize.refine import _with_scales

    weight, hessian = problem(out=8)
    scheme = WeightScheme(4, PerGroup(32), symmetric=False)
    start = rtn_weight(weight, scheme, torch.float32, "minmax")
    scales = _with_scales(weight, start, hessian).scales.double().requires_grad_()
    centred = start.codes.double().reshape(8, 3, 32) - start.zeros.double()[:, :, None]
    left = weight.double() - (centred * scales[:, :, None]).reshape(8, 96)
    loss = ((left @ hessian.double()) * left).sum()
    (gradient,) = torch.autograd.grad(loss, scales)
    assert float((gradient * scales).abs().max()) < 1e-3 * float(loss)


@pytest.mark.parametrize("columns", [1, 24, 32])
@pytest.mark.parametrize("out", [5, 16, 37])
def test_fused_kernels_give_the_same_codes(columns, out):
    from evalq.kernels.triton_gpu import interpreted
    from evalq.quantize.triton_columns import descend_block_fused, round_block_fused

    if not interpreted() and not torch.cuda.is_available():
        pytest.skip("needs a GPU, or Triton's interpreter (TRITON_INTERPRET=1)")
    generator = torch.Generator().manual_seed(columns * 100 + out)
    rest = torch.randn(columns, out, generator=generator)
    square = torch.randn(columns, columns + 8, generator=generator)
    hessian = square @ square.T / columns + 0.1 * torch.eye(columns)
    upper = torch.linalg.cholesky(hessian, upper=True)
    scales = 0.1 + torch.rand(columns, out, generator=generator)
    zeros = torch.randint(0, 16, (columns, out), generator=generator).float()
    codes, fused = torch.empty_like(rest), torch.empty_like(rest)
    expected = round_block(rest.clone(), upper, scales, zeros, codes, 15)
    errors = round_block_fused(rest.clone(), upper, scales, zeros, fused, 15)
    assert torch.equal(codes, fused)
    torch.testing.assert_close(errors, expected, rtol=1e-4, atol=1e-4)
    start = torch.randint(0, 16, (columns, out), generator=generator).float()
    one, two = start.clone(), start.clone()
    expected = descend_block(rest.clone(), hessian, scales, one, 15)
    moves = descend_block_fused(rest.clone(), hessian, scales, two, 15)
    assert torch.equal(one, two)
    torch.testing.assert_close(moves, expected, rtol=1e-4, atol=1e-4)
