"""Outputs of a signature -> answers, with the same keys for a live model, an export and a server. No TensorFlow.

The outputs say how they are read: as continuations, or as probabilities of classes whose names are known. Answers of
any other signature hold its outputs by name.
"""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from aigc_tf.serving.local.answerer import Answer

_CONTINUATION = ("text", "token_ids", "finish_reason", "log_probability", "prompt_cut")


def is_continuation(outputs: Mapping[str, Any] | Sequence[str]) -> bool:
    """Whether outputs of these names are continuations of prompts."""
    return set(_CONTINUATION) <= set(outputs)


def answers_of(outputs: Mapping[str, Sequence[Any]], label_names: Sequence[str] = ()) -> Iterator[Answer]:
    """Yields the rows of outputs as answers.

    Args:
        outputs: By name, one Python value per row.
        label_names: Names of a classifier's classes, in order; empty for other models.
    """
    for row in range(len(next(iter(outputs.values())))):
        values = {name: column[row] for name, column in outputs.items()}
        if is_continuation(outputs):
            values["token_ids"] = values["token_ids"][: values["num_tokens"]]
            yield {name: values[name] for name in _CONTINUATION}
        elif label_names and "probabilities" in outputs:
            yield _classes(values, label_names)
        else:
            yield values


def _classes(values: Mapping[str, Any], label_names: Sequence[str]) -> Answer:
    probabilities = dict(zip(label_names, values["probabilities"], strict=True))
    if "predicted" in values:
        chosen = [name for name, one in zip(label_names, values["predicted"], strict=True) if one]
        return {"labels": chosen, "probabilities": probabilities}
    # A server may leave out the label's number; in this process texts are bytes.
    label = label_names[values["label_id"]] if "label_id" in values else values["label"]
    return {"label": label, "probabilities": probabilities}
