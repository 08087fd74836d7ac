"""Which engines take an artifact, and which rule of its format it breaks, before anyone ships it.

The rules are those of compressed-tensors 0.20, transformers 5.23, vLLM 0.33 and gptqmodel 7.7. The
ones about compressed-tensors in transformers are tested against the installed packages; the ones
about vLLM and gptqmodel are read from their sources.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path

from evalq.artifacts.api import read
from evalq.artifacts.base import Finding, Severity, StoredModel
from evalq.artifacts.files import open_files, read_json
from evalq.artifacts.gptq import checkpoint_version
from evalq.artifacts.identity import MANIFEST, hash_directory
from evalq.artifacts.naming import EXPERT
from evalq.errors import ArtifactError
from evalq.schema import PerGroup, WeightScheme

__all__ = ["ENGINES", "check", "loadable"]

ENGINES = ("transformers", "vllm", "gptqmodel")

_FUSED = (
    ("q_proj", "k_proj", "v_proj"),
    ("gate_proj", "up_proj"),
    ("w1", "w3"),
)
_CONV1D = frozenset({"gpt2", "openai-gpt", "imagegpt", "decision_transformer"})
_MARLIN_GROUPS = (32, 64, 128)
_GPTQMODEL_GROUPS = (16, 32, 64, 128, 256, 512, 1024)


def check(directory: Path) -> list[Finding]:
    """Everything there is to know about loading the artifact.

    One ``ok`` finding stands for each engine that nothing is wrong with. A directory that cannot be
    read at all gives a single error of ``files``.

    Raises:
        ArtifactError: no such directory.
    """
    if not directory.is_dir():
        raise ArtifactError(f"{directory} is no directory", hint="Give an artifact directory.")
    try:
        stored = read(directory, sketch=True)
    except ArtifactError as error:
        message = f"{error.message} {error.hint}".strip()
        return [Finding("error", "files", "unreadable", message)]
    findings = [*_files(directory)]
    rules = {
        "compressed-tensors": _compressed_tensors,
        "gptq": _gptq,
        "awq": _awq,
        "dense": _dense,
    }
    findings += rules[stored.format](stored)
    blamed = {finding.engine for finding in findings if finding.severity == "error"}
    if "files" not in blamed:
        findings += [
            Finding("ok", engine, "loads", f"nothing keeps {engine} from loading it")
            for engine in ENGINES
            if engine not in blamed
        ]
    return findings


def loadable(findings: Iterable[Finding]) -> dict[str, bool]:
    """Whether each engine takes the artifact, by what was found."""
    kept = list(findings)
    broken = {f.engine for f in kept if f.severity == "error"}
    return {engine: engine not in broken and "files" not in broken for engine in ENGINES}


def _files(directory: Path) -> Iterator[Finding]:
    manifest = directory / MANIFEST
    if manifest.is_file():
        written = read_json(manifest)
        said = written.get("content_hash") if isinstance(written, dict) else None
        if said != hash_directory(directory):
            yield Finding(
                "warning",
                "files",
                "content-changed",
                f"the files were changed after evalq wrote them ({MANIFEST} has another hash)",
            )
    if not (directory / "tokenizer_config.json").is_file():
        yield Finding(
            "warning", "files", "no-tokenizer", "there is no tokenizer beside the weights"
        )
    if next(iter(open_files(directory)), None) is None:
        yield Finding("error", "files", "empty", "the weight files hold no tensor")


def _error(engine: str, rule: str, message: str, layers: Iterable[str] = ()) -> Finding:
    return Finding("error", engine, rule, message, tuple(layers))


def _warning(engine: str, rule: str, message: str, layers: Iterable[str] = ()) -> Finding:
    return Finding("warning", engine, rule, message, tuple(layers))


def _schemes(stored: StoredModel) -> dict[WeightScheme, list[str]]:
    found: dict[WeightScheme, list[str]] = {}
    for layer, weight in stored.layers.items():
        found.setdefault(weight.scheme, []).append(layer)
    return found


def _group(scheme: WeightScheme) -> int:
    """Group size, -1 for one scale a channel."""
    return scheme.granularity.size if isinstance(scheme.granularity, PerGroup) else -1


def _dense(stored: StoredModel) -> Iterator[Finding]:
    yield _error("gptqmodel", "not-quantized", "gptqmodel loads quantized models only")


def _compressed_tensors(stored: StoredModel) -> Iterator[Finding]:
    yield _error("gptqmodel", "format", "gptqmodel loads GPTQ and AWQ files only")
    yield from _conv1d(stored)
    yield from _ct_transformers(stored)
    yield from _ct_vllm(stored)


def _conv1d(stored: StoredModel) -> Iterator[Finding]:
    model = str(stored.config.get("model_type"))
    if model in _CONV1D:
        yield _error(
            "transformers",
            "conv1d",
            f"{model} is made of Conv1D layers, and compressed-tensors replaces Linear only: the "
            "quantized weights would be left out",
        )
        yield _error(
            "vllm", "conv1d", f"vLLM transposes the weights of {model} on loading, packed or not"
        )


def _ct_transformers(stored: StoredModel) -> Iterator[Finding]:
    schemes = _schemes(stored)
    settings = stored.config["quantization_config"]
    asymmetric = [n for s, names in schemes.items() if not s.symmetric for n in names]
    whole = bool(settings.get("dequantize")) or settings.get("run_compressed") is False
    packed = settings.get("format") != "int-quantized"
    if asymmetric and packed and not whole:
        yield _error(
            "transformers",
            "asymmetric-default-path",
            "transformers 5.23 expects zero points unpacked on its default path and stops with a "
            "size mismatch; pass CompressedTensorsConfig(dequantize=True), or set dequantize in "
            "quantization_config",
            asymmetric,
        )
    if whole and len(schemes) > 1:
        yield _error(
            "transformers",
            "mixed-dequantize",
            "with dequantize set, transformers 5.23 reads every layer by the first scheme",
        )
    if whole and stored.activation_bits:
        yield _error(
            "transformers",
            "activations-dequantize",
            "with dequantize set, transformers leaves the activations unquantized",
        )
    yield from _ct_experts(stored)
    if any(s.bits in (3, 5, 6, 7) for s in schemes):
        yield _warning(
            "transformers",
            "dense-packing",
            "3, 5, 6 and 7 bits are packed densely, which compressed-tensors reads since mid-2026 "
            "(checked with 0.20); older versions misread them",
        )


def _ct_experts(stored: StoredModel) -> Iterator[Finding]:
    """What transformers and vLLM ask of the experts of a mixture, which both hold stacked."""
    experts = {n: w.scheme for n, w in stored.layers.items() if EXPERT.search(n)}
    asymmetric = [n for n, scheme in experts.items() if not scheme.symmetric]
    if asymmetric:
        yield _error(
            "transformers",
            "asymmetric-experts",
            "transformers 5.23 loses the zero points of experts",
            asymmetric,
        )
    if any(EXPERT.search(n) for n in stored.activation_bits):
        yield _error(
            "transformers",
            "integer-experts",
            "transformers 5.23 loads packed experts only, not those of 8 bits with activations",
            experts,
        )
    plain = [n for n in stored.dense if EXPERT.search(n)]
    if plain:
        yield _error(
            "transformers",
            "plain-experts",
            "transformers 5.23 takes all experts for quantized as soon as any layer is",
            plain,
        )
    if len(set(experts.values())) > 1:
        yield _error(
            "transformers",
            "experts-differ",
            "transformers 5.23 reads all experts by one scheme, and these have several",
            experts,
        )
    homes: dict[str, set[WeightScheme | None]] = {}
    for name in (*experts, *plain):
        homes.setdefault(EXPERT.split(name)[0], set()).add(experts.get(name))
    for home, kinds in homes.items():
        if len(kinds) > 1:
            yield _error("vllm", "experts-differ", f"the experts of {home} have different schemes")


def _ct_vllm(stored: StoredModel) -> Iterator[Finding]:
    yield from _fused_differ(stored)
    odd = sorted({g for s in _schemes(stored) if (g := _group(s)) not in (-1, *_MARLIN_GROUPS)})
    if odd:
        sizes = ", ".join(map(str, odd))
        yield _warning(
            "vllm",
            "group-size",
            f"group size {sizes}: vLLM's fast kernels take 32, 64, 128 or one scale a channel",
        )
    if stored.activation_bits:
        yield _warning(
            "vllm",
            "activation-grid",
            "vLLM scales activations by max/127, compressed-tensors by max/127.5: answers differ "
            "slightly between the two",
        )


def _fused_differ(stored: StoredModel) -> Iterator[Finding]:
    """vLLM loads q, k, v and gate, up as one layer each, which has one scheme or none."""
    for parts in _FUSED:
        for first in (n for n in _linear_names(stored) if n.rpartition(".")[2] == parts[0]):
            home = first.rpartition(".")[0]
            names = [f"{home}.{part}" for part in parts]
            present = [n for n in names if n in stored.layers or f"{n}.weight" in stored.dense]
            kinds = {stored.layers[n].scheme if n in stored.layers else None for n in present}
            if len(kinds) > 1:
                yield _error(
                    "vllm",
                    "fused-schemes",
                    f"vLLM fuses {', '.join(parts)}, which have different schemes in {home}",
                    present,
                )


def _linear_names(stored: StoredModel) -> list[str]:
    dense = [n.removesuffix(".weight") for n in stored.dense if n.endswith(".weight")]
    return sorted({*stored.layers, *dense})


def _gptq(stored: StoredModel) -> Iterator[Finding]:
    settings = stored.config.get("quantization_config") or open_files(stored.path).settings
    yield _warning(
        "transformers", "gptq-needs", "transformers 5.23 needs optimum and gptqmodel to load GPTQ"
    )
    symmetric = all(weight.scheme.symmetric for weight in stored.layers.values())
    bits = sorted({weight.scheme.bits for weight in stored.layers.values()})
    for width in bits or [int(settings.get("bits", 0))]:
        if width not in (4, 8) or not symmetric:
            kind = "symmetric" if symmetric else "asymmetric"
            yield _error(
                "vllm",
                "gptq-bits",
                f"vLLM 0.33 takes GPTQ at 4 and 8 bits symmetric, not {width} bits {kind}",
            )
    if settings.get("desc_act") and int(settings.get("group_size", -1)) != -1:
        yield _error("vllm", "gptq-desc-act", "vLLM 0.33 refuses desc_act with groups")
    elif stored.notes:
        yield _error(
            "vllm", "gptq-g-idx", "columns are scattered, and vLLM 0.33 drops g_idx: wrong weights"
        )
    if checkpoint_version(settings) == 2 and not symmetric:
        yield _warning(
            "gptqmodel",
            "gptq-v2",
            "zero points are stored as they are (v2); loaders that only know v1 are off by one",
        )
    yield from _gptqmodel_sizes(stored)


def _gptqmodel_sizes(stored: StoredModel) -> Iterator[Finding]:
    odd = [n for n, w in stored.layers.items() if w.shape[0] % 32 or w.shape[1] % 32]
    if odd:
        yield _error(
            "gptqmodel", "gptq-sizes", "gptqmodel needs sizes that are multiples of 32", odd
        )
    groups = sorted({_group(s) for s in _schemes(stored)} - {-1, *_GPTQMODEL_GROUPS})
    if groups:
        yield _error(
            "gptqmodel",
            "gptq-group-size",
            f"gptqmodel takes no groups of {', '.join(map(str, groups))}",
        )


def _awq(stored: StoredModel) -> Iterator[Finding]:
    yield _warning("transformers", "awq-needs", "transformers 5.23 needs gptqmodel to load AWQ")
    dtype = stored.config.get("dtype") or stored.config.get("torch_dtype")
    if dtype != "float16":
        yield _warning(
            "vllm",
            "awq-dtype",
            f"the model's dtype is {dtype}; vLLM's AWQ kernel computes in float16 (--dtype half), "
            "Marlin's in bfloat16 too, with the scales rounded to it",
        )
    if not stored.config["quantization_config"].get("zero_point", True):
        yield _warning(
            "vllm",
            "awq-zero-point",
            "zero_point is false, which vLLM's Marlin kernel does not take",
        )
    yield from _fused_differ(stored)


SEVERITIES: tuple[Severity, ...] = ("error", "warning", "ok")
"""In the order they are shown."""
