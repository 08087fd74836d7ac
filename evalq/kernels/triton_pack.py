"""Codes in the layout of the Triton kernel: 16-bit words of codes that lie ``C`` columns apart.

A chunk is ``SETS * C`` consecutive columns. Word ``(chunk, w, row, c)`` holds bits of the codes of
columns ``chunk * SETS * C + j * C + c`` for several ``j``; ``FIELDS`` says which. Rows of a chunk
follow each other, so that a tile of rows is one contiguous block of memory, read 16 bytes a thread.
"""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ["FIELDS", "SETS", "WORDS", "choose_columns", "pack_words", "unpack_words"]

SETS = {2: 8, 3: 16, 4: 4, 6: 8, 8: 2}
"""Codes that ``WORDS`` 16-bit words hold, by bits."""
WORDS = {2: 1, 3: 3, 4: 1, 6: 3, 8: 1}
"""16-bit words that ``SETS`` codes take, by bits."""


def _fields(bits: int) -> tuple[tuple[tuple[int, int, int, int], ...], ...]:
    """For each set ``j`` its parts ``(word, shift in the word, shift in the code, width)``."""
    if bits == 3:
        # Five codes a word leave one bit in each of three words: the sixteenth code.
        plain = [((j // 5, 3 * (j % 5), 0, 3),) for j in range(15)]
        return (*plain, tuple((w, 15, w, 1) for w in range(3)))
    if bits == 6:
        # Two codes a word leave four bits in each of three words: the seventh and eighth codes.
        plain = [((j // 2, 6 * (j % 2), 0, 6),) for j in range(6)]
        spare = [((0, 12, 0, 4), (2, 12, 4, 2)), ((1, 12, 0, 4), (2, 14, 4, 2))]
        return (*plain, *spare)
    return tuple(((0, bits * j, 0, bits),) for j in range(SETS[bits]))


FIELDS = {bits: _fields(bits) for bits in SETS}
"""Where each code of a chunk lies, by bits."""


def choose_columns(bits: int, group: int, columns: int) -> int:
    """``C``: 32 or 16, the larger unless it splits a group or pads the columns more.

    Args:
        bits: a key of ``SETS``.
        group: columns a scale; 0 for one scale a row.
        columns: of the weight.
    """
    options = [c for c in (32, 16) if not group or group % c == 0]
    return min(options, key=lambda c: (-(-columns // (SETS[bits] * c)) * SETS[bits] * c, -c))


def pack_words(codes: Tensor, bits: int, width: int) -> Tensor:
    """Pack codes.

    Args:
        codes: uint8 ``[rows, columns]``, in ``[0, 2**bits)``, columns a multiple of
            ``SETS[bits] * width``.
        bits: a key of ``SETS``.
        width: ``C``.

    Returns:
        int16 ``[chunks, words, rows, C]``.
    """
    rows = codes.shape[0]
    chunked = codes.view(rows, -1, SETS[bits], width)
    words = torch.zeros(
        chunked.shape[1], WORDS[bits], rows, width, dtype=torch.int32, device=codes.device
    )
    for j, parts in enumerate(FIELDS[bits]):
        code = chunked[:, :, j].transpose(0, 1).to(torch.int32)
        for word, shift, lowest, size in parts:
            words[:, word] |= ((code >> lowest) & ((1 << size) - 1)) << shift
    # The top bit of a word is the sign of an int16.
    return torch.where(words >= 1 << 15, words - (1 << 16), words).to(torch.int16)


def unpack_words(words: Tensor, bits: int) -> Tensor:
    """The inverse of ``pack_words``: uint8 ``[rows, columns]``."""
    chunks, _, rows, width = words.shape
    wide = words.to(torch.int32) & 0xFFFF
    codes = torch.zeros(rows, chunks, SETS[bits], width, dtype=torch.uint8, device=words.device)
    for j, parts in enumerate(FIELDS[bits]):
        code = torch.zeros_like(wide[:, 0])
        for word, shift, lowest, size in parts:
            code |= ((wide[:, word] >> shift) & ((1 << size) - 1)) << lowest
        codes[:, :, j] = code.transpose(0, 1).to(torch.uint8)
    return codes.view(rows, -1)
