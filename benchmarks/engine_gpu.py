"""Whole decoding steps on a GPU: a Llama-3-8B-shaped model of random weights, at each width.

    python -m benchmarks.engine_gpu --bits 16 8 4 3 2 --batch 1 8

Prompt and answer are 512 and 128 tokens. Every width runs in the same loop (prefill in torch, one
CUDA graph a step), all in turn within one repeat; products of queries, keys and values, and of gate
and up, are joined at every width. ``OUT/engine.json`` holds all figures; ``OUT`` is ``--out``.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks.kernels_gpu import copy_bandwidth, random_weight, timed
from evalq.kernels.linear import QuantizedLinear
from evalq.kernels.op import pack
from evalq.models.lean import eager, graph
from evalq.models.lean.eager import Slots
from evalq.models.lean.spec import Block, Decoder, Linear

HIDDEN, INNER, LAYERS, HEADS, FEW, SIZE, VOCABULARY = 4096, 14336, 32, 32, 8, 128, 128256


class Rotary(nn.Module):
    def forward(self, like: Tensor, positions: Tensor) -> tuple[Tensor, Tensor]:
        steps = torch.arange(0, SIZE, 2, device=like.device, dtype=torch.float32)
        angles = positions[..., None].float() / 500000.0 ** (steps / SIZE)
        both = torch.cat([angles, angles], -1)
        return both.cos(), both.sin()


def product(columns: int, out: int, bits: int) -> Linear:
    if bits == 16:
        layer = nn.Linear(columns, out, bias=False, device="meta")
        weight = torch.randn(out, columns, device="cuda", dtype=torch.bfloat16) * columns**-0.5
        layer.weight = nn.Parameter(weight, requires_grad=False)
        return layer
    weight = random_weight(bits, 128, True, (out, columns), torch.bfloat16)
    # Codes without the lowest have their zero as mean: with any other, every product has a part
    # along one direction whose sign rounding may turn.
    codes = torch.where(weight.codes == 0, 1 << (bits - 1), weight.codes.int()).to(torch.uint8)
    scales = weight.scales * (columns**-0.5 / 0.011 / 2 ** (bits - 1) * 1.7)
    weight = type(weight)(codes, scales.to(torch.bfloat16), None, weight.scheme, (out, columns))
    return QuantizedLinear(pack(weight, "cuda", torch.bfloat16))


def model(bits: int, layers: int, head: Linear, embedding: Tensor) -> Decoder:
    one = torch.ones(HIDDEN, dtype=torch.bfloat16, device="cuda")
    blocks = tuple(
        Block(
            (product(HIDDEN, (HEADS + 2 * FEW) * SIZE, bits),),
            product(HIDDEN, HIDDEN, bits),
            (product(HIDDEN, 2 * INNER, bits),),
            product(INNER, HIDDEN, bits),
            one, one, None, None,
        )
        for _ in range(layers)
    )  # fmt: skip
    return Decoder(
        blocks, embedding, one, head, HEADS, FEW, SIZE, 1e-5, Rotary(), torch.device("cuda"),
        torch.bfloat16, 8192,
    )  # fmt: skip


def bytes_of(decoder: Decoder) -> int:
    layers = [p for b in decoder.blocks for p in (*b.qkv, b.o, *b.gate_up, b.down)]
    packed = sum(p.packed.bytes for p in layers if isinstance(p, QuantizedLinear))
    return packed + sum(
        p.weight.nbytes for p in [*layers, decoder.head] if isinstance(p, nn.Linear)
    )


class Timed:
    """One width at one batch: its slots and its graph."""

    def __init__(self, decoder: Decoder, batch: int, prefill: int, decode: int) -> None:
        self.decoder, self.decode = decoder, decode
        self.prompt = torch.randint(VOCABULARY, (batch, prefill), device="cuda")
        self.slots = Slots(decoder, batch, prefill + decode)
        self.step = graph.GraphStep(decoder, self.slots)
        self.samples: list[tuple[float, float]] = []

    def run(self) -> None:
        self.slots.filled = 0
        torch.cuda.synchronize()
        began = time.perf_counter()
        token = eager.read(self.decoder, self.slots, self.prompt).argmax(-1)
        torch.cuda.synchronize()
        filled = time.perf_counter()
        for _ in range(self.decode):
            token = self.step(token).argmax(-1)
        torch.cuda.synchronize()
        self.samples.append((filled - began, time.perf_counter() - filled))

    def check(self) -> list[float]:
        """The fused step against the plain one in torch: relative difference of the logits of each
        row, the median and the largest; and how often the plain and the fused step moved."""
        at = torch.tensor([self.prompt.shape[1]], device="cuda")
        token = self.prompt[:, 0]
        plains, fused = [], []
        for _ in range(4):
            with torch.inference_mode():
                plains.append(graph.step(self.decoder, self.slots, token, at).float())
            self.slots.filled = int(at)
            fused.append(self.step(token).float())
        rows = (fused[0] - plains[0]).norm(dim=-1) / plains[0].norm(dim=-1)
        moved = [
            float(sum(not torch.equal(a, every[0]) for a in every)) for every in (plains, fused)
        ]
        return [round(float(rows.median()), 5), round(float(rows.max()), 5), *moved]


def products_alone(decoder: Decoder, batch: int) -> float:
    """Microseconds of one step's products by themselves, in a graph, each layer's own weights."""
    calls: list[Any] = []
    for block in decoder.blocks:
        for layer in (*block.qkv, block.o, *block.gate_up, block.down):
            x = torch.randn(batch, layer.in_features, device="cuda", dtype=torch.bfloat16)
            calls.append(lambda layer=layer, x=x: layer(x))
    x = torch.randn(batch, HIDDEN, device="cuda", dtype=torch.bfloat16)
    calls.append(lambda: decoder.head(x))
    with torch.inference_mode():
        return timed(calls) * len(calls)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--bits", type=int, nargs="+", default=[16, 8, 4, 3, 2])
    parser.add_argument("--batch", type=int, nargs="+", default=[1])
    parser.add_argument("--layers", type=int, default=LAYERS)
    parser.add_argument("--prefill", type=int, default=512)
    parser.add_argument("--decode", type=int, default=128)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--out", type=Path, default=Path("."))
    args = parser.parse_args()
    torch.manual_seed(0)
    head = product(HIDDEN, VOCABULARY, 16)
    embedding = torch.randn(VOCABULARY, HIDDEN, device="cuda", dtype=torch.bfloat16)
    decoders = {bits: model(bits, args.layers, head, embedding) for bits in args.bits}
    bandwidth = copy_bandwidth()
    print(f"{torch.cuda.get_device_name()}, torch {torch.__version__}, copy {bandwidth:.0f} GB/s")
    rows = []
    for batch in args.batch:
        every = {b: Timed(d, batch, args.prefill, args.decode) for b, d in decoders.items()}
        for repeat in range(args.repeats + 1):
            for one in every.values():
                one.run()
                if not repeat:
                    one.samples.clear()
        base = None
        for bits, one in every.items():
            first, rest = (statistics.median(s) for s in zip(*one.samples, strict=True))
            speed = batch * args.decode / rest
            base = base or speed
            row = {
                "bits": bits, "batch": batch, "kernels": one.step.kernels,
                "decode_tokens_per_second": round(speed, 1), "ratio": round(speed / base, 3),
                "step_us": round(1e6 * rest / args.decode, 1),
                "products_us": round(products_alone(decoders[bits], batch), 1),
                "first_token_ms": round(1e3 * first, 2),
                "prefill_tokens_per_second": round(batch * args.prefill / first),
                "weights_gb": round(bytes_of(decoders[bits]) / 1e9, 3),
                "step_gbs": round(bytes_of(decoders[bits]) / rest * args.decode / 1e9),
                "difference": one.check(),
            }  # fmt: skip
            rows.append(row)
            print(json.dumps(row), flush=True)
        del every
    found = {"gpu": torch.cuda.get_device_name(), "torch": torch.__version__, "copy_gbs": bandwidth}
    (args.out / "engine.json").write_text(json.dumps({**found, "rows": rows}, indent=1))


if __name__ == "__main__":
    main()
