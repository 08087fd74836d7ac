"""Splits against lm-eval's own functions; the engine tests compare whole answers."""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st
from lm_eval.models.utils import postprocess_generated_text
from lm_eval.utils import get_rolling_token_windows, make_disjoint_window

from evalq.errors import TaskError
from evalq.models.encode import Encoder, resolve_max_length
from evalq.schema import Request
from tests.models.hflm import Reference
from tests.models.tiny import byte_level_tokenizer, loaded

TOKENIZER = byte_level_tokenizer()
WITH_BOS = byte_level_tokenizer(bos=True)


@settings(deadline=None, max_examples=50)
@given(st.text(alphabet="ab c\n", max_size=120), st.integers(2, 40))
def test_windows_are_lm_evals(text, size):
    encoder = Encoder(TOKENIZER, size)
    ids = TOKENIZER(text)["input_ids"]
    pairs = get_rolling_token_windows(ids, encoder.prefix, size, 1)
    expected = [make_disjoint_window(pair) for pair in pairs]
    assert [(list(w.head), list(w.scored)) for w in encoder.windows(text)] == expected


MODELS = [loaded("llama", t) for t in (TOKENIZER, WITH_BOS)]
REFERENCES = [Reference(m)._lm for m in MODELS]


@settings(deadline=None, max_examples=60)
@given(
    st.text(max_size=20),
    st.text(min_size=1, max_size=12),
    st.sampled_from([0, 1]),
    st.sampled_from(["", " ", "\n", "<|end|>", "<|start|>"]),
)
def test_pairs_are_lm_evals(context, continuation, which, edge):
    reference, encoder = REFERENCES[which], Encoder(MODELS[which].tokenizer, 128)
    context = edge + context
    if context:
        head, scored = reference._encode_pair(context, continuation)
    else:
        head = [reference.prefix_token_id]
        scored = reference.tok_encode(continuation, add_special_tokens=False)
        if scored[0] == head[0]:
            head, scored = scored[:1], scored[1:]
    request = Request("loglikelihood", context, continuation)
    if not head or not scored:
        try:
            encoder.pairs([request])
        except TaskError:
            return
        raise AssertionError("a pair without tokens was taken")
    got = encoder.pairs([request])[0]
    assert (list(got.head), list(got.scored)) == (head, scored)


@given(st.text(alphabet="ab\n", max_size=30), st.lists(st.text("ab\n", min_size=1), max_size=3))
def test_text_is_cut_as_lm_eval_cuts_it(text, until):
    encoder = Encoder(TOKENIZER, 128)
    ids = TOKENIZER(text)["input_ids"]
    expected = postprocess_generated_text(text, [*until, "<|end|>"], None)
    assert encoder.text(ids, until) == expected


def test_max_length_is_lm_evals():
    for model, reference in zip(MODELS, REFERENCES, strict=True):
        assert resolve_max_length(model.module.config, model.tokenizer) == reference.max_length
