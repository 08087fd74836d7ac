"""What a plain decoder is made of, read off a transformers model.

Plain means: RMS norm before attention and before a gated SiLU feed-forward layer, rotary positions
over the whole head, grouped key-value heads, full causal attention, one residual stream. That is
Llama, Mistral (without a window), Qwen2 and Qwen3, whatever their weights are stored in.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from evalq.errors import ParentError
from evalq.kernels.linear import QuantizedLinear

__all__ = ["FAMILIES", "Block", "Decoder", "Linear", "describe", "side_by_side"]

FAMILIES = ("llama", "mistral", "qwen2", "qwen3")
"""``model_type`` of the models that are read."""

_STATIC_ROPE = ("default", "linear", "llama3", "yarn")
_ATTENTION = {"q_proj", "k_proj", "v_proj", "o_proj", "q_norm", "k_norm"}
_FEED_FORWARD = {"gate_proj", "up_proj", "down_proj", "act_fn"}
_LAYER = {"self_attn", "mlp", "input_layernorm", "post_attention_layernorm"}

Linear = nn.Linear | QuantizedLinear


@dataclass(frozen=True, slots=True, eq=False)
class Block:
    """One layer.

    Args:
        qkv: products to queries, keys and values, or the one product that they were joined to.
        o, down: products back to the residual stream.
        gate_up: products to gate and up, or the one that they were joined to.
        attention_norm, feed_forward_norm: weights of norms, ``[hidden]``.
        q_norm, k_norm: weights of norms of each head, ``[head_dim]``.
    """

    qkv: tuple[Linear, ...]
    o: Linear
    gate_up: tuple[Linear, ...]
    down: Linear
    attention_norm: Tensor
    feed_forward_norm: Tensor
    q_norm: Tensor | None
    k_norm: Tensor | None


def side_by_side(products: tuple[Linear, ...], x: Tensor) -> Tensor:
    """The products of ``x``, one after the other in the last axis."""
    if len(products) == 1:
        joined: Tensor = products[0](x)
        return joined
    return torch.cat([product(x) for product in products], -1)


@dataclass(frozen=True, slots=True, eq=False)
class Decoder:
    """A plain decoder.

    Args:
        blocks: its layers.
        embedding: ``[vocabulary, hidden]``.
        norm: weight of the last norm, ``[hidden]``.
        head: ``[vocabulary, hidden]`` product to logits.
        heads, kv_heads, head_dim: of attention.
        epsilon: of every norm.
        rotary: the module that gives cosines and sines of positions.
        device, dtype: of weights and activations.
        length: positions that the model is made for.
    """

    blocks: tuple[Block, ...]
    embedding: Tensor
    norm: Tensor
    head: Linear
    heads: int
    kv_heads: int
    head_dim: int
    epsilon: float
    rotary: nn.Module
    device: torch.device
    dtype: torch.dtype
    length: int

    @property
    def hidden(self) -> int:
        """Width of the residual stream."""
        return self.embedding.shape[1]

    @property
    def kv_bytes(self) -> int:
        """Bytes of keys and values of one token of one row, over all layers."""
        size = torch.finfo(self.dtype).bits // 8
        return 2 * len(self.blocks) * self.kv_heads * self.head_dim * size

    def tables(self, length: int) -> tuple[Tensor, Tensor]:
        """Cosines and sines of positions 0 to ``length - 1``: float32 ``[length, head_dim]``."""
        positions = torch.arange(length, device=self.device)[None]
        like = torch.zeros(1, dtype=torch.float32, device=self.device)
        with torch.inference_mode():
            cos, sin = self.rotary(like, positions)
        return cos[0].contiguous(), sin[0].contiguous()


def _refuse(module: Any, why: str) -> ParentError:
    return ParentError(
        f"{type(module).__name__} is no plain decoder: {why}",
        hint="It runs by transformers' own forward pass.",
    )


def _check_config(module: Any) -> Any:
    config = module.config
    if config.model_type not in FAMILIES:
        raise _refuse(module, f"model type {config.model_type!r} (known: {', '.join(FAMILIES)})")
    if getattr(config, "hidden_act", "silu") != "silu":
        raise _refuse(module, f"activation {config.hidden_act!r}, not silu")
    types = set(getattr(config, "layer_types", None) or ()) - {"full_attention"}
    window = getattr(config, "sliding_window", None)
    windowed = config.model_type == "mistral" and window is not None
    if types or (windowed and window < config.max_position_embeddings):
        raise _refuse(module, "some layers attend to a window only")
    kind = (getattr(config, "rope_parameters", None) or {}).get("rope_type", "default")
    if kind not in _STATIC_ROPE:
        raise _refuse(module, f"positions of kind {kind!r} depend on the length that was read")
    return config


def _expect(module: Any, part: nn.Module, known: set[str]) -> None:
    """Anything that is not known might be computed with, so it is refused."""
    extra = {name for name, _ in part.named_children()} - known
    if extra:
        raise _refuse(module, f"it has layers that are not known: {', '.join(sorted(extra))}")
    if part._forward_pre_hooks or part._forward_hooks:
        raise _refuse(module, "hooks change what its layers compute")


def _linear(module: Any, layer: nn.Module) -> Linear:
    if not isinstance(layer, (nn.Linear, QuantizedLinear)):
        raise _refuse(module, f"a {type(layer).__name__} in place of a linear layer")
    if layer._forward_pre_hooks or layer._forward_hooks:
        raise _refuse(module, "hooks change what its layers compute")
    return layer


def _block(module: Any, layer: Any) -> Block:
    _expect(module, layer, _LAYER)
    _expect(module, layer.self_attn, _ATTENTION)
    _expect(module, layer.mlp, _FEED_FORWARD)
    attention, mlp = layer.self_attn, layer.mlp
    norms = [getattr(attention, name, None) for name in ("q_norm", "k_norm")]
    heads = ("q_proj", "k_proj", "v_proj")
    return Block(
        tuple(_linear(module, getattr(attention, name)) for name in heads),
        _linear(module, attention.o_proj),
        tuple(_linear(module, getattr(mlp, name)) for name in ("gate_proj", "up_proj")),
        _linear(module, mlp.down_proj),
        layer.input_layernorm.weight,
        layer.post_attention_layernorm.weight,
        *(None if norm is None else norm.weight for norm in norms),
    )


def describe(module: Any) -> Decoder:
    """The parts of a transformers causal LM.

    Raises:
        ParentError: it is no plain decoder; the message says what it has instead.
    """
    config = _check_config(module)
    inner = module.model
    head_dim = getattr(config, "head_dim", None)
    return Decoder(
        blocks=tuple(_block(module, layer) for layer in inner.layers),
        embedding=inner.embed_tokens.weight,
        norm=inner.norm.weight,
        head=_linear(module, module.lm_head),
        heads=config.num_attention_heads,
        kv_heads=config.num_key_value_heads,
        head_dim=head_dim or config.hidden_size // config.num_attention_heads,
        epsilon=config.rms_norm_eps,
        rotary=inner.rotary_emb,
        device=inner.embed_tokens.weight.device,
        dtype=inner.embed_tokens.weight.dtype,
        length=config.max_position_embeddings,
    )
