"""evalq's engine held against lm-eval's HFLM, request by request, in float32.

    python -m benchmarks.engine_agreement smollm2 --suite 'multilingual:xcopa_sw' --limit 100
    python -m benchmarks.engine_agreement smollm2 --four-choice 100
    python -m benchmarks.engine_agreement smollm2 --suite math:gsm8k --limit 16 --length 128
    python -m benchmarks.engine_agreement builtin --suite builtin-math --suite builtin-reasoning

Both are asked the very requests that a run asks. Choices are compared by the likeliest, and counted
as ties where the two best lie within 1e-3 nats under HFLM. Texts are compared whole; where they
differ, the margin between HFLM's two likeliest tokens at the first difference is taken in float64,
and below 1e-3 nats it is a tie. HFLM is asked one request at a time for texts, since its larger
batches go on until all rows have met a stop string.
"""

from __future__ import annotations

import argparse
import json
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from lm_eval.models.huggingface import HFLM

from benchmarks.engine_speed import Items, answer_all, four_choice, instance
from evalq.models.base import LoadedModel
from evalq.models.hf import TransformersEngine
from evalq.models.load import load_parent
from evalq.plan import EnginePlan
from evalq.tasks.bridge import build

TIE = 1e-3
"""Nats."""


def asked(given: argparse.Namespace) -> dict[str, Items]:
    """Items by task; the choices of a question are one."""
    found: dict[str, Items] = {}
    for task in build(given.suite, data_dir=given.data if given.data else "", limit=given.limit):
        requests = task.requests
        if given.length:
            requests = [
                replace(r, max_tokens=min(r.max_tokens or given.length, given.length))
                if r.kind == "generate_until"
                else r
                for r in requests
            ]
        # The choices of a question follow each other, often with prompts of their own (xcopa).
        size = len(requests) // len(task.items)
        found[task.name] = [requests[i : i + size] for i in range(0, len(requests), size)]
    if given.four_choice:
        data = Path(given.data)
        found["ruin_names, letters"] = four_choice(data, given.four_choice, True)
        found["ruin_names, options' text"] = four_choice(data, given.four_choice, False)
    return found


def choices(lm: HFLM, items: Items, said: list[Any]) -> dict[str, Any]:
    """Decisions and log-likelihoods."""
    instances = [instance(r) for item in items for r in item]
    reference = lm.loglikelihood(instances, disable_tqdm=True)
    largest = max(abs(a.logprob - value) for a, (value, _) in zip(said, reference, strict=True))
    greedy = sum(a.greedy != g for a, (_, g) in zip(said, reference, strict=True))
    alike = ties = place = 0
    for item in items:
        mine = [a.logprob for a in said[place : place + len(item)]]
        theirs = [float(v) for v, _ in reference[place : place + len(item)]]
        place += len(item)
        if mine.index(max(mine)) == theirs.index(max(theirs)):
            alike += 1
        else:
            first, second = sorted(theirs)[-2:][::-1]
            ties += first - second < TIE
    return {
        "alike": alike,
        "ties": ties,
        "largest_difference": largest,
        "greedy_flags_that_differ": greedy,
    }


@torch.inference_mode()
def margin(exact: Any, tokenizer: Any, context: str, mine: str, theirs: str) -> float:
    """Nats between the two likeliest tokens where two texts part, in float64."""
    prompt = tokenizer(context)["input_ids"]
    a, b = (tokenizer(t, add_special_tokens=False)["input_ids"] for t in (mine, theirs))
    same = next(
        (i for i, (x, y) in enumerate(zip(a, b, strict=False)) if x != y), min(len(a), len(b))
    )
    logits = exact(input_ids=torch.tensor([[*prompt, *b[:same]]])).logits[0, -1]
    best = logits.log_softmax(-1).topk(2).values
    return float(best[0] - best[1])


def texts(lm: HFLM, model: LoadedModel, items: Items, said: list[Any]) -> dict[str, Any]:
    """Generations."""
    reference = lm.generate_until([instance(i[0]) for i in items], disable_tqdm=True)
    apart = [
        (item[0], a.text, text)
        for item, a, text in zip(items, said, reference, strict=True)
        if a.text != text
    ]
    margins: list[float] = []
    if apart:
        exact = load_parent(model.name, EnginePlan(device="cpu", dtype="float32")).module.double()
        margins = [margin(exact, model.tokenizer, r.context, a, b) for r, a, b in apart]
    return {
        "alike": len(items) - len(apart),
        "ties": sum(m < TIE for m in margins),
        "margins": margins,
        "tokens": sum(a.tokens_out for a in said),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("parent")
    parser.add_argument("--suite", action="append", default=[])
    parser.add_argument("--data", default="../shared/data")
    parser.add_argument("--limit", type=int)
    parser.add_argument("--four-choice", type=int, default=0)
    parser.add_argument("--length", type=int, help="at most so many new tokens, for both")
    parser.add_argument("--threads", type=int, default=1)
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    model = load_parent(given.parent, EnginePlan(device="cpu", dtype="float32"))
    for name, items in asked(given).items():
        requests = [r for item in items for r in item]
        began = time.perf_counter()
        engine = TransformersEngine(model, EnginePlan(device="cpu"))
        said = answer_all(engine, requests)
        middle = time.perf_counter()
        generates = requests[0].kind == "generate_until"
        lm = HFLM(
            pretrained=model.module, tokenizer=model.tokenizer, batch_size=1 if generates else 8
        )
        found = texts(lm, model, items, said) if generates else choices(lm, items, said)
        seconds = {"evalq_s": middle - began, "hflm_s": time.perf_counter() - middle}
        row = {"parent": given.parent, "task": name, "items": len(items), **found, **seconds}
        print(json.dumps({**row, "events": engine.events}), flush=True)


if __name__ == "__main__":
    main()
