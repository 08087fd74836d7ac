"""How a product is cut into programs on a GPU: tuned where the GPU was measured, else by a rule."""

from __future__ import annotations

import json
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import Any, Literal

__all__ = ["Gpu", "Launch", "Problem", "buckets", "launch_for", "rule", "slug", "tuned"]

MOST_TURNS = 8
MOST_UNROLLED = 2048
"""Turns, and weights a thread, of the decode kernel: its turns are unrolled."""
_SMALL = 2**25
"""Weights up to which the decode kernel is the faster of two for several rows (H200, 4 bits)."""
_BUCKETS = (1, 8, 16, 32, 64, 128, 256, 1024)
_TABLES = Path(__file__).parent / "tuned"


@dataclass(frozen=True, slots=True)
class Gpu:
    """What decides a launch.

    Args:
        name: of the GPU. multiprocessors: their number.
        shared_bytes: of shared memory that a program may take.
        direct: it launches a kernel before its predecessor has ended, and Triton here has the
            language of ``gluon_decode``.
        warpgroups: of four warps multiply together, for ``gluon_tiles`` (Hopper).
    """

    name: str
    multiprocessors: int
    shared_bytes: int
    direct: bool = False
    warpgroups: bool = False

    def runs(self, launch: Launch) -> bool:
        """Whether the kernel of a launch is one for this GPU."""
        return launch.kernel == "triton" or (
            self.direct if launch.kernel == "decode" else self.warpgroups
        )


@dataclass(frozen=True, slots=True)
class Problem:
    """What is multiplied.

    Args:
        bits: of a code.
        group: columns a scale, 0 for one scale a row.
        width: ``C`` of the layout.
        chunk: columns that the words of one row and chunk hold.
        rows: of activations; out, columns: of the weight.
        padded: columns as packed, a multiple of the chunk and of the group.
        halves: scales are held in the dtype of the activations, so weights may be scaled in it.
    """

    bits: int
    group: int
    width: int
    chunk: int
    rows: int
    out: int
    columns: int
    padded: int
    halves: bool


@dataclass(frozen=True, slots=True)
class Launch:
    """Constants of one launch of ``lowbit_matmul``; see there.

    Args:
        bn, bm: rows of the weight and of the activations a program multiplies.
        split: equal parts that K is cut into.
        step: columns of one turn of the loop.
        scaled: weights are scaled in half precision.
        warps: of a program. stages: of the software pipeline.
        ks: equal parts of K that the warps of one program share out.
        kernel: ``"triton"``, ``"decode"`` (``gluon_decode``: up to 16 rows, weights go from memory
            to registers a turn ahead; ``stages`` and ``scaled`` mean nothing there) or ``"tiles"``
            (``gluon_tiles``: a turn is a chunk; ``ks`` means nothing there).
        summed: of ``"decode"``: zeros are taken from sums of activations, not from each weight.
    """

    bn: int
    bm: int
    split: int
    step: int
    scaled: bool
    warps: int
    stages: int
    ks: int = 1
    kernel: Literal["triton", "decode", "tiles"] = "triton"
    summed: bool = True

    def turns(self, problem: Problem) -> int:
        """Of a program's loop over its part of K."""
        return problem.padded // (self.step * self.split * self.ks)

    def held(self, rows: int) -> int:
        """Rows of activations that the decode kernel holds: one, or as many as it multiplies."""
        return 1 if rows == 1 else self.bm

    def shared_bytes(self, problem: Problem) -> int:
        """Shared memory that the stages of the pipeline, or the sum over warps, take, about."""
        if self.kernel == "tiles":
            staged = self.stages * self.bm * 128
            return max(staged, self.bn * self.bm * (2 if self.split == 1 else 4)) + 4096
        if self.kernel == "decode":
            turns = 1 << (self.turns(problem) - 1).bit_length()
            activations = turns * self.ks * self.held(problem.rows) * self.step * 2
            return max(activations, 4 * self.ks * self.bn * self.bm) + 4096
        activations = self.step * self.ks * 2 * self.bm
        turn = self.step * self.ks * self.bn * problem.bits / 8 + activations
        scales = 8 * self.bn * self.ks * max(1, self.step // (problem.group or self.step))
        # Products of four warps run on while the next turn is loaded: its operand stays one more.
        late = activations if self.ks == 1 and self.warps % 4 == 0 else 0
        stages = int((self.stages - 1) * (turn + scales)) + late
        return max(stages, 4 * self.bn * self.bm * self.ks) + 4096

    def fits(self, problem: Problem) -> bool:
        """Whether the kernel can run the problem this way."""
        if self.step % problem.chunk or problem.padded % (self.step * self.split * self.ks):
            return False
        if self.scaled and not problem.halves:
            return False
        if self.kernel == "decode" and not self._fits_decode(problem):
            return False
        if self.kernel == "tiles":
            return self._fits_tiles(problem)
        whole = not problem.group or not (self.step % problem.group and problem.group % self.step)
        return whole and not (self.scaled and not problem.group)

    def _fits_decode(self, problem: Problem) -> bool:
        few = problem.rows <= self.bm and self.bm in (8, 16)
        across = self.warps // self.ks
        tiles = self.warps % self.ks == 0 and self.bn % (16 * max(1, across)) == 0
        if not (few and tiles and problem.width == 32):
            return False
        turns = self.turns(problem)
        unrolled = turns * self.step * self.bn // (32 * across)
        return turns <= MOST_TURNS and unrolled <= MOST_UNROLLED

    def _fits_tiles(self, problem: Problem) -> bool:
        shape = self.bn == 16 * self.warps and self.bm in (64, 128, 256) and self.warps in (4, 8)
        # Activations are copied sixteen bytes at a time.
        even = problem.width == 32 and problem.columns % 16 == 0 and problem.halves
        return shape and even and self.step == problem.chunk and self.stages >= 4


def slug(gpu: str) -> str:
    """Name of a GPU as the name of a table: ``"NVIDIA H200"`` gives ``"nvidia-h200"``."""
    return gpu.lower().replace(" ", "-")


def buckets(rows: int) -> int:
    """Rows rounded up to those that launches are tuned for."""
    return next((b for b in _BUCKETS if rows <= b), _BUCKETS[-1])


@lru_cache(maxsize=8)
def tuned(gpu: str) -> dict[tuple[int, int], list[tuple[int, int, Launch]]]:
    """Launches measured on this GPU, by ``(bits, bucket of rows)``: ``(out, columns, launch)``."""
    path = _TABLES / f"{slug(gpu)}.json"
    if not path.exists():
        return {}
    table: dict[tuple[int, int], list[tuple[int, int, Launch]]] = {}
    entries: list[dict[str, Any]] = json.loads(path.read_text(encoding="utf-8"))["launches"]
    for entry in entries:
        key = (entry["bits"], entry["rows"])
        row = (entry["out"], entry["columns"], Launch(**entry["launch"]))
        table.setdefault(key, []).append(row)
    return table


def _step(problem: Problem, wanted: int) -> int:
    """The largest step up to ``wanted`` that fits; at least the larger of chunk and group."""
    step = max(problem.chunk, wanted // problem.chunk * problem.chunk)
    while step > problem.chunk:
        if Launch(16, 16, 1, step, False, 4, 1).fits(problem):
            return step
        step -= problem.chunk
    fits = Launch(16, 16, 1, problem.chunk, False, 4, 1).fits(problem)
    return problem.chunk if fits else max(problem.chunk, problem.group)


def rule(problem: Problem, gpu: Gpu) -> Launch:
    """A launch for a GPU that was not measured: enough programs to fill it, no more."""
    few = problem.rows == 1 or (problem.rows <= 16 and problem.out * problem.padded <= _SMALL)
    if gpu.direct and few and (guess := _decode_guess(problem, gpu)):
        return guess
    if gpu.warpgroups and problem.rows > 16 and (guess := _tiles_guess(problem, gpu)):
        return guess
    launch = _first_guess(problem, gpu.multiprocessors)
    while launch.shared_bytes(problem) > gpu.shared_bytes:
        if launch.stages > 2:
            launch = replace(launch, stages=launch.stages - 1)
        elif launch.bm > 16:
            launch = replace(launch, bm=launch.bm // 2)
        else:
            break  # the launch itself will say what is too much
    return launch


def _first_guess(problem: Problem, multiprocessors: int) -> Launch:
    bm = next((b for b in (8, 16, 32, 64) if problem.rows <= b), 128)
    few = bm <= 16
    bn, warps = (64, 2) if few else (128, 4)
    tiles = -(-problem.out // bn) * -(-problem.rows // bm)
    step = _step(problem, 128)
    turns = problem.padded // step
    wanted = multiprocessors * (4 if few else 1) // max(1, tiles)
    splits = [s for s in range(1, 17) if turns % s == 0 and s <= max(1, min(wanted, turns // 2))]
    split = max(splits)
    scaled = bm >= 64 and problem.halves and problem.group > 0
    return Launch(bn, bm, split, step, scaled, warps, 3)


def _decode_guess(problem: Problem, gpu: Gpu) -> Launch | None:
    """About sixteen warps a multiprocessor; parts of K within a program before splits of it."""
    bm = 8 if problem.rows <= 8 else 16
    steps = {_step(problem, wanted) for wanted in (512, 256, 128)}
    found = [
        launch
        for bn, warps, ks in ((32, 8, 4), (32, 4, 2), (64, 4, 1))
        for step in steps
        for split in range(1, 33)
        if (launch := Launch(bn, bm, split, step, False, warps, 1, ks, "decode")).fits(problem)
        and launch.shared_bytes(problem) <= gpu.shared_bytes // 4
    ]
    wanted = 16 * gpu.multiprocessors

    def cost(launch: Launch) -> tuple[float, int, int]:
        warps = -(-problem.out // launch.bn) * launch.split * launch.warps
        return max(warps / wanted, wanted / warps), launch.split, -launch.step

    return min(found, key=cost, default=None)


def _tiles_guess(problem: Problem, gpu: Gpu) -> Launch | None:
    """Tiles of 128 rows, and as many splits of K as fill the multiprocessors once."""
    bm = next((b for b in (64, 128) if problem.rows <= b), 256)
    tiles = -(-problem.out // 128) * -(-problem.rows // bm)
    found = [
        launch
        for split in range(1, 9)
        if (launch := Launch(128, bm, split, problem.chunk, True, 8, 4, 1, "tiles")).fits(problem)
        and (split == 1 or tiles * split <= gpu.multiprocessors)
    ]
    return max(found, key=lambda launch: launch.split, default=None)


@lru_cache(maxsize=4096)
def launch_for(problem: Problem, gpu: Gpu) -> tuple[Launch, bool]:
    """The launch for a problem, and whether it was tuned on this GPU.

    A tuned launch of the same bits and bucket of rows (or the next larger bucket that was tuned)
    is taken from the nearest shape, by the ratios of its sizes, among those that fit.
    """
    tables = tuned(gpu.name)
    larger = [b for b in _BUCKETS if b >= buckets(problem.rows)]
    table = next((tables[problem.bits, b] for b in larger if (problem.bits, b) in tables), [])
    best: tuple[float, Launch] | None = None
    for out, columns, launch in table:
        fitting = replace(launch, step=_step(problem, launch.step))
        if fitting.scaled and not (problem.group and problem.halves):
            fitting = replace(fitting, scaled=False)
        if not gpu.runs(fitting):
            continue
        if not fitting.fits(problem) or fitting.shared_bytes(problem) > gpu.shared_bytes:
            continue
        ratios = (problem.out / out, problem.columns / columns)
        distance = sum(max(r, 1 / r) for r in ratios)
        if best is None or distance < best[0]:
            best = (distance, fitting)
    if best is None or best[0] > 8:
        return rule(problem, gpu), False
    return best[1], True
