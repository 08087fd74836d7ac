"""The Triton kernel over a grid: in Triton's interpreter, or on the GPU where there is one."""

from __future__ import annotations

import os

import pytest
import torch
from torch import Tensor

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
if DEVICE == "cpu":
    os.environ["TRITON_INTERPRET"] = "1"

pytest.importorskip("triton")

from evalq.errors import KernelError  # noqa: E402
from evalq.kernels.op import pack, quantized_matmul  # noqa: E402
from evalq.kernels.reference import quantize_activations  # noqa: E402
from evalq.kernels.triton_gpu import TRITON, interpreted  # noqa: E402
from evalq.kernels.triton_launch import Gpu, Launch, buckets, rule  # noqa: E402
from evalq.kernels.triton_pack import SETS, choose_columns, pack_words, unpack_words  # noqa: E402
from tests.kernels.weights import TOLERANCE, dense64, make_weight, relative_error  # noqa: E402

pytestmark = pytest.mark.skipif(
    DEVICE == "cpu" and not interpreted(), reason="triton was imported without its interpreter"
)
FULL = DEVICE == "cuda"
DTYPES = (torch.bfloat16, torch.float16)


def activations(rows: int, columns: int, dtype: torch.dtype, seed: int = 1) -> Tensor:
    rng = torch.Generator().manual_seed(seed)
    return torch.randn(rows, columns, generator=rng).to(DEVICE, dtype)


def expected(x: Tensor, dense: Tensor) -> Tensor:
    return (x.double().cpu() @ dense.T).to(DEVICE)


@pytest.mark.parametrize("bits", sorted(SETS))
@pytest.mark.parametrize("width", [16, 32])
def test_words_hold_every_code(bits: int, width: int) -> None:
    rng = torch.Generator().manual_seed(bits)
    shape = (5, 2 * SETS[bits] * width)
    codes = torch.randint(0, 1 << bits, shape, generator=rng, dtype=torch.uint8)
    words = pack_words(codes, bits, width)
    assert words.numel() * 16 == codes.numel() * bits
    assert torch.equal(unpack_words(words, bits), codes)


def test_the_first_word_of_four_bits_by_hand() -> None:
    codes = torch.zeros(1, 64, dtype=torch.uint8)
    codes[0, [0, 16, 32, 48]] = torch.tensor([1, 2, 3, 15], dtype=torch.uint8)
    assert pack_words(codes, 4, 16)[0, 0, 0, 0].item() & 0xFFFF == 0xF321


def test_columns_of_the_layout_split_no_group_and_pad_little() -> None:
    assert choose_columns(4, 32, 4096) == 32
    assert choose_columns(4, 16, 4096) == 16
    assert choose_columns(4, 64, 576) == 16
    assert choose_columns(3, 0, 576) == 16


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize("group", [32, 64, 128, 256, None] if FULL else [32, 128, None])
@pytest.mark.parametrize("bits", sorted(SETS))
def test_it_agrees_with_float64_over_the_grid(
    bits: int, group: int | None, symmetric: bool, dtype: torch.dtype
) -> None:
    shape = (203, 1075) if FULL else (37, 267)
    weight = make_weight(bits, group, symmetric, shape, seed=bits, scales=dtype)
    packed = pack(weight, DEVICE, dtype, "triton")
    dense = dense64(weight)
    for rows in (1, 2, 3, 16, 17, 64, 257) if FULL else (3,):
        x = activations(rows, shape[1], dtype, rows)
        result = quantized_matmul(x, packed)
        assert relative_error(result, expected(x, dense)) < TOLERANCE[dtype]
        assert torch.equal(result, quantized_matmul(x, packed))


ROWS = (1, 2, 3, 16, 17, 64, 257)


@pytest.mark.slow
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize("group", [32, 64, 128, 256, None])
@pytest.mark.parametrize("bits", sorted(SETS))
def test_every_number_of_rows_of_every_scheme(
    bits: int, group: int | None, symmetric: bool, dtype: torch.dtype
) -> None:
    # Neither 37 nor 267 is a multiple of any tile.
    weight = make_weight(bits, group, symmetric, (37, 267), seed=bits + 10, scales=dtype)
    packed = pack(weight, DEVICE, dtype, "triton")
    dense = dense64(weight)
    for rows in ROWS:
        x = activations(rows, 267, dtype, rows)
        if rows > 1:
            x[0] = 0
        result = quantized_matmul(x, packed)
        assert relative_error(result, expected(x, dense)) < TOLERANCE[dtype]
        assert torch.equal(result, quantized_matmul(x, packed))
        outlier = x.clone()
        outlier[-1, 17] = 3e3
        got = quantized_matmul(outlier, packed)
        # One product is then all of a sum, and no errors average out: the interpreter cuts
        # bfloat16 numbers off, twice the error of hardware, which rounds them.
        cut = 2 if dtype == torch.bfloat16 and not FULL else 1
        assert relative_error(got, expected(outlier, dense)) < cut * TOLERANCE[dtype]
        assert torch.equal(got[:-1], result[:-1])
        if rows == 1:
            continue
        assert not result[0].any()
        for value in (float("nan"), float("inf"), float("-inf")):
            broken = x.clone()
            broken[1, 131] = value
            got = quantized_matmul(broken, packed)
            wanted = expected(broken, dense)[1]
            torch.testing.assert_close(got[1].double(), wanted, rtol=1e-2, atol=0, equal_nan=True)
            assert torch.equal(got[0], result[0])
            assert torch.equal(got[2:], result[2:])


@pytest.mark.parametrize("rows", [1, 16, 17, 64, 257])
def test_it_takes_any_number_of_rows(rows: int) -> None:
    weight = make_weight(4, 64, False, (70, 192), scales=torch.bfloat16)
    x = activations(rows, 192, torch.bfloat16)
    result = quantized_matmul(x, pack(weight, DEVICE, torch.bfloat16, "triton"))
    assert relative_error(result, expected(x, dense64(weight))) < 1e-2


@pytest.mark.parametrize("group", [32, None])
@pytest.mark.parametrize("bits", sorted(SETS))
def test_the_dense_copy_is_the_dequantized_weight(bits: int, group: int | None) -> None:
    weight = make_weight(bits, group, bits == 4, (37, 267), scales=torch.float16)
    packed = pack(weight, DEVICE, torch.float16, "triton")
    assert torch.equal(TRITON.dense(packed).cpu(), weight.dequantize(torch.float16))


@pytest.mark.parametrize(("split", "parts"), [(1, 1), (2, 1), (1, 2), (2, 2)])
@pytest.mark.parametrize("scaled", [False, True])
@pytest.mark.parametrize("bits", [3, 8])
def test_every_way_to_cut_it_gives_the_product(
    bits: int, scaled: bool, split: int, parts: int
) -> None:
    weight = make_weight(bits, 64, False, (16, 2048), scales=torch.bfloat16)
    packed = pack(weight, DEVICE, torch.bfloat16, "triton")
    x = activations(2, 2048, torch.bfloat16)
    launch = Launch(16, 16, split, 512 if bits == 3 else 128, scaled, parts, 2, parts)
    first = TRITON.run(x, packed, launch)
    assert relative_error(first, expected(x, dense64(weight))) < 1e-2
    # The counters of the splits are back at zero, so a second run gives the same bits.
    assert torch.equal(first, TRITON.run(x, packed, launch))
    assert not packed.tensors[3].any()


def test_scales_that_the_activations_cannot_hold_are_kept_in_float32() -> None:
    weight = make_weight(4, 32, True, (32, 128), scales=torch.float32)
    packed = pack(weight, DEVICE, torch.float16, "triton")
    assert packed.tensors[1].dtype == torch.float32
    x = activations(2, 128, torch.float16)
    assert relative_error(quantized_matmul(x, packed), expected(x, dense64(weight))) < 5e-4


@pytest.mark.parametrize("bits", sorted(SETS))
@pytest.mark.parametrize("rows", [1, 20])
@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
def test_nan_and_infinity_reach_their_own_row_and_no_other(
    value: float, rows: int, bits: int
) -> None:
    weight = make_weight(bits, 64, bits == 3, (40, 200), scales=torch.bfloat16)
    x = activations(rows + 1, 200, torch.bfloat16)
    x[0, 131] = value
    result = quantized_matmul(x, pack(weight, DEVICE, torch.bfloat16, "triton"))
    wanted = expected(x, dense64(weight))
    torch.testing.assert_close(result[0].double(), wanted[0], rtol=1e-2, atol=0, equal_nan=True)
    assert torch.isfinite(result[1:]).all()


def test_zero_and_outlier_input() -> None:
    weight = make_weight(4, 128, True, (32, 384), scales=torch.bfloat16)
    packed = pack(weight, DEVICE, torch.bfloat16, "triton")
    assert not quantized_matmul(activations(2, 384, torch.bfloat16) * 0, packed).any()
    x = activations(2, 384, torch.bfloat16)
    x[:, 17] = 3e4
    assert relative_error(quantized_matmul(x, packed), expected(x, dense64(weight))) < 1e-2


def test_what_it_cannot_run_is_refused() -> None:
    with pytest.raises(KernelError, match="power of two"):
        pack(make_weight(4, 48, True, (16, 96)), DEVICE, torch.bfloat16, "triton")
    with pytest.raises(KernelError, match="no layout for 5 bits"):
        pack(make_weight(5, 32, True, (16, 96)), DEVICE, torch.bfloat16, "triton")
    with pytest.raises(KernelError, match="bfloat16 and float16"):
        pack(make_weight(4, 32, True, (16, 96)), DEVICE, torch.float32, "triton")
    packed = pack(make_weight(4, 32, True, (16, 96)), DEVICE, torch.bfloat16, "triton")
    with pytest.raises(KernelError, match="does not fit"):
        TRITON.run(activations(1, 96, torch.bfloat16), packed, Launch(16, 16, 1, 48, False, 4, 2))


def test_the_rule_for_unmeasured_gpus_fits_what_it_is_asked_for() -> None:
    gpu = Gpu("some", 132, 100_000)
    for bits in SETS:
        for group in (32, 256, None):
            weight = make_weight(bits, group, True, (64, 600), scales=torch.bfloat16)
            packed = pack(weight, DEVICE, torch.bfloat16, "triton")
            for rows in (1, 9, 64, 500):
                problem = TRITON.problem(rows, packed)
                launch = rule(problem, gpu)
                assert launch.fits(problem)
                assert launch.shared_bytes(problem) <= gpu.shared_bytes
    assert [buckets(r) for r in (1, 2, 16, 17, 256, 257)] == [1, 8, 16, 32, 256, 1024]


# The interpreter cuts bfloat16 numbers off where hardware rounds them.
@pytest.mark.parametrize("dtype", DTYPES if FULL else [torch.float16])
@pytest.mark.parametrize("rows", [1, 20])
def test_w8a8_multiplies_the_rounded_activations_exactly(rows: int, dtype: torch.dtype) -> None:
    weight = make_weight(8, None, True, (40, 200))
    x = activations(rows, 200, dtype)
    packed = pack(weight, DEVICE, dtype, "triton-int8", activation_bits=8)
    result = quantized_matmul(x, packed)
    rounded = quantize_activations(x, 8)
    assert relative_error(result, expected(rounded, dense64(weight))) < TOLERANCE[dtype]
    assert torch.equal(result, quantized_matmul(x, packed))
    x[0, 3] = float("nan")
    bad = quantized_matmul(x, packed)
    assert bad[0].isnan().all()
    assert torch.equal(bad[1:], result[1:])
