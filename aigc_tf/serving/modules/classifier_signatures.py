"""What an exported classifier computes: text -> token ids -> logits -> answer, in plain TensorFlow ops.

`ClassifierModule` holds the functions that become the signatures of the SavedModel; `text_function` calls the very
same ones in this process. `add_special_tokens_in_graph` follows the rule of
`data.batching.special_tokens` (`kept_lengths`, `truncate`).
Shape letters: B rows, T positions, C outputs.
"""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import keras
import keras_nlp
import numpy as np
import tensorflow as tf

from aigc_tf.data.batching.special_tokens import SpecialTokens, special_tokens_of
from aigc_tf.data.tokenizers.tokenizers import Tokenizer
from aigc_tf.models.classifiers.classifier import model_inputs
from aigc_tf.serving.modules.graph_functions import traced_once
from aigc_tf.serving.modules.quantization import ServedWeights, Stored
from aigc_tf.serving.modules.text_tensors import TextFunction, to_bytes

_GROUP_LENGTHS = (16, 32, 64, 128, 256)
"""Rows of a batch whose lengths lie between the same two of these are computed together."""
EXAMPLE_SIGNATURES = {"single_label": "classify", "multi_label": "classify", "regression": "regress"}
"""Name of the signature of serialized tf.Examples, by problem type: that of the API of TF Serving it is for."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class ServingSpec:
    """What the answer of a classifier means, and how its input is cut."""

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
    """Between the names of one multi_label answer."""


def add_special_tokens_in_graph(
    first: tf.RaggedTensor, second: tf.RaggedTensor | None, special: SpecialTokens, *, length: int | None = None
) -> dict[str, tf.Tensor]:
    """Adds special tokens, truncates and pads.

    Args:
        first: `(B, None)` int32 token ids of the texts.
        second: The same of the second texts of pairs; None for single texts.
        special: Special tokens, longest row and truncation.
        length: Positions of the result. None: those of the batch's longest row.
    Returns:
        `token_ids`, `segment_ids` and `padding_mask`, each `(B, T)` int32.
    """
    is_pair = second is not None
    room, num_special = special.room(is_pair), special.num_special(is_pair)
    first = first.with_row_splits_dtype(tf.int64)
    kept = tf.minimum(first.row_lengths(), room)
    kept_b = tf.zeros_like(kept)
    if second is not None:
        second = second.with_row_splits_dtype(tf.int64)
        kept = tf.minimum(first.row_lengths(), tf.maximum(room - second.row_lengths(), room - room // 2))
        kept_b = tf.minimum(second.row_lengths(), room - kept)
    num_rows = first.nrows()
    parts = [_repeat(special.start_ids, num_rows), _keep(first, kept, special.truncation)]
    if second is not None:
        parts += [_repeat(special.between_ids, num_rows), _keep(second, kept_b, special.truncation)]
    rows = tf.concat([*parts, _repeat(special.end_ids, num_rows)], axis=1)  # (B, None)
    lengths = num_special + kept + kept_b
    # A batch of no rows has no longest one, and the model reads position 0.
    longest = tf.constant(length, tf.int64) if length else tf.reduce_max(tf.concat([[max(num_special, 1)], lengths], 0))
    token_ids = rows.to_tensor(special.padding_id, shape=tf.stack([tf.constant(-1, tf.int64), longest]))
    mask = tf.sequence_mask(lengths, longest, tf.int32)  # (B, T)
    if is_pair:
        first_part = len(special.start_ids) + kept + len(special.between_ids)
        segments = mask - tf.sequence_mask(first_part, longest, tf.int32)
    else:
        segments = tf.zeros_like(mask)
    batch = {"token_ids": token_ids, "segment_ids": segments, "padding_mask": mask}
    return {key: tf.ensure_shape(value, [None, length]) for key, value in batch.items()}


def _repeat(ids: tuple[int, ...], num_rows: tf.Tensor) -> tf.RaggedTensor:
    values = tf.tile(tf.constant(ids, tf.int32, shape=[len(ids)]), [num_rows])
    return tf.RaggedTensor.from_uniform_row_length(values, len(ids), nrows=num_rows)


def _keep(part: tf.RaggedTensor, kept: tf.Tensor, truncation: str) -> tf.RaggedTensor:
    """Keeps `kept` (B,) tokens of each row: the first, the last, or ceil(k/2) first and floor(k/2) last."""
    head = {"head": kept, "tail": tf.zeros_like(kept), "head_tail": kept - kept // 2}[truncation]
    first_of_tail = part.row_lengths() - (kept - head)
    rows = part.value_rowids()
    positions = tf.range(tf.size(rows, tf.int64)) - tf.gather(part.row_starts(), rows)
    wanted = (positions < tf.gather(head, rows)) | (positions >= tf.gather(first_of_tail, rows))
    return tf.RaggedTensor.from_row_lengths(tf.boolean_mask(part.values, wanted), kept, validate=False)


def answer(logits: tf.Tensor, spec: ServingSpec) -> dict[str, tf.Tensor]:
    """Turns logits into what a client reads.

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
    """A trained classifier as functions of text and of token ids; holds its variables once and no Keras object.

    `serving_default` takes `text` (B,) string, and `text_b` of pairs; `token_ids` takes what the model does of
    `token_ids`, `segment_ids` and `padding_mask`, each (B, max_length) int32, which is what `tokenize` makes of texts.
    Their lengths are fixed since TF Serving's batching would pad rows with their first element; in the graph rows are
    read to their last token. Both answer as `answer` says. `classify`, or `regress` for a number, is for the server's
    API of that name: `inputs` (B,) string are serialized tf.Examples with the features `text` and `text_b`, of which
    one that is missing is an empty text; it answers `classes` (B, C) string and `scores` (B, C) float32, or `outputs`
    (B,) float32.

    Args:
        model: What `build_classifier` returned, in the dtype to compute in.
        tokenizer: The tokenizer of the prepared data.
        spec: Meaning of input and output.
        stored: What `quantization.store` returned of the model; None to save its weights as they are.
    """

    def __init__(
        self, model: keras.Model, tokenizer: Tokenizer, spec: ServingSpec, *, stored: list[Stored] | None = None
    ):
        super().__init__(name="classifier")
        self.weights = ServedWeights(model, stored)  # tracked: what the functions below read
        self.tokenizer = tokenizer
        special = special_tokens_of(tokenizer, max_length=spec.max_length, truncation=spec.truncation)

        def batch_of(columns: Sequence[tf.Tensor], length: int | None) -> dict[str, tf.Tensor]:
            parts = [tokenizer.tokenize(column) for column in columns]
            batch = add_special_tokens_in_graph(parts[0], parts[1] if spec.is_pair else None, special, length=length)
            return model_inputs(model, batch)

        length = row_length(model, spec)
        forward = _forward_function(model, self.weights, length)
        self.serve_text = _of_texts(lambda *columns: answer(forward(batch_of(columns, length)), spec), spec)
        self.serve_examples = _of_examples(lambda *columns: scores(forward(batch_of(columns, length)), spec), spec)
        self.serve_token_ids = _of_ids(lambda batch: answer(forward(batch), spec), model, spec)
        self.tokenize = _of_texts(lambda *columns: batch_of(columns, spec.max_length), spec)
        self._examples_name = EXAMPLE_SIGNATURES[spec.problem_type]

    def signatures(self) -> dict[str, Any]:
        """Returns the functions of the SavedModel under their names."""
        return {
            "serving_default": self.serve_text,
            self._examples_name: self.serve_examples,
            "token_ids": self.serve_token_ids,
            "tokenize": self.tokenize,
        }


def row_length(model: keras.Model, spec: ServingSpec) -> int | None:
    """Returns the length all batches of texts have, or None where each has that of its longest row.

    F-Net mixes padding into its answer: only one length for all makes it independent of the other rows.
    """
    return spec.max_length if isinstance(model.backbone, keras_nlp.models.FNetBackbone) else None


def _forward_function(
    model: keras.Model, weights: ServedWeights, length: int | None
) -> Callable[[dict[str, tf.Tensor]], tf.Tensor]:
    """Returns what makes `(B, C)` logits of a batch."""
    inputs = {name: tf.TensorSpec([None, length], tf.int32, name=name) for name in model.input}

    def compute(batch: dict[str, tf.Tensor], values: list[tf.Tensor]) -> tf.Tensor:
        with weights.computing_with(values):
            return model(batch, training=False)

    # One function, of which a SavedModel holds one copy whatever calls it.
    network = traced_once(compute, [inputs, weights.specs()])

    def forward(batch: dict[str, tf.Tensor]) -> tf.Tensor:
        values = weights.restored()
        if length:
            return network(batch, values)
        return _by_length(lambda some: network(some, values), batch, num_outputs=model.output.shape[-1])

    return forward


def _by_length(network: Callable[..., tf.Tensor], batch: dict[str, tf.Tensor], *, num_outputs: int) -> tf.Tensor:
    """Computes rows of like length together, so that a short one does not pay for a long neighbour.

    Args:
        network: Gives `(B, C)` logits.
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
    """Turns logits into what the Classify and Regress APIs of TF Serving have to be answered."""
    answers = answer(logits, spec)
    if spec.problem_type == "regression":
        return {"outputs": answers["value"]}
    probabilities = answers["probabilities"]
    names = tf.broadcast_to(tf.constant(spec.label_names, tf.string), tf.shape(probabilities))
    return {"classes": names, "scores": probabilities}


def _columns(spec: ServingSpec) -> list[str]:
    return ["text", "text_b"] if spec.is_pair else ["text"]


# The server does not look at shapes, and tensorflow-text's op brings it down by a text that is no vector.
def _of_texts(body: Callable[..., dict[str, tf.Tensor]], spec: ServingSpec) -> Any:
    """Makes `body` a graph function of `text`, or of `text` and `text_b`: these become keys of a request's JSON."""

    def checked(*columns: tf.Tensor) -> dict[str, tf.Tensor]:
        return body(*[tf.ensure_shape(column, [None]) for column in columns])

    inputs = [tf.TensorSpec([None], tf.string, name=name) for name in _columns(spec)]
    if spec.is_pair:
        return tf.function(lambda text, text_b: checked(text, text_b), input_signature=inputs)
    return tf.function(lambda text: checked(text), input_signature=inputs)


def _of_examples(body: Callable[..., dict[str, tf.Tensor]], spec: ServingSpec) -> Any:
    features = {name: tf.io.FixedLenFeature([], tf.string, default_value="") for name in _columns(spec)}

    @tf.function(input_signature=[tf.TensorSpec([None], tf.string, name="inputs")])
    def serve_examples(inputs: tf.Tensor) -> dict[str, tf.Tensor]:
        columns = tf.io.parse_example(tf.ensure_shape(inputs, [None]), features)
        return body(*[columns[name] for name in features])

    return serve_examples


def _of_ids(body: Callable[..., dict[str, tf.Tensor]], model: keras.Model, spec: ServingSpec) -> Any:
    inputs = {name: tf.TensorSpec([None, spec.max_length], tf.int32, name=name) for name in model.input}

    @tf.function(input_signature=[inputs])
    def serve_token_ids(batch: dict[str, tf.Tensor]) -> dict[str, tf.Tensor]:
        return body({name: tf.ensure_shape(ids, inputs[name].shape) for name, ids in batch.items()})

    return serve_token_ids


def text_function(module: ClassifierModule) -> TextFunction:
    """Returns a callable from texts to the outputs of the text signature, for use in this process."""

    def call(texts: Sequence[str | bytes], texts_b: Sequence[str | bytes] | None = None) -> dict[str, np.ndarray]:
        columns = [texts] if texts_b is None else [texts, texts_b]
        outputs = module.serve_text(*[to_bytes(column) for column in columns])
        return {name: value.numpy() for name, value in outputs.items()}

    return call
