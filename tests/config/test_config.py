from __future__ import annotations

import copy
import json
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from discern.config import reading
from discern.errors import InvalidInputError, MissingFileError, UnknownNameError, UnsupportedError, UserError

ROOT = Path(__file__).parents[2]
PUBLISHED = json.loads((ROOT / "parameters.json").read_text())
(NAME,) = PUBLISHED["experiments"]
SEARCH = json.loads((ROOT / "hyperparameter_search.json").read_text())


def _with(tree: dict[str, Any], path: str, value: Any) -> dict[str, Any]:
    """Return a copy of the tree with the value at a dotted path; `...` removes it."""
    changed = copy.deepcopy(tree)
    *way, last = path.split("/")
    node = changed
    for key in way:
        node = node.setdefault(key, {})
    if value is ...:
        del node[last]
    else:
        node[last] = value
    return changed


def _file(folder: Path, content: Any) -> Path:
    path = folder / "p.json"
    path.write_text(content if isinstance(content, str) else json.dumps(content))
    return path


def _model(**model: Any) -> dict[str, Any]:
    return reading.parse_experiment({"model": model}).as_dict()["model"]


def test_the_published_file_runs_unchanged() -> None:
    parameters = reading.load_parameters(ROOT / "parameters.json")
    assert parameters.experiments_dir == Path("experiments")
    assert parameters.folder(NAME) == Path("experiments") / NAME
    assert parameters.given == PUBLISHED["experiments"]
    model = parameters.experiments[NAME].model.as_dict()
    assert model["encoder"] == {
        "layers": [1024, 512, 256],
        "norm_type": ["conditionallayernorm"] * 3,
        "regularization": 0.4,
        "conditional_regularization": {"name": "tensorflow.keras.regularizers.L1L2", "l2": 0.0},
    }
    assert model["output_fn"] is None


def test_the_published_search_file_runs_unchanged() -> None:
    assert reading.load_search(ROOT / "hyperparameter_search.json").given() == SEARCH


def test_defaults_are_the_published_ones() -> None:
    """What is left out of a file is what the published file says, but for keys whose absence means something."""
    published = copy.deepcopy(PUBLISHED["experiments"][NAME])
    left_out = reading.parse_experiment({"input_ds": {"raw_input": published["input_ds"]["raw_input"]}}).as_dict()
    for path in ("input_ds/scale", "input_ds/n_cpus_preprocessing", "training/GPU", "training/parallel_pc"):
        published = _with(published, path, ...)
    published = _with(_with(published, "model/conditional_regularization", ...), "hyperparameter_search", ...)
    published = _with(_with(published, "model/crossentropy", ...), "model/weighting_decoder_dropout", ...)
    canonical = reading.parse_experiment(published).as_dict()
    assert left_out == canonical
    assert left_out["input_ds"]["scale"] == {}
    assert "GPU" not in left_out["training"]


def test_the_file_of_one_experiment(original_experiment: Path) -> None:
    parameters = reading.load_parameters(original_experiment / "parameters.json")
    assert parameters.experiments_dir == original_experiment.parent
    assert list(parameters.experiments) == ["original"]
    assert parameters.experiments["original"].training.GPU == []


def test_canonical_form_is_a_fixed_point() -> None:
    once = reading.parse_experiment(PUBLISHED["experiments"][NAME]).as_dict()
    assert reading.parse_experiment(once).as_dict() == once


def test_canonical_form_shares_nothing() -> None:
    first = reading.parse_experiment({}).as_dict()
    first["model"]["encoder"]["layers"].append(3)
    first["training"]["optimizer"]["learning_rate"] = 7
    second = reading.parse_experiment({}).as_dict()
    assert second["model"]["encoder"]["layers"] == [1024, 512, 256]
    assert second["training"]["optimizer"]["learning_rate"] == 1e-3


def test_values_from_python_are_accepted() -> None:
    experiment = reading.parse_experiment(
        {
            "input_ds": {"raw_input": (Path("a.h5ad"), Path("b.h5ad"))},
            "model": {"latent_dim": np.int64(8), "layers": (16, np.int32(8)), "wae_lambda": np.float32(0.5)},
        }
    ).as_dict()
    assert experiment["input_ds"]["raw_input"] == ["a.h5ad", "b.h5ad"]
    assert experiment["model"]["latent_dim"] == 8
    assert experiment["model"]["decoder"]["layers"] == [8, 16]


def test_zeros_survive() -> None:
    experiment = reading.parse_experiment(
        {
            "input_ds": {"filtering": {"min_genes": 0, "min_cells": 0}, "split": {"valid_cells": 0, "split_seed": 0}},
            "model": {"regularization": 0, "wae_lambda": 0, "reconstruction_loss": {"name": "HuberLoss", "delta": 0}},
            "training": {"early_stopping": {"patience": 0}, "seed": 0},
        }
    ).as_dict()
    assert experiment["input_ds"]["filtering"] == {"min_genes": 0, "min_cells": 0}
    assert experiment["input_ds"]["split"]["valid_cells"] == 0
    assert experiment["model"]["encoder"]["regularization"] == 0
    assert experiment["model"]["wae_lambda"] == 0
    assert experiment["model"]["reconstruction_loss"]["delta"] == 0
    assert experiment["training"]["early_stopping"] == {"patience": 0}
    assert experiment["training"]["seed"] == 0


def test_cells_keep_their_type() -> None:
    """1 is a number of cells and 1.0 is all of them."""
    split = reading.parse_experiment({"input_ds": {"split": {"valid_cells": 50, "mmd_cells": 1.0}}}).as_dict()[
        "input_ds"
    ]
    assert isinstance(split["split"]["valid_cells"], int)
    assert isinstance(split["split"]["mmd_cells"], float)


# --- encoder and decoder ---------------------------------------------------------------------------------------------


def test_model_level_is_symmetric_and_reversed_for_the_decoder() -> None:
    model = _model(layers=[64, 32], norm_type=["batchnorm", "layernorm"], regularization=0.25)
    assert model["encoder"] == {"layers": [64, 32], "norm_type": ["batchnorm", "layernorm"], "regularization": 0.25}
    assert model["decoder"] == {"layers": [32, 64], "norm_type": ["layernorm", "batchnorm"], "regularization": 0.25}
    assert not {"layers", "norm_type", "regularization"} & set(model)


def test_both_sides_stand_as_given() -> None:
    model = _model(
        encoder={"layers": [64, 32], "regularization": 0.1}, decoder={"layers": [8, 16, 24], "regularization": 0}
    )
    assert model["decoder"]["layers"] == [8, 16, 24]
    assert model["decoder"]["norm_type"] == ["conditionallayernorm"] * 3


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("layers", [4]),
        ("norm_type", ["layernorm"]),
        ("regularization", 0.1),
        ("conditional_regularization", {"name": "keras.regularizers.L2", "l2": 1}),
    ],
)
def test_twice_and_one_side_only(key: str, value: Any) -> None:
    with pytest.raises(UnknownNameError, match=f"model: '{key}' is given twice, here and in 'decoder'"):
        _model(**{key: value, "decoder": {key: value}})
    for given_in, lacking in (("encoder", "decoder"), ("decoder", "encoder")):
        with pytest.raises(KeyError, match=f"'{key}' is given in '{given_in}' but not in '{lacking}'"):
            _model(**{given_in: {key: value}})


@pytest.mark.parametrize(
    ("left", "right"),
    [("enc_layers", "dec_layers"), ("layers_enc", "layers_dec"), ("encoder_layers", "layers_decoder")],
)
def test_old_spellings(left: str, right: str) -> None:
    with pytest.warns(DeprecationWarning, match="is an old spelling") as caught:
        model = _model(**{left: [8, 4], right: [4, 8]})
    assert model["encoder"]["layers"] == [8, 4]
    assert model["decoder"]["layers"] == [4, 8]
    assert [str(warning.message) for warning in caught] == [
        f"model.{left} is an old spelling: write model.encoder.layers",
        f"model.{right} is an old spelling: write model.decoder.layers",
    ]


def test_old_spelling_beside_the_new_one() -> None:
    with (
        pytest.warns(DeprecationWarning, match="dec_norm_type is an old spelling"),
        pytest.raises(KeyError, match=r"'dec_norm_type' and 'decoder\.norm_type' mean the same"),
    ):
        _model(dec_norm_type=["layernorm"], decoder={"norm_type": ["layernorm"]})


# --- one line for every mistake --------------------------------------------------------------------------------------

_BAD_VALUES = [
    ("model/latend_dim", 3, UnknownNameError, "model.latend_dim: unknown key (did you mean 'latent_dim'?)"),
    ("model/latent_dim", "48", InvalidInputError, 'model.latent_dim: expected an integer, got "48"'),
    ("model/latent_dim", 48.5, InvalidInputError, "model.latent_dim: expected an integer, got 48.5"),
    ("model/latent_dim", True, InvalidInputError, "model.latent_dim: expected an integer, got true"),
    ("model/latent_dim", 0, InvalidInputError, "model.latent_dim: expected 1 or more, got 0"),
    ("model/wae_lambda", "1", InvalidInputError, 'model.wae_lambda: expected a number, got "1"'),
    ("model/wae_lambda", -1, InvalidInputError, "model.wae_lambda: expected 0 or more, got -1"),
    ("model/encoder/layers", [4, 0], InvalidInputError, "model.encoder.layers[1]: expected 1 or more, got 0"),
    ("model/encoder/layers", [], InvalidInputError, "model.encoder.layers: expected at least 1 entry, got []"),
    (
        "model/norm_type",
        ["layernorm"],
        InvalidInputError,
        "one 'norm_type' for each of the 3 layers of the encoder, got",
    ),
    ("model/norm_type", ["norm"] * 3, UnsupportedError, "model.norm_type[0]: norm_type 'norm' is not one of layernorm"),
    ("model/encoder/regularization", 1, InvalidInputError, "expected less than 1, got 1"),
    ("model/activation_fn", "os.system", InvalidInputError, "model.activation_fn: 'os.system' is refused"),
    ("model/activation_fn", "rellu", UnknownNameError, "unknown activation 'rellu' (did you mean 'relu'?)"),
    ("model/activation_fn", "keras.losses.Huber", InvalidInputError, "expected a name of kind 'activation', got"),
    ("model/output_fn", "sofmax", UnknownNameError, "model.output_fn: unknown activation 'sofmax' (did you mean"),
    ("model/reconstruction_loss", {"name": "Hubert"}, UnknownNameError, "unknown loss 'Hubert' (did you mean 'Huber'?"),
    ("model/reconstruction_loss/delt", 1, UnknownNameError, "model.reconstruction_loss: unknown argument 'delt' (did"),
    ("model/reconstruction_loss/weight_clipping", 1, UnknownNameError, "unknown argument 'weight_clipping'"),
    (
        "model/conditional_regularization",
        {"l2": 0},
        UnknownNameError,
        "conditional_regularization.name: this key is la",
    ),
    ("model/conditional_regularization/name", "keras.regularizers.L3", UnknownNameError, "did you mean 'keras.regul"),
    ("model/conditional_regularization/l3", 0, UnknownNameError, "unknown argument 'l3'"),
    ("model", [], InvalidInputError, "model: expected an object {...}, got []"),
    (
        "input_ds/raw_input",
        "a",
        InvalidInputError,
        "input_ds.raw_input: expected a list of paths or {path: obs column}",
    ),
    ("input_ds/raw_input", [], InvalidInputError, "input_ds.raw_input: expected a list of paths or {path: obs column}"),
    ("input_ds/raw_input", ["a", "a"], InvalidInputError, "input_ds.raw_input: expected each path once"),
    ("input_ds/raw_input", {"a": 3}, InvalidInputError, "input_ds.raw_input: a: expected the name of an obs column"),
    ("input_ds/raw_input", ..., UnknownNameError, "'input_ds.raw_input' is lacking"),
    ("input_ds/scale/LSN", 0, InvalidInputError, "input_ds.scale.LSN: expected more than 0, got 0"),
    ("input_ds/scale/fixed_scaling/var", "gene", InvalidInputError, 'expected "genes" or a number, got "gene"'),
    ("input_ds/split/valid_cells", 1.5, InvalidInputError, "expected a share between 0.0 and 1.0 or a whole number of"),
    ("input_ds/split/valid_cells", -1, InvalidInputError, "expected a share between 0.0 and 1.0 or a whole number of"),
    ("input_ds/split/balanced_split", 1, InvalidInputError, "balanced_split: expected true or false, got 1"),
    ("training/batch_size", 1, InvalidInputError, "training.batch_size: expected 2 or more, got 1"),
    ("training/GPU", 0, InvalidInputError, "training.GPU: expected a list, got 0"),
    ("training/GPU", [-1], InvalidInputError, "training.GPU[0]: expected 0 or more, got -1"),
    (
        "training/precision",
        "float16",
        InvalidInputError,
        "training.precision: expected 'float32', 'mixed_bfloat16' or 'auto'",
    ),
    ("training/early_stopping/patiens", 3, UnknownNameError, "unknown key (did you mean 'patience'?)"),
    ("training/optimizer/learning_rat", 1, UnknownNameError, "unknown argument 'learning_rat' (did you mean 'learning"),
    ("training/optimizer/algorithm", "os.system", InvalidInputError, "optimizer.algorithm: 'os.system' is refused"),
    ("training/optimizer/algorithm", ..., UnknownNameError, "training.optimizer.algorithm: this key is lacking"),
    (
        "training/optimizer/learning_decay",
        {"name": "keras.optimizers.Adam"},
        InvalidInputError,
        "of kind 'schedule', g",
    ),
    ("training/optimizer/Lookahead", "yes", InvalidInputError, 'Lookahead: expected true or false, got "yes"'),
    ("hyperparameter_search", 3, InvalidInputError, "hyperparameter_search: expected a text, got 3"),
    ("preset", "fast", InvalidInputError, "preset: expected 'auto', got \"fast\""),
]


@pytest.mark.parametrize(("path", "value", "kind", "message"), _BAD_VALUES)
def test_a_mistake_in_an_experiment(tmp_path: Path, path: str, value: Any, kind: type[UserError], message: str) -> None:
    file = _file(tmp_path, _with(PUBLISHED, f"experiments/{NAME}/{path}", value))
    with pytest.raises(kind) as caught:
        reading.load_parameters(file)
    text = str(caught.value)
    assert text.startswith(f"{file}: ")
    assert message in text
    assert NAME in text
    assert "\n" not in text


@pytest.mark.parametrize(
    ("content", "kind", "message"),
    [
        ("{", InvalidInputError, "not valid JSON: Expecting property name .* at line 1, column 2"),
        ("", InvalidInputError, "not valid JSON: Expecting value at line 1, column 1"),
        ("[1]", InvalidInputError, r"expected an object \{...\}, got \[1\]"),
        ('{"model": {}, "model": {}}', InvalidInputError, "key 'model' is given twice in one object"),
        ('{"model": {"wae_lambda": NaN}}', InvalidInputError, "expected finite numbers, got NaN"),
        ('{"model": {"wae_lambda": -Infinity}}', InvalidInputError, "expected finite numbers, got -Infinity"),
        ('{"model": {"wae_lambda": 1e999}}', InvalidInputError, "expected finite numbers, got 1e999"),
        ("[" * 100_000, InvalidInputError, "not valid JSON"),
        ("9" * 5000, InvalidInputError, "not valid JSON"),
        (
            {"experiments": {}, "exp_param": {"experiments_dir": "e"}},
            InvalidInputError,
            "experiments: expected at least",
        ),
        ({"experiments": {"a": {}}}, UnknownNameError, "exp_param: this key is lacking"),
        ({"exp_param": {"experiments_dir": "e"}}, UnknownNameError, "experiments: this key is lacking"),
        ({"exp_param": {"experiments_dir": ""}, "experiments": {"a": {}}}, InvalidInputError, "that is not empty"),
        (
            _with({"experiments": PUBLISHED["experiments"]}, "exp_parm", {}),
            UnknownNameError,
            r"exp_parm: unknown key \(did you mean 'exp_param'\?\) \(and 1",
        ),
        (_with(_with(PUBLISHED, "a", 1), "b", 1), UnknownNameError, r"a: unknown key \(and 1 more\)"),
    ],
)
def test_a_mistake_in_the_file(tmp_path: Path, content: Any, kind: type[UserError], message: str) -> None:
    file = _file(tmp_path, content)
    with pytest.raises(kind, match=message) as caught:
        reading.load_parameters(file)
    assert str(caught.value).startswith(f"{file}: ")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", ["../x", "/etc", "a/../b", "", ".", "..", ".hidden", "a//b", "a\\b", "a\0", "x" * 201])
def test_names_unfit_for_a_folder(tmp_path: Path, name: str) -> None:
    content = {"exp_param": {"experiments_dir": "e"}, "experiments": {name: PUBLISHED["experiments"][NAME]}}
    with pytest.raises(InvalidInputError, match="expected names of folders below experiments_dir"):
        reading.load_parameters(_file(tmp_path, content))


def test_an_experiment_inside_another(tmp_path: Path) -> None:
    experiment = PUBLISHED["experiments"][NAME]
    content = {"exp_param": {"experiments_dir": "e"}, "experiments": {"a": experiment, "a/b": experiment}}
    with pytest.raises(InvalidInputError, match="'a/b' lies in the folder of 'a'"):
        reading.load_parameters(_file(tmp_path, content))


def test_files_that_cannot_be_read(tmp_path: Path) -> None:
    with pytest.raises(MissingFileError, match=r"nowhere.json: no such file"):
        reading.load_parameters(tmp_path / "nowhere.json")
    with pytest.raises(InvalidInputError, match="expected a JSON file, got a folder"):
        reading.load_parameters(tmp_path)
    (tmp_path / "binary").write_bytes(b"\x89HDF\r\n\xff")
    with pytest.raises(InvalidInputError, match="cannot be read as text"):
        reading.load_parameters(tmp_path / "binary")


_SEARCH_MISTAKES = [
    ("search_space", {}, InvalidInputError, "search_space: expected at least 1 entry"),
    (
        "search_space/model/latend_dim",
        {"type": "ray.tune.randint"},
        UnknownNameError,
        "no such parameter .did you mean",
    ),
    ("search_space/model/latent_dim/type", "os.system", InvalidInputError, "latent_dim.type: 'os.system' is refused"),
    ("search_space/model/latent_dim", 3, InvalidInputError, r'latent_dim: expected \{"type", "name", "args"\}, got 3'),
    ("search_space/model/latent_dim/arg", [], UnknownNameError, "latent_dim.arg: unknown key .did you mean 'args'"),
    ("search_space/training/optimizer/lerning_rate", {"type": "ray.tune.uniform"}, UnknownNameError, "'learning_rate'"),
    ("searcher/name", "ray.tune.run", UnknownNameError, "searcher.name: 'ray.tune.run' is not a name"),
    ("searcher", "Random", InvalidInputError, r'searcher: expected an object \{...\}, got "Random"'),
    ("scheduler/name", "ray.tune.schedulers.ASHASchedule", UnknownNameError, "did you mean 'ray.tune.schedulers.ASHA"),
    ("train_spec/num_sample", 3, UnknownNameError, "train_spec.num_sample: unknown key .did you mean 'num_samples'"),
    ("train_spec/config/epochs_per_timestep", 0, InvalidInputError, "epochs_per_timestep: expected 1 or more, got 0"),
    ("analysis/mode", "least", InvalidInputError, "analysis.mode: expected 'min' or 'max', got \"least\""),
]


@pytest.mark.parametrize(("path", "value", "kind", "message"), _SEARCH_MISTAKES)
def test_a_mistake_in_a_search_file(tmp_path: Path, path: str, value: Any, kind: type[UserError], message: str) -> None:
    with pytest.raises(kind, match=message):
        reading.load_search(_file(tmp_path, _with(SEARCH, path, value)))


def test_random_search(tmp_path: Path) -> None:
    content = _with(SEARCH, "searcher", "Randomsearch")
    assert reading.load_search(_file(tmp_path, content)).searcher is None


_JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=5,
)


def _paths(tree: Any, way: str = "") -> list[str]:
    if not isinstance(tree, dict):
        return [way]
    return [way] * bool(way) + [path for key in tree for path in _paths(tree[key], f"{way}/{key}".strip("/"))]


def _load(file: Path) -> reading.Parameters | UserError:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)
            return reading.load_parameters(file)
    except UserError as error:
        return error


@settings(max_examples=150, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(path=st.sampled_from(_paths(PUBLISHED)), value=_JSON)
def test_whatever_a_file_holds_the_answer_is_one_line(tmp_path: Path, path: str, value: Any) -> None:
    file = _file(tmp_path, _with(PUBLISHED, path, value))
    loaded = _load(file)
    if isinstance(loaded, UserError):
        assert str(loaded).startswith(f"{file}: ")
        assert "\n" not in str(loaded)
    else:
        for experiment in loaded.experiments.values():
            assert reading.parse_experiment(experiment.as_dict()) == experiment


# --- other services --------------------------------------------------------------------------------------------------


def test_merge_keeps_experiments_as_given(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    experiment = PUBLISHED["experiments"][NAME]
    for folder in ("runs/a/one", "runs/b/two"):
        (tmp_path / folder).mkdir(parents=True)
        (tmp_path / folder / "parameters.json").write_text(json.dumps(experiment))
    full = _file(tmp_path, {"exp_param": {"experiments_dir": "runs/b"}, "experiments": {"three": experiment}})

    merged = reading.merge_parameters([Path("runs/a/one/parameters.json"), Path("runs/b/two/parameters.json"), full])

    assert merged == {
        "exp_param": {"experiments_dir": "runs"},
        "experiments": {"a/one": experiment, "b/two": experiment, "b/three": experiment},
    }
    again = reading.load_parameters(_file(tmp_path, merged))
    assert again.folder("b/two") == Path("runs/b/two")
    with pytest.raises(InvalidInputError, match=r"experiment .*two is given twice"):
        reading.merge_parameters([Path("runs/b/two/parameters.json")] * 2)


def test_schema_knows_every_key() -> None:
    text = json.dumps(reading.schema())
    for key in ("raw_input", "lower_label_smoothing", "n_cpus_preprocessing", "learning_decay", "experiments_dir"):
        assert f'"{key}"' in text
    assert reading.schema()["$schema"].startswith("https://json-schema.org/")


def test_one_kind_of_file_in_place_of_the_other_is_named() -> None:
    with pytest.raises(InvalidInputError, match="expected a parameter file, got a search file"):
        reading.load_parameters(ROOT / "hyperparameter_search.json")
    with pytest.raises(InvalidInputError, match=r"expected a search file .* got a parameter file"):
        reading.load_search(ROOT / "parameters.json")
