"""RectifiedAdam and Lookahead as Keras 3 optimisers, number for number those of TensorFlow Addons; mean weights."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Self

import keras
import tensorflow as tf

from discern.config.allowlist import get_function_by_name
from discern.config.arguments import taken_by
from discern.errors import InvalidInputError, UnknownNameError, UserError

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

_register = keras.saving.register_keras_serializable("discern")


_VAST = 1e18


def getmembers() -> dict[str, type[keras.optimizers.Optimizer]]:
    """Return the published optimisers by name, for the `custom_objects` of Keras.

    Example:
        >>> sorted(getmembers())
        ['Lookahead', 'RectifiedAdam']
    """
    return {optimizer.__name__: optimizer for optimizer in (Lookahead, RectifiedAdam)}


def from_parameters(parameters: Mapping[str, Any]) -> keras.optimizers.Optimizer:
    """Make the optimiser that `training.optimizer` of parameters.json asks for.

    Args:
        parameters: `algorithm` and its arguments, optionally `learning_decay` and `Lookahead`.

    Raises:
        UnknownNameError: If it has no `algorithm`.
        InvalidInputError: If the optimiser does not take one of the arguments.

    Example:
        >>> from_parameters({"algorithm": "keras.optimizers.SGD", "learning_rate": 0.5, "Lookahead": True}).name
        'Lookahead'
    """
    config = dict(parameters)
    if "algorithm" not in config:
        raise UnknownNameError(
            f"the optimizer needs the key 'algorithm', for example 'tensorflow.keras.optimizers.Adam'; it has {config}"
        )
    algorithm = config.pop("algorithm")
    decay = config.pop("learning_decay", None)
    lookahead = config.pop("Lookahead", False)
    if decay:
        name = decay["name"]
        arguments = {key: value for key, value in decay.items() if key != "name"}
        if "initial_learning_rate" in taken_by(name, "schedule"):
            arguments = {"initial_learning_rate": config.get("learning_rate", 1e-3), **arguments}
        config["learning_rate"] = _make(name, arguments)
    optimizer = _make(algorithm, config)
    return Lookahead(optimizer) if lookahead else optimizer


def _make(name: str, arguments: Mapping[str, object]) -> keras.optimizers.Optimizer:
    """Call a class named in parameters.json; an argument that it does not take is the user's mistake."""
    function = get_function_by_name(name)
    try:
        return function(**arguments)
    except UserError:
        raise
    except Exception as error:
        raise InvalidInputError(f"{function.__name__} does not take {dict(arguments)}: {error}") from error


@_register
class RectifiedAdam(keras.optimizers.Optimizer):
    """Adam whose step is scaled by how far its estimate of the variance can be trusted yet.

    Liu et al., "On the Variance of the Adaptive Learning Rate and Beyond", ICLR 2020, arXiv:1908.03265. While the
    estimate rests on too few gradients (`sma_threshold`), the step is that of plain momentum.

    Args:
        learning_rate: Step size, or a schedule of Keras.
        beta_1: Decay of the mean of the gradients.
        beta_2: Decay of the mean of their squares.
        epsilon: Added to the root of the variance.
        weight_decay: Share of each weight taken off in a step, times the learning rate.
        amsgrad: Whether the variance never falls (Reddi et al., ICLR 2018).
        sma_threshold: Length of the simple moving average from which the variance is used.
        total_steps: If not 0, the learning rate warms up and then falls linearly over so many steps.
        warmup_proportion: Share of `total_steps` in which it rises.
        min_lr: Learning rate after `total_steps`.
        name: Name of the optimiser.
        **kwargs: Arguments of every Keras optimiser (`clipnorm`, ...).

    Example:
        >>> weight = keras.Variable([1.0, -1.0])
        >>> RectifiedAdam(learning_rate=0.1).apply([keras.ops.array([1.0, 2.0])], [weight])
        >>> weight.numpy().round(4)
        array([ 0.9, -1.2], dtype=float32)
    """

    def __init__(
        self,
        learning_rate: float | keras.optimizers.schedules.LearningRateSchedule = 0.001,
        beta_1: float = 0.9,
        beta_2: float = 0.999,
        epsilon: float = 1e-7,
        weight_decay: float | None = None,
        amsgrad: bool = False,
        sma_threshold: float = 5.0,
        total_steps: int = 0,
        warmup_proportion: float = 0.1,
        min_lr: float = 0.0,
        name: str = "RectifiedAdam",
        **kwargs: object,
    ) -> None:
        super().__init__(learning_rate=learning_rate, weight_decay=weight_decay, name=name, **kwargs)
        self.beta_1 = beta_1
        self.beta_2 = beta_2
        self.epsilon = epsilon
        self.amsgrad = amsgrad
        self.sma_threshold = sma_threshold
        self.total_steps = total_steps
        self.warmup_proportion = warmup_proportion
        self.min_lr = min_lr

    def build(self, variables: Sequence[keras.Variable]) -> None:
        """Create the moments of the weights."""
        if self.built:
            return
        super().build(variables)
        self._momentums, self._velocities = self.add_optimizer_variables(variables, ["momentum", "velocity"])
        self._velocity_hats = self.add_optimizer_variables(variables, "velocity_hat") if self.amsgrad else []

    def update_step(self, gradient: tf.Tensor, variable: tf.Variable, learning_rate: tf.Tensor) -> None:
        """Update one weight and its moments, in one pass over them (except with `amsgrad`)."""
        index = self._get_variable_index(variable)
        momentum, velocity = self._momentums[index].value, self._velocities[index].value
        gradient = tf.cast(gradient, variable.dtype)
        factor, epsilon = (tf.cast(value, variable.dtype) for value in self._step(learning_rate))
        if not self.amsgrad:
            tf.raw_ops.ResourceApplyAdam(
                var=variable.handle,
                m=momentum.handle,
                v=velocity.handle,
                beta1_power=tf.zeros((), variable.dtype),  # its bias corrections are in the factor
                beta2_power=tf.zeros((), variable.dtype),
                lr=factor,
                beta1=tf.constant(self.beta_1, variable.dtype),
                beta2=tf.constant(self.beta_2, variable.dtype),
                epsilon=epsilon,
                grad=gradient,
            )
            return
        highest = self._velocity_hats[index]
        self.assign_add(momentum, (gradient - momentum) * (1 - self.beta_1))
        self.assign_add(velocity, (tf.square(gradient) - velocity) * (1 - self.beta_2))
        self.assign(highest, tf.maximum(highest, velocity))
        self.assign_sub(variable, factor * momentum / (tf.sqrt(highest) + epsilon))

    def _step(self, learning_rate: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        """Return the factor and epsilon of factor * momentum / (sqrt(velocity) + epsilon), the step of every weight.

        The bias corrections are folded in. Before the variance can be trusted, epsilon is so large that its root
        vanishes beside it, and in the factor as well.
        """
        step = tf.cast(self.iterations + 1, tf.float32)
        beta_1, beta_2 = tf.constant(self.beta_1, tf.float32), tf.constant(self.beta_2, tf.float32)
        beta_1_power, beta_2_power = beta_1**step, beta_2**step
        sma_limit = 2 / (1 - beta_2) - 1
        sma = sma_limit - 2 * step * beta_2_power / (1 - beta_2_power)
        trusted = tf.maximum(sma, 4.0)  # the root below 4 would be of a negative number
        rectification = tf.sqrt((trusted - 4) / (sma_limit - 4) * (trusted - 2) / (sma_limit - 2) * sma_limit / trusted)
        correction = tf.sqrt(1 - beta_2_power)
        factor = tf.cast(learning_rate, tf.float32) / (1 - beta_1_power)
        rectified = sma >= self.sma_threshold
        return (
            factor * tf.where(rectified, rectification * correction, _VAST),
            tf.where(rectified, self.epsilon * correction, _VAST),
        )

    def _get_current_learning_rate(self) -> tf.Tensor:
        learning_rate = super()._get_current_learning_rate()
        if not self.total_steps:
            return learning_rate
        step = tf.cast(self.iterations + 1, tf.float32)
        peak = tf.cast(learning_rate, tf.float32)
        warmup = self.total_steps * self.warmup_proportion
        decay = max(self.total_steps - warmup, 1)
        falling = peak + (self.min_lr - peak) / decay * tf.minimum(step - warmup, decay)
        return tf.where(step <= warmup, tf.math.divide_no_nan(peak * step, warmup), falling)

    def get_config(self) -> dict[str, object]:
        """Return the arguments from which an equal optimiser can be made."""
        return {
            **super().get_config(),
            "beta_1": self.beta_1,
            "beta_2": self.beta_2,
            "epsilon": self.epsilon,
            "amsgrad": self.amsgrad,
            "sma_threshold": self.sma_threshold,
            "total_steps": self.total_steps,
            "warmup_proportion": self.warmup_proportion,
            "min_lr": self.min_lr,
        }


class Around(keras.optimizers.Optimizer):
    """An optimiser that does something after each step of another one, with a second copy of each weight.

    Learning rate, clipping and weight decay are those of the other one.

    Args:
        optimizer: The optimiser that takes the steps.
        copy: What the copies are called.
        name: Name of the optimiser.
    """

    def __init__(self, optimizer: keras.optimizers.Optimizer, copy: str, name: str) -> None:
        super().__init__(learning_rate=0.0, name=name)
        self.optimizer = keras.optimizers.get(optimizer)
        self._copy = copy
        self._copies: list[keras.Variable] = []

    def build(self, variables: Sequence[keras.Variable]) -> None:
        """Create the copies, equal to the weights."""
        if self.built:
            return
        self.optimizer.build(variables)
        super().build(variables)
        with tf.init_scope():  # also when the first step is being compiled
            self._copies = [self._copy_of(variable) for variable in variables]

    def _copy_of(self, variable: keras.Variable) -> keras.Variable:
        value = tf.identity(variable.value)
        return self.add_variable_from_reference(variable, name=self._copy, initializer=lambda shape, dtype: value)

    def restart(self) -> None:
        """Let the copies be the weights as they are now, for weights that were set from outside."""
        if isinstance(self.optimizer, Around):
            self.optimizer.restart()
        for copy, variable in zip(self._copies, self._trainable_variables, strict=True):
            copy.assign(variable)

    def apply(self, grads: Sequence[tf.Tensor], trainable_variables: Sequence[keras.Variable] | None = None) -> None:
        """Let the other optimiser take one step, then do what is done after it."""
        if not self.built:
            self.build(list(trainable_variables or []))
        self.optimizer.apply(grads, trainable_variables)
        variables = self._trainable_variables if trainable_variables is None else trainable_variables
        pairs = [(variable.value, self._copies[self._get_variable_index(variable)].value) for variable in variables]
        tf.__internal__.distribute.interim.maybe_merge_call(self._for_each, self._distribution_strategy, pairs)

    def _for_each(self, distribution: tf.distribute.Strategy, pairs: Sequence[tuple[tf.Variable, tf.Variable]]) -> None:
        due = self._is_due()

        def after_step(weight: tf.Variable, copy: tf.Variable) -> None:
            def act() -> tf.Tensor:
                self._after_step(weight, copy)
                return True

            tf.cond(due, act, lambda: False)

        for weight, copy in pairs:
            distribution.extended.update(weight, after_step, args=(copy,), group=False)

    def _is_due(self) -> tf.Tensor:
        """Whether anything is done after this step."""
        raise NotImplementedError

    def _after_step(self, weight: tf.Variable, copy: tf.Variable) -> None:
        """Change a weight, its copy, or both."""
        raise NotImplementedError

    @property
    def variables(self) -> list[keras.Variable]:
        """The copies and the variables of the other optimiser."""
        return [*self._copies, *self.optimizer.variables]

    @property
    def iterations(self) -> keras.Variable:
        """Number of steps taken."""
        return self.optimizer.iterations

    @property
    def learning_rate(self) -> float | keras.Variable:
        """Learning rate of the other optimiser."""
        return self.optimizer.learning_rate

    @learning_rate.setter
    def learning_rate(self, learning_rate: float) -> None:
        self.optimizer.learning_rate = learning_rate

    def scale_loss(self, loss: tf.Tensor) -> tf.Tensor:
        """Scale the loss as the other optimiser wants it."""
        return self.optimizer.scale_loss(loss)

    def finalize_variable_values(self, var_list: Sequence[keras.Variable]) -> None:
        """Let the other optimiser finish the weights at the end of training."""
        self.optimizer.finalize_variable_values(var_list)

    def get_config(self) -> dict[str, object]:
        """Return the arguments from which an equal optimiser can be made."""
        return {"name": self.name, "optimizer": keras.optimizers.serialize(self.optimizer)}

    @classmethod
    def from_config(cls, config: dict[str, Any], custom_objects: dict[str, object] | None = None) -> Self:
        """Make an optimiser from its `get_config`."""
        optimizer = keras.optimizers.deserialize(config["optimizer"], custom_objects=custom_objects)
        return cls(**{**config, "optimizer": optimizer})


def innermost(optimizer: keras.optimizers.Optimizer) -> keras.optimizers.Optimizer:
    """Return the optimiser that takes the steps, without those around it."""
    return innermost(optimizer.optimizer) if isinstance(optimizer, Around) else optimizer


@_register
class Lookahead(Around):
    """Every few steps, go only part of the way that another optimiser went since the last time.

    Zhang et al., "Lookahead Optimizer: k steps forward, 1 step back", NeurIPS 2019, arXiv:1907.08610.

    Args:
        optimizer: The optimiser that takes the steps. Learning rate, clipping and weight decay are its own.
        sync_period: Number of its steps between two synchronisations.
        slow_step_size: Share of the way that is kept.
        name: Name of the optimiser.

    Raises:
        InvalidInputError: If `sync_period` is not a positive integer.

    Example:
        >>> weight = keras.Variable([0.0])
        >>> optimizer = Lookahead(keras.optimizers.SGD(learning_rate=1.0), sync_period=2)
        >>> for _ in range(2):
        ...     optimizer.apply([keras.ops.array([-1.0])], [weight])
        >>> weight.numpy().tolist()
        [1.0]
    """

    def __init__(
        self,
        optimizer: keras.optimizers.Optimizer,
        sync_period: int = 6,
        slow_step_size: float = 0.5,
        name: str = "Lookahead",
    ) -> None:
        if sync_period < 1:
            raise InvalidInputError(f"sync_period must be a positive number of steps, not {sync_period}")
        super().__init__(optimizer, "slow", name)
        self.sync_period = sync_period
        self.slow_step_size = slow_step_size

    def _is_due(self) -> tf.Tensor:
        return tf.equal(self.iterations % self.sync_period, 0)

    def _after_step(self, weight: tf.Variable, copy: tf.Variable) -> None:
        copy.assign_add((weight - copy) * self.slow_step_size)
        weight.assign(copy)

    def get_config(self) -> dict[str, object]:
        """Return the arguments from which an equal optimiser can be made."""
        return {**super().get_config(), "sync_period": self.sync_period, "slow_step_size": self.slow_step_size}


@_register
class Averaging(Around):
    """Keep a mean of the weights that another optimiser goes through; it does better than the last of them.

    A step t counts as t ** gamma, so that the mean is over the same share of a training of any length: the power
    function average of Karras et al., "Analyzing and Improving the Training Dynamics of Diffusion Models", CVPR 2024,
    arXiv:2312.02696, equation 4. What averaging is good for: Izmailov et al., "Averaging Weights Leads to Wider Optima
    and Better Generalization", UAI 2018, arXiv:1803.05407.

    Args:
        optimizer: The optimiser that takes the steps. Learning rate, clipping and weight decay are its own.
        share: Share of the training, its end, over which a plain mean would be as old; 1 is the plain mean of all.
        period: Number of steps between two that are counted.
        name: Name of the optimiser.

    Raises:
        InvalidInputError: If `share` is not above 0 and at most 1, or `period` no positive integer.

    Example:
        >>> weight = keras.Variable([0.0])
        >>> optimizer = Averaging(keras.optimizers.SGD(learning_rate=1.0), share=1, period=1)
        >>> for _ in range(3):
        ...     optimizer.apply([keras.ops.array([-1.0])], [weight])
        >>> optimizer.use_average()
        >>> weight.numpy().tolist()
        [2.0]
    """

    def __init__(
        self, optimizer: keras.optimizers.Optimizer, share: float = 0.4, period: int = 10, name: str = "Averaging"
    ) -> None:
        if not 0 < share <= 1:
            raise InvalidInputError(f"share must be above 0 and at most 1, not {share}")
        if period < 1:
            raise InvalidInputError(f"period must be a positive number of steps, not {period}")
        super().__init__(optimizer, "average", name)
        self.share = share
        self.period = period

    def build(self, variables: Sequence[keras.Variable]) -> None:
        """Create the means, equal to the weights."""
        if self.built:
            return
        super().build(variables)
        with tf.init_scope():
            self._exchanged = self.add_variable((), initializer="zeros", dtype="int32", name="exchanged")

    @property
    def variables(self) -> list[keras.Variable]:
        """The means, whether they are exchanged with the weights, and the variables of the other optimiser."""
        return [*super().variables, *([self._exchanged] if self.built else [])]

    def restart(self) -> None:
        """Let the means be the weights as they are now, for weights that were set from outside."""
        super().restart()
        self._exchanged.assign(0)

    def use_average(self) -> None:
        """Put the means in the place of the weights, which are kept; nothing happens if they are there."""
        self._exchange(1)

    def use_last(self) -> None:
        """Put the weights of the last step back, to train on."""
        self._exchange(0)

    def _exchange(self, wanted: int) -> None:
        if not self.built or int(self._exchanged.numpy()) == wanted:
            return
        for mean, weight in zip(self._copies, self._trainable_variables, strict=True):
            value = tf.identity(weight.value)
            weight.assign(mean)
            mean.assign(value)
        self._exchanged.assign(wanted)

    def _is_due(self) -> tf.Tensor:
        return tf.logical_or(tf.equal(self.iterations % self.period, 0), self.iterations < self.period)

    def _after_step(self, weight: tf.Variable, copy: tf.Variable) -> None:
        step = tf.cast(self.iterations, weight.dtype)
        before = tf.maximum(1 - self.period / step, 0.0)
        copy.assign_add((weight - copy) * (1 - before ** (2 / self.share - 1)))

    def get_config(self) -> dict[str, object]:
        """Return the arguments from which an equal optimiser can be made."""
        return {**super().get_config(), "share": self.share, "period": self.period}
