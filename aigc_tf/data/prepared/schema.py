"""The schema of a data set: the columns of its examples, their sources, and their use.

Standard library and config only, so that the command line knows what a task reads before TensorFlow is imported.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any

from aigc_tf.config import DataConfig
from aigc_tf.data.encoders import ENCODERS
from aigc_tf.data.sources.records import SourceColumn


@dataclasses.dataclass(frozen=True)
class Column:
    """A column of a prepared data set."""

    name: str
    source: str
    """Name of its column in the sources."""
    encoder: str
    """Its encoder: a key of `data.encoders.ENCODERS`."""

    @property
    def is_text(self) -> bool:
        """Whether its raw values are texts."""
        return ENCODERS[self.encoder].reads_text


@dataclasses.dataclass(frozen=True, kw_only=True)
class Schema:
    """The columns of a task's examples."""

    columns: tuple[Column, ...]
    split_by: tuple[str, ...]
    """The columns whose raw bytes decide the split; examples that are equal in them are duplicates."""
    size_columns: tuple[str, ...] = ()
    """The ragged columns whose lengths add up to an example's size. Empty: every example has the size 1."""
    learnt: tuple[str, ...] = ()
    """The text columns that a model learns to write. An example is left out if they are empty; bits per byte count
    their bytes."""
    unit: str = "example"
    """The word for an example, such as `document`."""
    tokenizer_kind: str = "wordpiece"
    """The kind that `tokenizer.kind` `auto` trains."""

    @property
    def text_columns(self) -> tuple[Column, ...]:
        """The columns of text, in order."""
        return tuple(column for column in self.columns if column.is_text)

    @property
    def text_names(self) -> tuple[str, ...]:
        """The names of `text_columns`."""
        return tuple(column.name for column in self.text_columns)

    @property
    def cell_columns(self) -> tuple[Column, ...]:
        """The columns of cells, such as labels and numbers, in order."""
        return tuple(column for column in self.columns if not column.is_text)

    def encoded_by(self, encoder: str) -> tuple[Column, ...]:
        """Returns the columns of a kind of encoder, in order."""
        return tuple(column for column in self.columns if column.encoder == encoder)

    def source_columns(self, data: DataConfig) -> tuple[SourceColumn, ...]:
        """Returns the columns that are read from the sources, in the order of `columns`."""
        return tuple(
            SourceColumn(
                column.source,
                is_text=column.is_text,
                field=_field_of(column.source, data),
                may_be_empty=ENCODERS[column.encoder].may_be_empty(data),
            )
            for column in self.columns
        )

    def to_json(self) -> dict[str, Any]:
        """Returns the schema as JSON values."""
        fields = dataclasses.asdict(self)
        return {name: list(value) if isinstance(value, tuple) else value for name, value in fields.items()}

    @classmethod
    def from_json(cls, content: Mapping[str, Any]) -> "Schema":
        """Returns the schema that `to_json` gave.

        Raises:
            TypeError, KeyError: If the content is not a schema.
        """
        fields: dict[str, Any] = {
            name: tuple(value) if isinstance(value, list) else value for name, value in content.items()
        }
        columns = tuple(Column(**column) for column in fields.pop("columns"))
        for column in columns:
            ENCODERS[column.encoder]  # a KeyError here, not where it is used
        return cls(columns=columns, **fields)


def _field_of(source: str, data: DataConfig) -> str:
    """Returns the config field that names a column of the sources, for errors."""
    for field in ("text_column", "text_b_column", "label_column"):
        if getattr(data, field) == source:
            return f"data.{field}"
    return "the task's schema"
