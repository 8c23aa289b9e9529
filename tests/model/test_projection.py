"""Which labels cells are decoded with."""

from __future__ import annotations

import subprocess
import sys
import warnings

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from discern.data.annotation import CheckMetaData
from discern.errors import InvalidInputError, UnknownNameError, UserError
from discern.model.targets import OutputFormat, file_name, reference_file_name, target_labels

BATCHES = ["b0", "b1", "b2"]


@st.composite
def annotated_cells(draw: st.DrawFn, with_missing: bool = False) -> tuple[pd.DataFrame, np.ndarray]:
    """Cells of up to three batches with a second annotation, and their one-hot labels."""
    kinds = ["x", "y", "z"] + ([None] if with_missing else [])
    rows = draw(st.lists(st.tuples(st.sampled_from(BATCHES), st.sampled_from(kinds)), min_size=1, max_size=30))
    obs = pd.DataFrame(rows, columns=["batch", "type"], index=[f"cell{i}" for i in range(len(rows))])
    obs["batch"] = pd.Categorical(obs["batch"], categories=BATCHES)
    obs["type"] = pd.Categorical(obs["type"], categories=["x", "y", "z"])
    return obs, np.eye(len(BATCHES), dtype=np.float32)[obs["batch"].cat.codes]


def quiet_labels(obs: pd.DataFrame, own: np.ndarray, column: str | None, value: str | None) -> np.ndarray:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return target_labels(obs, own, column, value)


@given(annotated_cells(with_missing=True), st.sampled_from([None, "batch", "type"]))
def test_labels_are_probabilities(cells: tuple[pd.DataFrame, np.ndarray], column: str | None) -> None:
    obs, own = cells
    labels = quiet_labels(obs, own, column, None)
    assert labels.shape == own.shape
    assert labels.dtype == np.float32
    assert (labels >= 0).all()
    np.testing.assert_allclose(labels.sum(axis=1), 1, rtol=1e-6)


@given(annotated_cells())
def test_without_a_column_each_cell_keeps_its_own_label(cells: tuple[pd.DataFrame, np.ndarray]) -> None:
    obs, own = cells
    np.testing.assert_array_equal(target_labels(obs, own, None, None), own)


@given(annotated_cells(), st.sampled_from(BATCHES))
def test_a_batch_gives_its_one_hot_label_to_every_cell(cells: tuple[pd.DataFrame, np.ndarray], batch: str) -> None:
    obs, own = cells
    wanted = np.eye(3, dtype=np.float32)[[BATCHES.index(batch)] * len(obs)]
    np.testing.assert_array_equal(target_labels(obs, own, "batch", batch), wanted)


@given(annotated_cells(with_missing=True))
def test_a_value_gives_the_mean_label_of_its_cells_to_every_cell(cells: tuple[pd.DataFrame, np.ndarray]) -> None:
    obs, own = cells
    for value in obs["type"].dropna().unique():
        wanted = own[(obs["type"] == value).to_numpy()].mean(axis=0)
        labels = target_labels(obs, own, "type", value)
        np.testing.assert_allclose(labels, np.tile(wanted, (len(obs), 1)), rtol=1e-6)


@given(annotated_cells(with_missing=True))
def test_a_column_alone_gives_the_mean_label_of_the_own_group(cells: tuple[pd.DataFrame, np.ndarray]) -> None:
    obs, own = cells
    labels = quiet_labels(obs, own, "type", "")
    for row, (value, label) in enumerate(zip(obs["type"], labels, strict=True)):
        group = own[[row]] if pd.isna(value) else own[(obs["type"] == value).to_numpy()]
        np.testing.assert_allclose(label, group.mean(axis=0), rtol=1e-6)


@given(annotated_cells(), st.sampled_from(["", None]))
def test_batch_alone_gives_the_mean_over_all_cells(cells: tuple[pd.DataFrame, np.ndarray], value: str | None) -> None:
    obs, own = cells
    np.testing.assert_allclose(
        target_labels(obs, own, "batch", value), np.tile(own.mean(axis=0), (len(obs), 1)), rtol=1e-6
    )


@given(annotated_cells(with_missing=True), st.sampled_from([("type", ""), ("batch", ""), (None, None)]))
def test_the_order_of_the_cells_does_not_matter(
    cells: tuple[pd.DataFrame, np.ndarray], target: tuple[str | None, str | None]
) -> None:
    obs, own = cells
    order = np.random.default_rng(0).permutation(len(obs))
    shuffled = quiet_labels(obs.iloc[order], own[order], *target)
    np.testing.assert_allclose(shuffled, quiet_labels(obs, own, *target)[order], rtol=1e-6)


@given(annotated_cells(with_missing=True))
def test_the_input_is_left_as_it_was(cells: tuple[pd.DataFrame, np.ndarray]) -> None:
    obs, own = cells
    obs_before, own_before = obs.copy(), own.copy()
    for column in (None, "batch", "type"):
        quiet_labels(obs, own, column, "")
    pd.testing.assert_frame_equal(obs, obs_before)
    np.testing.assert_array_equal(own, own_before)


def test_cells_without_a_value_are_counted_in_a_warning() -> None:
    obs = pd.DataFrame({"type": ["x", None, None, "x"]})
    own = np.eye(2)[[0, 0, 1, 1]]
    with pytest.warns(UserWarning, match=r"2 cells have no value in 'type'; .* own batch"):
        labels = target_labels(obs, own, "type", "")
    np.testing.assert_allclose(labels, [[0.5, 0.5], [1, 0], [0, 1], [0.5, 0.5]])


def test_mean_of_many_cells_is_not_rounded_away() -> None:
    """A float32 sum over 2^24 ones stops growing; the mean is taken in float64."""
    cells = 2**24 + 2**20
    own = np.zeros((cells, 1), dtype=np.float32)
    own[:] = 1
    obs = pd.DataFrame({"batch": pd.Categorical.from_codes(np.zeros(cells, np.int8), ["a"])})
    assert target_labels(obs, own, "batch", "")[0, 0] == 1


@pytest.mark.parametrize(
    ("values", "wanted"),
    [
        (pd.Series([1, 2, 2]), "2"),
        (pd.Series([True, False, False]), "False"),
        (pd.Series(["a", "b", "b"], dtype="string"), "b"),
        (pd.Series([0.5, 1.5, 1.5]), "1.5"),
        (pd.Categorical.from_codes([0, 1, 1], [1, 2]), "2"),
    ],
    ids=["int", "bool", "string", "float", "category of int"],
)
def test_values_given_as_text_match_columns_of_any_type(values: pd.Series, wanted: str) -> None:
    obs = pd.DataFrame({"column": values})
    labels = target_labels(obs, np.eye(3), "column", wanted)
    np.testing.assert_allclose(labels, np.tile([0, 0.5, 0.5], (3, 1)))


def test_a_batch_needs_no_cells_here() -> None:
    """Cells of one batch are reconstructed as another that the model knows."""
    obs = pd.DataFrame({"batch": pd.Categorical(["b", "b"], categories=["c", "b", "a"])})
    own = np.eye(3)[[1, 1]]
    np.testing.assert_array_equal(target_labels(obs, own, "batch", "a"), [[0, 0, 1]] * 2)
    np.testing.assert_array_equal(target_labels(obs, own, "batch", ""), own)
    with pytest.raises(InvalidInputError, match="has no value 'gone'; it has 'a', 'b', 'c'"):
        target_labels(obs, own, "batch", "gone")


def test_unused_categories_of_other_columns_are_no_values() -> None:
    obs = pd.DataFrame({"kind": pd.Categorical(["a"], categories=["a", "gone"])})
    with pytest.raises(InvalidInputError, match="has no value 'gone'; it has 'a'"):
        target_labels(obs, np.eye(2)[[0]], "kind", "gone")


class TestCheckMetaData:
    obs = pd.DataFrame({"batch": ["a", "b"], "celltype": ["T cell", None]})

    @pytest.mark.parametrize("target", [("batch", "a"), ("batch", ""), ("batch", None), ("celltype", "T cell")])
    def test_accepts(self, target: tuple[str, str | None]) -> None:
        CheckMetaData(self.obs).check(target)

    def test_bad_column_lists_the_columns(self) -> None:
        with pytest.raises(KeyError, match=r"no metadata column 'bach' \(did you mean 'batch'\?\).*batch, celltype"):
            CheckMetaData(self.obs).check(("bach", ""))

    def test_bad_column_is_the_users_mistake(self) -> None:
        with pytest.raises(UnknownNameError):
            target_labels(self.obs, np.eye(2), "nowhere", "a")

    def test_bad_value_lists_the_values(self) -> None:
        with pytest.raises(ValueError, match=r"no value 'T sell' \(did you mean 'T cell'\?\); it has 'T"):
            CheckMetaData(self.obs).check(("celltype", "T sell"))

    @pytest.mark.parametrize("missing", ["nan", "None"])
    def test_a_missing_value_is_no_value(self, missing: str) -> None:
        with pytest.raises(InvalidInputError, match="has no value"):
            CheckMetaData(self.obs).check(("celltype", missing))

    def test_a_long_list_of_values_is_cut(self) -> None:
        obs = pd.DataFrame({"cell": [f"c{i:03d}" for i in range(500)]})
        with pytest.raises(InvalidInputError, match=r"'c029' \.\.\.$"):
            CheckMetaData(obs).check(("cell", "other"))


class TestCheckOutput:
    def test_accepts(self) -> None:
        OutputFormat(["X"], "float16", ".zarr")

    @pytest.mark.parametrize(
        ("choice", "message"),
        [
            (
                (["estimated_count"], "float32", ".h5ad"),
                r"no layer 'estimated_count' .*mean 'estimated_counts'",
            ),
            (([], "float32", ".h5ad"), "at least one layer"),
            ((["X"], "float64", ".h5ad"), "float32 or float16, got 'float64'"),
            ((["X"], "float32", ".loom"), r"\.h5ad or \.zarr, got '\.loom'"),
        ],
    )
    def test_refuses(self, choice: tuple[list[str], str, str], message: str) -> None:
        with pytest.raises(UserError, match=message):
            OutputFormat(*choice)


class TestFileName:
    @pytest.mark.parametrize(
        ("target", "wanted"),
        [
            ((None, None), "unprojected.h5ad"),
            (("batch", ""), "projected_to_average_batch.h5ad"),
            (("batch", None), "projected_to_average_batch.h5ad"),
            (("batch", "celseq2"), "projected_to_average_batch_celseq2.h5ad"),
            (("batch", "10x v3.1"), "projected_to_average_batch_10x_v3.1.h5ad"),
            (("cell/type", "../../etc"), "projected_to_average_cell_type_.._.._etc.h5ad"),
            (("batch", "Größe"), "projected_to_average_batch_Größe.h5ad"),
        ],
    )
    def test_names(self, target: tuple[str | None, str | None], wanted: str) -> None:
        assert file_name(*target) == wanted

    @given(st.text(), st.text())
    def test_any_text_gives_one_component_of_a_path(self, column: str, value: str) -> None:
        name = file_name(column, value)
        assert not set(name) & set('/\\:*?"<>|\0\n')
        assert name.startswith("projected_to_average_")
        assert name.endswith(".h5ad")

    def test_no_two_projections_of_the_same_cells_share_a_name(self) -> None:
        batches = ["Donor 1/A", "Donor_1_A", "Donor 1 A", "x" * 300, "x" * 301, "T"]
        obs = pd.DataFrame({"cell": ["type_T"] * 6, "cell_type": ["T"] * 6, "batch": batches})
        targets = [("batch", name) for name in ["", *batches]] + [
            (column, value) for column in ("cell", "cell_type") for value in ("", "T", "type_T")
        ]
        names = [file_name(*target, obs=obs) for target in targets]
        assert len(set(names)) == len(set(targets))
        assert max(len(name) for name in names) < 200
        assert file_name("batch", "Donor_1_A", obs=obs) == "projected_to_average_batch_Donor_1_A.h5ad"


def test_importing_it_loads_no_tensorflow() -> None:
    code = "import sys, discern.model.targets; print('tensorflow' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["False"]


def test_files_of_references_never_share_a_name() -> None:
    obs = pd.DataFrame({"batch": pd.Categorical(["Donor 1/A", "Donor_1_A", "donor_1_a", "other"])})

    names = [reference_file_name(batch, obs=obs) for batch in obs["batch"].cat.categories]

    assert len({name.casefold() for name in names}) == 4
    assert names[-1] == "projected_to_reference_other.h5ad"
    assert reference_file_name("other", ".zarr", obs) == "projected_to_reference_other.zarr"
