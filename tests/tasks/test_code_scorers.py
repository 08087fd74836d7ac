"""Scorers that run something: schemas, unit tests in a sandbox, a user's function."""

from __future__ import annotations

import json
import os
import subprocess
import time
from pathlib import Path
from typing import Any

import pytest

from evalq.errors import EvalqError, PlanError, TaskError
from evalq.schema import Response
from evalq.tasks.bridge import BuiltTask, build
from evalq.tasks.code_scorers import code_of, without_fence
from evalq.tasks.consent import check_consent, code_in_workload
from evalq.tasks.sandbox import Isolation, _run, isolation, run_tests
from evalq.tasks.scorers import SCORERS, judged
from evalq.tasks.worker import ScoringError, Worker

NETWORK = "no network" in isolation().words
OWN_SPACE = "process space" in isolation().words

HOSTILE = [
    "",
    "\x00\x1b[31m\u202e",
    "{{ 7*7 }} <script>alert(1)</script>",
    "[" * 100_000,
    "9" * 100_000,
    '{"a":' * 5_000 + "1" + "}" * 5_000,
    "```python\nimport os\nos._exit(0)\n```",
    "NaN",
    "\ud800",
    "1e999999",
]


def write(path: Path, *rows: Any) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def scores(built: BuiltTask, *texts: str) -> list[float | None]:
    return [r.score for r in built.records([Response(text=t) for t in texts])]


SCHEMA = {
    "type": "object",
    "properties": {"team": {"enum": ["a", "b"]}, "n": {"$ref": "#/$defs/n"}},
    "required": ["team"],
    "additionalProperties": False,
    "$defs": {"n": {"type": "integer", "minimum": 1}},
}


@pytest.mark.parametrize(
    ("answer", "right"),
    [
        ('{"team": "a"}', 1.0),
        ('```json\n{"team": "b", "n": 3}\n```', 1.0),
        ('{"team": "c"}', 0.0),
        ('{"team": "a", "n": 0}', 0.0),
        ('{"team": "a", "x": 1}', 0.0),
        ("team a", 0.0),
    ],
)
def test_json_by_schema(answer: str, right: float, tmp_path: Path) -> None:
    path = write(tmp_path / "s.jsonl", {"prompt": "q", "target": SCHEMA, "scorer": "json_schema"})
    (built,) = build([], [path])
    assert scores(built, answer) == [right]
    assert built.metric == "schema_match"


@pytest.mark.parametrize(
    ("schema", "message"),
    [
        ({"$ref": "http://127.0.0.1:9/x.json"}, "not fetched"),
        ({"properties": {"a": {"$ref": "other.json#/a"}}}, "not fetched"),
        ({"type": "nothing"}, "no JSON schema"),
        ("[1]", "no JSON schema"),
        ("{", "no JSON schema"),
    ],
)
def test_schemas_that_cannot_be(schema: Any, message: str, tmp_path: Path) -> None:
    path = write(tmp_path / "s.jsonl", {"prompt": "q", "target": schema, "scorer": "json_schema"})
    with pytest.raises(TaskError, match=message):
        build([], [path])


def test_a_pattern_that_explodes_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("evalq.tasks.scorers.JUDGE_SECONDS", 0.5)
    item = {"targets": ["^(a+)+$"], "tolerance": 0.0}
    began = time.monotonic()
    score, fault = judged(SCORERS["regex"], "a" * 60 + "b", item)
    assert (score, fault) == (0.0, "judging took more than 0.5 s")
    assert time.monotonic() - began < 5
    assert judged(SCORERS["regex"], "aaa", item) == (1.0, "")
    schema = {"targets": ['{"pattern": "^(a+)+$"}']}
    score, fault = judged(SCORERS["json_schema"], json.dumps("a" * 60 + "b"), schema)
    assert (score, fault) == (0.0, "judging took more than 0.5 s")


@pytest.mark.parametrize("name", sorted(SCORERS))
def test_no_answer_ends_a_run(name: str) -> None:
    target = {"numeric": "4", "json": '{"a": 1}', "json_schema": '{"type": "object"}'}
    item = {
        "targets": [target.get(name, "assert x == 1" if name == "code" else "hello")],
        "tolerance": 0.0,
    }
    for answer in HOSTILE:
        score, _ = judged(SCORERS[name], answer, item)
        assert 0 <= score <= 1
        assert score == 0 or name == "json_schema"  # deep nesting is an object


def test_code_is_judged_by_its_tests(tmp_path: Path) -> None:
    tests = "assert add(1, 2) == 3\nassert add(-1, 1) == 0"
    path = write(
        tmp_path / "code.jsonl",
        *({"prompt": f"add {i}", "target": tests, "scorer": "code"} for i in range(4)),
        {"prompt": "go on", "target": tests, "scorer": "code", "before": "def add(a, b):\n"},
    )
    (built,) = build([], [path], allow_code=True)
    answers = (
        "Sure:\n```python\ndef add(a, b):\n    return a + b\n```\nThat adds.",
        "def add(a, b):\n    return a - b",
        "import sys; sys.exit(0)",
        "import os; os._exit(0)",
        "    return a + b\n",
    )
    records = built.records([Response(text=t) for t in answers])
    assert [r.score for r in records] == [1.0, 0.0, 0.0, 0.0, 1.0]
    assert json.loads(records[1].metrics)["why"] == "AssertionError"
    assert "exit code 0" in json.loads(records[2].metrics)["why"]
    assert isolation().words in built.notes[0]


def test_what_a_program_does_stays_inside(tmp_path: Path) -> None:
    began = time.monotonic()
    assert "killed after 1 s" in run_tests("while True: pass", "assert True", 1.0).fault
    assert time.monotonic() - began < 6
    assert "Memory" in run_tests("x = bytearray(4 * 2**30)", "assert True", 10.0).fault
    big = "with open('f', 'wb') as f:\n    f.write(b'0' * 2**26)"
    assert "too large" in run_tests(big, "assert True", 10.0).fault
    shout = "import sys\nsys.stderr.write('y' * 10**7)\nprint('x' * 10**7)\nraise ValueError('z')"
    assert (
        run_tests(shout, "assert True", 10.0).fault == "y" * 300
        or "ValueError" in run_tests(shout, "assert True", 10.0).fault
    )
    os.environ["EVALQ_TEST_SECRET"] = "s"
    try:
        secret = "import os\nassert 'EVALQ_TEST_SECRET' not in os.environ"
        assert run_tests(secret, "assert True", 10.0).passed
    finally:
        del os.environ["EVALQ_TEST_SECRET"]
    assert not list(Path(os.environ.get("TMPDIR", "/tmp")).glob("evalq-code-*"))


@pytest.mark.skipif(not NETWORK, reason=isolation().words)
def test_a_program_has_no_network() -> None:
    listener = subprocess.Popen(
        ["python", "-c", "import socket,time; s=socket.create_server(('127.0.0.1', 0));"
         "print(s.getsockname()[1], flush=True); time.sleep(60)"],
        stdout=subprocess.PIPE, text=True,
    )  # fmt: skip
    try:
        assert listener.stdout is not None
        port = int(listener.stdout.readline())
        knock = f"import socket\nsocket.create_connection(('127.0.0.1', {port}), 2).close()"
        assert _run("", knock, 10.0, Isolation((), False, "")).passed  # it is there
        assert not run_tests("", knock, 10.0).passed
    finally:
        listener.kill()


@pytest.mark.skipif(not OWN_SPACE, reason=isolation().words)
def test_nothing_outlives_a_program() -> None:
    mark = f"evalq-test-{os.getpid()}-{time.monotonic_ns()}"
    start = (
        "import subprocess, sys\n"
        f"subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(60)', {mark!r}],"
        " start_new_session=True)\n"
    )
    assert run_tests(start, "assert True", 10.0).passed
    time.sleep(0.2)
    running = subprocess.run(["ps", "ax", "-o", "args"], capture_output=True, text=True).stdout
    assert mark not in running


def test_without_unshare_the_words_say_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("shutil.which", lambda name: None)
    isolation.cache_clear()
    try:
        assert "network is NOT cut off" in isolation().words
        assert run_tests("x = 1", "assert x == 1", 10.0).passed
    finally:
        isolation.cache_clear()


def function_workload(folder: Path, body: str, name: str = "mine") -> Path:
    (folder / "score.py").write_text(f"def mine(answer, item):\n{body}\n")
    write(folder / "items.jsonl", *({"prompt": f"q{i}", "target": "yes"} for i in range(4)))
    path = folder / "w.yaml"
    path.write_text(f"workload: w\nfile: items.jsonl\nfunction: score.py:{name}\n")
    return path


def test_a_function_of_the_users(tmp_path: Path) -> None:
    body = (
        "    print('hello')\n"
        "    if 'die' in answer:\n        import os; os._exit(3)\n"
        "    if 'raise' in answer:\n        raise KeyError('x')\n"
        "    if 'odd' in answer:\n        return 'good'\n"
        "    return 0.5 if answer in item['targets'] else False"
    )
    (built,) = build([], [function_workload(tmp_path, body)], allow_code=True)
    records = built.records([Response(text=t) for t in ("yes", "die", "raise", "no")])
    assert [r.score for r in records] == [0.5, 0.0, 0.0, 0.0]
    faults = [json.loads(r.metrics).get("fault") for r in records]
    assert faults == [None, "the judge's process ended (3)", "KeyError: 'x'", None]
    assert (
        "returned 'good'"
        in json.loads(built.records([Response(text="odd")] * 4)[0].metrics)["fault"]
    )
    version = built.version
    (again,) = build([], [function_workload(tmp_path, "    return True")], allow_code=True)
    assert again.version != version  # another function gives other scores
    assert scores(again, *"abcd") == [1.0] * 4


@pytest.mark.parametrize(
    ("body", "name", "message"),
    [
        ("    return", "other", "has no function 'other'"),
        ("  x = (", "mine", "SyntaxError"),
        ("    return", "no-name", "not of the form"),
    ],
)
def test_functions_that_cannot_be(body: str, name: str, message: str, tmp_path: Path) -> None:
    with pytest.raises(EvalqError, match=message):
        build([], [function_workload(tmp_path, body, name)], allow_code=True)


def test_code_is_refused_unless_allowed(tmp_path: Path) -> None:
    code = write(tmp_path / "c.jsonl", {"prompt": "p", "target": "assert f()", "scorer": "code"})
    plain = write(tmp_path / "p.jsonl", {"prompt": "p", "target": "assert f()"})
    task = tmp_path / "task.yaml"
    marker = tmp_path / "ran"
    (tmp_path / "own.py").write_text(f"open({str(marker)!r}, 'w')\ndef f(doc): return ''\n")
    task.write_text("task: t\ninclude: base.yaml\ndataset_path: json\n")
    (tmp_path / "base.yaml").write_text("doc_to_text: !function own.f\n")
    (tmp_path / "s").mkdir()
    suite = tmp_path / "s" / "suite.yaml"
    suite.write_text("suite: s\nversion: 1\ntasks: [{task: t, file: ../task.yaml, slice: s}]\n")
    function = function_workload(tmp_path, "    return True")
    for name, words in (
        (code, "running what the model writes"),
        (f"{plain}:code", "running what the model writes"),
        (task, "!function own.f"),
        (function, "score.py:mine"),
    ):
        assert words in code_in_workload(name)
        for refuse in (
            lambda n=name: check_consent((), [n], False),
            lambda n=name: build([], [n]),
        ):
            with pytest.raises(PlanError, match=r"runs|scored"):
                refuse()
    with pytest.raises(PlanError, match=r"!function own\.f"):
        check_consent([str(suite)], (), False)
    with pytest.raises(PlanError, match=r"!function own\.f"):
        build([str(suite)])
    assert code_in_workload(plain) == ""
    check_consent(["math", "reasoning"], [plain], False)  # lm-eval's own functions are its own
    assert not marker.exists()


def test_templates_of_a_task_reach_no_python(tmp_path: Path) -> None:
    write(tmp_path / "d.jsonl", {"text": "x"})
    (tmp_path / "t.yaml").write_text(
        "task: t\ndataset_path: json\ndataset_kwargs: {data_files: {test: d.jsonl}}\n"
        "test_split: test\noutput_type: generate_until\ndoc_to_target: text\n"
        'doc_to_text: "{{ cycler.__init__.__globals__.os.getcwd() }}"\n'
        "metric_list: [{metric: exact_match}]\n"
    )
    with pytest.raises(TaskError, match=r"unsafe|cannot be built"):
        build([], [tmp_path / "t.yaml"])


def test_a_judge_that_is_gone_is_started_again() -> None:
    worker = Worker()
    assert worker.ask({"kind": "regex", "pattern": "a", "answer": "ba"}, 10.0) is True
    assert worker._process is not None
    worker._process.kill()
    worker._process.wait()
    assert worker.ask({"kind": "regex", "pattern": "a", "answer": "b"}, 10.0) is False
    with pytest.raises(ScoringError, match=r"PatternError|error"):
        worker.ask({"kind": "regex", "pattern": "(", "answer": "b"}, 10.0)
    worker.close()


def test_code_blocks() -> None:
    assert code_of("x = 1") == "x = 1"
    assert code_of("a\n```python\nx = 1\n```\n```\ny\n```") == "x = 1\n"
    assert code_of("```py\nx = 1") == "x = 1"
    assert without_fence(" ```json\n{}\n``` ") == "{}"
    assert without_fence(" {} ") == "{}"
