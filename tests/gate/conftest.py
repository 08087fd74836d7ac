"""Runs to gate: a plain one, and one whose every text is hostile."""

from __future__ import annotations

import json
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from evalq.compare import Run, load_run
from tests.synthetic import write_run

GOOD, FAIR, BAD = "rtn-w8-g128", "gptq-w4-g128", "rtn-w3-g128"
SLICES = ("math/products", "math/chains", "multilingual/en", "multilingual/sw", "reasoning/swaps")
LOSS = {GOOD: 0.0, FAIR: 0.012, BAD: 0.2}

POLICY = """\
policy_version: 1
alpha: 0.05
metrics:
  accuracy: {margin_pp: 2.0, mandatory: true}
  kl_mean: {max: 0.05}
  ppl_ratio: {max: 1.05}
  bytes_on_disk: {max_ratio: 0.7}
slices:
  default: {margin_pp: 5.0, min_items: 200, correction: holm}
  math: {margin_pp: 3.0, role: mandatory}
  multilingual/*: {margin_pp: 6.0, role: advisory}
require: [math, reasoning]
"""

HOSTILE = (
    "::error file=/etc/passwd,line=1::owned\n::set-output name=x::y\r\n##[set-env name=A]b %0A%25 "
    "]]> <script>alert(1)</script> | `code` **bold** @octocat #1 ![i](http://x/y.png) "
    "\x00\x1b[31m\u202e\u2028\ufeff </code></details> ${{ secrets.TOKEN }} $(id) é漢🙂"
)


@pytest.fixture(scope="session")
def run_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("gate") / "run"
    return write_run(path, variants=(GOOD, FAIR, BAD), items=400, slices=SLICES, loss=LOSS)


@pytest.fixture(scope="session")
def run(run_dir: Path) -> Run:
    return load_run(run_dir)


@pytest.fixture
def policy_file(tmp_path: Path) -> Path:
    path = tmp_path / "policy.yaml"
    path.write_text(POLICY, encoding="utf-8")
    return path


def edit_info(run_dir: Path, **changes: object) -> None:
    path = run_dir / "run.json"
    info = json.loads(path.read_text(encoding="utf-8"))
    info.update(changes)
    path.write_text(json.dumps(info), encoding="utf-8")


def edit_items(run_dir: Path, **columns: object) -> None:
    """Replace columns of items.parquet; a function gets the old values."""
    path = run_dir / "items.parquet"
    table = pq.read_table(path)
    for name, change in columns.items():
        index = table.schema.get_field_index(name)
        field = table.schema.field(index)
        values = change(table.column(name).to_pylist()) if callable(change) else change
        table = table.set_column(index, field, pa.array(values, type=field.type))
    pq.write_table(table, path)


@pytest.fixture(scope="session")
def hostile_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model, a data set and a user who all want to break out of the reports."""
    label = "w8 ::error::<b>|`@octocat`\n##[error]x"
    path = tmp_path_factory.mktemp("gate") / "hostile"
    write_run(path, variants=(BAD,), items=300, slices=SLICES, loss=LOSS)
    info = json.loads((path / "run.json").read_text(encoding="utf-8"))
    info["variants"][1]["name"] = label
    info["name"] = HOSTILE
    (path / "run.json").write_text(json.dumps(info), encoding="utf-8")

    def rename(names: list[str]) -> list[str]:
        return [label if n == BAD else n for n in names]

    def hostile(texts: list[str]) -> list[str]:
        return [HOSTILE] * len(texts)

    edit_items(path, variant=rename, prompt=hostile, response=hostile, target=hostile)
    for name in ("fidelity.parquet", "costs.parquet"):
        table = pq.read_table(path / name)
        column = pa.array(rename(table.column("variant").to_pylist()), pa.string())
        pq.write_table(table.set_column(0, table.schema.field(0), column), path / name)
    return path
