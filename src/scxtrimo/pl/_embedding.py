"""Pictures of representations of cells."""

from __future__ import annotations

import zlib
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import scanpy as sc
from anndata import AnnData

from ..tl._agreement import representation
from ._axes import finish, new_axes, new_grid

if TYPE_CHECKING:
    from matplotlib.axes import Axes

SEED = 0
MAX_SIZE = 40  # of a point; scanpy makes those of few cells larger than their clusters
SOURCES_KEY = "scxtrimo_umap"


def umap(
    adata: AnnData,
    color: str | Sequence[str] | None = None,
    use_rep: str | Sequence[str] = "X_xtrimo",
    ax: Axes | None = None,
    show: bool | None = None,
    **kwargs: Any,
) -> Axes | np.ndarray:
    """Draw the UMAP of a representation, or of several side by side.

    Neighbours and UMAP are scanpy's, with its defaults and a fixed seed. What is computed is kept
    in ``adata.obsm``, for instance as ``"X_xtrimo_umap"`` for ``"X_xtrimo"``, until the
    representation changes; ``"X_umap"`` and ``"neighbors"`` stay as they are.

    Parameters
    ----------
    adata
        Cells with representations in ``obsm``.
    color
        What to colour by, see :func:`scanpy.pl.embedding`. Several make several rows, or
        of one representation a row.
    use_rep
        Representation in ``adata.obsm``. Several make several columns.
    ax
        Axes to draw on, if there is one panel; by default new ones.
    show
        Whether to show the figure.
    **kwargs
        Passed to :func:`scanpy.pl.embedding`.

    Returns
    -------
    The axes; of several panels an array of shape ``(n_colors, n_representations)``.

    Raises
    ------
    ValueError
        If there is no such representation, or several panels are to go on one axes.

    Examples
    --------
    >>> adata.obsm["X_xtrimo"] = model.get_latent_representation()
    >>> ax = scxtrimo.pl.umap(adata, color="bulk_labels", show=False)
    >>> adata.obsm["X_xtrimo_umap"].shape
    (700, 2)
    """
    colors = list(color) if isinstance(color, Sequence) and not isinstance(color, str) else [color]
    names = [use_rep] if isinstance(use_rep, str) else list(use_rep)
    shape = (len(colors), len(names))
    if not colors or not names:
        raise ValueError(f"color={color!r} and use_rep={use_rep!r} must name something.")
    if ax is not None and shape != (1, 1):
        raise ValueError(
            f"ax= takes one panel, not {shape[0]} x {shape[1]}: leave it out, or draw one "
            "`color` and one `use_rep` at a time."
        )
    # a wrong one raises here, before anything is computed
    representations = {name: representation(adata, name) for name in names}
    bases = [_ensure_umap(adata, *item) for item in representations.items()]
    was_given = ax is not None
    size = min(MAX_SIZE, 120_000 / adata.n_obs)
    options = {"frameon": False, "legend_fontsize": 8, "size": size} | kwargs
    if shape == (1, 1):
        ax = new_axes(ax, (5.0, 3.6))
        sc.pl.embedding(adata, bases[0], color=colors[0], ax=ax, show=False, **options)
        return finish(ax, was_given, show)
    if len(names) == 1:  # in a row, as scanpy does
        row = sc.pl.embedding(
            adata, bases[0], color=colors, show=False, **{"wspace": 0.6} | options
        )
        finish(row[0], was_given, show)
        return np.array(row)[:, None]
    axes = new_grid(shape, (3.2, 3.0), for_legends=2.0)
    for (i, j), panel in np.ndenumerate(axes):
        title = ": ".join(filter(None, (names[j], colors[i])))
        own: dict[str, Any] = {"colorbar_loc": None, "title": title}
        if j < len(names) - 1:  # one legend per row is enough
            own["legend_loc"] = "none"
        sc.pl.embedding(adata, bases[j], color=colors[i], ax=panel, show=False, **own | options)
        has_own_bar = options.get("colorbar_loc") is not None
        if j == len(names) - 1 and not has_own_bar:
            _add_color_bar(panel)
    finish(axes[0, 0], was_given, show)
    return axes


def _add_color_bar(ax: Axes) -> None:
    """Put a colour bar beside the panel, if it is coloured by numbers, and not beyond legends."""
    coloured = [points for points in ax.collections if points.get_array() is not None]
    if coloured:
        ax.figure.colorbar(coloured[-1], cax=ax.inset_axes((1.03, 0.1, 0.04, 0.8)))


def _ensure_umap(adata: AnnData, use_rep: str, work: AnnData) -> str:
    """Compute the UMAP of a representation if it is not there, and return its name."""
    key = f"X_{use_rep.removeprefix('X_')}_umap"
    checksum = zlib.crc32(np.ascontiguousarray(work.X).data)
    sources = adata.uns.get(SOURCES_KEY, {})
    # Without its checksum it may be of other cells: two of them put one after the other, say.
    if key in adata.obsm and sources.get(key) == checksum:
        return key
    sc.pp.neighbors(work, use_rep="X", random_state=SEED)
    sc.tl.umap(work, random_state=SEED)
    adata.obsm[key] = work.obsm["X_umap"]
    adata.uns[SOURCES_KEY] = {**sources, key: checksum}
    return key
