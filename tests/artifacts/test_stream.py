"""A parent whose weights stay in their files gives the artifact of one that is in memory."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from evalq.artifacts.api import read
from evalq.artifacts.check import check
from evalq.artifacts.make import make_artifact
from evalq.errors import ParentError
from evalq.models.load import load_parent
from evalq.plan import EnginePlan
from evalq.schema import PerChannel, PerGroup, Scheme, WeightScheme
from tests.artifacts.helpers import tiny_tokenizer
from tests.quantize.tiny import random_calibration, random_tokens, tiny

W4 = Scheme(WeightScheme(4, PerGroup(32)))
W8A8 = Scheme(WeightScheme(8, PerChannel()), activation_bits=8)
CPU = EnginePlan(device="cpu")


def parent(directory: Path, name: str, **changes: object) -> Path:
    path = directory / f"parent-{name}"
    model = tiny(name, **changes).to(torch.bfloat16)
    model.config.dtype = torch.bfloat16
    model.save_pretrained(path)
    tiny_tokenizer().save_pretrained(path)
    return path


def is_mapped(tensor: torch.Tensor) -> bool:
    """Whether the tensor lies in a mapped file, by the process's own list of mappings."""
    address = tensor.data_ptr()
    for line in Path("/proc/self/maps").read_text().splitlines():
        span, *_, last = line.split(maxsplit=5)
        start, end = (int(part, 16) for part in span.split("-"))
        if start <= address < end:
            return last.strip().endswith(".safetensors")
    return False


@pytest.mark.parametrize(
    ("name", "method", "options"),
    [
        ("llama", "gptq", {}),
        ("qwen3", "awq+gptq", {}),
        ("phi3", "rtn", {}),
        ("gpt2", "gptq", {}),
        ("opt", "awq", {}),
        ("llama", "smoothquant", {}),
        ("llama", "gptq", {"quantize_head": True}),
        ("llama", "gptq+signround", {"rounding_steps": 8}),
    ],
)
def test_streamed_and_loaded_parents_give_the_same_bytes(tmp_path, name, method, options):
    path = parent(tmp_path, name)
    scheme = W8A8 if method == "smoothquant" else W4
    made = []
    for mapped in (True, False):
        loaded = load_parent(str(path), CPU, mapped=mapped)
        out = tmp_path / str(mapped)
        calibration = random_calibration(4, 32)
        made.append(make_artifact(loaded, scheme, method, calibration, options, 0, out))
    assert made[0].hash == made[1].hash
    assert made[0].manifest["recipe_hash"] == made[1].manifest["recipe_hash"]


def test_weights_are_views_of_the_files(tmp_path):
    loaded = load_parent(str(parent(tmp_path, "llama")), CPU, mapped=True)
    layers = [p for n, p in loaded.module.named_parameters() if ".layers." in n]
    assert len(layers) == 18
    assert all(is_mapped(p) for p in layers)
    assert is_mapped(loaded.module.lm_head.weight)
    assert not is_mapped(torch.ones(1000))
    plain = load_parent(str(tmp_path / "parent-llama"), CPU)
    assert not any(is_mapped(p) for p in plain.module.parameters())


@pytest.mark.parametrize("name", ["mixtral", "gguf", "gemma3"])
def test_what_cannot_be_streamed_says_so(tmp_path, name):
    path = tmp_path / "x.gguf" if name == "gguf" else parent(tmp_path, name)
    with pytest.raises(ParentError, match="cannot be streamed") as caught:
        load_parent(str(path), CPU, mapped=True)
    assert "--stream" in caught.value.hint


@pytest.mark.parametrize("format", ["compressed-tensors", "gptq", "awq"])
def test_a_sketch_has_the_same_schemes_and_checks(tmp_path, format):
    loaded = load_parent(str(parent(tmp_path, "llama")), CPU)
    made = make_artifact(loaded, W4, "rtn", None, {}, 0, tmp_path / "out", format=format)
    whole, sketch = read(made.path), read(made.path, sketch=True)
    assert whole.layers.keys() == sketch.layers.keys()
    for name, weight in whole.layers.items():
        assert sketch.layers[name].scheme == weight.scheme
        assert sketch.layers[name].shape == weight.shape
        assert sketch.layers[name].codes.untyped_storage().nbytes() == 1
    assert not [f for f in check(made.path) if f.engine == "files"]


def test_gemma_2_loads(tmp_path):
    """It has no fused attention, which loading asks for elsewhere."""
    loaded = load_parent(str(parent(tmp_path, "gemma2")), CPU)
    with torch.no_grad():
        assert torch.isfinite(loaded.module(random_tokens(1, 8)).logits).all()
