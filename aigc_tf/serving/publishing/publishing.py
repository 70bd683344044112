"""Publishes a model as the next numbered version that TensorFlow Serving loads unchanged; the same for every task.

    <directory>/<name>/<version>/            saved_model.pb, variables/, assets/, manifest.json
    <directory>/<name>-formats/<version>/    the same model in other formats

The formats lie beside the model's folder, so that the server, which looks for numbered folders there, sees versions
only. A version is written under a hidden name, tried in another process, and renamed when all checks pass; on an object
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

import tensorflow as tf

from aigc_tf import storage
from aigc_tf.config import ExportConfig
from aigc_tf.config.names import check_name
from aigc_tf.errors import InputError, RunError
from aigc_tf.serving.apis import SERVING_DEFAULT
from aigc_tf.serving.gate.op_gate import check_servable, graph_ops
from aigc_tf.serving.modules.fields import Signature
from aigc_tf.serving.process.other_process import StandIn
from aigc_tf.serving.publishing.parity import check_parity, make_calls
from aigc_tf.serving.publishing.servable import Comparison, Module, Servable
from aigc_tf.serving.publishing.warmup import try_warmup, write_warmup
from aigc_tf.serving.publishing.weights_cost import cost_table
from aigc_tf.serving.versions import MANIFEST_FILE, version_folders

_PACKAGES = ("tensorflow", "tensorflow-text", "keras", "keras-nlp", "keras-hub", "numpy")
_FORMAT = 7
"""Increase it when the same model would export to another graph or manifest."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Export:
    """The result of `publish`."""

    path: str
    """Folder of the version."""
    version: int
    created: bool
    """False if the newest version was already this model, so that nothing was written."""
    manifest: dict[str, Any]
    conclusion: str
    """The result of the trial in another process, as half a sentence."""

    def summary(self) -> str:
        """Returns one line for the user."""
        if not self.created:
            return f"{self.path} is this very model already; nothing was written."
        return f"Exported {self.path}: {self.conclusion}."

    def cost_table(self) -> str:
        """Returns a table of the cost of smaller weights; empty if weights are float32."""
        cost = self.manifest.get("weights_cost")
        return cost_table(cost, weights=self.manifest["weights"]) if cost else ""


def publish(
    servable: Servable,
    *,
    directory: str | os.PathLike[str],
    name: str,
    task_facts: Mapping[str, Any],
    target: str = ExportConfig.target,
    batch_sizes: tuple[int, ...] = ExportConfig.batch_sizes,
    source: Mapping[str, Any] | None = None,
) -> Export:
    """Writes the next version of a model, unless the newest version is already the same.

    Args:
        servable: The model to publish, from the task's door.
        directory: Folder of exported models, local or `gs://`.
        name: Name of the model.
        task_facts: Facts on the task for the manifest, see `tasks.spec.TaskSpec.manifest_facts`.
        target: Version of TensorFlow Serving that must load it, one of config.SERVERS.
        batch_sizes: Rows of the requests that the server warms up with; a deployment allows batches of these sizes.
        source: Origin of the model, for the manifest: config sha256, run folder, checkpoint, data set.
    Raises:
        InputError: If the name does not fit.
        RunError: If the server would refuse the model, if it answers differently than the trained one, or the disk is
            full; then no version was added.
    """
    check_name(name)
    settings = {
        "format": _FORMAT,
        **task_facts,
        "target": target,
        "batch_sizes": list(batch_sizes),
        **servable.settings,
        "dtype": servable.dtype,
        "weights": servable.weights,
    }
    busy = f"Another process is exporting {name!r} to {os.fspath(directory)}; try again later."
    advice = "Set export.directory to a folder that can be written."
    with storage.locked_file(storage.join(directory, f".{name}.lock"), busy=busy, advice=advice):
        return _publish(servable, storage.join(directory, name), settings, {"name": name, "source": source or {}})


def _publish(servable: Servable, base: str, settings: Mapping[str, Any], facts: Mapping[str, Any]) -> Export:
    # Without the manifest's facts, such as the time: an unchanged model exported again must not become a new version,
    # which every server that watches the folder would load.
    identity = _sha256_json({**settings, "architecture": servable.architecture})
    versions = _published_versions(base)
    if versions:
        newest = max(versions)
        path = storage.join(base, versions[newest])
        manifest = _read_whole(path)
        if manifest and manifest.get("identity") == identity:
            conclusion = servable.conclude(manifest["parity"])
            return Export(path=path, version=newest, created=False, manifest=manifest, conclusion=conclusion)
    version = max(versions, default=0) + 1
    manifest = {
        **facts,
        "version": version,
        "identity": identity,
        **settings,
        "architecture": servable.architecture,
        "num_parameters": servable.num_parameters,
        "created": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "versions": {"python": platform.python_version(), **_package_versions()},
    }
    with _published(base, version) as folder:
        manifest |= _write_and_try(servable, folder, manifest)
        _say("Writing the other formats ...")
        # Renamed before the version, so that whoever sees the version finds its formats too.
        with _published(f"{base}-formats", version, overwrite=True) as formats:
            manifest["formats"] = servable.write_formats(formats)
        manifest["files"] = _file_hashes(folder)
        storage.write_json(folder / MANIFEST_FILE, manifest)
    return Export(
        path=storage.join(base, str(version)),
        version=version,
        created=True,
        manifest=manifest,
        conclusion=servable.conclude(manifest["parity"]),
    )


def _write_and_try(servable: Servable, folder: Path, manifest: Mapping[str, Any]) -> dict[str, Any]:
    """Writes the SavedModel with its warm-up file, and returns the manifest's entries on its signatures and trials."""
    _say("Writing the SavedModel ...")
    module = servable.build_module()
    signatures = module.signatures()
    _write_saved_model(module, servable.save_assets, folder)
    facts: dict[str, Any] = {"signatures": {name: _described(one) for name, one in signatures.items()}}
    # The gate comes before the trial: it takes a second and names the op, where loading would only fail.
    facts["ops"] = graph_ops(folder)
    facts["warnings"] = [finding.to_json() for finding in check_servable(folder, target=manifest["target"])]
    _say("Trying it in another process ...")
    # On the CPU, as the other process: another device would differ by more than a tolerance.
    with tf.device("CPU:0"), StandIn(folder) as process:
        calls = make_calls(signatures, servable.samples)
        parity = check_parity(process, calls, reference=servable.reference)
        facts["parity"] = {**dataclasses.asdict(parity), **servable.measure(process, module)}
    _say("Warming it up ...")
    write_warmup(folder, manifest["name"], signatures, manifest["batch_sizes"])
    facts["warmup"] = dataclasses.asdict(try_warmup(folder, signatures[SERVING_DEFAULT]))
    if servable.comparison is not None:
        _say("Measuring what smaller weights cost ...")
        facts["weights_cost"] = _compare(servable.comparison, servable.save_assets, folder)
    return facts


def _say(sentence: str) -> None:
    """Prints a step of the export, since all of it takes a minute or two."""
    print(sentence, file=sys.stderr, flush=True)


def _compare(comparison: Comparison, save_assets: Callable[[Path], None], folder: Path) -> dict[str, Any]:
    with tempfile.TemporaryDirectory(prefix="aigc_tf-float32-") as scratch:
        _write_saved_model(comparison.build_module(), save_assets, Path(scratch))
        return comparison.measure(Path(scratch), folder)


def _write_saved_model(module: Module, save_assets: Callable[[Path], Any], folder: Path) -> None:
    signatures = {name: one.function for name, one in module.signatures().items()}
    for one in module.signatures().values():
        _check_fields(one)
    with tempfile.TemporaryDirectory(prefix="aigc_tf-assets-") as scratch:
        save_assets(Path(scratch))
        files = sorted(file for file in Path(scratch).rglob("*") if file.is_file())
        module.assets = [tf.saved_model.Asset(os.fspath(file)) for file in files]  # type: ignore[attr-defined]
        options = tf.saved_model.SaveOptions(experimental_custom_gradients=False)  # nobody trains it further
        try:
            tf.saved_model.save(module, os.fspath(folder), signatures=signatures, options=options)
        except (AssertionError, tf.errors.OpError) as error:  # an untracked resource; the disk
            if "No space left on device" in str(error):
                raise RunError(f"Cannot write {folder}: No space left on device. Nothing was published.") from error
            raise RunError(f"The SavedModel cannot be written: {str(error).splitlines()[0][:300]}") from error


def _check_fields(signature: Signature) -> None:
    """Refuses a signature whose graph and fields differ, since everything else is derived from the fields."""
    found = signature.function.get_concrete_function().structured_outputs
    computed = {name: f"{value.dtype.name} {value.shape}" for name, value in found.items()}
    stated = {name: f"{field.dtype} {tf.TensorShape(field.shape)}" for name, field in signature.outputs.items()}
    fits = computed.keys() == stated.keys() and all(
        found[name].dtype == field.dtype and found[name].shape.is_compatible_with(field.shape)
        for name, field in signature.outputs.items()
    )
    if not fits:
        raise RunError(f"The signature {signature.name} computes {computed}, but its fields say {stated}.")


def _described(signature: Signature) -> dict[str, Any]:
    return {
        side: {name: [field.dtype, list(field.shape)] for name, field in fields.items()}
        for side, fields in (("inputs", signature.inputs), ("outputs", signature.outputs))
    }


def _published_versions(base: str) -> dict[int, str]:
    """Returns the versions. On an object store a folder without manifest is a killed export's; its number is free."""
    folders = version_folders(base)
    if not storage.is_remote(base):
        return folders
    return {number: name for number, name in folders.items() if storage.exists(storage.join(base, name, MANIFEST_FILE))}


@contextlib.contextmanager
def _published(base: str, version: int, *, overwrite: bool = False) -> Iterator[Path]:
    """Yields an empty local folder that becomes `<base>/<version>` when the block ends without an error.

    `overwrite` replaces formats whose version was never published, since its export was killed.
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
    """Sorts files for upload: saved_model.pb after all files it refers to, the manifest last."""
    return {"saved_model.pb": 1, MANIFEST_FILE: 2}.get(file.name, 0), os.fspath(file)


def _read_whole(folder: str) -> dict[str, Any] | None:
    """Returns the manifest of a version; None if it is missing or does not fit the files."""
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
