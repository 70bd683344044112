"""The numbered versions of an exported model: finding the newest, reading its manifest. Without TensorFlow."""

import difflib
import os
from pathlib import Path
from typing import Any

from aigc_tf import storage
from aigc_tf.errors import InputError

MANIFEST_FILE = "manifest.json"


def version_folders(path: str | os.PathLike[str]) -> dict[int, str]:
    """Returns the names of the folders of a model's versions by their numbers, ascending.

    A server parses the number: `0001` is version 1. Of two folders with one number it
    serves one; this function takes the last.
    """
    names = [name for name in storage.list_folder(path) if name.isdecimal() and name.isascii()]
    by_number = {int(name): name for name in sorted(names)}
    return dict(sorted(by_number.items()))


def latest_version(path: str | os.PathLike[str]) -> str:
    """Returns the folder of one version: `saved_models/NAME/3` itself, or the newest one in `saved_models/NAME`.

    Raises:
        InputError: If there is no exported model.
    """
    if storage.exists(storage.join(path, "saved_model.pb")):
        return os.fspath(path)
    folders = version_folders(path)
    if not folders:
        raise InputError(f"{os.fspath(path)} holds no exported model.{_nearest_model(path)}")
    return storage.join(path, folders[max(folders)])


def _nearest_model(path: str | os.PathLike[str]) -> str:
    wanted = Path(path)
    if storage.is_remote(path) or not wanted.parent.is_dir():
        return " Export one: python scripts/export.py --workdir=..."
    inside = sorted(folder for folder in wanted.iterdir() if version_folders(folder)) if wanted.is_dir() else []
    if inside:
        return f" Did you mean {os.fspath(inside[0])!r}?"
    names = [folder.name for folder in wanted.parent.iterdir() if version_folders(folder)]
    near = difflib.get_close_matches(wanted.name, names, n=1)
    return (
        f" Did you mean {os.fspath(wanted.parent / near[0])!r}?"
        if near
        else " Export one: python scripts/export.py --workdir=..."
    )


def read_manifest(folder: str | os.PathLike[str], *, question: str = "") -> dict[str, Any]:
    """Returns the manifest of a version.

    Args:
        folder: What `latest_version` returned.
        question: The first input of a question that the model must take, such as `text`; empty: any.
    Raises:
        InputError: If this program did not export it, or it does not take that input.
    """
    path = storage.join(folder, MANIFEST_FILE)
    manifest: dict[str, Any] = storage.read_json(path)
    for key in ("task", "ask"):
        if not isinstance(manifest, dict) or key not in manifest:
            raise InputError(f"{path} lacks {key!r}; export the model again.")
    ask = manifest["ask"]
    if question and ask["inputs"][0] != question:
        raise InputError(
            f"The model {os.fspath(folder)} is of task {manifest['task']!r}, which takes no {question}; ask it with "
            f"scripts/{ask['script']}.py."
        )
    return manifest
