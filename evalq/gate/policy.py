"""A policy: what may be lost, where, and how sure one has to be. YAML in, checked with lines.

.. code-block:: yaml

    policy_version: 1
    alpha: 0.05
    metrics:
      accuracy: {margin_pp: 1.0}
      kl_mean: {max: 0.05}
    slices:
      default: {margin_pp: 2.0, min_items: 300}
      multilingual/*: {margin_pp: 3.0, role: advisory}
    require: [math]
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from evalq.errors import PlanError, nearest
from evalq.schema import content_hash

__all__ = [
    "DEFAULT",
    "AccuracyRule",
    "Limit",
    "LoadedPolicy",
    "Metrics",
    "Policy",
    "Role",
    "SliceRule",
    "load_policy",
    "parse_policy",
]

Role = Literal["mandatory", "supporting", "advisory"]
DEFAULT = "default"
"""The slice rule whose settings all others inherit, and that judges slices without their own."""

MOST_BYTES = 1 << 20


class _Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)

    @field_validator("*", mode="after")
    @classmethod
    def _finite(cls, value: Any) -> Any:
        if isinstance(value, float) and not math.isfinite(value):
            raise ValueError("must be a finite number")
        return value


class _Margin(_Section):
    """A loss of accuracy that is accepted: absolute, or relative to the baseline with a guard.

    Args:
        margin_pp: accuracy points.
        margin_relative: share of the baseline's accuracy, for example 0.02.
        floor_pp: least margin where it is relative, so that a low baseline leaves one at all.
    """

    margin_pp: float | None = Field(default=None, gt=0, lt=100)
    margin_relative: float | None = Field(default=None, gt=0, lt=1)
    floor_pp: float | None = Field(default=None, gt=0, lt=100)

    @model_validator(mode="after")
    def _one_margin(self) -> _Margin:
        if self.margin_pp is not None and self.margin_relative is not None:
            raise ValueError("give margin_pp or margin_relative, not both")
        if self.margin_relative is not None and self.floor_pp is None:
            raise ValueError("margin_relative needs floor_pp, the guard for low baselines")
        if self.floor_pp is not None and self.margin_relative is None:
            raise ValueError("floor_pp goes with margin_relative")
        return self


class _Roled(_Section):
    """``role`` says what a verdict does; ``mandatory: true`` and ``false`` are short for two.

    mandatory: has to pass. supporting: must not fail. advisory: is only told.
    """

    role: Role | None = None
    mandatory: bool | None = None

    @model_validator(mode="after")
    def _one_role(self) -> _Roled:
        if self.role is not None and self.mandatory is not None:
            raise ValueError("give role or mandatory, not both")
        return self

    @property
    def asked(self) -> Role | None:
        """The role that was written down, if one was."""
        if self.mandatory is None:
            return self.role
        return "mandatory" if self.mandatory else "advisory"


class AccuracyRule(_Margin, _Roled):
    """The margin of the pooled accuracy over all items."""

    @model_validator(mode="after")
    def _some_margin(self) -> AccuracyRule:
        if self.margin_pp is None and self.margin_relative is None:
            raise ValueError("accuracy needs margin_pp or margin_relative")
        return self


class Limit(_Roled):
    """A limit that the interval's far end has to keep.

    Args:
        max, min: in the metric's own unit.
        max_ratio, min_ratio: of the baseline's value (costs only).
    """

    max: float | None = Field(default=None, gt=0)
    min: float | None = Field(default=None, gt=0)
    max_ratio: float | None = Field(default=None, gt=0)
    min_ratio: float | None = Field(default=None, gt=0)

    @model_validator(mode="after")
    def _one_limit(self) -> Limit:
        if len(self.given) != 1:
            raise ValueError("give exactly one of max, min, max_ratio and min_ratio")
        return self

    @property
    def given(self) -> tuple[str, ...]:
        """Names of the limits that are set."""
        return tuple(n for n in LIMITS if getattr(self, n) is not None)

    @property
    def value(self) -> float:
        """The limit itself."""
        return float(getattr(self, self.given[0]))

    @property
    def is_max(self) -> bool:
        """Whether more is worse."""
        return self.given[0].startswith("max")

    @property
    def is_ratio(self) -> bool:
        """Whether the limit is of the ratio to the baseline."""
        return self.given[0].endswith("ratio")


LIMITS = ("max", "min", "max_ratio", "min_ratio")
SENSE = {
    "ppl_ratio": ("max",),
    "kl_mean": ("max",),
    "top1": ("min",),
    "bytes_on_disk": ("max", "max_ratio"),
    "bits_per_weight": ("max", "max_ratio"),
    "peak_memory_bytes": ("max", "max_ratio"),
    "prefill_tokens_per_second": ("min", "min_ratio"),
    "decode_tokens_per_second": ("min", "min_ratio"),
}
"""Which limits make sense for which metric."""


class _Limited(_Section):
    @model_validator(mode="after")
    def _sense(self) -> _Limited:
        for name, allowed in SENSE.items():
            limit = getattr(self, name, None)
            if limit is None:
                continue
            if limit.given[0] not in allowed:
                raise ValueError(f"{name} takes {' or '.join(allowed)}, not {limit.given[0]}")
            if name == "top1" and limit.value > 1:
                raise ValueError("top1 is a share of tokens: min is at most 1")
        return self


class Metrics(_Limited):
    """What is judged over everything. A metric that is not named is not judged.

    Args:
        accuracy: against the baseline, over all items.
        ppl_ratio: perplexity over the parent's (held-out text, and perplexity tasks).
        kl_mean: mean KL divergence from the parent, nats a token.
        top1: share of tokens where both find the same token likeliest.
        bytes_on_disk … decode_tokens_per_second: as in ``costs.parquet``.
    """

    accuracy: AccuracyRule | None = None
    ppl_ratio: Limit | None = None
    kl_mean: Limit | None = None
    top1: Limit | None = None
    bytes_on_disk: Limit | None = None
    bits_per_weight: Limit | None = None
    peak_memory_bytes: Limit | None = None
    prefill_tokens_per_second: Limit | None = None
    decode_tokens_per_second: Limit | None = None


class SliceRule(_Margin, _Roled, _Limited):
    """What is judged on a slice. What a rule leaves open is taken from the rule ``default``.

    Args:
        min_items: fewer make the slice advisory.
        correction: ``holm`` (a fail has to survive it) or ``none``.
        ppl_ratio, kl_mean, top1: limits on this slice of the held-out text or perplexity tasks.
    """

    min_items: int | None = Field(default=None, ge=1)
    correction: Literal["holm", "none"] | None = None
    ppl_ratio: Limit | None = None
    kl_mean: Limit | None = None
    top1: Limit | None = None


class Policy(_Section):
    """A whole policy.

    Args:
        alpha: one-sided error of every pass, and of all fails of a variant together.
        on_inconclusive: exit code of an inconclusive gate: 3, or 1 or 0 for the bold.
        cluster_by: what makes items dependent; ``document_id`` is the ``cluster`` of item records
            and the ``document`` of fidelity records.
        require: slices or suites without which nothing is certified.
        negative_control: whether the parent has to have been run against itself.
    """

    policy_version: Literal[1]
    alpha: float = Field(default=0.05, gt=0, lt=0.5)
    on_inconclusive: Literal[0, 1, 3] = 3
    cluster_by: Literal["document_id", "cluster"] = "document_id"
    metrics: Metrics = Metrics()
    slices: dict[str, SliceRule] = Field(default_factory=dict)
    require: list[str] = Field(default_factory=list)
    negative_control: Literal["required", "optional"] = "required"

    @field_validator("slices")
    @classmethod
    def _patterns(cls, value: dict[str, SliceRule]) -> dict[str, SliceRule]:
        for pattern in value:
            parts = pattern.split("/")
            if not pattern or any(not p or p != p.strip() for p in parts):
                raise ValueError(f"{pattern!r} is no slice: write parts joined by single slashes")
        return value

    @field_validator("require")
    @classmethod
    def _required(cls, value: list[str]) -> list[str]:
        if any(not name.strip() for name in value):
            raise ValueError("an entry is empty")
        return value

    @model_validator(mode="after")
    def _judges_something(self) -> Policy:
        named = self.metrics.model_dump(exclude_none=True)
        if not named and not self.slices:
            raise ValueError("nothing is judged: give metrics or slices")
        return self

    @property
    def confidence(self) -> float:
        """Of the two-sided intervals that verdicts rest on: 1 - 2 alpha."""
        return 1 - 2 * self.alpha

    @property
    def hash(self) -> str:
        """Identity of what the policy asks; comments and the order of keys do not count."""
        return content_hash(self.model_dump(mode="json"))


KeyPath = tuple[str | int, ...]


@dataclass(frozen=True)
class LoadedPolicy:
    """A policy with the place that it was read from.

    Args:
        path: as given by the user; annotations point there.
        lines: line (from 1) of every key and list entry, by its path.
    """

    policy: Policy
    path: str
    lines: Mapping[KeyPath, int]

    def line(self, *path: str | int) -> int:
        """Line of the innermost part of ``path`` that the file has; 1 if none."""
        for end in range(len(path), 0, -1):
            if path[:end] in self.lines:
                return self.lines[path[:end]]
        return 1


class _Loader(yaml.SafeLoader):
    """YAML without aliases: a small file of them can stand for an endless policy."""

    def compose_node(self, parent: Any, index: Any) -> Any:
        """Compose one node, refusing an alias."""
        if self.check_event(yaml.AliasEvent):
            mark = self.peek_event().start_mark  # type: ignore[no-untyped-call]
            raise yaml.MarkedYAMLError(problem="aliases are not allowed", problem_mark=mark)
        return super().compose_node(parent, index)


def _walk(node: yaml.Node, path: KeyPath, where: str) -> Iterator[tuple[KeyPath, int]]:
    if isinstance(node, yaml.MappingNode):
        seen: set[str] = set()
        for key, value in node.value:
            name = str(getattr(key, "value", ""))
            line = key.start_mark.line + 1
            if name in seen:
                raise PlanError(
                    f"{where}:{line}: the key {name!r} is given twice",
                    hint="YAML would drop the first without a word: merge the two.",
                )
            seen.add(name)
            yield (*path, name), line
            yield from _walk(value, (*path, name), where)
    elif isinstance(node, yaml.SequenceNode):
        for index, value in enumerate(node.value):
            yield (*path, index), value.start_mark.line + 1
            yield from _walk(value, (*path, index), where)


def _known_keys(location: KeyPath) -> list[str]:
    """The keys allowed beside the last part of ``location``."""
    model: type[BaseModel] = Policy
    for part in location[:-1]:
        if part == "metrics" and model is Policy:
            model = Metrics
        elif part == "slices" and model is Policy:
            model = SliceRule
        elif part == "accuracy":
            model = AccuracyRule
        elif part in SENSE:
            model = Limit
    return list(model.model_fields)


def _explain(error: ValidationError, loaded: Mapping[KeyPath, int], where: str) -> PlanError:
    messages, hint = [], ""
    for fault in error.errors():
        location = tuple(fault["loc"])
        line = 1
        for end in range(len(location), 0, -1):
            if location[:end] in loaded:
                line = loaded[location[:end]]
                break
        name = ".".join(str(p) for p in location)
        if fault["type"] == "extra_forbidden":
            messages.append(f"{where}:{line}: unknown key {name!r}")
            hint = hint or nearest(str(location[-1]), _known_keys(location))
            continue
        message = fault["msg"].removeprefix("Value error, ")
        given = (
            "" if isinstance(fault["input"], dict | BaseModel) else f" (given: {fault['input']!r})"
        )
        messages.append(f"{where}:{line}: {name + ': ' if name else ''}{message}{given}")
    return PlanError("\n".join(messages), hint=hint)


def parse_policy(text: str, where: str = "policy") -> LoadedPolicy:
    """A checked policy.

    Args:
        text: YAML.
        where: for messages, and the path that annotations point to.

    Raises:
        PlanError: no YAML, a key given twice, or all that is wrong with the policy, each with its
            line; for an unknown key the nearest one is suggested.
    """
    try:
        node = yaml.compose(text, Loader=_Loader)
        data = yaml.load(text, Loader=_Loader)
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        line = mark.line + 1 if mark else 1
        raise PlanError(f"{where}:{line}: {getattr(error, 'problem', None) or error}") from None
    except (RecursionError, ValueError) as error:
        raise PlanError(f"{where}:1: cannot be read: {error}") from None
    if not isinstance(data, dict) or node is None:
        raise PlanError(
            f"{where}:1: holds no mapping", hint="`evalq policy init RUN` writes a policy."
        )
    lines = dict(_walk(node, (), where))
    if "policy_version" in data and data["policy_version"] != 1:
        raise PlanError(
            f"{where}:{lines[('policy_version',)]}: policy version {data['policy_version']!r} is "
            "not known to this evalq",
            hint="It reads version 1.",
        )
    try:
        policy = Policy.model_validate(_text_keys(data, where, lines))
    except ValidationError as error:
        raise _explain(error, lines, where) from None
    return LoadedPolicy(policy, where, lines)


def _text_keys(data: Any, where: str, lines: Mapping[KeyPath, int], path: KeyPath = ()) -> Any:
    """``data``, refused if a key is no text: YAML reads 2024 as a number and `on` as true."""
    if isinstance(data, dict):
        for key, value in data.items():
            if not isinstance(key, str):
                line = lines.get(path, 1)
                raise PlanError(
                    f"{where}:{line}: the key {key!r} is no text",
                    hint=f'Put it in quotes: "{key}".',
                )
            _text_keys(value, where, lines, (*path, key))
    return data


def load_policy(path: Path) -> LoadedPolicy:
    """The policy in a file.

    Raises:
        PlanError: as ``parse_policy``, or a file that cannot be read.
    """
    try:
        raw = Path(path).read_bytes()
    except OSError as error:
        raise PlanError(
            f"cannot read the policy {path}: {error.strerror}",
            hint="`evalq policy init RUN` writes one.",
        ) from None
    if len(raw) > MOST_BYTES:
        raise PlanError(f"{path} is no policy: it has more than 1 MiB")
    try:
        text = raw.decode("utf-8-sig")
    except UnicodeDecodeError:
        raise PlanError(f"{path} is not UTF-8 text") from None
    return parse_policy(text, str(path))
