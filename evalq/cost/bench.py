"""Speeds of whole models: prefill, first token and decoding, as ratios to a baseline in one run."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

from evalq.cost.measure import extra_memory, prompt_tokens, synchronize, weight_bytes
from evalq.errors import PlanError
from evalq.progress import NullProgress, Progress

if TYPE_CHECKING:
    import torch

    from evalq.models.base import LoadedModel

__all__ = ["CLOCKS", "Subject", "bench_engine", "ratios"]

CLOCKS: dict[str, Callable[[], float]] = {
    "wall": time.perf_counter,
    "cpu": time.process_time,
}
"""``cpu`` counts the seconds of this process on all its threads: for one thread on a busy machine
it is what ``wall`` would be on an idle one; it says nothing of a GPU."""


@dataclass(frozen=True, slots=True)
class Subject:
    """What is timed: a model in a loop (``evalq.models.lean.runner.LOOPS``, or ``auto``)."""

    label: str
    model: LoadedModel
    loop: str


@dataclass(slots=True)
class _Samples:
    prefill: list[float]
    decode: list[float]
    loop: str = ""
    why: str = ""
    peak: int = 0


def _once(
    subject: Subject, prompt: torch.Tensor, decode: int, clock: Callable[[], float]
) -> tuple[float, float, str, str]:
    """Seconds of a prefill and of the decoding after it; the loop that ran, and why."""
    import torch

    from evalq.models.lean.runner import make_runner

    device = subject.model.device
    with torch.inference_mode():
        runner = make_runner(
            subject.model.module, prompt.shape[0], prompt.shape[1] + decode, subject.loop
        )
        synchronize(device)
        began = clock()
        token = runner.prefill(prompt).argmax(-1)
        synchronize(device)
        filled = clock()
        for _ in range(decode):
            token = runner.step(token).argmax(-1)
        synchronize(device)
        return filled - began, clock() - filled, runner.loop, runner.why


def bench_engine(
    subjects: Sequence[Subject],
    batches: Sequence[int],
    prefill: int,
    decode: int,
    repeats: int,
    clock: str = "wall",
    progress: Progress | None = None,
) -> list[dict[str, Any]]:
    """Time every subject at every batch, all in turn within one repeat.

    Args:
        subjects: the first is the baseline of the ratios.
        batches: rows at once.
        prefill, decode: tokens read and generated, each row.
        repeats: of which medians are taken; one more goes before, untimed, and its peak memory
            is measured.
        clock: a key of ``CLOCKS``.
        progress: told of each timing.

    Returns:
        A row a subject and batch: ``{subject, batch, loop, why, execution, dtype,
        prefill_tokens_per_second, decode_tokens_per_second, first_token_seconds, memory_bytes,
        prefill_products, prefill_ratio, decode_ratio}``; ``prefill_products`` says what multiplied
        the prompt's rows.

    Raises:
        PlanError: no subject, or an unknown clock.
    """
    if not subjects or clock not in CLOCKS:
        raise PlanError(f"nothing to time by the clock {clock!r}", hint="Clocks: wall, cpu.")
    progress = progress or NullProgress()
    progress.start("bench engine", len(subjects) * len(batches) * (repeats + 1), "timings")
    rows: list[dict[str, Any]] = []
    for batch in batches:
        found = {s.label: _Samples([], []) for s in subjects}
        for repeat in range(repeats + 1):
            for subject in subjects:
                prompt = prompt_tokens(subject.model, batch, prefill)
                samples, model = found[subject.label], subject.model
                turn = partial(_once, subject, prompt, decode, CLOCKS[clock])
                if repeat:
                    first, rest, samples.loop, samples.why = turn()
                    samples.prefill.append(first)
                    samples.decode.append(rest)
                else:
                    samples.peak = weight_bytes(model.module) + extra_memory(model.device, turn)
                progress.advance()
        rows += [_row(s, found[s.label], batch, prefill, decode) for s in subjects]
    return ratios(rows)


def _products(model: LoadedModel, rows: int) -> str:
    """What multiplies so many rows of activations: paths of the packed layers, or ``dense``."""
    from evalq.kernels.dispatch import KERNELS
    from evalq.kernels.linear import QuantizedLinear

    packed = [m.packed for m in model.module.modules() if isinstance(m, QuantizedLinear)]
    paths = {KERNELS.get(p.kernel).path(rows, p.scheme, p.shape, p.dtype) for p in packed}
    return "; ".join(sorted(paths)) or "dense"


def _row(
    subject: Subject, samples: _Samples, batch: int, prefill: int, decode: int
) -> dict[str, Any]:
    first = statistics.median(samples.prefill)
    return {
        "subject": subject.label,
        "batch": batch,
        "loop": samples.loop,
        "why": samples.why,
        "execution": subject.model.execution,
        "dtype": str(subject.model.dtype).removeprefix("torch."),
        "prefill_tokens_per_second": batch * prefill / first,
        "decode_tokens_per_second": batch * decode / statistics.median(samples.decode),
        "first_token_seconds": first,
        "memory_bytes": samples.peak,
        "prefill_products": _products(subject.model, batch * prefill),
    }


def ratios(rows: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """The rows with their speeds over those of the first row of the same batch."""
    base: dict[int, dict[str, Any]] = {}
    out = []
    for row in rows:
        first = base.setdefault(row["batch"], row)
        speeds = {
            f"{phase}_ratio": row[f"{phase}_tokens_per_second"]
            / first[f"{phase}_tokens_per_second"]
            for phase in ("prefill", "decode")
        }
        out.append({**row, **speeds})
    return out
