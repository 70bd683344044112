"""Smaller weights: the numbers by hand, the same answers as the model that holds them, restored once in a request."""

import numpy as np
import pytest
import tensorflow as tf

from aigc_tf.config import GenerationConfig
from aigc_tf.models.classifiers.classifier import clone_classifier
from aigc_tf.models.generators.generator import clone_generator
from aigc_tf.models.weights import read_safetensors
from aigc_tf.serving.gate.saved_model_graph import called_functions
from aigc_tf.serving.modules.classifier_signatures import ClassifierModule, ServingSpec, text_function
from aigc_tf.serving.modules.generator_signatures import GeneratorModule
from aigc_tf.serving.modules.quantization import quantize, restore, store
from tests import tiny_classifier, tiny_generator
from tests.exporting import export_classifier

pytestmark = pytest.mark.slow

SPEC = ServingSpec(
    label_names=("a", "b", "c"), problem_type="single_label", is_pair=False, max_length=16, truncation="head"
)
TEXTS = ["abc zebra", "", "quick brown fox", "é 中文 🙂", "a" * 200]
BFLOAT16 = tf.bfloat16.as_numpy_dtype
CASES = [("float32", "int8"), ("mixed_bfloat16", "bfloat16")]
GENERATION = GenerationConfig(max_new_tokens=12, seed=3)


def test_numbers_become_the_nearest_of_255_of_each_column_or_row():
    value = np.array([[1.27, -0.4, 0.0], [-0.63, 0.8, 0.0]], np.float32)
    small, scales = quantize(value, (0,))
    np.testing.assert_allclose(scales, [[0.01, 0.8 / 127, 1.0]], rtol=1e-6)
    assert small.tolist() == [[127, -64, 0], [-63, 127, 0]]  # -0.4 is half of 127, and halves go to the even number
    assert (small.dtype, scales.dtype) == (np.int8, np.float32)
    small, scales = quantize(value, (1,))
    np.testing.assert_allclose(scales, [[0.01], [0.8 / 127]], rtol=1e-6)
    assert small.tolist() == [[127, -40, 0], [-100, 127, 0]]


@pytest.mark.parametrize("seed", range(3))
def test_what_is_restored_is_off_by_half_a_step_at_most_and_is_stored_without_a_change(seed):
    value = np.random.default_rng(seed).normal(0, 10.0**seed, (7, 5, 3)).astype(np.float32)
    small, scales = quantize(value, (0, 1))
    restored = restore((small, scales))
    assert np.all(np.abs(restored - value) <= scales * 0.5001)
    again, same_scales = quantize(restored, (0, 1))
    np.testing.assert_array_equal(again, small)
    np.testing.assert_allclose(same_scales, scales, rtol=1e-6)


def test_kernels_share_a_scale_over_what_they_sum_and_tables_over_a_row():
    model = tiny_classifier.build_model()
    shapes = {
        weight.path: [part.shape for part in small]
        for weight, small in zip(model.weights, store(model, "int8"), strict=True)
    }
    kernels = {path.rpartition("self_attention_layer/")[2]: shape for path, shape in shapes.items()}
    assert kernels["query/kernel"] == [(32, 2, 16), (1, 2, 16)]
    assert kernels["attention_output/kernel"] == [(2, 16, 32), (1, 1, 32)]
    assert shapes["token_embedding/embeddings"] == [(57, 32), (57, 1)]
    assert shapes["position_embedding/embeddings"] == [(16, 32), (16, 1)]
    assert shapes["logits/kernel"] == [(32, 3), (1, 3)]
    assert shapes["logits/bias"] == [(3,)]
    generator = tiny_generator.build_model(tiny_generator.build_tokenizer_of_texts())
    of_generator = dict(zip((weight.path for weight in generator.weights), store(generator, "int8"), strict=True))
    assert [part.shape for part in of_generator["embeddings/tokens"]] == [(320, 32), (320, 1)]
    assert [part.shape for part in of_generator["block_0/attention_inputs_kernel"]] == [(32, 96), (1, 96)]
    assert [part.dtype for part in of_generator["block_0/attention_norm_scale"]] == [np.float32]


def test_bfloat16_is_of_every_float():
    model = tiny_classifier.build_model()
    before = [np.asarray(weight) for weight in model.weights]
    for weight, (small,), value in zip(model.weights, store(model, "bfloat16"), before, strict=True):
        assert small.dtype == BFLOAT16
        np.testing.assert_array_equal(np.asarray(weight), value.astype(BFLOAT16).astype(np.float32))


@pytest.mark.parametrize(("dtype", "kind"), CASES)
def test_a_classifier_answers_as_the_model_that_holds_what_is_restored(dtype, kind, tmp_path):
    tokenizer = tiny_classifier.load_tokenizer(tmp_path)
    model = clone_classifier(tiny_classifier.build_model(), dtype=dtype)
    stored = store(model, kind)
    plain = text_function(ClassifierModule(model, tokenizer, SPEC))(TEXTS)
    small = text_function(ClassifierModule(model, tokenizer, SPEC, stored=stored))(TEXTS)
    np.testing.assert_allclose(small["logits"], plain["logits"], atol=1e-5 if dtype == "float32" else 2e-2)
    for layer in model._flatten_layers():
        assert "call" not in vars(layer)  # what was put there for the tracing is gone


@pytest.mark.parametrize(("dtype", "kind"), CASES)
def test_a_generator_answers_as_the_model_that_holds_what_is_restored(dtype, kind):
    tokenizer = tiny_generator.build_tokenizer_of_texts()
    model = clone_generator(tiny_generator.build_model(tokenizer), dtype=dtype)
    stored = store(model, kind)
    request = tiny_generator.request(tiny_generator.PROMPTS, temperature=0.0)
    options = {"max_length": tiny_generator.MAX_LENGTH, "generation": GENERATION}
    plain = GeneratorModule(model, tokenizer, **options).signatures()["serving_default"](request)
    small = GeneratorModule(model, tokenizer, stored=stored, **options).signatures()["serving_default"](request)
    np.testing.assert_array_equal(small["token_ids"], plain["token_ids"])
    np.testing.assert_allclose(small["log_probability"], plain["log_probability"], atol=1e-4)


def casts(bodies, names):
    """Casts from int8 in functions and in those that they call."""
    waiting, seen = list(names), set()
    while waiting:
        name = waiting.pop()
        if name in bodies and name not in seen:
            seen.add(name)
            waiting += [called for node in bodies[name] for called in called_functions(node)]
    nodes = [node for name in seen for node in bodies[name] if node.op == "Cast"]
    return [node.name for node in nodes if node.attr["SrcT"].type == tf.int8.as_datatype_enum]


def functions_and_loops(function):
    """The nodes of each function that a graph function calls, and the names of the bodies of loops."""
    graph = function.get_concrete_function().graph.as_graph_def()
    bodies = {"": graph.node} | {function.signature.name: function.node_def for function in graph.library.function}
    nodes = [node for body in bodies.values() for node in body]
    loops = [node.attr["body"].func.name for node in nodes if node.op in ("While", "StatelessWhile")]
    assert loops
    return bodies, loops


def test_a_generator_restores_its_weights_outside_of_the_loop():
    tokenizer = tiny_generator.build_tokenizer_of_texts()
    model = tiny_generator.build_model(tokenizer)
    options = {"max_length": tiny_generator.MAX_LENGTH, "generation": GENERATION}
    module = GeneratorModule(model, tokenizer, stored=store(model, "int8"), **options)
    bodies, loops = functions_and_loops(module.signatures()["generate_ids"].function)
    assert len(casts(bodies, bodies)) == 2 + 4 * 2  # two tables, four kernels of each of two blocks
    assert not casts(bodies, loops)


def test_a_classifier_looks_up_rows_of_its_small_tables_and_restores_all_else_outside_of_the_loop(tmp_path):
    model = tiny_classifier.build_model()
    module = ClassifierModule(model, tiny_classifier.load_tokenizer(tmp_path), SPEC, stored=store(model, "int8"))
    bodies, loops = functions_and_loops(module.signatures()["serving_default"].function)
    looked_up = [node for body in bodies.values() for node in body if node.op == "ResourceGather"]
    small = [node for node in looked_up if node.attr["dtype"].type == tf.int8.as_datatype_enum]
    assert len(casts(bodies, loops)) == len(small) == 2  # of tokens and segments


def test_an_export_says_what_its_weights_cost_and_leaves_other_formats_whole(tmp_path):
    model = tiny_classifier.build_model()
    weights = [np.asarray(weight) for weight in model.weights]
    judged = []

    def judge(full, small):
        judged.append((full, small))
        return {"rows": 1, "split": "validation", "metric": "loss", "values": [1, 2], "logits_difference": 0.25}

    tokenizer = tiny_classifier.load_tokenizer(tmp_path)
    options = {"directory": tmp_path, "name": "toy", "weights": "int8", "judge": judge, "samples": [("abc",)]}
    done = export_classifier(model, tokenizer, SPEC, **options)
    assert done.manifest["weights"] == "int8"
    assert done.manifest["parity"]["max_difference"]["logits"] <= 1e-5
    cost = done.manifest["weights_cost"]
    assert cost["int8"]["megabytes"] < 0.6 * cost["float32"]["megabytes"]
    assert (cost["unit"], cost["judged"]["values"]) == ("examples", [1, 2])
    assert all(cost[name][key] > 0 for name in ("int8", "float32") for key in ("per_second", "resident_megabytes"))
    lines = done.cost_table().splitlines()
    assert lines[0].split() == ["float32", "int8"]
    assert lines[-2].split()[-2:] == ["1.0000", "2.0000"]
    assert lines[-1].split()[-1] == "0.25"
    [(full, small)] = judged
    for before, of_full, of_small in zip(weights, full.weights, small.weights, strict=True):
        np.testing.assert_array_equal(of_full, before)
        assert np.max(np.abs(np.asarray(of_small) - before)) <= 0.01 * np.max(np.abs(before))
    elsewhere = read_safetensors(tmp_path / "toy-formats/1/hugging_face/model.safetensors")
    tables = {name: value for name, value in elsewhere.items() if name.endswith("word_embeddings.weight")}
    [table] = tables.values()
    np.testing.assert_array_equal(table, weights[0])
    again = export_classifier(model, tokenizer, SPEC, **options)
    assert not again.created
    assert again.cost_table() == done.cost_table()
