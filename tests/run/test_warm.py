from __future__ import annotations

import gc
import subprocess
import sys

import pytest

from evalq.run import warm


@pytest.mark.parametrize("enabled", [True, False])
def test_the_collector_is_as_it_was(enabled: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    before, seen = gc.isenabled(), []
    monkeypatch.setattr(warm, "import_module", lambda name: seen.append((name, gc.isenabled())))
    try:
        (gc.enable if enabled else gc.disable)()
        warm.import_engine()
        assert gc.isenabled() is enabled
    finally:
        (gc.enable if before else gc.disable)()
    assert seen
    assert not any(collects for _, collects in seen)


def test_a_failed_import_leaves_it_on(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(warm, "_HEAVY", ("evalq.no_such_module",))
    with pytest.raises(ModuleNotFoundError):
        warm.import_engine()
    assert gc.isenabled()


def test_what_a_run_needs_is_imported() -> None:
    code = (
        "import sys; from evalq.run.warm import import_engine; import_engine();"
        "needed = {'torch', 'transformers', 'lm_eval.api.task', 'evalq.models.hf'};"
        "assert needed <= set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
