"""The page in a real browser; left out where there is none."""

import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from evalq.compare import load_run
from evalq.gate import gate, parse_policy, write_outputs
from evalq.report.across_page import render_across
from evalq.report.history_page import render_history
from evalq.report.render import render
from tests.synthetic import change_info, write_run

playwright = pytest.importorskip("playwright.sync_api")
axe = pytest.importorskip("axe_core_python")
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or ""
pytestmark = pytest.mark.skipif(not CHROMIUM, reason="no chromium")


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with playwright.sync_playwright() as driver:
        found = driver.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield found
        found.close()


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return render(write_run(tmp_path_factory.mktemp("runs") / "r", items=110), ())


class Seen:
    """A page with what it said and asked for."""

    def __init__(self, browser: Any, path: Path, **settings: Any) -> None:
        self.page = browser.new_page(**settings)
        self.said: list[str] = []
        self.asked: list[str] = []
        self.page.on("console", lambda m: self.said.append(m.text))
        self.page.on("pageerror", lambda e: self.said.append(str(e)))
        self.page.on("request", lambda r: self.asked.append(r.url))
        self.page.goto(path.as_uri())
        if path.parent.name == "report":
            self.page.wait_for_selector(".flip")

    def close(self, path: Path) -> None:
        self.page.close()
        assert self.said == []
        assert self.asked == [path.as_uri()]


def test_charts_switch_zoom_and_lead_to_the_variant(browser: Any, report: Path) -> None:
    seen = Seen(browser, report, viewport={"width": 1280, "height": 900})
    page = seen.page
    assert page.locator(".view-bytes .wide svg .pt:visible").count() == 13
    page.locator("label[for=axis-near]").click()
    assert page.locator(".view-near .wide svg").is_visible()
    assert not page.locator(".view-bytes .wide svg").is_visible()
    page.locator("label[for=axis-bytes]").click()
    tools = page.locator(".view-bytes .wide .tools button")
    for _ in range(6):
        tools.nth(0).click()
    shown = page.locator(".view-bytes .wide svg .pt:visible").count()
    assert 1 <= shown < 13
    tools.nth(2).click()
    assert page.locator(".view-bytes .wide svg .pt:visible").count() == 13
    chosen = page.locator(".view-bytes .wide svg .pt[data-chosen]")
    chosen.focus()
    # The tip comes with the focus event, which the browser sends when it gets to it.
    page.locator("#tip").wait_for(state="visible", timeout=10_000)
    page.keyboard.press("Enter")
    assert page.evaluate("location.hash").startswith("#v")
    seen.close(report)


def test_slices_fold(browser: Any, report: Path) -> None:
    seen = Seen(browser, report)
    row = seen.page.locator('tr[data-slice="multilingual/sw"]')
    assert row.is_visible()
    seen.page.locator('tr[data-slice="multilingual"] .fold').click()
    assert not row.is_visible()
    seen.close(report)


def test_flips_are_filtered_searched_and_shown(browser: Any, report: Path) -> None:
    seen = Seen(browser, report)
    page = seen.page
    page.select_option("#f-variant", "")
    page.select_option("#f-slice", "multilingual/sw")
    page.select_option("#f-direction", "1")
    lost = page.locator("#f-count").inner_text()
    assert int(lost.split()[0].replace(",", "")) > 0
    assert page.locator(".flip").count() < 20
    for text in page.locator(".flip .meta").all_inner_texts()[:1]:
        assert "lost" in text
        assert "multilingual/sw" in text
    page.fill("#f-search", "what is 7 x 5 +")
    page.wait_for_function("o => document.getElementById('f-count').textContent !== o", arg=lost)
    page.wait_for_selector(".detail pre")
    assert "what is 7 x 5 +" in page.locator(".detail pre").inner_text()
    assert page.locator(".detail .answer del").count() > 0
    seen.close(report)


def test_ten_thousand_flips_make_few_rows(browser: Any, report: Path) -> None:
    seen = Seen(browser, report)
    page = seen.page
    page.select_option("#f-variant", "")
    rows = page.locator("#rows")
    for share in (0.3, 0.7, 1.0):
        rows.evaluate("(node, share) => { node.scrollTop = node.scrollHeight * share; }", share)
        page.wait_for_timeout(80)
        assert 0 < page.locator(".flip").count() < 25
    seen.close(report)


def _serious(page: Any) -> list[Any]:
    """Serious and critical faults that axe finds."""
    bundled = Path(axe.__file__).parent / "axe.min.js"
    page.evaluate(Path(os.environ.get("EVALQ_AXE", bundled)).read_text(encoding="utf-8"))
    found = page.evaluate("axe.run()")["violations"]
    return [
        (v["id"], v["impact"], [n["html"][:120] for n in v["nodes"]][:3])
        for v in found
        if v["impact"] in ("serious", "critical")
    ]


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [1280, 380])
def test_no_serious_fault_of_access(browser: Any, report: Path, scheme: str, width: int) -> None:
    size = {"width": width, "height": 900}
    seen = Seen(browser, report, color_scheme=scheme, viewport=size)
    page = seen.page
    overflow = page.evaluate("document.documentElement.scrollWidth - innerWidth")
    assert overflow <= 0
    assert _serious(page) == []
    seen.close(report)


def test_without_scripts_there_are_charts_and_flips(browser: Any, report: Path) -> None:
    context = browser.new_context(java_script_enabled=False)
    page = context.new_page()
    page.goto(report.as_uri())
    assert page.locator(".view-bytes .wide svg").is_visible()
    assert page.locator("#static-flips article").first.is_visible()
    assert not page.locator("#browser").is_visible()
    context.close()


VARIANTS = ("rtn-w8-g128", "rtn-w4-g128", "rtn-w3-g128")
CONFIG = {"num_hidden_layers": 2, "num_attention_heads": 2, "hidden_size": 64}


@pytest.fixture(scope="module")
def priced(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A report with a price, memory, and a variant of mixed bits."""
    path = write_run(tmp_path_factory.mktemp("runs") / "r", variants=VARIANTS, items=40)
    costs = pd.read_parquet(path / "costs.parquet")
    costs["execution"] = "packed:native"
    costs.to_parquet(path / "costs.parquet", index=False)
    run = load_run(path)
    parent = {**run.info["parent"], "config": CONFIG}
    variants = [dict(v) for v in run.info["variants"]]
    kinds = ("self_attn.q_proj", "mlp.down_proj")
    variants[2]["layers"] = [
        {"name": f"model.layers.{b}.{k}", "bits": 3 + b % 2, "output_error": 0.1}
        for b in range(6)
        for k in kinds
    ]
    variants[2]["sensitivity"] = {
        layer["name"]: {"3": 0.1 * (i + 1)} for i, layer in enumerate(variants[2]["layers"])
    }
    change_info(path, parent=parent, variants=variants)
    return render(path, (), price_per_hour=2.0)


@pytest.fixture(scope="module")
def across(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("runs")
    runs = [write_run(folder / n, i, VARIANTS, 40) for i, n in enumerate(("one", "two"))]
    for run in runs:
        change_info(run, name=run.name)
    return render_across(runs, memory=5e6)


@pytest.fixture(scope="module")
def history(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("releases")
    text = "policy_version: 1\nmetrics:\n  accuracy: {margin_pp: 4.0}\n"
    for number in range(3):
        run = write_run(folder / f"r{number}", number, VARIANTS[:2], 60)
        change_info(run, name=f"r{number}", created=f"2026-0{number + 1}-01T00:00:00+00:00")
        write_outputs(gate(load_run(run), parse_policy(text)), run / "gate")
    return render_history(folder)


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [1280, 380])
@pytest.mark.parametrize("name", ["priced", "across", "history"])
def test_the_other_pages_have_no_serious_fault(
    browser: Any, request: pytest.FixtureRequest, scheme: str, width: int, name: str
) -> None:
    path = request.getfixturevalue(name)
    seen = Seen(browser, path, color_scheme=scheme, viewport={"width": width, "height": 900})
    assert seen.page.evaluate("document.documentElement.scrollWidth - innerWidth") <= 0
    assert seen.page.locator("svg.chart:visible").count() > 0
    assert _serious(seen.page) == []
    seen.close(path)


def test_the_axis_switches_to_the_price(browser: Any, priced: Path) -> None:
    seen = Seen(browser, priced, viewport={"width": 1280, "height": 900})
    seen.page.locator("label[for=axis-price]").click()
    chart = seen.page.locator(".view-price .wide svg")
    assert chart.is_visible()
    assert not seen.page.locator(".view-bytes .wide svg").is_visible()
    chart.locator(".pt").first.hover()
    assert "/ M tokens" in seen.page.locator("#tip").inner_text()
    seen.close(priced)


def test_the_keys_move_through_the_flips(browser: Any, report: Path) -> None:
    seen = Seen(browser, report, viewport={"width": 1280, "height": 900})
    page = seen.page
    page.select_option("#f-variant", "")
    rows = page.locator("#rows")
    rows.focus()
    total = page.locator(".flip").first.get_attribute("aria-setsize")

    def chosen() -> str | None:
        return page.locator(".flip[aria-selected=true]").get_attribute("aria-posinset")

    for key, place in (("ArrowDown", "2"), ("End", total), ("ArrowUp", str(int(total) - 1))):
        page.keyboard.press(key)
        assert chosen() == place
    page.keyboard.press("Home")
    assert chosen() == "1"
    assert rows.get_attribute("aria-activedescendant") == "flip-0"
    seen.close(report)
