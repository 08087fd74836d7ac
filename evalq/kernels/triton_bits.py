"""How codes become half-precision numbers by bit tricks: what the GPU kernels know as they compile.

A code is written into the mantissa of a number whose lowest bit there counts one: 128 in bfloat16,
1024 in float16, or less where the code starts at a higher bit. That number plus the zero is then
taken away, both exactly. Words are those of ``triton_pack``: ``fields`` says where a code lies, and
the functions that end in ``asm`` give the PTX for a pair of codes, one in each half of a register.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from triton.runtime.jit import constexpr_function as _constexpr

from evalq.kernels.triton_pack import SETS, WORDS

__all__ = [
    "excess_of",
    "fields_of",
    "less_zero_asm",
    "less_zero_form",
    "level_of",
    "lowest_of",
    "magic",
    "part_of",
    "parts_of",
    "place_of",
    "placed",
    "raw_asm",
    "raw_form",
    "sets_of",
    "shift_asm",
    "unit",
    "words_of",
]

# Triton reads these functions too: annotations are of built-in types.
# Triton calls them as it compiles a kernel, and Python as any other function.
constexpr_function: Callable[[Any], Any] = _constexpr


@constexpr_function
def sets_of(bits: int) -> int:
    """Codes that the words of a chunk hold for each of its columns; see ``triton_pack``."""
    return SETS[bits]


@constexpr_function
def words_of(bits: int) -> int:
    """The words that they take."""
    return WORDS[bits]


@constexpr_function
def fields_of(bits: int, j: int) -> tuple[tuple[int, int, int], ...]:
    """Where code ``j`` lies: ``(word, shift right, mask after the shift)`` of each of its parts."""
    if bits == 3:
        if j == 15:  # the top bits of all three words
            return ((0, 15, 1), (1, 14, 2), (2, 13, 4))
        return ((j // 5, 3 * (j % 5), 7),)
    if bits == 6:
        if j >= 6:  # the top four bits of one word, and two of the top four of the third
            return ((j - 6, 12, 15), (2, 8 if j == 6 else 10, 48))
        return ((j // 2, 6 * (j % 2), 63),)
    return ((0, bits * j, (1 << bits) - 1),)


@constexpr_function
def placed(bits: int, j: int, bf16: bool) -> tuple[int, tuple[tuple[int, int, int], ...]]:
    """Where code ``j`` meets the mantissa: its place, and ``(word, shift, mask)`` of its parts.

    A code need not start at the mantissa's lowest bit: at bit ``place`` of 7 (or 10) it counts
    whole units too if the exponent is that much lower. So one shift of a word serves as many
    codes as the mantissa holds.
    """
    found = fields_of(bits, j)
    mantissa = 7 if bf16 else 10
    if bits not in (2, 3, 4) or bits > mantissa:
        return 0, found
    offset = 0  # the shift of the word's last codes
    offsets = {}
    for index in range(16 // bits):
        at = bits * index
        if at - offset + bits > mantissa:
            offset = at
        offsets[at] = offset
    if bits == 3:
        # The last codes of the three words are shifted one less each, which leaves their top bits,
        # the sixteenth code, side by side.
        last = max(offsets.values())
        if j == 15:
            return 15 - last, tuple((w, last - w, 1 << (15 - last + w)) for w in range(3))
        word, at = j // 5, found[0][1]
        shift = offsets[at] - (word if offsets[at] == last else 0)
        return at - shift, ((word, shift, 7 << (at - shift)),)
    word, at, mask = found[0]
    return at - offsets[at], ((word, offsets[at], mask << (at - offsets[at])),)


@constexpr_function
def place_of(bits: int, j: int, bf16: bool) -> int:
    """The bit of the mantissa that code ``j`` begins at."""
    return int(placed(bits, j, bf16)[0])


@constexpr_function
def unit(place: int, bf16: bool) -> int:
    """Bits of the number whose mantissa counts in ones from bit ``place`` on."""
    return (127 + 7 - place) << 7 if bf16 else (15 + 10 - place) << 10


@constexpr_function
def magic(place: int, bf16: bool) -> float:
    """The number itself."""
    return float(2.0 ** ((7 if bf16 else 10) - place))


@constexpr_function
def part_of(bits: int, j: int, index: int, bf16: bool, what: int) -> int:
    """One number of one part of code ``j``: its word (0), the word's shift (1) or the mask (2)."""
    return int(placed(bits, j, bf16)[1][index][what])


@constexpr_function
def parts_of(bits: int, j: int) -> int:
    """The number of parts of code ``j``."""
    return len(fields_of(bits, j))


@constexpr_function
def less_zero_asm(bits: int, j: int, bf16: bool, scaled: bool) -> str:
    """PTX for a pair: $0 the values, $1 the zero, $2 the scale, from $3 on the shifted words."""
    kind = "bf16x2" if bf16 else "f16x2"
    place, parts = placed(bits, j, bf16)
    magic = f"0x{unit(place, bf16) * 0x10001:08x}"
    lines = [".reg .b32 t, u;"]
    for index, part in enumerate(parts):
        source = f"${3 + index}"
        wide = f"0x{part[2] * 0x10001:08x}"
        if bits == 8 and bf16:
            # Eight bits do not fit into the seven of the mantissa, but the code is stored as
            # two's complement: 128 + low seven bits, less 128 or, with the sign bit set, 256.
            lines.append(f"lop3.b32 t, {source}, 0x007f007f, {magic}, 0xEA;")
            lines.append(f"lop3.b32 u, {source}, 0x00800080, {magic}, 0xEA;")
            lines.append(f"sub.rn.{kind} t, t, u;")
        elif index:
            lines.append(f"lop3.b32 t, {source}, {wide}, t, 0xEA;")
        else:
            lines.append(f"lop3.b32 t, {source}, {wide}, {magic}, 0xEA;")
    last = "t" if scaled else "$0"
    lines.append(f"sub.rn.{kind} {last}, t, $1;")
    if scaled:
        lines.append(f"mul.rn.{kind} $0, t, $2;")
    return "{ " + " ".join(lines) + " }"


@constexpr_function
def shift_asm(shift: int) -> str:
    """PTX that shifts a pair of words as one."""
    return f"shr.b32 $0, $1, {shift};"


@constexpr_function
def less_zero_form(parts: int) -> str:
    """The operands of ``less_zero_asm``."""
    return "=r,r,r" + ",r" * parts


@constexpr_function
def excess_of(bits: int, j: int, bf16: bool) -> float:
    """By how much a raw value is larger than the code; a zero comes on top."""
    return 0.0 if bits == 8 and bf16 else float(magic(place_of(bits, j, bf16), bf16))


@constexpr_function
def lowest_of(bits: int, bf16: bool) -> float:
    """What a stored zero is larger by than the zero that raw values leave to be taken away."""
    return 0.0 if bits == 8 and bf16 else float(magic(0, bf16))


@constexpr_function
def level_of(zero: int, bits: int, bf16: bool) -> float:
    """The zero of a symmetric scheme, of its stored bits."""
    return float(zero - unit(0, bf16)) if zero > 0 else 0.0


@constexpr_function
def raw_asm(bits: int, j: int, bf16: bool, zero: int) -> str:
    """PTX of the raw values of a pair: $0 the values, from $1 on the shifted words."""
    kind = "bf16x2" if bf16 else "f16x2"
    place, parts = placed(bits, j, bf16)
    magic = f"0x{unit(place, bf16) * 0x10001:08x}"
    if bits == 8 and bf16:
        # Two's complement: 128 + low seven bits, less 128 or, with the sign bit set, 256. The zero
        # of a symmetric scheme is 0 there.
        low = f"lop3.b32 t, $1, 0x007f007f, {magic}, 0xEA; "
        high = f"lop3.b32 u, $1, 0x00800080, {magic}, 0xEA; "
        return "{ .reg .b32 t, u; " + low + high + "sub.rn.bf16x2 $0, t, u; }"
    lines = [".reg .b32 t, z;"]
    for index, part in enumerate(parts):
        to = "$0" if index == len(parts) - 1 and zero < 0 else "t"
        onto = "t" if index else magic
        lines.append(f"lop3.b32 {to}, ${1 + index}, 0x{part[2] * 0x10001:08x}, {onto}, 0xEA;")
    if zero >= 0:
        moved = ((zero - unit(0, bf16)) << place) + unit(place, bf16)
        lines.append(f"mov.b32 z, 0x{moved * 0x10001:08x}; sub.rn.{kind} $0, t, z;")
    return "{ " + " ".join(lines) + " }"


@constexpr_function
def raw_form(parts: int) -> str:
    """The operands of ``raw_asm``."""
    return "=r" + ",r" * parts
