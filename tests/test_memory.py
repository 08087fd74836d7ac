import pytest
from transformers import (
    DynamicCache,
    Gemma3TextConfig,
    GPT2Config,
    LlamaConfig,
    MistralConfig,
    PretrainedConfig,
    Qwen2Config,
)

from evalq.errors import PlanError
from evalq.memory import cache_shape, dollars_per_million, kv_cache_bytes, users_that_fit


@pytest.mark.parametrize(
    ("config", "a_token"),
    [
        # As the papers and model cards have them: Llama-3-8B 128 KiB, 70B 320 KiB a token.
        (LlamaConfig(num_hidden_layers=32, num_attention_heads=32, num_key_value_heads=8,
                     hidden_size=4096), 128 * 1024),
        (LlamaConfig(num_hidden_layers=80, num_attention_heads=64, num_key_value_heads=8,
                     hidden_size=8192), 320 * 1024),
        (GPT2Config(), 2 * 12 * 768 * 2),
        (Qwen2Config(num_hidden_layers=28, num_attention_heads=28, num_key_value_heads=4,
                     hidden_size=3584), 2 * 28 * 4 * 128 * 2),
    ],
)  # fmt: skip
def test_bytes_a_token_of_known_models(config: PretrainedConfig, a_token: int) -> None:
    shape = cache_shape(config.to_dict())
    assert kv_cache_bytes(shape, 1) == a_token
    assert kv_cache_bytes(shape, 1000) == 1000 * a_token


def test_latent_attention_keeps_the_latents() -> None:
    # DeepSeek-V2: rank 512 and 64 rotary, 60 layers; 576 numbers a token and layer.
    config = {"num_hidden_layers": 60, "num_attention_heads": 128, "kv_lora_rank": 512,
              "qk_rope_head_dim": 64, "model_type": "deepseek_v2"}  # fmt: skip
    assert kv_cache_bytes(cache_shape(config), 1) == 60 * 576 * 2


def test_a_window_ends_the_growth() -> None:
    mistral = cache_shape(MistralConfig(sliding_window=4096).to_dict())
    assert kv_cache_bytes(mistral, 4096) == kv_cache_bytes(mistral, 32768) > 0
    gemma = cache_shape(Gemma3TextConfig(num_hidden_layers=6, sliding_window=512).to_dict())
    assert (gemma.full, gemma.windows) == (1, (512,) * 5)
    grown = kv_cache_bytes(gemma, 2048) - kv_cache_bytes(gemma, 1024)
    assert grown == 1024 * gemma.values * 2


@pytest.mark.parametrize("family", [LlamaConfig, GPT2Config])
def test_the_cache_of_transformers_itself_is_as_large(family: type[PretrainedConfig]) -> None:
    import torch
    from transformers import AutoModelForCausalLM

    sizes = {LlamaConfig: {"num_key_value_heads": 2, "intermediate_size": 64}, GPT2Config: {}}
    config = family(
        vocab_size=64, hidden_size=32, num_hidden_layers=3, num_attention_heads=4, **sizes[family]
    )
    model = AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16).eval()
    cache = DynamicCache(config=config)
    with torch.inference_mode():
        model(input_ids=torch.zeros(1, 17, dtype=torch.long), past_key_values=cache)
    seen = sum(layer.keys.nbytes + layer.values.nbytes for layer in cache.layers)
    assert kv_cache_bytes(cache_shape(config.to_dict()), 17) == seen


def test_what_cannot_be_modelled_is_refused() -> None:
    with pytest.raises(PlanError, match="layers"):
        cache_shape({})
    with pytest.raises(PlanError, match="mamba"):
        cache_shape({"model_type": "mamba2", "num_hidden_layers": 4})
    hybrid = {"num_hidden_layers": 4, "num_attention_heads": 2, "hidden_size": 8,
              "layer_types": ["linear_attention"] * 3 + ["full_attention"]}  # fmt: skip
    shape = cache_shape(hybrid)
    assert shape.full == 1
    assert "3 of 4 layers" in shape.notes[0]


def test_users_and_prices() -> None:
    assert users_that_fit(100.0, 40.0, 10.0) == 5
    assert users_that_fit(40.0, 40.0, 10.0) == 0
    # 2 dollars an hour at 50 tokens/s: 180,000 tokens an hour, so 11.11 dollars a million.
    assert dollars_per_million(2.0, 50.0) == pytest.approx(2.0 / 0.18)
    with pytest.raises(PlanError, match="speed"):
        dollars_per_million(2.0, 0.0)
