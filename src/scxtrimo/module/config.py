"""Hyper-parameters of the network, and the sizes that go by a name."""

from __future__ import annotations

from dataclasses import asdict, dataclass, fields, replace
from typing import Any

from ..nn.encoder import Activation


@dataclass(frozen=True)
class XTrimoGeneConfig:
    """Hyper-parameters of an :class:`~scxtrimo.model.XTrimoGene`.

    Parameters
    ----------
    n_hidden
        Width of the encoder and of the gene embeddings.
    n_layers, n_heads
        Depth of the encoder and heads per layer.
    n_bins, bin_alpha
        Bins of the auto-discretisation of expression values, and the weight of its residual path.
    n_pool
        Inner width of the network that turns encoded tokens into the latent representation.
    n_latent
        Dimensions of the latent representation.
    n_decoder_hidden, n_decoder_layers, n_decoder_heads
        Width, depth and heads of the cross-attention decoder (imputation).
    n_covariate
        Width of the embedding of batch and other covariates, used by the bottleneck decoder only.
    n_input_genes
        How many highly variable genes the encoder reads; ``None`` for all. Predictions are made
        for all genes of the vocabulary regardless.
    imputation_weight
        Weight of the masked regression beside the count likelihood; 0 leaves it out.
    activation, norm_first, dropout
        Feed-forward activation, pre-norm or post-norm, and dropout of the encoder.

    Examples
    --------
    >>> XTrimoGeneConfig.from_size("3m", n_latent=64).n_hidden
    128
    """

    n_hidden: int = 64
    n_layers: int = 2
    n_heads: int = 4
    n_bins: int = 100
    bin_alpha: float = 1.0
    n_pool: int = 128
    n_latent: int = 32
    n_decoder_hidden: int = 64
    n_decoder_layers: int = 1
    n_decoder_heads: int = 4
    n_covariate: int = 8
    n_input_genes: int | None = 3000
    imputation_weight: float = 1.0
    activation: Activation = "gelu"
    norm_first: bool = True
    dropout: float = 0.0

    def __post_init__(self) -> None:
        may_be_zero = {"imputation_weight", "dropout"}
        for name, value in asdict(self).items():
            if isinstance(value, bool | str) or value is None:
                continue
            if value < 0 or (value == 0 and name not in may_be_zero):
                raise ValueError(f"{name}={value} must be positive.")
        for width, heads in (("n_hidden", "n_heads"), ("n_decoder_hidden", "n_decoder_heads")):
            if getattr(self, width) % getattr(self, heads):
                raise ValueError(
                    f"{width}={getattr(self, width)} must be a multiple of "
                    f"{heads}={getattr(self, heads)}."
                )
        if self.dropout >= 1:
            raise ValueError(f"dropout={self.dropout} must be below 1.")
        if self.activation not in ("gelu", "relu"):
            raise ValueError(f"activation={self.activation!r} must be 'gelu' or 'relu'.")

    @classmethod
    def from_size(cls, size: str, **overrides: Any) -> XTrimoGeneConfig:
        """Return the configuration of a named size, with some fields replaced.

        Parameters
        ----------
        size
            One of :data:`SIZES`.
        **overrides
            Fields to replace.

        Raises
        ------
        ValueError
            If the size is unknown.
        TypeError
            If a field is unknown.
        """
        if size not in SIZES:
            raise ValueError(f"size={size!r} is unknown; choose 'auto' or one of {list(SIZES)}.")
        known = [field.name for field in fields(cls)]
        if unknown := sorted(set(overrides) - set(known)):
            raise TypeError(f"Unknown hyper-parameters {unknown}; XTrimoGeneConfig has {known}.")
        return replace(SIZES[size], **overrides)


def _size(hidden: int, layers: int, heads: int, decoder: tuple[int, int, int]) -> XTrimoGeneConfig:
    decoder_hidden, decoder_layers, decoder_heads = decoder
    return XTrimoGeneConfig(
        n_hidden=hidden,
        n_layers=layers,
        n_heads=heads,
        n_pool=2 * hidden,
        n_decoder_hidden=decoder_hidden,
        n_decoder_layers=decoder_layers,
        n_decoder_heads=decoder_heads,
    )


SIZES: dict[str, XTrimoGeneConfig] = {
    "tiny": _size(32, 1, 2, (32, 1, 2)),
    "1m": _size(64, 2, 4, (64, 1, 4)),
    "3m": _size(128, 4, 2, (128, 2, 2)),
    "10m": _size(256, 6, 4, (256, 3, 4)),
    "100m": _size(768, 12, 12, (512, 6, 8)),
}
"""Named sizes, by approximate number of parameters with a vocabulary of 19,264 genes.

``3m`` and ``100m`` are the published ones, ``10m`` lies between; ``tiny`` and ``1m`` suit a CPU.
"""


def choose_size(n_cells: int, on_gpu: bool) -> str:
    """Choose a size that can be trained from scratch on ``n_cells`` cells.

    A CPU gets ``1m`` whatever the number of cells; larger sizes pay from some 100,000 cells on
    and need a GPU to finish in reasonable time.

    Examples
    --------
    >>> choose_size(3_000, on_gpu=False)
    '1m'
    """
    if not on_gpu or n_cells < 100_000:
        return "1m"
    return "3m" if n_cells < 1_000_000 else "10m"
