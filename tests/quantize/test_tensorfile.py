"""Files written tensor by tensor are the files that safetensors writes."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from evalq.quantize.tensorfile import TensorWriter, mapped, write_tensors


def some_tensors() -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    floats = torch.randn(7, 3, generator=generator)
    return {
        "z.bf16": floats.bfloat16(),
        "a.f32": floats,
        "codes": torch.arange(15, dtype=torch.uint8).reshape(5, 3),
        "ä.half": floats.half(),
        "int": torch.arange(4, dtype=torch.int32),
        "shape": torch.tensor([7, 3]),
        "i8": torch.tensor([-3, 4], dtype=torch.int8),
        "none": torch.zeros(0, 4),
        "one": torch.tensor(2.5, dtype=torch.float64),
        "flag": torch.tensor([True, False]),
        "turned": floats.T,
        'quote"d': torch.ones(3, dtype=torch.int16),
    }


def test_the_bytes_are_those_of_save_file(tmp_path):
    tensors = some_tensors()
    write_tensors(tmp_path / "ours.safetensors", tensors)
    plain = {name: tensor.contiguous() for name, tensor in tensors.items()}
    save_file(plain, tmp_path / "theirs.safetensors", metadata={"format": "pt"})
    ours = (tmp_path / "ours.safetensors").read_bytes()
    assert ours == (tmp_path / "theirs.safetensors").read_bytes()
    assert {p.name for p in tmp_path.iterdir()} == {"ours.safetensors", "theirs.safetensors"}


def test_what_is_mapped_is_what_was_written(tmp_path):
    tensors = some_tensors()
    write_tensors(tmp_path / "a.safetensors", tensors)
    found = mapped(tmp_path / "a.safetensors")
    assert found.keys() == tensors.keys()
    for name, tensor in load_file(tmp_path / "a.safetensors").items():
        assert torch.equal(found[name], tensor)
        assert torch.equal(found[name], tensors[name])


def anonymous() -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("RssAnon")) * 1024


def test_neither_writing_nor_mapping_takes_memory(tmp_path):
    size = 64 << 20
    piece = torch.zeros(size // 4)
    before = anonymous()
    with TensorWriter(tmp_path / "a.safetensors") as writer:
        for number in range(4):
            writer.add(str(number), piece)
        writer.finish()
    found = mapped(tmp_path / "a.safetensors")
    assert sum(float(t.sum()) for t in found.values()) == 0
    assert anonymous() - before < size // 4


def test_what_is_unfinished_is_removed(tmp_path):
    with TensorWriter(tmp_path / "a") as writer:
        writer.add("x", torch.ones(3))
        with pytest.raises(ValueError, match="twice"):
            writer.add("x", torch.ones(3))
    assert list(tmp_path.iterdir()) == []


def test_a_file_that_is_cut_off(tmp_path):
    path = tmp_path / "a.safetensors"
    write_tensors(path, some_tensors())
    path.write_bytes(path.read_bytes()[:-5])
    with pytest.raises(SafetensorError):
        mapped(path)
