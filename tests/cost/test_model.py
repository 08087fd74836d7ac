"""The cost model against hand arithmetic, published sizes, and artifacts that were written."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, LlamaConfig

from evalq.artifacts.api import storage
from evalq.artifacts.make import make_artifact
from evalq.cost.devices import DEVICES, find_device
from evalq.cost.model import Question, kv_bits_stored, layout_of, model_cost, read_config
from evalq.errors import PlanError
from evalq.models.load import load_parent
from evalq.plan import EnginePlan
from evalq.schema import PerChannel, PerGroup, Scheme, WeightScheme

W4 = WeightScheme(4, PerGroup(128))
LLAMA_70B: dict[str, Any] = {
    "model_type": "llama",
    "hidden_size": 8192,
    "intermediate_size": 28672,
    "num_hidden_layers": 80,
    "num_attention_heads": 64,
    "num_key_value_heads": 8,
    "vocab_size": 128256,
    "max_position_embeddings": 131072,
    "tie_word_embeddings": False,
}
LLAMA_8B = {
    **LLAMA_70B,
    "hidden_size": 4096,
    "intermediate_size": 14336,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
}
MIXTRAL = {
    "model_type": "mixtral",
    "hidden_size": 4096,
    "intermediate_size": 14336,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "vocab_size": 32000,
    "num_local_experts": 8,
    "num_experts_per_tok": 2,
    "max_position_embeddings": 32768,
    "sliding_window": None,
    "tie_word_embeddings": False,
}


@pytest.mark.parametrize(
    ("config", "parameters", "read"),
    [
        # The totals that the model cards give; read: less the embedding, and the unused experts.
        (LLAMA_70B, 70_553_706_496, 70_553_706_496 - 128256 * 8192),
        (LLAMA_8B, 8_030_261_248, 8_030_261_248 - 128256 * 4096),
        (MIXTRAL, 46_702_792_704, 46_702_792_704 - 32000 * 4096 - 32 * 6 * 3 * 4096 * 14336),
    ],
)
def test_parameters_are_those_of_the_model_cards(
    config: dict[str, Any], parameters: int, read: int
) -> None:
    layout = layout_of(config)
    assert layout.parameters == parameters
    assert layout.read == read


def test_70b_takes_140_gb_and_near_35_at_four_bits() -> None:
    found = model_cost(LLAMA_70B, Question(None, 8192))
    assert found["modelled"] is True
    assert found["weight_bytes"] == 141_107_412_992
    linear = 80 * 8192 * (8192 + 1024 + 1024 + 8192 + 3 * 28672)
    rest = 70_553_706_496 - linear
    four = model_cost(LLAMA_70B, Question(W4, 8192))
    # Codes of four bits, one 16-bit scale for 128 of them; embeddings, head and norms in 16 bits.
    assert four["weight_bytes"] == linear // 2 + linear // 128 * 2 + rest * 2
    assert linear / 2 == pytest.approx(34.2e9, rel=2e-3)
    assert four["weight_parts"] == {
        "codes": linear // 2, "scales": linear // 128 * 2, "dense": rest * 2
    }  # fmt: skip
    assert sum(found["weight_parts"].values()) == found["weight_parts"]["dense"] == 141_107_412_992
    # 8 heads of 128, keys and values, 80 layers, two bytes: 320 KiB a token.
    assert four["kv_bytes_a_user"] == 8192 * 80 * 2 * 8 * 128 * 2
    asymmetric = layout_of(LLAMA_70B).weight_bytes(WeightScheme(4, PerGroup(128), False))
    assert asymmetric - four["weight_bytes"] == linear // 128 // 2
    channel = layout_of(LLAMA_8B).weight_bytes(WeightScheme(8, PerChannel()))
    rows = 32 * (4096 + 1024 + 1024 + 4096 + 2 * 14336 + 4096)
    inner = 32 * 4096 * (4096 + 2048 + 4096 + 3 * 14336)
    assert channel == inner + 2 * rows + 2 * (8_030_261_248 - inner)


def test_users_speed_and_price_by_hand() -> None:
    question = Question(W4, 8192, device=find_device("H100"), price_per_hour=3.6, efficiency=0.5)
    found = model_cost(LLAMA_8B, question)
    serving = found["serving"]
    cache = 8192 * 131072
    assert serving["devices"] == 1
    assert serving["users_that_fit"] == int((0.9 * 80e9 - found["weight_bytes"]) / cache)
    layout = layout_of(LLAMA_8B)
    read = found["weight_bytes"] * layout.read / layout.parameters
    seconds = (read + cache) / (3.35e12 * 0.5)
    assert serving["alone"]["tokens_per_second"] == pytest.approx(1 / seconds)
    assert serving["alone"]["bound_by"] == "memory bandwidth"
    # 3.6 $ an hour is 0.001 $ a second.
    dollars = serving["alone"]["dollars_per_million_tokens"]
    assert dollars == pytest.approx(0.001 * seconds * 1e6)
    assert serving["full"]["dollars_per_million_tokens"] < dollars
    # Many short contexts are bound by arithmetic: 2 operations a parameter and token.
    short = Question(W4, 64, device=find_device("h100"), users=4000)
    full = model_cost(LLAMA_8B, short)["serving"]["full"]
    assert full["bound_by"] == "arithmetic"
    assert full["tokens_per_second"] == pytest.approx(989e12 * 0.5 / 2 / layout.read)


def test_what_does_not_fit_one_device_is_spread() -> None:
    serving = model_cost(LLAMA_70B, Question(None, 8192, device=find_device("h100")))["serving"]
    assert serving["devices"] == 2
    four = model_cost(LLAMA_70B, Question(W4, 8192, device=find_device("h100"), price_per_hour=2))
    assert four["serving"]["devices"] == 1
    assert four["smallest_gpu"] == "l40s"
    assert model_cost(LLAMA_8B, Question(W4, 8192))["smallest_laptop"] == "laptop-8gb"
    with pytest.raises(PlanError, match="sixteen t4"):
        model_cost(
            {**LLAMA_70B, "num_hidden_layers": 800}, Question(None, 8192, device=DEVICES["t4"])
        )
    with pytest.raises(PlanError, match="999 users do not fit"):
        model_cost(LLAMA_8B, Question(W4, 8192, device=DEVICES["h100"], users=999))


def test_a_quantized_cache_by_hand() -> None:
    # 128 tokens as they are, the rest at two bits and a scale and a least value for 32 numbers.
    assert kv_bits_stored(2, 1128) == pytest.approx((128 * 16 + 1000 * 3) / 1128)
    assert kv_bits_stored(4, 100) == 16
    assert kv_bits_stored(16, 5) == 16
    with pytest.raises(PlanError, match="3 bits"):
        kv_bits_stored(3, 1000)
    plain = model_cost(LLAMA_8B, Question(W4, 8192))["kv_bytes_a_user"]
    low = model_cost(LLAMA_8B, Question(W4, 8192, kv_bits=4))["kv_bytes_a_user"]
    assert low == pytest.approx(plain * (128 * 16 + 8064 * 5) / 8192 / 16, abs=1)


@pytest.mark.parametrize(
    "scheme",
    [W4, WeightScheme(3, PerGroup(64), symmetric=False), WeightScheme(8, PerChannel())],
    ids=str,
)
def test_modelled_bytes_are_those_of_an_artifact(tmp_path: Path, scheme: WeightScheme) -> None:
    parent = load_parent("builtin", EnginePlan(device="cpu"))
    made = make_artifact(parent, Scheme(scheme), "rtn", None, {}, 0, tmp_path / "out")
    stored = storage(made.path)
    config = read_config(made.path)
    found = model_cost(config, Question(scheme, 512))
    # The files also hold each layer's shape: two int64 a layer.
    shapes = 16 * 7 * 8
    assert stored.bits_per_weight * stored.parameters / 8 == found["weight_bytes"] + shapes
    assert found["parameters"] == stored.parameters


def test_tied_embeddings_are_counted_and_read_once() -> None:
    config = LlamaConfig(hidden_size=64, intermediate_size=96, num_hidden_layers=2, vocab_size=50,
                         num_attention_heads=4, tie_word_embeddings=True)  # fmt: skip
    with torch.device("meta"):
        own = AutoModelForCausalLM.from_config(config).num_parameters()
    layout = layout_of(config.to_dict())
    assert layout.parameters == layout.read == own


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{", "cannot be read as JSON"),
        ("[1]", "no model configuration"),
        ('{"model_type": "resnet", "num_hidden_layers": 2, "num_attention_heads": 2, '
         '"hidden_size": 8}', "no model can be made"),
        ('{"model_type": "nonsense", "num_hidden_layers": 2, "num_attention_heads": 2, '
         '"hidden_size": 8}', "nonsense"),
        ('{"model_type": "llama"}', "does not say"),
    ],
)  # fmt: skip
def test_what_is_no_configuration_is_refused(tmp_path: Path, content: str, message: str) -> None:
    path = tmp_path / "config.json"
    path.write_text(content)
    with pytest.raises(PlanError, match=message):
        model_cost(read_config(path), Question(W4, 128))


def test_questions_without_an_answer() -> None:
    for question, message in (
        (Question(W4, 131073), "a context of 131073"),
        (Question(W4, 0), "a context of 0"),
        (Question(W4, 10, efficiency=0.0), "efficiency"),
        (Question(W4, 10, kv_bits=5), "5 bits"),
    ):
        with pytest.raises(PlanError, match=message):
            model_cost(LLAMA_8B, question)
    with pytest.raises(PlanError, match="no device 'h1000'"):
        find_device("h1000")
    assert json.dumps(model_cost(LLAMA_8B, Question(None, 10)))
