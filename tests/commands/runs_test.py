"""What becomes of `auto` when a run goes on."""

import dataclasses

import pytest

from aigc_tf.commands import runs
from aigc_tf.config import ExperimentConfig
from aigc_tf.errors import InputError
from aigc_tf.training.devices import strategy
from tests.training_fields import training_with


def config(**training):
    experiment = ExperimentConfig(name="s1", task="classify")
    return dataclasses.replace(experiment, training=training_with(experiment.training, **training))


def on_hardware(monkeypatch, precision):
    def resolve_precision(asked):
        return precision if asked == "auto" else asked

    monkeypatch.setattr(strategy, "resolve_precision", resolve_precision)


def test_auto_stays_what_it_became_at_the_first_start(monkeypatch):
    devices = strategy.build_devices("none")
    on_hardware(monkeypatch, "float32")
    stored = runs.resolve(config(), None, devices)
    assert stored.training.devices.precision == "float32"
    on_hardware(monkeypatch, "bfloat16")
    assert runs.resolve(config(), stored, devices).training.devices.precision == "float32"


def test_a_precision_that_the_hardware_cannot_honour_is_refused_unless_asked_for(monkeypatch):
    devices = strategy.build_devices("none")
    on_hardware(monkeypatch, "bfloat16")
    stored = runs.resolve(config(), None, devices)
    on_hardware(monkeypatch, "float32")
    with pytest.raises(InputError, match="began, but this hardware has no bfloat16"):
        runs.resolve(config(), stored, devices)
    assert runs.resolve(config(precision="bfloat16"), stored, devices).training.devices.precision == "bfloat16"
    with pytest.raises(InputError, match=r"training\.devices\.precision was 'bfloat16' and is 'float32'"):
        runs.resolve(config(precision="float32"), stored, devices)
