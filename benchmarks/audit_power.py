"""Power to tell a tier from the parent: phase 2's likelihoods, and the MMD with a Hamming kernel.

All look at the very same samples at temperature 1, at a level of .05:

- ``e_value``: phase 2 as an audit uses it, which may be looked at after every request;
- ``ratio``: the same likelihood ratio at the end only, its level simulated with samples of the
  parent drawn here, which is what the MMD's permutations are to it;
- ``mmd``: ``evalq.stats.mmd``, which permutes within prompts;
- ``package``: PyPI's ``model-equality-testing`` (pip install --no-deps), its own permutations.

Every trial draws its requests from a pool of samples, without replacement.

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
    return float(log_ratio(running, count).max())


def log_ratio(likelihood, count):
    """Tiers on average over the likeliest benign way, of ``[..., references]`` log-likelihoods."""
    null = np.concatenate([likelihood[..., :1], likelihood[..., count:]], axis=-1).max(-1)
    return logsumexp(likelihood[..., 1:count], axis=-1) - math.log(count - 1) - null


def draw(rng, pool, each, prompts):
    """Which of a pool's samples of every prompt a trial sees: ``[prompts, each]``."""
    return np.argsort(rng.random((prompts, pool)), axis=1)[:, :each]


def ratio_test(nll, local, each, count, rng, draws=199):
    """p of the ratio at the end, among draws from the parent's own samples ``local``."""
    prompts, pool = local.shape[:2]
    rows = np.arange(prompts)[:, None]
    sums = [-local[rows, draw(rng, pool, each, prompts)].sum((0, 1)) for _ in range(draws)]
    null = log_ratio(np.array(sums), count)
    return float((1 + (null >= log_ratio(-nll.sum(0), count)).sum()) / (draws + 1))


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


def weighed(weigher, probes, rows):
    """``[prompts, pool, references]`` of summed -log p."""
    entries = [
        (i, probes[i].ids, Served(row, (), "ids"), len(row))
        for i, samples in enumerate(rows)
        for row in samples
    ]
    found = weigher.weigh("sampled", entries, False)
    return np.array([w.nll for w in found]).reshape(len(probes), len(rows[0]), -1)


def trials(args, probes, served, local, nll, nll_local, each, count):
    """Shares of the trials that each test rejects."""
    rng = np.random.default_rng([args.seed, each])
    prompts = len(probes)
    labels = np.repeat(np.arange(prompts), each)
    hits = dict.fromkeys(("e_value", "ratio", "mmd", "package"), 0)
    for _ in range(args.trials):
        picks, others = (draw(rng, args.pool, each, prompts) for _ in range(2))
        table = nll[np.arange(prompts)[:, None], picks].reshape(prompts * each, -1)
        hits["e_value"] += log_e(rng.permutation(table), count) >= math.log(1 / ALPHA)
        hits["ratio"] += ratio_test(table, nll_local, each, count, rng) <= ALPHA
        x = padded([served[i][k] for i, ks in enumerate(picks) for k in ks], args.tokens)
        y = padded([local[i][k] for i, ks in enumerate(others) for k in ks], args.tokens)
        hits["mmd"] += mmd_test(x, y, labels, labels, rng, 199).p <= ALPHA
        hits["package"] += published(x, y, labels, labels, prompts) <= ALPHA
    return {name: int(value) / args.trials for name, value in hits.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--parent", default="builtin")
    parser.add_argument("--tier", action="append", required=True)
    parser.add_argument("--calibration", type=Path, required=True)
    parser.add_argument("--served", action="append", help="only these; by default all")
    parser.add_argument("--prompts", type=int, default=12)
    parser.add_argument("--pool", type=int, default=200)
    parser.add_argument("--tokens", type=int, default=32)
    parser.add_argument("--trials", type=int, default=100)
    parser.add_argument("--each", type=int, action="append", help="samples of a prompt")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(args.seed)
    panel = build_panel(args.parent, args.tier, EnginePlan(device="cpu"))
    calibration = load_calibration(args.calibration)
    weigher = Weigher(panel, calibration)
    probes = sorted(calibration.probes, key=lambda p: len(p.ids))[: args.prompts]
    local = collect(panel, BASE, probes, args.pool, args.tokens, 10**6)
    nll_local = weighed(weigher, probes, local)
    names = calibration.names
    for name in args.served or names:
        served = collect(panel, name, probes, args.pool, args.tokens, 2 * 10**6)
        nll = weighed(weigher, probes, served)
        length = float(np.mean([len(r) for rs in served for r in rs]))
        for each in args.each or (2, 5, 10):
            found = trials(args, probes, served, local, nll, nll_local, each, len(names))
            requests = len(probes) * each
            line = {"served": name, "requests": requests, "tokens": round(length * requests)}
            print(json.dumps({**line, **found}), flush=True)


if __name__ == "__main__":
    main()
