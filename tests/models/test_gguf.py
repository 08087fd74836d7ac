"""A GGUF file written with the gguf package, so that the values it stands for are known."""

from __future__ import annotations

import gguf
import numpy as np
import pytest
import torch

from evalq.errors import ParentError
from evalq.models import gguf as reader
from evalq.models.load import load_parent
from evalq.plan import EnginePlan

PLAN = EnginePlan(device="cpu")
WIDTH, HIDDEN, HEADS, TOKENS = 64, 128, 2, 259
TEMPLATE = "{{ messages[0]['content'] }}!"


def byte_names() -> list[str]:
    # GPT-2's printable stand-ins for bytes.
    plain = [*range(33, 127), *range(161, 173), *range(174, 256)]
    other = [b for b in range(256) if b not in plain]
    return [chr(b) for b in plain] + [chr(256 + i) for i in range(len(other))]


@pytest.fixture
def file(tmp_path, monkeypatch):
    monkeypatch.setenv("EVALQ_CACHE", str(tmp_path / "cache"))
    rng = np.random.default_rng(0)
    path = tmp_path / "tiny.gguf"
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_context_length(256)
    writer.add_embedding_length(WIDTH)
    writer.add_block_count(1)
    writer.add_feed_forward_length(HIDDEN)
    writer.add_head_count(HEADS)
    writer.add_head_count_kv(HEADS)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_rope_dimension_count(WIDTH // HEADS)
    writer.add_vocab_size(TOKENS)
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("default")
    writer.add_token_list(["<start>", "<end>", *byte_names(), "ab"])
    writer.add_token_types([3, 3] + [1] * (TOKENS - 2))
    writer.add_token_merges(["a b"])
    writer.add_bos_token_id(0)
    writer.add_eos_token_id(1)
    writer.add_chat_template(TEMPLATE)
    values = {}

    def add(name: str, *shape: int, kind: str = "Q4_1") -> None:
        dense = (rng.standard_normal(shape) * 0.1).astype(np.float32)
        quantization = gguf.GGMLQuantizationType[kind]
        stored = gguf.quants.quantize(dense, quantization)
        values[name] = gguf.quants.dequantize(stored, quantization)
        writer.add_tensor(name, stored, raw_dtype=quantization)

    add("token_embd.weight", TOKENS, WIDTH, kind="Q8_0")
    add("output.weight", TOKENS, WIDTH, kind="F32")
    add("output_norm.weight", WIDTH, kind="F32")
    for name in ("attn_q", "attn_k", "attn_v", "attn_output"):
        add(f"blk.0.{name}.weight", WIDTH, WIDTH)
    for name in ("ffn_gate", "ffn_up"):
        add(f"blk.0.{name}.weight", HIDDEN, WIDTH)
    add("blk.0.ffn_down.weight", WIDTH, HIDDEN)
    for name in ("attn_norm", "ffn_norm"):
        add(f"blk.0.{name}.weight", WIDTH, kind="F32")
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path, values


def test_values_are_those_of_the_gguf_package(file):
    path, values = file
    model = load_parent(str(path), PLAN)
    layer = model.module.model.layers[0]
    pairs = {
        "token_embd": model.module.model.embed_tokens,
        "output": model.module.lm_head,
        "blk.0.attn_v": layer.self_attn.v_proj,
        "blk.0.ffn_gate": layer.mlp.gate_proj,
        "blk.0.ffn_down": layer.mlp.down_proj,
    }
    for name, module in pairs.items():
        assert torch.equal(module.weight, torch.from_numpy(values[f"{name}.weight"].copy())), name
    # llama.cpp keeps the rows of q and k as interleaved pairs; transformers as two halves.
    stored = torch.from_numpy(values["blk.0.attn_q.weight"].copy())
    halves = stored.view(HEADS, WIDTH // HEADS // 2, 2, WIDTH).transpose(1, 2).reshape(WIDTH, WIDTH)
    assert torch.equal(layer.self_attn.q_proj.weight, halves)


def test_it_is_marked_and_complete(file):
    path, values = file
    model = load_parent(str(path), PLAN)
    source = model.source
    assert (source.kind, source.gridded, model.execution) == ("gguf", True, "dense")
    assert "7 Q4_1" in source.notes[0]
    assert "1 Q8_0" in source.notes[0]
    assert source.parameters == sum(v.size for v in values.values())
    # Q4_1 takes 20 bytes for 32 values, Q8_0 takes 34.
    quantized = 4 * WIDTH * WIDTH + 3 * HIDDEN * WIDTH
    embedding = TOKENS * WIDTH
    dense = source.parameters - quantized - embedding
    bits = quantized * 5 + embedding * 8.5 + dense * 32
    assert source.bits == pytest.approx(bits / source.parameters)
    assert model.tokenizer.chat_template == TEMPLATE
    assert model.tokenizer("ab é")["input_ids"][0] == TOKENS - 1
    assert model.tokenizer.decode(model.tokenizer("ab é")["input_ids"]) == "ab é"
    assert model.tokenizer.eos_token_id == 1
    assert getattr(model.module.config, "quantization_config", None) is None


def test_the_second_load_is_kept_and_equal(file, monkeypatch):
    path, _ = file
    first = load_parent(str(path), PLAN)

    def refuse(*args):
        raise AssertionError("converted twice")

    monkeypatch.setattr(reader, "_convert", refuse)
    again = load_parent(str(path), EnginePlan(device="cpu"))
    assert again.hash == first.hash
    assert again.source == first.source
    for name, tensor in first.module.state_dict().items():
        assert torch.equal(again.module.state_dict()[name], tensor)
    assert again.tokenizer.get_vocab() == first.tokenizer.get_vocab()


def test_a_damaged_or_missing_cache_does_not_matter(file, monkeypatch, tmp_path):
    path, _ = file
    first = load_parent(str(path), PLAN)
    # A loaded model maps its file: the test is about to damage that.
    kept = {name: tensor.clone() for name, tensor in first.module.state_dict().items()}
    weights = next((tmp_path / "cache").glob("*/model.safetensors"))
    weights.write_bytes(weights.read_bytes()[:-9])
    again = load_parent(str(path), PLAN)
    blocked = tmp_path / "blocked"
    blocked.write_text("a file where the cache should be")
    monkeypatch.setenv("EVALQ_CACHE", str(blocked))
    third = load_parent(str(path), PLAN)
    for model in (again, third):
        for name, tensor in kept.items():
            assert torch.equal(model.module.state_dict()[name], tensor)
        assert model.source == first.source
        assert model.tokenizer.chat_template == TEMPLATE


@pytest.mark.parametrize("share", [0.3, 0.9, 0.999])
def test_truncated(file, share):
    path, _ = file
    whole = path.read_bytes()
    path.write_bytes(whole[: int(len(whole) * share)])
    with pytest.raises(ParentError, match=r"truncated|cannot be loaded") as caught:
        load_parent(str(path), PLAN)
    assert caught.value.hint


def test_no_gguf(tmp_path):
    path = tmp_path / "x.gguf"
    path.write_bytes(b"something else")
    with pytest.raises(ParentError, match="no GGUF"):
        load_parent(str(path), PLAN)
