"""The Gluon kernels: their source on the host over a grid, their PTX bit by bit, machine code.

On an H200, ``python -m benchmarks.kernels_gpu check verify`` runs the same grid for real.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from functools import lru_cache
from pathlib import Path
from types import ModuleType

import pytest
import torch
from torch import Tensor

pytest.importorskip("triton")
pytest.importorskip("triton.experimental.gluon")

from evalq.kernels import triton_bits
from evalq.kernels.base import PackedWeight
from evalq.kernels.triton_gpu import TRITON, _has_gluon, _shared_zero, _way, _zero_bits
from evalq.kernels.triton_launch import Gpu, Launch, Problem, launch_for, rule, tuned
from evalq.kernels.triton_pack import SETS, pack_words
from tests.kernels.gluon_host import launch, load_kernel, ptx
from tests.kernels.weights import TOLERANCE, dense64, make_weight, relative_error

HOPPER = Gpu("NVIDIA H200", 132, 232448, True, True)
WHOLE_ROW = 2**30


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    """Operations here are tiny: threads would wait for each other longer than they compute."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@lru_cache(maxsize=2)
def kernel(name: str) -> ModuleType:
    return load_kernel(name)


def product(x: Tensor, packed: PackedWeight, chosen: Launch) -> Tensor:
    """What the kernel of a launch leaves, its output and partial sums NaN before."""
    (rows, columns), out = x.shape, packed.shape[0]
    problem = TRITON.problem(rows, packed)
    assert chosen.fits(problem)
    words, scales, zeros, counters = packed.tensors
    result = torch.full((rows, out), float("nan"), dtype=x.dtype)
    partial = torch.full((chosen.split * rows * out,), float("nan"))
    tensors = [x, words, scales, zeros, result, partial, counters]
    turns = chosen.turns(problem)
    symmetric = packed.scheme.symmetric
    same = {
        "BITS": problem.bits, "ZERO": _shared_zero(packed) if symmetric else -1, "PDL": True,
        "SPLIT": min(chosen.split, 2), "BN": chosen.bn, "BM": chosen.bm, "WARPS": chosen.warps,
    }  # fmt: skip
    tiles = (-(-out // chosen.bn), -(-rows // chosen.bm))
    if chosen.kernel == "decode":
        launch(
            kernel("gluon_decode").decode_matmul, (tiles[0], chosen.split), tensors,
            [rows, out, columns, chosen.split], **same, GROUP=problem.group,
            MR=chosen.held(rows), KS=chosen.ks, STEP=chosen.step, TURNS=turns,
            DEEP=1 << (turns - 1).bit_length(), SUMMED=chosen.summed or not symmetric,
        )  # fmt: skip
    else:
        launch(
            kernel("gluon_tiles").tiles_matmul, (*tiles, chosen.split), tensors,
            [rows, out, columns, chosen.split, turns], **same, GROUP=problem.group or WHOLE_ROW,
            EVEN_K=problem.padded == columns, STAGES=chosen.stages,
        )  # fmt: skip
    assert not counters.any()
    return result


def packed_weight(
    bits: int, group: int | None, symmetric: bool, shape: tuple[int, int], dtype: torch.dtype
) -> tuple[PackedWeight, Tensor]:
    weight = make_weight(bits, group, symmetric, shape, seed=bits, scales=dtype)
    return TRITON.pack_as(weight, torch.device("cpu"), dtype, 32), dense64(weight)


def activations(rows: int, columns: int, dtype: torch.dtype) -> Tensor:
    return torch.randn(rows, columns, generator=torch.Generator().manual_seed(rows)).to(dtype)


def launches(problem: Problem) -> list[Launch]:
    """A few ways to cut a problem, of each kernel that takes it."""
    chunk, rows = problem.chunk, problem.rows
    decode = [
        Launch(bn, 8 if rows <= 8 else 16, split, step, False, warps, 1, ks, "decode", summed)
        for bn, warps, ks in ((64, 4, 1), (32, 1, 1), (16, 4, 4), (32, 8, 4))
        for split, step in ((1, chunk), (2, chunk), (1, 2 * chunk))
        for summed in (True, False)
    ]
    tiles = [
        Launch(bn, bm, split, chunk, True, warps, 4, 1, "tiles")
        for bn, bm, warps in ((128, 64, 8), (64, 64, 4), (128, 256, 8))
        for split in (1, 2)
    ]
    return [x for x in (*decode, *tiles) if x.fits(problem)]


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize("group", [32, 64, 128, 256, None])
@pytest.mark.parametrize("bits", sorted(SETS))
def test_both_kernels_agree_with_float64_over_the_grid(
    bits: int, group: int | None, symmetric: bool, dtype: torch.dtype
) -> None:
    # 70 rows are no multiple of a tile, 1,008 columns are none of a chunk.
    packed, dense = packed_weight(bits, group, symmetric, (70, 1008), dtype)
    for rows in (1, 3, 16, 17, 65):
        x = activations(rows, 1008, dtype)
        ways = launches(TRITON.problem(rows, packed))
        assert ways
        # All ways over the whole grid would take minutes: each case takes two of them in turn.
        at = bits + rows + (group or 0) // 32
        for chosen in {ways[at % len(ways)], ways[(at + len(ways) // 2) % len(ways)]}:
            result = product(x, packed, chosen)
            error = relative_error(result, x.double() @ dense.T)
            assert error < TOLERANCE[dtype], chosen
            assert torch.equal(result, product(x, packed, chosen))


@pytest.mark.parametrize("rows", [2, 20])
@pytest.mark.parametrize("bits", [2, 3, 4, 8])
def test_every_way_to_cut_it_gives_the_product(bits: int, rows: int) -> None:
    packed, dense = packed_weight(bits, 64, bits != 3, (70, 2048), torch.bfloat16)
    x = activations(rows, 2048, torch.bfloat16)
    for chosen in launches(TRITON.problem(rows, packed)):
        assert relative_error(product(x, packed, chosen), x.double() @ dense.T) < 1e-2, chosen


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
@pytest.mark.parametrize("rows", [2, 20])
def test_what_is_not_finite_reaches_its_own_row_and_no_other(rows: int, value: float) -> None:
    packed, dense = packed_weight(4, 64, True, (70, 1024), torch.bfloat16)
    x = activations(rows, 1024, torch.bfloat16)
    broken = x.clone()
    broken[1, 131] = value
    wanted = (broken.double() @ dense.T)[1]
    for chosen in launches(TRITON.problem(rows, packed)):
        before, after = product(x, packed, chosen), product(broken, packed, chosen)
        assert torch.equal(before[0], after[0])
        assert torch.equal(before[2:], after[2:])
        if chosen.kernel == "decode" and chosen.summed:
            assert after[1].isnan().all()  # differences of sums; see gluon_decode
        else:
            torch.testing.assert_close(after[1].double(), wanted, rtol=1e-2, atol=0, equal_nan=True)


def test_zeros_and_outliers() -> None:
    packed, dense = packed_weight(4, 128, True, (70, 1024), torch.bfloat16)
    x = activations(3, 1024, torch.bfloat16)
    for chosen in launches(TRITON.problem(3, packed)):
        assert not product(x * 0, packed, chosen).any()
        outlier = x.clone()
        outlier[:, 17] = 3e4
        assert relative_error(product(outlier, packed, chosen), outlier.double() @ dense.T) < 1e-2
        # What an outlier's own weight does not add is still there in the rows whose weight is zero.
        at = dense[:, 17] == 0
        result = product(outlier, packed, chosen)[:, at]
        assert relative_error(result, outlier.double() @ dense[at].T) < 1e-2, chosen


# -- PTX -------------------------------------------------------------------------------------------


def _shifted(word: Tensor, shift: int) -> Tensor:
    return ptx(triton_bits.shift_asm(shift), [word]) if shift else word


@pytest.mark.parametrize("way", ["minus zero", "scaled", "raw", "raw minus zero"])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("bits", sorted(SETS))
def test_the_bit_tricks_give_each_code(bits: int, dtype: torch.dtype, way: str) -> None:
    """Every code next to every other, against every zero: code less zero, exactly."""
    bf16 = dtype == torch.bfloat16
    codes = torch.randint(0, 1 << bits, (64, 32 * SETS[bits]), dtype=torch.uint8)
    stored = codes ^ 0x80 if bits == 8 and bf16 else codes
    words = pack_words(stored, bits, 32)[0].to(torch.int64) & 0xFFFF  # [words, rows, 32]
    pairs = words[..., ::2] | words[..., 1::2] << 16
    for zero in range(1 << bits) if bits < 8 else (0, 1, 127, 128, 200, 255):
        level = int(_zero_bits(torch.tensor([zero], dtype=torch.uint8), bits, dtype)) & 0xFFFF
        for j in range(SETS[bits]):
            place, parts = triton_bits.placed(bits, j, bf16)
            args = [_shifted(pairs[word], shift) for word, shift, _ in parts]
            unit = triton_bits.unit(0, bf16)
            moved = (
                level if not place else ((level - unit) << place) + triton_bits.unit(place, bf16)
            )
            expected = codes[:, 32 * j : 32 * j + 32].to(torch.float32) - zero
            zeros = torch.tensor(moved * 0x10001)
            two = int(torch.tensor(2.0, dtype=dtype).view(torch.int16)) * 0x10001
            if way.startswith("raw"):
                if bits == 8 and bf16:
                    if zero != 128:  # the zero of a symmetric scheme, and 0 as stored
                        continue
                    if way == "raw":
                        expected = expected + zero - 128
                elif way == "raw":
                    expected = expected + zero + triton_bits.excess_of(bits, j, bf16)
                text = triton_bits.raw_asm(bits, j, bf16, level if way == "raw minus zero" else -1)
                got = ptx(text, args)
            else:
                scaled = way == "scaled"
                expected = expected * 2 if scaled else expected
                scale = torch.tensor(two)
                got = ptx(triton_bits.less_zero_asm(bits, j, bf16, scaled), [zeros, scale, *args])
            both = torch.stack([got & 0xFFFF, got >> 16], -1).flatten(-2).to(torch.int16)
            assert torch.equal(both.view(dtype).to(torch.float32), expected), (zero, j)


# -- launches and machine code ---------------------------------------------------------------------


def test_the_rule_for_an_unmeasured_hopper_fits_what_it_is_asked_for() -> None:
    gpu = Gpu("some", 132, 232448, True, True)
    kernels = set()
    for bits in SETS:
        for group in (32, 256, None):
            for shape in ((70, 1008), (4096, 4096), (14336, 4096), (576, 576)):
                for rows in (1, 9, 64, 500):
                    width = 32
                    chunk = SETS[bits] * width
                    padded = -(-shape[1] // max(chunk, group or 0)) * max(chunk, group or 0)
                    problem = Problem(bits, group or 0, width, chunk, rows, *shape, padded, True)
                    chosen = rule(problem, gpu)
                    assert chosen.fits(problem)
                    assert chosen.shared_bytes(problem) <= gpu.shared_bytes
                    kernels.add((rows, chosen.kernel))
    assert {(1, "decode"), (64, "tiles"), (500, "tiles")} <= kernels


def test_stored_launches_fit_and_are_taken_by_the_gpu_that_runs_them() -> None:
    found = tuned("NVIDIA H200")
    assert {launch.kernel for rows in found.values() for _, _, launch in rows} == {
        "triton", "decode", "tiles",
    }  # fmt: skip
    for (bits, rows), entries in found.items():
        for out, columns, stored in entries:
            chunk = SETS[bits] * 32
            problem = Problem(bits, 128, 32, chunk, rows, out, columns, columns, True)
            assert stored.fits(problem)
            assert stored.shared_bytes(problem) <= HOPPER.shared_bytes
            assert launch_for(problem, HOPPER) == (stored, True)
            # The same table on a Triton without Gluon: another launch, of the Triton kernel.
            without = launch_for(problem, Gpu("NVIDIA H200", 132, 232448))[0]
            assert without.kernel == "triton"
            assert without.fits(problem)


def test_the_path_says_which_kernel_multiplies() -> None:
    def words(rows: int, gpu: Gpu) -> str:
        problem = Problem(4, 128, 32, 128, rows, 14336, 4096, 4096, True)
        return _way(launch_for(problem, gpu)[0], problem)

    assert words(1, HOPPER) == "decode in registers"
    assert words(16, HOPPER) == "decode"
    assert words(256, HOPPER) == "tiles of warpgroups"
    assert words(1024, HOPPER) == "dequantize, then torch"
    assert words(1, Gpu("other", 100, 100_000)) == "decode"


COMPILE = """
import json, sys
from benchmarks.kernels_sass import called, compile_for, instructions, problem
from evalq.kernels.triton_launch import Launch
found = []
for bits, rows, launch in json.loads(sys.argv[1]):
    chosen = Launch(**launch)
    compiled = compile_for(chosen, called(problem(bits, 128, rows, 4096, 4096), chosen))
    text = "\\n".join(instructions(compiled.asm["cubin"])[0])
    kinds = ("HMMA.16816", "HGMMA.64x256x16", "STL", "LDG.E.128", "STS")
    found.append([text.count(op) for op in kinds])
print(json.dumps(found))
"""


def test_they_compile_for_hopper_into_the_instructions_they_are_written_for() -> None:
    pytest.importorskip("benchmarks.kernels_sass")
    decode = {"bn": 64, "bm": 8, "split": 4, "step": 512, "scaled": False, "warps": 4, "stages": 1,
              "ks": 1, "kernel": "decode"}  # fmt: skip
    tiles = {"bn": 128, "bm": 256, "split": 1, "step": 128, "scaled": True, "warps": 8, "stages": 4,
             "ks": 1, "kernel": "tiles"}  # fmt: skip
    jobs = [(4, 1, decode), (4, 256, tiles)]
    run = subprocess.run(
        [sys.executable, "-c", COMPILE, json.dumps(jobs)],
        capture_output=True, text=True, check=True, cwd=Path(__file__).parents[2],
    )  # fmt: skip
    first, second = json.loads(run.stdout.splitlines()[-1])
    # 64 rows, 1,024 columns and four warps: 64 products of 16 x 8 x 16 a warp, and the words of
    # a thread in 16 loads of 16 bytes: nothing is spilled, and weights never go through stores.
    products, _, spills, loads, stores = first
    assert (products, spills) == (64, 0)
    assert loads >= 16
    assert stores <= 8
    # A chunk of 128 columns in the loop: eight products of a warpgroup.
    assert second[1] == 8
    assert second[2] == 0


@pytest.mark.parametrize(
    ("version", "there"),
    [("3.5.1", False), ("3.6.0", True), ("3.9.0+git1", True), ("3.10.0", False), ("4.0", False)],
)
def test_gluon_is_used_with_the_versions_of_triton_that_it_was_tried_with(
    version: str, there: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    import triton

    monkeypatch.setattr(triton, "__version__", version)
    _has_gluon.cache_clear()
    try:
        assert _has_gluon() is there
    finally:
        _has_gluon.cache_clear()
