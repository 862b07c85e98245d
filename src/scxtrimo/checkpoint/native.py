"""The file format of models: one JSON file that names one safetensors file.

``model.json`` has the name and SHA-256 of the weights in ``model-<twelve digits>.safetensors``.
Every save writes weights under a new name, replaces ``model.json`` atomically, then removes the
weights that the previous ``model.json`` named. A save that fails at any point leaves the previous
model complete; of several simultaneous saves the last one wins.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import uuid
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load, save

from .._files import replacing

FORMAT, FORMAT_VERSION = "scxtrimo", 3
_PREFIX = re.compile(r"^[\w.-]*$")
_WEIGHTS_NAME = re.compile(r"^[\w.-]*model-[0-9a-f]{12}\.safetensors$")


def write_model(
    directory: str | os.PathLike,
    tensors: dict[str, torch.Tensor],
    metadata: dict[str, Any],
    prefix: str = "",
    overwrite: bool = False,
) -> None:
    """Write weights and metadata.

    Parameters
    ----------
    directory, prefix
        Directory to write to, created if needed; prefix of the file names.
    tensors, metadata
        State dict, and anything that JSON can hold.
    overwrite
        Whether an existing model may be replaced.

    Raises
    ------
    FileExistsError
        If a model exists and ``overwrite`` is false.
    OSError
        If the directory cannot be written or the disk is full. A previous model survives.

    Examples
    --------
    >>> weights, metadata = {"weight": torch.ones(3)}, {"genes": ["CD3D"]}
    >>> scxtrimo.checkpoint.write_model("my_model", weights, metadata)
    """
    directory = check_destination(directory, prefix, overwrite)
    header = directory / f"{prefix}model.json"
    data = save({name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()})
    weights = f"{prefix}model-{uuid.uuid4().hex[:12]}.safetensors"
    content = {
        "format": FORMAT,
        "format_version": FORMAT_VERSION,
        "weights": weights,
        "weights_sha256": hashlib.sha256(data).hexdigest(),
    }
    text = json.dumps(content | metadata, indent=1)
    try:
        directory.mkdir(parents=True, exist_ok=True)
        replaced = _weights_named_in(header)
        with replacing(directory / weights) as partial:
            partial.write_bytes(data)
        with replacing(header) as partial:
            partial.write_bytes(text.encode())
    except OSError as error:
        (directory / weights).unlink(missing_ok=True)
        raise OSError(
            error.errno,
            f"The model could not be saved to {directory}: {error.strerror or error}. "
            "A model saved there before is unchanged",
        ) from error
    if replaced is not None:
        (directory / replaced).unlink(missing_ok=True)


def check_destination(
    directory: str | os.PathLike, prefix: str = "", overwrite: bool = False
) -> Path:
    """Return the directory to save a model to; see :func:`write_model` for errors."""
    if not _PREFIX.match(prefix):
        raise ValueError(f"prefix={prefix!r} may have letters, digits, '.', '_' and '-' only.")
    directory = Path(directory).expanduser()
    for place in (directory, *directory.parents):
        if place.exists() and not place.is_dir():
            raise FileExistsError(
                f"{place} is a file, not a directory. Choose another directory for the model."
            )
    if (header := directory / f"{prefix}model.json").exists() and not overwrite:
        raise FileExistsError(
            f"{header} exists. Choose another directory, or pass `overwrite=True` to replace it."
        )
    return directory


def _weights_named_in(header: Path) -> str | None:
    """Return the name of the weights of a header; ``None`` if scxtrimo did not write it."""
    try:
        metadata = json.loads(header.read_text(encoding="utf-8"))
        name = str(metadata["weights"])
    except (OSError, ValueError, KeyError, TypeError):
        return None
    prefix = header.name.removesuffix("model.json")
    is_own = metadata.get("format") == FORMAT and name.startswith(f"{prefix}model-")
    return name if is_own and _WEIGHTS_NAME.match(name) else None


def read_model(
    directory: str | os.PathLike, prefix: str = ""
) -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
    """Read weights and metadata; nothing in the files is executed.

    Parameters
    ----------
    directory, prefix
        See :func:`write_model`.

    Returns
    -------
    State dict and metadata.

    Examples
    --------
    >>> model.save("my_model")
    >>> tensors, metadata = scxtrimo.checkpoint.read_model("my_model")
    """
    directory = Path(directory).expanduser()
    header = directory / f"{prefix}model.json"
    if directory.exists() and not directory.is_dir():
        raise NotADirectoryError(f"{directory} is a file; a model is a directory.")
    if not header.is_file():
        message = f"No scxtrimo model in {directory} ({header.name} is missing)."
        if (directory / f"{prefix}model.pt").exists():
            message += f" {prefix}model.pt is a model of scvi-tools; load it with its own class."
        raise FileNotFoundError(message)
    try:
        metadata = json.loads(header.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{header} is damaged or truncated: {error}. Save again.") from error
    if not isinstance(metadata, dict) or metadata.get("format") != FORMAT:
        raise ValueError(f"{header} was not written by scxtrimo.")
    version = metadata.get("format_version")
    if version != FORMAT_VERSION:
        way_out = "Update it: `pip install --upgrade scxtrimo`."
        if isinstance(version, int) and version < FORMAT_VERSION:
            way_out = "Load it with the earlier version that saved it, or train the model again."
        raise ValueError(
            f"{header} has format version {version}, this scxtrimo reads {FORMAT_VERSION}. "
            f"{way_out}"
        )
    name = str(metadata.get("weights"))
    if not _WEIGHTS_NAME.match(name):
        raise ValueError(f"{header} names weights {name!r}, which is not a file of scxtrimo.")
    weights = directory / name
    try:
        data = weights.read_bytes()
    except FileNotFoundError as error:
        if _weights_named_in(header) not in (None, name):  # saved again in the meantime
            return read_model(directory, prefix)
        message = f"{weights}, the weights of {header.name}, is missing. Copy it again."
        raise ValueError(message) from error
    if hashlib.sha256(data).hexdigest() != metadata.get("weights_sha256"):
        raise ValueError(
            f"{weights} is truncated or damaged: its SHA-256 is not the one in {header.name}. "
            "Copy or save it again."
        )
    try:
        return load(data), metadata
    except SafetensorError as error:
        raise ValueError(f"{weights} is not a safetensors file: {error}.") from error
