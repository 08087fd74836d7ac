"""Large blocks that are freed leave the process, whatever small ones stay between them."""

from __future__ import annotations

import subprocess
import sys

import pytest

CODE = """
import sys
import torch
from evalq.cli._memory import return_large_blocks
if sys.argv[1] == "set":
    assert return_large_blocks()
def resident():
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * 4096 >> 20
# Freed once, a block of 24 MB raises glibc's own limit to its size.
del_me = torch.ones(6 << 20); del del_me
kept, before = [], resident()
for i in range(60):
    table = torch.ones((1 << 18) * (4 + i % 19))
    other = torch.ones((1 << 18) * (3 + i % 17))
    del table
    kept.append(torch.ones(4096 + 64 * i).numpy())
    del other
    kept.append(torch.ones(4096 + 32 * i).numpy())
print(resident() - before)
"""


def grown(how: str) -> int:
    command = [sys.executable, "-c", CODE, how]
    return int(subprocess.run(command, check=True, capture_output=True, text=True).stdout)


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="glibc's allocator")
def test_large_blocks_go_back() -> None:
    kept = 60 * (2 * 4096 + 96 * 30) * 4 >> 20
    assert grown("set") < kept + 12
