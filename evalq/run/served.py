"""The endpoints of a run: opened and tried before anything is asked of anyone."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from evalq.errors import PlanError
from evalq.evaluate import check_supported, stored_answers
from evalq.plan import Plan
from evalq.run.timing import PARENT
from evalq.schema import TASK_TEXT

if TYPE_CHECKING:
    from evalq.models.endpoint import EndpointEngine
    from evalq.store import Journal
    from evalq.tasks.bridge import BuiltTask

__all__ = [
    "check_served",
    "check_served_plan",
    "open_served",
    "same_endpoints",
    "without_local_measures",
]


def check_served_plan(plan: Plan) -> None:
    """Refuse what an endpoint cannot be: a parent to make variants of, or one whose distributions
    are compared on the user's texts.

    Raises:
        PlanError: names the variant or the text.
    """
    asked = [text.label for text in plan.fidelity.texts] + [TASK_TEXT] * plan.fidelity.tasks
    if asked and not without_local_measures(plan).fidelity.enabled:
        why = "the parent and a variant have to be local" if plan.served else "fidelity is off"
        raise PlanError(
            f"distributions cannot be compared on the text {asked[0]!r}: {why}",
            hint="Leave --text and --task-text (fidelity.texts, fidelity.tasks) out.",
        )
    if plan.parent_endpoint is None:
        return
    for variant in plan.variants:
        if variant.endpoint is None and not variant.artifact:
            raise PlanError(
                f"variant {variant.label!r} is made from the parent's weights, and the parent is "
                "an endpoint",
                hint="Give variants as artifacts (artifact=DIR) or endpoints (endpoint=URL), or a "
                "local parent.",
            )


def without_local_measures(plan: Plan) -> Plan:
    """The plan without fidelity and costs where these have nothing to be measured on.

    Distributions are compared and models timed in this process: the parent has to be here, and a
    variant beside it.
    """
    if plan.parent_endpoint is None and any(v.endpoint is None for v in plan.variants):
        return plan
    return plan.model_copy(
        update={
            "fidelity": plan.fidelity.model_copy(update={"enabled": False}),
            "cost": plan.cost.model_copy(update={"enabled": False}),
        }
    )


def open_served(plan: Plan) -> dict[str, EndpointEngine]:
    """An engine for each endpoint of the run, by label.

    Raises:
        EndpointError: one that names no model, or does not answer.
    """
    if not plan.served:
        return {}
    from evalq.models.endpoint import EndpointEngine

    engines = {}
    if plan.parent_endpoint is not None:
        engines[PARENT] = EndpointEngine(plan.parent_endpoint)
    for variant in plan.variants:
        if variant.endpoint is not None:
            engines[variant.label] = EndpointEngine(variant.endpoint)
    return engines


def same_endpoints(engines: Mapping[str, EndpointEngine]) -> list[str]:
    """A warning for each label whose endpoint another one asks, too: its answers are shared."""
    first: dict[str, str] = {}
    return [
        f"{label} is the same endpoint and model as {other}: it was asked once for both"
        for label, engine in engines.items()
        if (other := first.setdefault(engine.identity, label)) != label
    ]


def check_served(
    engines: Mapping[str, EndpointEngine],
    tasks: Sequence[BuiltTask],
    journal: Journal,
) -> None:
    """Try every endpoint that still has to answer something.

    Raises:
        TaskError: a task that an endpoint cannot answer, by name.
        EndpointError: a wrong URL, key or model, or a server that gives no usable answer.
    """
    requests = [r for task in tasks for r in task.requests]
    open_ones = {
        label: engine
        for label, engine in engines.items()
        if stored_answers(engine, engine.identity, requests, journal) is None
    }
    # What needs no request to be known comes first.
    for label, engine in sorted(open_ones.items(), key=lambda pair: pair[1].api != "chat"):
        check_supported(engine, tasks, f"{label} ({engine.url}, {engine.api})")
    for engine in open_ones.values():
        engine.check()
