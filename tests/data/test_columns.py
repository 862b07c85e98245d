"""Categories that mean the same are the same, however a file or a library wrote them."""

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from scxtrimo.data.columns import as_text, canonical, categories_of, codes_of, from_text, kind_of

WHOLE = [0, 1, 10]


@pytest.mark.parametrize(
    "column",
    [
        pd.Series(WHOLE),
        pd.Series(WHOLE, dtype="int8"),
        pd.Series(WHOLE, dtype="Int64"),
        pd.Series(WHOLE, dtype=float),
        pd.Series(["0", "1", "10"]),
        pd.Series(["0", "1", "10"], dtype="string"),
        pd.Series(["0.0", "1.0", "10.0"]),
        pd.Series([" 0", "01", "10 "]),
        pd.Series([0, "1", 10.0], dtype=object),
        pd.Series(WHOLE, dtype="category"),
        pd.Series(["0", "1", "10"], dtype="category"),
        pd.Series(pd.Categorical(["0", "1", "10"], ["10", "9", "1", "0"], ordered=True)),
    ],
    ids=str,
)
def test_numbers_are_the_same_in_every_form(column):
    assert codes_of(column, ["0", "1", "10"]).tolist() == [0, 1, 2]


@pytest.mark.parametrize("values", [[True, False], ["True", "False"], ["TRUE", "FALSE"], [1, 0]])
def test_booleans_are_the_same_in_every_form(values):
    assert codes_of(pd.Series(values), ["True", "False"]).tolist() == [0, 1]


def test_what_could_be_two_categories_is_none():
    assert codes_of(pd.Series(["1.0", "1", "1.00"]), ["1", "1.0"]).tolist() == [1, 0, -1]
    assert codes_of(pd.Series(["1.10"]), ["1.1", "1.2"]).tolist() == [0]
    assert codes_of(pd.Series(["1.1", "1.10"]), ["1.1", "1.10"]).tolist() == [0, 1]


def test_missing_and_unknown_values_are_none():
    column = pd.Series(["a", None, np.nan, pd.NA, "b"], dtype=object)
    assert codes_of(column, ["a"]).tolist() == [0, -1, -1, -1, -1]


def test_categories_keep_their_order_and_lose_what_is_not_used():
    ordered = pd.Categorical(["low", "high"], ["high", "middle", "low"], ordered=True)
    assert categories_of(pd.Series(ordered), "x").tolist() == ["high", "low"]
    assert categories_of(pd.Series([10, 9, 9]), "x").tolist() == ["9", "10"]
    assert categories_of(pd.Series([1, "b0", 1.0]), "x").tolist() == ["1", "b0"]


def test_categories_that_no_file_can_hold_are_refused():
    with pytest.raises(ValueError, match=r"adata\.obs\['day'\] has categories of type Timestamp"):
        categories_of(pd.Series(pd.to_datetime(["2020-01-01"])), "day")


@given(
    st.lists(
        st.one_of(
            st.none(),
            st.integers(-99, 99),
            st.text("ab01.", max_size=3),
            st.floats(0, 9, width=16),
        ),
        min_size=1,
    )
)
def test_the_text_of_a_column_has_the_codes_of_the_column(values):
    column = pd.Series(values, dtype=object)
    if column.notna().any():
        categories = categories_of(column, "x")
        codes = codes_of(column, categories)
        assert (codes >= 0).tolist() == column.notna().tolist()
        assert codes.tolist() == codes_of(as_text(column), categories).tolist()
        again = from_text(categories, kind_of(column.dropna().unique()))
        assert [canonical(value) for value in again] == categories.tolist()
