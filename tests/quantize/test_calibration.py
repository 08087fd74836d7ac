import hashlib

import numpy as np
import pytest
import torch

from evalq.errors import QuantizationError
from evalq.quantize.calibration import Calibration, calibration_from_texts


class Letters:
    """One token a character; ``bos`` is put before every text, as Llama's tokenizers do."""

    def __init__(self, bos=None, eos=None):
        self.bos_token_id, self.eos_token_id = bos, eos

    def __call__(self, text, add_special_tokens=True):
        ids = [ord(c) for c in text]
        if add_special_tokens and self.bos_token_id is not None:
            ids.insert(0, self.bos_token_id)
        return {"input_ids": ids}


TEXT = "".join(chr(1000 + i) for i in range(200))


def test_windows_are_pieces_of_the_text_that_do_not_overlap():
    windows = calibration_from_texts([TEXT], Letters(), 10, 16, 3, "t").tokens
    assert windows.shape == (10, 16)
    assert windows.dtype == torch.int64
    assert (windows.diff(dim=1) == 1).all()
    assert windows.unique().numel() == 160


def test_the_seed_decides():
    first, again, other = (
        calibration_from_texts([TEXT], Letters(), 4, 16, seed, "t") for seed in (3, 3, 4)
    )
    assert first.hash == again.hash != other.hash


def test_documents_are_parted_by_the_end_token():
    windows = calibration_from_texts(["ab", "cd", " "], Letters(eos=7), 1, 5, 0, "t").tokens
    assert windows.tolist() == [[97, 98, 7, 99, 100]]


def test_every_window_starts_as_the_tokenizer_starts_texts():
    windows = calibration_from_texts([TEXT], Letters(bos=5), 4, 16, 0, "t").tokens
    assert windows.shape == (4, 16)
    assert (windows[:, 0] == 5).all()
    assert (windows[:, 1:] >= 1000).all()


def test_too_little_text_says_what_it_would_do_for():
    with pytest.raises(QuantizationError, match="200 tokens") as caught:
        calibration_from_texts([TEXT], Letters(), 13, 16, 0, "t")
    assert "at most 12" in caught.value.hint
    with pytest.raises(QuantizationError, match="shorter windows"):
        calibration_from_texts(["abc"], Letters(), 1, 16, 0, "t")


@pytest.mark.parametrize("texts", [[], [""], [" \n\t"]])
def test_no_text(texts):
    with pytest.raises(QuantizationError, match="no text"):
        calibration_from_texts(texts, Letters(), 1, 4, 0, "empty.txt")


def test_the_hash_is_that_of_the_ids():
    tokens = torch.arange(6).reshape(2, 3)
    expected = hashlib.sha256(b"(2, 3):" + np.arange(6, dtype="<i8").tobytes()).hexdigest()
    assert Calibration.from_tokens(tokens, "x").hash == expected
    assert Calibration.from_tokens(tokens.reshape(3, 2), "x").hash != expected


@pytest.mark.parametrize("tokens", [torch.zeros(3), torch.zeros(0, 4).long(), torch.rand(2, 2)])
def test_tokens_that_are_none(tokens):
    with pytest.raises(QuantizationError, match="matrix of ids"):
        Calibration.from_tokens(tokens, "x")
