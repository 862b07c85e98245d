"""From the cell vector of the network to the latent representation users get."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from .nn.embedding import normalize_counts
from .nn.ragged import select_tokens, sum_per_cell, to_tokens

MAX_SCALED_VALUE = 10.0
MAX_CLUSTERS = 100
SHARPNESS = 20.0


class Panel(NamedTuple):
    """What the genes that some data have mean for their principal components.

    Parameters
    ----------
    center_k
        Components of the average training cell on these genes, shape ``(n_components,)``.
    coverage_kk
        How much of each component these genes make up: the identity if all are there.

    Examples
    --------
    >>> import torch
    >>> half = torch.arange(len(model.vocabulary)) % 2 == 0
    >>> panel = model.module.latent_space.panel(half)
    >>> panel.coverage_kk.shape, bool(panel.coverage_kk.trace() < 32)
    (torch.Size([32, 32]), True)
    """

    center_k: Tensor
    coverage_kk: Tensor


class LatentSpace(nn.Module):
    r"""Principal components of a cell, partly as measured, partly as the network predicts them.

    The measured components :math:`m_c` of a cell are noisy, as most of its genes were not caught;
    what the network predicts from the cell vector, :math:`\hat m_c = W z_c + b`, is almost free
    of noise, but lacks what training has not taught it. Where cells come in batches, the
    prediction has an offset :math:`\delta` per batch, which is left out of the representation,
    and what is left of the batches is taken away cluster by cluster:

    .. math::
        r_c = \hat m_c + w \, (m_c - \hat m_c - \delta_{b(c)}), \qquad
        u_c = r_c - \sum_k p_{ck} \Delta_{b(c) k}

    Here :math:`p_{ck}` is the probability of the cell to be in cluster :math:`k`, from the cosine
    between :math:`r_c` and the centres of the clusters in the batch of the cell,
    :math:`\mu_k + \Delta_{bk}`. No cell depends on another.

    Parameters
    ----------
    n_genes
        Number of genes in the vocabulary.
    n_latent
        Number of components, and of dimensions of the cell vector.
    n_batches
        Number of batches of the training cells.
    measured_weight
        The weight :math:`w`.

    Notes
    -----
    Components, prediction and clusters are fitted to the training cells when training ends;
    nothing here has gradients.

    Examples
    --------
    >>> import torch
    >>> from scxtrimo.data import RaggedDataset
    >>> space = model.module.latent_space
    >>> space.is_fitted
    True
    >>> batch = RaggedDataset(model.adata_manager)[:10]
    >>> batch = {name: torch.from_numpy(array) for name, array in batch.items()}
    >>> latent, measured = torch.zeros(10, 32), space.measure(batch)
    >>> space(latent, measured, space.panel()).shape
    torch.Size([10, 32])
    >>> predicted, difference = space.compare(latent, measured, space.panel())
    >>> torch.equal(predicted, space.predict(latent))
    True
    >>> space.integrate(predicted, batch_c=torch.zeros(10, dtype=torch.int64)).shape
    torch.Size([10, 32])
    """

    inverse_std: Tensor
    scaled_mean: Tensor
    loadings: Tensor
    weight: Tensor
    bias: Tensor
    batch_offset: Tensor
    centers: Tensor
    shifts: Tensor
    is_cluster: Tensor

    def __init__(
        self, n_genes: int, n_latent: int, n_batches: int = 1, measured_weight: float = 0.6
    ) -> None:
        super().__init__()
        self.measured_weight = measured_weight
        self.register_buffer("inverse_std", torch.zeros(n_genes))
        self.register_buffer("scaled_mean", torch.zeros(n_genes))
        self.register_buffer("loadings", torch.zeros(n_genes, n_latent))
        self.register_buffer("weight", torch.zeros(n_latent, n_latent))
        self.register_buffer("bias", torch.zeros(n_latent))
        self.register_buffer("batch_offset", torch.zeros(n_batches, n_latent))
        self.register_buffer("centers", torch.zeros(MAX_CLUSTERS, n_latent))
        self.register_buffer("shifts", torch.zeros(n_batches, MAX_CLUSTERS, n_latent))
        self.register_buffer("is_cluster", torch.zeros(MAX_CLUSTERS, dtype=torch.bool))

    def set(self, **tensors: Tensor) -> None:
        """Fill buffers; what has fewer components or clusters than there is room for is padded.

        Parameters
        ----------
        **tensors
            Values of the buffers, by name.

        Examples
        --------
        >>> import torch
        >>> from scxtrimo.latent import LatentSpace
        >>> space = LatentSpace(n_genes=5, n_latent=4)
        >>> space.set(loadings=torch.ones(5, 2))
        >>> space.loadings.sum(dim=0)
        tensor([5., 5., 0., 0.])
        """
        for name, tensor in tensors.items():
            buffer = getattr(self, name)
            buffer.zero_()
            buffer[tuple(slice(n) for n in tensor.shape)] = tensor.to(buffer)

    @property
    def is_fitted(self) -> bool:
        """Whether the space was fitted to training cells."""
        return bool(self.is_cluster.any())

    def panel(self, measured: Tensor | None = None) -> Panel:
        """Return what the genes of some data mean for the components.

        Parameters
        ----------
        measured
            Genes the data have, bool, shape ``(n_genes,)``; by default all.

        Returns
        -------
        Centre and coverage of the components.
        """
        is_used = self.inverse_std > 0
        if measured is not None:
            is_used = is_used & measured
        loadings_uk = self.loadings[is_used]
        return Panel(self.scaled_mean[is_used] @ loadings_uk, loadings_uk.T @ loadings_uk)

    def measure(self, batch: dict[str, Any]) -> Tensor:
        """Return the components of the counts of a ragged batch, not centred.

        Parameters
        ----------
        batch
            Ragged batch with all expressed genes, see :class:`~scxtrimo.data.RaggedDataset`.

        Returns
        -------
        float32, shape ``(n_cells, n_components)``.
        """
        keep = self.inverse_std[batch["gene_ids"]] > 0
        counts_t, ids_t = batch["counts"][keep], batch["gene_ids"][keep]
        cu_seqlens = select_tokens(keep, batch["cu_seqlens"])
        library_size_t = to_tokens(batch["library_size"], cu_seqlens, len(counts_t))
        values_t = normalize_counts(counts_t, library_size_t)
        scaled_t = (values_t * self.inverse_std[ids_t]).clamp(max=MAX_SCALED_VALUE)
        return sum_per_cell(scaled_t[:, None] * self.loadings[ids_t], cu_seqlens)

    def forward(
        self,
        latent_cz: Tensor,
        measured_ck: Tensor,
        panel: Panel,
        batch_c: Tensor | None = None,
        measured_weight: float | None = None,
    ) -> Tensor:
        """Return the latent representation.

        Parameters
        ----------
        latent_cz
            Cell vectors of the network, shape ``(n_cells, n_latent)``.
        measured_ck
            What :meth:`measure` returned for these cells.
        panel
            What :meth:`panel` returned for the genes of the data.
        batch_c
            Batches of the cells, int64, shape ``(n_cells,)``; -1 for one not trained on, to which
            nothing is done. By default nothing is done to any.
        measured_weight
            Instead of that of the space.

        Returns
        -------
        Latent representation, shape ``(n_cells, n_latent)``.
        """
        predicted_ck, surprise_ck = self.compare(latent_cz, measured_ck, panel, batch_c)
        weight = self.measured_weight if measured_weight is None else measured_weight
        mixed_ck = predicted_ck + weight * surprise_ck
        return mixed_ck if batch_c is None else self.integrate(mixed_ck, batch_c)

    def predict(self, latent_cz: Tensor) -> Tensor:
        """Predict the components from the cell vector, without offsets of batches.

        Parameters
        ----------
        latent_cz
            Cell vectors of the network, shape ``(n_cells, n_latent)``.

        Returns
        -------
        Tensor of shape ``(n_cells, n_components)``.
        """
        return latent_cz @ self.weight.T + self.bias

    def compare(
        self, latent_cz: Tensor, measured_ck: Tensor, panel: Panel, batch_c: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """Return predicted components, and measured minus expected ones.

        Parameters
        ----------
        latent_cz, measured_ck, panel, batch_c
            See :meth:`forward`.

        Returns
        -------
        Two tensors of shape ``(n_cells, n_components)``.
        """
        expected_ck = predicted_ck = self.predict(latent_cz)
        if batch_c is not None:
            is_known_c1 = (batch_c >= 0)[:, None]
            offset_ck = self.batch_offset[batch_c.clamp(min=0)] * is_known_c1
            expected_ck = predicted_ck + offset_ck
        # Of genes that the data do not have, the components hold what is predicted.
        return predicted_ck, measured_ck - panel.center_k - expected_ck @ panel.coverage_kk

    def integrate(self, mixed_ck: Tensor, batch_c: Tensor) -> Tensor:
        """Take away what the clusters of the batches differ in.

        Parameters
        ----------
        mixed_ck
            Cells, shape ``(n_cells, n_components)``.
        batch_c
            Their batches, int64, shape ``(n_cells,)``; -1 for one not trained on.

        Returns
        -------
        Tensor of shape ``(n_cells, n_components)``.
        """
        centers_nk, shifts_bnk = self.centers[self.is_cluster], self.shifts[:, self.is_cluster]
        result_ck = mixed_ck.clone()
        for batch in batch_c.unique().tolist():
            if batch < 0:
                continue
            in_batch = batch_c == batch
            shift_nk = shifts_bnk[batch]
            p_cn = memberships(mixed_ck[in_batch], centers_nk + shift_nk)
            result_ck[in_batch] -= p_cn @ shift_nk
        return result_ck


def memberships(mixed_ck: Tensor, centers_nk: Tensor) -> Tensor:
    """Return the probability of each cell to be in each cluster, from cosines as in Harmony.

    Parameters
    ----------
    mixed_ck
        Cells, shape ``(n_cells, n_components)``.
    centers_nk
        Centres of the clusters, shape ``(n_clusters, n_components)``.

    Notes
    -----
    Korsunsky et al. 2019, with their default width of 0.1.
    """
    cosine_cn = nn.functional.normalize(mixed_ck) @ nn.functional.normalize(centers_nk).T
    return (SHARPNESS * cosine_cn).softmax(dim=1)
