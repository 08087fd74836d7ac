"""What ``check`` says against what transformers really does, and the rules of formats.md."""

from __future__ import annotations

import json

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM
from typer.testing import CliRunner

from evalq.artifacts.api import FORMATS
from evalq.artifacts.check import ENGINES, check, loadable
from evalq.artifacts.compressed_tensors import CompressedTensors
from evalq.artifacts.show import describe
from evalq.artifacts.write import Contents, StoredTypes, write_model
from evalq.cli.artifacts import app
from evalq.errors import ArtifactError
from evalq.schema import PerChannel, PerGroup, WeightScheme
from tests.artifacts.helpers import random_layers, random_weight, tiny_llama, write

W4 = WeightScheme(4, PerGroup(32))


def rules(directory, engine=None, severity="error"):
    return {
        f.rule
        for f in check(directory)
        if f.severity == severity and (engine is None or f.engine == engine)
    }


def edit(directory, change):
    path = directory / "config.json"
    config = json.loads(path.read_text())
    change(config["quantization_config"])
    path.write_text(json.dumps(config))


@pytest.mark.parametrize(
    ("name", "scheme", "engines"),
    [
        ("compressed-tensors", W4, {"transformers", "vllm"}),
        ("compressed-tensors", WeightScheme(3, PerGroup(32), False), {"transformers", "vllm"}),
        ("gptq", W4, {"transformers", "vllm", "gptqmodel"}),
        ("gptq", WeightScheme(3, PerGroup(32)), {"transformers", "gptqmodel"}),
        ("gptq-v2", WeightScheme(4, PerGroup(32), False), {"transformers", "gptqmodel"}),
        ("gptq-v2", WeightScheme(8, PerChannel()), {"transformers", "vllm", "gptqmodel"}),
        ("awq", WeightScheme(4, PerGroup(32), False), {"transformers", "vllm", "gptqmodel"}),
    ],
)
def test_engines(name, scheme, engines, tmp_path):
    write(tmp_path / "a", FORMATS.get(name)(), scheme, torch.float16)
    found = loadable(check(tmp_path / "a"))
    assert {engine for engine, loads in found.items() if loads} == engines


def test_asymmetric_default_path_is_what_transformers_gets_wrong(tmp_path):
    """Without ``dequantize`` transformers stops at the packed zero points; the rule says so."""
    write(tmp_path / "a", CompressedTensors(), WeightScheme(4, PerGroup(32), False))
    assert not rules(tmp_path / "a", "transformers")
    edit(tmp_path / "a", lambda s: s.pop("dequantize"))
    with pytest.raises(RuntimeError, match="ignore_mismatched_sizes"):
        AutoModelForCausalLM.from_pretrained(tmp_path / "a")
    assert rules(tmp_path / "a", "transformers") == {"asymmetric-default-path"}


def mixed(directory, schemes):
    module = tiny_llama()
    layers = random_layers(module, W4)
    for name, weight in layers.items():
        scheme = schemes.get(name.rpartition(".")[2])
        if scheme:
            layers[name] = random_weight(*weight.shape, scheme)
    directory.mkdir()
    contents = Contents(module, None, layers, {}, None, StoredTypes(torch.float32))
    write_model(contents, CompressedTensors(), directory)
    return layers


def test_mixed_dequantize_is_what_transformers_gets_wrong(tmp_path):
    layers = mixed(tmp_path / "a", {"down_proj": WeightScheme(8, PerGroup(32))})
    assert not rules(tmp_path / "a", "transformers")
    edit(tmp_path / "a", lambda s: s.update(dequantize=True))
    assert rules(tmp_path / "a", "transformers") == {"mixed-dequantize"}
    peer = AutoModelForCausalLM.from_pretrained(tmp_path / "a")
    wrong = [
        n
        for n, w in layers.items()
        if not torch.equal(peer.get_submodule(n).weight, w.dequantize(torch.float32))
    ]
    assert wrong


def test_layers_that_vllm_fuses_need_one_scheme(tmp_path):
    mixed(tmp_path / "a", {"down_proj": WeightScheme(8, PerGroup(32))})
    assert not rules(tmp_path / "a", "vllm")
    mixed(tmp_path / "b", {"k_proj": WeightScheme(8, PerGroup(32))})
    assert rules(tmp_path / "b", "vllm") == {"fused-schemes"}


def test_gptq_rules(tmp_path):
    write(tmp_path / "a", FORMATS.get("gptq")(), W4, torch.float16)
    edit(tmp_path / "a", lambda s: s.update(desc_act=True))
    assert rules(tmp_path / "a", "vllm") == {"gptq-desc-act"}
    edit(tmp_path / "a", lambda s: s.update(desc_act=False))
    path = tmp_path / "a/model.safetensors"
    tensors = load_file(path)
    name = "model.layers.0.self_attn.q_proj.g_idx"
    tensors[name] = tensors[name].flip(0).contiguous()
    save_file(tensors, path, metadata={"format": "pt"})
    assert rules(tmp_path / "a", "vllm") == {"gptq-g-idx"}


def test_w8a8_and_odd_groups_are_warned_of(tmp_path):
    write(tmp_path / "a", CompressedTensors(), WeightScheme(8, PerChannel()), activation_bits=8)
    assert "activation-grid" in rules(tmp_path / "a", "vllm", "warning")
    write(tmp_path / "b", CompressedTensors(), WeightScheme(4, PerGroup(16)))
    assert "group-size" in rules(tmp_path / "b", "vllm", "warning")


def test_unreadable_files_are_a_finding(tmp_path):
    write(tmp_path / "a", CompressedTensors(), W4)
    (tmp_path / "a/config.json").unlink()
    (finding,) = check(tmp_path / "a")
    assert (finding.engine, finding.rule) == ("files", "unreadable")
    assert not any(loadable([finding]).values())
    with pytest.raises(ArtifactError, match="no directory"):
        check(tmp_path / "nowhere")


def test_a_dense_model_is_not_for_gptqmodel(tmp_path):
    tiny_llama().save_pretrained(tmp_path / "m")
    assert loadable(check(tmp_path / "m")) == {
        "transformers": True,
        "vllm": True,
        "gptqmodel": False,
    }


def test_command_line(tmp_path):
    write(tmp_path / "a", CompressedTensors(), W4)
    runner = CliRunner()
    shown = runner.invoke(app, ["check", str(tmp_path / "a"), "--json"])
    assert shown.exit_code == 0
    assert set(json.loads(shown.stdout)["engines"]) == set(ENGINES)
    assert "gptqmodel" in runner.invoke(app, ["check", str(tmp_path / "a")]).stdout
    text = runner.invoke(app, ["show", str(tmp_path / "a"), "--layers"]).stdout
    assert "w4-g32" in text
    assert "model.layers.0.self_attn.q_proj  64 x 64" in text
    content = json.loads(runner.invoke(app, ["show", str(tmp_path / "a"), "--json"]).stdout)
    assert content["schemes"][0]["layers"] == 14
    (tmp_path / "a/model.safetensors").write_bytes(b"")
    assert runner.invoke(app, ["check", str(tmp_path / "a")]).exit_code == 2


def test_describe_counts(tmp_path):
    _, layers = write(tmp_path / "a", CompressedTensors(), W4, torch.bfloat16)
    found = describe(tmp_path / "a")
    assert found["dtype"] == "bfloat16"
    assert found["schemes"][0]["weights"] == sum(w.codes.numel() for w in layers.values())
    assert found["manifest"] is None
