"""Power to tell a tier from the parent: phase 2's e-value, and the MMD with a Hamming kernel.

Both look at the very same samples at temperature 1. The second test is that of the package
``model-equality-testing`` (pip install --no-deps): its own permutation test, and
``evalq.stats.mmd``, whose statistic equals it and which permutes within prompts.

    python benchmarks/audit_power.py --calibration cal.json --tier out/int8 --tier out/int4 …
"""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import math
from pathlib import Path

import numpy as np
import torch
from scipy.special import logsumexp

from evalq.audit.api import build_panel
from evalq.audit.calibration import load_calibration
from evalq.audit.evidence import Weigher
from evalq.audit.panel import BASE
from evalq.audit.served import Served
from evalq.plan import EnginePlan
from evalq.serve.engine import Job, ServeEngine
from evalq.stats.mmd import mmd_test

ALPHA = 0.05


def collect(panel, name, probes, each, tokens, seed):
    """Token ids ``[prompt][sample]`` of one model."""
    engine = ServeEngine(panel.model(name))
    jobs = [
        Job(p.ids, tokens, temperature=1.0, seed=seed + 1000 * i + j)
        for i, p in enumerate(probes)
        for j in range(each)
    ]
    done = []
    for start in range(0, len(jobs), 48):
        done += engine.run(jobs[start : start + 48])
    rows = [tuple(t.token for t in d.tokens) for d in done]
    return [rows[i * each : (i + 1) * each] for i in range(len(probes))]


def padded(rows, width):
    out = np.full((len(rows), width), -1, dtype=np.int64)
    for i, row in enumerate(rows):
        out[i, : len(row)] = row
    return out


def log_e(nll, count):
    """Phase 2's largest log e-value, of a table ``[requests, references]``."""
    running = -np.cumsum(nll, axis=0)
    null = np.concatenate([running[:, :1], running[:, count:]], axis=1).max(1)
    alternatives = logsumexp(running[:, 1:count], axis=1) - math.log(count - 1)
    return float((alternatives - null).max())


def published(x, y, p, q, prompts):
    """p of the package's own two-sample permutation test."""
    from model_equality_testing.algorithm import run_two_sample_test
    from model_equality_testing.distribution import CompletionSample

    with contextlib.redirect_stderr(io.StringIO()):
        value, _ = run_two_sample_test(
            CompletionSample(prompts=p, completions=x, m=prompts),
            CompletionSample(prompts=q, completions=y, m=prompts),
            pvalue_type="permutation_pvalue",
            stat_type="mmd_hamming",
            b=99,
        )
    return float(value)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--parent", default="builtin")
    parser.add_argument("--tier", action="append", required=True)
    parser.add_argument("--calibration", type=Path, required=True)
    parser.add_argument("--prompts", type=int, default=12)
    parser.add_argument("--pool", type=int, default=20)
    parser.add_argument("--tokens", type=int, default=32)
    parser.add_argument("--trials", type=int, default=100)
    parser.add_argument("--published", type=int, default=40, help="of the package")
    args = parser.parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    panel = build_panel(args.parent, args.tier, EnginePlan(device="cpu"))
    calibration = load_calibration(args.calibration)
    weigher = Weigher(panel, calibration)
    probes = sorted(calibration.probes, key=lambda p: len(p.ids))[: args.prompts]
    local = collect(panel, BASE, probes, args.pool, args.tokens, 10**6)
    names = calibration.names
    rng = np.random.default_rng(0)
    for name in names:
        served = collect(panel, name, probes, args.pool, args.tokens, 2 * 10**6)
        entries = [
            (i, probes[i].ids, Served(row, (), "ids"), len(row))
            for i, rows in enumerate(served)
            for row in rows
        ]
        weighed = weigher.weigh("sampled", entries, False)
        nll = np.array([w.nll for w in weighed]).reshape(len(probes), args.pool, -1)
        for each in (2, 5, 10):
            hits = np.zeros(3)
            for trial in range(args.trials):
                picks = [rng.permutation(args.pool)[:each] for _ in probes]
                others = [rng.permutation(args.pool)[:each] for _ in probes]
                table = np.concatenate([nll[i, k] for i, k in enumerate(picks)])
                hits[0] += log_e(rng.permutation(table), len(names)) >= math.log(1 / ALPHA)
                mine = [served[i][k] for i, ks in enumerate(picks) for k in ks]
                theirs = [local[i][k] for i, ks in enumerate(others) for k in ks]
                labels = np.repeat(np.arange(len(probes)), each)
                x, y = padded(mine, args.tokens), padded(theirs, args.tokens)
                hits[1] += mmd_test(x, y, labels, labels, rng, 199).p <= ALPHA
                if each == 5 and trial < args.published:
                    hits[2] += published(x, y, labels, labels, len(probes)) <= ALPHA
            line = {
                "served": name,
                "requests": len(probes) * each,
                "tokens": round(float(np.mean([len(r) for rs in served for r in rs])))
                * len(probes)
                * each,
                "e_value": hits[0] / args.trials,
                "mmd": hits[1] / args.trials,
                "package": hits[2] / args.published if each == 5 else None,
            }
            print(json.dumps(line), flush=True)


if __name__ == "__main__":
    main()
