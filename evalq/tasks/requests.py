"""lm-eval's instances as evalq's requests, and evalq's responses as lm-eval's."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import Any

from evalq.errors import TaskError
from evalq.schema import Request, Response
from evalq.tasks.prompts import Conversations

__all__ = ["as_lm_eval", "to_requests"]

_TOKEN_LIMITS = ("max_gen_toks", "max_new_tokens", "max_tokens", "max_completion_tokens")
"""In lm-eval's order of precedence."""

_NEUTRAL: dict[str, tuple[Any, ...]] = {
    "top_p": (1, 1.0, None),
    "top_k": (0, -1, None),
    "num_beams": (1, None),
    "num_return_sequences": (1, None),
    "use_cache": (True, False, None),
}
"""Settings that change no answer at these values."""

_SAMPLING_ONLY = {"top_p", "top_k", "typical_p", "min_p"}
"""Settings that greedy decoding does not look at."""


def to_requests(
    instances: Iterable[Any],
    task: str,
    conversations: Conversations | None = None,
    prompts: str = "",
) -> list[Request]:
    """One request an instance and repeat, in order.

    Args:
        instances: ``lm_eval.api.instance.Instance`` objects.
        task: for messages.
        conversations: the chat template that prompts were made with.
        prompts: its hash, with the system message's.

    Raises:
        TaskError: an instance that asks for what evalq's engines cannot do (beam search, sampling
            by anything but temperature), or a prompt that is no text.
    """
    out: list[Request] = []
    for instance in instances:
        kind = instance.request_type
        arguments = instance.args
        texts = arguments[:1] if kind == "generate_until" else arguments
        if not all(isinstance(text, str) for text in texts):
            raise TaskError(
                f"task {task!r}, document {instance.doc_id}: a prompt or a target is no text: "
                f"{[type(text).__name__ for text in texts]}"
            )
        if kind == "generate_until":
            said = conversations.of(arguments[0], task) if conversations else ()
            asked = _generate(arguments[0], arguments[1], int(instance.repeats), task)
            out += [replace(request, messages=said) for request in asked]
        elif kind == "loglikelihood":
            request = Request("loglikelihood", arguments[0], continuation=arguments[1])
            out += [request] * int(instance.repeats)
        elif kind == "loglikelihood_rolling":
            out += [Request("loglikelihood_rolling", arguments[0])] * int(instance.repeats)
        else:
            raise TaskError(f"task {task!r} asks for {kind!r}, which evalq cannot do")
    return [replace(request, prompts=prompts) for request in out] if prompts else out


def _generate(context: str, settings: Mapping[str, Any], repeats: int, task: str) -> list[Request]:
    """By the rules of lm-eval's ``normalize_gen_kwargs``; repeats differ in their seed alone."""
    left = dict(settings)
    until = left.pop("until", []) or []
    stops = (until,) if isinstance(until, str) else tuple(str(s) for s in until)
    limits = [left.pop(name, None) for name in _TOKEN_LIMITS]
    given = [int(n) for n in limits if n is not None]
    temperature = float(left.pop("temperature", 0.0) or 0.0)
    sample = left.pop("do_sample", None)
    if sample is False:
        temperature = 0.0
    elif sample and temperature == 0.0:
        raise TaskError(
            f"task {task!r} samples at temperature 0, which is not defined",
            hint="Set do_sample: false, or a temperature above 0.",
        )
    for key, value in left.items():
        ignored = key in _SAMPLING_ONLY and temperature == 0.0
        if not ignored and value not in _NEUTRAL.get(key, (None,)):
            raise TaskError(f"task {task!r} asks for {key}={value!r}, which evalq cannot do")
    return [
        Request(
            "generate_until",
            context,
            until=stops,
            max_tokens=given[0] if given else None,
            temperature=temperature,
            seed=index if temperature > 0 else 0,
        )
        for index in range(repeats)
    ]


def as_lm_eval(request: Request, response: Response, task: str) -> Any:
    """A response in the form that lm-eval's models return.

    Raises:
        TaskError: a log-probability that is missing or NaN, or nothing said of greediness.
    """
    if request.kind == "generate_until":
        return response.text
    logprob = response.logprob
    if logprob is None or math.isnan(logprob):
        raise TaskError(
            f"task {task!r}: the engine gave log-probability {logprob} for a {request.kind} request"
        )
    if request.kind == "loglikelihood_rolling":
        return logprob
    if response.greedy is None:
        raise TaskError(f"task {task!r}: the engine does not say whether an answer is greedy")
    return (logprob, response.greedy)
