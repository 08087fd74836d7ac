"""safetensors files that are written one tensor at a time and read without a copy.

``safetensors.save_file`` wants all tensors of a file in memory, and their bytes once more. Here
each tensor goes to a spool on disk as it comes; the file is then put together from there. Its bytes
are those that ``save_file`` gives (checked in the tests).
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import BinaryIO

import torch
from safetensors import safe_open
from torch import Tensor

__all__ = ["TensorWriter", "mapped", "write_tensors"]

_NAMES = {
    torch.bool: "BOOL",
    torch.uint8: "U8",
    torch.int8: "I8",
    torch.int16: "I16",
    torch.uint16: "U16",
    torch.float16: "F16",
    torch.bfloat16: "BF16",
    torch.int32: "I32",
    torch.uint32: "U32",
    torch.float32: "F32",
    torch.float64: "F64",
    torch.int64: "I64",
    torch.uint64: "U64",
}
"""safetensors' words for dtypes, in its order: a file has the last of them first, so that every
tensor lies at a multiple of its own width."""
_ORDER = {dtype: place for place, dtype in enumerate(_NAMES)}
_BLOCK = 1 << 22


class TensorWriter:
    """A safetensors file in the making; use it as a context, which removes what is unfinished.

    Args:
        path: the file, which appears when :meth:`finish` is called. The spool lies beside it.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.sizes: dict[str, int] = {}
        self._entries: list[tuple[torch.dtype, str, tuple[int, ...], int]] = []
        self._spool = path.with_name(f"{path.name}.spool")
        self._file = self._spool.open("wb")
        self._end = 0

    @property
    def bytes(self) -> int:
        """Of all tensors so far."""
        return self._end

    def add(self, name: str, tensor: Tensor) -> None:
        """Write one tensor; nothing of it is kept in memory.

        Raises:
            OSError: the disk is full or read-only.
            ValueError: a name that is there already, or a dtype that safetensors has not.
        """
        if name in self.sizes:
            raise ValueError(f"{name} is written twice")
        if tensor.dtype not in _NAMES:
            raise ValueError(f"{name} is {tensor.dtype}, which safetensors does not hold")
        plain = tensor.detach().to("cpu").contiguous()
        self._entries.append((tensor.dtype, name, tuple(tensor.shape), self._end))
        self._file.write(plain.reshape(-1).view(torch.uint8).numpy().data)
        self.sizes[name] = plain.nbytes
        self._end += plain.nbytes

    def finish(self) -> None:
        """Put the file together, and on disk.

        Raises:
            OSError: the disk is full or read-only.
        """
        self._file.close()
        ordered = sorted(self._entries, key=lambda e: (-_ORDER[e[0]], e[1]))
        header: dict[str, object] = {"__metadata__": {"format": "pt"}}
        end = 0
        for dtype, name, shape, _ in ordered:
            start, end = end, end + self.sizes[name]
            words = {"dtype": _NAMES[dtype], "shape": list(shape), "data_offsets": [start, end]}
            header[name] = words
        raw = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
        raw += b" " * (-len(raw) % 8)
        with self._spool.open("rb") as source, self.path.open("wb") as target:
            target.write(len(raw).to_bytes(8, "little") + raw)
            for _, name, _, start in ordered:
                source.seek(start)
                _copy(source, target, self.sizes[name])
            target.flush()
            os.fsync(target.fileno())
        self._spool.unlink()

    def __enter__(self) -> TensorWriter:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._file.close()
        self._spool.unlink(missing_ok=True)


def _copy(source: BinaryIO, target: BinaryIO, size: int) -> None:
    while size:
        block = source.read(min(size, _BLOCK))
        if not block:
            raise OSError("the spool ends too early")
        target.write(block)
        size -= len(block)


def write_tensors(path: Path, tensors: Mapping[str, Tensor]) -> None:
    """A safetensors file of ``tensors``, whole or not there.

    Raises:
        OSError: the disk is full or read-only.
    """
    fresh = path.with_name(f"{path.name}.new")
    try:
        with TensorWriter(fresh) as writer:
            for name, tensor in tensors.items():
                writer.add(name, tensor)
            writer.finish()
        fresh.replace(path)
    finally:
        fresh.unlink(missing_ok=True)


def mapped(path: Path) -> dict[str, Tensor]:
    """The tensors of a safetensors file as views of the file: they take no memory of their own.

    Raises:
        OSError: no such file.
        SafetensorError: a file that is cut off, or none of safetensors.
    """
    with safe_open(path, framework="pt") as file:
        return {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
