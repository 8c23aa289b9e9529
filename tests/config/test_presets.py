from __future__ import annotations

import json
from typing import Any

import pandas as pd
import pytest

from discern.config.reading import load_parameters, parse_experiment
from discern.data.epochs import number_of_epochs
from discern.errors import UserError

CONDITIONAL = "conditionallayernorm"


def auto(**sections: Any) -> dict[str, Any]:
    return parse_experiment({"preset": "auto", **sections}).as_dict()


def test_the_preset_is_complete_and_says_so_again() -> None:
    experiment = auto()
    assert experiment["input_ds"]["scale"]["LSN"] == 20000
    assert experiment["input_ds"]["scale"]["fixed_scaling"]["mean"] == "genes"
    assert experiment["model"]["encoder"]["layers"] == experiment["model"]["decoder"]["layers"][::-1] == [256, 256]
    assert experiment["model"]["encoder"]["norm_type"] == [CONDITIONAL] * 2
    assert experiment["model"]["decoder"]["norm_type"] == ["layernorm", CONDITIONAL]
    assert experiment["model"]["weighting_batch_mmd"] == 1000
    assert experiment["model"]["weighting_noisy_genes"] == 0.02
    assert experiment["model"]["align_batches"] is True
    assert experiment["training"]["early_stopping"] == {}
    assert parse_experiment(experiment).as_dict() == experiment


def test_without_preset_nothing_of_it_is_there() -> None:
    experiment = parse_experiment({}).as_dict()
    assert "weighting_batch_mmd" not in experiment["model"]
    assert not {"weighting_noisy_genes", "align_batches"} & set(experiment["model"])
    assert "thin_counts" not in experiment["training"]
    assert experiment["model"]["encoder"]["layers"] == [1024, 512, 256]
    assert experiment["training"]["max_steps"] == 200


@pytest.mark.parametrize(
    ("sections", "place", "value"),
    [
        ({"training": {"max_steps": 7}}, ("training", "max_steps"), 7),
        ({"training": {"early_stopping": {"patience": 3}}}, ("training", "early_stopping"), {"patience": 3}),
        ({"model": {"weighting_batch_mmd": 0}}, ("model", "weighting_batch_mmd"), 0),
        ({"model": {"regularization": 0.1}}, ("model", "encoder", "regularization"), 0.1),
        ({"model": {"layers": [9]}}, ("model", "decoder", "norm_type"), [CONDITIONAL]),
        ({"model": {"layers": [9, 8]}}, ("model", "decoder", "norm_type"), ["layernorm", CONDITIONAL]),
        ({"model": {"norm_type": [CONDITIONAL] * 2}}, ("model", "decoder", "norm_type"), [CONDITIONAL] * 2),
        ({"input_ds": {"scale": {"LSN": 1e4}}}, ("input_ds", "scale", "LSN"), 1e4),
        ({"input_ds": {"scale": {"fixed_scaling": {"mean": 0}}}}, ("input_ds", "scale", "fixed_scaling", "mean"), 0),
    ],
)
def test_what_the_user_gives_stays(sections: dict[str, Any], place: tuple[str, ...], value: Any) -> None:
    found: Any = auto(**sections)
    for key in place:
        found = found[key]
    assert found == value


def test_old_spellings_count_as_given() -> None:
    with pytest.warns(DeprecationWarning, match="old spelling"):
        model = auto(model={"enc_layers": [64, 4], "dec_layers": [4, 64, 64]})["model"]
    assert model["encoder"]["layers"] == [64, 4]
    assert model["decoder"]["norm_type"] == ["layernorm", "layernorm", CONDITIONAL]


@pytest.mark.parametrize(
    ("sections", "message"),
    [
        ({"model": {"layers": 5}}, "model.layers: expected a list, got 5"),
        ({"model": {"encoder": 5}}, "model.encoder: expected an object {...}, got 5"),
        ({"model": []}, "model: expected an object {...}, got []"),
        ({"model": {"encoder": {"layers": [3]}}}, "model: 'layers' is given in 'encoder' but not in 'decoder'"),
        ({"training": 7}, "training: expected an object {...}, got 7"),
        ({"training": {"thin_counts": 0}}, "training.thin_counts: expected more than 0, got 0"),
        (
            {"input_ds": {"scale": {"fixed_scaling": 3}}},
            "input_ds.scale.fixed_scaling: expected an object {...}, got 3",
        ),
    ],
)
def test_mistakes_are_told_as_without_preset(sections: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError) as error:
        auto(**sections)
    assert str(error.value) == message


def test_a_file_with_the_preset(tmp_path: Any) -> None:
    file = tmp_path / "parameters.json"
    experiment = {"input_ds": {"raw_input": ["a.h5ad"]}, "preset": "auto"}
    file.write_text(json.dumps({"exp_param": {"experiments_dir": "e"}, "experiments": {"one": experiment}}))
    assert load_parameters(file).experiments["one"].model.as_dict() == auto()["model"]


def test_epochs_of_the_user_are_not_cut_short() -> None:
    obs = pd.DataFrame({"split": ["train"] * 100_000})

    def epochs(cells: pd.DataFrame, **training: int) -> int:
        return number_of_epochs(parse_experiment({"preset": "auto", "training": training}).training, cells)

    assert epochs(obs) == 5
    assert epochs(obs[:2000]) == 75
    assert epochs(obs, max_steps=40) == 40
    assert epochs(obs, max_steps=40, max_updates=600) == 2
