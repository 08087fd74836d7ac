"""Files are whole or not there; one writer a directory; a full disk is said in words."""

from __future__ import annotations

import errno
import subprocess
import sys
from pathlib import Path

import pytest

from evalq.errors import StoreError
from evalq.schema import FORMAT_VERSION
from evalq.store import RunDirectory, atomic_write, guard_disk


def test_a_failed_write_leaves_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "a"
    path.write_text("old")

    def write() -> None:
        with atomic_write(path) as stream:
            stream.write(b"new, half")
            raise RuntimeError

    with pytest.raises(RuntimeError):
        write()
    assert path.read_text() == "old"
    assert [p.name for p in tmp_path.iterdir()] == ["a"]


@pytest.mark.parametrize(
    ("number", "words"),
    [(errno.ENOSPC, "the disk is full"), (errno.EROFS, "read-only"), (errno.EACCES, "denied")],
)
def test_a_full_or_read_only_disk_is_said_in_words(number: int, words: str) -> None:
    with pytest.raises(StoreError, match=words) as caught, guard_disk(Path("/x")):
        raise OSError(number, "whatever")
    assert "--out" in caught.value.hint


def test_a_real_full_device() -> None:
    def write() -> None:
        with guard_disk(Path("/dev/full")), open("/dev/full", "wb") as stream:
            stream.write(b"x")

    with pytest.raises(StoreError, match="full"):
        write()


def test_another_os_error_is_not_hidden() -> None:
    with pytest.raises(OSError, match="whatever"), guard_disk(Path("/x")):
        raise OSError(errno.EIO, "whatever")


def test_a_second_writer_is_refused_and_a_dead_one_leaves_no_lock(tmp_path: Path) -> None:
    code = (
        "import sys\nfrom pathlib import Path\nfrom evalq.store import RunDirectory\n"
        "run = RunDirectory(Path(sys.argv[1]))\nrun.lock()\n"
        "print('held', flush=True)\nsys.stdin.read()"
    )
    holder = subprocess.Popen(
        [sys.executable, "-c", code, str(tmp_path)], stdout=subprocess.PIPE, stdin=subprocess.PIPE
    )
    assert holder.stdout is not None
    assert holder.stdout.readline() == b"held\n"
    with pytest.raises(StoreError, match="another evalq process"):
        RunDirectory(tmp_path).lock()
    holder.kill()
    holder.communicate()
    mine = RunDirectory(tmp_path)
    mine.lock()
    mine.unlock()


def test_run_json(tmp_path: Path) -> None:
    run = RunDirectory(tmp_path)
    assert run.read_info() is None
    run.write_info({"name": "x"})
    assert run.read_info() == {"format_version": FORMAT_VERSION, "name": "x"}
    (tmp_path / "run.json").write_text('{"format_version": 99}')
    with pytest.raises(StoreError, match="format version 99"):
        run.read_info()
    (tmp_path / "run.json").write_text('{"name": 1}')
    with pytest.raises(StoreError, match=r"not the run\.json"):
        run.read_info()
    (tmp_path / "run.json").write_text("{")
    with pytest.raises(StoreError, match="cannot be read"):
        run.read_info()
