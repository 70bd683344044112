"""The process that stands in for the server: what it answers, what it refuses, and that nothing brings it down."""

import base64
import concurrent.futures
import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import tensorflow as tf

from aigc_tf.errors import RunError
from aigc_tf.serving.modules.fields import HOSTILE_TEXTS
from aigc_tf.serving.process import other_process
from aigc_tf.serving.process.other_process import StandIn, bytes_array, installed_runtime
from tests.echo_model import TYPES, Echo, save

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return save(Echo(), tmp_path_factory.mktemp("echo") / "1")


@pytest.fixture(scope="module")
def model(folder):
    with StandIn(folder, num_threads=2) as model:
        yield model


def ask(model, inputs, signature="serving_default", **more):
    return model.submit({"signature_name": signature, "inputs": inputs, **more}).result(timeout=60)


def test_it_says_what_it_loaded_and_with_what(model):
    assert (model.tensorflow, model.xla) == (tf.__version__, "off")
    assert model.load_seconds > 0
    signature = model.signatures["add"]
    assert signature["method"] == "tensorflow/serving/predict"
    assert {name: (value["dtype"], value["shape"]) for name, value in signature["inputs"].items()} == {
        "flag": ("bool", [-1]),
        "n": ("int32", [-1]),
        "x": ("float", [-1, 2]),
    }
    assert signature["outputs"]["sums"]["dtype"] == "float"
    assert model.signatures["scalar"]["inputs"]["word"]["shape"] == []


def test_it_imports_nothing_but_the_standard_library_and_itself():
    code = (
        "import sys, aigc_tf.serving.stand_in.__main__; "
        "print(*sorted({name.partition('.')[0] for name in sys.modules} - set(sys.stdlib_module_names)))"
        "; print(*sorted(name for name in sys.modules if name.startswith('aigc_tf')))"
    )
    command = [sys.executable, "-E", "-s", "-S", "-c", code]
    foreign, ours = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout.splitlines()
    assert set(foreign.split()) <= {"__main__", "aigc_tf"}
    assert {name for name in ours.split() if not name.startswith("aigc_tf.serving.stand_in")} == {
        "aigc_tf",
        "aigc_tf.serving",
    }


def test_one_row_many_rows_and_none_are_answered(model):
    for texts in (["a"], ["", "bc", "déf"], [], ["x"] * 1000):
        outputs = model.call("serving_default", {"text": bytes_array(texts)})
        assert outputs["text"].tolist() == [text.encode() for text in texts]
        assert outputs["size"].tolist() == [len(text.encode()) for text in texts]
    sums = model.call(
        "add", {"x": np.array([[1, 1], [0.5, 2]], "f"), "n": np.array([0, 10], "i"), "flag": np.array([True, False])}
    )
    assert sums["sums"].tolist() == [3.0, -1.0]
    assert sums["flag"].tolist() == [False, True]
    empty = model.call("add", {"x": np.zeros([0, 2], "f"), "n": np.zeros(0, "i"), "flag": np.zeros(0, bool)})
    assert empty["sums"].shape == (0,)


def test_hostile_texts_come_back_byte_by_byte(model):
    texts = [*HOSTILE_TEXTS, b"".join(bytes([byte]) for byte in range(256)), '"\\\n\u2028', "\ud800"]
    sent = bytes_array(texts)
    assert model.call("serving_default", {"text": sent})["text"].tolist() == sent.tolist()
    plain = [text for text in HOSTILE_TEXTS if isinstance(text, str)]
    said = ask(model, {"text": plain})["outputs"]["text"]
    assert [base64.b64decode(text["b64"]).decode() for text in said] == plain


def test_a_text_of_ten_megabytes_is_answered(model):
    assert ask(model, {"text": ["é" * 5_000_000, "b"]})["outputs"]["size"] == [10_000_000, 1]


def test_numbers_of_every_type_come_back(model):
    outputs = model.call("cast", {"n": np.array([0, 1, 100])})
    assert set(outputs) == set(TYPES)
    for name, values in outputs.items():
        assert values.tolist() == [0, 1, 100], name
    large = model.call("cast", {"n": np.array([2**63 - 1, -(2**63)])})
    assert large["int64"].tolist() == [2**63 - 1, -(2**63)]


def test_floats_lose_nothing_on_the_way(model):
    values = np.array([0.1, 1.2e-38, 3.4e38, -0.0, np.inf, 1 / 3], "f")
    x = np.stack([values, np.zeros(6, "f")], 1)
    outputs = model.call("add", {"x": x, "n": np.zeros(6, "i"), "flag": np.ones(6, bool)})
    expected = x @ np.array([[1.0], [2.0]], "f")
    np.testing.assert_array_equal(outputs["sums"], expected[:, 0])


def test_a_scalar_and_a_matrix_of_strings_keep_their_shapes(model):
    outputs = model.call("scalar", {"word": np.array(b"ab", object)})
    assert (outputs["word"].shape, outputs["words"].tolist()) == ((), [[b"ab", b"ab"]])


def test_only_the_outputs_wanted_are_given(model):
    assert list(ask(model, {"text": ["a"]}, output_filter=["size"])["outputs"]) == ["size"]


@pytest.mark.parametrize(
    ("inputs", "words"),
    [
        (
            {},
            "input size does not match signature: 0!=1 len({}) != len({text}). Sent extra: {}. Missing but required: ",
        ),
        ({"text": ["a"], "more": [1]}, "Sent extra: {more}. Missing but required: {}."),
        ({"txt": ["a"]}, "Signature input alias: text(feed name: serving_default_text:0) not found in request"),
        ([["a"]], "One of 'inputs' and 'tensors' must be an object"),
        ({"text": [1]}, "JSON Value: 1 Type: Number is not of expected type: string"),
        ({"text": [None]}, "JSON Value: null Type: Null is not of expected type: string"),
        ({"text": [True]}, "JSON Value: true Type: True is not of expected type: string"),
        ({"text": ["a", ["b"]]}, "Encountered list at unexpected level: 1 expected < 1"),
        ({"text": [["a"], "b"]}, 'JSON Value: "b" found at incorrect level: 2 in the JSON DOM. Expected at level: 2'),
        ({"text": [["a", "b"], ["c"]]}, "Encountered list at unexpected size: 1 at level: 1 expected size: 2"),
        ({"text": [{"b64": "?"}]}, "Unable to base64 decode"),
        ({"text": [{"b64": 1}]}, 'JSON Value: {"b64": 1} not formatted correctly for base64 data'),
        ({"text": [{"b64": "YQ==", "c": 1}]}, "not formatted correctly for base64 data"),
        ({"text": ["\ud800"]}, "The surrogate pair in string is invalid"),
    ],
)
def test_inputs_that_do_not_fit_are_refused_in_the_words_of_the_server(model, inputs, words):
    reply = ask(model, inputs)
    assert words in reply["error"]
    assert reply["code"] == "INVALID_ARGUMENT"


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"n": [2**31]}, "JSON Value: 2147483648 Type: Number is not of expected type: int32"),
        ({"n": [-(2**31) - 1]}, "is not of expected type: int32"),
        ({"n": [1.0]}, "JSON Value: 1.0 Type: Number is not of expected type: int32"),
        ({"n": [True]}, "JSON Value: true Type: True is not of expected type: int32"),
        ({"n": [10**400]}, "is not of expected type: int32"),
        ({"x": [["1", 2]]}, 'JSON Value: "1" Type: String is not of expected type: float'),
        ({"x": [[{"b64": "YQ=="}, 2]]}, "Type: Object is not of expected type: float"),
        ({"flag": [1]}, "JSON Value: 1 Type: Number is not of expected type: bool"),
        ({"x": [[1, 2, 3]]}, "Matrix size-incompatible: In[0]: [1,3], In[1]: [2,1]"),  # TensorFlow's own words
        ({"x": []}, ""),
    ],
)
def test_numbers_that_do_not_fit_are_refused(model, changes, words):
    reply = ask(model, {"x": [[1, 2]], "n": [0], "flag": [True], **changes}, "add")
    assert words in reply["error"]
    assert reply["code"] == "INVALID_ARGUMENT"


@pytest.mark.parametrize(
    ("tensor", "words"),
    [
        ({"dtype": "string", "shape": [2], "data": ["YQ=="]}, "shape [2] does not fit 1 values"),
        ({"dtype": "string", "shape": [-1], "data": []}, "shape [-1] does not fit 0 values"),
        ({"dtype": "string", "shape": [1.0], "data": ["YQ=="]}, "shape [1.0] does not fit 1 values"),
        ({"dtype": "string", "shape": [1], "data": ["Y"]}, "tensor parsing error: "),
        ({"dtype": "words", "shape": [1], "data": ["YQ=="]}, "tensor parsing error: "),
        ({"dtype": "resource", "shape": [1], "data": "YQ=="}, "tensor parsing error: "),
        ({"dtype": "int32", "shape": 1, "data": "AAAAAA=="}, "tensor parsing error: "),
        ({"dtype": "int32", "shape": [1], "data": ["AAAAAA=="]}, "tensor parsing error: "),
        (["a"], "tensor parsing error: "),
        ({"dtype": "int32", "shape": [1], "data": "AAAAAA=="}, "string"),  # TensorFlow's own words
    ],
)
def test_bytes_that_are_no_tensor_are_refused(model, tensor, words):
    reply = model.submit({"tensors": {"text": tensor}}).result(timeout=60)
    assert (reply["code"], words in reply["error"]) == ("INVALID_ARGUMENT", True), reply


def test_other_mistakes_of_a_request_are_named(model):
    cases = [
        ({"signature_name": "nix", "inputs": {}}, "FAILED_PRECONDITION", 'Serving signature key "nix" not found.'),
        ({"signature_name": 5, "inputs": {}}, "INVALID_ARGUMENT", "'signature_name' key must be a string value."),
        ({"inputs": {}, "tensors": {}}, "INVALID_ARGUMENT", "One of 'inputs' and 'tensors' must be an object"),
        ({"inputs": {"text": []}, "output_filter": ["a"]}, "INVALID_ARGUMENT", "output tensor alias not found in sig"),
        ({"inputs": {"text": []}, "output_filter": 3}, "INVALID_ARGUMENT", "'output_filter' must be a list of names."),
        ({"instances": []}, "INVALID_ARGUMENT", "received 'instances'"),
        ({"signature_name": "divide", "inputs": {"n": [1, 0]}}, "INVALID_ARGUMENT", "Integer division by zero"),
        ({"signature_name": "compiled", "inputs": {"x": [1.0]}}, "INTERNAL", "XLA compilation disabled"),
    ]
    for request, code, words in cases:
        reply = model.submit(request).result(timeout=60)
        assert (reply["code"], words in reply["error"]) == (code, True), reply
    with pytest.raises(RunError, match=r"fails in a new process: INVALID_ARGUMENT: .*division by zero"):
        model.call("divide", {"n": np.array([0], "i")})


def test_lines_that_are_no_requests_are_answered_and_the_next_one_too(folder):
    runtime = installed_runtime()
    lines = [
        b"",
        b"{",
        b"[1]",
        b"\xff\xfe",
        b'{"id": 7, "inputs": {"text": ["a"' + b"]",
        b"null",
        b"[" * 100_000,
        b"\x00",
    ]
    good = json.dumps({"id": "last", "inputs": {"text": ["a"]}}).encode()
    done = subprocess.run(
        [
            *[sys.executable, "-E", "-s", "-m", "aigc_tf.serving.stand_in", f"--model={folder}"],
            f"--tensorflow={runtime.folder}",
        ],
        input=b"\n".join([*lines, good]),
        cwd=ROOT,
        capture_output=True,
        timeout=120,
    )
    ready, *replies = [json.loads(line) for line in done.stdout.splitlines()]
    assert (ready["ready"], done.returncode) == (True, 0)
    assert len(replies) == len(lines) - 1 + 1  # nothing is said to an empty line
    assert [reply["code"] for reply in replies[:-1]] == [
        *["INVALID_ARGUMENT"] * 5,
        *["RESOURCE_EXHAUSTED", "INVALID_ARGUMENT"],
    ]
    assert replies[-1]["id"] == "last"
    assert replies[-1]["outputs"]["size"] == [1]


def test_requests_of_many_threads_get_their_own_answers(model):
    def say(number):
        return model.call("serving_default", {"text": bytes_array([str(number)] * (number % 7))})["text"].tolist()

    with concurrent.futures.ThreadPoolExecutor(8) as threads:
        assert list(threads.map(say, range(200))) == [[str(n).encode()] * (n % 7) for n in range(200)]


def test_a_killed_process_is_said_and_the_next_one_answers(folder):
    with StandIn(folder) as model:
        assert model.call("serving_default", {"text": bytes_array(["a"])})["size"].tolist() == [1]
        os.kill(model.pid, signal.SIGKILL)
        for _ in range(2):
            with pytest.raises(RunError, match=r"fails in a new process \(signal SIGKILL\)"):
                model.call("serving_default", {"text": bytes_array(["a" * 1_000_000])})
    with StandIn(folder) as model:
        assert model.call("serving_default", {"text": bytes_array(["ab"])})["size"].tolist() == [2]
        assert model.xla == "off"


def test_a_process_that_is_killed_in_the_middle_of_a_reply_is_said(folder, monkeypatch):
    ready = {"ready": True, "tensorflow": "", "xla": "off", "load_seconds": 0, "num_warmup_requests": 0}
    program = f"""
import json, os, signal, sys
print(json.dumps({ready | {"warmup_seconds": 0, "signatures": {}}}), flush=True)
sys.stdin.readline()
sys.stderr.write("Out of room.\\nE0000 00:00:1795660213.351631   10645 cuda.cc:52] a note of TensorFlow\\n")
sys.stderr.flush()
os.write(1, b'{{"id": 0, "outputs": {{"te')
os.kill(os.getpid(), signal.SIGKILL)
"""

    def start(options, runtime, errors):
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": errors}
        return subprocess.Popen([sys.executable, "-c", program], **pipes)

    monkeypatch.setattr(other_process, "_start", start)
    with StandIn(folder) as model, pytest.raises(RunError, match=r"\(signal SIGKILL\): Out of room\.$"):
        ask(model, {"text": ["a"]})


def test_tensors_that_no_request_can_have_are_refused(tmp_path):
    module = tf.Module()
    spec = tf.TensorSpec([None], tf.string, name="text")
    words = tf.function(lambda text: {"words": tf.strings.split(text)}, input_signature=[spec])
    spec = tf.TensorSpec([None], tf.complex64, name="x")
    size = tf.function(lambda x: {"size": tf.abs(x)}, input_signature=[spec])
    tf.saved_model.save(module, os.fspath(tmp_path), signatures={"words": words, "size": size})
    with StandIn(tmp_path) as model:
        reply = ask(model, {"text": ["a b"]}, "words")
        assert reply["code"] == "INVALID_ARGUMENT"
        assert "specified in either feed_devices or fetch_devices was not found in the Graph" in reply["error"]
        assert model.signatures["size"]["inputs"]["x"]["dtype"] == "complex64"
        assert ask(model, {"x": [1]}, "size")["code"] == "UNIMPLEMENTED"


def test_what_cannot_be_loaded_is_said_with_the_reason(tmp_path, folder):
    with pytest.raises(RunError, match="fails in a new process: NOT_FOUND: Could not find SavedModel"):
        StandIn(tmp_path)
    (tmp_path / "saved_model.pb").write_bytes(b"\x00nothing")
    with pytest.raises(RunError, match=r"fails in a new process: (INVALID_ARGUMENT|DATA_LOSS)"):
        StandIn(tmp_path)
    with pytest.raises(RunError, match="TensorFlow's libraries cannot be loaded from /nowhere"):
        StandIn(folder, runtime=type(installed_runtime())(folder=Path("/nowhere"), op_libraries=()))


def test_memory_does_not_grow_over_ten_thousand_requests(folder):
    def rest(model, count):
        request = {"inputs": {"text": [{"b64": base64.b64encode(b"x" * 1000).decode()}, "y" * 30]}}
        replies = [model.submit(request) for _ in range(count)]
        assert all("outputs" in reply.result(timeout=60) for reply in replies)
        status = Path(f"/proc/{model.pid}/status").read_text()
        return next(int(line.split()[1]) / 1024 for line in status.splitlines() if line.startswith("VmRSS"))

    with StandIn(folder) as model:
        after_first = rest(model, 1000)
        after_all = rest(model, 9000)
    print(f"\nresident MB: {after_first:.1f} after 1,000 requests, {after_all:.1f} after 10,000")
    assert after_all - after_first < 5  # 9,000 of these texts are 9 MB
