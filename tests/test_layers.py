"""The floors of the design: a file imports only from lower floors, and nothing in a cycle."""

from __future__ import annotations

import ast
import json
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
PACKAGE = ROOT / "evalq"

FLOORS = {
    **dict.fromkeys(("errors", "registry", "schema", "endpoint", "plan", "progress"), 0),
    **dict.fromkeys(("stats", "kernels", "tasks", "store", "memory"), 1),
    **dict.fromkeys(("quantize", "artifacts", "models"), 2),
    **dict.fromkeys(("texts", "evaluate", "fidelity", "cost", "compare", "gate"), 3),
    "adaptive": 3,
    "calibrate": 3,
    **dict.fromkeys(("serve", "audit", "frontier", "run", "rescue"), 3),
    **dict.fromkeys(("report", "cli"), 4),
}
WITHIN = {
    0: {
        ("endpoint", "errors"),
        ("plan", "endpoint"),
        ("plan", "errors"),
        ("plan", "schema"),
        ("registry", "errors"),
        ("schema", "errors"),
    },
    1: {("store", "memory")},
    2: {
        ("artifacts", "quantize"),
        ("models", "artifacts"),
        ("models", "quantize"),
    },
    3: {
        ("calibrate", "texts"),
        ("run", "calibrate"),
        ("rescue", "calibrate"),
        ("rescue", "texts"),
        ("rescue", "compare"),
        ("rescue", "run"),
        ("run", "texts"),
        ("fidelity", "texts"),
        ("run", "evaluate"),
        ("run", "adaptive"),
        ("adaptive", "evaluate"),
        ("run", "fidelity"),
        ("run", "cost"),
        ("frontier", "compare"),
        ("gate", "compare"),
        ("audit", "texts"),
        ("audit", "serve"),
    },
    4: {("cli", "report")},
}
"""Arrows that are allowed within a floor."""


def room_of(module: str) -> str | None:
    parts = module.split(".")
    if parts[0] != "evalq" or len(parts) < 2:
        return None
    return parts[1]


def imports(path: Path) -> list[tuple[int, str]]:
    """Modules of evalq that a file imports, those inside functions too."""
    found = []
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found += [(node.lineno, a.name) for a in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}:{node.lineno} imports relatively"
            if node.module == "evalq":
                found += [(node.lineno, f"evalq.{a.name}") for a in node.names]
            elif node.module:
                found.append((node.lineno, node.module))
    return [(line, m) for line, m in found if m.split(".")[0] == "evalq"]


FILES = sorted(p for p in PACKAGE.rglob("*.py") if "_suites" not in p.parts)


def test_every_module_has_a_floor() -> None:
    rooms = {
        p.relative_to(PACKAGE).parts[0].removesuffix(".py")
        for p in FILES
        if p.relative_to(PACKAGE).parts[0] not in ("__init__.py", "__main__.py")
    }
    assert rooms - {"assets"} <= set(FLOORS)


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(PACKAGE)))
def test_imports_point_down(path: Path) -> None:
    room = path.relative_to(PACKAGE).parts[0].removesuffix(".py")
    if room.startswith("__"):
        return
    wrong = []
    for line, module in imports(path):
        target = room_of(module)
        if target is None or target == room or target.startswith("__"):
            continue
        if target not in FLOORS:  # an attribute of the package itself, as evalq.__version__
            continue
        down = FLOORS[target] < FLOORS[room]
        if not down and (room, target) not in WITHIN[FLOORS[room]]:
            wrong.append(f"{path.relative_to(ROOT)}:{line} {room} -> {target}")
    assert not wrong, "\n".join(wrong)


def test_the_rule_can_fail(tmp_path: Path) -> None:
    """The reader of imports sees those inside functions."""
    file = tmp_path / "x.py"
    file.write_text("def f():\n    from evalq.report import render\n    import evalq.cli.main\n")
    assert [m for _, m in imports(file)] == ["evalq.report", "evalq.cli.main"]


def loaded_by(statement: str) -> set[str]:
    code = f"import sys, json\n{statement}\nprint(json.dumps(sorted(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return set(json.loads(done.stdout.splitlines()[-1]))


@pytest.mark.parametrize(
    "statement",
    [
        "import evalq, evalq.errors, evalq.registry, evalq.schema, evalq.plan",
        "from evalq.cli.main import build_app; build_app()",
    ],
)
def test_nothing_heavy_is_imported_before_it_is_needed(statement: str) -> None:
    heavy = {"torch", "pandas", "transformers", "lm_eval", "matplotlib", "scipy", "numpy"}
    assert not heavy & loaded_by(statement)
