"""Whatever was done to data between two calls: results are those of a model that sees them anew.

``SCXTRIMO_DRAWS=1000 pytest tests/model/test_edited_data.py`` draws more than the 50 of a normal run.
"""

import os

import anndata
import numpy as np
import pandas as pd
import pytest
from helpers import make_cells
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from scipy import sparse

from scxtrimo.annotation.model import XTrimoGeneAnnotator
from scxtrimo.data.vocabulary import COVERAGE_KEY

N_DRAWS = int(os.environ.get("SCXTRIMO_DRAWS", 50))
REFUSED = (ValueError, TypeError)


def cells() -> anndata.AnnData:
    """Few cells with text, categories and numbers in their columns."""
    adata = make_cells(48, 30)
    adata.obs["cell_type"] = adata.obs["cell_type"].astype("category")
    return adata


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    directory = tmp_path_factory.mktemp("annotator")
    adata = cells()
    XTrimoGeneAnnotator.setup_anndata(adata, labels_key="cell_type", batch_key="batch")
    small = {"n_hidden": 16, "n_pool": 16, "n_latent": 8, "n_decoder_hidden": 16, "n_bins": 10}
    model = XTrimoGeneAnnotator(adata, size="tiny", **small)
    model.train(pretrain_epochs=1, accelerator="cpu", enable_progress_bar=False)
    model.save(directory / "model")
    return directory / "model"


def reorder_cells(adata, rng):
    adata._inplace_subset_obs(rng.permutation(adata.n_obs))


def drop_cells(adata, rng):
    adata._inplace_subset_obs(np.sort(rng.permutation(adata.n_obs)[: max(2, adata.n_obs - 5)]))


def reorder_genes(adata, rng):
    adata._inplace_subset_var(rng.permutation(adata.n_vars))


def drop_genes(adata, rng):
    adata._inplace_subset_var(np.sort(rng.permutation(adata.n_vars)[: max(12, adata.n_vars - 4)]))


def replace_obs(adata, rng):
    adata.obs = adata.obs.iloc[rng.permutation(adata.n_obs)].set_axis(adata.obs_names)


def correct_some_batches(adata, rng):
    batch = adata.obs["batch"].astype(object).to_numpy().copy()
    batch[rng.permutation(len(batch))[:5]] = rng.choice(["a", "b", "new"])
    adata.obs["batch"] = batch


def write_into_a_column(adata, rng):
    place = adata.obs.columns.get_loc("batch")
    if not isinstance(adata.obs["batch"].dtype, pd.CategoricalDtype):
        adata.obs.iloc[int(rng.integers(adata.n_obs)), place] = rng.choice(["a", "b"])


def recast_batches(adata, rng):
    kind = rng.choice(["category", "object", "string"])
    adata.obs["batch"] = adata.obs["batch"].astype(kind)


def swap_categories(adata, rng):
    batch = adata.obs["batch"].astype("category")
    adata.obs["batch"] = batch.cat.rename_categories({"a": "b", "b": "a"})


def drop_batches(adata, rng):
    if "batch" in adata.obs:
        del adata.obs["batch"]


def lose_a_batch(adata, rng):
    batch = adata.obs["batch"].astype(object).to_numpy().copy()
    batch[0] = None
    adata.obs["batch"] = batch


def rename_cells(adata, rng):
    adata.obs_names = [f"{name}-{rng.integers(9)}" for name in adata.obs_names]


def swap_genes(adata, rng):
    names = adata.var_names.to_numpy().copy()
    one, other = rng.permutation(len(names))[:2]
    names[[one, other]] = names[[other, one]]
    adata.var_names = names


def rename_a_gene(adata, rng):
    names = adata.var_names.to_numpy().copy()
    names[rng.integers(len(names))] = str(rng.choice(["UNHEARD-OF", "gene3", "GENE5"]))
    adata.var_names = names


def name_genes_elsewhere(adata, rng):
    adata.var["neighbour"] = np.roll(adata.var_names.to_numpy(), 1)


def move_names_of_genes(adata, rng):
    adata.var["symbol"] = adata.var_names.to_numpy()
    adata.var_names = [f"ID{i}" for i in range(adata.n_vars)]


def add_layers(adata, rng):
    adata.layers[f"layer{rng.integers(3)}"] = adata.X.copy()
    adata.obs["note"] = "?"


def replace_counts(adata, rng):
    adata.X = adata.X * 2


def change_counts_in_place(adata, rng):
    if sparse.issparse(adata.X):
        adata.X.data[rng.integers(len(adata.X.data))] += 3


def densify(adata, rng):
    adata.X = adata.X.toarray() if sparse.issparse(adata.X) else adata.X


def take_logarithms(adata, rng):
    adata.X = np.log1p(adata.X)


def take_logarithms_in_place(adata, rng):
    if sparse.issparse(adata.X):
        adata.X.data[:] = np.log1p(adata.X.data)


def view(adata, rng):
    return adata[np.sort(rng.permutation(adata.n_obs)[: max(2, adata.n_obs - 3)])]


def copied(adata, rng):
    return adata.copy()


def concatenated(adata, rng):
    both = anndata.concat([adata, adata[: adata.n_obs // 2]])
    both.obs_names_make_unique()
    return both


EDITS = [
    *(reorder_cells, drop_cells, reorder_genes, drop_genes, replace_obs, correct_some_batches),
    *(write_into_a_column, recast_batches, swap_categories, drop_batches, lose_a_batch),
    *(rename_cells, swap_genes, rename_a_gene, name_genes_elsewhere, move_names_of_genes),
    *(add_layers, replace_counts, change_counts_in_place, densify, take_logarithms),
    *(take_logarithms_in_place, view, copied, concatenated),
]
RESULTS = {
    "latent": lambda m, a: m.get_latent_representation(a),
    "expression": lambda m, a: m.get_normalized_expression(a, library_size="observed"),
    "imputed": lambda m, a: m.get_normalized_expression(a, decoder="cross_attention", log1p=True),
    "masked": lambda m, a: m.get_masked_predictions(a, indices=[0, 1]),
    "errors": lambda m, a: m.get_reconstruction_error(a, indices=[0, 1]),
    "genes": lambda m, a: m.get_contextual_gene_embeddings(a),
    "attention": lambda m, a: m.get_attention(["GENE1", "GENE2", "GENE3"], a),
    "mapped": lambda m, a: m.map_query(a),
    "labels": lambda m, a: m.predict(a, soft=True),
}


def outcome(call):
    """Return a result, or the kind of error that was raised, which must say something."""
    try:
        return call()
    except REFUSED as error:
        return type(error) if str(error).strip() else AssertionError


def assert_same(found, expected, what):
    if isinstance(expected, type) or isinstance(found, type):
        assert found is expected, what
    elif isinstance(expected, pd.DataFrame):
        pd.testing.assert_frame_equal(found, expected, rtol=1e-4, atol=1e-5, obj=what)
    else:
        np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5, err_msg=what)


@settings(
    max_examples=N_DRAWS,
    deadline=None,
    derandomize=N_DRAWS <= 50,
    suppress_health_check=list(HealthCheck),
)
@given(
    edits=st.lists(st.sampled_from(EDITS), min_size=1, max_size=4),
    asked=st.lists(st.sampled_from(sorted(RESULTS)), min_size=2, max_size=3, unique=True),
    is_own=st.booleans(),
    seed=st.integers(0, 2**16),
)
def test_results_are_those_of_a_model_that_sees_the_data_anew(saved, edits, asked, is_own, seed):
    rng = np.random.default_rng(seed)
    own = cells()
    model = XTrimoGeneAnnotator.load(saved, adata=own, accelerator="cpu")
    held_out = set(own.obs_names[model.validation_indices])
    data = own if is_own else cells()
    RESULTS[asked[0]](model, data)
    for edit in edits:
        try:
            edited = edit(data, rng)
        except (KeyError, IndexError, ValueError, TypeError):  # after what was done before
            continue
        data = data if edited is None else edited
        if rng.random() < 0.5:
            outcome(lambda: RESULTS[asked[-1]](model, data))  # noqa: B023
    # Made first: what the model does with the data must not matter.
    other = data.copy()
    fresh = XTrimoGeneAnnotator.load(saved, adata=False, accelerator="cpu")
    for name in asked:
        expected = outcome(lambda: RESULTS[name](fresh, other))  # noqa: B023
        found = outcome(lambda: RESULTS[name](model, data))  # noqa: B023
        assert_same(found, expected, f"{name} after {[edit.__name__ for edit in edits]}")
        if data is own and name not in ("masked", "errors"):
            assert_same(outcome(lambda: RESULTS[name](model, None)), expected, f"own {name}")  # noqa: B023
        if not isinstance(expected, type):
            for key, value in other.uns[COVERAGE_KEY].items():
                np.testing.assert_array_equal(data.uns[COVERAGE_KEY][key], value)
    if data is own and model.validation_indices is not None:
        assert set(data.obs_names[model.validation_indices]) <= held_out
