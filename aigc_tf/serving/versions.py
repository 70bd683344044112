"""The numbered versions of an exported model: finding the newest, reading its manifest. Without TensorFlow."""

import difflib
import os
from pathlib import Path
from typing import Any

from aigc_tf import storage
from aigc_tf.errors import InputError

MANIFEST_FILE = "manifest.json"


def list_versions(path: str | os.PathLike[str]) -> list[int]:
    """Returns the version numbers in a model's folder, ascending; empty where there is none."""
    return sorted(int(name) for name in storage.list_folder(path) if name.isdecimal() and name.isascii())


def latest_version(path: str | os.PathLike[str]) -> str:
    """Returns the folder of one version: of `saved_models/NAME/3` itself, of `saved_models/NAME` the newest one.

    Raises:
        InputError: If there is no exported model.
    """
    if storage.exists(storage.join(path, "saved_model.pb")):
        return os.fspath(path)
    versions = list_versions(path)
    if not versions:
        raise InputError(f"{os.fspath(path)} holds no exported model.{_nearest_model(path)}")
    return storage.join(path, str(versions[-1]))


def _nearest_model(path: str | os.PathLike[str]) -> str:
    wanted = Path(path)
    if storage.is_remote(path) or not wanted.parent.is_dir():
        return " Export one: python scripts/export.py --workdir=..."
    inside = sorted(folder for folder in wanted.iterdir() if list_versions(folder)) if wanted.is_dir() else []
    if inside:
        return f" Did you mean {os.fspath(inside[0])!r}?"
    names = [folder.name for folder in wanted.parent.iterdir() if list_versions(folder)]
    near = difflib.get_close_matches(wanted.name, names, n=1)
    return (
        f" Did you mean {os.fspath(wanted.parent / near[0])!r}?"
        if near
        else " Export one: python scripts/export.py --workdir=..."
    )


def read_manifest(folder: str | os.PathLike[str], *, task: str) -> dict[str, Any]:
    """Returns the manifest of a version.

    Args:
        folder: What `latest_version` returned.
        task: The task the model must be of.
    Raises:
        InputError: If this program did not export it, or it is of another task.
    """
    path = storage.join(folder, MANIFEST_FILE)
    manifest = storage.read_json(path)
    found = manifest.get("task") if isinstance(manifest, dict) else None
    if found is None:
        raise InputError(f"{path} lacks 'task'; export the model anew.")
    if found != task:
        script = "scripts/generate.py" if found == "generate" else "scripts/predict.py"
        raise InputError(f"The model {os.fspath(folder)} is one of task {found!r}, not {task!r}; ask it by {script}.")
    return manifest
