"""How the double of the server puts requests together: what goes into a batch, what fills it up, and its errors."""

import concurrent.futures
import threading
import time
import weakref

import numpy as np
import pytest

from aigc_tf.errors import InputError
from aigc_tf.serving.deployment.server_configs import read_batching
from aigc_tf.serving.double.batching import Batcher, Batching, batching_of
from aigc_tf.serving.stand_in.status import StatusError


class Model:
    """Keeps the batches it gets and doubles their rows; waits while it is held."""

    def __init__(self):
        self.batches, self.seconds = [], []
        self.may_go = threading.Event()
        self.may_go.set()

    def __call__(self, inputs, seconds):
        self.batches.append({name: value.tolist() for name, value in inputs.items()})
        self.seconds.append(seconds)
        self.may_go.wait(10)
        return {"y": 2 * inputs["x"]}


@pytest.fixture
def model():
    return Model()


@pytest.fixture
def start(model):
    """Starts a batcher of the given parameters and returns what sends it rows of `x` from another thread."""
    threads = concurrent.futures.ThreadPoolExecutor(16)
    batchers = []

    def start(**parameters):
        batcher = Batcher(Batching(**{"num_batch_threads": 1, **parameters}))
        batchers.append(batcher)

        def send(x, *, key="signature", timeout=10.0, **more):
            inputs = {"x": np.array(x), **{name: np.array(value) for name, value in more.items()}}
            return threads.submit(batcher.run, key, inputs, model, timeout=timeout)

        return send

    yield start
    model.may_go.set()
    threads.shutdown()
    for batcher in batchers:
        batcher.close()


def wait_until(condition):
    end = time.monotonic() + 10
    while not condition() and time.monotonic() < end:
        time.sleep(0.001)
    assert condition()


def test_what_waits_while_a_batch_runs_goes_into_the_next_one_in_its_order(start, model):
    model.may_go.clear()
    send = start()
    first = send([1])
    wait_until(lambda: len(model.batches) == 1)
    others = []
    for rows in ([2, 3], [4], [5, 6]):
        others.append(send(rows))
        time.sleep(0.02)
    model.may_go.set()
    assert [reply.result(10)["y"].tolist() for reply in (first, *others)] == [[2], [4, 6], [8], [10, 12]]
    assert [batch["x"] for batch in model.batches] == [[1], [2, 3, 4, 5, 6]]


def test_a_full_batch_does_not_wait_and_one_that_is_not_full_waits_for_its_time(start, model):
    send = start(max_batch_size=2, batch_timeout_micros=400_000)
    started = time.monotonic()
    replies = [send([1]), send([2])]
    assert sorted(reply.result(10)["y"].item() for reply in replies) == [2, 4]
    assert time.monotonic() - started < 0.35
    started = time.monotonic()
    assert send([3]).result(10)["y"].tolist() == [6]
    assert time.monotonic() - started > 0.39


def test_a_batch_that_the_next_request_does_not_fit_into_does_not_wait(start):
    send = start(max_batch_size=4, batch_timeout_micros=500_000)
    started = time.monotonic()
    first, second = send([1, 2, 3]), send([4, 5, 6])
    concurrent.futures.wait([first, second], return_when=concurrent.futures.FIRST_COMPLETED)
    assert time.monotonic() - started < 0.45
    assert sorted(first.result(10)["y"].tolist() + second.result(10)["y"].tolist()) == [2, 4, 6, 8, 10, 12]


def test_the_signature_that_has_waited_longest_is_next(start, model):
    model.may_go.clear()
    send = start()
    replies = [send([1], key="a")]
    wait_until(lambda: len(model.batches) == 1)
    for number, key in ((2, "b"), (3, "c"), (4, "a")):
        replies.append(send([number], key=key))
        time.sleep(0.02)
    model.may_go.set()
    assert [reply.result(10)["y"].item() for reply in replies] == [2, 4, 6, 8]
    assert [batch["x"] for batch in model.batches] == [[1], [2], [3], [4]]


def test_a_batch_is_filled_up_to_an_allowed_size_by_the_first_row_of_the_last_request(start, model):
    send = start(max_batch_size=8, allowed_batch_sizes=(1, 4, 8))
    assert send([[7, 8], [9, 10]]).result(10)["y"].tolist() == [[14, 16], [18, 20]]
    assert model.batches[-1]["x"] == [[7, 8], [9, 10], [7, 8], [7, 8]]


def test_requests_of_two_signatures_are_not_put_together(start, model):
    send = start(batch_timeout_micros=50_000, max_batch_size=8)
    replies = [send([1], key="a"), send([2], key="b"), send([3], key="a")]
    assert [reply.result(10)["y"].tolist() for reply in replies] == [[2], [4], [6]]
    assert sorted(sorted(batch["x"]) for batch in model.batches) == [[1, 3], [2]]


def test_rows_of_other_lengths_are_an_error_of_all_or_filled_up_with_their_first_value(start, model):
    send = start(batch_timeout_micros=100_000)
    for reply in [send([[1, 2]]), send([[3]])]:
        with pytest.raises(StatusError, match="different shapes and padding is turned off") as caught:
            reply.result(10)
        assert caught.value.code == "FAILED_PRECONDITION"
    send = start(batch_timeout_micros=100_000, pad_variable_length_inputs=True)
    replies = [send([[1, 2, 3]])]
    time.sleep(0.02)
    replies.append(send([[4], [5]]))
    assert replies[1].result(10)["y"].tolist() == [[8, 8, 8], [10, 8, 8]]
    assert model.batches[-1]["x"] == [[1, 2, 3], [4, 4, 4], [5, 4, 4]]
    replies = [send([[1, 2, 3]]), send(np.zeros([1, 0], int))]
    with pytest.raises(StatusError, match="Got empty tensor in batch of non-empty tensors"):
        replies[1].result(10)


def test_a_queue_that_is_full_refuses(start, model):
    model.may_go.clear()
    send = start(max_batch_size=2, max_enqueued_batches=2)
    replies = [send([1, 1])]
    wait_until(lambda: len(model.batches) == 1)
    for rows in ([2, 2], [3, 3]):
        replies.append(send(rows))
        time.sleep(0.02)
    with pytest.raises(StatusError, match="scheduling queue to which this task was submitted is full") as caught:
        send([4]).result(10)
    assert caught.value.code == "UNAVAILABLE"
    model.may_go.set()
    assert [reply.result(10)["y"].tolist() for reply in replies] == [[2, 2], [4, 4], [6, 6]]


def test_a_request_may_take_the_time_it_has_left(start, model):
    model.may_go.clear()
    send = start()
    first = send([1], timeout=5.0)
    wait_until(lambda: len(model.batches) == 1)
    late = send([2], timeout=0.05)
    time.sleep(0.1)
    model.may_go.set()
    with pytest.raises(StatusError, match=r"Run\(\) timeout exceeded while waiting in batching queue") as caught:
        late.result(10)
    assert caught.value.code == "RESOURCE_EXHAUSTED"
    assert first.result(10)["y"].tolist() == [2]
    assert 4.5 < model.seconds[0] <= 5.0


@pytest.mark.parametrize(
    ("inputs", "words"),
    [
        ({"x": 1}, "must have at least one dimension"),
        ({"x": [1, 2], "n": [1]}, "must have equal 0th-dimension size"),
        ({"x": [1, 2, 3]}, "Task size 3 is larger than maximum input batch size 2"),
    ],
)
def test_inputs_that_cannot_be_put_together_are_refused(start, inputs, words):
    with pytest.raises(StatusError, match=words):
        start(max_batch_size=2)(**inputs).result(10)


def test_outputs_that_cannot_be_taken_apart_are_an_error(start, model):
    send = start()
    for outputs, words in (
        ({"y": np.array(1)}, "Batched output tensor has 0 dimensions"),
        ({"y": np.array([1, 2])}, "0th dimension does not equal the sum"),
    ):
        model.__class__ = type("Broken", (Model,), {"__call__": lambda *_, outputs=outputs: outputs})
        with pytest.raises(StatusError, match=words):
            send([1], key=words).result(10)


def test_a_failure_of_the_model_is_that_of_all_requests_of_the_batch(start, model):
    def fail(*_):
        raise StatusError("INTERNAL", "broken")

    model.__class__ = type("Failing", (Model,), {"__call__": fail})
    send = start(batch_timeout_micros=50_000)
    for reply in [send([1]), send([2])]:
        with pytest.raises(StatusError, match="broken"):
            reply.result(10)
    model.__class__ = Model
    assert send([3]).result(10)["y"].tolist() == [6]


@pytest.mark.parametrize(
    ("first", "second", "padded", "code", "words"),
    [
        ([1.0], ["a"], False, "INTERNAL", "Cannot concatenate tensors that have different data types"),
        ([1.0], [1], False, "INTERNAL", "Cannot concatenate tensors that have different data types"),
        ([1], [[1]], True, "INVALID_ARGUMENT", "Tensors of several ranks cannot be padded"),
    ],
)
def test_requests_that_do_not_fit_each_other_are_refused_and_the_next_one_is_answered(
    start, first, second, padded, code, words
):
    send = start(batch_timeout_micros=100_000, pad_variable_length_inputs=padded)
    for reply in [send(first), send(second)]:
        with pytest.raises(StatusError, match=words) as caught:
            reply.result(10)
        assert caught.value.code == code
    assert send([3]).result(10)["y"].tolist() == [6]


def test_a_fault_of_any_kind_is_told_and_the_next_request_is_answered(start, model):
    model.__class__ = type("Faulty", (Model,), {"__call__": lambda *_: 1 / 0})
    send = start()
    with pytest.raises(StatusError, match="ZeroDivisionError: division by zero") as caught:
        send([1]).result(10)
    assert caught.value.code == "INTERNAL"
    model.__class__ = Model
    assert send([3]).result(10)["y"].tolist() == [6]


def test_what_has_been_answered_is_not_held():
    model = Model()
    held, batcher = weakref.ref(model), Batcher(Batching(num_batch_threads=1))
    assert batcher.run("signature", {"x": np.array([1])}, model, timeout=10)["y"].tolist() == [2]
    del model
    wait_until(lambda: held() is None)
    batcher.close()


def test_a_batching_file_is_read_with_the_defaults_of_the_server():
    text = "max_batch_size { value: 4 } allowed_batch_sizes: [1, 4] pad_variable_length_inputs: true"
    assert batching_of(read_batching(text, name="x"), num_cpus=3) == Batching(
        max_batch_size=4, num_batch_threads=3, allowed_batch_sizes=(1, 4), pad_variable_length_inputs=True
    )
    message = read_batching("max_batch_size { value: 4 } enable_large_batch_splitting { value: true }", name="x")
    with pytest.raises(InputError, match="enable_large_batch_splitting is not supported by the protocol double"):
        batching_of(message, num_cpus=1)
