"""What bounds the Triton kernels on an H200, from the machine code that they compile to.

    python -m benchmarks.kernels_sass --rows 8 --rows 256 --shape 4096x14336

Needs no GPU: Triton compiles for compute capability 9.0 and brings ptxas and nvdisasm. For the
launch that is stored for a width and shape it counts the instructions of the kernel's main loop by
kind, and from registers and shared memory how many programs a multiprocessor holds at once. Of that
follow lower bounds of the time, at 132 multiprocessors of four schedulers and the clock given: one
instruction a scheduler and cycle; integer logic and shifts at half that rate (CUDA's table of
throughputs, compute capability 9.0); bytes at the copy bandwidth; products at the dense peak of the
tensor cores. Bytes in flight have to cover bandwidth times latency. Code outside the main loop is
not counted.
"""

from __future__ import annotations

import argparse
import re
import subprocess
import tempfile
from collections import Counter
from pathlib import Path
from typing import Any

import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from evalq.kernels.triton_launch import Gpu, Launch, Problem, buckets, launch_for
from evalq.kernels.triton_matmul import lowbit_matmul
from evalq.kernels.triton_pack import SETS, choose_columns

H200 = Gpu("NVIDIA H200", 132, 232448)
CLOCK = 1.83e9
"""Cycles a second; an H200 boosts to 1.98 GHz and holds less under load."""
BANDWIDTH = 4.246e12
"""Bytes a second, copied in the run of benchmarks/RESULTS.md."""
TENSOR = 989e12
"""Dense bfloat16 operations a second, by NVIDIA's data sheet."""
KINDS = {
    "tensor": ("HMMA", "HGMMA", "WGMMA", "WARPGROUP"),
    "bits": ("LOP3", "SHF", "PRMT"),
    "half": ("HADD2", "HMUL2", "HFMA2"),
    "float": ("FADD", "FMUL", "FFMA"),
    "shared": ("LDS", "STS", "LDSM"),
    "copy": ("LDGSTS", "LDG", "LDGDEPBAR", "DEPBAR", "UTMALDG", "STG"),
}


def problem(bits: int, group: int, rows: int, columns: int, out: int) -> Problem:
    """A symmetric weight in bfloat16, packed as the kernel packs it."""
    width = choose_columns(bits, group, columns)
    chunk = SETS[bits] * width
    whole = max(chunk, group)
    padded = -(-columns // whole) * whole
    return Problem(bits, group, width, chunk, rows, out, columns, padded, True)


def compile_for(p: Problem, launch: Launch) -> Any:
    """The kernel of that launch, compiled for compute capability 9.0."""
    pointers = {"x_ptr": "*bf16", "w_ptr": "*i16", "s_ptr": "*bf16", "z_ptr": "*i16"}
    pointers |= {"out_ptr": "*bf16", "part_ptr": "*fp32", "count_ptr": "*i32"}
    constants = {
        "BITS": p.bits, "C": p.width, "GROUP": p.group, "ZERO": 0x4308, "EVEN_K": True,
        "SCALED": launch.scaled, "SPLIT": min(launch.split, 2), "BN": launch.bn, "BM": launch.bm,
        "KS": launch.ks, "STEP": launch.step, "STAGES": launch.stages, "PLAIN": 0, "PDL": True,
    }  # fmt: skip
    names = lowbit_matmul.arg_names
    signature = {n: "constexpr" if n in constants else pointers.get(n, "i32") for n in names}
    aligned = [["tt.divisibility", 16]]
    attributes = {(i,): aligned for i, n in enumerate(names) if n in pointers or n in ("N", "K")}
    source = ASTSource(
        fn=lowbit_matmul,
        signature=signature,
        constexprs={(names.index(n),): value for n, value in constants.items()},
        attrs=attributes,
    )
    options = {"num_warps": launch.warps, "launch_pdl": True}
    return triton.compile(source, target=GPUTarget("cuda", 90, 32), options=options)


def instructions(cubin: bytes) -> tuple[list[str], str]:
    """The kernel's machine instructions in order, addresses kept, and its resource usage."""
    tools = Path(triton.__file__).parent / "backends" / "nvidia" / "bin"
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        dump = [str(tools / "nvdisasm"), "-c", "-plr", file.name]
        text = subprocess.run(
            dump[:2] + dump[3:], capture_output=True, text=True, check=True
        ).stdout
        usage = [str(tools / "cuobjdump"), "-res-usage", file.name]
        used = subprocess.run(usage, capture_output=True, text=True, check=True).stdout
    return text.splitlines(), used


def main_loop(lines: list[str]) -> list[str]:
    """Opcodes between a label and the last branch back to it: the longest such loop."""
    labels: dict[str, int] = {}
    ops: list[str] = []
    best: list[str] = []
    for line in lines:
        label = re.match(r"\s*(\.L_x_\d+):", line)
        if label:
            labels[label[1]] = len(ops)
        found = re.match(
            r"\s*/\*[0-9a-f]{4,}\*/\s+(?:\{\s*)?(@!?U?P\w+\s+)?([A-Z][\w.]*)(.*)", line
        )
        if not found:
            continue
        ops.append(found[2])
        target = re.search(r"\.L_x_\d+", found[3])
        if found[2].startswith("BRA") and target and target[0] in labels:
            body = ops[labels[target[0]] :]
            if len(body) > len(best):
                best = body
    return best


def analyse(bits: int, rows: int, columns: int, out: int) -> dict[str, Any]:
    """Counts and bounds of one product; see the module."""
    p = problem(bits, 128, rows, columns, out)
    launch, tuned = launch_for(p, H200)
    compiled = compile_for(p, launch)
    lines, used = instructions(compiled.asm["cubin"])
    body = main_loop(lines)
    kinds: Counter[str] = Counter()
    for op in body:
        base = op.split(".")[0]
        kinds[next((k for k, names in KINDS.items() if base in names), "other")] += 1
    registers = int(re.search(r"REG:(\d+)", used)[1])  # type: ignore[index]
    shared = compiled.metadata.shared
    threads = 32 * launch.warps
    held = min(
        65536 // (-(-registers // 8) * 8 * threads), H200.shared_bytes // max(1, shared + 1024),
        2048 // threads, 32,
    )  # fmt: skip
    programs = -(-out // launch.bn) * -(-rows // launch.bm) * launch.split
    turns = p.padded // (launch.step * launch.split * launch.ks)
    weights_a_turn = launch.bn * launch.step * launch.ks
    issued = len(body) * launch.warps * turns * programs
    size = out * columns * bits / 8 + 2 * out * columns / 128
    traffic = size * -(-rows // launch.bm)
    at_once = min(held * 132, programs)
    inflight = at_once / 132 * (launch.stages - 1) * weights_a_turn * bits / 8
    return {
        "bits": bits, "rows": rows, "K": columns, "N": out, "launch": launch, "tuned": tuned,
        "registers": registers, "shared": shared, "programs a SM": held,
        "waves": programs / (held * 132),
        "loop": len(body), "kinds": dict(kinds),
        # Of one weight: instructions of a thread over its weights of one turn.
        "per 16 bytes": len(body) * threads / (weights_a_turn * bits / 8 / 16),
        "per weight": len(body) * threads / weights_a_turn,
        "logic us": 1e6 * 2 * kinds["bits"] / max(1, len(body)) * issued / (132 * 4 * CLOCK),
        "issue us": 1e6 * issued / (132 * 4 * CLOCK),
        "memory us": 1e6 * traffic / BANDWIDTH if rows <= 16 else 1e6 * size / BANDWIDTH,
        "tensor us": 1e6 * 2 * rows * out * columns / TENSOR,
        "KB in flight a SM": inflight / 1e3,
    }  # fmt: skip


def main() -> None:
    """Print a line a product."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--rows", type=int, action="append")
    parser.add_argument("--shape", action="append", help="KxN")
    parser.add_argument("--bits", type=int, action="append")
    options = parser.parse_args()
    for shape in options.shape or ["4096x14336"]:
        columns, out = map(int, shape.split("x"))
        for rows in options.rows or [1]:
            for bits in options.bits or [8, 6, 4, 3, 2]:
                found = analyse(bits, rows, columns, out)
                launch = found["launch"]
                print(
                    f"{shape} M={rows} (bucket {buckets(rows)}) W{bits}"
                    f"{'' if found['tuned'] else ' untuned'}: bn {launch.bn} bm {launch.bm} "
                    f"split {launch.split} step {launch.step} ks {launch.ks} warps {launch.warps} "
                    f"stages {launch.stages} scaled {launch.scaled}; "
                    f"{found['registers']} registers, {found['shared']} B shared, "
                    f"{found['programs a SM']} programs a SM, {found['waves']:.2f} waves; "
                    f"loop {found['loop']} {found['kinds']}; "
                    f"{found['per weight']:.3f} instructions of a thread a weight, "
                    f"{found['per 16 bytes']:.1f} per 16 bytes; issue {found['issue us']:.1f} us, "
                    f"logic {found['logic us']:.1f} us, "
                    f"memory {found['memory us']:.1f} us, "
                    f"tensor cores {found['tensor us']:.1f} us, "
                    f"{found['KB in flight a SM']:.1f} KB in flight a SM"
                )


if __name__ == "__main__":
    main()
