"""The inner step: forward and backward on every replica, one sum, one division, clip, apply.

`build_run_steps` gives one tf.function that runs many steps in a graph loop and returns a record of each. The same
code runs under every strategy: all of a step happens inside one `strategy.run`.

Randomness: dropout draws from a hash of (seed, step, replica, layer), set anew for every forward, so no random
state needs a checkpoint and no two replicas or steps share a mask.
"""

import contextlib
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import keras
import tensorflow as tf

Batch = dict[str, tf.Tensor]
Losses = Callable[[keras.Model, Batch], tuple[tf.Tensor, tf.Tensor]]
"""`losses(model, batch)` -> losses and their weights, float32 of one shape: (B,) for examples, (B, T) for tokens."""
Observe = Callable[[keras.Model, Batch], dict[str, tf.Tensor]]
"""`observe(model, batch)` -> what an evaluation keeps of each row, `(B, ...)` each; `weights` (B,) is 0 for no row."""


def seed_generators(model: keras.Model) -> list[keras.random.SeedGenerator]:
    """Returns the seed generators of a model's layers, each once, in the order of its layers."""
    generators: dict[int, keras.random.SeedGenerator] = {}
    for layer in model._flatten_layers():
        for generator in layer._seed_generators:
            generators.setdefault(id(generator), generator)
    return list(generators.values())


@contextlib.contextmanager
def stateless_seeds(generators: Sequence[keras.random.SeedGenerator], key: tf.Tensor) -> Iterator[None]:
    """Makes each generator hand out seeds that are a pure function of `key` while a forward is traced.

    Args:
        generators: What `seed_generators` found.
        key: `(2,)` int32, a different one for every forward.
    """
    seeds = tf.random.stateless_uniform(
        [max(len(generators), 1), 2], key, minval=None, maxval=None, dtype=tf.int64, alg="philox"
    )
    for index, generator in enumerate(generators):
        generator.next = _Seeds(seeds[index])
    try:
        yield
    finally:
        for generator in generators:
            del generator.next


class _Seeds:
    """Hands out `seed`, `seed + (0, 1)`, ...: a layer that draws twice in one forward gets two masks."""

    def __init__(self, seed: tf.Tensor):
        self._seed, self._draws = seed, 0

    def __call__(self, ordered: bool = True) -> tf.Tensor:
        del ordered
        self._draws += 1
        return self._seed + tf.constant([0, self._draws - 1], tf.int64)


def forward_key(seed: int, step: tf.Tensor, replica: tf.Tensor | int) -> tf.Tensor:
    """Returns the `(2,)` int32 key of one forward."""
    key = tf.constant([seed & 0x7FFFFFFF, (seed >> 31) & 0x7FFFFFFF], tf.int32)
    key = tf.random.fold_in(key, step, alg="philox")
    return tf.random.fold_in(key, tf.cast(replica, tf.int32), alg="philox")


def build_run_steps(
    model: keras.Model,
    optimizer: keras.optimizers.Optimizer,
    losses: Losses,
    *,
    strategy: tf.distribute.Strategy,
    learning_rate: Callable[[tf.Tensor], tf.Tensor],
    clip_norm: float,
    seed: int,
    jit: bool,
) -> Callable[..., dict[str, tf.Tensor]]:
    """Returns `run_steps(iterator, first_step, num_steps)`, which trains and returns a record of every step.

    The record: `loss` (weighted mean over the global batch), `weight`, `gradient_norm` (before clipping),
    `learning_rate`, `finite`, `tokens` (not padding), `positions` (with padding) and `input_seconds` (waited for
    the batch), each `(num_steps,)`.
    """
    train_step = _build_train_step(model, optimizer, losses, clip_norm=clip_norm, seed=seed, jit=jit)

    @tf.function(reduce_retracing=True)
    def run_steps(iterator: Any, first_step: tf.Tensor, num_steps: tf.Tensor) -> dict[str, tf.Tensor]:
        arrays = {name: tf.TensorArray(dtype, num_steps) for name, dtype in _RECORD.items()}
        for index in tf.range(num_steps):
            step = first_step + tf.cast(index, tf.int64)
            batch, waited = _timed_next(iterator, strategy)
            rate = learning_rate(step)
            results = strategy.run(train_step, args=(batch, step, rate))
            record = {name: strategy.experimental_local_results(value)[0] for name, value in results.items()}
            record |= {"learning_rate": rate, "input_seconds": waited}
            arrays = {name: array.write(index, record[name]) for name, array in arrays.items()}
        return {name: array.stack() for name, array in arrays.items()}

    return run_steps


_RECORD = {
    "loss": tf.float32,
    "weight": tf.float32,
    "gradient_norm": tf.float32,
    "learning_rate": tf.float32,
    "finite": tf.bool,
    "tokens": tf.float32,
    "positions": tf.float32,
    "input_seconds": tf.float64,
}


def _timed_next(iterator: Any, strategy: tf.distribute.Strategy) -> tuple[Batch, tf.Tensor]:
    asked = tf.timestamp()
    with tf.control_dependencies([asked]):
        batch = next(iterator)
    values = [strategy.experimental_local_results(value)[0] for value in batch.values()]
    with tf.control_dependencies(values):
        return batch, tf.timestamp() - asked


def _build_train_step(
    model: keras.Model,
    optimizer: keras.optimizers.Optimizer,
    losses: Losses,
    *,
    clip_norm: float,
    seed: int,
    jit: bool,
) -> Callable[..., dict[str, tf.Tensor]]:
    variables = model.trainable_variables
    generators = seed_generators(model)

    def forward_backward(batch: Batch, key: tf.Tensor) -> list[tf.Tensor]:
        with stateless_seeds(generators, key), tf.GradientTape() as tape:
            values, weights = losses(model, batch)
            total = tf.reduce_sum(values * weights)
        gradients = tape.gradient(total, variables, unconnected_gradients=tf.UnconnectedGradients.ZERO)
        # Rows of an embedding met twice must add up before they count in the norm: dense from here on.
        gradients = [tf.convert_to_tensor(gradient) for gradient in gradients]
        mask = tf.cast(batch["padding_mask"], tf.float32)
        return [*gradients, total, tf.reduce_sum(weights), tf.reduce_sum(mask), tf.cast(tf.size(mask), tf.float32)]

    compute = tf.function(forward_backward, jit_compile=True) if jit else forward_backward

    def train_step(batch: Batch, step: tf.Tensor, rate: tf.Tensor) -> dict[str, tf.Tensor]:
        context = tf.distribute.get_replica_context()
        sums = compute(batch, forward_key(seed, step, context.replica_id_in_sync_group))
        sums = context.all_reduce(tf.distribute.ReduceOp.SUM, sums)
        gradients, (total, weight, tokens, positions) = sums[:-4], sums[-4:]
        mean = tf.math.reciprocal_no_nan(weight)
        norm = tf.linalg.global_norm(gradients) * mean
        scale = mean * (clip_norm / tf.maximum(norm, clip_norm) if clip_norm else 1.0)
        optimizer.learning_rate = rate
        optimizer.apply([gradient * scale for gradient in gradients], variables)
        return {
            "loss": total * mean,
            "weight": weight,
            "gradient_norm": norm,
            "finite": tf.math.is_finite(total) & tf.math.is_finite(norm),
            "tokens": tokens,
            "positions": positions,
        }

    return train_step


def build_evaluate_step(
    model: keras.Model, observe: Observe, *, strategy: tf.distribute.Strategy, jit: bool
) -> Callable[[Any], dict[str, tf.Tensor]]:
    """Returns `evaluate_step(iterator)`: what `observe` gives for one global batch, on every worker."""

    def forward(batch: Batch) -> dict[str, tf.Tensor]:
        return observe(model, batch)

    compute = tf.function(forward, jit_compile=True) if jit else forward

    @tf.function(reduce_retracing=True)
    def evaluate_step(iterator: Any) -> dict[str, tf.Tensor]:
        # Not `compute` itself: what a strategy runs must not be a compiled function.
        results = strategy.run(lambda batch: compute(batch), args=(next(iterator),))
        return {name: strategy.gather(value, axis=0) for name, value in results.items()}

    return evaluate_step
