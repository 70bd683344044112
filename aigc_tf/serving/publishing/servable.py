"""A trained model with all that publishing needs; the same for every task."""

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
"""`reference(signature, inputs, found)`: the trained model's answer. An output that follows from another one, such as a
label from its logits, is computed from `found`, the export's answer, since an allowed difference may decide a tie."""


class Module(Protocol):
    """A tf.Module to save."""

    def signatures(self) -> dict[str, Signature]:
        """Returns its functions by name; one is `serving_default`."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Comparison:
    """How a model with smaller weights is compared with the same one with float32 weights."""

    build_module: Callable[[], Any]
    """Returns the module with float32 weights, as `Servable.build_module`."""
    measure: Callable[[Path, Path], dict[str, Any]]
    """Measures the cost, for JSON; takes the folders of the SavedModels with float32 and with smaller weights."""


def same_answers(parity: dict[str, Any]) -> str:
    """Returns half a sentence: the export answers as its module."""
    return f"in a new process it answers {parity['num_rows']} rows in {parity['num_calls']} calls as in this one"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Servable:
    """A trained model, ready to be published."""

    architecture: Mapping[str, Any]
    """Description from which the model can be rebuilt. For JSON."""
    num_parameters: int
    build_module: Callable[[], Any]
    """Returns the `Module` to save."""
    settings: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    """All that decides the answers besides the architecture: meaning of input and output, hashes. For JSON."""
    dtype: str = "float32"
    """A key of `POLICIES`: the dtype of the computation."""
    weights: str = "float32"
    """One of `config.STORED_WEIGHTS`: how its weights are stored."""
    samples: Mapping[str, Sequence[Any]] = dataclasses.field(default_factory=dict)
    """Values of rows by the name of an input, from the data, on which the export is tried besides hostile ones."""
    reference: Reference | None = None
    """Returns the expected answers; None: the module's own in this process."""
    measure: Callable[[StandIn, Any], dict[str, Any]] = lambda process, module: {}
    """Runs the task's own trials with the export in another process and the module; returns the results for the
    manifest. Raises RunError if the answers differ."""
    save_assets: Callable[[Path], Any] = lambda folder: None
    """Writes the files of the SavedModel's assets into a folder."""
    write_formats: Callable[[Path], list[str]] = lambda folder: []
    """Writes other formats into a folder and returns the names of their folders."""
    conclude: Callable[[dict[str, Any]], str] = same_answers
    """Returns half a sentence on the manifest's `parity`: `in a new process it ...`."""
    comparison: Comparison | None = None
    """Only if weights are stored smaller than float32."""
