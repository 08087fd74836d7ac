"""Broken and odd model directories: each a message that says what to do."""

from __future__ import annotations

import json
import shutil
import struct

import pytest
import torch
from safetensors.torch import load_file, save_file

from evalq.artifacts.api import read, storage
from evalq.artifacts.compressed_tensors import CompressedTensors
from evalq.artifacts.files import open_files, read_header
from evalq.artifacts.identity import hash_directory, hash_file
from evalq.errors import ArtifactError
from evalq.schema import PerGroup, WeightScheme
from tests.artifacts.helpers import tiny_llama, tiny_tokenizer, write


@pytest.fixture(scope="module")
def original(tmp_path_factory):
    directory = tmp_path_factory.mktemp("original") / "a"
    write(directory, CompressedTensors(), WeightScheme(4, PerGroup(32)), torch.bfloat16)
    return directory


@pytest.fixture
def artifact(original, tmp_path):
    return shutil.copytree(original, tmp_path / "a")


def shard(directory):
    """The same tensors in two files with an index, as big models have them."""
    tensors = load_file(directory / "model.safetensors")
    (directory / "model.safetensors").unlink()
    names = sorted(tensors)
    weight_map = {}
    for i, part in enumerate((names[::2], names[1::2]), 1):
        file = f"model-0000{i}-of-00002.safetensors"
        save_file({n: tensors[n] for n in part}, directory / file, metadata={"format": "pt"})
        weight_map |= dict.fromkeys(part, file)
    index = {"metadata": {"total_size": 0}, "weight_map": weight_map}
    (directory / "model.safetensors.index.json").write_text(json.dumps(index))


def test_shards_read_like_one_file(artifact, original):
    shard(artifact)
    whole, parts = read(original), read(artifact)
    assert set(whole.layers) == set(parts.layers)
    assert all(torch.equal(w.codes, parts.layers[n].codes) for n, w in whole.layers.items())
    assert set(whole.dense) == set(parts.dense)
    assert storage(artifact).bits_per_weight == storage(original).bits_per_weight


def cut(directory, size):
    path = directory / "model.safetensors"
    path.write_bytes(path.read_bytes()[:size])


def no_index(directory):
    shard(directory)
    (directory / "model.safetensors.index.json").unlink()


def lost_shard(directory):
    shard(directory)
    (directory / "model-00002-of-00002.safetensors").unlink()


def foreign_index(directory):
    shard(directory)
    path = directory / "model.safetensors.index.json"
    index = json.loads(path.read_text())
    index["weight_map"]["model.layers.9.weight"] = "model-00001-of-00002.safetensors"
    path.write_text(json.dumps(index))


def pickled(directory):
    (directory / "model.safetensors").unlink()
    (directory / "pytorch_model.bin").write_bytes(b"\x80\x04.")


def lost_tensor(name):
    def change(directory):
        path = directory / "model.safetensors"
        tensors = load_file(path)
        del tensors[name]
        save_file(tensors, path, metadata={"format": "pt"})

    return change


def infinite_scale(directory):
    path = directory / "model.safetensors"
    tensors = load_file(path)
    tensors["model.layers.0.mlp.up_proj.weight_scale"][0, 0] = float("inf")
    save_file(tensors, path, metadata={"format": "pt"})


def no_settings(directory):
    path = directory / "config.json"
    config = json.loads(path.read_text())
    del config["quantization_config"]
    path.write_text(json.dumps(config))


BROKEN = {
    "truncated values": (lambda d: cut(d, -100), "truncated: its header promises"),
    "truncated header": (lambda d: cut(d, 200), "truncated within its header"),
    "truncated at once": (lambda d: cut(d, 5), "truncated: 5 bytes"),
    "empty": (lambda d: cut(d, 0), "truncated: 0 bytes"),
    "no safetensors": (
        lambda d: (d / "model.safetensors").write_bytes(b"PK\x03\x04" * 100),
        "no safetensors file",
    ),
    "header is no JSON": (
        lambda d: (d / "model.safetensors").write_bytes(struct.pack("<Q", 4) + b"abcd"),
        "header cannot be read",
    ),
    "appended bytes": (
        lambda d: (d / "model.safetensors").open("ab").write(b"more"),
        "4 bytes that its header does not name",
    ),
    "no config": (lambda d: (d / "config.json").unlink(), "no config.json"),
    "config is no JSON": (lambda d: (d / "config.json").write_text("{\n!"), "line 2: no JSON"),
    "config is a list": (lambda d: (d / "config.json").write_text("[]"), "holds no mapping"),
    "no weights": (lambda d: (d / "model.safetensors").unlink(), "has no weights"),
    "pickle only": (pickled, "pickled weights only .pytorch_model.bin."),
    "no index": (no_index, "2 safetensors files and no model.safetensors.index.json"),
    "lost shard": (lost_shard, "lacks 1 of its weight files: model-00002"),
    "foreign index": (foreign_index, "index names 1 tensors that are not in their file"),
    "lost scale": (
        lost_tensor("model.layers.0.mlp.up_proj.weight_scale"),
        "no tensor 'model.layers.0.mlp.up_proj.weight_scale'",
    ),
    "lost shape": (
        lost_tensor("model.layers.0.mlp.up_proj.weight_shape"),
        "no tensor 'model.layers.0.mlp.up_proj.weight_shape'",
    ),
    "infinite scale": (infinite_scale, "up_proj: a scale is NaN or infinite"),
    "no quantization_config": (no_settings, "no quantization_config"),
}


@pytest.mark.parametrize("name", BROKEN)
def test_broken_directories(name, artifact):
    change, message = BROKEN[name]
    change(artifact)
    with pytest.raises(ArtifactError, match=message):
        read(artifact)


@pytest.mark.parametrize("name", ["truncated values", "lost shard", "no config", "pickle only"])
def test_a_hint_says_what_to_do(name, artifact):
    BROKEN[name][0](artifact)
    with pytest.raises(ArtifactError) as caught:
        read(artifact)
    assert caught.value.hint


def test_a_directory_that_is_not_there(tmp_path):
    with pytest.raises(ArtifactError, match="no directory"):
        read(tmp_path / "nowhere")
    with pytest.raises(ArtifactError, match="no directory"):
        hash_directory(tmp_path / "nowhere")
    with pytest.raises(ArtifactError, match="holds no model"):
        hash_directory(tmp_path)


def test_headers_are_what_safetensors_says(artifact):
    tensors = load_file(artifact / "model.safetensors")
    entries = read_header(artifact / "model.safetensors")
    assert set(entries) == set(tensors)
    for name, entry in entries.items():
        assert entry.shape == tuple(tensors[name].shape)
        assert entry.bytes == tensors[name].nbytes
        raw = (artifact / "model.safetensors").read_bytes()[entry.start : entry.end]
        assert raw == tensors[name].flatten().view(torch.uint8).numpy().tobytes()


def test_a_dense_model_is_read_as_it_is(tmp_path):
    model = tiny_llama(torch.bfloat16)
    model.save_pretrained(tmp_path / "m")
    stored = read(tmp_path / "m")
    assert stored.format == "dense"
    assert not stored.layers
    sizes = storage(tmp_path / "m")
    assert sizes.bits_per_weight == sizes.linear_bits_per_weight == 16
    assert sizes.parameters == sum(p.numel() for p in model.parameters())
    assert open_files(tmp_path / "m").settings == {}


def test_identity_goes_by_content_alone(tmp_path):
    for name in ("one", "two"):
        tiny_llama(torch.bfloat16).save_pretrained(tmp_path / name)
        tiny_tokenizer().save_pretrained(tmp_path / name)
    first = hash_directory(tmp_path / "one")
    assert first == hash_directory(tmp_path / "two")
    (tmp_path / "two" / "README.md").write_text("notes")
    (tmp_path / "two" / "evalq-manifest.json").write_text("{}")
    assert first == hash_directory(tmp_path / "two")
    config = tmp_path / "two" / "config.json"
    config.write_text(config.read_text().replace("silu", "gelu"))
    assert first != hash_directory(tmp_path / "two")


def test_hash_is_sha256(tmp_path):
    (tmp_path / "f").write_bytes(b"abc")
    expected = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
    assert hash_file(tmp_path / "f") == expected
