"""From examples to token ids: batches of text, split by the tokenizer in threads, in the order of the examples.

The size of a batch is bounded, and so is the memory: many short texts share one, and a long document is cut into
several, whose tokens are joined again.
"""

import collections
import os
from collections.abc import Callable, Generator, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import NamedTuple, TypeVar

import numpy as np
import tensorflow as tf

from aigc_tf.data.prepared.prepared_writer import token_type
from aigc_tf.data.preparing.examples import Example, ExampleReader
from aigc_tf.data.preparing.terminal import Counts
from aigc_tf.data.tokenizers.tokenizers import Tokenizer

_BATCH_RECORDS = 2048  # a batch of texts for the tokenizer ends at this many
_BATCH_BYTES = 2**20  # or at this many bytes of text
_PIECE_BYTES = 2**18  # a longer document is cut, since the tokenizers' memory and time grow with the longest text
_MAX_THREADS = 8  # one thread reads the records, and more than this many wait for it

Item = TypeVar("Item")
Result = TypeVar("Result")


class TextBatch(NamedTuple):
    """Examples whose texts are not tokenised yet."""

    examples: list[Example]
    counts: Counts
    is_whole: bool = True
    """False: the one example is a piece of a document, which the next batch continues."""


class TokenBatch(NamedTuple):
    """The examples of a batch, the token ids of each text column end to end."""

    examples: list[Example]
    token_ids: list[np.ndarray]
    """Of each text column `(sum(lengths),)` uint16 or uint32."""
    lengths: np.ndarray
    """`(n, columns)` int64: tokens of each text of each example."""
    num_bytes: np.ndarray
    """`(n, columns)` int64: UTF-8 bytes of each text of each example."""
    counts: Counts


def text_batches(reader: ExampleReader, *, phase: str, cut_documents: bool = False) -> Iterator[TextBatch]:
    """Yields the examples of a reader in batches.

    Args:
        reader: Gives the examples, and the counts for each batch.
        phase: The phase that the counts belong to.
        cut_documents: Whether single texts over `_PIECE_BYTES` are cut into pieces, each a batch of its own.
    """
    examples: list[Example] = []
    num_bytes = 0
    for example in reader:
        size = sum(map(len, example.texts))
        if cut_documents and size > _PIECE_BYTES:
            if examples:
                yield TextBatch(examples, reader.counts(phase))
                examples, num_bytes = [], 0
            yield from _piece_batches(example, reader.counts(phase))
            continue
        examples.append(example)
        num_bytes += size
        if len(examples) >= _BATCH_RECORDS or num_bytes >= _BATCH_BYTES:
            yield TextBatch(examples, reader.counts(phase))
            examples, num_bytes = [], 0
    if examples:
        yield TextBatch(examples, reader.counts(phase))


def _piece_batches(example: Example, counts: Counts) -> Iterator[TextBatch]:
    (text,) = example.texts
    start = 0
    while start < len(text):
        end = piece_end(text, start, _PIECE_BYTES)
        yield TextBatch([example._replace(texts=(text[start:end],))], counts, is_whole=end == len(text))
        start = end


def piece_end(text: bytes, start: int, limit: int) -> int:
    """Returns the end of the piece of a text that begins at `start`: after a newline if one is in reach.

    Tokenizers split text at newlines anyway, so the tokens are those of the whole text, except for rare ones at the
    cuts; their bytes are always its bytes.

    Args:
        text: UTF-8.
        start: Beginning of the piece.
        limit: Largest size of a piece in bytes, at least 4.
    """
    end = start + limit
    if end >= len(text):
        return len(text)
    newline = text.rfind(b"\n", start, end)
    if newline >= 0:
        return newline + 1
    while text[end] & 0xC0 == 0x80:  # inside a character
        end -= 1
    return end


def token_batches(tokenizer: Tokenizer | None, batches: Iterable[TextBatch]) -> Generator[TokenBatch, None, None]:
    """Splits the text of batches, in threads, and yields them in their order; pieces of a document come as one.

    Args:
        tokenizer: None if examples have no text.
        batches: From `text_batches`.
    """
    threads = min(_MAX_THREADS, os.cpu_count() or 1)
    tokenised = map_in_order(lambda batch: (_tokenise(tokenizer, batch), batch.is_whole), batches, num_threads=threads)
    pieces: list[TokenBatch] = []
    try:
        for batch, is_whole in tokenised:
            if is_whole and not pieces:
                yield batch
                continue
            pieces.append(batch)
            if is_whole:
                whole, pieces = _join(pieces), []
                yield whole
    finally:
        tokenised.close()


def _tokenise(tokenizer: Tokenizer | None, batch: TextBatch) -> TokenBatch:
    columns = list(zip(*(example.texts for example in batch.examples), strict=True))
    token_ids = []
    lengths, num_bytes = (np.zeros((len(batch.examples), len(columns)), np.int64) for _ in range(2))
    for number, texts in enumerate(columns):
        if tokenizer is None:
            raise ValueError("Examples with text need a tokenizer.")
        tokens = tokenizer.tokenize(tf.constant(texts, tf.string))
        lengths[:, number] = tokens.row_lengths().numpy()
        num_bytes[:, number] = [len(text) for text in texts]
        token_ids.append(_narrow(tokens.flat_values.numpy(), token_type(tokenizer.vocabulary_size)))
    return TokenBatch(batch.examples, token_ids, lengths, num_bytes, batch.counts)


def _narrow(token_ids: np.ndarray, small: type[np.unsignedinteger]) -> np.ndarray:
    """Returns the ids in their stored type; ids that do not fit are unchanged, and the writer refuses them."""
    fits = len(token_ids) and token_ids.min() >= 0 and token_ids.max() <= np.iinfo(small).max
    return token_ids.astype(small) if fits else token_ids


def _join(pieces: list[TokenBatch]) -> TokenBatch:
    """Returns the pieces of one document as one batch; its text is not joined again."""
    return pieces[-1]._replace(
        token_ids=[np.concatenate(parts) for parts in zip(*(piece.token_ids for piece in pieces), strict=True)],
        lengths=sum((piece.lengths for piece in pieces), np.zeros((1, 1), np.int64)),
        num_bytes=sum((piece.num_bytes for piece in pieces), np.zeros((1, 1), np.int64)),
    )


def map_in_order(
    function: Callable[[Item], Result], items: Iterable[Item], *, num_threads: int
) -> Generator[Result, None, None]:
    """Applies a function in threads and yields the results in the order of the items.

    At most `2 * num_threads` items wait or are worked on, so memory stays bounded.
    """
    with ThreadPoolExecutor(num_threads) as pool:
        pending: collections.deque[Future[Result]] = collections.deque()
        try:
            for item in items:
                pending.append(pool.submit(function, item))
                if len(pending) >= 2 * num_threads:
                    yield pending.popleft().result()
            while pending:
                yield pending.popleft().result()
        finally:
            for future in pending:
                future.cancel()
