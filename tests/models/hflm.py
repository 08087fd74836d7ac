"""lm-eval's own engine, as the reference that ours has to agree with."""

from __future__ import annotations

from collections.abc import Sequence

from lm_eval.api.instance import Instance
from lm_eval.models.huggingface import HFLM

from evalq.models.base import LoadedModel
from evalq.models.hf import TransformersEngine
from evalq.schema import Request, Response


def answers(engine: TransformersEngine, requests: Sequence[Request]) -> list[Response]:
    """All requests through plan and answer, in their order."""
    out: list[Response | None] = [None] * len(requests)
    for batch in engine.plan(requests):
        for i, response in zip(batch, engine.answer([requests[i] for i in batch]), strict=True):
            assert out[i] is None
            out[i] = response
    assert all(r is not None for r in out)
    return [r for r in out if r is not None]


def _instances(kind: str, arguments: Sequence[tuple]) -> list[Instance]:
    return [Instance(request_type=kind, doc={}, arguments=a, idx=0) for a in arguments]


class Reference:
    """HFLM on the same module and tokenizer."""

    def __init__(self, model: LoadedModel, batch_size: int = 1, **options: object) -> None:
        self._lm = HFLM(
            pretrained=model.module, tokenizer=model.tokenizer, batch_size=batch_size, **options
        )

    def loglikelihood(self, requests: Sequence[Request]) -> list[tuple[float, bool]]:
        pairs = [(r.context, r.continuation) for r in requests]
        return self._lm.loglikelihood(_instances("loglikelihood", pairs), disable_tqdm=True)

    def rolling(self, requests: Sequence[Request]) -> list[float]:
        texts = [(r.context,) for r in requests]
        return self._lm.loglikelihood_rolling(
            _instances("loglikelihood_rolling", texts), disable_tqdm=True
        )

    def generate(self, requests: Sequence[Request]) -> list[str]:
        arguments = []
        for request in requests:
            options = {"until": list(request.until), "do_sample": False}
            if request.max_tokens is not None:
                options["max_gen_toks"] = request.max_tokens
            arguments.append((request.context, options))
        return self._lm.generate_until(_instances("generate_until", arguments), disable_tqdm=True)
