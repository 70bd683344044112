"""Publishes a trained classifier as a SavedModel that TensorFlow Serving takes as it is.

    <directory>/<name>/<version>/            saved_model.pb, variables/, assets/, manifest.json
    <directory>/<name>-formats/<version>/    keras_nlp/ and, for BERT, hugging_face/

The formats lie beside the model's folder, so that the server, which looks for numbered folders in it, sees versions
only. A version is written under a hidden name, tried in another process, and renamed when all is well; on an object
store it is copied, the manifest last. A number is never used for two models.
"""

import contextlib
import dataclasses
import datetime
import fcntl
import hashlib
import json
import os
import platform
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

import keras
import keras_nlp
import tensorflow as tf

from aigc_tf import storage
from aigc_tf.config import InputError, RunError
from aigc_tf.data.tokenizers import Tokenizer
from aigc_tf.models.classifier import clone_classifier, describe_classifier
from aigc_tf.models.formats import build_word_piece, save_hugging_face, save_keras_preset
from aigc_tf.models.weights import weights_by_path, weights_sha256
from aigc_tf.serving.op_gate import check_ops
from aigc_tf.serving.parity import HOSTILE_TEXTS, Parity, check_parity, logits_difference, pack_texts
from aigc_tf.serving.predictor import MANIFEST_FILE, list_versions
from aigc_tf.serving.signatures import ClassifierModule, ServingSpec, packed_length

_POLICIES = {"float32": "float32", "bfloat16": "mixed_bfloat16"}
_PACKAGES = ("tensorflow", "tensorflow-text", "keras", "keras-nlp", "keras-hub", "numpy")
_FORMAT = 1
"""Raise it when the same model would export to another graph or manifest."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Export:
    """What `export_classifier` did."""

    path: str
    """Folder of the version."""
    version: int
    created: bool
    """False where the newest version was this very model already, and nothing was written."""
    manifest: dict[str, Any]

    def summary(self) -> str:
        """Returns one line for the user."""
        if not self.created:
            return f"{self.path} is this very model already; nothing was written."
        parity = self.manifest["parity"]
        worst = max(parity["max_difference"].values())
        return (
            f"Exported {self.path}: in a new process it differs by at most {worst:.1e} "
            f"on {parity['num_texts']} texts (bound {parity['bound']:.0e}), token ids identical."
        )


def export_classifier(
    model: keras.Model,
    tokenizer: Tokenizer,
    spec: ServingSpec,
    *,
    directory: str | os.PathLike[str],
    name: str,
    dtype: str = "float32",
    samples: Sequence[tuple[str, ...]] = (),
    source: Mapping[str, Any] | None = None,
) -> Export:
    """Exports a classifier as the next version of a model, unless the newest version is the same already.

    Args:
        model: What `build_classifier` returned, with the weights to publish, in the dtype it was trained in.
        tokenizer: The tokenizer of the prepared data.
        spec: Meaning of input and output.
        directory: Folder of exported models, local or `gs://`.
        name: Name of the model.
        dtype: What the exported model computes in: float32 or bfloat16.
        samples: Texts, or pairs of texts, from the data to try the exported model on, besides hostile ones.
        source: Where the model comes from, for the manifest: config sha256, run folder, checkpoint, data set.
    Raises:
        InputError: If the name does not fit.
        RunError: If the exported model answers otherwise than the trained one, or the disk is full; then no version
            was added.
    """
    if not name or set(name) & set("/\\ ") or name[0] == "." or name.endswith("-formats"):
        raise InputError(f"The model's name is {name!r}; it must have no spaces or slashes and not end in -formats.")
    with _alone(directory, name):
        return _export(model, tokenizer, spec, directory, name, dtype=dtype, samples=samples, source=source or {})


def _export(
    model: keras.Model,
    tokenizer: Tokenizer,
    spec: ServingSpec,
    directory: str | os.PathLike[str],
    name: str,
    *,
    dtype: str,
    samples: Sequence[tuple[str, ...]],
    source: Mapping[str, Any],
) -> Export:
    with tf.device("CPU:0"):  # see serving.parity
        served = clone_classifier(model, dtype=_POLICIES[dtype])
    hashes = {"weights_sha256": weights_sha256(weights_by_path(served)), "tokenizer_sha256": tokenizer.sha256()}
    settings = {"format": _FORMAT, **dataclasses.asdict(spec), "dtype": dtype, **hashes}
    identity = _sha256_json({**settings, "architecture": describe_classifier(served)})
    base = storage.join(directory, name)
    versions = _published_versions(base)
    if versions:
        newest = _read_whole(storage.join(base, str(versions[-1])))
        if newest and newest.get("identity") == identity:
            return Export(
                path=storage.join(base, str(versions[-1])), version=versions[-1], created=False, manifest=newest
            )
    version = max(versions, default=0) + 1
    facts = {
        "name": name,
        "version": version,
        "identity": identity,
        **settings,
        "architecture": describe_classifier(served),
        "num_parameters": int(served.count_params()),
        "source": dict(source),
        "created": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "versions": {"python": platform.python_version(), **_package_versions()},
    }
    with _published(base, version) as folder:
        facts |= _write_saved_model(served, tokenizer, spec, folder)
        facts["parity"] = _measure(folder, model, served, tokenizer, spec, samples=samples, dtype=dtype)
        # Named before the version is: whoever sees the version finds the formats too.
        with _published(f"{base}-formats", version, overwrite=True) as formats:
            facts["formats"] = _write_formats(served, tokenizer, spec, formats)
        facts["files"] = _file_hashes(folder)
        storage.write_json(folder / MANIFEST_FILE, facts)
    return Export(path=storage.join(base, str(version)), version=version, created=True, manifest=facts)


def _write_saved_model(served: keras.Model, tokenizer: Tokenizer, spec: ServingSpec, folder: Path) -> dict[str, Any]:
    """Writes the SavedModel and returns its signatures and ops."""
    module = ClassifierModule(served, tokenizer, spec)
    with tempfile.TemporaryDirectory(prefix="aigc_tf-assets-") as scratch:
        tokenizer.save(Path(scratch))
        labels = json.dumps(list(spec.label_names), ensure_ascii=False, indent=2) + "\n"
        (Path(scratch) / "label_names.json").write_text(labels, encoding="utf-8")
        files = sorted(file for file in Path(scratch).rglob("*") if file.is_file())
        module.assets = [tf.saved_model.Asset(os.fspath(file)) for file in files]
        options = tf.saved_model.SaveOptions(experimental_custom_gradients=False)  # nobody trains it further
        try:
            tf.saved_model.save(module, os.fspath(folder), signatures=module.signatures(), options=options)
        except (AssertionError, tf.errors.OpError) as error:  # an untracked resource; the disk
            raise RunError(f"The SavedModel cannot be written: {str(error).splitlines()[0][:300]}") from error
    signatures = {key: _signature(function) for key, function in module.signatures().items()}
    return {"signatures": signatures, "ops": check_ops(folder)}


def _signature(function: Any) -> dict[str, Any]:
    concrete = function.get_concrete_function()
    arguments = tf.nest.flatten(concrete.structured_input_signature)
    return {
        "inputs": {spec.name: [spec.dtype.name, spec.shape.as_list()] for spec in arguments},
        "outputs": {
            name: [value.dtype.name, value.shape.as_list()] for name, value in concrete.structured_outputs.items()
        },
    }


def _measure(
    folder: Path,
    model: keras.Model,
    served: keras.Model,
    tokenizer: Tokenizer,
    spec: ServingSpec,
    *,
    samples: Sequence[tuple[str, ...]],
    dtype: str,
) -> dict[str, Any]:
    texts: list[tuple[str | bytes, ...]] = [tuple(sample) for sample in samples]
    if spec.is_pair:
        texts += list(zip(HOSTILE_TEXTS, reversed(HOSTILE_TEXTS), strict=True))
    else:
        texts += [(text,) for text in HOSTILE_TEXTS]
    with tf.device("CPU:0"):
        parity: Parity = check_parity(folder, served, tokenizer, spec, texts=texts, dtype=dtype)
        batch = pack_texts(texts, tokenizer, spec, length=packed_length(served, spec))
        trained = clone_classifier(model, dtype=model.backbone.dtype_policy.name)
        difference = logits_difference(served, trained, batch)
    return {
        **dataclasses.asdict(parity),
        "training_dtype": model.backbone.dtype_policy.name,
        "logits_difference_to_training_dtype": difference,
    }


def _write_formats(served: keras.Model, tokenizer: Tokenizer, spec: ServingSpec, folder: Path) -> list[str]:
    """Writes the other formats and returns the names of their folders."""
    with tempfile.TemporaryDirectory(prefix="aigc_tf-tokenizer-") as tokenizer_folder:
        tokenizer.save(tokenizer_folder)
        if tokenizer.kind == "wordpiece":
            layer = build_word_piece(served, tokenizer_folder)
        else:
            layer = tokenizer.splitter.layer
        (folder / "keras_nlp").mkdir()
        save_keras_preset(
            served, folder / "keras_nlp", tokenizer=layer, max_length=spec.max_length, label_names=spec.label_names
        )
        if tokenizer.kind != "wordpiece" or not isinstance(served.backbone, keras_nlp.models.BertBackbone):
            return ["keras_nlp"]
        (folder / "hugging_face").mkdir()
        save_hugging_face(
            served,
            folder / "hugging_face",
            tokenizer_folder=tokenizer_folder,
            label_names=spec.label_names,
            problem_type=spec.problem_type,
            max_length=spec.max_length,
            truncation=spec.truncation,
        )
        return ["keras_nlp", "hugging_face"]


@contextlib.contextmanager
def _alone(directory: str | os.PathLike[str], name: str) -> Iterator[None]:
    """Holds a lock on a model's name: two exports at once would write into one staged folder."""
    if storage.is_remote(directory):
        yield
        return
    storage.make_folder(directory)
    with open(Path(directory) / f".{name}.lock", "w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise RunError(
                f"Another process is exporting {name!r} to {os.fspath(directory)}; try again later."
            ) from error
        except OSError:
            pass  # a network drive without locks
        yield


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
        for file in sorted(Path(scratch).rglob("*"), key=_upload_order):
            target = storage.join(final, *file.relative_to(scratch).parts)
            if file.is_file():
                storage.make_folder(target.rpartition("/")[0])
                storage.write_bytes(target, file.read_bytes())


def _upload_order(file: Path) -> tuple[int, str]:
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
