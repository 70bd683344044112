"""The weights of a Hugging Face folder: one safetensors file, or several with an index, read tensor by tensor."""

import contextlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import safetensors

from aigc_tf.errors import InputError
from aigc_tf.models.building import read_json, short_reason

_WHOLE, _INDEX = "model.safetensors", "model.safetensors.index.json"
_TYPES = ("F64", "F32", "F16", "BF16")


class Tensors(Mapping[str, np.ndarray]):
    """The tensors of a folder by name, as float32. Each is read on access, since a file may be larger than memory.

    Args:
        files: Name of a tensor -> the open file that holds it, and its path.
    """

    def __init__(self, files: Mapping[str, tuple[Any, Path]]):
        self._files = dict(files)

    def __getitem__(self, name: str) -> np.ndarray:
        file, path = self._files[name]
        kind = file.get_slice(name).get_dtype()
        if kind not in _TYPES:
            raise InputError(f"The tensor {name!r} of {path} is of type {kind}; weights are {', '.join(_TYPES)}.")
        return np.asarray(file.get_tensor(name)).astype(np.float32)  # BF16 by ml_dtypes, which Keras imports

    def __iter__(self) -> Iterator[str]:
        return iter(self._files)

    def __len__(self) -> int:
        return len(self._files)


def check_safetensors(folder: Path) -> None:
    """Refuses a Hugging Face folder whose weights are not in safetensors files."""
    if not (folder / _WHOLE).is_file() and not (folder / _INDEX).is_file():
        raise InputError(
            f"{folder} has no {_WHOLE}; other weight files can run code and are not read. "
            "Save the model with transformers' save_pretrained(..., safe_serialization=True)."
        )


@contextlib.contextmanager
def open_tensors(folder: Path) -> Iterator[Tensors]:
    """Opens the weights of a folder.

    Raises:
        InputError: If a file is missing or damaged.
    """
    with contextlib.ExitStack() as stack:
        files: dict[str, tuple[Any, Path]] = {}
        for path in _paths(folder):
            try:
                file = stack.enter_context(safetensors.safe_open(path, framework="np"))
            except (OSError, safetensors.SafetensorError) as error:
                raise InputError(f"{path} cannot be read ({short_reason(error)}); copy it again.") from error
            files |= dict.fromkeys(file.keys(), (file, path))
        yield Tensors(files)


def _paths(folder: Path) -> list[Path]:
    if (folder / _WHOLE).is_file():
        return [folder / _WHOLE]
    parts = read_json(folder / _INDEX).get("weight_map")
    names = sorted({str(name) for name in parts.values()}) if isinstance(parts, dict) else []
    # A name that contains a folder could point anywhere on the machine.
    if not names or any(Path(name).name != name for name in names):
        raise InputError(f"{folder / _INDEX} does not name the files of the weights; copy the whole folder again.")
    return [folder / name for name in names]
