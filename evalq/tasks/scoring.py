"""From lm-eval's metrics of one item to evalq's: one score in [0, 1], or a likelihood.

lm-eval computes; this only reads what it computed, and refuses what is no score of an item.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from evalq.errors import TaskError, nearest
from evalq.schema import Response

__all__ = [
    "FAULT",
    "LIKELIHOOD_METRICS",
    "Score",
    "choose_filter",
    "choose_metric",
    "chosen",
    "metrics_json",
    "missing_package",
]

FAULT = "fault"
"""Among an item's metrics: why its answer could not be scored. It then counts as wrong."""

LIKELIHOOD_METRICS = {
    "word_perplexity": "words",
    "byte_perplexity": "bytes",
    "bits_per_byte": "bytes",
    "perplexity": "items",
}
"""Metrics that are a function of a log-likelihood, and what it is divided by."""


@dataclass(frozen=True, slots=True)
class Score:
    """The primary metric of one item: ``value``, or ``nll`` (nats) over ``units``."""

    value: float | None
    nll: float | None
    units: int | None


def choose_metric(name: str, wanted: str, task: Any) -> str:
    """The primary metric: ``wanted``, or the task's first.

    Raises:
        TaskError: the task has no such metric, or lower is better by it.
    """
    known = list(task.aggregation())
    if not known:
        raise TaskError(f"task {name!r} declares no metric")
    metric = wanted or known[0]
    if metric not in known:
        raise TaskError(f"task {name!r} has no metric {metric!r}", hint=nearest(metric, known))
    if metric not in LIKELIHOOD_METRICS and not task.higher_is_better().get(metric, True):
        raise TaskError(
            f"metric {metric!r} of task {name!r} is better when lower, and cannot be a score",
            hint=f"Choose another as 'metric': {', '.join(known)}.",
        )
    return metric


def choose_filter(name: str, wanted: str, task: Any) -> str:
    """The lm-eval filter that metrics are taken of: ``wanted``, or the task's first.

    Raises:
        TaskError: the task has no such filter.
    """
    known = [str(ensemble.name) for ensemble in task._filters]
    chosen_filter = wanted or known[0]
    if chosen_filter not in known:
        raise TaskError(
            f"task {name!r} has no filter {chosen_filter!r}", hint=nearest(chosen_filter, known)
        )
    return chosen_filter


def read_score(metrics: Mapping[str, Any], metric: str, item: str) -> Score:
    """The primary metric of an item out of all that lm-eval computed.

    Raises:
        TaskError: the metric is missing, is no number, or is outside [0, 1].
    """
    if metric not in metrics:
        raise TaskError(f"{item} has no metric {metric!r}", hint=nearest(metric, metrics))
    value = metrics[metric]
    if metric in LIKELIHOOD_METRICS:
        total, units = value if isinstance(value, tuple | list) else (value, 1)
        if not math.isfinite(float(total)) or float(total) > 0 or int(units) < 1:
            raise TaskError(f"{item}: {metric!r} of log-likelihood {total} over {units} units")
        return Score(None, abs(float(total)), int(units))
    if not isinstance(value, bool | int | float | np.bool_ | np.integer | np.floating):
        raise TaskError(
            f"{item}: metric {metric!r} is computed over all items together, not of one",
            hint="Choose a metric that scores single items as 'metric' in the suite.",
        )
    score = float(value)
    if not 0.0 <= score <= 1.0:  # also refuses NaN
        raise TaskError(f"{item}: metric {metric!r} is {score}, not a score from 0 to 1")
    return Score(score, None, None)


def metrics_json(metrics: Mapping[str, Any]) -> str:
    """All metrics of an item as JSON; what JSON has no number for (NaN, infinities) is null."""
    return json.dumps(
        {str(k): _plain(v) for k, v in metrics.items()}, sort_keys=True, ensure_ascii=False
    )


def _plain(value: Any) -> Any:
    if isinstance(value, bool | np.bool_):
        return bool(value)
    if isinstance(value, int | np.integer):
        return int(value)
    if isinstance(value, float | np.floating):
        return float(value) if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {str(k): _plain(v) for k, v in value.items()}
    if isinstance(value, np.ndarray):
        return _plain(value.tolist())
    if isinstance(value, list | tuple | set):
        return [_plain(v) for v in value]
    return value if value is None else str(value)


def chosen(metric: str, choices: Sequence[str], responses: Sequence[Response]) -> str:
    """The option that a multiple-choice item was answered with, by the rule of its metric.

    Args:
        metric: ``acc_norm`` divides by characters, ``acc_bytes`` by bytes, ``acc_mutual_info``
            subtracts the unconditional likelihood; any other takes the likelihood as it is.
        choices: options, in order.
        responses: one an option, then (mutual information) one unconditional an option.
    """
    scores = np.array([float(r.logprob or 0.0) for r in responses])
    own = scores[: len(choices)]
    if metric == "acc_norm":
        own = own / np.array([float(len(c)) for c in choices])
    elif metric == "acc_bytes":
        own = own / np.array([float(len(c.encode("utf-8"))) for c in choices])
    elif metric == "acc_mutual_info":
        own = own - scores[len(choices) :]
    return str(choices[int(np.argmax(own))])


def missing_package(task: str, error: ImportError) -> TaskError:
    """The error for a task that cannot be built or scored without a package, which it names."""
    return TaskError(
        f"task {task!r} needs a package that is not installed: {error}",
        hint=f"pip install {error.name}" if error.name else "",
    )
