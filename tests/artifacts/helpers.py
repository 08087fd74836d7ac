"""Tiny random models, and codes for them that no quantizer of ours made."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import torch
from transformers import (
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedModel,
    PreTrainedTokenizerFast,
)

from evalq.artifacts.identity import hash_directory
from evalq.artifacts.write import Contents, StoredTypes, write_model
from evalq.kernels.packing import QuantizedWeight, group_count
from evalq.schema import WeightScheme


def tiny_llama(
    dtype: torch.dtype = torch.float32, tied: bool = False, seed: int = 0
) -> LlamaForCausalLM:
    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=64,
        hidden_size=64,
        intermediate_size=96,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=64,
        tie_word_embeddings=tied,
    )
    # Not .to(dtype): that would round the rotary frequencies as well.
    return LlamaForCausalLM._from_config(config, dtype=dtype).eval()


def tiny_tokenizer() -> PreTrainedTokenizerFast:
    from tokenizers import Tokenizer, models, pre_tokenizers

    vocabulary = {"<eos>": 0} | {f"w{i}": i for i in range(1, 64)}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<eos>"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<eos>")


def saved_parent(module: PreTrainedModel, path: Path) -> SimpleNamespace:
    """A module saved to ``path``, as a parent that artifacts are made of."""
    module.save_pretrained(path)
    tiny_tokenizer().save_pretrained(path)
    return SimpleNamespace(
        name="tiny",
        hash=hash_directory(path),
        module=module,
        tokenizer=tiny_tokenizer(),
        source=SimpleNamespace(path=path, kind="directory"),
    )


def random_weight(
    rows: int,
    columns: int,
    scheme: WeightScheme,
    dtype: torch.dtype = torch.float32,
    seed: int = 0,
) -> QuantizedWeight:
    generator = torch.Generator().manual_seed(seed)
    groups = group_count(scheme, columns)
    levels = 1 << scheme.bits
    codes = torch.randint(0, levels, (rows, columns), generator=generator).to(torch.uint8)
    scales = torch.rand(rows, groups, generator=generator) + 0.1
    scales = (scales / levels / columns**0.5).to(dtype)
    zeros = None
    if not scheme.symmetric:
        zeros = torch.randint(0, levels, (rows, groups), generator=generator).to(torch.uint8)
    return QuantizedWeight(codes, scales, zeros, scheme, (rows, columns))


def random_layers(
    module: torch.nn.Module, scheme: WeightScheme, dtype: torch.dtype = torch.float32
) -> dict[str, QuantizedWeight]:
    return {
        name: random_weight(part.out_features, part.in_features, scheme, dtype, seed)
        for seed, (name, part) in enumerate(module.named_modules())
        if isinstance(part, torch.nn.Linear) and name != "lm_head"
    }


def write(
    directory: Path,
    encoder: object,
    scheme: WeightScheme,
    dtype: torch.dtype = torch.float32,
    activation_bits: int | None = None,
) -> tuple[LlamaForCausalLM, dict[str, QuantizedWeight]]:
    module = tiny_llama(dtype)
    layers = random_layers(module, scheme, dtype)
    directory.mkdir()
    contents = Contents(module, tiny_tokenizer(), layers, {}, activation_bits, StoredTypes(dtype))
    write_model(contents, encoder, directory)
    return module, layers
