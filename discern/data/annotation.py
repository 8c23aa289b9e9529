"""obs and var: names that are free, texts that stay texts, batches as numbers; names of layers."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
from pandas.api.types import infer_dtype, union_categoricals

from discern.errors import InvalidInputError, MissingFileError, UnknownNameError, UnsupportedError, nearest

if TYPE_CHECKING:
    from collections.abc import Hashable, Iterable, Mapping, Sequence

    import anndata as ad

    from discern.data.chunks import Matrix

_LOGGER = logging.getLogger(__name__)


OBS_COLUMNS = ("n_genes", "n_counts", "split", "for_mmd", "discern_distance", "discern_beyond")
"""What the program adds to obs, beside `batch` and `dataset`."""
VAR_COLUMNS = (
    *("n_cells", "mean_scaling", "var_scaling", "pca_genes"),
    *("means", "dispersions", "dispersions_norm", "highly_variable", "discern_trust"),
)
"""What the program adds to var."""

_LARGEST_EXACT = 2**53


def named_layers(adata: ad.AnnData) -> dict[str, Matrix]:
    """Return the layers by name; from AnnData 0.13 on, X is among them as None."""
    return {name: values for name, values in adata.layers.items() if name is not None}


def check_columns(frame: pd.DataFrame, where: str = "obs") -> None:
    """Raise UnsupportedError if a column name occurs twice."""
    if not frame.columns.is_unique:
        repeated = list(frame.columns[frame.columns.duplicated()].unique())
        raise UnsupportedError(
            f"expected every {where} column once, these occur more than once: {repeated}; rename them"
        )


def free_name(name: str, taken: Iterable[object]) -> str:
    """Return the name, with a number appended if it is taken.

    Example:
        >>> free_name("split", ["split", "split_1"])
        'split_2'
    """
    known, free, number = set(taken), name, 0
    while free in known:
        number += 1
        free = f"{name}_{number}"
    return free


# --- values ----------------------------------------------------------------------------------------------------------


def as_text(values: pd.Series) -> pd.Categorical:
    """Return values as text; what is missing stays missing.

    Whole numbers are written as such, also if they are stored as floats, as they are beside missing ones. Categories
    keep their order, other values are sorted.

    Example:
        >>> as_text(pd.Series([1.0, None, 2.0])).categories.to_list()
        ['1', '2']
    """
    if not isinstance(values.dtype, pd.CategoricalDtype):
        codes, names = _factorized(values)
        ordered = False
    else:
        codes, names, ordered = values.cat.codes.to_numpy(), values.cat.categories, bool(values.cat.ordered)
    texts = _texts(names)
    merged, unique = pd.factorize(np.asarray(texts, dtype=object))
    if not isinstance(values.dtype, pd.CategoricalDtype):
        order = np.argsort(unique.astype(str), kind="stable")
        merged, unique = np.argsort(order, kind="stable")[merged] if len(order) else merged, unique[order]
    codes = np.where(codes >= 0, np.append(merged, -1)[codes], -1)
    return pd.Categorical.from_codes(codes, pd.Index(unique, dtype=object), ordered=ordered)


def _factorized(values: pd.Series) -> tuple[np.ndarray, pd.Index]:
    if values.dtype != object or infer_dtype(values, skipna=True) in ("string", "empty"):
        return pd.factorize(values)
    if infer_dtype(values, skipna=True) in ("integer", "floating", "mixed-integer-float"):
        return pd.factorize(pd.to_numeric(values))
    # As numbers and truth values of one kind are equal (1 == True), and lists cannot be told apart at all.
    return pd.factorize(values.map(_text, na_action="ignore") if values.notna().any() else values)


def _texts(names: pd.Index | pd.Series | list[str]) -> list[str]:
    names = pd.Index(names)
    if pd.api.types.is_float_dtype(names.dtype):
        numbers = names.to_numpy(float)
        if (np.isfinite(numbers) & (numbers == np.floor(numbers)) & (np.abs(numbers) < _LARGEST_EXACT)).all():
            return [str(int(number)) for number in numbers]
    texts = list(names if names.dtype == object else names.astype(str))
    if all(isinstance(text, str) for text in texts) and _is_clean("".join(texts)):
        return texts
    return [_text(name) for name in texts]


def _is_clean(text: str) -> bool:
    return "\0" not in text and not any(0xD800 <= ord(character) < 0xE000 for character in set(text))


def _text(value: object) -> str:
    """Return a value as text that HDF5 can hold."""
    text = value.decode(errors="replace") if isinstance(value, bytes) else str(value)
    return text.replace("\0", "").encode(errors="replace").decode()


def storable(frame: pd.DataFrame, name: str, part: str = "obs", categories: bool = True) -> pd.DataFrame:
    """Return an annotation in types and under names that `.h5ad` and `.zarr` files can hold, whichever program writes.

    Text, dates, durations, intervals and mixed values become text; numbers and truth values stay what they are. Names
    of columns become text without "/".

    Args:
        frame: obs or var.
        name: Of the cells, for messages.
        part: "obs" or "var", for messages.
        categories: Whether text without missing values becomes categorical, too.

    Raises:
        UnsupportedError: If a column name occurs twice.
    """
    try:
        check_columns(frame, part)
    except UnsupportedError as error:
        raise UnsupportedError(f"{name}: {error}") from None
    names: dict[Hashable, str] = {column: column for column in frame if column == _storable_name(column)}
    for column in frame:
        names.setdefault(column, free_name(_storable_name(column), names.values()))
    renamed = {str(old): new for old, new in names.items() if str(old) != new}
    if renamed:
        _LOGGER.info("%s: %s", name, _list_renamed(part, renamed, "files cannot hold these names"))
    columns = {names[column]: _storable_values(frame[column], categories) for column in frame}
    result = pd.DataFrame(columns, index=_texts(frame.index))
    label = frame.index.name
    if isinstance(label, str) and label not in result and label == _storable_name(label):
        result.index.name = label
    return result


def _list_renamed(part: str, renamed: Mapping[str, str], why: str) -> str:
    shown = ", ".join(f"{old!r} is now {new!r}" for old, new in renamed.items())
    return f"{part} column{'s' * (len(renamed) > 1)} renamed, {why}: {shown}"


def _storable_name(column: object) -> str:
    text = "_".join(map(str, column)) if isinstance(column, tuple) else _text(column)
    text = text.replace("/", "_")
    return {"": "unnamed", "_index": "index", ".": "_", "..": "__"}.get(text, text)


def _storable_values(values: pd.Series, categories: bool) -> Any:
    dtype = values.dtype
    if isinstance(dtype, pd.SparseDtype):
        values = pd.Series(values.to_numpy())
    elif isinstance(dtype, pd.ArrowDtype):
        values = pd.Series(values.astype(object).to_numpy(), dtype=object)
    if values.dtype == object:
        values = _inferred(values)
    dtype = values.dtype
    if isinstance(dtype, pd.CategoricalDtype) and dtype.categories.dtype == np.int64:
        return values.array
    if pd.api.types.is_bool_dtype(dtype) or pd.api.types.is_numeric_dtype(dtype):
        if isinstance(dtype, np.dtype) and dtype.kind in "biuf":
            numbers = values.to_numpy()
            return numbers.astype(np.float64) if dtype.itemsize > 8 else numbers.astype(dtype.newbyteorder("="))
        if not isinstance(dtype, np.dtype) and not isinstance(dtype, pd.CategoricalDtype):
            if values.notna().all():
                return values.to_numpy(dtype.numpy_dtype)  # type: ignore[attr-defined]
            if dtype.kind == "f":
                return values.to_numpy(np.float64, na_value=np.nan)
            return values.array
    text = as_text(values)
    if not categories and (text.codes >= 0).all() and not isinstance(values.dtype, pd.CategoricalDtype):
        return np.asarray(text, dtype=object)
    return text


def _inferred(values: pd.Series) -> pd.Series:
    """Return objects that are all numbers, or all truth values, as such."""
    kind = infer_dtype(values, skipna=True)
    if kind == "boolean":
        return values.where(values.notna(), None).astype("boolean")
    if kind in ("integer", "floating", "mixed-integer-float"):
        try:
            return pd.to_numeric(values)
        except (ValueError, TypeError, OverflowError):
            return values
    return values


# --- rows of several -------------------------------------------------------------------------------------------------


def appended(frames: Sequence[pd.DataFrame]) -> pd.DataFrame:
    """Append the rows of storable frames; a column that one lacks has no values in its rows.

    Args:
        frames: As `storable` returns them.

    Example:
        >>> appended([pd.DataFrame({"n": [1]}), pd.DataFrame({"x": pd.Categorical(["a"])})]).to_numpy().tolist()
        [[1.0, nan], [nan, 'a']]
    """
    names = dict.fromkeys(column for frame in frames for column in frame)
    labels = {frame.index.name for frame in frames}
    index = frames[0].index.append([frame.index for frame in frames[1:]])
    index.name = labels.pop() if len(labels) == 1 else None
    sizes = [len(frame) for frame in frames]
    return pd.DataFrame({name: _joined([frame.get(name) for frame in frames], sizes) for name in names}, index=index)


def _joined(parts: list[pd.Series | None], sizes: list[int]) -> Any:
    known = [part for part in parts if part is not None and part.notna().any()]
    known = known or [part for part in parts if part is not None]
    if all(pd.api.types.is_bool_dtype(part.dtype) for part in known):
        values = pd.concat(_filled(parts, sizes, "boolean"), ignore_index=True)
        return values.to_numpy(bool) if values.notna().all() else values.array
    if all(pd.api.types.is_numeric_dtype(part.dtype) for part in known):
        if all(part is not None and part.notna().all() for part in parts):
            return np.concatenate([part.to_numpy() for part in known])
        large = any(part.dtype.kind in "iu" and (part.abs() > _LARGEST_EXACT).any() for part in known)
        values = pd.concat(_filled(parts, sizes, "Int64" if large else "Float64"), ignore_index=True)
        return values.array if large else values.to_numpy(np.float64, na_value=np.nan)
    texts = [
        pd.Categorical.from_codes([-1] * size, pd.Index([], dtype=object)) if part is None else as_text(part)
        for part, size in zip(parts, sizes, strict=True)
    ]
    if all(text.dtype == texts[0].dtype for text in texts):
        return union_categoricals(texts)
    union = union_categoricals([pd.Categorical.from_codes(text.codes, text.categories) for text in texts])
    if all(text.categories.is_monotonic_increasing for text in texts):
        return union.reorder_categories(sorted(union.categories))
    return union


def _filled(parts: list[pd.Series | None], sizes: list[int], dtype: Any) -> list[pd.Series]:
    return [
        pd.Series([pd.NA] * size, dtype=dtype) if part is None or part.isna().all() else part.astype(dtype)
        for part, size in zip(parts, sizes, strict=True)
    ]


# --- the user's columns and the program's ----------------------------------------------------------------------------


def rename_columns(frame: pd.DataFrame, renamed: Mapping[str, str]) -> None:
    """Give columns of a table other names, in place: `rename(inplace=True)` is deprecated from pandas 3.1 on."""
    frame.columns = frame.columns.map(lambda name: renamed.get(name, name))


def set_aside(frames: Mapping[str, pd.DataFrame], columns: Iterable[str], part: str) -> dict[str, str]:
    """Rename in all frames the columns that the program is going to add: `split` becomes `split_original`.

    Args:
        frames: The storable annotations by name; changed.
        columns: What the program adds.
        part: "obs" or "var", for messages.

    Returns:
        The new name of each column that one of the frames has.
    """
    taken = {column for frame in frames.values() for column in frame}
    renamed = {name: free_name(f"{name}_original", taken) for name in columns if name in taken}
    for frame in frames.values():
        rename_columns(frame, renamed)
    if renamed:
        _LOGGER.info("%s", _list_renamed(part, renamed, "as processing adds one of this name"))
    return renamed


def give_back(cells: ad.AnnData) -> None:
    """Give the user's columns in obs and var their names back; the program's get the prefix `discern_`.

    Args:
        cells: Results, with the names in `uns["DISCERN"]["user_columns"]`; their obs and var are replaced.
    """
    for part, renamed in cells.uns.get("DISCERN", {}).get("user_columns", {}).items():
        frame: pd.DataFrame = getattr(cells, part)
        here = {old: new for old, new in renamed.items() if new in frame}
        names = {old: free_name(f"discern_{old}", frame.columns) for old in here if old in frame}
        setattr(cells, part, frame.rename(columns=names | {new: old for old, new in here.items()}))


def prepare_train_valid(input_tfr: str | Path) -> tuple[list[Path], list[Path]]:
    """Find the record files of the training and of the validation cells.

    Args:
        input_tfr: Folder `TF_records` of an experiment.

    Returns:
        The sorted files of each split.

    Raises:
        MissingFileError: If a split has no file.
    """
    input_tfr = Path(input_tfr)
    found = []
    for split in ("training", "validate"):
        files = sorted(input_tfr.glob(f"{split}*.tfrecords*"))
        if not files:
            raise MissingFileError(
                f"{input_tfr}: expected files {split}*.tfrecords*, found none; run `discern process`"
            )
        found.append(files)
    return found[0], found[1]


def batch_names(uns: Mapping[str, Any]) -> list[str]:
    """Return the batches of processed cells, in the order of the one-hot labels.

    Example:
        >>> batch_names({"DISCERN": {"batch_key": {"1": "deep", "0": "shallow"}}})
        ['shallow', 'deep']
    """
    names = uns["DISCERN"]["batch_key"]
    return [str(names[code]) for code in sorted(names, key=int)]


def np_one_hot(labels: pd.Categorical) -> np.ndarray:
    """Return one row per label with a one at its category.

    Args:
        labels: N labels of k categories, of which some may be unused.

    Returns:
        float32 of shape (n, k).

    Raises:
        InvalidInputError: If a label is missing.

    Example:
        >>> np_one_hot(pd.Categorical(["b", "a"]))
        array([[0., 1.],
               [1., 0.]], dtype=float32)
    """
    labels = pd.Categorical(labels)
    if (labels.codes < 0).any():
        raise InvalidInputError(f"expected a label for every cell, {int((labels.codes < 0).sum())} are missing")
    one_hot = np.zeros((len(labels), len(labels.categories)), dtype=np.float32)
    one_hot[np.arange(len(labels)), labels.codes] = 1
    return one_hot


def parse_metadata(target: str | Sequence[str | None]) -> tuple[str | None, str | None]:
    """Return the pair of an obs column and its value that a projection is asked to.

    Args:
        target: "column:value" or "column:" (the value may hold colons, the column may not), or the pair itself.

    Raises:
        InvalidInputError: If it is neither.

    Example:
        >>> parse_metadata("batch:donor:1"), parse_metadata("celltype:"), parse_metadata(["batch", "a"])
        (('batch', 'donor:1'), ('celltype', ''), ('batch', 'a'))
    """
    if isinstance(target, str):
        column, colon, value = target.partition(":")
        if colon and column:
            return column, value
    elif isinstance(target, tuple | list) and len(target) == 2:
        return target[0], target[1]
    raise InvalidInputError(f"metadata: expected COLUMN:VALUE or COLUMN:, got {target!r}")


class CheckMetaData:
    """Check (column, value) pairs against the cells' annotation, when `check` is called.

    Args:
        dataframe: obs of the cells.

    Example:
        >>> import pandas as pd
        >>> CheckMetaData(pd.DataFrame({"batch": ["a", "b"]})).check(("batch", "b"))
        ('batch', 'b')
        >>> CheckMetaData(pd.DataFrame({"batch": ["a", "b"]})).check(("batch", "c"))
        Traceback (most recent call last):
        ...
        discern.errors.InvalidInputError: metadata column 'batch' has no value 'c'; it has 'a', 'b'
    """

    def __init__(self, dataframe: pd.DataFrame) -> None:
        if not isinstance(dataframe, pd.DataFrame):
            raise InvalidInputError(f"expected a data frame, the obs of the cells, got {type(dataframe).__name__}")
        self.dataframe = dataframe

    def check(self, metadata_tuple: str | Sequence[str | None]) -> tuple[str | None, str | None]:
        """Return the pair of column and value if the column exists and holds the value (any, if the value is empty).

        A categorical `batch` holds all its categories: those are the batches that the model knows.

        Args:
            metadata_tuple: Column and value, or "column:value".

        Returns:
            Column and value.

        Raises:
            UnknownNameError: If there is no such column.
            InvalidInputError: If the column has no such value.
        """
        column, value = parse_metadata(metadata_tuple)
        if not self.dataframe.columns.is_unique:
            repeated = self.dataframe.columns[self.dataframe.columns.duplicated()].tolist()
            raise InvalidInputError(f"the cells have more than one metadata column of the name {repeated[0]!r}")
        if column not in self.dataframe.columns:
            names = list(map(str, self.dataframe.columns))
            raise UnknownNameError(
                f"there is no metadata column {column!r}{nearest(str(column), names)}; columns are {', '.join(names)}"
            )
        if value in (None, ""):
            return column, value
        known = self.dataframe[column]
        if column == "batch" and hasattr(known, "cat"):
            values = sorted(map(str, known.cat.categories))  # a batch can be decoded as without having cells here
        else:
            values = sorted(map(str, known.dropna().unique()))
        if value not in values:
            shown = ", ".join(map(repr, values[:30])) + (" ..." if len(values) > 30 else "")
            raise InvalidInputError(
                f"metadata column {column!r} has no value {value!r}{nearest(str(value), values)}; it has {shown}"
            )
        return column, value
