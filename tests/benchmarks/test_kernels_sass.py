"""benchmarks/kernels_sass: ways through machine code, what fits a multiprocessor, launches kept."""

from __future__ import annotations

import pytest

pytest.importorskip("triton")

from benchmarks.kernels_sass import (
    H200,
    called,
    held_at_once,
    main_loop,
    parse,
    problem,
    products,
    shortest,
)
from evalq.kernels.triton_launch import Launch

CODE = """
        /*0000*/                   LDC R1, c[0x0][0x28] ;
        /*0010*/               @P0 BRA `(.L_x_1) ;
.L_x_0:
        /*0020*/                   HMMA.16816.F32.BF16 R4, R8, R2, R4 ;
        /*0030*/                   LOP3.LUT R3, R3, 0xf, R2, 0xc0, !PT ;
        /*0040*/              @!P1 BRA `(.L_x_0) ;
.L_x_1:
        /*0050*/                   BRA.DIV UR4, `(.L_x_3) ;
        /*0060*/                   HMMA.16816.F32.BF16 R4, R8, R2, R4 ;
.L_x_2:
        /*0070*/                   IADD3 R3, R3, 0x1, RZ ;
        /*0080*/                   LDG.E R2, desc[UR4][R2.64] ;
        /*0090*/                   FADD R5, R5, R2 ;
        /*00a0*/                   ISETP.NE.AND P2, PT, R3, RZ, PT ;
        /*00b0*/               @P2 BRA `(.L_x_2) ;
        /*00c0*/               @P3 EXIT ;
        /*00d0*/                   STG.E desc[UR4][R2.64], R5 ;
        /*00e0*/                   EXIT ;
.L_x_3:
        /*00f0*/                   WARPSYNC.COLLECTIVE R2, `(.L_x_3) ;
        /*0100*/                   BRA `(.L_x_2) ;
.L_x_4:
        /*0110*/                   BRA `(.L_x_4);
        /*0120*/                   NOP;
""".splitlines()


def test_the_main_loop_is_the_longest_that_multiplies() -> None:
    loop = main_loop(parse(CODE))
    assert loop == ["HMMA.16816.F32.BF16", "LOP3.LUT", "BRA"]


def test_code_without_a_loop_that_multiplies_is_an_error() -> None:
    plain = [line for line in CODE if "HMMA" not in line]
    with pytest.raises(RuntimeError, match="no loop multiplies"):
        main_loop(parse(plain))


def test_the_shortest_way_skips_what_not_every_program_runs() -> None:
    # Past the first loop, through the second once, out at the first end.
    assert shortest(parse(CODE)) == [
        "LDC", "BRA", "BRA.DIV", "HMMA.16816.F32.BF16",
        "IADD3", "LDG.E", "FADD", "ISETP.NE.AND", "BRA", "EXIT",
    ]  # fmt: skip


def test_a_jump_without_a_condition_is_always_taken() -> None:
    code = parse(CODE)
    assert [code.ops[at] for at in sorted(code.always)] == ["BRA", "BRA"]
    assert min(code.always) > code.ops.index("STG.E")


def test_products_are_counted_by_the_shape_of_an_instruction() -> None:
    # 4 warps, 16 rows each over 64 columns, with 8 activations: 4 HMMA a warp.
    launch = Launch(64, 8, 1, 64, False, 4, 1, 1, "decode")
    assert products(["HMMA.16816.F32.BF16"] * 4 + ["FADD"], 64 * 64, launch) == 1.0
    # 8 warps, 16 rows each over 32 columns, with 256 activations: 2 HGMMA a warp.
    launch = Launch(128, 256, 1, 32, True, 8, 4, 1, "tiles")
    assert products(["HGMMA.64x256x16.F32.BF16"] * 3, 128 * 32, launch) == 1.5


@pytest.mark.parametrize(
    ("registers", "shared", "warps", "held"),
    # By hand from the limits of compute capability 9.0 in CUDA's guide: 65,536 registers given
    # to warps by 256, 228 KiB of shared memory less 1 KiB a program, 64 warps, 32 programs.
    [(255, 131072, 8, 1), (64, 8192, 4, 8), (168, 2048, 4, 3), (32, 1024, 1, 32), (32, 0, 16, 4),
     (40, 115000, 2, 2), (144, 0, 8, 1)],
)  # fmt: skip
def test_programs_of_a_multiprocessor(registers: int, shared: int, warps: int, held: int) -> None:
    assert held_at_once(registers, shared, warps) == held


@pytest.mark.parametrize(
    ("launch", "rows", "grid"),
    [
        (Launch(64, 16, 2, 128, False, 4, 3), 40, (16, 3, 2)),
        (Launch(64, 8, 2, 128, False, 4, 1, 1, "decode", False), 3, (16, 2)),
        (Launch(128, 128, 2, 128, True, 8, 4, 1, "tiles"), 200, (8, 2, 2)),
    ],
)
def test_a_launch_is_kept_as_the_library_makes_it(
    launch: Launch, rows: int, grid: tuple[int, ...]
) -> None:
    call = called(problem(4, 128, rows, 512, 1000), launch)
    assert call.grid == grid
    assert call.args[7:10] == (rows, 1000, 512)
    assert (call.named["BN"], call.named["BM"]) == (launch.bn, launch.bm)
    assert call.named["num_warps"] == launch.warps
    assert call.named["ZERO"] == 0x4308  # 128 + 8 in bfloat16
    assert call.named.get("SUMMED", launch.summed) == launch.summed


def test_the_gpu_has_every_kernel() -> None:
    assert all(H200.runs(Launch(64, 8, 1, 128, False, 4, 1, 1, k)) for k in ("decode", "tiles"))
