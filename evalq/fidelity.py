"""The verb fidelity: how close a variant's next-token distribution is to its parent's.

For each position of held-out text: KL(parent || variant) over the whole vocabulary in nats, whether
the likeliest tokens agree, and both negative log-likelihoods of the token that follows. The
distributions are taken in float32 from the logits, whatever the models run in.

The parent runs once, however many variants there are: its last hidden states are kept (a few
hundred numbers a position, where logits are tens of thousands), and its head is applied again when
a variant's logits are there. That the head applied to the hidden states gives the model's logits is
checked on the first window; an architecture where it does not keeps the logits themselves.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from evalq.errors import NonFiniteError, TaskError
from evalq.progress import NullProgress, Progress
from evalq.schema import FidelityRecord

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from evalq.models.base import LoadedModel
    from evalq.texts import TextSource

__all__ = ["ParentPass", "Window", "compare_to_parent", "cut_windows", "run_parent"]

_POSITIONS_AT_ONCE = 512
_ITEMS = 4
"""Items of evaluated text for each window that is asked for, as far as they are shorter."""


@dataclass(frozen=True, slots=True)
class Window:
    """Token ids of one window of a document; every token but the first is predicted.

    ``text`` names the text where it is not the one that the parent's pass is named after.
    """

    ids: tuple[int, ...]
    document: str
    slice: str
    text: str = ""


@dataclass(slots=True)
class ParentPass:
    """What is kept of the parent: hidden states (or logits) of every window, on the CPU.

    Args:
        text: name of the text.
        windows: in order.
        kept: a tensor a window, ``[tokens, width]`` hidden states or ``[tokens, vocabulary]``
            logits, in the dtype that the parent computed them in.
        head: the parent's output projection, or ``None`` where ``kept`` are logits.
        softcap: the architecture's final logit soft-capping.
        mode: ``"hidden"`` or ``"logits"``, as recorded in run.json.
    """

    text: str
    windows: list[Window]
    kept: list[Tensor] = field(default_factory=list)
    head: Any = None
    softcap: float | None = None
    mode: str = "hidden"


def cut_windows(
    source: TextSource,
    tokenizer: Any,
    length: int,
    count: int,
    named: bool = False,
    ends: bool = False,
) -> list[Window]:
    """At most ``count`` windows of at most ``length`` tokens, cut in the documents' order.

    Documents are dealt out in turn by slice, so that a small count still covers all slices. A
    window never spans documents. Windows of fewer than two tokens predict nothing and are left out.

    Args:
        source: the documents.
        tokenizer: the parent's.
        length, count: of the windows.
        named: windows carry the source's name; where it is a single document, each window counts
            as one for the intervals, which would else have nothing to be taken over.
        ends: one window a document, its last ``length`` tokens: before an item's own question come
            examples that all items share. Of short ones there are four times ``count``, within as
            many tokens.

    Raises:
        TaskError: no window is left.
    """
    by_slice: dict[str, list[Window]] = {}
    whole = named and len(source.documents) == 1
    for doc in source.documents:
        ids = tokenizer(doc.text)["input_ids"]
        for start in (max(0, len(ids) - length),) if ends else range(0, len(ids), length):
            part = tuple(int(i) for i in ids[start : start + length])
            if len(part) >= 2:
                own = f"{doc.document}@{start}" if whole else doc.document
                window = Window(part, own, doc.slice, source.name if named else "")
                by_slice.setdefault(doc.slice, []).append(window)
    windows: list[Window] = []
    for turn in range(max((len(w) for w in by_slice.values()), default=0)):
        windows += [w[turn] for _, w in sorted(by_slice.items()) if turn < len(w)]
    if not windows:
        raise TaskError(
            f"{source.name} holds no text to compare distributions on",
            hint="Give a longer text with fidelity.source.",
        )
    if not ends:
        return windows[:count]
    # Items are short: several make a window's worth of text.
    kept, room = windows[: _ITEMS * count], count * length
    sizes = itertools.accumulate(len(w.ids) for w in kept)
    return [w for w, size in zip(kept, sizes, strict=True) if size <= room] or kept[:1]


def _batches(windows: Sequence[Window], size: int) -> Iterator[list[int]]:
    order = sorted(range(len(windows)), key=lambda i: (len(windows[i].ids), i))
    for start in range(0, len(order), size):
        yield order[start : start + size]


def _padded(windows: Sequence[Window], device: torch.device) -> tuple[Tensor, Tensor]:
    import torch

    width = max(len(w.ids) for w in windows)
    ids = torch.zeros(len(windows), width, dtype=torch.long)
    mask = torch.zeros(len(windows), width, dtype=torch.long)
    for row, window in enumerate(windows):
        ids[row, : len(window.ids)] = torch.tensor(window.ids)
        mask[row, : len(window.ids)] = 1
    return ids.to(device), mask.to(device)


def _hidden(model: LoadedModel, ids: Tensor, mask: Tensor) -> Tensor:
    base = model.module.base_model
    out: Tensor = base(input_ids=ids, attention_mask=mask, use_cache=False).last_hidden_state
    return out


def _logits(model: LoadedModel, windows: list[Window]) -> Tensor:
    """Logits ``[windows, tokens, vocabulary]``; through the cache where it is rounded."""
    import torch

    ids, mask = _padded(windows, model.device)
    if model.kv_bits is None:
        plain: Tensor = model.module(input_ids=ids, attention_mask=mask, use_cache=False).logits
        return plain
    from evalq.models.forward import Forward

    width = ids.shape[1]
    forward = Forward(model.module, ids.numel(), ids.numel(), model.kv_bits)
    rows = [list(w.ids) for w in windows]
    spans = forward.scan(forward.start(len(rows)), rows, width, "right")
    return torch.cat([part for _, part in spans], 1)


def _apply_head(head: Any, hidden: Tensor, softcap: float | None) -> Tensor:
    import torch

    logits = head(hidden).float()
    return softcap * torch.tanh(logits / softcap) if softcap else logits


def _head_of(model: LoadedModel) -> tuple[Any, float | None]:
    module: Any = model.module
    return (
        module.get_output_embeddings(),
        getattr(model.module.config, "final_logit_softcapping", None),
    )


def _head_gives_logits(model: LoadedModel, window: Window) -> bool:
    """Whether head(last hidden state) are the model's logits, tried on one window."""
    import torch

    head, softcap = _head_of(model)
    if head is None:
        return False
    ids, mask = _padded([window], model.device)
    logits = model.module(input_ids=ids, attention_mask=mask, use_cache=False).logits.float()
    again = _apply_head(head, _hidden(model, ids, mask), softcap)
    return logits.shape == again.shape and bool(
        torch.allclose(logits, again, rtol=1e-3, atol=1e-3 * float(logits.abs().max()))
    )


def run_parent(
    model: LoadedModel,
    text: str,
    windows: list[Window],
    progress: Progress | None = None,
    batch: int = 8,
) -> ParentPass:
    """The parent's pass over the windows, kept for any number of variants."""
    import torch

    progress = progress or NullProgress()
    progress.start("fidelity parent", len(windows), "windows")
    with torch.inference_mode():
        hidden_mode = _head_gives_logits(model, windows[0])
        head, softcap = _head_of(model)
        kept: list[Tensor] = [torch.empty(0)] * len(windows)
        for rows in _batches(windows, batch):
            ids, mask = _padded([windows[i] for i in rows], model.device)
            out = (
                _hidden(model, ids, mask)
                if hidden_mode
                else model.module(input_ids=ids, attention_mask=mask, use_cache=False).logits
            )
            for row, i in enumerate(rows):
                # A clone: a view would keep the whole padded batch alive.
                kept[i] = out[row, : len(windows[i].ids)].clone().cpu()
            progress.advance(len(rows))
    if not hidden_mode:
        progress.note("fidelity: this architecture's logits are kept whole (more memory is used)")
        return ParentPass(text, windows, kept, None, None, "logits")
    return ParentPass(text, windows, kept, head, softcap, "hidden")


def compare_to_parent(
    variant: str,
    model: LoadedModel,
    parent: ParentPass,
    progress: Progress | None = None,
    batch: int = 8,
) -> list[FidelityRecord]:
    """One record for each predicted position of the parent's windows, in order.

    KL is at least 0 by definition; what rounding leaves below 0 is set to 0.
    """
    import torch

    progress = progress or NullProgress()
    progress.start(f"fidelity {variant}", len(parent.windows), "windows")
    results: list[list[FidelityRecord]] = [[] for _ in parent.windows]
    with torch.inference_mode():
        for rows in _batches(parent.windows, batch):
            logits = _logits(model, [parent.windows[i] for i in rows])
            for row, i in enumerate(rows):
                own = logits[row, : len(parent.windows[i].ids)]
                results[i] = _window_records(variant, parent, i, own)
            progress.advance(len(rows))
    return [record for window in results for record in window]


def _window_records(
    variant: str, parent: ParentPass, index: int, own: Tensor
) -> list[FidelityRecord]:
    import torch

    window, kept = parent.windows[index], parent.kept[index].to(own.device)
    name = window.text or parent.text
    records: list[FidelityRecord] = []
    targets = torch.tensor(window.ids[1:], device=own.device)
    for start in range(0, len(window.ids) - 1, _POSITIONS_AT_ONCE):
        stop = min(start + _POSITIONS_AT_ONCE, len(window.ids) - 1)
        before = kept[start:stop]
        reference = (
            _apply_head(parent.head, before, parent.softcap)
            if parent.head is not None
            else before.float()
        )
        p = torch.log_softmax(reference, -1)
        q = torch.log_softmax(own[start:stop].float(), -1)
        if torch.isnan(q).any() or torch.isnan(p).any():
            raise NonFiniteError(
                f"{variant}: a logit is NaN on {window.document}",
                hint="The artifact is broken: make it again, or leave it out.",
            )
        p64 = p.double()
        # A token that the parent rules out (-inf) adds nothing, whatever the variant gives it.
        terms = torch.where(p64.isneginf(), 0.0, p64.exp() * (p64 - q.double()))
        kl = terms.sum(-1).clamp_min(0)
        same = p.argmax(-1) == q.argmax(-1)
        follow = targets[start:stop, None]
        nll_p, nll_q = -p.gather(-1, follow)[:, 0], -q.gather(-1, follow)[:, 0]
        rows = zip(kl.tolist(), same.tolist(), nll_p.tolist(), nll_q.tolist(), strict=True)
        records += [
            FidelityRecord(
                variant,
                name,
                window.slice,
                window.document,
                start + i + 1,
                k,
                s,
                a,
                b,
            )
            for i, (k, s, a, b) in enumerate(rows)
        ]
    return records
