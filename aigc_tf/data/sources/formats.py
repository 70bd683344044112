"""The formats of files: plain text by line or as a whole, JSONL (each also gzipped), Parquet and TFRecord; and a table
of all readers. TSV and CSV are in `tables`.

Every reader is a generator of lists of `Record`, one list per block of the file. Memory does not grow with the length
of the file, except for documents, which are as long as their files.
"""

import json
import uuid
from collections.abc import Callable, Iterator
from typing import Any

from aigc_tf import storage
from aigc_tf.data.sources.records import (
    BATCH_ROWS,
    Reading,
    Record,
    column_twice,
    first_line,
    in_batches,
    no_such_column,
)
from aigc_tf.data.sources.tables import read_csv, read_tsv
from aigc_tf.data.sources.text_files import is_text, open_file, read_lines, read_whole, split_lines
from aigc_tf.errors import InputError, RunError

_BROKEN = object()


def read_text(reading: Reading) -> Iterator[list[Record]]:
    """Plain text, one example per line; empty lines count. There are no labels."""
    for first, text in read_lines(reading):
        lines = split_lines(text)
        if reading.tainted:
            yield [record for line, cell in enumerate(lines, first) for record in _one_text(reading, line, cell)]
        else:
            yield [reading.plain_text(line, cell) for line, cell in enumerate(lines, first)]


def _one_text(reading: Reading, line: int, text: str) -> Iterator[Record]:
    if is_text(text):
        yield reading.plain_text(line, text)
    else:
        reading.report.count_broken(line, f"not valid {reading.data.encoding}")


def read_document(reading: Reading) -> Iterator[list[Record]]:
    """A file as one text with its newlines; an empty file counts. There are no labels."""
    text = read_whole(reading)
    yield [] if text is None else [reading.plain_text(1, text)]


def read_jsonl(reading: Reading) -> Iterator[list[Record]]:
    """One JSON object per line."""
    for first, text in read_lines(reading):
        if first == 1 and text.lstrip()[:1] == "[":
            raise InputError(
                f"{reading.source.uri} is one JSON list; JSONL with one object per line is needed "
                "(`jq -c '.[]' FILE` makes it)."
            )
        rows = split_lines(text)
        values = _parse_together(rows)
        if values is None:
            values = [_parse_alone(reading, line, row) for line, row in enumerate(rows, first)]
        block = enumerate(zip(rows, values, strict=True), first)
        yield [record for line, (row, value) in block if (record := _json_record(reading, line, row, value))]


def _parse_together(rows: list[str]) -> list[Any] | None:
    """Parses a block of lines as one JSON list, twice as fast as one by one; None unless each line is one value.

    A random word, which no file can contain, is put between the lines. If the words are at every second place of the
    parsed list, each line between them begins and ends at the list's own level, so it is valid JSON by itself.
    """
    word = uuid.uuid4().hex
    try:
        values = json.loads("[" + f',"{word}",'.join(rows) + "]")
    except (ValueError, RecursionError):
        return None
    is_whole = len(values) == 2 * len(rows) - 1 and values[1::2] == [word] * (len(rows) - 1)
    return values[::2] if is_whole else None


def _parse_alone(reading: Reading, line: int, row: str) -> Any:
    try:
        return json.loads(row)
    except (ValueError, RecursionError) as error:
        if row and not row.isspace():
            reading.report.count_broken(line, "not valid JSON", str(error))
        return _BROKEN


def _json_record(reading: Reading, line: int, row: str, values: Any) -> Record | None:
    report = reading.report
    if type(values) is not dict:
        if values is not _BROKEN:
            report.count_broken(line, "not a JSON object", f"a {type(values).__name__}")
        return None
    record = reading.record(line, map(values.get, reading.names))
    if record is None:
        reading.note_columns(values)
    elif (reading.tainted or "\\u" in row) and not is_text(*_strings(record)):
        report.count_broken(line, "not valid Unicode text", "a lone surrogate")
        return None
    return record


def _strings(record: Record) -> Iterator[str]:
    for cell in record.cells:
        yield from (cell,) if isinstance(cell, str) else cell


def read_parquet(reading: Reading) -> Iterator[list[Record]]:
    """The needed columns of a Parquet file, batch by batch."""
    try:
        import pyarrow
        from pyarrow import parquet
    except ImportError as error:
        raise InputError("Reading Parquet needs the package pyarrow; install it with `pip install pyarrow`.") from error
    uri = reading.source.uri
    reading.report.sha256 = _sha256(reading)
    try:
        with parquet.ParquetFile(reading.path) as file:
            _check_schema(reading, file.schema_arrow)
            line = 1
            for batch in file.iter_batches(BATCH_ROWS, columns=sorted(set(reading.names))):
                columns = [_values(batch.column(name)) for name in reading.names]
                rows = enumerate(zip(*columns, strict=True), line)
                yield [record for number, row in rows if (record := reading.record(number, row))]
                line += len(batch)
    except (pyarrow.ArrowException, OSError) as error:
        raise InputError(f"{uri} is not a readable Parquet file ({first_line(error)}).") from error


def _check_schema(reading: Reading, schema: Any) -> None:
    from pyarrow import types

    uri = reading.source.uri
    for column in reading.columns:
        if column.name not in schema.names:
            raise no_such_column(uri, column, schema.names)
        if schema.names.count(column.name) > 1:
            raise column_twice(uri, column.name)
    for column in reading.columns:
        kind = schema.field(column.name).type
        inner = kind.value_type if types.is_dictionary(kind) else kind
        is_text = any(test(inner) for test in (types.is_string, types.is_large_string, types.is_string_view))
        is_bytes = any(test(inner) for test in (types.is_binary, types.is_large_binary, types.is_binary_view))
        if column.is_text and not (is_text or is_bytes or types.is_null(inner)):
            raise InputError(
                f"The column {column.name!r} of {uri}, which {column.field} names, holds {kind}, not text."
            )


def _values(column: Any) -> list[Any]:
    """Returns a column as Python values; if a string is not UTF-8, all come as bytes."""
    import pyarrow

    try:
        values = list(column.to_pylist())
    except UnicodeDecodeError:
        return list(column.cast(pyarrow.large_binary()).to_pylist())
    narrow = _narrow_float(column.type)
    return [_narrowed(value, narrow) for value in values] if narrow else values


def _narrow_float(kind: Any) -> Any:
    """Returns NumPy's type for a column of float16 or float32, or of lists of them; None for any other."""
    import numpy as np
    from pyarrow import types

    while hasattr(kind, "value_type"):  # of a list, or of a dictionary
        kind = kind.value_type
    if types.is_float16(kind):
        return np.float16
    return np.float32 if types.is_float32(kind) else None


def _narrowed(value: Any, kind: Any) -> Any:
    # Python has no narrow floats: the float32 of 0.1 comes as 0.10000000149011612, another class and another side of
    # a threshold than the 0.1 of a CSV. A value that keeps its type is read as the decimal it was written as.
    if isinstance(value, list):
        return [_narrowed(item, kind) for item in value]
    return None if value is None else kind(value)


def read_tfrecord(reading: Reading) -> Iterator[list[Record]]:
    """A TFRecord file of `tf.train.Example`: a feature is a column."""
    import tensorflow as tf

    reading.report.sha256 = _sha256(reading)
    with open_file(reading.path) as file:
        compression = "GZIP" if file.read(2) == b"\x1f\x8b" else ""
    examples = tf.data.TFRecordDataset(reading.path, compression)
    try:
        yield from in_batches(_example_records(reading, examples.as_numpy_iterator()))
    except tf.errors.OpError as error:
        raise InputError(f"{reading.source.uri} is not a whole TFRecord file ({first_line(error.message)}).") from error


def _example_records(reading: Reading, examples: Iterator[bytes]) -> Iterator[Record | None]:
    import tensorflow as tf
    from google.protobuf.message import DecodeError

    for number, serialized in enumerate(examples, 1):
        try:
            features = tf.train.Example.FromString(serialized).features.feature
        except DecodeError:
            reading.report.count_broken(number, "no tf.train.Example")
            yield None
            continue
        values = {name: _feature_value(features[name]) for name in features if name in reading.names}
        record = reading.record(number, map(values.get, reading.names))
        if record is None:
            reading.note_columns(features)
        yield record


def _feature_value(feature: Any) -> Any:
    """Returns the value of a feature: a list if it has several, None if it has none."""
    import numpy as np

    kind = feature.WhichOneof("kind")
    values = list(getattr(feature, kind).value) if kind else []
    if kind == "float_list":
        values = [np.float32(value) for value in values]  # so that 0.1 reads '0.1'
    return values if len(values) > 1 else (values or [None])[0]


def _sha256(reading: Reading) -> str:
    """Hashes a file whose reader does not read it from start to end, and so cannot hash it on the way."""
    with open_file(reading.path):
        pass  # raises the sentence if it cannot be opened
    try:
        return storage.sha256_file(reading.path)
    except OSError as error:
        raise RunError(f"{reading.source.uri} could not be read to its end: {error.strerror}.") from error


READERS: dict[str, Callable[[Reading], Iterator[list[Record]]]] = {
    "text": read_text,
    "document": read_document,
    "csv": read_csv,
    "tsv": read_tsv,
    "jsonl": read_jsonl,
    "parquet": read_parquet,
    "tfrecord": read_tfrecord,
}
