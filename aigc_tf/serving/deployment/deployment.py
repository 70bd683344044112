"""Renders what an operator needs to serve exported models: server, container, cluster and alert files, a README.

All values come from the models' manifests. The templates in `deployment_templates/` have the names of the files that
they become. The rules for numbers (memory, latency) are the constants here; the rendered README explains them.
"""

import dataclasses
import hashlib
import json
import math
import os
import re
import shlex
import unicodedata
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import quote

import jinja2

from aigc_tf import storage
from aigc_tf.config.names import check_name
from aigc_tf.errors import InputError
from aigc_tf.serving.deployment.server_configs import read_batching
from aigc_tf.serving.versions import MANIFEST_FILE, version_folders

RELEASES = {"2.19": "2.19.1", "2.20": "2.20.0", "2.21": "2.21.0"}
"""The server's release, also the tag of its image, for each of `config.SERVERS`."""

_MODELS_FILE = "server/models.config"
"""The file that marks a folder as rendered."""
_TEMPLATES = Path(__file__).parent / "deployment_templates"
_READ_OF_MANIFEST = (
    *("task", "latency_seconds", "timeout_seconds", "target", "batch_sizes"),
    *("num_parameters", "dtype", "weights", "identity", "versions"),
)
_MIB = 2**20
_CPUS = 2
_HARMLESS_STATUSES = ("OK", "CANCELLED", "INVALID_ARGUMENT", "NOT_FOUND", "FAILED_PRECONDITION", "OUT_OF_RANGE")
"""Statuses that are not the server's fault; NOT_FOUND has its own alert."""
_POLL_SECONDS = 30
_QUEUE_SECONDS = 0.2
_SERVER_MIB, _VERSION_MIB, _FOLDER_FACTOR = 512, 256, 1.5
"""See `required_memory`."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Version:
    """One version of a model, and its label on the server."""

    label: str
    number: int
    folder: str
    """Its folder's name; a server takes `0001` for version 1."""
    num_bytes: int
    """Size of its folder."""
    manifest: Mapping[str, Any]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Model:
    """A model that is served."""

    name: str
    source: str
    """The folder of its versions, relative to the deployment folder."""
    versions: tuple[Version, ...]
    """The stable one first; then the canary, if there is one."""

    @property
    def task(self) -> str:
        return str(self.versions[0].manifest["task"])

    @property
    def latency_seconds(self) -> float:
        """The alert's limit for the 99th percentile of the latency."""
        return max(version.manifest["latency_seconds"] for version in self.versions)

    @property
    def target(self) -> str:
        """The folder of its versions in a container."""
        return f"/models/{self.name}"

    @property
    def url(self) -> str:
        """The path of its REST interface."""
        return f"/v1/models/{quote(self.name, safe='')}"


def render_deployment(
    folders: Sequence[str],
    *,
    output: str,
    stable: Sequence[str] = (),
    canary: Sequence[str] = (),
    batching: str = "",
    overwrite: bool = False,
) -> str:
    """Renders the deployment folder of one or several exported models that one server serves.

    Args:
        folders: Folders of exported models on a disk, such as saved_models/bert_sentiment.
        output: Folder to write; its last part names the deployment.
        stable: Versions with the label stable: `3`, or `NAME:3` if there are several models. Empty: the newest.
        canary: The same for the label canary. Empty: there is no such label.
        batching: File to use as server/batching.config, such as a measured one; empty: it is rendered.
        overwrite: Whether to replace the folder, if it is empty or was rendered.
    Returns:
        One line for the user.
    Raises:
        InputError: If a model, a version or the batching file does not fit, or the folder exists already or holds
            other files.
        RunError: If the folder cannot be written.
    """
    if storage.is_remote(output):
        raise InputError(f"--output {output} is on an object store; give a folder on a disk.")
    if os.path.basename(output.rstrip("/")) in ("", ".", ".."):
        raise InputError(
            f"--output {output} gives the deployment no name; end it with a folder's name, as in deploy/reviews."
        )
    if overwrite:
        _check_rendered(output)
    models = _read_models(folders, _chosen_versions(folders, stable=stable, canary=canary), output=output)
    batching_text = _read_text(batching) if batching else ""
    values = _values(models, batching_text, batching_name=batching, title=os.path.basename(os.path.abspath(output)))
    with storage.staged_folder(output, overwrite=overwrite) as folder:
        for name, text in _render(values).items():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            (folder / name).write_text(text, encoding="utf-8")
        if batching:
            (folder / "server" / "batching.config").write_text(batching_text, encoding="utf-8")
        (folder / "server" / "healthcheck.sh").chmod(0o755)
    served = "; ".join(
        ", ".join([model.name, *(f"{version.label} {version.number}" for version in model.versions)])
        for model in models
    )
    return (
        f"{output} is for TensorFlow Serving {values['server_version']}: {served}. Its README.md says how to start it."
    )


def _check_rendered(output: str) -> None:
    """Refuses to replace a folder that is not a deployment: a mistyped --output would remove other files."""
    if os.path.isdir(output) and os.listdir(output) and not os.path.isfile(os.path.join(output, _MODELS_FILE)):
        raise InputError(
            f"--output {output} holds other files than a deployment (no {_MODELS_FILE}), which --overwrite would "
            "remove; give another folder."
        )


def required_memory(versions: Sequence[Version], *, rows: int, batches: int = 1) -> int:
    """Returns the memory, in bytes, that a server of these versions needs.

    The server itself takes 512 MiB. A version takes 256 MiB for its graph and activations, and 1.5 times its folder for
    its weights. If weights are stored smaller, each running batch adds 4 bytes per parameter to restore them. For a
    generator, each running row adds its keys and values twice, since a step copies them. The largest version counts
    twice, since a new version is loaded before the old one is unloaded. The sum is rounded up to 256 MiB. Measured
    memory is lower: docs/render_deployment.md.

    Args:
        versions: All served versions.
        rows: Rows of all batches that run at the same time.
        batches: Batches that run at the same time.
    """

    def of_one(version: Version) -> int:
        sizes = version.manifest.get("architecture", {}).get("sizes", {})
        cache = 2 * 4 * rows  # keys and values in float32
        for size in ("num_layers", "hidden_dim", "num_positions"):
            cache *= sizes.get(size, 0)
        restores = version.manifest["weights"] not in ("float32", version.manifest["dtype"])
        restored = 4 * batches * version.manifest["num_parameters"] if restores else 0
        return _VERSION_MIB * _MIB + int(_FOLDER_FACTOR * version.num_bytes) + restored + 2 * cache

    each = [of_one(version) for version in versions]
    total = _SERVER_MIB * _MIB + sum(each) + max(each)
    return -(-total // (256 * _MIB)) * 256 * _MIB


def server_version(targets: Sequence[str]) -> str:
    """Returns the server's release that loads exports for all of these targets: that of the newest target.

    Raises:
        InputError: If there is no release for a target.
    """
    unknown = [target for target in targets if target not in RELEASES]
    if unknown:
        raise InputError(f"A model is exported for the target {unknown[0]!r}; known are {', '.join(RELEASES)}.")
    return RELEASES[max(targets, key=lambda target: [int(part) for part in target.split(".")])]


def server_flags(*, timeout_seconds: int) -> dict[str, str]:
    """Returns the server's flags, and why each is set."""
    return {
        "--port=8500": "gRPC",
        "--rest_api_port=8501": "REST, and the metrics",
        "--model_config_file=/config/models.config": "several models, versions and labels",
        f"--model_config_file_poll_wait_seconds={_POLL_SECONDS}": "labels change without a restart",
        "--allow_version_labels_for_unavailable_models=true": "the first config may have labels before anything is "
        "loaded; a label in use still moves only to a loaded version",
        "--enable_batching=true": "concurrent requests are computed together",
        "--batching_parameters_file=/config/batching.config": "how",
        "--monitoring_config_file=/config/monitoring.config": "metrics for Prometheus",
        f"--rest_api_timeout_in_ms={timeout_seconds * 1000}": "how long REST waits for an answer (default 30 s); "
        "gRPC uses the client's deadline",
        "--num_load_threads=2": "while a version loads, the server still serves the others",
        "--enable_grpc_healthcheck_service=true": "for the probes of Kubernetes",
        "--grpc_channel_arguments=grpc.max_connection_age_ms=300000": "clients reconnect every 5 min, so that they "
        "reach new pods",
        "--enable_profiler=false": "by default it is open to anyone who reaches the gRPC port",
    }


def _values(models: Sequence[Model], batching_text: str, *, batching_name: str, title: str) -> dict[str, Any]:
    """Returns the values that the templates use."""
    versions = [version for model in models for version in model.versions]
    manifests = [version.manifest for version in versions]
    batch_sizes = sorted(set.intersection(*(set(manifest["batch_sizes"]) for manifest in manifests)))
    if not batch_sizes:
        raise InputError("The models have no common batch size (batch_sizes of their manifests); serve each alone.")
    largest, threads = batch_sizes[-1], _CPUS
    if batching_text:
        batching = read_batching(batching_text, name=batching_name)
        largest, threads = batching.max_batch_size.value, batching.num_batch_threads.value or _CPUS
    # Both how long REST waits for an answer, and how long an ending pod finishes its requests.
    timeout = math.ceil(max(manifest["timeout_seconds"] for manifest in manifests))
    served = sorted(
        f"{model.name}/{version.number}/{version.manifest['identity']}"
        for model in models
        for version in model.versions
    )
    return {
        "poll_seconds": _POLL_SECONDS,
        "queue_seconds": _QUEUE_SECONDS,
        "metrics_path": "/monitoring/prometheus/metrics",  # where the server has them by default
        "harmless_statuses": "|".join(_HARMLESS_STATUSES),
        "server_mib": _SERVER_MIB,
        "version_mib": _VERSION_MIB,
        "folder_factor": _FOLDER_FACTOR,
        "title": title,
        "slug": slug(title),
        "models": models,
        # Escaped twice: once for the regular expression, once for the string around it.
        "models_pattern": "|".join(re.escape(model.name).replace("\\", "\\\\") for model in models),
        "batch_sizes": batch_sizes,
        "max_batch_size": largest,
        "num_batch_threads": threads,
        "memory_mib": required_memory(versions, rows=largest * threads, batches=threads) // _MIB,
        "drain_seconds": timeout,
        "server_version": server_version([manifest["target"] for manifest in manifests]),
        "server_flags": server_flags(timeout_seconds=timeout),
        "image_tag": hashlib.sha256("\n".join(served).encode()).hexdigest()[:12],
    }


def _render(values: Mapping[str, Any]) -> dict[str, str]:
    """Returns the text of each file, by its path in the folder."""
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(_TEMPLATES),
        undefined=jinja2.StrictUndefined,
        variable_start_string="${{",  # as in GitHub's workflows, since {{ belongs to Prometheus
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
        autoescape=False,  # not HTML; each value passes the filter of its file's language
    )
    environment.filters |= {"quoted": quoted, "compose": compose_quoted, "shell": shlex.quote}
    names = [path.relative_to(_TEMPLATES).as_posix() for path in sorted(_TEMPLATES.rglob("*")) if path.is_file()]
    return {name: environment.get_template(name).render(values) for name in names}


def quoted(text: str) -> str:
    """Returns a text as JSON, which is also valid in YAML, in a Dockerfile's lists and in protocol buffer text."""
    return json.dumps(text, ensure_ascii=False)


def compose_quoted(text: str) -> str:
    """Returns a text for a Compose file, where $ starts a variable."""
    return quoted(text.replace("$", "$$"))


def slug(name: str) -> str:
    """Returns a valid Kubernetes and Compose name: lower-case letters, digits and hyphens, a letter first."""
    plain = re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-")
    plain = plain if plain[:1].isalpha() else f"serving-{plain}"
    return plain[:40].strip("-")


def _read_text(path: str) -> str:
    try:
        return storage.read_bytes(path).decode()
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"--batching {path} cannot be read ({error}).") from error


def _chosen_versions(
    folders: Sequence[str], *, stable: Sequence[str], canary: Sequence[str]
) -> dict[str, dict[str, int]]:
    """Returns, for each model, the version numbers of the flags by label."""
    names = [_name_of(folder) for folder in folders]
    if not names:
        raise InputError("--model is missing: a folder of an exported model such as saved_models/bert_sentiment.")
    twice = next((name for name in names if names.count(name) > 1), None)
    if twice:
        raise InputError(f"Two of the models are called {twice!r}, and a server needs unique names; give each once.")
    chosen: dict[str, dict[str, int]] = {name: {} for name in names}
    for label, values in (("stable", stable), ("canary", canary)):
        for value in values:
            name, _, number = value.rpartition(":")
            if not (number.isascii() and number.isdecimal()):
                raise InputError(f"--{label}={value}: give a version such as 3, or NAME:3 if there are several models.")
            if not name and len(names) > 1:
                raise InputError(f"--{label}={value} does not name the model; write --{label}={names[0]}:{number}.")
            name = name or names[0]
            if name not in chosen:
                raise InputError(f"--{label}={value}: there is no model {name!r} among {', '.join(names)}.")
            if label in chosen[name]:
                raise InputError(f"--{label} is given twice for {name}; a label belongs to one version.")
            chosen[name][label] = int(number)
    return chosen


def _name_of(folder: str) -> str:
    return os.path.basename(os.path.normpath(folder)) if folder else ""


def _read_models(folders: Sequence[str], chosen: Mapping[str, Mapping[str, int]], *, output: str) -> list[Model]:
    models = []
    for folder in folders:
        name = _name_of(folder)
        _check_place(folder, name)
        source = os.path.relpath(os.path.abspath(folder), os.path.abspath(output))
        models.append(Model(name=name, source=source, versions=_read_versions(folder, name, chosen[name])))
    return models


def _check_place(folder: str, name: str) -> None:
    if storage.is_remote(folder):
        raise InputError(f"{folder} is on an object store; copy the model to a disk and render from there.")
    if not version_folders(folder):
        raise InputError(
            f"{folder} holds no version of an exported model; give the folder above the version numbers, such as "
            "saved_models/bert_sentiment."
        )
    check_name(name, what="The model's name")
    path = os.path.abspath(folder)
    if any(unicodedata.category(letter) in ("Cc", "Cs", "Zl", "Zp") for letter in path):
        raise InputError(f"The path {path!r} has a character that config files cannot hold; rename the folder.")


def _read_versions(folder: str, name: str, chosen: Mapping[str, int]) -> tuple[Version, ...]:
    folders = version_folders(folder)
    labels = {"stable": max(folders), **chosen}
    if labels.get("canary") == labels["stable"]:
        raise InputError(
            f"The labels stable and canary of {name} are both version {labels['stable']} (without --stable that is the "
            "newest); give two versions, or leave --canary out."
        )
    for label, number in labels.items():
        if number not in folders:
            raise InputError(f"--{label}: {folder} has no version {number}; it has {', '.join(map(str, folders))}.")
    versions = tuple(_read_version(folder, label, number, folders[number]) for label, number in labels.items())
    tasks = {version.manifest["task"] for version in versions}
    if len(tasks) > 1:
        raise InputError(
            f"The versions of {name} are of the tasks {' and '.join(sorted(tasks))}; give two of one task."
        )
    return versions


def _read_version(base: str, label: str, number: int, folder: str) -> Version:
    path = Path(base) / folder
    manifest = storage.read_json(path / MANIFEST_FILE)
    for key in _READ_OF_MANIFEST:
        if not isinstance(manifest, dict) or key not in manifest:
            raise InputError(f"{path / MANIFEST_FILE} lacks {key!r}; export the model again.")
    num_bytes = sum(file.stat().st_size for file in path.rglob("*") if file.is_file())
    return Version(label=label, number=number, folder=folder, num_bytes=num_bytes, manifest=manifest)
