"""Chance columns, such as noise: pure functions of (seed, step, example id), by SplitMix64.

A draw belongs to its example, not to a place in the batch, so a step has the same noise however its rows are cut into
micro-batches, replicas and workers. In an evaluation the step is not used, so each example has the same noise at every
evaluation.
"""

import dataclasses
import hashlib
from collections.abc import Callable, Mapping

import numpy as np

from aigc_tf.data.batching.order import random_keys

Draw = Callable[[np.ndarray], np.ndarray]
"""Keys, uint64 of any shape -> an array whose first axes are those of the keys."""

# Parts of keys that separate their uses. They must not collide with the order's hashes of (seed, epoch, ...); no run
# reaches an epoch of 2**62.
_TRAINING, _EVALUATION = 2**62, 2**62 + 1


@dataclasses.dataclass(frozen=True, kw_only=True)
class Chance:
    """The chance columns of a batch."""

    seed: int
    """In [0, 2**63)."""
    draws: Mapping[str, Draw]
    """Name of a column -> the function that draws it from its keys."""
    is_evaluation: bool = False

    def columns(self, step: int, example_ids: np.ndarray) -> dict[str, np.ndarray]:
        """Returns the columns of some rows of a step, `(..., *)` for `(...)` example ids."""
        keys = chance_keys(self.seed, None if self.is_evaluation else step, example_ids)
        return {name: draw(random_keys(keys, _name_key(name))) for name, draw in self.draws.items()}


def chance_keys(seed: int, step: int | None, example_ids: np.ndarray) -> np.ndarray:
    """Returns the uint64 keys of examples, in the shape of their ids.

    Args:
        seed: In [0, 2**63).
        step: Global step from 0. None: an evaluation, whose keys are the same at every step.
        example_ids: int64 of any shape; -1, which marks a missing example, has a key too.
    """
    ids = np.asarray(example_ids, np.int64).astype(np.uint64)
    return random_keys(seed, _EVALUATION, ids) if step is None else random_keys(seed, _TRAINING, step, ids)


def _name_key(name: str) -> int:
    """Returns the number that separates the columns of one example."""
    return int.from_bytes(hashlib.sha256(name.encode()).digest()[:8], "big")


def uniform(keys: np.ndarray, shape: tuple[int, ...] = ()) -> np.ndarray:
    """Returns `(..., *shape)` float32 in [0, 1)."""
    # float32 holds 24 bits exactly, so no value rounds up to 1.
    return ((_bits(keys, shape) >> np.uint64(40)) / 2**24).astype(np.float32)


def normal(keys: np.ndarray, shape: tuple[int, ...] = ()) -> np.ndarray:
    """Returns `(..., *shape)` float32 from the standard normal distribution, by Box and Muller."""
    radius = (_bits(keys, shape) >> np.uint64(11)) + np.uint64(1)  # 1 to 2**53: the logarithm of 0 is not finite
    angle = _bits(random_keys(keys, 1), shape) >> np.uint64(11)
    return (np.sqrt(-2 * np.log(radius / 2**53)) * np.cos(2 * np.pi * (angle / 2**53))).astype(np.float32)


def integers(keys: np.ndarray, shape: tuple[int, ...] = (), *, high: int) -> np.ndarray:
    """Returns `(..., *shape)` int32 in [0, high), `high` at most 2**31."""
    # The upper 32 bits, scaled: the product of two 32-bit numbers fits 64 bits, and no value is more than 2**-32 too
    # likely.
    return (((_bits(keys, shape) >> np.uint64(32)) * np.uint64(high)) >> np.uint64(32)).astype(np.int32)


def _bits(keys: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    """Returns `(..., *shape)` uint64: 64 random bits for each place of each key."""
    places = np.arange(int(np.prod(shape, dtype=np.int64))).reshape(shape)
    return random_keys(np.asarray(keys, np.uint64).reshape(*np.shape(keys), *(1 for _ in shape)), places)
