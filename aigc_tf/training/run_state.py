"""A run in memory: built at step 0, saved into checkpoints, restored from them."""

import dataclasses

import keras
import numpy as np

from aigc_tf.config import TrainingConfig
from aigc_tf.errors import InputError
from aigc_tf.models import freezing
from aigc_tf.training import checkpoints
from aigc_tf.training.devices.strategy import Devices
from aigc_tf.training.optimizers import optimizers
from aigc_tf.training.step.averages import build_averages
from aigc_tf.training.task import Task


@dataclasses.dataclass(kw_only=True)
class Progress:
    """The state of a run besides weights and slots; kept in every checkpoint."""

    train_seconds: float = 0.0
    """Wall seconds inside training calls, including input waits, over all restarts."""
    train_tokens: float = 0.0
    """Tokens trained on, padding not counted, over all restarts."""
    best_value: float | None = None
    best_step: int = 0
    evaluations_since_best: int = 0
    stopped_early: bool = False
    evaluated_step: int = 0
    """The last step after which there was an evaluation."""
    loss_history: tuple[float, float, float] = (0.0, 0.0, 0.0)
    """`step.LossHistory`, by which a spike is recognised."""


@dataclasses.dataclass(kw_only=True)
class TrainState:
    """A run in memory."""

    model: keras.Model
    optimizer: keras.optimizers.Optimizer
    step: int
    progress: Progress
    data_sha256: str
    averages: list[keras.Variable] = dataclasses.field(default_factory=list)
    """Averages of the trainable variables, in their order; empty if the run keeps none."""

    def checkpoint(self, *, frozen_file: str = "") -> checkpoints.Checkpoint:
        """Returns the current state from which a run can resume.

        Args:
            frozen_file: The file of the frozen weights, if written already; if empty, they are included.
        """
        trained = self.model.trainable_variables
        return checkpoints.Checkpoint(
            step=self.step,
            weights=checkpoints.to_host(trained),
            slots=checkpoints.to_host(self.optimizer.variables),
            progress=dataclasses.asdict(self.progress) | {"data_sha256": self.data_sha256},
            averages={
                variable.path: checkpoints.host_array(average)
                for variable, average in zip(trained, self.averages, strict=bool(self.averages))
            },
            frozen={} if frozen_file else self._frozen(),
            frozen_file=frozen_file,
        )

    def _frozen(self) -> dict[str, np.ndarray]:
        trained = {id(variable) for variable in self.model.trainable_variables}
        return checkpoints.to_host(variable for variable in self.model.variables if id(variable) not in trained)


def build_state(task: Task, config: TrainingConfig, devices: Devices) -> TrainState:
    """Builds model and optimizer under the strategy, at step 0."""
    with devices.strategy.scope():
        model = task.build_model()
        freezing.freeze(model, config.optimizer.freeze)
        optimizer = optimizers.build_optimizer(config, model.trainable_variables)
        averages = build_averages(model.trainable_variables) if config.optimizer.ema_decay else []
    return TrainState(
        model=model,
        optimizer=optimizer,
        step=0,
        progress=Progress(),
        data_sha256=task.data_sha256,
        averages=averages,
    )


def restore(state: TrainState, checkpoint: checkpoints.Checkpoint) -> None:
    """Restores a state from a checkpoint.

    Raises:
        InputError: If it belongs to another model or other data.
    """
    if checkpoint.progress.get("data_sha256") != state.data_sha256:
        raise InputError(
            "The prepared data set has changed since this run began, so it cannot go on; "
            "use another --workdir, or prepare the data as they were."
        )
    checkpoints.assign(state.model.variables, checkpoint.weights, what="weights")
    checkpoints.assign(state.optimizer.variables, checkpoint.slots, what="optimizer slots")
    for variable, average in zip(state.model.trainable_variables, state.averages, strict=bool(state.averages)):
        if variable.path not in checkpoint.averages:
            raise InputError(
                f"The checkpoint has no average of {variable.path!r}: the run kept none then; "
                "use another --workdir, or training.optimizer.ema_decay 0."
            )
        average.assign(checkpoint.averages[variable.path])
    state.step, state.progress = checkpoint.step, progress_of(checkpoint)


def early_stop(progress: Progress, step: int, best_metric: tuple[str, int]) -> str:
    """Returns the sentence on a run that ended before its last step.

    Args:
        progress: Of the run.
        step: Where it ended.
        best_metric: The task's.
    """
    name, sign = best_metric
    best = progress.best_value
    if best is None:  # its weights are gone, and the run went on without them
        return f"stopped early after step {step}: {name} was no better than before"
    return f"stopped early after step {step}: {name} {sign * best:.4f} was best at step {progress.best_step}"


def progress_of(checkpoint: checkpoints.Checkpoint) -> Progress:
    """Returns the progress that a checkpoint keeps."""
    fields = {name: value for name, value in checkpoint.progress.items() if name != "data_sha256"}
    return Progress(**fields | {"loss_history": tuple(fields["loss_history"])})


def forget_lost_best(workdir: str, state: TrainState) -> None:
    """If the weights of the best evaluation are gone, makes the next one the best; called on every worker."""
    if state.progress.best_step and not checkpoints.is_there(workdir, state.progress.best_step):
        state.progress.best_value, state.progress.best_step = None, 0


def repair_folder(workdir: str, state: TrainState, checkpoint: checkpoints.Checkpoint, task: Task) -> None:
    """Makes the run folder consistent with the checkpoint that `state` was restored from; called on the chief."""
    name, sign = task.best_metric
    progress = state.progress
    best = checkpoints.Best(name, sign * progress.best_value) if progress.best_value is not None else None
    checkpoints.repair(workdir, checkpoint, best_step=progress.best_step, best=best)
