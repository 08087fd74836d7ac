"""Counting tokens without a model: for a look at items before anything runs."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from evalq.errors import ParentError
from evalq.models.sources import BUILTIN, SMOLLM2, builtin_path, kept_conversion, smollm2_path

__all__ = ["Counter", "token_counter"]

Counter = Callable[[Sequence[str]], list[int]]
"""Texts to the number of tokens of each."""


def token_counter(parent: str) -> Counter:
    """What counts tokens as the parent's tokenizer does.

    A ``tokenizer.json`` is read as it is, with the special tokens that it adds itself;
    transformers, which takes seconds to import, is needed only where there is none.

    Args:
        parent: ``builtin``, ``smollm2``, a directory, a GGUF file or a hub name that is cached.

    Raises:
        ParentError: no such parent, or no tokenizer that can be read.
    """
    path = builtin_path() if parent == BUILTIN else Path(parent)
    if parent == SMOLLM2:
        path = smollm2_path()
    gguf = path.suffix.lower() == ".gguf" and path.is_file()
    # A GGUF file's tokenizer takes seconds to build; a run leaves it beside the weights.
    folder = kept_conversion(path) if gguf else path
    if (folder / "tokenizer.json").is_file():
        return _of_file(folder / "tokenizer.json", parent)
    where = {"pretrained_model_name_or_path": str(path.parent), "gguf_file": path.name}
    return _of_transformers(where if gguf else {"pretrained_model_name_or_path": str(path)}, parent)


def _of_file(path: Path, parent: str) -> Counter:
    from tokenizers import Tokenizer

    try:
        tokenizer = Tokenizer.from_file(str(path))
    except Exception as error:  # the library raises a bare Exception for a file that it cannot read
        raise _unreadable(parent, error) from None
    tokenizer.no_truncation()
    tokenizer.no_padding()
    # One call for all texts, and no token becomes a Python object.
    return lambda texts: [len(encoding) for encoding in tokenizer.encode_batch_fast(list(texts))]


def _of_transformers(where: dict[str, Any], parent: str) -> Counter:
    from transformers import AutoTokenizer

    try:
        tokenizer = AutoTokenizer.from_pretrained(**where, local_files_only=True)
    except (OSError, ValueError, KeyError, ImportError, RuntimeError) as error:
        raise _unreadable(parent, error) from None
    return lambda texts: [len(tokenizer(text)["input_ids"]) for text in texts]


def _unreadable(parent: str, error: Exception) -> ParentError:
    reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
    return ParentError(f"{parent} holds no tokenizer that can be read: {reason[:200]}")
