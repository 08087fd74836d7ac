import json
from pathlib import Path

import pytest

from evalq.compare import load_run
from evalq.errors import ComparisonError, StoreError
from evalq.schema import FORMAT_VERSION
from tests.synthetic import change_info, write_run


def test_a_run_opens_with_its_variants_the_parent_first(tmp_path: Path) -> None:
    run = load_run(write_run(tmp_path / "r", variants=("rtn-w4-g128", "rtn-w2-g128"), items=5))
    assert run.parent == "parent"
    assert run.variants == run.measured == ("parent", "rtn-w4-g128", "rtn-w2-g128")
    assert run.finished
    assert len(run.items) == 3 * 9 * 5
    assert run.control in set(run.fidelity["variant"])


def test_a_newer_format_is_refused(tmp_path: Path) -> None:
    path = change_info(write_run(tmp_path / "r", items=2), format_version=FORMAT_VERSION + 1)
    with pytest.raises(StoreError, match="format version"):
        load_run(path)


def test_no_run_directory(tmp_path: Path) -> None:
    with pytest.raises(StoreError, match="no run directory"):
        load_run(tmp_path)


def test_a_run_without_variants_is_refused(tmp_path: Path) -> None:
    path = change_info(write_run(tmp_path / "r", items=2), variants=[])
    with pytest.raises(StoreError, match="lacks variants"):
        load_run(path)


def test_an_unfinished_run_opens_without_its_tables(tmp_path: Path) -> None:
    path = change_info(write_run(tmp_path / "r", items=2), status="running")
    (path / "items.parquet").unlink()
    (path / "fidelity.parquet").unlink()
    run = load_run(path)
    assert not run.finished
    assert run.items.empty
    assert run.measured == ()


def test_a_finished_run_without_its_tables_is_broken(tmp_path: Path) -> None:
    path = write_run(tmp_path / "r", items=2)
    (path / "costs.parquet").unlink()
    with pytest.raises(StoreError, match="missing"):
        load_run(path)


def test_a_plan_without_costs_needs_no_costs(tmp_path: Path) -> None:
    path = write_run(tmp_path / "r", items=2)
    (path / "costs.parquet").unlink()
    plan = json.loads((path / "run.json").read_text())["plan"]
    change_info(path, plan={**plan, "cost": {"enabled": False}})
    assert load_run(path).costs.empty


def test_a_misspelt_variant_is_suggested(tmp_path: Path) -> None:
    run = load_run(write_run(tmp_path / "r", variants=("rtn-w4-g128",), items=2))
    with pytest.raises(ComparisonError) as caught:
        run.variant_info("rtn-w4-g12")
    assert "rtn-w4-g128" in caught.value.hint
