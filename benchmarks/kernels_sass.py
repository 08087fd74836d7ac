"""What bounds the GPU kernels on an H200, from the machine code that they compile to.

    python -m benchmarks.kernels_sass --rows 8 --rows 256 --shape 4096x14336

Needs no GPU: Triton compiles for compute capability 9.0 and brings ptxas and nvdisasm. The launch
that is stored for a width and shape is made on tensors without memory, and what the kernel of that
launch (``"triton"``, ``"decode"`` or ``"tiles"``) is called with is compiled; so constants and
grid are the library's own. Counted by kind are the instructions of the main loop, the longest that
multiplies. The decode kernel has none, its turns are unrolled: there the whole kernel is counted
("whole kernel" in the output), along the shortest way through it, which every program runs: without
the sum over splits, say, left to the last program of a tile. Products counted are held against
those that the launch has to make.

From registers and shared memory follows how many programs a multiprocessor holds at once, and from
the counts lower bounds of the time, at 132 multiprocessors of four schedulers and the clock given:
one instruction a scheduler and cycle; integer logic and shifts at half that rate (CUDA's table of
throughputs, compute capability 9.0); bytes at the copy bandwidth; products at the dense peak of the
tensor cores. Bytes in flight have to cover bandwidth times latency.
"""

from __future__ import annotations

import argparse
import re
import subprocess
import tempfile
from collections import Counter, deque
from contextlib import ExitStack
from dataclasses import dataclass, field
from importlib import import_module
from pathlib import Path
from typing import Any
from unittest import mock

import torch
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource
from triton.experimental.gluon._runtime import GluonASTSource

from evalq.kernels.base import PackedWeight
from evalq.kernels.triton_gpu import TRITON, interpreted
from evalq.kernels.triton_launch import Gpu, Launch, Problem, buckets, launch_for
from evalq.kernels.triton_pack import SETS, WORDS, choose_columns
from evalq.schema import PerGroup, WeightScheme

H200 = Gpu("NVIDIA H200", 132, 232448, direct=True, warpgroups=True)
GROUP = 128
CLOCK = 1.83e9
"""Cycles a second; an H200 boosts to 1.98 GHz and holds less under load."""
BANDWIDTH = 4.231e12
"""Bytes a second, copied in the run of benchmarks/RESULTS.md."""
TENSOR = 989e12
"""Dense bfloat16 operations a second, by NVIDIA's data sheet."""
FUNCTIONS = {
    "triton": ("triton_matmul", "lowbit_matmul"),
    "decode": ("gluon_decode", "decode_matmul"),
    "tiles": ("gluon_tiles", "tiles_matmul"),
}
"""Module and name of a launch's kernel."""
POINTERS = {
    torch.bfloat16: "*bf16", torch.float32: "*fp32", torch.int16: "*i16", torch.int32: "*i32"
}  # fmt: skip
KINDS = {
    "tensor": ("HMMA", "HGMMA", "WGMMA", "WARPGROUP"),
    "bits": ("LOP3", "SHF", "PRMT"),
    "half": ("HADD2", "HMUL2", "HFMA2"),
    "float": ("FADD", "FMUL", "FFMA"),
    "shared": ("LDS", "STS", "LDSM"),
    "copy": ("LDGSTS", "LDG", "LDGDEPBAR", "DEPBAR", "UTMALDG", "STG"),
}


@dataclass
class Call:
    """Stands for a kernel: keeps what it is called with.

    Args:
        grid: programs by axis. args, named: of the call, options of the compiler among ``named``.
    """

    grid: tuple[int, ...] = ()
    args: tuple[Any, ...] = ()
    named: dict[str, Any] = field(default_factory=dict)

    def __getitem__(self, grid: tuple[int, ...]) -> Call:
        self.grid = grid
        return self

    def __call__(self, *args: Any, **named: Any) -> None:
        """Keep the arguments."""
        if self.args:
            raise RuntimeError("the launch calls its kernel twice: count each of them")
        self.args, self.named = args, named


def problem(bits: int, group: int, rows: int, columns: int, out: int) -> Problem:
    """A symmetric weight in bfloat16, packed as the kernel packs it."""
    width = choose_columns(bits, group, columns)
    chunk = SETS[bits] * width
    whole = max(chunk, group)
    padded = -(-columns // whole) * whole
    return Problem(bits, group, width, chunk, rows, out, columns, padded, True)


def called(p: Problem, launch: Launch) -> Call:
    """What the library calls the kernel of that launch with, on tensors without memory.

    Raises:
        RuntimeError: the launch does not call that kernel.
    """

    def empty(*shape: int, dtype: torch.dtype = torch.bfloat16) -> torch.Tensor:
        return torch.empty(shape, dtype=dtype, device="meta")

    tensors = (
        empty(p.padded // p.chunk, WORDS[p.bits], p.out, p.width, dtype=torch.int16),
        empty(p.padded // p.group, p.out),
        empty(1, 1, dtype=torch.int16),
        empty(-(-p.out // 16) * 16, dtype=torch.int32),
    )
    scheme = WeightScheme(p.bits, PerGroup(p.group))
    packed = PackedWeight("triton", tensors, scheme, (p.out, p.columns), torch.bfloat16)
    if TRITON.problem(p.rows, packed) != p:
        raise RuntimeError(f"the library sees another problem: {TRITON.problem(p.rows, packed)}")
    calls = {name: Call() for name in FUNCTIONS}
    with ExitStack() as stack:
        for name, (module, function) in FUNCTIONS.items():
            home = import_module(f"evalq.kernels.{module}")
            stack.enter_context(mock.patch.object(home, function, calls[name]))
        TRITON.run(empty(p.rows, p.columns), packed, launch)
    if [name for name, call in calls.items() if call.args] != [launch.kernel]:
        raise RuntimeError(f"{launch} does not call its kernel alone")
    return calls[launch.kernel]


def compile_for(launch: Launch, call: Call) -> Any:
    """The kernel of that launch, compiled for compute capability 9.0.

    Raises:
        ValueError: an argument of the kernel that the call does not give, or gives in vain.
    """
    module, name = FUNCTIONS[launch.kernel]
    function = getattr(import_module(f"evalq.kernels.{module}"), name)
    given = dict(zip(function.arg_names, call.args, strict=False)) | call.named
    options = {k: given.pop(k) for k in ("num_warps", "launch_pdl")}
    # Without a GPU the call is that of an older one.
    given["PDL"] = options["launch_pdl"] = True
    if set(given) != set(function.arg_names):
        raise ValueError(f"{name}: {sorted(set(given) ^ set(function.arg_names))} do not agree")
    signature, constants, attributes = {}, {}, {}
    for at, parameter in enumerate(function.params):
        value = given[parameter.name]
        plain = parameter.do_not_specialize
        aligned = [["tt.divisibility", 16]]
        if isinstance(value, torch.Tensor):
            signature[parameter.name] = POINTERS[value.dtype]
            attributes[(at,)] = aligned
        elif parameter.is_constexpr or (value == 1 and not plain):
            signature[parameter.name] = "constexpr"
            constants[(at,)] = value
        else:
            signature[parameter.name] = "i32"
            if value % 16 == 0 and not plain:
                attributes[(at,)] = aligned
    kind = ASTSource if launch.kernel == "triton" else GluonASTSource
    source = kind(fn=function, signature=signature, constexprs=constants, attrs=attributes)
    return triton.compile(source, target=GPUTarget("cuda", 90, 32), options=options)


@dataclass
class Code:
    """Machine code.

    Args:
        ops: opcodes in order. targets: where an instruction may jump to, by its position.
        always: positions of the jumps that are always taken.
    """

    ops: list[str]
    targets: dict[int, int]
    always: set[int]


def instructions(cubin: bytes) -> tuple[list[str], str]:
    """The kernel's disassembly by lines, and its resource usage."""
    tools = Path(triton.__file__).parent / "backends" / "nvidia" / "bin"
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        dump = [str(tools / "nvdisasm"), "-c", file.name]
        text = subprocess.run(dump, capture_output=True, text=True, check=True).stdout
        usage = [str(tools / "cuobjdump"), "-res-usage", file.name]
        used = subprocess.run(usage, capture_output=True, text=True, check=True).stdout
    return text.splitlines(), used


def parse(lines: list[str]) -> Code:
    """Opcodes and jumps of a disassembly."""
    labels: dict[str, int] = {}
    jumps: dict[int, str] = {}
    code = Code([], {}, set())
    for line in lines:
        label = re.match(r"\s*(\.L_x_\d+):", line)
        if label:
            labels[label[1]] = len(code.ops)
        found = re.match(
            r"\s*/\*[0-9a-f]{4,}\*/\s+(?:\{\s*)?(@!?U?P\w+\s+)?([A-Z][\w.]*)(.*)", line
        )
        if not found:
            continue
        guard, op, operands = found.groups()
        target = re.search(r"\.L_x_\d+", operands)
        if op.startswith("BRA") and target:
            jumps[len(code.ops)] = target[0]
            # The condition stands before the opcode, in it (of diverged threads), or behind it.
            if not guard and op in ("BRA", "BRA.U") and not re.match(r"\s*!?U?P", operands):
                code.always.add(len(code.ops))
        code.ops.append(op)
    code.targets = {at: labels[name] for at, name in jumps.items()}
    return code


def main_loop(code: Code) -> list[str]:
    """Opcodes between a label and the last branch back to it, of the longest loop that multiplies.

    Raises:
        RuntimeError: there is none.
    """
    loops = [code.ops[to : at + 1] for at, to in code.targets.items() if to <= at]
    multiply = [ops for ops in loops if any(kind_of(op) == "tensor" for op in ops)]
    if not multiply:
        raise RuntimeError("no loop multiplies")
    return max(multiply, key=len)


def shortest(code: Code) -> list[str]:
    """Opcodes of the shortest way from the first instruction to an end: at least these are run."""
    came: dict[int, int] = {0: -1}
    line = deque([0])
    while line:
        at = line.popleft()
        if code.ops[at] == "EXIT":
            path = []
            while at >= 0:
                path.append(code.ops[at])
                at = came[at]
            return path[::-1]
        ways = [code.targets[at]] if at in code.targets else []
        if at not in code.always:
            ways.append(at + 1)
        for to in ways:
            if to not in came and to < len(code.ops):
                came[to] = at
                line.append(to)
    raise RuntimeError("no way leads to an end")


def kind_of(op: str) -> str:
    """The kind of an opcode, ``"other"`` where it is none of ``KINDS``."""
    base = op.split(".")[0]
    return next((k for k, names in KINDS.items() if base in names), "other")


def products(ops: list[str], weights: int, launch: Launch) -> float:
    """Products among opcodes, over those that so many weights of a program take.

    A warp's HMMA multiplies 16 rows by 8 over 16 columns, HGMMA 16 rows of it by its N.
    """
    made = 0
    for op in ops:
        shape = re.match(r"(HMMA)\.16(\d)?16|HGMMA\.64x(\d+)x16", op)
        if shape:
            made += 16 * 16 * (8 if shape[1] else int(shape[3]))
    return made * launch.warps / (weights * launch.bm)


def held_at_once(registers: int, shared: int, warps: int) -> int:
    """Programs of a multiprocessor at once (CUDA's occupancy, compute capability 9.0).

    Registers are given out to warps by 256, from 16,384 a scheduler; a program's shared memory is
    1 KiB more than it asks for.
    """
    by_registers = 4 * (16384 // (-(-registers // 8) * 8 * 32)) // warps
    return min(by_registers, (H200.shared_bytes + 1024) // (shared + 1024), 64 // warps, 32)


def analyse(bits: int, rows: int, columns: int, out: int) -> dict[str, Any]:
    """Counts and bounds of one product; see the module.

    Raises:
        RuntimeError: a count that does not make the products of the launch.
    """
    p = problem(bits, GROUP, rows, columns, out)
    launch, tuned = launch_for(p, H200)
    call = called(p, launch)
    compiled = compile_for(launch, call)
    lines, used = instructions(compiled.asm["cubin"])
    code = parse(lines)
    whole = launch.kernel == "decode"
    body, turns = (shortest(code), 1) if whole else (main_loop(code), launch.turns(p))
    turn = launch.bn * launch.step * launch.ks
    weights = turn * launch.turns(p) if whole else turn
    made = products(body, weights, launch)
    if made != 1:
        raise RuntimeError(f"{launch}: counted {made} of its products")
    kinds = Counter(kind_of(op) for op in body)
    registers = int(re.search(r"REG:(\d+)", used)[1])  # type: ignore[index]
    shared = compiled.metadata.shared
    held = held_at_once(registers, shared, launch.warps)
    programs = 1
    for size in call.grid:
        programs *= size
    issued = len(body) * launch.warps * turns * programs
    size = out * columns * bits / 8 + 2 * out * columns / GROUP
    # Gluon's kernels ask for the weights of one turn ahead.
    ahead = launch.stages - 1 if launch.kernel == "triton" else 1
    at_once = min(held * H200.multiprocessors, programs)
    inflight = at_once / H200.multiprocessors * ahead * turn * bits / 8
    slots = H200.multiprocessors * 4 * CLOCK
    return {
        "bits": bits, "rows": rows, "K": columns, "N": out, "launch": launch, "tuned": tuned,
        "counted": "whole kernel" if whole else "loop",
        "registers": registers, "shared": shared, "programs a SM": held,
        "waves": programs / (held * H200.multiprocessors),
        "instructions": len(body), "kinds": dict(kinds),
        # Of one weight: instructions of a thread over its weights.
        "per 16 bytes": len(body) * 32 * launch.warps / (weights * bits / 8 / 16),
        "per weight": len(body) * 32 * launch.warps / weights,
        "logic us": 1e6 * 2 * kinds["bits"] / len(body) * issued / slots,
        "issue us": 1e6 * issued / slots,
        "memory us": 1e6 * size * (-(-rows // launch.bm) if rows <= 16 else 1) / BANDWIDTH,
        "tensor us": 1e6 * 2 * rows * out * columns / TENSOR,
        "KB in flight a SM": inflight / 1e3,
    }  # fmt: skip


def main() -> None:
    """Print a line a product."""
    if interpreted():
        raise SystemExit("unset TRITON_INTERPRET: launches for the interpreter are others")
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
                    f"{'' if found['tuned'] else ' untuned'}: {launch.kernel}, bn {launch.bn} "
                    f"bm {launch.bm} split {launch.split} step {launch.step} ks {launch.ks} "
                    f"warps {launch.warps} stages {launch.stages} scaled {launch.scaled} "
                    f"summed {launch.summed}; "
                    f"{found['registers']} registers, {found['shared']} B shared, "
                    f"{found['programs a SM']} programs a SM, {found['waves']:.2f} waves; "
                    f"{found['counted']} {found['instructions']} {found['kinds']}; "
                    f"{found['per weight']:.3f} instructions of a thread a weight, "
                    f"{found['per 16 bytes']:.1f} per 16 bytes; issue {found['issue us']:.1f} us, "
                    f"logic {found['logic us']:.1f} us, "
                    f"memory {found['memory us']:.1f} us, "
                    f"tensor cores {found['tensor us']:.1f} us, "
                    f"{found['KB in flight a SM']:.1f} KB of weights in flight a SM",
                    flush=True,
                )


if __name__ == "__main__":
    main()
