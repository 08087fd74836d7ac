"""Requests against lm-eval's own reading of generation settings."""

from __future__ import annotations

from typing import Any

import pytest
from lm_eval.api.instance import Instance
from lm_eval.models.utils import normalize_gen_kwargs

from evalq.errors import TaskError
from evalq.tasks.requests import to_requests


def generate(settings: dict[str, Any], repeats: int = 1) -> Instance:
    return Instance("generate_until", {}, ("ctx", settings), 0, metadata=("t", 0, repeats))


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"until": "\n"},
        {"until": ["a", "b"], "max_gen_toks": 5, "max_tokens": 9},
        {"max_new_tokens": "7", "do_sample": False, "temperature": 0.8},
        {"temperature": 0.8},
        {"temperature": 0.5, "do_sample": True, "top_p": 1.0},
        {"do_sample": False, "top_p": 0.9, "num_beams": 1},
    ],
)
def test_settings_are_read_as_lm_eval_reads_them(settings: dict[str, Any]) -> None:
    (request,) = to_requests([generate(settings)], "t")
    theirs = normalize_gen_kwargs(settings)
    assert list(request.until) == theirs["until"]
    assert request.temperature == theirs.get("temperature", 0.0)
    asked = any(key.startswith("max_") for key in settings)
    assert request.max_tokens == (theirs["max_gen_toks"] if asked else None)


@pytest.mark.parametrize(
    "settings",
    [
        {"num_beams": 4},
        {"do_sample": True, "temperature": 0.5, "top_p": 0.9},
        {"do_sample": True},
        {"repetition_penalty": 1.2},
    ],
)
def test_what_no_engine_does_is_refused(settings: dict[str, Any]) -> None:
    with pytest.raises(TaskError, match="task 't'"):
        to_requests([generate(settings)], "t")


def test_repeats_and_texts() -> None:
    twice = Instance("loglikelihood", {}, ("a", "b"), 0, metadata=("t", 0, 2))
    assert len(to_requests([twice], "t")) == 2
    number = Instance("loglikelihood", {}, ("a", 3), 0, metadata=("t", 0, 1))
    with pytest.raises(TaskError, match=r"no text: \['str', 'int'\]"):
        to_requests([number], "t")
    other = Instance("multiple_choice", {}, ("a", "b"), 0, metadata=("t", 0, 1))
    with pytest.raises(TaskError, match="which evalq cannot do"):
        to_requests([other], "t")
