"""What a user asks for: the plan of a run, read from YAML and flags and checked before it runs."""

from __future__ import annotations

import fnmatch
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from evalq.endpoint import EndpointPlan, parse_endpoint
from evalq.errors import EvalqError, PlanError, nearest
from evalq.schema import (
    KV_BITS,
    Granularity,
    PerChannel,
    PerGroup,
    Scheme,
    WeightScheme,
    content_hash,
)

__all__ = [
    "AdaptivePlan",
    "CalibrationPlan",
    "ControlPlan",
    "CostPlan",
    "EnginePlan",
    "FidelityPlan",
    "Plan",
    "PromptsPlan",
    "RecommendPlan",
    "TextPlan",
    "VariantPlan",
    "load_plan",
    "parse_parent",
    "parse_plan",
    "parse_text",
    "parse_variant",
    "read_yaml",
]


class _Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class VariantPlan(_Section):
    """One variant to make and measure.

    Either ``method`` and ``bits`` (an artifact is made), or ``artifact`` (a directory that exists),
    or ``endpoint`` (a model that a server answers for), or none of them with ``kv_bits`` (the
    parent's own weights). With ``kv_bits`` the evaluation rounds the KV cache to so many bits.
    """

    name: str = ""
    method: str = ""
    bits: int | None = None
    group_size: int | Literal["channel"] | None = None
    """``None``: the largest of 128, 64 and 32 that divides the parent's widths."""
    symmetric: bool = True
    activation_bits: int | None = None
    kv_bits: int | None = None
    options: dict[str, Any] = Field(default_factory=dict)
    artifact: str = ""
    endpoint: EndpointPlan | None = None

    @field_validator("name")
    @classmethod
    def _name_is_a_label(cls, value: str) -> str:
        if value != value.strip() or any(ord(c) < 32 for c in value) or len(value) > 80:
            raise ValueError("a name is at most 80 printable characters without outer spaces")
        return value

    @model_validator(mode="after")
    def _one_source(self) -> VariantPlan:
        if self.kv_bits not in (None, *KV_BITS):
            raise ValueError(f"a KV cache is kept in {', '.join(map(str, KV_BITS))} bits")
        sources = [bool(self.method), bool(self.artifact), self.endpoint is not None]
        if sum(sources) > 1 or not (any(sources) or self.kv_bits):
            raise ValueError("give exactly one of method, artifact and endpoint")
        if self.endpoint is not None and self.kv_bits is not None:
            raise ValueError("how an endpoint keeps its KV cache is its own affair")
        if self.method and self.bits is None:
            raise ValueError(f"method {self.method!r} needs bits")
        return self

    @property
    def granularity(self) -> Granularity:
        """Of the weights: groups of 128 unless said otherwise, and rows under 8-bit activations.

        Raises:
            PlanError: the group size is no positive number.
        """
        if self.group_size in ("channel", -1):
            return PerChannel()
        if self.group_size is None and self.activation_bits is not None:
            return PerChannel()
        return PerGroup(128 if self.group_size is None else int(self.group_size))

    @property
    def scheme(self) -> Scheme:
        """The scheme asked for.

        Raises:
            PlanError: a width or a group size that cannot be, or a variant that is not made here.
        """
        if self.bits is None:
            raise PlanError(f"variant {self.label!r} is not made here and has no scheme of its own")
        weights = WeightScheme(self.bits, self.granularity, self.symmetric)
        return Scheme(weights, self.activation_bits, self.kv_bits)

    @property
    def label(self) -> str:
        """The name, or one made of method and scheme: ``gptq-w4-g128``."""
        if self.name:
            return self.name
        if self.method:
            return f"{self.method}-{self.scheme}"
        if self.endpoint is not None:
            return self.endpoint.label
        own = Path(self.artifact).name if self.artifact else "parent"
        return own if self.kv_bits is None else f"{own}-kv{self.kv_bits}"


_SHARE = re.compile(r"(.+?)=(\d+(?:\.\d*)?|\.\d+)(?:,|$)")


def parse_shares(source: str | Mapping[str, float]) -> dict[str, float]:
    """A calibration source as shares by name; one source alone has the share 1.

    >>> parse_shares("suite:math=0.5,text.txt=0.5")
    {'suite:math': 0.5, 'text.txt': 0.5}

    Raises:
        ValueError: a part without a share, a share that is not positive, a source named twice, or
            shares that do not add up to 1.
    """
    if isinstance(source, str):
        parts = [(m[1], float(m[2])) for m in _SHARE.finditer(source)]
        if not parts or Path(source).is_file():
            if not source.strip():
                raise ValueError("a source is empty")
            return {source: 1.0}
        if _SHARE.sub("", source):
            raise ValueError("a mixture names each source with its share: a.txt=0.7,b.txt=0.3")
    else:
        parts = list(source.items())
    shares = dict(parts)
    if not parts or len(shares) != len(parts) or not all(name.strip() for name in shares):
        raise ValueError("a mixture names every source once")
    if not all(0 < share <= 1 for share in shares.values()):
        raise ValueError("a share is above 0 and at most 1")
    if abs(sum(shares.values()) - 1) > 1e-6:
        raise ValueError(f"shares add up to {sum(shares.values()):g}, not 1")
    return shares


class CalibrationPlan(_Section):
    """Text that methods calibrate on.

    Args:
        source: ``auto`` (the built-in parent's own text, and for other parents the prose that
            ships with Python), a file (.txt, .jsonl), ``suite:NAME`` (the training split of its
            tasks), ``workload:FILE`` (a user's items), or a mixture of them with shares that add
            up to 1: ``suite:math=0.5,text.txt=0.5``, or a mapping in a plan.
        samples: windows.
        length: tokens a window.
        allow_overlap: go on where the text holds items that are evaluated; reports say so.
    """

    source: str | dict[str, float] = "auto"
    samples: int = Field(128, ge=1)
    length: int = Field(512, ge=8)
    allow_overlap: bool = False

    @field_validator("source")
    @classmethod
    def _source_is_a_mixture(cls, value: str | dict[str, float]) -> str | dict[str, float]:
        parse_shares(value)
        return value

    @property
    def shares(self) -> dict[str, float]:
        """Each source's share of the windows, in the order given."""
        return parse_shares(self.source)


class TextPlan(_Section):
    """A text of the user's that distributions are compared on, beside the held-out text.

    Args:
        file: .txt (documents parted by form feeds) or .jsonl.
        name: of the text in reports; the file's stem when empty.
        language: a code (``sw``); its slice is then ``prose/sw``.
    """

    file: str = Field(min_length=1)
    name: str = ""
    language: str = Field("", pattern=r"^([A-Za-z0-9][A-Za-z0-9_.+-]*)?$")

    @property
    def label(self) -> str:
        """The name, or the file's stem."""
        return self.name or Path(self.file).stem


class FidelityPlan(_Section):
    """Held-out text that distributions are compared on; ``source`` as for calibration.

    ``texts`` are the user's own beside it, each of at most ``windows`` windows too; ``tasks`` adds
    what is evaluated itself, prompts with their targets, slice by slice.
    """

    enabled: bool = True
    source: str = "auto"
    texts: tuple[TextPlan, ...] = ()
    tasks: bool = False
    windows: int = Field(96, ge=1)
    length: int = Field(512, ge=8)

    @field_validator("texts")
    @classmethod
    def _names_differ(cls, value: tuple[TextPlan, ...]) -> tuple[TextPlan, ...]:
        labels = [text.label for text in value]
        twice = next((label for label in labels if labels.count(label) > 1), None)
        if twice is not None:
            raise ValueError(f"two texts are named {twice!r}: give each a 'name' of its own")
        return value


class ControlPlan(_Section):
    """The negative control: the parent once more, at another batch size and another precision of
    arithmetic. What differs then is the noise floor."""

    enabled: bool = True


class CostPlan(_Section):
    """What is timed: ``repeats`` interleaved measurements at one batch and length.

    Args:
        price_per_hour: dollars an hour of the machine that is measured, for a price a token. It
            changes nothing that is measured, so it is no part of the plan's hash.
    """

    enabled: bool = True
    repeats: int = Field(3, ge=1)
    batch: int = Field(1, ge=1)
    prefill_tokens: int = Field(128, ge=1)
    decode_tokens: int = Field(32, ge=1)
    price_per_hour: float | None = Field(None, gt=0, allow_inf_nan=False)


class PromptsPlan(_Section):
    """How items become prompts.

    Args:
        chat_template: ``true`` puts prompts (and the ``messages`` of a workload) into the chat
            template of the parent's tokenizer, as lm-eval's ``apply_chat_template`` does; a text
            is a Jinja file with the template to use. Chat endpoints get the messages themselves.
        system: a system message before every prompt; without a chat template a text before it.
        multiturn: few-shot examples become turns of the conversation, as lm-eval has it by default;
            otherwise all of them are one user message.
    """

    chat_template: bool | str = False
    system: str = ""
    multiturn: bool = True


class EnginePlan(_Section):
    """How local models are run. ``auto`` dtype is float32 on a CPU and the parent's own on a GPU.

    Args:
        kind: ``transformers``, or ``vllm`` for its offline Python API (it has to be installed).
        gpu_memory: share of the GPU's memory that vLLM takes.
    """

    kind: Literal["transformers", "vllm"] = "transformers"
    device: str = "auto"
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    batch_tokens: int = Field(16384, ge=1)
    max_length: int | None = Field(None, ge=2)
    threads: int | None = Field(None, ge=1)
    trust_remote_code: bool = False
    gpu_memory: float = Field(0.8, gt=0, le=1)


SERVED = "endpoint"
"""``Plan.parent`` where an endpoint is the parent."""


class RecommendPlan(_Section):
    """What a recommended tier has to meet, in accuracy points (pp) against the parent."""

    margin_pp: float = Field(2.0, gt=0)
    slice_margin_pp: float = Field(5.0, gt=0)
    min_items: int = Field(100, ge=1)
    confidence: float = Field(0.90, gt=0.5, lt=1)


class AdaptivePlan(_Section):
    """Stop asking a slice as soon as its comparison with the parent is decided.

    The parent answers every item; a variant is asked them in a seeded order, until an interval that
    holds at any stopping time lies above -margin or below it, at the confidence of ``recommend``.

    Args:
        enabled: off unless asked for.
        margin_pp: accuracy points that a slice may lose; ``None``: ``recommend.slice_margin_pp``.
        slices: margins of slices that differ, by name or pattern (``math/*``); the first that
            matches counts.
    """

    enabled: bool = False
    margin_pp: float | None = Field(None, gt=0, lt=100)
    slices: dict[str, float] = Field(default_factory=dict)

    @field_validator("slices")
    @classmethod
    def _margins_are_points(cls, value: dict[str, float]) -> dict[str, float]:
        if not all(0 < margin < 100 for margin in value.values()):
            raise ValueError("a margin is in accuracy points, above 0 and below 100")
        return value


class Plan(_Section):
    """A whole run.

    Args:
        parent: ``builtin``, ``smollm2``, a directory, a GGUF file or a hub name. A mapping
            ``{endpoint: {url: …}}`` is a parent that a server answers for; it is kept as
            ``parent_endpoint``.
        suites: names of suites, or paths of suite files.
        workloads: JSONL files of the user's own items.
        limit: at most so many items a task.
        out: the run directory; ``runs/<name>`` when empty.
        allow_code: run the user's own Python in tasks and scorers, and what models write where
            items are scored by unit tests.
    """

    plan_version: Literal[1] = 1
    name: str = "run"
    parent: str = "builtin"
    parent_endpoint: EndpointPlan | None = None
    variants: tuple[VariantPlan, ...] = ()
    suites: tuple[str, ...] = ()
    workloads: tuple[str, ...] = ()
    limit: int | None = Field(None, ge=1)
    data_dir: str = ""
    calibration: CalibrationPlan = CalibrationPlan()
    fidelity: FidelityPlan = FidelityPlan()
    control: ControlPlan = ControlPlan()
    cost: CostPlan = CostPlan()
    prompts: PromptsPlan = PromptsPlan()
    engine: EnginePlan = EnginePlan()
    recommend: RecommendPlan = RecommendPlan()
    adaptive: AdaptivePlan = AdaptivePlan()
    seed: int = 0
    allow_code: bool = False
    out: str = ""

    def stop_margin(self, slice_: str) -> float:
        """The margin, in accuracy (0 to 1), that an adaptive run decides a slice by."""
        own = self.adaptive.margin_pp
        points = self.recommend.slice_margin_pp if own is None else own
        for pattern, margin in self.adaptive.slices.items():
            if fnmatch.fnmatchcase(slice_, pattern):
                points = margin
                break
        return points / 100

    @model_validator(mode="before")
    @classmethod
    def _served_parent(cls, data: Any) -> Any:
        if isinstance(data, dict) and isinstance(data.get("parent"), dict):
            given = data["parent"]
            if given.keys() != {"endpoint"} or data.get("parent_endpoint") is not None:
                raise ValueError("a parent is a text, or a mapping with 'endpoint' and no other")
            return {**data, "parent": SERVED, "parent_endpoint": given["endpoint"]}
        return data

    @model_validator(mode="after")
    def _one_parent(self) -> Plan:
        if (self.parent_endpoint is not None) != (self.parent == SERVED):
            raise ValueError("'parent_endpoint' goes with a parent given as {endpoint: …}")
        return self

    @property
    def served(self) -> tuple[EndpointPlan, ...]:
        """All endpoints of the run, the parent's first."""
        every = (self.parent_endpoint, *(v.endpoint for v in self.variants))
        return tuple(e for e in every if e is not None)

    @property
    def hash(self) -> str:
        """Identity of what is measured; its name, where it goes, consent, prices and the patience
        with endpoints do not count. Settings that came later count only where they are set."""
        data = self.model_dump(mode="json", exclude={"out", "name", "allow_code"})
        del data["cost"]["price_per_hour"]
        for name in ("texts", "tasks"):
            if not data["fidelity"][name]:
                del data["fidelity"][name]
        if not self.adaptive.enabled:
            del data["adaptive"]
        for variant, plan in zip(data["variants"], self.variants, strict=True):
            if plan.endpoint is None:
                del variant["endpoint"]
            else:
                variant["endpoint"] = plan.endpoint.measured()
        del data["parent_endpoint"]
        if self.parent_endpoint is not None:
            data["parent"] = {"endpoint": self.parent_endpoint.measured()}
        if self.prompts == PromptsPlan():
            del data["prompts"]
        del data["engine"]["gpu_memory"]
        return content_hash(data)


def _known_keys(model: type[BaseModel], location: tuple[int | str, ...]) -> list[str]:
    """The keys that are allowed where ``location`` points to, for suggestions."""
    current: type[BaseModel] = model
    for part in location[:-1]:
        if isinstance(part, int):
            continue
        annotation = current.model_fields[part].annotation
        for candidate in (annotation, *getattr(annotation, "__args__", ())):
            if isinstance(candidate, type) and issubclass(candidate, BaseModel):
                current = candidate
    return list(current.model_fields)


def explain(error: ValidationError, model: type[BaseModel], where: str) -> PlanError:
    """The first fault of a pydantic error as a message a user can act on."""
    fault = error.errors()[0]
    location = fault["loc"]
    path = ".".join(str(p) for p in location)
    if fault["type"] == "extra_forbidden":
        known = _known_keys(model, location)
        return PlanError(f"{where}: unknown key {path!r}", hint=nearest(str(location[-1]), known))
    message = fault["msg"].removeprefix("Value error, ")
    given = "" if isinstance(fault["input"], dict) else f" (given: {fault['input']!r})"
    return PlanError(f"{where}: {path + ': ' if path else ''}{message}{given}")


def parse_plan(data: Mapping[str, Any], where: str = "plan") -> Plan:
    """A checked plan.

    Raises:
        PlanError: an unknown key (the nearest is suggested), a value of the wrong kind, two
            variants with one name, a scheme that cannot be.
    """
    try:
        plan = Plan.model_validate(data)
    except ValidationError as error:
        raise explain(error, Plan, where) from None
    _check_variants(plan, where)
    return plan


def _check_variants(plan: Plan, where: str) -> None:
    seen: set[str] = {"parent"}
    for index, variant in enumerate(plan.variants):
        try:
            if variant.method:
                _ = variant.scheme
            label = variant.label
        except EvalqError as error:
            message = f"{where}: variants.{index}: {error.message}"
            raise PlanError(message, hint=error.hint) from None
        if label in seen:
            raise PlanError(
                f"{where}: two variants are named {label!r}",
                hint="Give each a 'name' of its own ('parent' is taken).",
            )
        seen.add(label)


def parse_variant(text: str) -> dict[str, Any]:
    """``--variant``'s value: ``METHOD:BITS[:gSIZE|channel][:asym][:a8][:kv4]``, ``artifact=DIR``
    or ``endpoint=URL[,model=NAME][,api=chat][,name=LABEL]…``.

    >>> parse_variant("gptq:4:g64:asym")
    {'method': 'gptq', 'bits': 4, 'group_size': 64, 'symmetric': False}

    Raises:
        PlanError: not of that form.
    """
    name, found, rest = text.partition("=")
    if found and name == "artifact":
        return {name: rest}
    if found and name == "endpoint":
        settings = parse_endpoint(rest)
        label = settings.pop("name", "")
        return {"endpoint": settings, **({"name": label} if label else {})}
    hint = "Write METHOD:BITS[:gSIZE|channel][:asym][:a8][:kv4], for example gptq:4:g64:asym."
    parts = text.split(":")
    if len(parts) < 2:
        raise PlanError(f"--variant {text!r} names no bits", hint=hint)
    try:
        out: dict[str, Any] = {"method": parts[0], "bits": int(parts[1].removeprefix("w"))}
        for part in parts[2:]:
            if part in ("asym", "sym"):
                out["symmetric"] = part == "sym"
            elif part == "channel":
                out["group_size"] = "channel"
            elif part[:2] == "kv":
                out["kv_bits"] = int(part[2:])
            elif part[:1] == "a":
                out["activation_bits"] = int(part[1:])
            else:
                out["group_size"] = int(part.removeprefix("g"))
    except ValueError:
        raise PlanError(f"--variant {text!r} cannot be read", hint=hint) from None
    return out


def parse_parent(text: str) -> str | dict[str, Any]:
    """``--parent``'s value: as in a plan, or ``endpoint=URL[,model=NAME][,api=chat]…``.

    Raises:
        PlanError: not of that form.
    """
    name, found, rest = text.partition("=")
    return {"endpoint": parse_endpoint(rest)} if found and name == "endpoint" else text


def parse_text(text: str) -> dict[str, str]:
    """``--text``'s value: ``FILE``, ``NAME=FILE`` or ``NAME@LANGUAGE=FILE``.

    >>> parse_text("news@sw=texts/habari.txt")
    {'file': 'texts/habari.txt', 'name': 'news', 'language': 'sw'}
    """
    head, found, file = text.partition("=")
    if not found or Path(text).is_file():
        return {"file": text}
    name, _, language = head.partition("@")
    return {"file": file, "name": name, "language": language}


def read_yaml(path: Path) -> Any:
    """The content of a YAML file.

    Raises:
        PlanError: no such file, or no YAML (with the line).
    """
    try:
        return yaml.safe_load(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise PlanError(f"cannot read {path}: {error.strerror}") from None
    except UnicodeDecodeError:
        raise PlanError(f"{path} is not UTF-8 text") from None
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        line = f", line {mark.line + 1}" if mark else ""
        raise PlanError(f"{path}{line}: {getattr(error, 'problem', error)}") from None


def load_plan(path: Path) -> dict[str, Any]:
    """The mapping in a plan file, not yet checked, so that flags can be laid over it.

    Paths in it (parent, artifacts, workloads, data_dir) stay as written; they are relative to the
    working directory, like those given as flags.

    Raises:
        PlanError: no such file, no YAML, or no mapping in it.
    """
    data = read_yaml(path)
    if not isinstance(data, dict):
        raise PlanError(f"{path} holds no mapping", hint="A plan is a YAML mapping of settings.")
    return data
