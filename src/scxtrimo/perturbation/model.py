"""Effects of perturbations for AnnData."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from anndata import AnnData
from mudata import MuData

from ..model.derive import derive_model
from ..model.registration import perturbation_fields
from ..model.xtrimogene import XTrimoGene
from .model_training import PerturbationTrainingMixin
from .module import XTrimoGenePerturbationModule
from .prediction import PerturbationPredictionMixin


class XTrimoGenePerturbation(PerturbationTrainingMixin, PerturbationPredictionMixin):
    """Effects of perturbed genes, alone and in combination, on the expression of all genes.

    Learned from control cells and perturbed cells, as of a Perturb-seq screen; predicts the
    effects of genes and combinations that were not measured, on the mean expression of a
    population of control cells. A linear mixed model, of which the additive model and the mean of
    the training perturbations are special cases, does most of the work; a network corrects it
    where this helps on perturbations that were left out. The xTrimoGene encoder
    :cite:p:`Gong2023` says how much alike populations and genes are. Perturbed genes need not be
    among the measured ones.

    Parameters
    ----------
    adata
        Data registered with :meth:`setup_anndata`.
    size, config, registry, seed, **hyperparameters
        See :class:`XTrimoGene`.

    Raises
    ------
    ValueError
        If the data were not set up, or a hyper-parameter has an impossible value.

    Examples
    --------
    >>> import scxtrimo
    >>> adata = perturbed_cells
    >>> scxtrimo.model.XTrimoGenePerturbation.setup_anndata(adata, perturbation_key="condition")
    >>> model = scxtrimo.model.XTrimoGenePerturbation(adata, size="tiny")
    >>> model.train(max_epochs=1, enable_progress_bar=False)
    >>> model.predict("GENE1+GENE2").layers["effect"].shape
    (1, 60)
    """

    _module_cls = XTrimoGenePerturbationModule
    module: XTrimoGenePerturbationModule

    @classmethod
    def setup_anndata(  # type: ignore[override]
        cls,
        adata: AnnData | MuData,
        perturbation_key: str,
        control: str = "control",
        separator: str = "+",
        population_key: str | None = None,
        library_size_key: str | None = None,
        layer: str | None = None,
        batch_key: str | None = None,
        labels_key: str | None = None,
        categorical_covariate_keys: Sequence[str] | None = None,
        gene_id_key: str | None = None,
        modality: str | None = None,
        **kwargs: Any,
    ) -> None:
        """Say where the counts, the perturbations and the populations are, and check them.

        Parameters
        ----------
        adata
            Data with raw counts, see :meth:`XTrimoGene.setup_anndata`.
        perturbation_key
            Column of ``adata.obs`` with what was done to a cell: the name of a gene, several
            genes, or the control.
        control
            What this column holds for unperturbed cells; as a part of a combination, as in
            ``"KLF1+control"``, it is ignored.
        separator
            What stands between the genes of a combination.
        population_key
            Column of ``adata.obs`` with cell lines, cell types or donors that may react in
            different ways. Each needs control cells. By default all cells are one population.
        library_size_key
            Column of ``adata.obs`` with the total counts of the cells, if ``adata`` has only some
            of the genes; by default the sum of its counts. Effects are measured on counts per
            10,000 of these; the encoder uses the sum of what it sees.
        layer, batch_key, labels_key, categorical_covariate_keys, gene_id_key, modality, **kwargs
            See :meth:`XTrimoGene.setup_anndata`. Effects are not corrected for batches: where
            batches have different perturbations, make them populations.

        Raises
        ------
        ValueError
            If there are no control cells or no perturbed ones, a name has an empty part or a gene
            twice, or as :meth:`XTrimoGene.setup_anndata` does.

        Examples
        --------
        >>> scxtrimo.model.XTrimoGenePerturbation.setup_anndata(
        ...     perturbed_cells, perturbation_key="condition"
        ... )
        """
        setup_args = {name: value for name, value in locals().items() if name != "kwargs"}
        cls._register(adata, cls._get_setup_method_args(**setup_args), **kwargs)

    @classmethod
    def from_xtrimogene_model(
        cls,
        model: XTrimoGene,
        adata: AnnData | MuData,
        perturbation_key: str,
        control: str = "control",
        separator: str = "+",
        population_key: str | None = None,
        library_size_key: str | None = None,
        *,
        min_gene_overlap: float | None = None,
        seed: int | None = None,
    ) -> XTrimoGenePerturbation:
        """Make a perturbation model of a trained model, ours or from a published checkpoint.

        Its network stays as it is; what it knows of genes, also of those that ``adata`` lacks, are
        features of the targets.

        Parameters
        ----------
        model
            The model. It is copied, and stays as it is.
        adata
            Control and perturbed cells, with any genes in any order.
        perturbation_key, control, separator, population_key, library_size_key
            See :meth:`setup_anndata`.
        min_gene_overlap
            Smallest acceptable fraction of the model's genes in ``adata``; by default that of the
            model.
        seed
            See :class:`XTrimoGene`; by default that of the model.

        Returns
        -------
        The model, to be trained on the perturbations.

        Raises
        ------
        ValueError
            If the model was not trained, or the data do not fit.

        Examples
        --------
        >>> scxtrimo.model.XTrimoGene.setup_anndata(perturbed_cells)
        >>> model = scxtrimo.model.XTrimoGene(perturbed_cells, size="tiny")
        >>> model.train(max_epochs=1, enable_progress_bar=False)
        >>> derived = scxtrimo.model.XTrimoGenePerturbation.from_xtrimogene_model(
        ...     model, perturbed_cells, perturbation_key="condition"
        ... )
        >>> derived.train()
        """
        own = {
            "perturbation_key": perturbation_key,
            "control": control,
            "separator": separator,
            "population_key": population_key,
            "library_size_key": library_size_key,
        }
        return derive_model(
            cls,
            model,
            adata,
            own,
            perturbation_fields(own),
            model.config_,
            seed=seed,
            min_gene_overlap=min_gene_overlap,
        )
