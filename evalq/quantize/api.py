"""Quantizing a whole model: the one entry point of this package."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from evalq.errors import PlanError, QuantizationError, nearest
from evalq.kernels.packing import QuantizedWeight
from evalq.quantize.allocate import parse_bits
from evalq.quantize.calibration import Calibration
from evalq.quantize.capture import LayerCall, Stream, capture_inputs
from evalq.quantize.config import METHODS, Method, check_scheme, resolve_options
from evalq.quantize.job import Job, LayerReport
from evalq.quantize.layerstore import LayerStore
from evalq.quantize.linear import (
    check_widths,
    decoder_layers,
    get_weight,
    linears,
    set_weight,
    weight_shape,
)
from evalq.quantize.outputlayer import head_to_quantize, quantize_head
from evalq.quantize.pipeline import PROBE_TOKENS, quantize_decoder_layer
from evalq.quantize.rotate import changed_tensors, rotated, untie
from evalq.schema import BITS, Scheme

if TYPE_CHECKING:
    from transformers import PreTrainedModel

__all__ = ["METHODS", "LayerReport", "Method", "QuantizedModel", "quantize"]


@dataclass(frozen=True, slots=True, eq=False)
class QuantizedModel:
    """What a method made of a parent; nothing is written yet.

    Args:
        method, scheme, options, seed: of the recipe; the options are complete.
        layers: quantized weights ``[out, in]`` by the full name of their layer.
        dense: other tensors that differ from the parent's (norms with folded scales), by the full
            name of the parameter.
        transposed: layers of ``layers`` whose module stores its weight ``[in, out]`` (Conv1D).
        experts: modules whose stacked experts were quantized one by one, as
            ``<module>.<expert>.gate_up_proj`` and ``<module>.<expert>.down_proj``.
        reports: one for each layer, in order.
        warnings: what a user should know of.
        calibration: its record, or ``None``.
        seconds: wall time.
        details: what else the method has to say, as JSON values.
    """

    method: str
    scheme: Scheme
    options: Mapping[str, Any]
    seed: int
    layers: Mapping[str, QuantizedWeight]
    dense: Mapping[str, Tensor]
    transposed: frozenset[str]
    experts: tuple[str, ...]
    reports: tuple[LayerReport, ...]
    warnings: tuple[str, ...]
    calibration: Mapping[str, Any] | None
    seconds: float
    details: Mapping[str, Any] = field(default_factory=dict)

    def apply_to(self, module: nn.Module) -> None:
        """Write the dequantized weights and the changed tensors into a copy of the parent.

        Raises:
            QuantizationError: ``module`` is not the parent's architecture, or its head is tied to
                its embeddings while the head was quantized.
        """
        stacked = {f"{e}." for e in self.experts}
        for name, quantized in self.layers.items():
            home = next((e for e in stacked if name.startswith(e)), None)
            if home is not None:
                number, _, part = name[len(home) :].partition(".")
                fused = module.get_submodule(home[:-1]).get_parameter(part)
                fused.data[int(number)].copy_(quantized.dequantize())
                continue
            layer = module.get_submodule(name)
            if weight_shape(layer) != quantized.shape:
                raise QuantizationError(f"{name} is {weight_shape(layer)}, not {quantized.shape}")
            set_weight(layer, quantized.dequantize())
        if any(name not in dict(module.named_parameters()) for name in self.dense):
            # A rotated head has a weight of its own where the parent's is tied.
            untie(module)
        for name, tensor in self.dense.items():
            module.get_parameter(name).data.copy_(tensor)


def quantize(
    module: PreTrainedModel,
    scheme: Scheme,
    method: str,
    calibration: Calibration | None = None,
    options: Mapping[str, Any] | None = None,
    seed: int = 0,
    progress: Callable[[str, float], None] | None = None,
    stored: torch.dtype | None = None,
    store: LayerStore | None = None,
    device: torch.device | None = None,
) -> QuantizedModel:
    """Quantize the linear layers of ``module``, which is not changed.

    Layers are taken one at a time: a float32 copy of one decoder layer is all that is made besides
    the results, and the next layer is calibrated on the outputs of the quantized ones before it.

    Args:
        module: a causal LM of transformers, on any device, where its layers are run.
        scheme: how weights (and activations) are to be stored.
        method: name in :data:`METHODS`.
        calibration: text, for methods that need it.
        options: of the method.
        seed: for whatever the method draws.
        progress: called with a layer's name and the share done, 0 to 1.
        stored: dtype that the parent's files have, where it was loaded in another; norms and
            scales are rounded to it.
        store: takes finished layers, and gives those that an earlier process finished.
        device: where layers are run, one at a time; where the module lies if ``None``.

    Raises:
        PlanError: no such method or option, or no calibration where it is needed.
        QuantizationError: groups that do not divide a width, an architecture that is not
            understood, a layer that no token reached, or a Hessian that cannot be inverted.
        NonFiniteError: NaN or infinities in a weight or an activation.
    """
    start = time.monotonic()
    chosen = METHODS.get(method)
    resolved = resolve_options(chosen, options or {})
    check_scheme(chosen, scheme)
    if chosen.needs_calibration and calibration is None:
        raise PlanError(
            f"method {method!r} needs calibration text", hint="Give some, or use method 'rtn'."
        )
    layers_name, layers = decoder_layers(module)
    stored = stored or next(p.dtype for p in module.parameters() if p.is_floating_point())
    job = _job(module, scheme, chosen, resolved, seed, stored)
    job.activation_bits = scheme.activation_bits
    shapes = _shapes(module, layers_name, layers, job)
    if not shapes:
        raise QuantizationError("no layer is left to quantize", hint="Check the option 'skip'.")
    _check_layer_bits(job, [name for name, _ in shapes])
    check_widths(shapes, scheme.weights)
    device = device or next(module.parameters()).device
    details = _keep_sensitive(job, module, calibration, progress)
    before = 0.0 if store is None else store.seconds
    parent, training = module, module.training
    module.train(False)
    try:
        if resolved["rotate"] != "none":
            module = rotated(module, job.head_dim, seed)
            layers_name, layers = decoder_layers(module)
        _run(job, module, layers_name, layers, calibration, device, progress, store)
    finally:
        parent.train(training)
    if chosen.learns_rounding:
        details["learned_rounding"] = {
            name: {"before": before, "after": after}
            for name, (before, after) in job.layer_errors.items()
        }
    if chosen.distills:
        details |= _distill(job, module, calibration, progress)
    if module is not parent:
        job.dense = {**changed_tensors(parent, module, set(job.layers), stored), **job.dense}
    transposed = frozenset(
        n for n in job.layers if not _is_expert(job, n) and _is_transposed(module, n)
    )
    return QuantizedModel(
        method=method,
        scheme=scheme,
        options=resolved,
        seed=seed,
        layers=job.layers,
        dense=job.dense,
        transposed=transposed,
        experts=tuple(job.experts),
        reports=tuple(job.reports),
        warnings=job.all_warnings(),
        calibration=calibration.record() if calibration and chosen.needs_calibration else None,
        seconds=before + time.monotonic() - start,
        details=details,
    )


def _keep_sensitive(
    job: Job,
    module: PreTrainedModel,
    calibration: Calibration | None,
    progress: Callable[[str, float], None] | None,
) -> dict[str, Any]:
    """Choose what the option ``keep`` keeps; returns what is to be recorded."""
    share = float(job.options.get("keep", 0.0))
    if not share or calibration is None:
        return {}
    if job.layer_bits:
        raise PlanError("keep and layer_bits both set widths", hint="Give one of them.")
    from evalq.quantize.mixed import keep_share

    def tell(_layer: str, done: float) -> None:
        if progress:
            progress("sensitivity", done)

    bits = int(job.options["keep_bits"])
    kept = keep_share(module, job.scheme, calibration.tokens, share, bits, job.skip, tell)
    if bits > max(BITS):
        job.kept = frozenset(kept.layers)
    else:
        job.layer_bits = dict.fromkeys(kept.layers, bits)
    return kept.record()


def _check_layer_bits(job: Job, names: Sequence[str]) -> None:
    """Raise where a width is given to a layer that there is none of, or that is left alone."""
    # Experts are stored stacked: their layers have names only once they are split.
    homes = {n.rpartition(".")[0] for n in names}
    stacked = tuple(f"{h}." for h in homes if h.endswith("experts"))
    for name in job.layer_bits:
        if name not in names and not name.startswith(stacked):
            raise PlanError(f"layer_bits names {name}", hint=nearest(name, names))


def _distill(
    job: Job,
    module: PreTrainedModel,
    calibration: Calibration | None,
    progress: Callable[[str, float], None] | None,
) -> dict[str, Any]:
    """Train what rounding left against the parent; returns what is to be recorded."""
    from evalq.quantize.distill import DistillSettings, distill

    if calibration is None:
        raise PlanError(f"method {job.method.name!r} needs calibration text")
    options = job.options
    settings = DistillSettings(
        epochs=int(options["epochs"]),
        windows=int(options["windows"]),
        scale_rate=float(options["scale_rate"]),
        code_rate=float(options["code_rate"]),
        products=_products(job),
        seed=job.seed,
    )

    def tell(share: float) -> None:
        if progress:
            progress("distillation", share)

    result = distill(module, job.layers, job.dense, calibration.tokens, settings, tell)
    job.layers.update(result.layers)
    job.reports[:] = [_trained(report, module, job.layers[report.name]) for report in job.reports]
    return {
        "distillation": {
            "first_epoch_kl": result.before,
            "last_epoch_kl": result.after,
            "steps": result.steps,
        }
    }


def _run(
    job: Job,
    module: nn.Module,
    layers_name: str,
    layers: nn.ModuleList,
    calibration: Calibration | None,
    device: torch.device,
    progress: Callable[[str, float], None] | None,
    store: LayerStore | None,
) -> None:
    stream: Stream | None = None
    probes: list[LayerCall] | None = None
    batch = 1
    if job.method.needs_calibration and calibration is not None:
        _check_tokens(module, calibration)
        batch = max(1, int(job.options["batch_tokens"]) // calibration.length)
        stream = capture_inputs(module, layers, calibration.tokens, batch, device)
        stream.products = _products(job)
        if job.method.learns_rounding:
            stream.parent = list(stream.hidden)
        short = calibration.tokens[:1, :PROBE_TOKENS]
        probes = capture_inputs(module, layers, short, 1, device).calls[0]
    done = _restore(job, stream, store, device)
    for index, layer in enumerate(layers):
        if index < done:
            continue
        name = f"{layers_name}.{index}"
        if progress:
            progress(name, index / len(layers))
        probe = probes[index] if probes else None
        quantize_decoder_layer(job, layer, name, index, stream, probe, device)
        if store is not None:
            store.keep(index, job, None if stream is None else stream.states)
    if job.options["quantize_head"]:
        quantize_head(job, module, layers, stream, calibration, batch)
    if progress:
        progress("done", 1.0)


def _restore(
    job: Job, stream: Stream | None, store: LayerStore | None, device: torch.device
) -> int:
    """Take up what an earlier process finished; returns how many layers that are."""
    if store is None or not store.finished:
        return 0
    store.restore(job)
    if stream is not None:
        stream.take_up([state.to(device, copy=True) for state in store.hidden()])
    return store.finished


def _trained(report: LayerReport, module: nn.Module, weight: QuantizedWeight) -> LayerReport:
    """The report with the weight error of what training left; experts are not trained."""
    try:
        before = get_weight(module.get_submodule(report.name)).to("cpu", torch.float32)
    except AttributeError:
        return report
    error = float((weight.dequantize() - before).norm() / before.norm().clamp_min(1e-30))
    return replace(report, weight_error=error)


def _products(job: Job) -> torch.dtype:
    named = str(job.options["products"])
    if named == "auto":
        return torch.bfloat16 if job.stored == torch.bfloat16 else torch.float32
    return torch.bfloat16 if named == "bfloat16" else torch.float32


def _job(
    module: PreTrainedModel,
    scheme: Scheme,
    method: Method,
    options: Mapping[str, Any],
    seed: int,
    stored: torch.dtype,
) -> Job:
    named = str(options["scale_dtype"])
    if named == "auto":
        scale_dtype = torch.bfloat16 if stored == torch.bfloat16 else torch.float16
    else:
        scale_dtype = getattr(torch, named)
    config = module.config.get_text_config()
    heads = getattr(config, "num_attention_heads", 0) or 0
    width = getattr(config, "hidden_size", 0) or 0
    head_dim = getattr(config, "head_dim", None) or (width // heads if heads else 0)
    return Job(
        method,
        scheme.weights,
        options,
        scale_dtype,
        stored,
        int(head_dim),
        seed,
        layer_bits=parse_bits(str(options["layer_bits"])),
    )


def _shapes(
    module: nn.Module, layers_name: str, layers: nn.ModuleList, job: Job
) -> list[tuple[str, int]]:
    """Name and input width of all that will be quantized."""
    found = []
    for index, layer in enumerate(layers):
        prefix = f"{layers_name}.{index}"
        found += [(f"{prefix}.{n}", weight_shape(m)[1]) for n, m in linears(layer)]
        for name, parameter in layer.named_parameters():
            if parameter.ndim == 3:
                found.append((f"{prefix}.{name}", int(parameter.shape[-1])))
    found = [(name, width) for name, width in found if not job.skips(name)]
    if job.options["quantize_head"]:
        found.append(("the output head", weight_shape(head_to_quantize(module))[1]))
    return found


def _check_tokens(module: nn.Module, calibration: Calibration) -> None:
    vocabulary = module.get_input_embeddings().weight.shape[0]  # type: ignore[operator]
    highest = int(calibration.tokens.max())
    if highest >= vocabulary or int(calibration.tokens.min()) < 0:
        raise QuantizationError(
            f"calibration token {highest} is outside the model's vocabulary of {vocabulary}",
            hint="Calibrate with the parent's own tokenizer.",
        )


def _is_expert(job: Job, name: str) -> bool:
    return any(name.startswith(f"{e}.") for e in job.experts)


def _is_transposed(module: nn.Module, name: str) -> bool:
    return not isinstance(module.get_submodule(name), nn.Linear)
