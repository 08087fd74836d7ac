"""The report at a million item records: time and memory to render, then the page in a browser.

``python -m benchmarks.report_page [--items 1923] [--json OUT]``. The run has 12 variants, their
parent and 40 slices. First paint and tasks come from the browser's own trace, tasks both by the
clock and by the processor time of their thread, which other work on the machine does not stretch.
Needs Playwright and Chromium.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

SLICES = tuple(f"area{a}/part{b}" for a in range(8) for b in range(5))


def generate(path: Path, items: int) -> int:
    """Write the run in a process of its own and return its item records."""
    from tests.synthetic import VARIANTS, write_run

    write_run(path, 0, VARIANTS, items, SLICES)
    return (len(VARIANTS) + 1) * len(SLICES) * items


def render(path: Path) -> dict[str, float]:
    """Seconds and peak resident bytes of ``evalq report`` in a process of its own."""
    began = time.perf_counter()
    process = subprocess.Popen([sys.executable, "-m", "evalq.cli.main", "report", str(path)])
    _, status, usage = os.wait4(process.pid, 0)
    seconds = time.perf_counter() - began
    if status:
        sys.exit("evalq report failed")
    page = path / "report" / "index.html"
    return {
        "seconds": seconds,
        "cpu_seconds": usage.ru_utime + usage.ru_stime,
        "peak_gib": usage.ru_maxrss * 1024 / 2**30,
        "html_mb": page.stat().st_size / 1e6,
    }


def _paint(events: list[dict[str, Any]], url: str) -> tuple[tuple[int, int], dict[str, float]]:
    """The page's main thread, and milliseconds from the start of its navigation to its paints."""
    starts = [
        e for e in events if e["name"] == "navigationStart" and url in json.dumps(e.get("args", {}))
    ]
    if not starts:
        sys.exit("the trace holds no navigation to the page")
    start = starts[-1]
    out = {}
    for name in ("firstPaint", "firstContentfulPaint"):
        after = [
            e["ts"]
            for e in events
            if e["name"] == name and e["pid"] == start["pid"] and e["ts"] >= start["ts"]
        ]
        if not after:
            sys.exit(f"the trace holds no {name} of the page")
        out[name] = (min(after) - start["ts"]) / 1000
    return (start["pid"], start["tid"]), out


def _tasks(events: list[dict[str, Any]], thread: tuple[int, int]) -> dict[str, float]:
    """The longest tasks of one thread, in milliseconds by the clock and of processor time."""
    mine = [
        event
        for event in events
        if event["name"] in ("RunTask", "ThreadControllerImpl::RunTask")
        and (event["pid"], event["tid"]) == thread
        and "dur" in event
    ]
    clock = [event["dur"] / 1000 for event in mine]
    worked = [event.get("tdur", event["dur"]) / 1000 for event in mine]
    return {
        "tasks": len(mine),
        "longest_ms": max(clock),
        "longest_cpu_ms": max(worked),
        "over_50_ms": sum(t > 50 for t in clock),
        "over_50_cpu_ms": sum(t > 50 for t in worked),
    }


def _scroll(page: Any) -> None:
    """Wheel steps over the list, then jumps of the bar, as a hurried reader would."""
    box = page.locator("#rows").bounding_box()
    page.mouse.move(box["x"] + 100, box["y"] + 200)
    for _ in range(120):
        page.mouse.wheel(0, 1200)
        page.wait_for_timeout(8)
    for share in (0.1, 0.9, 0.3, 0.7, 1.0, 0.0):
        page.locator("#rows").evaluate("(n, s) => { n.scrollTop = n.scrollHeight * s; }", share)
        page.wait_for_timeout(60)


def _traced(browser: Any, page: Any, action: Any) -> list[dict[str, Any]]:
    categories = ["toplevel", "disabled-by-default-devtools.timeline", "devtools.timeline"]
    categories += ["loading", "blink.user_timing"]
    browser.start_tracing(page=page, categories=categories)
    action()
    found: list[dict[str, Any]] = json.loads(browser.stop_tracing())["traceEvents"]
    return found


def browse(path: Path) -> dict[str, Any]:
    """What the browser's trace says of the page at ``path``."""
    from playwright.sync_api import sync_playwright

    chromium = os.environ.get("CHROMIUM") or shutil.which("chromium")
    if not chromium:
        sys.exit("no Chromium: install one, or set CHROMIUM to its path")
    url = path.resolve().as_uri()
    said: list[str] = []
    asked: list[str] = []
    with sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=chromium, args=["--no-sandbox"])
        page = browser.new_page(viewport={"width": 1280, "height": 900})
        page.on("console", lambda m: said.append(m.text))
        page.on("pageerror", lambda e: said.append(str(e)))
        page.on("request", lambda r: asked.append(r.url))

        def load() -> None:
            page.goto(url)
            page.wait_for_selector(".flip")
            page.wait_for_timeout(300)

        events = _traced(browser, page, load)
        thread, painted = _paint(events, url)
        loading = _tasks(events, thread)
        page.select_option("#f-variant", "")
        page.wait_for_timeout(300)
        shown = page.locator("#f-count").inner_text()
        page.locator("#flips").scroll_into_view_if_needed()
        page.wait_for_timeout(300)
        scrolling = _tasks(_traced(browser, page, lambda: _scroll(page)), thread)
        version = browser.version
        browser.close()
    return {
        "chromium": version,
        "first_paint_ms": painted["firstPaint"],
        "first_contentful_paint_ms": painted["firstContentfulPaint"],
        "loading": loading,
        "flips": shown,
        "scrolling": scrolling,
        "console": said,
        "requests_elsewhere": [u for u in asked if u != url],
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--items", type=int, default=1923, help="a slice and variant")
    parser.add_argument("--run", type=Path, help="a run that is there already")
    parser.add_argument("--json", type=Path)
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        path = given.run or Path(folder) / "run"
        out: dict[str, Any] = {"machine": platform.platform(), "python": platform.python_version()}
        if given.run is None:
            # In a child, so that its memory is no part of the measurement.
            words = f"generate(Path({str(path)!r}), {given.items})"
            code = f"from benchmarks.report_page import *; {words}"
            subprocess.run([sys.executable, "-c", code], check=True)
            out["records"] = 13 * len(SLICES) * given.items
        out["load_average"] = os.getloadavg()[0]
        out |= render(path)
        out |= browse(path / "report" / "index.html")
    text = json.dumps(out, indent=2)
    print(text)
    if given.json:
        given.json.write_text(text + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
