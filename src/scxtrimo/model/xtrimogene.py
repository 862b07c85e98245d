"""xTrimoGene for AnnData."""

from __future__ import annotations

from .base import XTrimoGeneBase
from .published import PublishedMixin


class XTrimoGene(PublishedMixin, XTrimoGeneBase):
    """Transformer over the expressed genes of a cell :cite:p:`Gong2023`.

    The encoder reads only the genes a cell expresses; a cell vector and the gene embeddings
    predict all counts of the cell, and a cross-attention decoder the genes hidden from the
    encoder. Trained on the user's own cells from scratch. The latent representation consists of
    principal components, partly as measured and partly as predicted from the cell vector.

    Parameters
    ----------
    adata
        Data registered with :meth:`setup_anndata`.
    size
        ``"auto"``, or one of :data:`scxtrimo.model.SIZES`: ``"tiny"``, ``"1m"``, ``"3m"``,
        ``"10m"``, ``"100m"``.
    config
        All hyper-parameters at once, instead of ``size``.
    registry
        Registry of a saved model, instead of ``adata``.
    seed
        Seed of weights, split, masks and order of the cells; by default ``scvi.settings.seed``,
        or 0. On a CPU equal seeds give equal models, bit for bit.
    **hyperparameters
        Fields of :class:`~scxtrimo.model.XTrimoGeneConfig` that differ from those of ``size``.

    Raises
    ------
    ValueError
        If the data were not set up, or a hyper-parameter has an impossible value.
    TypeError
        If a hyper-parameter is unknown.

    Examples
    --------
    >>> import scxtrimo
    >>> adata = scxtrimo.datasets.pbmc68k()
    >>> scxtrimo.model.XTrimoGene.setup_anndata(adata)
    >>> model = scxtrimo.model.XTrimoGene(adata, size="tiny")
    >>> model.train(max_epochs=1, enable_progress_bar=False)
    >>> adata.obsm["X_xtrimo"] = model.get_latent_representation()
    >>> adata.obsm["X_xtrimo"].shape
    (700, 32)
    """
