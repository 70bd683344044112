"""Losses of a batch and their named parts."""

import numpy as np
import pytest
import tensorflow as tf

from aigc_tf.training.step.batch_losses import MAX_PARTS, Losses, PartSums

VALUES, WEIGHTS = np.float32([1.0, 2.0]), np.float32([1.0, 3.0])


def losses_with(parts):
    return Losses(*map(tf.constant, (VALUES, WEIGHTS)), {name: tf.constant(part) for name, part in parts.items()})


def test_parts_are_summed_with_the_weights_of_the_losses_in_their_order():
    sums = PartSums()
    found = sums(losses_with({"b": [2.0, 1.0], "a": [1, 1]})).numpy()
    assert sums.names == ("b", "a")
    assert found.tolist() == [5.0, 4.0] + [0.0] * (MAX_PARTS - 2)


@pytest.mark.parametrize(
    ("parts", "words"),
    [
        ({"loss": VALUES}, "'loss', a name that every step records"),
        ({"kl": 1.0}, r"'kl' of the loss has the shape \(\)"),
        ({"kl": np.ones([2, 3])}, r"the losses have \(2,\)"),
        ({f"p{i}": VALUES for i in range(MAX_PARTS + 1)}, "at most 16 parts, received 17"),
    ],
)
def test_parts_that_do_not_fit_are_refused(parts, words):
    with pytest.raises(ValueError, match=words):
        PartSums()(losses_with(parts))
