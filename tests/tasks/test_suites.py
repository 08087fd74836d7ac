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
            path = Path(task.file) if task.file else find_task(task.task)
            config = load_config(path, resolve=False)
            assert config["task"] == task.task
            assert str(config["metadata"]["version"]) == task.version
            metrics = [m["metric"] for m in config["metric_list"]]
            assert not task.metric or task.metric in metrics
            filters = [f["name"] for f in config.get("filter_list") or [{"name": "none"}]]
            assert not task.filter or task.filter in filters
            assert task.weight > 0
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


ECOSYSTEM = {
    "math": ("gsm8k", "gsm8k_platinum", "mgsm_direct_en", "minerva_math_algebra"),
    "multilingual": ("mgsm_direct_sw", "xcopa_qu", "belebele_yor_Latn", "xstorycloze_my",
                     "global_mmlu_sw_stem"),
    "reasoning": ("bbh_cot_fewshot_navigate", "arc_challenge", "leaderboard_musr_team_allocation",
                  "gpqa_main_zeroshot"),
    "knowledge": ("mmlu_pro_law",),
    "instructions": ("ifeval",),
    "long": ("longbench_passage_retrieval_en", "longbench2_many_shot"),
}  # fmt: skip


@pytest.mark.parametrize("top", sorted(ECOSYSTEM))
def test_the_ecosystems_suites_are_there(top: str) -> None:
    listed = {t.task: t.slice for s in list_suites() for t in s.tasks}
    for task in ECOSYSTEM[top]:
        assert in_slice(listed[task], top)


def test_languages_of_few_resources_are_slices_of_their_own() -> None:
    slices = slice_tree(t.slice for s in list_suites() for t in s.tasks)
    for language in ("sw", "yo", "qu", "ht", "am", "ha", "wo", "zu", "my", "te"):
        assert f"multilingual/{language}" in slices


def test_weights_multiply(tmp_path: Path) -> None:
    tasks = [{"task": "gsm8k", "slice": "math", "weight": 3}, {"task": "arc_easy", "slice": "a"}]
    loaded = load_suite(suite(tmp_path, tasks=tasks, weight=0.5))
    assert [t.weight for t in loaded.tasks] == [1.5, 0.5]
    for wrong in (0, -1, float("inf")):
        with pytest.raises(PlanError, match="weight"):
            load_suite(suite(tmp_path, weight=wrong))


def test_packages_that_are_missing_are_named() -> None:
    from evalq.errors import MissingDependencyError
    from evalq.tasks.packages import check_packages, missing_packages
    from evalq.tasks.suites import SuiteTask

    def entry(*packages: str) -> SuiteTask:
        return SuiteTask(task="t", slice="s", packages=packages)

    assert missing_packages(entry("numpy", "PyYAML>=5")) == ()
    wanted = ("numpy", "a-package-that-nobody-has==1.*", "numpy<1")
    assert missing_packages(entry(*wanted)) == wanted[1:]
    with pytest.raises(MissingDependencyError, match="a-package-that-nobody-has") as caught:
        check_packages(entry(*wanted))
    assert caught.value.hint == "pip install 'a-package-that-nobody-has==1.*' 'numpy<1'"
    with pytest.raises(PlanError, match="no requirement"):
        missing_packages(entry("not a package!"))
    # What the shipped suites name is what lm-eval's code of these tasks imports.
    named = {t.task: t.packages for s in list_suites() for t in s.tasks if t.packages}
    assert "langdetect" in named["ifeval"]
    assert any(p.startswith("antlr4") for p in named["minerva_math_algebra"])
