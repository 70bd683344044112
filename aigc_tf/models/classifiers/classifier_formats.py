"""The same classifier in other formats: a KerasNLP preset and, for BERT, a Hugging Face folder.

Both are written in float32 with the head's weights; an adapter is merged. Each function fills an existing, empty
folder; the caller makes it appear only when complete (`storage.staged_folder`). A tokenizer folder is what
`aigc_tf.data.tokenizers.tokenizers.Tokenizer.save` wrote for WordPiece: vocab.txt, tokenizer.json,
tokenizer_config.json.
"""

import json
import os
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import keras
import keras_nlp
import numpy as np
import safetensors.numpy

from aigc_tf import storage
from aigc_tf.errors import InputError
from aigc_tf.models.adapters.adapters import merged_weights
from aigc_tf.models.classifiers.classifier import merge_classifier
from aigc_tf.models.hugging_face.encoders import tensor_names, to_tensor
from aigc_tf.models.layer_settings import epsilon_of, settings_of

LABELS_FILE = "label_names.json"
"""Name, in a KerasNLP preset, of the file of label names, which KerasNLP does not store."""
_VOCABULARY_FILE = "vocab.txt"
_TOKENIZER_FILE = "tokenizer.json"
_TOKENIZER_CONFIG_FILE = "tokenizer_config.json"
_HUGGING_FACE_PROBLEMS = {
    "single_label": "single_label_classification",
    "multi_label": "multi_label_classification",
    "regression": "regression",
}


def build_word_piece(model: keras.Model, tokenizer_folder: str | os.PathLike[str]) -> keras.layers.Layer | None:
    """Returns KerasNLP's own tokenizer of the model's kind over the folder's vocabulary.

    None if KerasNLP's tokenizer of that kind is not WordPiece: its preprocessor cannot use such a vocabulary.
    """
    cls = type(model).preprocessor_cls.tokenizer_cls
    if not issubclass(cls, keras_nlp.tokenizers.WordPieceTokenizer):
        return None
    settings = json.loads((Path(tokenizer_folder) / _TOKENIZER_CONFIG_FILE).read_bytes())
    return cls(
        vocabulary=_read_vocabulary(tokenizer_folder),
        lowercase=settings["do_lower_case"],
        strip_accents=settings["strip_accents"],
    )


def fits_keras_preset(model: keras.Model) -> bool:
    """Whether a preset would compute the same: presets cannot hold the epsilon of layer norms."""
    return settings_of(model.backbone).layer_norm_epsilon is None


def save_keras_preset(
    model: keras.Model,
    folder: str | os.PathLike[str],
    *,
    tokenizer: keras.layers.Layer | None,
    max_length: int,
    label_names: Sequence[str] = (),
) -> None:
    """Writes a preset that `keras_nlp.models.TextClassifier.from_preset(folder)` loads, with its head.

    Its preprocessor keeps the first tokens of a text that is too long, since KerasNLP has no other truncation.
    KerasNLP's WordPiece splits about 1 text in 200 differently from the op of training and serving.

    Args:
        model: What `build_classifier` returned.
        folder: An existing folder.
        tokenizer: A KerasNLP tokenizer; None writes the preset without preprocessor.
        max_length: Positions of the preprocessor's rows.
        label_names: Names of the outputs, in order.
    Raises:
        InputError: If `fits_keras_preset` is false.
    """
    if not fits_keras_preset(model):
        raise InputError(
            f"A KerasNLP preset cannot hold the epsilon {epsilon_of(model.backbone):g} of the layer norms."
        )
    clone = merge_classifier(model, dtype="float32")
    clone.compile()  # from_preset compiles too, and would warn about an optimizer that the file lacks
    if tokenizer is not None:
        clone.preprocessor = type(clone).preprocessor_cls(tokenizer=tokenizer, sequence_length=max_length)
    clone.save_to_preset(os.fspath(folder))
    storage.write_json(Path(folder) / LABELS_FILE, list(label_names))


def save_hugging_face(
    model: keras.Model,
    folder: str | os.PathLike[str],
    *,
    tokenizer_folder: str | os.PathLike[str],
    label_names: Sequence[str],
    problem_type: str,
    max_length: int,
    truncation: str = "head",
) -> None:
    """Writes a BERT classifier as transformers' `BertForSequenceClassification`, with its tokenizer.

    Args:
        model: What `build_classifier` returned, on a BERT backbone.
        folder: An existing folder.
        tokenizer_folder: Of a WordPiece tokenizer.
        label_names: Names of the outputs, in order; empty for regression.
        problem_type: One of config.PROBLEM_TYPES.
        max_length: Positions of the longest row.
        truncation: `tail` becomes truncation_side `left`; transformers has no `head_tail`.
    Raises:
        InputError: If the model is not a BERT.
    """
    if not isinstance(model.backbone, keras_nlp.models.BertBackbone):
        raise InputError(f"Only BERT is written as a Hugging Face folder, received {type(model.backbone).__name__}.")
    folder, tokenizer_folder = Path(folder), Path(tokenizer_folder)
    # Not save_file, whose files only their owner can read.
    content = safetensors.numpy.save(_bert_tensors(model), metadata={"format": "pt"})
    (folder / "model.safetensors").write_bytes(content)
    for name in (_VOCABULARY_FILE, _TOKENIZER_FILE):
        shutil.copyfile(tokenizer_folder / name, folder / name)
    settings = json.loads((tokenizer_folder / _TOKENIZER_CONFIG_FILE).read_bytes())
    side = "left" if truncation == "tail" else "right"
    storage.write_json(
        folder / _TOKENIZER_CONFIG_FILE, {**settings, "model_max_length": max_length, "truncation_side": side}
    )
    padding_id = _read_vocabulary(tokenizer_folder).index(settings["pad_token"])
    config = _bert_config(model, label_names=label_names, problem_type=problem_type, padding_id=padding_id)
    storage.write_json(folder / "config.json", config)


def _bert_config(
    model: keras.Model, *, label_names: Sequence[str], problem_type: str, padding_id: int
) -> dict[str, Any]:
    backbone, settings = model.backbone, settings_of(model.backbone)
    dropouts = settings.hidden_dropout, settings.attention_dropout
    hidden_dropout, attention_dropout = (backbone.dropout if rate is None else rate for rate in dropouts)
    names = list(label_names) or ["value"]
    return {
        "architectures": ["BertForSequenceClassification"],
        "model_type": "bert",
        "vocab_size": backbone.vocabulary_size,
        "hidden_size": backbone.hidden_dim,
        "num_hidden_layers": backbone.num_layers,
        "num_attention_heads": backbone.num_heads,
        "intermediate_size": backbone.intermediate_dim,
        "hidden_act": "gelu_new",  # the tanh approximation, which KerasNLP's BERT computes with
        "hidden_dropout_prob": hidden_dropout,
        "attention_probs_dropout_prob": attention_dropout,
        "classifier_dropout": model.dropout,
        "max_position_embeddings": backbone.max_sequence_length,
        "type_vocab_size": backbone.num_segments,
        "layer_norm_eps": epsilon_of(backbone),
        "initializer_range": 0.02,
        "position_embedding_type": "absolute",
        "pad_token_id": padding_id,
        "problem_type": _HUGGING_FACE_PROBLEMS[problem_type],
        "id2label": {str(index): name for index, name in enumerate(names)},
        "label2id": {name: index for index, name in enumerate(names)},
        "torch_dtype": "float32",
    }


def _bert_tensors(model: keras.Model) -> dict[str, np.ndarray]:
    weights = merged_weights(model)
    head = {"logits/kernel": "classifier.weight", "logits/bias": "classifier.bias"}
    names = tensor_names("bert", [path for path in weights if path not in head])
    names = {path: f"bert.{name}" for path, name in names.items()} | head
    return {name: to_tensor(path, weights[path]) for path, name in names.items()}


def _read_vocabulary(tokenizer_folder: str | os.PathLike[str]) -> list[str]:
    text = (Path(tokenizer_folder) / _VOCABULARY_FILE).read_bytes().decode()
    return text.removesuffix("\n").split("\n")  # not splitlines(): a token may be U+2028
