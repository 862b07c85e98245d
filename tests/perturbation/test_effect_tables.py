"""Effects of perturbations as an AnnData."""

import warnings

import numpy as np
import pandas as pd

from scxtrimo.perturbation.tools import effects_anndata


def test_rows_of_one_perturbation_have_names_of_their_own():
    obs = pd.DataFrame({"perturbation": ["A", "A", "B"], "population": "all"})
    values = np.ones((3, 2))
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        effects = effects_anndata(obs, ["G1", "G2"], values, values, values, values)
    assert list(effects.obs_names) == ["A", "A-1", "B"]
    assert list(effects.obs["perturbation"]) == ["A", "A", "B"]
