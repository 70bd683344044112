"""What an adapter saves beside training the whole model: memory, time of a step, size on disk, for both models.

    python benchmarks/adapters.py --steps=12

The classifier is MiniLM (sample:minilm) on rows of 64 tokens, the generator a GPT-2 of 6 layers x 384 with 4,096 tokens
on windows of 256, both with random inputs, which cost what others cost. Times are medians of steps that the ways of
training take in turn in one process, in seconds of the processor (all cores), which what else a machine does changes
least. Peak memory is that of a process of its own for each: the highest resident memory, less that after the imports.
"""

import argparse
import datetime
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

os.environ.setdefault("KERAS_BACKEND", "tensorflow")
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import keras
import numpy as np
import tensorflow as tf

from aigc_tf.config import AdapterConfig, ModelConfig, TrainingConfig
from aigc_tf.data.sources.samples import fetch_sample
from aigc_tf.models.adapters.adapters import add_adapter, save_adapter
from aigc_tf.models.classifiers import classifier
from aigc_tf.models.generators import generator
from aigc_tf.training.devices.strategy import resolve_precision
from aigc_tf.training.optimizers.optimizers import build_optimizer
from aigc_tf.training.step import losses

WAYS = {
    "all weights": AdapterConfig(),
    "lora": AdapterConfig(enabled=True),
    "lora, every kernel": AdapterConfig(enabled=True, targets=("*kernel",)),
    "prefix": AdapterConfig(enabled=True, kind="prefix"),
}
MODELS = {"classifier": ("all weights", "lora", "lora, every kernel"), "generator": tuple(WAYS)}
VOCABULARY = {"classifier": 30522, "generator": 4096}


class Training:
    """One way to train one model."""

    def __init__(self, kind: str, way: str):
        self.kind = kind
        dtype = "mixed_bfloat16" if resolve_precision("auto") == "bfloat16" else "float32"
        sizes: dict[str, Any] = {"vocabulary_size": VOCABULARY[kind], "max_length": 256, "dtype": dtype}
        if kind == "classifier":
            source = ModelConfig(source=str(fetch_sample("minilm")))
            self.model = classifier.build_classifier(source, num_outputs=2, **sizes)
        else:
            self.model = generator.build_generator(ModelConfig(), **sizes)
        add_adapter(self.model, WAYS[way])
        self.variables = self.model.trainable_variables
        self.optimizer = build_optimizer(TrainingConfig(), self.variables)
        self.batch = _batch(kind)
        self.step: Callable[[], Any] = tf.function(self._step)

    def _step(self) -> tf.Tensor:
        with tf.GradientTape() as tape:
            loss = tf.reduce_mean(self._losses())
        self.optimizer.apply(tape.gradient(loss, [variable.value for variable in self.variables]), self.variables)
        return loss

    def _losses(self) -> tf.Tensor:
        if self.kind == "classifier":
            logits = self.model(classifier.model_inputs(self.model, self.batch), training=True)
            return losses.classification_losses(self.batch["labels"], logits, problem_type="single_label")
        logits = self.model(generator.model_inputs(self.model, self.batch), training=True)
        return losses.token_losses(self.batch["labels"], logits)

    def sizes(self) -> dict[str, int]:
        """Numbers of weights that train, and bytes of gradients and slots and of what is saved."""
        trained = sum(int(np.prod(variable.shape)) for variable in self.variables)
        slots = sum(4 * int(np.prod(variable.shape)) for variable in self.optimizer.variables)
        saved = 4 * sum(int(np.prod(weight.shape)) for weight in self.model.weights)
        if getattr(self.model, "adapter", None):
            with tempfile.TemporaryDirectory() as folder:
                save_adapter(self.model, folder)
                saved = sum(file.stat().st_size for file in Path(folder).iterdir())
        return {"trained": trained, "gradients_and_slots": 4 * trained + slots, "saved": saved}


def _batch(kind: str) -> dict[str, tf.Tensor]:
    rng = np.random.default_rng(0)
    rows, length = {"classifier": (32, 64), "generator": (8, 256)}[kind]
    ids = tf.constant(rng.integers(1000, 4000, (rows, length)), tf.int32)
    batch = {"token_ids": ids, "segment_ids": tf.zeros_like(ids), "padding_mask": tf.ones_like(ids)}
    labels = rng.integers(0, 2, rows) if kind == "classifier" else np.roll(ids.numpy(), -1, axis=1)
    return batch | {"labels": tf.constant(labels, tf.int32)}


def resident_bytes(what: str) -> int:
    """Returns the resident memory of this process: `VmRSS` now, `VmHWM` at its highest.

    `resource.getrusage` would not do: a process inherits its highest value from the one that started it.
    """
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(1024 * int(line.split()[1]) for line in lines if line.startswith(what))


def print_peak(kind: str, way: str, steps: int) -> None:
    """Prints the bytes that the model and some steps take."""
    before = resident_bytes("VmRSS")
    training = Training(kind, way)
    for _ in range(steps):
        training.step()
    print(resident_bytes("VmHWM") - before)


def peak_bytes(kind: str, way: str, steps: int) -> int:
    """Has a new process measure."""
    command = [sys.executable, __file__, f"--peak_of={kind}:{way}", f"--steps={steps}"]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    return int(done.stdout.splitlines()[-1])


def seconds_of_steps(trainings: dict[str, Training], steps: int) -> dict[str, float]:
    """Returns the median time of a step of each, taken in turn."""
    times: dict[str, list[float]] = {way: [] for way in trainings}
    for number in range(steps + 2):
        for way, training in trainings.items():
            started = time.process_time()
            training.step().numpy()
            if number >= 2:  # the first traces, the second still grows memory
                times[way].append(time.process_time() - started)
    return {way: statistics.median(values) for way, values in times.items()}


def main() -> None:
    """Prints the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=12)
    parser.add_argument("--peak_of", default="", help="MODEL:WAY; prints the peak memory of that alone")
    options = parser.parse_args()
    if options.peak_of:
        kind, _, way = options.peak_of.partition(":")
        print_peak(kind, way, options.steps)
        return
    print(
        f"{platform.processor() or platform.machine()}, {os.cpu_count()} cores, {resolve_precision('auto')}, "
        f"TensorFlow {tf.__version__}, Keras {keras.__version__}, {datetime.date.today()}; {options.steps} steps"
    )
    print("| model | trained | weights that train | gradients and slots | peak memory | time of a step | saved |")
    print("|---|---|---|---|---|---|---|")
    for kind, ways in MODELS.items():
        trainings = {way: Training(kind, way) for way in ways}
        seconds = seconds_of_steps(trainings, options.steps)
        for way, training in trainings.items():
            sizes = training.sizes()
            peak = peak_bytes(kind, way, steps=2)
            ratio = seconds[way] / seconds[ways[0]]
            print(
                f"| {kind} | {way} | {sizes['trained']:,} | {sizes['gradients_and_slots'] / 1e6:.1f} MB | "
                f"{peak / 1e6:.0f} MB | {1000 * seconds[way]:.0f} ms, {ratio:.2f} | {sizes['saved'] / 1e6:.2f} MB |"
            )


if __name__ == "__main__":
    main()
