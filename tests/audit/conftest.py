"""A panel of the built-in parent with three rounded tiers, calibrated small, once a session."""

from __future__ import annotations

import pytest
import torch

from evalq.artifacts.make import make_artifact
from evalq.audit.api import build_panel
from evalq.audit.calibration import CalibrationSettings, calibrate
from evalq.audit.panel import Benign
from evalq.models.load import load_parent
from evalq.plan import EnginePlan
from evalq.schema import PerGroup, Scheme, WeightScheme

PLAN = EnginePlan(device="cpu")
WAYS = (Benign("float32-eager", attention="eager"), Benign("bfloat16", "bfloat16"))


@pytest.fixture(scope="session", autouse=True)
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="session")
def artifacts(tmp_path_factory):
    """Directories by name; ``int4-g32`` is never listed."""
    folder = tmp_path_factory.mktemp("tiers")
    parent = load_parent("builtin", PLAN)
    out = {}
    for name, bits, group in (("int8", 8, 128), ("int4", 4, 128), ("int3", 3, 128), ("g32", 4, 32)):
        scheme = Scheme(WeightScheme(bits, PerGroup(group)))
        make_artifact(parent, scheme, "rtn", None, {}, 0, folder / name, lambda *_: None)
        out[name] = folder / name
    return out


@pytest.fixture(scope="session")
def panel(artifacts):
    return build_panel("builtin", [str(artifacts[n]) for n in ("int8", "int4", "int3")], PLAN)


@pytest.fixture(scope="session")
def calibration(panel):
    settings = CalibrationSettings(windows=12, candidates=32, pool=24, max_tokens=32)
    return calibrate(panel, settings, WAYS)
