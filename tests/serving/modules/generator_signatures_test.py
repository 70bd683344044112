"""Prompt to text in graph ops: what a server is asked, and what it answers whatever it is asked."""

import re

import numpy as np
import pytest
import tensorflow as tf

from aigc_tf.errors import InputError
from aigc_tf.generation.stopping import cut_at_stop
from aigc_tf.serving.modules.continuer import SETTINGS, Continuer, cut_prompts, request_settings
from aigc_tf.serving.modules.generator_fields import lines_of
from tests import tiny_classifier, tiny_generator
from tests.tiny_generator import MAX_LENGTH, PROMPTS, request, settings

HOSTILE = [*PROMPTS, b"\xff\xfe not \xc3 UTF-8", " \t\r\n", "\u2581 \u2581", "</s><s>", "🙂" * 30, b"\xf0\x9f\x99"]
END = 3


@pytest.fixture(scope="module")
def tokenizer():
    return tiny_generator.build_tokenizer_of_texts()


@pytest.fixture(scope="module")
def model(tokenizer):
    return tiny_generator.build_model(tokenizer)


@pytest.fixture(scope="module")
def module(model, tokenizer):
    return tiny_generator.build_module(model, tokenizer)


def ask(module, prompts, **changes):
    return module.signatures()["serving_default"](request(prompts, **changes))


def ask_ids(module, rows, inputs, *, padding=0):
    """Asks for continuations of rows of ids, with the settings of a request."""
    ids = np.full((len(rows), MAX_LENGTH), padding, np.int32)
    for target, row in zip(ids, rows, strict=True):
        target[: len(row)] = row
    given = {"prompt_ids": tf.constant(ids), "prompt_lengths": tf.constant([len(row) for row in rows], tf.int32)}
    settings = {name: value for name, value in inputs.items() if name != "prompt"}
    return module.signatures()["generate_ids"](given | settings)


def rows_of(outputs):
    return [ids[:count].tolist() for ids, count in zip(outputs["token_ids"], outputs["num_tokens"], strict=True)]


def test_every_input_and_output_has_the_batch_first(module):
    outputs = {
        "text": (tf.string, 1),
        "text_bytes": (tf.string, 1),
        "token_ids": (tf.int32, 2),
        "num_tokens": (tf.int32, 1),
        "finish_reason": (tf.string, 1),
        "log_probability": (tf.float32, 1),
        "prompt_cut": (tf.int32, 1),
    }
    settings = {name: (dtype, 1) for name, dtype in SETTINGS.items()}
    expected = {
        "serving_default": {"prompt": (tf.string, 1), **settings},
        "defaults": {"prompt": (tf.string, 1)},
        "generate_ids": {"prompt_ids": (tf.int32, 2), "prompt_lengths": (tf.int32, 1), **settings},
        "generate_until": {"prompt": (tf.string, 1), "stop": (tf.string, 2), **settings},
        "score": {"prompt": (tf.string, 1), "continuation": (tf.string, 1)},
        "choose": {"prompt": (tf.string, 1), "choices": (tf.string, 1)},
    }
    scored = {"log_probability": (tf.float32, 1), "num_tokens": (tf.int32, 1), "prompt_cut": (tf.int32, 1)}
    scored |= {
        "token_ids": (tf.int32, 2),
        "token_log_probabilities": (tf.float32, 2),
        "continuation_cut": (tf.int32, 1),
    }
    chosen = {"choice": (tf.string, 1), "choice_id": (tf.int32, 1), "prompt_cut": (tf.int32, 1)}
    chosen |= {"log_probabilities": (tf.float32, 2), "probabilities": (tf.float32, 2)}
    assert module.signatures().keys() == expected.keys()
    for name, signature in module.signatures().items():
        concrete = signature.function.get_concrete_function()
        inputs = tf.nest.flatten(concrete.structured_input_signature)
        assert {one.name: (one.dtype, one.shape.rank) for one in inputs} == expected[name]
        found = concrete.structured_outputs
        assert {key: (value.dtype, value.shape.rank) for key, value in found.items()} == {
            "score": scored,
            "choose": chosen,
        }.get(name, outputs)
        assert {value.shape[0] for value in [*inputs, *found.values()]} == {None}


def test_too_long_prompts_are_cut_from_the_left_and_empty_ones_begin_a_text():
    ids = tf.constant([[11, 12, 13, 14, 15], [21, 99, 99, 99, 99], [99] * 5, [31, 32, 33, 34, 99]])
    kept, lengths, cut = cut_prompts(ids, tf.constant([5, 1, 0, 4]), room=4, end_id=END)
    assert kept.numpy().tolist() == [[12, 13, 14, 15], [21, END, END, END], [END] * 4, [31, 32, 33, 34]]
    assert (lengths.numpy().tolist(), cut.numpy().tolist()) == ([4, 1, 1, 4], [1, 0, 0, 0])
    kept, lengths, _ = cut_prompts(ids[:2], tf.constant([-3, 2**31 - 1]), room=8, end_id=END)
    assert lengths.numpy().tolist() == [1, 5]
    for shape in ([0, 0], [0, 3], [2, 0]):
        kept, lengths, cut = cut_prompts(tf.zeros(shape, tf.int32), tf.zeros(shape[:1], tf.int32), room=4, end_id=END)
        assert kept.numpy().tolist() == [[END]] * shape[0]
        assert (lengths.numpy().tolist(), cut.numpy().tolist()) == ([1] * shape[0], [0] * shape[0])


def test_a_negative_setting_is_that_of_the_export_and_what_is_too_great_becomes_the_greatest_that_fits():
    given = request(["x"] * 3)
    own = settings(max_new_tokens=9, temperature=0.7, top_k=40, top_p=0.9, min_p=0.05, repetition_penalty=1.2)
    changes = {
        "max_new_tokens": [-1, -(2**31), 0],
        "temperature": [-0.5, np.nan, np.inf],
        "top_k": [-3, 0, 2**31 - 1],
        "top_p": [0.0, 1.5, np.nan],
        "min_p": [-1.0, 2.0, -np.inf],
        "repetition_penalty": [0.0, -1.0, 1e9],
    }
    given |= {name: tf.constant(values, SETTINGS[name]) for name, values in changes.items()}
    found = request_settings(given, own)._asdict()
    expected = {
        "max_new_tokens": [9, 9, 0],
        "temperature": [0.7, 0.7, 1000.0],
        "top_k": [40, 0, 2**31 - 1],
        "top_p": [1e-6, 1.0, 0.9],
        "min_p": [0.05, 1.0, 0.05],
        "repetition_penalty": [0.01, 1.2, 100.0],
        "seed": [3, 4, 5],
    }
    for name, values in expected.items():
        np.testing.assert_allclose(found[name].numpy(), values, rtol=1e-6, err_msg=name)


def test_no_request_is_refused_for_its_settings(module):
    wild = ask(module, PROMPTS, max_new_tokens=0, temperature=1e30)
    assert wild["token_ids"].shape == (len(PROMPTS), 0)
    assert set(wild["text"]) == {b""}
    assert set(wild["finish_reason"]) == {b"length"}
    assert not wild["log_probability"].any()
    everything = ask(module, PROMPTS, max_new_tokens=2**31 - 1)
    lengths = [min(len(ids), MAX_LENGTH - 1) or 1 for ids in module.tokenizer.encode(PROMPTS)]
    for prompt, count, reason in zip(lengths, everything["num_tokens"], everything["finish_reason"], strict=True):
        assert prompt + count == MAX_LENGTH if reason == b"length" else prompt + count < MAX_LENGTH
    assert rows_of(ask(module, PROMPTS, top_p=0.0)) == rows_of(ask(module, PROMPTS, top_k=1))


def test_a_hostile_prompt_is_answered_in_utf_8_by_the_bytes_of_its_tokens(module):
    outputs = ask(module, HOSTILE)
    for text, raw, ids in zip(outputs["text"], outputs["text_bytes"], rows_of(outputs), strict=True):
        assert raw == module.tokenizer.decode_bytes(ids)
        assert text.decode() == raw.decode("utf-8", "replace")
    assert outputs["num_tokens"].min() >= 1
    assert np.isfinite(outputs["log_probability"]).all()


def test_a_row_alone_is_the_row_in_a_batch(module):
    together = ask(module, HOSTILE)
    for row, prompt in enumerate(HOSTILE):
        alone = ask(module, [prompt], seed=[row + 3])
        assert rows_of(alone)[0] == rows_of(together)[row]
        for name in ("text", "finish_reason", "prompt_cut"):
            assert alone[name][0] == together[name][row]
        assert alone["log_probability"][0] == pytest.approx(together["log_probability"][row], abs=1e-4)


def test_the_same_seed_draws_the_same_and_another_seed_another_text(module):
    first, again, other = (ask(module, PROMPTS, seed=seed)["text"].tolist() for seed in (5, 5, 6))
    assert first == again
    assert sum(a != b for a, b in zip(first, other, strict=True)) >= len(PROMPTS) - 1


def test_answers_are_no_longer_than_the_batch_needs(module):
    outputs = ask(module, ["a", "b", "c"], max_new_tokens=[2, 5, 0])
    assert outputs["token_ids"].shape == (3, 5)
    assert outputs["num_tokens"].tolist() == [2, 5, 0]
    assert (outputs["token_ids"][0, 2:] == END).all()


def test_an_end_of_text_ends_a_row_and_is_not_part_of_it(tokenizer):
    model = tiny_generator.build_model(tokenizer)
    model.embeddings.tokens.assign(np.zeros(model.embeddings.tokens.shape))  # all ids equally likely
    module = tiny_generator.build_module(model, tokenizer)
    outputs = ask(module, ["x"] * 64, max_new_tokens=40)
    ended = outputs["finish_reason"] == b"end"
    assert 0 < ended.sum() < 64
    assert all(END not in ids for ids in rows_of(outputs))
    expected = -(outputs["num_tokens"] + ended) * np.log(tokenizer.vocabulary_size)
    np.testing.assert_allclose(outputs["log_probability"], expected, rtol=1e-5)


def test_no_prompts_are_a_batch_too(module):
    for name, value in ask(module, []).items():
        assert value.shape == ((0, 0) if name == "token_ids" else (0,)), name
    assert ask_ids(module, [], request([]))["text"].shape == (0,)


def test_what_was_cut_off_a_prompt_is_counted(module):
    outputs = ask(module, ["a" * 200, "b"])
    lengths = [len(ids) for ids in module.tokenizer.encode(["a" * 200, "b"])]
    assert outputs["prompt_cut"].tolist() == [lengths[0] - (MAX_LENGTH - 1), 0]
    assert outputs["num_tokens"].tolist()[0] == 1
    kept = module.tokenizer.decode(module.tokenizer.encode(["a" * 200])[0][-(MAX_LENGTH - 1) :])
    assert rows_of(ask(module, [kept]))[0] == rows_of(outputs)[0]


def test_ids_are_continued_as_their_text_is_whatever_fills_them_up(module):
    prompts = [prompt for prompt in PROMPTS if len(module.tokenizer.encode([prompt])[0]) <= MAX_LENGTH]
    expected = ask(module, prompts)
    for padding in (77, -1, 2**31 - 1):
        found = ask_ids(module, module.tokenizer.encode(prompts), request(prompts), padding=padding)
        for name, value in expected.items():
            np.testing.assert_array_equal(found[name], value, err_msg=name)


def test_a_row_with_an_id_that_is_none_is_refused_and_its_neighbours_are_not_touched(module, tokenizer):
    size = tokenizer.vocabulary_size
    rows = [[5, 6], [5, size], [-1], [size - 1] * (MAX_LENGTH - 2), [7]]
    found = ask_ids(module, rows, request(["x"] * 5))
    assert found["finish_reason"].tolist()[1:3] == [b"refused"] * 2
    assert found["num_tokens"].tolist()[1:4] == [0, 0, 2]
    assert (found["text"][1], found["log_probability"][1]) == (b"", 0.0)
    for row in (0, 3, 4):
        alone = ask_ids(module, rows[row : row + 1], request(["x"], seed=[row + 3]))
        assert rows_of(alone)[0] == rows_of(found)[row]


def test_without_settings_each_row_has_those_of_the_export_and_the_same_seed(model, tokenizer):
    module = tiny_generator.build_module(model, tokenizer, max_new_tokens=9, temperature=0.9, top_k=30, seed=11)
    found = module.signatures()["defaults"]({"prompt": tf.constant(["x", "Pack my", "x"])})
    expected = ask(module, ["x", "Pack my", "x"], max_new_tokens=9, temperature=0.9, top_k=30, seed=[11] * 3)
    for name, value in expected.items():
        np.testing.assert_array_equal(found[name], value, err_msg=name)
    assert rows_of(expected)[0] == rows_of(expected)[2]


def test_stop_strings_of_the_export_end_every_text(model, module, tokenizer):
    whole = ask(module, PROMPTS, max_new_tokens=20)
    spelled = [tokenizer.decode_bytes(ids) for ids in rows_of(whole)]
    stops = [re.search(rb"[ -~]{2}", spelled[row])[0] for row in (0, 2)]
    stopping = tiny_generator.build_module(model, tokenizer, stop=tuple(stop.decode() for stop in stops))
    found = ask(stopping, PROMPTS, max_new_tokens=20)
    for row, text in enumerate(spelled):
        is_stopped = any(stop in text for stop in stops)
        assert found["text_bytes"][row] == cut_at_stop(text, stops)
        assert found["finish_reason"][row] == (b"stop" if is_stopped else whole["finish_reason"][row])
        assert rows_of(whole)[row][: len(rows_of(found)[row])] == rows_of(found)[row]
    assert 2 <= (found["finish_reason"] == b"stop").sum() < len(PROMPTS)
    for name, value in stopping.signatures()["defaults"]({"prompt": tf.constant(["x"])}).items():
        np.testing.assert_array_equal(value, ask(stopping, ["x"], seed=[3])[name])


def test_stop_strings_of_a_request_end_its_own_row_beside_those_of_the_export(model, module, tokenizer):
    whole = ask(module, PROMPTS, max_new_tokens=20)
    spelled = [tokenizer.decode_bytes(ids) for ids in rows_of(whole)]
    always = re.search(rb"[ -~]", spelled[3])[0]
    stopping = tiny_generator.build_module(model, tokenizer, stop=(always.decode(),))
    stops = [[text[3:5], b"never", b"", text[6:9]] for text in spelled]  # halves of characters too
    stops[2], stops[4] = [b""] * 4, [b"", b"", b"x" * 257, b"a"]
    found = stopping.signatures()["generate_until"](
        {**request(PROMPTS, max_new_tokens=20), "stop": tf.constant(stops, tf.string, shape=[len(PROMPTS), 4])}
    )
    for row, text in enumerate(spelled):
        mine = [always, *filter(None, stops[row])]
        if row == 4:
            assert (found["finish_reason"][row], found["num_tokens"][row]) == (b"refused", 0)
            continue
        assert found["text_bytes"][row] == cut_at_stop(text, mine)
        is_stopped = any(stop in text for stop in mine)
        assert found["finish_reason"][row] == (b"stop" if is_stopped else whole["finish_reason"][row])
        ids = rows_of(found)[row]
        assert rows_of(whole)[row][: len(ids)] == ids
        if is_stopped:  # and not a token later
            assert not any(stop in tokenizer.decode_bytes(ids[:-1]) for stop in mine)
    assert (found["finish_reason"] == b"stop").sum() >= 4


def test_too_long_a_prompt_is_refused_where_the_export_says_so_and_its_neighbours_are_not_touched(model, tokenizer):
    module = tiny_generator.build_module(model, tokenizer, long_prompt="refuse")
    fits = tokenizer.decode(tokenizer.encode(["a" * 200])[0][: MAX_LENGTH - 1])
    assert len(tokenizer.encode([fits])[0]) == MAX_LENGTH - 1
    found = ask(module, ["a" * 200, "The quick", fits])
    length = len(tokenizer.encode(["a" * 200])[0])
    assert found["prompt_cut"].tolist() == [length - (MAX_LENGTH - 1), 0, 0]
    assert (found["finish_reason"][0], found["text"][0], found["num_tokens"][0]) == (b"refused", b"", 0)
    assert found["log_probability"][0] == 0.0
    cut = ask(tiny_generator.build_module(model, tokenizer), ["", "The quick", fits])
    for name in ("text", "num_tokens", "finish_reason"):
        assert found[name][1:].tolist() == cut[name][1:].tolist()
    assert (found["num_tokens"][2], found["finish_reason"][2]) == (1, b"length")
    for prompts in (["a" * 200], []):
        assert ask(module, prompts)["token_ids"].shape == (len(prompts), 0)


def test_a_saved_model_holds_the_network_once(module):
    """The loop is one function, whatever calls it."""
    names = set()
    for signature in module.signatures().values():
        graph = signature.function.get_concrete_function().graph
        names |= {
            definition.signature.name
            for definition in graph.as_graph_def().library.function
            if sum(node.op == "MatMul" for node in definition.node_def) > 1
        }
    # Reading the prompts and a step; both again for `generate_until`; reading prompts, and what follows, to score it.
    assert len(names) == 8, names


def test_ids_that_only_the_model_has_are_never_chosen(tokenizer):
    wide = tiny_generator.build_model(tokenizer, spare_ids=200)
    assert wide.sizes["vocabulary_size"] == tokenizer.vocabulary_size + 200
    outputs = ask(tiny_generator.build_module(wide, tokenizer), PROMPTS, temperature=3.0)
    assert outputs["token_ids"].max() < tokenizer.vocabulary_size


def test_the_module_tracks_each_weight_once_and_no_random_state(model, module):
    weights = [id(weight.value) for weight in model.weights if weight.dtype == "float32"]
    assert [id(variable) for variable in module.variables if variable.dtype == tf.float32] == weights
    assert {id(variable) for variable in module.variables} == {id(weight.value) for weight in model.weights}


def test_what_cannot_be_served_is_refused(model, tmp_path):
    with pytest.raises(InputError, match="'wordpiece', which has no end of text"):
        Continuer(model, tiny_classifier.load_tokenizer(tmp_path), max_length=MAX_LENGTH)
    with pytest.raises(InputError, match="needs XLA ops"):
        Continuer(tiny_classifier.build_model(), tiny_classifier.load_tokenizer(tmp_path), max_length=MAX_LENGTH)


def test_choices_to_try_are_made_of_as_few_texts_as_there_are():
    assert lines_of([]) == ()
    assert lines_of(["a", b"b"]) == (b"b\na\nb", b"a\nb\na")
