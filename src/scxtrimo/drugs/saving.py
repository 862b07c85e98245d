"""Saving and loading of models of drugs: safetensors and JSON, nothing that is executed."""

from __future__ import annotations

import os
from dataclasses import asdict
from typing import Any, Self

import numpy as np
import pandas as pd
import torch
from anndata import AnnData
from scvi.model._utils import parse_device_args

from .. import __version__
from ..checkpoint.native import read_model, write_model
from ..model.files import _load_tensors
from .cell_lines import LinePanel, LineSetup
from .module import DrugConfig, DrugModule
from .molecules import canonical_smiles, read_molecules

REQUIRED = {
    *("config", "setup", "seed", "task", "is_trained", "genes", "line_names", "smiles"),
    *("drugs_by_name", "drug_keys", "line_key", "target_key", "history"),
}


class DrugSavingMixin:
    """``save`` and ``load``."""

    module: DrugModule
    config: DrugConfig
    setup: LineSetup
    panel: LinePanel
    seed: int
    task: str
    is_trained: bool
    line_names: list[str]
    smiles: np.ndarray
    drugs_by_name: dict[str, str] | None
    drug_keys: list[str]
    line_key: str
    target_key: str
    history: dict[str, pd.Series]
    validation_rows: np.ndarray
    _screen: tuple[np.ndarray, np.ndarray, np.ndarray] | None
    _query_lines: AnnData | None
    adata: AnnData | None

    def save(
        self, dir_path: str | os.PathLike, prefix: str | None = None, overwrite: bool = False
    ) -> None:
        """Save the model, with the expression of its cell lines but not its screen.

        Parameters
        ----------
        dir_path
            Directory; created if needed.
        prefix
            Prefix of the file names.
        overwrite
            Replace a model that is there. If saving fails, the old one survives.

        Raises
        ------
        FileExistsError
            If there is a model already and ``overwrite`` is false.
        OSError
            If the directory cannot be written or the disk is full.

        Examples
        --------
        >>> synergy.save("my_synergy")
        """
        metadata = {
            "model_class": type(self).__name__,
            "scxtrimo_version": __version__,
            "config": asdict(self.config),
            "setup": asdict(self.setup),
            "seed": self.seed,
            "task": self.task,
            "is_trained": self.is_trained,
            "genes": list(self.panel.gene_ids),
            "line_names": self.line_names,
            "smiles": self.smiles.tolist(),
            "drugs_by_name": self.drugs_by_name,
            "drug_keys": self.drug_keys,
            "line_key": self.line_key,
            "target_key": self.target_key,
            "history": {name: values.tolist() for name, values in self.history.items()},
        }
        tensors = self.module.state_dict() | {
            "panel.mean": torch.from_numpy(self.panel.mean_g),
            "panel.scale": torch.from_numpy(self.panel.scale_g),
        }
        write_model(dir_path, tensors, metadata, prefix or "", overwrite)

    @classmethod
    def load(
        cls,
        dir_path: str | os.PathLike,
        adata: AnnData | None = None,
        accelerator: str = "auto",
        device: int | str = "auto",
        prefix: str | None = None,
    ) -> Self:
        """Load a saved model. Nothing in its files is executed.

        Parameters
        ----------
        dir_path
            Directory with the saved model.
        adata
            Cell lines to predict for by default, with any genes in any order; by default those
            that the model was made with, which are saved with it.
        accelerator, device
            Where to put the model; see :meth:`scvi.model.base.BaseModelClass.load`.
        prefix
            Prefix of the file names.

        Returns
        -------
        The model, ready to predict.

        Raises
        ------
        FileNotFoundError
            If there is no model.
        ValueError
            If the files are truncated, damaged, foreign, from a newer version or of another class.

        Examples
        --------
        >>> synergy.save("my_synergy")
        >>> loaded = scxtrimo.model.XTrimoGeneSynergy.load("my_synergy")
        >>> loaded.predict(screen).equals(synergy.predict(screen))
        True
        """
        tensors, metadata = read_model(dir_path, prefix or "")
        found = metadata.get("model_class")
        if found != cls.__name__:
            raise ValueError(f"{dir_path} holds a model of class {found}, not {cls.__name__}.")
        if missing := sorted(REQUIRED - metadata.keys()):
            raise ValueError(f"{dir_path} lacks {missing} and cannot be loaded. Save again.")
        torch_device = parse_device_args(
            accelerator, device, return_device="torch", validate_single_device=True
        )[2]
        model = cls.__new__(cls)
        model._restore(tensors, metadata, dir_path)
        model.module.to(torch_device).eval()
        if adata is not None:
            model._attach(adata)
        return model

    def _restore(
        self, tensors: dict[str, torch.Tensor], stored: dict[str, Any], path: str | os.PathLike
    ) -> None:
        """Become the model that was saved."""
        for name in ("seed", "task", "is_trained", "line_names", "drugs_by_name"):
            setattr(self, name, stored[name])
        for name in ("drug_keys", "line_key", "target_key"):
            setattr(self, name, stored[name])
        try:
            self.config, self.setup = DrugConfig(**stored["config"]), LineSetup(**stored["setup"])
            mean_g, scale_g = (tensors.pop(f"panel.{name}").numpy() for name in ("mean", "scale"))
        except (TypeError, KeyError) as error:
            raise ValueError(
                f"The model in {path} has settings this scxtrimo does not know ({error}). "
                "Update it: `pip install --upgrade scxtrimo`."
            ) from error
        self.panel = LinePanel(tuple(stored["genes"]), mean_g, scale_g)
        # Another RDKit may write the same structure in another way.
        canonical = canonical_smiles(stored["smiles"], f"SMILES of the model in {path}")
        self.smiles = np.array([canonical[text] for text in stored["smiles"]], dtype=str)
        self.history = {
            name: pd.Series(v, pd.RangeIndex(len(v), name="epoch"), name=name)
            for name, v in stored["history"].items()
        }
        self.molecules = read_molecules(stored["smiles"])
        self.module = self._make_module()
        _load_tensors(self, tensors, path)
        self.adata = self._screen = self._query_lines = None

    def _make_module(self) -> DrugModule:
        raise NotImplementedError

    def _attach(self, lines: AnnData) -> None:
        raise NotImplementedError
