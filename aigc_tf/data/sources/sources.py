"""Finds the sources of an experiment and reads them as one stream of records, every file hashed and accounted for.

A source is a file, a glob, a folder, `sample:NAME` or `tfds:NAME[/CONFIG][:VERSION]`. `find_sources` looks at names
only and takes well under a second; `read_records` reads.
"""

import dataclasses
import fnmatch
import glob
import os
import re
import sys
from collections.abc import Iterator, Sequence

from aigc_tf import storage
from aigc_tf.config import DataConfig
from aigc_tf.data.sources import samples, tfds_folders
from aigc_tf.data.sources.formats import READERS
from aigc_tf.data.sources.records import CHECK_AFTER_ROWS, Reading, Record, SourceColumn, SourceFile, SourceReport
from aigc_tf.data.sources.text_files import check_encoding
from aigc_tf.errors import InputError, some_of

__all__ = [
    "Record",
    "SourceColumn",
    "SourceFile",
    "SourceReport",
    "check_tables",
    "find_sources",
    "hash_source",
    "read_records",
]

_ENDINGS = {
    ".txt": "text",
    ".text": "text",
    ".csv": "csv",
    ".tsv": "tsv",
    ".tab": "tsv",
    ".jsonl": "jsonl",
    ".ndjson": "jsonl",
    ".json": "jsonl",
    ".parquet": "parquet",
    ".pq": "parquet",
    ".tfrecord": "tfrecord",
    ".tfrecords": "tfrecord",
}

# What Spark, Hadoop and Delta Lake write beside the data. Not all names with _, since code and documents have such too.
_ENGINE_NAMES = re.compile(
    r"_(SUCCESS|temporary|metadata|common_metadata|spark_metadata|delta_log|(committed|started)_.*)"
)


def find_sources(data: DataConfig) -> list[SourceFile]:
    """Returns the files of the config's sources, in the config's order; those of a glob or folder are sorted.

    `SourceFile.split` is set where the sources decide the split:

    - `data.split` "hash": it is empty; the splits of a TFDS data set are pooled.
    - "files": "test" or "validation" for file names that match `data.test_files` or `data.validation_files`, else
      "train". A split of a TFDS data set goes by the split's name.
    - "given": "train" for `data.sources`, "validation" and "test" for the other two. A TFDS data set in `data.sources`
      brings all its splits; in one of the other two, that split of it.

    If no file has the split "validation", it is taken later from "train" by the hash rule.

    Raises:
        InputError: If a source is missing, empty, of an unknown kind or named twice, or a glob matches nothing.
        RunError: If a sample or a TFDS data set has to be fetched and cannot.
    """
    check_encoding(data.encoding)
    if data.split == "given":
        files = [file for source in data.sources for file in _expand(source, data, split="train")]
        files += [file for source in data.validation_sources for file in _expand(source, data, split="validation")]
        files += [file for source in data.test_sources for file in _expand(source, data, split="test")]
    else:
        files = [file for source in data.sources for file in _expand(source, data)]
        if data.split == "files":
            files = _split_by_names(files, data)
    _check_found(files, data)
    return files


def read_records(
    sources: list[SourceFile],
    data: DataConfig,
    reports: list[SourceReport],
    *,
    columns: Sequence[SourceColumn],
) -> Iterator[Record]:
    """Streams the records of all sources, in order, in constant memory.

    Args:
        sources: From `find_sources`.
        data: Says how files are read, and how many rows may be broken.
        reports: Gets one report per source, appended when its reading starts and complete when its reading ends.
        columns: What is read of each row.

    Yields:
        One `Record` for each row that is not broken; `Record.source` is the index in `sources`.

    Raises:
        InputError: If a file cannot be read in its format, lacks a column or has no rows; or if more than
            `data.max_bad_share` of its rows are broken. That share is checked after the first 1000 rows (at the end of
            their block) and at the end of the file; for documents, one per file, over all files together.
        RunError: If the disk fails.
    """
    readers = READERS | {"tfds": tfds_folders.read_tfds}
    for index, source in enumerate(sources):
        report = SourceReport(uri=source.uri)
        reports.append(report)
        reading = Reading(source, index, data, tuple(columns), report)
        is_checked = False
        for records in readers[source.format](reading):
            report.records += len(records)
            if not is_checked and report.num_rows >= CHECK_AFTER_ROWS:
                reading.check()
                is_checked = True
            yield from records
        if source.format == "document":
            if len(reports) == CHECK_AFTER_ROWS:
                _check_documents(sources[: len(reports)], data, reports)
            continue
        reading.check()
        if not report.num_rows and not source.part_of:
            raise InputError(f"{source.uri} has no rows; a file with records is needed.")
        _check_parts(sources, reports)
    _check_documents(sources, data, reports)


def _check_parts(sources: list[SourceFile], reports: list[SourceReport]) -> None:
    """Refuses a folder or glob if none of its parts had a row; checked after its last part."""
    whole, following = sources[len(reports) - 1].part_of, sources[len(reports) :]
    if not whole or (following and following[0].part_of == whole):
        return
    parts = [report for source, report in zip(sources, reports, strict=False) if source.part_of == whole]
    if not any(report.num_rows for report in parts):
        raise InputError(f"None of the {len(parts)} files of {whole} has a row; a file with records is needed.")


def _check_documents(sources: list[SourceFile], data: DataConfig, reports: list[SourceReport]) -> None:
    """Stops if too many files are not documents. The share is over files, since a file is one row."""
    documents = [report for source, report in zip(sources, reports, strict=True) if source.format == "document"]
    broken = [report for report in documents if report.num_bad]
    if len(broken) > data.max_bad_share * len(documents):
        raise InputError(
            f"{len(broken)} of {len(documents)} documents are broken, more than data.max_bad_share "
            f"{data.max_bad_share:g} allows (the first is {broken[0].examples[0]})."
        )


def changed(uri: str) -> InputError:
    """Returns the error for a source that changed since the previous pass."""
    return InputError(f"{uri} changed while it was read; wait until nothing writes to it, and prepare again.")


def hash_source(source: SourceFile) -> str:
    """Returns the sha256 that the report of a source has after reading.

    Raises:
        InputError: If the source cannot be read.
    """
    if source.format == "tfds":
        return tfds_folders.hash_split(source)
    try:
        return storage.sha256_file(source.path or source.uri)
    except OSError as error:
        raise InputError(f"{source.path or source.uri} cannot be read: {error.strerror}.") from error


def check_tables(sources: list[SourceFile], columns: Sequence[SourceColumn]) -> None:
    """Refuses sources without columns, unless all that is read is one text.

    Raises:
        InputError: If a source is plain text, by line or as a whole.
    """
    lacking = [column for column in columns if not column.is_text] or list(columns[1:])
    for source in sources:
        if lacking and source.format in ("text", "document"):
            raise InputError(
                f"{source.uri} is read as plain text, which has no column for {lacking[0].field} "
                f"({lacking[0].name!r}); use CSV, TSV, JSONL or Parquet with the columns "
                f"{', '.join(repr(column.name) for column in columns)}, or set data.format if it is one of them."
            )


def _expand(source: str, data: DataConfig, *, split: str = "") -> list[SourceFile]:
    if source.startswith(tfds_folders.PREFIX):
        return _expand_tfds(source, data, split)
    if source.startswith(samples.PREFIX):
        name = source.removeprefix(samples.PREFIX)
        return [
            SourceFile(f"{samples.PREFIX}{name}/{path.name}", _format(path.name, data), split, str(path))
            for path in samples.sample_data_files(name)
        ]
    if storage.is_remote(source):
        raise InputError(f"Sources are read from a POSIX path, not from {source}; copy it, or mount it with gcsfuse.")
    path = os.path.expanduser(source)
    if os.path.isdir(path):
        return [_part(file, path, data, split) for file in _files_of_known_format(path, data)]
    if os.path.isfile(path):
        return [SourceFile(path, _format(path, data), split)]
    if os.path.exists(path):
        raise InputError(f"{path} is not a regular file; sources are files, globs and folders.")
    if not glob.has_magic(path):
        raise InputError(f"There is no {path or repr(path)}.{storage.nearest_path(path)}")
    files = sorted(file for file in glob.glob(path, recursive=True) if os.path.isfile(file))
    if not files:
        raise InputError(f"The glob {source!r} matches no file.{storage.nearest_path(path)}")
    return [_part(file, source, data, split) for file in files]


def _part(path: str, whole: str, data: DataConfig, split: str) -> SourceFile:
    return SourceFile(path, _format(path, data), split, part_of=whole)


def _expand_tfds(source: str, data: DataConfig, split: str) -> list[SourceFile]:
    files, others = tfds_folders.find_tfds(source, data)
    if split in ("validation", "test"):
        there = [file.split for file in files]
        files = [file for file in files if file.split == split]
        if not files:
            raise InputError(f"{source} has no split {split!r}, which data.{split}_sources needs; it has {there}.")
    elif others:
        print(f"{source}: left out the splits {', '.join(others)}.", file=sys.stderr, flush=True)
    if not split:
        return [dataclasses.replace(file, split="") for file in files]
    return files


def _format(path: str, data: DataConfig) -> str:
    """Returns the format of a file.

    Raises:
        InputError: If the ending decides, and it is unknown.
    """
    if data.format != "auto":
        return data.format
    name = os.path.basename(path).lower().removesuffix(".gz")
    name = re.sub(r"(\.tfrecords?)-\d+-of-\d+$", r"\1", name)
    ending = os.path.splitext(name)[1]
    if ending not in _ENDINGS:
        raise InputError(
            f"The ending of {path} is that of no known format: {', '.join(_ENDINGS)}, also with .gz. Set data.format."
        )
    return _ENDINGS[ending]


def _files_of_known_format(folder: str, data: DataConfig) -> list[str]:
    """Returns the sorted files below a folder, without hidden ones; prints which it leaves out for their ending."""
    files, left_out = [], []
    for path in sorted(_walk(folder)):
        try:
            _format(path, data)
        except InputError:
            left_out.append(path)
        else:
            files.append(path)
    if not files:
        there = f"; it has {some_of(left_out)}" if left_out else ""
        raise InputError(f"The folder {folder} has no file of a known format{there}. Known: {', '.join(_ENDINGS)}.")
    if left_out:
        print(f"{folder}: left out files of no known format: {some_of(left_out)}.", file=sys.stderr, flush=True)
    return files


def _is_hidden(name: str) -> bool:
    return name.startswith(".") or bool(_ENGINE_NAMES.fullmatch(name))


def _walk(folder: str) -> Iterator[str]:
    """Yields the files below a folder, without hidden ones. Links to folders are followed, each folder once."""
    seen = set()
    for root, folders, files in os.walk(folder, followlinks=True):
        real = os.path.realpath(root)
        folders[:] = [] if real in seen else [name for name in folders if not _is_hidden(name)]
        if real not in seen:
            yield from (os.path.join(root, name) for name in files if not _is_hidden(name))
        seen.add(real)


def _split_by_names(files: list[SourceFile], data: DataConfig) -> list[SourceFile]:
    """Sets the splits of `data.split` "files"."""
    splits: dict[str, str] = {}
    for split, patterns in (("test", data.test_files), ("validation", data.validation_files)):
        for pattern in patterns:
            matching = [file.uri for file in files if _matches(file, pattern)]
            if not matching:
                there = some_of([_file_name(file) for file in files])
                raise InputError(f"The glob {pattern!r} in data.{split}_files matches none of the files: {there}.")
            for uri in matching:
                if splits.setdefault(uri, split) != split:
                    raise InputError(f"{uri} matches both data.test_files and data.validation_files; it can be in one.")
    if len(splits) == len(files):
        raise InputError("data.test_files and data.validation_files match every file; none is left for training.")
    return [dataclasses.replace(file, split=splits.get(file.uri, "train")) for file in files]


def _file_name(file: SourceFile) -> str:
    return file.uri.rpartition("#")[2] if file.format == "tfds" else os.path.basename(file.uri)


def _matches(file: SourceFile, pattern: str) -> bool:
    """Whether a glob fits the file's name; with a slash in it, the end of its path."""
    if "/" in pattern:
        return fnmatch.fnmatchcase(file.uri, pattern) or fnmatch.fnmatchcase(file.uri, f"*/{pattern}")
    return fnmatch.fnmatchcase(_file_name(file), pattern)


def _check_found(files: list[SourceFile], data: DataConfig) -> None:
    """Refuses early what reading would find late."""
    seen: dict[str, str] = {}
    for file in files:
        path = file.path or file.uri
        readable = os.fsencode(path).decode("utf-8", "replace")
        if readable != path:  # it would fail where dataset.json is written, after the work
            raise InputError(f"The name of {readable} is no UTF-8 where {chr(0xFFFD)} stands; rename it.")
        key = file.uri if file.format == "tfds" else os.path.realpath(path)
        if key in seen:
            same = f" (the same file as {seen[key]})" if seen[key] != file.uri else ""
            raise InputError(f"The sources name {file.uri}{same} twice; its examples would count twice. Name it once.")
        seen[key] = file.uri
        if not os.access(path, os.R_OK):
            raise InputError(f"{path} cannot be read; check its permissions.")
        may_be_empty = file.format == "document" or (file.part_of and file.format != "parquet")
        if os.path.isfile(path) and not os.path.getsize(path) and not may_be_empty:
            raise InputError(f"{path} is empty; a file with records is needed.")
    if data.split != "hash" and not any(file.split == "train" for file in files):
        raise InputError("No source is left for the split 'train'; data.sources must hold training data.")
