"""Schemas and the facts that a run keeps of its data."""

import json

import pytest

from aigc_tf.config import DataConfig, ExperimentConfig
from aigc_tf.data.encoders.numbers import NumberEncoder
from aigc_tf.data.prepared.facts import DataFacts, has_facts, read_facts, write_facts
from aigc_tf.data.prepared.schema import Column, Schema
from aigc_tf.errors import InputError
from aigc_tf.tasks import TASKS

POINTS = Schema(columns=(Column("x", "from_x", "number"), Column("y", "from_y", "number")), split_by=("x",))


def fields(**data):
    return ExperimentConfig(data=DataConfig(**data))


def test_the_tasks_read_the_columns_that_the_config_names():
    pair = TASKS["classify"].schema(fields(text_column="a", text_b_column="b", label_column="c"))
    assert [(column.name, column.source, column.encoder) for column in pair.columns] == [
        ("text", "a", "tokenizer"),
        ("text_b", "b", "tokenizer"),
        ("label", "c", "label"),
    ]
    assert (pair.split_by, pair.size_columns, pair.learnt) == (("text", "text_b"), ("text", "text_b"), ())
    turns = TASKS["generate"].schema(fields(text_b_column="answer"))
    assert (turns.text_names, turns.learnt, turns.unit) == (("text", "response"), ("response",), "pair")
    documents = TASKS["generate"].schema(fields())
    assert (documents.text_names, documents.learnt, documents.unit) == (("text",), ("text",), "document")
    assert [schema.tokenizer_kind for schema in (pair, documents)] == ["wordpiece", "sentencepiece"]


def test_an_error_names_who_names_a_column_of_the_sources():
    data = DataConfig(text_column="from_x", label_column="label", problem_type="multi_label")
    assert [tuple(column) for column in POINTS.source_columns(data)] == [
        ("from_x", False, "data.text_column", False),
        ("from_y", False, "the task's schema", False),
    ]
    (*_, label) = TASKS["classify"].schema(ExperimentConfig(data=data)).source_columns(data)
    assert label.may_be_empty  # no label applies


def test_a_schema_comes_back_from_json():
    for schema in (POINTS, TASKS["generate"].schema(fields(text_b_column="answer"))):
        assert Schema.from_json(json.loads(json.dumps(schema.to_json()))) == schema


def test_a_run_keeps_the_facts_and_the_encoders(tmp_path):
    for name in ("x", "y"):
        NumberEncoder(name).save(tmp_path / "data" / name)
    facts = DataFacts(sha256="abc", schema=POINTS, encoders_folder=str(tmp_path / "data"))
    run = tmp_path / "run"
    assert not has_facts(str(run))
    write_facts(str(run), facts)
    assert has_facts(str(run))
    found = read_facts(str(run))
    assert (found.sha256, found.schema) == ("abc", POINTS)
    assert found.encoder("y").sha256() == facts.encoder("y").sha256()
    assert found.encoder("y") is found.encoder("y")
    with pytest.raises(KeyError):
        found.encoder("z")


@pytest.mark.parametrize("content", ["{}", '{"sha256": "a", "schema": {}}', '{"sha256": "a", "schema": 5}', "[]"])
def test_facts_that_are_damaged_are_one_sentence(tmp_path, content):
    (tmp_path / "facts.json").write_text(content)
    with pytest.raises(InputError, match=r"facts\.json is not what scripts/train\.py writes"):
        read_facts(str(tmp_path))
