"""Tokens counted without a model are those that the model's tokenizer makes."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from transformers import AutoTokenizer

from evalq.errors import ParentError
from evalq.models.counting import token_counter
from evalq.models.sources import builtin_path
from tests.models.tiny import byte_level_tokenizer

TEXTS = ["", "a b c", "212 * 62 =", "ሰላም 🎉\n\n", "<|end|> x" * 300]


def test_the_built_in_parents() -> None:
    tokenizer = AutoTokenizer.from_pretrained(builtin_path())
    assert token_counter("builtin")(TEXTS) == [len(tokenizer(t)["input_ids"]) for t in TEXTS]


@pytest.mark.parametrize("bos", [False, True])
def test_a_directorys(bos: bool, tmp_path: Path) -> None:
    tokenizer = byte_level_tokenizer(bos=bos)
    tokenizer.save_pretrained(tmp_path)
    expected = [len(tokenizer(t)["input_ids"]) for t in TEXTS]
    assert token_counter(str(tmp_path))(TEXTS) == expected


def test_what_is_no_tokenizer(tmp_path: Path) -> None:
    with pytest.raises(ParentError, match="holds no tokenizer"):
        token_counter(str(tmp_path))
    (tmp_path / "tokenizer.json").write_text("{}")
    with pytest.raises(ParentError, match="holds no tokenizer"):
        token_counter(str(tmp_path))


def test_counting_imports_neither_torch_nor_transformers() -> None:
    code = (
        "import sys; from evalq.models.counting import token_counter;"
        "token_counter('builtin')(['a']);"
        "print([m for m in ('torch', 'transformers') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
