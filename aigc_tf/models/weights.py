"""Weights by path: read, set, hash. The same for every model, since a variable's path is the same in every process."""

import difflib
import fnmatch
import hashlib
import os
import sys
from collections.abc import Mapping, Sequence

import keras
import numpy as np
import safetensors
import safetensors.numpy

from aigc_tf.errors import InputError


def weights_by_path(model: keras.Model) -> dict[str, np.ndarray]:
    """Returns every weight, without random states, under its path, such as `transformer_layer_0/.../kernel`."""
    return {weight.path: np.asarray(weight) for weight in model.weights}


def load_weights_by_path(
    model: keras.Model, arrays: Mapping[str, np.ndarray], *, source: str = "the checkpoint"
) -> None:
    """Sets all weights of a classifier, or of a backbone alone.

    Args:
        model: The model whose weights are set.
        arrays: Path -> values; paths that the model does not have are ignored.
        source: Origin of the arrays, for the error.
    Raises:
        InputError: If a weight is missing or has another shape. The model is then unchanged.
    """
    for weight in model.weights:  # all are checked before one is set
        if weight.path not in arrays:
            raise InputError(f"{source} has no weight {weight.path!r}; it belongs to another model.")
        found, wanted = tuple(arrays[weight.path].shape), tuple(weight.shape)
        if found != wanted:
            raise InputError(
                f"Weight {weight.path!r} of {source} has shape {found}, the model needs {wanted}; "
                "it belongs to another model."
            )
    for weight in model.weights:
        weight.assign(arrays[weight.path])


def match_paths(patterns: Sequence[str], paths: Sequence[str], *, field: str) -> list[str]:
    """Returns the paths that match one of the globs, in their order.

    Args:
        patterns: Globs on whole paths; `*` matches slashes too, and case matters.
        paths: All paths.
        field: The config field that the patterns come from, for the error.
    Raises:
        InputError: If a pattern matches nothing; the error names similar paths.
    """
    for pattern in patterns:
        if not any(fnmatch.fnmatchcase(path, pattern) for path in paths):
            raise InputError(f"{field} {pattern!r} matches no weight of the model; {_close_paths(pattern, paths)}.")
    return [path for path in paths if any(fnmatch.fnmatchcase(path, pattern) for pattern in patterns)]


def _close_paths(pattern: str, paths: Sequence[str]) -> str:
    near = difflib.get_close_matches(pattern, paths, n=3, cutoff=0.5)
    if not near:  # the pattern is shorter than a path: one path for each layer with a similar name
        layers = {path.rpartition("/")[0]: path for path in reversed(paths)}
        layers |= {path.partition("/")[0]: path for path in reversed(paths)}
        near = [layers[name] for name in difflib.get_close_matches(pattern.strip("*/"), layers, n=3, cutoff=0.5)]
    if near:
        return f"similar paths are {', '.join(dict.fromkeys(near))}"
    return f"paths look like {', '.join(paths[:: max(len(paths) // 3, 1)][:3])}"


def read_safetensors(path: str | os.PathLike[str]) -> dict[str, np.ndarray]:
    """Reads a safetensors file.

    Raises:
        InputError: If it is missing, truncated or not a safetensors file.
    """
    try:
        return safetensors.numpy.load_file(path)
    except FileNotFoundError as error:
        raise InputError(f"There is no file {os.fspath(path)}.") from error
    except (OSError, safetensors.SafetensorError) as error:
        raise InputError(
            f"{os.fspath(path)} is truncated or not a safetensors file ({str(error).splitlines()[0]}); copy it again."
        ) from error


def weights_sha256(named: Mapping[str, np.ndarray]) -> str:
    """Returns one sha256 of a model's weights.

    It hashes only the arrays' bytes, one array after another, ordered by path (by code point), each in C order and
    little-endian in its own dtype. Paths, shapes, dtypes, optimizer slots and random states outside `model.weights`
    do not enter.

    Args:
        named: `{variable.path: array}` over `model.weights`.

    Raises:
        ValueError: If an array holds Python objects, which have no bytes of their own.
    """
    digest = hashlib.sha256()
    for path in sorted(named):  # the order of `model.weights` is Keras' own
        array = np.asarray(named[path])
        if array.dtype.hasobject:
            raise ValueError(f"The weight {path!r} has dtype {array.dtype}; weights are numeric arrays.")
        big_endian = array.dtype.byteorder == ">" or (array.dtype.byteorder == "=" and sys.byteorder == "big")
        digest.update((array.byteswap() if big_endian else array).tobytes(order="C"))
    return digest.hexdigest()
