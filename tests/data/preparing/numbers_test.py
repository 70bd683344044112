"""Preparing examples without text: numeric columns of a task of another schema."""

import io

import numpy as np
import pytest
from rich.console import Console

from aigc_tf.config import DataConfig, ExperimentConfig
from aigc_tf.data.prepared.prepared import verify_prepared
from aigc_tf.data.prepared.schema import Column, Schema
from aigc_tf.data.preparing.preparation import prepare
from aigc_tf.data.sources.splits import hash_bucket
from aigc_tf.errors import InputError

POINTS = Schema(columns=(Column("x", "x", "number"), Column("y", "y", "number")), split_by=("x",), unit="point")


def run(tmp_path, *rows, header="x,name,y", **fields):
    (tmp_path / "points.csv").write_text("".join(f"{row}\n" for row in (header, *rows)))
    data = DataConfig(sources=(str(tmp_path / "points.csv"),), prepared_dir=str(tmp_path / "prepared"), **fields)
    output = io.StringIO()
    prepared = prepare(ExperimentConfig(name="line", data=data), POINTS, console=Console(file=output, width=200))
    verify_prepared(prepared.folder)
    return prepared, output.getvalue()


def test_numbers_become_columns_split_by_the_one_that_the_schema_names(tmp_path):
    rows = [(i / 4, i - 7.5) for i in range(40)]
    prepared, printed = run(tmp_path, *(f"{x},n,{y}" for x, y in rows))
    splits = {"test": [], "train": [], "validation": []}
    for x, y in rows:
        splits[{0: "test", 1: "validation"}.get(hash_bucket(str(x).encode()), "train")].append((x, y))
    for name, split in prepared.splits.items():
        columns = (split.column("x").all().tolist(), split.column("y").all().tolist())
        assert list(zip(*columns, strict=True)) == splits[name]
        assert split.column("x").dtype == np.float32
    assert [stage["name"] for stage in prepared.info["stages"]] == ["read", "points", "split"]
    lines = [line.split() for line in printed.splitlines()]
    assert ["split", "points", "x", "y"] in lines
    assert "vocabulary" not in printed
    assert prepared.facts.encoder("y").decode(np.float32(0.5)) == "0.5"


def test_what_is_no_number_is_counted_and_a_missing_column_is_named(tmp_path):
    rows = [f"{i},n,1" for i in range(20)]
    prepared, printed = run(tmp_path, *rows, "one,n,1", "1,n,", max_bad_share=0.2)
    assert prepared.info["stages"][0]["dropped"] == {"no value in 'y'": 1}
    assert prepared.info["stages"][1]["dropped"] == {"'x' is not a number": 1}
    assert "Every example of the training split has the number y = 1." in printed
    (tmp_path / "other").mkdir()
    with pytest.raises(InputError, match=r"no column 'y', which the task's schema names; its columns are 'x', 'z'"):
        run(tmp_path / "other", "1,2", header="x,z")


def test_duplicates_are_equal_in_the_splitting_column(tmp_path):
    rows = [*(f"{i},n,1" for i in range(20)), "3,n,1", "4,n,2"]
    prepared, _ = run(tmp_path, *rows, drop_duplicates=True)
    assert prepared.info["stages"][3]["dropped"] == {"duplicate": 1, "two labels": 2}
