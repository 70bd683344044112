"""What a server of exported models has to do, as cases for any server: the double in the tests, TensorFlow Serving in
`make serve-check`.

A case is a function of a `Server`. Those of `CASES` are run by REST and by gRPC, through the clients that users have.
"""

import concurrent.futures
import dataclasses
import json
import re
from collections.abc import Mapping
from typing import Any

import numpy as np
import pytest
import requests

from aigc_tf.errors import InputError
from aigc_tf.serving.clients.client import VersionStatus, connect
from aigc_tf.serving.clients.served_answerer import in_requests

TEXTS = ["a b c", "", "zebra", "é 中文 🙂 \0\r\n", "q " * 5000, "[CLS] [SEP]", "x" * 300, "the end"]
PROMPTS = ["The quick", "", "é 中文 🙂", "Pack my box with five dozen"]
GREEDY = {"temperature": 0.0, "top_k": 0, "top_p": 1.0, "min_p": 0.0, "repetition_penalty": 1.0, "seed": 0}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Server:
    """A server of the classifier `reviews`, version 1 stable and 2 canary, and of the generator `writer`, version 1."""

    urls: Mapping[str, str]
    """Address by protocol: `http`, `grpc`."""
    expected: Mapping[str, Any]
    """What the models answer in the process that saved them: `labels`, `probabilities` of TEXTS; `defaults`,
    `drawn`: outputs for PROMPTS."""

    def connect(self, protocol: str, model: str, **options: Any) -> Any:
        return connect(self.urls[protocol], model, **{"timeout": 120, **options})


def texts_get_the_answers_of_the_model(server: Server, protocol: str) -> None:
    with server.connect(protocol, "reviews", label="stable") as client:
        outputs = client.predict({"text": TEXTS})
    assert outputs["label"] == server.expected["labels"]
    np.testing.assert_allclose(outputs["probabilities"], server.expected["probabilities"], atol=1e-5)
    assert outputs["label_id"] == np.argmax(server.expected["probabilities"], 1).tolist()


def a_text_alone_is_answered_as_in_a_batch(server: Server, protocol: str) -> None:
    with server.connect(protocol, "reviews") as client:
        alone = [client.predict({"text": [text]})["probabilities"][0] for text in TEXTS]
    np.testing.assert_allclose(alone, server.expected["probabilities"], atol=1e-5)


def ids_are_answered_as_the_text_they_come_from(server: Server, protocol: str) -> None:
    with server.connect(protocol, "reviews", version=2) as client:
        ids = client.predict({"text": TEXTS}, signature="tokenize")
        outputs = client.predict(ids, signature="token_ids")
    np.testing.assert_allclose(outputs["probabilities"], server.expected["probabilities"], atol=1e-5)


def the_classify_api_names_all_classes(server: Server, protocol: str) -> None:
    with server.connect(protocol, "reviews", label="canary") as client:
        rows = client.classify([{"text": text} for text in TEXTS], signature="classify")
    assert all([name for name, _ in row] == ["bad", "gut", "mixed 中"] for row in rows)
    scores = [[score for _, score in row] for row in rows]
    np.testing.assert_allclose(scores, server.expected["probabilities"], atol=1e-5)


def prompts_are_continued_by_the_settings_of_the_export(server: Server, protocol: str) -> None:
    with server.connect(protocol, "writer") as client:
        _check_continuations(client.predict({"prompt": PROMPTS}, signature="defaults"), server.expected["defaults"])


def every_prompt_of_a_request_has_its_own_settings(server: Server, protocol: str) -> None:
    with server.connect(protocol, "writer", label="stable") as client:
        greedy = {name: [value] * 4 for name, value in GREEDY.items()}
        outputs = client.predict({"prompt": PROMPTS, **greedy, "max_new_tokens": [5, 4, 0, 9]})
        assert outputs["num_tokens"] == [min(n, m) for n, m in zip(outputs["num_tokens"], [5, 4, 0, 9], strict=True)]
        drawn = {**greedy, "temperature": [0.0, 0.7, 1.0, 1.5], "seed": [1, 2, 3, 2**62]}
        together = client.predict({"prompt": PROMPTS, **drawn, "max_new_tokens": [8] * 4})
        _check_continuations(together, server.expected["drawn"])
        for row in range(4):
            one = {name: values[row : row + 1] for name, values in {"prompt": PROMPTS, **drawn}.items()}
            alone = client.predict({**one, "max_new_tokens": [8]})
            assert alone["text_bytes"][0] == together["text_bytes"][row]


def a_prompt_of_ten_megabytes_is_cut_from_the_left(server: Server, protocol: str) -> None:
    with server.connect(protocol, "writer") as client:
        outputs = client.predict({"prompt": ["quick fox " * 1_000_000]}, signature="defaults")
    assert outputs["prompt_cut"][0] > 1_000_000
    assert outputs["finish_reason"][0] in ("end", "length", "stop")


def versions_say_how_far_they_are(server: Server, protocol: str) -> None:
    with server.connect(protocol, "reviews") as client:
        states = sorted(client.status(), key=lambda one: one.version)
    assert states == [VersionStatus(version=number, state="AVAILABLE", error="") for number in (1, 2)]
    with server.connect(protocol, "reviews", version=2) as client:
        assert [one.version for one in client.status()] == [2]


def signatures_have_names_types_and_shapes(server: Server, protocol: str) -> None:
    with server.connect(protocol, "reviews") as client:
        signatures = client.signatures()
    assert set(signatures) == {"serving_default", "token_ids", "tokenize", "classify"}
    assert signatures["serving_default"].inputs == {"text": ("string", (-1,))}
    assert signatures["serving_default"].outputs["probabilities"] == ("float32", (-1, 3))
    with server.connect(protocol, "writer") as client:
        found = client.signatures()["serving_default"].inputs
    assert found["seed"] == ("int64", (-1,))
    assert set(found) == {"prompt", "max_new_tokens", *GREEDY}


def what_is_not_there_is_told(server: Server, protocol: str) -> None:
    for options, sentence in (
        ({"model": "reviewz"}, r"does not have the model 'reviewz': Servable not found for request: Latest\(reviewz\)"),
        ({"model": "reviews", "version": 9}, r"'reviews', version 9: Servable not found.*Specific\(reviews, 9\)"),
        ({"model": "writer", "label": "canary"}, r"label 'canary': Unrecognized servable version label: canary"),
    ):
        with server.connect(protocol, **options) as client, pytest.raises(InputError, match=sentence):
            client.predict({"text": ["a"]})
    with server.connect(protocol, "reviewz") as client, pytest.raises(InputError, match="Could not find any versions"):
        client.status()


def more_rows_than_a_batch_are_refused_and_ask_sends_fewer(server: Server, protocol: str) -> None:
    with server.connect(protocol, "reviews") as client:
        with pytest.raises(InputError, match="Task size 9 is larger than maximum input batch size 8"):
            client.predict({"text": ["a"] * 9})
        asked = in_requests(range(20), lambda rows: client.predict({"text": ["a b c"] * len(rows)})["label"])
        assert [label for _, label in asked] == server.expected["labels"][:1] * 20


def many_clients_at_once_get_each_their_own_answers(server: Server, protocol: str) -> None:
    def work(number: int) -> None:
        with server.connect(protocol, "reviews") as client:
            for step in range(6):
                row = (number + step) % len(TEXTS)
                outputs = client.predict({"text": [TEXTS[row]]})
                np.testing.assert_allclose(
                    outputs["probabilities"][0], server.expected["probabilities"][row], atol=1e-5
                )

    with concurrent.futures.ThreadPoolExecutor(8) as pool:
        list(pool.map(work, range(8)))


CASES = (
    texts_get_the_answers_of_the_model,
    a_text_alone_is_answered_as_in_a_batch,
    ids_are_answered_as_the_text_they_come_from,
    the_classify_api_names_all_classes,
    prompts_are_continued_by_the_settings_of_the_export,
    every_prompt_of_a_request_has_its_own_settings,
    a_prompt_of_ten_megabytes_is_cut_from_the_left,
    versions_say_how_far_they_are,
    signatures_have_names_types_and_shapes,
    what_is_not_there_is_told,
    more_rows_than_a_batch_are_refused_and_ask_sends_fewer,
    many_clients_at_once_get_each_their_own_answers,
)


def _check_continuations(outputs: Mapping[str, list[Any]], expected: Mapping[str, np.ndarray]) -> None:
    assert outputs["num_tokens"] == expected["num_tokens"].tolist()
    for row, count in enumerate(outputs["num_tokens"]):
        assert outputs["token_ids"][row][:count] == expected["token_ids"][row, :count].tolist()
    assert outputs["text_bytes"] == expected["text_bytes"].tolist()
    assert outputs["text"] == [text.decode() for text in expected["text"].tolist()]
    assert outputs["finish_reason"] == [reason.decode() for reason in expected["finish_reason"].tolist()]
    assert outputs["prompt_cut"] == expected["prompt_cut"].tolist()
    np.testing.assert_allclose(outputs["log_probability"], expected["log_probability"], atol=1e-4)


MALFORMED = (
    (b"", 400),
    (b"{", 400),
    (b"[1]", 400),
    (b"\xff\xfe", 400),
    (json.dumps({"inputs": {}}).encode(), 400),
    (json.dumps({"inputs": {"txt": ["a"]}}).encode(), 400),
    (json.dumps({"inputs": {"text": [1]}}).encode(), 400),
    (json.dumps({"inputs": {"text": [["a"], ["b", "c"]]}}).encode(), 400),
    (json.dumps({"inputs": {"text": [{"b64": "*"}]}}).encode(), 400),
    (json.dumps({"inputs": {"text": ["a"]}, "instances": ["a"]}).encode(), 400),
    (json.dumps({"signature_name": "none", "inputs": {"text": ["a"]}}).encode(), 400),
    (b'{"inputs": {"text": ' + b"[" * 100_000 + b"]" * 100_000 + b"}}", 400),
)
"""Bodies for `reviews:predict`, and the status of the answer."""


def check_malformed(server: Server, body: bytes, status: int) -> None:
    """Sends a body by plain HTTP: the answer is an error in JSON, and the next request is answered."""
    url = f"{server.urls['http']}/v1/models/reviews:predict"
    answer = requests.post(url, data=body, timeout=60)
    assert answer.status_code == status
    assert set(answer.json()) == {"error"}
    assert re.search(r"\w", answer.json()["error"])
    assert requests.post(url, json={"inputs": {"text": ["a"]}}, timeout=60).status_code == 200
