"""Whether the preflight's estimate of a step's memory is right: predicted beside measured, on three configs.

    python benchmarks/preflight.py
    python benchmarks/preflight.py --only=gpt_wide

Each config is measured in a process of its own: model and optimizer are built and all their variables written once;
from then on the greatest resident set while the loop makes three steps counts (VmHWM of /proc, so Linux only). What
the estimate gives comes from another process, which makes no step. The batches are random token ids.
"""

import argparse
import dataclasses
import gc
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

NUM_STEPS = 3


@dataclasses.dataclass(frozen=True, kw_only=True)
class Case:
    """A model and its batch."""

    task: str
    rows: int
    length: int
    vocabulary_size: int
    num_layers: int
    hidden_dim: int
    num_heads: int
    precision: str
    dropout: float = 0.1


CASES = {
    # MiniLM's size, as configs/bert_sentiment.py trains it.
    "bert": Case(
        task="classify",
        rows=128,
        length=128,
        vocabulary_size=30522,
        num_layers=6,
        hidden_dim=384,
        num_heads=12,
        precision="bfloat16",
    ),
    "gpt_deep": Case(
        task="generate",
        rows=16,
        length=512,
        vocabulary_size=4096,
        num_layers=6,
        hidden_dim=384,
        num_heads=6,
        precision="float32",
    ),
    # Logits and their gradient are most of it.
    "gpt_wide": Case(
        task="generate",
        rows=32,
        length=512,
        vocabulary_size=32000,
        num_layers=2,
        hidden_dim=256,
        num_heads=4,
        precision="float32",
        dropout=0.0,
    ),
}


def build_task(case: Case):
    """Returns the task, its training config and the devices."""
    import numpy as np
    import tensorflow as tf

    from aigc_tf.config import DevicesConfig, ModelConfig, TrainingConfig
    from aigc_tf.data.batching.batches import BatchSource
    from aigc_tf.data.batching.order import POSITIONS, StepBatch
    from aigc_tf.models.classifiers import classifier
    from aigc_tf.models.generators import generator
    from aigc_tf.tasks.door import policy_of
    from aigc_tf.training.devices.strategy import build_devices
    from aigc_tf.training.step import losses
    from aigc_tf.training.step.batch_losses import Losses
    from aigc_tf.training.task import Task

    config = TrainingConfig(
        num_steps=NUM_STEPS,
        global_batch_size=case.rows,
        devices=DevicesConfig(precision=case.precision, steps_per_call=NUM_STEPS, jit="off", strategy="none"),
    )
    model_config = ModelConfig(
        dropout=case.dropout,
        num_layers=case.num_layers,
        hidden_dim=case.hidden_dim,
        num_heads=case.num_heads,
        intermediate_dim=4 * case.hidden_dim,
    )
    is_generator = case.task == "generate"

    class Order:
        """Batches of one length."""

        bucket_lengths = np.array([case.length])
        num_examples = case.rows

        def batch(self, step):
            """Returns the rows of any step."""
            return StepBatch(np.arange(case.rows) + step, np.ones(case.rows, np.float32), {POSITIONS: case.length})

    class Source(BatchSource):
        """Random token ids; a classifier's batches vary in length, as those of texts do."""

        def _rows(self, batch, mine):
            rows = batch.example_ids[mine]
            size = (len(rows), batch.shape[POSITIONS])
            ids = np.random.default_rng(0).integers(5, case.vocabulary_size, size, np.int32)
            wide = {"token_ids": ids, "padding_mask": np.ones_like(ids)}
            if is_generator:
                return {**wide, "labels": ids, "weights": np.ones(ids.shape, np.float32), "example_ids": rows}
            labels, weights = (rows % 2).astype(np.int32), batch.weights[mine]
            segments = np.zeros_like(ids)
            return {**wide, "segment_ids": segments, "labels": labels, "weights": weights, "example_ids": rows}

        def _signature(self, rows, shape):
            matrix = tf.TensorSpec([rows, case.length if is_generator else shape.get(POSITIONS)], tf.int32)
            wide = {"token_ids": matrix, "padding_mask": matrix}
            ids = {"example_ids": tf.TensorSpec([rows], tf.int64)}
            if is_generator:
                weights = tf.TensorSpec(matrix.shape, tf.float32)
                return {**wide, "labels": matrix, "weights": weights, **ids}
            labels, weights = tf.TensorSpec([rows], tf.int32), tf.TensorSpec([rows], tf.float32)
            return {**wide, "segment_ids": matrix, "labels": labels, "weights": weights, **ids}

    def build_model():
        arguments = {"vocabulary_size": case.vocabulary_size, "max_length": case.length}
        arguments["dtype"] = policy_of(case.precision)
        if is_generator:
            return generator.build_generator(model_config, **arguments)
        return classifier.build_classifier(model_config, num_outputs=2, **arguments)

    def task_losses(model, batch):
        if is_generator:
            return Losses(losses.token_losses(batch["labels"], model(batch, training=True)), batch["weights"])
        logits = model(classifier.model_inputs(model, batch), training=True)
        values = losses.classification_losses(batch["labels"], logits, problem_type="single_label")
        return Losses(values, batch["weights"])

    order = Order()
    task = Task(
        build_model=build_model,
        losses=task_losses,
        order=order,
        train=Source(order.batch, global_batch_size=case.rows),
        evaluations={},
        best_metric=("loss", -1),
        data_sha256="random",
    )
    return task, config, build_devices("none")


def memory(field: str) -> int:
    """Returns VmRSS or VmHWM of this process in bytes."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(f"{field}:"):
            return int(line.split()[1]) * 1024
    raise RuntimeError(f"/proc/self/status has no {field}; this benchmark runs on Linux.")


class PeakWatcher:
    """Keeps the greatest resident set up to the end of the steps; the checkpoint comes after."""

    peak = 0

    def on_steps(self, records):
        """Called after the steps."""
        self.peak = memory("VmHWM")

    def __getattr__(self, name):
        return lambda *arguments: None


def measure(case: Case) -> dict[str, float]:
    """Makes the steps in this process and returns what they took."""
    from aigc_tf.training import loop, run_state

    task, config, devices = build_task(case)
    state = run_state.build_state(task, config, devices)
    for variable in [*state.model.variables, *state.optimizer.variables]:
        variable.assign(variable + 0)  # zeros that nobody has written may have no pages yet
    gc.collect()
    before = memory("VmRSS")
    Path("/proc/self/clear_refs").write_text("5")  # VmHWM starts anew
    watcher = PeakWatcher()
    started = time.perf_counter()
    with tempfile.TemporaryDirectory() as folder:
        loop.train(task, config, folder, state=state, devices=devices, watcher=watcher)
    return {"built": before, "peak": watcher.peak - before, "seconds": time.perf_counter() - started}


def predict(case: Case) -> dict[str, float]:
    """Returns what the preflight tells of the case, and how long that took."""
    from aigc_tf.training.planning.preflight import plan_run

    started = time.perf_counter()
    memory = plan_run(*build_task(case)).memory
    return {"activations": memory.activations, "graph": memory.graph, "seconds": time.perf_counter() - started}


def in_a_child(what: str, name: str) -> dict[str, float]:
    """Runs `predict` or `measure` of a case in a process of its own."""
    environment = os.environ | {"TF_CPP_MIN_LOG_LEVEL": "3", "PYTHONPATH": str(Path(__file__).parents[1])}
    command = [sys.executable, __file__, f"--child={what}", f"--only={name}"]
    printed = subprocess.run(command, env=environment, check=True, stdout=subprocess.PIPE, text=True).stdout
    return json.loads(printed.splitlines()[-1])


def main() -> None:
    """Prints predicted and measured memory of each case."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", choices=list(CASES), action="append", help="one case; all by default")
    parser.add_argument("--child", choices=["predict", "measure"], help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    names = arguments.only or list(CASES)
    if arguments.child:
        print(json.dumps({"predict": predict, "measure": measure}[arguments.child](CASES[names[0]])))
        return
    print(f"{'case':<10} {'activations':>11} {'graph':>7} {'measured':>9} {'ratio':>6} {'with graph':>10}   in MB")
    for name in names:
        plan, run = in_a_child("predict", name), in_a_child("measure", name)
        activations, graph, peak = plan["activations"], plan["graph"], run["peak"]
        print(
            f"{name:<10} {activations / 1e6:>11,.0f} {graph / 1e6:>7,.0f} {peak / 1e6:>9,.0f} "
            f"{activations / peak:>6.3f} {(activations + graph) / peak:>10.3f}   planned in {plan['seconds']:.1f} s"
        )


if __name__ == "__main__":
    main()
