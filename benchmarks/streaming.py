"""Memory of ``evalq quantize`` on a parent of 1.5 GB whose weights stay on disk.

Makes a random Llama in bfloat16, quantizes it in a process of its own with ``--stream`` (and one
without), and prints what the manifests say of memory, beside the size of one decoder layer. The two
artifacts have to be the same.

    OMP_NUM_THREADS=2 python -m benchmarks.streaming --folder /tmp/streaming --method gptq
"""

from __future__ import annotations

import argparse
import json
import shutil
import subprocess
import sys
import time
from pathlib import Path

import torch
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from evalq.quantize.tensorfile import TensorWriter

VOCABULARY = 32000


def make_parent(path: Path, layers: int) -> int:
    """Write a random parent tensor by tensor; returns bytes of one decoder layer."""
    config = LlamaConfig(
        vocab_size=VOCABULARY,
        hidden_size=2048,
        intermediate_size=5632,
        num_hidden_layers=layers,
        num_attention_heads=32,
        num_key_value_heads=8,
        max_position_embeddings=2048,
        tie_word_embeddings=False,
        dtype="bfloat16",
        architectures=["LlamaForCausalLM"],
    )
    with torch.device("meta"):
        shapes = {n: t.shape for n, t in LlamaForCausalLM(config).state_dict().items()}
    path.mkdir(parents=True)
    config.save_pretrained(path)
    _tokenizer().save_pretrained(path)
    generator = torch.Generator().manual_seed(0)
    with TensorWriter(path / "model.safetensors") as writer:
        for name, shape in shapes.items():
            values = torch.ones(shape)
            if len(shape) == 2:
                values = torch.randn(shape, generator=generator) * 0.02
            writer.add(name, values.bfloat16())
        writer.finish()
    return sum(2 * s.numel() for n, s in shapes.items() if ".layers.0." in n)


def _tokenizer() -> PreTrainedTokenizerFast:
    from tokenizers import Tokenizer, models, pre_tokenizers

    words = {"<eos>": 0} | {f"w{i}": i for i in range(1, VOCABULARY)}
    tokenizer = Tokenizer(models.WordLevel(words, unk_token="<eos>"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<eos>")


def quantize(parent: Path, out: Path, method: str, windows: tuple[int, int], stream: bool) -> dict:
    """One ``evalq quantize`` in a process of its own; returns its manifest."""
    text = parent.parent / "text.txt"
    if not text.exists():
        generator = torch.Generator().manual_seed(1)
        ids = torch.randint(1, VOCABULARY, (200_000,), generator=generator).tolist()
        text.write_text(" ".join(f"w{i}" for i in ids))
    command = [
        *(sys.executable, "-m", "evalq.cli.main", "quantize", str(parent), "--out", str(out)),
        *("--method", method, "--bits", "4", "--group-size", "128", "--quiet", "--json"),
        *("--calibration", str(text), "--samples", str(windows[0]), "--length", str(windows[1])),
        "--stream" if stream else "--no-stream",
    ]
    start = time.monotonic()
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(done.stderr)
    manifest = json.loads(done.stdout)
    manifest["wall"] = time.monotonic() - start
    return manifest


def main() -> None:
    """Print one line a run, as JSON."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--folder", type=Path, required=True)
    parser.add_argument("--method", default="gptq")
    parser.add_argument("--layers", type=int, default=14)
    parser.add_argument("--samples", type=int, default=16)
    parser.add_argument("--length", type=int, default=128)
    parser.add_argument("--both", action="store_true", help="without streaming as well")
    args = parser.parse_args()
    shutil.rmtree(args.folder, ignore_errors=True)
    parent = args.folder / "parent"
    layer = make_parent(parent, args.layers)
    size = (parent / "model.safetensors").stat().st_size
    hashes = set()
    for stream in (True, False) if args.both else (True,):
        out = args.folder / f"out-{stream}"
        windows = (args.samples, args.length)
        manifest = quantize(parent, out, args.method, windows, stream)
        hashes.add(manifest["content_hash"])
        row = {
            "method": args.method,
            "stream": stream,
            "parent_bytes": size,
            "layer_bytes_bfloat16": layer,
            "calibration_tokens": args.samples * args.length,
            **manifest["memory"],
            "anonymous_over_a_layer_in_float32": round(
                manifest["memory"]["peak_anonymous_bytes"] / (2 * layer), 2
            ),
            "seconds": round(manifest["seconds"], 1),
            "wall": round(manifest["wall"], 1),
        }
        print(json.dumps(row), flush=True)
    if len(hashes) != 1:
        raise SystemExit("the two artifacts differ")
    shutil.rmtree(args.folder)


if __name__ == "__main__":
    main()
