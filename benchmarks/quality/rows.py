"""What evalq's own runs share: the parent, the judge, and the form of a result line."""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from benchmarks.quality import texts as stored
from benchmarks.quality.evaluate import Judge

__all__ = ["Scheduled", "append", "load"]


def load(directory: Path, device: str) -> Any:
    """The parent in its own dtype."""
    from transformers import AutoModelForCausalLM

    module: Any = AutoModelForCausalLM.from_pretrained(
        directory, local_files_only=True, dtype="auto"
    )
    return module.to(device).eval().requires_grad_(False)


def append(out: Path, row: Mapping[str, Any]) -> None:
    """Add a line to ``out`` and print it."""
    with out.open("a", encoding="utf-8") as file:
        file.write(json.dumps(row) + "\n")
    kl = f"near {row['near']['kl']:.4f}  other {row['other']['kl']:.4f}"
    print(f"{row['scheme']:12} {row['label']:62} {kl}  {row['seconds']} s", flush=True)


@dataclass(slots=True)
class Scheduled:
    """One parent at one scheme, and where its lines go."""

    module: Any
    texts: stored.Texts
    judge: Judge
    scheme: str
    out: Path

    @staticmethod
    def arguments(parser: argparse.ArgumentParser) -> None:
        """What every run is told."""
        parser.add_argument("parent", type=Path)
        parser.add_argument("texts", type=Path)
        parser.add_argument("out", type=Path)
        parser.add_argument("--bits", type=int, required=True)
        parser.add_argument("--group", type=int, required=True)
        parser.add_argument("--asym", action="store_true")

    @classmethod
    def of(cls, given: argparse.Namespace) -> Scheduled:
        """Load what ``given`` names; on a GPU where there is one."""
        module = load(given.parent, "cuda" if torch.cuda.is_available() else "cpu")
        texts = stored.read(given.texts)
        judge = Judge(module, {"near": texts.near, "other": texts.other})
        scheme = f"w{given.bits}-g{given.group}-{'asym' if given.asym else 'sym'}"
        return cls(module, texts, judge, scheme, given.out)

    @contextmanager
    def timed(self) -> Iterator[dict[str, Any]]:
        """A note that holds the seconds of its block afterwards."""
        note: dict[str, Any] = {}
        begin = time.monotonic()
        yield note
        note["seconds"] = round(time.monotonic() - begin, 1)

    def report(self, label: str, tensors: Mapping[str, Tensor], note: Mapping[str, Any]) -> None:
        """Judge a variant and add its line."""
        row: dict[str, Any] = {
            "parent": self.texts.record["parent"],
            "scheme": self.scheme,
            "tool": "evalq",
            "label": label,
            **note,
        }
        found = self.judge.judge(self.judge.variant(tensors))
        append(self.out, row | {name: asdict(quality) for name, quality in found.items()})
