"""An exported classifier: the same answers in another process, a manifest that says what it is, other formats."""

import dataclasses
import json

import keras_nlp
import numpy as np
import pytest
import tensorflow as tf
from tensorflow_serving.apis import prediction_log_pb2

from aigc_tf import storage
from aigc_tf.config import ModelConfig, TokenizerConfig
from aigc_tf.data.tokenizers.tokenizers import build_tokenizer
from aigc_tf.errors import InputError, RunError
from aigc_tf.models.classifiers.classifier import build_classifier
from aigc_tf.serving.local.predictor import Predictor
from aigc_tf.serving.modules.classifier_signatures import ServingSpec
from aigc_tf.serving.process.other_process import StandIn, bytes_array
from aigc_tf.serving.publishing.classifier_servable import classifier_servable
from aigc_tf.serving.publishing.parity import check_parity, make_calls
from aigc_tf.serving.publishing.warmup import WARMUP_FILE
from tests.exporting import export_classifier
from tests.tiny_classifier import build_model, load_tokenizer, logits_of, make_batch

pytestmark = pytest.mark.slow

SPEC = ServingSpec(
    label_names=("bad", "göod", "so\nso"), problem_type="single_label", is_pair=False, max_length=16, truncation="head"
)


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    return load_tokenizer(tmp_path_factory.mktemp("vocabulary"))


@pytest.fixture(scope="module")
def exported(tokenizer, tmp_path_factory):
    """One export, tried in another process."""
    directory = tmp_path_factory.mktemp("saved_models")
    model = build_model(dtype="mixed_bfloat16", seed=1)
    source = {"run": "runs/s1", "config_sha256": "00ff"}
    return model, export_classifier(model, tokenizer, SPEC, directory=directory, name="toy", source=source)


def test_the_manifest_says_what_the_model_is(exported):
    _, done = exported
    manifest = json.loads(storage.read_bytes(storage.join(done.path, "manifest.json")))
    assert manifest == json.loads(json.dumps(done.manifest))
    assert (manifest["version"], manifest["label_names"]) == (1, list(SPEC.label_names))
    assert (manifest["target"], manifest["warnings"]) == ("2.20", [])
    assert (manifest["max_length"], manifest["truncation"], manifest["dtype"]) == (16, "head", "float32")
    assert manifest["source"] == {"run": "runs/s1", "config_sha256": "00ff"}
    assert manifest["formats"] == ["keras_nlp", "hugging_face"]
    assert manifest["versions"]["tensorflow"] == tf.__version__
    assert {"assets/label_names.json", "saved_model.pb", "variables/variables.index"} <= manifest["files"].keys()
    assert not [op for op in manifest["ops"] if op.startswith(("Xla", "PyFunc", "TFText>RoundRobin"))]
    parity = manifest["parity"]
    assert parity["answers"] == "identical"
    assert parity["tolerance"] == dict.fromkeys(("logits", "probabilities", "scores"), 1e-5)
    assert parity["max_difference"].keys() == parity["tolerance"].keys()
    assert max(parity["max_difference"].values()) <= 1e-5
    assert parity["num_texts"] == 9  # and of `token_ids` and `tokenize`, of tf.Examples, and a call without rows
    assert (parity["num_rows"], parity["num_calls"]) == (4 * 9, 4 * 2 + 1)
    assert parity["training_dtype"] == "mixed_bfloat16"
    assert 0 < parity["logits_difference_to_training_dtype"] < 0.5
    assert done.summary().startswith(f"Exported {done.path}: in a new process it differs by at most")


def test_the_warm_up_file_asks_each_signature_with_each_batch_size(exported):
    _, done = exported
    found = []
    for record in tf.data.TFRecordDataset(f"{done.path}/{WARMUP_FILE}"):
        log = prediction_log_pb2.PredictionLog.FromString(record.numpy())
        if log.HasField("classify_log"):
            request = log.classify_log.request
            found.append((request.model_spec.signature_name, len(request.input.example_list.examples)))
        else:
            request = log.predict_log.request
            [size] = {value.tensor_shape.dim[0].size for value in request.inputs.values()}
            found.append((request.model_spec.signature_name, size))
    assert found == [(name, size) for name in done.manifest["signatures"] for size in (1, 2, 4, 8)]
    assert done.manifest["batch_sizes"] == [1, 2, 4, 8]
    assert done.manifest["warmup"]["num_requests"] == len(found)


def test_names_of_inputs_and_outputs_are_those_of_a_request(exported):
    signatures = exported[1].manifest["signatures"]
    assert signatures["serving_default"]["inputs"] == {"text": ["string", [None]]}
    assert signatures["token_ids"]["inputs"] == {
        name: ["int32", [None, 16]] for name in ("padding_mask", "segment_ids", "token_ids")
    }
    assert signatures["classify"] == {
        "inputs": {"inputs": ["string", [None]]},
        "outputs": {"classes": ["string", [None, 3]], "scores": ["float32", [None, 3]]},
    }
    assert signatures["tokenize"] == {
        "inputs": signatures["serving_default"]["inputs"],
        "outputs": signatures["token_ids"]["inputs"],
    }
    for name in ("serving_default", "token_ids"):
        assert signatures[name]["outputs"] == {
            "label": ["string", [None]],
            "label_id": ["int32", [None]],
            "logits": ["float32", [None, 3]],
            "probabilities": ["float32", [None, 3]],
        }


def test_a_request_of_another_shape_is_an_error_and_the_server_lives_on(exported):
    ids = np.ones([2, 16], np.int32)
    with StandIn(exported[1].path) as server:
        for signature in ("serving_default", "tokenize"):
            for shape in ([], [3, 0], [1, 1]):
                with pytest.raises(RunError, match="INVALID_ARGUMENT: Shape of tensor"):
                    server.call(signature, {"text": np.full(shape, b"abc", object)})
                with pytest.raises(RunError, match="INVALID_ARGUMENT: Shape of tensor"):
                    server.call("classify", {"inputs": np.full(shape, b"", object)})
        with pytest.raises(RunError, match=r"INVALID_ARGUMENT: .*Could not parse example"):
            server.call("classify", {"inputs": bytes_array([b"\xff no example"])})
        for name in ("token_ids", "segment_ids", "padding_mask"):
            for shape in ([], [2], [2, 1], [2, 17], [2, 16, 1]):
                with pytest.raises(RunError, match="INVALID_ARGUMENT: Shape of tensor"):
                    server.call(
                        "token_ids",
                        {"token_ids": ids, "segment_ids": 0 * ids, "padding_mask": ids, name: np.ones(shape, np.int32)},
                    )
        assert server.call("serving_default", {"text": bytes_array(["abc"])})["label"].shape == (1,)


def test_every_weight_is_saved_once_and_nothing_of_the_training(exported):
    model, done = exported
    variables = tf.train.list_variables(f"{done.path}/variables/variables")
    shapes = sorted(tuple(shape) for name, shape in variables if name != "_CHECKPOINTABLE_OBJECT_GRAPH")
    assert shapes == sorted(tuple(weight.shape) for weight in model.weights)


def test_labels_and_vocabulary_are_assets(exported):
    _, done = exported
    assets = storage.join(done.path, "assets")
    assert storage.read_json(storage.join(assets, "label_names.json")) == list(SPEC.label_names)
    assert "vocab.txt" in storage.list_folder(assets)


def test_the_exported_model_answers_and_is_found_by_its_name(exported):
    _, done = exported
    predictor = Predictor(done.path.removesuffix("/1"))
    answers = list(predictor.predict(["abc", "", "zz " * 50], batch_size=2))
    assert predictor.path == done.path
    assert {answer["label"] for answer in answers} <= set(SPEC.label_names)
    assert sum(answers[0]["probabilities"].values()) == pytest.approx(1.0, abs=1e-6)
    with pytest.raises(InputError, match="takes single texts"):
        predictor.predict(["a"], ["b"])


def test_the_other_formats_hold_the_same_model(exported):
    model, done = exported
    folder = done.path.replace("/toy/1", "/toy-formats/1")
    preset = keras_nlp.models.TextClassifier.from_preset(f"{folder}/keras_nlp")
    difference = np.abs(logits_of(preset, make_batch()) - logits_of(model, make_batch())).max()
    assert 0 < difference < 0.5  # float32 against the mixed precision of the training
    config = json.loads(storage.read_bytes(f"{folder}/hugging_face/config.json"))
    assert config["id2label"]["1"] == "göod"


def check_again(folder, model, tokenizer):
    """Compares the export in a folder with a model."""
    servable = classifier_servable(model, tokenizer, SPEC)
    calls = make_calls(servable.build_module().signatures(), servable.samples)
    with StandIn(folder) as process:
        return check_parity(process, calls, reference=servable.reference)


def test_an_export_of_another_model_is_caught_with_its_numbers(exported, tokenizer):
    _, done = exported
    with pytest.raises(RunError, match=r"logits by \d.* \(bound 1e-05\), probabilities by \d.* \(bound 1e-05\)"):
        check_again(done.path, build_model(seed=2), tokenizer)


def test_a_folder_that_does_not_load_is_caught(tokenizer, tmp_path):
    with pytest.raises(RunError, match="fails in a new process"):
        check_again(tmp_path, build_model(), tokenizer)


def test_weights_labels_and_dtype_decide_whether_it_is_the_same_model(tokenizer):
    def settings_of(model, spec=SPEC, **options):
        servable = classifier_servable(model, tokenizer, spec, **options)
        return servable.settings, servable.dtype

    first = settings_of(build_model(seed=1))
    assert settings_of(build_model(seed=1, dtype="mixed_bfloat16")) == first  # the weights are the same
    assert settings_of(build_model(seed=2)) != first
    assert settings_of(build_model(seed=1), dtype="bfloat16") != first
    assert settings_of(build_model(seed=1), dataclasses.replace(SPEC, label_names=("x", "y", "z"))) != first


def test_a_model_with_byte_pairs_is_exported_too(tmp_path):
    tokens = ["<s>", "<pad>", "</s>", "<unk>", "<mask>", *"abcdefghijklmnopqrstuvwxyzĠ", "ab", "Ġa"]
    word_pairs = keras_nlp.models.RobertaTokenizer(
        vocabulary={token: index for index, token in enumerate(tokens)}, merges=["a b", "Ġ a"]
    )
    backbone = keras_nlp.models.RobertaBackbone(
        vocabulary_size=len(tokens),
        num_layers=1,
        num_heads=2,
        hidden_dim=16,
        intermediate_dim=32,
        max_sequence_length=16,
    )
    preprocessor = keras_nlp.models.RobertaTextClassifierPreprocessor(word_pairs, sequence_length=16)
    task = keras_nlp.models.RobertaTextClassifier(backbone, num_classes=2, preprocessor=preprocessor)
    task.save_to_preset(str(tmp_path / "preset"))
    tokenizer = build_tokenizer(TokenizerConfig(), str(tmp_path / "preset"), lambda: [])
    model = build_classifier(
        ModelConfig(source=str(tmp_path / "preset")),
        num_outputs=3,
        vocabulary_size=tokenizer.vocabulary_size,
        max_length=16,
    )
    done = export_classifier(model, tokenizer, SPEC, directory=tmp_path, name="pairs", samples=[("abab a",)])
    assert done.manifest["parity"]["answers"] == "identical"
    assert done.manifest["formats"] == ["keras_nlp"]
    assert list(done.manifest["signatures"]["token_ids"]["inputs"]) == ["padding_mask", "token_ids"]
    preset = keras_nlp.models.TextClassifier.from_preset(str(tmp_path / "pairs-formats" / "1" / "keras_nlp"))
    ids = np.asarray(preset.preprocessor(["abab a"])["token_ids"])[0, :7]
    assert ids.tolist() == [tokens.index(token) for token in ("<s>", "ab", "ab", "Ġa", "</s>", "<pad>", "<pad>")]
