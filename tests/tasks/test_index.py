"""The index of lm-eval's task names against lm-eval's own TaskManager."""

from __future__ import annotations

import time
from pathlib import Path

import pytest
from lm_eval.tasks import TaskManager
from lm_eval.tasks._index import Kind, TaskIndex

from evalq.errors import TaskError
from evalq.tasks import index
from evalq.tasks.suites import list_suites

FILES = {
    "a/plain.yaml": "task: plain\noutput_type: generate_until\n",
    "a/quoted.yaml": '"task": "quoted one"\n',
    "a/single.yaml": "'task': 'single'\n",
    "a/comment.yaml": "task: commented # not part of the name\n",
    "a/hash.yaml": "task: c#sharp\n",
    "a/number.yaml": "task: 123\n",
    "a/block.yaml": "task: >-\n  folded\n",
    "a/group.yaml": "group: many\ntask:\n  - plain\n  - single\n",
    "a/group_inline.yaml": "group: few\ntask: [plain]\n",
    "b/twice.yaml": "task: plain\n",
    "b/_base": "task: inherited\ndataset_path: x\n",
    "b/child.yaml": "include: _base\ndescription: 'task: no'\n",
    "b/override.yaml": "include: _base\ntask: own\n",
    "b/class.yaml": "task: python\nclass: !function x.Y\n",
    "b/text.yaml": "task: texty\ndoc_to_text: |\n  task: indented\n  group: no\n",
    "b/broken.yaml": "task: [unclosed\n",
    "b/empty.yaml": "",
    "b/none.yaml": "dataset_path: x\n",
    "b/crlf.yaml": "task: crlf\r\ndataset_path: x\r\n",
    "b/unicode.yaml": "task: tâche\n",
    "__pycache__/hidden.yaml": "task: hidden\n",
}


def theirs(entries: dict[str, object], kinds: set[Kind], folder: Path) -> dict[str, str]:
    return {
        str(name): str(entry.yaml_path.relative_to(folder))  # type: ignore[attr-defined]
        for name, entry in entries.items()
        if entry.kind in kinds  # type: ignore[attr-defined]
    }


def test_odd_files_are_indexed_as_lm_eval_indexes_them(tmp_path: Path) -> None:
    for name, text in FILES.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(text.encode())
    entries = dict(TaskIndex.build([tmp_path]))
    ours = index._scan(tmp_path)
    expected = theirs(entries, {Kind.TASK, Kind.PY_TASK}, tmp_path)
    expected.pop("123")  # a number is no name that a suite can ask for
    assert ours["tasks"] == expected
    assert ours["groups"] == theirs(entries, {Kind.GROUP}, tmp_path)


def test_names_of_our_suites_are_found_where_lm_eval_finds_them() -> None:
    names = [t.task for suite in list_suites() for t in suite.tasks if not t.file]
    assert len(names) > 70
    for name in names[::5]:
        entry = TaskIndex.entry_from_path(index.find_task(name))
        assert entry is not None
        assert entry.name == name


@pytest.mark.slow
def test_the_whole_index_equals_lm_evals() -> None:
    folder = index.lm_eval_tasks_folder()
    entries = dict(TaskManager().task_index)
    ours = index._scan(folder)
    assert ours["tasks"] == theirs(entries, {Kind.TASK, Kind.PY_TASK}, folder)
    assert ours["groups"] == theirs(entries, {Kind.GROUP}, folder)


def test_the_second_look_up_reads_the_cache() -> None:
    index.find_task("gsm8k")
    start = time.process_time()
    assert index.find_task("xcopa_sw").name == "default_sw.yaml"
    assert time.process_time() - start < 0.2


def test_a_torn_cache_is_made_anew() -> None:
    index.find_task("gsm8k")
    path = index._cache_file(index.lm_eval_tasks_folder())
    path.write_text(path.read_text()[:1000])
    assert index.find_task("gsm8k").name == "gsm8k.yaml"
    assert len(index.known_tasks()) > 10_000


def test_a_cache_that_cannot_be_written_is_done_without(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("EVALQ_CACHE_DIR", str(tmp_path / "file" / "below"))
    assert index.find_task("gsm8k").name == "gsm8k.yaml"


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("gsm8kk", "Did you mean 'gsm8k'"),
        ("bbh", "is a group of lm-eval tasks"),
    ],
)
def test_unknown_names(name: str, message: str) -> None:
    with pytest.raises(TaskError, match=message):
        index.find_task(name)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("task: [", "is no YAML"),
        ("include: nowhere.yaml", "cannot be read"),
        ("task: x\ndoc_to_text: !function gone.f", "cannot be read"),
        ("- a list", "cannot be read"),
    ],
)
def test_faulty_task_files(text: str, message: str, tmp_path: Path) -> None:
    path = tmp_path / "t.yaml"
    path.write_text(text)
    with pytest.raises(TaskError, match=message):
        index.load_config(path, allow_code=True)
    with pytest.raises(TaskError, match="there is no task file"):
        index.load_config(tmp_path / "gone.yaml")
