"""Models of other classes that start from a trained one."""

from __future__ import annotations

from copy import deepcopy
from typing import Any, TypeVar

from anndata import AnnData
from mudata import MuData
from scvi.data import _constants

from ..module import XTrimoGeneConfig
from ._base import XTrimoGeneBase
from ._setup import own_view

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
    """Return a model of another class with the network of a trained one.

    Parameters
    ----------
    cls
        Class of the new model.
    model
        The trained model, which stays as it is.
    data
        Data for the new model.
    own_args, own_fields
        What the set-up of the new class has beyond that of the trained model.
    config
        Hyper-parameters of the new model.
    seed, min_gene_overlap
        By default those of the trained model.
    """
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
        state = field.register_field(selected)
        registry[_constants._FIELD_REGISTRIES_KEY][field.registry_key] = {
            _constants._DATA_REGISTRY_KEY: field.get_data_registry(),
            _constants._STATE_REGISTRY_KEY: state,
            _constants._SUMMARY_STATS_KEY: field.get_summary_stats(state),
        }
    derived = cls(registry=registry, config=config, seed=model.seed_ if seed is None else seed)
    derived.module.load_state_dict(model.module.state_dict(), strict=False)
    derived.size_, derived.provenance_ = model.size_, dict(model.provenance_)
    derived._remember_names(model.gene_aliases_, model.min_gene_overlap_)
    derived._remember_names(None, min_gene_overlap)
    derived.is_trained_ = True
    if prepared := model._prepared.get(id(selected)):
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
