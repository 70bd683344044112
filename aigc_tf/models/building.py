"""Building a model of any task: precision, seeded weights, the folders that weights come from."""

import contextlib
import inspect
import json
import os
import random
import re
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import keras
import keras_nlp
import numpy as np
import safetensors

from aigc_tf.errors import InputError, RunError, suggest
from aigc_tf.models.weights import read_safetensors

ARCHITECTURE_FILE = "architecture.json"
"""Name, in a run folder, of the file that describes the network."""
DTYPES = ("float32", "mixed_bfloat16")
RUN, PRESET, HUGGING_FACE = "run", "preset", "hugging_face"
"""Kinds of folders that a model can come from."""
UNREADABLE = (OSError, ValueError, KeyError, TypeError, AttributeError, IndexError, safetensors.SafetensorError)
"""What the libraries raise for files that are damaged or of another kind."""


def dtype_policy(dtype: str) -> keras.DTypePolicy:
    if dtype not in DTYPES:
        raise ValueError(f"dtype is one of {', '.join(DTYPES)}, received {dtype!r}.")
    return keras.DTypePolicy(dtype)


@contextlib.contextmanager
def seeded(seed: int) -> Iterator[None]:
    """Makes initialisers a function of `seed`: Keras draws the seed of each one from Python's generator.

    The generator of the process is left as it was, so that building a model moves nothing that is drawn elsewhere.
    """
    state = random.getstate()
    random.seed(seed)
    try:
        yield
    finally:
        random.setstate(state)


def check_paths(model: keras.Model) -> None:
    """Refuses a model whose weights do not have different paths.

    Raises:
        RunError: If two weights have the same path.
    """
    paths = [weight.path for weight in model.weights]
    repeated = {path for path in paths if paths.count(path) > 1}
    if repeated:
        raise RunError(
            f"{type(model).__name__} has several weights named {min(repeated)!r}, so checkpoints could not distinguish "
            "them."
        )


def find_folder(source: str, presets: Iterable[str], *, example: str) -> Path | None:
    """Returns the folder of a source; None if the source is the name of a preset.

    Args:
        source: `model.source`, not empty.
        presets: KerasNLP's preset names for the task.
        example: One of them, for the message.
    Raises:
        InputError: If it is neither.
    """
    if os.path.isdir(source):
        return Path(source)
    if "://" in source or source in presets:
        return None
    if os.path.exists(source):
        raise InputError(f"model.source {source!r} is a file; it must be a folder or the name of a KerasNLP preset.")
    if os.sep in source or source[:1] in ".~":
        parent = Path(source).expanduser().parent
        near = nearest_name(Path(source).name, os.listdir(parent) if parent.is_dir() else ())
        raise InputError(f"model.source {source!r} is not a folder on this machine.{near}")
    near = nearest_name(source, presets) or f" Presets have names like {example!r}."
    raise InputError(f"model.source {source!r} is neither a folder nor a KerasNLP preset.{near}")


def read_folder_config(folder: Path) -> tuple[str, dict[str, Any]]:
    """Returns the kind of a folder, and its config.json.

    Raises:
        InputError: If it is of no known kind.
    """
    config = read_json(folder / "config.json")
    if "registered_name" in config:
        return PRESET, config
    if "model_type" in config:
        return HUGGING_FACE, config
    if {"model", "training"} <= config.keys():
        return RUN, config
    raise InputError(
        f"{folder / 'config.json'} belongs to neither a KerasNLP preset, nor a Hugging Face model, nor a run; "
        "give the folder of one of these as model.source."
    )


def preset_class(folder: Path, config: Mapping[str, Any]) -> Any:
    """Returns the class of a preset's backbone.

    Raises:
        InputError: If this version of KerasNLP does not have it.
    """
    cls = keras.saving.get_registered_object(config["registered_name"])
    if cls is None:
        raise InputError(f"{folder} is a preset of {config['registered_name']!r}, which this KerasNLP does not have.")
    return cls


def task_classes(base: type, *, but: type | tuple[type, ...] = ()) -> list[Any]:
    """Returns KerasNLP's models of one task, each on its kind of backbone; `but` are those that are not meant."""
    known: list[Any] = [cls for cls in vars(keras_nlp.models).values() if inspect.isclass(cls)]
    known = [cls for cls in known if issubclass(cls, base) and not issubclass(cls, but)]
    return [cls for cls in known if cls.backbone_cls is not None]


def class_on(backbone_class: type, classes: Iterable[Any], *, what: str) -> Any:
    """Returns the class among those of `task_classes` that stands on a backbone.

    Raises:
        InputError: If there is none; `what` says what it would be.
    """
    by_backbone = {cls.backbone_cls: cls for cls in reversed(list(classes))}
    if backbone_class not in by_backbone:
        known = ", ".join(sorted(cls.__name__ for cls in by_backbone))
        raise InputError(f"KerasNLP has no {what} on {backbone_class.__name__}; it has them on {known}.")
    return by_backbone[backbone_class]


def check_room(source: str, *, embedded: int, positions: int | None, vocabulary_size: int, max_length: int) -> None:
    """Refuses a model that is too small for the data.

    Args:
        source: `model.source`, for the messages.
        embedded: Tokens that the model embeds.
        positions: Those of the model; None if they have no end.
        vocabulary_size: Entries of the tokenizer's vocabulary.
        max_length: Positions of the longest row.
    Raises:
        InputError: If the vocabulary or the length goes beyond the model.
    """
    if vocabulary_size > embedded:
        raise other_vocabulary(source, embedded=embedded, vocabulary_size=vocabulary_size)
    if positions is not None and max_length > positions:
        raise InputError(
            f"data.max_length is {max_length}, but the model {source!r} has {positions} positions; lower it."
        )


def other_vocabulary(source: str, *, embedded: int, vocabulary_size: int) -> InputError:
    """Returns the error of a tokenizer that is not the model's."""
    return InputError(
        f"The tokenizer has {vocabulary_size} tokens, but the model {source!r} embeds {embedded}; "
        "use the model's own tokenizer (leave tokenizer.source empty)."
    )


def check_preset(folder: Path) -> None:
    """Refuses a preset without weights."""
    if not (folder / "model.weights.h5").is_file() and not (folder / "model.weights.json").is_file():
        raise InputError(f"The KerasNLP preset {folder} has no model.weights.h5; copy the whole folder.")


def read_backbone(source: str | Path, policy: keras.DTypePolicy) -> keras.Model:
    """Lets KerasNLP read the backbone of a folder, or of a preset by its name.

    Raises:
        InputError: If the files of a folder are damaged.
        RunError: If a preset cannot be fetched.
    """
    try:
        return keras_nlp.models.Backbone.from_preset(str(source), dtype=policy)
    except (*UNREADABLE, ImportError) as error:
        if isinstance(source, Path):
            raise InputError(
                f"The model in {source} cannot be read ({short_reason(error)}); its files are cut off or do not "
                "belong together."
            ) from error
        raise RunError(
            f"The preset {source!r} is not on this machine and cannot be fetched ({short_reason(error)}); "
            "check its name and the network, or give a local folder."
        ) from error


def read_architecture(folder: Path) -> dict[str, Any]:
    """Returns the description of the network of a run folder.

    Raises:
        InputError: If it is missing or damaged.
    """
    if not (folder / ARCHITECTURE_FILE).is_file():
        raise InputError(
            f"The run folder {folder} has no {ARCHITECTURE_FILE}, which scripts/train.py writes at its start."
        )
    return read_json(folder / ARCHITECTURE_FILE)


def read_run_weights(folder: str | os.PathLike[str]) -> dict[str, np.ndarray]:
    """Reads the best weights of a run folder, or the last ones where none was judged best; averaged where it has those.

    Raises:
        InputError: If the folder has no checkpoint that can be read.
    """
    checkpoints = Path(folder) / "checkpoints"
    for name in ("best.json", "last.json"):
        if (checkpoints / name).is_file():
            step_folder = str(read_json(checkpoints / name).get("folder"))
            if not re.fullmatch(r"step-\d+", step_folder):  # a name from a file must not lead out of the folder
                raise InputError(f"{checkpoints / name} names the folder {step_folder!r}; it must be step-NNNNNNNN.")
            weights = read_safetensors(checkpoints / step_folder / "weights.safetensors")
            state = checkpoints / step_folder / "state.json"
            frozen = str(read_json(state).get("frozen", "")) if state.is_file() else ""
            if frozen:  # what does not train is written once, beside the checkpoints
                weights |= read_safetensors(checkpoints / os.path.basename(frozen))
            averages = checkpoints / step_folder / "averages.safetensors"
            return weights | (read_safetensors(averages) if averages.is_file() else {})
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
