"""Building classifiers: determinism, dtypes, every kind of source, and what is said of a broken one."""

import json
import random

import keras
import keras_nlp
import numpy as np
import pytest
import safetensors.numpy
import tensorflow as tf

from aigc_tf.config import ModelConfig
from aigc_tf.errors import InputError, RunError
from aigc_tf.models.classifiers.classifier import (
    ARCHITECTURE_FILE,
    build_classifier,
    clone_classifier,
    describe_classifier,
    model_inputs,
    rebuild_classifier,
)
from aigc_tf.models.classifiers.classifier_formats import save_hugging_face
from aigc_tf.models.weights import load_weights_by_path, read_safetensors, weights_by_path
from tests.tiny_classifier import VOCABULARY, logits_of, make_batch, write_tokenizer

TINY = ModelConfig(num_layers=2, hidden_dim=32, num_heads=2, intermediate_dim=64)
SIZES = {"num_outputs": 3, "vocabulary_size": len(VOCABULARY), "max_length": 16}
_SHAPE = {"vocabulary_size": len(VOCABULARY), "num_layers": 2, "hidden_dim": 16, "intermediate_dim": 32}
_ATTENTION = {**_SHAPE, "num_heads": 2}
BACKBONES = {
    "AlbertBackbone": {**_ATTENTION, "embedding_dim": 8, "max_sequence_length": 16},
    "DebertaV3Backbone": {**_ATTENTION, "max_sequence_length": 16},
    "DistilBertBackbone": {**_ATTENTION, "max_sequence_length": 16},
    "FNetBackbone": {**_SHAPE, "max_sequence_length": 16},
    "RobertaBackbone": {**_ATTENTION, "max_sequence_length": 16},
    "RoformerV2Backbone": {**_ATTENTION, "head_size": 8},
    "XLMRobertaBackbone": {**_ATTENTION, "max_sequence_length": 16},
}


def assert_same_weights(first, second):
    ours, theirs = weights_by_path(first), weights_by_path(second)
    assert list(ours) == list(theirs)
    for path, value in ours.items():
        np.testing.assert_array_equal(value, theirs[path], err_msg=path)


def write_run(folder, model, *, pointers=("best", "last"), step=7):
    checkpoint = folder / "checkpoints" / f"step-{step:08d}"
    checkpoint.mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps({"name": "x", "model": {}, "training": {}}))
    (folder / ARCHITECTURE_FILE).write_text(json.dumps(describe_classifier(model)))
    (checkpoint / "weights.safetensors").write_bytes(safetensors.numpy.save(weights_by_path(model)))
    for pointer in pointers:
        (folder / "checkpoints" / f"{pointer}.json").write_text(json.dumps({"folder": checkpoint.name}))
    return folder


@pytest.fixture(scope="module")
def hugging_face(tmp_path_factory):
    """A tiny Hugging Face BERT and the classifier it was written from."""
    folder = tmp_path_factory.mktemp("hugging_face")
    model = build_classifier(TINY, **SIZES, seed=5)
    save_hugging_face(
        model,
        folder,
        tokenizer_folder=write_tokenizer(tmp_path_factory.mktemp("tokenizer")),
        label_names=("a", "b", "c"),
        problem_type="single_label",
        max_length=16,
    )
    return folder, model


@pytest.fixture
def broken(hugging_face, tmp_path):
    """A copy of the tiny Hugging Face folder, to be spoilt."""
    for file in hugging_face[0].iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    return tmp_path


def refusal(source, **sizes):
    with pytest.raises(InputError) as caught:
        build_classifier(ModelConfig(source=str(source)), **{**SIZES, **sizes})
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_weights_are_a_function_of_the_seed_alone():
    keras.utils.set_random_seed(1)
    first = build_classifier(TINY, **SIZES, seed=3)
    keras.utils.set_random_seed(2)
    second = build_classifier(TINY, **SIZES, seed=3)
    assert_same_weights(first, second)
    other = build_classifier(TINY, **SIZES, seed=4)
    head, other_head = first.output_dense.kernel.numpy(), other.output_dense.kernel.numpy()
    assert np.abs(head - other_head).max() > 1e-3


def test_building_leaves_the_global_random_state_alone():
    random.seed(11)
    expected = random.random()
    random.seed(11)
    build_classifier(TINY, **SIZES, seed=3)
    assert random.random() == expected


def test_mixed_precision_keeps_weights_and_logits_in_float32():
    policy = keras.config.dtype_policy().name
    model = build_classifier(TINY, **SIZES, dtype="mixed_bfloat16")
    batch = make_batch()
    eager = model(model_inputs(model, batch), training=False)
    graph = tf.function(lambda inputs: model(inputs, training=False))(model_inputs(model, batch))
    assert (eager.dtype, graph.dtype) == (tf.float32, tf.float32)
    assert {weight.dtype for weight in model.weights} == {"float32"}
    assert model.backbone.transformer_layers[0].compute_dtype == "bfloat16"
    assert keras.config.dtype_policy().name == policy
    full = logits_of(clone_classifier(model, dtype="float32"), batch)
    assert 0 < np.abs(full - eager.numpy()).max() < 2e-2


def test_an_unknown_dtype_is_refused():
    with pytest.raises(ValueError, match="float16"):
        build_classifier(TINY, **SIZES, dtype="float16")


def test_dropout_reaches_the_whole_random_network_and_no_optimizer_is_made():
    config = ModelConfig(num_layers=1, hidden_dim=8, num_heads=2, intermediate_dim=8, dropout=0.25)
    model = build_classifier(config, **SIZES)
    rates = {layer.rate for layer in model._flatten_layers() if isinstance(layer, keras.layers.Dropout)}
    assert rates == {0.25}
    assert getattr(model, "optimizer", None) is None


@pytest.mark.parametrize("name", BACKBONES)
def test_every_classifier_backbone_builds_and_learns(name, tmp_path):
    backbone = getattr(keras_nlp.models, name)(**BACKBONES[name])
    backbone.save_to_preset(str(tmp_path))
    model = build_classifier(ModelConfig(source=str(tmp_path)), **SIZES, dtype="mixed_bfloat16", seed=1)
    again = build_classifier(ModelConfig(source=str(tmp_path)), **SIZES, seed=1)
    assert_same_weights(model, again)
    ours = weights_by_path(model.backbone)
    for path, value in weights_by_path(backbone).items():
        np.testing.assert_array_equal(value, ours[path], err_msg=path)
    batch = make_batch()
    with tf.GradientTape() as tape:
        logits = model(model_inputs(model, batch), training=True)
        loss = tf.reduce_sum(tf.nn.sparse_softmax_cross_entropy_with_logits([0, 2, 1, 1], logits))
    gradients = tape.gradient(loss, model.trainable_variables)
    assert logits.dtype == tf.float32
    assert all(gradient is not None for gradient in gradients)
    assert float(tf.linalg.global_norm(gradients)) > 1e-3


def test_a_hugging_face_folder_gives_its_backbone_and_a_fresh_head(hugging_face):
    folder, original = hugging_face
    model = build_classifier(ModelConfig(source=str(folder)), **SIZES, seed=9)
    assert_same_weights(model.backbone, original.backbone)
    assert np.abs(model.output_dense.kernel - original.output_dense.kernel).max() > 1e-3


def test_a_run_folder_gives_the_backbone_of_its_best_checkpoint(tmp_path):
    best, last = build_classifier(TINY, **SIZES, seed=1), build_classifier(TINY, **SIZES, seed=2)
    write_run(tmp_path, best, pointers=("best",), step=3)
    run = tmp_path / "other"
    write_run(run, last, pointers=("last",), step=8)
    model = build_classifier(ModelConfig(source=str(tmp_path)), **{**SIZES, "num_outputs": 5}, seed=3)
    assert_same_weights(model.backbone, best.backbone)
    assert model.output_dense.kernel.shape == (32, 5)
    assert_same_weights(build_classifier(ModelConfig(source=str(run)), **SIZES).backbone, last.backbone)


def test_a_run_folder_that_does_not_fit_is_refused_in_a_sentence(tmp_path):
    model = build_classifier(TINY, **SIZES)
    run = write_run(tmp_path, model, pointers=())
    assert "no checkpoint yet" in refusal(run)
    pointer = run / "checkpoints" / "best.json"
    pointer.write_text('{"folder": "../../elsewhere"}')
    assert "step-NNNNNNNN" in refusal(run)
    pointer.write_text('{"folder": "step-00000009"}')
    assert "There is no file" in refusal(run)
    pointer.write_text('{"folder": "step-00000007"}')
    weights = run / "checkpoints" / "step-00000007" / "weights.safetensors"
    content = weights.read_bytes()
    weights.write_bytes(content[: len(content) // 2])
    assert "is truncated" in refusal(run)
    weights.write_bytes(safetensors.numpy.save({"x": np.zeros(2, np.float32)}))
    assert "token_embedding/embeddings" in refusal(run)
    (run / ARCHITECTURE_FILE).unlink()
    assert ARCHITECTURE_FILE in refusal(run)


@pytest.mark.parametrize(
    ("source", "words"),
    [
        ("bert_tiny_en_uncasd", "Did you mean 'bert_tiny_en_uncased'"),
        ("nothing like any preset", "neither a folder nor a KerasNLP preset"),
        ("/no/such/folder", "not a folder on this machine"),
        ("./no_such_folder", "not a folder on this machine"),
        (__file__, "is a file"),
    ],
)
def test_a_source_that_is_nothing_is_refused_in_a_sentence(source, words):
    assert words in refusal(source)


def test_a_folder_with_a_mistyped_name_is_suggested(tmp_path):
    (tmp_path / "minilm").mkdir()
    assert "Did you mean 'minilm'" in refusal(tmp_path / "minilmm")


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (None, "has no config.json"),
        ("{", "cannot be read"),
        ("[1]", "not a JSON object"),
        ("{}", "neither a KerasNLP preset"),
        ('{"model_type": "gpt2"}', "albert, bert, distilbert, roberta, xlm-roberta"),
        ('{"model_type": "bert"}', "no model.safetensors"),
        ('{"model_type": "bert", "hidden_act": "relu"}', "'relu'"),
        ('{"model_type": "distilbert", "activation": "relu"}', "activation 'relu'"),
        ('{"model_type": "bert", "position_embedding_type": "relative_key"}', "'relative_key'"),
        ('{"registered_name": "keras_hub>NoSuchBackbone"}', "does not have"),
        ('{"registered_name": "keras_hub>GPT2Backbone"}', "no text classifier on GPT2Backbone"),
        ('{"registered_name": "keras_hub>BertBackbone"}', "no model.weights.h5"),
    ],
)
def test_a_folder_that_is_no_model_is_refused_in_a_sentence(content, words, tmp_path):
    if content is not None:
        (tmp_path / "config.json").write_text(content)
    assert words in refusal(tmp_path)


def test_weights_that_are_cut_off_are_refused_in_a_sentence(broken):
    weights = broken / "model.safetensors"
    content = weights.read_bytes()
    for size in (0, 5, 1000, len(content) - 1):
        weights.write_bytes(content[:size])
        assert "cannot be read" in refusal(broken)


def test_weights_that_lack_a_tensor_are_refused_by_its_name(broken):
    weights = broken / "model.safetensors"
    tensors = safetensors.numpy.load(weights.read_bytes())
    del tensors["bert.pooler.dense.weight"]
    weights.write_bytes(safetensors.numpy.save(tensors))
    assert "pooler.dense.weight" in refusal(broken)


def test_a_config_that_does_not_fit_the_weights_is_refused(broken):
    config = json.loads((broken / "config.json").read_text())
    (broken / "config.json").write_text(json.dumps({**config, "vocab_size": 99}))
    assert "has shape (57, 32), but config.json requires (99, 32)" in refusal(broken)
    del config["hidden_size"]
    (broken / "config.json").write_text(json.dumps(config))
    assert "hidden_size" in refusal(broken)


def test_a_keras_preset_with_cut_off_weights_is_refused(tmp_path):
    build_classifier(TINY, **SIZES).backbone.save_to_preset(str(tmp_path))
    weights = tmp_path / "model.weights.h5"
    weights.write_bytes(weights.read_bytes()[:3000])
    assert "cannot be read" in refusal(tmp_path)


def test_a_vocabulary_or_length_beyond_the_model_is_refused(hugging_face):
    folder, _ = hugging_face
    assert "58 tokens, but the model" in refusal(folder, vocabulary_size=len(VOCABULARY) + 1)
    assert "data.max_length is 17" in refusal(folder, max_length=17)


def test_a_preset_without_network_is_one_sentence_and_no_fault_of_the_input(monkeypatch):
    def fail(*args, **kwargs):
        raise ConnectionError("HTTPSConnectionPool(host='api.kaggle.com', port=443): Max retries exceeded ...")

    monkeypatch.setattr(keras_nlp.models.Backbone, "from_preset", fail)
    with pytest.raises(RunError, match=r"'bert_tiny_en_uncased' is not on this machine .*\(ConnectionError\)"):
        build_classifier(ModelConfig(source="bert_tiny_en_uncased"), **SIZES)


def test_a_description_survives_json_and_needs_no_source(tmp_path):
    backbone = keras_nlp.models.DistilBertBackbone(**BACKBONES["DistilBertBackbone"])
    backbone.save_to_preset(str(tmp_path))
    config = ModelConfig(source=str(tmp_path), dropout=0.3)
    model = build_classifier(config, **SIZES, dtype="mixed_bfloat16")
    description = json.loads(json.dumps(describe_classifier(model)))
    again = rebuild_classifier(description, dtype="mixed_bfloat16")
    load_weights_by_path(again, weights_by_path(model))
    batch = make_batch()
    np.testing.assert_array_equal(logits_of(model, batch), logits_of(again, batch))
    assert again.dropout == 0.3


@pytest.mark.parametrize(
    "spoilt", [{"class": "os.system"}, {"head": None}, {"head": {"classes": 3}}, {"backbone": {"num_layers": 2}}]
)
def test_a_spoilt_description_is_refused_in_a_sentence(spoilt):
    description = describe_classifier(build_classifier(TINY, **SIZES))
    with pytest.raises(InputError, match="cannot be read"):
        rebuild_classifier({**description, **spoilt})
    with pytest.raises(InputError, match="cannot be read"):
        rebuild_classifier({})


def test_the_same_architecture_has_the_same_description():
    first = describe_classifier(build_classifier(TINY, **SIZES, seed=1))
    assert first == describe_classifier(build_classifier(TINY, **SIZES, dtype="mixed_bfloat16", seed=2))
    assert first["head"] == {"num_classes": 3, "dropout": 0.1}


def test_loading_by_path_is_all_or_nothing():
    model = build_classifier(TINY, **SIZES, seed=1)
    before = weights_by_path(model)
    arrays = {path: value + 1 for path, value in before.items()}
    arrays["logits/bias"] = np.zeros(4, np.float32)
    with pytest.raises(InputError, match=r"'logits/bias' .* shape \(4,\), the model needs \(3,\)"):
        load_weights_by_path(model, arrays)
    del arrays["logits/bias"]
    with pytest.raises(InputError, match="no weight 'logits/bias'"):
        load_weights_by_path(model, arrays)
    for path, value in weights_by_path(model).items():
        np.testing.assert_array_equal(value, before[path])


def test_a_model_of_two_replicas_is_cloned_to_a_plain_one():
    strategy = tf.distribute.MirroredStrategy(["CPU:0", "CPU:1"])
    with strategy.scope():
        model = build_classifier(TINY, **SIZES, seed=6)
    clone = clone_classifier(model, dtype="float32")
    assert_same_weights(clone, build_classifier(TINY, **SIZES, seed=6))


def test_a_missing_safetensors_file_is_named(tmp_path):
    with pytest.raises(InputError, match="There is no file"):
        read_safetensors(tmp_path / "weights.safetensors")
