"""The same generator in other people's formats: a KerasNLP preset and, for GPT-2, a Hugging Face folder.

Both are written in float32, LoRA merged into the weights; a prefix has no place in either. Each function fills a
folder that exists and is empty; that it appears whole or not at all is the caller's part (`storage.staged_folder`). A
tokenizer folder is what `Tokenizer.save` of the data room wrote. GPT-2's byte pairs (vocab.json, merges.txt) become the
tokenizer of the format. Neither format has a GPT-2 that reads SentencePiece, so its model is laid beside the weights as
it is, and `README.txt` says how to use it.
"""

import os
import shutil
from pathlib import Path
from typing import Any

import keras
import keras_nlp
import numpy as np
import safetensors.numpy

from aigc_tf import storage
from aigc_tf.errors import InputError
from aigc_tf.models.adapters.adapters import merged_weights
from aigc_tf.models.generators.generator import is_own, merge_generator
from aigc_tf.models.gpt2.gpt2_weights import hugging_face_names, to_keras_nlp
from aigc_tf.models.gpt2.layers import EPSILON
from aigc_tf.models.weights import load_weights_by_path

_BYTE_PAIR_FILES = ("vocab.json", "merges.txt")
_BYTE_PAIR_SETTINGS = ("tokenizer.json", "tokenizer_config.json")
_PIECES_FILE = "spiece.model"
_README = """The weights are GPT-2's, the token ids are those of spiece.model, a SentencePiece model.

    import sentencepiece
    pieces = sentencepiece.SentencePieceProcessor(model_file="spiece.model")
    token_ids = pieces.encode("text")
    text = pieces.decode(token_ids)

The id {end_id} ends a text. A prompt begins with its first token, and an empty one is {end_id} alone.
"""


def save_keras_preset(
    model: keras.Model,
    folder: str | os.PathLike[str],
    *,
    tokenizer_folder: str | os.PathLike[str],
    end_id: int,
    max_length: int,
) -> None:
    """Writes a preset that `keras_nlp.models.CausalLM.from_preset(folder)` loads.

    With GPT-2's byte pairs it brings its preprocessor; without, load it with `preprocessor=None`.

    Args:
        model: What `build_generator` returned.
        folder: An existing folder.
        tokenizer_folder: Of the tokenizer.
        end_id: The end of text.
        max_length: Positions the preprocessor packs to.
    Raises:
        InputError: If the model has a prefix.
    """
    if is_own(model):
        causal_lm = _gpt2_of(model)
        if _has_byte_pairs(tokenizer_folder):
            vocabulary, merges = (os.fspath(Path(tokenizer_folder) / name) for name in _BYTE_PAIR_FILES)
            tokenizer = keras_nlp.models.GPT2Tokenizer(vocabulary=vocabulary, merges=merges)
            preprocessor = keras_nlp.models.GPT2CausalLMPreprocessor(tokenizer, sequence_length=max_length)
            causal_lm.preprocessor = preprocessor
    else:
        causal_lm = merge_generator(model, dtype="float32").causal_lm
    causal_lm.compile()  # from_preset does so, and would warn of an optimizer that the file does not have
    causal_lm.save_to_preset(os.fspath(folder))
    _copy_pieces(tokenizer_folder, folder, end_id=end_id)


def save_hugging_face(
    model: keras.Model,
    folder: str | os.PathLike[str],
    *,
    tokenizer_folder: str | os.PathLike[str],
    end_id: int,
    max_length: int,
) -> None:
    """Writes GPT-2 as transformers' `GPT2LMHeadModel`, with its tokenizer where that is GPT-2's too.

    Args:
        model: What `build_generator` returned.
        folder: An existing folder.
        tokenizer_folder: Of the tokenizer.
        end_id: The end of text.
        max_length: Tokens of prompt and continuation together that the model was trained on.
    Raises:
        InputError: If the model is no GPT-2, or has a prefix.
    """
    if not is_own(model):
        raise InputError(f"Only GPT-2 is written as a Hugging Face folder, received {type(model.causal_lm).__name__}.")
    folder, tokenizer_folder = Path(folder), Path(tokenizer_folder)
    weights = merged_weights(model)
    names = hugging_face_names(model.sizes["num_layers"])
    tensors = {f"transformer.{name}": np.ascontiguousarray(weights[path]) for path, name in names.items()}
    # Not save_file, which makes a file that only its owner can read.
    (folder / "model.safetensors").write_bytes(safetensors.numpy.save(tensors, metadata={"format": "pt"}))
    storage.write_json(folder / "config.json", _hugging_face_config(model.sizes, end_id))
    ends = {"bos_token_id": end_id, "eos_token_id": end_id, "pad_token_id": end_id}
    storage.write_json(folder / "generation_config.json", {**ends, "max_length": max_length})
    if _has_byte_pairs(tokenizer_folder):
        for name in (*_BYTE_PAIR_FILES, *_BYTE_PAIR_SETTINGS):
            if (tokenizer_folder / name).is_file():
                shutil.copyfile(tokenizer_folder / name, folder / name)
    _copy_pieces(tokenizer_folder, folder, end_id=end_id)


def _gpt2_of(model: keras.Model) -> Any:
    """The model as KerasNLP's GPT-2, in float32."""
    sizes = dict(model.sizes)
    positions = sizes.pop("num_positions")
    backbone = keras_nlp.models.GPT2Backbone(**sizes, max_sequence_length=positions, dtype="float32")
    weights = to_keras_nlp(merged_weights(model), num_layers=sizes["num_layers"], num_heads=sizes["num_heads"])
    load_weights_by_path(backbone, weights, source="the model")
    return keras_nlp.models.GPT2CausalLM(backbone, preprocessor=None, compile=False)


def _hugging_face_config(sizes: dict[str, Any], end_id: int) -> dict[str, Any]:
    usual = sizes["intermediate_dim"] == 4 * sizes["hidden_dim"]
    return {
        "architectures": ["GPT2LMHeadModel"],
        "model_type": "gpt2",
        "vocab_size": sizes["vocabulary_size"],
        "n_positions": sizes["num_positions"],
        "n_ctx": sizes["num_positions"],
        "n_embd": sizes["hidden_dim"],
        "n_layer": sizes["num_layers"],
        "n_head": sizes["num_heads"],
        "n_inner": None if usual else sizes["intermediate_dim"],
        "activation_function": "gelu_new",
        "resid_pdrop": sizes["dropout"],
        "embd_pdrop": sizes["dropout"],
        "attn_pdrop": sizes["dropout"],
        "layer_norm_epsilon": EPSILON,
        "initializer_range": 0.02,
        "bos_token_id": end_id,
        "eos_token_id": end_id,
        "tie_word_embeddings": True,
        "torch_dtype": "float32",
    }


def _has_byte_pairs(tokenizer_folder: str | os.PathLike[str]) -> bool:
    return all((Path(tokenizer_folder) / name).is_file() for name in _BYTE_PAIR_FILES)


def _copy_pieces(tokenizer_folder: str | os.PathLike[str], folder: str | os.PathLike[str], *, end_id: int) -> None:
    pieces = Path(tokenizer_folder) / _PIECES_FILE
    if pieces.is_file():
        shutil.copyfile(pieces, Path(folder) / _PIECES_FILE)
        (Path(folder) / "README.txt").write_text(_README.format(end_id=end_id), encoding="utf-8")
