"""The built-in parent as it is shipped: shape, size, tokenizer."""

import json
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors import safe_open
from transformers import AutoTokenizer, PreTrainedTokenizerBase

ASSETS = Path(__file__).resolve().parents[2] / "evalq" / "assets" / "builtin"


@pytest.fixture(scope="module")
def tokenizer() -> PreTrainedTokenizerBase:
    return AutoTokenizer.from_pretrained(ASSETS)


def test_weights_are_small_finite_bfloat16_and_fit_groups_of_128() -> None:
    path = ASSETS / "model.safetensors"
    assert path.stat().st_size <= 8 * 2**20
    count = 0
    with safe_open(path, framework="pt") as file:
        for name in file.keys():  # noqa: SIM118
            tensor = file.get_tensor(name)
            count += tensor.numel()
            assert str(tensor.dtype) == "torch.bfloat16"
            assert tensor.isfinite().all()
            if name.endswith("_proj.weight"):
                assert tensor.shape[0] % 128 == 0
                assert tensor.shape[1] % 128 == 0
    assert 2_000_000 <= count <= 3_000_000


def test_config_names_llama_and_the_tokenizers_ids(tokenizer: PreTrainedTokenizerBase) -> None:
    config = json.loads((ASSETS / "config.json").read_text())
    assert config["architectures"] == ["LlamaForCausalLM"]
    assert config["vocab_size"] == len(tokenizer) == 264
    assert config["bos_token_id"] == config["eos_token_id"] == tokenizer.eos_token_id == 256
    assert config["pad_token_id"] == tokenizer.pad_token_id == 257
    assert config["max_position_embeddings"] >= 1024


@settings(max_examples=300, deadline=None)
@given(text=st.text())
def test_text_is_its_utf8_bytes_and_comes_back(text: str) -> None:
    tokenizer = _shared()
    ids = tokenizer(text)["input_ids"]
    assert ids == list(text.encode("utf-8"))
    assert tokenizer.decode(ids) == text


def _shared() -> PreTrainedTokenizerBase:
    if not hasattr(_shared, "value"):
        _shared.value = AutoTokenizer.from_pretrained(ASSETS)  # type: ignore[attr-defined]
    return _shared.value  # type: ignore[attr-defined, no-any-return]


def test_the_loss_curve_falls_and_covers_the_training() -> None:
    lines = (ASSETS / "loss.csv").read_text().splitlines()
    assert lines[0] == "step,tokens,loss,rate,seconds"
    losses = [float(line.split(",")[2]) for line in lines[1:]]
    assert losses[0] > 5
    assert losses[-1] < 0.35
    assert len(losses) > 90
