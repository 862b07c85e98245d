"""Plots of representations of cells."""

from __future__ import annotations

import zlib
from collections.abc import Sequence
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
import scanpy as sc
from anndata import AnnData
from matplotlib.axes import Axes

from ..tl._agreement import representation
from ._axes import documents_axes, finish, new_axes

SEED = 0
MAX_SIZE = 40  # of points; by default scanpy draws few cells larger than their clusters
SOURCES_KEY = "scxtrimo_umap"


@documents_axes
def umap(
    adata: AnnData,
    color: str | Sequence[str] | None = None,
    use_rep: str | Sequence[str] = "X_xtrimo",
    ax: Axes | None = None,
    show: bool | None = None,
    **kwargs: Any,
) -> Axes | np.ndarray:
    """Draw the UMAP of a representation, or of several side by side.

    Scanpy computes it with its defaults and a fixed seed. It is kept in ``adata.obsm``, for
    instance as ``"X_xtrimo_umap"`` for ``"X_xtrimo"``, until the representation changes.

    Parameters
    ----------
    adata
        Cells with representations in ``obsm``.
    color
        What to colour by, see :func:`scanpy.pl.embedding`. Several make several rows, or one row
        if there is a single representation.
    use_rep
        Representation in ``adata.obsm``. Several make several columns.
    **kwargs
        Passed to :func:`scanpy.pl.embedding`.

    Returns
    -------
    The axes; for several panels an array of shape ``(n_colors, n_representations)``.

    Examples
    --------
    >>> adata.obsm["X_xtrimo"] = model.get_latent_representation()
    >>> ax = scxtrimo.pl.umap(adata, color="bulk_labels", show=False)
    >>> adata.obsm["X_xtrimo_umap"].shape
    (700, 2)
    """
    colors = [color] if color is None or isinstance(color, str) else list(color)
    names = [use_rep] if isinstance(use_rep, str) else list(use_rep)
    shape = (len(colors), len(names))
    if not colors or not names:
        raise ValueError(f"color={color!r} and use_rep={use_rep!r} must name something.")
    if ax is not None and shape != (1, 1):
        raise ValueError(
            f"ax= takes one panel, not {shape[0]} x {shape[1]}: omit it, or draw one `color` and "
            "one `use_rep` at a time."
        )
    parts = [representation(adata, name) for name in names]  # raises if one is missing
    bases = [_ensure_umap(adata, *item) for item in zip(names, parts, strict=True)]
    size = min(MAX_SIZE, 120_000 / adata.n_obs)
    options = {"frameon": False, "legend_fontsize": 8, "size": size} | kwargs
    if shape == (1, 1):
        ax, show = new_axes(ax, show, (5.0, 3.6))
        sc.pl.embedding(adata, bases[0], color=colors[0], ax=ax, show=False, **options)
        return finish(ax, show)
    show = plt.isinteractive() if show is None else show
    if len(names) == 1:
        options = {"wspace": 0.6} | options
        row = sc.pl.embedding(adata, bases[0], color=colors, show=False, **options)
        finish(row[0], show)
        return np.array(row)[:, None]
    size_in = (3.2 * shape[1] + 2.0, 3.0 * shape[0])  # with room for legends
    axes = plt.subplots(*shape, figsize=size_in, layout="constrained", squeeze=False)[1]
    for (i, j), panel in np.ndenumerate(axes):
        title = ": ".join(filter(None, (names[j], colors[i])))
        is_last = j == len(names) - 1  # one legend per row
        own = {"colorbar_loc": None, "title": title} | ({} if is_last else {"legend_loc": "none"})
        sc.pl.embedding(adata, bases[j], color=colors[i], ax=panel, show=False, **own | options)
        coloured = [points for points in panel.collections if points.get_array() is not None]
        if is_last and coloured and options.get("colorbar_loc") is None:
            bar = panel.inset_axes((1.03, 0.1, 0.04, 0.8))
            panel.figure.colorbar(coloured[-1], cax=bar)
    finish(axes[0, 0], show)
    return axes


def _ensure_umap(adata: AnnData, use_rep: str, work: AnnData) -> str:
    """Compute the UMAP of a representation unless it is up to date, and return its key."""
    key = f"X_{use_rep.removeprefix('X_')}_umap"
    checksum = zlib.crc32(np.ascontiguousarray(work.X).data)
    sources = adata.uns.get(SOURCES_KEY, {})
    # A UMAP without the right checksum may be of other cells, for instance after concatenation.
    if key in adata.obsm and sources.get(key) == checksum:
        return key
    sc.pp.neighbors(work, use_rep="X", random_state=SEED)
    sc.tl.umap(work, random_state=SEED)
    adata.obsm[key] = work.obsm["X_umap"]
    adata.uns[SOURCES_KEY] = {**sources, key: checksum}
    return key
