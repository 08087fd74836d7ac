"""Calibration text: the tokens that methods look at."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from evalq.errors import QuantizationError

__all__ = ["Calibration", "calibration_from_texts", "overlap_warning"]


@dataclass(frozen=True, slots=True, eq=False)
class Calibration:
    """Windows of text as token ids.

    Args:
        tokens: int64 ``[samples, length]``.
        source: where the text is from, for the record.
        hash: SHA-256 of shape and ids.
        seed: that the windows were drawn with.
        parts: of a mixture, what each source gave (source, share, windows, hash).
        overlap: how many evaluated items were looked for in the text, and found.
    """

    tokens: Tensor
    source: str
    hash: str
    seed: int = 0
    parts: tuple[Mapping[str, Any], ...] = ()
    overlap: Mapping[str, Any] | None = None

    @property
    def samples(self) -> int:
        """Windows."""
        return int(self.tokens.shape[0])

    @property
    def length(self) -> int:
        """Tokens a window."""
        return int(self.tokens.shape[1])

    @classmethod
    def from_tokens(cls, tokens: Tensor, source: str, seed: int = 0) -> Calibration:
        """Calibration on given ids ``[samples, length]``.

        Raises:
            QuantizationError: not a filled matrix of integers.
        """
        if tokens.ndim != 2 or tokens.numel() == 0 or tokens.is_floating_point():
            raise QuantizationError(
                f"calibration tokens must be a filled [samples, length] matrix of ids, not "
                f"{tokens.dtype} {tuple(tokens.shape)}"
            )
        tokens = tokens.to("cpu", torch.int64).contiguous()
        digest = hashlib.sha256(f"{tuple(tokens.shape)}:".encode())
        digest.update(tokens.numpy().astype("<i8").tobytes())
        return cls(tokens, source, digest.hexdigest(), seed)

    def record(self) -> dict[str, Any]:
        """What a manifest says of it."""
        return {
            "source": self.source,
            "hash": self.hash,
            "samples": self.samples,
            "length": self.length,
            "seed": self.seed,
            "parts": [dict(part) for part in self.parts],
            "overlap": None if self.overlap is None else dict(self.overlap),
        }


def calibration_from_texts(
    texts: Iterable[str], tokenizer: Any, samples: int, length: int, seed: int, source: str
) -> Calibration:
    """``samples`` windows of ``length`` tokens that do not overlap, drawn from the joined texts.

    Texts follow each other with the tokenizer's end-of-text token between them, where it has one.
    Where the tokenizer starts every text with a token of its own (BOS), every window starts with
    it and holds ``length - 1`` tokens of text.

    Raises:
        QuantizationError: no text, or too little for that many windows.
    """
    documents = [text for text in texts if text.strip()]
    if not documents:
        raise QuantizationError(f"{source} holds no text", hint="Calibration needs some prose.")
    bos = _added_bos(tokenizer)
    eos = getattr(tokenizer, "eos_token_id", None)
    ids: list[int] = []
    for text in documents:
        if ids and eos is not None:
            ids.append(int(eos))
        ids.extend(tokenizer(text, add_special_tokens=False)["input_ids"])
    width = length - (bos is not None)
    slots = len(ids) // width if width > 0 else 0
    if slots < samples:
        raise QuantizationError(
            f"{source} holds {len(ids)} tokens: too little for {samples} windows of {length}",
            hint=f"Give more text, or ask for at most {slots} windows of that length."
            if slots
            else "Give more text, or shorter windows.",
        )
    stream = np.asarray(ids, dtype=np.int64)
    rng = np.random.default_rng(seed)
    offset = int(rng.integers(0, len(ids) - slots * width + 1))
    chosen = np.sort(rng.choice(slots, size=samples, replace=False))
    windows = np.stack([stream[offset + s * width : offset + (s + 1) * width] for s in chosen])
    if bos is not None:
        windows = np.concatenate([np.full((samples, 1), bos, dtype=np.int64), windows], axis=1)
    return Calibration.from_tokens(torch.from_numpy(windows), source, seed)


def overlap_warning(record: Mapping[str, Any] | None) -> str:
    """What reports say of a calibration record whose text holds evaluated items, else ``""``."""
    overlap = (record or {}).get("overlap") or {}
    if not overlap.get("items"):
        return ""
    return (
        f"The calibration text holds {overlap['items']} of the {overlap['checked_items']} "
        "evaluated items (allowed by --allow-overlap): what methods with calibration lose on "
        "them is understated."
    )


def _added_bos(tokenizer: Any) -> int | None:
    """The token that the tokenizer puts before every text by itself, or ``None``."""
    bos = getattr(tokenizer, "bos_token_id", None)
    if bos is None:
        return None
    ids = tokenizer("a")["input_ids"]
    return int(bos) if ids and ids[0] == bos else None
