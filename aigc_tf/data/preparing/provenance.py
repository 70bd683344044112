"""The origin of a prepared data set, as dataset.json keeps it: sources, config and stages."""

import collections
import hashlib
import json
import platform
from typing import Any

import numpy as np
import tensorflow as tf
import tensorflow_text

import aigc_tf
from aigc_tf.config import DataConfig, ExperimentConfig, TokenizerConfig
from aigc_tf.config.fields import flatten
from aigc_tf.data.prepared.prepared import PreparedDataset
from aigc_tf.data.prepared.schema import Schema
from aigc_tf.data.preparing.examples import ExampleReader
from aigc_tf.data.sources import samples
from aigc_tf.data.sources.records import SourceFile, SourceReport
from aigc_tf.errors import InputError

# Fields of `data` and `tokenizer` that do not change the prepared data: paths, and settings of batches.
_IRRELEVANT_FIELDS = frozenset(
    {
        "data.prepared_dir",
        "data.tfds_data_dir",
        "data.tfds_download",
        "data.max_length",
        "data.truncation",
        "data.num_buckets",
        "data.bucket_run_length",
        "data.packing",
    }
)


def describe(
    config: ExperimentConfig, schema: Schema, found: list[SourceFile], reader: ExampleReader
) -> dict[str, Any]:
    """Returns the origin of the data and the result of each stage, as entries of dataset.json.

    Args:
        config: A validated config.
        schema: What its task reads.
        found: From `sources.find_sources`.
        reader: After it has read them all.
    """
    return {
        "licence": config.data.licence,
        "sources": [
            _describe_source(source, report, config.data) for source, report in zip(found, reader.reports, strict=True)
        ],
        "stages": _stages(config, schema, reader),
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


def _stages(config: ExperimentConfig, schema: Schema, reader: ExampleReader) -> list[dict[str, Any]]:
    unreadable: collections.Counter[str] = collections.Counter()
    for report in reader.reports:
        unreadable.update(report.bad)
    unreadable -= reader.broken
    num_read = sum(report.num_rows for report in reader.reports) - unreadable.total()
    notes = []
    if reader.validation_from_train:
        notes.append("no source states a validation split; a tenth of the training split, by hash, is it")
    not_encoded = dict(reader.broken) | dict(reader.left_out)
    duplicates = []
    kept = reader.kept - reader.duplicates.total()
    if config.data.drop_duplicates:
        duplicates.append({"name": "duplicates", "kept": kept, "dropped": dict(reader.duplicates), "notes": []})
    return [
        {"name": "read", "kept": num_read, "dropped": dict(unreadable), "notes": []},
        {
            "name": _examples_stage(schema),
            "kept": reader.kept,
            "dropped": not_encoded,
            "notes": [],
        },
        {"name": "split", "kept": reader.kept, "dropped": {}, "notes": notes},
        *duplicates,
        *([{"name": "tokenise", "kept": kept, "dropped": {}, "notes": []}] if schema.text_columns else []),
    ]


def _examples_stage(schema: Schema) -> str:
    return "labels" if schema.encoded_by("label") else f"{schema.unit}s"


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
    """Compares the config with the one the data were prepared with; the sources themselves are not compared.

    Raises:
        InputError: If a field that decides what is prepared differs; the fields are named.
    """
    differences = _differences(prepared, config)
    if differences:
        raise InputError(
            f"{prepared.folder} was prepared with another config: {differences}. Use another name, "
            "or make it anew with `python scripts/prepare.py --config=... --overwrite`."
        )


def check_schema(prepared: PreparedDataset, schema: Schema) -> None:
    """Compares the columns of the data with those that the task reads now; a task's code may have changed since.

    Raises:
        InputError: If they differ.
    """
    if prepared.schema != schema:
        raise InputError(
            f"{prepared.folder} was prepared with another schema ({_columns(prepared.schema)}) than the task's now "
            f"({_columns(schema)}); make it anew with `python scripts/prepare.py --config=... --overwrite`."
        )


def _columns(schema: Schema) -> str:
    columns = ", ".join(f"{column.name} from {column.source} by {column.encoder}" for column in schema.columns)
    return f"{columns}; split by {', '.join(schema.split_by)}"


def _differences(prepared: PreparedDataset, config: ExperimentConfig) -> str:
    now, before = relevant_fields(config), prepared.info.get("config") or {}
    if before:  # a field that did not exist then counts as its default
        new = flatten(DataConfig(), "data.") | flatten(TokenizerConfig(), "tokenizer.")
        before = {name: value for name, value in json.loads(json.dumps(new)).items() if name in now} | before
    names = [name for name in {**before, **now} if before.get(name) != now.get(name)]
    return "; ".join(f"{name} was {before.get(name)!r} and is {now.get(name)!r}" for name in names)
