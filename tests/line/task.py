"""A task that the package does not know: fits the line y = slope * x + intercept to two columns of numbers.

All that a task brings stands here, in the order in which a run meets it. docs/new_task.md walks through it.
"""

import keras
import numpy as np
import tensorflow as tf

from aigc_tf.data.batching.batches import ColumnSource
from aigc_tf.data.batching.chance import Chance, normal
from aigc_tf.data.batching.order import TrainingOrder, evaluation_batches
from aigc_tf.data.prepared.schema import Column, Schema
from aigc_tf.errors import InputError
from aigc_tf.evaluation.best_metric import best_metric
from aigc_tf.serving.local.answerer import Answerer, typed_value
from aigc_tf.serving.modules.fields import Field, build_signature
from aigc_tf.serving.modules.quantization import ServedWeights
from aigc_tf.serving.publishing.servable import Servable
from aigc_tf.tasks import TASKS
from aigc_tf.tasks.door import TaskDoor, check_sizes
from aigc_tf.tasks.spec import AskSpec, TaskSpec
from aigc_tf.training.step.batch_losses import Losses
from aigc_tf.training.task import Evaluation, Shown, Task

NOISE = 0.01
"""Standard deviation of what is added to x in training, drawn anew at each step."""


# ---------------------------------------------------------------- known before TensorFlow is imported


def schema(config):
    """Two numbers an example; equal x are in the same split."""
    columns = (Column("x", "x", "number"), Column("y", "y", "number"))
    return Schema(columns=columns, split_by=("x",), unit="point")


def check(config):
    if config.data.max_length != type(config.data)().max_length:
        raise InputError(f"data.max_length is {config.data.max_length}, but a point has no length; leave it out.")


def metrics(config):
    return {"mse": -1, "mae": -1}


# ---------------------------------------------------------------- the network


def build_line():
    x = keras.Input([], dtype="float32", name="x")
    y = keras.layers.Dense(1, name="line", kernel_initializer="zeros")(keras.ops.expand_dims(x, -1))
    return keras.Model({"x": x}, keras.ops.squeeze(y, -1))


def describe_line(model):
    return {"class": "line"}


def rebuild_line(description, *, dtype):
    del description, dtype  # a line is always the same, in float32
    return build_line()


# ---------------------------------------------------------------- training and evaluation


def losses(model, batch):
    """Squared errors, and beside them what they are without the square."""
    error = model({"x": batch["x"] + NOISE * batch["noise"]}, training=True) - batch["y"]
    return Losses(values=tf.square(error), weights=batch["weights"], parts={"absolute": tf.abs(error)})


def observe(model, batch):
    error = model({"x": batch["x"]}, training=False) - batch["y"]
    return {"error": error, "weights": batch["weights"]}


class Errors:
    """Adds up errors, so that memory does not grow with the split."""

    def __init__(self):
        self._count, self._square, self._absolute = 0, 0.0, 0.0

    def add(self, rows):
        error = rows["error"].astype(np.float64)
        self._count += len(error)
        self._square += float(np.square(error).sum())
        self._absolute += float(np.abs(error).sum())

    def result(self):
        if not self._count:
            return {"mse": None, "mae": None}
        return {"mse": self._square / self._count, "mae": self._absolute / self._count}


def samples(model):
    """What is looked at after an evaluation: the line as text, and a picture of it."""
    slope, intercept = (float(np.ravel(weight)[0]) for weight in model.get_weights())
    rows = np.arange(32)
    picture = np.full((32, 32, 3), 255, np.uint8)
    picture[np.clip(31 - 16 * (slope * (rows / 16 - 1) + intercept) / 4 - 16, 0, 31).astype(int), rows] = 0
    return [
        Shown(kind="text", value=f"y = {slope:.3f} x + {intercept:.3f}", caption="line"),
        Shown(kind="picture", value=picture, caption="line"),
    ]


def build(config, prepared, devices):
    check_sizes(config, prepared, devices)
    size, seed = config.training.global_batch_size, config.training.seed
    train = prepared.splits["train"]
    ones = np.ones(train.num_examples, np.int64)
    order = TrainingOrder(ones, seed=seed, global_batch_size=size, num_buckets=1, dimension=None)
    noise = Chance(seed=seed, draws={"noise": normal})
    evaluations = {}
    for name, split in prepared.splits.items():
        if name == "train":
            continue
        batches = evaluation_batches(
            np.ones(split.num_examples, np.int64),
            batch_size=config.evaluation.batch_size,
            bucket_lengths=np.array([1]),
            dimension=None,
        )
        source = ColumnSource(
            split, batches.__getitem__, columns=("x", "y"), global_batch_size=config.evaluation.batch_size
        )
        evaluations[name] = Evaluation(
            source=source, num_batches=len(batches), observe=observe, accumulator=Errors, shape={}
        )
    return Task(
        build_model=build_line,
        losses=losses,
        order=order,
        train=ColumnSource(train, order.batch, columns=("x", "y"), global_batch_size=size, chance=noise),
        evaluations=evaluations,
        best_metric=best_metric(metrics(config), config.evaluation.best_metric),
        data_sha256=prepared.sha256,
        samples=samples,
    )


# ---------------------------------------------------------------- serving


X = Field(name="x", dtype="float32", shape=(None,), warmup=(0.0, 1.0), hostile=(0.0, -1e30, 1e30))
Y = Field(name="y", dtype="float32", shape=(None,), tolerance=1e-6)


class LineModule(tf.Module):
    """The line as a function of x; holds its variables."""

    def __init__(self, model):
        super().__init__(name="line")
        self.weights = ServedWeights(model, None)  # tracked: what the function below reads
        self._serve = build_signature(
            "serving_default",
            lambda inputs: {"y": model({"x": inputs["x"]}, training=False)},
            inputs=[X],
            outputs=[Y],
        )

    def signatures(self):
        return {"serving_default": self._serve}


def servable(model, config, facts, *, prepared):
    samples = {} if prepared is None else {"x": prepared.splits["train"].column("x").rows(np.arange(4)).tolist()}
    return Servable(
        architecture=describe_line(model),
        num_parameters=int(model.count_params()),
        build_module=lambda: LineModule(model),
        samples=samples,
    )


def answerer(model, config, facts):
    def answer(questions, settings):
        for question in questions:
            x = typed_value(question["x"], "float32", "x")
            yield {"y": float(model({"x": np.array([x], np.float32)}, training=False)[0])}

    return Answerer(inputs=("x",), columns=("x",), answer=answer)


DOOR = TaskDoor(
    build=build,
    describe=describe_line,
    rebuild=rebuild_line,
    servable=servable,
    answerer=answerer,
    draw=lambda metrics, facts: {},
    unit="points",
    rate="examples_per_second",
)

SPEC = TaskSpec(
    name="line",
    sections=("data", "training", "evaluation", "export"),
    check=check,
    schema=schema,
    metrics=metrics,
    ask=AskSpec(script="predict", inputs=("x",)),
    latency_seconds=1,
    timeout_seconds=10,
    load=lambda: DOOR,
)


def register():
    """Makes the task known to this process."""
    TASKS[SPEC.name] = SPEC
