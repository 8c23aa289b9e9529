"""Parameter files with anything in them: a result, or one line that says what is wrong."""

from __future__ import annotations

import inspect
import json
import sys
from pathlib import Path
from typing import Any

import pytest

from discern.config import reading
from discern.config.allowlist import KNOWN, get_function_by_name
from discern.config.arguments import _TABLES
from discern.config.reading import parse_experiment
from discern.errors import InvalidInputError, UnknownNameError, UserError

sys.path.insert(0, str(Path(__file__).parents[2] / "benchmarks"))
import attacks_parameters

EXPERIMENT = {"input_ds": {"raw_input": ["a.h5ad"]}}


def _with(path: str, value: Any) -> dict[str, Any]:
    tree: dict[str, Any] = {}
    *way, last = path.split("/")
    node = tree
    for key in way:
        node = node.setdefault(key, {})
    node[last] = value
    return tree


@pytest.mark.parametrize(
    ("path", "value"),
    [
        ("input_ds/scale/LSN", 1e-300),
        ("input_ds/scale/LSN", 1e300),
        ("input_ds/scale/fixed_scaling", {"mean": 1e300}),
        ("input_ds/scale/fixed_scaling", {"var": 0}),
        ("input_ds/scale/fixed_scaling", {"var": 1, "add_to_var": -1}),
        ("input_ds/scale/fixed_scaling", {"var": "genes", "add_to_var": -0.1}),
        ("input_ds/split/split_seed", 2**32),
        ("input_ds/split/valid_cells", 10**400),
        ("input_ds/filtering/min_genes", 10**20),
        ("model/latent_dim", 10**9),
        ("model/latent_dim", True),
        ("model/latent_dim", "1"),
        ("model/layers", [10**7]),
        ("model/wae_lambda", 1e300),
        ("model/wae_lambda", float("inf")),
        ("model/wae_lambda", float("nan")),
        ("model/reconstruction_loss", {"name": "HuberLoss", "delta": -1}),
        ("model/reconstruction_loss", {"name": "HuberLoss", "delta": "9"}),
        ("model/reconstruction_loss", {"name": "HuberLoss", "reduction": "none"}),
        ("model/reconstruction_loss", {"name": "Lnorm"}),
        ("model/conditional_regularization", {"name": "keras.regularizers.L1L2", "l2": -1}),
        ("model/conditional_regularization", {"name": "keras.regularizers.L1L2", "l2": "x"}),
        ("model/conditional_regularization", {"name": "keras.regularizers.L1", "l2": 0}),
        ("training/seed", 2**32),
        ("training/seed", -1),
        ("training/batch_size", 2**31),
        ("training/max_steps", 10**400),
        ("training/early_stopping", {"patience": 10**20}),
        ("training/early_stopping", {"monitor": "nothing"}),
        ("training/early_stopping", {"delay": 1, "start_from_epoch": 1}),
        ("training/optimizer", {"algorithm": "keras.optimizers.Adam", "beta_1": 1}),
        ("training/optimizer", {"algorithm": "keras.optimizers.Adam", "beta_1": None}),
        ("training/optimizer", {"algorithm": "keras.optimizers.Adam", "epsilon": 0}),
        ("training/optimizer", {"algorithm": "keras.optimizers.Adam", "nesterov": True}),
        ("training/optimizer", {"algorithm": "keras.optimizers.Adam", "clipnorm": 1, "clipvalue": 1}),
        ("training/optimizer", {"algorithm": "keras.optimizers.SGD", "momentum": 2}),
        ("training/optimizer", {"algorithm": "discern.estimators.optimizers.Lookahead"}),
        (
            "training/optimizer",
            {
                "algorithm": "keras.optimizers.SGD",
                "learning_decay": {"name": "keras.optimizers.schedules.CosineDecay", "decay_steps": 0},
            },
        ),
        (
            "training/optimizer",
            {
                "algorithm": "keras.optimizers.SGD",
                "learning_decay": {"name": "keras.optimizers.schedules.ExponentialDecay", "decay_steps": 10},
            },
        ),
    ],
)
def test_a_number_out_of_range_is_found_when_the_file_is_read(path: str, value: Any) -> None:
    section = ".".join(path.split("/")[:2])
    with pytest.raises(UserError, match=section.replace(".", r"\.")) as error:
        parse_experiment(_with(path, value)).as_dict()
    assert len(str(error.value)) < 400


@pytest.mark.parametrize("kind", ["optimizer", "schedule", "loss", "regularizer", "scheduler", "searcher"])
def test_the_arguments_are_those_of_the_installed_libraries(kind: str) -> None:
    own, common = _TABLES[kind]
    for dotted, known in KNOWN.items():
        if known.kind != kind or known.attribute not in own:
            continue
        try:
            takes = inspect.signature(get_function_by_name(dotted)).parameters
        except ImportError:
            continue
        open_ended = any(parameter.kind is parameter.VAR_KEYWORD for parameter in takes.values())
        newer_rays = {"repeat_float_precision", "study_name"}
        extra = {"max_concurrent", "hyperparam_mutations", "name", *newer_rays}
        assert open_ended or set(own[known.attribute]) <= set(takes) | extra, dotted
        needed = {
            name
            for name, parameter in takes.items()
            if parameter.default is parameter.empty and parameter.kind is parameter.POSITIONAL_OR_KEYWORD
        }
        assert needed <= {*own[known.attribute], *common, "optimizer"}, dotted


def test_each_class_of_the_allow_list_has_its_arguments() -> None:
    for name, known in KNOWN.items():
        if known.kind in ("optimizer", "schedule", "regularizer", "scheduler", "searcher"):
            assert known.attribute in _TABLES[known.kind][0] or known.attribute == "Lookahead", name


def _file(folder: Path, text: str) -> Path:
    (folder / "p.json").write_text(text, encoding="utf-8", errors="surrogatepass")
    return folder / "p.json"


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ('{"input_ds": ' + '{"a":' * 900 + "1" + "}" * 900 + "}", "nested more than 50 deep"),
        ("[" * 100_000, "nested more than 50 deep"),
        ('{"model": {"latent_dim": 1' + "0" * 5000 + "}}", "numbers of at most 30 figures"),
        ('{"model": {"wae_lambda": 1e999}}', "expected finite numbers"),
        ('{"model": {"latent_dim": 3, "latent_dim": 4}}', "'latent_dim' is given twice"),
        (r'{"input_ds": {"raw_input": ["\ud800"]}}', r"raw_input\[0\]: the character U\+D800"),
        (r'{"input_ds": {"raw_input": ["a\u0000b"]}}', r"raw_input\[0\]: the character U\+0000"),
        (r'{"input_ds": {"raw_input": ["a\nb"]}}', "path without control characters"),
        ('{"input_ds": {"raw_input": ["' + "x" * 10_000 + '"]}}', "a path that a file system can have"),
        ('{"input_ds": {"raw_input": ["' + "x/" * 5_000 + '"]}}', "a path that a file system can have"),
        ('{"hyperparameter_search": "' + "x" * 300 + '"}', "a path that a file system can have"),
    ],
)
def test_what_json_can_hold_and_a_file_cannot(tmp_path: Path, text: str, told: str) -> None:
    with pytest.raises(InvalidInputError, match=told) as error:
        reading.load_parameters(_file(tmp_path, text))
    assert len(str(error.value)) < 600


@pytest.mark.parametrize("place", ["", "  ", "file", "file/below", "a\x1bb", "a\nb", "x" * 300, "y/" * 3000])
def test_an_experiments_folder_that_cannot_be(tmp_path: Path, place: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("file").touch()
    content = {"exp_param": {"experiments_dir": place}, "experiments": {"x": EXPERIMENT}}
    with pytest.raises(InvalidInputError, match="experiments_dir: expected"):
        reading.load_parameters(_file(tmp_path, json.dumps(content)))


@pytest.mark.parametrize("name", ["\u202ecod", "a\x1b[2J", "a\nb", " ", "\ufeff", "x" * 201, "a\u2028b"])
def test_an_experiment_whose_name_would_command_a_terminal(tmp_path: Path, name: str) -> None:
    content = {"exp_param": {"experiments_dir": "e"}, "experiments": {name: EXPERIMENT}}
    with pytest.raises(InvalidInputError, match="expected names of folders"):
        reading.load_parameters(_file(tmp_path, json.dumps(content)))


def test_start_from_epoch_is_delay() -> None:
    stopping = parse_experiment({"training": {"early_stopping": {"start_from_epoch": 7}}}).as_dict()["training"][
        "early_stopping"
    ]
    assert stopping == {"delay": 7}


def test_clustering_of_old_files_has_no_effect_and_is_said() -> None:
    with pytest.warns(UserWarning, match=r"input_ds\.clustering of old files has no effect"):
        parse_experiment({"input_ds": {"clustering": {"n": 3}}}).as_dict()


def test_an_argument_of_another_optimiser_is_unknown() -> None:
    with pytest.raises(UnknownNameError, match="unknown argument 'nesterov'"):
        parse_experiment(
            {"training": {"optimizer": {"algorithm": "keras.optimizers.Adam", "nesterov": True}}}
        ).as_dict()


def test_a_network_that_the_machine_cannot_hold_is_refused_with_its_size() -> None:
    from discern.networks.capacity import check_network_fits

    with pytest.raises(InvalidInputError, match=r"needs about [\d,]+ GB, this machine has [\d,]+ GB"):
        check_network_fits([10**6, 10**6], [8], 48, 20_000, 2)


@pytest.mark.parametrize("seed", range(3))
def test_mutated_files_are_read_or_refused_in_one_line(tmp_path: Path, seed: int) -> None:
    _, bad = attacks_parameters.attack_files(600, seed, tmp_path)
    assert not bad


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(3))
def test_mutated_experiments_run_or_are_refused_in_one_line(tmp_path: Path, seed: int) -> None:
    _, bad = attacks_parameters.attack_runs(40, seed, tmp_path)
    assert not bad


def test_an_empty_batch_name_is_refused_when_cells_are_read() -> None:
    from discern.inputs.merging import batch_key

    with pytest.raises(InvalidInputError, match="empty text as their batch"):
        batch_key(["a", ""])
