"""Checks the files of a SavedModel's folder."""

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from aigc_tf import storage
from aigc_tf.serving.gate.findings import REFUSED, WARNED, Finding
from aigc_tf.serving.gate.saved_model_graph import SavedGraph
from aigc_tf.serving.gate.variable_index import read_file_sizes
from aigc_tf.serving.versions import MANIFEST_FILE

_VARIABLES = ("VarHandleOp", "VariableV2", "Variable")
_INDEX = "variables/variables.index"
_COPY_AGAIN = "Copy or export the folder again."


def check_folder(folder: Path, graph: SavedGraph) -> Iterator[Finding]:
    """Yields findings on files of a SavedModel that are missing or differ from what was written."""
    yield from _broken(list(_missing_files(folder, graph)), "a file that the model needs is missing")
    yield from _broken(list(_changed_files(folder)), f"a file differs from the one that {MANIFEST_FILE} names")
    yield from _broken(list(_damaged_variables(folder)), "a file of variables is cut short or damaged")


def check_layout(folder: str) -> Iterator[Finding]:
    """Yields a finding if the name of a folder, local or `gs://`, is not a version number."""
    name = os.path.basename(os.path.abspath(folder))
    if not (name.isdecimal() and name.isascii()):
        yield Finding(
            grade=WARNED,
            what=f"the folder's name {name!r} is not a version number",
            where=(folder,),
            why="A server reads only folders of the model's folder whose name is a number.",
            advice=f"Move it to a folder with a number, such as {name}/1, and give the server {name} as base path.",
        )


def _broken(where: list[str], what: str) -> Iterator[Finding]:
    if where:
        why = "The server does not load the model, or loads other content than the author wrote."
        yield Finding(grade=REFUSED, what=what, where=tuple(where), why=why, advice=_COPY_AGAIN)


def _missing_files(folder: Path, graph: SavedGraph) -> Iterator[str]:
    for asset in graph.meta_graph.asset_file_def:
        if not (folder / "assets" / asset.filename).is_file():
            yield f"assets/{asset.filename}"
    if not any(node.op in _VARIABLES for _, node in graph.nodes):
        return
    if not (folder / _INDEX).is_file():
        yield _INDEX
        return
    with contextlib.suppress(ValueError):  # `_damaged_variables` reports it
        yield from (name for name in _sizes(folder) if not (folder / name).is_file())


def _damaged_variables(folder: Path) -> Iterator[str]:
    if not (folder / _INDEX).is_file():
        return
    try:
        yield from (name for name, size in _sizes(folder).items() if _is_shorter(folder / name, size))
    except ValueError:
        yield _INDEX


def _is_shorter(file: Path, size: int) -> bool:
    return file.is_file() and file.stat().st_size < size


def _sizes(folder: Path) -> dict[str, int]:
    """Returns the minimum size of each file of variables, by name."""
    sizes = read_file_sizes((folder / _INDEX).read_bytes())
    return {f"variables/variables.data-{n:05}-of-{len(sizes):05}": size for n, size in enumerate(sizes)}


def _changed_files(folder: Path) -> Iterator[str]:
    """Yields changed files of a folder that this program exported: its manifest has the hashes."""
    manifest = folder / MANIFEST_FILE
    files: Any = None
    if manifest.is_file():
        content = storage.read_json(manifest)
        files = content.get("files") if isinstance(content, dict) else None
    for name, sha256 in sorted(files.items()) if isinstance(files, dict) else ():
        path = folder / name
        if not path.is_file() or storage.sha256_file(path) != sha256:
            yield name
