"""Models on the hub: what goes up comes down, and what may not go up does not."""

import json
import shutil

import numpy as np
import pytest

import scxtrimo

hub = pytest.importorskip("huggingface_hub")


@pytest.fixture
def remote(tmp_path, monkeypatch):
    """A hub that is a directory."""
    root = tmp_path / "hub"

    class Api:
        def __init__(self, token=None):
            pass

        def create_repo(self, repo_id, private, exist_ok):
            (root / repo_id).mkdir(parents=True, exist_ok=True)

        def upload_folder(self, repo_id, folder_path, commit_message, delete_patterns):
            for pattern in delete_patterns:
                for old in (root / repo_id).glob(pattern):
                    old.unlink()
            shutil.copytree(folder_path, root / repo_id, dirs_exist_ok=True)
            return f"https://hub/{repo_id}/commit/1"

    def snapshot(repo_id, revision, allow_patterns, token):
        target = tmp_path / "cache"
        target.mkdir(exist_ok=True)
        for pattern in allow_patterns:
            for file in (root / repo_id).glob(pattern):
                shutil.copy(file, target)
        return str(target)

    monkeypatch.setattr(hub, "HfApi", Api)
    monkeypatch.setattr(hub, "snapshot_download", snapshot)
    return root


def test_what_goes_up_comes_down(remote, model, cells):
    address = model.push_to_hub("lab/pbmc", license="cc0-1.0")
    assert address.endswith("lab/pbmc/commit/1")
    again = scxtrimo.model.XTrimoGene.from_pretrained("lab/pbmc", accelerator="cpu")
    np.testing.assert_array_equal(
        again.get_latent_representation(cells), model.get_latent_representation(cells)
    )


def test_a_new_model_replaces_the_one_before(remote, model):
    for _ in range(2):
        model.push_to_hub("lab/pbmc")
    assert len(list((remote / "lab/pbmc").glob("*.safetensors"))) == 1


def test_the_card_says_what_the_model_is(remote, model):
    model.push_to_hub("lab/pbmc", license="cc0-1.0", description="For *PBMCs*.")
    card = (remote / "lab/pbmc/README.md").read_text()
    assert card.startswith("---\nlibrary_name: scxtrimo\nlicense: cc0-1.0\n")
    assert "model_cls_name:XTrimoGene" in card
    assert "For *PBMCs*." in card
    assert 'XTrimoGene.from_pretrained("lab/pbmc")' in card
    scvi_hub = json.loads((remote / "lab/pbmc/_scvi_required_metadata.json").read_text())
    assert scvi_hub["model_parent_module"] == "scxtrimo.model"


def test_rows_of_the_training_stay_at_home(remote, model):
    indices = model.train_indices_
    model.push_to_hub("lab/pbmc")
    stored = json.loads((remote / "lab/pbmc/model.json").read_text())
    assert set(stored["indices"].values()) == {None}
    assert stored["obs_names_sha256"] is None
    assert model.train_indices_ is indices is not None


def test_published_weights_are_not_uploaded(remote, model, monkeypatch):
    monkeypatch.setattr(
        model, "provenance_", {"source": "scFoundation", "licence": "Not to be shared."}
    )
    with pytest.raises(ValueError, match="may not be uploaded: Not to be shared."):
        model.push_to_hub("lab/foundation")
    assert not remote.exists()


def test_random_weights_are_not_uploaded(remote, cells):
    scxtrimo.model.XTrimoGene.setup_anndata(cells)
    with pytest.raises(ValueError, match="not trained"):
        scxtrimo.model.XTrimoGene(cells, size="tiny").push_to_hub("lab/random")


def test_a_directory_is_a_name_too(tmp_path, model):
    model.save(tmp_path / "model")
    again = scxtrimo.model.XTrimoGene.from_pretrained(tmp_path / "model", accelerator="cpu")
    assert again.vocabulary == model.vocabulary


def test_without_the_library_it_is_said_what_to_do(monkeypatch, model):
    import builtins

    load = builtins.__import__

    def refuse(name, *args, **kwargs):
        if name == "huggingface_hub":
            raise ImportError(name)
        return load(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", refuse)
    with pytest.raises(ImportError, match=r"scxtrimo\[hub\]"):
        model.push_to_hub("lab/pbmc")
