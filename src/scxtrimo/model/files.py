"""Models on disk and on the Hugging Face hub, without pickle."""

from __future__ import annotations

import os
import tempfile
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path
from typing import Any

import anndata
import numpy as np
import pandas as pd
import scvi
from anndata import AnnData
from mudata import MuData
from scvi.data import AnnDataManager
from scvi.model._utils import parse_device_args

from .. import __version__
from .._files import replacing
from .._logging import logger
from ..checkpoint.hub import require_hub, upload, write_card
from ..checkpoint.native import check_destination, read_model, write_model
from ..checkpoint.pretrained import find_pretrained
from ..config import stored_config
from ..data.columns import canonical, kind_of
from ..data.fields import CategoryField, CountsField, LabelsField
from ..data.gene_table import GeneAliases
from ..train.trainer import history_from_dict, history_to_dict
from .registration import RegisteredModel, hash_texts

OF_THE_DATA = (CountsField.COLUMN_TO_GENE_KEY, CountsField.COVERAGE_KEY, CategoryField.CODES_KEY)
REQUIRED = {
    *("model_class", "registry", "config", "seed", "size", "is_trained", "history", "indices"),
    *("has_adata", "obs_names_sha256", "provenance", "gene_aliases", "min_gene_overlap"),
}
DESCRIPTION = (
    "A transformer over the expressed genes of single cells, trained with "
    "[scxtrimo](https://scxtrimo.readthedocs.io)."
)
INDEX_SETS = ("train_indices", "validation_indices", "test_indices")


class SavedModel(RegisteredModel):
    """``save`` and ``load`` as safetensors and JSON, here and on the Hugging Face hub."""

    # Names of the cells that the rows of the split are of; their hash, if the model was loaded.
    _split_cells: pd.Index | str | None = None
    train_indices: np.ndarray | None
    validation_indices: np.ndarray | None
    test_indices: np.ndarray | None

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

        Examples
        --------
        >>> model.save("my_model")
        """
        if save_anndata and self.adata is None:
            raise ValueError("The model has no data to save; leave `save_anndata` out.")
        data_path = Path(dir_path).expanduser() / f"{prefix or ''}adata.h5ad"
        if save_anndata and data_path.exists() and not overwrite:
            raise FileExistsError(f"{data_path} exists; pass `overwrite=True` to replace it.")
        directory = check_destination(dir_path, prefix or "", overwrite)
        metadata = self._metadata() | {"has_adata": save_anndata}
        tensors = self.module.state_dict()
        if not save_anndata:
            write_model(directory, tensors, metadata, prefix or "", overwrite)
            return
        directory.mkdir(parents=True, exist_ok=True)
        with replacing(data_path) as partial:  # first: if the disk is full, the old model survives
            try:
                # The method of a backed AnnData would make it read from the new file from now on.
                anndata.io.write_h5ad(partial, self.adata, **anndata_write_kwargs)
            except OSError:
                raise
            except Exception as error:
                raise ValueError(
                    f"The data cannot be written as .h5ad: {error}. Fix them, or save the model "
                    "without them (`save_anndata=False`). Nothing was saved."
                ) from error
            write_model(directory, tensors, metadata, prefix or "", overwrite)

    def _metadata(self) -> dict[str, Any]:
        """Return all of the model but its weights, as JSON holds it."""
        cells = self._split_cells if self.adata is None else self.adata.obs_names
        known = cells if cells is None or isinstance(cells, str) else hash_texts(cells)
        return {
            "obs_names_sha256": known,
            "model_class": type(self).__name__,
            "scxtrimo_version": __version__,
            "scvi_version": scvi.__version__,
            "size": self.size_,
            "seed": self.seed_,
            "config": asdict(self.config_),
            "is_trained": self.is_trained_,
            "registry": _to_json(self.registry_),
            "indices": {f"{name}_": _to_json(getattr(self, name)) for name in INDEX_SETS},
            "provenance": self.provenance_,
            "pretrained": self.pretrained_,
            "gene_aliases": self.gene_aliases_,
            "min_gene_overlap": self.min_gene_overlap_,
            "history": history_to_dict(self.history_ or {}),
            "extra": self._extra_state(),
        }

    @classmethod
    def load(
        cls,
        dir_path: str | os.PathLike,
        adata: AnnData | MuData | bool | None = None,
        accelerator: str = "auto",
        device: int | str = "auto",
        prefix: str | None = None,
        *,
        gene_aliases: GeneAliases = None,
        min_gene_overlap: float | None = None,
    ) -> Any:
        """Load a saved model. Nothing in its files is executed.

        Parameters
        ----------
        dir_path
            Directory with the saved model.
        adata
            Data to attach; ``None`` for those saved with the model, ``False`` for none.
        accelerator, device
            Where to put the model; see :meth:`scvi.model.base.BaseModelClass.load`.
        prefix
            Prefix of the file names.
        gene_aliases, min_gene_overlap
            See :meth:`prepare_query_anndata`; by default those the model was saved with.

        Returns
        -------
        The model, ready for inference.

        Raises
        ------
        FileNotFoundError
            If there is no model.

        Examples
        --------
        >>> model.save("my_model")
        >>> loaded = scxtrimo.model.XTrimoGene.load("my_model")
        >>> loaded.get_latent_representation(adata).shape
        (700, 32)
        """
        tensors, metadata = read_model(dir_path, prefix or "")
        if missing := sorted(REQUIRED - metadata.keys()):
            raise ValueError(f"{dir_path} lacks {missing} and cannot be loaded. Save again.")
        if metadata["model_class"] != cls.__name__:
            raise ValueError(
                f"{dir_path} holds a model of class {metadata['model_class']}, not {cls.__name__}."
            )
        target = parse_device_args(accelerator, device, "torch", validate_single_device=True)[2]
        data_path = Path(dir_path).expanduser() / f"{prefix or ''}adata.h5ad"
        if adata is None and metadata["has_adata"]:
            adata = anndata.read_h5ad(data_path)
        elif adata is None and data_path.exists():
            logger.warning(
                f"{data_path} is not attached, as the model was saved again without data. Attach "
                "it with `adata=`, or remove the file."
            )
        registry = _with_canonical_categories(metadata["registry"])
        model = cls(
            registry=registry,
            config=stored_config(cls._config_cls, metadata["config"], dir_path),
            seed=metadata["seed"],
        )
        model._restore_extra_state(metadata.get("extra", {}))
        _load_tensors(model, tensors, dir_path)
        model._remember_names(metadata["gene_aliases"], metadata["min_gene_overlap"])
        model._remember_names(gene_aliases, min_gene_overlap)
        if adata is not None and adata is not False:
            model._attach(adata)
        model.size_ = metadata["size"]
        model.is_trained_ = metadata["is_trained"]
        model.provenance_ = metadata["provenance"]
        model.pretrained_ = metadata.get("pretrained")
        model.history_ = history_from_dict(metadata["history"])
        model._split_cells = metadata["obs_names_sha256"]
        for name in INDEX_SETS:
            stored = metadata["indices"][f"{name}_"]
            rows = None if stored is None else np.array(stored, dtype=np.int64)
            setattr(model, f"{name}_", rows)
        if model.adata is not None and model.train_indices is None:  # they are of other cells
            for name in INDEX_SETS:
                setattr(model, f"{name}_", None)
        model.to_device(target)
        model.module.eval()
        return model

    def push_to_hub(
        self,
        repo_id: str,
        *,
        license: str = "cc-by-4.0",
        description: str = DESCRIPTION,
        private: bool = False,
        token: str | None = None,
        message: str = "Upload model",
    ) -> str:
        """Upload the model to the Hugging Face hub, with a card that says what it is.

        Which cells were trained on is not uploaded.

        Parameters
        ----------
        repo_id, private
            Where to, ``"organisation/name"``; made, private or not, if it does not exist.
        license, description
            Licence of the weights, as the hub calls it; what the model is for, in Markdown.
        token, message
            Access token, by default that of ``huggingface-cli login``; message of the commit.

        Returns
        -------
        Address of the commit.

        Examples
        --------
        >>> model.push_to_hub("my-lab/xtrimo-pbmc")  # doctest: +SKIP
        """
        require_hub()
        with tempfile.TemporaryDirectory() as directory:
            self._write_for_hub(directory, repo_id, license, description)
            return upload(directory, repo_id, private, message, token)

    def _write_for_hub(
        self, directory: str | os.PathLike, repo_id: str, license: str, description: str
    ) -> None:
        """Write what is uploaded."""
        if not self.is_trained_:
            raise ValueError("The model is not trained: there is nothing to share.")
        if "licence" in self.provenance_:
            raise ValueError(
                f"These weights come from {self.provenance_['source']}, and may not be uploaded: "
                f"{self.provenance_['licence']}"
            )
        metadata = self._metadata() | {
            "has_adata": False,
            # Nothing that says which cells were trained on.
            "obs_names_sha256": None,
            "indices": {f"{name}_": None for name in INDEX_SETS},
        }
        write_model(directory, self.module.state_dict(), metadata)
        config = self.config_
        facts = {
            "class": type(self).__name__,
            "size": self.size_,
            "parameters": f"{sum(p.numel() for p in self.module.parameters()):,}",
            "genes": f"{len(self.vocabulary):,}, for instance "
            f"{', '.join(self.vocabulary.gene_ids[:3])}",
            "encoder": f"{config.n_layers} layers of width {config.n_hidden}",
            "latent representation": f"{config.n_representation} dimensions",
            "scxtrimo": metadata["scxtrimo_version"],
            "anndata": version("anndata"),
        }
        write_card(directory, repo_id, metadata, facts, license, description)

    @classmethod
    def from_pretrained(
        cls,
        name: str | os.PathLike,
        adata: AnnData | MuData | bool | None = None,
        *,
        revision: str | None = None,
        token: str | None = None,
        accelerator: str = "auto",
        device: int | str = "auto",
        gene_aliases: GeneAliases = None,
        min_gene_overlap: float | None = None,
    ) -> Any:
        """Load a pretrained model; nothing in its files is executed.

        Parameters
        ----------
        name
            ``"scxtrimo-immune"``, which comes with the package; ``"organisation/name"`` on the
            Hugging Face hub, downloaded once; or a directory with a saved model.
        revision, token
            See ``huggingface_hub.snapshot_download``.
        adata, accelerator, device, gene_aliases, min_gene_overlap
            See :meth:`load`.

        Returns
        -------
        The model, ready for inference.

        Examples
        --------
        >>> model.save("my_model")
        >>> loaded = scxtrimo.model.XTrimoGene.from_pretrained("my_model")
        >>> loaded = scxtrimo.model.XTrimoGene.from_pretrained("my-lab/xtrimo")  # doctest: +SKIP
        """
        directory = find_pretrained(name, revision, token)
        names: Any = {"gene_aliases": gene_aliases, "min_gene_overlap": min_gene_overlap}
        return cls.load(directory, adata, accelerator, device, **names)

    def _extra_state(self) -> dict[str, Any]:
        """Return what a class keeps beside weights and set-up, as JSON holds it."""
        return {}

    def _restore_extra_state(self, state: dict[str, Any]) -> None:
        """Take this back, before the weights are loaded."""

    @staticmethod
    def view_setup_args(dir_path: str | os.PathLike, prefix: str | None = None) -> None:
        """Print how a saved model was set up.

        Parameters
        ----------
        dir_path, prefix
            See :meth:`load`.

        Examples
        --------
        >>> model.save("my_model")
        >>> scxtrimo.model.XTrimoGene.view_setup_args("my_model")  # doctest: +SKIP
        """
        import rich.pretty  # noqa: F401  (scvi-tools takes it for loaded)

        AnnDataManager.view_setup_method_args(SavedModel.load_registry(dir_path, prefix))

    @staticmethod
    def load_registry(dir_path: str | os.PathLike, prefix: str | None = None) -> dict[str, Any]:
        """Read the registry of a saved model.

        Parameters
        ----------
        dir_path, prefix
            See :meth:`load`.

        Returns
        -------
        What the model was set up with.

        Examples
        --------
        >>> model.save("my_model")
        >>> registry = scxtrimo.model.XTrimoGene.load_registry("my_model")
        """
        return read_model(dir_path, prefix or "")[1]["registry"]


def _with_canonical_categories(registry: dict[str, Any]) -> dict[str, Any]:
    """Return a registry whose categories are text; earlier versions kept numbers."""
    for field in registry["field_registries"].values():
        state = field["state_registry"]
        if CategoryField.MAPPING_KEY in state:
            names = state[CategoryField.MAPPING_KEY]
            state.setdefault(LabelsField.KIND_KEY, kind_of(names))
            state[CategoryField.MAPPING_KEY] = [canonical(name) for name in names]
    return registry


def _load_tensors(model: Any, tensors: dict[str, Any], path: str | os.PathLike) -> None:
    """Load a state dict, naming every tensor that does not fit."""
    if getattr(getattr(model.module, "net", None), "imputation", ...) is None:
        # Earlier versions kept the weights of a decoder that was not trained.
        tensors = {k: v for k, v in tensors.items() if not k.startswith("net.imputation.")}
    own = model.module.state_dict()
    added = getattr(model.module, "added_buffers", ())
    tensors = {name: own[name] for name in added if name in own} | tensors
    wanted = {name: tuple(t.shape) for name, t in own.items()}
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
        return {str(key): _to_json(item) for key, item in value.items() if key not in OF_THE_DATA}
    if isinstance(value, list | tuple):
        return [_to_json(item) for item in value]
    if isinstance(value, np.ndarray):
        return [_to_json(item) for item in value.tolist()]
    return value.item() if isinstance(value, np.generic) else value
