"""What a variant takes, measured and never assumed.

Models run by the leanest loop that can (``evalq.models.lean.runner``), the parent by the same one,
so that a ratio is that of the weights. Speeds of all variants and of the parent are taken in turn
within one repeat, so that a machine which speeds up or slows down does so for all of them. Where
they do not all fit into memory side by side, they are timed in groups, and the parent is timed
again in each group.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from evalq.progress import NullProgress, Progress
from evalq.schema import CostRecord

if TYPE_CHECKING:
    import torch

    from evalq.models.base import LoadedModel
    from evalq.plan import CostPlan

__all__ = [
    "Candidate",
    "Costs",
    "Timing",
    "extra_memory",
    "measure_costs",
    "peak_memory",
    "prompt_tokens",
    "synchronize",
    "time_model",
    "weight_bytes",
]


@dataclass(frozen=True, slots=True)
class Candidate:
    """A variant to be timed.

    Args:
        variant: label.
        load: gives the model, loaded from disk.
        memory_bytes: what it takes in memory, for grouping.
        bytes_on_disk, bits_per_weight, linear_bits_per_weight: from the artifact's files.
    """

    variant: str
    load: Callable[[], LoadedModel]
    memory_bytes: int
    bytes_on_disk: int
    bits_per_weight: float
    linear_bits_per_weight: float


@dataclass(frozen=True, slots=True)
class Timing:
    """Seconds of one prefill of ``batch * prefill_tokens`` and of the decoding after it.

    ``loop`` is a key of ``evalq.models.lean.runner.LOOPS``, ``why`` says why that one ran.
    """

    prefill_seconds: float
    decode_seconds: float
    loop: str
    why: str


@dataclass(frozen=True, slots=True)
class Costs:
    """Records of all variants, and by label which loop ran each (``{"loop", "why"}``)."""

    records: list[CostRecord]
    loops: dict[str, dict[str, str]]


def synchronize(device: torch.device) -> None:
    """Wait until a GPU has done what it was given."""
    import torch

    if device.type == "cuda":
        torch.cuda.synchronize(device)


def prompt_tokens(model: LoadedModel, batch: int, tokens: int) -> torch.Tensor:
    """The same random tokens each time: int64 ``[batch, tokens]`` on the model's device."""
    import torch

    vocabulary = int(model.module.config.get_text_config().vocab_size)
    generator = torch.Generator().manual_seed(0)
    return torch.randint(vocabulary, (batch, tokens), generator=generator).to(model.device)


def _forward(model: LoadedModel, prompt: torch.Tensor, steps: int) -> Timing:
    """A prefill, then greedy decoding over a KV cache, both timed on the host's clock.

    The cache of the whole length, and a CUDA graph where there is one, are made before the clock
    starts: a server makes them once.
    """
    import torch

    from evalq.models.lean.runner import make_runner

    with torch.inference_mode():
        runner = make_runner(model.module, prompt.shape[0], prompt.shape[1] + steps)
        synchronize(model.device)
        began = time.perf_counter()
        token = runner.prefill(prompt).argmax(-1)
        synchronize(model.device)
        filled = time.perf_counter()
        for _ in range(steps):
            token = runner.step(token).argmax(-1)
        synchronize(model.device)
        return Timing(filled - began, time.perf_counter() - filled, runner.loop, runner.why)


def time_model(model: LoadedModel, plan: CostPlan) -> Timing:
    """One timed prefill and decode at the plan's batch and lengths."""
    return _forward(
        model, prompt_tokens(model, plan.batch, plan.prefill_tokens), plan.decode_tokens
    )


def weight_bytes(module: Any) -> int:
    """Bytes of all weights, packed ones in the layout of their kernel; shared ones once."""
    from evalq.kernels.linear import QuantizedLinear

    packed = [m.packed.tensors for m in module.modules() if isinstance(m, QuantizedLinear)]
    tensors = [*module.parameters(), *module.buffers(), *(t for each in packed for t in each)]
    seen: dict[int, int] = {}
    for tensor in tensors:
        seen[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
    return sum(seen.values())


def extra_memory(device: torch.device, run: Callable[[], object]) -> int:
    """Highest memory in bytes that a call takes beyond what is held before it.

    On CUDA what the allocator reports; on a CPU the highest sum of live allocations that torch's
    profiler sees (compiled code's own scratch is not among them).
    """
    import torch

    if device.type == "cuda":
        torch.cuda.synchronize(device)
        torch.cuda.reset_peak_memory_stats(device)
        held = int(torch.cuda.memory_allocated(device))
        run()
        torch.cuda.synchronize(device)
        return int(torch.cuda.max_memory_allocated(device)) - held
    from torch.profiler import ProfilerActivity, profile

    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        run()
    live = highest = 0
    events = profiler.profiler.kineto_results.events()
    for event in sorted((e for e in events if e.name() == "[memory]"), key=lambda e: e.start_ns()):
        live += event.nbytes()
        highest = max(highest, live)
    return highest


def peak_memory(model: LoadedModel, plan: CostPlan) -> int:
    """Highest memory in bytes of a prefill and one decoded token, weights included.

    The weights are counted, and the pass measured beside them: other models that are held at the
    same time are no part of it.
    """
    prompt = prompt_tokens(model, plan.batch, plan.prefill_tokens)
    return weight_bytes(model.module) + extra_memory(
        model.device, lambda: _forward(model, prompt, 1)
    )


def _groups(
    parent: Candidate, others: Sequence[Candidate], budget: int
) -> Iterator[list[Candidate]]:
    group, used = [parent], parent.memory_bytes
    for candidate in others:
        if len(group) > 1 and used + candidate.memory_bytes > budget:
            yield group
            group, used = [parent], parent.memory_bytes
        group.append(candidate)
        used += candidate.memory_bytes
    yield group


def measure_costs(
    parent: Candidate,
    others: Sequence[Candidate],
    plan: CostPlan,
    budget_bytes: int,
    progress: Progress | None = None,
) -> Costs:
    """Costs of the parent and of all variants, ``plan.repeats`` records of each and group.

    Args:
        parent: timed in every group.
        others: the variants.
        plan: batch, lengths and repeats.
        budget_bytes: how much memory the models of one group may take together.
        progress: told of each timed model.
    """
    progress = progress or NullProgress()
    groups = list(_groups(parent, others, budget_bytes))
    total = sum(len(g) for g in groups) * plan.repeats
    progress.start("cost", total, "timings")
    records: list[CostRecord] = []
    loops: dict[str, dict[str, str]] = {}
    for number, group in enumerate(groups):
        models = [c.load() for c in group]
        peaks = []
        for model in models:
            _forward(model, prompt_tokens(model, plan.batch, plan.prefill_tokens), 2)  # warm-up
            peaks.append(peak_memory(model, plan))
        for repeat in range(plan.repeats):
            for candidate, model, peak in zip(group, models, peaks, strict=True):
                timing = time_model(model, plan)
                index = number * plan.repeats + repeat
                records.append(_record(candidate, model, peak, index, timing, plan))
                loops[candidate.variant] = {"loop": timing.loop, "why": timing.why}
                progress.advance()
        del models
    return Costs(sorted(records, key=lambda r: r.repeat), loops)


def _record(
    candidate: Candidate,
    model: LoadedModel,
    peak: int,
    repeat: int,
    timing: Timing,
    plan: CostPlan,
) -> CostRecord:
    return CostRecord(
        variant=candidate.variant,
        repeat=repeat,
        execution=model.execution,
        device=str(model.device),
        dtype=str(model.dtype).removeprefix("torch."),
        bytes_on_disk=candidate.bytes_on_disk,
        bits_per_weight=candidate.bits_per_weight,
        linear_bits_per_weight=candidate.linear_bits_per_weight,
        peak_memory_bytes=peak,
        prefill_tokens_per_second=plan.batch * plan.prefill_tokens / timing.prefill_seconds,
        decode_tokens_per_second=plan.batch * plan.decode_tokens / timing.decode_seconds,
        batch=plan.batch,
        prefill_tokens=plan.prefill_tokens,
        decode_tokens=plan.decode_tokens,
    )
