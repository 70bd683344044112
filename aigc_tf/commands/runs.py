"""A run folder: its files besides checkpoints and metrics, and how later commands read them.

config.json         the resolved config, with every `auto` settled; written last, it marks a run folder
architecture.json   the model's architecture, so that nothing later needs the model's source
facts.json          what the model must know of its data (`DataFacts`)
encoders/<column>/  the encoder of each column of the prepared data
started.json        the time of the run's first start
"""

import os
import time

import keras

from aigc_tf import storage
from aigc_tf.config import OPERATIONAL_FIELDS, ExperimentConfig
from aigc_tf.config.fields import flatten, from_json, replace_fields, to_json
from aigc_tf.data.prepared.facts import DataFacts, write_facts
from aigc_tf.data.prepared.prepared import PreparedDataset, open_prepared
from aigc_tf.errors import InputError
from aigc_tf.models.building import ARCHITECTURE_FILE
from aigc_tf.models.weights import load_weights_by_path
from aigc_tf.tasks import spec_of
from aigc_tf.tasks.door import TaskDoor
from aigc_tf.training import checkpoints
from aigc_tf.training.devices import strategy
from aigc_tf.training.devices.strategy import Devices

CONFIG = "config.json"
_STARTED = "started.json"
_BUCKETS_COMPILED, _BUCKETS_PLAIN = 8, 32  # under XLA each padded length costs a compilation


def door_of(config: ExperimentConfig) -> TaskDoor:
    """Returns the functions of the config's task."""
    door: TaskDoor = spec_of(config).load()
    return door


def describe_run(workdir: str, config: ExperimentConfig, facts: DataFacts, model: keras.Model) -> None:
    """Writes what later commands need besides the weights; config.json, which marks a run folder, comes last."""
    # The order matters: a kill in between leaves a folder that is not yet a run, and the next start writes all again.
    storage.write_json(storage.join(workdir, ARCHITECTURE_FILE), door_of(config).describe(model))
    write_facts(workdir, facts)
    storage.write_bytes(storage.join(workdir, CONFIG), to_json(config).encode())


def first_start(workdir: str, *, goes_on: bool) -> float | None:
    """Returns the time of a run's first start, in seconds since 1970, and keeps it in the run folder.

    Args:
        workdir: The run folder.
        goes_on: Whether there is a checkpoint; without one, this start counts as the first.
    Returns:
        The time; None if an older version began the run and did not keep it.
    """
    path = storage.join(workdir, _STARTED)
    if not goes_on:
        started = time.time()
        storage.write_json(path, {"seconds_since_1970": started})
        return started
    try:
        return float(storage.read_json(path)["seconds_since_1970"]) if storage.exists(path) else None
    except (InputError, KeyError, TypeError, ValueError):
        return None  # damaged, but only the goodput needs it


def stored_config(workdir: str) -> ExperimentConfig | None:
    """Reads config.json of a run folder; None if there is none.

    Raises:
        InputError: If it is broken.
    """
    path = storage.join(workdir, CONFIG)
    if not storage.exists(path):
        return None
    try:
        return from_json(storage.read_bytes(path).decode())
    except (InputError, UnicodeDecodeError) as error:
        raise InputError(f"{path}: {error}") from error


def config_of_run(workdir: str, config: ExperimentConfig | None) -> ExperimentConfig:
    """Returns the config a run was trained with; a given config may change only operational fields.

    Raises:
        InputError: If there is no run, or the given config is another experiment's.
    """
    stored = stored_config(workdir)
    if stored is None:
        raise InputError(
            f"{workdir} is not a run: it has no {CONFIG}. Train one: python scripts/train.py --workdir=..."
        )
    if config is None:
        return stored
    then, now = stored.training.devices, config.training.devices
    settled = {
        "training.devices.jit": then.jit,
        "training.devices.strategy": then.strategy,
        "training.devices.precision": then.precision if now.precision == "auto" else now.precision,
        "training.num_steps": max(config.training.num_steps, stored.training.num_steps),
        "data.num_buckets": config.data.num_buckets or stored.data.num_buckets,
    }
    config = replace_fields(config, settled)
    _check_same_run(config, stored)
    return config


def resolve(config: ExperimentConfig, stored: ExperimentConfig | None, devices: Devices) -> ExperimentConfig:
    """Returns the config with every `auto` settled.

    Precision and number of buckets stay as at the run's first start. Operational values, such as the strategy and
    whether XLA compiles, are chosen for this machine.

    Raises:
        InputError: If the run began with another config (the message names the fields), or if the precision that `auto`
            chose then does not fit this machine.
    """
    precision, num_buckets = config.training.devices.precision, config.data.num_buckets
    if stored:
        if precision == "auto":
            precision = stored.training.devices.precision
            _check_precision(precision)
        num_buckets = num_buckets or stored.data.num_buckets
    jit = strategy.resolve_jit(config.training.devices.jit)
    compiled = jit == "on" or devices.static_shapes
    settled = {
        "training.devices.jit": jit,
        "training.devices.precision": strategy.resolve_precision(precision),
        "training.devices.strategy": devices.name,
        "data.num_buckets": num_buckets or (_BUCKETS_COMPILED if compiled else _BUCKETS_PLAIN),
    }
    resolved = replace_fields(config, settled)
    if stored:
        _check_same_run(resolved, stored)
    return resolved


def _check_precision(chosen: str) -> None:
    """Refuses to resume in a precision that `auto` chose on another machine and would not choose here.

    Raises:
        InputError: If it is bfloat16 and this machine does not multiply it.
    """
    if chosen == "bfloat16" and strategy.resolve_precision("auto") != "bfloat16":
        raise InputError(
            "This run computes in bfloat16, which training.devices.precision 'auto' chose where the run began, but "
            "this hardware has no bfloat16; resume it where it began, or give "
            "--config.training.devices.precision=bfloat16 to compute in it here too, more slowly and with different "
            "rounding."
        )


def _check_same_run(config: ExperimentConfig, stored: ExperimentConfig) -> None:
    before, now = flatten(stored), flatten(config)
    changed = [name for name in now if now[name] != before[name] and name not in OPERATIONAL_FIELDS]
    # Not refused: more steps extend a run. Fewer could end before the step that it has already reached.
    if now["training.num_steps"] > before["training.num_steps"]:
        changed.remove("training.num_steps")
    if changed:
        differences = "; ".join(f"{name} was {before[name]!r} and is {now[name]!r}" for name in changed)
        raise InputError(
            f"This run began with another config: {differences}. "
            "Take another --workdir for another experiment, or the old value to resume this one."
        )


def load_model(workdir: str, config: ExperimentConfig, *, checkpoint: str, dtype: str) -> tuple[keras.Model, int]:
    """Builds a run's model with its weights; returns it and the step of the weights.

    Args:
        workdir: The run folder.
        config: Its config, from `config_of_run`.
        checkpoint: `best` or `last`, with the weights that `evaluation.weights` selects; `best_raw` or `last_raw`.
        dtype: A Keras dtype policy, whatever the training dtype.
    Raises:
        InputError: If the run has no checkpoint.
    """
    loaded = checkpoints.load_named(workdir, checkpoint.removesuffix("_raw"))
    weights = loaded.weights_of("raw" if checkpoint.endswith("_raw") else config.evaluation.weights)
    description = storage.read_json(storage.join(workdir, ARCHITECTURE_FILE))
    model = door_of(config).rebuild(description, dtype=dtype)
    load_weights_by_path(model, weights, source=f"the checkpoint of {workdir}")
    return model, loaded.step


def open_prepared_of(config: ExperimentConfig) -> PreparedDataset:
    """Opens the prepared data of an experiment."""
    return open_prepared(os.path.join(config.data.prepared_dir, config.name))
