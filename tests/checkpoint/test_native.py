"""A model directory is complete or refused; a failed save leaves the old one."""

import errno
import json
import os

import pytest
import torch

from scxtrimo.checkpoint.native import read_model, write_model

OLD, NEW = {"w": torch.arange(6.0)}, {"w": torch.ones(3)}


@pytest.fixture
def saved(tmp_path):
    write_model(tmp_path / "m", OLD, {"note": "old"})
    return tmp_path / "m"


def is_old(directory) -> bool:
    tensors, metadata = read_model(directory)
    return torch.equal(tensors["w"], OLD["w"]) and metadata["note"] == "old"


def test_round_trip_and_overwrite(saved):
    assert is_old(saved)
    with pytest.raises(FileExistsError, match="overwrite=True"):
        write_model(saved, NEW, {"note": "new"})
    write_model(saved, NEW, {"note": "new"}, overwrite=True)
    tensors, metadata = read_model(saved)
    assert torch.equal(tensors["w"], NEW["w"])
    assert metadata["note"] == "new"
    assert len(list(saved.iterdir())) == 2


@pytest.mark.parametrize("failing", ["weights", "header"])
def test_the_old_model_survives_a_full_disk(saved, monkeypatch, failing):
    real = os.fsync
    calls = []

    def fsync(descriptor):
        calls.append(descriptor)
        if len(calls) == (1 if failing == "weights" else 2):
            raise OSError(errno.ENOSPC, "No space left on device")
        real(descriptor)

    monkeypatch.setattr("os.fsync", fsync)
    with pytest.raises(OSError, match="could not be saved.*No space left.*unchanged"):
        write_model(saved, NEW, {"note": "new"}, overwrite=True)
    assert is_old(saved)
    assert not list(saved.glob("*.partial"))


def test_the_old_model_survives_a_directory_that_cannot_be_written(saved, monkeypatch):
    def refuse(*args, **kwargs):
        raise PermissionError(errno.EACCES, "Permission denied")

    monkeypatch.setattr("builtins.open", refuse)
    with pytest.raises(OSError, match="could not be saved.*Permission denied"):
        write_model(saved, NEW, {"note": "new"}, overwrite=True)
    monkeypatch.undo()
    assert is_old(saved)


def test_no_model(tmp_path):
    with pytest.raises(FileNotFoundError, match="No scxtrimo model"):
        read_model(tmp_path)
    (tmp_path / "model.pt").write_bytes(b"x")
    with pytest.raises(FileNotFoundError, match="model of scvi-tools"):
        read_model(tmp_path)


def change(directory, **changes):
    header = directory / "model.json"
    header.write_text(json.dumps(json.loads(header.read_text()) | changes))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"format": "other"}, "was not written by scxtrimo"),
        ({"format_version": 99}, "format version 99.*pip install --upgrade"),
        ({"weights": "../model-000000000000.safetensors"}, "not a file of scxtrimo"),
        ({"weights": "model-000000000000.safetensors"}, "is missing"),
    ],
)
def test_foreign_and_newer_headers(saved, changes, message):
    change(saved, **changes)
    with pytest.raises(ValueError, match=message):
        read_model(saved)


def test_truncated_files(saved):
    header, weights = saved / "model.json", next(saved.glob("*.safetensors"))
    data = weights.read_bytes()
    weights.write_bytes(data[:-5])
    with pytest.raises(ValueError, match="truncated or damaged.*SHA-256"):
        read_model(saved)
    weights.write_bytes(data)
    header.write_text(header.read_text()[:20])
    with pytest.raises(ValueError, match="damaged or truncated"):
        read_model(saved)


def test_weights_that_are_not_safetensors(saved):
    import hashlib

    weights = next(saved.glob("*.safetensors"))
    weights.write_bytes(b"something else")
    change(saved, weights_sha256=hashlib.sha256(b"something else").hexdigest())
    with pytest.raises(ValueError, match="not a safetensors file"):
        read_model(saved)
