"""What the training loop costs over a bare step: records, telemetry, input, checkpoints.

    python benchmarks/loop.py --config=configs/bert_sentiment.py --config=configs/gpt_shakespeare.py --steps=200

The bare step is what one would write by hand: a tf.function with a gradient tape, a clipped gradient and Keras' AdamW,
on batches that lie in memory already. Loop and bare step take turns, a call of the loop and as many bare steps on the
same batches, so that whatever else the machine does falls on both. The ratio is the median over these turns.

Checkpoints are written every `--checkpoint_every` steps here, in order to be seen; what one costs is the time of its
turn and of the next over what those would have taken without, as a share of the default interval of 500 steps.
"""

import argparse
import importlib.metadata
import os
import platform
import statistics
import tempfile
import time
from typing import Any

os.environ.setdefault("KERAS_BACKEND", "tensorflow")
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import keras
import numpy as np
import tensorflow as tf

from aigc_tf.commands import runs
from aigc_tf.commands.watching import RunWatcher, count_step_flops
from aigc_tf.config import ExperimentConfig, TrainingConfig
from aigc_tf.config.files import load_config
from aigc_tf.training import loop, run_state
from aigc_tf.training.devices import strategy
from aigc_tf.training.planning import preflight
from aigc_tf.training.task import Task


class BareStep:
    """A hand-written training step of the task's model."""

    def __init__(self, task: Task, config: TrainingConfig):
        self._task = task
        model = task.build_model()
        optimizer = keras.optimizers.AdamW(config.optimizer.learning_rate, weight_decay=config.optimizer.weight_decay)
        optimizer.build(model.trainable_variables)

        @tf.function(reduce_retracing=True)
        def step(batch: dict[str, tf.Tensor]) -> tf.Tensor:
            with tf.GradientTape() as tape:
                losses = task.losses(model, batch)
                loss = tf.reduce_sum(losses.values * losses.weights) / tf.reduce_sum(losses.weights)
            gradients = tape.gradient(loss, model.trainable_variables)
            gradients, _ = tf.clip_by_global_norm(gradients, config.optimizer.clip_norm)
            optimizer.apply(gradients, model.trainable_variables)
            return loss

        self._step = step

    def seconds(self, first_step: int, num_steps: int) -> float:
        """Returns the time of steps on the batches of the order."""
        rows = [
            self._task.train.rows(step, shard=0, num_shards=1) for step in range(first_step, first_step + num_steps)
        ]
        batches = [{name: tf.constant(array) for name, array in row.items()} for row in rows]
        started = time.perf_counter()
        losses = [self._step(batch) for batch in batches]
        float(losses[-1])
        return time.perf_counter() - started


class TurnTaker:
    """Passes on what the loop reports, and has the bare step take a turn after each call."""

    def __init__(self, watcher: RunWatcher, bare: BareStep):
        self._watcher, self._bare = watcher, bare
        self._since = time.perf_counter()
        self.turns: list[tuple[int, float, float]] = []
        """(first step, seconds of the loop, seconds of the bare steps)."""
        self.checkpoints: list[int] = []
        self.blocked: list[float] = []
        self.waited = 0.0

    def __getattr__(self, name: str) -> Any:
        return getattr(self._watcher, name)

    def on_steps(self, records: list[dict[str, float]]) -> None:
        self._watcher.on_steps(records)
        of_loop = time.perf_counter() - self._since
        first = int(records[0]["step"]) - 1
        self.turns.append((first, of_loop, self._bare.seconds(first, len(records))))
        self.waited += sum(record["time/input_seconds"] for record in records)
        self._since = time.perf_counter()

    def on_checkpoint(self, step: int, blocked_seconds: float) -> None:
        self._watcher.on_checkpoint(step, blocked_seconds)
        self.checkpoints.append(step)
        self.blocked.append(blocked_seconds)


def measure(config: ExperimentConfig, *, steps: int, checkpoint_every: int) -> None:
    """Prints what the loop costs for one experiment."""
    training = config.training
    training.num_steps, training.checkpoint_every, training.evaluate_every = steps, checkpoint_every, 0
    training.schedule.warmup_steps = min(training.schedule.warmup_steps, steps - 1)
    config.evaluation.sample_prompts = ()
    prepared = runs.open_prepared_of(config)
    devices = strategy.build_devices("none")
    config = runs.resolve(config, None, devices)
    task = runs.door_of(config).build(config, prepared, devices)
    task.evaluations.clear()
    bare = BareStep(task, config.training)
    state = run_state.build_state(task, config.training, devices)
    flops = count_step_flops(preflight.trace_step(task, state.model, devices), task)
    with tempfile.TemporaryDirectory() as workdir:
        watcher = RunWatcher(
            config,
            workdir,
            task=task,
            state=state,
            devices=devices,
            facts=prepared.facts,
            flops=flops,
            started=time.time(),
        )
        taker = TurnTaker(watcher, bare)
        with watcher:
            loop.train(task, config.training, workdir, state=state, devices=devices, watcher=taker)
    turns = taker.turns[len(taker.turns) // 5 :]  # the first ones trace, for each padded length
    with_checkpoint = {
        step + offset for step in taker.checkpoints for offset in range(2 * config.training.devices.steps_per_call)
    }
    plain = [turn for turn in turns if turn[0] not in with_checkpoint]
    ratio = statistics.median(of_loop / of_bare for _, of_loop, of_bare in plain)
    step_seconds = statistics.median(of_bare for _, _, of_bare in turns) / config.training.devices.steps_per_call
    disturbed = [turn for turn in turns if turn[0] in with_checkpoint]
    extra = sum(of_loop - of_bare * ratio for _, of_loop, of_bare in disturbed) / max(len(taker.checkpoints) - 1, 1)
    blocked = statistics.median(taker.blocked)
    size = sum(int(np.prod(v.shape)) * 4 for v in [*state.model.variables, *state.optimizer.variables])
    stall = taker.waited / sum(of_loop for _, of_loop, _ in taker.turns)
    per_call = config.training.devices.steps_per_call
    print(f"{config.name}: {len(plain)} turns of {per_call} steps, {step_seconds * 1000:.0f} ms a step")
    print(f"  loop / bare step            {ratio:.3f}")
    print(f"  waited for input            {stall:.2%} of the loop's time")
    print(f"  checkpoint of {size / 1e6:,.0f} MB: the loop is blocked for {blocked / step_seconds:.2f} steps")
    print(f"  its whole cost              {extra:.2f} s, {extra / (500 * step_seconds):.2%} of 500 steps")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config", action="append", required=True)
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--checkpoint_every", type=int, default=50)
    args = parser.parse_args()
    versions = ", ".join(f"{name} {importlib.metadata.version(name)}" for name in ("tensorflow", "keras", "keras-nlp"))
    print(f"{platform.machine()}, {os.cpu_count()} cores, {versions}, {time.strftime('%Y-%m-%d')}")
    for path in args.config:
        measure(load_config(path), steps=args.steps, checkpoint_every=args.checkpoint_every)


if __name__ == "__main__":
    main()
