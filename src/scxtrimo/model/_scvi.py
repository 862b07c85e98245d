"""scvi-tools' model class, typed.

scvi-tools has no type information, and a class derived from it would let any misspelt method pass.
Type checkers see what is declared here instead; at run time it is scvi-tools' own class.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import pandas as pd
    import torch
    from scvi.data import AnnDataManager

    class BaseModelClass:
        """What of :class:`scvi.model.base.BaseModelClass` is used, here and by users."""

        module: Any
        trainer: Any
        summary_stats: Any
        registry_: dict[str, Any]
        history_: dict[str, pd.DataFrame] | None
        is_trained_: bool
        train_indices_: Any
        validation_indices_: Any
        test_indices_: Any
        init_params_: dict[str, Any]
        adata: Any
        _adata: Any
        _adata_manager: Any
        _setup_adata_manager_store: dict[str, AnnDataManager]

        def __init__(self, adata: Any = None, registry: dict[str, Any] | None = None) -> None: ...
        @property
        def adata_manager(self) -> Any: ...
        @property
        def device(self) -> torch.device: ...
        @property
        def history(self) -> dict[str, pd.DataFrame]: ...
        @property
        def is_trained(self) -> bool: ...
        @property
        def registry(self) -> dict[str, Any]: ...
        def deregister_manager(self, adata: Any = None) -> None: ...
        def get_setup_arg(self, setup_arg: str) -> Any: ...
        def get_var_names(self, legacy_mudata_format: bool = False) -> Any: ...
        @classmethod
        def register_manager(cls, adata_manager: Any) -> None: ...
        def to_device(self, device: Any) -> None: ...
        def view_anndata_setup(self, *args: Any, **kwargs: Any) -> None: ...
        def _check_if_trained(self, warn: bool = True, message: str = "") -> None: ...
        def _get_init_params(self, locals: dict[str, Any]) -> dict[str, Any]: ...
        @classmethod
        def _get_setup_method_args(cls, **setup_locals: Any) -> dict[str, Any]: ...
        def _make_data_loader(self, adata: Any, **kwargs: Any) -> Any: ...
else:
    from scvi.model.base import BaseModelClass

__all__ = ["BaseModelClass"]
