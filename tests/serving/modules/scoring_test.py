"""Texts after prompts, scored: by the logits of the whole forward, whatever else is in the batch or to choose from."""

import numpy as np
import pytest
import tensorflow as tf

from aigc_tf.config import AdapterConfig
from aigc_tf.models.adapters.adapters import add_adapter
from aigc_tf.serving.modules import scoring
from aigc_tf.serving.modules.scoring import Scorer
from tests import tiny_generator
from tests.tiny_generator import MAX_LENGTH, PROMPTS

pytestmark = pytest.mark.slow

LONG = "a" * 200
PAIRS = [
    ("The quick", " brown fox"),
    ("", "The"),
    ("Pack my box", ""),
    ("é 中文", "🙂"),
    ("The quick", " b"),
    ("\x00", "\n\n"),
    ("", LONG),
    (LONG, "dog"),
    (LONG, LONG),
]


@pytest.fixture(scope="module")
def tokenizer():
    return tiny_generator.build_tokenizer_of_texts()


@pytest.fixture(scope="module")
def model(tokenizer):
    return tiny_generator.build_model(tokenizer, spare_ids=60)


def functions(model, tokenizer, **options):
    scorer = Scorer(model, tokenizer, max_length=MAX_LENGTH, **{"long_prompt": "cut", **options})
    texts = [tf.TensorSpec([None], tf.string)] * 2
    made = [tf.function(body, autograph=False, input_signature=texts) for body in (scorer.score, scorer.choose)]
    return [lambda *columns, body=body: ask(body, *columns) for body in made]


def ask(body, *columns):
    inputs = [tf.constant(column, tf.string, shape=[len(column)]) for column in columns]
    return {name: value.numpy() for name, value in body(*inputs).items()}


@pytest.fixture(scope="module")
def score_and_choose(model, tokenizer):
    return functions(model, tokenizer)


def by_hand(model, tokenizer, prompt_ids, ids):
    """Returns the log-probability of each id, of the whole forward; only ids of the tokenizer count."""
    prompt_ids = list(prompt_ids) or [tokenizer.end_of_text_id]
    logits = model({"token_ids": tf.constant([[*prompt_ids, *ids]], tf.int32)}).numpy()[0].astype(np.float64)
    logits = logits[:, : tokenizer.vocabulary_size]
    logits -= np.log(np.exp(logits - logits.max(-1, keepdims=True)).sum(-1, keepdims=True)) + logits.max(
        -1, keepdims=True
    )
    return [logits[len(prompt_ids) - 1 + place, token] for place, token in enumerate(ids)]


def fitting(tokenizer, prompt, continuation):
    """Ids of both, cut by the rule of the documentation."""
    prompt_ids, ids = (row.tolist() for row in tokenizer.encode([prompt, continuation]))
    ids = ids[: MAX_LENGTH - 1]
    return prompt_ids[max(0, len(prompt_ids) - (MAX_LENGTH - len(ids))) :], ids


def test_a_continuation_has_the_probability_that_the_whole_forward_gives_its_tokens(model, tokenizer, score_and_choose):
    found = score_and_choose[0](*zip(*PAIRS, strict=True))
    longest = max(found["num_tokens"])
    assert found["token_ids"].shape == found["token_log_probabilities"].shape == (len(PAIRS), longest)
    for row, (prompt, continuation) in enumerate(PAIRS):
        prompt_ids, ids = fitting(tokenizer, prompt, continuation)
        given = [len(part) for part in tokenizer.encode([prompt, continuation])]
        assert found["num_tokens"][row] == len(ids)
        assert found["token_ids"][row].tolist() == ids + [tokenizer.end_of_text_id] * (longest - len(ids))
        expected = by_hand(model, tokenizer, prompt_ids, ids)
        tokens = found["token_log_probabilities"][row]
        np.testing.assert_allclose(tokens, [*expected, *[0.0] * (longest - len(ids))], atol=1e-4)
        np.testing.assert_allclose(found["log_probability"][row], sum(expected), rtol=1e-5, atol=1e-4)
        assert found["continuation_cut"][row] == given[1] - len(ids)
        assert found["prompt_cut"][row] == given[0] - len(prompt_ids)
    assert (found["num_tokens"][-1], found["prompt_cut"][-1] > 0) == (MAX_LENGTH - 1, True)


def test_a_pair_alone_is_the_pair_in_a_batch_and_no_pairs_are_a_batch_too(score_and_choose):
    score, _ = score_and_choose
    together = score(*zip(*PAIRS, strict=True))
    for row, (prompt, continuation) in enumerate(PAIRS):
        alone = score([prompt], [continuation])
        np.testing.assert_allclose(alone["log_probability"][0], together["log_probability"][row], rtol=1e-5, atol=1e-4)
    assert {name: value.shape for name, value in score([], []).items()} == {
        name: (0, 0) if "token" in name and name != "num_tokens" else (0,) for name in together
    }


def test_what_is_drawn_is_scored_as_it_was_drawn(model, tokenizer, score_and_choose):
    """The generator's own log-probability, of tokens that the tokenizer would split the same way."""
    module = tiny_generator.build_module(model, tokenizer)
    drawn = module.signatures()["serving_default"](tiny_generator.request(PROMPTS, temperature=0.7, top_k=20))
    found = score_and_choose[0](PROMPTS, drawn["text_bytes"].tolist())
    same = 0
    for row, count in enumerate(drawn["num_tokens"]):
        is_same = np.array_equal(found["token_ids"][row, : found["num_tokens"][row]], drawn["token_ids"][row, :count])
        if is_same and drawn["finish_reason"][row] == b"length":
            same += 1
            expected = drawn["log_probability"][row]
            np.testing.assert_allclose(found["log_probability"][row], expected, rtol=1e-5, atol=1e-4)
    assert same >= 1


def test_the_likeliest_of_the_choices_is_chosen_by_all_their_tokens(model, tokenizer, score_and_choose):
    rows = [
        ("The quick", " brown fox\n brown\n dog\nx"),
        ("Pack", "a\r\nb\r\n\r\nsix dozen jugs\n\n"),  # Windows; empty lines are none
        ("é", "one choice alone"),
        ("", "b\nb"),
        ("x", ""),
        (LONG, "yes\nno"),
        ("x", f"{LONG}\nno"),
    ]
    found = score_and_choose[1](*zip(*rows, strict=True))
    assert found["log_probabilities"].shape == found["probabilities"].shape == (len(rows), 4)
    for row, (prompt, choices) in enumerate(rows):
        lines = [line for line in choices.replace("\r\n", "\n").split("\n") if line]
        ids = [line.tolist() for line in tokenizer.encode(lines)]
        fits = [len(line) < MAX_LENGTH for line in ids]
        room = MAX_LENGTH - max([len(line) for line, fit in zip(ids, fits, strict=True) if fit], default=0)
        prompt_ids = tokenizer.encode([prompt])[0].tolist()
        assert found["prompt_cut"][row] == max(0, len(prompt_ids) - room)
        kept = prompt_ids[-room:]
        expected = [
            sum(by_hand(model, tokenizer, kept, line)) if fit else -np.inf for line, fit in zip(ids, fits, strict=True)
        ]
        np.testing.assert_allclose(found["log_probabilities"][row, : len(lines)], expected, rtol=1e-5, atol=1e-4)
        assert (found["log_probabilities"][row, len(lines) :] == -np.inf).all()
        if not lines:
            assert (found["choice"][row], found["choice_id"][row]) == (b"", -1)
            assert not found["probabilities"][row].any()
            continue
        shares = np.exp(np.array(expected) - max(expected))
        np.testing.assert_allclose(found["probabilities"][row, : len(lines)], shares / shares.sum(), atol=1e-4)
        assert not found["probabilities"][row, len(lines) :].any()
        assert found["choice_id"][row] == int(np.argmax(expected))
        assert found["choice"][row].decode() == lines[int(np.argmax(expected))]
    assert found["choice_id"][3] == 0  # of equals the first
    assert found["probabilities"][6].tolist() == [0.0, 1.0, 0.0, 0.0]  # what does not fit is none


def test_choices_do_not_depend_on_their_order_nor_on_other_rows(score_and_choose):
    choose = score_and_choose[1]
    lines = ["b", " brown fox jumps over the lazy dog", "T", "The quick brown", "\t", "中文"]
    whole = choose(["The quick"], ["\n".join(lines)])["log_probabilities"][0]
    order = [3, 0, 5, 1, 4, 2]
    turned = choose(["", "The quick"], ["x\ny", "\n".join(lines[number] for number in order)])["log_probabilities"][1]
    np.testing.assert_allclose(turned, whole[order], atol=1e-4)
    single = [choose(["The quick"], [line])["log_probabilities"][0, 0] for line in lines]
    np.testing.assert_allclose(single, whole, atol=1e-4)
    empty = choose([], [])
    assert {name: value.shape for name, value in empty.items()} == {
        name: (0, 0) if "probabilities" in name else (0,) for name in empty
    }


def test_what_does_not_fit_is_refused_where_the_export_says_so(model, tokenizer):
    score, choose = functions(model, tokenizer, long_prompt="refuse")
    pairs = [("The quick", " brown"), (LONG, "dog"), ("x", LONG)]
    found = score(*zip(*pairs, strict=True))
    assert np.isnan(found["log_probability"]).tolist() == [False, True, True]
    assert found["num_tokens"].tolist()[1:] == [0, 0]
    count = len(tokenizer.encode([LONG])[0])
    assert found["prompt_cut"].tolist()[1] == count - (MAX_LENGTH - len(tokenizer.encode(["dog"])[0]))
    assert found["continuation_cut"].tolist() == [0, 0, count - (MAX_LENGTH - 1)]
    assert found["token_ids"].shape[1] == found["num_tokens"][0]
    alone = score(*[[text] for text in pairs[0]])
    np.testing.assert_allclose(found["log_probability"][0], alone["log_probability"][0], rtol=1e-5)
    chosen = choose(["The quick", LONG], ["a\nb", "a\nb"])
    assert (chosen["choice_id"][0] >= 0, chosen["choice_id"][1], chosen["choice"][1]) == (True, -1, b"")
    assert not chosen["probabilities"][1].any()


def test_more_choices_than_a_row_may_have_are_refused_and_the_neighbours_are_not_touched(
    model, tokenizer, monkeypatch, score_and_choose
):
    monkeypatch.setattr(scoring, "MAX_CHOICES", 3)
    _, choose = functions(model, tokenizer)
    found = choose(["The", "The", "The"], ["a\nb\nc", "a\nb\nc\nd", "b"])
    assert found["choice_id"].tolist()[1:] == [-1, 0]
    expected = score_and_choose[1](["The"], ["a\nb\nc"])["log_probabilities"][0]
    np.testing.assert_allclose(found["log_probabilities"][0], expected, atol=1e-5)


def test_logits_are_made_some_at_a_time_and_give_the_same(model, tokenizer, monkeypatch, score_and_choose):
    monkeypatch.setattr(scoring, "_LOGITS", 7 * tokenizer.vocabulary_size)
    score, _ = functions(model, tokenizer)
    columns = list(zip(*PAIRS, strict=True))
    found, expected = score(*columns), score_and_choose[0](*columns)
    np.testing.assert_allclose(
        found["token_log_probabilities"], expected["token_log_probabilities"], rtol=1e-5, atol=1e-5
    )


def test_a_text_is_scored_behind_a_learned_prefix_too(tokenizer):
    model = tiny_generator.build_model(tokenizer)
    add_adapter(model, AdapterConfig(enabled=True, kind="prefix", prefix_length=5))
    score, choose = functions(model, tokenizer)
    expected = sum(by_hand(model, tokenizer, *fitting(tokenizer, "The quick", " brown fox")))
    np.testing.assert_allclose(score(["The quick"], [" brown fox"])["log_probability"], [expected], rtol=1e-5)
    found = choose(["The quick"], ["x\n brown fox"])
    np.testing.assert_allclose(found["log_probabilities"][0, 1], expected, rtol=1e-5)
