"""Special tokens and truncation: how the tokens of one or two texts become one row of a model's input.

`add_special_tokens` here and `add_special_tokens_in_graph` of the exported graph follow one rule (`kept_lengths`), so
that a served text gives the same row as in training.
"""

import dataclasses
from collections.abc import Sequence

import numpy as np

from aigc_tf.data.tokenizers.tokenizers import Tokenizer


@dataclasses.dataclass(frozen=True, kw_only=True)
class SpecialTokens:
    """How token ids become one row of the model's input."""

    start_ids: tuple[int, ...]
    between_ids: tuple[int, ...]
    end_ids: tuple[int, ...]
    padding_id: int
    max_length: int
    """Positions of a row, special tokens included."""
    truncation: str
    """`head`, `tail` or `head_tail`: which tokens are kept of a part that is too long."""

    def room(self, is_pair: bool) -> int:
        """Positions left for the tokens of the text, or of both texts of a pair."""
        return self.max_length - self.num_special(is_pair)

    def num_special(self, is_pair: bool) -> int:
        return len(self.start_ids) + len(self.end_ids) + (len(self.between_ids) if is_pair else 0)


def special_tokens_of(tokenizer: Tokenizer, *, max_length: int, truncation: str) -> SpecialTokens:
    """Returns a tokenizer's special tokens, and the length and truncation of rows."""
    return SpecialTokens(
        start_ids=tokenizer.start_ids,
        between_ids=tokenizer.between_ids,
        end_ids=tokenizer.end_ids,
        padding_id=tokenizer.padding_id,
        max_length=max_length,
        truncation=truncation,
    )


def kept_lengths(first: np.ndarray, second: np.ndarray, *, room: int) -> tuple[np.ndarray, np.ndarray]:
    """Returns how many tokens of each part stay: the longer part is cut first, as Hugging Face's `longest_first`.

    Args:
        first: `(B,)` int, tokens of the first parts.
        second: `(B,)` int, tokens of the second parts; 0 for single texts.
        room: Positions for both.
    """
    kept_first = np.minimum(first, np.maximum(room - second, room - room // 2))
    return kept_first, np.minimum(second, room - kept_first)


def truncate(token_ids: np.ndarray, kept: int, truncation: str) -> np.ndarray:
    """Keeps `kept` tokens: the first, the last, or ceil(kept/2) first and floor(kept/2) last."""
    if len(token_ids) <= kept:
        return token_ids
    if truncation == "head":
        return token_ids[:kept]
    if truncation == "tail":
        return token_ids[len(token_ids) - kept :]
    head = kept - kept // 2
    return np.concatenate([token_ids[:head], token_ids[len(token_ids) - kept // 2 :]])


def model_lengths(lengths: np.ndarray, special: SpecialTokens, *, is_pair: bool) -> np.ndarray:
    """Returns `(N,)` int64: positions each example takes, special tokens included, after truncation."""
    return np.minimum(lengths + special.num_special(is_pair), special.max_length).astype(np.int64)


def add_special_tokens(
    rows: Sequence[tuple[np.ndarray, np.ndarray]], special: SpecialTokens, *, length: int, is_pair: bool
) -> dict[str, np.ndarray]:
    """Returns the rows of examples as `(B, length)` int32 token_ids, segment_ids and padding_mask."""
    first = np.array([len(a) for a, _ in rows])
    second = np.array([len(b) for _, b in rows])
    kept = kept_lengths(first, second, room=special.room(is_pair))
    token_ids = np.full((len(rows), length), special.padding_id, np.int32)
    segment_ids = np.zeros((len(rows), length), np.int32)
    padding_mask = np.zeros((len(rows), length), np.int32)
    between = special.between_ids if is_pair else ()
    for i, (a, b) in enumerate(rows):
        a = truncate(a, int(kept[0][i]), special.truncation)
        b = truncate(b, int(kept[1][i]), special.truncation)
        row = np.concatenate([special.start_ids, a, between, b, special.end_ids])
        token_ids[i, : len(row)] = row
        padding_mask[i, : len(row)] = 1
        if is_pair:
            segment_ids[i, len(special.start_ids) + len(a) + len(between) : len(row)] = 1
    return {"token_ids": token_ids, "segment_ids": segment_ids, "padding_mask": padding_mask}
