"""Answers in batches, in order; finding the newest version."""

import itertools

import numpy as np
import pytest

from aigc_tf.errors import InputError
from aigc_tf.serving.local.predictor import Predictor, predict_texts
from aigc_tf.serving.modules.text_tensors import to_bytes
from aigc_tf.serving.versions import latest_version, version_folders


class Lengths:
    """A fake model: a text's length decides its answer. Remembers the batches it got."""

    def __init__(self, *outputs):
        self.batches, self.outputs = [], outputs or ("value",)

    def __call__(self, texts, texts_b):
        self.batches.append(list(texts))
        columns = [texts] if texts_b is None else [texts, texts_b]
        sizes = np.array([sum(map(len, row)) for row in zip(*columns, strict=True)])
        probabilities = np.stack([sizes % 2 == 0, sizes % 2 == 1], axis=1).astype(np.float32)
        answers = {
            "probabilities": probabilities,
            "label_id": (sizes % 2).astype(np.int32),
            "predicted": (probabilities > 0.5).astype(np.int32),
            "value": sizes.astype(np.float32),
        }
        return {name: answers[name] for name in self.outputs}


def values(call, *columns, **options):
    rows = predict_texts(call, *columns, label_names=(), **options)
    return [row["value"] for row in rows]


def test_answers_come_in_the_order_of_the_texts_while_like_lengths_share_a_batch():
    call = Lengths()
    texts = ["x" * size for size in (9, 1, 8, 2, 7, 3, 6)]
    assert values(call, texts, batch_size=3) == [9, 1, 8, 2, 7, 3, 6]
    assert [[len(text) for text in batch] for batch in call.batches] == [[1, 2, 3], [6, 7, 8], [9]]


def test_an_endless_stream_is_answered_window_by_window():
    call = Lengths()
    stream = ("x" * (index % 5) for index in itertools.count())
    rows = predict_texts(call, stream, label_names=(), batch_size=2)
    assert [row["value"] for row in itertools.islice(rows, 7)] == [0, 1, 2, 3, 4, 0, 1]
    assert len(call.batches) == 64


def test_no_texts_give_no_answers_and_no_call():
    call = Lengths()
    assert values(call, []) == []
    assert call.batches == []


def test_an_answer_names_its_labels():
    single = predict_texts(Lengths("label_id", "probabilities"), ["ab", "a"], label_names=("even", "odd"))
    assert list(single) == [
        {"label": "even", "probabilities": {"even": 1.0, "odd": 0.0}},
        {"label": "odd", "probabilities": {"even": 0.0, "odd": 1.0}},
    ]
    several = predict_texts(Lengths("predicted", "probabilities"), ["a"], label_names=("even", "odd"))
    assert list(several) == [{"labels": ["odd"], "probabilities": {"even": 0.0, "odd": 1.0}}]


def test_pairs_stay_together():
    assert values(Lengths(), ["aaaa", "b", "cc"], ["d", "eeeeee", ""], batch_size=2) == [5, 7, 2]


@pytest.mark.parametrize(
    ("columns", "words"),
    [
        ((["a", None],), "Text 1 .* missing"),
        ((["a", 3],), "Text 1 .* a int, not a string"),
        ((["a", "b"], ["c"]), "Text 1 .* missing"),
        ((["a"], ["b", "c"]), "Text 1 .* missing"),
    ],
)
def test_a_text_that_is_none_is_named(columns, words):
    with pytest.raises(InputError, match=words):
        values(Lengths(), *columns)


def test_half_a_surrogate_pair_does_not_stop_a_batch():
    assert to_bytes(["a\ud83d", b"\xff", "é"]).numpy().tolist() == [b"a?", b"\xff", "é".encode()]
    assert to_bytes([]).shape == (0,)


def make_version(folder):
    folder.mkdir(parents=True)
    (folder / "saved_model.pb").write_bytes(b"")


def test_the_newest_version_is_the_highest_number(tmp_path):
    for version in ("2", "10", ".11.partial", "x"):
        make_version(tmp_path / "toy" / version)
    assert version_folders(tmp_path / "toy") == {2: "2", 10: "10"}
    assert latest_version(tmp_path / "toy") == str(tmp_path / "toy" / "10")
    assert latest_version(tmp_path / "toy" / "2") == str(tmp_path / "toy" / "2")


def test_zeros_before_a_number_do_not_change_it_as_a_server_parses_it(tmp_path):
    for version in ("0001", "02", "2"):
        make_version(tmp_path / "toy" / version)
    assert version_folders(tmp_path / "toy") == {1: "0001", 2: "2"}
    make_version(tmp_path / "toy" / "0003")
    assert latest_version(tmp_path / "toy") == str(tmp_path / "toy" / "0003")


def test_a_mistyped_model_is_suggested(tmp_path):
    make_version(tmp_path / "sentiment" / "1")
    with pytest.raises(InputError, match=r"Did you mean '.*sentiment'"):
        latest_version(tmp_path / "sentimnt")
    with pytest.raises(InputError, match="holds no exported model"):
        Predictor(tmp_path / "elsewhere" / "sentiment")


def test_a_model_of_another_program_is_refused(tmp_path):
    make_version(tmp_path / "toy" / "1")
    with pytest.raises(InputError, match=r"no file .*manifest.json"):
        Predictor(tmp_path / "toy")
    (tmp_path / "toy" / "1" / "manifest.json").write_text("{}")
    with pytest.raises(InputError, match="lacks 'task'"):
        Predictor(tmp_path / "toy")
