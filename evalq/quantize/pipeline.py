"""The way of a model through a method: one decoder layer after another, in order."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import replace

import torch
from torch import Tensor, nn

from evalq.errors import NonFiniteError, QuantizationError
from evalq.kernels.packing import QuantizedWeight
from evalq.quantize.awq import awq_weight, output_error
from evalq.quantize.capture import LayerCall, Replay, Stream, advance, advance_parent, observe
from evalq.quantize.folds import find_folds
from evalq.quantize.gptq import GptqSettings, GptqStats, gptq_weight
from evalq.quantize.job import InputStatistics, Job, LayerReport
from evalq.quantize.learned import RoundingSettings, learn_rounding
from evalq.quantize.linear import (
    SMALLEST_OUTPUT,
    check_finite,
    get_weight,
    linears,
    set_weight,
    split_experts,
    weight_shape,
)
from evalq.quantize.rtn import rtn_weight
from evalq.quantize.scaling import fold_scales, note_unfolded
from evalq.quantize.smooth import KEPT_TOKENS, round_inputs
from evalq.quantize.trace import Block, trace_layer
from evalq.schema import WeightScheme

PROBE_TOKENS = 16

__all__ = ["PROBE_TOKENS", "finish_block", "quantize_decoder_layer"]


def quantize_decoder_layer(
    job: Job,
    original: nn.Module,
    name: str,
    index: int,
    stream: Stream | None,
    probe: LayerCall | None,
    device: torch.device,
) -> None:
    """Quantize one decoder layer; ``stream`` leaves it as the quantized layer's output.

    Args:
        job: takes the results.
        original: the layer; it is not changed.
        name: its full name.
        index: its place among the layers.
        stream: its inputs, or ``None`` for a method without calibration.
        probe: how it is called for a small batch (first window's first tokens).
        device: where it is run.

    Raises:
        NonFiniteError: a NaN or infinity in a weight or an activation, by name.
        QuantizationError: a layer that no token reached.
    """
    layer = copy.deepcopy(original).to(device, torch.float32).eval().requires_grad_(False)
    for parameter_name, parameter in layer.named_parameters():
        check_finite(f"{name}.{parameter_name}", parameter.data)
    replaced = split_experts(layer, lambda part: job.skips(f"{name}.{part}"))
    job.experts.extend(f"{name}.{r}" for r in replaced)
    before = {n: p.data.clone() for n, p in layer.named_parameters()} if job.method.folds else {}
    modules = dict(linears(layer))
    wanted = {n for n in modules if not job.skips(f"{name}.{n}")}
    wanted -= _too_small(job, name, modules)
    if stream is None or probe is None:
        for part in modules:
            if part in wanted:
                finish_block(job, name, {part: modules[part]}, None, {})
        return
    trace = trace_layer(layer, stream.hidden[0], stream.calls[0][index], list(modules))
    seen: dict[str, InputStatistics] = {}
    strengths: dict[str, float] = {}
    if job.method.folds:
        blocks = tuple(b for b in trace.blocks if wanted.intersection(b.names))
        seen = _statistics(job, layer, name, blocks, stream, index, Replay())
        small = stream.hidden[0][:1, :PROBE_TOKENS]
        folds = find_folds(layer, trace, small, probe, job.head_dim, job.seed)
        note_unfolded(job, name, blocks, folds)
        fold_scales(job, layer, name, folds, wanted, seen, strengths)
    first, replay, finished = True, Replay(), set(modules) - wanted
    for stage in trace.stages:
        blocks = tuple(b for b in stage if wanted.intersection(b.names))
        # Later blocks read what quantized ones gave: their statistics are taken afresh. The first
        # block's inputs are those already seen.
        if blocks and job.method.compensates and not (first and seen):
            seen.update(_statistics(job, layer, name, blocks, stream, index, replay))
        for block in blocks:
            first = False
            parts = {n: modules[n] for n in block.names if n in wanted}
            finish_block(job, name, parts, seen[block.names[0]], strengths)
            finished.update(parts)
            if job.activation_bits is not None:
                for module in parts.values():
                    round_inputs(module, job.activation_bits)
        replay.settle_finished(layer, finished)
    _keep_changed(job, layer, name, before, wanted)
    if job.method.learns_rounding:
        replay.release(layer)
        names = sorted(n for n in wanted if _may_learn(job, f"{name}.{n}", seen[n]))
        _learn_rounding(job, layer, original, name, names, stream, index, seen)
    advance(layer, name, stream, index, replay)


def _learn_rounding(
    job: Job,
    layer: nn.Module,
    original: nn.Module,
    prefix: str,
    names: list[str],
    stream: Stream,
    index: int,
    seen: Mapping[str, InputStatistics],
) -> None:
    """Train what the stages of a decoder layer left, all together, and report anew."""
    device = stream.hidden[0].device
    parent = copy.deepcopy(original).to(device, torch.float32).eval().requires_grad_(False)
    targets = advance_parent(parent, prefix, stream, index)
    split_experts(parent)
    plain = {name: get_weight(parent.get_submodule(name)) for name in names}
    quantized = {name: job.layers[f"{prefix}.{name}"].to(device) for name in names}
    settings = RoundingSettings(int(job.options["rounding_steps"]), job.seed)
    found = learn_rounding(layer, quantized, plain, stream, index, targets, settings)
    errors = {}
    for name, weight in found.layers.items():
        job.layers[f"{prefix}.{name}"] = weight.to("cpu")
        errors[f"{prefix}.{name}"] = _errors(plain[name], weight.dequantize(), seen.get(name))
    for place, report in enumerate(job.reports):
        if report.name in errors:
            weight_error, outputs = errors[report.name]
            job.reports[place] = replace(report, weight_error=weight_error, output_error=outputs)
    job.layer_errors[prefix] = (found.before, found.after)


def _errors(
    weight: Tensor, values: Tensor, statistics: InputStatistics | None
) -> tuple[float, float | None]:
    """Relative error of a weight, and of its outputs where some were seen."""
    difference = values - weight
    outputs = None
    if statistics is not None and statistics.tokens:
        signal = max(output_error(weight, statistics.hessian), 1e-30)
        outputs = (max(output_error(difference, statistics.hessian), 0.0) / signal) ** 0.5
    return float(difference.norm() / weight.norm().clamp_min(1e-30)), outputs


def _too_small(job: Job, name: str, modules: Mapping[str, nn.Module]) -> set[str]:
    """Layers with fewer outputs than a kernel's tile: gates that choose, and next to no bytes."""
    small = {n for n, m in modules.items() if weight_shape(m)[0] < SMALLEST_OUTPUT}
    for part in sorted(small):
        job.warn(name, f"{part} has {weight_shape(modules[part])[0]} outputs and stays as it is")
    return small


def _statistics(
    job: Job,
    layer: nn.Module,
    name: str,
    blocks: tuple[Block, ...],
    stream: Stream,
    index: int,
    replay: Replay,
) -> dict[str, InputStatistics]:
    """Statistics of the inputs of ``blocks``, for each layer in them by name."""
    stride = -(-stream.tokens // KEPT_TOKENS) if job.method.smooths else 0
    found: dict[str, InputStatistics] = {}
    watched: dict[str, nn.Module] = {}
    for block in blocks:
        lead = block.names[0]
        module = layer.get_submodule(lead)
        weight = get_weight(module)
        found[lead] = InputStatistics.empty(weight.shape[1], weight.device, stride)
        watched[lead] = module

    def look(part: str, inputs: Tensor) -> None:
        # On a GPU the statistics are of what the products read, which its tensor cores sum fast.
        found[part].add(inputs.to(stream.products) if inputs.is_cuda else inputs)

    observe(layer, stream, index, watched, look, replay)
    for block in blocks:
        lead = block.names[0]
        statistics = found[lead]
        if statistics.tokens and not bool(torch.isfinite(statistics.hessian).all()):
            raise NonFiniteError(
                f"the inputs of {name}.{lead} hold NaN or infinite values",
                hint="The parent overflows on the calibration text; try other text.",
            )
        _check_reached(job, f"{name}.{lead}", statistics)
        for part in block.names[1:]:
            found[part] = statistics
    return found


def _is_expert(job: Job, name: str) -> bool:
    return any(name.startswith(f"{e}.") for e in job.experts)


def _may_learn(job: Job, name: str, statistics: InputStatistics) -> bool:
    """Whether that layer learns its rounding: no expert does with fewer tokens than inputs.

    Their outputs do not determine its weights, and steps of the gradient's sign move every weight
    as far, however few tokens speak for it (measured: benchmarks/RESULTS.md).
    """
    least = max(int(job.options["minimum_tokens"]), statistics.hessian.shape[0])
    return not _is_expert(job, name) or statistics.tokens >= least


def _check_reached(job: Job, name: str, statistics: InputStatistics) -> None:
    expert, tokens = _is_expert(job, name), statistics.tokens
    if tokens == 0 and not expert:
        raise QuantizationError(
            f"no calibration token reached {name}",
            hint="Calibrate on other text, or leave the layer as it is with the option 'skip'.",
        )
    left = ""
    if job.method.learns_rounding and not _may_learn(job, name, statistics):
        left = "; its rounding was not learned"
    if tokens == 0:
        left = "; it was rounded to nearest"
    if expert and (left or tokens < int(job.options["minimum_tokens"])):
        job.warnings.append(f"{name}: only {tokens} calibration tokens reached this expert{left}")


def finish_block(
    job: Job,
    prefix: str,
    modules: Mapping[str, nn.Module],
    statistics: InputStatistics | None,
    strengths: Mapping[str, float],
) -> None:
    """Quantize linear layers that share their input, write them back, and report.

    Args:
        job: takes the results.
        prefix: full name of what holds the layers, or ``""``.
        modules: the layers by name; their weights are float32 and are replaced.
        statistics: of their input, or ``None``.
        strengths: AWQ's exponents by name.
    """
    schemes = {part: job.scheme_of(_full(prefix, part)) for part in modules}
    for scheme in dict.fromkeys(schemes.values()):
        alike = {part: m for part, m in modules.items() if schemes[part] == scheme}
        _finish_alike(job, prefix, alike, statistics, strengths)


def _full(prefix: str, part: str) -> str:
    return f"{prefix}.{part}" if prefix else part


def _finish_alike(
    job: Job,
    prefix: str,
    modules: Mapping[str, nn.Module],
    statistics: InputStatistics | None,
    strengths: Mapping[str, float],
) -> None:
    """:func:`finish_block` for layers of one scheme."""
    weights = {name: get_weight(module) for name, module in modules.items()}
    scheme = job.scheme_of(_full(prefix, next(iter(modules))))
    joined = torch.cat(list(weights.values()))
    together = _full(prefix, ", ".join(modules))
    quantized, stats = _quantize_joined(job, together, joined, statistics, scheme)
    start = 0
    for part, weight in weights.items():
        name = _full(prefix, part)
        piece = quantized.rows(start, start + weight.shape[0])
        start += weight.shape[0]
        values = piece.dequantize()
        weight_error, outputs = _errors(weight, values, statistics)
        if stats is not None and stats.escalations:
            job.warnings.append(
                f"{name}: the Hessian needed {stats.damping:g} of its mean diagonal as damping"
            )
        set_weight(modules[part], values)
        job.layers[name] = piece.to("cpu")
        job.reports.append(
            LayerReport(
                name=name,
                method=job.method.name,
                weight_error=weight_error,
                output_error=outputs,
                tokens=0 if statistics is None else statistics.tokens,
                damping=None if stats is None else stats.damping,
                escalations=0 if stats is None else stats.escalations,
                strength=strengths.get(part),
            )
        )


def _quantize_joined(
    job: Job,
    name: str,
    weight: Tensor,
    statistics: InputStatistics | None,
    scheme: WeightScheme,
) -> tuple[QuantizedWeight, GptqStats | None]:
    if statistics is None or statistics.tokens == 0:
        # Without calibration by design, or an expert that saw no token (which is reported).
        clip = str(job.options["clip"]) if not job.method.needs_calibration else "mse"
        return rtn_weight(weight, scheme, job.scale_dtype, clip), None
    if job.method.compensates:
        names = ("damping", "act_order", "block_size", "scale_search", "refine")
        settings = GptqSettings(**{n: job.options[n] for n in names})
        try:
            return gptq_weight(weight, statistics.hessian, scheme, job.scale_dtype, settings)
        except QuantizationError as error:
            message = f"{name}: {error.message}"
            raise type(error)(message, hint=error.hint) from None
    clip_search = bool(job.options["clip"])
    return awq_weight(weight, statistics.hessian, scheme, job.scale_dtype, clip_search), None


def _keep_changed(
    job: Job, layer: nn.Module, name: str, before: Mapping[str, Tensor], quantized: set[str]
) -> None:
    """Keep what folding changed besides the quantized weights: norms, biases, skipped layers."""
    for parameter_name, value in before.items():
        module_name, _, attribute = parameter_name.rpartition(".")
        if attribute == "weight" and module_name in quantized:
            continue
        now = layer.get_parameter(parameter_name).data
        if not torch.equal(now, value):
            job.dense[f"{name}.{parameter_name}"] = now.to("cpu", job.stored)
