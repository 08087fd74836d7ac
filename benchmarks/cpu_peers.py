"""evalq's packed kernels beside transformers and llama.cpp on a CPU, in turns within one run.

    evalq quantize MODEL.gguf --method rtn --bits 4 --group-size 64 --out w4   # and so on
    python -m benchmarks.cpu_peers MODEL.gguf --artifact w4 --artifact w8 \\
        --llama FOLDER --keep FOLDER --threads 2 --out FILE

``--llama`` is a folder with llama.cpp's ``llama-bench`` and ``llama-quantize``, which makes its own
formats of the same file into ``--keep``. Every turn times every engine once, batch 1: a prompt of
``--prefill`` tokens, then ``--decode`` tokens behind it (llama-bench: ``-p``, then ``-n`` at depth
``-d``). Medians over ``--turns``; ratios to transformers in bfloat16. evalq's artifacts keep
embedding and head in 16 bits, llama.cpp's Q4_0 and Q8_0 have them in 8 (tied embeddings).
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
import transformers

from evalq.cost.measure import prompt_tokens, weight_bytes
from evalq.models.base import LoadedModel
from evalq.models.lean.runner import make_runner
from evalq.models.load import load_artifact, load_parent
from evalq.plan import EnginePlan

FORMATS = ("BF16", "Q8_0", "Q4_0")
Speeds = tuple[float, float]
"""Prefill and decode in tokens a second."""
BASELINE = "transformers bfloat16"
DISTURBED = 0.1
"""Share of the cores that other processes may take of a timing."""


def _pass(model: LoadedModel, loop: str, prefill: int, decode: int) -> Speeds:
    prompt = prompt_tokens(model, 1, prefill)
    with torch.inference_mode():
        runner = make_runner(model.module, 1, prefill + decode, loop)
        began = time.perf_counter()
        token = runner.prefill(prompt).argmax(-1)
        filled = time.perf_counter()
        for _ in range(decode):
            token = runner.step(token).argmax(-1)
        ended = time.perf_counter()
    return prefill / (filled - began), decode / (ended - filled)


def _llama(bench: Path, model: Path, threads: int, prefill: int, decode: int) -> Speeds:
    speeds = []
    for what in (
        ["-p", str(prefill), "-n", "0"],
        ["-p", "0", "-n", str(decode), "-d", str(prefill)],
    ):
        command = [bench, "-m", model, "-t", str(threads), "-r", "1", "-o", "json", *what]
        done = subprocess.run(list(map(str, command)), capture_output=True, text=True, check=True)
        (row,) = json.loads(done.stdout)
        speeds.append(float(row["avg_ts"]))
    return speeds[0], speeds[1]


def _formats(options: argparse.Namespace) -> dict[str, Path]:
    """llama.cpp's own formats of the model, made once."""
    options.keep.mkdir(parents=True, exist_ok=True)
    made = {}
    for name in FORMATS:
        made[name] = options.keep / f"{name}.gguf"
        if not made[name].exists():
            quantize = options.llama / "llama-quantize"
            command = [quantize, "--allow-requantize", options.model, made[name], name]
            subprocess.run(list(map(str, command)), capture_output=True, check=True)
    return made


def _load(model: str, artifact: Path | None, dtype: str) -> LoadedModel:
    plan = EnginePlan(device="cpu", dtype=dtype)
    return (
        load_parent(model, plan) if artifact is None else load_artifact(artifact, plan, packed=True)
    )


def engines(options: argparse.Namespace) -> tuple[dict[str, Callable[[], Speeds]], dict[str, Any]]:
    """A timing by engine, and what is known of each beside its speed."""
    turns: dict[str, Callable[[], Speeds]] = {}
    known: dict[str, Any] = {}

    def add(label: str, model: LoadedModel, loop: str) -> None:
        turns[label] = lambda: _pass(model, loop, options.prefill, options.decode)
        runner = make_runner(model.module, 1, options.prefill, loop)
        known[label] = {
            "loop": runner.loop,
            "execution": model.execution,
            "weight_bytes": weight_bytes(model.module),
        }

    plain = _load(str(options.model), None, "bfloat16")
    add(BASELINE, plain, "transformers")
    add("transformers float32", _load(str(options.model), None, "float32"), "transformers")
    add("evalq bfloat16", plain, "auto")
    for path in options.artifact:
        add(f"evalq {path.name}", _load("", path, "bfloat16"), "auto")
    for name, path in _formats(options).items() if options.llama else ():
        bench = options.llama / "llama-bench"
        turns[f"llama.cpp {name}"] = partial(
            _llama, bench, path, options.threads, options.prefill, options.decode
        )
        known[f"llama.cpp {name}"] = {"weight_bytes": os.path.getsize(path)}
    return turns, known


def _busy() -> float:
    """Seconds that the machine's cores have worked, less those of this process and its children."""
    with open("/proc/stat", encoding="ascii") as file:
        user, nice, system = map(int, file.readline().split()[1:4])
    return (user + nice + system) / os.sysconf("SC_CLK_TCK") - sum(os.times()[:4])


def _undisturbed(run: Callable[[], Speeds], tries: int) -> tuple[Speeds, float]:
    """The timing that other processes took least of, and their share of the cores meanwhile.

    Threads that wait for each other lose far more than the share that is taken from them, so a
    timing with more than DISTURBED of it is made again.
    """
    best: tuple[Speeds, float] | None = None
    for _ in range(tries):
        busy, began = _busy(), time.perf_counter()
        speeds = run()
        passed = (time.perf_counter() - began) * (os.cpu_count() or 1)
        share = max(0.0, _busy() - busy) / passed
        if best is None or share < best[1]:
            best = speeds, share
        if share <= DISTURBED:
            break
        time.sleep(0.5)
    assert best is not None
    return best


def measure(options: argparse.Namespace) -> dict[str, Any]:
    """All engines in turns: ``{machine..., rows: [{engine, prefill, decode, ratios, ...}]}``."""
    torch.set_num_threads(options.threads)
    turns, known = engines(options)
    found: dict[str, list[Speeds]] = {label: [] for label in turns}
    others: dict[str, list[float]] = {label: [] for label in turns}
    began = time.perf_counter()
    for turn in range(options.turns + 1):
        if turn > 1 and time.perf_counter() - began > options.seconds:
            break
        for label, run in turns.items():
            # The first turn is a warm-up.
            speeds, share = _undisturbed(run, options.tries if turn else 1)
            text = f"{turn} {label}: {speeds[0]:.1f}, {speeds[1]:.1f}; others {share:.0%}"
            print(text, file=sys.stderr, flush=True)
            if turn:
                found[label].append(speeds)
                others[label].append(share)
    rows = [
        {
            "engine": label,
            **{
                phase: statistics.median(s[i] for s in speeds)
                for i, phase in enumerate(("prefill", "decode"))
            },
            "all": speeds,
            "others": others[label],
            **known[label],
        }
        for label, speeds in found.items()
    ]
    base = next(row for row in rows if row["engine"] == BASELINE)
    for row in rows:
        row |= {f"{phase}_ratio": row[phase] / base[phase] for phase in ("prefill", "decode")}
    return {
        "machine": platform.processor() or platform.machine(),
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "threads": options.threads,
        "load": os.getloadavg(),
        "prefill": options.prefill,
        "decode": options.decode,
        "turns": len(found[BASELINE]),
        "rows": rows,
    }


def main() -> None:
    """Read the command line, measure, print the table and write the file."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("model", type=Path)
    parser.add_argument("--artifact", type=Path, action="append", default=[])
    parser.add_argument("--llama", type=Path)
    parser.add_argument("--keep", type=Path, default=Path("runs/cpu-peers"))
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--prefill", type=int, default=128)
    parser.add_argument("--decode", type=int, default=64)
    parser.add_argument("--turns", type=int, default=5)
    parser.add_argument("--tries", type=int, default=3, help="of a timing that others disturb")
    parser.add_argument("--seconds", type=float, default=200.0, help="no turn begins after so many")
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    found = measure(options)
    for row in found["rows"]:
        print(
            f"{row['engine']:24} prefill {row['prefill']:7.0f} ({row['prefill_ratio']:.2f}x)  "
            f"decode {row['decode']:6.1f} ({row['decode_ratio']:.2f}x)  "
            f"{row['weight_bytes'] / 1e6:5.0f} MB, others {max(row['others']):.0%}  "
            f"{row.get('execution', '')} {row.get('loop', '')}"
        )
    if options.out:
        options.out.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
