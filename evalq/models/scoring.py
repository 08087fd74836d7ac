"""Log-probabilities of continuations, with one pass over what they have in common."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from evalq.models.batching import of_like_length
from evalq.models.encode import Scored
from evalq.models.forward import Forward, State
from evalq.models.prefix import Prompts, shared_prefix

__all__ = ["score"]


def score(forward: Forward, rows: Sequence[Scored]) -> list[tuple[float, bool]]:
    """Summed log-probability in nats of each row's scored tokens, and whether greedy gives them.

    The log-softmax is taken in float32 whatever the model computes in; the sum in float64.

    Args:
        forward: the model.
        rows: what to score; rows with the same head share one pass over it.

    Returns:
        For each row ``(log-probability, greedy)``: greedy is True when every scored token is the
        likeliest one given those before it (the lowest token id, at a tie).
    """
    heads = list(dict.fromkeys(row.head for row in rows))
    apart = len(heads) == len(rows) and not shared_prefix(forward, heads)
    if apart and forward.kv_bits is None:
        return _score_whole(forward, rows)
    state, logits = Prompts(forward, heads).read(heads)
    place = {head: i for i, head in enumerate(heads)}
    where = [place[row.head] for row in rows]
    first = torch.tensor([row.scored[0] for row in rows], device=forward.device)
    index = torch.tensor(where, device=forward.device)
    log_probability, top = _pick(logits[:, None].float(), index, first[:, None])
    sums = log_probability[:, 0].double()
    greedy = top[:, 0]
    longer = [i for i, row in enumerate(rows) if row.tail]
    for group in of_like_length([len(rows[i].tail) for i in longer], forward.enough):
        part = [longer[i] for i in group]
        tails = [rows[i].tail for i in part]
        more, same = _score_columns(
            forward, state.taken([where[i] for i in part]), tails,
            [rows[i].scored[1:] for i in part], "right",
        )  # fmt: skip
        sums[part] += more
        greedy[part] &= same
    return list(zip(sums.tolist(), greedy.tolist(), strict=True))


def _score_whole(forward: Forward, rows: Sequence[Scored]) -> list[tuple[float, bool]]:
    """Rows that have nothing in common: one pass over each."""
    state = forward.start(len(rows))
    inputs = [(*row.head, *row.tail) for row in rows]
    sums, greedy = _score_columns(forward, state, inputs, [row.scored for row in rows], "left")
    return list(zip(sums.tolist(), greedy.tolist(), strict=True))


def _score_columns(
    forward: Forward,
    state: State,
    inputs: Sequence[Sequence[int]],
    targets: Sequence[Sequence[int]],
    side: str,
) -> tuple[Tensor, Tensor]:
    """Sums (float64) and greediness (bool), ``[rows]``, of the last targets of padded inputs."""
    width = max(len(row) for row in inputs)
    keep = max(len(row) for row in targets) if side == "left" else width
    table = torch.full((len(inputs), width), -1, dtype=torch.int64)
    for i, (row, target) in enumerate(zip(inputs, targets, strict=True)):
        # The target of a column is the token that follows it.
        end = width if side == "left" else len(row)
        table[i, end - len(target) : end] = torch.tensor(target)
    table = table.to(forward.device)
    every = torch.arange(len(inputs), device=forward.device)
    sums = torch.zeros(len(inputs), dtype=torch.float64, device=forward.device)
    greedy = torch.ones(len(inputs), dtype=torch.bool, device=forward.device)
    spans = forward.scan(state, inputs, keep, "left" if side == "left" else "right")
    for start, logits in spans:
        wanted = table[:, start : start + logits.shape[1]]
        counted = wanted >= 0
        values, top = _pick(logits.float(), every, wanted.clamp_min(0))
        sums += torch.where(counted, values, 0.0).sum(1, dtype=torch.float64)
        greedy &= (top | ~counted).all(1)
    return sums, greedy


def _pick(logits: Tensor, index: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
    """Log-probability (float32) of targets ``[rows, columns]``, and whether each is the argmax.

    ``logits`` is float32 ``[heads, columns, vocabulary]``; ``index`` names the head of each row.
    """
    whole = torch.logsumexp(logits, -1)[index]
    best = logits.argmax(-1)[index]
    columns = torch.arange(targets.shape[1], device=logits.device)
    value = logits[index[:, None], columns[None, :], targets]
    return value - whole, best == targets
