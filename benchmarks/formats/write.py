"""Write a small parent and artifacts of it in every GPTQ and AWQ layout, with their logits."""

from __future__ import annotations

import sys
from pathlib import Path

import torch
from safetensors.torch import save_file
from transformers import LlamaConfig, LlamaForCausalLM

from evalq.artifacts.api import FORMATS
from evalq.artifacts.write import Contents, StoredTypes, write_model
from evalq.kernels.packing import QuantizedWeight
from evalq.quantize.api import quantize
from evalq.quantize.calibration import Calibration
from evalq.schema import PerGroup, Scheme, WeightScheme
from tests.artifacts.helpers import random_layers, tiny_tokenizer

LAYOUTS = (
    *(("gptq", bits, True) for bits in (2, 3, 4, 8)),
    *(("gptq-v2", bits, False) for bits in (3, 4, 8)),
    ("gptq-v2", 4, True),
    ("awq", 4, True),
    ("awq", 4, False),
)
TRAINED = (("gptq", 4, True), ("gptq-v2", 3, False), ("awq", 4, False))
TOKENS = torch.arange(1, 33)[None]


def parent() -> LlamaForCausalLM:
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=64,
        hidden_size=128,
        intermediate_size=256,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=64,
    )
    return LlamaForCausalLM._from_config(config, dtype=torch.float16).eval()


def trained(scheme: WeightScheme) -> dict[str, QuantizedWeight]:
    """Layers as the method gptq+signround+kd leaves them."""
    generator = torch.Generator().manual_seed(1)
    tokens = torch.randint(1, 64, (16, 48), generator=generator)
    options = {"scale_dtype": "float16", "rounding_steps": 50, "epochs": 2}
    calibration = Calibration.from_tokens(tokens, "random")
    made = quantize(parent().float(), Scheme(scheme), "gptq+signround+kd", calibration, options)
    assert not made.dense
    return dict(made.layers)


def write(directory: Path, name: str, layers: dict[str, QuantizedWeight]) -> None:
    """One artifact, and beside it the logits in float32."""
    directory.mkdir()
    module = parent()
    contents = Contents(module, tiny_tokenizer(), layers, {}, None, StoredTypes(torch.float16))
    write_model(contents, FORMATS.get(name)(), directory)
    module = module.float()
    for layer, weight in layers.items():
        module.get_submodule(layer).weight.data = weight.dequantize()
    with torch.no_grad():
        logits = module(TOKENS).logits
    save_file({"logits": logits}, f"{directory}.logits")


def main(out: Path) -> None:
    for folder in ("parent", "ours", "theirs"):
        (out / folder).mkdir(parents=True)
    parent().save_pretrained(out / "parent")
    tiny_tokenizer().save_pretrained(out / "parent")
    for name, bits, symmetric in LAYOUTS:
        scheme = WeightScheme(bits, PerGroup(32), symmetric)
        layers = random_layers(parent(), scheme, torch.float16)
        write(out / "ours" / f"{name}-w{bits}{'' if symmetric else '-asym'}", name, layers)
    for name, bits, symmetric in TRAINED:
        layers = trained(WeightScheme(bits, PerGroup(32), symmetric))
        write(out / "ours" / f"{name}-w{bits}-trained", name, layers)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
