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
    """Sums what was observed of a split, and keeps no more than the metrics need."""

    def add(self, rows: dict[str, np.ndarray]) -> None:
        """Adds the observations of one batch, `(N, ...)` each; `...` may differ between batches."""

    def result(self) -> dict[str, Any]:
        """Returns the metrics of all rows so far, nested. They depend neither on batches nor on their order."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Evaluation:
    """One pass over a split."""

    source: BatchSource
    num_batches: int
    observe: Observe
    accumulator: Callable[[], Accumulator]
    """Returns an empty accumulator, for each pass."""
    shape: Mapping[str, int] | None = None
    """`StepBatch.shape` of all batches, if shapes must be known."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Shown:
    """A sample of a model's output, shown after an evaluation."""

    kind: str
    """`text` or `picture`."""
    value: Any
    """A string; `(H, W, 3)` uint8."""
    caption: str = ""
    """Its origin, such as the prompt."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Task:
    """What a task brings to the loop."""

    build_model: Callable[[], keras.Model]
    losses: LossFunction
    order: TrainingOrder | WindowOrder | PackedOrder
    train: BatchSource
    evaluations: dict[str, Evaluation]
    best_metric: tuple[str, int]
    """Metric that chooses the best checkpoint, and 1 if more is better, -1 if less is."""
    data_sha256: str
    """Hash of the prepared data set; a run refuses to resume on another."""
    judged_weights: str = "auto"
    """One of config.WEIGHT_KINDS."""
    blocks: Callable[[keras.Model], Sequence[keras.layers.Layer]] = lambda model: ()
    """The layers that `training.devices.recompute` computes again in the backward pass."""
    samples: Callable[[keras.Model], list[Shown]] = lambda model: []
    """Samples of the model's output, shown after an evaluation."""
