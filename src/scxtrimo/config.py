"""Hyper-parameters of a model, and the sizes that go by a name."""

import os
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
    >>> config = scxtrimo.model.XTrimoGeneConfig.from_size("3m", n_latent=64)
    >>> config.n_hidden, config.has_bottleneck, config.uses_components
    (128, True, True)
    """

    n_input_genes: PositiveInt | None = 2000
    """How many highly variable genes the encoder reads; ``None`` for all. Predictions are made for
    all genes of the vocabulary regardless."""
    n_components: PositiveInt | None = None
    """Principal components of the latent representation, by default as many as the cell vector has
    dimensions (``n_latent``)."""
    pca_initialization: bool = True
    """Start with gene embeddings from a principal component analysis of the training cells."""
    latent_space: Literal["components", "bottleneck"] = "components"
    """The latent representation: ``"components"``, principal components of the training cells,
    partly as measured and partly as the network predicts them, with batches integrated; or
    ``"bottleneck"``, the cell vector of the network as it is."""
    predict_from: Literal["cell_vector", "tokens"] = "cell_vector"
    """What components are predicted from: the cell vector, or all encoded inducing tokens, which
    say more if the network, and its cell vector, were made for other cells."""
    measured_weight: Probability | None = None
    """Weight of the measured components, from 0 to 1. By default each component has its own, from
    what two halves of the counts of the validation cells agree on."""

    def __post_init__(self) -> None:
        super().__post_init__()
        checked = ["n_hidden", "n_decoder_hidden"]
        for width in checked if self.decoder_head_width is None else checked[:1]:
            heads = width.replace("hidden", "heads")
            if getattr(self, width) % getattr(self, heads):
                raise ValueError(
                    f"{width}={getattr(self, width)} must be a multiple of "
                    f"{heads}={getattr(self, heads)}."
                )
        if self.n_inducing is not None and (
            not self.has_bottleneck or self.imputation_decoder == "performer"
        ):
            raise ValueError(
                f"n_inducing={self.n_inducing} does not go with imputation_decoder='performer' or "
                "objective='masked', which work on encoded genes: use n_inducing=None."
            )
        if self.predict_from == "tokens" and self.n_inducing is None:
            raise ValueError("predict_from='tokens' needs inducing tokens: set n_inducing.")
        if self.decoder_head_width is not None and self.imputation_decoder != "performer":
            raise ValueError(
                f"decoder_head_width={self.decoder_head_width} applies to "
                "imputation_decoder='performer' only."
            )
        if not self.likelihood_weight and not self.imputation_weight:
            raise ValueError(
                "likelihood_weight and imputation_weight are both 0: there is nothing to train."
            )
        # A weight of 0 stood for an objective until there was one.
        for name, objective in (("imputation_weight", "counts"), ("likelihood_weight", "masked")):
            if not getattr(self, name):
                message = f"{name}=0 is deprecated: use objective={objective!r}."
                warnings.warn(message, FutureWarning, stacklevel=3)
                object.__setattr__(self, "objective", objective)
                object.__setattr__(self, name, 1.0)
        if not self.has_bottleneck and not self.read_depth_aware:
            raise ValueError(
                "objective='masked' leaves out the cell token, so that read_depth_aware=True is "
                "needed: a cell whose genes are all masked would have no token."
            )

    @property
    def uses_components(self) -> bool:
        """Whether the latent representation is made of principal components."""
        return self.has_bottleneck and self.latent_space == "components"

    @property
    def n_representation(self) -> int:
        """Dimensions of the latent representation.

        Examples
        --------
        >>> scxtrimo.model.XTrimoGeneConfig(n_latent=64, n_components=32).n_representation
        32
        """
        if not self.has_bottleneck:
            return 4 * self.n_hidden  # S, T, maximum and mean
        return (self.n_components if self.uses_components else None) or self.n_latent

    @property
    def n_predictors(self) -> int:
        """Dimensions of what components are predicted from.

        Examples
        --------
        >>> scxtrimo.model.XTrimoGeneConfig(n_latent=64).n_predictors
        64
        """
        if self.predict_from == "tokens":
            return (self.n_inducing or 0) * self.n_hidden
        return self.n_latent

    @classmethod
    def from_size(cls, size: str, **overrides: Any) -> Self:
        """Make the configuration of a named size, with some fields replaced.

        Parameters
        ----------
        size, **overrides
            One of :data:`~scxtrimo.model.SIZES`, and the fields to replace.

        Returns
        -------
        The configuration.

        Examples
        --------
        >>> scxtrimo.model.XTrimoGeneConfig.from_size("published-3m").imputation_decoder
        'performer'
        """
        if size not in SIZES:
            raise ValueError(f"size={size!r} is unknown; choose 'auto' or one of {list(SIZES)}.")
        known = [field.name for field in fields(cls)]
        if unknown := sorted(set(overrides) - set(known)):
            raise TypeError(f"Unknown hyper-parameters {unknown}; {cls.__name__} has {known}.")
        if overrides.get("imputation_decoder") == "performer" or (
            overrides.get("objective") == "masked"
        ):
            overrides = {"n_inducing": None} | overrides  # these work on encoded genes
        return cls(**(asdict(SIZES[size]) | overrides))


def stored_config(
    config_class: type[XTrimoGeneConfig], stored: dict[str, Any], path: str | os.PathLike
) -> XTrimoGeneConfig:
    """Return the hyper-parameters of a saved model."""
    known = {field.name for field in fields(config_class)}
    if unknown := sorted(stored.keys() - known):
        raise ValueError(
            f"The model in {path} has hyper-parameters this scxtrimo does not know: {unknown}. "
            "Update it: `pip install --upgrade scxtrimo`."
        )
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*_weight=0 is deprecated")  # said at the time
        return config_class(**stored)


def _size(hidden: int, layers: int, heads: int, decoder: tuple[int, int, int]) -> XTrimoGeneConfig:
    decoder_hidden, decoder_layers, decoder_heads = decoder
    return XTrimoGeneConfig(
        n_hidden=hidden,
        n_layers=layers,
        n_heads=heads,
        n_inducing=4,
        n_pool=2 * hidden,
        n_decoder_hidden=decoder_hidden,
        n_decoder_layers=decoder_layers,
        n_decoder_heads=decoder_heads,
    )


PUBLISHED_FIELDS: dict[str, Any] = {
    "n_inducing": None,
    "imputation_decoder": "performer",
    "read_depth_aware": True,
    "n_input_genes": None,
    "objective": "masked",
    "activation": "relu",
}


def as_published(config: XTrimoGeneConfig) -> XTrimoGeneConfig:
    """Return the published architecture (Gong et al. 2023; Hao et al. 2024) in another size."""
    return replace(config, norm_first=False, pca_initialization=False, **PUBLISHED_FIELDS)


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
    """Choose a size for training from scratch; larger ones need a GPU, and many cells to pay."""
    if not on_gpu or n_cells < 100_000:
        return "small"
    return "base" if n_cells < 1_000_000 else "large"
