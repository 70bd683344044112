"""Which models and versions the protocol double serves, and under which labels.

The config is the server's own message, tensorflow_serving.ModelServerConfig. Versions appear and disappear with the
folder or the config. As in the server's AvailabilityPreservingPolicy, a new one is loaded before an old one goes.
"""

import contextlib
import dataclasses
import os
import threading
from collections.abc import Collection, Iterable, Iterator
from typing import Any

from google.protobuf import text_format
from tensorflow_serving.config import model_server_config_pb2

from aigc_tf.errors import InputError, RunError
from aigc_tf.serving.double.batching import Batcher
from aigc_tf.serving.double.loaded_version import LoadedVersion
from aigc_tf.serving.stand_in.status import StatusError, invalid
from aigc_tf.serving.versions import version_folders

_UNLOAD_SECONDS = 60.0


@dataclasses.dataclass(frozen=True, kw_only=True)
class ModelSpec:
    """The model and signature that a request addresses."""

    name: str
    version: int | None = None
    label: str | None = None
    signature: str = ""
    """Empty for the default one."""


def single_model(name: str, base_path: str) -> Any:
    """Returns the config of one model, whose newest version is served."""
    config = model_server_config_pb2.ModelServerConfig()
    config.model_config_list.config.add(name=name, base_path=base_path, model_platform="tensorflow")
    return config


def read_config(path: str) -> Any:
    """Reads the file of --model_config_file.

    Raises:
        InputError: If it is not a ModelServerConfig.
    """
    try:
        with open(path, encoding="utf-8") as file:
            return text_format.Parse(file.read(), model_server_config_pb2.ModelServerConfig())
    except (OSError, UnicodeError) as error:
        raise InputError(f"--model_config_file {path} cannot be read ({error}).") from error
    except text_format.ParseError as error:
        raise InputError(
            f"--model_config_file {path} is not a ModelServerConfig of TensorFlow Serving ({error})."
        ) from error


class Models:
    """The models of a config.

    Args:
        config: A `ModelServerConfig`.
        num_threads: Requests to a version that run at the same time.
        warm_up: Whether a version replays its warm-up requests when it is loaded.
        batcher: Batches requests; None to run each alone.
        allow_labels_early: Whether a label that is not in use may name a version that is not loaded yet.
    Raises:
        StatusError: If the server would refuse the config.
        InputError: If there is no version to load.
        RunError: If one cannot be loaded.
    """

    def __init__(
        self,
        config: Any,
        *,
        num_threads: int,
        warm_up: bool = True,
        batcher: Batcher | None = None,
        allow_labels_early: bool = False,
    ):
        self._options: dict[str, Any] = {"num_threads": num_threads, "warm_up": warm_up, "batcher": batcher}
        self._allow_labels_early = allow_labels_early
        self._loaded: dict[tuple[str, int], LoadedVersion] = {}
        self._failed: dict[tuple[str, int], StatusError] = {}
        self._labels: dict[tuple[str, str], int] = {}
        self._config: Any = None
        self._is_closed = False
        # Two locks: a slow load holds the first, while requests still choose their version under the second.
        self._lock, self._choosing = threading.Lock(), threading.Lock()
        try:
            self.reload(config)
            for (name, number), error in self._failed.items():
                raise RunError(f"Version {number} of {name} cannot be loaded. {error.message}")
            for model in self._list():
                if not self.states(model.name):
                    raise InputError(
                        f"No version of {model.name} was found in {model.base_path}; it holds folders called 1, 2, ..."
                    )
        except BaseException:
            self.close()
            raise

    def reload(self, config: Any) -> None:
        """Switches to another config: loads new versions, moves labels, unloads the rest.

        Raises:
            StatusError: If the server would refuse it; then nothing changes.
        """
        with self._lock:
            _check(config)
            self._labels = self._checked_labels(config)
            self._config = config
        self.refresh()

    def refresh(self) -> None:
        """Looks for new and removed versions."""
        with self._lock:
            if self._is_closed:
                return
            wanted = {
                (model.name, number): os.path.join(model.base_path, folder)
                for model in self._list()
                for number, folder in _wanted_versions(model).items()
            }
            for key, folder in wanted.items():
                if key not in self._loaded and key not in self._failed:
                    self._load(key, folder)
            kept = wanted.keys() | self._kept(wanted)
            with self._choosing:
                gone = [self._loaded.pop(key) for key in list(self._loaded) if key not in kept]
            self._failed = {key: error for key, error in self._failed.items() if key in wanted}
        for version in gone:
            version.close(wait=_UNLOAD_SECONDS)

    def _kept(self, wanted: Collection[tuple[str, int]]) -> set[tuple[str, int]]:
        """Returns, for each model whose wanted versions all failed to load, the newest version loaded before."""
        left = {name for name, _ in wanted} - {name for name, number in self._loaded if (name, number) in wanted}
        return set({name: (name, number) for name, number in sorted(self._loaded) if name in left}.values())

    def _list(self) -> Iterable[Any]:
        return self._config.model_config_list.config

    def _load(self, key: tuple[str, int], folder: str) -> None:
        try:
            self._loaded[key] = LoadedVersion(*key, folder, **self._options)
        except RunError as error:
            self._failed[key] = StatusError("UNKNOWN", str(error))

    def _checked_labels(self, config: Any) -> dict[tuple[str, str], int]:
        labels = {}
        for model in config.model_config_list.config:
            for label, number in model.version_labels.items():
                key = (model.name, label)
                is_moved = self._labels.get(key, number) != number
                if (model.name, number) not in self._loaded and (is_moved or not self._allow_labels_early):
                    raise StatusError(
                        "FAILED_PRECONDITION",
                        f"Request to assign label to version {number} of model {model.name}, which is not currently "
                        "available for inference",
                    )
                labels[key] = number
        return labels

    def find(self, spec: ModelSpec) -> LoadedVersion:
        """Returns the version that a request addresses: by number, by label, or the newest.

        Raises:
            StatusError: If there is none, with the server's message.
        """
        if not spec.name:
            raise invalid("ModelSpec has no name specified.")
        number = spec.version
        if spec.label is not None:
            number = self._labels.get((spec.name, spec.label))
            if number is None:
                raise invalid(f"Unrecognized servable version label: {spec.label}")
        loaded = {found: version for (name, found), version in self._loaded.copy().items() if name == spec.name}
        if number is None and loaded:
            number = max(loaded)
        if number not in loaded:
            wanted = f"Latest({spec.name})" if number is None else f"Specific({spec.name}, {number})"
            raise StatusError("NOT_FOUND", f"Servable not found for request: {wanted}")
        return loaded[number]

    @contextlib.contextmanager
    def using(self, spec: ModelSpec) -> Iterator[LoadedVersion]:
        """Yields the version that a request addresses; it stays loaded until the block ends.

        Raises:
            StatusError: If there is no such version.
        """
        with self._choosing:
            version = self.find(spec)
            version.hold()
        try:
            yield version
        finally:
            version.release()

    def states(self, name: str) -> dict[int, tuple[str, StatusError | None]]:
        """Returns the state of each version of a model, and why it could not be loaded."""
        loaded = {key: (version.state, None) for key, version in self._loaded.copy().items()}
        failed = {key: ("END", error) for key, error in self._failed.copy().items()}
        return {number: state for (found, number), state in {**failed, **loaded}.items() if found == name}

    def close(self) -> None:
        """Unloads all versions."""
        with self._lock:
            self._is_closed = True
            loaded, self._loaded = self._loaded, {}
        for version in loaded.values():
            version.close()


def _check(config: Any) -> None:
    if not config.HasField("model_config_list"):
        raise invalid("Invalid ServerModelConfig")
    names = set()
    for model in config.model_config_list.config:
        if model.name in names:
            raise invalid(f"Illegal to list model {model.name} multiple times in config list")
        names.add(model.name)
        if not os.path.isabs(model.base_path):
            raise invalid(
                f"Expected model {model.name} to have an absolute path or URI; got base_path()={model.base_path}"
            )
        if not model.model_platform:
            raise invalid(
                "Illegal setting neither ModelServerConfig::model_type (deprecated) nor "
                f"ModelServerConfig::model_platform, model name is {model.name}"
            )


def _wanted_versions(model: Any) -> dict[int, str]:
    """Returns the folders of the versions that the policy selects, by their numbers."""
    policy = model.model_version_policy
    try:
        found = version_folders(model.base_path)
    except OSError:  # it may appear, or become readable, later
        found = {}
    if policy.HasField("all"):
        return found
    if policy.HasField("specific"):
        return {number: folder for number, folder in found.items() if number in policy.specific.versions}
    count = policy.latest.num_versions if policy.HasField("latest") else 1
    return dict(list(found.items())[-max(count, 1) :])
