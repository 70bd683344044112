"""Sets fields of the training config by their last names, wherever in its sections they stand."""

from aigc_tf.config import TrainingConfig
from aigc_tf.config.fields import flatten, replace_fields

PATHS = {path.rpartition(".")[2]: path for path in flatten(TrainingConfig())}
PATHS |= {"optimizer": "optimizer.name", "schedule": "schedule.name", "on_bad_step": "bad_steps.policy"}


def training_with(training=None, **values):
    """Returns a training config, by default one of the defaults, with other values in some fields."""
    return replace_fields(training or TrainingConfig(), {PATHS[name]: value for name, value in values.items()})
