"""What a task brings to the training loop: values and functions."""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol

import keras
import numpy as np

from aigc_tf.data.batching.batches import BatchSource
from aigc_tf.data.batching.order import TrainingOrder
from aigc_tf.data.batching.packed_order import PackedOrder
from aigc_tf.data.batching.windows import WindowOrder
from aigc_tf.training.step.batch_losses import LossFunction
from aigc_tf.training.step.step import Observe


class Accumulator(Protocol):
    """Adds up what was observed of a split, so that no more of it is kept than its metrics need."""

    def add(self, rows: dict[str, np.ndarray]) -> None:
        """Takes what was observed of the rows of one batch, `(N, ...)` each; of another one `...` may differ."""

    def result(self) -> dict[str, Any]:
        """Returns the metrics of all rows so far, nested. They depend neither on batches nor on their order."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Evaluation:
    """One pass over a split."""

    source: BatchSource
    num_batches: int
    observe: Observe
    accumulator: Callable[[], Accumulator]
    """Makes an empty one, for each pass."""
    shape: Mapping[str, int] | None = None
    """`StepBatch.shape` of all batches, where shapes must be known."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Shown:
    """Something that a model made, to be looked at after an evaluation."""

    kind: str
    """`text` or `picture`."""
    value: Any
    """A string; `(H, W, 3)` uint8."""
    caption: str = ""
    """What it was made of, such as the prompt."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Task:
    """What a task brings to the loop."""

    build_model: Callable[[], keras.Model]
    losses: LossFunction
    order: TrainingOrder | WindowOrder | PackedOrder
    train: BatchSource
    evaluations: dict[str, Evaluation]
    best_metric: tuple[str, int]
    """Metric that names the best checkpoint, and 1 where more is better, -1 where less is."""
    data_sha256: str
    """Hash of the prepared data set; a run refuses to go on with another."""
    judged_weights: str = "auto"
    """One of config.WEIGHT_KINDS."""
    blocks: Callable[[keras.Model], Sequence[keras.layers.Layer]] = lambda model: ()
    """The layers that `training.devices.recompute` computes again in the backward pass."""
    samples: Callable[[keras.Model], list[Shown]] = lambda model: []
    """What the model makes, to be looked at after an evaluation."""
