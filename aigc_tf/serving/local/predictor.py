"""Predictions for texts, in batches, from an export or any callable with the same outputs."""

import itertools
import os
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import numpy as np

from aigc_tf import storage
from aigc_tf.errors import InputError
from aigc_tf.serving.apis import SERVING_DEFAULT
from aigc_tf.serving.local.answerer import Answer, Answerer, Question, Settings
from aigc_tf.serving.local.loading import load_exported
from aigc_tf.serving.local.reading_outputs import answers_of
from aigc_tf.serving.modules.text_tensors import TextFunction, to_bytes
from aigc_tf.serving.versions import MANIFEST_FILE, latest_version, read_manifest

_WINDOW_BATCHES = 64


class Predictor:
    """A loaded exported model; calling it answers one batch of texts.

    Args:
        path: `saved_models/NAME` or `saved_models/NAME/VERSION`, local or `gs://`.
    Raises:
        InputError: If there is no model exported by this program.
    """

    def __init__(self, path: str | os.PathLike[str]):
        self.path = latest_version(path)
        manifest = read_manifest(self.path, question="text")
        try:
            self.problem_type = manifest["problem_type"]
            self.label_names = tuple(manifest["label_names"])
            self.is_pair = manifest["is_pair"]
        except (KeyError, TypeError) as error:
            raise InputError(
                f"{storage.join(self.path, MANIFEST_FILE)} lacks {error}; export the model again."
            ) from error
        self._model = load_exported(self.path)
        self._serve = self._model.signatures[SERVING_DEFAULT]

    def __call__(
        self, texts: Sequence[str | bytes], texts_b: Sequence[str | bytes] | None = None
    ) -> dict[str, np.ndarray]:
        """Returns the outputs of the text signature, each with one row per text."""
        columns = {"text": texts} if texts_b is None else {"text": texts, "text_b": texts_b}
        outputs = self._serve(**{name: to_bytes(column) for name, column in columns.items()})
        return {name: value.numpy() for name, value in outputs.items()}

    def predict(
        self, texts: Iterable[str], texts_b: Iterable[str] | None = None, *, batch_size: int = 64
    ) -> Iterator[dict[str, Any]]:
        """Yields one answer for each text, as `predict_texts` does.

        Raises:
            InputError: If second texts are missing, or given to a model of single texts.
        """
        if self.is_pair != (texts_b is not None):
            wanted = "pairs of texts: give text_b too" if self.is_pair else "single texts: leave text_b out"
            raise InputError(f"The model {self.path} takes {wanted}.")
        return predict_texts(
            self,
            texts,
            texts_b,
            label_names=self.label_names,
            batch_size=batch_size,
        )


def predicting_answerer(
    call: TextFunction,
    *,
    columns: Sequence[str],
    label_names: Sequence[str],
    batch_size: int = 64,
) -> Answerer:
    """Returns an answerer for texts, or with two columns for pairs, that answers as `predict_texts` does."""
    is_pair = len(columns) > 1

    def answer(questions: Iterable[Question], settings: Settings) -> Iterator[Answer]:
        del settings  # it takes none
        first, second = itertools.tee(questions)
        return predict_texts(
            call,
            (question["text"] for question in first),
            (question["text_b"] for question in second) if is_pair else None,
            label_names=label_names,
            batch_size=batch_size,
        )

    inputs = ("text", "text_b") if is_pair else ("text",)
    return Answerer(inputs=inputs, columns=tuple(columns), answer=answer)


def predict_texts(
    call: TextFunction,
    texts: Iterable[str],
    texts_b: Iterable[str] | None = None,
    *,
    label_names: Sequence[str],
    batch_size: int = 64,
) -> Iterator[dict[str, Any]]:
    """Yields one answer for each text, in the order of the texts, which may be endless.

    Within every 64 batches, texts of similar length share a batch, since padding costs time.

    Args:
        call: Returns the outputs of the text signature for one batch.
        texts: The texts.
        texts_b: The second texts of pairs, as many as texts.
        label_names: Names of the outputs, in order.
        batch_size: Texts per call.
    Returns:
        single_label: `{"label": name, "probabilities": {name: p}}`; multi_label: `{"labels": [names above 0.5],
        "probabilities": {name: p}}`; regression: `{"value": number}`.
    Raises:
        InputError: If a text is not a string, or there are more texts of one kind than of the other.
    """
    rows = _checked_rows(texts, texts_b)
    while window := list(itertools.islice(rows, batch_size * _WINDOW_BATCHES)):
        # By characters, which follow tokens closely: counting tokens would mean tokenizing twice.
        by_length = sorted(range(len(window)), key=lambda index: sum(map(len, window[index])))
        answers: list[dict[str, Any]] = [{}] * len(window)
        for start in range(0, len(window), batch_size):
            chosen = by_length[start : start + batch_size]
            columns = [list(column) for column in zip(*(window[index] for index in chosen), strict=True)]
            outputs = call(columns[0], columns[1] if len(columns) > 1 else None)
            answered = answers_of({name: values.tolist() for name, values in outputs.items()}, label_names)
            for index, row in zip(chosen, answered, strict=True):
                answers[index] = row
        yield from answers


def _checked_rows(texts: Iterable[str], texts_b: Iterable[str] | None) -> Iterator[tuple[str, ...]]:
    columns = [texts] if texts_b is None else [texts, texts_b]
    for number, row in enumerate(itertools.zip_longest(*columns)):
        for text in row:
            if not isinstance(text, str):
                came = "missing in one of the two columns" if text is None else f"a {type(text).__name__}, not a string"
                raise InputError(f"Text {number} (counted from 0) is {came}.")
        yield row
