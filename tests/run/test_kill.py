"""kill -9 at random moments of a whole run, resumed each time: the items of an unbroken one.

Slow: some ten minutes. `KILLS` sets how many.
"""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent.parent
KILLS = int(os.environ.get("KILLS", "50"))
OPTIONS = (
    "--suite", "builtin-math", "--suite", "builtin-multilingual", "--suite", "builtin-reasoning",
    "--limit", "8", "--variant", "rtn:4", "--variant", "gptq:4",
)  # fmt: skip


def start(out: Path) -> subprocess.Popen[bytes]:
    command = [
        sys.executable, "-m", "evalq.cli.main", "run", "--parent", "builtin", *OPTIONS,
        "--threads", "1", "--out", str(out), "-q",
    ]  # fmt: skip
    return subprocess.Popen(
        command, cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, start_new_session=True
    )


def reached(out: Path) -> str:
    """How far a run had come, by what lies in its directory."""
    names = ("report", "costs.parquet", "fidelity.parquet", "items.parquet")
    for name in names:
        if (out / name).exists():
            return name
    made = len(list(out.glob("artifacts/*"))) if out.exists() else 0
    return f"{made} artifacts, {'a' if (out / 'journal.sqlite').exists() else 'no'} journal"


@pytest.mark.slow
def test_kills_at_random_moments_and_the_same_items(tmp_path: Path) -> None:
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    began = time.monotonic()
    assert start(whole).wait() == 0
    seconds = time.monotonic() - began
    rng = random.Random(0)
    seen: Counter[str] = Counter()
    killed = finished = 0
    while killed < KILLS:
        run = start(broken)
        # From the first import to the last page: each round may get as far as the whole took.
        time.sleep(rng.random() * seconds / (1 if killed % 5 == 4 else 4))
        if run.poll() is None:
            os.killpg(run.pid, signal.SIGKILL)
            killed += 1
            seen[reached(broken)] += 1
        else:
            # It came to its end: begin anew elsewhere, so that kills go on over the whole of it.
            assert run.returncode == 0
            same(broken, whole)
            finished += 1
            broken = tmp_path / f"broken-{finished}"
        run.wait()
    last = start(broken)
    _, said = last.communicate()
    assert last.returncode == 0, said.decode()
    same(broken, whole)
    print(f"{killed} kills over {finished + 1} runs of {seconds:.0f} s, at: {dict(seen)}")


def same(broken: Path, whole: Path) -> None:
    """The very bytes of an unbroken run."""
    for name in ("items.parquet", "fidelity.parquet"):
        assert (broken / name).read_bytes() == (whole / name).read_bytes(), name
