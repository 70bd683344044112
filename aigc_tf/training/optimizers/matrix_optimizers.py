"""Keras' Adafactor and Muon, changed where they treat matrices differently from their papers.

Slots are named by the path of their variable, since checkpoints keep them by path.
"""

import collections
from collections.abc import Sequence
from typing import Any

import keras
import tensorflow as tf

_FUSED = "attention_inputs_kernel"
"""The kernel of our decoder that gives queries, keys and values, (D, 3 D): three matrices side by side."""


class Adafactor(keras.optimizers.Adafactor):
    """Adafactor with an outside learning rate and without a first moment.

    Keras 3.15 stores the full second moment of each matrix beside its factors, which saves nothing; gives factors
    repeated names; and caps the rate at 1 / sqrt(step), against the schedule. Here a matrix keeps only its factors, and
    the rate is the schedule's.

    Source: Shazeer and Stern 2018, algorithm 4 (factors of the last two axes), section 7 for the decay of the second
    moment, and section 8 for the scale of the rate, `max(epsilon_2, RMS(variable))`.
    """

    def build(self, variables: list[keras.Variable]) -> None:
        """Makes the slots: means of the squared gradients over each of the last two axes, or one per element."""
        if self.built:
            return
        super(keras.optimizers.Adafactor, self).build(variables)
        self._factors = []
        for variable in variables:
            shape, path = tuple(variable.shape), variable.path.replace("/", "_")
            slots = {"velocity": shape}
            if len(shape) >= 2:
                slots = {"rows": shape[:-1], "columns": shape[:-2] + shape[-1:]}
            self._factors.append(
                [self.add_variable(size, dtype=variable.dtype, name=f"{path}_{name}") for name, size in slots.items()]
            )

    def update_step(self, gradient: tf.Tensor, variable: tf.Variable, learning_rate: Any) -> None:
        """Moves one variable and its slots."""
        rate = tf.cast(learning_rate, variable.dtype)
        gradient = tf.cast(gradient, variable.dtype)
        step = tf.cast(self.iterations + 1, variable.dtype)
        kept = 1.0 - tf.pow(step, self.beta_2_decay)
        squares = tf.square(gradient) + self.epsilon_1
        slots = self._factors[self._get_variable_index(variable)]
        means = [squares]
        if len(slots) == 2:
            means = [tf.reduce_mean(squares, axis=-1), tf.reduce_mean(squares, axis=-2)]
        moments = []
        for slot, mean in zip(slots, means, strict=True):
            moments.append(kept * tf.convert_to_tensor(slot) + (1.0 - kept) * mean)
            self.assign(slot, moments[-1])
        second_moment = moments[0]
        if len(slots) == 2:
            rows = moments[0] / tf.reduce_mean(moments[0], axis=-1, keepdims=True)
            second_moment = rows[..., None] * moments[1][..., None, :]
        update = gradient * tf.math.rsqrt(second_moment)
        update /= tf.maximum(1.0, _rms(update) / self.clip_threshold)
        self.assign_sub(variable, tf.maximum(self.epsilon_2, _rms(tf.convert_to_tensor(variable))) * rate * update)


def _rms(x: tf.Tensor) -> tf.Tensor:
    return tf.sqrt(tf.reduce_mean(tf.square(x)))


class Muon(keras.optimizers.Muon):
    """Muon for the matrices of the numbered layers, AdamW for all other variables.

    Keras 3.15 leaves every variable without exactly two axes to AdamW, including the four kernels of attention in
    KerasNLP, which have three. And it treats our (D, 3 D) kernel as one matrix, although Muon's author found that
    queries, keys and values are better separate.

    Source: Jordan et al. 2024, https://kellerjordan.github.io/posts/muon; Liu et al. 2025, section 2.2, equation 4
    (an update has the size of AdamW's, so the same rates fit).
    """

    def __init__(self, *, matrices: Sequence[tuple[keras.Variable, tuple[int, int]]], **arguments: Any):
        """Takes Keras' arguments, and the variables that Muon moves, each with its result of `matrix_sizes`."""
        super().__init__(**arguments)
        self._matrices = {self._var_key(variable): size for variable, size in matrices}

    def _should_use_adamw(self, variable: Any) -> bool:
        return self._var_key(variable) not in self._matrices

    def _muon_update_step(self, gradient: tf.Tensor, variable: tf.Variable, lr: Any, m: keras.Variable) -> None:
        gradient = tf.cast(gradient, variable.dtype)
        parts, rows = self._matrices[self._var_key(variable)]
        momentum = self.momentum * tf.convert_to_tensor(m) + gradient
        self.assign(m, momentum)
        ahead = tf.reshape(gradient + self.momentum * momentum, [rows, parts, -1])  # Nesterov's
        update = self.zeropower_via_newtonschulz5(tf.transpose(ahead, [1, 0, 2]), self.ns_steps)
        update *= self.rms_rate * max(update.shape[1:]) ** 0.5
        update = tf.reshape(tf.transpose(update, [1, 0, 2]), gradient.shape)
        self.assign_sub(variable, tf.cast(lr, variable.dtype) * update)


def matrix_sizes(variables: Sequence[keras.Variable]) -> list[tuple[int, int] | None]:
    """Returns, for each variable of numbered layers, whether it is a matrix, and its number of rows.

    A variable of two axes is one matrix, except for embeddings and biases (KerasNLP's query biases are (H, E)). A
    kernel of attention with three axes is one if its first or its last axis is the model's width (the most frequent
    length of norms and biases): KerasNLP's (D, H, E) and (H, E, D) are D x H E and H E x D. Nothing else is a matrix.

    Returns:
        For each variable `(parts, rows)`, that is `parts` matrices of `rows` rows side by side; or None.
    """
    lengths = collections.Counter(variable.shape[0] for variable in variables if len(variable.shape) == 1)
    width = lengths.most_common(1)[0][0] if lengths else 0
    return [_matrix_size(variable.path, tuple(variable.shape), width) for variable in variables]


def _matrix_size(path: str, shape: tuple[int, ...], width: int) -> tuple[int, int] | None:
    if "embedding" in path or path.endswith("bias"):
        return None
    if len(shape) == 2:
        return (3 if path.endswith(_FUSED) else 1), shape[0]
    if len(shape) == 3 and "attention" in path and width in (shape[0], shape[2]):
        return 1, (shape[0] if shape[0] == width else shape[0] * shape[1])
    return None
