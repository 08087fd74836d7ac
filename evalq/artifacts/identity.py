"""Identity is content: the hash that cache, resume and pairing know a model by.

No torch here: hashing reads bytes.
"""

from __future__ import annotations

import hashlib
from pathlib import Path

from evalq.errors import ArtifactError
from evalq.schema import content_hash

__all__ = ["MANIFEST", "hash_directory", "hash_file", "identity_files"]

MANIFEST = "evalq-manifest.json"
"""What made the artifact; lies beside the weights and is not part of their identity."""

_SUFFIXES = (".safetensors", ".safetensors.index.json", ".tiktoken", ".model", ".jinja")
_NAMES = frozenset(
    {
        "added_tokens.json",
        "chat_template.json",
        "config.json",
        "generation_config.json",
        "merges.txt",
        "quant_config.json",
        "quantize_config.json",
        "special_tokens_map.json",
        "tokenizer.json",
        "tokenizer_config.json",
        "vocab.json",
        "vocab.txt",
    }
)
_BLOCK = 1 << 22


def identity_files(directory: Path) -> list[Path]:
    """The files that a model is: its weights, configuration and tokenizer, sorted by name.

    A README, a manifest, a cache or a licence beside them do not count.
    """
    return sorted(
        path
        for path in directory.iterdir()
        if path.is_file() and (path.name in _NAMES or path.name.endswith(_SUFFIXES))
    )


def hash_file(path: Path) -> str:
    """SHA-256 (hex) of a file's bytes, read in blocks.

    Raises:
        ArtifactError: the file cannot be read.
    """
    digest = hashlib.sha256()
    try:
        with path.open("rb") as file:
            while block := file.read(_BLOCK):
                digest.update(block)
    except OSError as error:
        raise ArtifactError(f"cannot read {path}: {error.strerror}") from None
    return digest.hexdigest()


def hash_directory(directory: Path) -> str:
    """Content hash (SHA-256, hex) of a model directory.

    Taken of the names and bytes of ``identity_files``: the same files under another path, with
    other times or another manifest have the same hash.

    Raises:
        ArtifactError: no directory, no ``config.json`` or no safetensors in it, or a file that
            cannot be read.
    """
    if not directory.is_dir():
        raise ArtifactError(f"{directory} is no directory", hint="Give a model directory.")
    files = identity_files(directory)
    names = {path.name for path in files}
    if "config.json" not in names or not any(n.endswith(".safetensors") for n in names):
        raise ArtifactError(
            f"{directory} holds no model: config.json and *.safetensors are what it is known by",
            hint=f"Found: {', '.join(sorted(p.name for p in directory.iterdir())) or 'nothing'}.",
        )
    return content_hash({path.name: hash_file(path) for path in files})
