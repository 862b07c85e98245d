"""From vectors of drugs and of a line to predictions: several members, computed together."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class PackedLinear(nn.Module):
    """One linear layer for each of several members.

    Parameters
    ----------
    n_members
        How many.
    n_in, n_out
        Widths.
    """

    def __init__(self, n_members: int, n_in: int, n_out: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(n_members, n_in, n_out) * n_in**-0.5)
        self.bias = nn.Parameter(torch.zeros(n_members, 1, n_out))

    def forward(self, x_knd: Tensor) -> Tensor:
        """Transform ``(n_members, n_rows, n_in)`` to ``(n_members, n_rows, n_out)``."""
        return torch.baddbmm(self.bias, x_knd, self.weight)


def join_drugs(x_ndh: Tensor) -> Tensor:
    """Describe the drugs of a row regardless of their order, exactly.

    Parameters
    ----------
    x_ndh
        Vectors of one or two drugs, ``(n_rows, 1 or 2, n_hidden)``.

    Returns
    -------
    The vector of a single drug; sum, distance and product of two. ``(n_rows, n_joined)``.

    Examples
    --------
    >>> import torch
    >>> join_drugs(torch.tensor([[[1.0], [3.0]]]))
    tensor([[4., 2., 3.]])
    """
    if x_ndh.shape[1] == 1:
        return x_ndh[:, 0]
    first, second = x_ndh.unbind(1)
    return torch.cat([first + second, (first - second).abs(), first * second], dim=1)


class ResponseHead(nn.Module):
    """Members that predict a number from drugs and line.

    Parameters
    ----------
    n_members
        How many; they differ in their random starts and in how they weight their input.
    n_drugs
        Drugs per row, 1 or 2.
    n_hidden
        Width of the vectors of drugs and lines.
    dropout
        Dropout before every layer.

    Examples
    --------
    >>> import torch
    >>> from scxtrimo.drugs.head import ResponseHead
    >>> head = ResponseHead(n_members=4, n_drugs=2, n_hidden=8, dropout=0.1)
    >>> head(drugs_ndh=torch.randn(5, 2, 8), lines_nh=torch.randn(5, 8)).shape
    torch.Size([4, 5])
    """

    def __init__(self, n_members: int, n_drugs: int, n_hidden: int, dropout: float) -> None:
        super().__init__()
        n_in = (2 + (1 if n_drugs == 1 else 3)) * n_hidden
        self.scale = nn.Parameter(1 + 0.3 * torch.randn(n_members, 1, n_in))
        self.inner = PackedLinear(n_members, n_in, 2 * n_hidden)
        self.middle = PackedLinear(n_members, 2 * n_hidden, n_hidden)
        self.out = PackedLinear(n_members, n_hidden, 1)
        self.dropout = nn.Dropout(dropout)

    def forward(self, drugs_ndh: Tensor, lines_nh: Tensor) -> Tensor:
        """Predict every row with every member.

        Parameters
        ----------
        drugs_ndh
            Vectors of the drugs, shape ``(n_rows, n_drugs, n_hidden)``.
        lines_nh
            Vectors of the lines, shape ``(n_rows, n_hidden)``.

        Returns
        -------
        Predictions, shape ``(n_members, n_rows)``.
        """
        together_nh = drugs_ndh.sum(1) * lines_nh
        x_nd = torch.cat([join_drugs(drugs_ndh), lines_nh, together_nh], dim=1)
        x_knd = self.dropout(x_nd[None] * self.scale)
        x_knd = self.dropout(F.gelu(self.inner(x_knd)))
        return self.out(self.dropout(F.gelu(self.middle(x_knd))))[..., 0]
