"""The benches time what they say, and refuse what they cannot."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from evalq.cost.bench import Subject, _products, bench_engine, ratios
from evalq.cost.bench_kernels import bench_kernels
from evalq.errors import EvalqError, KernelError, MissingDependencyError, PlanError
from evalq.kernels import native
from evalq.kernels.linear import pack_module
from evalq.models.load import load_parent
from evalq.plan import EnginePlan
from evalq.schema import PerGroup, WeightScheme
from tests.kernels.weights import make_weight

needs_compiler = pytest.mark.skipif(native.why_not() is not None, reason="no C compiler")
W4 = WeightScheme(4, PerGroup(64))


def test_ratios_are_to_the_first_of_the_same_batch() -> None:
    rows = [
        {"batch": b, "prefill_tokens_per_second": p, "decode_tokens_per_second": d}
        for b, p, d in ((1, 10.0, 2.0), (1, 5.0, 6.0), (8, 20.0, 4.0), (8, 30.0, 2.0))
    ]
    found = ratios(rows)
    assert [r["prefill_ratio"] for r in found] == [1, 0.5, 1, 1.5]
    assert [r["decode_ratio"] for r in found] == [1, 3, 1, 0.5]


def test_an_engine_is_timed_in_every_loop_and_batch() -> None:
    model = load_parent("builtin", EnginePlan(device="cpu"))
    subjects = [Subject("base", model, "transformers"), Subject("lean", model, "eager")]
    rows = bench_engine(subjects, (1, 2), 8, 2, 2, clock="cpu")
    assert [(r["subject"], r["batch"], r["loop"]) for r in rows] == [
        ("base", 1, "transformers"), ("lean", 1, "eager"),
        ("base", 2, "transformers"), ("lean", 2, "eager"),
    ]  # fmt: skip
    held = [*model.module.parameters(), *model.module.buffers()]
    weights = sum(tensor.numel() * 4 for tensor in held)
    for row in rows:
        assert row["prefill_tokens_per_second"] == row["batch"] * 8 / row["first_token_seconds"]
        # 8 layers, 4 heads of 32, keys and values in float32, ten tokens a row; and activations.
        cache = row["batch"] * 10 * 8 * 4 * 32 * 2 * 4
        assert weights + cache < row["memory_bytes"] < weights + 3 * cache + 2**20
        assert row["prefill_products"] == "dense"
    with pytest.raises(PlanError, match="clock"):
        bench_engine(subjects, (1,), 8, 2, 1, clock="sun")
    with pytest.raises(PlanError, match="nothing to time"):
        bench_engine((), (1,), 8, 2, 1)


@needs_compiler
def test_packed_layers_say_what_multiplies_a_prompt() -> None:
    module = torch.nn.Sequential(torch.nn.Linear(64, 32))
    pack_module(module, {"0": make_weight(4, 64, True, (32, 64))}, "cpu", torch.float32)
    packed: Any = SimpleNamespace(module=module)
    assert _products(packed, 1) == "codes"
    assert _products(packed, 128) == "dequantize, then torch"


@needs_compiler
def test_kernels_are_timed_beside_the_dense_product_and_their_peers() -> None:
    rows = bench_kernels(
        [W4, WeightScheme(2, PerGroup(64))], [(128, 64)], (1, 32),
        against=("torch", "torch-int4", "reference"), repeats=3, clock="cpu",
    )  # fmt: skip
    assert [(r["scheme"], r["M"], r["path"].split(",")[0]) for r in rows] == [
        ("w4-g64", 1, "codes"), ("w4-g64", 32, "dequantize"),
        ("w2-g64", 1, "codes"), ("w2-g64", 32, "dequantize"),
    ]  # fmt: skip
    for row in rows:
        assert row["kernel"] == "native"
        assert row["ratio"] == row["dense_us"] / row["evalq_us"]
        assert row["reference_us"] > 0
    assert "torch-int4_us" in rows[0]
    assert "torch-int4_us" not in rows[2], "it has no two bits"


def test_peers_that_are_not_there_are_refused() -> None:
    with pytest.raises(PlanError, match="unknown peer"):
        bench_kernels([W4], [(64, 16)], (1,), against=("native4",))
    for name in ("gemlite", "marlin"):
        with pytest.raises(KernelError, match=f"{name} runs on a CUDA device only"):
            bench_kernels([W4], [(64, 16)], (1,), against=(name,))
        with pytest.raises(MissingDependencyError, match=f"{name} is not installed") as caught:
            bench_kernels([W4], [(64, 16)], (1,), against=(name,), device="cuda")
        assert "pip install" in str(caught.value.hint)
    with pytest.raises(EvalqError, match="no kernel runs"):
        bench_kernels([W4], [(64, 16)], (1,), dtype=torch.float16)


def evalq(*args: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "evalq.cli.main", *args]
    return subprocess.run(command, capture_output=True, text=True, check=False)


@needs_compiler
def test_the_verbs(tmp_path: Path) -> None:
    done = evalq("bench", "kernels", "--scheme", "4:g64", "--shape", "128x64", "--rows", "1",
                 "--repeats", "3", "--threads", "1", "--json")  # fmt: skip
    assert done.returncode == 0, done.stderr
    found: dict[str, Any] = json.loads(done.stdout)
    assert found["machine"]["threads"] == 1
    assert found["rows"][0]["scheme"] == "w4-g64"
    done = evalq("bench", "engine", "--prefill", "4", "--decode", "2", "--repeats", "1",
                 "--threads", "1")  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "parent, transformers" in done.stdout
    assert "decode x" in done.stdout
    done = evalq("bench", "kernels", "--shape", "12")
    assert done.returncode == 2
    assert "KxN" in done.stderr


def test_the_verb_cost(tmp_path: Path) -> None:
    config = {"model_type": "llama", "hidden_size": 64, "intermediate_size": 96, "vocab_size": 50,
              "num_hidden_layers": 2, "num_attention_heads": 4}  # fmt: skip
    path = tmp_path / "config.json"
    path.write_text(json.dumps(config))
    done = evalq("cost", str(path), "--bits", "4:g32:asym", "--context", "100", "--gpu", "RTX 4090",
                 "--price-per-hour", "0.5")  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "modelled" in done.stdout
    assert "w4-g32-asym" in done.stdout
    assert "per million tokens" in done.stdout
    done = evalq("cost", str(path), "--price-per-hour", "0.5")
    assert done.returncode == 2
    assert "--gpu" in done.stderr
    assert "Traceback" not in done.stderr


def test_lists_of_kernels_and_engines() -> None:
    done = evalq("list", "engines", "--json")
    names = {row["name"] for row in json.loads(done.stdout)}
    assert {"transformers", "endpoint", "native", "eager", "graph"} <= names
    done = evalq("list", "kernels", "--shape", "96x64", "--json")
    found = json.loads(done.stdout)
    assert {row["name"] for row in found["kernels"]} >= {"native", "triton", "reference"}
    assert all(row["why"] for row in found["choices"])
    done = evalq("list", "kernels", "--device", "cuda")
    if not torch.cuda.is_available():
        assert done.returncode == 2
        assert "no CUDA device" in done.stderr
