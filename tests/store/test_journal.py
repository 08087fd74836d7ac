"""The journal keeps whole batches, survives a kill, and tells models apart."""

from __future__ import annotations

import os
import signal
import sqlite3
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import pytest

from evalq.errors import StoreError
from evalq.schema import Request, Response
from evalq.store import Journal, journal_key

REQUEST = Request("generate_until", "2+2=", until=("\n",), max_tokens=8)


def test_answers_come_back_as_they_went_in(tmp_path: Path) -> None:
    answers = {
        "a": Response(text="4\x00\u202e</script>é", tokens_in=4, tokens_out=1, seconds=0.125),
        "b": Response(logprob=-0.1234567890123456789, greedy=False, truncated=True),
        "c": Response(logprob=-1e300, greedy=True),
    }
    with Journal(tmp_path / "j") as journal:
        journal.put(answers.items())
    with Journal(tmp_path / "j") as journal:
        assert journal.get(["a", "b", "c", "d"]) == answers
        assert len(journal) == 3


def test_what_is_stored_is_never_replaced(tmp_path: Path) -> None:
    with Journal(tmp_path / "j") as journal:
        journal.put([("a", Response(text="first"))])
        journal.put([("a", Response(text="second")), ("b", Response(text="b"))])
        assert journal.get(["a"])["a"].text == "first"
        assert len(journal) == 2


def test_many_keys_at_once(tmp_path: Path) -> None:
    with Journal(tmp_path / "j") as journal:
        journal.put((f"k{i}", Response(tokens_in=i)) for i in range(3000))
        found = journal.get([f"k{i}" for i in range(0, 3000, 2)])
    assert {int(k[1:]) for k in found} == set(range(0, 3000, 2))
    assert all(found[k].tokens_in == int(k[1:]) for k in found)


def test_the_key_knows_the_model_the_request_the_settings_and_the_repeat() -> None:
    other = Request("generate_until", "2+3=", until=("\n",), max_tokens=8)
    keys = {
        journal_key("m1", REQUEST, {"dtype": "float32"}, 0),
        journal_key("m2", REQUEST, {"dtype": "float32"}, 0),
        journal_key("m1", other, {"dtype": "float32"}, 0),
        journal_key("m1", REQUEST, {"dtype": "bfloat16"}, 0),
        journal_key("m1", REQUEST, {"dtype": "float32"}, 1),
    }
    assert len(keys) == 5
    assert journal_key("m1", REQUEST, {"a": 1, "b": 2}, 0) == journal_key(
        "m1", REQUEST, {"b": 2, "a": 1}, 0
    )


def test_a_file_that_is_no_journal_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "j"
    path.write_bytes(b"not a database, and long enough to be taken for one" * 40)
    with pytest.raises(StoreError, match="cannot open the journal"):
        Journal(path)


def test_a_newer_journal_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "j"
    with sqlite3.connect(path) as db:
        db.execute("PRAGMA user_version=99")
    with pytest.raises(StoreError, match="version 99"):
        Journal(path)


def test_a_kill_leaves_whole_batches(tmp_path: Path) -> None:
    """A writer is killed at some moment; every batch is then there whole or not at all."""
    code = textwrap.dedent(
        """
        import sys
        from pathlib import Path
        from evalq.schema import Response
        from evalq.store import Journal
        journal = Journal(Path(sys.argv[1]))
        for batch in range(100000):
            journal.put((f"{batch}/{i}", Response(text="x" * 100)) for i in range(7))
            if batch == 3:
                print("going", flush=True)
        """
    )
    path = tmp_path / "j"
    writer = subprocess.Popen([sys.executable, "-c", code, str(path)], stdout=subprocess.PIPE)
    assert writer.stdout is not None
    assert writer.stdout.readline() == b"going\n"
    time.sleep(0.05)
    os.kill(writer.pid, signal.SIGKILL)
    writer.wait()
    writer.stdout.close()
    with Journal(path) as journal:
        count = len(journal)
        assert count >= 4 * 7
        assert count % 7 == 0
        last = count // 7 - 1
        assert len(journal.get([f"{last}/{i}" for i in range(7)])) == 7
