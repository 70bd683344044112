"""SentencePiece gives any text back, takes no text for a special token, and learns the same model every time."""

import hashlib
import itertools
import os
import random
import subprocess
import sys
from pathlib import Path

import pytest
import sentencepiece
import tensorflow as tf
from sentencepiece import sentencepiece_model_pb2

from aigc_tf.data.tokenizers import sentence_piece
from aigc_tf.data.tokenizers.sentence_piece import MODEL_FILE, SentencePiece, read_model, train_model, without_notice
from aigc_tf.data.tokenizers.tokenizers import Tokenizer, load_tokenizer
from aigc_tf.errors import InputError

TEXTS = [
    "the fox jumps over the lazy dog, and the foxes jump over the dogs.\n\nthe dog barks:\n\twoof\n" * 3,
    "def jump(fox):\n    if fox:\n        return 'over the dog'\r\n\r\n\n\n" * 3,
]
RNG = random.Random(0)
SYLLABLES = [first + second for first in "bdfglmnprst" for second in ("a", "en", "i", "ol", "u")]
WORDS = [" ".join("".join(RNG.choices(SYLLABLES, k=3)) for _ in range(300)) for _ in range(20)]
HOSTILE = {
    "empty": "",
    "one space": " ",
    "spaces around": "  the  fox   ",
    "the character SentencePiece writes for a space": "\u2581the\u2581 \u2581fox\u2581",
    "the characters of the trainer": "\u2585\u2047 ⁇ \x1f \ue009\ue00a\ue00d",
    "tabs": "\tthe\t\tfox\t",
    "line ends": "\n\nthe\r\nfox\r\r\n\n",
    "NUL": "\0the\0fox\0\0",
    "control characters": "\x01\x08\x1b\x7f\x85\u2028\u2029",
    "special tokens": "</s><s><unk><pad> </s> the</s>fox",
    "pieces of bytes": "<0x41><0x0A> <0xFF>",
    "emoji": "good 😀 👩\u200d👩\u200d👧 👍🏽 🇫🇷 ☺️",
    "Chinese": "中文漢字,你好。",
    "what a normaliser would change": "½ ﬁ Ａ ℃ e\u0301 é \u00a0\u3000\u00ad\ufeff\ufffd",
    "noncharacters": "\ufdd0\uffff\U0010ffff",
    "long": "the fox" * 5000,
    "without a space": "x" * 20_000,
}
BROKEN = [b"\xff", b"the\xc3", b"\xe2\x96fox", b"\xed\xa0\xbd", b"\xf4\x90\x80\x80", b"\xc0\x80", b"\0\x80\0"]


@pytest.fixture(scope="module")
def tokenizer():
    return Tokenizer(SentencePiece(train_model(TEXTS, size=330), "test"))


def encode(tokenizer, *texts):
    return [row.tolist() for row in tokenizer.encode(texts)]


def pieces(tokenizer, text):
    (row,) = encode(tokenizer, text)
    return [tokenizer.piece_bytes()[index].decode() for index in row]


def random_texts(count):
    """Texts of all planes of Unicode, assigned or not, and of what a tokenizer may stumble on."""
    rng = random.Random(0)
    usual = "the fox jumps\n\t \r\u2581\0<0x4>/s"
    for _ in range(count):
        weight = rng.random()
        yield "".join(
            rng.choice(usual)
            if rng.random() < weight
            else chr(rng.choice([rng.randrange(0xD800), rng.randrange(0xE000, 0x110000)]))
            for _ in range(rng.randrange(60))
        )


@pytest.mark.parametrize("algorithm", ["bpe", "unigram"])
def test_any_text_comes_back_and_none_is_a_special_token(algorithm):
    tokenizer = Tokenizer(SentencePiece(train_model(WORDS, size=310, algorithm=algorithm), "test"))
    texts = [*HOSTILE.values(), *random_texts(2000)]
    rows = encode(tokenizer, *texts)
    assert [tokenizer.decode(row) for row in rows] == texts
    assert [tokenizer.decode_bytes(row) for row in rows] == [text.encode() for text in texts]
    assert tokenizer.detokenize(tf.ragged.constant(rows, tf.int32)).numpy().tolist() == [t.encode() for t in texts]
    assert not {0, 1, 2, 3} & {index for row in rows for index in row}


def test_special_tokens_vanish_from_the_text(tokenizer):
    (row,) = encode(tokenizer, "the fox")
    assert tokenizer.decode([2, 0, *row, 3, 1]) == "the fox"
    assert tokenizer.piece_bytes()[:4] == [b""] * 4
    rows = tf.ragged.constant([[2, *row, 3], [], [3]], tf.int32)
    assert tf.function(tokenizer.detokenize)(rows).numpy().tolist() == [b"the fox", b"", b""]


def test_special_tokens_have_their_places(tokenizer):
    assert (tokenizer.kind, tokenizer.end_of_text_id, tokenizer.padding_id) == ("sentencepiece", 3, 0)
    assert (tokenizer.start_ids, tokenizer.between_ids, tokenizer.end_ids) == ((2,), (3,), (3,))
    assert (tokenizer.vocabulary_size, len(tokenizer.piece_bytes()), tokenizer.in_graph) == (330, 330, True)
    assert tokenizer.piece_bytes()[4:260] == [bytes([byte]) for byte in range(256)]


def test_ids_that_end_within_a_character_are_not_lost(tokenizer):
    (row,) = encode(tokenizer, "😀")
    assert tokenizer.decode_bytes(row[:2]) == "😀".encode()[:2]
    assert tokenizer.decode(row[:2]) == "\ufffd"


def test_line_ends_tabs_and_indentation_are_pieces_of_their_own(tokenizer):
    assert pieces(tokenizer, "fox:\n\n\tdog") == ["fox", ":", "\n\n", "\t", "dog"]
    assert "    " in pieces(tokenizer, "\n    if fox")
    assert not [piece for piece in tokenizer.piece_bytes() if b"\n" in piece and piece.strip(b"\r\n")]


def test_a_line_is_split_alike_wherever_it_stands(tokenizer):
    lines = ["the fox jumps\n", "    over\n", "a lazy dog\n"]
    rows = encode(tokenizer, *lines * 50, "".join(lines * 50))
    assert list(itertools.chain(*rows[:-1])) == rows[-1]


def test_broken_bytes_are_replaced_alike_eagerly_and_in_a_graph(tokenizer):
    rows = tokenizer.tokenize(tf.constant(BROKEN)).to_list()
    assert rows == tf.function(tokenizer.tokenize)(tf.constant(BROKEN)).to_list()
    assert rows == [tokenizer.tokenize(tf.constant([content])).to_list()[0] for content in BROKEN]
    assert tokenizer.decode(rows[1]) == "the\ufffd"


def test_sentencepiece_itself_gives_the_same_ids_and_text(tokenizer, tmp_path):
    tokenizer.save(tmp_path)
    library = sentencepiece.SentencePieceProcessor(model_file=str(tmp_path / MODEL_FILE))
    texts = list(HOSTILE.values())
    rows = encode(tokenizer, *texts)
    assert [library.encode(text) for text in texts] == rows
    assert [library.decode(row) for row in rows] == texts


def test_a_saved_tokenizer_is_loaded_unchanged(tokenizer, tmp_path):
    tokenizer.save(tmp_path)
    loaded = load_tokenizer(tmp_path)
    assert loaded.sha256() == tokenizer.sha256()
    assert encode(loaded, *HOSTILE.values()) == encode(tokenizer, *HOSTILE.values())
    (tmp_path / MODEL_FILE).write_bytes(train_model(TEXTS, size=300))
    with pytest.raises(InputError, match=r"was changed since it was saved; prepare the data again\.$"):
        load_tokenizer(tmp_path)
    (tmp_path / MODEL_FILE).unlink()
    with pytest.raises(InputError, match="There is no file"):
        load_tokenizer(tmp_path)


TRAIN = """
import hashlib, sys
from aigc_tf.data.tokenizers.sentence_piece import train_model
from tests.data.tokenizers.sentence_piece_test import WORDS
print(hashlib.sha256(train_model(WORDS, size=310, algorithm=sys.argv[1])).hexdigest())
"""


@pytest.mark.parametrize("algorithm", ["bpe", "unigram"])
def test_the_same_texts_give_the_same_model_in_another_process(algorithm):
    command = [sys.executable, "-c", TRAIN, algorithm]
    other = subprocess.run(command, capture_output=True, text=True, check=True, cwd=Path(__file__).parents[3])
    ours = train_model(WORDS, size=310, algorithm=algorithm)
    assert other.stdout.split()[-1] == hashlib.sha256(ours).hexdigest()


def test_texts_are_learned_from_in_blocks_and_of_many_every_second_is_taken(monkeypatch):
    monkeypatch.setattr(sentence_piece, "_BLOCK_CHARACTERS", 4)
    assert sentence_piece._sample_blocks(["ab cd\nefghijk l", ""]) == ["ab", " cd", "\nefg", "hijk", " l"]
    monkeypatch.setattr(sentence_piece, "_MAX_BLOCKS", 4)
    blocks = sentence_piece._sample_blocks(f"{number:3} " for number in range(8))
    assert blocks == ["  0 ", "  2 ", "  4 ", "  6 "]


def test_rare_characters_are_spelled_by_bytes_when_the_vocabulary_is_small():
    texts = ["".join(chr(0x4E00 + index) * (200 - index) for index in range(200))]
    tokenizer = Tokenizer(SentencePiece(train_model(texts, size=300), "test"))
    assert [len(row) for row in encode(tokenizer, chr(0x4E00), chr(0x4E00 + 199))] == [1, 3]


@pytest.mark.parametrize(
    ("texts", "size", "message"),
    [
        ([], 300, "There is no text to train a vocabulary on"),
        (["\0\u2581"], 300, "There is no text to train a vocabulary on"),
        (TEXTS, 9000, r"vocabulary_size is 9000, but the texts .* have pieces for \d+ at most; set it to \d+ or less"),
        (TEXTS, 261, r"vocabulary_size is 261; SentencePiece needs 260 pieces .* give 300 or more\.$"),
    ],
)
def test_texts_that_do_not_fit_the_size_are_one_sentence(texts, size, message):
    with pytest.raises(InputError, match=message) as error:
        train_model(texts, size=size)
    assert "\n" not in str(error.value)


def test_the_largest_size_named_is_one_that_fits():
    with pytest.raises(InputError) as error:
        train_model(TEXTS, size=9000)
    largest = int(str(error.value).split("set it to ")[1].split()[0])
    assert SentencePiece(train_model(TEXTS, size=largest), "test").vocabulary_size == largest


def test_a_file_that_is_no_model_is_one_sentence(tmp_path, tokenizer):
    for content in (b"", b"text", bytes(range(256))):
        (tmp_path / "x.model").write_bytes(content)
        with pytest.raises(InputError, match=r"x\.model is not a SentencePiece model; give the \.model file"):
            read_model(tmp_path / "x.model")
    proto = sentencepiece_model_pb2.ModelProto.FromString(tokenizer.splitter.model)
    proto.pieces[3].piece = "other"
    (tmp_path / "x.model").write_bytes(proto.SerializeToString())
    with pytest.raises(InputError, match="has no </s>"):
        read_model(tmp_path / "x.model")


def test_a_model_of_spm_train_is_taken_as_it_is(tmp_path):
    prefix = str(tmp_path / "plain")
    arguments = dict(vocab_size=40, hard_vocab_limit=False, minloglevel=3, model_type="bpe")
    sentencepiece.SentencePieceTrainer.train(sentence_iterator=iter(TEXTS * 5), model_prefix=prefix, **arguments)
    tokenizer = Tokenizer(read_model(f"{prefix}.model"))
    (row,) = encode(tokenizer, "the  fox")
    assert tokenizer.decode(row) == " the fox"
    assert (tokenizer.start_ids, tokenizer.end_of_text_id, tokenizer.padding_id) == ((1,), 2, 2)


def test_the_library_does_not_say_of_each_model_that_it_normalises_nothing(capfd):
    model = train_model(["the fox jumps over the lazy dog"] * 20, size=290)
    with without_notice():
        os.write(2, b"normalizer.cc(51) LOG(INFO) precompiled_charsmap is empty. use identity normalization.\n")
        os.write(2, b"something else\n")
    SentencePiece(model, "here").tokenize(["the fox"])
    assert capfd.readouterr().err == "something else\n"
