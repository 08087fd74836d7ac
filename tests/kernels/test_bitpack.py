"""Packing against the peers' own functions, worked values, and a reader that goes bit by bit."""

from __future__ import annotations

import pytest
import torch
from compressed_tensors.compressors.pack_quantized.helpers import pack_to_int32, unpack_from_int32
from hypothesis import given, settings
from hypothesis import strategies as st

from evalq.errors import KernelError
from evalq.kernels.bitpack import (
    pack_awq,
    pack_columns,
    pack_rows,
    unpack_awq,
    unpack_columns,
    unpack_padded_rows,
    unpack_rows,
    words_needed,
)


def random_codes(rows: int, columns: int, bits: int, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, 1 << bits, (rows, columns), generator=generator).to(torch.uint8)


def bit_by_bit(words: list[int], bits: int, count: int) -> list[int]:
    """Code j is the number whose bit i is bit ``bits * j + i`` of the stream."""
    stream = [(word >> k) & 1 for word in words for k in range(32)]
    return [sum(stream[bits * j + i] << i for i in range(bits)) for j in range(count)]


def unsigned(words: torch.Tensor) -> list[int]:
    return [int(w) & 0xFFFFFFFF for w in words.flatten()]


@pytest.mark.parametrize("bits", range(2, 9))
@pytest.mark.parametrize("columns", [1, 7, 8, 10, 21, 31, 32, 33, 64, 576])
def test_rows_are_what_compressed_tensors_packs(bits, columns):
    codes = random_codes(3, columns, bits)
    packed = pack_rows(codes, bits)
    signed = (codes.to(torch.int16) - (1 << (bits - 1))).to(torch.int8)
    assert torch.equal(packed, pack_to_int32(signed, bits))
    theirs = unpack_from_int32(packed, bits, torch.Size([3, columns]))
    assert torch.equal(unpack_rows(packed, bits, columns), codes)
    assert torch.equal(theirs, signed)


@pytest.mark.parametrize("bits", range(2, 9))
def test_zero_points_are_what_compressed_tensors_packs(bits):
    codes = random_codes(40, 3, bits)
    signed = (codes.to(torch.int16) - (1 << (bits - 1))).to(torch.int8)
    assert torch.equal(pack_columns(codes, bits), pack_to_int32(signed, bits, packed_dim=0))


@settings(max_examples=60, deadline=None)
@given(
    bits=st.integers(2, 8),
    rows=st.integers(1, 5),
    columns=st.integers(1, 130),
    seed=st.integers(0, 2**31),
)
def test_unpacking_undoes_packing_and_is_dense(bits, rows, columns, seed):
    codes = random_codes(rows, columns, bits, seed)
    packed = pack_rows(codes, bits)
    assert packed.shape == (rows, words_needed(columns, bits))
    assert torch.equal(unpack_rows(packed, bits, columns), codes)
    for row in range(rows):
        assert bit_by_bit(unsigned(packed[row]), bits, columns) == codes[row].tolist()
    assert torch.equal(unpack_columns(pack_columns(codes, bits), bits, rows), codes)


def test_worked_values():
    assert unsigned(pack_rows(torch.arange(8, dtype=torch.uint8)[None], 4)) == [0x76543210]
    assert unsigned(pack_rows(torch.full((1, 8), 7, dtype=torch.uint8), 4)) == [0x77777777]
    column = torch.arange(8, dtype=torch.uint8)[:, None]
    assert unsigned(pack_columns(column, 4)) == [0x76543210]


@pytest.mark.parametrize(
    ("place", "words"), [(10, [0xC0000000, 1, 0]), (21, [0, 0x80000000, 3]), (31, [0, 0, 7 << 29])]
)
def test_three_bit_codes_straddle_words(place, words):
    """32 codes in 3 words: code 10 starts at bit 30, code 21 at bit 63, code 31 at bit 93."""
    codes = torch.zeros(1, 32, dtype=torch.uint8)
    codes[0, place] = 7
    assert unsigned(pack_rows(codes, 3)) == words


def test_three_bit_columns_follow_gptqs_published_loop():
    """The packing loop of GPTQ's reference implementation, value by value."""
    codes = random_codes(64, 5, 3)
    expected = []
    for start in range(0, 64, 32):
        block = [[int(v) for v in row] for row in codes[start : start + 32]]
        words = [[0] * 5 for _ in range(3)]
        for c in range(5):
            for j in range(10):
                words[0][c] |= block[j][c] << (3 * j)
            words[0][c] |= block[10][c] << 30
            words[1][c] |= (block[10][c] >> 2) & 1
            for j in range(10):
                words[1][c] |= block[11 + j][c] << (3 * j + 1)
            words[1][c] |= block[21][c] << 31
            words[2][c] |= (block[21][c] >> 1) & 0x3
            for j in range(10):
                words[2][c] |= block[22 + j][c] << (3 * j + 2)
        expected += [[v & 0xFFFFFFFF for v in row] for row in words]
    packed = pack_columns(codes, 3)
    assert [[int(v) & 0xFFFFFFFF for v in row] for row in packed] == expected


def test_awq_nibbles_are_interleaved():
    codes = torch.arange(8, dtype=torch.uint8)[None]
    # Nibble i holds column [0, 2, 4, 6, 1, 3, 5, 7][i].
    assert unsigned(pack_awq(codes)) == [0x75316420]
    many = random_codes(6, 64, 4)
    packed = pack_awq(many)
    assert torch.equal(unpack_awq(packed), many)
    order = [0, 2, 4, 6, 1, 3, 5, 7]
    for row in range(6):
        for word, value in enumerate(unsigned(packed[row])):
            for i in range(8):
                assert (value >> (4 * i)) & 15 == int(many[row, 8 * word + order[i]])


@pytest.mark.parametrize("bits", [3, 5, 6, 7])
def test_the_older_padded_layout_is_read(bits):
    codes = random_codes(2, 40, bits)
    each = 32 // bits
    words = []
    for row in codes.tolist():
        line = []
        for start in range(0, 40, each):
            line.append(sum(c << (bits * i) for i, c in enumerate(row[start : start + each])))
        words.append(line)
    packed = torch.tensor(words, dtype=torch.int64).to(torch.int32)
    assert torch.equal(unpack_padded_rows(packed, bits, 40), codes)


def test_what_does_not_fit_is_refused():
    codes = random_codes(2, 8, 4)
    with pytest.raises(KernelError, match="9 bits"):
        pack_rows(codes, 9)
    with pytest.raises(KernelError, match="does not fit in 3 bits"):
        pack_rows(torch.full((1, 4), 8, dtype=torch.uint8), 3)
    with pytest.raises(KernelError, match="int64"):
        pack_rows(codes.to(torch.int64), 4)
    with pytest.raises(KernelError, match="do not hold 9"):
        unpack_rows(pack_rows(codes, 4), 4, 9)
    with pytest.raises(KernelError, match="multiple of 8"):
        pack_awq(random_codes(2, 12, 4))


def test_nothing_is_packed_into_nothing():
    assert pack_rows(torch.empty(0, 8, dtype=torch.uint8), 4).shape == (0, 1)
    assert pack_rows(torch.empty(3, 0, dtype=torch.uint8), 4).shape == (3, 0)
    assert unpack_rows(torch.empty(3, 0, dtype=torch.int32), 4, 0).shape == (3, 0)
