"""What a sum of target effects leaves out, gene by gene."""

from __future__ import annotations

import torch
from torch import Tensor, nn


class EffectNet(nn.Module):
    r"""Correction of predicted effects by a network that all genes and perturbations share.

    .. math::
        r_{pn} = \rho \left( x_{pn}, \sum_{t \in p} \phi(u_{tn}, x_{pn}) \right)

    It sees no identities, only what is known about the targets, the gene and the population, so
    that it applies to any; the sum makes it independent of the order of the targets (Zaheer et
    al. 2017). It starts at zero: without training nothing is corrected.

    Parameters
    ----------
    n_target_inputs
        Width of :math:`u`, what is known about a target and a gene.
    n_gene_inputs
        Width of :math:`x`, what is known about a gene and a perturbation.
    n_hidden
        Width of the inner layers.

    Examples
    --------
    >>> import torch
    >>> from scxtrimo.perturbation.net import EffectNet
    >>> net = EffectNet(n_target_inputs=3, n_gene_inputs=9)
    >>> is_target = torch.tensor([[True, True], [True, False]])
    >>> net(torch.randn(2, 2, 100, 3), is_target, torch.randn(2, 100, 9)).shape
    torch.Size([2, 100])
    """

    def __init__(self, n_target_inputs: int, n_gene_inputs: int, n_hidden: int = 32) -> None:
        super().__init__()
        n_inputs = n_target_inputs + n_gene_inputs
        self.of_target = nn.Sequential(
            nn.Linear(n_inputs, n_hidden), nn.GELU(), nn.Linear(n_hidden, n_hidden)
        )
        last = nn.Linear(n_hidden, 1)
        self.of_sum = nn.Sequential(nn.Linear(n_hidden + n_gene_inputs, n_hidden), nn.GELU(), last)
        nn.init.zeros_(last.weight)
        nn.init.zeros_(last.bias)

    def forward(self, targets_gtnu: Tensor, is_target_gt: Tensor, genes_gnx: Tensor) -> Tensor:
        """Return the corrections.

        Parameters
        ----------
        targets_gtnu
            What is known about every target and gene, shape
            ``(n_groups, max_targets, n_genes, n_target_inputs)``.
        is_target_gt
            Which of the targets exist, bool, shape ``(n_groups, max_targets)``.
        genes_gnx
            What is known about every gene, shape ``(n_groups, n_genes, n_gene_inputs)``.

        Returns
        -------
        Tensor of shape ``(n_groups, n_genes)``.
        """
        per_target = genes_gnx[:, None].expand(-1, targets_gtnu.shape[1], -1, -1)
        hidden_gtnh = self.of_target(torch.cat([targets_gtnu, per_target], dim=-1))
        sum_gnh = (hidden_gtnh * is_target_gt[:, :, None, None]).sum(dim=1)
        return self.of_sum(torch.cat([sum_gnh, genes_gnx], dim=-1))[..., 0]
