"""Makes the prepared data set of an experiment, and warns of data that training with the same config will refuse."""

from rich.console import Console

from aigc_tf.commands.runs import door_of
from aigc_tf.config import ExperimentConfig
from aigc_tf.data.prepared.prepared import PreparedDataset
from aigc_tf.data.preparing import preparation
from aigc_tf.data.preparing.terminal import print_line
from aigc_tf.tasks import TASKS


def prepare(config: ExperimentConfig, *, overwrite: bool = False, console: Console | None = None) -> PreparedDataset:
    """Prepares the data, as `data.preparing.preparation.prepare` does, and prints the task's warnings.

    Raises:
        InputError: If sources, labels or tokenizer do not fit, or another data set has the same folder.
        RunError: If the disk is full, or another process prepares the same data set.
    """
    console = console or Console()
    prepared = preparation.prepare(config, TASKS[config.task].schema(config), overwrite=overwrite, console=console)
    for warning in door_of(config).data_warnings(config, prepared):
        print_line(console, f"Warning: {warning}")
    return prepared
