from __future__ import annotations

import importlib.util
import math
import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from discern.config.reading import load_search, parse_experiment, parse_search
from discern.errors import InvalidInputError, UnsupportedError
from discern.runtime.ray_cluster import known_arguments
from discern.search.space import Leaf, example, plan, read_space, with_values, without_unknown_loss_arguments

if TYPE_CHECKING:
    from discern.config.search import SearchFile

PUBLISHED = Path(__file__).parents[2] / "hyperparameter_search.json"
EXPERIMENT = parse_experiment({})

BOUNDED = {
    "model": {
        "latent_dim": {"type": "ray.tune.quniform", "args": [32, 140, 4]},
        "output_fn": {"type": "hyperopt.hp.choice", "name": "output_fn", "args": [["softmax", "softplus"]]},
    },
    "training": {"optimizer": {"learning_rate": {"type": "hyperopt.hp.loguniform", "name": "r", "args": [-5, -2]}}},
}


def searching(**sections: Any) -> SearchFile:
    """Return a search file with some sections."""
    return parse_search({"search_space": BOUNDED, **sections})


@pytest.fixture
def published() -> SearchFile:
    return load_search(PUBLISHED)


@pytest.fixture
def leaves(published: SearchFile) -> list[Leaf]:
    with pytest.warns(UserWarning, match="weight_clipping: left out, it is no argument of HuberLoss"):
        return without_unknown_loss_arguments(read_space(published.search_space), EXPERIMENT)


def drawn(planned: Any, number: int) -> list[dict[str, Any]]:
    """Draw as Ray Tune does."""
    if planned.searcher is not None:
        return [planned.searcher.suggest(str(i)) for i in range(number)]
    from ray.tune.search.variant_generator import generate_variants

    return [next(generate_variants({"config": planned.param_space}))[1]["config"] for _ in range(number)]


def test_the_published_file_gives_its_searcher_and_scheduler(published: SearchFile, leaves: list[Leaf]) -> None:
    with pytest.warns(
        UserWarning, match="searcher: today's HyperOptSearch takes no use_early_stopped_trials: left out"
    ):
        planned = plan(published, leaves)
    assert type(planned.searcher).__name__ == "HyperOptSearch"
    assert (planned.searcher.metric, planned.searcher.mode) == ("val_loss", "min")
    assert planned.searcher.algo.keywords["n_startup_jobs"] == 50
    assert type(planned.scheduler).__name__ == "AsyncHyperBandScheduler"
    assert planned.scheduler._max_t == 5
    assert planned.scheduler._metric == "val_loss"
    assert planned.max_concurrent == 6
    assert planned.param_space == {}


@pytest.mark.parametrize("searcher", ["ray.tune.suggest.hyperopt.HyperOptSearch", "Randomsearch"])
def test_the_published_space_is_drawn_in_powers_of_ten(
    published: SearchFile, leaves: list[Leaf], searcher: str
) -> None:
    given = published.given()
    given["searcher"] = searcher if searcher == "Randomsearch" else {"name": searcher, "n_initial_points": 1000}
    values = drawn(plan(parse_search(given), leaves), 300)
    for path, mean, sd in (("learning_rate", -4, 2), ("wae_lambda", 0, 3), ("weighting_random_encoder", -2, 3)):
        logs = [np.log10((value["training"]["optimizer"] | value["model"])[path]) for value in values]
        assert np.mean(logs) == pytest.approx(mean, abs=5 * sd / math.sqrt(300))
        assert np.std(logs) == pytest.approx(sd, rel=0.25)
    dims = {value["model"]["latent_dim"] for value in values}
    assert min(dims) >= 32
    assert max(dims) <= 140
    assert all(dim % 4 == 0 for dim in dims)
    assert {value["model"]["output_fn"] for value in values} == {"softmax", "softplus"}
    for value in values[:20]:
        assert with_values(EXPERIMENT, value).model.latent_dim in dims


@pytest.mark.parametrize(
    "searcher",
    [
        "ray.tune.suggest.hyperopt.HyperOptSearch",
        "ray.tune.suggest.optuna.OptunaSearch",
        "ray.tune.suggest.basic_variant.BasicVariantGenerator",
        None,
    ],
)
def test_every_searcher_draws_from_mixed_types(searcher: str | None) -> None:
    planned = plan(searching(searcher=searcher and {"name": searcher}), read_space(BOUNDED))
    if searcher and "basic_variant" in searcher:
        planned = plan(searching(), read_space(BOUNDED))
    for value in drawn(planned, 30):
        assert 1e-5 <= value["training"]["optimizer"]["learning_rate"] <= 1e-2
        assert 32 <= value["model"]["latent_dim"] <= 140
        assert value["model"]["output_fn"] in ("softmax", "softplus")


def test_optuna_takes_its_own_distributions() -> None:
    rate = {"type": "optuna.distributions.FloatDistribution", "args": [1e-5, 1e-2, True]}
    leaves = read_space({"training": {"optimizer": {"learning_rate": rate}}})
    planned = plan(searching(searcher={"name": "ray.tune.search.optuna.OptunaSearch", "seed": 1}), leaves)
    assert 1e-5 <= drawn(planned, 1)[0]["training"]["optimizer"]["learning_rate"] <= 1e-2
    with pytest.raises(
        UnsupportedError, match=r"learning_rate: optuna.distributions.FloatDistribution goes with its own"
    ):
        plan(searching(), leaves)


def test_unbounded_types_are_refused_where_the_searcher_needs_bounds(leaves: list[Leaf]) -> None:
    with pytest.raises(
        UnsupportedError,
        match=r"learning_rate: OptunaSearch cannot draw from hyperopt.hp.lognormal, .*ray.tune.loguniform",
    ):
        plan(searching(searcher={"name": "ray.tune.search.optuna.OptunaSearch"}), leaves)


@pytest.mark.parametrize(
    ("type_", "given", "expected"),
    [
        ("hyperopt.hp.lognormal", [-4, 2], (-4 * math.log(10), 2 * math.log(10))),
        ("hyperopt.hp.qloguniform", [0, 1, 4], (0.0, math.log(10), 4)),
        ("hyperopt.hp.normal", [1, 2], (1, 2)),
        ("ray.tune.loguniform", [1e-4, 1e-1], (1e-4, 1e-1)),
        ("hyperopt.hp.choice", [["a", "b"]], (["a", "b"],)),
        ("hyperopt.hp.choice", ["a", "b"], (["a", "b"],)),
    ],
)
def test_arguments(type_: str, given: list, expected: tuple) -> None:
    (leaf,) = read_space({"model": {"x": {"type": type_, "args": given}}})
    assert leaf.args == expected
    assert leaf.label == "model.x"


@pytest.mark.parametrize(
    ("name", "arguments"),
    [
        ("ray.tune.schedulers.ASHAScheduler", {"max_t": 9}),
        ("ray.tune.schedulers.async_hyperband.AsyncHyperBandScheduler", {"max_t": 9}),
        ("ray.tune.schedulers.HyperBandScheduler", {"max_t": 9}),
        ("ray.tune.schedulers.MedianStoppingRule", {"grace_period": 2}),
        ("ray.tune.schedulers.PopulationBasedTraining", {"perturbation_interval": 2}),
    ],
)
def test_schedulers_take_the_metric_of_the_analysis(name: str, arguments: dict) -> None:
    search = searching(scheduler={"name": name, **arguments}, analysis={"metric": "mmd", "mode": "max"})
    scheduler = plan(search, read_space(BOUNDED)).scheduler
    assert type(scheduler).__name__ in (name.rpartition(".")[2], "AsyncHyperBandScheduler")
    assert (scheduler._metric, scheduler._mode) == ("mmd", "max") if hasattr(scheduler, "_mode") else ("mmd", "max")


def test_a_population_does_not_change_the_shape_of_the_network() -> None:
    search = searching(scheduler={"name": "ray.tune.schedulers.PopulationBasedTraining"})
    scheduler = plan(search, read_space(BOUNDED)).scheduler
    assert scheduler._hyperparam_mutations["model"] == {"output_fn": ["softmax", "softplus"]}
    assert list(scheduler._hyperparam_mutations["training"]["optimizer"]) == ["learning_rate"]
    only_shape = read_space({"model": {"latent_dim": BOUNDED["model"]["latent_dim"]}})
    with pytest.raises(InvalidInputError, match="nothing that may change during training"):
        plan(search, only_shape)


def test_arguments_that_ray_refuses_are_named() -> None:
    search = searching(scheduler={"name": "ray.tune.schedulers.AsyncHyperBandScheduler", "max_t": 3, "grace_period": 9})
    with pytest.raises(InvalidInputError, match=r"scheduler ray.tune.schedulers.AsyncHyperBandScheduler: grace_period"):
        plan(search, read_space(BOUNDED))
    with pytest.raises(InvalidInputError, match=r"search_space.model.latent_dim: ray.tune.quniform\(1,\)"):
        plan(searching(), read_space({"model": {"latent_dim": {"type": "ray.tune.quniform", "args": [1]}}}))


@pytest.mark.parametrize("package", ["hyperopt", "optuna"])
def test_a_missing_package_is_named_with_the_command(package: str, monkeypatch: pytest.MonkeyPatch) -> None:
    found = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == package else found(name))
    name = {"hyperopt": "HyperOptSearch", "optuna": "OptunaSearch"}[package]
    search = searching(searcher={"name": f"ray.tune.search.{package}.{name}"})
    space = read_space({"model": {"latent_dim": BOUNDED["model"]["latent_dim"]}})
    with pytest.raises(UnsupportedError, match=rf"needs {package}, .* pip install 'discern\[tune\]'"):
        plan(search, space)


def test_unknown_arguments_are_left_out_with_a_warning() -> None:
    def function(known: int) -> None: ...

    with pytest.warns(UserWarning, match="searcher: today's function takes no old, older: left out"):
        assert known_arguments(function, {"known": 1, "old": 2, "older": 3}, "searcher") == {"known": 1}
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        known_arguments(function, {"known": 1}, "searcher")


def test_losses_keep_the_arguments_that_one_of_them_takes() -> None:
    space = {
        "model": {
            "reconstruction_loss": {
                "name": {"type": "ray.tune.choice", "args": [["HuberLoss", "Lnorm"]]},
                "delta": {"type": "ray.tune.uniform", "args": [1, 9]},
                "p": {"type": "ray.tune.choice", "args": [[2, 3]]},
            }
        }
    }
    leaves = without_unknown_loss_arguments(read_space(space), EXPERIMENT)
    assert len(leaves) == 3
    drawn = {"model": {"reconstruction_loss": {"name": "Lnorm", "delta": 2.0, "p": 3}}}
    experiment = with_values(EXPERIMENT, drawn)
    assert experiment.model.reconstruction_loss.as_dict() == {"name": "Lnorm", "p": 3}


def test_values_at_model_level_replace_those_of_both_sides() -> None:
    before = EXPERIMENT.model_copy(deep=True)
    values = {"model": {"regularization": 0.1, "layers": [64, 32], "norm_type": ["layernorm"] * 2}}
    model = with_values(EXPERIMENT, values).model
    assert model.encoder.layers, model.decoder.layers == ([64, 32], [32, 64])
    assert model.encoder.regularization == model.decoder.regularization == 0.1
    assert before == EXPERIMENT


def test_an_example_shows_what_does_not_fit(leaves: list[Leaf]) -> None:
    with_values(EXPERIMENT, example(leaves))
    wrong = read_space({"model": {"latent_dim": {"type": "ray.tune.uniform", "args": [-9.5, -1.5]}}})
    with pytest.raises(InvalidInputError, match=r"model.latent_dim"):
        with_values(EXPERIMENT, example(wrong))
