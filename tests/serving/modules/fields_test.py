"""Fields make rows of values; a signature refuses rows that do not fit; the docs' tables are those of the fields."""

import itertools
import re
from pathlib import Path

import numpy as np
import pytest
import tensorflow as tf

from aigc_tf.serving.apis import Api
from aigc_tf.serving.modules.classifier_signatures import ClassifierModule, ServingSpec
from aigc_tf.serving.modules.fields import Field, build_signature, serialized_examples
from tests import tiny_classifier, tiny_generator

ROOT = Path(__file__).parents[3]
X = Field(name="x", dtype="float32", shape=(None, 2), warmup=(1.5, (2.0, 3.0)))
TEXT = Field(name="text", dtype="string", shape=(None,), warmup=("a", b"\xff", "\ud800"))


def test_rows_take_values_in_turn_and_a_single_value_fills_a_row():
    assert X.rows(X.warmup, range(3)).tolist() == [[1.5, 1.5], [2.0, 3.0], [1.5, 1.5]]
    assert X.rows([0], []).shape == (0, 2)
    assert TEXT.rows(TEXT.warmup, [2, 0, 4]).tolist() == [b"?", b"a", b"\xff"]
    ragged = Field(name="ids", dtype="int32", shape=(None, None))
    assert ragged.rows([7], range(2)).tolist() == [[7], [7]]
    assert ragged.rows([7], range(2)).dtype == np.int32


def test_a_signature_answers_arrays_and_refuses_other_shapes_and_other_numbers_of_rows():
    def body(inputs):
        return {"size": tf.strings.length(inputs["text"]), "sum": tf.reduce_sum(inputs["x"], 1)}

    outputs = [Field(name="size", dtype="int32", shape=(None,)), Field(name="sum", dtype="float32", shape=(None,))]
    signature = build_signature("say", body, inputs=[TEXT, X], outputs=outputs)
    assert (list(signature.inputs), list(signature.outputs)) == (["text", "x"], ["size", "sum"])
    texts, numbers = TEXT.rows(["ab", ""], range(2)), X.rows([2], range(2))
    found = signature({"text": texts, "x": numbers})
    assert {name: value.tolist() for name, value in found.items()} == {"size": [2, 0], "sum": [4.0, 4.0]}
    assert signature({"text": texts[:0], "x": numbers[:0]})["size"].shape == (0,)
    function = signature.function.get_concrete_function()
    with pytest.raises(tf.errors.InvalidArgumentError, match="as many rows"):
        signature({"text": texts[:1], "x": numbers})
    assert function.structured_outputs["sum"].shape.rank == 1


def test_an_empty_text_of_an_example_is_left_out_in_every_second_row():
    rows = serialized_examples({"text": ["", "", "a"], "text_b": ["b", "b", b"\xff"]})
    features = [dict(tf.train.Example.FromString(row).features.feature) for row in rows]
    assert [sorted(feature) for feature in features] == [["text_b"], ["text", "text_b"], ["text", "text_b"]]
    assert features[2]["text_b"].bytes_list.value == [b"\xff"]


def test_the_names_of_the_apis_are_those_of_the_paths():
    assert list(Api) == ["predict", "classify", "regress"]


def documented():
    """Name and type of every input and output in the tables of docs/export.md, and the names of the signatures."""
    cells = [
        cell.strip()
        for line in (ROOT / "docs" / "export.md").read_text(encoding="utf-8").splitlines()
        if line.startswith("|")
        for cell in line.strip("|").split("|")
    ]
    found = set()
    for names, dtype in re.findall(r"((?:`\w+`(?:, | and )?)+) \(B[^)]*\) (string|\w+\d\d)", " | ".join(cells)):
        found |= {(name, dtype) for name in re.findall(r"`(\w+)`", names)}
    for name, dtype in itertools.pairwise(cells):  # settings have a column for their type
        if re.fullmatch(r"`\w+`", name) and dtype in ("int32", "int64", "float32"):
            found.add((name.strip("`"), dtype))
    return found, cells


@pytest.fixture(scope="module")
def signatures(tmp_path_factory):
    """Those of every kind of classifier and of a generator."""
    tokenizer = tiny_classifier.load_tokenizer(tmp_path_factory.mktemp("vocabulary"))
    modules = [
        ClassifierModule(
            tiny_classifier.build_model(num_outputs=len(names) or 1),
            tokenizer,
            ServingSpec(label_names=names, problem_type=kind, is_pair=is_pair, max_length=16, truncation="head"),
        )
        for kind, names, is_pair in (
            ("single_label", ("a", "b"), False),
            ("multi_label", ("a", "b"), True),
            ("regression", (), False),
        )
    ]
    texts = tiny_generator.build_tokenizer_of_texts()
    modules.append(tiny_generator.build_module(tiny_generator.build_model(texts), texts))
    return [one for module in modules for one in module.signatures().values()]


def test_the_tables_of_the_docs_have_every_field_with_its_type_and_no_other(signatures):
    found, cells = documented()
    fields = {
        (field.name, field.dtype)
        for signature in signatures
        for field in [*signature.inputs.values(), *signature.outputs.values()]
    }
    # text_b has the type of text before it, and is written without one
    assert fields - found == {("text_b", "string")}
    assert found - fields == set()
    for signature in signatures:
        assert any(cell.startswith(f"`{signature.name}`") for cell in cells), signature.name
