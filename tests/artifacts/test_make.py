"""From a parent to a directory: whole or absent, named by content, skipped when it is there."""

from __future__ import annotations

import errno
import json
import os
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from evalq.artifacts import make as make_module
from evalq.artifacts.api import read
from evalq.artifacts.identity import MANIFEST, hash_directory
from evalq.artifacts.make import make_artifact, open_artifact
from evalq.errors import ArtifactError, PlanError, QuantizationError
from evalq.models.load import load_artifact
from evalq.plan import EnginePlan
from evalq.quantize.calibration import Calibration
from evalq.schema import PerChannel, PerGroup, Scheme, WeightScheme
from tests.artifacts.helpers import tiny_llama, tiny_tokenizer

W4 = Scheme(WeightScheme(4, PerGroup(32)))
TOKENS = torch.arange(1, 33)[None]


def parent(tmp_path: Path, dtype: torch.dtype = torch.bfloat16, tied: bool = False):
    """A parent stored in ``dtype`` and loaded as float32, as on a CPU."""
    path = tmp_path / "parent"
    tiny_llama(dtype, tied).save_pretrained(path)
    tiny_tokenizer().save_pretrained(path)
    module = AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32).eval()
    return SimpleNamespace(
        name="tiny",
        hash=hash_directory(path),
        module=module,
        tokenizer=AutoTokenizer.from_pretrained(path),
        source=SimpleNamespace(path=path, kind="directory"),
    )


def calibration() -> Calibration:
    generator = torch.Generator().manual_seed(3)
    return Calibration.from_tokens(torch.randint(0, 64, (8, 32), generator=generator), "random")


@pytest.mark.parametrize("method", ["rtn", "gptq", "awq", "awq+gptq"])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32], ids=str)
def test_transformers_gives_the_logits_of_what_was_written(method, dtype, tmp_path):
    loaded = parent(tmp_path, dtype)
    made = make_artifact(loaded, W4, method, calibration(), {}, 0, tmp_path / "out")
    stored = read(made.path)
    config = json.loads((made.path / "config.json").read_text())
    assert config["dtype"] == str(dtype).removeprefix("torch.")
    assert {t.dtype for t in stored.dense.values()} == {dtype}
    peer = AutoModelForCausalLM.from_pretrained(made.path)
    ours = tiny_llama(dtype, seed=9)
    ours.load_state_dict(
        dict(stored.dense) | {f"{n}.weight": w.dequantize(dtype) for n, w in stored.layers.items()}
    )
    with torch.no_grad():
        assert torch.equal(peer(TOKENS).logits, ours(TOKENS).logits)
    assert made.manifest["content_hash"] == made.hash == hash_directory(made.path)


def test_w8a8(tmp_path):
    scheme = Scheme(WeightScheme(8, PerChannel()), activation_bits=8)
    made = make_artifact(parent(tmp_path), scheme, "rtn", None, {}, 0, tmp_path / "out")
    assert set(read(made.path).activation_bits.values()) == {8}


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("kind", ["mixed", "rotated", "distilled"])
def test_transformers_loads_mixed_rotated_and_distilled_artifacts(kind, tied, tmp_path):
    made_of = parent(tmp_path, tied=tied)
    names = [n for n, m in made_of.module.model.named_modules() if isinstance(m, torch.nn.Linear)]
    widths = ",".join(f"model.{n}={(3, 4, 8)[i % 3]}" for i, n in enumerate(names))
    method, options = {
        "mixed": ("gptq", {"layer_bits": widths}),
        "rotated": ("gptq", {"rotate": "hadamard"}),
        "distilled": ("gptq+kd", {"epochs": 2}),
    }[kind]
    out = tmp_path / "a"
    artifact = make_artifact(made_of, W4, method, calibration(), options, 0, out)
    stored = read(out)
    widths_found = {w.scheme.bits for w in stored.layers.values()}
    assert widths_found == ({3, 4, 8} if kind == "mixed" else {4})
    assert {r["bits"] for r in artifact.manifest["layers"]} == widths_found
    assert ("distillation" in artifact.manifest) == (kind == "distilled")
    peer = AutoModelForCausalLM.from_pretrained(out)
    ours = load_artifact(out, EnginePlan(dtype="bfloat16"))
    with torch.no_grad():
        expected, given = ours.module(TOKENS).logits.float(), peer(TOKENS).logits.float()
    torch.testing.assert_close(given, expected, rtol=1e-2, atol=1e-2 * float(expected.abs().max()))


def test_tied_embeddings_are_stored_once(tmp_path):
    loaded = parent(tmp_path, tied=True)
    made = make_artifact(loaded, W4, "rtn", None, {}, 0, tmp_path / "out")
    stored = read(made.path)
    assert "lm_head.weight" not in stored.dense
    assert stored.config["tie_word_embeddings"] is True
    peer, info = AutoModelForCausalLM.from_pretrained(made.path, output_loading_info=True)
    assert not info["missing_keys"]
    assert torch.equal(peer.lm_head.weight, loaded.module.lm_head.weight.bfloat16())


def test_the_same_recipe_is_not_made_twice(tmp_path, monkeypatch):
    loaded = parent(tmp_path)
    first = make_artifact(loaded, W4, "gptq", calibration(), {}, 0, tmp_path / "out")
    monkeypatch.setattr(make_module, "quantize", None)
    again = make_artifact(loaded, W4, "gptq", calibration(), {}, 0, tmp_path / "out")
    assert again.reused
    assert not first.reused
    assert again.hash == first.hash


def test_the_same_recipe_gives_the_same_bytes(tmp_path):
    loaded = parent(tmp_path)
    one = make_artifact(loaded, W4, "gptq", calibration(), {}, 0, tmp_path / "one")
    two = make_artifact(loaded, W4, "gptq", calibration(), {}, 0, tmp_path / "two")
    assert one.hash == two.hash


def test_calibration_and_defaults_count_only_where_they_matter(tmp_path):
    def recipe(method, text, options):
        return make_module.recipe_of("p", W4, method, text, options, 0, "compressed-tensors")

    assert recipe("rtn", None, {}) == recipe("rtn", calibration(), {})
    assert recipe("gptq", None, {}) != recipe("gptq", calibration(), {})
    default = recipe("rtn", None, {})["options"]
    assert recipe("rtn", None, {}) == recipe("rtn", None, default)


def test_another_artifact_is_never_overwritten(tmp_path):
    loaded = parent(tmp_path)
    make_artifact(loaded, W4, "rtn", None, {}, 0, tmp_path / "out")
    with pytest.raises(ArtifactError, match="another artifact"):
        make_artifact(loaded, W4, "rtn", None, {}, 1, tmp_path / "out")
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine/notes.txt").write_text("x")
    with pytest.raises(ArtifactError, match="not made by evalq"):
        make_artifact(loaded, W4, "rtn", None, {}, 0, tmp_path / "mine")


def test_changed_content_is_noticed(tmp_path):
    loaded = parent(tmp_path)
    made = make_artifact(loaded, W4, "rtn", None, {}, 0, tmp_path / "out")
    weights = made.path / "model.safetensors"
    raw = bytearray(weights.read_bytes())
    raw[-1] ^= 1
    weights.write_bytes(raw)
    with pytest.raises(ArtifactError, match="was changed"):
        make_artifact(loaded, W4, "rtn", None, {}, 0, tmp_path / "out")


def test_an_error_leaves_nothing_behind(tmp_path, monkeypatch):
    loaded = parent(tmp_path)
    before = set(tmp_path.iterdir())
    bad = Scheme(WeightScheme(4, PerGroup(40)))
    with pytest.raises(QuantizationError):
        make_artifact(loaded, bad, "rtn", None, {}, 0, tmp_path / "out")

    def full(*_args, **_kwargs):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr("evalq.artifacts.write.TensorWriter.add", full)
    with pytest.raises(ArtifactError, match="No space left"):
        make_artifact(loaded, W4, "rtn", None, {}, 0, tmp_path / "out")
    assert set(tmp_path.iterdir()) == before


def test_a_killed_process_leaves_nothing_in_the_way(tmp_path):
    stale = tmp_path / ".out.partial-999999999"
    stale.mkdir()
    (stale / "model.safetensors").write_bytes(b"half")
    made = make_artifact(parent(tmp_path), W4, "rtn", None, {}, 0, tmp_path / "out")
    assert not stale.exists()
    assert open_artifact(made.path).hash == made.hash


def test_the_parent_is_not_changed(tmp_path):
    loaded = parent(tmp_path)
    before = {k: v.clone() for k, v in loaded.module.state_dict().items()}
    make_artifact(loaded, W4, "awq", calibration(), {}, 0, tmp_path / "out")
    assert all(torch.equal(v, before[k]) for k, v in loaded.module.state_dict().items())


def test_bad_recipes_are_refused_before_any_work(tmp_path, monkeypatch):
    monkeypatch.setattr(make_module, "quantize", None)
    loaded = parent(tmp_path)
    scheme = Scheme(WeightScheme(4), kv_bits=8)
    with pytest.raises(PlanError, match="KV cache"):
        make_artifact(loaded, scheme, "rtn", None, {}, 0, tmp_path / "out")
    with pytest.raises(PlanError, match="gptq"):
        make_artifact(loaded, W4, "gtpq", None, {}, 0, tmp_path / "out")
    w3a8 = Scheme(WeightScheme(3, PerGroup(32)), activation_bits=8)
    with pytest.raises(PlanError, match="activations of 8 bits"):
        make_artifact(loaded, w3a8, "rtn", None, {}, 0, tmp_path / "out")
    w3 = Scheme(WeightScheme(3, PerGroup(32)))
    with pytest.raises(PlanError, match="4-bit"):
        make_artifact(loaded, w3, "rtn", None, {}, 0, tmp_path / "out", format="awq")
    with pytest.raises(PlanError, match="format"):
        make_artifact(loaded, W4, "rtn", None, {}, 0, tmp_path / "out", format="gguf")


def test_manifest_is_no_part_of_the_identity(tmp_path):
    made = make_artifact(parent(tmp_path), W4, "rtn", None, {}, 0, tmp_path / "out")
    (made.path / MANIFEST).unlink()
    (made.path / "README.md").write_text("# mine")
    assert hash_directory(made.path) == made.hash
    tokenizer = made.path / "tokenizer.json"
    tokenizer.write_text(tokenizer.read_text() + " ")
    assert hash_directory(made.path) != made.hash
