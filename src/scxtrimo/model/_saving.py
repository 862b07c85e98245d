"""Saving and loading without pickle."""

from __future__ import annotations

import os
from dataclasses import asdict
from pathlib import Path
from typing import Any

import anndata
import numpy as np
import pandas as pd
import scvi
from anndata import AnnData
from mudata import MuData
from scvi.data import _constants
from scvi.model._utils import parse_device_args
from scvi.model.base import BaseModelClass

from .. import __version__
from ..checkpoint import read_model, write_model
from ..data import CountsField
from ..module import XTrimoGeneConfig
from ._setup import select_modality

INDEX_SETS = ("train_indices_", "validation_indices_", "test_indices_")


class SavingMixin(BaseModelClass):
    """``save`` and ``load`` as safetensors and JSON."""

    def save(
        self,
        dir_path: str | os.PathLike,
        prefix: str | None = None,
        overwrite: bool = False,
        save_anndata: bool = False,
        **anndata_write_kwargs: Any,
    ) -> None:
        """Save the model.

        Parameters
        ----------
        dir_path
            Directory; created if needed.
        prefix
            Prefix of the file names.
        overwrite
            Replace a model that is there. If saving fails, the old one survives.
        save_anndata
            Save the data too, as ``adata.h5ad``.
        **anndata_write_kwargs
            Passed to :meth:`anndata.AnnData.write_h5ad`.

        Raises
        ------
        FileExistsError
            If there is a model already and ``overwrite`` is false.
        OSError
            If the directory cannot be written or the disk is full.

        Examples
        --------
        >>> model.save("my_model")
        """
        metadata = {
            "model_class": type(self).__name__,
            "scxtrimo_version": __version__,
            "scvi_version": scvi.__version__,
            "size": self.size_,
            "seed": self.seed_,
            "config": asdict(self.config_),
            "is_trained": self.is_trained_,
            "registry": _to_json(self.registry_),
            "indices": {name: _to_json(getattr(self, name)) for name in INDEX_SETS},
            "history": {
                name: {"epoch": frame.index.tolist(), "value": _to_json(frame.iloc[:, 0])}
                for name, frame in (self.history_ or {}).items()
            },
        }
        write_model(dir_path, self.module.state_dict(), metadata, prefix or "", overwrite)
        if save_anndata:
            if self.adata is None:
                raise ValueError("The model has no data to save; leave `save_anndata` out.")
            self.adata.write_h5ad(
                Path(dir_path) / f"{prefix or ''}adata.h5ad", **anndata_write_kwargs
            )

    @classmethod
    def load(
        cls,
        dir_path: str | os.PathLike,
        adata: AnnData | MuData | bool | None = None,
        accelerator: str = "auto",
        device: int | str = "auto",
        prefix: str | None = None,
    ) -> Any:
        """Load a saved model. Nothing in its files is executed.

        Parameters
        ----------
        dir_path
            Directory with the saved model.
        adata
            Data to attach, aligned to the model by gene identifier. ``None`` attaches the data
            that were saved with the model, if any; ``False`` attaches none.
        accelerator, device
            Where to put the model; see :meth:`scvi.model.base.BaseModelClass.load`.
        prefix
            Prefix of the file names.

        Returns
        -------
        The model, ready for inference.

        Raises
        ------
        FileNotFoundError
            If there is no model.
        ValueError
            If the files are truncated, damaged, foreign, from a newer version or of another class.

        Examples
        --------
        >>> model.save("my_model")
        >>> loaded = scxtrimo.model.XTrimoGene.load("my_model")
        >>> loaded.get_latent_representation(adata).shape
        (700, 32)
        """
        tensors, metadata = read_model(dir_path, prefix or "")
        if metadata["model_class"] != cls.__name__:
            raise ValueError(
                f"{dir_path} holds a model of class {metadata['model_class']}, not {cls.__name__}."
            )
        _, _, torch_device = parse_device_args(
            accelerator, device, return_device="torch", validate_single_device=True
        )
        saved_data = Path(dir_path) / f"{prefix or ''}adata.h5ad"
        if adata is None and saved_data.exists():
            adata = anndata.read_h5ad(saved_data)
        registry = metadata["registry"]
        model = cls(
            registry=registry,
            config=XTrimoGeneConfig(**metadata["config"]),
            seed=metadata["seed"],
        )
        _load_tensors(model, tensors, dir_path)
        if adata is not None and adata is not False:
            adata = select_modality(adata, registry[_constants._SETUP_ARGS_KEY]["modality"])
            model._validate_anndata(adata)
            model._adata = adata
            model._adata_manager = model.get_anndata_manager(adata, required=True)
        model.size_ = metadata["size"]
        model.is_trained_ = metadata["is_trained"]
        model.history_ = {
            name: pd.DataFrame(
                {name: stored["value"]}, index=pd.Index(stored["epoch"], name="epoch")
            )
            for name, stored in metadata["history"].items()
        }
        for name in INDEX_SETS:
            stored = metadata["indices"][name]
            setattr(model, name, None if stored is None else np.array(stored, dtype=np.int64))
        model.to_device(torch_device)
        model.module.eval()
        return model


def _load_tensors(model: Any, tensors: dict[str, Any], path: str | os.PathLike) -> None:
    """Load a state dict, naming every tensor that does not fit."""
    wanted = {name: tuple(t.shape) for name, t in model.module.state_dict().items()}
    found = {name: tuple(t.shape) for name, t in tensors.items()}
    if wanted != found:
        wrong = {n: (found[n], wanted[n]) for n in wanted.keys() & found if found[n] != wanted[n]}
        raise ValueError(
            f"The weights in {path} do not fit their configuration. Missing: "
            f"{sorted(wanted.keys() - found)}; unexpected: {sorted(found.keys() - wanted)}; of "
            f"another shape (found, expected): {wrong}."
        )
    model.module.load_state_dict(tensors)


def _to_json(value: Any) -> Any:
    """Turn what a registry holds into what JSON holds."""
    if isinstance(value, dict):
        return {
            str(key): _to_json(item)
            for key, item in value.items()
            if key != CountsField.COLUMN_TO_GENE_KEY  # belongs to the data, not to the model
        }
    if isinstance(value, list | tuple):
        return [_to_json(item) for item in value]
    if isinstance(value, pd.Series | pd.Index):
        value = value.to_numpy()
    if isinstance(value, np.ndarray):
        return [_to_json(item) for item in value.tolist()]
    return value.item() if isinstance(value, np.generic) else value
