"""An export of any task is asked by what its manifest says of its signatures."""

import itertools

import pytest
import tensorflow as tf

from aigc_tf.errors import InputError
from aigc_tf.serving.local.exported import exported_answerer

MANIFEST = {
    "signatures": {
        "serving_default": {
            "inputs": {"x": ["float32", [None]], "name": ["string", [None]]},
            "outputs": {
                "value": ["float32", [None]],
                "probabilities": ["float32", [None, 2]],
                "greeting": ["string", [None]],
            },
        }
    }
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A model that no task of this toolkit exports."""
    module = tf.Module()

    @tf.function(input_signature=[tf.TensorSpec([None], tf.float32, "x"), tf.TensorSpec([None], tf.string, "name")])
    def serve(x, name):
        return {
            "value": 2 * x + 1,
            "probabilities": tf.stack([x, 1 - x], axis=1),
            "greeting": tf.strings.join(["hello ", name]),
        }

    module.serve = serve
    folder = str(tmp_path_factory.mktemp("model") / "1")
    tf.saved_model.save(module, folder, signatures=serve)
    return folder


def test_a_model_of_another_kind_answers_with_its_outputs_in_batches(folder):
    """Outputs that are called like those of a classifier are no classifier's."""
    answerer = exported_answerer(folder, MANIFEST, {})
    assert (answerer.inputs, answerer.columns, answerer.continuing) == (("x", "name"), ("x", "name"), None)
    questions = ({"x": str(number), "name": "é"} for number in itertools.count())
    answers = list(itertools.islice(answerer.answer(questions, {}), 70))
    assert answers == [
        {"value": 2.0 * number + 1, "probabilities": [number, 1 - number], "greeting": "hello é"}
        for number in range(70)
    ]


def test_what_does_not_fit_is_one_sentence(folder):
    with pytest.raises(InputError, match=r"--top_k is 3, but the exported model .* has no such setting"):
        exported_answerer(folder, MANIFEST, {"top_k": 3})
    with pytest.raises(InputError, match="lacks the signature 'serving_default'; export the model again"):
        exported_answerer(folder, {}, {})
    with pytest.raises(InputError, match="x is 'one'; a number fits here"):
        list(exported_answerer(folder, MANIFEST, {}).answer([{"x": "one", "name": ""}], {}))
