from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from evalq.errors import PlanError, TaskError
from evalq.tasks.bridge import build
from evalq.tasks.data import LAYOUTS, Spec, find_local, read_jsonl, to_dataset
from evalq.tasks.suites import load_suite


def spec(path: str, config: str = "", *splits: str, **more: str) -> Spec:
    return Spec(path, config, splits or ("test",), **more)


def test_every_real_copy_builds_without_a_network(
    shared_data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def unreachable(*args: Any, **kwargs: Any) -> None:
        raise AssertionError("the network was asked")

    monkeypatch.setattr("evalq.tasks.load.socket.create_connection", unreachable)
    picks = ["math", "multilingual", "reasoning:bbh_*", "reasoning-zeroshot"]
    built = build(picks, data_dir=shared_data, limit=2)
    assert len(built) == 2 + 21 + 27 + 27
    assert all(len(b.items) == 2 for b in built)
    notes = {b.name: b.notes for b in built if b.notes}
    assert list(notes) == ["gsm8k"]


def test_mgsm_columns(shared_data: Path) -> None:
    local = find_local(spec("juletxara/mgsm", "sw", "train", "test"), shared_data)
    assert local is not None
    rows = local.splits["test"]
    assert len(rows) == 250
    assert "train" not in local.splits
    assert rows[0]["question"].startswith("Bata wa Janet")
    assert rows[0]["answer_number"] == 18
    assert 114200 in [row["answer_number"] for row in rows]  # "114,200" in the file


def test_a_split_that_a_copy_lacks_is_empty_and_asking_for_examples_of_it_fails(
    shared_data: Path, tmp_path: Path
) -> None:
    suite = load_suite("math").path.read_text().replace("mgsm_direct_en", "mgsm_direct_sw")
    path = tmp_path / "s.yaml"
    path.write_text(suite.replace("slice: math/mgsm", "slice: math/mgsm\n    num_fewshot: 4"))
    with pytest.raises(TaskError, match=r"takes 4 examples and the data has 0"):
        build([f"{path}:mgsm_direct_sw"], data_dir=shared_data)


def test_arc_in_the_layout_of_its_authors(tmp_path: Path) -> None:
    item = {
        "id": "M1",
        "question": {
            "stem": "Which is hot?",
            "choices": [{"text": "ice", "label": "A"}, {"text": "fire", "label": "B"}],
        },
        "answerKey": "B",
    }
    folder = tmp_path / "arc" / "ARC-Easy"
    folder.mkdir(parents=True)
    for name in ("Train", "Dev", "Test"):
        (folder / f"ARC-Easy-{name}.jsonl").write_text(json.dumps(item) + "\n")
    (built,) = build(["reasoning:arc_easy"], data_dir=tmp_path)
    assert [r.continuation for r in built.requests] == [" ice", " fire"]
    assert built.items[0].target == "fire"
    assert built.requests[0].context == "Question: Which is hot?\nAnswer:"


@pytest.mark.parametrize("place", ["allenai/ai2_arc", "allenai__ai2_arc", "ai2_arc"])
@pytest.mark.parametrize("suffix", ["jsonl", "json", "csv", "parquet"])
def test_the_layouts_of_the_hub(place: str, suffix: str, tmp_path: Path) -> None:
    import pandas as pd

    folder = tmp_path / place / "ARC-Easy"
    folder.mkdir(parents=True)
    frame = pd.DataFrame({"id": ["a", "b"], "text": ["x,\n1", "ÿ"]})
    path = folder / f"test-00000-of-00001.{suffix}"
    if suffix == "csv":
        frame.to_csv(path, index=False)
    elif suffix == "parquet":
        frame.to_parquet(path)
    else:
        frame.to_json(path, orient="records", lines=suffix == "jsonl", force_ascii=False)
    local = find_local(spec("allenai/ai2_arc", "ARC-Easy", layout="hub"), tmp_path)
    assert local is not None
    assert local.splits == {"test": [{"id": "a", "text": "x,\n1"}, {"id": "b", "text": "ÿ"}]}


def test_a_missing_copy_names_the_file_and_the_dataset(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def unreachable(*args: Any, **kwargs: Any) -> None:
        raise OSError("no network")

    monkeypatch.setattr("evalq.tasks.load.socket.create_connection", unreachable)
    monkeypatch.setenv("HF_HOME", str(tmp_path))
    with pytest.raises(TaskError) as caught:
        build(["multilingual:xcopa_sw"], data_dir=tmp_path)
    assert "cambridgeltl/xcopa (sw)" in caught.value.message
    assert str(tmp_path / "xcopa" / "test.sw.jsonl") in caught.value.hint
    with pytest.raises(TaskError, match=r"data directory .* is not there"):
        build(["multilingual:xcopa_sw"], data_dir=tmp_path / "gone")


def test_unknown_layouts_are_refused(tmp_path: Path) -> None:
    with pytest.raises(PlanError, match="Did you mean 'gsm8k'"):
        find_local(spec("x", layout="gsmk8"), tmp_path)
    assert "hub" in LAYOUTS


@pytest.mark.parametrize(
    ("name", "layout", "text", "message"),
    [
        ("mgsm_sw.tsv", "mgsm", "question\tseven\n", "line 1: not question, tab"),
        ("mgsm_sw.tsv", "mgsm", "one\t1\ntwo 2\n", "line 2: not question, tab"),
        ("sw.json", "bbh", '{"items": []}', "is not a BIG-Bench Hard file"),
        ("test.jsonl", "gsm8k", '{"a": 1}\n{"a": \n', "line 2: no JSON"),
        ("test.jsonl", "gsm8k", "[1]\n", "line 1: not a JSON object"),
        ("sw-Test.jsonl", "arc", '{"id": 1, "question": {}}\n', "item 1: not an ARC question"),
    ],
)
def test_faulty_files_are_named(
    name: str, layout: str, text: str, message: str, tmp_path: Path
) -> None:
    (tmp_path / "here").mkdir()
    (tmp_path / "here" / name).write_text(text)
    with pytest.raises(TaskError, match=message):
        find_local(spec("x", "sw", layout=layout, folder="here"), tmp_path)


def test_jsonl_lines_end_at_newlines_only(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_bytes('{"a": "x\u2028y\x85z"}\r\n\n{"a": "2"}'.encode())
    assert read_jsonl(path) == [{"a": "x\u2028y\x85z"}, {"a": "2"}]
    path.write_bytes(b'{"a": "\xff"}\n')
    with pytest.raises(TaskError, match="not UTF-8"):
        read_jsonl(path)


def test_datasets_keep_text_that_looks_like_dates() -> None:
    rows = [{"when": "2024-01-02"}, {"when": "2024-01-02T03:04:05", "more": 1}]
    made = to_dataset({"test": rows}, ("train", "test"))
    assert made["test"][0] == {"when": "2024-01-02", "more": None}
    assert made["test"][1]["when"] == "2024-01-02T03:04:05"
    assert len(made["train"]) == 0
    with pytest.raises(TaskError, match="do not make one table"):
        to_dataset({"test": [{"a": 1}, {"a": "x"}]}, ())


@pytest.mark.parametrize(
    ("spec", "file", "content", "rows"),
    [
        (
            Spec("EleutherAI/hendrycks_math", "algebra", ("test",)),
            "MATH/test/algebra/1.json",
            '{"problem": "1+1", "solution": "2"}',
            [{"problem": "1+1", "solution": "2"}],
        ),
        (
            Spec("EleutherAI/hendrycks_math", "algebra", ("test",)),
            "MATH/algebra/test.jsonl",
            '{"problem": "1+1"}',
            [{"problem": "1+1"}],
        ),
        (
            Spec("facebook/belebele", "swh_Latn", ("test",)),
            "belebele/data/swh_Latn.jsonl",
            '{"question": "q"}',
            [{"question": "q"}],
        ),
        (
            Spec("google/IFEval", "", ("train",)),
            "ifeval/input_data.jsonl",
            '{"prompt": "p"}',
            [{"prompt": "p"}],
        ),
        (
            Spec("Xnhyacinth/LongBench", "hotpotqa", ("test",)),
            "longbench/data/hotpotqa.jsonl",
            '{"context": "c"}',
            [{"context": "c"}],
        ),
        (
            Spec("CohereForAI/Global-MMLU-Lite", "sw", ("test", "dev")),
            "Global-MMLU-Lite/sw/test-00000-of-00001.jsonl",
            '{"sample_id": "a/1"}',
            [{"sample_id": "a/1"}],
        ),
    ],
)
def test_layouts_of_upstream_and_hub(
    spec: Spec, file: str, content: str, rows: list[dict[str, str]], tmp_path: Path
) -> None:
    path = tmp_path / file
    path.parent.mkdir(parents=True)
    path.write_text(content + "\n")
    found = find_local(spec, tmp_path)
    assert found is not None
    assert found.splits == {spec.splits[0]: rows}
    assert found.files == (path,)
