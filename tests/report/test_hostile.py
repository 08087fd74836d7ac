"""Texts of others in every file of a report, read back by the readers of those formats."""

import csv
import io
import json
import re
import shutil
from pathlib import Path
from typing import Any

import pytest
import yaml

from evalq.report.render import render
from tests.report.test_render import HOSTILE, _hostile_run
from tests.synthetic import change_info

markdown_it = pytest.importorskip("markdown_it")
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or ""
BIDI = re.compile("[\u202a-\u202e\u2066-\u2069\u200e\u200f\u061c]")


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = _hostile_run(tmp_path_factory.mktemp("runs") / "r")
    info = json.loads((path / "run.json").read_text())
    info["variants"][1]["warnings"] = [*HOSTILE, "[x](javascript:alert(1)) ![y](http://evil/z.png)"]
    layers = [{"name": f"model.layers.{i}.{h}", "bits": 4 - i} for i in (0, 1) for h in HOSTILE]
    info["variants"][1]["layers"] = layers
    change_info(path, variants=info["variants"])
    return render(path, ()).parent


def test_no_table_holds_a_formula(report: Path) -> None:
    tables = sorted((report / "tables").glob("*.csv"))
    assert {"flips.csv", "layers.csv", "variants.csv"} <= {t.name for t in tables}
    for table in tables:
        text = table.read_text(encoding="utf-8")
        assert not BIDI.search(text)
        rows = list(csv.reader(io.StringIO(text)))
        for cell in (c for row in rows for c in row):
            number = re.fullmatch(r"-?[\d.]+(e[+-]?\d+)?", cell)
            assert number or not re.match(r"[=+\-@\t\r|%]", cell), (table.name, cell[:40])


def _tokens(tokens: Any) -> list[Any]:
    return [t for token in tokens or () for t in (token, *_tokens(token.children))]


@pytest.mark.parametrize("name", ["summary.md", "exports/model_card.md"])
def test_markdown_has_no_links_images_or_html(report: Path, name: str) -> None:
    text = (report / name).read_text(encoding="utf-8")
    assert not BIDI.search(text)
    if name.endswith("card.md"):
        _, head, text = text.split("---\n", 2)
        assert list(yaml.safe_load(head)) == ["model-index"]
    parser = markdown_it.MarkdownIt("gfm-like", {"linkify": False, "html": True})
    kinds = {t.type for t in _tokens(parser.parse(text))}
    assert "table_open" in kinds
    assert not kinds & {"link_open", "image", "html_inline", "html_block"}


def test_json_reads_back_what_was_said(report: Path) -> None:
    summary = json.loads((report / "summary.json").read_text(encoding="utf-8"))
    assert summary["run"] == HOSTILE[0]
    assert [v["name"] for v in summary["variants"]][1:] == [HOSTILE[0], HOSTILE[2]]


@pytest.mark.skipif(not CHROMIUM, reason="no chromium")
def test_a_browser_runs_none_of_it(report: Path) -> None:
    playwright = pytest.importorskip("playwright.sync_api")
    page_path = report / "index.html"
    seen: list[str] = []
    with playwright.sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        page = browser.new_page(viewport={"width": 390, "height": 800})
        page.on("dialog", lambda d: (seen.append("dialog " + d.message), d.dismiss()))
        page.on("console", lambda m: seen.append("console " + m.text))
        page.on("pageerror", lambda e: seen.append("error " + str(e)))
        page.on("request", lambda r: seen.append("request " + r.url))
        page.goto(page_path.as_uri())
        page.select_option("#f-variant", "")
        page.wait_for_selector(".detail pre")
        rows = page.locator("#rows")
        rows.focus()
        shown = set()
        for _ in range(30):
            page.keyboard.press("ArrowDown")
            page.wait_for_timeout(15)
            shown.add(page.locator(".detail pre").inner_text()[:30])
        page.keyboard.press("End")
        assert (
            page.evaluate("document.querySelectorAll('img, iframe, object, form[action]').length")
            == 0
        )
        assert page.evaluate("document.documentElement.scrollWidth - innerWidth") <= 0
        assert page.title().startswith(HOSTILE[0])
        browser.close()
    assert seen == [f"request {page_path.as_uri()}"]
    assert any("onerror" in text for text in shown)
