"""The interface that a live model, an export and a server answer questions through.

Without TensorFlow, which takes longer to load than a server takes to answer by REST.
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
    """Additions for answers that continue the question's text."""

    remarks: Callable[[Sequence[Answer], Settings], list[str]]
    """Returns remarks on prompts and continuations that did not fit, to print after the answers."""
    warm_up: Callable[[Settings], None] = lambda settings: None
    """Traces now what the first call would trace."""
    stream: "Callable[[str, Settings], Iterator[Piece]] | None" = None
    """Streams a continuation; None if it comes whole."""
    seed: int = 0
    """Seed of the model's own settings."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Answerer:
    """A model that answers questions, whatever its task and place."""

    name: str = "The model"
    """Its name in messages: a folder, or `the model 'x'` of a server."""
    inputs: tuple[str, ...]
    """Names of the values of a question, in order."""
    columns: tuple[str, ...]
    """The columns of a table of questions that hold them."""
    answer: Callable[[Iterable[Question], Settings], Iterator[Answer]]
    """Yields one answer for each question, in their order; the questions may be endless."""
    takes_settings: bool = False
    continuing: Continuing | None = None


def check_fields(answerer: Answerer, given: Iterable[str]) -> None:
    """Checks that a question has exactly the values that a model takes.

    Raises:
        InputError: If it lacks one or has others.
    """
    if set(given) == set(answerer.inputs):
        return
    wanted = " and ".join(f"--{name}" for name in answerer.inputs)
    came = " and ".join(f"--{name}" for name in given) or "nothing"
    raise InputError(f"{answerer.name} takes {wanted}, received {came}; give one of each for every question.")


def typed_value(text: str, dtype: str, name: str) -> Any:
    """Converts a value of a question for an input of that dtype.

    Raises:
        InputError: If the dtype needs a number and it is not one.
    """
    if dtype == "string":
        return text
    try:
        return int(text) if "int" in dtype else float(text)
    except ValueError as error:
        fits = "a whole number" if "int" in dtype else "a number"
        raise InputError(f"{name} is {text!r}; {fits} fits here.") from error
