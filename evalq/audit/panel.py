"""The models that are held locally: the parent in several benign ways, and every listed tier."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from evalq.errors import NonFiniteError, PlanError
from evalq.plan import EnginePlan
from evalq.schema import content_hash

if TYPE_CHECKING:
    import torch

    from evalq.models.base import LoadedModel

__all__ = ["BASE", "BENIGN", "Benign", "Member", "Panel", "Row", "TokenScores", "bits_of"]

Floats = NDArray[np.float64]
BASE = "parent"
_BLOCK = 32


@dataclass(frozen=True, slots=True)
class Benign:
    """A way to run a model that nobody would call another precision of it.

    Args:
        name: label.
        dtype: what products are computed in.
        attention: transformers' implementation.
        batch: rows a pass.
        threads: of the CPU; ``None`` leaves them.
        input_bits: inputs of linear layers rounded to so many bits with a scale for each 32 of them
            (llama.cpp's CPU kernels take 8); ``None`` leaves them.
    """

    name: str
    dtype: str = "float32"
    attention: str = "sdpa"
    batch: int = 16
    threads: int | None = None
    input_bits: int | None = None


BENIGN = (
    Benign("float32-batch1", batch=1),
    Benign("float32-eager", attention="eager"),
    Benign("float32-2threads", threads=2),
    Benign("bfloat16", "bfloat16"),
    Benign("bfloat16-batch1", "bfloat16", batch=1),
    Benign("bfloat16-eager", "bfloat16", "eager"),
    Benign("float16", "float16"),
)
"""What the noise floor is measured from; the reference is float32, SDPA, batch 16."""


@dataclass(frozen=True, slots=True)
class Member:
    """One model of the panel.

    Args:
        name: label: ``parent``, a tier's, or ``parent@bfloat16``.
        spec: what it is loaded from.
        how: the way it is run.
        bits: of a tier's weights; ``None`` where they are not known.
    """

    name: str
    spec: str
    how: Benign = Benign("float32")
    bits: int | None = None


@dataclass(frozen=True, slots=True)
class Row:
    """Tokens to teacher-force.

    Args:
        prompt: what stands before; at least one token.
        tokens: what is scored; at least one.
        asked: for each scored position, tokens whose log-probabilities are wanted as well.
    """

    prompt: tuple[int, ...]
    tokens: tuple[int, ...]
    asked: tuple[tuple[int, ...], ...] = ()

    @property
    def key(self) -> str:
        """Identity by content."""
        return content_hash([self.prompt, self.tokens, self.asked])


@dataclass(frozen=True, slots=True)
class TokenScores:
    """One row under one model; every array is ``[tokens]``, in nats at temperature 1.

    Args:
        logp: of the served token.
        gap: margin of the likeliest token over the second where it was served, else how far the
            served token lies below the likeliest.
        flip: another token than the likeliest was served.
        best: the likeliest token.
        entropy, variance: mean and variance of -log p of a token drawn there.
        asked: log-probabilities of ``Row.asked``.
    """

    logp: Floats
    gap: Floats
    flip: NDArray[np.bool_]
    best: NDArray[np.int64]
    entropy: Floats
    variance: Floats
    asked: tuple[Floats, ...] = field(default=())


class Panel:
    """Loads models as they are needed and keeps them while memory lasts.

    Args:
        members: every one by its name; the first is the parent.
        engine: device and remote code; the dtype is each member's own.

    Raises:
        PlanError: two members of one name.
    """

    def __init__(self, members: Sequence[Member], engine: EnginePlan) -> None:
        self.members = {m.name: m for m in members}
        if len(self.members) != len(members):
            raise PlanError("two tiers have one name", hint="Give directories of different names.")
        self._engine = engine
        self._loaded: dict[str, LoadedModel] = {}
        self._cache: dict[tuple[str, str], TokenScores] = {}
        self.hashes: dict[str, str] = {}
        self._lock = threading.Lock()

    @property
    def parent(self) -> LoadedModel:
        """The parent, as the reference runs it."""
        return self.model(BASE)

    @property
    def tiers(self) -> list[str]:
        """Names of the listed tiers."""
        return [n for n in self.members if n != BASE and "@" not in n]

    def add(self, member: Member) -> None:
        """One more model."""
        self.members[member.name] = member

    def model(self, name: str) -> LoadedModel:
        """A member in memory.

        Raises:
            EvalqError: it cannot be loaded.
        """
        place = self._place(name)
        if place in self._loaded:
            self.hashes[name] = self._loaded[place].hash
            return self._loaded[place]
        import psutil

        from evalq.serve.server import load_any

        member = self.members[name]
        plan = self._engine.model_copy(update={"dtype": member.how.dtype})
        model = load_any(member.spec, plan)
        if member.how.attention != "sdpa":
            model.module.set_attn_implementation(member.how.attention)
        if member.how.input_bits is not None:
            _round_inputs(model.module, member.how.input_bits)
        self.hashes[name] = model.hash
        size = sum(p.numel() * p.element_size() for p in model.module.parameters())
        if psutil.virtual_memory().available < 3 * size:
            for other in [p for p in self._loaded if p != self._place(BASE)]:
                del self._loaded[other]
        self._loaded[place] = model
        return model

    def _place(self, name: str) -> str:
        """Ways that differ in batch or threads only run the same module."""
        member = self.members[name]
        return content_hash(
            [member.spec, member.how.dtype, member.how.attention, member.how.input_bits]
        )

    def drop(self, names: Sequence[str]) -> None:
        """Give back the memory of these members, but for what another one runs as well."""
        kept = {self._place(n) for n in self.members if n not in names}
        for place in [p for p in self._loaded if p not in kept]:
            del self._loaded[place]

    def score(self, name: str, rows: Sequence[Row]) -> list[TokenScores]:
        """Every row under one member, in their order; what was scored before is remembered.

        Raises:
            NonFiniteError: the model computes a NaN.
        """
        with self._lock:
            return self._score(name, rows)

    def _score(self, name: str, rows: Sequence[Row]) -> list[TokenScores]:
        keys = [(name, row.key) for row in rows]
        fresh = {k: r for k, r in zip(keys, rows, strict=True) if k not in self._cache}
        if fresh:
            order = sorted(fresh, key=lambda k: len(fresh[k].prompt) + len(fresh[k].tokens))
            size = self.members[name].how.batch
            for start in range(0, len(order), size):
                part = order[start : start + size]
                found = self._batch(name, [fresh[k] for k in part])
                self._cache.update(zip(part, found, strict=True))
                # Scores with something asked on top serve those who ask for nothing as well.
                plain = [(name, Row(fresh[k].prompt, fresh[k].tokens).key) for k in part]
                self._cache.update(zip(plain, found, strict=True))
        return [self._cache[k] for k in keys]

    def _batch(self, name: str, rows: Sequence[Row]) -> list[TokenScores]:
        import torch

        model = self.model(name)
        width = max(len(r.prompt) + len(r.tokens) for r in rows)
        ids = torch.zeros(len(rows), width, dtype=torch.int64)
        mask = torch.zeros_like(ids)
        for i, row in enumerate(rows):
            whole = [*row.prompt, *row.tokens]
            ids[i, : len(whole)] = torch.tensor(whole)
            mask[i, : len(whole)] = 1
        threads = self.members[name].how.threads
        before = torch.get_num_threads()
        if threads is not None:
            torch.set_num_threads(threads)
        try:
            with torch.inference_mode():
                full = bool(mask.all())
                logits = model.module(
                    input_ids=ids.to(model.device),
                    attention_mask=None if full else mask.to(model.device),
                    use_cache=False,
                ).logits
                return [self._read(name, logits[i], row) for i, row in enumerate(rows)]
        finally:
            torch.set_num_threads(before)

    def _read(self, name: str, logits: torch.Tensor, row: Row) -> TokenScores:
        import torch

        start = len(row.prompt) - 1
        logp = torch.log_softmax(logits[start : start + len(row.tokens)].float(), -1)
        if torch.isnan(logp).any():
            raise NonFiniteError(f"{name} computes a NaN", hint="The artifact is broken.")
        served = torch.tensor(row.tokens, device=logp.device)
        own = logp.gather(-1, served[:, None])[:, 0]
        two = logp.topk(2, -1)
        best = two.indices[:, 0]
        # Of equal log-probabilities, any is the likeliest.
        flip = own < two.values[:, 0]
        gap = torch.where(flip, two.values[:, 0] - own, two.values[:, 0] - two.values[:, 1])
        p = logp.exp()
        finite = torch.where(p > 0, logp, 0.0)
        entropy = -(p * finite).sum(-1)
        variance = (p * finite.square()).sum(-1) - entropy.square()
        asked = tuple(
            logp[i, list(tokens)].double().cpu().numpy() for i, tokens in enumerate(row.asked)
        )
        return TokenScores(
            logp=_numpy(own),
            gap=_numpy(gap),
            flip=flip.cpu().numpy(),
            best=best.cpu().numpy(),
            entropy=_numpy(entropy),
            variance=_numpy(variance.clamp_min(0)),
            asked=asked,
        )

    def distributions(self, name: str, rows: Sequence[Row]) -> Iterator[torch.Tensor]:
        """Log-probabilities ``[tokens, vocabulary]`` (float32) of each row; never kept."""
        import torch

        model = self.model(name)
        for row in rows:
            ids = torch.tensor([[*row.prompt, *row.tokens]], device=model.device)
            with torch.inference_mode():
                logits = model.module(input_ids=ids, use_cache=False).logits[0]
            start = len(row.prompt) - 1
            yield torch.log_softmax(logits[start : start + len(row.tokens)].float(), -1).cpu()


def _numpy(values: torch.Tensor) -> Floats:
    out: Floats = values.double().cpu().numpy()
    return out


def _round_inputs(module: Any, bits: int) -> None:
    """Linear layers, the head too, read inputs in blocks of 32 as codes with one scale a block.

    As llama.cpp's ``quantize_row_q8_0``: scale max|x| / 127, codes rounded to the nearest.
    """
    import torch
    from torch import nn

    high = (1 << (bits - 1)) - 1

    def rounded(_: Any, inputs: tuple[torch.Tensor, ...]) -> tuple[torch.Tensor, ...]:
        x = inputs[0]
        width = x.shape[-1]
        padded = nn.functional.pad(x, (0, -width % _BLOCK))
        blocks = padded.reshape(*padded.shape[:-1], -1, _BLOCK)
        scale = blocks.abs().amax(-1, keepdim=True) / high
        scale = torch.where(scale == 0, torch.ones_like(scale), scale)
        return ((blocks / scale).round() * scale).flatten(-2)[..., :width], *inputs[1:]

    for part in module.modules():
        if isinstance(part, nn.Linear):
            part.register_forward_pre_hook(rounded)


def bits_of(directory: Path) -> int | None:
    """Bits a weight of an artifact's quantized layers, by its files; ``None`` for a dense one."""
    from evalq.artifacts.api import storage

    found = storage(directory).linear_bits_per_weight
    return None if not found or found >= 15 else round(found - 0.2)
