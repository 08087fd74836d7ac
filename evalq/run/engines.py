"""Whether the engine that a plan asks for can run it, said before a model is loaded."""

from __future__ import annotations

from importlib.util import find_spec
from typing import TYPE_CHECKING

from evalq.errors import MissingDependencyError, PlanError
from evalq.plan import EnginePlan, Plan

if TYPE_CHECKING:
    from evalq.models.base import ModelSource

__all__ = ["check_engine", "check_source"]


def check_engine(plan: Plan) -> None:
    """Refuse what vLLM cannot do here.

    Raises:
        MissingDependencyError: it is not installed.
        PlanError: a variant that only evalq's own engine can run.
    """
    if plan.engine.kind != "vllm":
        return
    if find_spec("vllm") is None:
        raise MissingDependencyError(
            "engine.kind is vllm, and vLLM is not installed",
            hint="Install it into this environment (pip install vllm; it needs a GPU), or leave "
            "engine.kind out.",
        )
    for variant in plan.variants:
        if variant.kv_bits is not None:
            raise PlanError(
                f"variant {variant.label!r} rounds its KV cache, which the vLLM engine does not",
                hint="Use engine.kind: transformers for it.",
            )


def check_source(plan: EnginePlan, source: ModelSource) -> None:
    """Refuse a parent that vLLM does not read.

    Raises:
        PlanError: a GGUF file.
    """
    if plan.kind == "vllm" and source.kind == "gguf":
        raise PlanError(
            f"the vLLM engine reads directories, and {source.path} is a GGUF file",
            hint="Give the original model's directory, or use engine.kind: transformers.",
        )
