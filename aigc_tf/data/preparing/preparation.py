"""From sources to the prepared data set: records -> labels -> split -> token ids -> files, in one pass.

    find_sources -> read_records -> codes of the labels -> split_of -> token ids -> PreparedWriter

For a generator an example is a document, or a prompt and its response; labels are neither read nor written.

The records are read in one thread and tokenised in others, whose results are written in the order of the records;
so the same config and sources give the same bytes, and memory does not grow with the input. With
`tokenizer.source` "train" passes come before it, in which the vocabulary is learnt from the training split, and with
`data.drop_duplicates` one before all.

`prepare` shows what happens; `write_dataset` is the part without a terminal.
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
from aigc_tf.data.prepared.prepared import (
    INFO_NAME,
    NO_LABELS,
    SPLIT_NAMES,
    TOKENIZER_FOLDER,
    PreparedDataset,
    open_prepared,
    verify_prepared,
)
from aigc_tf.data.prepared.prepared_writer import PreparedWriter
from aigc_tf.data.preparing import terminal as ledger
from aigc_tf.data.preparing.examples import Example, ExampleReader, find_duplicates, source_size
from aigc_tf.data.preparing.provenance import check_matches, data_of, describe, prepare_sha256, relevant_fields
from aigc_tf.data.preparing.terminal import Counts
from aigc_tf.data.preparing.token_batches import TextBatch, TokenBatch, text_batches, token_batches
from aigc_tf.data.sources import sources
from aigc_tf.data.sources.records import SourceFile
from aigc_tf.data.tokenizers.tokenizers import Tokenizer, build_tokenizer, load_tokenizer, resolve_kind
from aigc_tf.errors import InputError, some_of

__all__ = ["check_matches", "prepare", "prepare_sha256", "relevant_fields", "write_dataset"]

_PREPARING = "preparing"

Progress = Callable[[Counts], None]


# ---------------------------------------------------------------- examples to files


def _write(writer: PreparedWriter, batch: TokenBatch) -> dict[str, np.ndarray]:
    """Writes a batch split by split; returns the UTF-8 bytes of each, `(parts,)` int64."""
    is_pair = batch.lengths.shape[1] == 2
    lengths = batch.lengths.sum(axis=1)
    boundaries = batch.lengths[:, 0] if is_pair else np.zeros(len(lengths), np.int64)
    splits = np.array([SPLIT_NAMES.index(example.split) for example in batch.examples])
    num_bytes = {}
    for code in np.unique(splits):
        rows = np.flatnonzero(splits == code)
        is_all = len(rows) == len(splits)  # such as a document of its own, whose tokens need not be copied
        writer.add_batch(
            SPLIT_NAMES[code],
            batch.token_ids if is_all else batch.token_ids[np.repeat(splits == code, lengths)],
            lengths[rows],
            boundaries=boundaries[rows],
            labels=[batch.examples[row].label for row in rows],
        )
        num_bytes[SPLIT_NAMES[code]] = batch.num_bytes[rows].sum(axis=0)
    return num_bytes


def write_dataset(
    config: ExperimentConfig, found: list[SourceFile], folder: Path, *, progress: Progress = lambda counts: None
) -> dict[str, Any]:
    """Reads the sources and writes the prepared data set.

    Args:
        config: A validated config.
        found: From `sources.find_sources`.
        folder: An empty folder.
        progress: Called every few thousand records.

    Returns:
        What dataset.json holds.

    Raises:
        InputError: If the sources do not give a training split.
    """
    passes = _Passes(config, found)
    if config.data.drop_duplicates:
        passes.find_duplicates(progress)
    tokenizer = _learn_tokenizer(config, passes, progress)
    reader = passes.reader()
    num_bytes: dict[str, np.ndarray] = {}
    writer = PreparedWriter(
        folder,
        task=config.task,
        problem_type=config.data.problem_type if config.task == "classify" else NO_LABELS,
        is_pair=bool(config.data.text_b_column),
        vocabulary_size=tokenizer.vocabulary_size,
    )
    with writer:
        batches = passes.batches(reader, _PREPARING)
        with contextlib.closing(token_batches(tokenizer, batches)) as tokenised:
            for batch in tokenised:
                for split, count in _write(writer, batch).items():
                    num_bytes[split] = num_bytes.get(split, 0) + count
                progress(batch.counts)
        progress(reader.counts(_PREPARING)._replace(bytes_read=reader.total_bytes))
        passes.check_same_files()
        _check_result(reader, num_bytes)
        tokenizer.save(folder / TOKENIZER_FOLDER)
        return writer.finish(
            label_names=list(reader.encoder.ordered_names),
            positions=reader.encoder.positions(),
            ledger=describe(config, found, reader, tokenizer_sha256=tokenizer.sha256())
            | {"splits": {split: _describe_bytes(config, count) for split, count in num_bytes.items()}},
        )


def _describe_bytes(config: ExperimentConfig, num_bytes: np.ndarray) -> dict[str, int]:
    """Returns the entries of a split that say how long its texts are."""
    entries = {"utf8_bytes": int(num_bytes.sum())}
    if config.task == "generate" and config.data.text_b_column:
        entries["response_utf8_bytes"] = int(num_bytes[1])
    return entries


class _Passes:
    """The times that the sources are read: for duplicates, for the vocabulary, and to write what they hold."""

    def __init__(self, config: ExperimentConfig, found: list[SourceFile]) -> None:
        self._data, self._found, self._is_labelled = data_of(config), found, config.task == "classify"
        self._verdicts: np.ndarray | None = None
        self._readers: list[ExampleReader] = []

    def reader(self) -> ExampleReader:
        """Returns the reader of one more pass."""
        reader = ExampleReader(self._found, self._data, is_labelled=self._is_labelled, verdicts=self._verdicts)
        self._readers.append(reader)
        return reader

    def batches(self, reader: ExampleReader, phase: str) -> Iterator[TextBatch]:
        """Yields what a reader gives in batches; documents, whose tokens hold all of their text, may be cut."""
        is_document = not self._is_labelled and not self._data.text_b_column
        return text_batches(reader, phase=phase, cut_documents=is_document)

    def find_duplicates(self, progress: Progress) -> None:
        """Reads all once; the readers of later passes leave duplicates out."""
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
                if before.sha256 and report.sha256 != before.sha256:  # a pass may have stopped before a file's end
                    raise sources.changed(report.uri)


def _learn_tokenizer(config: ExperimentConfig, passes: _Passes, progress: Progress) -> Tokenizer:
    """Returns the tokenizer that the config names; with source `train` it is learnt from the training split alone."""
    numbers = itertools.count(1)

    def training_texts() -> Iterator[str]:
        """Not the other splits: what is tested on must be new to the vocabulary as well."""
        for batch in passes.batches(passes.reader(), f"learning the vocabulary, pass {next(numbers)}"):
            progress(batch.counts)
            for example in batch.examples:
                if example.split == "train":
                    yield from (text.decode() for text in example.texts)

    kind = resolve_kind(config.tokenizer.kind, config.task)
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


# ---------------------------------------------------------------- the door


def prepare(config: ExperimentConfig, *, overwrite: bool = False, console: Console | None = None) -> PreparedDataset:
    """Makes the prepared data set of an experiment, in `<data.prepared_dir>/<name>`, and shows what went in and out.

    A data set that is there already, made of the same sources with the same config, is verified and left as it is.

    Args:
        config: A validated config.
        overwrite: Make it anew, even if there is one. The old one goes only when the new one is complete.
        console: Where the tables are printed; standard output by default. Progress goes to standard error.

    Raises:
        InputError: If sources, labels or tokenizer do not fit, or the data set that is there is another one.
        RunError: If the disk is full, or another process prepares the same data set.
    """
    console = console or Console()
    folder = Path(config.data.prepared_dir).expanduser() / config.name
    found = sources.find_sources(config.data)
    if config.task == "classify":
        sources.check_labelled(found)
    elif config.data.text_b_column:
        sources.check_pairs(found)
    busy = f"Another process prepares {folder} right now; wait until it is done."
    advice = "Set data.prepared_dir to a folder that can be written."
    with storage.locked_file(folder.with_name(f".{folder.name}.lock"), busy=busy, advice=advice):
        _refuse_foreign(folder)
        if folder.exists() and not overwrite:
            prepared = _check_same(folder, config, found)
            ledger.print_line(console, f"{folder} is prepared already, from the same sources with the same config.")
        else:
            total = sum(map(source_size, found))
            with (
                storage.staged_folder(folder, overwrite=overwrite) as staging,
                ledger.ProgressBar(total_bytes=total) as progress,
            ):
                write_dataset(config, found, staging, progress=progress)
            prepared = open_prepared(folder)
    tokenizer = load_tokenizer(prepared.tokenizer_folder)
    special = tokenizer.start_ids + tokenizer.end_ids + (tokenizer.between_ids if prepared.is_pair else ())
    ledger.print_ledger(prepared, max_length=config.data.max_length, num_special=len(special), console=console)
    return prepared


def _check_same(folder: Path, config: ExperimentConfig, found: list[SourceFile]) -> PreparedDataset:
    """Returns the data set that is there, or says why it is not the one asked for."""
    prepared = verify_prepared(folder)
    check_matches(prepared, config)
    before = {source["uri"]: source["sha256"] for source in prepared.info.get("sources", [])}
    now = {source.uri: sources.hash_source(source) for source in found}
    changed = [uri for uri in {**before, **now} if before.get(uri) != now.get(uri)]
    if config.tokenizer.source != "train":  # such a vocabulary follows from the sources
        tokenizer = build_tokenizer(config.tokenizer, config.model.source, lambda: ())
        if tokenizer.sha256() != prepared.info.get("tokenizer_sha256"):
            changed.append(config.tokenizer.source or config.model.source)
    if changed:
        raise InputError(
            f"{folder} was prepared from other sources; changed, gone or new: {some_of(changed, 3)}. "
            "Give --overwrite to prepare the data anew."
        )
    return prepared


def _refuse_foreign(folder: Path) -> None:
    """Keeps --overwrite from replacing a folder that is something else; an empty folder makes way."""
    if folder.is_dir() and not any(folder.iterdir()):
        folder.rmdir()
    if folder.exists() and not (folder / INFO_NAME).is_file():
        raise InputError(
            f"{folder} is there and is no prepared data set, so it is not replaced; take another data.prepared_dir."
        )
