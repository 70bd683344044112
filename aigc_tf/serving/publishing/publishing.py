"""Publishes a model as the next numbered version that TensorFlow Serving takes as it is; the same for every task.

    <directory>/<name>/<version>/            saved_model.pb, variables/, assets/, manifest.json
    <directory>/<name>-formats/<version>/    the same model in other people's formats

The formats lie beside the model's folder, so that the server, which looks for numbered folders in it, sees versions
only. A version is written under a hidden name, tried in another process, and renamed when all is well; on an object
store it is copied, the manifest last. A number is never used for two models.
"""

import contextlib
import dataclasses
import datetime
import hashlib
import json
import os
import platform
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping
from importlib import metadata
from pathlib import Path
from typing import Any

import keras
import tensorflow as tf

from aigc_tf import storage
from aigc_tf.config.names import check_name
from aigc_tf.errors import InputError, RunError
from aigc_tf.models.adapters.adapters import adapter_of, save_adapter
from aigc_tf.serving.gate.op_gate import check_servable, graph_ops
from aigc_tf.serving.publishing.warmup import try_warmup, write_warmup
from aigc_tf.serving.publishing.weights_cost import cost_table
from aigc_tf.serving.versions import MANIFEST_FILE, list_versions

POLICIES = {"float32": "float32", "bfloat16": "mixed_bfloat16"}
"""Keras' name of each `export.dtype`."""
_PACKAGES = ("tensorflow", "tensorflow-text", "keras", "keras-nlp", "keras-hub", "numpy")
_FORMAT = 6
"""Raise it when the same model would export to another graph or manifest."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Comparison:
    """How a model with smaller weights is compared with the same one with float32 weights."""

    build_module: Callable[[], Any]
    """Gives the tf.Module with float32 weights, as `Publication.build_module`."""
    measure: Callable[[Path, Path], dict[str, Any]]
    """What it costs, for JSON: folders of the SavedModels with float32 weights and with smaller ones."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Publication:
    """What a task brings to be published."""

    settings: Mapping[str, Any]
    """All that decides the answers but the architecture: meaning of input and output, dtype, hashes. For JSON."""
    architecture: Mapping[str, Any]
    """What the model can be rebuilt from. For JSON."""
    num_parameters: int
    target: str
    """Version of TensorFlow Serving that has to load it, one of config.SERVERS."""
    batch_sizes: tuple[int, ...]
    """Rows of the requests that the server warms up with; a deployment allows batches of these sizes."""
    build_module: Callable[[], Any]
    """Gives the tf.Module to save, whose `signatures()` are the functions by their names."""
    save_assets: Callable[[Path], None]
    """Fills a folder with the files that become the SavedModel's assets."""
    measure: Callable[[Path, Any], dict[str, Any]]
    """Tries the written SavedModel (folder, module) in another process; returns what it measured, for JSON.

    Raises RunError where the answers are others.
    """
    write_formats: Callable[[Path], list[str]]
    """Fills a folder with other formats and returns the names of their folders."""
    conclude: Callable[[dict[str, Any]], str]
    """Says in half a sentence what `measure` found: `in a new process it ...`."""
    comparison: Comparison | None = None
    """Where weights are stored smaller than float32."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Export:
    """What `publish` did."""

    path: str
    """Folder of the version."""
    version: int
    created: bool
    """False where the newest version was this very model already, and nothing was written."""
    manifest: dict[str, Any]
    conclusion: str
    """What the other process showed, in half a sentence."""

    def summary(self) -> str:
        """Returns one line for the user."""
        if not self.created:
            return f"{self.path} is this very model already; nothing was written."
        return f"Exported {self.path}: {self.conclusion}."

    def cost_table(self) -> str:
        """Returns lines on what smaller weights cost; empty where weights are float32."""
        cost = self.manifest.get("weights_cost")
        return cost_table(cost, weights=self.manifest["weights"]) if cost else ""


def publish(
    publication: Publication, *, directory: str | os.PathLike[str], name: str, source: Mapping[str, Any] | None = None
) -> Export:
    """Writes the next version of a model, unless the newest version is the same already.

    Args:
        publication: What the task brings.
        directory: Folder of exported models, local or `gs://`.
        name: Name of the model.
        source: Where the model comes from, for the manifest: config sha256, run folder, checkpoint, data set.
    Raises:
        InputError: If the name does not fit.
        RunError: If the server would refuse the model, if it answers otherwise than the trained one, or the disk is
            full; then no version was added.
    """
    check_name(name)
    busy = f"Another process is exporting {name!r} to {os.fspath(directory)}; try again later."
    advice = "Set export.directory to a folder that can be written."
    with storage.locked_file(storage.join(directory, f".{name}.lock"), busy=busy, advice=advice):
        return _publish(publication, storage.join(directory, name), name, source or {})


def write_adapter(model: keras.Model, folder: Path) -> list[str]:
    """Writes a model's adapter, if it has one, as a folder beside the other formats; returns its name."""
    if adapter_of(model) is None:
        return []
    (folder / "adapter").mkdir()
    save_adapter(model, folder / "adapter")
    return ["adapter"]


def _publish(publication: Publication, base: str, name: str, source: Mapping[str, Any]) -> Export:
    settings = {
        "format": _FORMAT,
        "target": publication.target,
        "batch_sizes": list(publication.batch_sizes),
        **publication.settings,
    }
    identity = _sha256_json({**settings, "architecture": publication.architecture})
    versions = _published_versions(base)
    if versions:
        path = storage.join(base, str(versions[-1]))
        newest = _read_whole(path)
        if newest and newest.get("identity") == identity:
            conclusion = publication.conclude(newest["parity"])
            return Export(path=path, version=versions[-1], created=False, manifest=newest, conclusion=conclusion)
    version = max(versions, default=0) + 1
    facts = {
        "name": name,
        "version": version,
        "identity": identity,
        **settings,
        "architecture": publication.architecture,
        "num_parameters": publication.num_parameters,
        "source": dict(source),
        "created": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "versions": {"python": platform.python_version(), **_package_versions()},
    }
    with _published(base, version) as folder:
        _say("Writing the SavedModel ...")
        module = publication.build_module()
        facts |= _write_saved_model(module, publication.save_assets, folder)
        facts["warnings"] = [finding.to_json() for finding in check_servable(folder, target=publication.target)]
        _say("Trying it in another process ...")
        facts["parity"] = publication.measure(folder, module)
        _say("Warming it up ...")
        write_warmup(folder, name, facts["signatures"], publication.batch_sizes)
        facts["warmup"] = dataclasses.asdict(try_warmup(folder, facts["signatures"]))
        if publication.comparison is not None:
            _say("Measuring what smaller weights cost ...")
            facts["weights_cost"] = _compare(publication.comparison, publication.save_assets, folder)
        _say("Writing the other formats ...")
        # Named before the version is: whoever sees the version finds the formats too.
        with _published(f"{base}-formats", version, overwrite=True) as formats:
            facts["formats"] = publication.write_formats(formats)
        facts["files"] = _file_hashes(folder)
        storage.write_json(folder / MANIFEST_FILE, facts)
    return Export(
        path=storage.join(base, str(version)),
        version=version,
        created=True,
        manifest=facts,
        conclusion=publication.conclude(facts["parity"]),
    )


def _say(sentence: str) -> None:
    """Tells who waits what is done; all of it takes a minute or two."""
    print(sentence, file=sys.stderr, flush=True)


def _compare(comparison: Comparison, save_assets: Callable[[Path], None], folder: Path) -> dict[str, Any]:
    with tempfile.TemporaryDirectory(prefix="aigc_tf-float32-") as scratch:
        _write_saved_model(comparison.build_module(), save_assets, Path(scratch))
        return comparison.measure(Path(scratch), folder)


def _write_saved_model(module: Any, save_assets: Callable[[Path], None], folder: Path) -> dict[str, Any]:
    """Writes the SavedModel and returns its signatures and ops."""
    with tempfile.TemporaryDirectory(prefix="aigc_tf-assets-") as scratch:
        save_assets(Path(scratch))
        files = sorted(file for file in Path(scratch).rglob("*") if file.is_file())
        module.assets = [tf.saved_model.Asset(os.fspath(file)) for file in files]
        options = tf.saved_model.SaveOptions(experimental_custom_gradients=False)  # nobody trains it further
        try:
            tf.saved_model.save(module, os.fspath(folder), signatures=module.signatures(), options=options)
        except (AssertionError, tf.errors.OpError) as error:  # an untracked resource; the disk
            if "No space left on device" in str(error):
                raise RunError(f"Cannot write {folder}: No space left on device. Nothing was published.") from error
            raise RunError(f"The SavedModel cannot be written: {str(error).splitlines()[0][:300]}") from error
    signatures = {key: _signature(function) for key, function in module.signatures().items()}
    return {"signatures": signatures, "ops": graph_ops(folder)}


def _signature(function: Any) -> dict[str, Any]:
    concrete = function.get_concrete_function()
    arguments = tf.nest.flatten(concrete.structured_input_signature)
    return {
        "inputs": {spec.name: [spec.dtype.name, spec.shape.as_list()] for spec in arguments},
        "outputs": {
            name: [value.dtype.name, value.shape.as_list()] for name, value in concrete.structured_outputs.items()
        },
    }


def _published_versions(base: str) -> list[int]:
    """On an object store a folder without manifest is what a killed export left: its number is free."""
    versions = list_versions(base)
    if not storage.is_remote(base):
        return versions
    return [number for number in versions if storage.exists(storage.join(base, str(number), MANIFEST_FILE))]


@contextlib.contextmanager
def _published(base: str, version: int, *, overwrite: bool = False) -> Iterator[Path]:
    """Yields an empty local folder that becomes `<base>/<version>` when the block ends without an error.

    `overwrite` is for formats whose version was never published: an export was killed in between.
    """
    final = storage.join(base, str(version))
    if not storage.is_remote(base):
        with storage.staged_folder(final, overwrite=overwrite) as staging:
            yield staging
        return
    with tempfile.TemporaryDirectory(prefix="aigc_tf-export-") as scratch:
        yield Path(scratch)
        storage.remove_folder(final)
        for file in sorted(Path(scratch).rglob("*"), key=upload_order):
            target = storage.join(final, *file.relative_to(scratch).parts)
            if file.is_file():
                storage.make_folder(target.rpartition("/")[0])
                storage.write_bytes(target, file.read_bytes())


def upload_order(file: Path) -> tuple[int, str]:
    """The file that makes a folder a SavedModel comes after all it refers to, the manifest comes last."""
    return {"saved_model.pb": 1, MANIFEST_FILE: 2}.get(file.name, 0), os.fspath(file)


def _read_whole(folder: str) -> dict[str, Any] | None:
    """Returns the manifest of a version, None where it is missing or the files are not those it names."""
    path = storage.join(folder, MANIFEST_FILE)
    if not storage.exists(path):
        return None
    try:
        manifest = storage.read_json(path)
        if not storage.is_remote(folder) and _file_hashes(Path(folder)) != manifest["files"]:
            return None
    except (InputError, KeyError, TypeError):
        return None
    return manifest


def _file_hashes(folder: Path) -> dict[str, str]:
    files = sorted(file for file in folder.rglob("*") if file.is_file() and file != folder / MANIFEST_FILE)
    return {file.relative_to(folder).as_posix(): storage.sha256_file(file) for file in files}


def _sha256_json(content: Any) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True, separators=(",", ":")).encode()).hexdigest()


def _package_versions() -> dict[str, str]:
    versions = {}
    for package in _PACKAGES:
        with contextlib.suppress(metadata.PackageNotFoundError):
            versions[package] = metadata.version(package)
    return versions
