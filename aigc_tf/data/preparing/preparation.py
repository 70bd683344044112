"""From sources to the prepared data set: records -> values of cells -> split -> token ids -> files, in one pass.

    find_sources -> read_records -> encoders of cells -> split_of -> token ids -> PreparedWriter

The task's `Schema` says what is read and what an example is.

One thread reads the records and others tokenise them; the results are written in the order of the records. So the same
config and sources give the same bytes, and memory does not grow with the input. With `tokenizer.source` "train" earlier
passes train the vocabulary on the training split, and with `data.drop_duplicates` one pass before all finds duplicates.

`prepare` shows progress; `write_dataset` works without a terminal.
"""

import contextlib
import itertools
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console

from aigc_tf import storage
from aigc_tf.config import ExperimentConfig
from aigc_tf.data.prepared.facts import ENCODERS_FOLDER
from aigc_tf.data.prepared.prepared import (
    INFO_NAME,
    SPLIT_NAMES,
    PreparedDataset,
    open_prepared,
    verify_prepared,
)
from aigc_tf.data.prepared.prepared_writer import ColumnFormat, FinalLabels, PreparedWriter
from aigc_tf.data.prepared.schema import Schema
from aigc_tf.data.preparing import terminal
from aigc_tf.data.preparing.examples import Example, ExampleReader, find_duplicates, source_size
from aigc_tf.data.preparing.provenance import (
    check_matches,
    check_schema,
    describe,
    prepare_sha256,
    relevant_fields,
)
from aigc_tf.data.preparing.terminal import Counts
from aigc_tf.data.preparing.token_batches import TextBatch, TokenBatch, text_batches, token_batches
from aigc_tf.data.sources import sources
from aigc_tf.data.sources.records import SourceFile
from aigc_tf.data.tokenizers.tokenizers import Tokenizer, build_tokenizer
from aigc_tf.errors import InputError, some_of

__all__ = ["check_matches", "check_schema", "prepare", "prepare_sha256", "relevant_fields", "write_dataset"]

_PREPARING = "preparing"

Progress = Callable[[Counts], None]


# ---------------------------------------------------------------- examples to files


def _write(writer: PreparedWriter, schema: Schema, batch: TokenBatch) -> dict[str, np.ndarray]:
    """Writes a batch split by split; returns the UTF-8 bytes of each text column, `(columns,)` int64."""
    splits = np.array([SPLIT_NAMES.index(example.split) for example in batch.examples])
    num_bytes = {}
    for code in np.unique(splits):
        rows = np.flatnonzero(splits == code)
        columns: dict[str, Any] = {}
        for number, column in enumerate(schema.text_columns):
            token_ids, lengths = batch.token_ids[number], batch.lengths[:, number]
            if len(rows) < len(splits):  # else, as for a batch of one document, its tokens need not be copied
                token_ids = token_ids[np.repeat(splits == code, lengths)]
            columns[column.name] = (token_ids, lengths[rows])
        for number, column in enumerate(schema.cell_columns):
            columns[column.name] = [batch.examples[row].values[number] for row in rows]
        writer.add_batch(SPLIT_NAMES[code], len(rows), columns)
        num_bytes[SPLIT_NAMES[code]] = batch.num_bytes[rows].sum(axis=0)
    return num_bytes


def write_dataset(
    config: ExperimentConfig,
    schema: Schema,
    found: list[SourceFile],
    folder: Path,
    *,
    progress: Progress = lambda counts: None,
) -> dict[str, Any]:
    """Reads the sources and writes the prepared data set.

    Args:
        config: A validated config.
        schema: What its task reads.
        found: From `sources.find_sources`.
        folder: An empty folder.
        progress: Called every few thousand records.

    Returns:
        What dataset.json holds.

    Raises:
        InputError: If the sources do not give a training split.
    """
    passes = _Passes(config, schema, found)
    if config.data.drop_duplicates:
        passes.find_duplicates(progress)
    tokenizer = _learn_tokenizer(config, schema, passes, progress) if schema.text_columns else None
    reader = passes.reader()
    num_bytes: dict[str, np.ndarray] = {}
    formats = {name: ColumnFormat.of_cells(encoder.storage) for name, encoder in reader.encoders.items()}
    if tokenizer:
        tokens = ColumnFormat.of_tokens(tokenizer.vocabulary_size)
        formats |= {column.name: tokens for column in schema.text_columns}
    writer = PreparedWriter(folder, task=config.task, schema=schema, formats=formats)
    with writer:
        batches = passes.batches(reader, _PREPARING)
        with contextlib.closing(token_batches(tokenizer, batches)) as tokenised:
            for batch in tokenised:
                for split, count in _write(writer, schema, batch).items():
                    num_bytes[split] = num_bytes.get(split, 0) + count
                progress(batch.counts)
        progress(reader.counts(_PREPARING)._replace(bytes_read=reader.total_bytes))
        passes.check_same_files()
        _check_result(reader, num_bytes)
        encoders = reader.encoders | {column.name: tokenizer for column in schema.text_columns}
        names = [column.name for column in schema.text_columns]
        ledger = describe(config, schema, found, reader) | {
            "columns": _save_encoders(encoders, schema, folder),
            "splits": {
                split: {"utf8_bytes": dict(zip(names, count.tolist(), strict=True))}
                for split, count in num_bytes.items()
            },
        }
        return writer.finish(labels=_final_labels(schema, reader), ledger=ledger)


def _save_encoders(encoders: Mapping[str, Any], schema: Schema, folder: Path) -> dict[str, dict[str, Any]]:
    """Writes the encoder of each column; returns their entries of dataset.json."""
    for name, encoder in encoders.items():
        encoder.save(folder / ENCODERS_FOLDER / name)
    return {
        column.name: {"sha256": encoders[column.name].sha256(), **encoders[column.name].describe()}
        for column in schema.columns
    }


def _final_labels(schema: Schema, reader: ExampleReader) -> dict[str, FinalLabels]:
    labels = {column.name: reader.encoders[column.name] for column in schema.encoded_by("label")}
    return {name: FinalLabels(encoder.ordered_names, encoder.positions()) for name, encoder in labels.items()}


class _Passes:
    """The passes over the sources: for duplicates, for the vocabulary, and to write the data."""

    def __init__(self, config: ExperimentConfig, schema: Schema, found: list[SourceFile]) -> None:
        self._data, self._schema, self._found = config.data, schema, found
        self._verdicts: np.ndarray | None = None
        self._readers: list[ExampleReader] = []

    def reader(self) -> ExampleReader:
        """Returns the reader of one more pass."""
        reader = ExampleReader(self._found, self._data, self._schema, verdicts=self._verdicts)
        self._readers.append(reader)
        return reader

    def batches(self, reader: ExampleReader, phase: str) -> Iterator[TextBatch]:
        """Yields a reader's examples in batches; long documents (examples of one text alone) are cut."""
        is_document = len(self._schema.columns) == len(self._schema.text_columns) == len(self._schema.learnt) == 1
        return text_batches(reader, phase=phase, cut_documents=is_document)

    def find_duplicates(self, progress: Progress) -> None:
        """Reads everything once; the readers of later passes leave duplicates out."""
        reader = self.reader()

        def examples() -> Iterator[Example]:
            for batch in text_batches(reader, phase="looking for duplicates"):
                progress(batch.counts)
                yield from batch.examples

        self._verdicts = find_duplicates(examples())

    def check_same_files(self) -> None:
        """Compares the files of the last pass with those of the passes before it."""
        last = self._readers[-1].reports
        for reader in self._readers[:-1]:
            for report, before in zip(last, reader.reports, strict=False):
                if before.sha256 and report.sha256 != before.sha256:  # no hash: a pass may stop before a file's end
                    raise sources.changed(report.uri)


def _learn_tokenizer(config: ExperimentConfig, schema: Schema, passes: _Passes, progress: Progress) -> Tokenizer:
    """Returns the tokenizer that the config names; with source `train` it is trained on the training split alone."""
    numbers = itertools.count(1)

    def training_texts() -> Iterator[str]:
        """The training texts. Not the other splits: test data must be new to the vocabulary too."""
        for batch in passes.batches(passes.reader(), f"learning the vocabulary, pass {next(numbers)}"):
            progress(batch.counts)
            for example in batch.examples:
                if example.split == "train":
                    yield from (text.decode() for text in example.texts)

    kind = schema.tokenizer_kind if config.tokenizer.kind == "auto" else config.tokenizer.kind
    return build_tokenizer(config.tokenizer, config.model.source, training_texts, kind=kind)


def _check_result(reader: ExampleReader, num_bytes: Mapping[str, np.ndarray]) -> None:
    """Refuses a data set without training data."""
    if "train" not in num_bytes:
        left_out = reader.left_out + reader.duplicates
        why = "".join(f"{count} are left out ({reason}), " for reason, count in left_out.items())
        raise InputError(
            f"No example is left for training: of {sum(report.num_rows for report in reader.reports)} rows, "
            f"{sum(report.num_bad for report in reader.reports)} are broken, {why}and "
            f"{reader.kept - reader.duplicates.total()} are in the splits "
            f"{', '.join(num_bytes) or 'validation and test'}; add data or change data.split."
        )


# ---------------------------------------------------------------- the command


def prepare(
    config: ExperimentConfig, schema: Schema, *, overwrite: bool = False, console: Console | None = None
) -> PreparedDataset:
    """Makes the prepared data set of an experiment, in `<data.prepared_dir>/<name>`, and shows what went in and out.

    An existing data set from the same sources with the same config is verified and kept.

    Args:
        config: A validated config.
        schema: What its task reads.
        overwrite: Make it anew, even if there is one. The old one is removed only when the new one is complete.
        console: Where the tables are printed; standard output by default. Progress goes to standard error.

    Raises:
        InputError: If sources, labels or tokenizer do not fit, or another data set is there.
        RunError: If the disk is full, or another process prepares the same data set.
    """
    console = console or Console()
    folder = Path(config.data.prepared_dir).expanduser() / config.name
    found = sources.find_sources(config.data)
    sources.check_tables(found, schema.source_columns(config.data))
    busy = f"Another process prepares {folder} right now; wait until it is done."
    advice = "Set data.prepared_dir to a folder that can be written."
    with storage.locked_file(folder.with_name(f".{folder.name}.lock"), busy=busy, advice=advice):
        _refuse_foreign(folder)
        if folder.exists() and not overwrite:
            prepared = _check_same(folder, config, schema, found)
            terminal.print_line(console, f"{folder} is prepared already, from the same sources with the same config.")
        else:
            total = sum(map(source_size, found))
            with (
                storage.staged_folder(folder, overwrite=overwrite) as staging,
                terminal.ProgressBar(total_bytes=total) as progress,
            ):
                write_dataset(config, schema, found, staging, progress=progress)
            prepared = open_prepared(folder)
    num_special = _num_special(prepared)
    terminal.print_ledger(prepared, max_length=config.data.max_length, num_special=num_special, console=console)
    return prepared


def _num_special(prepared: PreparedDataset) -> int:
    """Returns the special tokens of one example."""
    texts = prepared.schema.text_columns
    if not texts:
        return 0
    tokenizer: Tokenizer = prepared.facts.encoder(texts[0].name)
    return len(tokenizer.start_ids + tokenizer.end_ids + tokenizer.between_ids * (len(texts) - 1))


def _check_same(folder: Path, config: ExperimentConfig, schema: Schema, found: list[SourceFile]) -> PreparedDataset:
    """Returns the existing data set; raises if it is not the one asked for."""
    prepared = verify_prepared(folder)
    check_matches(prepared, config)
    check_schema(prepared, schema)
    before = {source["uri"]: source["sha256"] for source in prepared.info.get("sources", [])}
    now = {source.uri: sources.hash_source(source) for source in found}
    changed = [uri for uri in {**before, **now} if before.get(uri) != now.get(uri)]
    texts = schema.text_columns
    if texts and config.tokenizer.source != "train":  # a trained vocabulary follows from the sources
        tokenizer = build_tokenizer(config.tokenizer, config.model.source, lambda: ())
        if tokenizer.sha256() != prepared.info["columns"][texts[0].name].get("sha256"):
            changed.append(config.tokenizer.source or config.model.source)
    if changed:
        raise InputError(
            f"{folder} was prepared from other sources; changed, missing or new: {some_of(changed, 3)}. "
            "Give --overwrite to prepare the data anew."
        )
    return prepared


def _refuse_foreign(folder: Path) -> None:
    """Keeps --overwrite from replacing a folder that is not a prepared data set; an empty folder is removed."""
    if folder.is_dir() and not any(folder.iterdir()):
        folder.rmdir()
    if folder.exists() and not (folder / INFO_NAME).is_file():
        raise InputError(
            f"{folder} is there and is not a prepared data set, so it is not replaced; use another data.prepared_dir."
        )
