"""Text from a live model: in any batch, piece by piece, up to a stop string, by beams, by KerasNLP."""

import random

import keras_nlp
import numpy as np
import pytest

from aigc_tf.errors import InputError
from aigc_tf.models.generators.generator_sources import wrap_backbone
from aigc_tf.serving.local import preset_generation
from aigc_tf.serving.local.continuations import pad_rows, settings_of
from aigc_tf.serving.local.text_generator import TextGenerator, _PieceStream
from tests import tiny_classifier, tiny_generator
from tests.tiny_generator import MAX_LENGTH, PROMPTS, request, settings

HOSTILE = [*PROMPTS, "\ud83d half", " \t\r\n", "\u2581", "</s><s>", "🙂" * 30, "long " * 500]


@pytest.fixture(scope="module")
def tokenizer():
    return tiny_generator.build_tokenizer_of_texts()


@pytest.fixture(scope="module")
def model(tokenizer):
    return tiny_generator.build_model(tokenizer)


@pytest.fixture(scope="module")
def generator(model, tokenizer):
    return TextGenerator(model, tokenizer, max_length=MAX_LENGTH)


@pytest.fixture(scope="module")
def texts(generator):
    return [answer.text for answer in generator.generate(HOSTILE, settings=settings())]


def texts_of(generator, prompts, **changes):
    return [answer.text for answer in generator.generate(prompts, settings=settings(**changes))]


def test_a_live_model_says_what_its_served_functions_say(generator, model, tokenizer):
    prompts = [prompt.encode("utf-8", "replace") for prompt in HOSTILE]
    module = tiny_generator.build_module(model, tokenizer)
    expected = module.signatures()["serving_default"](request(prompts))
    for row, answer in enumerate(generator.generate(HOSTILE, settings=settings(), batch_size=len(HOSTILE))):
        assert answer.text == expected["text"][row].decode()
        assert answer.token_ids == tuple(expected["token_ids"][row, : expected["num_tokens"][row]])
        assert answer.finish_reason == expected["finish_reason"][row].decode()
        assert answer.log_probability == pytest.approx(expected["log_probability"][row], abs=1e-4)
        assert answer.prompt_cut == expected["prompt_cut"][row]


@pytest.mark.parametrize("batch_size", [1, 3, 100])
def test_the_size_of_a_batch_changes_no_text(batch_size, generator, texts):
    answers = generator.generate(HOSTILE, settings=settings(), batch_size=batch_size)
    assert [answer.text for answer in answers] == texts


def test_row_i_draws_by_seed_plus_i(generator, texts):
    assert [texts_of(generator, [prompt], seed=3 + row)[0] for row, prompt in enumerate(HOSTILE)] == texts
    alike = texts_of(generator, ["The quick"] * 6)
    assert len(set(alike)) > 3
    assert texts_of(generator, ["x"], seed=2**63 - 1) == texts_of(generator, ["x"], seed=2**63 - 1)
    assert settings_of(settings(seed=2**63 - 1), 2).seed.numpy().tolist() == [2**63 - 1, -(2**63)]


@pytest.mark.parametrize("row", range(len(HOSTILE)))
def test_a_stream_is_the_text_in_pieces(row, generator, texts):
    pieces = list(generator.stream(HOSTILE[row], settings=settings(seed=3 + row)))
    (answer,) = generator.generate([HOSTILE[row]], settings=settings(seed=3 + row))
    assert "".join(piece.text for piece in pieces) == texts[row]
    assert all(piece.text and not piece.finish_reason for piece in pieces[:-1])
    assert pieces[-1][1:] == (len(answer.token_ids), answer.finish_reason, answer.prompt_cut)
    assert len(pieces) > 1 or len(texts[row]) < 12


def test_a_stop_string_is_cut_off_wherever_it_stands_and_however_it_comes(generator, tokenizer):
    """Stop strings out of the text itself, over the borders of tokens and of pieces of a stream."""
    rng = random.Random(0)
    for row, prompt in enumerate(PROMPTS[:2]):
        (whole,) = generator.generate([prompt], settings=settings(seed=row, max_new_tokens=16, top_k=30))
        spelled = tokenizer.decode_bytes(whole.token_ids)
        places = [place for place in range(len(whole.text) - 1) if "\ufffd" not in whole.text[place : place + 2]]
        place = rng.choice(places)
        stop = (whole.text[place : place + 2], whole.text[place : place + 2] + "never", "never at all")
        chosen = settings(seed=row, max_new_tokens=16, top_k=30, stop=stop)
        (answer,) = generator.generate([prompt], settings=chosen)
        assert answer.finish_reason == "stop"
        assert answer.text == spelled.split(stop[0].encode())[0].decode("utf-8", "replace")
        assert answer.token_ids == whole.token_ids[: len(answer.token_ids)]
        assert "".join(piece.text for piece in generator.stream(prompt, settings=chosen)) == answer.text


def test_pieces_are_the_text_however_bytes_come_and_whatever_stops_it():
    rng = random.Random(1)
    alphabet = ["a", "b", "ab", "é", "中", "🙂", "\n", "\ufffd"]
    for _ in range(300):
        text = "".join(rng.choice(alphabet) for _ in range(rng.randrange(12))).encode()
        text = bytes(byte for byte in text if rng.random() > 0.05)  # broken here and there
        stops = ["".join(rng.choice(alphabet) for _ in range(rng.randrange(1, 4))).encode() for _ in range(2)]
        pieces, shown, at = _PieceStream(stops), "", 0
        ends = [text.find(stop) + len(stop) for stop in stops if stop in text]
        end = min(ends, default=len(text))
        cut = max((len(stop) for stop in stops if text[:end].endswith(stop) and stop in text[:end]), default=0)
        while True:
            size = rng.randrange(4)
            is_last = at + size >= end
            size = min(size, end - at)
            shown += pieces.add(text[at : at + size], cut_bytes=cut if is_last else 0, is_last=is_last)
            assert text[: end - cut].decode("utf-8", "replace").startswith(shown)
            at += size
            if is_last:
                break
        assert shown == text[: end - cut].decode("utf-8", "replace")


def test_functions_are_traced_once_for_all_shapes_settings_and_weights(model, tokenizer):
    generator = TextGenerator(model, tokenizer, max_length=MAX_LENGTH)
    for batch_size, prompts in ((1, PROMPTS), (4, PROMPTS), (3, ["x" * 30] * 5)):
        for change in ({}, {"temperature": 0.0}, {"top_k": 3, "repetition_penalty": 1.5, "max_new_tokens": 3}):
            list(generator.generate(prompts, settings=settings(**change), batch_size=batch_size))
    for prompt in PROMPTS[:3]:
        list(generator.stream(prompt, settings=settings(top_p=0.5)))
    (functions,) = generator._functions.values()
    traced = [functions.generate, functions.start, functions._advance]
    assert [function.experimental_get_tracing_count() for function in traced] == [1, 1, 1]


def test_a_model_that_learns_says_something_else(tokenizer):
    model = tiny_generator.build_model(tokenizer)
    generator = TextGenerator(model, tokenizer, max_length=MAX_LENGTH)
    before = texts_of(generator, PROMPTS, temperature=0.0)
    other = tiny_generator.build_model(tokenizer, seed=9)
    for weight, value in zip(model.weights, other.weights, strict=True):
        weight.assign(value)
    assert texts_of(generator, PROMPTS, temperature=0.0) != before
    expected = texts_of(TextGenerator(other, tokenizer, max_length=MAX_LENGTH), PROMPTS, temperature=0.0)
    assert texts_of(generator, PROMPTS, temperature=0.0) == expected


def test_text_is_computed_in_float32_whatever_a_model_is_trained_in(texts, tokenizer):
    half = tiny_generator.build_model(tokenizer, dtype="mixed_bfloat16")
    assert texts_of(TextGenerator(half, tokenizer, max_length=MAX_LENGTH), HOSTILE) == texts
    assert half.dtype_policy.name == "mixed_bfloat16"


def test_beams_find_what_is_at_least_as_likely_a_token_and_draw_nothing(generator):
    beams = list(generator.generate(PROMPTS[:4], settings=settings(num_beams=4, seed=1)))
    again = list(generator.generate(PROMPTS[:4], settings=settings(num_beams=4, seed=2), batch_size=2))
    assert [answer.text for answer in beams] == [answer.text for answer in again]
    greedy = list(generator.generate(PROMPTS[:4], settings=settings(temperature=0.0)))
    totals = [
        sum(answer.log_probability / max(1, len(answer.token_ids)) for answer in answers) for answers in (beams, greedy)
    ]
    assert totals[0] > totals[1]
    assert [piece.text for piece in generator.stream(PROMPTS[0], settings=settings(num_beams=4))] == [beams[0].text]


def test_what_does_not_fit_is_said_before_anything_is_computed(generator, model, tmp_path):
    with pytest.raises(InputError, match=r"top_p is 1\.5"):
        generator.generate(PROMPTS, settings=settings(top_p=1.5))
    with pytest.raises(InputError, match="stop string is empty"):
        generator.stream("x", settings=settings(stop=("",)))
    with pytest.raises(InputError, match="single string; give a list"):
        generator.generate("The quick", settings=settings())
    with pytest.raises(InputError, match=r"Prompt 1 .* is a int"):
        generator.generate(["a", 3], settings=settings())
    with pytest.raises(InputError, match=r"no end of text"):
        TextGenerator(model, tiny_classifier.load_tokenizer(tmp_path), max_length=MAX_LENGTH)


def test_no_prompts_and_no_tokens_are_answered(generator):
    assert list(generator.generate([], settings=settings())) == []
    (answer,) = generator.generate(["x"], settings=settings(max_new_tokens=0))
    assert (answer.text, answer.token_ids, answer.finish_reason, answer.log_probability) == ("", (), "length", 0.0)
    assert list(generator.stream("x", settings=settings(max_new_tokens=0))) == [("", 0, "length", 0)]


def test_rows_of_ids_are_padded_on_the_right():
    ids, lengths = pad_rows([np.array([5, 6]), np.array([], np.int32), np.array([7])])
    assert (ids.tolist(), lengths.tolist()) == ([[5, 6], [0, 0], [7, 0]], [2, 0, 1])
    assert [array.shape for array in pad_rows([])] == [(0, 0), (0,)]


@pytest.fixture(scope="module")
def preset_generator(tokenizer):
    """A network that is not GPT-2, in KerasNLP's own layers."""
    backbone = keras_nlp.models.GPTNeoXBackbone(
        vocabulary_size=tokenizer.vocabulary_size,
        num_layers=1,
        num_heads=2,
        hidden_dim=16,
        intermediate_dim=32,
        max_sequence_length=MAX_LENGTH,
    )
    model = wrap_backbone(keras_nlp.models.GPTNeoXCausalLM, backbone)
    rng = np.random.default_rng(0)
    for weight in model.weights:
        if len(weight.shape) > 1:
            weight.assign(rng.normal(0, 0.5, weight.shape))
    return TextGenerator(model, tokenizer, max_length=MAX_LENGTH)


def test_another_network_of_keras_nlp_is_continued_by_its_own_generation(preset_generator, tokenizer):
    prompts = ["The quick", "", "a" * 200]
    answers = list(preset_generator.generate(prompts, settings=settings(max_new_tokens=4, top_k=5)))
    for row, answer in enumerate(answers):
        chosen = settings(max_new_tokens=4, top_k=5, seed=3 + row)
        (alone,) = preset_generator.generate([prompts[row]], settings=chosen)
        assert alone.token_ids == answer.token_ids
        assert answer.text == tokenizer.decode(answer.token_ids)
        assert answer.log_probability < 0
    assert [len(answer.token_ids) for answer in answers][2] <= 1
    assert answers[2].prompt_cut == len(tokenizer.encode(["a" * 200])[0]) - (MAX_LENGTH - 1)
    stop = answers[0].text[1]
    (cut,) = preset_generator.generate(prompts[:1], settings=settings(max_new_tokens=4, top_k=5, stop=(stop,)))
    assert (cut.text, cut.finish_reason) == (answers[0].text.split(stop)[0], "stop")
    assert list(preset_generator.stream("The", settings=settings(max_new_tokens=0))) == [("", 0, "length", 0)]


def test_a_prompt_follows_the_token_that_the_network_has_for_the_start_of_a_text(preset_generator, monkeypatch):
    tokenizer = tiny_generator.build_tokenizer_of_texts()
    tokenizer.start_of_text_id = 2
    asked = []

    def generate(model, prompt_ids, prompt_lengths, *, max_new_tokens, **rest):
        asked.append(prompt_ids[0, : prompt_lengths[0]].tolist())
        return np.full([1, max_new_tokens], 7, np.int32), np.array([max_new_tokens])

    monkeypatch.setattr(preset_generation, "keras_generate", generate)
    generator = TextGenerator(preset_generator._model, tokenizer, max_length=MAX_LENGTH)
    answers = list(generator.generate(["The", "", "a" * 200], settings=settings(max_new_tokens=4)))
    long = tokenizer.encode(["a" * 200])[0].tolist()
    assert asked == [[2, *tokenizer.encode(["The"])[0]], [2], [2, *long[-(MAX_LENGTH - 2) :]]]
    assert [answer.prompt_cut for answer in answers] == [0, 0, len(long) - (MAX_LENGTH - 2)]
    assert len(answers[2].token_ids) == 1


def test_settings_that_keras_nlp_does_not_have_are_refused(preset_generator):
    for name, value in {"min_p": 0.1, "repetition_penalty": 1.2, "num_beams": 2}.items():
        with pytest.raises(InputError, match=rf"generation\.{name} is .* GPTNeoXCausalLM does not have"):
            preset_generator.generate(["x"], settings=settings(**{name: value}))
