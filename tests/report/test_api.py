from pathlib import Path

import pytest

from evalq import open_run
from evalq.errors import PlanError
from tests.synthetic import write_run

V = "rtn-w4-g128"


def test_a_run_opens_to_frames_flips_and_figures(tmp_path: Path) -> None:
    found = open_run(write_run(tmp_path / "r", variants=(V,), items=20))
    assert list(found.frames["variants"]["variant"]) == ["parent", V]
    assert found.verdict.startswith("Ship ")
    assert found.summary["recommended"]["variant"] in ("parent", V)
    overall = found.compare(V).overall
    assert overall is not None
    assert len(found.flips(V)) == overall.lost + overall.gained
    assert found.figure("frontier") is not None
    with pytest.raises(PlanError, match="frontier"):
        found.figure("frontie")  # type: ignore[arg-type]
