"""Models on the Hugging Face hub: model card, upload and download."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

CARD = """---
library_name: scxtrimo
license: {license}
tags:
{tags}
---

# {name}

{description}

| | |
|---|---|
{facts}

## Use

```python
import scxtrimo

model = scxtrimo.model.{model_class}.from_pretrained("{repo_id}")
adata.obsm["X_xtrimo"] = model.get_latent_representation(adata)  # adata: your raw counts
```

Genes are matched by identifier, whatever their order; `adata.uns["scxtrimo_gene_coverage"]` says
how many were found.

## Training

{training}

## Limits

Trained on the cells named above: cells of other tissues, species or protocols may be represented
poorly. Compare with PCA on your own data. Not for clinical use.
"""


def require_hub() -> Any:
    """Import and return :mod:`huggingface_hub`, or say how to install it."""
    try:
        import huggingface_hub
    except ImportError as error:
        raise ImportError(
            'The Hugging Face hub needs huggingface_hub: `pip install "scxtrimo[hub]"`.'
        ) from error
    return huggingface_hub


def write_card(
    directory: str | os.PathLike,
    repo_id: str,
    metadata: Mapping[str, Any],
    facts: Mapping[str, Any],
    license: str,
    description: str,
) -> None:
    """Write a model card with a table of facts, and the metadata of scvi-hub, beside a model."""
    directory = Path(directory)
    model_class = metadata["model_class"]
    versions = {"scvi_version": metadata["scvi_version"], "anndata_version": facts["anndata"]}
    tags = [
        *("single-cell", "transcriptomics", "scverse", "scvi-tools", "modality:rna"),
        f"model_cls_name:{model_class}",
        *(f"{name}:{value}" for name, value in versions.items()),
    ]
    rows = [f"| {name} | {_cell(value)} |" for name, value in facts.items()]
    training = [f"- {name}: {_cell(value)}" for name, value in metadata["provenance"].items()]
    text = CARD.format(
        license=license,
        tags="\n".join(f"- {tag}" for tag in tags),
        name=repo_id.split("/")[-1],
        description=description,
        facts="\n".join(rows),
        model_class=model_class,
        repo_id=repo_id,
        training="\n".join(training) or "No record of the training data.",
    )
    (directory / "README.md").write_text(text, encoding="utf-8")
    scvi_hub = versions | {
        "model_cls_name": model_class,
        "training_data_url": None,
        "model_parent_module": "scxtrimo.model",
    }
    (directory / "_scvi_required_metadata.json").write_text(json.dumps(scvi_hub, indent=4))


def upload(
    directory: str | os.PathLike, repo_id: str, private: bool, message: str, token: str | None
) -> str:
    """Upload a directory and return the address of the commit."""
    api = require_hub().HfApi(token=token)
    api.create_repo(repo_id, private=private, exist_ok=True)
    commit = api.upload_folder(
        repo_id=repo_id,
        folder_path=str(directory),
        commit_message=message,
        delete_patterns=["model-*.safetensors"],  # of the previous model
    )
    return str(commit)


def download(repo_id: str, revision: str | None = None, token: str | None = None) -> Path:
    """Download a model, unless it is cached, and return its directory."""
    wanted = ["model.json", "model-*.safetensors"]
    fetch = require_hub().snapshot_download
    return Path(fetch(repo_id, revision=revision, allow_patterns=wanted, token=token))


def _cell(value: object) -> str:
    """Return a value as text for a table in Markdown."""
    return str(value).replace("|", "\\|").replace("\n", " ")
