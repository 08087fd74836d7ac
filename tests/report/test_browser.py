"""The page in a real browser; left out where there is none."""

import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from evalq.report.render import render
from tests.synthetic import write_run

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
        if settings.get("java_script_enabled", True):
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
    assert page.locator("#tip").is_visible()
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


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [1280, 380])
def test_no_serious_fault_of_access(browser: Any, report: Path, scheme: str, width: int) -> None:
    size = {"width": width, "height": 900}
    seen = Seen(browser, report, color_scheme=scheme, viewport=size)
    page = seen.page
    overflow = page.evaluate("document.documentElement.scrollWidth - innerWidth")
    assert overflow <= 0
    bundled = Path(axe.__file__).parent / "axe.min.js"
    script = Path(os.environ.get("EVALQ_AXE", bundled)).read_text(encoding="utf-8")
    page.evaluate(script)
    found = page.evaluate("axe.run()")["violations"]
    bad = [
        (v["id"], v["impact"], [n["html"][:120] for n in v["nodes"]][:3])
        for v in found
        if v["impact"] in ("serious", "critical")
    ]
    assert bad == []
    seen.close(report)


def test_without_scripts_there_are_charts_and_flips(browser: Any, report: Path) -> None:
    context = browser.new_context(java_script_enabled=False)
    page = context.new_page()
    page.goto(report.as_uri())
    assert page.locator(".view-bytes .wide svg").is_visible()
    assert page.locator("#static-flips article").first.is_visible()
    assert not page.locator("#browser").is_visible()
    context.close()
