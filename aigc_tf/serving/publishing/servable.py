"""What a task brings to be published; the same for every task."""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from aigc_tf.serving.modules.fields import Signature
from aigc_tf.serving.process.other_process import StandIn

POLICIES = {"float32": "float32", "bfloat16": "mixed_bfloat16"}
"""Keras' name of each `export.dtype`."""

Outputs = Mapping[str, np.ndarray]
Reference = Callable[[Signature, Mapping[str, np.ndarray], Outputs], Outputs]
"""`reference(signature, inputs, found)`: what the trained model answers. An output that follows from another one, as a
label from its logits, is made of `found`, what the export answered: a difference that is allowed turns ties."""


class Module(Protocol):
    """A tf.Module to save."""

    def signatures(self) -> dict[str, Signature]:
        """Returns its functions by their names; one is `serving_default`."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Comparison:
    """How a model with smaller weights is compared with the same one with float32 weights."""

    build_module: Callable[[], Any]
    """Gives the module with float32 weights, as `Servable.build_module`."""
    measure: Callable[[Path, Path], dict[str, Any]]
    """What it costs, for JSON: folders of the SavedModels with float32 weights and with smaller ones."""


def same_answers(parity: dict[str, Any]) -> str:
    """Says in half a sentence that an export answers as its module does."""
    return f"in a new process it answers {parity['num_rows']} rows in {parity['num_calls']} calls as in this one"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Servable:
    """A trained model, ready to be published."""

    architecture: Mapping[str, Any]
    """What the model can be rebuilt from. For JSON."""
    num_parameters: int
    build_module: Callable[[], Any]
    """Gives the `Module` to save."""
    settings: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    """All that decides the answers but the architecture: meaning of input and output, hashes. For JSON."""
    dtype: str = "float32"
    """A key of `POLICIES`: what it computes in."""
    weights: str = "float32"
    """One of `config.STORED_WEIGHTS`: how its weights are stored."""
    samples: Mapping[str, Sequence[Any]] = dataclasses.field(default_factory=dict)
    """Values of rows by the name of an input, from the data, on which the export is tried besides hostile ones."""
    reference: Reference | None = None
    """What the export's answers are compared with; None for the module's own in this process."""
    measure: Callable[[StandIn, Any], dict[str, Any]] = lambda process, module: {}
    """Tries what is special to the task on (the export in another process, the module); returns what it measured, for
    the manifest. Raises RunError where the answers are others."""
    save_assets: Callable[[Path], Any] = lambda folder: None
    """Fills a folder with the files that become the SavedModel's assets."""
    write_formats: Callable[[Path], list[str]] = lambda folder: []
    """Fills a folder with other formats and returns the names of their folders."""
    conclude: Callable[[dict[str, Any]], str] = same_answers
    """Says in half a sentence what the manifest's `parity` shows: `in a new process it ...`."""
    comparison: Comparison | None = None
    """Where weights are stored smaller than float32."""
