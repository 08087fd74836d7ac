"""Codes to 32-bit words and back, in the three orders that published formats use.

All three are one dense little-endian bit stream: code ``j`` of a row lies at bits ``bits * j`` to
``bits * j + bits - 1``, and bit ``k`` of the stream is bit ``k % 32`` of word ``k // 32``. They
differ in which axis is packed and, for AWQ, in the order of the columns within a word:

- compressed-tensors packs a weight along its inputs, and zero points along the outputs;
- GPTQ stores the transpose: words run down the inputs (at 3 bits 32 codes take 3 words, and codes
  10 and 21 straddle two);
- AWQ packs 4-bit codes of the transpose along the outputs, eight to a word, interleaved.

Everything works on bytes, eight codes to ``bits`` bytes, so that no wide intermediate is made.
"""

from __future__ import annotations

import math
import sys

import torch
from torch import Tensor

from evalq.errors import KernelError
from evalq.schema import BITS

__all__ = [
    "AWQ_ORDER",
    "pack_awq",
    "pack_columns",
    "pack_rows",
    "unpack_awq",
    "unpack_columns",
    "unpack_padded_rows",
    "unpack_rows",
    "words_needed",
]

AWQ_ORDER = (0, 2, 4, 6, 1, 3, 5, 7)
"""Nibble ``i`` of an AWQ word holds the column ``AWQ_ORDER[i]`` of its eight."""


def words_needed(count: int, bits: int) -> int:
    """32-bit words that ``count`` codes of ``bits`` bits take: ``ceil(count * bits / 32)``."""
    return math.ceil(count * bits / 32)


def _require(tensor: Tensor, dtype: torch.dtype, bits: int) -> None:
    if bits not in BITS:
        raise KernelError(f"codes of {bits} bits cannot be packed", hint="Widths are 2 to 8 bits.")
    if tensor.dtype != dtype or tensor.ndim != 2:
        raise KernelError(
            f"expected a matrix of {dtype}, got {tensor.dtype} of shape {tuple(tensor.shape)}"
        )
    if sys.byteorder != "little":
        raise KernelError("packing is written for little-endian machines only")


def pack_rows(codes: Tensor, bits: int) -> Tensor:
    """Pack along the last axis (compressed-tensors ``weight_packed``).

    Args:
        codes: uint8 ``[rows, n]``, in ``[0, 2**bits)``.
        bits: 2 to 8.

    Returns:
        int32 ``[rows, ceil(n * bits / 32)]``; unused bits of the last word are 0.

    Raises:
        KernelError: another dtype, shape or width, or a code that does not fit.

    >>> codes = torch.arange(8, dtype=torch.uint8)[None]
    >>> hex(pack_rows(codes, 4).item())
    '0x76543210'
    """
    _require(codes, torch.uint8, bits)
    if codes.numel() and int(codes.max()) >> bits:
        raise KernelError(f"a code of {int(codes.max())} does not fit in {bits} bits")
    rows, count = codes.shape
    blocks = math.ceil(count / 8)
    padded = torch.nn.functional.pad(codes, (0, blocks * 8 - count)).view(rows, blocks, 8)
    packed = torch.zeros(rows, blocks, bits, dtype=torch.uint8, device=codes.device)
    for j in range(8):
        byte, offset = divmod(j * bits, 8)
        packed[:, :, byte] |= padded[:, :, j] << offset
        if offset + bits > 8:
            packed[:, :, byte + 1] |= padded[:, :, j] >> (8 - offset)
    stream = packed.view(rows, blocks * bits)
    size = 4 * words_needed(count, bits)
    # The stream ends with the last whole block of eight codes; words end every four bytes.
    stream = torch.nn.functional.pad(stream, (0, max(0, size - stream.shape[1])))[:, :size]
    return stream.flatten().view(torch.int32).view(rows, size // 4)


def unpack_rows(words: Tensor, bits: int, count: int) -> Tensor:
    """The inverse of ``pack_rows``.

    Args:
        words: int32 ``[rows, ceil(count * bits / 32)]``.
        bits: 2 to 8.
        count: codes a row.

    Returns:
        uint8 ``[rows, count]``.

    Raises:
        KernelError: another dtype or width, or a number of words that does not hold ``count``.
    """
    _require(words, torch.int32, bits)
    if words.shape[1] != words_needed(count, bits):
        raise KernelError(
            f"{words.shape[1]} words a row do not hold {count} codes of {bits} bits, "
            f"which take {words_needed(count, bits)}"
        )
    rows = words.shape[0]
    blocks = math.ceil(count / 8)
    stream = words.flatten().view(torch.uint8).view(rows, 4 * words.shape[1])
    stream = torch.nn.functional.pad(stream, (0, max(0, blocks * bits - stream.shape[1])))
    packed = stream[:, : blocks * bits].reshape(rows, blocks, bits)
    codes = torch.empty(rows, blocks, 8, dtype=torch.uint8, device=words.device)
    for j in range(8):
        byte, offset = divmod(j * bits, 8)
        value = packed[:, :, byte] >> offset
        if offset + bits > 8:
            value = value | (packed[:, :, byte + 1] << (8 - offset))
        codes[:, :, j] = value & ((1 << bits) - 1)
    return codes.view(rows, blocks * 8)[:, :count].contiguous()


def unpack_padded_rows(words: Tensor, bits: int, count: int) -> Tensor:
    """Codes of the older compressed-tensors layout: ``32 // bits`` codes a word, the rest unused.

    At 2, 4 and 8 bits that is the dense layout. Nothing writes it any more.

    Args:
        words: int32 ``[rows, ceil(count / (32 // bits))]``.
        bits: 2 to 8.
        count: codes a row.

    Returns:
        uint8 ``[rows, count]``.

    Raises:
        KernelError: another dtype or width, or a number of words that does not hold ``count``.
    """
    _require(words, torch.int32, bits)
    each = 32 // bits
    if words.shape[1] != math.ceil(count / each):
        raise KernelError(f"{words.shape[1]} words a row do not hold {count} codes, {each} a word")
    shifts = torch.arange(each, device=words.device, dtype=torch.int32) * bits
    codes = (words[:, :, None] >> shifts) & ((1 << bits) - 1)
    return codes.to(torch.uint8).flatten(1)[:, :count].contiguous()


def pack_columns(codes: Tensor, bits: int) -> Tensor:
    """Pack along the first axis: GPTQ ``qweight`` of ``codes = [in, out]``.

    Args:
        codes: uint8 ``[n, columns]``.
        bits: 2 to 8.

    Returns:
        int32 ``[ceil(n * bits / 32), columns]``.

    Raises:
        KernelError: as for ``pack_rows``.
    """
    _require(codes, torch.uint8, bits)
    return pack_rows(codes.T.contiguous(), bits).T.contiguous()


def unpack_columns(words: Tensor, bits: int, count: int) -> Tensor:
    """The inverse of ``pack_columns``: uint8 ``[count, columns]``.

    Raises:
        KernelError: as for ``unpack_rows``.
    """
    _require(words, torch.int32, bits)
    return unpack_rows(words.T.contiguous(), bits, count).T.contiguous()


def _awq_permutation(columns: int, inverse: bool, device: torch.device) -> Tensor:
    if columns % 8:
        raise KernelError(
            f"{columns} output columns are no multiple of 8, which the AWQ order needs"
        )
    order = torch.tensor(AWQ_ORDER, device=device)
    if inverse:
        order = torch.argsort(order)
    return (torch.arange(0, columns, 8, device=device)[:, None] + order).flatten()


def pack_awq(codes: Tensor) -> Tensor:
    """Pack 4-bit codes along the last axis in AWQ's interleaved order.

    Args:
        codes: uint8 ``[in, out]`` (weights) or ``[groups, out]`` (zeros), in ``[0, 16)``;
            ``out`` a multiple of 8.

    Returns:
        int32 ``[in, out / 8]``.

    Raises:
        KernelError: another dtype or shape, or a code above 15.
    """
    _require(codes, torch.uint8, 4)
    return pack_rows(codes[:, _awq_permutation(codes.shape[1], False, codes.device)], 4)


def unpack_awq(words: Tensor) -> Tensor:
    """The inverse of ``pack_awq``: int32 ``[in, out / 8]`` to uint8 ``[in, out]``.

    Raises:
        KernelError: no matrix of int32.
    """
    _require(words, torch.int32, 4)
    columns = 8 * words.shape[1]
    return unpack_rows(words, 4, columns)[:, _awq_permutation(columns, True, words.device)]
