"""The KerasNLP preset and the Hugging Face folder compute what the model computes."""

import json

import keras_nlp
import numpy as np
import pytest
import tokenizers

from aigc_tf.config import ModelConfig
from aigc_tf.errors import InputError
from aigc_tf.models.classifiers.classifier import build_classifier, clone_classifier
from aigc_tf.models.classifiers.classifier_formats import (
    build_word_piece,
    fits_keras_preset,
    save_hugging_face,
    save_keras_preset,
)
from aigc_tf.models.weights import load_weights_by_path, weights_by_path
from tests.tiny_classifier import VOCABULARY, build_model, logits_of, make_batch, write_tokenizer
from tests.transformers_peer import ask_transformers

NAMES = ("bad", "good", "göod")


@pytest.fixture(scope="module")
def tokenizer_folder(tmp_path_factory):
    return write_tokenizer(tmp_path_factory.mktemp("tokenizer"))


@pytest.fixture
def write_hugging_face(tokenizer_folder):
    def write(model, folder, **changes):
        arguments = {"label_names": NAMES, "problem_type": "single_label", "max_length": 16}
        save_hugging_face(model, folder, tokenizer_folder=tokenizer_folder, **{**arguments, **changes})

    return write


@pytest.fixture(scope="module")
def model():
    return build_model(dtype="mixed_bfloat16", seed=3)


@pytest.fixture(scope="module")
def expected(model):
    return logits_of(clone_classifier(model, dtype="float32"), make_batch())


def test_a_keras_preset_gives_the_same_logits_and_brings_its_preprocessor(model, expected, tmp_path, tokenizer_folder):
    word_piece = build_word_piece(model, tokenizer_folder)
    save_keras_preset(model, tmp_path, tokenizer=word_piece, max_length=16, label_names=NAMES)
    loaded = keras_nlp.models.TextClassifier.from_preset(str(tmp_path))
    np.testing.assert_array_equal(logits_of(loaded, make_batch()), expected)
    packed = loaded.preprocessor(["Ab é", "c"])
    a, b_inside, e, c = (VOCABULARY.index(token) for token in ("a", "##b", "e", "c"))
    assert np.asarray(packed["token_ids"])[:, :6].tolist() == [[2, a, b_inside, e, 3, 0], [2, c, 3, 0, 0, 0]]
    assert packed["token_ids"].shape == (2, 16)
    assert loaded.predict(["ab", "c"], verbose=0).shape == (2, 3)
    assert json.loads((tmp_path / "label_names.json").read_text(encoding="utf-8")) == list(NAMES)


def test_a_keras_preset_without_tokenizer_is_a_backbone_to_start_from(model, tmp_path):
    save_keras_preset(model, tmp_path, tokenizer=None, max_length=16)
    sizes = {"num_outputs": 2, "vocabulary_size": len(VOCABULARY), "max_length": 16}
    again = build_classifier(ModelConfig(source=str(tmp_path)), **sizes)
    for path, value in weights_by_path(model.backbone).items():
        np.testing.assert_array_equal(value, weights_by_path(again.backbone)[path])


def test_a_preset_of_another_backbone_gives_the_same_logits(tmp_path, tokenizer_folder):
    backbone = keras_nlp.models.DistilBertBackbone(
        vocabulary_size=len(VOCABULARY),
        num_layers=1,
        num_heads=2,
        hidden_dim=8,
        intermediate_dim=16,
        max_sequence_length=16,
    )
    (tmp_path / "in").mkdir()
    (tmp_path / "out").mkdir()
    backbone.save_to_preset(str(tmp_path / "in"))
    model = build_model(config=ModelConfig(source=str(tmp_path / "in")))
    word_piece = build_word_piece(model, tokenizer_folder)
    save_keras_preset(model, tmp_path / "out", tokenizer=word_piece, max_length=16)
    loaded = keras_nlp.models.TextClassifier.from_preset(str(tmp_path / "out"))
    assert isinstance(loaded, keras_nlp.models.DistilBertTextClassifier)
    np.testing.assert_array_equal(logits_of(loaded, make_batch()), logits_of(model, make_batch()))


def test_a_backbone_of_another_vocabulary_has_no_word_piece(tmp_path, write_hugging_face, tokenizer_folder):
    backbone = keras_nlp.models.RobertaBackbone(
        vocabulary_size=60, num_layers=1, num_heads=2, hidden_dim=8, intermediate_dim=16, max_sequence_length=16
    )
    backbone.save_to_preset(str(tmp_path))
    model = build_model(config=ModelConfig(source=str(tmp_path)))
    assert build_word_piece(model, tokenizer_folder) is None
    with pytest.raises(InputError, match=r"Only BERT .* received RobertaBackbone"):
        write_hugging_face(model, tmp_path)


def test_a_hugging_face_folder_keeps_every_weight(model, tmp_path, write_hugging_face):
    write_hugging_face(model, tmp_path)
    backbone = keras_nlp.models.Backbone.from_preset(str(tmp_path))
    for path, value in weights_by_path(model.backbone).items():
        np.testing.assert_array_equal(value, weights_by_path(backbone)[path], err_msg=path)
    assert keras_nlp.models.Tokenizer.from_preset(str(tmp_path)).lowercase


def test_a_hugging_face_folder_names_labels_and_problem(model, tmp_path, write_hugging_face):
    for problem_type, theirs in (
        ("single_label", "single_label_classification"),
        ("multi_label", "multi_label_classification"),
    ):
        write_hugging_face(model, tmp_path, problem_type=problem_type)
        config = json.loads((tmp_path / "config.json").read_text(encoding="utf-8"))
        assert config["problem_type"] == theirs
        assert config["id2label"] == {"0": "bad", "1": "good", "2": "göod"}
        assert config["label2id"] == {"bad": 0, "good": 1, "göod": 2}
        assert config["hidden_act"] == "gelu_new"
    write_hugging_face(build_model(num_outputs=1), tmp_path, problem_type="regression", label_names=())
    config = json.loads((tmp_path / "config.json").read_text(encoding="utf-8"))
    assert (config["problem_type"], config["id2label"]) == ("regression", {"0": "value"})


def test_the_tokenizer_json_packs_as_bert_does(model, tmp_path, write_hugging_face):
    write_hugging_face(model, tmp_path, truncation="tail")
    encoded = tokenizers.Tokenizer.from_file(str(tmp_path / "tokenizer.json")).encode("Ab é", "c?")
    assert encoded.tokens == ["[CLS]", "a", "##b", "e", "[SEP]", "c", "[UNK]", "[SEP]"]
    assert encoded.type_ids == [0, 0, 0, 0, 0, 1, 1, 1]
    settings = json.loads((tmp_path / "tokenizer_config.json").read_text())
    assert (settings["truncation_side"], settings["model_max_length"]) == ("left", 16)


def test_an_epsilon_and_two_dropouts_are_written_and_read_back(model, tmp_path, write_hugging_face):
    write_hugging_face(model, tmp_path)
    config = json.loads((tmp_path / "config.json").read_text(encoding="utf-8"))
    assert (config["layer_norm_eps"], config["hidden_dropout_prob"]) == (1e-12, 0.1)
    changes = {"layer_norm_eps": 1e-3, "attention_probs_dropout_prob": 0.05, "type_vocab_size": 2}
    (tmp_path / "config.json").write_text(json.dumps({**config, **changes}))
    other = build_model(config=ModelConfig(source=str(tmp_path)))
    (tmp_path / "again").mkdir()
    write_hugging_face(other, tmp_path / "again")
    written = json.loads((tmp_path / "again" / "config.json").read_text(encoding="utf-8"))
    assert {name: written[name] for name in changes} == changes
    again = build_classifier(
        ModelConfig(source=str(tmp_path / "again")), num_outputs=3, vocabulary_size=len(VOCABULARY), max_length=16
    )
    load_weights_by_path(again, weights_by_path(other))
    np.testing.assert_array_equal(logits_of(again, make_batch()), logits_of(other, make_batch()))
    assert not fits_keras_preset(other)
    with pytest.raises(InputError, match=r"cannot hold the epsilon 0\.001"):
        save_keras_preset(other, tmp_path, tokenizer=None, max_length=16)


def test_transformers_computes_the_same_logits(model, expected, tmp_path, write_hugging_face):
    write_hugging_face(model, tmp_path)
    names = {"input_ids": "token_ids", "token_type_ids": "segment_ids", "attention_mask": "padding_mask"}
    batch = {name: make_batch()[ours] for name, ours in names.items()}
    logits, tokens = ask_transformers("AutoModelForSequenceClassification", tmp_path, batch, "ab é")
    np.testing.assert_allclose(logits, expected, atol=1e-4, rtol=0)
    assert tokens == ["[CLS]", "a", "##b", "e", "[SEP]"]
