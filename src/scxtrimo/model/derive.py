"""Models of other classes that start from a trained one."""

from __future__ import annotations

from copy import deepcopy
from typing import Any, TypeVar

from anndata import AnnData
from mudata import MuData
from scvi.data import _constants

from ..config import XTrimoGeneConfig
from ..nn.xtrimogene import XTrimoGeneModule
from .base import XTrimoGeneBase
from .registration import own_view

Model = TypeVar("Model", bound=XTrimoGeneBase)


def derive_model(
    cls: type[Model],
    model: XTrimoGeneBase,
    data: AnnData | MuData,
    own_args: dict[str, Any],
    own_fields: list[Any],
    config: XTrimoGeneConfig,
    *,
    seed: int | None = None,
    min_gene_overlap: float | None = None,
) -> Model:
    """Return a model for ``data`` with the network of a trained one, and set-up of its own."""
    if not model.is_trained_:
        raise ValueError("The model is not trained. Call `model.train()` first.")
    setup_args = model.registry_[_constants._SETUP_ARGS_KEY] | own_args
    selected = cls._select_modality(data, setup_args)
    own_view(selected)
    registry = deepcopy(model.registry_) | {
        _constants._MODEL_NAME_KEY: cls.__name__,
        _constants._SETUP_ARGS_KEY: setup_args,
    }
    for field in own_fields:
        register_field(registry, field, field.register_field(selected))
    derived = cls(registry=registry, config=config, seed=model.seed_ if seed is None else seed)
    _take_over(derived.module, model.module)
    derived.size_, derived.provenance_ = model.size_, dict(model.provenance_)
    derived._remember_names(model.gene_aliases_, model.min_gene_overlap_)
    derived._remember_names(None, min_gene_overlap)
    derived.is_trained_ = True
    known = model._queries.get(id(selected))
    if known is not None and (prepared := known.setup) is not None:
        derived.prepare_query_anndata(
            selected,
            gene_aliases=prepared.gene_aliases,
            min_gene_overlap=prepared.min_gene_overlap,
            **(prepared.setup_args | own_args),
        )
    derived._attach(data)
    derived.to_device(model.device)
    derived.module.eval()
    return derived


def register_field(registry: dict[str, Any], field: Any, state: dict[str, Any]) -> None:
    """Put a field and what it learned from data into a registry."""
    registry[_constants._FIELD_REGISTRIES_KEY][field.registry_key] = {
        _constants._DATA_REGISTRY_KEY: field.get_data_registry(),
        _constants._STATE_REGISTRY_KEY: state,
        _constants._SUMMARY_STATS_KEY: field.get_summary_stats(state),
    }


def _take_over(module: XTrimoGeneModule, trained: XTrimoGeneModule) -> None:
    """Take over the weights of a trained network; only heads of its own may be missing there."""
    own_heads = dict(module.named_children()).keys() - dict(trained.named_children()).keys()
    own_buffers = dict(module.named_buffers(recurse=False)).keys()
    weights, wanted = trained.state_dict(), module.state_dict()
    missing = [
        name
        for name in wanted.keys() - weights.keys()
        if name.split(".")[0] not in own_heads and name not in own_buffers
    ]
    wrong = [n for n in weights if n not in wanted or weights[n].shape != wanted[n].shape]
    if missing or wrong:
        raise ValueError(
            "The network of the trained model is another one than that of the new model. "
            f"Missing: {sorted(missing)}; unexpected or of another shape: {sorted(wrong)}."
        )
    module.load_state_dict(wanted | weights)
