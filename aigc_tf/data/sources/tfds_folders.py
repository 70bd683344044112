"""TFDS data sets on disk: found by their folders, without importing TensorFlow, and read as records.

A source is written `tfds:NAME[/CONFIG][:VERSION]`. Without a network, `tfds.load` blocks for minutes if a data set is
missing; the folders tell at once:

    <data_dir>/<name>[/<config>]/<version>/dataset_info.json
"""

import hashlib
import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from aigc_tf import storage
from aigc_tf.config import DataConfig
from aigc_tf.data.sources.records import Reading, Record, SourceFile, first_line, in_batches, no_such_column
from aigc_tf.errors import InputError, RunError, nearest

PREFIX = "tfds:"
SPLITS = ("train", "validation", "test")

_INFO = "dataset_info.json"


class _Name(NamedTuple):
    name: str
    config: str
    version: str

    def __str__(self) -> str:
        """In the form of `tfds.load` and `tfds build`."""
        return self.name + (f"/{self.config}" if self.config else "") + (f":{self.version}" if self.version else "")


def find_tfds(source: str, data: DataConfig) -> tuple[list[SourceFile], list[str]]:
    """Finds the splits of a data set on disk.

    Args:
        source: `tfds:NAME[/CONFIG][:VERSION]`. Without a version, the newest on disk; without a config, the only
            one on disk, or the data set's default.
        data: For `tfds_data_dir` and `tfds_download`; with the latter a data set that is not on disk is fetched.

    Returns:
        Those of the splits train, validation and test that exist, with `SourceFile.split` set; and the names of the
        other splits.

    Raises:
        InputError: If it is not on disk, or its name, config or version is unknown.
        RunError: If it cannot be downloaded.
    """
    wanted = _parse(source)
    place = data.tfds_data_dir or os.environ.get("TFDS_DATA_DIR") or "~/tensorflow_datasets"
    if storage.is_remote(place):
        raise InputError(f"TFDS data sets are read from a POSIX path, not from {place}; copy it, or mount it.")
    data_dir = Path(place).expanduser()
    try:
        found, folder = _locate(wanted, data_dir)
    except InputError:
        if not data.tfds_download:
            raise
        _download(wanted, data_dir)
        found, folder = _locate(wanted, data_dir)
    splits = _split_names(folder)
    files = [
        SourceFile(uri=f"{PREFIX}{found}#{split}", format="tfds", split=split, path=str(folder))
        for split in SPLITS
        if split in splits
    ]
    if not files:
        raise InputError(f"The TFDS data set {found} has none of the splits train, validation, test; it has {splits}.")
    return files, [split for split in splits if split not in SPLITS]


def _parse(source: str) -> _Name:
    match = re.fullmatch(r"(\w+)(?:/([\w.+-]+))?(?::(\d+\.\d+\.\d+))?", source.removeprefix(PREFIX))
    if not match:
        raise InputError(f"{source!r} is not of the form tfds:NAME[/CONFIG][:VERSION], as in 'tfds:glue/sst2:2.0.0'.")
    return _Name(match[1], match[2] or "", match[3] or "")


def _versions(folder: Path) -> list[str]:
    """Returns the complete versions in a folder, oldest first."""
    names = [name for name in storage.list_folder(folder) if re.fullmatch(r"\d+\.\d+\.\d+", name)]
    complete = [name for name in names if (folder / name / _INFO).is_file()]
    return sorted(complete, key=lambda version: [int(number) for number in version.split(".")])


def _locate(wanted: _Name, data_dir: Path) -> tuple[_Name, Path]:
    """Returns the full name and the folder of the data set on disk."""
    root = data_dir / wanted.name
    configs = {name: _versions(root / name) for name in storage.list_folder(root)} | {"": _versions(root)}
    configs = {name: versions for name, versions in configs.items() if versions}
    if not configs or (wanted.config and wanted.config not in configs):
        name = wanted.config if configs else wanted.name
        there = configs or storage.list_folder(data_dir)
        near = nearest(name, [other for other in there if other])
        raise InputError(
            f"The TFDS data set {str(wanted)!r} is not on disk in {data_dir}.{near} Set data.tfds_download=True, "
            f"or run `tfds build {wanted} --data_dir={data_dir}`, or set data.tfds_data_dir to the folder that has it."
        )
    config = wanted.config
    if not config and "" not in configs:
        config = next(iter(configs)) if len(configs) == 1 else _default_config(root)
        if config not in configs:
            known = ", ".join(sorted(configs))
            raise InputError(f"The TFDS data set {wanted.name!r} has the configs {known}; name one: tfds:NAME/CONFIG.")
    versions = configs[config]
    if wanted.version and wanted.version not in versions:
        raise InputError(f"The TFDS data set {str(wanted)!r} is on disk in the versions {', '.join(versions)} only.")
    version = wanted.version or versions[-1]
    return _Name(wanted.name, config, version), root / config / version


def _default_config(root: Path) -> str:
    try:
        return str(storage.read_json(root / ".config" / "metadata.json").get("default_config_name", ""))
    except (InputError, AttributeError):
        return ""


def _split_names(folder: Path) -> list[str]:
    info = storage.read_json(folder / _INFO)
    try:
        return [split["name"] for split in info["splits"] if split["shardLengths"]]
    except (KeyError, TypeError) as error:
        raise InputError(f"{folder / _INFO} does not list its splits; build the data set anew.") from error


def _import_tfds() -> Any:
    try:
        import tensorflow_datasets
    except ImportError as error:
        raise InputError(
            f"tfds: sources need the package tensorflow-datasets ({error}); "
            "install it with `pip install tensorflow-datasets importlib_resources`."
        ) from error
    return tensorflow_datasets


def _download(wanted: _Name, data_dir: Path) -> None:
    tfds = _import_tfds()
    try:
        tfds.builder(str(wanted), data_dir=str(data_dir)).download_and_prepare()
    except tfds.core.DatasetNotFoundError as error:
        raise InputError(
            f"TFDS knows no data set {str(wanted)!r}.{nearest(wanted.name, tfds.list_builders())}"
        ) from error
    except (OSError, ValueError, AssertionError, tfds.download.DownloadError) as error:
        raise RunError(f"TFDS could not fetch {str(wanted)!r} into {data_dir}: {first_line(error)}.") from error


def read_tfds(reading: Reading) -> Iterator[list[Record]]:
    """One split of a TFDS data set, in the order of its files: a feature is a column.

    The number of a ClassLabel becomes its name; -1, by which TFDS marks that there is none, is a missing label.
    The sha256 is that of the lines `<sha256>  <name>` of the split's files.
    """
    import tensorflow as tf

    uri, builder = reading.source.uri, _open(reading.source)
    features = builder.info.features
    for column in reading.columns:
        if column.name not in features:
            raise no_such_column(uri, column, list(features))
    reading.report.sha256 = hash_split(reading.source)
    try:
        examples = _examples(builder, uri.rpartition("#")[2], set(reading.names))
        yield from in_batches(_example_records(reading, features, examples))
    except tf.errors.OpError as error:
        raise InputError(f"{uri} cannot be read ({first_line(error.message)}); build the data set anew.") from error


def _open(source: SourceFile) -> Any:
    try:
        return _import_tfds().builder_from_directory(source.path)
    except (OSError, ValueError) as error:
        raise InputError(f"{source.uri} cannot be opened ({first_line(error)}); build the data set anew.") from error


def _examples(builder: Any, split: str, columns: set[str]) -> Iterator[dict[str, Any]]:
    """Yields the examples of a split in the order of its files; only the needed columns are decoded if TFDS can."""
    tfds = _import_tfds()
    if builder.info.file_format == tfds.core.FileFormat.ARRAY_RECORD:
        yield from builder.as_data_source(split=split)
    else:
        yield from builder.as_dataset(
            split=split,
            shuffle_files=False,
            decoders=tfds.decode.PartialDecoding(dict.fromkeys(columns, True)),
            read_config=tfds.ReadConfig(try_autocache=False, interleave_cycle_length=1),
        ).as_numpy_iterator()


def _example_records(reading: Reading, features: Any, examples: Iterator[dict[str, Any]]) -> Iterator[Record | None]:
    columns = [(c.name, _as_it_is if c.is_text else _label_names(features[c.name])) for c in reading.columns]
    for number, values in enumerate(examples, 1):
        yield reading.record(number, [value_of(values[name]) for name, value_of in columns])


def _as_it_is(value: Any) -> Any:
    return value


def _label_names(feature: Any) -> Any:
    """Returns the function that turns the values of a feature into names or Python values."""
    inner = getattr(feature, "feature", feature)  # a sequence's inner feature
    int2str = getattr(inner, "int2str", None)

    def to_label(value: Any) -> Any:
        if isinstance(value, np.ndarray) and value.ndim:
            return [to_label(item) for item in value]
        if int2str:
            return int2str(value) if value >= 0 else None
        return value

    return to_label


def hash_split(source: SourceFile) -> str:
    """Returns the sha256 of the lines `<sha256>  <name>` of the files of a split.

    Raises:
        InputError: If a file is missing or cannot be read.
    """
    uri, digest = source.uri, hashlib.sha256()
    for path in _open(source).info.splits[uri.rpartition("#")[2]].filepaths:
        try:
            line = f"{storage.sha256_file(path)}  {os.path.basename(path)}\n"
        except OSError as error:
            raise InputError(f"{uri} is incomplete: {path} cannot be read ({error.strerror}); rebuild it.") from error
        digest.update(line.encode())
    return digest.hexdigest()
