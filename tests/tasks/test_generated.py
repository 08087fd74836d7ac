"""Generated prompts: the same everywhere, answerable, of the size asked for."""

from __future__ import annotations

import itertools
import re

import pytest

from evalq.errors import TaskError
from evalq.schema import Response
from evalq.tasks import build
from evalq.tasks.generated import key_value, needle, tracking


@pytest.mark.parametrize("make", [key_value, needle, tracking])
@pytest.mark.parametrize("size", [400, 3000])
def test_items_are_fixed_by_their_arguments(make, size: int) -> None:  # type: ignore[no-untyped-def]
    rows = make(characters=size, items=20, seed=3)["test"].to_list()
    assert rows == make(characters=size, items=20, seed=3)["test"].to_list()
    assert rows != make(characters=size, items=20, seed=4)["test"].to_list()
    assert rows[:5] == make(characters=size, items=5, seed=3)["test"].to_list()
    assert len({row["prompt"] for row in rows}) == 20
    assert all(0.6 * size <= len(row["prompt"]) <= size + 20 for row in rows)
    assert all(re.fullmatch(r"\d{4}", row["target"]) for row in rows)


@pytest.mark.parametrize("make", [key_value, needle])
def test_a_code_stands_once_and_is_the_one_asked_for(make) -> None:  # type: ignore[no-untyped-def]
    for row in make(characters=3000, items=30)["test"].to_list():
        text, question = row["prompt"].rsplit("Question:", 1)
        name = re.search(r"code of the ([\w ]+)\?", question)
        assert name is not None
        found = re.findall(rf"The code of the {name[1]} is (\d+)\.", text)
        assert found == [row["target"]]


@pytest.mark.parametrize("first", [10, 30, 100])
def test_needles_lie_at_all_depths_whatever_the_limit(first: int) -> None:
    rows = needle(characters=3000, items=100)["test"].to_list()[:first]
    depths = sorted(row["prompt"].index("The code of") / len(row["prompt"]) for row in rows)
    assert depths[0] < 0.05
    assert depths[-1] > 0.85
    gaps = [after - before for before, after in itertools.pairwise(depths)]
    assert max(gaps) < 1.9 / first + 0.03  # a line is 2 % of the prompt


def test_a_chain_leads_to_its_value() -> None:
    for row in tracking(characters=2000, items=20, hops=4)["test"].to_list():
        values: dict[str, str] = {}
        hops: dict[str, int] = {}
        for name, source in re.findall(r"Let (\w+) be (\w+)\.", row["prompt"]):
            values[name] = values.get(source, source)
            hops[name] = hops.get(source, -1) + 1
        asked = re.search(r"what number is (\w+)\?", row["prompt"])
        assert asked is not None
        assert values[asked[1]] == row["target"]
        assert hops[asked[1]] == 4


def test_sizes_that_hold_nothing() -> None:
    with pytest.raises(TaskError, match="cannot be generated"):
        key_value(characters=10, items=3)


def test_the_suite_needs_no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    def unreachable(*args: object, **kwargs: object) -> None:
        raise AssertionError("the network was asked")

    monkeypatch.setattr("evalq.tasks.load.socket.create_connection", unreachable)
    built = build(["long-generated:*_3k"], limit=10)
    assert [task.slice for task in built] == ["long/kv/3k", "long/needle/3k", "long/tracking/3k"]
    for task in built:
        right = [Response(text=f" {item.target}.") for item in task.items]
        assert [r.score for r in task.records(right)] == [1.0] * 10
        wrong = [Response(text=" I do not know") for _ in task.items]
        assert [r.score for r in task.records(wrong)] == [0.0] * 10


def test_the_built_in_long_suite_fits_its_parents_context() -> None:
    built = {task.name: task for task in build(["builtin-long"])}
    assert {len(task.items) for task in built.values()} == {100}
    for name, task in built.items():
        room = 0 if name == "builtin_long_text" else max(r.max_tokens or 0 for r in task.requests)
        longest = max(len(item.prompt.encode()) for item in task.items) + room
        shortest = min(len(item.prompt.encode()) for item in task.items)
        assert longest <= 1024
        assert shortest >= 750
