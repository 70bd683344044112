"""Chooses how long `make demo` trains, by the speed of this machine: python -m aigc_tf.cli.demo FOLDER [full]

Both data sets are prepared before. The choice is written to FOLDER/variant, which the Makefile reads. It stays, so that
a stopped demo resumes what it began.
"""

import dataclasses
import os
import sys
from collections.abc import Sequence

from aigc_tf import storage
from aigc_tf.cli.tensorflow_start import heavy_room
from aigc_tf.config import ExperimentConfig
from aigc_tf.config.files import load_config
from aigc_tf.errors import InputError, RunError

FULL, BRIEF = "", "_brief"
"""The suffix of a config's name in configs/."""
FULL_MINUTES = 9
"""The demo trains all steps if both trainings take at most this; with the other parts that is less than 12 min."""
_FILE = "variant"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Part:
    """One training of the demo."""

    name: str
    config: str
    results: dict[str, str]
    """By variant, the result that the docstring of its config states."""

    def path(self, variant: str) -> str:
        return f"configs/{self.config}{variant}.py"


PARTS = (
    Part(
        name="classifier",
        config="bert_sentiment",
        results={FULL: "accuracy 0.88", BRIEF: "accuracy 0.85"},
    ),
    Part(
        name="generator",
        config="gpt_shakespeare",
        results={FULL: "2.28 bits per byte", BRIEF: "2.64 bits per byte"},
    ),
)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Training:
    """One part in one variant."""

    part: Part
    variant: str
    num_steps: int
    seconds: float

    def __str__(self) -> str:
        minutes = max(round(self.seconds / 60), 1)
        return f"{self.part.name}: {self.num_steps:,} steps, about {minutes} min, {self.part.results[self.variant]}"


def choose(trainings: Sequence[Training], *, is_full: bool) -> tuple[str, str]:
    """Chooses the variant of the demo.

    Args:
        trainings: Every part in both variants, with the seconds that it would take here.
        is_full: Whether to train all steps however long that takes.

    Returns:
        `FULL` or `BRIEF`, and the message for the user.
    """
    full = [training for training in trainings if training.variant == FULL]
    brief = [training for training in trainings if training.variant == BRIEF]
    minutes = round(sum(training.seconds for training in full) / 60)
    if is_full or minutes <= FULL_MINUTES:
        return FULL, "\n".join(["This machine trains:", *(f"  {training}" for training in full)])
    reason = f"All steps of both trainings would take about {minutes} min on this machine, so the demo takes fewer:"
    offer = "make demo FULL=1 takes them all:"
    return BRIEF, "\n".join([reason, *(f"  {training}" for training in brief), offer, *(f"  {one}" for one in full)])


def main(folder: str, *, is_full: bool) -> None:
    """Measures, prints and writes the choice; an existing choice stays."""
    path = os.path.join(folder, _FILE)
    if os.path.exists(path):
        print(f"This demo resumes what it began; remove {folder} to start again.")
        return
    print("Measuring how fast this machine trains ...", flush=True)
    variant, message = choose([one for part in PARTS for one in _trainings(part)], is_full=is_full)
    print(f"{message}\nExporting both and asking them takes about 3 min more.", flush=True)
    storage.write_bytes(path, variant.encode())


def _trainings(part: Part) -> list[Training]:
    configs: dict[str, ExperimentConfig] = {variant: load_config(part.path(variant)) for variant in (FULL, BRIEF)}
    seconds = heavy_room("commands.speed").run_seconds(list(configs.values()))
    return [
        Training(part=part, variant=variant, num_steps=config.training.num_steps, seconds=one)
        for (variant, config), one in zip(configs.items(), seconds, strict=True)
    ]


if __name__ == "__main__":
    try:
        main(sys.argv[1], is_full=sys.argv[2:] == ["full"])
    except (InputError, RunError) as error:
        print(f"error: {error}", file=sys.stderr)
        raise SystemExit(2 if isinstance(error, InputError) else 1) from None
