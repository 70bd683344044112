"""The reference answers of a trained classifier: NumPy builds the rows as training does.

The export computes token ids by ops. So its ids are compared with those of the training's code, and its answers with
the model's answers to the training's ids.
"""

from collections.abc import Mapping, Sequence

import keras
import numpy as np
import tensorflow as tf

from aigc_tf.data.batching.special_tokens import add_special_tokens, special_tokens_of
from aigc_tf.data.tokenizers.tokenizers import Tokenizer
from aigc_tf.models.classifiers.classifier import model_inputs
from aigc_tf.serving.apis import Api
from aigc_tf.serving.modules.classifier_signatures import ServingSpec, answer, row_length, scores, text_columns
from aigc_tf.serving.modules.fields import HOSTILE_TEXTS, Signature
from aigc_tf.serving.modules.text_tensors import to_bytes

Texts = Sequence[tuple[str | bytes, ...]]
"""`(text,)` or `(text, text_b)` of each row."""


class ClassifierReference:
    """The reference answers for an export, for `servable.Servable.reference`.

    Args:
        model: The classifier, in the dtype of the export, on the CPU.
        tokenizer: The tokenizer, called eagerly here.
        spec: Meaning of input and output.
    """

    def __init__(self, model: keras.Model, tokenizer: Tokenizer, spec: ServingSpec):
        self._model, self._tokenizer, self._spec = model, tokenizer, spec
        self._length = row_length(model, spec)
        shapes = {name: tf.TensorSpec([None, self._length], tf.int32) for name in model.input}
        # A graph with the shapes of the signatures, since fusing of ops decides where bfloat16 is rounded.
        self._logits = tf.function(lambda batch: model(batch, training=False), input_signature=[shapes])

    def __call__(
        self, signature: Signature, inputs: Mapping[str, np.ndarray], found: Mapping[str, np.ndarray]
    ) -> dict[str, np.ndarray]:
        """Returns the answer that the export must give; labels follow from the `found` logits.

        Two scores may differ by less than the tolerance; then either label is right.
        """
        batch = self._batch(signature, inputs)
        if signature.outputs.keys() == batch.keys():  # the signature `tokenize`, which only makes ids
            return batch
        logits = self._logits({name: tf.constant(ids) for name, ids in self._cut(batch).items()})
        if signature.api is not Api.PREDICT:
            return _arrays(scores(logits, self._spec))
        expected = _arrays(answer(logits, self._spec))
        if "logits" in found:
            own = _arrays(answer(tf.constant(found["logits"]), self._spec))
            expected |= {name: value for name, value in own.items() if not signature.outputs[name].tolerance}
        return expected

    def _batch(self, signature: Signature, inputs: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Returns the rows of ids of a request, padded to full length."""
        if inputs.keys() == self._model.input.keys():
            return dict(inputs)
        names = text_columns(self._spec)
        if signature.api is not Api.PREDICT:
            texts = [_texts_of(example, names) for example in inputs["inputs"]]
        else:
            texts = list(zip(*(inputs[name] for name in names), strict=True))
        full = token_rows(texts, self._tokenizer, self._spec, length=self._spec.max_length)
        return model_inputs(self._model, full)

    def _cut(self, batch: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Cuts rows to the longest, as the graph does; a batch without rows keeps the one position it reads."""
        if self._length:
            return dict(batch)
        longest = int(np.max(np.sum(batch["padding_mask"], axis=1), initial=1))
        return {name: ids[:, :longest] for name, ids in batch.items()}


def _texts_of(example: bytes, names: Sequence[str]) -> tuple[bytes, ...]:
    features = tf.train.Example.FromString(example).features.feature
    return tuple(b"".join(features[name].bytes_list.value) for name in names)


def _arrays(outputs: Mapping[str, tf.Tensor]) -> dict[str, np.ndarray]:
    return {name: value.numpy() for name, value in outputs.items()}


def all_texts(samples: Texts, spec: ServingSpec) -> Texts:
    """Returns samples of the data and hostile texts, on which every signature is tried."""
    columns = (HOSTILE_TEXTS, HOSTILE_TEXTS[::-1])[: 1 + spec.is_pair]
    return [*samples, *zip(*columns, strict=True)]


def logits_difference(first: keras.Model, second: keras.Model, batch: Mapping[str, np.ndarray]) -> float:
    """Returns the largest difference of a logit between two models on one batch."""
    logits = [np.asarray(model(model_inputs(model, batch), training=False)) for model in (first, second)]
    return float(np.max(np.abs(logits[0] - logits[1])))


def token_rows(
    texts: Texts, tokenizer: Tokenizer, spec: ServingSpec, *, length: int | None = None
) -> dict[str, np.ndarray]:
    """Returns the batch that training would make from the texts, padded to `length` or the longest row."""
    columns = list(zip(*texts, strict=True)) or [()] * (1 + spec.is_pair)
    parts = [[row.numpy() for row in tokenizer.tokenize(to_bytes(column))] for column in columns]
    if len(parts) == 1:
        parts.append([np.zeros(0, np.int32)] * len(parts[0]))
    special = special_tokens_of(tokenizer, max_length=spec.max_length, truncation=spec.truncation)
    rows = list(zip(*parts, strict=True))
    longest = max((len(a) + len(b) for a, b in rows), default=0) + special.num_special(spec.is_pair)
    return add_special_tokens(rows, special, length=length or min(longest, spec.max_length), is_pair=spec.is_pair)
