"""What is asked of an export follows from its fields, and so does whether an answer is right."""

import types

import numpy as np
import pytest

from aigc_tf.errors import RunError
from aigc_tf.serving.modules.fields import Field, Signature
from aigc_tf.serving.publishing import parity
from aigc_tf.serving.publishing.parity import Call, check_parity, compare, make_calls

TEXT = Field(name="text", dtype="string", shape=(None,), warmup=("w",), hostile=("", b"\xff", "\ud800"))
COUNT = Field(name="count", dtype="int32", shape=(None,), warmup=(4,))
STOPS = Field(name="stops", dtype="string", shape=(None, 2), hostile=(b"", (b"a", b"b")))
SAID = Field(name="said", dtype="string", shape=(None,))
SCORE = Field(name="score", dtype="float32", shape=(None, 2), tolerance=0.1)


def signature(name="serving_default", inputs=(TEXT, COUNT, STOPS)):
    return Signature(
        name=name,
        inputs={field.name: field for field in inputs},
        outputs={field.name: field for field in (SAID, SCORE)},
        function=None,
    )


def test_samples_and_hostile_values_are_asked_in_turn_a_few_rows_a_call():
    calls = make_calls({"serving_default": signature()}, {"text": ["one"] * 7})
    texts = [call.inputs["text"].tolist() for call in calls]
    assert texts == [[b"one"] * 7 + [b""], [b"\xff", b"?"], []]
    assert calls[0].inputs["count"].tolist() == [4] * 8
    assert calls[0].inputs["stops"].tolist()[:3] == [[b"", b""], [b"a", b"b"], [b"", b""]]
    assert calls[2].inputs["stops"].shape == (0, 2)
    assert {call.inputs["count"].dtype for call in calls} == {np.dtype(np.int32)}


def test_another_signature_gets_no_call_without_rows_and_warm_up_values_where_nothing_else_is_said():
    [call] = make_calls({"more": signature("more", [COUNT])}, {"text": ["one"]})
    assert call.inputs["count"].tolist() == [4]


def outputs(said=(b"a", b"b"), score=((1.0, -np.inf), (np.nan, 2.0))):
    return {"said": np.array(said, object), "score": np.array(score, np.float32)}


def test_answers_within_their_tolerance_are_measured():
    call = Call(signature=signature(), inputs={})
    assert compare(call, outputs(), outputs()) == {"score": 0.0}
    found = compare(call, outputs(), outputs(score=((1.0, -np.inf), (np.nan, 2.05))))
    assert found == {"score": pytest.approx(0.05, abs=1e-6)}


@pytest.mark.parametrize(
    ("found", "message"),
    [
        (
            outputs(said=(b"a", b"x")),
            "another said than the trained one: b'x', expected b'b', in row 1 of a call of more",
        ),
        (outputs(score=((1.0, -np.inf), (np.nan, 2.5))), r"score by 5.00e-01 \(bound 1e-01\) of more; nothing was"),
        (outputs(score=((1.0, np.inf), (np.nan, 2.0))), "score by inf"),
        (outputs(score=((1.0, -np.inf), (0.0, 2.0))), "score by inf"),
        (outputs(score=((np.nan, -np.inf), (np.nan, 2.0))), "score by inf"),
        (outputs(said=(b"a",)), r"Output said of the exported model is \(1,\), expected \(2,\)"),
        ({"said": outputs()["said"]}, r"has the outputs \['said'\], expected \['said', 'score'\]"),
    ],
)
def test_another_answer_is_named_with_its_numbers(found, message):
    with pytest.raises(RunError, match=message):
        compare(Call(signature=signature("more"), inputs={}), outputs(), found)


def test_numbers_that_are_none_are_compared_too():
    first = np.array([1.0, -np.inf, np.nan, 2.0])
    assert parity._difference(first, np.array([1.0, -np.inf, np.nan, 2.5])) == 0.5
    assert parity._difference(first[:0], first[:0]) == 0.0


def test_the_reference_sees_what_was_found_so_that_a_tie_may_fall_either_way():
    """The export says b, since its second score is a little higher than the model's."""
    found = outputs(said=(b"b",), score=((0.5, 0.51),))
    process = types.SimpleNamespace(
        timed_call=lambda name, inputs: (found, 0.25), xla="off", load_seconds=1.0, call=None
    )

    def reference(signature, inputs, found):
        said = [b"b" if second > first else b"a" for first, second in found["score"]]
        return outputs(said=said, score=((0.5, 0.5),))

    call = Call(signature=signature(), inputs={"text": np.array([b"x"], object)})
    measured = check_parity(process, [call], reference=reference)
    assert (measured.num_calls, measured.num_rows, measured.xla) == (1, 1, "off")
    assert measured.max_difference == {"score": pytest.approx(0.01, abs=1e-6)}
    assert measured.tolerance == {"score": 0.1}
    assert (measured.first_request_seconds, measured.second_request_seconds) == (0.25, 0.25)
