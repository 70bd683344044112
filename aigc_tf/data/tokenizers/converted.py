"""Changes of text that KerasNLP ignores when it converts the tokenizer of a Hugging Face folder.

ALBERT's SentencePiece model knows lower-case letters without accents; transformers makes the text so, and the files of
the folder only say that it does (`do_lower_case`, `keep_accents`). The same is done here by graph ops. Settings that
would change ids in another way are refused.
"""

import os
from pathlib import Path
from typing import NamedTuple

import tensorflow as tf
import tensorflow_text as tf_text

from aigc_tf.data.tokenizers.byte_pair_files import added_tokens
from aigc_tf.data.tokenizers.vocabularies import read_settings
from aigc_tf.data.tokenizers.wordpiece import lower_case
from aigc_tf.errors import InputError


class Spelling(NamedTuple):
    """What happens to a text before it is split."""

    lowercase: bool = False
    strip_accents: bool = False
    plain_quotes: bool = False
    """Two backquotes or two apostrophes become one quotation mark."""

    def apply(self, texts: tf.Tensor) -> tf.Tensor:
        """Returns `(B,)` strings of `(B,)` strings of UTF-8."""
        if self.plain_quotes:
            texts = tf.strings.regex_replace(texts, "``|''", '"')
        if self.strip_accents:
            texts = tf.strings.regex_replace(tf_text.normalize_utf8(texts, "NFKD"), r"\p{Mn}+", "")
        return lower_case(texts, strip_accents=self.strip_accents) if self.lowercase else texts


AS_IT_IS = Spelling()


def read_spelling(folder: str | os.PathLike[str]) -> Spelling:
    """Returns how the tokenizer of a folder spells texts; unchanged, if it is not an ALBERT of transformers.

    Raises:
        InputError: If it has settings that change ids and are not computed.
    """
    folder = Path(folder)
    config, settings, pipeline = (
        read_settings(folder / name) for name in ("config.json", "tokenizer_config.json", "tokenizer.json")
    )
    if "model_type" not in config:  # a preset, which has all of its settings with it
        return AS_IT_IS
    if settings.get("add_prefix_space"):
        raise InputError(f"The tokenizer of {folder} has add_prefix_space, which changes texts; set it to false.")
    for _ in added_tokens(folder, settings, pipeline):  # refuses those that are searched in the text
        pass
    if config["model_type"] != "albert":
        return AS_IT_IS
    return Spelling(
        lowercase=bool(settings.get("do_lower_case", True)),
        strip_accents=not settings.get("keep_accents", False),
        plain_quotes=True,
    )
