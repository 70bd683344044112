"""The optimizer and the learning rate of every step."""

import math

import keras
import tensorflow as tf

from aigc_tf.config import TrainingConfig


def learning_rate(step: tf.Tensor, config: TrainingConfig) -> tf.Tensor:
    """Returns the rate of one step, a float32 scalar.

    Linear from 0 over `warmup_steps` (the step counted from 1), then `linear` or `cosine` down to 0 at `num_steps`,
    or `constant`.

    Args:
        step: Integer scalar, counted from 0.
        config: Its `learning_rate`, `warmup_steps`, `num_steps` and `schedule` are read.
    Source: Devlin et al. 2019, appendix A.2 (linear); Loshchilov and Hutter 2017, equation 5 (cosine).
    """
    position = tf.cast(step, tf.float32) + 1.0
    warmup = float(config.warmup_steps)
    progress = (position - 1.0 - warmup) / max(config.num_steps - warmup, 1.0)
    progress = tf.clip_by_value(progress, 0.0, 1.0)
    if config.schedule == "linear":
        decay = 1.0 - progress
    elif config.schedule == "cosine":
        decay = 0.5 * (1.0 + tf.cos(math.pi * progress))
    else:
        decay = tf.ones([])
    rising = position / max(warmup, 1.0)
    return config.learning_rate * tf.where(position <= warmup, rising, decay)


def build_optimizer(config: TrainingConfig, variables: list[keras.Variable]) -> keras.optimizers.Optimizer:
    """Returns a built AdamW that leaves biases and normalisation weights (rank below 2) out of weight decay.

    The step sums gradients over replicas before it clips them, so the optimizer must not sum again: Keras'
    `apply` does so inside `strategy.run`. tests/laws/replicas_test.py holds that this is switched off.

    Source: Loshchilov and Hutter 2019, algorithm 2.
    """
    optimizer = keras.optimizers.AdamW(
        learning_rate=config.learning_rate,
        weight_decay=config.weight_decay,
        beta_1=config.beta_1,
        beta_2=config.beta_2,
        epsilon=config.epsilon,
        name="adamw",  # part of the variables' paths, which name them in checkpoints
    )
    optimizer.exclude_from_weight_decay(var_list=[variable for variable in variables if len(variable.shape) < 2])
    optimizer.build(variables)
    optimizer._all_reduce_sum_gradients = lambda gradients_and_variables: gradients_and_variables
    return optimizer
