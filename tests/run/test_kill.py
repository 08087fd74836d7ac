"""kill -9 at random moments of the demo, resumed each time: the items of an unbroken run.

Slow: it runs the demo twice. `KILL_RUN` may name a finished demo run to compare with.
"""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent.parent
KILLS = 10


def demo(out: Path) -> subprocess.Popen[bytes]:
    command = [sys.executable, "-m", "evalq.cli.main", "run", "demo.yaml", "--out", str(out), "-q"]
    return subprocess.Popen(
        command, cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, start_new_session=True
    )


@pytest.mark.slow
def test_ten_kills_and_the_same_items(tmp_path: Path) -> None:
    given = os.environ.get("KILL_RUN")
    whole = Path(given) if given else tmp_path / "whole"
    seconds = 240.0
    if not given:
        began = time.monotonic()
        assert demo(whole).wait() == 0
        seconds = time.monotonic() - began
    rng = random.Random(0)
    broken = tmp_path / "broken"
    for _ in range(KILLS):
        run = demo(broken)
        # Every start costs some seconds of imports; the moments spread over the whole run.
        time.sleep(8 + rng.random() * seconds / KILLS * 1.6)
        if run.poll() is None:
            os.killpg(run.pid, signal.SIGKILL)
        run.wait()
    last = demo(broken)
    _, said = last.communicate()
    assert last.returncode == 0, said.decode()
    assert (broken / "items.parquet").read_bytes() == (whole / "items.parquet").read_bytes()
    assert (broken / "fidelity.parquet").read_bytes() == (whole / "fidelity.parquet").read_bytes()
