"""The documentation: built strictly, and true of the command line and the schemas."""

import dataclasses
import html
import importlib.util
import json
import re
import subprocess
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from evalq import schema
from evalq.cli.main import VERBS
from evalq.gate.policy import Policy
from evalq.plan import Plan

ROOT = Path(__file__).resolve().parents[2]
pytest.importorskip("mkdocs")
pytest.importorskip("material")


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("site")
    # Not --quiet: it silences the very warnings that --strict counts.
    words = [sys.executable, "-m", "mkdocs", "build", "--strict", "-d", str(out)]
    done = subprocess.run(words, cwd=ROOT, capture_output=True, text=True)
    warnings = [line for line in done.stderr.splitlines() if "WARNING" in line]
    assert done.returncode == 0, warnings
    return out


@pytest.fixture(scope="module")
def reference() -> ModuleType:
    spec = importlib.util.spec_from_file_location("reference", ROOT / "docs/hooks/reference.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def _text(page: Path) -> str:
    source = page.read_text(encoding="utf-8")
    body = source[source.index("<article") : source.index("</article>")]
    return html.unescape(re.sub(r"<[^>]+>", "", body))


def test_every_verb_and_key_is_in_the_reference(site: Path) -> None:
    cli = _text(site / "reference/cli.html")
    for verb in VERBS:
        assert f"evalq {verb}" in cli
    assert "--price-per-hour" in cli
    for page, model in (("plan", Plan), ("policy", Policy)):
        text = _text(site / f"reference/{page}.html")
        for name in model.model_fields:
            assert name in text
    records = _text(site / "reference/records.html")
    for record in (schema.ItemRecord, schema.FidelityRecord, schema.CostRecord):
        for field in dataclasses.fields(record):
            assert field.name in records
    summary = json.loads((ROOT / "reports/demo/summary.json").read_text())
    assert all(key in _text(site / "reference/summary.html") for key in summary)


def test_the_pages_ask_for_nothing_from_elsewhere(site: Path) -> None:
    for page in site.rglob("*.html"):
        source = page.read_text(encoding="utf-8")
        loaded = re.findall(r'<(?:script|img|link)[^>]*(?:src|href)="(https?:[^"]+)"', source)
        assert [u for u in loaded if 'rel="canonical"' not in u] == []


def test_every_link_of_the_built_site_leads_to_a_file(site: Path) -> None:
    checked = 0
    for page in site.rglob("*.html"):
        if page.name == "404.html" or "reports" in page.parts:
            continue
        source = page.read_text(encoding="utf-8")
        for link in re.findall(r'(?:href|src)="([^"#?]+)[^"]*"', source):
            if not re.match(r"[a-z]+:", link):
                assert (page.parent / html.unescape(link)).exists(), (page.name, link)
                checked += 1
    assert checked > 500


def test_a_broken_link_fails_the_build(tmp_path: Path) -> None:
    docs = tmp_path / "docs"
    docs.mkdir()
    (docs / "index.md").write_text("[gone](nowhere.md)\n")
    (tmp_path / "mkdocs.yml").write_text("site_name: x\ntheme: {name: material, font: false}\n")
    words = [sys.executable, "-m", "mkdocs", "build", "--strict", "-d", str(tmp_path / "out")]
    assert subprocess.run(words, cwd=tmp_path, capture_output=True).returncode != 0


def _links(path: Path) -> list[str]:
    text = re.sub(r"```.*?```", "", path.read_text(encoding="utf-8"), flags=re.S)
    found = re.findall(r"\]\(([^)#\s]+)(?:#[^)]*)?\)", text)
    return [f for f in found if not re.match(r"[a-z]+:", f)]


@pytest.mark.parametrize("name", ["README.md", "benchmarks/RESULTS.md", "CHANGELOG.md"])
def test_files_that_are_linked_are_there(name: str) -> None:
    path = ROOT / name
    missing = [link for link in _links(path) if not (path.parent / link).exists()]
    assert missing == []


def test_options_that_the_guides_name_exist(reference: ModuleType) -> None:
    known = set(re.findall(r"--[a-z][a-z-]+", reference.cli_page())) | {"--help"}
    for page in [ROOT / "README.md", *(ROOT / "docs").rglob("*.md")]:
        for block in re.findall(r"```sh\n(.*?)```", page.read_text(encoding="utf-8"), re.S):
            joined = block.replace("\\\n", " ")
            for line in joined.splitlines():
                words: list[Any] = re.findall(r"(?<=\s)--[a-z][a-z-]+", line)
                if line.strip().startswith("evalq"):
                    assert set(words) <= known, f"{page.name}: {line}"
