"""Exports answer on the libraries of older servers as they do here. Fetches the wheels: 0.3 GB a version, once."""

import json
import shutil

import numpy as np
import pytest

from aigc_tf.config import GenerationConfig
from aigc_tf.errors import RunError
from aigc_tf.serving.gate.op_gate import find_problems
from aigc_tf.serving.gate.saved_model_protos import saved_model_pb2
from aigc_tf.serving.gate.server_ops import TABLE, build_table
from aigc_tf.serving.modules.classifier_signatures import ServingSpec
from aigc_tf.serving.modules.fields import HOSTILE_TEXTS
from aigc_tf.serving.process.other_process import StandIn, bytes_array
from aigc_tf.serving.process.runtimes import Runtime, fetch_runtime
from tests import tiny_classifier, tiny_generator
from tests.exporting import export_classifier, export_generator

TEXTS = ["a quick fox", "zebra", *HOSTILE_TEXTS]


@pytest.fixture(scope="module")
def classifier(tmp_path_factory):
    folder = tmp_path_factory.mktemp("classifier")
    spec = ServingSpec(
        label_names=("a", "b", "c"), problem_type="single_label", is_pair=False, max_length=16, truncation="head"
    )
    tokenizer = tiny_classifier.load_tokenizer(folder)
    return export_classifier(tiny_classifier.build_model(), tokenizer, spec, directory=folder, name="toy").path


@pytest.fixture(scope="module")
def generator(tmp_path_factory):
    tokenizer = tiny_generator.build_tokenizer_of_texts()
    return export_generator(
        tiny_generator.build_model(tokenizer),
        tokenizer,
        max_length=tiny_generator.MAX_LENGTH,
        generation=GenerationConfig(max_new_tokens=12, seed=3),
        directory=tmp_path_factory.mktemp("generator"),
        name="toy",
    ).path


def request(name, info):
    """What to ask of an input of an exported model, a value for each text."""
    texts = bytes_array(TEXTS)
    numbers = np.arange(len(TEXTS))
    values = {
        "text": texts,
        "prompt": texts,
        "continuation": texts[::-1],
        "max_new_tokens": numbers % 12,
        "temperature": (numbers % 3) / 2,
        "top_k": numbers % 4,
        "top_p": np.full(len(TEXTS), 0.9),
        "min_p": np.zeros(len(TEXTS)),
        "repetition_penalty": np.full(len(TEXTS), 1.1),
        "seed": numbers,
        "prompt_lengths": numbers % 7,
        "padding_mask": np.arange(info["shape"][-1]) <= numbers[:, np.newaxis],
    }
    if name in values:
        value = values[name]
    else:  # token ids
        value = np.random.default_rng(0).integers(4, 30, (len(TEXTS), info["shape"][-1])) * (name != "segment_ids")
    return value if value.dtype == object else value.astype({"float": "float32"}.get(info["dtype"], info["dtype"]))


def answers(folder, runtime=None):
    """What each signature answers, by its name; tf.Examples are left out, which nobody can write by hand."""
    with StandIn(folder, runtime=runtime) as model:
        return {
            name: model.call(name, {key: request(key, info) for key, info in signature["inputs"].items()})
            for name, signature in model.signatures.items()
            if not {"inputs"} & set(signature["inputs"]) and not name.startswith("__")
        }


def assert_equal(received, expected):
    assert received.keys() == expected.keys()
    assert len(expected) >= 3
    for signature, outputs in expected.items():
        assert received[signature].keys() == outputs.keys()
        for name, value in outputs.items():
            if value.dtype.kind == "f":
                np.testing.assert_allclose(received[signature][name], value, atol=1e-5, err_msg=f"{signature} {name}")
            else:
                np.testing.assert_array_equal(received[signature][name], value, err_msg=f"{signature} {name}")


@pytest.mark.downloads
@pytest.mark.parametrize("kind", ["classifier", "generator"])
def test_an_export_answers_on_tensorflow_2_20_as_it_does_here(kind, request):
    folder = request.getfixturevalue(kind)
    assert_equal(answers(folder, fetch_runtime("2.20")), answers(folder))


@pytest.mark.downloads
def test_a_generator_answers_on_tensorflow_2_19_as_it_does_here(generator):
    """Of the wheel of tensorflow-text 2.19 half of the libraries cannot be loaded, WordPiece's among them."""
    runtime = fetch_runtime("2.19")
    libraries = [path for path in runtime.op_libraries if path.name == "_sentencepiece_tokenizer.so"]
    assert_equal(answers(generator, Runtime(folder=runtime.folder, op_libraries=tuple(libraries))), answers(generator))


def edited(folder, target, edit):
    """Copies a model and edits its graph."""
    shutil.copytree(folder, target)
    path = target / "saved_model.pb"
    saved_model = saved_model_pb2.SavedModel.FromString(path.read_bytes())
    edit(saved_model.meta_graphs[0].graph_def)
    path.write_bytes(saved_model.SerializeToString())
    return target


def without_names_of_variables(graph):
    """TensorFlow 2.12 does not know this attribute, which names a variable in messages."""
    for node in [*graph.node, *(node for function in graph.library.function for node in function.node_def)]:
        if node.op == "VarHandleOp":
            node.attr.pop("debug_name", None)


@pytest.mark.downloads
@pytest.mark.parametrize("kind", ["classifier", "generator"])
def test_an_export_answers_with_the_tensorflow_text_of_servers_before_2_20_as_it_does_here(kind, request, tmp_path):
    """That is 2.12.1; its libraries need TensorFlow 2.12."""
    folder = edited(request.getfixturevalue(kind), tmp_path / "1", without_names_of_variables)
    assert_equal(answers(folder, fetch_runtime("2.12")), answers(folder))


@pytest.mark.downloads
def test_what_the_gate_refuses_for_an_older_server_does_not_load_there(classifier, tmp_path):
    def edit(graph):
        without_names_of_variables(graph)
        graph.library.function[0].node_def.add(name="added", op="TFText>RoundRobinTrim")

    folder = edited(classifier, tmp_path / "1", edit)
    (folder / "manifest.json").unlink()
    [finding] = find_problems(folder, target="2.19")
    assert finding.what == "op TFText>RoundRobinTrim is unknown to this server"
    with pytest.raises(RunError, match="Op type not registered 'TFText>RoundRobinTrim'"):
        StandIn(folder, runtime=fetch_runtime("2.12"))


@pytest.mark.downloads
def test_the_table_of_ops_is_the_one_that_the_libraries_give():
    assert build_table() == json.loads(TABLE.read_text(encoding="utf-8"))
