"""One judge for all tools: a variant's next-token distributions beside its parent's, in float32."""

from __future__ import annotations

import copy
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

_POSITIONS_AT_ONCE = 2048


@dataclass(frozen=True, slots=True)
class Quality:
    """Of one variant on one text.

    Args:
        kl: mean KL(parent || variant) over the whole vocabulary, nats a token.
        perplexity_ratio: the variant's perplexity over the parent's.
        top1: share of positions whose likeliest token is the parent's.
        kl_by_window: mean KL of each window, for paired intervals.
    """

    kl: float
    perplexity_ratio: float
    top1: float
    kl_by_window: list[float]


class Judge:
    """Holds the parent in float32 and its logits' input for each text.

    Args:
        parent: the causal LM; a float32 copy is made on its own device.
        texts: token ids ``[windows, length]`` by name.
    """

    def __init__(self, parent: Any, texts: Mapping[str, Tensor]) -> None:
        self.parent = copy.deepcopy(parent).float().requires_grad_(False).eval()
        self.device = next(self.parent.parameters()).device
        self.texts = dict(texts)
        self._hidden = {name: self._run(self.parent, t) for name, t in self.texts.items()}

    def variant(self, tensors: Mapping[str, Tensor]) -> Any:
        """A float32 copy of the parent with some of its parameters replaced.

        Raises:
            KeyError: a name that is no parameter of the parent.
            ValueError: another shape.
        """
        module = copy.deepcopy(self.parent)
        own = dict(module.named_parameters())
        for name, tensor in tensors.items():
            if own[name].shape != tensor.shape:
                raise ValueError(f"{name} is {tuple(tensor.shape)}, not {tuple(own[name].shape)}")
            own[name].data.copy_(tensor)
        return module

    def judge(self, module: Any) -> dict[str, Quality]:
        """``module``'s quality on each text."""
        module = module.to(self.device).float().eval()
        return {
            name: self._compare(tokens, self._hidden[name], self._run(module, tokens), module)
            for name, tokens in self.texts.items()
        }

    @torch.no_grad()
    def _run(self, module: Any, tokens: Tensor) -> Tensor:
        parts = [
            module.base_model(input_ids=some.to(self.device), use_cache=False).last_hidden_state
            for some in tokens.split(8)
        ]
        return torch.cat(parts)

    @torch.no_grad()
    def _compare(self, tokens: Tensor, wanted: Tensor, given: Tensor, module: Any) -> Quality:
        """Logits are made for some windows at a time and never kept."""
        at_once = max(1, _POSITIONS_AT_ONCE // tokens.shape[1])
        kl, same, ratio = [], [], 0.0
        for ids, theirs, ours in zip(
            tokens.split(at_once), wanted.split(at_once), given.split(at_once), strict=True
        ):
            target = functional.log_softmax(self.parent.get_output_embeddings()(theirs).float(), -1)
            found = functional.log_softmax(module.get_output_embeddings()(ours).float(), -1)
            each = (target.exp() * (target - found)).sum(-1, dtype=torch.float64)
            kl.append(each.mean(-1))
            same.append((target.argmax(-1) == found.argmax(-1)).double().mean(-1))
            after = ids[:, 1:, None].to(self.device)
            moved = target[:, :-1].gather(-1, after) - found[:, :-1].gather(-1, after)
            ratio += float(moved.sum(dtype=torch.float64))
        by_window = torch.cat(kl)
        mean = float(by_window.mean())
        if not math.isfinite(mean):
            raise FloatingPointError("the variant's logits are not finite")
        predicted = tokens.shape[0] * (tokens.shape[1] - 1)
        return Quality(
            kl=mean,
            perplexity_ratio=math.exp(min(ratio / predicted, 700.0)),
            top1=float(torch.cat(same).mean()),
            kl_by_window=[round(float(v), 6) for v in by_window],
        )
