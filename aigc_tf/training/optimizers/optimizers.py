"""The optimizer, the learning rate of every step, and each layer's share of it."""

import collections
import math
import re
from collections.abc import Sequence
from typing import Any

import keras
import tensorflow as tf

from aigc_tf.config import TrainingConfig
from aigc_tf.errors import InputError
from aigc_tf.training.optimizers.matrix_optimizers import Adafactor, Muon, matrix_sizes

_RMSPROP_DECAY = 0.9  # Tieleman and Hinton 2012, slide 29
_NUMBERED = re.compile(r"(.*?)_?(\d+)")
_OUTPUT_MATRIX = "reverse_embeddings"  # KerasNLP's output matrix, which is listed with the embeddings but is not one


def learning_rate(step: tf.Tensor, config: TrainingConfig) -> tf.Tensor:
    """Returns the rate of one step, a float32 scalar.

    Linear from 0 over `warmup_steps` (the step counted from 1), then one of

        linear, cosine   down to the final share at `num_steps`
        constant         the peak
        inverse_sqrt     the peak times sqrt(warmup_steps / step)
        wsd              the peak, and over the last `decay_steps` linearly down to the final share

    Args:
        step: Integer scalar, counted from 0.
        config: Its `learning_rate`, `warmup_steps`, `num_steps`, `schedule`, `decay_steps` and `final_rate_share` are
            read.
    Source: Devlin et al. 2019, appendix A.2 (linear); Loshchilov and Hutter 2017, equation 5 (cosine); Vaswani et al.
    2017, equation 3 (inverse_sqrt); Hu et al. 2024, section 4.2 (wsd).
    """
    position = tf.cast(step, tf.float32) + 1.0  # from 1, or the first step would have the rate 0 and do nothing
    warmup = float(config.schedule.warmup_steps)
    first = warmup if config.schedule.name != "wsd" else float(config.num_steps - wsd_decay_steps(config))
    progress = (position - 1.0 - first) / max(config.num_steps - first, 1.0)
    progress = tf.clip_by_value(progress, 0.0, 1.0)
    if config.schedule.name in ("linear", "wsd"):
        decay = 1.0 - progress
    elif config.schedule.name == "cosine":
        decay = 0.5 * (1.0 + tf.cos(math.pi * progress))
    elif config.schedule.name == "inverse_sqrt":
        decay = tf.sqrt(max(warmup, 1.0) / position)
    else:
        decay = tf.ones([])
    if config.schedule.final_rate_share:
        decay = config.schedule.final_rate_share + (1.0 - config.schedule.final_rate_share) * decay
    rising = position / max(warmup, 1.0)
    return config.optimizer.learning_rate * tf.where(position <= warmup, rising, decay)


def wsd_decay_steps(config: TrainingConfig) -> int:
    """Returns the steps over which `wsd` falls: `decay_steps`, or by Hu et al. 2024 a tenth of the run."""
    rest = config.num_steps - config.schedule.warmup_steps
    return config.schedule.decay_steps or min(max(config.num_steps // 10, 1), max(rest, 1))


def build_optimizer(config: TrainingConfig, variables: list[keras.Variable]) -> keras.optimizers.Optimizer:
    """Returns the built optimizer; weight decay skips biases and normalisation weights (rank below 2).

    Decay is always decoupled: before the step, a weight loses `rate * weight_decay` of itself.
    The optimizer's name is part of the paths of its variables, which name them in checkpoints.

    The step sums gradients over replicas before it clips them, so the optimizer must not sum again: Keras'
    `apply` does so inside `strategy.run`. tests/laws/replicas_test.py holds that this is switched off.

    Raises:
        InputError: If `muon` or `layer_decay` finds no numbered layers.
    Source: Loshchilov and Hutter 2019, algorithm 2; for each optimizer, docs/train.md.
    """
    optimizer = _create(config, variables)
    optimizer.exclude_from_weight_decay(var_list=[variable for variable in variables if len(variable.shape) < 2])
    optimizer.build(variables)  # slots now: a checkpoint is restored into them before the first step
    optimizer._all_reduce_sum_gradients = lambda gradients_and_variables: gradients_and_variables
    if config.optimizer.layer_decay != 1.0:
        _scale_rates(optimizer, variables, layer_scales(variables, config.optimizer.layer_decay))
    return optimizer


def _create(config: TrainingConfig, variables: list[keras.Variable]) -> keras.optimizers.Optimizer:
    name = config.optimizer.name
    # The rate is a variable that every step sets; this value is only what it starts with.
    common: dict[str, Any] = {"name": name, "learning_rate": float(config.optimizer.learning_rate)}
    decay = {"weight_decay": config.optimizer.weight_decay}
    betas = {"beta_1": config.optimizer.beta_1, "beta_2": config.optimizer.beta_2}
    epsilon = {"epsilon": config.optimizer.epsilon}
    if name == "adamw":
        return keras.optimizers.AdamW(**common, **decay, **betas, **epsilon)
    if name == "adam":
        return keras.optimizers.Adam(**common, **betas, **epsilon)
    if name == "sgd":
        return keras.optimizers.SGD(**common, **decay, momentum=float(config.optimizer.momentum))
    if name == "rmsprop":
        return keras.optimizers.RMSprop(**common, **decay, **epsilon, rho=_RMSPROP_DECAY)
    if name == "lamb":
        return keras.optimizers.Lamb(**common, **decay, **betas, **epsilon)
    if name == "lion":
        return keras.optimizers.Lion(**common, **decay, **betas)
    if name == "adafactor":
        return Adafactor(**common, **decay)
    return Muon(
        **common,
        **decay,
        **epsilon,
        momentum=config.optimizer.momentum,
        adam_weight_decay=config.optimizer.weight_decay,
        adam_beta_1=config.optimizer.beta_1,
        adam_beta_2=config.optimizer.beta_2,
        matrices=_hidden_matrices(variables),
    )


def _hidden_matrices(variables: list[keras.Variable]) -> list[tuple[keras.Variable, tuple[int, int]]]:
    depths, num_layers = layer_depths(variables)
    rows = zip(variables, depths, matrix_sizes(variables), strict=True)
    return [(variable, size) for variable, depth, size in rows if size and 1 <= depth <= num_layers]


def layer_depths(variables: Sequence[keras.Variable]) -> tuple[list[int], int]:
    """Returns the depth of each variable, and the number of layers L.

    The depth is 0 for embeddings, 1 to L for layers, L + 1 for the head.

    The layers are those whose names differ only in a number at their end, such as `transformer_layer_3` or `block_3`;
    if there are several such series, the one with the most variables. What comes before the first of them in the model
    counts as embeddings, what comes after them as the head; so does an output matrix that is listed with the
    embeddings.

    Args:
        variables: The variables of a model, in its order.
    Raises:
        InputError: If no names are numbered.
    """
    numbered = [_layer_of(variable.path) for variable in variables]
    series = collections.Counter(name for name, _ in filter(None, numbered))
    if not series:
        raise InputError(
            "The model has no numbered layers such as 'transformer_layer_0', which training.optimizer.name 'muon' and "
            "training.optimizer.layer_decay need; leave them out."
        )
    layers = series.most_common(1)[0][0]
    places = [found[1] if found and found[0] == layers else None for found in numbered]
    num_layers = max(place for place in places if place is not None) + 1
    depths, outside = [], 0
    for variable, place in zip(variables, places, strict=True):
        if place is not None:
            outside = num_layers + 1
            depths.append(place + 1)
        else:
            depths.append(num_layers + 1 if _OUTPUT_MATRIX in variable.path else outside)
    return depths, num_layers


def _layer_of(path: str) -> tuple[str, int] | None:
    """Returns name and number of the outermost part of a path that ends in a number."""
    for part in path.split("/")[:-1]:
        match = _NUMBERED.fullmatch(part)
        if match:
            return match[1], int(match[2])
    return None


def layer_scales(variables: Sequence[keras.Variable], decay: float) -> list[float]:
    """Returns the share of the rate that each variable gets: `decay` to the power of its distance from the head.

    Args:
        variables: The variables of a model, in its order.
        decay: In (0, 1].
    Source: Clark et al. 2020, appendix A (layer-wise decay); Bao et al. 2022, appendix G, whose head has the full
    rate and whose last layer has `decay` of it; Howard and Ruder 2018, section 3.2 (discriminative fine-tuning).
    """
    depths, num_layers = layer_depths(variables)
    return [decay ** (num_layers + 1 - depth) for depth in depths]


def _scale_rates(optimizer: keras.optimizers.Optimizer, variables: list[keras.Variable], scales: list[float]) -> None:
    """Gives each variable its share of the rate, in its step and in its weight decay.

    Keras has only one rate. It first decays all variables and then steps each; here each is decayed right before its
    step, which is equivalent.
    """
    shares = {optimizer._var_key(variable): scale for variable, scale in zip(variables, scales, strict=True)}
    step, decay = optimizer.update_step, optimizer.weight_decay

    def scaled_step(gradient: tf.Tensor, variable: tf.Variable, rate: Any) -> None:
        rate = tf.cast(rate, variable.dtype) * shares[optimizer._var_key(variable)]
        if decay and optimizer._use_weight_decay(variable):
            variable.assign_sub(variable * decay * rate)
        step(gradient, variable, rate)

    optimizer.update_step = scaled_step
    optimizer._apply_weight_decay = lambda variables: None
