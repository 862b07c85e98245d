"""Names that are imported when they are first used (SPEC 1), and the names they had before."""

from __future__ import annotations

import ast
import warnings
from collections.abc import Callable
from importlib import import_module
from importlib.util import resolve_name
from pathlib import Path
from typing import Any

RENAMED: dict[str, dict[str, str]] = {
    "data": {
        "CellFile": "pretraining.store_writer",
        "CellStore": "pretraining",
        "DamagedStoreError": "pretraining",
        "GroupMoments": "perturbation.groups",
        "PerturbationNames": "perturbation",
        "group_moments": "perturbation.groups",
        "write_store": "pretraining",
    },
    "module": {
        "Controls": "perturbation.effects",
        "DrugConfig": "drugs",
        "DrugModule": "drugs.module",
        "EffectModel": "perturbation.effects",
        "EffectSizes": "perturbation.effects",
        "LabelPanel": "annotation.module",
        "LatentSpace": "latent",
        "NetInputs": "perturbation.effects",
        "Panel": "latent",
        "Query": "perturbation.effects",
        "ResponseBase": "drugs.module",
        "SIZES": "model",
        "TargetDepth": "model.depth",
        "XTrimoGeneAnnotatorConfig": "annotation",
        "XTrimoGeneAnnotatorModule": "annotation.module",
        "XTrimoGeneConfig": "model",
        "XTrimoGeneModule": "nn.xtrimogene",
        "XTrimoGenePerturbationModule": "perturbation.model",
    },
    "nn": {
        "CellClassifier": "annotation.module",
        "Design": "perturbation.effects",
        "DrugTower": "drugs.module",
        "EffectNet": "perturbation.effects",
        "GeneClassifier": "annotation.module",
        "LineTower": "drugs.module",
        "MixedEffects": "perturbation.effects",
        "MoleculeAttention": "drugs.module",
        "MoleculeWidths": "drugs.molecules",
        "Prediction": "perturbation.effects",
        "ResponseHead": "drugs.module",
        "average_log_probabilities": "annotation.module",
        "join_drugs": "drugs.module",
    },
    "train": {
        "AnnotationConfig": "annotation",
        "DrugTraining": "drugs",
        "EffectsConfig": "perturbation",
        "StoreDataModule": "pretraining",
        "StreamLoader": "pretraining",
        "StreamPlan": "pretraining",
        "Window": "pretraining.stream",
        "mask_batch": "nn",
        "ragged_batch": "pretraining",
        "thin_batch": "nn",
    },
}
"""Where the public names of the version before are now."""


def attach(package: str, file: str) -> tuple[Callable[[str], Any], Callable[[], list[str]], list]:
    """Return ``__getattr__``, ``__dir__`` and ``__all__`` of a package from its type stub.

    Parameters
    ----------
    package, file
        ``__name__`` and ``__file__`` of the package. The stub beside it, ``__init__.pyi``, has
        the imports as type checkers read them; they happen here when a name is first used.
    """
    stub = ast.parse(Path(file).with_suffix(".pyi").read_text())
    sources: dict[str, str | None] = {}
    for node in stub.body:
        if isinstance(node, ast.ImportFrom):
            source = "." * node.level + (node.module or "")
            for name in node.names:
                sources[name.name] = resolve_name(source, package) if node.module else None
    renamed = RENAMED.get(package.partition(".")[2], {})

    def get(name: str) -> Any:
        if name in renamed:
            new = f"scxtrimo.{renamed[name]}"
            warnings.warn(
                f"{package}.{name} is deprecated: use {new}.{name}.", FutureWarning, stacklevel=2
            )
            return getattr(import_module(new), name)
        if name not in sources:
            raise AttributeError(f"module {package!r} has no attribute {name!r}")
        source = sources[name]
        return (
            getattr(import_module(source), name) if source else import_module(f"{package}.{name}")
        )

    names = sorted(sources)
    return get, lambda: names, names
