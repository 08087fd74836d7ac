"""A parent and ten variants by evalq, beside the parent alone by lm-eval's HFLM.

    python -m benchmarks.many_variants smollm2 --dtype bfloat16 --out FILE

One suite: four-choice questions behind five examples, as letters and as the options' own text,
and word problems behind five examples (``engine_speed``). Every model is loaded from its files and
asked everything; artifacts are made beforehand (``rtn``, 8 to 2 bits) and are not timed. HFLM gets
the best of the batch sizes given for each kind of question.
"""

from __future__ import annotations

import argparse
import gc
import json
import time
from pathlib import Path

import torch

from benchmarks.engine_speed import Items, four_choice, ours, problems, theirs
from evalq.artifacts.make import make_artifact
from evalq.models.load import load_artifact, load_parent
from evalq.plan import EnginePlan
from evalq.schema import PerGroup, Scheme, WeightScheme

SCHEMES = tuple((bits, symmetric) for bits in (8, 6, 4, 3, 2) for symmetric in (True, False))


def artifacts(parent: str, folder: Path, group: int, plan: EnginePlan) -> list[Path]:
    """Ten of them, made where they are not there yet."""
    found, model = [], None
    for bits, symmetric in SCHEMES:
        path = folder / f"w{bits}-{'sym' if symmetric else 'asym'}"
        if not (path / "config.json").exists():
            model = model or load_parent(parent, plan)
            scheme = Scheme(WeightScheme(bits, PerGroup(group), symmetric))
            make_artifact(model, scheme, "rtn", None, {}, 0, path, lambda *_: None)
        found.append(path)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("parent")
    parser.add_argument("--data", type=Path, default=Path("../shared/data"))
    parser.add_argument("--folder", type=Path, default=Path("runs/bench/many"))
    parser.add_argument("--dtype", default="bfloat16")
    parser.add_argument("--group", type=int, default=64)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--choices", type=int, default=60)
    parser.add_argument("--generations", type=int, default=24)
    parser.add_argument("--length", type=int, default=64)
    parser.add_argument("--batch", type=int, action="append")
    parser.add_argument("--out", type=Path)
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    plan = EnginePlan(device="cpu", dtype=given.dtype, threads=given.threads)
    kinds: dict[str, Items] = {
        "letters": four_choice(given.data, given.choices, True),
        "text": four_choice(given.data, given.choices, False),
        "problems": problems(given.data, given.generations, given.length),
    }
    paths = artifacts(given.parent, given.folder, given.group, plan)
    began = time.perf_counter()
    model = load_parent(given.parent, plan)
    loading = time.perf_counter() - began
    alone = {
        size: {kind: theirs(model, items, size)[0] for kind, items in kinds.items()}
        for size in given.batch or [1, 8]
    }
    del model
    best = loading + sum(min(alone[size][kind] for size in alone) for kind in kinds)
    seconds = []
    for path in (None, *paths):
        gc.collect()
        began = time.perf_counter()
        model = load_parent(given.parent, plan) if path is None else load_artifact(path, plan)
        for items in kinds.values():
            ours(model, items, plan)
        seconds.append(time.perf_counter() - began)
        del model
        print(f"{path or given.parent}: {seconds[-1]:.1f} s", flush=True)
    row = {
        "parent": given.parent,
        "dtype": given.dtype,
        "items": {kind: len(items) for kind, items in kinds.items()},
        "hflm_s": alone,
        "hflm_parent_alone_s": best,
        "evalq_s": seconds,
        "evalq_eleven_s": sum(seconds),
        "ratio": sum(seconds) / best,
    }
    print(json.dumps(row))
    if given.out:
        given.out.write_text(json.dumps(row, indent=2), encoding="utf-8")


if __name__ == "__main__":
    main()
