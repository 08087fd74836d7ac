"""How a product is cut into programs on a GPU: tuned where the GPU was measured, else by a rule."""

from __future__ import annotations

import json
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import Any

__all__ = ["Gpu", "Launch", "Problem", "buckets", "launch_for", "rule", "slug", "tuned"]

_BUCKETS = (8, 16, 32, 64, 128, 256, 1024)
_TABLES = Path(__file__).parent / "tuned"


@dataclass(frozen=True, slots=True)
class Gpu:
    """What decides a launch: name, multiprocessors, bytes of shared memory for a program."""

    name: str
    multiprocessors: int
    shared_bytes: int


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
    """

    bn: int
    bm: int
    split: int
    step: int
    scaled: bool
    warps: int
    stages: int
    ks: int = 1

    def shared_bytes(self, problem: Problem) -> int:
        """Shared memory that the stages of the pipeline, or the sum over warps, take, about."""
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
        whole = not problem.group or not (self.step % problem.group and problem.group % self.step)
        return whole and not (self.scaled and not problem.group)


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
        if not fitting.fits(problem) or fitting.shared_bytes(problem) > gpu.shared_bytes:
            continue
        ratios = (problem.out / out, problem.columns / columns)
        distance = sum(max(r, 1 / r) for r in ratios)
        if best is None or distance < best[0]:
            best = (distance, fitting)
    if best is None or best[0] > 8:
        return rule(problem, gpu), False
    return best[1], True
