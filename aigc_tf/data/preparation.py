"""From sources to the prepared data set: records -> labels -> split -> token ids -> files, in one pass.

    find_sources -> read_records -> codes of the labels -> split_of -> token ids -> PreparedWriter

The records are read in one thread and tokenised in others, whose results are written in the order of the records;
so the same config and sources give the same bytes, and memory does not grow with the input. With
`tokenizer.source` "train" two passes come before it, in which the vocabulary is learnt from the training split.

`prepare` shows what happens; `write_dataset` is the part without a terminal.
"""

import collections
import contextlib
import fcntl
import hashlib
import json
import os
import platform
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import numpy as np
import tensorflow as tf
import tensorflow_text
from rich.console import Console

import aigc_tf
from aigc_tf import storage
from aigc_tf.config import DataConfig, ExperimentConfig, InputError, RunError, flatten
from aigc_tf.data import ledger, samples, sources
from aigc_tf.data.examples import Example, LabelledExamples, source_size
from aigc_tf.data.labels import LabelEncoder
from aigc_tf.data.ledger import Counts
from aigc_tf.data.prepared import (
    INFO_NAME,
    SPLIT_NAMES,
    TOKENIZER_FOLDER,
    PreparedDataset,
    open_prepared,
    verify_prepared,
)
from aigc_tf.data.prepared_writer import PreparedWriter
from aigc_tf.data.records import SourceFile, SourceReport
from aigc_tf.data.tokenizers import Tokenizer, build_tokenizer, load_tokenizer

# Fields of `data` and `tokenizer` that do not change what is prepared: where things lie, and what batches do.
_IRRELEVANT_FIELDS = frozenset(
    {
        "data.prepared_dir",
        "data.tfds_data_dir",
        "data.tfds_download",
        "data.max_length",
        "data.truncation",
        "data.num_buckets",
        "data.bucket_run_length",
    }
)

_PREPARING = "preparing"
_BATCH_RECORDS = 2048  # a batch of texts for the tokenizer ends at this many
_BATCH_BYTES = 2**20  # or at this many bytes of text
_MAX_THREADS = 8  # one thread reads the records, and more than this many wait for it

Item = TypeVar("Item")
Result = TypeVar("Result")
Progress = Callable[[Counts], None]


class _Batch(NamedTuple):
    examples: list[Example]
    counts: Counts


class _TokenBatch(NamedTuple):
    """The examples of a batch, token ids end to end."""

    examples: list[Example]
    token_ids: np.ndarray
    """`(sum(lengths),)` int32."""
    lengths: np.ndarray
    """`(n, parts)` int64: tokens of each part of each example."""
    counts: Counts


# ---------------------------------------------------------------- examples to files


def map_in_order(
    function: Callable[[Item], Result], items: Iterable[Item], *, num_threads: int
) -> Generator[Result, None, None]:
    """Applies a function in threads and yields the results in the order of the items.

    At most `2 * num_threads` items wait or are worked on, so memory stays bounded whatever is slow.
    """
    with ThreadPoolExecutor(num_threads) as pool:
        pending: collections.deque[Future[Result]] = collections.deque()
        try:
            for item in items:
                pending.append(pool.submit(function, item))
                if len(pending) >= 2 * num_threads:
                    yield pending.popleft().result()
            while pending:
                yield pending.popleft().result()
        finally:
            for future in pending:
                future.cancel()


def _batches(labelled: LabelledExamples, *, phase: str) -> Iterator[_Batch]:
    examples: list[Example] = []
    num_bytes = 0
    for example in labelled:
        examples.append(example)
        num_bytes += sum(map(len, example.texts))
        if len(examples) >= _BATCH_RECORDS or num_bytes >= _BATCH_BYTES:
            yield _Batch(examples, labelled.counts(phase))
            examples, num_bytes = [], 0
    if examples:
        yield _Batch(examples, labelled.counts(phase))


def _tokenise(tokenizer: Tokenizer, batch: _Batch) -> _TokenBatch:
    texts = [text for example in batch.examples for text in example.texts]
    tokens = tokenizer.tokenize(tf.constant(texts, tf.string))
    lengths = tokens.row_lengths().numpy().reshape(len(batch.examples), -1)
    return _TokenBatch(batch.examples, tokens.flat_values.numpy(), lengths, batch.counts)


def _write(writer: PreparedWriter, batch: _TokenBatch) -> dict[str, int]:
    """Writes a batch split by split; returns the UTF-8 bytes of each."""
    is_pair = batch.lengths.shape[1] == 2
    lengths = batch.lengths.sum(axis=1)
    boundaries = batch.lengths[:, 0] if is_pair else np.zeros(len(lengths), np.int64)
    splits = np.array([SPLIT_NAMES.index(example.split) for example in batch.examples])
    split_of_token = np.repeat(splits, lengths)
    num_bytes = {}
    for code in np.unique(splits):
        rows = np.flatnonzero(splits == code)
        examples = [batch.examples[row] for row in rows]
        writer.add_batch(
            SPLIT_NAMES[code],
            batch.token_ids[split_of_token == code],
            lengths[rows],
            boundaries=boundaries[rows],
            labels=[example.label for example in examples],
        )
        num_bytes[SPLIT_NAMES[code]] = sum(len(text) for example in examples for text in example.texts)
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
    tokenizer, hashes = _build_tokenizer(config, found, progress)
    encoder = LabelEncoder(config.data)
    labelled = LabelledExamples(found, config.data, encoder)
    num_bytes: collections.Counter[str] = collections.Counter()
    writer = PreparedWriter(
        folder,
        task=config.task,
        problem_type=config.data.problem_type,
        is_pair=bool(config.data.text_b_column),
        vocabulary_size=tokenizer.vocabulary_size,
    )
    with writer:
        threads = min(_MAX_THREADS, os.cpu_count() or 1)
        batches = _batches(labelled, phase=_PREPARING)
        tokenised = map_in_order(lambda batch: _tokenise(tokenizer, batch), batches, num_threads=threads)
        with contextlib.closing(tokenised):
            for batch in tokenised:
                num_bytes.update(_write(writer, batch))
                progress(batch.counts)
        progress(labelled.counts(_PREPARING)._replace(bytes_read=labelled.total_bytes))
        _check_result(labelled, num_bytes, hashes)
        tokenizer.save(folder / TOKENIZER_FOLDER)
        return writer.finish(
            label_names=sorted(encoder.names),
            positions=encoder.positions(),
            ledger=_ledger(config, found, labelled, tokenizer=tokenizer)
            | {"splits": {split: {"utf8_bytes": count} for split, count in num_bytes.items()}},
        )


def _build_tokenizer(
    config: ExperimentConfig, found: list[SourceFile], progress: Progress
) -> tuple[Tokenizer, list[str]]:
    """Returns the tokenizer and, where it was learnt from the sources, their hashes at that time."""
    labelled: list[LabelledExamples] = []

    def training_texts() -> Iterator[str]:
        """The texts of the training split alone: what is tested on must be new to the vocabulary as well."""
        labelled.append(LabelledExamples(found, config.data, LabelEncoder(config.data)))
        for batch in _batches(labelled[-1], phase=f"learning the vocabulary, pass {len(labelled)}"):
            progress(batch.counts)
            for example in batch.examples:
                if example.split == "train":
                    yield from (text.decode() for text in example.texts)

    tokenizer = build_tokenizer(config.tokenizer, config.model.source, training_texts)
    return tokenizer, [report.sha256 for report in labelled[-1].reports] if labelled else []


def _check_result(labelled: LabelledExamples, num_bytes: Mapping[str, int], hashes: list[str]) -> None:
    """Refuses a data set without training data, and one whose sources changed between two passes."""
    for report, before in zip(labelled.reports, hashes, strict=False):
        if report.sha256 != before:
            raise InputError(
                f"{report.uri} changed while it was read; wait until nothing writes to it, and prepare again."
            )
    if "train" not in num_bytes:
        raise InputError(
            f"No example is left for training: of {sum(report.num_rows for report in labelled.reports)} rows, "
            f"{sum(report.num_bad for report in labelled.reports)} are broken, {labelled.left_out} are within "
            f"data.label_margin of a threshold, and {labelled.kept} are in the splits "
            f"{', '.join(num_bytes) or 'validation and test'}; add data or change data.split."
        )


# ---------------------------------------------------------------- the ledger


def _ledger(
    config: ExperimentConfig, found: list[SourceFile], labelled: LabelledExamples, *, tokenizer: Tokenizer
) -> dict[str, Any]:
    """Returns where the data come from and what each stage did, as entries of dataset.json."""
    reports, data = labelled.reports, config.data
    unreadable: collections.Counter[str] = collections.Counter()
    for report in reports:
        unreadable.update(report.bad)
    unreadable -= labelled.broken
    num_read = sum(report.num_rows for report in reports) - unreadable.total()
    left_out = {f"within {data.label_margin:g} of a threshold": labelled.left_out} if labelled.left_out else {}
    notes = []
    if labelled.validation_from_train:
        notes.append("no source states a validation split; a tenth of the training split, by hash, is it")
    return {
        "licence": data.licence,
        "sources": [_describe_source(source, report, data) for source, report in zip(found, reports, strict=True)],
        "stages": [
            {"name": "read", "kept": num_read, "dropped": dict(unreadable), "notes": []},
            {"name": "labels", "kept": labelled.kept, "dropped": dict(labelled.broken) | left_out, "notes": []},
            {"name": "split", "kept": labelled.kept, "dropped": {}, "notes": notes},
            {"name": "tokenise", "kept": labelled.kept, "dropped": {}, "notes": []},
        ],
        "tokenizer_sha256": tokenizer.sha256(),
        "prepare_sha256": prepare_sha256(config),
        "config": relevant_fields(config),
        "created_by": {
            "aigc_tf": aigc_tf.__version__,
            "tensorflow": tf.__version__,
            "tensorflow_text": tensorflow_text.__version__,
            "numpy": np.__version__,
            "python": platform.python_version(),
        },
    }


def _describe_source(source: SourceFile, report: SourceReport, data: DataConfig) -> dict[str, Any]:
    licence = data.licence
    if not licence and source.uri.startswith(samples.PREFIX):
        licence = samples.SAMPLES[source.uri.removeprefix(samples.PREFIX).partition("/")[0]].licence
    facts = report.as_dict()
    return {"uri": facts.pop("uri"), "format": source.format, "split": source.split, "licence": licence} | facts


def relevant_fields(config: ExperimentConfig) -> dict[str, Any]:
    """Returns the config fields, by dotted name, that decide what is prepared, as JSON values."""
    fields = flatten(config.data, "data.") | flatten(config.tokenizer, "tokenizer.")
    fields = {name: value for name, value in fields.items() if name not in _IRRELEVANT_FIELDS}
    fields["task"] = config.task
    if not config.tokenizer.source:  # the vocabulary is the model's own
        fields["model.source"] = config.model.source
    return json.loads(json.dumps(fields))


def prepare_sha256(config: ExperimentConfig) -> str:
    """Returns the sha256 of the relevant fields as canonical JSON (sorted keys, no spaces)."""
    canonical = json.dumps(relevant_fields(config), sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(canonical.encode()).hexdigest()


def check_matches(prepared: PreparedDataset, config: ExperimentConfig) -> None:
    """Compares the config with the one the data were prepared with; the sources themselves are not looked at.

    Raises:
        InputError: If a field differs that decides what is prepared; the fields are named.
    """
    differences = _differences(prepared, config)
    if differences:
        raise InputError(
            f"{prepared.folder} was prepared with another config: {differences}. Take another name, "
            "or make it anew with `python scripts/prepare.py --config=... --overwrite`."
        )


def _differences(prepared: PreparedDataset, config: ExperimentConfig) -> str:
    now, before = relevant_fields(config), prepared.info.get("config") or {}
    names = [name for name in {**before, **now} if before.get(name) != now.get(name)]
    return "; ".join(f"{name} was {before.get(name)!r} and is {now.get(name)!r}" for name in names)


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
    sources.check_labelled(found)
    with _only_writer(folder):
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
            f"{folder} was prepared from other sources; changed, gone or new: {_some(changed)}. "
            "Give --overwrite to prepare the data anew."
        )
    return prepared


def _some(names: list[str]) -> str:
    return ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")


def _refuse_foreign(folder: Path) -> None:
    """Keeps --overwrite from replacing a folder that is something else; an empty folder makes way."""
    if folder.is_dir() and not any(folder.iterdir()):
        folder.rmdir()
    if folder.exists() and not (folder / INFO_NAME).is_file():
        raise InputError(
            f"{folder} is there and is no prepared data set, so it is not replaced; take another data.prepared_dir."
        )


@contextlib.contextmanager
def _only_writer(folder: Path) -> Iterator[None]:
    """Holds a lock, which the operating system frees when the process ends, on making a data set."""
    path = folder.with_name(f".{folder.name}.lock")
    with contextlib.ExitStack() as stack:
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            handle = stack.enter_context(open(path, "ab"))
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise RunError(f"Another process prepares {folder} right now; wait until it is done.") from error
        except OSError as error:
            raise RunError(
                f"Cannot write {path.parent}: {error.strerror}. Set data.prepared_dir to a folder that can be written."
            ) from error
        yield
