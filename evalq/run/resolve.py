"""From what a user typed to a plan with nothing left open."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from evalq.errors import PlanError
from evalq.plan import Plan, VariantPlan, parse_plan

if TYPE_CHECKING:
    from transformers import PretrainedConfig

__all__ = ["DEFAULT_VARIANTS", "resolve_plan", "resolve_variants"]

DEFAULT_VARIANTS: tuple[dict[str, Any], ...] = (
    *({"method": "rtn", "bits": b} for b in (8, 4, 3, 2)),
    *({"method": "gptq", "bits": b} for b in (4, 3, 2)),
    *({"method": "awq", "bits": b} for b in (4, 3, 2)),
)
"""The ladder that is measured where a plan names no variants."""

_BUILTIN_SUITES = ("builtin-math", "builtin-multilingual", "builtin-reasoning")


def resolve_plan(data: dict[str, Any], where: str = "plan") -> Plan:
    """A plan with variants, suites and an output directory.

    Raises:
        PlanError: see ``parse_plan``; or there is nothing to evaluate.
    """
    filled = dict(data)
    if not filled.get("variants"):
        filled["variants"] = [dict(v) for v in DEFAULT_VARIANTS]
    plan = parse_plan(filled, where)
    if not plan.suites and not plan.workloads:
        if plan.parent != "builtin":
            raise PlanError(
                f"nothing to evaluate {plan.parent} on",
                hint="Name a suite (--suite reasoning --data-dir DIR; see `evalq list suites`) or "
                "a workload of your own (--workload items.jsonl).",
            )
        plan = plan.model_copy(update={"suites": _BUILTIN_SUITES})
    if not plan.out:
        plan = plan.model_copy(update={"out": f"runs/{plan.name}"})
    return plan


def _widths(config: PretrainedConfig) -> set[int]:
    text = config.get_text_config()
    found = set()
    for name in ("hidden_size", "intermediate_size", "n_embd", "moe_intermediate_size"):
        value = getattr(text, name, None)
        if isinstance(value, int):
            found.add(value)
    return found


def resolve_variants(plan: Plan, config: PretrainedConfig) -> Plan:
    """The plan with a group size in every variant that is made and named none.

    The largest of 128, 64 and 32 that divides the parent's widths is taken, and the variant's label
    names it. A group size that the user gave stays as it is.

    Raises:
        PlanError: two variants have one name then.
    """
    widths = _widths(config)
    fitting = [g for g in (128, 64, 32) if all(w % g == 0 for w in widths)]
    size: int | str = fitting[0] if fitting else "channel"
    variants: list[dict[str, Any]] = []
    for variant in plan.variants:
        values = variant.model_dump()
        if variant.method and variant.group_size is None:
            # 8-bit activations go with one scale a row, in every format that holds them.
            values["group_size"] = "channel" if variant.activation_bits else size
        variants.append(values)
    data = plan.model_dump()
    data["variants"] = variants
    resolved = parse_plan(data)
    named = tuple(
        VariantPlan.model_validate({**v.model_dump(), "name": v.label}) for v in resolved.variants
    )
    return resolved.model_copy(update={"variants": named})
