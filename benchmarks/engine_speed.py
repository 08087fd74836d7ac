"""evalq's engine beside lm-eval's HFLM: the same requests, model, dtype and machine, in one run.

    python -m benchmarks.engine_speed smollm2 --dtype bfloat16 --threads 2 --out FILE
    python -m benchmarks.engine_speed random-1b --device cuda --dtype bfloat16 --batch 16 --batch 64

Four-choice questions with five examples before them (BIG-Bench Hard's ``ruin_names``), asked as
letters (one token, as MMLU does) and as the options' own text (as ARC and HellaSwag do), and
generations (GSM8K, five examples). The built-in parent, which knows none of these, is asked its own
suites. HFLM gets each batch size in turn and is judged by its best; the two engines take turns, and
each one's best time of ``--repeats`` counts. Agreement is counted over all items: choices by the
highest log-likelihood, generations by their text.
"""

from __future__ import annotations

import argparse
import json
import re
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, replace
from itertools import groupby
from pathlib import Path
from typing import Any

import torch
from lm_eval.api.instance import Instance
from lm_eval.models.huggingface import HFLM

from evalq.models.base import LoadedModel
from evalq.models.hf import TransformersEngine
from evalq.models.load import load_parent
from evalq.plan import EnginePlan
from evalq.schema import Request, Response

SHOTS = 5
Items = list[list[Request]]
"""Requests by item: the choices of one question, or one generation."""


def _options(text: str) -> list[tuple[str, str]]:
    return re.findall(r"\(([A-D])\) (.+)", text)


def four_choice(data: Path, count: int, letters: bool) -> Items:
    """Questions with the same five examples before them."""
    file = data / "bbh" / "ruin_names.json"
    examples = json.loads(file.read_text(encoding="utf-8"))["examples"]

    def question(example: dict[str, str]) -> str:
        shown = example["input"] if letters else example["input"].partition("\nOptions:")[0]
        return f"Question: {shown}\nAnswer:"

    def answers(example: dict[str, str]) -> dict[str, str]:
        return {k: f" {k}" if letters else f" {v}" for k, v in _options(example["input"])}

    head = "".join(
        f"{question(e)}{answers(e)[e['target'].strip('()')]}\n\n" for e in examples[:SHOTS]
    )
    return [
        [Request("loglikelihood", head + question(e), a) for a in answers(e).values()]
        for e in examples[SHOTS : SHOTS + count]
    ]


def problems(data: Path, count: int, length: int) -> Items:
    """Word problems to be solved in at most ``length`` tokens."""
    train = (data / "gsm8k" / "train-first-1000.jsonl").read_text(encoding="utf-8").splitlines()
    test = (data / "gsm8k" / "test.jsonl").read_text(encoding="utf-8").splitlines()
    shots = [json.loads(line) for line in train[:SHOTS]]
    head = "".join(f"Question: {s['question']}\nAnswer: {s['answer']}\n\n" for s in shots)
    texts = [json.loads(line)["question"] for line in test[:count]]
    return [
        [
            Request(
                "generate_until",
                f"{head}Question: {text}\nAnswer:",
                until=("Question:", "\n\n"),
                max_tokens=length,
            )
        ]
        for text in texts
    ]


def own_suites(kind: str, count: int) -> Items:
    """Items of the built-in suites of that kind, the same number of each task."""
    from evalq.tasks.bridge import build

    names = ("builtin-math", "builtin-multilingual", "builtin-reasoning")
    found: Items = []
    for task in build(names, limit=count):
        # A document's requests follow each other and share its prompt.
        asked = [list(g) for _, g in groupby(task.requests, key=lambda r: r.context)]
        found += [item for item in asked if item[0].kind == kind]
    return found


def with_examples(items: Items) -> Items:
    """Items behind the first five of them, each with its first answer: for timing alone."""
    head = "".join(f"{i[0].context}{i[0].continuation}\n" for i in items[:SHOTS])
    return [[replace(r, context=head + r.context) for r in item] for item in items[SHOTS:]]


def random_model(tokenizer: str, device: str, dtype: torch.dtype) -> LoadedModel:
    """A Llama of about a billion weights, at random, in the shapes of Llama-3.2-1B."""
    from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM

    tokens = AutoTokenizer.from_pretrained(tokenizer, local_files_only=True)
    config = LlamaConfig(
        vocab_size=len(tokens),
        hidden_size=2048,
        intermediate_size=8192,
        num_hidden_layers=16,
        num_attention_heads=32,
        num_key_value_heads=8,
        max_position_embeddings=8192,
        bos_token_id=tokens.bos_token_id,
        eos_token_id=tokens.eos_token_id,
    )
    torch.manual_seed(0)
    module = LlamaForCausalLM(config).to(device, dtype).eval()
    like = load_parent("builtin", EnginePlan(device=device))
    return replace(like, name="random-1b", module=module, tokenizer=tokens, dtype=dtype)


def answer_all(engine: TransformersEngine, requests: list[Request]) -> list[Response]:
    """All requests through plan and answer, in their order."""
    out: dict[int, Response] = {}
    for batch in engine.plan(requests):
        out |= zip(batch, engine.answer([requests[i] for i in batch]), strict=True)
    return [out[i] for i in range(len(requests))]


def ours(model: LoadedModel, items: Items, plan: EnginePlan) -> tuple[float, list[Any]]:
    """Seconds, planning included, and the answers in order."""
    requests = [r for item in items for r in item]
    start = time.perf_counter()
    out = answer_all(TransformersEngine(model, plan), requests)
    _finish(model)
    return time.perf_counter() - start, [_said(r) for r in out]


def theirs(model: LoadedModel, items: Items, batch: int) -> tuple[float, list[Any]]:
    """The same with HFLM."""
    lm = HFLM(pretrained=model.module, tokenizer=model.tokenizer, batch_size=batch)
    instances = [instance(r) for item in items for r in item]
    ask: Callable[..., list[Any]] = getattr(lm, instances[0].request_type)
    start = time.perf_counter()
    answers = ask(instances, disable_tqdm=True)
    _finish(model)
    return time.perf_counter() - start, answers


def instance(request: Request) -> Instance:
    arguments: tuple[Any, ...] = (request.context, request.continuation)
    if request.kind == "generate_until":
        options = {"until": list(request.until), "do_sample": False}
        if request.max_tokens is not None:
            options["max_gen_toks"] = request.max_tokens
        arguments = (request.context, options)
    return Instance(request_type=request.kind, doc={}, arguments=arguments, idx=0)


def _finish(model: LoadedModel) -> None:
    if model.device.type == "cuda":
        torch.cuda.synchronize()


def _said(response: Any) -> Any:
    return response.text if response.logprob is None else (response.logprob, response.greedy)


def agreement(items: Items, a: Sequence[Any], b: Sequence[Any]) -> dict[str, float]:
    """Items decided alike, and the largest difference of log-likelihoods."""
    same, place, largest = 0, 0, 0.0
    for item in items:
        x, y = a[place : place + len(item)], b[place : place + len(item)]
        place += len(item)
        if isinstance(x[0], str):
            same += x == y
            continue
        u, v = [float(s[0]) for s in x], [float(s[0]) for s in y]
        largest = max(largest, *(abs(p - q) for p, q in zip(u, v, strict=True)))
        same += u.index(max(u)) == v.index(max(v))
    return {"items_alike": same, "items": len(items), "largest_difference": largest}


def compare(name: str, model: LoadedModel, items: Items, given: argparse.Namespace) -> dict:
    """One kind of request on both engines, in turns."""
    plan = EnginePlan(
        device=given.device, dtype=given.dtype, threads=given.threads,
        batch_tokens=given.batch_tokens,
    )  # fmt: skip
    ours(model, items[:4], plan)
    theirs(model, items[:4], given.batch[0])
    mine: list[float] = []
    other: dict[int, list[float]] = {size: [] for size in given.batch}
    answers = reference = None
    for _ in range(given.repeats):
        seconds, answers = ours(model, items, plan)
        mine.append(seconds)
        for size in given.batch:
            try:
                seconds, found = theirs(model, items, size)
            except torch.OutOfMemoryError:
                continue
            other[size].append(seconds)
            reference = found if reference is None else reference
    best = min(min(times) for times in other.values() if times)
    row = {
        "what": name,
        "items": len(items),
        "requests": sum(len(i) for i in items),
        "evalq_items_per_s": len(items) / min(mine),
        "hflm_items_per_s": {size: len(items) / min(t) for size, t in other.items() if t},
        "ratio": best / min(mine),
        **agreement(items, answers or [], reference or []),
    }
    print(json.dumps(row), flush=True)
    return row


def items_of(given: argparse.Namespace) -> dict[str, Items]:
    """What is asked, by kind."""
    if given.parent == "builtin":
        return {
            "choice, own suites": own_suites("loglikelihood", given.choices),
            "choice 5-shot, own suites": with_examples(own_suites("loglikelihood", given.choices)),
            "generation, own suites": own_suites("generate_until", given.generations),
        }
    return {
        "four-choice 5-shot, letters": four_choice(given.data, given.choices, True),
        "four-choice 5-shot, options' text": four_choice(given.data, given.choices, False),
        "generation 5-shot": problems(given.data, given.generations, given.length),
    }


def stored_items(given: argparse.Namespace) -> dict[str, Items]:
    """What an earlier call wrote, for a machine without the data."""
    kinds = json.loads(given.items.read_text(encoding="utf-8"))

    def request(stored: dict[str, Any]) -> Request:
        messages = tuple(tuple(m) for m in stored["messages"])
        return Request(**{**stored, "until": tuple(stored["until"]), "messages": messages})

    return {k: [[request(r) for r in item] for item in items] for k, items in kinds.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("parent", help="builtin, smollm2, a directory, or random-1b")
    parser.add_argument("--data", type=Path, default=Path("../shared/data"))
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--dtype", default="float32")
    parser.add_argument("--threads", type=int, default=None)
    parser.add_argument("--batch-tokens", type=int, default=16384)
    parser.add_argument("--batch", type=int, action="append", help="HFLM's batch sizes")
    parser.add_argument("--repeats", type=int, default=2)
    parser.add_argument("--choices", type=int, default=60)
    parser.add_argument("--generations", type=int, default=16)
    parser.add_argument("--length", type=int, default=64)
    parser.add_argument("--tokenizer", default="", help="of the random model: a directory")
    parser.add_argument(
        "--items", type=Path, help="requests as JSON: read where it is, else written"
    )
    parser.add_argument("--out", type=Path)
    given = parser.parse_args()
    given.batch = given.batch or [1, 8, 32]
    if given.threads:
        torch.set_num_threads(given.threads)
    dtype = getattr(torch, given.dtype)
    if given.parent == "random-1b":
        model = random_model(given.tokenizer, given.device, dtype)
    else:
        model = load_parent(given.parent, EnginePlan(device=given.device, dtype=given.dtype))
    kinds = stored_items(given) if given.items and given.items.exists() else items_of(given)
    if given.items:
        text = {k: [[asdict(r) for r in item] for item in v] for k, v in kinds.items()}
        given.items.write_text(json.dumps(text), encoding="utf-8")
    versions = {"torch": torch.__version__, "parent": given.parent, "dtype": given.dtype}
    rows = [versions | compare(name, model, items, given) for name, items in kinds.items()]
    if given.out:
        given.out.write_text(json.dumps(rows, indent=2), encoding="utf-8")


if __name__ == "__main__":
    main()
