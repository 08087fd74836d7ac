"""The fused kernels of a decoding step, in Triton's interpreter or on the GPU."""

from __future__ import annotations

import os

import pytest
import torch

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
if DEVICE == "cpu":
    os.environ["TRITON_INTERPRET"] = "1"

pytest.importorskip("triton")

from evalq.kernels.triton_gpu import interpreted  # noqa: E402
from evalq.models.lean import eager  # noqa: E402
from evalq.models.lean.eager import Slots  # noqa: E402
from evalq.models.lean.fused import FusedStep, why_not  # noqa: E402
from evalq.models.lean.spec import describe  # noqa: E402
from tests.models.test_lean import made, prompt  # noqa: E402

pytestmark = pytest.mark.skipif(
    DEVICE == "cpu" and not interpreted(), reason="triton was imported without its interpreter"
)


@pytest.mark.parametrize("family", ["llama-biased", "llama-3", "qwen3"])
@pytest.mark.parametrize("rows", [1, 2])
def test_a_fused_step_gives_the_logits_of_the_module(family: str, rows: int) -> None:
    module, tokens = made(family).to(DEVICE), prompt(rows, 62).to(DEVICE)
    decoder = describe(module)
    assert why_not(decoder) is None
    slots = Slots(decoder, rows, 90)
    eager.read(decoder, slots, tokens)
    # What lies beyond the slots that were filled must not be looked at.
    slots.keys[:, :, :, 62:] = float("nan")
    slots.values[:, :, :, 62:] = float("nan")
    fused = FusedStep(decoder, slots)
    for i in range(3):
        new = torch.full((rows,), 5 + i, device=DEVICE)
        tokens = torch.cat([tokens, new[:, None]], 1)
        with torch.inference_mode():
            ours = fused(new, torch.tensor([62 + i], device=DEVICE))
            own = module(tokens).logits[:, -1]
        torch.testing.assert_close(ours, own, rtol=1e-4, atol=1e-4)


def test_a_nan_in_the_cache_reaches_the_logits() -> None:
    decoder = describe(made("llama").to(DEVICE))
    slots = Slots(decoder, 1, 90)
    slots.keys[0, 0, 0, 3, 0] = float("nan")
    token = torch.tensor([5], device=DEVICE)
    with torch.inference_mode():
        logits = FusedStep(decoder, slots)(token, torch.tensor([10], device=DEVICE))
    assert not torch.isfinite(logits).any()
