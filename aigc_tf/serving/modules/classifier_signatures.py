"""What an exported classifier computes: text -> token ids -> logits -> answer, in plain TensorFlow ops.

`ClassifierModule` holds the signatures of the SavedModel; `text_function` calls the same function in this process.
Shape letters: B rows, T positions, C outputs.
"""

import dataclasses
from collections.abc import Callable, Sequence

import keras
import keras_nlp
import numpy as np
import tensorflow as tf

from aigc_tf.data.batching.special_tokens import special_tokens_of
from aigc_tf.data.tokenizers.tokenizers import Tokenizer
from aigc_tf.models.classifiers.classifier import model_inputs
from aigc_tf.serving.apis import SERVING_DEFAULT, Api
from aigc_tf.serving.modules.fields import (
    HOSTILE_TEXTS,
    WARMUP_TEXTS,
    Field,
    Signature,
    build_signature,
    serialized_examples,
)
from aigc_tf.serving.modules.graph_functions import traced_once
from aigc_tf.serving.modules.graph_special_tokens import add_special_tokens_in_graph
from aigc_tf.serving.modules.quantization import ServedWeights, Stored
from aigc_tf.serving.modules.text_tensors import TextFunction, to_bytes

_GROUP_LENGTHS = (16, 32, 64, 128, 256)
"""Bounds of groups of row lengths; rows of one group are computed together."""
EXAMPLE_APIS = {"single_label": Api.CLASSIFY, "multi_label": Api.CLASSIFY, "regression": Api.REGRESS}
"""By problem type, the API whose signature of serialized tf.Examples has its name."""
TOLERANCES = {"float32": 1e-5, "bfloat16": 2e-2}
"""Tolerance of a logit, a probability or a number, by the dtype of the computation."""

Batch = dict[str, tf.Tensor]


@dataclasses.dataclass(frozen=True, kw_only=True)
class ServingSpec:
    """The meaning of a classifier's answer, and how its input is truncated."""

    label_names: tuple[str, ...]
    """Names of the outputs, in order; empty for regression."""
    problem_type: str
    """One of config.PROBLEM_TYPES."""
    is_pair: bool
    """Whether an example has two texts."""
    max_length: int
    """Positions of the longest row, special tokens included."""
    truncation: str
    """One of config.TRUNCATIONS."""
    label_separator: str = "|"
    """Separator of the names in a multi_label answer."""


def answer(logits: tf.Tensor, spec: ServingSpec) -> dict[str, tf.Tensor]:
    """Turns logits into the outputs that a client reads.

    Args:
        logits: `(B, C)` float32; `(B, 1)` for regression.
        spec: Problem type and label names.
    Returns:
        single_label: `label` (B,) string, `label_id` (B,) int32, `probabilities` and `logits` (B, C) float32.
        multi_label: `label` (B,) string, the names above 0.5 joined; `predicted` (B, C) int32, 1 for those;
        `probabilities` and `logits`. Regression: `value` (B,) float32.
    """
    if spec.problem_type == "regression":
        return {"value": logits[:, 0]}
    names = tf.constant(spec.label_names, tf.string)
    if spec.problem_type == "single_label":
        label_id = tf.argmax(logits, axis=-1, output_type=tf.int32)
        label = tf.gather(names, label_id)
        return {"label": label, "label_id": label_id, "probabilities": tf.nn.softmax(logits), "logits": logits}
    predicted = logits > 0.0  # a probability above 0.5
    where = tf.cast(tf.where(predicted), tf.int32)  # one (row, output) for each name
    label = tf.strings.unsorted_segment_join(
        tf.gather(names, where[:, 1]), where[:, 0], tf.shape(logits)[0], spec.label_separator
    )
    return {
        "label": label,
        "predicted": tf.cast(predicted, tf.int32),
        "probabilities": tf.math.sigmoid(logits),
        "logits": logits,
    }


class ClassifierModule(tf.Module):
    """A trained classifier as functions of text and of token ids; it holds its variables once, and no Keras object.

    `serving_default` takes `text` (B,) string, and for pairs `text_b`; `token_ids` takes the model's inputs among
    `token_ids`, `segment_ids` and `padding_mask`, each (B, max_length) int32; `tokenize` makes them from texts. Their
    length is fixed, since TF Serving's batching would pad rows with their first element; the graph reads rows to their
    last token. Both signatures answer as `answer` says. The signature for the server's Classify API, or Regress for a
    number, has the API's name: `inputs` (B,) string are serialized tf.Examples with the features `text` and `text_b`; a
    missing feature means an empty text. It answers `classes` (B, C) string and `scores` (B, C) float32, or `outputs`
    (B,) float32.

    Args:
        model: The result of `build_classifier`, in the dtype to compute in.
        tokenizer: The tokenizer of the prepared data.
        spec: Meaning of input and output.
        stored: The result of `quantization.store` for the model; None to save its weights unchanged.
    """

    def __init__(
        self, model: keras.Model, tokenizer: Tokenizer, spec: ServingSpec, *, stored: list[Stored] | None = None
    ):
        super().__init__(name="classifier")
        self.weights = ServedWeights(model, stored)  # tracked by the module: the functions below read them
        self.tokenizer = tokenizer
        special = special_tokens_of(tokenizer, max_length=spec.max_length, truncation=spec.truncation)

        def batch_of(texts: Batch, length: int | None) -> Batch:
            parts = [tokenizer.tokenize(texts[name]) for name in text_columns(spec)]
            batch = add_special_tokens_in_graph(parts[0], parts[1] if spec.is_pair else None, special, length=length)
            return model_inputs(model, batch)

        def logits_of(texts: Batch) -> tf.Tensor:
            return forward(batch_of(texts, length))

        length = row_length(model, spec)
        forward = _forward_function(model, self.weights, length)
        api, texts, ids = EXAMPLE_APIS[spec.problem_type], _text_fields(spec), _id_fields(model, spec)
        answers, scored = _answer_fields(model, spec), _score_fields(model, spec)
        examples = _from_examples(lambda columns: scores(logits_of(columns), spec), spec)
        found = [
            build_signature(
                SERVING_DEFAULT, lambda inputs: answer(logits_of(inputs), spec), inputs=texts, outputs=answers
            ),
            build_signature(api.value, examples, inputs=[_example_field(spec)], outputs=scored, api=api),
            build_signature("token_ids", lambda batch: answer(forward(batch), spec), inputs=ids, outputs=answers),
            build_signature("tokenize", lambda inputs: batch_of(inputs, spec.max_length), inputs=texts, outputs=ids),
        ]
        # A lambda hides the signatures from tf.Module's tracking of attributes.
        self.signatures: Callable[[], dict[str, Signature]] = lambda: {one.name: one for one in found}
        """Returns the functions of the SavedModel by name."""


def row_length(model: keras.Model, spec: ServingSpec) -> int | None:
    """Returns the length of all batches of texts; None if each batch has the length of its longest row.

    F-Net mixes padding into its answer, so only a common length makes it independent of the other rows.
    """
    return spec.max_length if isinstance(model.backbone, keras_nlp.models.FNetBackbone) else None


def _forward_function(
    model: keras.Model, weights: ServedWeights, length: int | None
) -> Callable[[dict[str, tf.Tensor]], tf.Tensor]:
    """Returns the function from a batch to `(B, C)` logits."""
    inputs = {name: tf.TensorSpec([None, length], tf.int32, name=name) for name in model.input}

    def compute(batch: dict[str, tf.Tensor], values: list[tf.Tensor]) -> tf.Tensor:
        with weights.computing_with(values):
            return model(batch, training=False)

    # One function for all signatures, so that a SavedModel holds its graph once.
    network = traced_once(compute, [inputs, weights.specs()])

    def forward(batch: dict[str, tf.Tensor]) -> tf.Tensor:
        values = weights.restored()
        if length:
            return network(batch, values)
        return _by_length(lambda some: network(some, values), batch, num_outputs=model.output.shape[-1])

    return forward


def _by_length(network: Callable[..., tf.Tensor], batch: dict[str, tf.Tensor], *, num_outputs: int) -> tf.Tensor:
    """Computes rows of similar length together, so that a short row is not padded to a long one.

    Args:
        network: Returns `(B, C)` logits.
        batch: `(B, T)` each. No row is read beyond its last token.
        num_outputs: C.
    """
    mask = batch["padding_mask"]
    lengths = tf.reduce_max(tf.where(mask != 0, tf.range(1, tf.shape(mask)[1] + 1), 1), axis=1)  # (B,)
    groups = tf.searchsorted(_GROUP_LENGTHS, lengths)

    def add(group: tf.Tensor, logits: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        rows = tf.where(groups == group)  # (b, 1)

        def compute() -> tf.Tensor:
            longest = tf.reduce_max(tf.gather_nd(lengths, rows))
            some = {name: tf.gather_nd(value, rows)[:, :longest] for name, value in batch.items()}
            return tf.tensor_scatter_nd_update(logits, rows, network(some))

        return group + 1, tf.cond(tf.size(rows) > 0, compute, lambda: logits)

    variables = (0, tf.zeros([tf.shape(mask)[0], num_outputs]))
    return tf.while_loop(lambda group, _: group <= len(_GROUP_LENGTHS), add, variables, parallel_iterations=1)[1]


def scores(logits: tf.Tensor, spec: ServingSpec) -> dict[str, tf.Tensor]:
    """Turns logits into the outputs that TF Serving's Classify and Regress APIs require."""
    answers = answer(logits, spec)
    if spec.problem_type == "regression":
        return {"outputs": answers["value"]}
    probabilities = answers["probabilities"]
    names = tf.broadcast_to(tf.constant(spec.label_names, tf.string), tf.shape(probabilities))
    return {"classes": names, "scores": probabilities}


def text_columns(spec: ServingSpec) -> tuple[str, ...]:
    """Returns the names of the texts of an example."""
    return ("text", "text_b") if spec.is_pair else ("text",)


def _text_fields(spec: ServingSpec) -> list[Field]:
    hostile = (HOSTILE_TEXTS, HOSTILE_TEXTS[::-1])
    return [
        Field(name=name, dtype="string", shape=(None,), warmup=WARMUP_TEXTS, hostile=texts)
        for name, texts in zip(text_columns(spec), hostile, strict=False)
    ]


def _example_field(spec: ServingSpec) -> Field:
    warmup, hostile = (
        serialized_examples({field.name: getattr(field, kind) for field in _text_fields(spec)})
        for kind in ("warmup", "hostile")
    )
    return Field(name="inputs", dtype="string", shape=(None,), warmup=warmup, hostile=hostile)


def _id_fields(model: keras.Model, spec: ServingSpec) -> list[Field]:
    return [Field(name=name, dtype="int32", shape=(None, spec.max_length), warmup=(1,)) for name in model.input]


def _answer_fields(model: keras.Model, spec: ServingSpec) -> list[Field]:
    """Returns the fields of `answer`."""
    tolerance, rows = _tolerance(model), (None, model.output.shape[-1])
    if spec.problem_type == "regression":
        return [Field(name="value", dtype="float32", shape=(None,), tolerance=tolerance)]
    is_single = spec.problem_type == "single_label"
    label = Field(name="label_id", dtype="int32", shape=(None,))
    return [
        Field(name="label", dtype="string", shape=(None,)),
        label if is_single else Field(name="predicted", dtype="int32", shape=rows),
        *(Field(name=name, dtype="float32", shape=rows, tolerance=tolerance) for name in ("probabilities", "logits")),
    ]


def _score_fields(model: keras.Model, spec: ServingSpec) -> list[Field]:
    """Returns the fields of `scores`."""
    tolerance, rows = _tolerance(model), (None, model.output.shape[-1])
    if spec.problem_type == "regression":
        return [Field(name="outputs", dtype="float32", shape=(None,), tolerance=tolerance)]
    return [
        Field(name="classes", dtype="string", shape=rows),
        Field(name="scores", dtype="float32", shape=rows, tolerance=tolerance),
    ]


def _tolerance(model: keras.Model) -> float:
    return TOLERANCES[model.backbone.compute_dtype]


def _from_examples(body: Callable[[Batch], Batch], spec: ServingSpec) -> Callable[[Batch], Batch]:
    features = {name: tf.io.FixedLenFeature([], tf.string, default_value="") for name in text_columns(spec)}
    return lambda inputs: body(tf.io.parse_example(inputs["inputs"], features))


def text_function(module: ClassifierModule) -> TextFunction:
    """Returns a callable from texts to the outputs of the text signature, for use in this process."""
    serve = module.signatures()[SERVING_DEFAULT].function

    def call(texts: Sequence[str | bytes], texts_b: Sequence[str | bytes] | None = None) -> dict[str, np.ndarray]:
        columns = {"text": texts} if texts_b is None else {"text": texts, "text_b": texts_b}
        outputs = serve({name: to_bytes(column) for name, column in columns.items()})
        return {name: value.numpy() for name, value in outputs.items()}

    return call
