from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from evalq.errors import PlanError
from evalq.tasks.index import find_task, load_config
from evalq.tasks.slices import in_slice, slice_tree
from evalq.tasks.suites import list_suites, load_suite


def suite(tmp_path: Path, **changes: Any) -> Path:
    data: dict[str, Any] = {
        "suite": "mine",
        "version": 2,
        "description": "one line",
        "tasks": [{"task": "gsm8k", "slice": "math"}, {"task": "arc_easy", "slice": "sci/arc"}],
    }
    path = tmp_path / "mine.yaml"
    path.write_text(yaml.safe_dump(data | changes))
    return path


def test_a_suite_file(tmp_path: Path) -> None:
    loaded = load_suite(suite(tmp_path))
    assert (loaded.name, loaded.version, loaded.description) == ("mine", 2, "one line")
    assert [t.task for t in loaded.tasks] == ["gsm8k", "arc_easy"]


def test_shipped_suites_pin_tasks_that_lm_eval_has() -> None:
    names = [s.name for s in list_suites()]
    assert {"math", "multilingual", "reasoning", "reasoning-zeroshot"} <= set(names)
    assert names == sorted(names)
    for loaded in list_suites():
        assert loaded.path.stem == loaded.name
        for task in loaded.tasks:
            config = load_config(Path(task.file) if task.file else find_task(task.task))
            assert config["task"] == task.task
            assert str(config["metadata"]["version"]) == task.version
            metrics = [m["metric"] for m in config["metric_list"]]
            assert not task.metric or task.metric in metrics
            filters = [f["name"] for f in config.get("filter_list") or [{"name": "none"}]]
            assert not task.filter or task.filter in filters
            top = loaded.name.removeprefix("builtin-").split("-")[0]
            # Fresh items belong to the slices of the suites that they confirm.
            tops = ("math", "reasoning") if top == "heldout" else (top,)
            assert any(in_slice(task.slice, name) for name in tops)


def test_languages_are_slices() -> None:
    slices = slice_tree(t.slice for t in load_suite("multilingual").tasks)
    assert {"multilingual", "multilingual/sw", "multilingual/sw/xcopa"} <= set(slices)
    assert slices.index("multilingual") < slices.index("multilingual/sw")


@pytest.mark.parametrize(
    ("selection", "count"),
    [
        ("multilingual", 21),
        ("multilingual:xcopa_*", 11),
        ("multilingual:xcopa_it,xcopa_sw", 2),
        ("multilingual:*_sw", 2),
        ("reasoning:bbh_*", 27),
        ("math:gsm8k", 1),
    ],
)
def test_selections(selection: str, count: int) -> None:
    assert len(load_suite(selection).tasks) == count


def test_a_selection_of_a_file(tmp_path: Path) -> None:
    assert [t.task for t in load_suite(f"{suite(tmp_path)}:arc*").tasks] == ["arc_easy"]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"taks": []}, r"unknown key 'taks'\n  Did you mean 'tasks'"),
        ({"tasks": [{"task": "a", "slize": "b"}]}, r"tasks.0.slize'\n  Did you mean 'slice'"),
        (
            {"tasks": [{"task": "a", "slice": "b", "data": {"layuot": "x"}}]},
            r"data.layuot'\n  Did you mean 'layout'",
        ),
        ({"tasks": []}, "tasks: Tuple should have at least 1 item"),
        ({"version": "two"}, "version: Input should be a valid integer"),
        ({"suite": "a b"}, "suite: String should match"),
        ({"tasks": [{"task": "a", "slice": "a//b"}]}, "'a//b' is not a slice"),
        ({"tasks": [{"task": "a", "slice": "b"}] * 2}, "listed twice"),
        ({"tasks": [{"task": "a", "slice": "b", "limit": 0}]}, "tasks.0.limit"),
    ],
)
def test_faults_are_named(changes: dict[str, Any], message: str, tmp_path: Path) -> None:
    with pytest.raises(PlanError, match=message):
        load_suite(suite(tmp_path, **changes))


def test_unknown_suites(tmp_path: Path) -> None:
    with pytest.raises(PlanError, match="Did you mean 'math'"):
        load_suite("maths")
    with pytest.raises(PlanError, match="cannot read"):
        load_suite(tmp_path / "gone.yaml")
    path = tmp_path / "list.yaml"
    path.write_text("- a\n")
    with pytest.raises(PlanError, match="holds no suite"):
        load_suite(path)
