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
        "perturbation": "PerturbationNames",
        "perturbation.groups": "GroupMoments group_moments",
        "pretraining": "CellStore DamagedStoreError write_store",
        "pretraining.store_writer": "CellFile",
    },
    "module": {
        "annotation": "XTrimoGeneAnnotatorConfig",
        "annotation.module": "LabelPanel XTrimoGeneAnnotatorModule",
        "drugs": "DrugConfig",
        "drugs.module": "DrugModule ResponseBase",
        "latent": "LatentSpace Panel",
        "model": "SIZES XTrimoGeneConfig",
        "model.depth": "TargetDepth",
        "nn.xtrimogene": "XTrimoGeneModule",
        "perturbation.effects": "Controls EffectModel EffectSizes NetInputs Query",
        "perturbation.model": "XTrimoGenePerturbationModule",
    },
    "nn": {
        "annotation.module": "CellClassifier GeneClassifier average_log_probabilities",
        "drugs.module": "DrugTower LineTower MoleculeAttention ResponseHead",
        "perturbation.effects": "Design EffectNet MixedEffects Prediction",
    },
    "train": {
        "annotation": "AnnotationConfig",
        "drugs": "DrugTraining",
        "nn": "mask_batch thin_batch",
        "perturbation": "EffectsConfig",
        "pretraining": "StoreDataModule StreamLoader StreamPlan ragged_batch",
        "pretraining.stream": "Window",
    },
}
"""Public names of the version before by package, and by the module that has them now."""


def attach(package: str, file: str) -> tuple[Callable[[str], Any], Callable[[], list[str]], list]:
    """Return ``__getattr__``, ``__dir__`` and ``__all__`` of a package from its ``.pyi``."""
    stub = ast.parse(Path(file).with_suffix(".pyi").read_text())
    sources: dict[str, str | None] = {}
    for node in stub.body:
        if isinstance(node, ast.ImportFrom):
            source = "." * node.level + (node.module or "")
            for name in node.names:
                sources[name.name] = resolve_name(source, package) if node.module else None
    moved = RENAMED.get(package.partition(".")[2], {})
    renamed = {name: new for new, names in moved.items() for name in names.split()}

    def get(name: str) -> Any:
        if name in renamed:
            new = f"scxtrimo.{renamed[name]}"
            warnings.warn(
                f"{package}.{name} is deprecated: use {new}.{name}.", FutureWarning, stacklevel=2
            )
            return getattr(import_module(new), name)
        if name not in sources:
            raise AttributeError(f"module {package!r} has no attribute {name!r}")
        if source := sources[name]:
            return getattr(import_module(source), name)
        return import_module(f"{package}.{name}")

    names = sorted(sources)
    return get, lambda: names, names
