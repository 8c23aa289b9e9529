"""From a hyperparameter search file to the objects of Ray Tune: distributions, searcher and scheduler.

A file from 2021 names classes and arguments of the Ray of its day; names are looked up under today's name, arguments
that today's class does not take are left out with a warning. Ray, hyperopt and optuna are imported when first needed.
"""

from __future__ import annotations

import contextlib
import copy
import importlib.util
import inspect
import math
import warnings
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from discern.config.allowlist import get_function_by_name, look_up
from discern.config.arguments import taken_by
from discern.config.reading import parse_experiment
from discern.errors import InvalidInputError, UnsupportedError, UserError
from discern.runtime.ray_cluster import known_arguments

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence

    from ray.tune.schedulers import TrialScheduler
    from ray.tune.search import Searcher

    from discern.config.fields import JsonObject
    from discern.config.schema import Experiment
    from discern.config.search import SearchFile


Path_ = tuple[str, ...]

_BOTH_SIDES = ("layers", "norm_type", "regularization", "conditional_regularization")
_SHAPES = ("latent_dim", "layers", "norm_type", "encoder", "decoder")
_LOSS = ("model", "reconstruction_loss")

# Searchers that need a package beside Ray, with the one to import and the command that brings it.
_PACKAGES = {
    "ray.tune.search.ax": ("ax", "ax-platform"),
    "ray.tune.search.bayesopt": ("bayes_opt", "bayesian-optimization"),
    "ray.tune.search.bohb": ("hpbandster", "hpbandster ConfigSpace"),
    "ray.tune.search.hebo": ("hebo", "HEBO"),
    "ray.tune.search.hyperopt": ("hyperopt", "'discern[tune]'"),
    "hyperopt.hp": ("hyperopt", "'discern[tune]'"),
    "ray.tune.search.nevergrad": ("nevergrad", "nevergrad"),
    "ray.tune.search.optuna": ("optuna", "'discern[tune]'"),
    "optuna.distributions": ("optuna", "'discern[tune]'"),
    "ray.tune.search.zoopt": ("zoopt", "zoopt"),
}


@dataclass(frozen=True)
class Leaf:
    """One parameter that is searched.

    Attributes:
        path: The keys that lead to it in an experiment.
        type: Today's dotted name of the distribution.
        label: Name of the parameter, unique in the file.
        args: Arguments of the distribution, in natural units.
    """

    path: Path_
    type: str
    label: str
    args: tuple[Any, ...]

    @property
    def name(self) -> str:
        """The path with dots."""
        return ".".join(self.path)


@dataclass(frozen=True)
class Plan:
    """What Ray Tune needs to know about how to search.

    Attributes:
        searcher: The search algorithm; None for Ray's own random and grid search.
        scheduler: What stops or perturbs trials; None for none.
        param_space: Distributions for random and grid search; empty where the searcher holds them.
        max_concurrent: How many trials may run at once; None for as many as the resources allow.
    """

    searcher: Searcher | None
    scheduler: TrialScheduler | None
    param_space: JsonObject
    max_concurrent: int | None


def read_space(tree: JsonObject) -> list[Leaf]:
    """Return the leaves of `search_space`.

    The arguments of hyperopt's distributions whose name contains `log` are decimal logarithms in the file and are
    multiplied by ln 10, which makes them the natural ones that hyperopt takes. (`ray.tune.loguniform` and its like take
    bounds, not logarithms, and a step `q` is no logarithm: these stay as they are.)

    Args:
        tree: A tree over the keys of an experiment with leaves {"type", "name", "args"}.

    Example:
        >>> tree = {"model": {"wae_lambda": {"type": "hyperopt.hp.lognormal", "name": "l", "args": [0, 3]}}}
        >>> [leaf] = read_space(tree)
        >>> leaf.name, leaf.type, [round(arg, 3) for arg in leaf.args]
        ('model.wae_lambda', 'hyperopt.hp.lognormal', [0.0, 6.908])
    """
    leaves = list(_leaves(tree, ()))
    labels = [leaf.label for leaf in leaves]
    for label in labels:
        if labels.count(label) > 1:
            raise InvalidInputError(f"search_space: two parameters have the name {label!r}")
    return leaves


def _leaves(tree: JsonObject, path: Path_) -> Iterator[Leaf]:
    if "type" not in tree:
        for key, branch in tree.items():
            yield from _leaves(branch, (*path, key))
        return
    known = look_up(tree["type"], "search space")
    args = list(tree.get("args", ()))
    if known.module == "hyperopt.hp" and "log" in known.attribute:
        args[:2] = [math.log(10) * arg for arg in args[:2]]
    if known.attribute == "choice" and not (len(args) == 1 and isinstance(args[0], list)):
        args = [args]
    yield Leaf(path, f"{known.module}.{known.attribute}", tree.get("name") or ".".join(path), tuple(args))


def without_unknown_loss_arguments(leaves: Sequence[Leaf], experiment: Experiment) -> list[Leaf]:
    """Leave out arguments that no reconstruction loss of the search takes, with a warning.

    The published search file varies `weight_clipping`, which no loss has any more.
    """
    losses = {experiment.model.reconstruction_loss.name}
    for leaf in leaves:
        if leaf.path == (*_LOSS, "name"):
            choices = leaf.args[0] if leaf.args else None
            if not isinstance(choices, list) or not all(isinstance(choice, str) for choice in choices):
                raise InvalidInputError(f"search_space.{leaf.name}: expected a choice of names, got {choices!r}")
            losses = set(choices)
    known = {"name"}.union(*(taken_by(loss, "loss") for loss in losses))
    kept = [leaf for leaf in leaves if leaf.path[:2] != _LOSS or leaf.path[2] in known]
    for leaf in leaves:
        if leaf not in kept:
            which = " and ".join(sorted(losses))
            warnings.warn(f"search_space.{leaf.name}: left out, it is no argument of {which}", stacklevel=2)
    return kept


def with_values(experiment: Experiment, values: JsonObject) -> Experiment:
    """Return an experiment with the values that a search has drawn.

    Args:
        experiment: The one that is searched.
        values: A tree of the values over the keys of an experiment. What stands at `model` level replaces that of
            encoder and decoder; an argument that the reconstruction loss does not take is left out.

    Example:
        >>> with_values(parse_experiment({}), {"model": {"regularization": 0.1}}).model.decoder.regularization
        0.1
    """
    merged = experiment.as_dict()
    for key in set(values.get("model", {})).intersection(_BOTH_SIDES):
        for side in ("encoder", "decoder"):
            merged["model"][side].pop(key, None)
    _merge(merged, values)
    loss = merged["model"]["reconstruction_loss"]
    known = {"name", *taken_by(loss["name"], "loss")}
    merged["model"]["reconstruction_loss"] = {key: value for key, value in loss.items() if key in known}
    return parse_experiment(merged)


def _merge(base: JsonObject, values: Mapping[str, object]) -> None:
    for key, value in values.items():
        if isinstance(value, dict) and isinstance(base.get(key), dict):
            _merge(base[key], value)
        else:
            base[key] = value


def example(leaves: Iterable[Leaf]) -> JsonObject:
    """Return one value of each leaf, as a tree: for a check of the file before anything runs."""
    generator = np.random.default_rng(0)
    drawn = []
    for leaf in leaves:
        if leaf.type.startswith("hyperopt."):
            from hyperopt.pyll import stochastic

            made = _made(leaf)
            with _refusals(_subject(leaf)):
                value = stochastic.sample(made, rng=generator)
        elif leaf.type.startswith("optuna."):
            distribution = _made(leaf)
            value = distribution.choices[0] if hasattr(distribution, "choices") else distribution.low
        else:
            domain = _made(leaf)
            with _refusals(_subject(leaf)):
                value = domain["grid_search"][0] if isinstance(domain, dict) else domain.sample()
        drawn.append((leaf, value))
    return _tree(drawn)


def examples(leaves: Sequence[Leaf]) -> Iterator[JsonObject]:
    """Yield trees of values in which every entry of every choice stands once, and one value of all else."""
    first = example(leaves)
    yield first
    for leaf in leaves:
        choices = leaf.args[0] if leaf.args and isinstance(leaf.args[0], list) else ()
        for choice in choices if "pchoice" not in leaf.type else ():
            yield _merged(copy.deepcopy(first), _tree([(leaf, choice)]))


def plan(search: SearchFile, leaves: Sequence[Leaf]) -> Plan:
    """Make the searcher and the scheduler that a search file asks for.

    Args:
        search: The file.
        leaves: Its search space.

    Raises:
        UnsupportedError: If a package is missing (the message has the command that installs it), or a searcher cannot
            draw from one of the distributions.
        InvalidInputError: If a class refuses its arguments.
    """
    metric = search.analysis.as_dict()
    given = {} if search.searcher is None else search.searcher.as_dict()
    name, max_concurrent = given.pop("name", None), given.pop("max_concurrent", None)
    searcher, param_space = None, {}
    kind = look_up(name, "searcher") if name else None
    if kind is not None and kind.module != "ray.tune.search.basic_variant":
        space = _space_for(kind.attribute, leaves)
        searcher = _called(name, "searcher", metric | {"space": space}, given)
    else:
        param_space = _tree((leaf, _as_domain(leaf)) for leaf in leaves)
        if kind is not None:
            searcher = _called(name, "searcher", {}, given)
    scheduler = None
    if search.scheduler is not None:
        options = search.scheduler.as_dict()
        name = options.pop("name")
        if look_up(name).attribute in ("PopulationBasedTraining", "PB2"):
            _add_mutations(name, options, leaves)
        scheduler = _called(name, "scheduler", metric, options)
    return Plan(searcher, scheduler, param_space, max_concurrent or None)


def _called(name: str, section: str, defaults: Mapping[str, object], given: Mapping[str, object]) -> Any:
    _require(name)
    class_ = get_function_by_name(name)
    takes = inspect.signature(class_).parameters
    arguments = {key: value for key, value in defaults.items() if key in takes} | known_arguments(
        class_, given, section
    )
    with _refusals(f"{section} {name}"):
        return class_(**arguments)


def _require(name: str) -> None:
    package, command = _PACKAGES.get(look_up(name).module, ("ray", "'discern[tune]'"))
    if importlib.util.find_spec(package) is None:
        raise UnsupportedError(f"{name} needs {package}, which is not installed: pip install {command}")


@contextlib.contextmanager
def _refusals(what: str) -> Iterator[None]:
    """Turn what Ray, hyperopt and optuna raise about arguments into an error that names them."""
    try:
        yield
    except UserError:
        raise
    except Exception as error:
        raise InvalidInputError(f"{what}: {str(error) or 'these arguments do not fit'}") from error


def _subject(leaf: Leaf) -> str:
    return f"search_space.{leaf.name}: {leaf.type}{leaf.args}"


def _made(leaf: Leaf) -> Any:
    _require(leaf.type)
    function = get_function_by_name(leaf.type)
    args = (leaf.label, *leaf.args) if leaf.type.startswith("hyperopt.") else leaf.args
    with _refusals(_subject(leaf)):
        return function(*args)


def _space_for(searcher: str, leaves: Sequence[Leaf]) -> JsonObject:
    """Return the distributions in the form that a searcher takes."""
    own = {"HyperOptSearch": "hyperopt.", "OptunaSearch": "optuna."}.get(searcher, "-")
    mine = [(leaf, _made(leaf)) for leaf in leaves if leaf.type.startswith(own)]
    domains = [(leaf, _as_domain(leaf)) for leaf in leaves if not leaf.type.startswith(own)]
    for leaf, _ in domains:
        if searcher != "HyperOptSearch" and leaf.type.endswith(("normal", "randn")):
            raise UnsupportedError(
                f"search_space.{leaf.name}: {searcher} cannot draw from {leaf.type}, which has no bounds: "
                "use ray.tune.uniform or ray.tune.loguniform"
            )
    if searcher == "HyperOptSearch":
        from ray.tune.search.hyperopt import HyperOptSearch

        with _refusals("search_space"):
            return _merged(_tree(mine), HyperOptSearch.convert_search_space(_tree(domains)))
    if searcher == "OptunaSearch":
        from ray.tune.search.optuna import OptunaSearch

        with _refusals("search_space"):
            return {"/".join(leaf.path): value for leaf, value in mine} | OptunaSearch.convert_search_space(
                _tree(domains)
            )
    return _tree(domains)


def _as_domain(leaf: Leaf) -> Any:
    """Return the distribution as one of Ray Tune's own."""
    module, _, kind = leaf.type.rpartition(".")
    if module == "ray.tune":
        return _made(leaf)
    from ray import tune

    if module == "hyperopt.hp":
        as_bounds = (
            replace(leaf, args=(*map(math.exp, leaf.args[:2]), *leaf.args[2:])) if "loguniform" in kind else leaf
        )
        translated: dict[str, Callable[..., Any]] = {
            "choice": tune.choice,
            "uniform": tune.uniform,
            "quniform": tune.quniform,
            "loguniform": tune.loguniform,
            "qloguniform": tune.qloguniform,
            "normal": tune.randn,
            "qnormal": tune.qrandn,
            "randint": lambda *bounds: tune.randint(*bounds) if len(bounds) > 1 else tune.randint(0, *bounds),
            "uniformint": lambda low, high: tune.randint(low, high + 1),
            "lognormal": _log_normal_domain,
        }
        if kind in translated:
            with _refusals(_subject(leaf)):
                return translated[kind](*as_bounds.args)
    raise UnsupportedError(f"search_space.{leaf.name}: {leaf.type} goes with its own searcher only")


def _log_normal_domain(mean: float, sd: float) -> Any:
    from ray.tune.search.sample import Float

    normal: Any = Float._Normal

    class LogNormal(normal):
        def sample(self, *args: object, **kwargs: object) -> Any:
            return np.exp(super().sample(*args, **kwargs))

    domain = Float(None, None)
    domain.set_sampler(LogNormal(mean, sd))
    return domain


def _add_mutations(name: str, options: JsonObject, leaves: Sequence[Leaf]) -> None:
    """Let the population vary what the search does, less what would change the shape of the network."""
    key = "hyperparam_bounds" if look_up(name).attribute == "PB2" else "hyperparam_mutations"
    if key in options:
        if key == "hyperparam_mutations":
            options[key] = _tree((leaf, _as_mutation(leaf)) for leaf in read_space(options[key]))
        return
    free = [leaf for leaf in leaves if not set(leaf.path).intersection(_SHAPES)]
    if not free:
        raise InvalidInputError(f"scheduler {name}: the search space has nothing that may change during training")
    if key == "hyperparam_bounds":
        raise InvalidInputError(f"scheduler {name}: expected hyperparam_bounds, {{parameter: [lowest, highest]}}")
    options[key] = _tree((leaf, _as_mutation(leaf)) for leaf in free)


def _as_mutation(leaf: Leaf) -> Any:
    return list(leaf.args[0]) if leaf.type.endswith((".choice", ".grid_search")) else _as_domain(leaf)


def _tree(values: Iterable[tuple[Leaf, object]]) -> JsonObject:
    tree: JsonObject = {}
    for leaf, value in values:
        branch = tree
        for key in leaf.path[:-1]:
            branch = branch.setdefault(key, {})
        branch[leaf.path[-1]] = value
    return tree


def _merged(first: JsonObject, second: Mapping[str, object]) -> JsonObject:
    _merge(first, second)
    return first
