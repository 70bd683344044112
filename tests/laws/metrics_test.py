"""Law: a metric's value depends neither on the batch size, nor on the order of the rows, nor on the replicas."""

import dataclasses

import numpy as np
import pytest

from aigc_tf.data.batching.batches import ExampleSource
from aigc_tf.data.batching.order import POSITIONS, StepBatch
from aigc_tf.evaluation.classification import Classification, scalar_metrics
from aigc_tf.evaluation.language_model import LanguageModel
from aigc_tf.training.devices.strategy import build_devices
from aigc_tf.training.evaluator import Evaluator
from aigc_tf.training.task import Evaluation
from tests import tiny_task

BOUND = 1e-6
LAW = "a metric == itself, whatever the batch size and the order of the rows"
NAMES = ("a", "b", "c")


def classified(problem_type):
    return lambda: Classification(problem_type, NAMES)


def kinds():
    rng = np.random.default_rng(0)
    logits, size = rng.normal(size=(997, 3)).astype(np.float32), 997
    yield classified("single_label"), {"logits": logits, "labels": rng.integers(0, 3, size)}
    yield classified("multi_label"), {"logits": logits, "labels": rng.integers(0, 2, (size, 3))}
    yield classified("regression"), {"logits": logits[:, :1], "labels": rng.normal(size=size).astype(np.float32)}
    counts = rng.integers(1, 512, size).astype(np.float32)
    losses = (rng.random(size) * 7 * counts).astype(np.float32)
    windows = {"losses": losses, "correct": np.floor(counts / 3), "weights": counts}
    yield lambda: LanguageModel(utf8_bytes=10**6), windows


@pytest.mark.parametrize(("build", "rows"), kinds())
def test_a_metric_is_the_same_for_every_batch_size_and_order(build, rows, measure):
    def judge(order, batch_size):
        accumulator = build()
        for start in range(0, len(order), batch_size):
            chosen = order[start : start + batch_size]
            accumulator.add({name: values[chosen] for name, values in rows.items()})
        return scalar_metrics(accumulator.result())

    order = np.arange(997)
    whole = judge(order, 997)
    for batch_size in (1, 64, 500):
        for other in (order, np.random.default_rng(1).permutation(order)):
            found = judge(other, batch_size)
            measure(LAW, max(abs(found[name] - value) for name, value in whole.items()), BOUND)


def test_a_model_is_judged_alike_in_batches_of_any_size_and_on_two_replicas(measure):
    config = tiny_task.training_config()
    held_out, tokens = tiny_task.tiny_split(count=13, seed=1), tiny_task.tiny_task(config)

    def judge(order, batch_size, strategy):
        batches = []
        for start in range(0, 13, batch_size):
            ids = np.resize(order[start : start + batch_size], batch_size)
            weights = (np.arange(batch_size) < len(order[start : start + batch_size])).astype(np.float32)
            batches.append(StepBatch(ids, weights, {POSITIONS: 16}))
        source = ExampleSource(
            held_out, batches.__getitem__, tiny_task.SPECIAL_TOKENS, **tiny_task.COLUMNS, global_batch_size=batch_size
        )
        evaluation = Evaluation(
            source=source,
            num_batches=len(batches),
            observe=lambda model, batch: {
                name.replace("outputs", "logits"): value for name, value in tiny_task.tiny_observe(model, batch).items()
            },
            accumulator=lambda: Classification("single_label", NAMES[:2]),
        )
        devices = build_devices(strategy)
        with devices.strategy.scope():
            model = tiny_task.build_model()
        task = dataclasses.replace(tokens, evaluations={"validation": evaluation})
        return scalar_metrics(Evaluator(model, task, devices=devices, jit=False).evaluate("validation"))

    whole = judge(np.arange(13), 13, "none")
    assert whole["num_examples"] == 13
    for order, batch_size, strategy in [(np.arange(13)[::-1], 4, "none"), (np.arange(13), 6, "mirrored")]:
        found = judge(order, batch_size, strategy)
        assert found.keys() == whole.keys()
        differences = [abs(found[name] - value) for name, value in whole.items() if value is not None]
        measure("a model's metrics == on 2 replicas, in other batches", max(differences), BOUND)
