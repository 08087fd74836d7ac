"""Answers are asked once, batches run whole, and a resumed run repeats an unbroken one."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from evalq.errors import TaskError
from evalq.evaluate import answer_all, evaluate, stored_answers
from evalq.schema import Request, Response
from evalq.store import Journal


class KilledError(Exception):
    pass


@dataclass
class FakeEngine:
    """Answers with the composition of the batch, so that another composition would show."""

    settings: dict[str, Any] = field(default_factory=lambda: {"dtype": "float32"})
    die_after: int = 10**9
    batches: int = 0

    def supports(self, kind: str) -> bool:
        return kind != "loglikelihood"

    def plan(self, requests: Sequence[Request]) -> list[list[int]]:
        order = sorted(range(len(requests)), key=lambda i: len(requests[i].context))
        return [order[i : i + 3] for i in range(0, len(order), 3)]

    def answer(self, requests: Sequence[Request]) -> list[Response]:
        if self.batches == self.die_after:
            raise KilledError
        self.batches += 1
        mates = "|".join(r.context for r in requests)
        return [Response(text=f"{r.context} with {mates}", tokens_in=1) for r in requests]


REQUESTS = [Request("generate_until", "q" * (1 + i * 7 % 11)) for i in range(10)]


def test_interrupted_anywhere_the_answers_are_those_of_an_unbroken_run(tmp_path: Path) -> None:
    with Journal(tmp_path / "whole") as journal:
        whole = answer_all(FakeEngine(), "m", REQUESTS, journal)
    for death in range(4):
        with Journal(tmp_path / f"j{death}") as journal:
            with pytest.raises(KilledError):
                answer_all(FakeEngine(die_after=death), "m", REQUESTS, journal)
            assert stored_answers(FakeEngine(), "m", REQUESTS, journal) is None
            engine = FakeEngine()
            assert answer_all(engine, "m", REQUESTS, journal) == whole
            assert engine.batches == 4 - death
            assert stored_answers(engine, "m", REQUESTS, journal) == whole


def test_another_model_or_other_settings_are_asked_anew(tmp_path: Path) -> None:
    with Journal(tmp_path / "j") as journal:
        answer_all(FakeEngine(), "m", REQUESTS, journal)
        for engine, model in ((FakeEngine({"dtype": "bfloat16"}), "m"), (FakeEngine(), "m2")):
            answer_all(engine, model, REQUESTS, journal)
            assert engine.batches == 4


def test_a_task_that_cannot_be_answered_is_refused_before_the_first_request(
    tmp_path: Path,
) -> None:
    @dataclass
    class Task:
        name: str = "arc"
        requests: tuple[Request, ...] = (REQUESTS[0], Request("loglikelihood", "a", "b"))

    engine = FakeEngine()
    with (
        Journal(tmp_path / "j") as journal,
        pytest.raises(TaskError, match="arc asks for loglikelihood"),
    ):
        evaluate(engine, "v", "m", [Task()], journal)  # type: ignore[list-item]
    assert engine.batches == 0
