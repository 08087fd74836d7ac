"""Record tables: same rows, same bytes; odd files are refused."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from evalq.errors import StoreError
from evalq.schema import CostRecord, FidelityRecord, ItemRecord
from evalq.store import read_table, write_table

ITEM = ItemRecord(
    variant="parent",
    variant_hash="h",
    suite="s",
    task="t",
    task_version="1",
    slice="math/products",
    item_id="0",
    cluster="t/0",
    doc_hash="d",
    prompt_hash="p",
    target_hash="x",
    filter="none",
    metric="exact_match",
    score=1.0,
    nll=None,
    units=None,
    metrics='{"exact_match": 1.0}',
    prompt="2+2=",
    target="4",
    response="4",
    tokens_in=4,
    tokens_out=1,
    truncated=False,
)


def test_records_come_back(tmp_path: Path) -> None:
    rows = [ITEM, replace(ITEM, item_id="1", score=None, nll=3.5, units=7, response="\x00\u202e")]
    write_table(tmp_path / "items.parquet", ItemRecord, rows)
    table = read_table(tmp_path / "items.parquet", ItemRecord)
    assert [ItemRecord(**row) for row in table.to_pylist()] == rows


def test_the_same_rows_give_the_same_bytes(tmp_path: Path) -> None:
    rows = [replace(ITEM, item_id=str(i)) for i in range(500)]
    write_table(tmp_path / "a", ItemRecord, rows)
    write_table(tmp_path / "b", ItemRecord, rows)
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()


def test_a_lone_surrogate_does_not_lose_the_run(tmp_path: Path) -> None:
    write_table(tmp_path / "a", ItemRecord, [replace(ITEM, response="a\ud800b")])
    assert read_table(tmp_path / "a", ItemRecord).to_pylist()[0]["response"] == "a?b"


def test_no_rows_keep_the_columns(tmp_path: Path) -> None:
    write_table(tmp_path / "a", CostRecord, [])
    assert read_table(tmp_path / "a", CostRecord).num_rows == 0


def test_missing_broken_and_foreign_files_are_refused(tmp_path: Path) -> None:
    with pytest.raises(StoreError, match="is missing"):
        read_table(tmp_path / "none", FidelityRecord)
    (tmp_path / "broken").write_bytes(b"PAR1 not really")
    with pytest.raises(StoreError, match="no readable Parquet"):
        read_table(tmp_path / "broken", FidelityRecord)
    pq.write_table(pa.table({"variant": ["a"]}), tmp_path / "foreign")
    with pytest.raises(StoreError, match="other columns"):
        read_table(tmp_path / "foreign", FidelityRecord)
