"""Tiny random models of many architectures, with weights that spread as trained ones do."""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import Tensor, nn

from evalq.quantize.calibration import Calibration

VOCABULARY = 97
_BASE: dict[str, Any] = {
    "vocab_size": VOCABULARY,
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 128,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 0,
}
_OLD: dict[str, Any] = {k: v for k, v in _BASE.items() if k != "num_key_value_heads"}

ARCHITECTURES: dict[str, tuple[str, dict[str, Any]]] = {
    "llama": ("LlamaConfig", _BASE),
    "mistral": ("MistralConfig", _BASE),
    "qwen2": ("Qwen2Config", _BASE),
    "qwen3": ("Qwen3Config", {**_BASE, "head_dim": 16}),
    "gemma2": ("Gemma2Config", {**_BASE, "head_dim": 16, "sliding_window": 32}),
    "gemma3": ("Gemma3TextConfig", {**_BASE, "head_dim": 16, "sliding_window": 32}),
    "phi3": ("Phi3Config", _BASE),
    "gpt2": ("GPT2Config", {**_OLD, "n_inner": 128}),
    "opt": ("OPTConfig", {**_OLD, "ffn_dim": 128, "word_embed_proj_dim": 64}),
    "gpt_neox": ("GPTNeoXConfig", _OLD),
    "mixtral": ("MixtralConfig", {**_BASE, "num_local_experts": 4}),
    "qwen2_moe": (
        "Qwen2MoeConfig",
        {
            **_BASE,
            "num_experts": 4,
            "num_experts_per_tok": 2,
            "moe_intermediate_size": 64,
            "shared_expert_intermediate_size": 64,
        },
    ),
    "cohere": ("CohereConfig", _BASE),
}
"""Name to transformers' config class and its arguments."""


def tiny(name: str = "llama", seed: int = 0, **changes: Any) -> nn.Module:
    """A random causal LM in float32 whose channels differ in size by a factor of about ten."""
    import transformers

    class_name, arguments = ARCHITECTURES[name]
    config = getattr(transformers, class_name)(**{**arguments, **changes})
    model = transformers.AutoModelForCausalLM.from_config(config).eval()
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter_name, parameter in model.named_parameters():
            noise = torch.randn(parameter.shape, generator=generator)
            if parameter.ndim >= 2:
                spread = torch.exp(torch.randn(parameter.shape[-1], generator=generator) * 0.6)
                parameter.copy_(noise * spread * 0.07)
            elif "bias" in parameter_name:
                parameter.copy_(noise * 0.1)
            else:
                parameter.add_(noise.abs())
    return model


def random_tokens(samples: int, length: int, seed: int = 0) -> Tensor:
    """Ids ``[samples, length]`` that avoid padding."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(3, VOCABULARY, (samples, length), generator=generator)


def random_calibration(samples: int = 8, length: int = 64, seed: int = 1) -> Calibration:
    """Calibration on random tokens."""
    return Calibration.from_tokens(random_tokens(samples, length, seed), "random")


def log_probabilities(model: nn.Module, tokens: Tensor) -> Tensor:
    """``[samples, length, vocabulary]``."""
    with torch.no_grad():
        return model(tokens).logits.log_softmax(-1)


def mean_kl(parent: nn.Module, variant: nn.Module, tokens: Tensor) -> float:
    """Mean KL(parent || variant) in nats a token."""
    p, q = log_probabilities(parent, tokens), log_probabilities(variant, tokens)
    return float((p.exp() * (p - q)).sum(-1).mean())


def with_weights_of(parent: nn.Module, quantized: Any) -> nn.Module:
    """A copy of ``parent`` that holds the quantized weights."""
    variant = copy.deepcopy(parent)
    quantized.apply_to(variant)
    return variant
