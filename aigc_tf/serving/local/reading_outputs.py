"""Outputs of a signature -> answers: the same keys from a live model, an export and a server. Without TensorFlow.

What a signature gives says how it is read: continuations, or probabilities of classes whose names are known; an answer
of any other signature has its outputs by name.
"""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from aigc_tf.serving.local.answerer import Answer

_CONTINUATION = ("text", "token_ids", "finish_reason", "log_probability", "prompt_cut")


def is_continuation(outputs: Mapping[str, Any] | Sequence[str]) -> bool:
    """Whether outputs of these names are text that goes on from a prompt."""
    return set(_CONTINUATION) <= set(outputs)


def answers_of(outputs: Mapping[str, Sequence[Any]], label_names: Sequence[str] = ()) -> Iterator[Answer]:
    """Yields the rows of outputs as answers.

    Args:
        outputs: By name, one Python value a row.
        label_names: Of the outputs of a classifier, in order; empty where the model is none.
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
    # A server need not send the label's number; in this process texts are bytes.
    label = label_names[values["label_id"]] if "label_id" in values else values["label"]
    return {"label": label, "probabilities": probabilities}
