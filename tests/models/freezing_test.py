"""Freezing by name, on KerasNLP's layers and on our own."""

import keras
import numpy as np
import pytest
import tensorflow as tf

from aigc_tf.config import ModelConfig, TrainingConfig
from aigc_tf.errors import InputError
from aigc_tf.models.freezing import freeze
from aigc_tf.models.generators.generator import build_generator
from aigc_tf.training.optimizers.optimizers import build_optimizer
from tests import tiny_classifier

SIZES = ModelConfig(num_layers=2, hidden_dim=32, num_heads=2, intermediate_dim=64)


@pytest.fixture(params=["classifier", "generator"])
def model(request):
    if request.param == "classifier":
        return tiny_classifier.build_model()
    return build_generator(SIZES, vocabulary_size=60, max_length=16)


def trained(model):
    return {variable.path for variable in model.trainable_variables}


def test_what_fits_a_pattern_does_not_train_and_gets_no_slots(model):
    everything = trained(model)
    assert everything == {weight.path for weight in model.weights}
    freeze(model, ["*embedding*", "*norm*"])
    kept = {path for path in everything if "embedding" in path or "norm" in path}
    assert len(kept) > 5
    assert trained(model) == everything - kept
    optimizer = build_optimizer(TrainingConfig(), model.trainable_variables)
    slots = [variable for variable in optimizer.variables if "momentum" in variable.path]
    assert len(slots) == len(everything - kept)


def test_the_gradient_of_what_trains_is_as_it_was():
    model = tiny_classifier.build_model()
    batch = tiny_classifier.make_batch()

    @tf.function
    def gradients():
        with tf.GradientTape() as tape:
            loss = tf.reduce_sum(model({name: batch[name] for name in model.input}) ** 2)
        return tape.gradient(loss, {variable.path: variable.value for variable in model.trainable_variables})

    before = gradients()
    freeze(model, ["transformer_layer_0/*"])
    after = tf.function(gradients.python_function)()
    assert len(after) == len(before) - 16
    for path, value in after.items():
        np.testing.assert_array_equal(tf.convert_to_tensor(value), tf.convert_to_tensor(before[path]), err_msg=path)


def test_only_whole_paths_fit(model):
    with pytest.raises(InputError, match="matches no weight of the model"):
        freeze(model, ["embedding"])


@pytest.mark.parametrize(
    ("pattern", "near"),
    [
        ("transformer_layer_7/*", "transformer_layer_0/"),
        ("tokn_embedding/*", "token_embedding/embeddings"),
        ("zzz", "paths look like token_embedding/embeddings"),
        ("logits/kernell", "logits/kernel"),
    ],
)
def test_a_pattern_that_fits_nothing_is_told_with_paths_close_to_it(pattern, near):
    model = tiny_classifier.build_model()
    with pytest.raises(InputError) as caught:
        freeze(model, ["logits/*", pattern])
    assert f"training.optimizer.freeze {pattern!r} matches no weight of the model" in str(caught.value)
    assert near in str(caught.value)
    assert trained(model) == {weight.path for weight in model.weights}


def test_a_freeze_that_leaves_nothing_is_refused(model):
    with pytest.raises(InputError, match="leaves no weight to train"):
        freeze(model, ["*"])
    assert trained(model) == {weight.path for weight in model.weights}
    for weight in model.weights[1:]:
        weight.trainable = False
    with pytest.raises(InputError, match="leaves no weight to train"):
        freeze(model, [model.weights[0].path])


def test_layers_of_keras_that_are_frozen_as_layers_stay_so():
    model = keras.Sequential(
        [keras.layers.Input([2]), keras.layers.Dense(2, name="a"), keras.layers.Dense(2, name="b")]
    )
    model.layers[0].trainable = False
    freeze(model, ["*/b/bias"])
    assert [path.rpartition("/")[2] for path in sorted(trained(model))] == ["kernel"]
    freeze(model, [])
    assert len(trained(model)) == 1
