"""The picture after training: exact match by slice and level at bf16 and under plain RTN.

A rough check for choosing the recipe, on far more problems than the suites hold; evalq's own
quantizers and statistics play no part in it.

    python -m training.builtin.check evalq/assets/builtin --per-slice 200
"""

from __future__ import annotations

import argparse
import random
import re
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path

import torch
from transformers import AutoTokenizer, LlamaForCausalLM, PreTrainedTokenizerBase

from training.builtin.languages import SHARES, evaluation_facts
from training.builtin.problems import PROBLEMS, Problem, draw

LAST = {
    "math": re.compile(r"(\d+)$"),
    "reasoning/swaps": re.compile(r"(\w+)$"),
}


def pool(per_slice: int, seed: int) -> list[Problem]:
    """Problems of the evaluation side, up to ``per_slice`` of each slice."""
    rng = random.Random(f"check/{seed}")
    problems = [draw(name, rng, evaluation=True) for name in PROBLEMS for _ in range(per_slice)]
    for language in SHARES:
        facts = evaluation_facts(language)
        problems += rng.sample(facts, min(per_slice, len(facts)))
    return problems


def final(slice_name: str, text: str) -> str:
    """The final answer of a generated line."""
    line = text.split("\n")[0].strip()
    for prefix, pattern in LAST.items():
        if slice_name.startswith(prefix):
            found = pattern.search(line)
            return found.group(1) if found else ""
    return line


def rtn(weight: torch.Tensor, bits: int, group: int) -> torch.Tensor:
    """``weight`` rounded to a symmetric grid of ``bits``, one scale for each group of a row."""
    top = 2 ** (bits - 1) - 1
    blocks = weight.float().reshape(weight.shape[0], -1, group)
    scale = blocks.abs().amax(-1, keepdim=True) / top
    return ((blocks / scale).round().clamp(-top - 1, top) * scale).reshape(weight.shape)


@torch.inference_mode()
def answers(
    model: LlamaForCausalLM,
    tokenizer: PreTrainedTokenizerBase,
    problems: Sequence[Problem],
    batch: int,
) -> list[str]:
    """The greedy continuation of each problem's prompt."""
    order = sorted(range(len(problems)), key=lambda i: len(problems[i].answer.encode()))
    texts = [""] * len(problems)
    for i in range(0, len(order), batch):
        chunk = order[i : i + batch]
        inputs = tokenizer(
            [problems[j].prompt for j in chunk],
            padding=True,
            padding_side="left",
            return_tensors="pt",
        ).to(model.device)
        longest = max(len(problems[j].answer.encode()) for j in chunk) + 8
        output = model.generate(
            **inputs,
            max_new_tokens=longest,
            do_sample=False,
            eos_token_id=[10, tokenizer.eos_token_id],
            pad_token_id=tokenizer.pad_token_id,
        )
        new = output[:, inputs["input_ids"].shape[1] :]
        decoded = tokenizer.batch_decode(new, skip_special_tokens=True)
        for j, text in zip(chunk, decoded, strict=True):
            texts[j] = text
    return texts


def report(problems: Sequence[Problem], hits: dict[int, list[bool]]) -> None:
    """Print a table: one row for each slice, kind of prompt and level."""
    rows: dict[str, list[int]] = defaultdict(list)
    for i, problem in enumerate(problems):
        rows[problem.slice].append(i)
        kind = problem.key.split("/")[-1] if problem.slice.startswith("multi") else ""
        label = f"{problem.slice} {kind} {problem.level or ''}".strip()
        if label != problem.slice:
            rows[f"  {label}"].append(i)
    print("slice", *hits, "n", sep="\t")
    for label in sorted(rows, key=lambda r: (r.strip(), r)):
        chosen = rows[label]
        shares = [sum(hit[i] for i in chosen) / len(chosen) for hit in hits.values()]
        print(label.ljust(40), *(f"{s:.3f}" for s in shares), len(chosen), sep="\t")


def main() -> None:
    """Check one model directory."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model", type=Path)
    parser.add_argument("--per-slice", type=int, default=200)
    parser.add_argument("--batch", type=int, default=512)
    parser.add_argument("--group", type=int, default=128)
    parser.add_argument("--bits", type=int, nargs="*", default=[8, 4, 3, 2])
    options = parser.parse_args()
    device = "cuda" if torch.cuda.is_available() else "cpu"
    tokenizer = AutoTokenizer.from_pretrained(options.model)
    model = LlamaForCausalLM.from_pretrained(options.model, dtype=torch.bfloat16).to(device)
    layers = [m for m in model.model.modules() if isinstance(m, torch.nn.Linear)]
    original = [layer.weight.data.clone() for layer in layers]
    problems = pool(options.per_slice, 1)
    hits = {}
    for bits in [16, *options.bits]:
        for layer, weight in zip(layers, original, strict=True):
            if bits < 16:
                layer.weight.data = rtn(weight, bits, options.group).to(weight.dtype)
        texts = answers(model, tokenizer, problems, options.batch)
        hits[bits] = [final(p.slice, t) == p.target for p, t in zip(problems, texts, strict=True)]
    report(problems, hits)


if __name__ == "__main__":
    main()
