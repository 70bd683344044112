"""The inner step: forward and backward on every replica, one sum, one division, clip, judge, apply.

`build_run_steps` gives one tf.function that runs many steps in a graph loop and returns a record of each. The same
code runs under every strategy.

Randomness: dropout draws from a hash of (seed, step, slice, layer), set anew for every forward, so no random state
needs a checkpoint and no two steps or slices share a mask. A slice is what one forward takes of the global batch: the
rows of a micro-batch of a replica. So two replicas draw what two micro-batches of one replica draw.

A step whose loss or gradient is not finite, or whose loss is a spike, is bad: nothing is applied, and the call ends
there, with the weights that it was computed with.
"""

import contextlib
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import keras
import tensorflow as tf

from aigc_tf.config import TrainingConfig
from aigc_tf.training.step.averages import move_averages
from aigc_tf.training.step.batch_losses import MAX_PARTS, Batch, LossFunction, PartSums
from aigc_tf.training.step.recomputation import recomputed

Observe = Callable[[keras.Model, Batch], dict[str, tf.Tensor]]
"""`observe(model, batch)` -> what an evaluation needs of each row, `(B, ...)` each, and `weights`.

`weights` is `(B,)`; 0 marks padding rows.
"""


def seed_generators(model: keras.Model) -> list[keras.random.SeedGenerator]:
    """Returns the seed generators of a model's layers, each once, in the order of its layers."""
    generators: dict[int, keras.random.SeedGenerator] = {}
    for layer in model._flatten_layers():
        for generator in layer._seed_generators:
            # Layers may share a generator.
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
        # On the instance: Keras' own `next` would count up a variable, which a checkpoint would have to keep and which
        # would differ between one batch and two micro-batches.
        generator.next = _Seeds(seeds[index])
    try:
        yield
    finally:
        for generator in generators:
            del generator.next  # the class's own is back


class _Seeds:
    """Hands out `seed`, `seed + (0, 1)`, ...: a layer that draws twice in one forward gets two masks."""

    def __init__(self, seed: tf.Tensor):
        self._seed, self.draws = seed, 0

    def __call__(self, ordered: bool = True) -> tf.Tensor:
        del ordered
        self.draws += 1
        return self._seed + tf.constant([0, self.draws - 1], tf.int64)


def forward_key(seed: int, step: tf.Tensor, place: tf.Tensor | int) -> tf.Tensor:
    """Returns the `(2,)` int32 key of one forward: of slice `place` of a global batch."""
    # All 62 bits of the seed, in two halves that int32 holds.
    key = tf.constant([seed & 0x7FFFFFFF, (seed >> 31) & 0x7FFFFFFF], tf.int32)
    key = tf.random.fold_in(key, step, alg="philox")
    return tf.random.fold_in(key, tf.cast(place, tf.int32), alg="philox")


class LossHistory(NamedTuple):
    """Running statistics of the loss over good steps, float32 scalars; kept in checkpoints."""

    steps: tf.Tensor | float = 0.0
    mean: tf.Tensor | float = 0.0
    variance: tf.Tensor | float = 0.0


_HISTORY_STEPS = 50
"""Steps that the running mean of the loss looks back; before there are as many, nothing is a spike."""


def spike_limit(history: LossHistory, threshold: float) -> tf.Tensor:
    """Returns the loss above which a step is a spike: infinity if spikes are not detected, or not yet."""
    limit = history.mean + threshold * tf.sqrt(history.variance)
    return tf.where((threshold > 0.0) & (history.steps >= float(_HISTORY_STEPS)), limit, float("inf"))


def extend_history(history: LossHistory, loss: tf.Tensor) -> LossHistory:
    """Adds one loss to the running mean and variance.

    Source: Finch 2009, Incremental calculation of weighted mean and variance, equations 140 and 143.
    """
    share = tf.maximum(1.0 / (history.steps + 1.0), 1.0 / _HISTORY_STEPS)  # the plain mean of the first ones
    away = tf.clip_by_value(loss - history.mean, -1e18, 1e18)  # its square is a float32
    variance = (1.0 - share) * (history.variance + share * tf.square(away))
    return LossHistory(history.steps + 1.0, history.mean + share * away, variance)


_RECORD = {
    "loss": tf.float32,
    "weight": tf.float32,
    "gradient_norm": tf.float32,
    "learning_rate": tf.float32,
    "finite": tf.bool,
    "good": tf.bool,
    "stop": tf.bool,
    "tokens": tf.float32,
    "positions": tf.float32,
    "parts": tf.float32,
    "input_seconds": tf.float64,
}


def build_run_steps(
    model: keras.Model,
    optimizer: keras.optimizers.Optimizer,
    losses: LossFunction,
    *,
    strategy: tf.distribute.Strategy,
    learning_rate: Callable[[tf.Tensor], tf.Tensor],
    config: TrainingConfig,
    averages: Sequence[keras.Variable] = (),
    blocks: Sequence[keras.layers.Layer] = (),
) -> Callable[..., tuple[dict[str, tf.Tensor], dict[str, tf.Tensor], LossHistory]]:
    """Returns `run(iterator, first_step, num_steps, history, stop)`, which trains: -> records, parts, history.

    `stop` is a bool scalar: whether this worker was asked to end. The records, one a step, up to the first bad one:
    `loss` (weighted mean over the global batch), `weight`, `gradient_norm` (before clipping), `learning_rate`,
    `finite`, `good`, `stop` (whether any worker was asked to end), `tokens` (not padding) and `positions` (with
    padding), both 0 where batches have no `padding_mask`, `input_seconds` (waited for the batch), each `(num_steps,)`,
    and with `config.recording.log_example_ids` what the replicas saw, `example_ids` (num_steps, B, ...). The parts are
    those of `Losses`, by name, `(num_steps,)` each.

    Args:
        model: Built under the strategy.
        optimizer: Built on the model's trainable variables.
        losses: Of a batch.
        strategy: Where it runs.
        learning_rate: Step, counted from 0 -> rate.
        config: `clip_norm`, `seed`, `jit`, `micro_batches`, `ema_decay`, `spike_threshold`, `log_example_ids` are read.
        averages: Of `averages.build_averages`: one a trainable variable, or none.
        blocks: Layers that are computed again in the backward pass.
    """
    part_sums = PartSums()
    compute = _build_compute(model, losses, config=config, blocks=blocks, part_sums=part_sums)
    update = _build_update(model, optimizer, averages, config=config)

    def compute_and_update(
        batch: Batch, step: tf.Tensor, rate: tf.Tensor, limit: tf.Tensor, stop: tf.Tensor
    ) -> dict[str, tf.Tensor]:
        gradients, record = compute(batch, step, stop)
        record["good"] = record["finite"] & (record["loss"] <= limit)
        tf.cond(record["good"], lambda: update(gradients, step, rate), lambda: step)
        return record

    def one_step(
        batch: Batch, step: tf.Tensor, rate: tf.Tensor, limit: tf.Tensor, stop: tf.Tensor
    ) -> dict[str, tf.Tensor]:
        # On TPU and on one device a branch within the replica is fine, and the update needs no second run. Where
        # replicas of one process meet in the update, only the caller of both may branch.
        if not _merges_replicas(strategy):
            record = strategy.run(compute_and_update, args=(batch, step, rate, limit, stop))
            return {name: strategy.experimental_local_results(value)[0] for name, value in record.items()}
        gradients, record = strategy.run(compute, args=(batch, step, stop))
        record = {name: strategy.experimental_local_results(value)[0] for name, value in record.items()}
        record["good"] = record["finite"] & (record["loss"] <= limit)
        tf.cond(
            record["good"],
            lambda: tf.group(strategy.run(update, args=(gradients, step, rate))),
            lambda: tf.no_op(),
        )
        return record

    names = [*_RECORD, "example_ids"] if config.recording.log_example_ids else list(_RECORD)

    @tf.function(reduce_retracing=True)
    def run_steps(
        iterator: Any, first_step: tf.Tensor, num_steps: tf.Tensor, history: LossHistory, stop: tf.Tensor
    ) -> tuple[dict[str, tf.Tensor], LossHistory]:
        # Every step's record leaves the graph at the end of the call, so that a call of 100 steps loses no curve.
        arrays = {name: tf.TensorArray(_RECORD.get(name, tf.int64), num_steps) for name in names}
        index, good = tf.constant(0), tf.constant(True)
        # A bad step ends the call: what is done about it (examples, rollback) is decided outside, with the weights
        # that it was computed with.
        while good and index < num_steps:
            step = first_step + tf.cast(index, tf.int64)
            batch, waited = _timed_next(iterator, strategy)
            rate = learning_rate(step)
            record = one_step(batch, step, rate, spike_limit(history, config.bad_steps.spike_threshold), stop)
            record |= {"learning_rate": rate, "input_seconds": waited}
            if config.recording.log_example_ids:
                record["example_ids"] = strategy.gather(batch["example_ids"], axis=0)
            arrays = {name: array.write(index, record[name]) for name, array in arrays.items()}
            good = record["good"]
            # A bad loss would raise mean and deviation, or make them NaN, and hide the spikes behind it.
            history = tf.cond(good, lambda: extend_history(history, record["loss"]), lambda: LossHistory(*history))  # noqa: B023
            index += 1
        done = tf.range(index)
        return {name: array.gather(done) for name, array in arrays.items()}, history

    def run(*arguments: Any) -> tuple[dict[str, tf.Tensor], dict[str, tf.Tensor], LossHistory]:
        records, history = run_steps(*arguments)
        parts = tf.unstack(records.pop("parts"), axis=1)
        return records, dict(zip(part_sums.names, parts, strict=False)), history  # the rest of the vector is unused

    return run


def _merges_replicas(strategy: tf.distribute.Strategy) -> bool:
    """Whether the optimizer's updates meet the other replicas of the process, which no branch of a replica may do."""
    return isinstance(strategy, (tf.distribute.MirroredStrategy, tf.distribute.MultiWorkerMirroredStrategy))


def _timed_next(iterator: Any, strategy: tf.distribute.Strategy) -> tuple[Batch, tf.Tensor]:
    # A graph runs in the order of its data alone: the control edges make the clock read before and after the batch.
    asked = tf.timestamp()
    with tf.control_dependencies([asked]):
        batch = next(iterator)
    values = [strategy.experimental_local_results(value)[0] for value in batch.values()]
    with tf.control_dependencies(values):
        return batch, tf.timestamp() - asked


def _build_compute(
    model: keras.Model,
    losses: LossFunction,
    *,
    config: TrainingConfig,
    blocks: Sequence[keras.layers.Layer],
    part_sums: PartSums,
) -> Callable[..., tuple[list[tf.Tensor], dict[str, tf.Tensor]]]:
    """Returns `compute(batch, step, stop)`: the mean gradient over the global batch, clipped, and what is recorded."""
    variables = model.trainable_variables
    generators = seed_generators(model)

    def forward_backward(batch: Batch, key: tf.Tensor) -> list[tf.Tensor]:
        with stateless_seeds(generators, key), recomputed(blocks), tf.GradientTape() as tape:
            found = losses(model, batch)
            total = tf.reduce_sum(found.values * found.weights)
        gradients = tape.gradient(total, variables, unconnected_gradients=tf.UnconnectedGradients.ZERO)
        # Rows of an embedding met twice must add up before they count in the norm: dense from here on.
        gradients = [tf.convert_to_tensor(gradient) for gradient in gradients]
        return [*gradients, total, tf.reduce_sum(found.weights), *_count_tokens(batch), part_sums(found)]

    # XLA gets forward and backward alone: it cannot compile an iterator or a sum over replicas.
    compute_slice = tf.function(forward_backward, jit_compile=True) if config.devices.jit == "on" else forward_backward

    def sum_of_slices(batch: Batch, step: tf.Tensor, replica: tf.Tensor) -> list[tf.Tensor]:
        if config.devices.micro_batches == 1:
            return compute_slice(batch, forward_key(config.seed, step, replica))
        slices = _slices(batch, config.devices.micro_batches)

        def add_slice(index: tf.Tensor, sums: list[tf.Tensor]) -> tuple[tf.Tensor, list[tf.Tensor]]:
            key = forward_key(config.seed, step, replica * config.devices.micro_batches + index)
            more = compute_slice({name: parts[index] for name, parts in slices.items()}, key)
            return index + 1, [old + new for old, new in zip(sums, more, strict=True)]

        zeros = [tf.zeros(variable.shape, variable.dtype) for variable in variables]
        zeros += [*[tf.zeros([])] * 4, tf.zeros([MAX_PARTS])]
        return tf.while_loop(
            lambda index, _: index < config.devices.micro_batches,
            add_slice,
            (tf.constant(0), zeros),
            parallel_iterations=1,  # the activations of one micro-batch at a time are what micro-batches are for
            maximum_iterations=config.devices.micro_batches,
        )[1]

    def compute(batch: Batch, step: tf.Tensor, stop: tf.Tensor) -> tuple[list[tf.Tensor], dict[str, tf.Tensor]]:
        context = tf.distribute.get_replica_context()
        sums = sum_of_slices(batch, step, tf.cast(context.replica_id_in_sync_group, tf.int32))
        # Sums, divided once by the weight of all replicas: a mean of the replicas' means would weigh their rows
        # unequally. `stop` rides along, so that all workers hear of a signal after the same step.
        sums = context.all_reduce(tf.distribute.ReduceOp.SUM, [*sums, tf.cast(stop, tf.float32)])
        gradients, (total, weight, tokens, positions, parts, stops) = sums[:-6], sums[-6:]
        mean = tf.math.reciprocal_no_nan(weight)  # a batch of padding alone has the gradient 0, not NaN
        norm = tf.linalg.global_norm(gradients) * mean  # after the sum: a replica's own norm says nothing of the whole
        scale = mean * (
            config.optimizer.clip_norm / tf.maximum(norm, config.optimizer.clip_norm)
            if config.optimizer.clip_norm
            else 1.0
        )
        record = {
            "loss": total * mean,
            "weight": weight,
            "gradient_norm": norm,
            "finite": tf.math.is_finite(total) & tf.math.is_finite(norm),
            "stop": stops > 0.0,
            "tokens": tokens,
            "positions": positions,
            "parts": parts * mean,
        }
        return [gradient * scale for gradient in gradients], record

    return compute


def _count_tokens(batch: Batch) -> list[tf.Tensor]:
    """Returns how many positions of a batch are tokens, and how many there are; 0 where it has no mask to tell."""
    if "padding_mask" not in batch:
        return [tf.zeros([]), tf.zeros([])]
    mask = tf.cast(batch["padding_mask"], tf.float32)
    return [tf.reduce_sum(mask), tf.cast(tf.size(mask), tf.float32)]


def _slices(batch: Batch, count: int) -> Batch:
    """Splits the rows of every array: `(B, ...)` -> `(count, B / count, ...)`."""
    return {name: tf.reshape(value, tf.concat([[count, -1], tf.shape(value)[1:]], 0)) for name, value in batch.items()}


def _build_update(
    model: keras.Model,
    optimizer: keras.optimizers.Optimizer,
    averages: Sequence[keras.Variable],
    *,
    config: TrainingConfig,
) -> Callable[[list[tf.Tensor], tf.Tensor, tf.Tensor], tf.Tensor]:
    """Returns `update(gradients, step, rate)`, which applies the gradients and moves the averages."""
    variables = model.trainable_variables

    def update(gradients: list[tf.Tensor], step: tf.Tensor, rate: tf.Tensor) -> tf.Tensor:
        optimizer.learning_rate = rate  # Keras' own schedules count the steps that were applied, not those of the run
        optimizer.apply(gradients, variables)
        if averages:
            move_averages(averages, variables, decay=config.optimizer.ema_decay, step=step)
        return step

    return update


def build_inspect_step(
    model: keras.Model, losses: LossFunction, *, strategy: tf.distribute.Strategy, config: TrainingConfig
) -> Callable[[Any, tf.Tensor], dict[str, tf.Tensor]]:
    """Returns `inspect_step(iterator, step)`: the losses of one global batch, computed as the step computes them.

    They are `example_ids` (B, ...), and `losses` and `weights` in the shape that the task gives them, on every worker.
    """
    generators = seed_generators(model)

    def forward(batch: Batch, key: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        with stateless_seeds(generators, key):
            found = losses(model, batch)
        return found.values, found.weights

    compute_slice = tf.function(forward, jit_compile=True) if config.devices.jit == "on" else forward

    def compute(batch: Batch, step: tf.Tensor) -> dict[str, tf.Tensor]:
        replica = tf.cast(tf.distribute.get_replica_context().replica_id_in_sync_group, tf.int32)
        slices = _slices(batch, config.devices.micro_batches)
        parts = []
        for index in range(config.devices.micro_batches):
            key = forward_key(config.seed, step, replica * config.devices.micro_batches + index)
            parts.append(compute_slice({name: value[index] for name, value in slices.items()}, key))
        values, weights = (tf.concat(part, axis=0) for part in zip(*parts, strict=True))
        return {"example_ids": batch["example_ids"], "losses": values, "weights": weights}

    @tf.function
    def inspect_step(iterator: Any, step: tf.Tensor) -> dict[str, tf.Tensor]:
        results = strategy.run(compute, args=(next(iterator), step))
        return {name: strategy.gather(value, axis=0) for name, value in results.items()}

    return inspect_step


def build_evaluate_step(
    model: keras.Model, observe: Observe, *, strategy: tf.distribute.Strategy, jit: bool
) -> Callable[[Any, tf.Tensor], tuple[dict[str, tf.Tensor], tf.Tensor]]:
    """Returns `evaluate_step(iterator, stop)`: what `observe` gives for one global batch, on every worker.

    `stop`, a bool scalar, says whether this worker was asked to end; the second result whether any was.
    """

    def forward(batch: Batch) -> dict[str, tf.Tensor]:
        return observe(model, batch)

    compute = tf.function(forward, jit_compile=True) if jit else forward

    @tf.function(reduce_retracing=True)
    def evaluate_step(iterator: Any, stop: tf.Tensor) -> tuple[dict[str, tf.Tensor], tf.Tensor]:
        # Not `compute` itself: what a strategy runs must not be a compiled function.
        stop_count = tf.cast(stop, tf.int32)[None]  # gather takes no bool
        results, stops = strategy.run(lambda batch: (compute(batch), stop_count), args=(next(iterator),))
        gathered = {name: strategy.gather(value, axis=0) for name, value in results.items()}
        return gathered, tf.reduce_max(strategy.gather(stops, axis=0)) > 0

    return evaluate_step
