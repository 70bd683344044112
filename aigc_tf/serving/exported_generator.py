"""Text from an exported generator, through its signature: what a client of a server gets."""

import dataclasses
import os
from collections.abc import Iterator, Sequence

import tensorflow as tf

from aigc_tf import storage
from aigc_tf.config import GenerationConfig, InputError
from aigc_tf.generation.stopping import cut_at_stop
from aigc_tf.serving.continuations import (
    Continuation,
    Piece,
    as_pieces,
    check_prompts,
    clean,
    continuations,
    settings_of,
)
from aigc_tf.serving.continuer import SETTINGS
from aigc_tf.serving.loading import load_exported
from aigc_tf.serving.versions import MANIFEST_FILE, latest_version, read_manifest


class ExportedGenerator:
    """An exported generator, loaded; it generates as `TextGenerator` does, with the bounds of its signature.

    A server knows no beams, and of stop strings those that the model was exported with, which always count. Others are
    looked for afterwards: `token_ids` and `log_probability` stay those of all tokens that were generated.

    Attributes:
        path: Folder of the version.
        defaults: The settings that the model was exported with.
        max_length: Positions of prompt and continuation together.

    Args:
        path: `saved_models/NAME` or `saved_models/NAME/VERSION`, local or `gs://`.
    Raises:
        InputError: If there is no generator that this program exported.
        RunError: If it cannot be loaded.
    """

    def __init__(self, path: str | os.PathLike[str]):
        self.path = latest_version(path)
        manifest = read_manifest(self.path, task="generate")
        try:
            generation = manifest["generation"]
            self.defaults = GenerationConfig(**{**generation, "stop": tuple(generation["stop"])})
            self.max_length = int(manifest["max_length"])
        except (KeyError, TypeError, ValueError) as error:
            raise InputError(
                f"{storage.join(self.path, MANIFEST_FILE)} lacks {error}; export the model anew."
            ) from error
        self._model = load_exported(self.path)
        self._serve = self._model.signatures["serving_default"]

    def generate(
        self, prompts: Sequence[str], *, settings: GenerationConfig | None = None, batch_size: int = 8
    ) -> Iterator[Continuation]:
        """Yields a continuation for each prompt, in their order. Row i draws by seed `settings.seed + i`.

        Args:
            prompts: Of any lengths. An empty one begins a text.
            settings: How they are continued. None: as the model was exported to do.
            batch_size: Prompts of one call; in float32 it changes no text but by rounding (docs/generate.md).
        Raises:
            InputError: If a setting or a prompt does not fit.
        """
        settings = settings or self.defaults
        check_prompts(prompts)
        if settings.num_beams > 1:
            raise InputError(
                f"generation.num_beams is {settings.num_beams}, but an exported model has no beam search; set it to 1, "
                "or generate with the run."
            )
        rows_settings = settings_of(settings, len(prompts))._asdict()
        return self._generate(prompts, settings, rows_settings, batch_size)

    def _generate(
        self, prompts: Sequence[str], settings: GenerationConfig, values: dict[str, tf.Tensor], batch_size: int
    ) -> Iterator[Continuation]:
        stops = [stop.encode() for stop in settings.stop]
        for first in range(0, len(prompts), batch_size):
            rows = slice(first, first + batch_size)
            inputs = {name: values[name][rows] for name in SETTINGS}
            answers = self._serve(prompt=tf.constant([clean(prompt) for prompt in prompts[rows]]), **inputs)
            outputs = {name: value.numpy() for name, value in answers.items()}
            for answer, text in zip(continuations(outputs), outputs["text_bytes"], strict=True):
                cut = cut_at_stop(text, stops)
                if cut == text:
                    yield answer
                else:
                    yield dataclasses.replace(answer, text=cut.decode("utf-8", "replace"), finish_reason="stop")

    def stream(self, prompt: str, *, settings: GenerationConfig | None = None) -> Iterator[Piece]:
        """Yields `generate([prompt])` as one piece: a signature answers when it has all."""
        return as_pieces(self.generate([prompt], settings=settings))
