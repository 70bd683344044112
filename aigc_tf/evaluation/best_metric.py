"""The metrics that can choose the best checkpoint. Standard library only.

No heavy imports, so that the command line can check the name at once, and so can a sweep, which must leave the devices
to its trials. A new metric is computed in the module of its kind of answer; it is listed here if it can choose the best
checkpoint.
"""

from collections.abc import Mapping

from aigc_tf.errors import InputError, suggest

CLASSIFICATION: Mapping[str, Mapping[str, int]] = {
    "single_label": {"accuracy": 1, "macro_f1": 1, "weighted_f1": 1, "matthews": 1, "loss": -1},
    "multi_label": {"micro_f1": 1, "macro_f1": 1, "subset_accuracy": 1, "loss": -1},
    "regression": {"mse": -1, "mae": -1, "pearson": 1, "spearman": 1, "loss": -1},
}
"""By problem type: metric -> 1 if more is better, -1 if less is. The first one is `auto`."""
LANGUAGE_MODEL: Mapping[str, int] = {"loss": -1, "perplexity": -1, "bits_per_byte": -1, "accuracy": 1}
"""The same for a language model."""


def best_metric(directions: Mapping[str, int], name: str = "auto") -> tuple[str, int]:
    """Returns the metric that chooses the best checkpoint, and 1 or -1: `sign * value` is what to maximise.

    Args:
        directions: Metric -> 1 if more is better, -1 if less is; the first is the default.
        name: A metric, or `auto`. A leading minus (`-mse`) is allowed if less is better.
    Raises:
        InputError: If there is no such metric.
    """
    key = next(iter(directions)) if name == "auto" else name
    if key.startswith("-") and directions.get(key[1:]) == -1:
        key = key[1:]
    if key not in directions:
        hint = suggest(name, ["auto", *directions])
        raise InputError(f"evaluation.best_metric is {name!r}, which is not a metric of this task.{hint}")
    return key, directions[key]
