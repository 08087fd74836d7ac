"""Text sources: what is read, what is refused, and that calibration and held-out text are apart."""

from __future__ import annotations

from pathlib import Path

import pytest

from evalq.errors import PlanError, TaskError
from evalq.plan import TextPlan, parse_plan, parse_text
from evalq.texts import named_text, read_documents, resolve_text


def test_python_reference_halves_share_no_document() -> None:
    calibration = resolve_text("auto", "calibration", False, "")
    fidelity = resolve_text("auto", "fidelity", False, "")
    ours = {d.text for d in calibration.documents}
    theirs = {d.text for d in fidelity.documents}
    assert len(ours) > 20
    assert len(theirs) > 20
    assert not {d.document for d in calibration.documents} & {
        d.document for d in fidelity.documents
    }
    assert calibration.hash != fidelity.hash
    assert calibration.hash == resolve_text("auto", "calibration", False, "").hash


def test_files(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("one\ftwo\f \f")
    assert [d.text for d in read_documents(tmp_path / "a.txt")] == ["one", "two"]
    (tmp_path / "b.jsonl").write_text(
        '{"text": "x", "document": "D", "slice": "math"}\n\n{"prompt": "2+2=", "target": 4}\n'
        '{"text": "one\u2028two"}\n{"prompt": "Sky?\\n", "choices": ["red", "blue"], "answer": 1}\n'
        '{"prompt": "a", "target": ["b", "c"]}\n{"prompt": "bare"}\n'
    )
    first, second, *rest = read_documents(tmp_path / "b.jsonl")
    assert (first.text, first.document, first.slice) == ("x", "D", "math")
    assert (second.text, second.document) == ("2+2= 4", "b.jsonl:3")
    assert [d.text for d in rest] == ["one\u2028two", "Sky?\nblue", "a b", "bare"]


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("a.jsonl", b'{"text": "x"}\n{"text": \n', "line 2: no JSON"),
        ("a.jsonl", b'{"txt": "x"}\n', "line 1: no text"),
        ("a.jsonl", b"[1]\n", "line 1: no text"),
        ("a.jsonl", b'{"prompt": "a", "target": {}}\n', "line 1: no text"),
        ("a.jsonl", b'{"prompt": "a", "choices": ["b"], "answer": 3}\n', "line 1: no text"),
        ("a.jsonl", b'{"text": 3}\n', "line 1: no text"),
        ("a.jsonl", b'{"text": " "}\n', "holds no text"),
        ("a.txt", b"  \n", "holds no text"),
        ("a.txt", b"\xff\xfe", "not UTF-8"),
    ],
)
def test_files_that_are_refused(tmp_path: Path, name: str, content: bytes, words: str) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(TaskError, match=words):
        resolve_text(str(tmp_path / name), "calibration", False, "")


def test_no_such_file(tmp_path: Path) -> None:
    with pytest.raises(TaskError, match="cannot read the text"):
        read_documents(tmp_path / "none")


def test_a_users_text_by_name_and_language(tmp_path: Path) -> None:
    path = tmp_path / "habari.txt"
    path.write_text("Habari za leo.\fHabari za jana.")
    found = named_text(TextPlan(file=str(path), name="news", language="sw"))
    assert found.name == "news"
    assert [(d.document, d.slice) for d in found.documents] == [
        ("habari.txt#0", "prose/sw"),
        ("habari.txt#1", "prose/sw"),
    ]
    assert named_text(TextPlan(file=str(path))).documents[0].slice == "prose"
    rows = tmp_path / "rows.jsonl"
    rows.write_text('{"text": "a b", "slice": "law"}\n{"text": "c d"}\n')
    found = named_text(TextPlan(file=str(rows), language="en"))
    assert [d.slice for d in found.documents] == ["prose/en/law", "prose/en"]
    assert found.name == "rows"


def test_text_flags_and_plans() -> None:
    assert parse_text("a.txt") == {"file": "a.txt"}
    assert parse_text("n=a.txt") == {"file": "a.txt", "name": "n", "language": ""}
    plain, texts = parse_plan({}), {"texts": [{"file": "a.txt"}]}
    assert parse_plan({"fidelity": texts}).hash != plain.hash
    twice = {"texts": [{"file": "x/a.txt"}, {"file": "y/a.txt"}]}
    with pytest.raises(PlanError, match="two texts are named 'a'"):
        parse_plan({"fidelity": twice})
    with pytest.raises(PlanError, match="language"):
        parse_plan({"fidelity": {"texts": [{"file": "a", "language": "s w"}]}})
