"""From records to examples: which split, which label, and what does not get through."""

import collections
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np

from aigc_tf.config import DataConfig
from aigc_tf.data.cleaning.duplicates import KEPT, REASONS, DuplicateFinder
from aigc_tf.data.encoders.labels import BrokenLabelError, Label, LabelEncoder
from aigc_tf.data.preparing.terminal import Counts
from aigc_tf.data.sources import sources
from aigc_tf.data.sources.records import CHECK_AFTER_ROWS, Record, SourceFile, SourceReport
from aigc_tf.data.sources.splits import split_of
from aigc_tf.errors import InputError


class Example(NamedTuple):
    """One example before it is tokenised."""

    split: str
    texts: tuple[bytes, ...]
    """One text, or the two of a pair."""
    label: Label


class ExampleReader:
    """Reads records and gives them codes and splits, and counts what does not get through.

    Args:
        found: The source files.
        data: The config's section.
        is_labelled: Whether labels are read. If not, each text is a document, or each pair a prompt and its response; a
            document or a response without a character is left out.
        verdicts: `(n,)` uint8, what `find_duplicates` says of the same sources; those it does not keep are left out.
    """

    def __init__(
        self,
        found: list[SourceFile],
        data: DataConfig,
        *,
        is_labelled: bool = True,
        verdicts: np.ndarray | None = None,
    ) -> None:
        self._sources, self._data, self._is_labelled, self._verdicts = found, data, is_labelled, verdicts
        self._sizes = [source_size(source) for source in found]
        self._splits = [source.split for source in found]
        if len(found) == 1 and found[0].format == "document":
            self._splits = [found[0].split or "train"]  # wherever the hash would put it
        self.validation_from_train = data.split != "hash" and _lacks_validation(found)
        self.encoder = LabelEncoder(data)
        """Knows the labels that were read so far."""
        self.reports: list[SourceReport] = []
        self.broken: collections.Counter[str] = collections.Counter()
        """Rows with a broken label, by reason. The reports count them too."""
        self.left_out: collections.Counter[str] = collections.Counter()
        """Rows that are in order but not wanted, by reason."""
        self.duplicates: collections.Counter[str] = collections.Counter()
        """Examples left out for what others are, by reason."""
        self.kept = 0
        """Examples before duplicates are left out."""

    def __iter__(self) -> Iterator[Example]:
        """Yields the examples in the order of the sources.

        Raises:
            InputError: As `sources.read_records`; or if too many labels are broken.
        """
        source, row, broken_before = -1, 0, 0
        for record in sources.read_records(self._sources, self._data, self.reports):
            if record.source != source:
                source, row, broken_before = record.source, 0, self.broken.total()
            row += 1
            label = self._label(record)
            if row == CHECK_AFTER_ROWS:
                self._check_labels(self.reports[source], self.broken.total() - broken_before)
            if label is None:
                continue
            verdict = self._verdict()
            self.kept += 1
            if verdict != KEPT:
                self.duplicates[REASONS[verdict]] += 1
                continue
            texts: tuple[bytes, ...] = (record.text.encode(),)
            if self._data.text_b_column:
                texts += (record.text_b.encode(),)
            given = self._splits[source]
            yield Example(split_of(texts, given, validation_from_train=self.validation_from_train), texts, label)

    def _verdict(self) -> int:
        if self._verdicts is None:
            return KEPT
        if self.kept >= len(self._verdicts):
            raise sources.changed(self.reports[-1].uri)
        return int(self._verdicts[self.kept])

    def _label(self, record: Record) -> Label | None:
        """Returns the label, 0 where none is read; None: the record is counted and left out."""
        if not self._is_labelled:
            is_pair = bool(self._data.text_b_column)
            if record.text_b if is_pair else record.text:
                return 0
            self.left_out["empty response" if is_pair else "empty document"] += 1
            return None
        try:
            label = self.encoder.encode(record.label)
        except BrokenLabelError as error:
            reason, detail = error.args
            report = self.reports[record.source]
            report.records -= 1  # its reader has taken it for a good one
            report.count_broken(record.line, reason, detail)
            self.broken[reason] += 1
            return None
        if label is None:
            self.left_out[f"within {self._data.label_margin:g} of a threshold"] += 1
        return label

    def _check_labels(self, report: SourceReport, num_broken: int) -> None:
        """Looks at the first labels of a file, so that a wrong column shows at once; at its end the reader looks."""
        if num_broken > self._data.max_bad_share * CHECK_AFTER_ROWS:
            raise InputError(
                f"{num_broken} of the first {CHECK_AFTER_ROWS} labels of {report.uri} are broken, more than "
                f"data.max_bad_share {self._data.max_bad_share:g} allows (the first is {report.examples[0]})."
            )

    def counts(self, phase: str) -> Counts:
        """Returns how far the reading is."""
        done = sum(self._sizes[: max(0, len(self.reports) - 1)])
        if self.reports:
            done += min(self.reports[-1].bytes_read, self._sizes[len(self.reports) - 1])
        return Counts(phase, done, sum(report.num_rows for report in self.reports))

    @property
    def total_bytes(self) -> int:
        return sum(self._sizes)


def _lacks_validation(found: list[SourceFile]) -> bool:
    """Whether validation data must come from the training data; the only document there is stays there."""
    training = [source for source in found if source.split == "train"]
    only = len(training) == 1 and training[0].format == "document"
    return not only and all(source.split != "validation" for source in found)


def find_duplicates(examples: Iterable[Example]) -> np.ndarray:
    """Reads all examples and returns `(n,)` uint8, what `cleaning.judge` says of each."""
    finder = DuplicateFinder()
    for example in examples:
        finder.add(example.texts, example.label, example.split)
    return finder.verdicts()


def source_size(source: SourceFile) -> int:
    """Returns the bytes of a source on disk, for the progress bar."""
    path = Path(source.path or source.uri)
    if source.format == "tfds":  # one split: <name>-<split>.<format>-00000-of-00001
        split = source.uri.rpartition("#")[2]
        return sum(file.stat().st_size for file in path.glob(f"*-{split}.*"))
    return path.stat().st_size
