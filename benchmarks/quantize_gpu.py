"""Seconds a decoder layer of GPTQ and AWQ on a GPU, in the shapes of Llama-3-8B.

Random weights in bfloat16, calibration of 128 x 2048 random tokens, W4 in groups of 128. Two layers
are quantized, the second is timed (the first compiles kernels), and the whole model is that time 32
times. The fused kernels are checked against the loop over columns first.

    python -m benchmarks.quantize_gpu --out quantize_gpu.json
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path
from typing import Any

import torch

from evalq.quantize.api import quantize
from evalq.quantize.calibration import Calibration
from evalq.quantize.columns import descend_block, round_block
from evalq.schema import PerGroup, Scheme, WeightScheme

LAYERS_OF_8B = 32


def model(layers: int) -> Any:
    """Llama-3-8B with few layers and a small vocabulary, which the layers do not see."""
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(
        vocab_size=8192,
        hidden_size=4096,
        intermediate_size=14336,
        num_hidden_layers=layers,
        num_attention_heads=32,
        num_key_value_heads=8,
        max_position_embeddings=8192,
        rope_theta=500000.0,
    )
    torch.manual_seed(0)
    with torch.device("cuda"):
        return LlamaForCausalLM(config).to(torch.bfloat16).eval()


def check_kernels() -> dict[str, float]:
    """Share of codes that the fused kernels give as the loop over columns does."""
    generator = torch.Generator().manual_seed(0)
    columns, out = 128, 1000
    rest = torch.randn(columns, out, generator=generator)
    square = torch.randn(columns, 512, generator=generator)
    hessian = square @ square.T / 512
    upper = torch.linalg.cholesky(
        torch.cholesky_inverse(torch.linalg.cholesky(hessian)), upper=True
    )
    scales = 0.1 + torch.rand(columns, out, generator=generator)
    zeros = torch.full((columns, out), 8.0)
    found = {}
    one, two = torch.empty_like(rest), torch.empty_like(rest).cuda()
    round_block(rest.clone(), upper, scales, zeros, one, 15)
    gpu = [t.cuda() for t in (rest, upper, scales, zeros)]
    round_block(*gpu, two, 15)
    found["round"] = float((one == two.cpu()).float().mean())
    one = torch.randint(0, 16, (columns, out), generator=generator).float()
    two = one.cuda()
    descend_block(rest.clone(), hessian, scales, one, 15)
    descend_block(rest.cuda(), hessian.cuda(), scales.cuda(), two, 15)
    found["descend"] = float((one == two.cpu()).float().mean())
    return found


def timed(method: str, options: dict[str, Any], tokens: torch.Tensor) -> dict[str, Any]:
    """Seconds of the second layer, peak memory, and the error that was left."""
    parent = model(2)
    torch.cuda.reset_peak_memory_stats()
    marks: list[float] = []

    def mark(_name: str, _share: float) -> None:
        torch.cuda.synchronize()
        marks.append(time.perf_counter())

    scheme = Scheme(WeightScheme(4, PerGroup(128), symmetric=True))
    calibration = Calibration.from_tokens(tokens, "random")
    done = quantize(parent, scheme, method, calibration, {**options, "batch_tokens": 16384},
                    progress=mark)  # fmt: skip
    errors = [r.output_error for r in done.reports if r.output_error is not None]
    layer = marks[2] - marks[1]
    return {
        "method": method,
        "options": options,
        "seconds_first_layer": marks[1] - marks[0],
        "seconds_a_layer": layer,
        "whole_model_seconds": layer * LAYERS_OF_8B,
        "peak_gib": torch.cuda.max_memory_allocated() / 2**30,
        "mean_output_error": sum(errors) / len(errors),
    }


def main() -> None:
    """Time every method and print a JSON object a line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--samples", type=int, default=128)
    parser.add_argument("--length", type=int, default=2048)
    args = parser.parse_args()
    tokens = torch.randint(0, 8192, (args.samples, args.length),
                           generator=torch.Generator().manual_seed(1))  # fmt: skip
    rows: list[dict[str, Any]] = [
        {"device": torch.cuda.get_device_name(), "torch": torch.__version__}
    ]
    rows.append({"kernels": check_kernels()})
    print(rows, flush=True)
    for method, options in (("gptq", {"refine": 0}), ("gptq", {"refine": 2}), ("awq", {})):
        torch.cuda.empty_cache()
        rows.append(timed(method, options, tokens))
        print(json.dumps(rows[-1]), flush=True)
        args.out.write_text(json.dumps(rows, indent=2), encoding="utf-8")


if __name__ == "__main__":
    main()
