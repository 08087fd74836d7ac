"""Calibration text: sources, mixtures with shares, and nothing of it that is evaluated."""

from __future__ import annotations

import json
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest

from evalq.calibrate import quotas, read_calibration
from evalq.errors import PlanError, QuantizationError, TaskError
from evalq.plan import CalibrationPlan, parse_plan, parse_shares
from evalq.quantize.calibration import overlap_warning
from evalq.tasks import build


class Letters:
    """One token a character, so that windows can be read back."""

    bos_token_id = eos_token_id = None

    def __call__(self, text, add_special_tokens=True):
        return {"input_ids": [ord(c) for c in text]}


def plan(source, samples=10, length=16, **more):
    return CalibrationPlan(source=source, samples=samples, length=length, **more)


def read(source, tasks=(), samples=10, **more):
    wanted = plan(source, samples, **more)
    return read_calibration(wanted, Letters(), builtin_parent=False, seed=3, tasks=tasks)


@pytest.fixture
def two(tmp_path: Path) -> tuple[Path, Path]:
    (tmp_path / "a.txt").write_text("a" * 2000)
    (tmp_path / "b.jsonl").write_text(json.dumps({"text": "b" * 2000}) + "\n")
    return tmp_path / "a.txt", tmp_path / "b.jsonl"


def test_largest_remainder_against_exact_arithmetic() -> None:
    rng = np.random.default_rng(0)
    for _ in range(200):
        count = int(rng.integers(1, 6))
        parts = rng.integers(20, 60, size=count)
        total = int(parts.sum())
        shares = {f"s{i}": int(p) / total for i, p in enumerate(parts)}
        windows = int(rng.integers(20, 300))
        found = quotas(shares, windows)
        exact = {n: Fraction(int(p), total) * windows for n, p in zip(shares, parts, strict=True)}
        assert sum(found.values()) == windows
        for name, count_ in found.items():
            assert int(exact[name]) <= count_ <= int(exact[name]) + 1
        up = [exact[n] % 1 for n in found if found[n] > int(exact[n])]
        down = [exact[n] % 1 for n in found if found[n] == int(exact[n])]
        assert not up or not down or min(up) >= max(down)


def test_shares_that_floats_round_down_lose_no_window() -> None:
    assert quotas({"a": 0.7, "b": 0.2, "c": 0.1}, 10) == {"a": 7, "b": 2, "c": 1}
    assert quotas({"a": 0.5, "b": 0.5}, 3) == {"a": 2, "b": 1}
    with pytest.raises(PlanError, match="gives 'b' none"):
        quotas({"a": 0.99, "b": 0.01}, 10)


@pytest.mark.parametrize(
    ("text", "shares"),
    [
        ("auto", {"auto": 1}),
        ("suite:math,reasoning", {"suite:math,reasoning": 1}),
        ("a=b.txt", {"a=b.txt": 1}),
        ("suite:math,x=0.5,t.txt=.3,w.jsonl=0.2", {"suite:math,x": 0.5, "t.txt": 0.3,
                                                   "w.jsonl": 0.2}),
        ({"a": 0.25, "b": 0.75}, {"a": 0.25, "b": 0.75}),
    ],
)  # fmt: skip
def test_mixtures_as_they_are_written(text, shares) -> None:
    assert parse_shares(text) == shares
    assert CalibrationPlan(source=text).shares == shares


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("a=0.5,b=0.3", "add up to 0.8"),
        ("a=0.5,b", "each source with its share"),
        ("a=0.5,a=0.5", "once"),
        ("", "empty"),
        ({}, "once"),
        ({"a": 1.5, "b": -0.5}, "above 0"),
        ({"a": 0.0, "b": 1.0}, "above 0"),
        ({"a": float("nan")}, "above 0"),
    ],
)
def test_mixtures_that_are_refused(source, message) -> None:
    with pytest.raises(PlanError, match=message):
        parse_plan({"calibration": {"source": source}})


def test_a_file_whose_name_looks_like_a_mixture(tmp_path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "x=0.5").write_text("text")
    assert parse_shares("x=0.5") == {"x=0.5": 1.0}


def test_a_mixture_is_drawn_by_its_shares_and_recorded(two) -> None:
    first, second = two
    found = read({str(first): 0.7, str(second): 0.3})
    letters = [chr(row[0]) for row in found.tokens.tolist()]
    assert letters == ["a"] * 7 + ["b"] * 3
    record = found.record()
    assert [(p["source"], p["share"], p["windows"]) for p in record["parts"]] == [
        (str(first), 0.7, 7),
        (str(second), 0.3, 3),
    ]
    assert record["parts"][0]["hash"] != record["parts"][1]["hash"]
    assert record["samples"] == 10
    assert record["overlap"]["items"] == 0
    assert str(first) in record["source"]


def test_one_source_gives_the_windows_that_it_always_gave(two) -> None:
    from evalq.quantize.calibration import calibration_from_texts

    text = "".join(chr(1000 + i) for i in range(2000))
    two[0].write_text(text)
    assert read(str(two[0])).hash == calibration_from_texts(
        [text], Letters(), 10, 16, 3, "x"
    ).hash  # fmt: skip


def test_workload_items_as_text(tmp_path) -> None:
    path = tmp_path / "w.jsonl"
    rows = [{"prompt": f"{i}+{i}=", "target": 2 * i} for i in range(40)]
    rows += [{"prompt": "Which?\n", "choices": ["x", "y"], "answer": 1}]
    path.write_text("\n".join(json.dumps(r) for r in rows))
    found = read(f"workload:{path}", samples=4)
    text = "".join(chr(i) for i in found.tokens.flatten().tolist())
    assert "= " in text
    assert found.parts[0]["documents"] == 41


@pytest.mark.parametrize("name", ["empty.txt", "empty.jsonl"])
def test_a_file_without_text(tmp_path, name) -> None:
    (tmp_path / name).write_text("\n \n")
    with pytest.raises(TaskError, match="holds no text"):
        read(str(tmp_path / name))
    short = tmp_path / "short.txt"
    short.write_text("abc")
    with pytest.raises(QuantizationError, match="too little"):
        read(str(short))


ITEMS = [
    {"prompt": "A farmer has seventeen sheep and buys five more. How many?", "target": "22"},
    {"prompt": "93 * 58 =", "target": "5394"},
    {"prompt": "Unlike any other question that is asked here, is it?", "target": "yes"},
]


@pytest.fixture
def tasks(tmp_path):
    path = tmp_path / "mine.jsonl"
    path.write_text("\n".join(json.dumps(row) for row in ITEMS))
    return build((), [path])


FILLER = "Plain prose that has nothing to do with it. " * 80


@pytest.mark.parametrize(
    ("text", "items"),
    [
        (FILLER, []),
        (f"A FARMER has seventeen\nsheep and buys five more. How many? {FILLER}", ["mine/line-1"]),
        (f"{FILLER}\n93 * 58 = 5394\n", ["mine/line-2"]),
        (f"{FILLER}\nHe saw that 93 * 58 = 5394 there.\n", []),
        (f"{FILLER}\n93 * 589 = 54777\n", []),
        (f"{FILLER}\nUnlike any other question that is asked here\n", []),
    ],
)  # fmt: skip
def test_evaluated_items_are_found_in_text(tmp_path, tasks, text, items) -> None:
    path = tmp_path / "text.txt"
    path.write_text(text)
    if not items:
        record = read(str(path), tasks).record()
        assert record["overlap"] == {
            "checked_items": 3, "items": 0, "examples": {}, "allowed": False,
        }  # fmt: skip
        return
    with pytest.raises(PlanError, match=f"holds 1 of the 3 items.*{items[0]}") as caught:
        read(str(path), tasks)
    assert "--allow-overlap" in caught.value.hint
    allowed = read(str(path), tasks, allow_overlap=True).record()
    assert list(allowed["overlap"]["examples"]) == items
    assert "1 of the 3 evaluated items" in overlap_warning(allowed)


def test_the_workload_itself_is_refused_as_calibration(tmp_path, tasks) -> None:
    path = tmp_path / "mine.jsonl"
    with pytest.raises(PlanError, match="holds 3 of the 3 items"):
        read(f"workload:{path}", tasks, samples=2)
    with pytest.raises(PlanError, match="holds 3 of the 3 items"):
        read(str(path), tasks, samples=2)


def test_a_training_document_is_found_by_its_hash() -> None:
    from evalq.tasks import Evaluated, find_overlap

    item = Evaluated("t/1", "abc", "Something quite different from the text", "x")
    assert find_overlap([item], [("no such words", "abc")]) == {"t/1": 0}
    assert find_overlap([item], [("no such words", "")]) == {}


def test_questions_that_items_share_do_not_tell_them_apart() -> None:
    from evalq.tasks import Evaluated, find_overlap

    question = "Complete the following sentence in English:"
    items = [Evaluated(f"t/{i}", str(i), question, word) for i, word in enumerate(("oak", "elm"))]
    assert find_overlap(items, [(f"{question} ash", "")]) == {}
    assert find_overlap(items, [(f"{question} elm", "")]) == {"t/1": 0}


def test_the_built_in_suites_do_not_overlap_with_the_built_in_text() -> None:
    tasks = build(("builtin-math", "builtin-multilingual", "builtin-reasoning"))
    wanted = plan("auto")
    found = read_calibration(wanted, Letters(), builtin_parent=True, seed=0, tasks=tasks)
    assert found.record()["overlap"]["checked_items"] > 900
    assert found.record()["overlap"]["items"] == 0
