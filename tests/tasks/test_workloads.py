from __future__ import annotations

import csv
import json
import resource
import subprocess
import sys
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from evalq.errors import EvalqError, PlanError, TaskError
from evalq.schema import Response
from evalq.tasks.bridge import build
from evalq.tasks.prompts import PromptSettings
from evalq.tasks.scorers import SCORERS, numbers_in

HOSTILE = "{{ 7*7 }} {% raw %} <script>alert(1)</script> \x00\x07\x1b[31m \u202e %s $(ls) 象 '\""


def write(path: Path, *rows: Any) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def test_free_answers(tmp_path: Path) -> None:
    path = write(
        tmp_path / "mine.jsonl",
        {"prompt": "Capital of Kenya?", "target": "Nairobi", "id": "k", "slice": "geo/africa"},
        {"prompt": "2+2?", "target": 4, "scorer": "numeric", "until": "!", "max_tokens": 7},
        {"prompt": "Say hi", "target": ["hi", "hello"], "scorer": "contains", "cluster": "c"},
    )
    (built,) = build([], [path])
    assert (built.suite, built.name, built.slice) == ("workload", "mine", "workload/mine")
    assert [i.item_id for i in built.items] == ["k", "line-2", "line-3"]
    assert built.items[0].slice == "workload/mine/geo/africa"
    assert [i.cluster for i in built.items] == ["mine/k", "mine/line-2", "c"]
    assert [r.until for r in built.requests] == [("\n\n",), ("!",), ("\n\n",)]
    assert [r.max_tokens for r in built.requests] == [256, 7, 256]
    assert [r.context for r in built.requests] == ["Capital of Kenya?", "2+2?", "Say hi"]
    records = built.records(
        [Response(text=t) for t in (" Nairobi\n", "it is 5, no 4.0", "oh hello")]
    )
    assert [r.score for r in records] == [1.0, 1.0, 1.0]
    assert [r.metric for r in records] == ["correct"] * 3
    assert [r.target for r in records] == ["Nairobi", "4", "['hi', 'hello']"]
    records = built.records([Response(text=t) for t in ("nairobi", "four", "HELLO")])
    assert [r.score for r in records] == [0.0, 0.0, 0.0]


def test_choices(tmp_path: Path) -> None:
    path = write(
        tmp_path / "mc.jsonl",
        {"prompt": "2+2=", "choices": ["3", "4"], "answer": 1},
        {"prompt": "3+3=", "choices": ["6", "7", "8"], "answer": "6"},
    )
    (built,) = build([], [str(path)])
    assert [(r.context, r.continuation) for r in built.requests] == [
        ("2+2=", " 3"),
        ("2+2=", " 4"),
        ("3+3=", " 6"),
        ("3+3=", " 7"),
        ("3+3=", " 8"),
    ]
    values = (-2.0, -1.0, -1.0, -2.0, -0.5)
    records = built.records([Response(logprob=v, greedy=False) for v in values])
    assert [r.score for r in records] == [1.0, 0.0]
    assert [r.response for r in records] == ["4", "8"]
    assert [r.target for r in records] == ["4", "6"]
    assert built.metric == "acc"


def test_a_mixed_file_makes_two_tasks(tmp_path: Path) -> None:
    path = write(
        tmp_path / "mix.jsonl",
        {"prompt": "a", "target": "b"},
        {"prompt": "c", "choices": ["d", "e"], "answer": 0, "slice": "s"},
    )
    built = build([], [path])
    assert [b.name for b in built] == ["mix", "mix.choices"]
    assert [i.item_id for b in built for i in b.items] == ["line-1", "line-2"]
    assert built[1].items[0].slice == "workload/mix/s"
    with pytest.raises(TaskError, match="two workloads are named 'mix'"):
        build([], [path, path])


def test_a_scorer_for_the_file(tmp_path: Path) -> None:
    path = write(tmp_path / "n.jsonl", {"prompt": "a", "target": "1,000"})
    (built,) = build([], [f"{path}:numeric"])
    assert built.metric == "numeric_match"
    assert built.records([Response(text="so 1000")])[0].score == 1.0
    with pytest.raises(PlanError, match="unknown scorer 'numberic'"):
        build([], [f"{path}:numberic"])


@pytest.mark.parametrize("field", ["prompt", "target", "choices"])
def test_hostile_text_passes_unchanged(field: str, tmp_path: Path) -> None:
    row: dict[str, Any] = {"prompt": "p", "target": "t"}
    if field == "choices":
        row = {"prompt": "p", "choices": [HOSTILE, "[1, 2]"], "answer": 0}
    else:
        row[field] = HOSTILE
    (built,) = build([], [write(tmp_path / "h.jsonl", row, row)])
    if field == "prompt":
        assert built.requests[0].context == HOSTILE
    elif field == "choices":
        assert built.requests[0].continuation == f" {HOSTILE}"
    else:
        records = built.records([Response(text=HOSTILE)] * 2)
        assert [r.score for r in records] == [1.0, 1.0]
        assert records[0].target == HOSTILE


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "holds no items"),
        ("\n \n", "holds no items"),
        ('{"prompt": "a", "target": "b"}\n{"prompt": }\n', "line 2: no JSON"),
        ("[]\n", "line 1: not a JSON object"),
        ('{"target": "b"}', "line 1: 'prompt' is missing"),
        ('{"prompt": 3, "target": "b"}', "'prompt' is not a text"),
        ('{"prompt": "a"}', "no 'target'"),
        ('{"prompt": "a", "target": null}', "'target' is not a text"),
        ('{"prompt": "a", "target": []}', "'target' is not a text"),
        ('{"prompt": "a", "target": "b", "tagret": 1}', "unknown field 'tagret'"),
        ('{"prompt": "a", "target": "b", "scorer": "exakt"}', "Did you mean 'exact'"),
        ('{"prompt": "a", "target": "b", "scorer": "json"}', "is no JSON"),
        ('{"prompt": "a", "messages": [], "target": "b"}', "both 'prompt' and"),
        ('{"prompt": "a", "target": "b", "scorer": "numeric"}', "which is no number"),
        ('{"prompt": "a", "target": "(", "scorer": "regex"}', "is no regular expression"),
        ('{"prompt": "a", "target": " ", "scorer": "contains"}', "contained in every answer"),
        ('{"prompt": "a", "target": "b", "max_tokens": 0}', "'max_tokens' is 0"),
        ('{"prompt": "a", "target": "b", "until": [""]}', "'until' is not"),
        ('{"prompt": "a", "target": "b", "slice": "a b"}', "'a b' is not a slice"),
        ('{"prompt": "a", "target": "\\ud800"}', "lone surrogate"),
        ('{"prompt": "a", "choices": ["x"], "answer": 0}', "two or more"),
        ('{"prompt": "a", "choices": ["x", "x"], "answer": 0}', "are the same"),
        ('{"prompt": "a", "choices": ["x", "y"], "answer": 2}', "'answer' is 2"),
        ('{"prompt": "a", "choices": ["x", "y"], "answer": "z"}', "'answer' is 'z'"),
        ('{"prompt": "a", "choices": ["x", "y"], "answer": true}', "'answer' is True"),
        ('{"prompt": "a", "choices": ["x", "y"]}', "'answer' is None"),
        ('{"prompt": "a", "choices": ["x", "y"], "answer": 0, "target": "x"}', "does not go with"),
        (
            '{"prompt": "a", "target": "b", "id": 7}\n\n{"prompt": "c", "target": "d", "id": "7"}',
            "line 3: id '7' is already that of line 1",
        ),
    ],
)
def test_faults_are_named_with_their_line(text: str, message: str, tmp_path: Path) -> None:
    path = tmp_path / "bad.jsonl"
    path.write_text(text)
    with pytest.raises(TaskError, match=message.replace("[", r"\[")):
        build([], [path])


def test_a_missing_file(tmp_path: Path) -> None:
    with pytest.raises(TaskError, match="cannot read"):
        build([], [tmp_path / "gone.jsonl"])


def test_csv_and_parquet_make_the_items_that_jsonl_makes(tmp_path: Path) -> None:
    rows = [
        {"prompt": 'a, "b"\nc', "target": "1", "slice": "x", "max_tokens": 5},
        {"prompt": "d", "choices": ["e", "1"], "answer": "1"},
        {"prompt": "f", "choices": ["g", "h"], "answer": 1, "id": "own"},
    ]
    write(tmp_path / "w.jsonl", *rows)
    columns = ["prompt", "target", "slice", "max_tokens", "choices", "answer", "id"]
    with (tmp_path / "w.csv").open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, columns)
        writer.writeheader()
        for row in rows:
            cells = {k: json.dumps(v) if k == "choices" else v for k, v in row.items()}
            writer.writerow(cells)
    table = {c: [row.get(c) for row in rows] for c in columns}
    table["answer"] = [None, "1", "h"]
    pq.write_table(pa.table(table), tmp_path / "w.parquet")
    made = [
        [(i.prompt, i.target, i.slice) for b in build([], [tmp_path / f"w.{s}"]) for i in b.items]
        for s in ("jsonl", "csv", "parquet")
    ]
    assert made[0] == made[1] == made[2]
    assert made[0][1][1:] == ("1", "workload/w")
    ids = [i.item_id for b in build([], [tmp_path / "w.csv"]) for i in b.items]
    assert ids == ["row-1", "row-2", "own"]


SPEC = {
    "workload": "tickets",
    "file": "t.csv",
    "prompt": "Ticket: {{ text }}\nTeam:",
    "choices": ["billing", "{{ other }}"],
    "answer": "{{ team }}",
    "slice": "{{ lang }}",
    "id": "t{{ n }}",
}


def spec(folder: Path, **changes: Any) -> Path:
    hostile = HOSTILE.replace("\x00", "")
    with (folder / "t.csv").open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        rows = [["n", "text", "team", "other", "lang"], ["1", hostile, "support", "support", "sw"]]
        writer.writerows([*rows, ["2", "Pay?", "0", "support", "en"]])
    path = folder / "tickets.yaml"
    made = {k: v for k, v in (SPEC | changes).items() if v is not None}
    path.write_text(json.dumps(made))
    return path


def test_templates_over_columns(tmp_path: Path) -> None:
    (built,) = build([], [spec(tmp_path)])
    hostile = HOSTILE.replace("\x00", "")
    assert built.name == "tickets"
    assert [i.item_id for i in built.items] == ["t1", "t2"]
    assert [i.slice for i in built.items] == ["workload/tickets/sw", "workload/tickets/en"]
    assert built.requests[0].context == f"Ticket: {hostile}\nTeam:"
    assert [i.target for i in built.items] == ["support", "billing"]
    free = spec(tmp_path, choices=None, answer=None, target="{{ team }}", until=["!"], max_tokens=3)
    (built,) = build([], [free])
    assert (built.requests[0].until, built.requests[0].max_tokens) == (("!",), 3)
    listed = spec(tmp_path, choices="{{ ['billing', other] | tojson }}")
    (built,) = build([], [listed])
    assert [r.continuation for r in built.requests[:2]] == [" billing", " support"]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"prompt": "{{ txet }}"}, "row 1: prompt: the template in .* 'txet' is undefined"),
        ({"prompt": "{% if %}"}, "the template in .* fails"),
        ({"prompt": "{{ ''.__class__.__mro__ }}"}, "the template in .* fails"),
        ({"prompt": "{{ range(10**9) | list }}"}, "the template in .* fails"),
        ({"choices": "{{ other }}"}, "no JSON list"),
        ({"file": "gone.csv"}, "cannot read"),
        ({"promt": "x"}, "unknown key 'promt'"),
        ({"workload": ""}, "workload: String should have"),
        ({"scorer": "fuzzy", "choices": None, "answer": None, "target": "x"}, "unknown scorer"),
    ],
)
def test_faulty_templates(changes: dict[str, Any], message: str, tmp_path: Path) -> None:
    with pytest.raises(EvalqError, match=message):
        build([], [spec(tmp_path, **changes)])


def test_faulty_tables(tmp_path: Path) -> None:
    (tmp_path / "w.csv").write_text("prompt,target\na\n")
    with pytest.raises(TaskError, match="row 1: not as many cells"):
        build([], [tmp_path / "w.csv"])
    (tmp_path / "w.csv").write_text("prompt,choices,answer\na,b;c,0\n")
    with pytest.raises(TaskError, match="row 1: 'choices' is no JSON list"):
        build([], [tmp_path / "w.csv"])
    (tmp_path / "w.parquet").write_bytes(b"PAR1 not really")
    with pytest.raises(TaskError, match="no readable Parquet"):
        build([], [tmp_path / "w.parquet"])
    (tmp_path / "w.yaml").write_text("suite: x\n")
    with pytest.raises(PlanError, match="neither a workload nor an lm-eval task"):
        build([], [tmp_path / "w.yaml"])


def test_messages_go_through_the_chat_template(tmp_path: Path) -> None:
    def render(messages: Any, add_generation_prompt: bool = True) -> str:
        return "".join(f"[{m['role']}]{m['content']}" for m in messages) + "[assistant]"

    chat = [{"role": "user", "content": "Hi {{ x }}"}]
    path = write(
        tmp_path / "m.jsonl",
        {"messages": chat, "target": "b"},
        {"prompt": "plain", "target": "b"},
        {"messages": chat, "choices": ["c", "d"], "answer": 0},
    )
    prompts = PromptSettings(chat_template=render, system="S")
    built = build([], [path], prompts=prompts)
    contexts = [r.context for b in built for r in b.requests]
    hello = "[system]S[user]Hi {{ x }}[assistant]"
    assert contexts == [hello, "[system]S[user]plain[assistant]", hello, hello]
    with pytest.raises(TaskError, match="has messages, and no chat template"):
        build([], [path])
    for bad in ([], [{"role": "user"}], [{"role": "assistant", "content": "x"}], "hi"):
        with pytest.raises(TaskError, match="line 1: 'messages' is not a list"):
            build([], [write(tmp_path / "b.jsonl", {"messages": bad, "target": "x"})])


def test_an_lm_eval_task_as_it_is(tmp_path: Path) -> None:
    write(tmp_path / "d.jsonl", {"q": "a", "id": "x y", "slice": "no slice"})
    (tmp_path / "own.yaml").write_text(
        "task: own task\ndataset_path: json\noutput_type: generate_until\n"
        "dataset_kwargs: {data_files: {test: d.jsonl}}\ntest_split: test\n"
        'doc_to_text: "{{q}}"\ndoc_to_target: "{{q}}"\n'
        "metric_list: [{metric: exact_match, aggregation: mean, higher_is_better: true}]\n"
    )
    (built,) = build([], [tmp_path / "own.yaml"])
    assert (built.suite, built.name) == ("workload", "own task")
    assert (built.items[0].slice, built.items[0].item_id) == ("workload/own-task", "0")


@pytest.mark.parametrize("choices", [False, True])
def test_ten_thousand_items_are_checked_in_ten_seconds(choices: bool, tmp_path: Path) -> None:
    """The whole command, imports and token counts in it, in seconds of processor."""
    kind = {"choices": ["a", "b", "c"], "answer": 1} if choices else {"target": "4"}
    words = "alpha beta gamma delta epsilon " * 12
    rows = [{"prompt": f"Item {i}: {words}?", **kind} for i in range(10_000)]
    path = write(tmp_path / "big.jsonl", *rows)
    command = [sys.executable, "-m", "evalq.cli.main", "workload", "check", str(path)]
    start = resource.getrusage(resource.RUSAGE_CHILDREN).ru_utime
    done = subprocess.run(
        [*command, "--parent", "builtin", "--json"], capture_output=True, text=True, check=True
    )
    assert resource.getrusage(resource.RUSAGE_CHILDREN).ru_utime - start < 10
    answer = json.loads(done.stdout)
    assert answer["items"] == 10_000
    assert answer["tasks"][0]["tokens"]["max"] == len(f"Item 9999: {words}?".encode())


@pytest.mark.parametrize(
    ("text", "numbers"),
    [
        ("3 and -4", [3, -4]),
        ("1,234,567.5 or 12,34", [1234567.5, 12, 34]),
        ("1e3, .5 and −2", [1000, 0.5, -2]),
        ("none", []),
    ],
)
def test_numbers(text: str, numbers: list[float]) -> None:
    assert numbers_in(text) == numbers


@pytest.mark.parametrize(
    ("scorer", "target", "answer", "right"),
    [
        ("exact", "a b", "  a b\n", True),
        ("exact", "a b", "a  b", False),
        ("contains", "cat", "concatenate", True),
        ("contains", "Cat", "concatenate", False),
        ("numeric", "0.3", f"{0.1 + 0.2}", True),
        ("numeric", "42", "first 42, then 43", False),
        ("numeric", "42", "", False),
        ("numeric", "-7", "so x = -7.", True),
        ("numeric", "1e400", "1e400", False),
        ("json", '{"a": [1, 2.0]}', '```json\n{ "a": [1.0, 2] }\n```', True),
        ("json", '{"a": 1}', 'Here: {"a": 1}', False),
        ("json", '{"a": 1}', '{"a": true}', False),
        ("json", '{"a": 1}', '{"a": 1, "b": 2}', False),
        ("json", "[1, 2]", "[2, 1]", False),
        ("regex", r"^\d+ apples?$", "3 apples", True),
        ("regex", r"^\d+ apples?$", "some apples", False),
    ],
)
def test_scorers(scorer: str, target: str, answer: str, right: bool) -> None:
    item = {"targets": [target], "tolerance": 0.0}
    assert SCORERS[scorer].correct(answer, item) is right


def test_tolerance() -> None:
    item = {"targets": ["3.14"], "tolerance": 0.01}
    assert SCORERS["numeric"].correct("about 3.1415", item)
    assert not SCORERS["numeric"].correct("about 3.2", item)
