"""The lean loops against transformers' own greedy decoding."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn
from transformers import (
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    MistralConfig,
    MistralForCausalLM,
    Qwen2Config,
    Qwen2ForCausalLM,
    Qwen3Config,
    Qwen3ForCausalLM,
)

from evalq.errors import EvalqError, KernelError, ParentError, PlanError
from evalq.kernels import native
from evalq.kernels.linear import pack_module
from evalq.models.lean import eager
from evalq.models.lean.eager import Slots
from evalq.models.lean.graph import step
from evalq.models.lean.native import NativeStep, why_not
from evalq.models.lean.runner import NATIVE_ROWS, make_runner
from evalq.models.lean.spec import describe
from tests.kernels.weights import dense64, make_weight

LLAMA3 = {
    "rope_type": "llama3",
    "rope_theta": 500000.0,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 64,
}
SHAPE: dict[str, Any] = {
    "vocab_size": 97,
    "hidden_size": 48,
    "intermediate_size": 104,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "max_position_embeddings": 96,
    "initializer_range": 0.3,
    "pad_token_id": 0,
    "eos_token_id": None,
}
FAMILIES: dict[str, Any] = {
    "llama": lambda: LlamaForCausalLM(LlamaConfig(**SHAPE)),
    "llama-biased": lambda: LlamaForCausalLM(
        LlamaConfig(**SHAPE, attention_bias=True, mlp_bias=True, tie_word_embeddings=True)
    ),
    "llama-3": lambda: LlamaForCausalLM(LlamaConfig(**SHAPE, rope_parameters=LLAMA3)),
    "mistral": lambda: MistralForCausalLM(MistralConfig(**SHAPE, sliding_window=None)),
    "qwen2": lambda: Qwen2ForCausalLM(Qwen2Config(**SHAPE)),
    "qwen3": lambda: Qwen3ForCausalLM(Qwen3Config(**SHAPE)),
}
needs_compiler = pytest.mark.skipif(native.why_not() is not None, reason="no C compiler")


def made(family: str) -> Any:
    torch.manual_seed(3)
    module = FAMILIES[family]().eval().requires_grad_(False)
    with torch.no_grad():
        for name, parameter in module.named_parameters():
            # Norms of ones and biases of zeros would hide a wrong or a forgotten one.
            if "norm" in name or name.endswith("bias"):
                parameter.add_(torch.randn_like(parameter) * 0.2)
    return module


def prompt(rows: int = 2, width: int = 13) -> torch.Tensor:
    return torch.randint(97, (rows, width), generator=torch.Generator().manual_seed(5))


def greedy(module: Any, tokens: torch.Tensor, steps: int, loop: str) -> torch.Tensor:
    runner = make_runner(module, tokens.shape[0], tokens.shape[1] + steps, loop)
    assert runner.loop == loop
    chosen = [runner.prefill(tokens).argmax(-1)]
    for _ in range(steps - 1):
        chosen.append(runner.step(chosen[-1]).argmax(-1))
    return torch.stack(chosen, 1)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("loop", ["eager", pytest.param("native", marks=needs_compiler)])
@pytest.mark.parametrize("rows", [1, 3])
def test_greedy_tokens_are_those_of_transformers(family: str, loop: str, rows: int) -> None:
    module, tokens = made(family), prompt(rows)
    own = module.generate(
        tokens, attention_mask=torch.ones_like(tokens), max_new_tokens=40, do_sample=False
    )
    assert len(own[0].unique()) > 10, "a model that repeats one token tests nothing"
    assert torch.equal(greedy(module, tokens, 40, loop), own[:, 13:])


@needs_compiler
@pytest.mark.parametrize("rows", [1, 2, 5, 8, 11])
def test_the_compiled_step_gives_the_logits_of_the_module(rows: int) -> None:
    for family in FAMILIES:
        module, tokens = made(family), prompt(rows)
        decoder = describe(module)
        slots = Slots(decoder, rows, 40)
        eager.read(decoder, slots, tokens)
        native_step = NativeStep(decoder, slots)
        for i in range(4):
            new = (torch.arange(rows) * 5 + i) % 97
            tokens = torch.cat([tokens, new[:, None]], 1)
            with torch.inference_mode():
                own = module(tokens).logits[:, -1]
            torch.testing.assert_close(native_step(new), own, rtol=1e-4, atol=1e-4)


@needs_compiler
def test_the_number_of_threads_changes_nothing() -> None:
    results = []
    for threads in (1, 2, 3):
        torch.set_num_threads(threads)
        decoder = describe(made("qwen3"))
        slots = Slots(decoder, 2, 20)
        slots.keys.fill_(0.3)
        slots.values.fill_(0.1)
        slots.filled = 9
        results.append(NativeStep(decoder, slots)(torch.tensor([4, 5])))
    torch.set_num_threads(1)
    assert torch.equal(results[0], results[1])
    assert torch.equal(results[0], results[2])


@needs_compiler
@pytest.mark.parametrize("bits", [2, 3, 4, 6, 8])
@pytest.mark.parametrize("symmetric", [True, False])
def test_packed_layers_give_the_logits_of_dequantized_ones(bits: int, symmetric: bool) -> None:
    dense, packed = made("qwen2"), made("qwen2")
    layers = {
        name: make_weight(bits, 16, symmetric, tuple(layer.weight.shape))
        for name, layer in dense.named_modules()
        if isinstance(layer, nn.Linear) and "lm_head" not in name
    }
    for name, weight in layers.items():
        dense.get_submodule(name).weight.copy_(dense64(weight))
    assert pack_module(packed, layers, "cpu", torch.float32) == "packed:native"
    tokens = prompt()
    for loop in ("eager", "native"):
        runner = make_runner(packed, 2, 20, loop)
        runner.prefill(tokens)
        new = torch.tensor([7, 8])
        with torch.inference_mode():
            own = dense(torch.cat([tokens, new[:, None]], 1)).logits[:, -1]
        torch.testing.assert_close(runner.step(new), own, rtol=1e-3, atol=1e-3)


@needs_compiler
@pytest.mark.parametrize("rows", [1, 3, 9])
@pytest.mark.parametrize("bits", [(4, 4), (2, 8), (3, 6)])
def test_in_bfloat16_packed_layers_read_activations_of_more_digits(
    bits: tuple[int, int], rows: int
) -> None:
    def models(values: bool) -> tuple[Any, Any]:
        packed, exact = made("qwen2").to(torch.bfloat16), made("qwen2").to(torch.bfloat16).double()
        layers = {}
        for i, (name, layer) in enumerate(packed.named_modules()):
            if isinstance(layer, nn.Linear) and "lm_head" not in name:
                shape, plain = tuple(layer.weight.shape), "v_proj" in name and not values
                layers[name] = make_weight(bits[i % 2], 16, plain or i % 3 > 0, shape, seed=i)
                if plain:  # values are then the bias, which bfloat16 holds
                    layers[name].codes.fill_(1 << (bits[i % 2] - 1))
        for name, weight in layers.items():
            exact.get_submodule(name).weight.copy_(dense64(weight))
        pack_module(packed, layers, "cpu", torch.bfloat16)
        return describe(packed), exact

    def errors(values: bool, steps: int) -> list[float]:
        decoder, exact = models(values)
        native_step = NativeStep(decoder, Slots(decoder, rows, 8))
        tokens, found = torch.empty(rows, 0, dtype=torch.int64), []
        for i in range(steps):
            new = (torch.arange(rows) * 5 + i) % 97
            tokens = torch.cat([tokens, new[:, None]], 1)
            with torch.inference_mode():
                truth = exact(tokens).logits[:, -1]
            found.append(float((native_step(new).double() - truth).norm() / truth.norm()))
        return found

    # With one token nothing is rounded to bfloat16 but activations, to 16 digits in two parts.
    assert errors(values=False, steps=1)[0] < 2e-5
    # Keys and values are: the same errors come of float32 activations.
    assert max(errors(values=True, steps=3)) < 6e-3


@needs_compiler
def test_an_infinite_activation_reaches_its_own_row_alone() -> None:
    module = made("llama").to(torch.bfloat16)
    layers = {
        name: make_weight(8, 16, True, tuple(layer.weight.shape))
        for name, layer in module.named_modules()
        if isinstance(layer, nn.Linear) and "lm_head" not in name
    }
    pack_module(module, layers, "cpu", torch.bfloat16)

    def run() -> torch.Tensor:
        decoder = describe(module)
        return NativeStep(decoder, Slots(decoder, 2, 4))(torch.tensor([4, 5]))

    clean = run()
    module.get_input_embeddings().weight.data[4, 0] = float("inf")
    broken = run()
    assert not broken[0].isfinite().any()
    assert torch.equal(broken[1], clean[1])


@needs_compiler
def test_in_bfloat16_the_compiled_step_is_nearer_to_the_exact_logits() -> None:
    module, tokens = made("llama").to(torch.bfloat16), prompt()
    exact = made("llama").to(torch.bfloat16).double()
    new = torch.tensor([7, 8])
    with torch.inference_mode():
        truth = exact(torch.cat([tokens, new[:, None]], 1)).logits[:, -1]
        own = module(torch.cat([tokens, new[:, None]], 1)).logits[:, -1]
    runner = make_runner(module, 2, 20, "native")
    runner.prefill(tokens)
    ours = runner.step(new)
    assert (ours - truth).norm() < (own - truth).norm()
    assert (ours - truth).norm() < 0.05 * truth.norm()


def test_the_step_of_a_cuda_graph_computes_the_same() -> None:
    for family in FAMILIES:
        module, tokens = made(family), prompt()
        decoder = describe(module)
        slots = Slots(decoder, 2, 20)
        eager.read(decoder, slots, tokens)
        for i in range(3):
            new = torch.tensor([i, 90 - i])
            tokens = torch.cat([tokens, new[:, None]], 1)
            with torch.inference_mode():
                ours = step(decoder, slots, new, torch.tensor([13 + i]))
                own = module(tokens).logits[:, -1]
            torch.testing.assert_close(ours, own, rtol=1e-4, atol=1e-4)


def test_prompts_can_be_read_in_parts() -> None:
    module, tokens = made("llama"), prompt(width=17)
    decoder = describe(module)
    slots = Slots(decoder, 2, 20)
    eager.read(decoder, slots, tokens[:, :9])
    parts = eager.read(decoder, slots, tokens[:, 9:])
    with torch.inference_mode():
        torch.testing.assert_close(parts, module(tokens).logits[:, -1], rtol=1e-4, atol=1e-4)


def gpt2() -> Any:
    return GPT2LMHeadModel(GPT2Config(n_embd=32, n_layer=1, n_head=2, vocab_size=97)).eval()


def windowed() -> Any:
    return MistralForCausalLM(MistralConfig(**SHAPE, sliding_window=8)).eval()


def hooked() -> Any:
    module = made("llama")
    module.model.layers[0].mlp.up_proj.register_forward_pre_hook(lambda _, x: (x[0] * 2,))
    return module


def gelu() -> Any:
    return LlamaForCausalLM(LlamaConfig(**SHAPE, hidden_act="gelu")).eval()


def scaled() -> Any:
    """A module that computes something its parts do not show."""
    module = made("llama")
    module.model.layers[1].self_attn.forward = lambda hidden_states, **_: (hidden_states, None)
    return module


@pytest.mark.parametrize(
    ("build", "why"),
    [
        (gpt2, "model type 'gpt2'"),
        (windowed, "window"),
        (hooked, "hooks"),
        (gelu, "gelu"),
        (scaled, "logits differ"),
    ],
)
def test_what_is_no_plain_decoder_runs_by_transformers_and_says_so(build: Any, why: str) -> None:
    module, tokens = build(), prompt()
    runner = make_runner(module, 2, 16)
    assert runner.loop == "transformers"
    assert why in runner.why
    with pytest.raises(ParentError, match=why):
        make_runner(module, 2, 16, "eager")
    runner.prefill(tokens)
    new = torch.tensor([1, 2])
    with torch.inference_mode():
        own = module(torch.cat([tokens, new[:, None]], 1)).logits[:, -1]
    torch.testing.assert_close(runner.step(new), own, rtol=1e-4, atol=1e-4)


def test_the_rule_and_its_reasons() -> None:
    module = made("llama")
    assert make_runner(module, NATIVE_ROWS + 1, 20).loop == "eager"
    if native.why_not() is None:
        assert make_runner(module, 1, 20).loop == "native"
    narrow = LlamaForCausalLM(LlamaConfig(**{**SHAPE, "head_dim": 12})).eval()
    chosen = make_runner(narrow, 1, 20)
    assert chosen.loop == "eager"
    assert "multiple of 16" in chosen.why or native.why_not()
    with pytest.raises(PlanError, match="unknown loop"):
        make_runner(module, 1, 20, "fast")
    with pytest.raises(KernelError, match="CUDA"):
        make_runner(module, 1, 20, "graph")
    with pytest.raises(PlanError, match="97 tokens are more"):
        make_runner(module, 1, 97)


@needs_compiler
def test_what_a_step_cannot_read_is_an_error() -> None:
    decoder = describe(made("llama"))
    slots = Slots(decoder, 1, 3)
    native_step = NativeStep(decoder, slots)
    for tokens in ([97], [-1], [1, 2]):
        with pytest.raises(KernelError):
            native_step(torch.tensor(tokens))
    eager.read(decoder, slots, prompt(1, 3))
    with pytest.raises(KernelError, match="3 slots are filled"):
        native_step(torch.tensor([1]))
    with pytest.raises(EvalqError, match="do not fit"):
        eager.read(decoder, slots, prompt(1, 1))
    half = describe(made("llama").to(torch.float16))
    assert "float32 and bfloat16" in str(why_not(half))
    with pytest.raises(KernelError, match="float32 and bfloat16"):
        NativeStep(half, Slots(half, 1, 3))
    # NaN in the cache reaches the logits.
    fresh = Slots(decoder, 1, 3)
    fresh.keys.fill_(float("nan"))
    fresh.filled = 2
    assert not torch.isfinite(NativeStep(decoder, fresh)(torch.tensor([1]))).any()
