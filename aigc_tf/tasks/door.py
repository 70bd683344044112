"""The functions by which a task enters the commands, and checks that all tasks share."""

import dataclasses
from collections.abc import Callable
from typing import Any

import keras
import numpy as np

from aigc_tf.config import ExperimentConfig
from aigc_tf.data.prepared.facts import DataFacts, has_facts, read_facts
from aigc_tf.data.prepared.prepared import PreparedDataset
from aigc_tf.errors import InputError
from aigc_tf.serving.local.answerer import Answerer
from aigc_tf.serving.publishing.servable import Servable
from aigc_tf.training.devices.strategy import Devices
from aigc_tf.training.task import Task


@dataclasses.dataclass(frozen=True, kw_only=True)
class TaskDoor:
    """The functions by which a task enters the commands."""

    build: Callable[[ExperimentConfig, PreparedDataset, Devices], Task]
    """Builds the `Task` for the training loop."""
    describe: Callable[[keras.Model], dict[str, Any]]
    """Returns the architecture of a model, for JSON."""
    rebuild: Callable[..., keras.Model]
    """`rebuild(description, dtype=...)`: builds the model again, with random weights."""
    servable: Callable[..., Servable]
    """`servable(model, config, facts, prepared=...)`: a trained model, ready to be published; `prepared` is None if
    the data are not available."""
    answerer: Callable[[keras.Model, ExperimentConfig, DataFacts], Answerer]
    """Trained model -> its answerer."""
    draw: Callable[[dict[str, Any], DataFacts], dict[str, np.ndarray]]
    """Metrics of an evaluation -> pictures by tag, `(H, W, 3)` uint8."""
    unit: str
    """What a batch consists of: `examples` or `windows`."""
    rate: str
    """The speed to show: `examples_per_second` or `tokens_per_second`."""
    data_warnings: Callable[[ExperimentConfig, PreparedDataset], list[str]] = lambda config, prepared: []
    """Returns warnings of intact data that training with this config will refuse; prepare prints them."""


def check_sizes(config: ExperimentConfig, prepared: PreparedDataset, devices: Devices) -> None:
    """Refuses sizes that would fail at the first step or evaluation.

    Raises:
        InputError: If a batch cannot be split over the replicas, or early stopping has no evaluations.
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
    """Refuses data whose token ids differ in meaning from those of the run that the weights start from.

    Raises:
        InputError: If `model.source` is a run with another tokenizer.
    """
    if not config.model.source or not has_facts(config.model.source):
        return
    theirs, ours = (_tokenizer_hashes(facts) for facts in (read_facts(config.model.source), prepared.facts))
    if theirs and theirs != ours:
        raise InputError(
            f"model.source {config.model.source!r} was trained with another tokenizer than {prepared.folder} was "
            "prepared with; leave tokenizer.source empty and prepare the data again to use the same."
        )


def _tokenizer_hashes(facts: DataFacts) -> set[str]:
    return {facts.encoder(column.name).sha256() for column in facts.schema.text_columns}


def refusals(*checks: Callable[[], object]) -> list[str]:
    """Runs checks that raise InputError, and returns the sentences of those that do."""
    sentences = []
    for check in checks:
        try:
            check()
        except InputError as error:
            sentences.append(str(error))
    return sentences


def policy_of(precision: str) -> str:
    """Returns the Keras dtype policy of a resolved `training.devices.precision`."""
    return "mixed_bfloat16" if precision == "bfloat16" else "float32"
