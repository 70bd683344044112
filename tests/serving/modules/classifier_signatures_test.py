"""Text to token ids to answers, in graph ops."""

import dataclasses
import functools

import numpy as np
import pytest
import tensorflow as tf

from aigc_tf.data.batching.special_tokens import SpecialTokens, add_special_tokens
from aigc_tf.models.classifiers.classifier import model_inputs
from aigc_tf.serving.modules import classifier_signatures
from aigc_tf.serving.modules.classifier_signatures import (
    ClassifierModule,
    ServingSpec,
    answer,
    text_function,
)
from aigc_tf.serving.modules.graph_special_tokens import add_special_tokens_in_graph
from tests.tiny_classifier import build_model, load_tokenizer

SINGLE = ServingSpec(
    label_names=("a", "b", "c"), problem_type="single_label", is_pair=False, max_length=16, truncation="head"
)
PAIR = ServingSpec(
    label_names=("a", "b", "c"), problem_type="multi_label", is_pair=True, max_length=16, truncation="head_tail"
)


def call_texts(module, texts):
    return call(module, "serving_default", text=texts)


def call(module, signature, **inputs):
    return module.signatures()[signature]({name: tf.constant(value) for name, value in inputs.items()})


def special(**changes):
    ids = {"start_ids": (2,), "between_ids": (3,), "end_ids": (3,), "padding_id": 0}
    return SpecialTokens(**{**ids, "max_length": 8, "truncation": "head", **changes})


def ragged(rows):
    return tf.ragged.constant(rows, tf.int32, ragged_rank=1, row_splits_dtype=tf.int32)


@pytest.mark.parametrize(
    ("truncation", "kept"),
    [("head", [11, 12, 13, 14, 15, 16]), ("tail", [14, 15, 16, 17, 18, 19]), ("head_tail", [11, 12, 13, 17, 18, 19])],
)
def test_a_long_text_keeps_what_the_truncation_says(truncation, kept):
    packed = add_special_tokens_in_graph(ragged([list(range(11, 20)), [30]]), None, special(truncation=truncation))
    assert packed["token_ids"].numpy().tolist() == [[2, *kept, 3], [2, 30, 3, 0, 0, 0, 0, 0]]
    assert packed["padding_mask"].numpy().tolist() == [[1] * 8, [1, 1, 1, 0, 0, 0, 0, 0]]
    assert not packed["segment_ids"].numpy().any()


def test_an_odd_room_gives_the_head_one_token_more():
    packed = add_special_tokens_in_graph(
        ragged([list(range(11, 20))]), None, special(truncation="head_tail", max_length=7)
    )
    assert packed["token_ids"].numpy().tolist() == [[2, 11, 12, 13, 18, 19, 3]]


def test_the_longer_text_of_a_pair_is_cut_first():
    first, second = ragged([[11, 12, 13, 14, 15, 16], [11], [11, 12, 13, 14]]), ragged([[21], [21] * 9, [21] * 4])
    packed = add_special_tokens_in_graph(first, second, special())
    assert packed["token_ids"].numpy().tolist() == [
        [2, 11, 12, 13, 14, 3, 21, 3],
        [2, 11, 3, 21, 21, 21, 21, 3],
        [2, 11, 12, 13, 3, 21, 21, 3],
    ]
    assert packed["segment_ids"].numpy().tolist() == [[0] * 6 + [1] * 2, [0] * 3 + [1] * 5, [0] * 5 + [1] * 3]


@pytest.mark.parametrize("is_pair", [False, True])
@pytest.mark.parametrize("truncation", ["head", "tail", "head_tail"])
def test_the_graph_packs_as_the_batches_of_training_do(is_pair, truncation):
    rng = np.random.default_rng(1)
    for max_length in (8, 9, 16):
        rule = special(max_length=max_length, truncation=truncation, between_ids=(3, 3), end_ids=(3, 4))
        columns = [[rng.integers(5, 60, rng.integers(0, 20)).tolist() for _ in range(50)] + [[]] for _ in range(2)]
        columns[1] = columns[1] if is_pair else [[]] * 51
        rows = [(np.array(a, np.int32), np.array(b, np.int32)) for a, b in zip(*columns, strict=True)]
        expected = add_special_tokens(rows, rule, length=max_length, is_pair=is_pair)
        second = ragged(columns[1]) if is_pair else None
        for length in (None, max_length):  # the longest row of fifty is a full one
            packed = add_special_tokens_in_graph(ragged(columns[0]), second, rule, length=length)
            for name, value in expected.items():
                np.testing.assert_array_equal(packed[name].numpy(), value, err_msg=name)


def test_a_batch_is_as_long_as_its_longest_row_and_no_rows_are_a_batch_too():
    assert add_special_tokens_in_graph(ragged([[7, 8], [7]]), None, special())["token_ids"].shape == (2, 4)
    empty = tf.RaggedTensor.from_row_lengths(tf.constant([], tf.int32), tf.constant([], tf.int64))
    packed = add_special_tokens_in_graph(empty, empty, special())
    assert {name: value.shape for name, value in packed.items()} == dict.fromkeys(packed, (0, 3))


def test_a_single_label_answer_is_the_most_likely_name():
    outputs = answer(tf.constant([[0.0, np.log(3.0), 0.0]]), SINGLE)
    assert outputs["label"].numpy().tolist() == [b"b"]
    assert outputs["label_id"].numpy().tolist() == [1]
    np.testing.assert_allclose(outputs["probabilities"], [[0.2, 0.6, 0.2]], atol=1e-6)


def test_a_multi_label_answer_has_every_name_above_a_half():
    outputs = answer(tf.constant([[1.0, -1.0, 2.0], [-1.0, -1.0, 0.0], [-1.0, 3.0, -1.0]]), PAIR)
    assert outputs["label"].numpy().tolist() == [b"a|c", b"", b"b"]
    assert outputs["predicted"].numpy().tolist() == [[1, 0, 1], [0, 0, 0], [0, 1, 0]]
    np.testing.assert_allclose(outputs["probabilities"][0], 1 / (1 + np.exp([-1.0, 1.0, -2.0])), atol=1e-6)


def test_a_regression_answer_is_the_number_itself():
    spec = ServingSpec(label_names=(), problem_type="regression", is_pair=False, max_length=8, truncation="head")
    assert {k: v.numpy().tolist() for k, v in answer(tf.constant([[1.5], [-2.0]]), spec).items()} == {
        "value": [1.5, -2.0]
    }


def test_a_text_is_answered_alike_beside_any_neighbour(tmp_path):
    ask = text_function(ClassifierModule(build_model(), load_tokenizer(tmp_path), SINGLE))
    texts = ["abc", "", "z " * 100, b"\xff\xfe a", "\ud800 a", "é"]
    together = ask(texts, None)["logits"]
    for index, text in enumerate(texts):
        np.testing.assert_allclose(ask([text], None)["logits"][0], together[index], atol=1e-5, rtol=0)
    assert np.ptp(together, axis=0).max() > 1e-2
    assert {name: len(value) for name, value in ask([], None).items()} == dict.fromkeys(ask(texts, None), 0)


def test_the_second_text_of_a_pair_counts(tmp_path):
    ask = text_function(ClassifierModule(build_model(), load_tokenizer(tmp_path), PAIR))
    logits = ask(["abc", "abc"], ["xyz", "zyx"])["logits"]
    assert np.abs(logits[0] - logits[1]).max() > 1e-3


def examples(*rows):
    """Serialized tf.Examples with the given string features."""
    features = [
        {name: tf.train.Feature(bytes_list=tf.train.BytesList(value=[text.encode()])) for name, text in row.items()}
        for row in rows
    ]
    serialized = [
        tf.train.Example(features=tf.train.Features(feature=feature)).SerializeToString() for feature in features
    ]
    return tf.constant(serialized, tf.string, shape=[len(rows)])


def test_examples_are_answered_by_all_classes_and_their_scores(tmp_path):
    module = ClassifierModule(build_model(), load_tokenizer(tmp_path), SINGLE)
    found = call(module, "classify", inputs=examples({"text": "abc é"}, {"text": "z " * 100, "other": "x"}, {}))
    expected = call_texts(module, ["abc é", "z " * 100, ""])
    np.testing.assert_array_equal(found["scores"], expected["probabilities"])
    assert found["classes"].tolist() == [[b"a", b"b", b"c"]] * 3
    assert {name: value.shape for name, value in call(module, "classify", inputs=examples()).items()} == {
        "classes": (0, 3),
        "scores": (0, 3),
    }


def test_an_example_of_a_pair_may_lack_one_of_its_texts(tmp_path):
    module = ClassifierModule(build_model(), load_tokenizer(tmp_path), PAIR)
    rows = examples({"text": "ab", "text_b": "cd"}, {"text_b": "cd"}, {"text": "ab"})
    found = call(module, "classify", inputs=rows)
    expected = call(module, "serving_default", text=["ab", "", "ab"], text_b=["cd", "cd", ""])
    np.testing.assert_array_equal(found["scores"], expected["probabilities"])


def test_a_number_is_answered_to_an_example_by_the_name_that_the_server_knows(tmp_path):
    spec = ServingSpec(label_names=(), problem_type="regression", is_pair=False, max_length=16, truncation="head")
    module = ClassifierModule(build_model(num_outputs=1), load_tokenizer(tmp_path), spec)
    assert list(module.signatures()) == ["serving_default", "regress", "token_ids", "tokenize"]
    found = call(module, "regress", inputs=examples({"text": "abc"}, {"text": "z"}))
    assert {name: value.shape for name, value in found.items()} == {"outputs": (2,)}
    np.testing.assert_array_equal(found["outputs"], call_texts(module, ["abc", "z"])["value"])


@pytest.mark.filterwarnings("ignore:You are using a softmax")
def test_rows_of_like_length_are_computed_together_and_answers_stay_in_their_places(tmp_path):
    spec = dataclasses.replace(SINGLE, max_length=80)
    model, widths = build_model(max_length=80), []

    def network(batch):
        widths.append(tuple(batch["token_ids"].shape))
        return model(batch, training=False)

    texts = ["z " * count for count in (3, 70, 0, 14, 15, 40, 1, 500)]
    tokenizer = load_tokenizer(tmp_path)
    batch = call(ClassifierModule(model, tokenizer, spec), "tokenize", text=texts)
    forward = functools.partial(classifier_signatures._by_length, network, num_outputs=3)
    found = forward(batch)
    assert widths == [(4, 16), (1, 17), (1, 42), (2, 80)]
    np.testing.assert_allclose(found, model(batch, training=False), atol=1e-5)
    assert forward({name: ids[:0] for name, ids in batch.items()}).shape == (0, 3)
    nothing = {name: tf.zeros_like(ids) for name, ids in batch.items()}
    assert forward(nothing).shape == (8, 3)
    assert widths[-1] == (8, 1)


def test_token_ids_are_answered_as_their_text_is_and_read_no_further_than_the_longest(tmp_path):
    model = build_model()
    module = ClassifierModule(model, load_tokenizer(tmp_path), SINGLE)
    texts = ["abc", "", "é z"]
    ids = call(module, "tokenize", text=texts)
    assert {name: value.shape for name, value in ids.items()} == dict.fromkeys(model.input, (3, 16))
    found, expected = call(module, "token_ids", **ids), call_texts(module, texts)
    for name, value in expected.items():
        np.testing.assert_array_equal(found[name], value, err_msg=name)
    # A row is read to its last token, also where there is padding before it.
    gap = call(module, "tokenize", text=["abc abc"])
    gap["padding_mask"][0, 2] = 0
    np.testing.assert_allclose(
        call(module, "token_ids", **gap)["logits"], model(model_inputs(model, gap), training=False), atol=1e-5
    )
    whole = {name: value[:0] for name, value in ids.items()}
    assert {name: len(value) for name, value in call(module, "token_ids", **whole).items()} == dict.fromkeys(
        expected, 0
    )


def test_the_module_tracks_each_weight_once_and_no_random_state(tmp_path):
    model = build_model()
    module = ClassifierModule(model, load_tokenizer(tmp_path), SINGLE)
    assert [id(variable) for variable in module.variables] == [id(weight.value) for weight in model.weights]
