"""What a model writes ends no run; a scorer that is broken does."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest

from evalq.errors import TaskError
from evalq.evaluate import fault_warnings, refuse_unscorable
from evalq.schema import ItemRecord, Response
from evalq.tasks.bridge import BuiltTask, build

FUNCTIONS = """
def score(doc, results):
    if "boom" in results[0]:
        raise ZeroDivisionError("on " + results[0])
    if "package" in results[0]:
        import a_package_that_nobody_has
    return {"exact_match": float(results[0] == "yes")}
"""


def task(folder: Path, rows: int = 4) -> BuiltTask:
    lines = "".join(json.dumps({"q": f"q{i}", "a": "yes"}) + "\n" for i in range(rows))
    (folder / "items.jsonl").write_text(lines)
    (folder / "own.py").write_text(FUNCTIONS)
    (folder / "task.yaml").write_text(
        "task: own\ndataset_path: json\ndataset_kwargs: {data_files: {test: items.jsonl}}\n"
        "test_split: test\noutput_type: generate_until\ndoc_to_text: q\ndoc_to_target: a\n"
        "process_results: !function own.score\nmetric_list: [{metric: exact_match}]\n"
    )
    return build([], [folder / "task.yaml"], allow_code=True)[0]


def records(built: BuiltTask, *texts: str, variant: str = "parent") -> list[ItemRecord]:
    scored: list[Any] = built.records([Response(text=t) for t in texts])
    return [ItemRecord(variant=variant, variant_hash="h", **asdict(r)) for r in scored]


def test_an_answer_that_scoring_raises_on_is_wrong_and_said(tmp_path: Path) -> None:
    found = records(task(tmp_path), "yes", "boom", "no", "yes")
    assert [r.score for r in found] == [1.0, 0.0, 0.0, 1.0]
    assert "ZeroDivisionError('on boom')" in json.loads(found[1].metrics)["fault"]
    refuse_unscorable(found)
    (warning,) = fault_warnings(found)
    assert warning.startswith("parent: 1 answers to own could not be scored and count as wrong")


def test_a_filter_that_raises_takes_its_own_item_alone(tmp_path: Path) -> None:
    built = task(tmp_path)

    class Touchy:
        name = "none"

        def apply(self, instances: list[Any]) -> None:
            for instance in instances:
                if "bad" in instance.resps[0]:
                    raise RuntimeError("bad answer")
                instance.filtered_resps["none"] = instance.resps[0]

    built.task._filters = [Touchy()]
    found = records(built, "yes", "bad", "yes", "yes")
    assert [r.score for r in found] == [1.0, 0.0, 1.0, 1.0]
    assert "bad answer" in json.loads(found[1].metrics)["fault"]


def test_a_scorer_that_fails_on_most_of_the_parent_is_refused(tmp_path: Path) -> None:
    found = records(task(tmp_path), "boom", "boom", "boom", "yes")
    with pytest.raises(TaskError, match="3 of 4 answers of the parent cannot be scored"):
        refuse_unscorable(found)
    refuse_unscorable(records(task(tmp_path), "boom", "boom", "yes", "yes"))


def test_a_missing_package_is_no_fault_of_an_answer(tmp_path: Path) -> None:
    with pytest.raises(TaskError, match="a_package_that_nobody_has") as caught:
        records(task(tmp_path), "yes", "package", "no", "yes")
    assert caught.value.hint == "pip install a_package_that_nobody_has"
