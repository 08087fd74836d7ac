"""Decoding on a CPU in compiled C: one call a token (``evalq/kernels/csrc/decode.c``)."""

from __future__ import annotations

import ctypes
from typing import Any

import torch
from torch import Tensor, nn

from evalq.errors import KernelError
from evalq.kernels import native
from evalq.kernels.cpu import stored_bits
from evalq.kernels.linear import QuantizedLinear
from evalq.kernels.packing import group_count, group_size
from evalq.models.lean.eager import Slots
from evalq.models.lean.spec import Block, Decoder, Linear

__all__ = ["NativeStep", "why_not"]

_KINDS = {torch.float32: 0, torch.bfloat16: 1}
_PACKED = 2
_LANES = 16
_pointer, _long, _float, _int = ctypes.c_void_p, ctypes.c_int64, ctypes.c_float, ctypes.c_int32


class _Matrix(ctypes.Structure):
    _fields_ = (
        *((name, _pointer) for name in ("data", "scales", "zeros", "bias")),
        *((name, _long) for name in ("out", "columns_in", "columns", "groups", "group_words")),
        ("zero", _float),
        ("kind", _int),
        ("bits", _int),
    )


_PRODUCTS = ("q", "k", "v", "o", "gate", "up", "down")
_NORMS = ("attention_norm", "feed_forward_norm", "q_norm", "k_norm")


class _Layer(ctypes.Structure):
    _fields_ = (
        *((name, _Matrix) for name in _PRODUCTS),
        *((name, _pointer) for name in (*_NORMS, "keys", "values")),
    )


class _Model(ctypes.Structure):
    _fields_ = (
        ("layers", ctypes.POINTER(_Layer)),
        ("head", _Matrix),
        *((name, _pointer) for name in ("embedding", "norm", "cos", "sin")),
        *((name, _long) for name in ("count", "hidden", "inner", "heads", "kv_heads")),
        *((name, _long) for name in ("head_dim", "length")),
        ("epsilon", _float),
        ("scale", _float),
        ("embedding_kind", _int),
        ("cache_kind", _int),
    )


def _products(block: Block) -> tuple[Linear, ...]:
    """In the order of ``_PRODUCTS``."""
    return (*block.qkv, block.o, *block.gate_up, block.down)


def why_not(decoder: Decoder) -> str | None:
    """Why the compiled step cannot run this model, in words that end a sentence; else ``None``."""
    missing = native.why_not()
    if missing is not None:
        return f"is not built ({missing})"
    if decoder.device.type != "cpu":
        return "runs on a CPU only"
    if decoder.dtype not in _KINDS:
        return "takes float32 and bfloat16 only"
    if decoder.head_dim % _LANES:
        return f"needs heads of a multiple of {_LANES} (these are {decoder.head_dim} wide)"
    if any(len(_products(block)) != len(_PRODUCTS) for block in decoder.blocks):
        return "takes products that were not joined"
    for layer in (decoder.head, *(p for block in decoder.blocks for p in _products(block))):
        if isinstance(layer, QuantizedLinear):
            if layer.packed.kernel != "native":
                return f"reads weights of the kernel native only, not of {layer.packed.kernel}"
            if layer.packed.activation_bits is not None:
                return "does not round activations to 8 bits"
        elif layer.weight.dtype not in _KINDS or not layer.weight.is_contiguous():
            return "takes float32 and bfloat16 weights in rows only"
    return None


class NativeStep:
    """Reads one token a row.

    Activations are float32 from the embedding to the logits, whatever the weights' dtype: rounding
    is that of the weights and of the cache alone.

    Args:
        decoder: the model.
        slots: its keys and values; filled further by every step.

    Raises:
        KernelError: ``why_not`` has a reason.
    """

    name = "native"

    def __init__(self, decoder: Decoder, slots: Slots) -> None:
        reason = why_not(decoder)
        if reason is not None:
            raise KernelError(f"the compiled decoding step {reason}")
        self._slots = slots
        self._vocabulary = decoder.head.out_features
        self._held: list[Tensor] = []
        layers = (_Layer * len(decoder.blocks))()
        for i, block in enumerate(decoder.blocks):
            self._fill(layers[i], block, slots, i)
        self._model = _Model(
            layers=layers,
            head=self._matrix(decoder.head),
            embedding=self._keep(decoder.embedding.detach().contiguous()),
            norm=self._float(decoder.norm),
            cos=self._float(slots.cos),
            sin=self._float(slots.sin),
            count=len(decoder.blocks),
            hidden=decoder.hidden,
            inner=decoder.blocks[0].down.in_features,
            heads=decoder.heads,
            kv_heads=decoder.kv_heads,
            head_dim=decoder.head_dim,
            length=slots.length,
            epsilon=decoder.epsilon,
            scale=decoder.head_dim**-0.5,
            embedding_kind=_KINDS[decoder.embedding.dtype],
            cache_kind=_KINDS[slots.keys.dtype],
        )
        self._layers = layers
        self._run = native.library().evalq_step

    def _keep(self, tensor: Tensor) -> int:
        self._held.append(tensor)
        return tensor.data_ptr()

    def _float(self, tensor: Tensor | None) -> int | None:
        if tensor is None:
            return None
        return self._keep(tensor.detach().to(torch.float32).contiguous())

    def _fill(self, layer: Any, block: Block, slots: Slots, index: int) -> None:
        for name, product in zip(_PRODUCTS, _products(block), strict=True):
            setattr(layer, name, self._matrix(product))
        for name in _NORMS:
            setattr(layer, name, self._float(getattr(block, name)))
        layer.keys = slots.keys[index].data_ptr()
        layer.values = slots.values[index].data_ptr()

    def _matrix(self, layer: Linear) -> _Matrix:
        bias = self._float(layer.bias)
        if isinstance(layer, nn.Linear):
            weight = layer.weight.detach()
            out, columns = weight.shape
            kind = _KINDS[weight.dtype]
            return _Matrix(
                data=self._keep(weight), bias=bias, out=out, columns_in=columns, kind=kind
            )
        packed = layer.packed
        words, scales, *zeros = packed.tensors
        bits = stored_bits(packed.scheme.bits)
        groups = group_count(packed.scheme, packed.shape[1])
        size = group_size(packed.scheme, packed.shape[1])
        return _Matrix(
            data=self._keep(words),
            scales=self._keep(scales),
            zeros=self._keep(zeros[0]) if zeros else None,
            bias=bias,
            out=packed.shape[0],
            columns_in=packed.shape[1],
            columns=words.shape[1],
            groups=groups,
            group_words=words.shape[1] if groups == 1 else size // (32 // bits),
            zero=float(1 << (packed.scheme.bits - 1)),
            kind=_PACKED,
            bits=bits,
        )

    def __call__(self, tokens: Tensor) -> Tensor:
        """Logits float32 ``[rows, vocabulary]`` after one more token a row, int64 ``[rows]``.

        Raises:
            KernelError: no slot is left, a token outside the vocabulary, or no memory.
        """
        slots = self._slots
        if slots.filled >= slots.length:
            raise KernelError(f"all {slots.length} slots are filled")
        tokens = tokens.to(torch.int64).contiguous()
        if tokens.shape != (slots.rows,) or not 0 <= int(tokens.min()) <= int(tokens.max()):
            raise KernelError(f"{tuple(tokens.shape)} tokens for {slots.rows} rows")
        if int(tokens.max()) >= self._vocabulary:
            raise KernelError(f"token {int(tokens.max())} is outside the vocabulary")
        positions = torch.full((slots.rows,), slots.filled, dtype=torch.int64)
        logits = torch.empty(slots.rows, self._vocabulary)
        failed = self._run(
            ctypes.byref(self._model),
            tokens.data_ptr(),
            positions.data_ptr(),
            slots.rows,
            logits.data_ptr(),
            torch.get_num_threads(),
        )
        if failed:
            raise KernelError(f"no memory for a decoding step of {slots.rows} rows")
        slots.filled += 1
        return logits
