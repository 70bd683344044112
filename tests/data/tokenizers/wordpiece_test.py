"""WordPiece splits text as BERT does, and a trained vocabulary is a function of the text."""

import hashlib
import os
import random
import subprocess
import sys

import pytest
import tensorflow as tf

from aigc_tf.data.tokenizers.vocabularies import Vocabulary
from aigc_tf.data.tokenizers.wordpiece import WordPiece, train_vocabulary
from aigc_tf.errors import InputError

SPECIAL = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")
TOKENS = (*SPECIAL, "the", "The", "fox", "##es", "cafe", "café", "##s", ",", "[", "]", "cls", "CLS", "sep", "x", "##x")
TOKENS += ("ก", "##ก", "i", "##i", "σ", "##σ", "中", "new york", "½", "1")


def split(texts, *, lowercase=True, strip_accents=None, tokens=TOKENS):
    strip_accents = lowercase if strip_accents is None else strip_accents
    rows = WordPiece(Vocabulary(tokens, lowercase, strip_accents)).tokenize(tf.constant(texts)).to_list()
    return [[tokens[index] for index in row] for row in rows]


def test_words_become_the_longest_pieces_of_the_vocabulary():
    word_piece = WordPiece(Vocabulary(TOKENS, lowercase=True, strip_accents=True))
    ids = word_piece.tokenize(tf.constant(["The foxes,the  fox", "", " \t\n", "dog"]))
    assert ids.to_list() == [[5, 7, 8, 12, 5, 7], [], [], [1]]
    assert ids.dtype == tf.int32
    assert (word_piece.start_ids, word_piece.between_ids, word_piece.end_ids) == ((2,), (3,), (3,))
    assert (word_piece.padding_id, word_piece.vocabulary_size) == (0, len(TOKENS))


def test_case_and_accents_are_dropped_or_kept_as_the_vocabulary_wants():
    texts = ["The café"]
    assert split(texts) == [["the", "cafe"]]
    assert split(texts, strip_accents=False) == [["the", "café"]]
    assert split(texts, lowercase=False) == [["The", "café"]]
    assert split(texts, lowercase=False, strip_accents=True) == [["The", "cafe"]]
    assert split(["cafe\u0301"]) == [["cafe"]]


def test_a_text_that_spells_special_tokens_gives_plain_ones():
    assert split(["[CLS] x[SEP]"]) == [["[", "cls", "]", "x", "[", "sep", "]"]]
    assert split(["[CLS]"], lowercase=False) == [["[", "CLS", "]"]]
    assert split(["[PAD][MASK]"]) == [["[", "[UNK]", "]", "[", "[UNK]", "]"]]


def test_a_word_of_over_100_characters_is_unknown_whatever_its_bytes():
    assert split(["x" * 100, "ก" * 100]) == [["x", *["##x"] * 99], ["ก", *["##ก"] * 99]]
    assert split(["x" * 101, "ก" * 101, "the " + "x" * 100_000 + " fox"]) == [
        ["[UNK]"],
        ["[UNK]"],
        ["the", "[UNK]", "fox"],
    ]
    assert split(["," * 300, "中" * 300]) == [[","] * 300, ["中"] * 300]


def test_a_token_with_a_space_matches_nothing():
    assert split(["new york", "newyork"]) == [["[UNK]", "[UNK]"], ["[UNK]"]]
    assert split(["the fox"], tokens=(*SPECIAL, "the", "fox", "## ", "## fox")) == [["the", "fox"]]


def test_characters_are_not_replaced_by_compatible_ones():
    assert split(["½ ①"]) == [["½", "[UNK]"]]


def test_control_characters_vanish_and_all_spaces_part_words():
    assert split(["f\u200bo\0x", "\ufefffox", "f\u00adox\ue000"]) == [["fox"]] * 3
    assert split(["the\u00a0fox", "the\u3000fox", "the\u2028fox", "the\tfox"]) == [["the", "fox"]] * 4
    assert split(["the\0fox", "fox\0", "\0"], lowercase=False) == [["[UNK]"], ["fox"], []]


@pytest.mark.parametrize("lowercase", [True, False])
@pytest.mark.parametrize("broken", [b"\xff", b"\xe9", b"\xe2\x82", b"\xed\xa0\x80", b"\xf4\x90\x80\x80", b"\xc0\xaf"])
def test_bytes_that_are_no_utf8_are_left_out(lowercase, broken):
    texts = [b"fox" + broken, broken + b"fox", b"f" + broken + b"ox", b"the " + broken + b" fox", broken]
    expected = [["fox"], ["fox"], ["fox"], ["the", "fox"], []]
    if broken == b"\xc0\xaf":
        assert split(texts[:1], lowercase=lowercase) == expected[:1]
    else:
        assert split(texts, lowercase=lowercase) == expected


def test_lower_case_does_not_depend_on_the_end_of_a_word():
    assert split(["Σ", "ΣΣ", "ΙΣ", "İ", "I"])[:2] == [["σ"], ["σ", "##σ"]]


def test_decoding_joins_pieces_and_leaves_special_tokens_out():
    word_piece = WordPiece(Vocabulary(TOKENS, lowercase=True, strip_accents=True))
    assert word_piece.decode([2, 5, 7, 8, 12, 1, 3, 0, 0]) == "the foxes , [UNK]"
    assert word_piece.decode([]) == ""


def corpus(seed=0, texts=300):
    """Words of few letters, so that many pairs are equally frequent."""
    generator = random.Random(seed)
    words = ["".join(generator.choices("abcdéfgñ", k=generator.randint(1, 7))) for _ in range(400)]
    return [" ".join(generator.choices(words, k=8)) + generator.choice(".!? ") for _ in range(texts)]


def digest(vocabulary):
    return hashlib.sha256("\n".join(vocabulary.tokens).encode()).hexdigest()


def test_training_gives_special_tokens_then_characters_then_pieces():
    vocabulary = train_vocabulary(lambda: ["Hug, hugs", "pug pugs", "hug"], size=64, lowercase=True)
    # Pairs by count, then by the ids of their parts: u+g 5 times; p+ug, ug+s and h+ug then tie at 2, 2 and 3.
    characters = [",", "g", "h", "p", "s", "u"]
    assert vocabulary.tokens[:5] == SPECIAL
    assert list(vocabulary.tokens[5:14]) == [*characters, "##g", "##s", "##u"]
    assert vocabulary.tokens[14:] == ("##ug", "hug", "pug", "hugs", "pugs")[: len(vocabulary.tokens) - 14]
    assert (vocabulary.lowercase, vocabulary.strip_accents) == (True, True)


def test_training_is_a_function_of_the_texts_whatever_their_order():
    texts = corpus()
    expected = train_vocabulary(lambda: texts, size=150, lowercase=False)
    assert len(expected.tokens) == 150
    for seed in range(3):
        shuffled = random.Random(seed).sample(texts, len(texts))
        assert train_vocabulary(lambda shuffled=shuffled: iter(shuffled), size=150, lowercase=False) == expected


def test_training_is_the_same_in_another_process_on_another_number_of_threads():
    script = (
        "from aigc_tf.data.tokenizers.wordpiece import train_vocabulary\n"
        "from tests.data.tokenizers.wordpiece_test import corpus, digest\n"
        "print(digest(train_vocabulary(corpus, size=150, lowercase=True)))"
    )
    expected = digest(train_vocabulary(corpus, size=150, lowercase=True))
    environment = os.environ | {"RAYON_NUM_THREADS": "5", "PYTHONHASHSEED": "7", "PYTHONPATH": os.getcwd()}
    done = subprocess.run(
        [sys.executable, "-c", script], env=environment, capture_output=True, text=True, timeout=120, check=True
    )
    assert done.stdout.split() == [expected]


def test_a_trained_vocabulary_spells_the_text_it_was_trained_on():
    texts = [*corpus(), "[CLS] and [UNK], 中文 " + "z" * 200, "half a pair: \ud83d", ""]
    vocabulary = train_vocabulary(lambda: texts, size=400, lowercase=True)
    assert not any(len(token) > 100 for token in vocabulary.tokens)
    unknown = vocabulary.tokens.index("[UNK]")
    rows = WordPiece(vocabulary).tokenize(tf.constant(corpus()))
    assert unknown not in rows.values.numpy()
    assert [token for token in vocabulary.tokens if "[" in token] == [*SPECIAL, "["]


def test_the_rarest_characters_are_left_out_where_they_would_fill_the_vocabulary():
    rare = "".join(map(chr, range(0x4E00, 0x4E00 + 60)))
    texts = ["abcab cabba abcc " * 1000, rare]
    vocabulary = train_vocabulary(lambda: texts, size=100, lowercase=True)
    kept = [token for token in vocabulary.tokens if token in rare]
    assert kept == sorted(rare)[: len(kept)]
    assert 0 < len(kept) < 60
    assert "ab" in {token.removeprefix("##") for token in vocabulary.tokens}


@pytest.mark.parametrize("lowercase", [True, False])
def test_too_small_a_vocabulary_is_refused_with_a_size_that_is_large_enough(lowercase):
    with pytest.raises(InputError, match=r"vocabulary_size is 20, too small for the 11 characters") as error:
        train_vocabulary(corpus, size=20, lowercase=lowercase)
    size = int(str(error.value).split(" or more.")[0].split()[-1])
    train_vocabulary(corpus, size=size, lowercase=lowercase)
    with pytest.raises(InputError, match="too small"):
        train_vocabulary(corpus, size=size - 2, lowercase=lowercase)


@pytest.mark.parametrize("texts", [[], [""], [" \n", "\u200b"]])
def test_no_text_to_train_on_is_refused(texts):
    with pytest.raises(InputError, match=r"no text to train a vocabulary on.*\.$"):
        train_vocabulary(lambda: texts, size=100, lowercase=True)
