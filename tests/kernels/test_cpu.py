from __future__ import annotations

import pytest
import torch
from torch import Tensor

from evalq.errors import KernelError
from evalq.kernels import cpu, native
from evalq.kernels.base import PackedWeight
from evalq.kernels.cpu import DECODE_ROWS
from evalq.kernels.op import pack, quantized_matmul
from tests.kernels.weights import TOLERANCE, dense64, make_weight, relative_error

pytestmark = pytest.mark.skipif(native.why_not() is not None, reason="no C compiler")

ROWS = (1, 2, 3, 16, 17, 64, 257)


def activations(rows: int, columns: int, dtype: torch.dtype, seed: int = 1) -> Tensor:
    rng = torch.Generator().manual_seed(seed)
    return torch.randn(rows, columns, generator=rng).to(dtype)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize("group", [32, 64, 128, 256, None])
@pytest.mark.parametrize("bits", [2, 3, 4, 5, 6, 7, 8])
def test_it_agrees_with_float64_over_the_grid(
    bits: int, group: int | None, symmetric: bool, dtype: torch.dtype
) -> None:
    weight = make_weight(bits, group, symmetric, (51, 267), seed=bits)
    packed = pack(weight, "cpu", dtype, "native")
    dense = dense64(weight)
    for rows in ROWS:
        x = activations(rows, 267, dtype, rows)
        result = quantized_matmul(x, packed)
        assert result.dtype == dtype
        assert result.shape == (rows, 51)
        assert relative_error(result, x.double() @ dense.T) < TOLERANCE[dtype]


@pytest.mark.parametrize("shape", [(1, 1), (5, 7), (16, 8), (17, 640), (256, 96), (33, 129)])
def test_it_takes_any_shape(shape: tuple[int, int]) -> None:
    for bits, group in ((4, 32), (2, 64), (8, None)):
        weight = make_weight(bits, group, False, shape)
        x = activations(3, shape[1], torch.float32)
        result = quantized_matmul(x, pack(weight, "cpu", torch.float32, "native"))
        assert relative_error(result, x.double() @ dense64(weight).T) < 1e-5


def test_results_are_the_same_bits_for_any_number_of_threads() -> None:
    weight = make_weight(4, 64, False, (96, 512))
    packed = pack(weight, "cpu", torch.float32, "native")
    x = activations(5, 512, torch.float32)
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(1)
        one = quantized_matmul(x, packed)
        torch.set_num_threads(2)
        assert all(torch.equal(one, quantized_matmul(x, packed)) for _ in range(3))
    finally:
        torch.set_num_threads(before)


def test_a_row_does_not_depend_on_its_batch() -> None:
    # Codes are read for up to DECODE_ROWS rows, in tiles of 1, 2, 4 and 8.
    packed = pack(make_weight(4, 64, True, (48, 256)), "cpu", torch.float32, "native")
    x = activations(DECODE_ROWS, 256, torch.float32)
    whole = quantized_matmul(x, packed)
    assert torch.equal(whole[:8], quantized_matmul(x[:8], packed))
    for rows in (1, 2, 3, 7, 15):
        torch.testing.assert_close(whole[:rows], quantized_matmul(x[:rows], packed))


@pytest.mark.parametrize("rows", [1, 2, 16, 40])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("bits", [2, 4, 8])
@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
def test_nan_and_infinity_reach_their_own_row_and_no_other(
    value: float, bits: int, dtype: torch.dtype, rows: int
) -> None:
    weight = make_weight(bits, 64, True, (40, 200))
    x = activations(rows, 200, dtype)
    x[0, 131] = value
    result = quantized_matmul(x, pack(weight, "cpu", dtype, "native"))
    expected = x.double() @ dense64(weight).T
    torch.testing.assert_close(result[0].double(), expected[0], rtol=1e-2, atol=0, equal_nan=True)
    assert torch.isfinite(result[1:]).all()


def test_zero_input_gives_zero_and_an_outlier_does_not_drown_the_rest() -> None:
    weight = make_weight(4, 128, False, (32, 384))
    packed = pack(weight, "cpu", torch.float32, "native")
    assert not quantized_matmul(torch.zeros(2, 384), packed).any()
    x = activations(2, 384, torch.float32)
    x[:, 17] = 3e4
    assert relative_error(quantized_matmul(x, packed), x.double() @ dense64(weight).T) < 1e-5


def test_activations_of_eight_bits_are_rounded_as_the_reference_rounds_them() -> None:
    weight = make_weight(8, None, True, (40, 256))
    x = activations(3, 256, torch.float32)
    packed = pack(weight, "cpu", torch.float32, "native", activation_bits=8)
    by_reference = pack(weight, "cpu", torch.float32, "reference", activation_bits=8)
    plain = quantized_matmul(x, pack(weight, "cpu", torch.float32, "native"))
    result = quantized_matmul(x, packed)
    torch.testing.assert_close(result, quantized_matmul(x, by_reference), rtol=1e-5, atol=1e-5)
    assert not torch.equal(result, plain)


def test_packed_bytes_are_those_of_the_codes() -> None:
    def size(bits: int) -> int:
        packed = pack(make_weight(bits, None, True, (64, 256)), "cpu", torch.float32, "native")
        return packed.bytes - 64 * 4

    assert [size(bits) for bits in (2, 3, 4, 5, 8)] == [4096, 8192, 8192, 16384, 16384]


def test_what_it_cannot_run_is_refused() -> None:
    with pytest.raises(KernelError, match="multiple of 8"):
        pack(make_weight(4, 20, True, (8, 60)), "cpu", torch.float32, "native")
    with pytest.raises(KernelError, match="float32 and bfloat16"):
        pack(make_weight(4, 32, True, (8, 64)), "cpu", torch.float16, "native")


@pytest.mark.parametrize(
    ("bits", "group", "kernel"),
    [
        (4, 64, "torch-int4"),
        (3, 32, "torch-int4"),
        (8, None, "torch-int8"),
        (6, None, "torch-int8"),
    ],
)
def test_the_kernels_of_torch_agree_with_float64(bits: int, group: int | None, kernel: str) -> None:
    weight = make_weight(bits, group, True, (64, 256), scales=torch.bfloat16)
    packed: PackedWeight = pack(weight, "cpu", torch.bfloat16, kernel)
    for rows in ROWS:
        x = activations(rows, 256, torch.bfloat16)
        error = relative_error(quantized_matmul(x, packed), x.double() @ dense64(weight).T)
        assert error < TOLERANCE[torch.bfloat16]


def test_the_kernels_of_torch_refuse_scales_they_would_round() -> None:
    with pytest.raises(KernelError, match="bfloat16"):
        pack(make_weight(4, 64, True, (64, 256)), "cpu", torch.bfloat16, "torch-int4")
    with pytest.raises(KernelError, match="symmetric"):
        pack(make_weight(4, 64, False, (64, 256)), "cpu", torch.bfloat16, "torch-int4")


MANY = [u for u in ("amx", "pairs") if u in cpu.bfloat16_units()]


@pytest.mark.parametrize("unit", MANY)
@pytest.mark.parametrize("shape", [(33, 129), (16, 64), (49, 640)])
@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize("bits", [2, 3, 4, 6, 8])
def test_many_rows_are_multiplied_as_a_dequantized_model_would(
    bits: int, symmetric: bool, shape: tuple[int, int], unit: str
) -> None:
    for group in (32, None):
        weight = make_weight(bits, group, symmetric, shape)
        packed = pack(weight, "cpu", torch.bfloat16, "native")
        # A dequantized model rounds its weights to bfloat16, and so do the panels.
        dense = dense64(weight).to(torch.bfloat16).double()
        for rows in (1, 13, 25, 64, 257):
            x = torch.randn(rows, shape[1], generator=torch.Generator().manual_seed(rows))
            x = x.to(torch.bfloat16)
            result = cpu.NATIVE._multiply_bfloat16(x, packed, unit)
            expected = x.double() @ dense.T
            error = (result.double() - expected).norm() / expected.norm()
            assert error < 3e-3
            assert torch.equal(result, cpu.NATIVE._multiply_bfloat16(x, packed, unit))
            if rows < 6:
                continue
            x[3, 5] = float("nan")
            x[4, 5] = float("inf")
            broken = cpu.NATIVE._multiply_bfloat16(x, packed, unit)
            assert broken[3].isnan().all()
            assert not broken[4].isfinite().any()
            assert torch.equal(broken[5:], result[5:])


@pytest.mark.parametrize("unit", MANY)
def test_panels_by_torch_give_the_same(unit: str) -> None:
    weight = make_weight(4, 32, False, (49, 640))
    packed = pack(weight, "cpu", torch.bfloat16, "native")
    x = torch.randn(70, 640, generator=torch.Generator().manual_seed(0)).to(torch.bfloat16)
    panels = cpu.NATIVE._multiply_panels(x, packed)
    ours = cpu.NATIVE._multiply_bfloat16(x, packed, unit)
    torch.testing.assert_close(ours, panels, rtol=2e-2, atol=2e-2)


def test_the_path_names_what_multiplies_in_each_dtype() -> None:
    scheme = make_weight(4, 32, True, (16, 64)).scheme
    paths = {
        (dtype, rows): cpu.NATIVE.path(rows, scheme, (16, 64), dtype)
        for dtype in (torch.float32, torch.bfloat16)
        for rows in (1, 300)
    }
    assert paths[torch.float32, 1] == "codes"
    assert paths[torch.float32, 300] == "dequantize, then torch"
    units = cpu.bfloat16_units()
    assert ("AVX512-BF16" in paths[torch.bfloat16, 1]) == ("pairs" in units)
    named = {"amx": "AMX", "pairs": "AVX512-BF16"}[units[0]] if units else "torch"
    assert paths[torch.bfloat16, 300] == f"dequantize, then {named}"


@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize("bits", [2, 3, 4, 5, 8])
def test_codes_in_bfloat16_are_exact_to_the_result_s_rounding(bits: int, symmetric: bool) -> None:
    weight = make_weight(bits, 32, symmetric, (40, 224), seed=bits)
    packed = pack(weight, "cpu", torch.bfloat16, "native")
    for rows in (1, 2, 4, 7):
        x = activations(rows, 224, torch.bfloat16)
        x[:, 5] = 300.0  # an outlier, beside which the rest has to keep its digits
        exact = x.double() @ dense64(weight).T
        result = quantized_matmul(x, packed).double()
        # Half a unit of bfloat16's last place, and float32 sums.
        assert ((result - exact).abs() <= exact.abs() * 2**-8 + 1e-3).all()


@pytest.mark.parametrize("bits", [2, 4, 8])
def test_a_row_that_is_not_finite_leaves_the_others_their_bits(bits: int) -> None:
    packed = pack(make_weight(bits, 32, False, (40, 96)), "cpu", torch.bfloat16, "native")
    x = activations(5, 96, torch.bfloat16)
    clean = quantized_matmul(x, packed)
    x[2, 7] = float("inf")
    broken = quantized_matmul(x, packed)
    others = [0, 1, 3, 4]
    assert torch.equal(broken[others], clean[others])
    assert not broken[2].isfinite().any()
