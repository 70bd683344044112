"""Text from an exported generator, through its signature, as a client of a server gets it."""

import os
from collections.abc import Iterator, Sequence

import tensorflow as tf

from aigc_tf import storage
from aigc_tf.config import GenerationConfig
from aigc_tf.errors import InputError
from aigc_tf.serving.apis import SERVING_DEFAULT
from aigc_tf.serving.local.continuations import (
    Continuation,
    Piece,
    as_pieces,
    check_prompts,
    clean,
    continuations,
    settings_of,
)
from aigc_tf.serving.local.loading import load_exported
from aigc_tf.serving.modules.continuer import MAX_ROW_STOP_BYTES, NUM_ROW_STOPS
from aigc_tf.serving.versions import MANIFEST_FILE, latest_version, read_manifest


class ExportedGenerator:
    """A loaded exported generator; it generates as `TextGenerator` does, within the limits of its signature.

    It has no beam search. The stop strings that the model was exported with always apply; a request may add a few.

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
        manifest = read_manifest(self.path, question="prompt")
        try:
            generation = manifest["generation"]
            self.defaults = GenerationConfig(**{**generation, "stop": tuple(generation["stop"])})
            self.max_length = int(manifest["max_length"])
        except (KeyError, TypeError, ValueError) as error:
            raise InputError(
                f"{storage.join(self.path, MANIFEST_FILE)} lacks {error}; export the model again."
            ) from error
        self._model = load_exported(self.path)

    def generate(
        self, prompts: Sequence[str], *, settings: GenerationConfig | None = None, batch_size: int = 8
    ) -> Iterator[Continuation]:
        """Yields a continuation for each prompt, in their order. Row i uses the seed `settings.seed + i`.

        Args:
            prompts: Of any lengths. An empty one begins a text.
            settings: Settings of the continuations. None: those of the export.
            batch_size: Prompts of one call; in float32 it changes a text only by rounding (docs/generate.md).
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
        stops = self._more_stops(settings)
        if stops:
            rows_settings["stop"] = tf.constant([[*stops, *[b""] * (NUM_ROW_STOPS - len(stops))]] * len(prompts))
        return self._ask(prompts, rows_settings, batch_size)

    def _more_stops(self, settings: GenerationConfig) -> list[bytes]:
        """Returns the stop strings that the export does not have."""
        stops = [stop.encode() for stop in settings.stop if stop not in self.defaults.stop]
        if b"" in stops:
            raise InputError("A stop string is empty, which is in every text; leave it out.")
        if len(stops) > NUM_ROW_STOPS or max(map(len, stops), default=0) > MAX_ROW_STOP_BYTES:
            raise InputError(
                f"An exported model takes at most {NUM_ROW_STOPS} stop strings of {MAX_ROW_STOP_BYTES} bytes besides "
                "those it was exported with; give fewer, or export it with them as generation.stop."
            )
        return stops

    def _ask(self, prompts: Sequence[str], inputs: dict[str, tf.Tensor], batch_size: int) -> Iterator[Continuation]:
        serve = self._model.signatures["generate_until" if "stop" in inputs else SERVING_DEFAULT]
        for first in range(0, len(prompts), batch_size):
            rows = slice(first, first + batch_size)
            some = {name: value[rows] for name, value in inputs.items()}
            answers = serve(prompt=tf.constant([clean(prompt) for prompt in prompts[rows]]), **some)
            yield from continuations({name: value.numpy() for name, value in answers.items()})

    def stream(self, prompt: str, *, settings: GenerationConfig | None = None) -> Iterator[Piece]:
        """Yields `generate([prompt])` as one piece: a signature returns only whole continuations."""
        return as_pieces(self.generate([prompt], settings=settings))
