"""The tokens that every tool gets: one calibration text and two held-out ones, in one file.

    python -m benchmarks.quality.texts smollm2 PARENT_DIR OUT.safetensors --news NEWS.txt
    python -m benchmarks.quality.texts builtin PARENT_DIR OUT.safetensors

``near`` is the held-out part of the source that calibrates. ``other`` is English news for SmolLM2;
for the built-in parent, which knows generated text only, it is its held-out text in languages
other than English, and ``near`` the held-out rest.
"""

from __future__ import annotations

import argparse
import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor
from transformers import AutoTokenizer

from evalq.quantize.calibration import calibration_from_texts
from evalq.texts import Document, resolve_text

SAMPLES, LENGTH, HELD_OUT, SEED = 128, 512, 64, 0


@dataclass(frozen=True, slots=True)
class Texts:
    """Token ids int64 ``[windows, length]``; ``record`` says where each is from and its hash."""

    calibration: Tensor
    near: Tensor
    other: Tensor
    record: dict[str, Any]


def read(path: Path) -> Texts:
    """The tokens that :func:`main` stored."""
    with safe_open(path, framework="pt") as file:
        parts = {name: file.get_tensor(name) for name in ("calibration", "near", "other")}
        return Texts(**parts, record=json.loads(file.metadata()["record"]))


def _sources(parent: str, news: Path | None) -> dict[str, tuple[str, list[str]]]:
    builtin = parent == "builtin"
    calibration = resolve_text("auto", "calibration", builtin, "")
    held_out = resolve_text("auto", "fidelity", builtin, "")
    near: Sequence[Document] = held_out.documents
    if builtin:
        far = [d for d in near if d.slice.startswith("multilingual/") and d.slice[-2:] != "en"]
        near = [d for d in near if d not in far]
        other_name, other = "built-in heldout text, languages but English", [d.text for d in far]
    elif news is not None:
        other_name, other = news.name, [news.read_text(encoding="utf-8")]
    else:
        raise SystemExit("--news is needed: a file of English news, one sentence a line")
    return {
        "calibration": (calibration.name, [d.text for d in calibration.documents]),
        "near": (f"{held_out.name}, held out", [d.text for d in near]),
        "other": (other_name, other),
    }


def _windows(tokenizer: Any, texts: list[str], most: int, name: str) -> Tensor:
    """As many windows of LENGTH as the text fills, at most ``most``."""
    total = sum(len(tokenizer(t, add_special_tokens=False)["input_ids"]) + 1 for t in texts)
    # The last separator is not there.
    count = min(most, (total - 1) // LENGTH)
    return calibration_from_texts(texts, tokenizer, count, LENGTH, SEED, name).tokens


def build(parent: str, directory: Path, out: Path, news: Path | None) -> dict[str, Any]:
    """Cut the windows and store them; returns the record."""
    tokenizer = AutoTokenizer.from_pretrained(directory, local_files_only=True)
    tensors, record = {}, {}
    for part, (name, texts) in _sources(parent, news).items():
        tokens = _windows(tokenizer, texts, SAMPLES if part == "calibration" else HELD_OUT, name)
        digest = hashlib.sha256(tokens.numpy().astype("<i8").tobytes()).hexdigest()
        tensors[part] = tokens
        record[part] = {"source": name, "shape": list(tokens.shape), "sha256": digest}
    out.parent.mkdir(parents=True, exist_ok=True)
    save_file(tensors, out, metadata={"record": json.dumps({"parent": parent, **record})})
    return record


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("parent", choices=("smollm2", "builtin"))
    parser.add_argument("directory", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--news", type=Path)
    given = parser.parse_args()
    record = build(given.parent, given.directory, given.out, given.news)
    print(json.dumps(record, indent=1))


if __name__ == "__main__":
    main()
