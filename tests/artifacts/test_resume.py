"""A quantization that is killed goes on at the last finished layer and ends with the same bytes."""

from __future__ import annotations

import json
import multiprocessing
import os
import signal
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from evalq.artifacts.identity import hash_directory
from evalq.artifacts.make import make_artifact
from evalq.errors import ArtifactError, NonFiniteError, QuantizationError
from evalq.progress import layer_steps
from evalq.quantize.calibration import Calibration
from evalq.quantize.job import Job
from evalq.quantize.layerstore import LayerStore
from evalq.schema import PerChannel, PerGroup, Scheme, WeightScheme
from tests.artifacts.helpers import tiny_tokenizer
from tests.quantize.tiny import random_calibration, tiny

W4 = Scheme(WeightScheme(4, PerGroup(32), symmetric=False))
W8A8 = Scheme(WeightScheme(8, PerChannel()), activation_bits=8)
LAYERS = 4


def parent(directory: Path, name: str) -> Any:
    path = directory / f"parent-{name}"
    if not path.exists():
        tiny(name, num_hidden_layers=LAYERS).save_pretrained(path)
        tiny_tokenizer().save_pretrained(path)
    return SimpleNamespace(
        name="tiny",
        hash=hash_directory(path),
        module=tiny(name, num_hidden_layers=LAYERS),
        tokenizer=tiny_tokenizer(),
        source=SimpleNamespace(path=path, kind="directory"),
    )


def make(directory: Path, method: str, out: Path, tell: Any = None) -> Any:
    """One artifact of a tiny parent, always the same."""
    method, _, name = method.partition("@")
    scheme = W8A8 if method.startswith("smooth") else W4
    calibration = random_calibration(4, 32)
    return make_artifact(
        parent(directory, name or "llama"), scheme, method, calibration, {}, 7, out, tell
    )


def make_and_die(directory: Path, method: str, layer: int) -> None:
    """Make ``directory/out`` and kill this process before the given layer."""

    def tell(name: str, _share: float) -> None:
        if name.endswith(f".{layer}"):
            os.kill(os.getpid(), signal.SIGKILL)

    make(directory, method, directory / "out", tell)


def killed(directory: Path, method: str, layer: int) -> None:
    """A process that makes ``directory/out`` and is killed before the given layer."""
    # Spawned: a fork of a process with torch's threads can wait for them for ever.
    context = multiprocessing.get_context("spawn")
    process = context.Process(target=make_and_die, args=(directory, method, layer))
    process.start()
    process.join(300)
    assert process.exitcode == -signal.SIGKILL


@pytest.mark.parametrize(
    "method", ["gptq", "gptq+signround", "awq+gptq", "rtn", "smoothquant", "gptq@mixtral"]
)
def test_killed_midway_it_ends_with_the_same_bytes(tmp_path, method):
    whole = make(tmp_path, method, tmp_path / "whole")
    out = tmp_path / "out"
    killed(tmp_path, method, 3)
    assert not out.exists()
    assert [p.name.startswith(".out.layers-") for p in tmp_path.glob(".*")] == [True]
    seen: list[tuple[str, float]] = []
    resumed = make(tmp_path, method, out, lambda *step: seen.append(step))
    assert resumed.manifest["resumed_at_layer"] >= 1
    assert seen[0][0].endswith(f".{resumed.manifest['resumed_at_layer']}")
    assert resumed.hash == whole.hash
    for key in ("layers", "warnings", "calibration", "storage"):
        assert resumed.manifest[key] == whole.manifest[key]
    for path in whole.path.iterdir():
        if path.name != "evalq-manifest.json":
            assert (out / path.name).read_bytes() == path.read_bytes()
    assert list(tmp_path.glob(".*")) == []


def test_killed_while_writing_only_the_writing_is_done_again(tmp_path, monkeypatch):
    from evalq.artifacts import make as module

    def stopped(*_args: Any) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(module, "write_model", stopped)
        with pytest.raises(KeyboardInterrupt):
            make(tmp_path, "gptq", tmp_path / "out")
    monkeypatch.setattr("evalq.quantize.api.quantize_decoder_layer", None)
    resumed = make(tmp_path, "gptq", tmp_path / "out")
    assert resumed.manifest["resumed_at_layer"] == LAYERS


def test_layers_of_another_recipe_are_not_used(tmp_path):
    killed(tmp_path, "gptq", 3)
    assert len(list(tmp_path.glob(".out.layers-*"))) == 1
    made = make(tmp_path, "awq", tmp_path / "out")
    assert made.manifest["resumed_at_layer"] is None
    assert list(tmp_path.glob(".*")) == []


def test_stored_layers_that_are_damaged_are_made_again(tmp_path):
    whole = make(tmp_path, "gptq", tmp_path / "whole")
    killed(tmp_path, "gptq", 3)
    (stored,) = tmp_path.glob(".out.layers-*")
    first = stored / "layer-00000.safetensors"
    first.write_bytes(first.read_bytes()[:-9])
    made = make(tmp_path, "gptq", tmp_path / "out")
    assert made.manifest["resumed_at_layer"] is None
    assert made.hash == whole.hash


@pytest.mark.parametrize("fault", ["weight", "activation", "unreached"])
def test_bad_parents_are_named_and_leave_nothing(tmp_path, fault):
    loaded = parent(tmp_path, "llama")
    before = set(tmp_path.iterdir())
    layer = loaded.module.model.layers[3]
    expected: tuple[type[Exception], str]
    with torch.no_grad():
        if fault == "weight":
            layer.mlp.up_proj.weight[3, 5] = float("nan")
            expected = (NonFiniteError, r"layers\.3\.mlp\.up_proj\.weight holds 1 NaN")
        elif fault == "activation":
            layer.input_layernorm.weight.fill_(3e38)
            expected = (NonFiniteError, r"inputs of model\.layers\.3\.self_attn\.q_proj hold NaN")
        else:
            for other in loaded.module.model.layers:
                other.extra = torch.nn.Linear(64, 64)
            expected = (QuantizationError, r"no calibration token reached .*layers\.0\.extra")
    with pytest.raises(expected[0], match=expected[1]):
        make_artifact(loaded, W4, "gptq", random_calibration(4, 32), {}, 0, tmp_path / "out")
    assert set(tmp_path.iterdir()) == before


def test_no_second_process_works_on_the_same_output(tmp_path):
    home = tmp_path / "store"
    with LayerStore(home, "k"):
        second = LayerStore(home, "k")
        with pytest.raises(ArtifactError, match="another process"):
            second.__enter__()
    assert not home.exists()


def test_hidden_states_are_not_stored_when_that_takes_too_long(tmp_path, monkeypatch):
    """Layers behind the last hidden states are done again, from there."""
    store = LayerStore(tmp_path / "s", "k")
    with store:
        store._writing = 1e6
        job = Job(SimpleNamespace(), W4.weights, {}, torch.float16, torch.float16, 0, 0)  # type: ignore[arg-type]
        store.keep(0, job, [torch.ones(2, 2)])
        assert not list(store.directory.glob("hidden-*"))
        assert store.finished == 0
        store._writing = 0.0
        store.keep(1, job, [torch.ones(2, 2)])
        assert store.finished == 2
        assert [p.name for p in store.directory.glob("hidden-*")] == ["hidden-00001.safetensors"]
        assert json.loads((store.directory / "state.json").read_text())["finished"] == 2


def test_the_peak_of_memory_is_recorded(tmp_path):
    made = make(tmp_path, "gptq", tmp_path / "out")
    memory = made.manifest["memory"]
    assert memory["peak_resident_bytes"] > memory["peak_anonymous_bytes"] > 10**7
    assert memory["peak_device_bytes"] is None


def test_the_estimate_starts_where_a_resumed_job_does():
    told: list[tuple[Any, ...]] = []
    progress = SimpleNamespace(
        start=lambda *a: told.append(("start", *a)), advance=lambda *a: told.append(a)
    )
    tell = layer_steps(progress, "quantize")  # type: ignore[arg-type]
    for layer, share in (("l.3", 0.6), ("l.4", 0.8), ("done", 1.0)):
        tell(layer, share)
    assert told[0] == ("start", "quantize", 400, "per mille")
    assert told[1:] == [(0, "l.3"), (200, "l.4"), (200, "done")]
    del told[:]
    for share in (0.25, 1.0):
        tell("distillation", share)
    assert told[0] == ("start", "quantize, distillation", 750, "per mille")
    assert told[1:] == [(0, "distillation"), (750, "distillation")]


def test_calibration_is_part_of_what_must_agree(tmp_path):
    killed(tmp_path, "gptq", 2)
    other = Calibration.from_tokens(random_calibration(4, 32, seed=5).tokens, "other")
    made = make_artifact(parent(tmp_path, "llama"), W4, "gptq", other, {}, 7, tmp_path / "out")
    assert made.manifest["resumed_at_layer"] is None
