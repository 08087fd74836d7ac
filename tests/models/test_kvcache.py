"""The rounded KV cache against a cache that is rounded by hand, token by token."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from transformers import DynamicCache

from evalq.errors import ParentError, PlanError
from evalq.fidelity import Window, compare_to_parent, run_parent
from evalq.models.forward import Forward
from evalq.models.hf import TransformersEngine
from evalq.models.kvcache import GROUP, WINDOW, first_exact, round_keys, round_values
from evalq.plan import EnginePlan
from evalq.schema import Request
from tests.models.tiny import byte_level_tokenizer, loaded, module

TOKENIZER = byte_level_tokenizer()


def by_hand(values: np.ndarray, bits: int) -> np.ndarray:
    """One group, as the paper has it: a least value and a step, of 16 bits each."""
    low = np.float16(values.min())
    step = np.float16((values.max() - np.float32(low)) / (2**bits - 1))
    if step == 0:
        return np.full_like(values, low)
    codes = np.clip(np.rint((values - np.float32(low)) / np.float32(step)), 0, 2**bits - 1)
    return codes.astype(np.float32) * np.float32(step) + np.float32(low)


@pytest.mark.parametrize("bits", [2, 4, 8])
@pytest.mark.parametrize("width", [24, 64])
def test_keys_go_by_channel_and_values_by_token(bits: int, width: int) -> None:
    x = torch.randn(2, 3, 2 * GROUP, width, generator=torch.Generator().manual_seed(0))
    x[:, :, :, 5] *= 50
    keys, values = round_keys(x, bits).numpy(), round_values(x, bits).numpy()
    size = GROUP if width == 64 else width
    for row, head in ((0, 0), (1, 2)):
        plain = x[row, head].numpy()
        for channel in range(width):
            for start in (0, GROUP):
                expected = by_hand(plain[start : start + GROUP, channel], bits)
                np.testing.assert_allclose(
                    keys[row, head, start : start + GROUP, channel], expected, rtol=1e-6, atol=1e-6
                )
        for token in (0, 1, 40):
            for start in range(0, width, size):
                expected = by_hand(plain[token, start : start + size], bits)
                np.testing.assert_allclose(
                    values[row, head, token, start : start + size], expected, rtol=1e-6, atol=1e-6
                )
    # An outlier channel costs keys nothing, and values their group.
    quiet = [c for c in range(GROUP if width == 64 else width) if c != 5]
    assert np.abs(keys - x.numpy())[..., quiet].max() < np.abs(values - x.numpy())[..., quiet].max()


def test_the_window() -> None:
    assert first_exact(0) == first_exact(WINDOW + GROUP - 1) == 0
    assert first_exact(WINDOW + GROUP) == GROUP
    for position in range(1000):
        end = first_exact(position)
        assert end % GROUP == 0
        assert end == 0 or WINDOW <= position - end < WINDOW + GROUP
        assert end == first_exact(position // GROUP * GROUP)


def expected_logits(model: Any, tokens: torch.Tensor, bits: int) -> torch.Tensor:
    """transformers' own cache, whose old groups are overwritten as they leave the window."""
    cache = DynamicCache()
    out, done = [], 0
    with torch.inference_mode():
        for t in range(tokens.shape[1]):
            if t >= WINDOW + GROUP and (t - WINDOW) // GROUP * GROUP > done:
                for layer in cache.layers:
                    old = slice(done, done + GROUP)
                    for head in range(layer.keys.shape[1]):
                        keys = layer.keys[0, head, old].numpy()
                        values = layer.values[0, head, old].numpy()
                        for c in range(keys.shape[1]):
                            keys[:, c] = by_hand(keys[:, c].copy(), bits)
                        for i in range(GROUP):
                            values[i] = by_hand(values[i].copy(), bits)
                done += GROUP
            logits = model(tokens[:, t : t + 1], past_key_values=cache, use_cache=True).logits
            out.append(logits[0, -1])
    return torch.stack(out)


@pytest.mark.parametrize("bits", [2, 4, 8])
def test_reading_a_text_is_decoding_it_over_a_rounded_cache(bits: int) -> None:
    model = module("llama", TOKENIZER, length=512)
    tokens = torch.randint(300, (1, 230), generator=torch.Generator().manual_seed(2))
    expected = expected_logits(model, tokens, bits)
    forward = Forward(model, 10**6, 10**6, bits)
    row = tokens[0].tolist()
    spans = list(forward.scan(forward.start(1), [row], 230, "left"))
    torch.testing.assert_close(
        torch.cat([s for _, s in spans], 1)[0], expected, rtol=1e-3, atol=1e-3
    )
    # A prompt in two parts, then token by token.
    state = forward.start(1)
    forward.read(state, [row[:77]], "left")
    forward.read(state, [row[77:150]], "left")
    for t in range(150, 230):
        logits = forward.step(state, tokens[:, t])
    torch.testing.assert_close(logits[0], expected[-1], rtol=1e-3, atol=1e-3)
    with torch.inference_mode():
        exact = model(tokens).logits[0]
    torch.testing.assert_close(
        expected[: WINDOW + GROUP], exact[: WINDOW + GROUP], rtol=1e-3, atol=1e-3
    )
    assert (expected[WINDOW + GROUP :] - exact[WINDOW + GROUP :]).norm() > 1e-3


def questions() -> list[Request]:
    text = "Moja mbili tatu nne tano sita saba nane tisa kumi. " * 20
    out = []
    for i in range(6):
        prompt = text[: 900 + 7 * i]
        out += [Request("loglikelihood", prompt, f" {c}") for c in ("yes", "no it is", "D")]
        out.append(Request("generate_until", prompt, until=("\n",), max_tokens=20))
    out.append(Request("loglikelihood_rolling", text))
    return out


def answers(bits: int | None, batch_tokens: int) -> tuple[Any, list[Any]]:
    model = loaded("llama", TOKENIZER, length=1024)
    model.kv_bits = bits
    engine = TransformersEngine(model, EnginePlan(batch_tokens=batch_tokens))
    requests = questions()
    found: list[Any] = [None] * len(requests)
    for batch in engine.plan(requests):
        responses = engine.answer([requests[i] for i in batch])
        for i, response in zip(batch, responses, strict=True):
            found[i] = (response.text, response.logprob)
    return engine, found


def test_the_batch_does_not_change_an_answer() -> None:
    _, plain = answers(None, 16384)
    engine, together = answers(2, 16384)
    _, alone = answers(2, 1)
    assert engine.settings["kv_cache"]["bits"] == 2
    for (text, value), (other, second) in zip(together, alone, strict=True):
        assert text == other
        assert value is None or value == pytest.approx(second, abs=2e-3)
    moved = [abs(a[1] - b[1]) for a, b in zip(plain, together, strict=True) if a[1] is not None]
    assert min(moved) > 1e-4, "two bits change every log-likelihood of so long a prompt"


def test_fidelity_sees_the_rounding() -> None:
    model = loaded("llama", TOKENIZER, length=512)
    generator = torch.Generator().manual_seed(4)
    windows = [
        Window(tuple(torch.randint(300, (n,), generator=generator).tolist()), f"d{i}", "prose")
        for i, n in enumerate((300, 250))
    ]
    parent = run_parent(model, "t", windows)
    means = {}
    for bits in (None, 8, 4, 2):
        model.kv_bits = bits
        records = compare_to_parent("v", model, parent)
        assert len(records) == 299 + 249
        early = [r.kl for r in records if r.position <= WINDOW + GROUP]
        assert max(early) < 1e-6, "the window is exact"
        means[bits] = np.mean([r.kl for r in records])
    assert means[None] < 1e-8 < means[8] < means[4] < means[2]


def test_what_cannot_be_rounded_is_refused() -> None:
    with pytest.raises(PlanError, match="3 bits"):
        Forward(module("llama", TOKENIZER), 10, 10, 3)
    with pytest.raises(ParentError, match="window"):
        Forward(module("mistral", TOKENIZER), 10, 10, 4)
    forward = Forward(module("llama", TOKENIZER), 10, 10, 4)
    with pytest.raises(ValueError, match="one length"):
        forward.read(forward.start(2), [[1, 2], [3]], "left")
