"""What a model's own files say of reading and generating: limits, end tokens, penalties."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from transformers import GenerationConfig, PretrainedConfig, PreTrainedTokenizerBase

from evalq.errors import ParentError, PlanError
from evalq.models.encode import resolve_max_length
from evalq.plan import EnginePlan

__all__ = ["end_tokens", "read_generation_config", "readable", "repetition_penalty"]

_UNAPPLIED: dict[str, Any] = {
    "no_repeat_ngram_size": 0,
    "encoder_no_repeat_ngram_size": 0,
    "bad_words_ids": None,
    "sequence_bias": None,
    "suppress_tokens": None,
    "begin_suppress_tokens": None,
    "forced_bos_token_id": None,
    "forced_eos_token_id": None,
    "exponential_decay_length_penalty": None,
    "min_length": 0,
    "min_new_tokens": 0,
    "num_beams": 1,
    "guidance_scale": 1,
    "penalty_alpha": 0.0,
    "watermarking_config": None,
}
"""Settings that change greedy decoding, and the values that leave it alone."""


def readable(
    plan: EnginePlan, config: PretrainedConfig, tokenizer: PreTrainedTokenizerBase, name: str
) -> int:
    """Tokens that a model reads: the plan's, or the model's own limit.

    Raises:
        PlanError: the plan asks for more than the model's own.
    """
    own = resolve_max_length(config, tokenizer)
    if plan.max_length is not None and plan.max_length > own:
        raise PlanError(
            f"engine.max_length {plan.max_length} is more than the {own} tokens that {name} can "
            "read",
            hint=f"Give at most {own}, or leave it out.",
        )
    return plan.max_length or own


def read_generation_config(path: Path, config: PretrainedConfig) -> GenerationConfig:
    """The settings that transformers would generate with, had it read the model from ``path``.

    A model that is built from tensors has those of its ``config`` alone.
    """
    if (path / "generation_config.json").is_file():
        return GenerationConfig.from_pretrained(path)
    return GenerationConfig.from_model_config(config)


def end_tokens(config: Any | None) -> list[int]:
    """Tokens that end a generation by ``generation_config.json``."""
    ends = getattr(config, "eos_token_id", None)
    if ends is None:
        return []
    return list(ends) if isinstance(ends, (list, tuple)) else [int(ends)]


def repetition_penalty(config: Any | None) -> float:
    """The one setting of ``generation_config.json`` that greedy decoding obeys, and we apply.

    Raises:
        ParentError: another one is set.
    """
    for name, neutral in _UNAPPLIED.items():
        value = getattr(config, name, None)
        if value not in (None, neutral, [], {}):
            raise ParentError(
                f"generation_config.json asks for {name}={value!r}, which is not applied here",
                hint="Without it, answers would not be those of transformers; remove it from a "
                "copy of the model to measure that.",
            )
    return float(getattr(config, "repetition_penalty", None) or 1.0)
