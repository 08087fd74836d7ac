"""Tiny random models and a byte-level tokenizer, and lm-eval's own engine to compare with."""

from __future__ import annotations

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import (
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    MistralConfig,
    MistralForCausalLM,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    PreTrainedTokenizerFast,
)

from evalq.models.base import LoadedModel, ModelSource

TEXT = [
    "Question: what is twelve times seven? Answer: eighty-four.",
    "The quick brown fox jumps over the lazy dog, and then it sleeps.\n\nNaïve café über Straße",
    "Moja mbili tatu nne tano sita saba nane tisa kumi. ఒకటి రెండు మూడు",
    "A B C D\nA: yes\nB: no\nC: perhaps\nD: never\nAnswer:",
]


def byte_level_tokenizer(vocab: int = 320, bos: bool = False) -> PreTrainedTokenizerFast:
    core = Tokenizer(models.BPE())
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    core.decoder = decoders.ByteLevel()
    special = ["<|end|>", "<|pad|>"] + (["<|start|>"] if bos else [])
    trainer = trainers.BpeTrainer(
        vocab_size=vocab,
        special_tokens=special,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    core.train_from_iterator(TEXT, trainer)
    extra = {"bos_token": "<|start|>"} if bos else {}
    return PreTrainedTokenizerFast(
        tokenizer_object=core, eos_token="<|end|>", pad_token="<|pad|>", **extra
    )


def module(kind: str, tokenizer: PreTrainedTokenizerBase, length: int = 128) -> PreTrainedModel:
    torch.manual_seed(1)
    common = {
        "vocab_size": len(tokenizer),
        "eos_token_id": tokenizer.eos_token_id,
        "bos_token_id": tokenizer.bos_token_id,
        "pad_token_id": tokenizer.pad_token_id,
        "initializer_range": 0.2,
    }
    if kind == "gpt2":
        config = GPT2Config(n_embd=32, n_layer=2, n_head=4, n_positions=length, **common)
        made: PreTrainedModel = GPT2LMHeadModel(config)
    else:
        shape = {
            "hidden_size": 32,
            "intermediate_size": 64,
            "num_hidden_layers": 2,
            "num_attention_heads": 4,
            "num_key_value_heads": 2,
            "max_position_embeddings": length,
        }
        if kind == "llama":
            made = LlamaForCausalLM(LlamaConfig(**shape, **common))
        else:
            made = MistralForCausalLM(MistralConfig(sliding_window=24, **shape, **common))
    return made.eval()


def loaded(kind: str, tokenizer: PreTrainedTokenizerBase, length: int = 128) -> LoadedModel:
    from pathlib import Path

    made = module(kind, tokenizer, length)
    source = ModelSource(Path("."), "directory", (), 0, 32.0, made.num_parameters())
    return LoadedModel(
        kind, "0", made, tokenizer, torch.device("cpu"), torch.float32, "dense", source
    )
