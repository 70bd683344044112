"""What every task has: the functions by which it enters the commands, and what a run keeps of its data."""

import dataclasses
import os
from collections.abc import Callable
from typing import Any

import keras
import numpy as np

from aigc_tf.config import ExperimentConfig
from aigc_tf.data.prepared.prepared import PreparedDataset
from aigc_tf.data.tokenizers.tokenizers import load_tokenizer
from aigc_tf.errors import InputError
from aigc_tf.serving.local.answerer import Answerer
from aigc_tf.serving.publishing.servable import Servable
from aigc_tf.training.devices.strategy import Devices
from aigc_tf.training.task import Task


@dataclasses.dataclass(frozen=True, kw_only=True)
class DataFacts:
    """What a trained model has to know of the data it was trained on. A run folder keeps it, so it needs no data."""

    label_names: tuple[str, ...]
    """Sorted; empty for regression and for generators."""
    problem_type: str
    """One of config.PROBLEM_TYPES; `none` for generators."""
    is_pair: bool
    """Whether an example has two texts."""
    sha256: str
    """Hash of the prepared data set."""
    tokenizer_folder: str
    """Where `load_tokenizer` finds the tokenizer."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class TaskDoor:
    """The functions by which a task enters the commands."""

    build: Callable[[ExperimentConfig, PreparedDataset, Devices], Task]
    """What the training loop needs."""
    describe: Callable[[keras.Model], dict[str, Any]]
    """The architecture of a model, ready for JSON."""
    rebuild: Callable[..., keras.Model]
    """`rebuild(description, dtype=...)`: the architecture again, with random weights."""
    servable: Callable[..., Servable]
    """`servable(model, config, facts, prepared=...)`: a trained model, ready to be published; `prepared` is None where
    the data are not at hand."""
    answerer: Callable[[keras.Model, ExperimentConfig, DataFacts], Answerer]
    """Trained model -> what answers questions with it."""
    draw: Callable[[dict[str, Any], DataFacts], dict[str, np.ndarray]]
    """Metrics of an evaluation -> pictures by tag, `(H, W, 3)` uint8."""
    unit: str
    """What a batch counts: `examples` or `windows`."""
    rate: str
    """Which speed people look at: `examples_per_second` or `tokens_per_second`."""
    data_warnings: Callable[[ExperimentConfig, PreparedDataset], list[str]] = lambda config, prepared: []
    """What training with this config will refuse of data that are in order by themselves; prepare prints it."""


def facts_of(prepared: PreparedDataset) -> DataFacts:
    """Reads the facts off a prepared data set."""
    return DataFacts(
        label_names=tuple(prepared.label_names),
        problem_type=prepared.problem_type,
        is_pair=prepared.is_pair,
        sha256=prepared.sha256,
        tokenizer_folder=str(prepared.tokenizer_folder),
    )


def check_sizes(config: ExperimentConfig, prepared: PreparedDataset, devices: Devices) -> None:
    """Refuses at once what would fail at the first step or evaluation.

    Raises:
        InputError: If a batch cannot be split over the replicas, or early stopping has nothing to look at.
    """
    sizes = {
        "training.global_batch_size": config.training.global_batch_size,
        "evaluation.batch_size": config.evaluation.batch_size,
    }
    for name, size in sizes.items():
        if size % devices.num_replicas:
            raise InputError(
                f"{name} is {size}, which cannot be split evenly over {devices.num_replicas} replicas; "
                f"take a multiple of {devices.num_replicas}."
            )
    per_replica = config.training.global_batch_size // devices.num_replicas
    if per_replica % config.training.devices.micro_batches:
        raise InputError(
            f"training.devices.micro_batches is {config.training.devices.micro_batches}, into which the "
            f"{per_replica} rows of each of "
            f"the {devices.num_replicas} replica(s) cannot be split evenly; take a divisor of {per_replica}."
        )
    if config.training.early_stopping_patience and "validation" not in prepared.splits:
        raise InputError(
            "training.early_stopping_patience counts evaluations on the validation split, but the data have none; "
            "set it to 0 or prepare the data with a validation split."
        )


def check_tokenizer(config: ExperimentConfig, prepared: PreparedDataset) -> None:
    """Refuses data whose token ids mean something else to the run that the weights start from.

    Raises:
        InputError: If `model.source` is a run with another tokenizer.
    """
    folder = os.path.join(config.model.source, "tokenizer")
    if not config.model.source or not os.path.isdir(folder):
        return
    if load_tokenizer(folder).sha256() != load_tokenizer(prepared.tokenizer_folder).sha256():
        raise InputError(
            f"model.source {config.model.source!r} was trained with another tokenizer than {prepared.folder} was "
            "prepared with; leave tokenizer.source empty, prepare the data anew, and they have the same."
        )


def policy_of(precision: str) -> str:
    """Returns the Keras dtype policy of a resolved `training.devices.precision`."""
    return "mixed_bfloat16" if precision == "bfloat16" else "float32"
