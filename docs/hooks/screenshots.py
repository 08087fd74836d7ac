"""Screenshots of the sample report, for the README and the site: ``make screenshots``.

Needs Playwright and a Chromium (``CHROMIUM`` names one; else the first found on the path is used).
"""

from __future__ import annotations

import io
import os
import shutil
import sys
from pathlib import Path

from PIL import Image
from playwright.sync_api import Page, sync_playwright

ROOT = Path(__file__).resolve().parents[2]
REPORT = ROOT / "reports/demo/index.html"
OUT = ROOT / "docs/images"
COLOURS = 256
"""Of the palette that keeps the files small."""


def _chromium() -> str:
    named = os.environ.get("CHROMIUM")
    found = named or shutil.which("chromium") or shutil.which("chromium-browser")
    if not found:
        sys.exit("no Chromium: install one, or set CHROMIUM to its path")
    return found


def _save(name: str, png: bytes) -> None:
    with Image.open(io.BytesIO(png)) as image:
        small = image.convert("RGB").quantize(
            COLOURS, method=Image.Quantize.MAXCOVERAGE, dither=Image.Dither.NONE
        )
        OUT.mkdir(parents=True, exist_ok=True)
        small.save(OUT / name, optimize=True)
    print(f"{name}: {(OUT / name).stat().st_size / 1024:.0f} KiB")


def _top(page: Page, height: int) -> bytes:
    size = page.viewport_size
    assert size is not None
    return page.screenshot(clip={"x": 0, "y": 0, "width": size["width"], "height": height})


def main() -> None:
    with sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=_chromium(), args=["--no-sandbox"])
        for scheme in ("light", "dark"):
            page = browser.new_page(
                viewport={"width": 1200, "height": 1500},
                color_scheme="light" if scheme == "light" else "dark",
            )
            page.goto(REPORT.as_uri())
            page.wait_for_selector(".flip")
            _save(f"report-{scheme}.png", _top(page, 1500))
            if scheme == "light":
                _save("report-head.png", _top(page, 720))
                # The sticky bar would lie across a screenshot of a section.
                page.add_style_tag(content=".top{position:static!important}")
                _save("report-heatmap.png", page.locator("#heat").screenshot())
                _save("report-flips.png", page.locator("#flips").screenshot())
            page.close()
        phone = browser.new_page(viewport={"width": 390, "height": 844})
        phone.goto(REPORT.as_uri())
        phone.wait_for_selector(".flip")
        _save("report-phone.png", _top(phone, 844))
        browser.close()
    with Image.open(ROOT / "reports/demo/figures/frontier.png") as image:
        buffer = io.BytesIO()
        image.resize((image.width * 2 // 3, image.height * 2 // 3)).save(buffer, "PNG")
    _save("frontier.png", buffer.getvalue())


if __name__ == "__main__":
    main()
