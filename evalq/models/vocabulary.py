"""Tokens as text and bytes, and back: what endpoints name tokens by."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from typing import Any

from transformers import PreTrainedTokenizerBase

__all__ = ["Vocabulary"]


def _byte_alphabet() -> dict[str, int]:
    """GPT-2's printable stand-ins for the 256 bytes, which byte-level tokenizers write."""
    plain = [*range(33, 127), *range(161, 173), *range(174, 256)]
    rest = [b for b in range(256) if b not in plain]
    table = {chr(b): b for b in plain}
    table.update({chr(256 + i): b for i, b in enumerate(rest)})
    return table


_ALPHABET = _byte_alphabet()


class Vocabulary:
    """A tokenizer's tokens by text and by bytes.

    Args:
        tokenizer: of the model.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase) -> None:
        self._tokenizer: Any = tokenizer
        self._special = frozenset(int(i) for i in tokenizer.all_special_ids)

    def __len__(self) -> int:
        return len(self._tokenizer)

    def text(self, ids: Sequence[int]) -> str:
        """The text of tokens, special ones included; cut characters show as U+FFFD."""
        found: str = self._tokenizer.decode(list(ids), skip_special_tokens=False)
        return found

    def bytes_of(self, token: int) -> bytes:
        """The bytes that a token stands for; those of its text where it has no others."""
        if token not in self._special:
            piece = self._tokenizer.convert_ids_to_tokens(token)
            if isinstance(piece, str) and piece and all(c in _ALPHABET for c in piece):
                return bytes(_ALPHABET[c] for c in piece)
        return self.text([token]).encode("utf-8", "surrogatepass")

    def name(self, token: int) -> str:
        """What OpenAI's completions call a token: its text, or ``bytes:\\xe2\\x80`` where it is no
        whole character."""
        raw = self.bytes_of(token)
        try:
            return raw.decode("utf-8")
        except UnicodeDecodeError:
            return "bytes:" + "".join(f"\\x{b:02x}" for b in raw)

    @cached_property
    def _by_bytes(self) -> dict[bytes, int | None]:
        table: dict[bytes, int | None] = {}
        for token in range(len(self._tokenizer)):
            raw = self.bytes_of(token)
            # Two tokens of the same bytes cannot be told apart by them.
            table[raw] = None if raw in table else token
        return table

    def find(self, name: str | bytes) -> int | None:
        """The token of that name or those bytes; ``None`` where there is none, or not only one."""
        if isinstance(name, str):
            if name.startswith("token_id:"):
                digits = name.removeprefix("token_id:")
                value = int(digits) if digits.isascii() and digits.isdigit() else -1
                return value if 0 <= value < len(self) else None
            if name.startswith("bytes:"):
                try:
                    name = bytes.fromhex(name.removeprefix("bytes:").replace("\\x", ""))
                except ValueError:
                    return None
            else:
                name = name.encode("utf-8", "surrogatepass")
        return self._by_bytes.get(name)
