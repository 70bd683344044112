"""The KerasNLP preset and the Hugging Face folder of a generator compute what the model computes."""

import json

import keras_nlp
import numpy as np
import pytest
import sentencepiece
import tensorflow as tf

from aigc_tf.config import ModelConfig, TokenizerConfig
from aigc_tf.data.tokenizers.byte_pair_files import END_OF_TEXT, byte_characters, write_byte_pairs
from aigc_tf.data.tokenizers.tokenizers import build_tokenizer
from aigc_tf.errors import InputError
from aigc_tf.models.generators.generator import build_generator, clone_generator, model_inputs
from aigc_tf.models.generators.generator_formats import save_hugging_face, save_keras_preset
from aigc_tf.models.weights import weights_by_path
from tests.transformers_peer import ask_transformers

CONFIG = ModelConfig(num_layers=2, hidden_dim=32, num_heads=4, intermediate_dim=48, dropout=0.2)
TEXTS = ["The quick brown fox jumps over the lazy dog.\n", "Pack my box with five dozen liquor jugs!\n"] * 8
MERGES = ["t h", "th e", "Ġ the", "q u"]
BYTE_PAIRS = [*byte_characters(), *(merge.replace(" ", "") for merge in MERGES), END_OF_TEXT]


@pytest.fixture(scope="module")
def byte_pairs(tmp_path_factory):
    """A tokenizer folder of GPT-2's kind."""
    folder = tmp_path_factory.mktemp("byte_pairs")
    write_byte_pairs(BYTE_PAIRS, MERGES, [END_OF_TEXT], folder)
    return folder


@pytest.fixture(scope="module")
def pieces(tmp_path_factory):
    """A tokenizer folder of SentencePiece."""
    folder = tmp_path_factory.mktemp("pieces")
    config = TokenizerConfig(source="train", vocabulary_size=320)
    build_tokenizer(config, "", lambda: TEXTS, kind="sentencepiece").save(folder)
    return folder


@pytest.fixture(scope="module")
def model():
    model = build_generator(CONFIG, vocabulary_size=len(BYTE_PAIRS), max_length=24, dtype="mixed_bfloat16", seed=3)
    for weight in model.weights:
        noise = np.random.default_rng(len(weight.path)).normal(0, 0.2, weight.shape)
        weight.assign(np.asarray(weight) + noise.astype(np.float32))
    return model


def token_ids():
    return np.random.default_rng(0).integers(0, len(BYTE_PAIRS), (3, 17)).astype(np.int32)


@pytest.fixture(scope="module")
def expected(model):
    logits = clone_generator(model, dtype="float32")({"token_ids": token_ids()}).numpy()
    assert np.abs(logits).max() > 1
    return logits


def arguments(tokenizer_folder):
    return {"tokenizer_folder": tokenizer_folder, "end_id": len(BYTE_PAIRS) - 1, "max_length": 16}


def test_a_keras_preset_gives_the_same_logits_and_brings_its_tokenizer(model, expected, byte_pairs, tmp_path):
    save_keras_preset(model, tmp_path, **arguments(byte_pairs))
    loaded = keras_nlp.models.GPT2CausalLM.from_preset(str(tmp_path))
    logits = loaded({"token_ids": token_ids(), "padding_mask": np.ones([3, 17], np.int32)})
    np.testing.assert_allclose(logits, expected, atol=1e-4)
    the, q = BYTE_PAIRS.index("Ġthe"), BYTE_PAIRS.index("q")
    packed = loaded.preprocessor.generate_preprocess(["q the"])
    assert np.asarray(packed["token_ids"])[0, 1:3].tolist() == [q, the]
    assert packed["token_ids"].shape == (1, 16)
    assert loaded.preprocessor.tokenizer.end_token_id == len(BYTE_PAIRS) - 1
    assert not (tmp_path / "README.txt").exists()


def test_a_keras_preset_is_a_source_with_every_bit(model, byte_pairs, pieces, tmp_path):
    for name, folder in (("bytes", byte_pairs), ("pieces", pieces)):
        (tmp_path / name).mkdir()
        save_keras_preset(model, tmp_path / name, **arguments(folder))
        source = ModelConfig(source=str(tmp_path / name), dropout=0.2)
        again = build_generator(source, vocabulary_size=len(BYTE_PAIRS), max_length=24)
        assert again.sizes == model.sizes
        for path, value in weights_by_path(model).items():
            np.testing.assert_array_equal(weights_by_path(again)[path], value, err_msg=path)


def test_a_format_without_tokenizer_of_its_own_says_how_to_use_the_pieces(model, expected, pieces, tmp_path):
    for name, save in (("keras_nlp", save_keras_preset), ("hugging_face", save_hugging_face)):
        folder = tmp_path / name
        folder.mkdir()
        save(model, folder, **arguments(pieces))
        assert f"The id {len(BYTE_PAIRS) - 1} ends a text" in (folder / "README.txt").read_text()
        splitter = sentencepiece.SentencePieceProcessor(model_file=str(folder / "spiece.model"))
        assert splitter.decode(splitter.encode("the lazy fox")) == "the lazy fox"
    loaded = keras_nlp.models.CausalLM.from_preset(str(tmp_path / "keras_nlp"), preprocessor=None)
    logits = loaded({"token_ids": token_ids(), "padding_mask": np.ones([3, 17], np.int32)})
    np.testing.assert_allclose(logits, expected, atol=1e-4)


def test_a_hugging_face_folder_is_a_source_with_every_bit(model, byte_pairs, tmp_path):
    save_hugging_face(model, tmp_path, **arguments(byte_pairs))
    source = ModelConfig(source=str(tmp_path), dropout=0.2)
    again = build_generator(source, vocabulary_size=len(BYTE_PAIRS), max_length=24)
    assert again.sizes == model.sizes
    for path, value in weights_by_path(model).items():
        np.testing.assert_array_equal(weights_by_path(again)[path], value, err_msg=path)


def test_a_hugging_face_folder_names_the_end_of_text_and_brings_its_tokenizer(model, byte_pairs, tmp_path):
    save_hugging_face(model, tmp_path, **arguments(byte_pairs))
    config = json.loads((tmp_path / "config.json").read_text())
    assert (config["eos_token_id"], config["n_inner"], config["activation_function"]) == (260, 48, "gelu_new")
    generation = json.loads((tmp_path / "generation_config.json").read_text())
    assert (generation["eos_token_id"], generation["max_length"]) == (260, 16)
    tokenizer = build_tokenizer(TokenizerConfig(source=str(tmp_path)), "", lambda: [], kind="byte_pair")
    assert tokenizer.end_of_text_id == 260
    assert tokenizer.encode(["the q"])[0].tolist() == [BYTE_PAIRS.index("the"), BYTE_PAIRS.index("Ġ"), ord("q")]


def test_keras_nlp_reads_the_hugging_face_folder(model, byte_pairs, tmp_path):
    save_hugging_face(clone_of_usual_width(model), tmp_path, **arguments(byte_pairs))
    loaded = keras_nlp.models.GPT2CausalLM.from_preset(str(tmp_path))
    logits = loaded({"token_ids": token_ids(), "padding_mask": np.ones([3, 17], np.int32)})
    ours = clone_of_usual_width(model)({"token_ids": token_ids()})
    np.testing.assert_allclose(logits, ours, atol=1e-4)


def clone_of_usual_width(model):
    """KerasNLP reads folders with feed-forward layers of four times the width only."""
    config = ModelConfig(num_layers=2, hidden_dim=32, num_heads=4, intermediate_dim=128)
    return build_generator(config, vocabulary_size=model.sizes["vocabulary_size"], max_length=24, seed=5)


def test_a_network_of_keras_nlp_is_a_preset_and_no_hugging_face_folder(byte_pairs, tmp_path):
    backbone = keras_nlp.models.OPTBackbone(
        vocabulary_size=60, num_layers=1, num_heads=2, hidden_dim=8, intermediate_dim=16, max_sequence_length=24
    )
    (tmp_path / "in").mkdir()
    (tmp_path / "out").mkdir()
    backbone.save_to_preset(str(tmp_path / "in"))
    source = ModelConfig(source=str(tmp_path / "in"))
    model = build_generator(source, vocabulary_size=60, max_length=24, dtype="mixed_bfloat16")
    save_keras_preset(model, tmp_path / "out", **arguments(byte_pairs))
    loaded = keras_nlp.models.CausalLM.from_preset(str(tmp_path / "out"), preprocessor=None)
    batch = model_inputs(model, {"token_ids": tf.constant(token_ids() % 60)})
    np.testing.assert_array_equal(loaded(batch), clone_generator(model, dtype="float32")(batch))
    with pytest.raises(InputError, match=r"Only GPT-2 .* received OPTCausalLM"):
        save_hugging_face(model, tmp_path, **arguments(byte_pairs))


def test_transformers_computes_the_same_logits_and_splits_the_same(model, expected, byte_pairs, tmp_path):
    save_hugging_face(model, tmp_path, **arguments(byte_pairs))
    logits, tokens = ask_transformers("AutoModelForCausalLM", tmp_path, {"input_ids": token_ids()}, "q the")
    np.testing.assert_allclose(logits, expected, atol=1e-4, rtol=0)
    assert tokens == ["q", "Ġthe"]
