import json
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from evalq.compare import compare, load_run
from evalq.report.render import render
from tests.synthetic import change_info, change_items, write_run

SLICE_KEYS = {
    "items",
    "accuracy",
    "parent_accuracy",
    "delta",
    "ci",
    "lost",
    "gained",
    "p_worse",
}
VARIANT_KEYS = {
    "name",
    "hash",
    "method",
    "bits",
    "group_size",
    "bits_per_weight",
    "bytes",
    "peak_memory_bytes",
    "execution",
    "tokens_per_second",
    "overall",
    "slices",
    "fidelity",
    "frontier",
}


@pytest.fixture(scope="module")
def rendered(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return render(write_run(tmp_path_factory.mktemp("runs") / "r", items=60))


def _no_constant(name: str) -> Any:
    raise AssertionError(f"{name} in summary.json")


def test_summary_json_is_as_the_design_has_it(rendered: Path) -> None:
    text = (rendered.parent / "summary.json").read_text()
    summary = json.loads(text, parse_constant=_no_constant)
    assert list(summary) == [
        "format_version",
        "run",
        "parent",
        "machine",
        "suites",
        "variants",
        "recommended",
    ]
    assert set(summary["parent"]) == {"name", "hash", "bits_per_weight", "bytes"}
    assert set(summary["recommended"]) == {"variant", "why"}
    assert summary["variants"][0]["name"] == "parent"
    assert len(summary["variants"]) == 13
    for variant in summary["variants"]:
        assert set(variant) == VARIANT_KEYS
        assert set(variant["tokens_per_second"]) == {"prefill", "decode"}
        assert set(variant["frontier"]) == {"on_frontier", "probability"}
        for result in [variant["overall"], *variant["slices"].values()]:
            assert set(result) == SLICE_KEYS
            assert len(result["ci"]) == 2
        if variant["name"] != "parent":
            assert set(variant["fidelity"]) == {
                "kl_mean",
                "kl_ci",
                "kl_p99",
                "top1_agreement",
                "ppl_ratio",
                "ppl_ratio_ci",
                "tokens",
            }
    assert {"math", "multilingual/sw"} <= set(summary["variants"][1]["slices"])


def test_summary_numbers_are_the_comparisons(rendered: Path) -> None:
    run = load_run(rendered.parent.parent)
    summary = json.loads((rendered.parent / "summary.json").read_text())
    for variant in summary["variants"][1:]:
        found = compare(run, variant["name"])
        assert found.overall is not None
        assert variant["overall"]["delta"] == pytest.approx(found.overall.delta)
        assert variant["slices"]["math"]["lost"] == found.slices["math"].lost
    parent = summary["variants"][0]
    assert parent["overall"]["delta"] == 0
    assert parent["overall"]["ci"] == [0, 0]


def test_no_speed_is_claimed_for_dequantized_variants(rendered: Path) -> None:
    summary = json.loads((rendered.parent / "summary.json").read_text())
    speeds = {v["name"]: v["tokens_per_second"]["decode"] for v in summary["variants"]}
    assert speeds.pop("parent") > 0
    assert set(speeds.values()) == {None}
    costs = pd.read_csv(rendered.parent / "tables" / "costs.csv")
    assert costs["decode"].notna().all()
    assert set(costs["execution"]) == {"dense", "dequantized"}


def test_all_files_are_there(rendered: Path) -> None:
    out = rendered.parent
    for name in ("frontier", "heatmap", "cliff", "fidelity"):
        assert (out / "figures" / f"{name}.png").read_bytes()[:4] == b"\x89PNG"
        assert "<svg" in (out / "figures" / f"{name}.svg").read_text()
    for name in ("variants", "slices", "frontier", "fidelity", "costs", "kl_by_slice", "flips"):
        assert len(pd.read_csv(out / "tables" / f"{name}.csv"))
    assert "| variant |" in (out / "summary.md").read_text()


def test_flips_are_all_there_and_worst_slices_come_first(rendered: Path) -> None:
    run = load_run(rendered.parent.parent)
    flips = pd.read_parquet(rendered.parent / "tables" / "flips.parquet")
    compared = {v: compare(run, v) for v in run.variants[1:]}
    expected = sum(c.overall.lost + c.overall.gained for c in compared.values() if c.overall)
    assert len(flips) == expected
    losses = {
        leaf: sum(c.slices[leaf].delta for c in compared.values())
        for leaf in flips["slice"].unique()
    }
    order = list(dict.fromkeys(flips["slice"]))
    assert order == sorted(order, key=lambda s: losses[s])
    lost = flips[flips["direction"] == "lost"]
    assert (lost["baseline_response"] == lost["target"]).all()
    assert (lost["variant_response"] != lost["target"]).all()


def test_the_same_run_renders_to_the_same_bytes(tmp_path: Path) -> None:
    path = write_run(tmp_path / "r", variants=("rtn-w4-g128", "rtn-w2-g128"), items=12)
    names = lambda: sorted(p for p in (path / "report").rglob("*") if p.is_file())  # noqa: E731
    render(path)
    first = {p: p.read_bytes() for p in names()}
    render(path)
    assert {p: p.read_bytes() for p in names()} == first


def test_the_page_says_what_has_to_be_said(rendered: Path) -> None:
    text = re.sub(r"\s+", " ", rendered.read_text())
    assert "built-in demonstration model" in text
    assert "ran dequantized" in text
    assert "Unevenness at 4 bits" in text
    assert "times the average loss" in text
    assert "Negative control" in text
    assert "evalq run synthetic.yaml" in text


def test_a_gridded_parent_and_an_unfinished_run_are_told(tmp_path: Path) -> None:
    path = write_run(tmp_path / "r", variants=("rtn-w4-g128",), items=5)
    info = json.loads((path / "run.json").read_text())
    parent = {**info["parent"], "gridded": True, "demonstration": False}
    change_info(path, parent=parent, status="running")
    text = render(path, ()).read_text()
    assert "they lie on a grid" in text
    assert "This run is not finished" in text
    assert "demonstration model" not in text


@pytest.mark.parametrize("without", ["items", "fidelity", "costs"])
def test_a_part_that_is_not_there_is_no_obstacle(tmp_path: Path, without: str) -> None:
    path = write_run(tmp_path / "r", variants=("rtn-w4-g128",), items=5)
    (path / f"{without}.parquet").unlink()
    info = json.loads((path / "run.json").read_text())
    plan = {**info["plan"], "suites": [], "fidelity": {"enabled": False}}
    change_info(path, plan={**plan, "cost": {"enabled": False}}, suites=[])
    assert render(path).is_file()
    json.loads((path / "report" / "summary.json").read_text(), parse_constant=_no_constant)


HOSTILE = [
    "<script>alert(1)</script>",
    "</script><img src=x onerror=alert(2)>",
    "\"><svg onload=alert(3)>' onfocus='alert(4)",
    "{{ 7*7 }}{% raw %}",
    "javascript:alert(5)",
    "\u202egnp.exe\u202c \x1b[2J\x00\u2028",
    '=HYPERLINK("http://evil")',
    "x" * 60_000,
    "]]><!--",
]


class _Page(HTMLParser):
    """Elements, attributes and scripts of a page."""

    def __init__(self) -> None:
        super().__init__(convert_charrefs=True)
        self.scripts: list[dict[str, str | None]] = []
        self.tags: set[str] = set()
        self.faults: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.add(tag)
        if tag == "script":
            self.scripts.append(dict(attrs))
        for name, value in attrs:
            if name.startswith("on"):
                self.faults.append(f"{tag} has {name}")
            if name in ("href", "src", "action", "xlink:href") and not str(value).startswith("#"):
                self.faults.append(f"{tag} points to {value}")


def _hostile_run(path: Path) -> Path:
    names = [f"{HOSTILE[0]}", f"{HOSTILE[2]}"]
    write_run(path, variants=("rtn-w4-g128", "rtn-w2-g128"), items=len(HOSTILE) * 4)
    rename = dict(zip(("rtn-w4-g128", "rtn-w2-g128"), names, strict=True))

    def change(frame: pd.DataFrame) -> pd.DataFrame:
        frame["variant"] = frame["variant"].replace(rename)
        poison = [HOSTILE[int(i) % len(HOSTILE)] for i in frame["item_id"]]
        for column in ("prompt", "target", "response"):
            frame[column] = poison
        frame["slice"] = frame["slice"].replace(
            {"multilingual/sw": "multilingual/<img src=x onerror=alert(6)>"}
        )
        frame["task"] = frame["task"] + "<script>"
        return frame

    change_items(path, change)
    for table in ("fidelity", "costs"):
        frame = pd.read_parquet(path / f"{table}.parquet")
        frame["variant"] = frame["variant"].replace(rename)
        frame.to_parquet(path / f"{table}.parquet", index=False)
    info = json.loads((path / "run.json").read_text())
    for entry in info["variants"]:
        entry["name"] = rename.get(entry["name"], entry["name"])
        entry["warnings"] = [HOSTILE[1]]
    info["parent"]["name"] = HOSTILE[1]
    return change_info(
        path, variants=info["variants"], parent=info["parent"], name=HOSTILE[0], command=HOSTILE[1]
    )


def test_hostile_content_is_inert(tmp_path: Path) -> None:
    page = render(_hostile_run(tmp_path / "r"))
    text = page.read_text(encoding="utf-8")
    parser = _Page()
    parser.feed(text)
    assert parser.faults == []
    assert not parser.tags & {"img", "iframe", "object", "embed", "base", "a:evil", "form:evil"}
    kinds = [s.get("type") for s in parser.scripts]
    assert kinds.count(None) == 1
    assert set(kinds) == {None, "application/json", "text/plain"}
    assert parser.scripts[-1] == {}
    assert "{{ 7*7 }}" in text or "49" not in text.split("<main")[1][:2000]
    for char in ("\u202e", "\x1b", "\x00", "\u2028"):
        assert char not in text
    policy = re.search(r'Content-Security-Policy" content="([^"]+)"', text)
    assert policy is not None
    assert "default-src 'none'" in policy.group(1)
    assert len(text) < 2_000_000

    markdown = (page.parent / "summary.md").read_text()
    assert "<script>" not in markdown.replace("\\<", "")
    assert "<img" not in markdown.replace("\\<", "")
    flips = (page.parent / "tables" / "flips.csv").read_text()
    assert not re.search(r'(^|,)"?[=@]', flips, re.M)
    for figure in (page.parent / "figures").glob("*.svg"):
        assert "<script" not in figure.read_text()
