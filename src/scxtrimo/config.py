"""Hyper-parameters of a model, and the sizes that go by a name."""

import warnings
from dataclasses import asdict, dataclass, fields, replace
from typing import Any, Literal, Self

from ._validation import Validated
from .nn.ranges import PositiveInt, Probability
from .nn.xtrimogene import NetConfig


@dataclass(frozen=True)
class XTrimoGeneConfig(Validated, NetConfig):
    """Hyper-parameters of an :class:`~scxtrimo.model.XTrimoGene`.

    Those of the network come from :class:`~scxtrimo.nn.NetConfig`.

    Examples
    --------
    >>> from scxtrimo.model import XTrimoGeneConfig
    >>> config = XTrimoGeneConfig.from_size("3m", n_latent=64)
    >>> config.n_hidden, config.has_bottleneck, config.uses_components
    (128, True, True)
    """

    n_input_genes: PositiveInt | None = 2000
    """How many highly variable genes the encoder reads; ``None`` for all. Predictions are made for
    all genes of the vocabulary regardless."""
    pca_initialization: bool = True
    """Start with gene embeddings from a principal component analysis of the training cells."""
    latent_space: Literal["components", "bottleneck"] = "components"
    """The latent representation: ``"components"``, principal components of the training cells,
    partly as measured and partly as the network predicts them, with batches integrated; or
    ``"bottleneck"``, the cell vector of the network as it is."""
    measured_weight: Probability = 0.6
    """Weight of the measured components, from 0 to 1."""

    def __post_init__(self) -> None:
        super().__post_init__()
        for width, heads in (("n_hidden", "n_heads"), ("n_decoder_hidden", "n_decoder_heads")):
            if heads == "n_decoder_heads" and self.decoder_head_width is not None:
                continue
            if getattr(self, width) % getattr(self, heads):
                raise ValueError(
                    f"{width}={getattr(self, width)} must be a multiple of "
                    f"{heads}={getattr(self, heads)}."
                )
        if self.decoder_head_width is not None and self.imputation_decoder != "performer":
            raise ValueError(
                f"decoder_head_width={self.decoder_head_width} applies to "
                "imputation_decoder='performer' only."
            )
        self._objective_of_weights()
        if not self.has_bottleneck and not self.read_depth_aware:
            raise ValueError(
                "objective='masked' leaves out the cell token, so that read_depth_aware=True is "
                "needed: a cell whose genes are all masked would have no token."
            )

    def _objective_of_weights(self) -> None:
        """Accept a weight of 0 as the objective that it stood for until ``objective`` came."""
        if self.likelihood_weight and self.imputation_weight:
            return
        if not self.likelihood_weight and not self.imputation_weight:
            raise ValueError(
                "likelihood_weight and imputation_weight are both 0: there is nothing to train."
            )
        name, objective = "imputation_weight", "counts"
        if not self.likelihood_weight:
            name, objective = "likelihood_weight", "masked"
        warnings.warn(
            f"{name}=0 is deprecated: use objective={objective!r}.", FutureWarning, stacklevel=4
        )
        object.__setattr__(self, "objective", objective)
        object.__setattr__(self, name, 1.0)

    @property
    def uses_components(self) -> bool:
        """Whether the latent representation is made of principal components."""
        return self.has_bottleneck and self.latent_space == "components"

    @classmethod
    def from_size(cls, size: str, **overrides: Any) -> Self:
        """Make the configuration of a named size, with some fields replaced.

        Parameters
        ----------
        size
            One of :data:`~scxtrimo.model.SIZES`.
        **overrides
            Fields to replace.

        Returns
        -------
        The configuration.

        Raises
        ------
        ValueError
            If the size is unknown.
        TypeError
            If a field is unknown.

        Examples
        --------
        >>> from scxtrimo.model import XTrimoGeneConfig
        >>> XTrimoGeneConfig.from_size("published-3m").imputation_decoder
        'performer'
        """
        if size not in SIZES:
            raise ValueError(f"size={size!r} is unknown; choose 'auto' or one of {list(SIZES)}.")
        known = [field.name for field in fields(cls)]
        if unknown := sorted(set(overrides) - set(known)):
            raise TypeError(f"Unknown hyper-parameters {unknown}; {cls.__name__} has {known}.")
        return cls(**(asdict(SIZES[size]) | overrides))


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


def as_published(config: XTrimoGeneConfig) -> XTrimoGeneConfig:
    """Return the published architecture in the size of another configuration.

    Post-norm encoder with ReLU, Performer decoder over all genes, read-depth tokens, masked
    regression alone, random initialisation (Gong et al. 2023; Hao et al. 2024).
    """
    return replace(
        config,
        activation="relu",
        norm_first=False,
        imputation_decoder="performer",
        read_depth_aware=True,
        n_input_genes=None,
        pca_initialization=False,
        objective="masked",
    )


SIZES: dict[str, XTrimoGeneConfig] = {
    "tiny": _size(32, 1, 2, (32, 1, 2)),
    "small": _size(64, 2, 4, (64, 1, 4)),
    "base": _size(128, 4, 2, (128, 2, 2)),
    "large": _size(256, 6, 4, (256, 3, 4)),
    "huge": _size(768, 12, 12, (512, 6, 8)),
}
"""Named sizes. ``tiny`` and ``small`` suit a CPU.

``1m``, ``3m``, ``10m`` and ``100m``, the numbers of parameters with 19,264 genes, are other names
of ``small`` to ``huge``. With ``published-`` in front (``published-3m``) each has the architecture
and the objective of the papers.
"""
_WITH_19264_GENES = {"1m": "small", "3m": "base", "10m": "large", "100m": "huge"}
SIZES |= {name: SIZES[size] for name, size in _WITH_19264_GENES.items()}
SIZES |= {f"published-{name}": as_published(config) for name, config in SIZES.items()}


def choose_size(n_cells: int, on_gpu: bool) -> str:
    """Choose a size that can be trained from scratch on ``n_cells`` cells.

    A CPU gets ``small`` whatever the number of cells; larger sizes pay from some 100,000 cells on
    and need a GPU to finish in reasonable time.
    """
    if not on_gpu or n_cells < 100_000:
        return "small"
    return "base" if n_cells < 1_000_000 else "large"
