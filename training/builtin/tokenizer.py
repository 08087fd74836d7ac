"""The built-in parent's tokenizer: one token a byte, and a few special tokens."""

from __future__ import annotations

import json
from pathlib import Path

__all__ = ["END", "END_TOKEN", "PAD", "PAD_TOKEN", "VOCABULARY", "save_tokenizer"]

END = 256
"""Opens and closes a document: both the beginning- and the end-of-sequence token."""
PAD = 257
VOCABULARY = 264
"""256 bytes, END, PAD and six reserved ids, a multiple of eight."""
END_TOKEN = "<|endoftext|>"
PAD_TOKEN = "<|pad|>"


def byte_symbols() -> list[str]:
    """The character by which the byte-level scheme of GPT-2 writes each byte, in byte order."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    symbols, extra = [], 0
    for byte in range(256):
        if byte in printable:
            symbols.append(chr(byte))
        else:
            symbols.append(chr(256 + extra))
            extra += 1
    return symbols


def save_tokenizer(out: Path) -> None:
    """Write ``tokenizer.json`` and ``tokenizer_config.json``: token id = byte value below 256."""
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

    vocabulary = {symbol: byte for byte, symbol in enumerate(byte_symbols())}
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.decoder = decoders.ByteLevel()
    specials = [END_TOKEN, PAD_TOKEN, *(f"<|reserved{i}|>" for i in range(VOCABULARY - 258))]
    tokenizer.add_special_tokens([AddedToken(t, special=True, normalized=False) for t in specials])
    out.mkdir(parents=True, exist_ok=True)
    tokenizer.save(str(out / "tokenizer.json"))
    config = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": END_TOKEN,
        "eos_token": END_TOKEN,
        "pad_token": PAD_TOKEN,
        "padding_side": "left",
        "clean_up_tokenization_spaces": False,
        "model_max_length": 1024,
    }
    (out / "tokenizer_config.json").write_text(json.dumps(config, indent=2) + "\n")
