"""Train the built-in parent from scratch and save it with its loss curve.

On one H100 or H200 this takes some minutes. ``--quick`` checks the script on a CPU.

    python -m training.builtin.train --out evalq/assets/builtin
"""

from __future__ import annotations

import argparse
import csv
import math
import time
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from training.builtin.generate import SEED, shard
from training.builtin.tokenizer import END, PAD, VOCABULARY, save_tokenizer

SEPARATOR = 0xFF
"""Stands for END in the byte stream; no UTF-8 text holds this byte."""


@dataclass(frozen=True, slots=True)
class Recipe:
    """All that decides the weights, apart from the machine's arithmetic."""

    seed: int = SEED
    megabytes: int = 400
    length: int = 1024
    batch: int = 64
    seconds: float = 188.0
    steps: int = 11000
    warmup: int = 300
    rate: float = 2.5e-3
    decay: float = 0.1
    hidden: int = 128
    layers: int = 8
    heads: int = 4
    ffn: int = 512


def build_model(recipe: Recipe) -> LlamaForCausalLM:
    """A Llama of the recipe's shape with fresh float32 weights."""
    torch.manual_seed(recipe.seed)
    config = LlamaConfig(
        vocab_size=VOCABULARY,
        hidden_size=recipe.hidden,
        intermediate_size=recipe.ffn,
        num_hidden_layers=recipe.layers,
        num_attention_heads=recipe.heads,
        num_key_value_heads=recipe.heads,
        head_dim=recipe.hidden // recipe.heads,
        max_position_embeddings=recipe.length,
        rms_norm_eps=1e-5,
        rope_theta=10000.0,
        tie_word_embeddings=False,
        attention_bias=False,
        mlp_bias=False,
        bos_token_id=END,
        eos_token_id=END,
        pad_token_id=PAD,
    )
    return LlamaForCausalLM(config)


def shard_bytes(job: tuple[int, int, int]) -> bytes:
    """One shard as a byte stream, each document closed by the separator."""
    texts = shard(*job)
    return b"".join(text.encode() + bytes([SEPARATOR]) for text in texts)


def corpus(recipe: Recipe, workers: int) -> np.ndarray[Any, np.dtype[np.uint8]]:
    """The whole training stream, uint8; the same for any number of workers."""
    shards = 64
    jobs = [(recipe.seed, i, recipe.megabytes * 1_000_000 // shards) for i in range(shards)]
    with ProcessPoolExecutor(workers) as pool:
        stream = b"".join(pool.map(shard_bytes, jobs))
    return np.frombuffer(stream, dtype=np.uint8)


def row_starts(stream: np.ndarray[Any, np.dtype[np.uint8]], length: int) -> torch.Tensor:
    """Where the training rows start, int64: each at a document, every other one before its END.

    A model must answer a prompt with nothing before it as well as one after END.
    """
    ends = np.flatnonzero(stream == SEPARATOR)
    starts, position = [], 0
    while True:
        index = int(np.searchsorted(ends, position))
        if index >= len(ends) or ends[index] + 2 + length >= len(stream):
            break
        start = int(ends[index]) + (len(starts) % 2)
        starts.append(start)
        position = start + length
    return torch.tensor(starts, dtype=torch.int64)


def batches(
    stream: torch.Tensor, starts: torch.Tensor, recipe: Recipe
) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """Endless (inputs, labels), int64 ``[batch, length]``, in an order fixed by the seed."""
    generator = torch.Generator().manual_seed(recipe.seed)
    offsets = torch.arange(recipe.length + 1, device=stream.device)
    while True:
        order = torch.randperm(len(starts), generator=generator)
        for i in range(0, len(order) - recipe.batch + 1, recipe.batch):
            rows = starts[order[i : i + recipe.batch]].to(stream.device)
            tokens = stream[rows[:, None] + offsets].long()
            tokens = torch.where(tokens == SEPARATOR, END, tokens)
            yield tokens[:, :-1].contiguous(), tokens[:, 1:].contiguous()


def rate_at(progress: float, step: int, recipe: Recipe) -> float:
    """Linear warm-up, then a cosine from ``rate`` to 1 % of it over ``progress`` 0 to 1."""
    if step < recipe.warmup:
        return recipe.rate * (step + 1) / recipe.warmup
    return recipe.rate * (0.01 + 0.99 * 0.5 * (1 + math.cos(math.pi * min(progress, 1.0))))


def optimizer_of(model: torch.nn.Module, recipe: Recipe, fused: bool) -> torch.optim.AdamW:
    """AdamW with weight decay on matrices only."""
    matrices = [p for p in model.parameters() if p.dim() >= 2]
    vectors = [p for p in model.parameters() if p.dim() < 2]
    groups = [
        {"params": matrices, "weight_decay": recipe.decay},
        {"params": vectors, "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(groups, lr=recipe.rate, betas=(0.9, 0.95), fused=fused)


def train(recipe: Recipe, device: torch.device, workers: int, out: Path) -> LlamaForCausalLM:
    """Train for ``recipe.steps`` steps or ``recipe.seconds``, whichever ends first.

    The rate follows whichever of the two is further on, so it always reaches its end. Writes
    ``loss.csv`` (step, tokens, loss in nats per byte, rate, seconds) to ``out``.
    """
    began = time.monotonic()
    raw = corpus(recipe, workers)
    starts = row_starts(raw, recipe.length)
    print(f"{len(raw)} bytes, {len(starts)} rows, {time.monotonic() - began:.0f} s", flush=True)
    stream = torch.from_numpy(raw.copy()).to(device)
    model = build_model(recipe).to(device)
    print(f"{sum(p.numel() for p in model.parameters())} parameters", flush=True)
    optimizer = optimizer_of(model, recipe, fused=device.type == "cuda")
    source = batches(stream, starts, recipe)

    def loss_of(inputs: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        with torch.autocast(device.type, dtype=torch.bfloat16):
            logits = model(input_ids=inputs, use_cache=False).logits
        return torch.nn.functional.cross_entropy(logits.flatten(0, 1).float(), labels.flatten())

    compiled = torch.compile(loss_of) if device.type == "cuda" else loss_of
    out.mkdir(parents=True, exist_ok=True)
    with (out / "loss.csv").open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(["step", "tokens", "loss", "rate", "seconds"])
        start: float | None = None
        for step in range(recipe.steps):
            elapsed = 0.0 if start is None else time.monotonic() - start
            progress = max(step / recipe.steps, elapsed / recipe.seconds)
            if progress >= 1.0:
                break
            rate = rate_at(progress, step, recipe)
            for group in optimizer.param_groups:
                group["lr"] = rate
            loss = compiled(*next(source))
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            if step == 2:  # compiled by now: the clock is for steps
                start = time.monotonic()
            if step % 100 == 0:
                tokens = (step + 1) * recipe.batch * recipe.length
                row = [step, tokens, f"{loss.item():.5f}", f"{rate:.6f}", f"{elapsed:.1f}"]
                writer.writerow(row)
                if step % 1000 == 0:
                    print(*row, flush=True)
        print(f"{step + 1} steps, {time.monotonic() - began:.0f} s in all", flush=True)
    return model


def save(model: LlamaForCausalLM, out: Path) -> None:
    """Write config, bfloat16 weights and tokenizer."""
    model.to(torch.bfloat16).save_pretrained(out, safe_serialization=True)
    (out / "model.safetensors").chmod(0o644)
    save_tokenizer(out)


def main() -> None:
    """Train by the command line's recipe."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--workers", type=int, default=16)
    parser.add_argument("--quick", action="store_true", help="some steps only, on any machine")
    for name, value in asdict(Recipe()).items():
        parser.add_argument(f"--{name}", type=type(value), default=value)
    options = vars(parser.parse_args())
    out, workers, quick = options.pop("out"), options.pop("workers"), options.pop("quick")
    if quick:
        options |= {"megabytes": 2, "length": 128, "batch": 4, "steps": 20, "warmup": 5}
    recipe = Recipe(**options)
    print(recipe, flush=True)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    torch.set_float32_matmul_precision("high")
    save(train(recipe, device, workers, out), out)


if __name__ == "__main__":
    main()
