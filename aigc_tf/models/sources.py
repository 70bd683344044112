"""What building a model takes, whatever its task: precision, seeded weights, the folders weights come from."""

import contextlib
import json
import os
import random
import re
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import keras
import numpy as np
import safetensors

from aigc_tf.config import InputError, suggest
from aigc_tf.models.weights import read_safetensors

ARCHITECTURE_FILE = "architecture.json"
"""Name, in a run folder, of what describes the network."""
DTYPES = ("float32", "mixed_bfloat16")
UNREADABLE = (OSError, ValueError, KeyError, TypeError, AttributeError, IndexError, safetensors.SafetensorError)
"""What the libraries raise over files that are damaged or belong to something else."""


def dtype_policy(dtype: str) -> keras.DTypePolicy:
    if dtype not in DTYPES:
        raise ValueError(f"dtype is one of {', '.join(DTYPES)}, received {dtype!r}.")
    return keras.DTypePolicy(dtype)


@contextlib.contextmanager
def seeded(seed: int) -> Iterator[None]:
    """Makes initialisers a function of `seed`: Keras draws the seed of each one from Python's generator."""
    state = random.getstate()
    random.seed(seed)
    try:
        yield
    finally:
        random.setstate(state)


def read_run_weights(folder: str | os.PathLike[str]) -> dict[str, np.ndarray]:
    """Reads the best weights of a run folder, or the last ones where none was judged best.

    Raises:
        InputError: If the folder has no checkpoint that can be read.
    """
    checkpoints = Path(folder) / "checkpoints"
    for name in ("best.json", "last.json"):
        if (checkpoints / name).is_file():
            step_folder = str(read_json(checkpoints / name).get("folder"))
            if not re.fullmatch(r"step-\d+", step_folder):
                raise InputError(f"{checkpoints / name} names the folder {step_folder!r}; it must be step-NNNNNNNN.")
            return read_safetensors(checkpoints / step_folder / "weights.safetensors")
    raise InputError(f"{os.fspath(folder)} has no checkpoint yet; model.source must be a run that wrote one.")


def nearest_name(name: str, known: Iterable[str]) -> str:
    hint = suggest(name, known)
    return hint if hint.startswith(" Did you mean") else ""


def read_json(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_bytes())
    except FileNotFoundError as error:
        raise InputError(f"The model folder {path.parent} has no {path.name}.") from error
    except (OSError, json.JSONDecodeError, UnicodeDecodeError) as error:
        raise InputError(f"{path} cannot be read ({short_reason(error)}).") from error
    if not isinstance(content, dict):
        raise InputError(f"{path} is not a JSON object.")
    return content


def short_reason(error: BaseException) -> str:
    """What a library said, short enough for a part of one sentence."""
    if isinstance(error, OSError) and not error.strerror:  # the network: a page of nested reasons
        return type(error).__name__
    lines = str(error).strip().splitlines() or [type(error).__name__]
    return lines[0][:150].rstrip(". ")
