"""Models on packed rows: several examples in a row, each computed as if it were alone.

Our own GPT-2 takes `positions` and `document_ids` as inputs. KerasNLP's BertBackbone does not, but its layers do;
`packed_logits` calls them in the backbone's order, so variables, paths, dropout and precision are the classifier's own.
Shape letters: B rows, T positions, M segments of a row, D width, C outputs.
"""

from collections.abc import Mapping

import keras
import keras_nlp
import tensorflow as tf

from aigc_tf.errors import InputError
from aigc_tf.models.gpt2.networks import Decoder


def check_packed(model: keras.Model) -> None:
    """Refuses a model that cannot be trained on packed rows.

    Raises:
        InputError: If it is of another network than BERT and our GPT-2.
    """
    if isinstance(model, Decoder) or type(getattr(model, "backbone", None)) is keras_nlp.models.BertBackbone:
        return
    network = getattr(model, "causal_lm", model).backbone
    raise InputError(
        f"data.packing works with BERT and GPT-2, whose attention can be kept within one example; the model is a "
        f"{type(network).__name__}. Set data.packing to False, or take another model.source."
    )


def packed_logits(model: keras.Model, batch: Mapping[str, tf.Tensor], *, training: bool) -> tf.Tensor:
    """Returns the logits of a BERT classifier for each example of packed rows.

    Args:
        model: A `keras_nlp.models.BertTextClassifier`.
        batch: `token_ids`, `segment_ids`, `positions` and `document_ids`, `(B, T)` int32, and `starts`, `(B, M)` int32:
            the position of each example's first token; any position for a missing example.
        training: Whether to drop out.
    Returns:
        `(B * M, C)` float32 logits, those of the first row first.
    """
    backbone, documents = model.backbone, batch["document_ids"]
    tokens = backbone.token_embedding(batch["token_ids"])
    positions = backbone.position_embedding(tokens, positions=batch["positions"])
    x = backbone.embeddings_add((tokens, positions, backbone.segment_embedding(batch["segment_ids"])))
    x = backbone.embeddings_dropout(backbone.embeddings_layer_norm(x), training=training)
    # Padding is a document too, so that no softmax is over nothing. int32, like every mask here (see batches.py).
    visible = tf.cast(documents[:, None] == documents[:, :, None], tf.int32)  # (B, T, T)
    for layer in backbone.transformer_layers:
        x = layer(x, attention_mask=visible, training=training)
    first = tf.gather(x, batch["starts"], axis=1, batch_dims=1)  # (B, M, D): [CLS] of each example
    pooled = backbone.pooled_dense(tf.reshape(first, [-1, backbone.hidden_dim]))
    return model.output_dense(model.output_dropout(pooled, training=training))
