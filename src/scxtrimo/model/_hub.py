"""``push_to_hub`` and ``from_pretrained``."""

from __future__ import annotations

import os
import tempfile
from importlib.metadata import version
from pathlib import Path
from typing import Any

from anndata import AnnData
from mudata import MuData

from ..checkpoint.hub import download, require_hub, upload, write_card
from ..checkpoint.native import write_model
from ..data.gene_table import GeneAliases
from .files import INDEX_SETS, SavingMixin

DESCRIPTION = (
    "A transformer over the expressed genes of single cells, trained with "
    "[scxtrimo](https://scxtrimo.readthedocs.io)."
)


class HubMixin(SavingMixin):
    """Models on the Hugging Face hub."""

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

        What is uploaded are the weights (safetensors), ``model.json``, the card and the metadata
        of scvi-hub. Which rows of the data were trained on is not.

        Parameters
        ----------
        repo_id
            Where to, ``"organisation/name"``; made if it does not exist.
        license
            Identifier of the licence of the weights, as the hub has them.
        description
            What the model is for, in Markdown.
        private
            Whether a new repository is private.
        token
            Access token; by default that of ``huggingface-cli login``.
        message
            Message of the commit.

        Returns
        -------
        Address of the commit.

        Raises
        ------
        ImportError
            If huggingface_hub is not installed.
        ValueError
            If the model is not trained, or its weights may not be redistributed.

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
        # Nothing that says which cells were trained on.
        private: dict[str, Any] = {"has_adata": False, "obs_names_sha256": None}
        private["indices"] = {f"{name}_": None for name in INDEX_SETS}
        metadata = self._metadata() | private
        write_model(directory, self.module.state_dict(), metadata)
        config = self.config_
        facts = {
            "class": type(self).__name__,
            "size": self.size_,
            "parameters": f"{sum(p.numel() for p in self.module.parameters()):,}",
            "genes": f"{len(self.vocabulary):,}, for instance "
            f"{', '.join(self.vocabulary.gene_ids[:3])}",
            "encoder": f"{config.n_layers} layers of width {config.n_hidden}",
            "latent representation": f"{config.n_latent} dimensions",
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
        """Load a model from the Hugging Face hub, or from a directory.

        Nothing in it is executed.

        Parameters
        ----------
        name
            ``"organisation/name"`` on the hub, downloaded once, or a directory with a saved model.
        revision, token
            See ``huggingface_hub.snapshot_download``.
        adata, accelerator, device, gene_aliases, min_gene_overlap
            See :meth:`load`.

        Returns
        -------
        The model, ready for inference.

        Raises
        ------
        ImportError
            If huggingface_hub is not installed.
        FileNotFoundError
            If there is no model of scxtrimo in it.

        Examples
        --------
        >>> model.save("my_model")
        >>> loaded = scxtrimo.model.XTrimoGene.from_pretrained("my_model")
        >>> loaded = scxtrimo.model.XTrimoGene.from_pretrained("my-lab/xtrimo")  # doctest: +SKIP
        """
        is_directory = Path(name).is_dir()
        directory = Path(name) if is_directory else download(str(name), revision, token)
        return cls.load(
            directory,
            adata,
            accelerator,
            device,
            gene_aliases=gene_aliases,
            min_gene_overlap=min_gene_overlap,
        )
