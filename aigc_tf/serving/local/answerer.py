"""What answers questions: a live model, an exported one or a server. Those who ask see no difference.

Without TensorFlow, since a server is asked by REST before that would be loaded.
"""

import dataclasses
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from aigc_tf.errors import InputError

if TYPE_CHECKING:
    from aigc_tf.serving.local.continuations import Piece

Question = Mapping[str, str]
"""Values by the name of the input, as they were typed or read from a file."""
Answer = dict[str, Any]
"""Ready for JSON."""
Settings = Mapping[str, Any]
"""Fields of GenerationConfig that differ from the model's own."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Continuing:
    """What is special where an answer is text that goes on from its question."""

    remarks: Callable[[Sequence[Answer], Settings], list[str]]
    """What to say of prompts and continuations that did not fit, after the last of some answers."""
    warm_up: Callable[[Settings], None] = lambda settings: None
    """Has what is traced at the first call traced now."""
    stream: "Callable[[str, Settings], Iterator[Piece]] | None" = None
    """A continuation as it comes; None where it comes whole."""
    seed: int = 0
    """Of the model's own settings."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Answerer:
    """A model that is asked, whatever its task and wherever it is."""

    name: str = "The model"
    """For sentences: a folder, or `the model 'x'` of a server."""
    inputs: tuple[str, ...]
    """Names of the values of a question, in order."""
    columns: tuple[str, ...]
    """The columns of a table of questions that hold them."""
    answer: Callable[[Iterable[Question], Settings], Iterator[Answer]]
    """Yields one answer for each question, in their order; the questions may be an endless stream."""
    takes_settings: bool = False
    continuing: Continuing | None = None


def check_fields(answerer: Answerer, given: Iterable[str]) -> None:
    """Checks that a question has the values that a model takes.

    Raises:
        InputError: If it lacks one, or has others.
    """
    if set(given) == set(answerer.inputs):
        return
    wanted = " and ".join(f"--{name}" for name in answerer.inputs)
    came = " and ".join(f"--{name}" for name in given) or "nothing"
    raise InputError(f"{answerer.name} takes {wanted}, received {came}; give one of each for every question.")


def typed_value(text: str, dtype: str, name: str) -> Any:
    """Returns a value of a question as an input of that dtype takes it.

    Raises:
        InputError: If it is no number where one fits.
    """
    if dtype == "string":
        return text
    try:
        return int(text) if "int" in dtype else float(text)
    except ValueError as error:
        fits = "a whole number" if "int" in dtype else "a number"
        raise InputError(f"{name} is {text!r}; {fits} fits here.") from error
