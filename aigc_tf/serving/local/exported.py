"""An export as an answerer in this process: its manifest says what it takes and returns."""

import itertools
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import tensorflow as tf

from aigc_tf import storage
from aigc_tf.config import GenerationConfig
from aigc_tf.errors import InputError
from aigc_tf.serving.apis import SERVING_DEFAULT
from aigc_tf.serving.local.answerer import Answer, Answerer, Question, Settings, typed_value
from aigc_tf.serving.local.continuing import continuing_answerer
from aigc_tf.serving.local.exported_generator import ExportedGenerator
from aigc_tf.serving.local.loading import load_exported
from aigc_tf.serving.local.predictor import Predictor, predicting_answerer
from aigc_tf.serving.local.reading_outputs import answers_of, is_continuation
from aigc_tf.serving.versions import MANIFEST_FILE

_BATCH_SIZE = 64


def exported_answerer(folder: str, manifest: Mapping[str, Any], settings: Settings) -> Answerer:
    """Loads an exported model and returns its answerer.

    Args:
        folder: Folder of the version, as `versions.latest_version` returns it.
        manifest: Its manifest.
        settings: Settings of the questions; they are checked before the model is loaded.
    Raises:
        InputError: If a setting does not fit, or the manifest lacks something.
        RunError: If it cannot be loaded.
    """
    signatures = manifest.get("signatures", {})
    if SERVING_DEFAULT not in signatures:
        path = storage.join(folder, MANIFEST_FILE)
        raise InputError(f"{path} lacks the signature {SERVING_DEFAULT!r}; export the model again.")
    taken = {name for signature in signatures.values() for name in signature["inputs"]}
    for name, value in settings.items():
        if name not in taken and value != getattr(GenerationConfig(), name):
            raise InputError(
                f"--{name} is {value!r}, but the exported model {folder} has no such setting; use the run instead."
            )
    inputs, outputs = signatures[SERVING_DEFAULT]["inputs"], signatures[SERVING_DEFAULT]["outputs"]
    if is_continuation(outputs):
        generator = ExportedGenerator(folder)
        return continuing_answerer(generator, generator.defaults)
    # Not by the names of its outputs: another task may have a value or probabilities of something else than texts.
    if "problem_type" in manifest:
        predictor = Predictor(folder)
        return predicting_answerer(
            predictor,
            columns=("text", "text_b") if predictor.is_pair else ("text",),
            label_names=predictor.label_names,
        )
    return _plain_answerer(folder, {name: dtype for name, (dtype, _) in inputs.items()})


def _plain_answerer(folder: str, dtypes: Mapping[str, str]) -> Answerer:
    """Returns an answerer whose answers are the plain outputs."""
    model = load_exported(folder)
    serve = model.signatures[SERVING_DEFAULT]

    def answer(questions: Iterable[Question], settings: Settings) -> Iterator[Answer]:
        del settings  # it takes none
        rows = iter(questions)
        while batch := list(itertools.islice(rows, _BATCH_SIZE)):
            yield from answers_of(_call(serve, batch, dtypes))

    return Answerer(inputs=tuple(dtypes), columns=tuple(dtypes), answer=answer)


def _call(serve: Any, batch: Sequence[Question], dtypes: Mapping[str, str]) -> dict[str, list[Any]]:
    columns = {
        name: tf.constant([typed_value(question[name], dtype, name) for question in batch], dtype)
        for name, dtype in dtypes.items()
    }
    outputs = {name: value.numpy().tolist() for name, value in serve(**columns).items()}
    return {name: [_text(value) for value in column] for name, column in outputs.items()}


def _text(value: Any) -> Any:
    if isinstance(value, list):
        return [_text(one) for one in value]
    return value.decode("utf-8", "replace") if isinstance(value, bytes) else value
