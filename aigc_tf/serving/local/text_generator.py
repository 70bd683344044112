"""Text from a live model: used by scripts/generate.py and the samples of a training run.

`TextGenerator` runs what an export publishes (`continuer.Continuer`), so a text is the same in every place. It adds
only what the published functions lack: other stop strings, beam search, streaming.
"""

import codecs
import functools
from collections.abc import Iterator, Sequence
from typing import Any

import keras
import tensorflow as tf

from aigc_tf.config import GenerationConfig
from aigc_tf.data.tokenizers.tokenizers import Tokenizer
from aigc_tf.generation.sampling import Settings
from aigc_tf.models.generators.generator import computing_in, is_own
from aigc_tf.serving.local.continuations import (
    Continuation,
    Piece,
    as_pieces,
    check_prompts,
    clean,
    continuations,
    pad_rows,
    settings_of,
)
from aigc_tf.serving.local.preset_generation import continue_by_preset
from aigc_tf.serving.modules.continuer import FINISH_REASONS, SETTINGS, Continuer

_STREAM_TOKENS = 4
"""Tokens between two pieces of a stream: one call into the graph costs as much as one token of a small model."""
_KEPT_FUNCTIONS = 8
"""Combinations of stop strings and number of beams whose graphs are kept."""


class TextGenerator:
    """Generates text with a live model and the weights that it currently has.

    Functions are traced once for all prompts, batch sizes and settings; only other stop strings or another number of
    beams are traced again. A KerasNLP network is continued by KerasNLP, see `serving.local.preset_generation`.

    Args:
        model: The result of `build_generator`.
        tokenizer: The tokenizer of the prepared data.
        max_length: Positions of prompt and continuation together; of a longer prompt the end is kept.
        dtype: Dtype of the computation, whatever the model is trained in.
    Raises:
        InputError: If the tokenizer has no end of text.
    """

    def __init__(self, model: keras.Model, tokenizer: Tokenizer, *, max_length: int, dtype: str = "float32"):
        self._model, self._tokenizer, self._dtype = model, tokenizer, dtype
        self.max_length = max_length
        self._functions: dict[tuple[int, tuple[str, ...]], _Functions] = {}
        self._is_own = is_own(model)
        if self._is_own:
            self._functions_of(GenerationConfig())  # to raise at once if the model or tokenizer does not fit

    def generate(
        self, prompts: Sequence[str], *, settings: GenerationConfig, batch_size: int = 8
    ) -> Iterator[Continuation]:
        """Yields a continuation for each prompt, in their order. Row i uses the seed `settings.seed + i`.

        Args:
            prompts: Of any lengths. An empty one begins a text.
            settings: Settings of the continuations.
            batch_size: Prompts of one call; in float32 it changes a text only by rounding (docs/generate.md).
        Raises:
            InputError: If a setting or a prompt does not fit.
        """
        check_prompts(prompts)
        if not self._is_own:
            return continue_by_preset(
                self._model,
                self._tokenizer,
                prompts,
                settings=settings,
                max_length=self.max_length,
                dtype=self._dtype,
            )
        rows_settings = settings_of(settings, len(prompts))
        functions = self._functions_of(settings)
        return self._generate(functions, prompts, rows_settings, batch_size)

    def _generate(
        self, functions: "_Functions", prompts: Sequence[str], settings: Settings, batch_size: int
    ) -> Iterator[Continuation]:
        for first in range(0, len(prompts), batch_size):
            rows = slice(first, first + batch_size)
            ids, lengths = pad_rows(self._tokenizer.encode([clean(prompt) for prompt in prompts[rows]]))
            outputs = functions.generate(ids, lengths, Settings(*[value[rows] for value in settings]))
            yield from continuations({name: value.numpy() for name, value in outputs.items()})

    def stream(self, prompt: str, *, settings: GenerationConfig) -> Iterator[Piece]:
        """Yields `generate([prompt])` piece by piece, while it is generated.

        Bytes that may become part of a character or of a stop string are held back until that is certain.

        Raises:
            InputError: If a setting or the prompt does not fit.
        """
        check_prompts([prompt])
        if settings.num_beams > 1 or not self._is_own:  # the best beam is known only at the end
            return as_pieces(self.generate([prompt], settings=settings))
        return self._stream(self._functions_of(settings), prompt, settings_of(settings, 1), settings.stop)

    def _stream(
        self, functions: "_Functions", prompt: str, settings: Settings, stops: tuple[str, ...]
    ) -> Iterator[Piece]:
        ids, lengths = pad_rows(self._tokenizer.encode([clean(prompt)]))
        prompt_cut = max(0, int(lengths[0]) - (self.max_length - 1))
        state = functions.start(ids, lengths, settings)
        pieces = _PieceStream([stop.encode() for stop in stops])
        done = 0
        while True:
            count = int(state.lengths[0])
            new = self._tokenizer.decode_bytes(state.token_ids[0, done:count].numpy())
            reason, done = FINISH_REASONS.get(int(state.finish_reason[0]), ""), count
            text = pieces.add(new, cut_bytes=int(state.cut_bytes[0]), is_last=bool(reason))
            if text or reason:
                yield Piece(text, count, reason, prompt_cut)
            if reason:
                return
            state = functions.advance(state, settings)

    def _functions_of(self, settings: GenerationConfig) -> "_Functions":
        key = (settings.num_beams, settings.stop)
        if key not in self._functions:
            continuer = Continuer(self._model, self._tokenizer, max_length=self.max_length, stop=settings.stop)
            if len(self._functions) == _KEPT_FUNCTIONS:
                del self._functions[next(iter(self._functions))]
            self._functions[key] = _Functions(continuer, self._model, self._dtype, num_beams=settings.num_beams)
        return self._functions[key]


class _Functions:
    """The graph functions for one set of stop strings and beams, each traced once, at its first call."""

    def __init__(self, continuer: Continuer, model: keras.Model, dtype: str, *, num_beams: int):
        self._continuer, self._model, self._dtype = continuer, model, dtype
        settings = Settings(*[tf.TensorSpec([None], kind) for kind in SETTINGS.values()])
        prompt = [tf.TensorSpec([None, None], tf.int32), tf.TensorSpec([None], tf.int32)]
        self._settings_spec = settings
        search = functools.partial(continuer.search, num_beams=num_beams)
        body = continuer.generate if num_beams == 1 else search
        self.generate = tf.function(self._traced(body), autograph=False, input_signature=[*prompt, settings])
        self.start = tf.function(self._traced(continuer.start), autograph=False, input_signature=[*prompt, settings])
        self._advance: Any = None

    def advance(self, state: Any, settings: Settings) -> Any:
        """Generates a few more tokens of a started row."""
        if self._advance is None:
            known = self.start.get_concrete_function().structured_outputs
            spec = tf.nest.map_structure(lambda value: tf.TensorSpec([None, *value.shape[1:]], value.dtype), known)
            body = self._traced(lambda state, settings: self._continuer.advance(state, settings, _STREAM_TOKENS))
            self._advance = tf.function(body, autograph=False, input_signature=[spec, self._settings_spec])
        return self._advance(state, settings)

    def _traced(self, body: Any) -> Any:
        def traced(*arguments: Any) -> Any:
            with computing_in(self._model, self._dtype):
                return body(*arguments)

        return traced


class _PieceStream:
    """Cuts a growing text into pieces that later tokens cannot change."""

    def __init__(self, stops: Sequence[bytes]):
        self._stops = stops
        self._held = b""
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")

    def add(self, new: bytes, *, cut_bytes: int, is_last: bool) -> str:
        """Returns the certain text after `new` bytes; the last `cut_bytes` of all bytes so far are cut off."""
        held = self._held + new
        held = held[: len(held) - cut_bytes]
        certain = len(held) if is_last else len(held) - self._possible_beginning(held)
        self._held = held[certain:]
        return self._decoder.decode(held[:certain], final=is_last)

    def _possible_beginning(self, held: bytes) -> int:
        """Returns how many bytes at the end may begin a stop string."""
        longest = max(map(len, self._stops), default=1) - 1
        for size in range(min(longest, len(held)), 0, -1):
            if any(len(stop) > size and stop.startswith(held[-size:]) for stop in self._stops):
                return size
        return 0
