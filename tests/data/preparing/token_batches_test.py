"""Batches of text: where long documents are cut, and that their tokens come together again."""

import numpy as np
import pytest
import tensorflow as tf

from aigc_tf.data.preparing import token_batches
from aigc_tf.data.preparing.examples import Example
from aigc_tf.data.preparing.terminal import Counts
from aigc_tf.data.preparing.token_batches import piece_end, text_batches

HOSTILE = "a\n\n日本\r\n😀😀😀 e\u0301\u2028x\0y\n" * 40


class Reader(list):
    """Examples that come from nowhere."""

    def counts(self, phase):
        return Counts(phase, 0, len(self))


class ByteTokenizer:
    """A token a byte."""

    vocabulary_size = 256

    def tokenize(self, texts):
        return tf.ragged.constant([list(text) for text in texts.numpy()], dtype=tf.int32, ragged_rank=1)


def example(text, split="train"):
    return Example(split, (text.encode() if isinstance(text, str) else text,))


def pieces_of(text, limit):
    pieces, start = [], 0
    while start < len(text):
        end = piece_end(text, start, limit)
        pieces.append(text[start:end])
        start = end
    return pieces


def test_a_piece_ends_after_the_last_newline_in_reach():
    assert pieces_of(b"ab\ncd\nefghijk", 7) == [b"ab\ncd\n", b"efghijk"]
    assert pieces_of(b"ab\ncd\nefghijkl", 7) == [b"ab\ncd\n", b"efghijk", b"l"]
    assert pieces_of(b"abcdefg", 7) == [b"abcdefg"]
    assert pieces_of(b"\n\n\n\n\n", 4) == [b"\n\n\n\n", b"\n"]


@pytest.mark.parametrize("limit", [4, 5, 6, 7, 11, 64])
def test_pieces_are_whole_characters_and_all_of_the_text(limit):
    for text in (HOSTILE.encode(), "😀".encode() * 50, b"x" * 100):
        pieces = pieces_of(text, limit)
        assert b"".join(pieces) == text
        assert all(0 < len(piece) <= limit for piece in pieces)
        for piece in pieces:
            piece.decode()


def test_short_texts_share_batches_and_a_long_document_has_its_own(monkeypatch):
    monkeypatch.setattr(token_batches, "_BATCH_BYTES", 8)
    monkeypatch.setattr(token_batches, "_PIECE_BYTES", 8)
    texts = ["abc", "def", "long\nlonger\n", "abcdefgh", "x", "y"]
    batches = list(text_batches(Reader(map(example, texts)), phase="p", cut_documents=True))
    assert [([e.texts[0] for e in batch.examples], batch.is_whole) for batch in batches] == [
        ([b"abc", b"def"], True),
        ([b"long\n"], False),
        ([b"longer\n"], True),
        ([b"abcdefgh"], True),
        ([b"x", b"y"], True),
    ]
    whole = list(text_batches(Reader(map(example, texts)), phase="p"))
    assert [len(batch.examples) for batch in whole] == [3, 1, 2]
    assert all(batch.is_whole for batch in whole)


def test_tokens_of_pieces_come_as_one_document(monkeypatch):
    monkeypatch.setattr(token_batches, "_PIECE_BYTES", 16)
    texts = ["short", HOSTILE, "x" * 100, "end", "y" * 17]
    splits = ["train", "test", "train", "train", "validation"]
    reader = Reader(map(example, texts, splits))
    batches = list(token_batches.token_batches(ByteTokenizer(), text_batches(reader, phase="p", cut_documents=True)))
    found = []
    for batch in batches:
        (token_ids,) = batch.token_ids
        assert token_ids.dtype == np.uint16
        assert batch.num_bytes.tolist() == batch.lengths.tolist()
        rows = np.split(token_ids, np.cumsum(batch.lengths[:, 0])[:-1])
        found += [(bytes(row.tolist()).decode(), e.split) for row, e in zip(rows, batch.examples, strict=True)]
    assert found == list(zip(texts, splits, strict=True))


def test_ids_outside_the_vocabulary_are_left_for_the_writer_to_refuse():
    class Broken(ByteTokenizer):
        def tokenize(self, texts):
            return super().tokenize(texts) * 1000 - 97_000

    (batch,) = token_batches.token_batches(Broken(), text_batches(Reader([example("ab`")]), phase="p"))
    assert batch.token_ids[0].tolist() == [0, 1000, -1000]
