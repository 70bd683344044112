"""From saved models to answered requests: a rendered deployment folder, a server started by its flags, its clients.

The server is the double. With SERVE_CHECK=docker, which `make serve-check` sets, it is tensorflow/serving in Docker.
"""

import json
import os
import shutil
import socket
import subprocess
import sys
import time
import uuid
from pathlib import Path

import pytest
import tensorflow as tf
import yaml

from aigc_tf.commands.asking import asking_server
from aigc_tf.serving.deployment.deployment import render_deployment
from aigc_tf.serving.modules.classifier_signatures import ClassifierModule, ServingSpec, text_function
from aigc_tf.serving.modules.generator_signatures import GeneratorModule
from aigc_tf.tasks import TASKS
from tests import tiny_classifier, tiny_generator
from tests.serving.server_cases import (
    CASES,
    GREEDY,
    MALFORMED,
    PROMPTS,
    TEXTS,
    Server,
    a_prompt_of_ten_megabytes_is_cut_from_the_left,
    check_malformed,
)

ROOT = Path(__file__).parents[2]
IN_DOCKER = os.environ.get("SERVE_CHECK") == "docker"
LABELS = ("bad", "gut", "mixed 中")
SETTINGS = tiny_generator.settings(max_new_tokens=8, temperature=0.9, seed=5, stop=(" j",))


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    """Two versions of a classifier and a generator as they are exported, and what they answer in this process."""
    base = tmp_path_factory.mktemp("models")
    spec = ServingSpec(label_names=LABELS, problem_type="single_label", is_pair=False, max_length=16, truncation="head")
    classifier = ClassifierModule(tiny_classifier.build_model(), tiny_classifier.load_tokenizer(base), spec)
    tokenizer = tiny_generator.build_tokenizer_of_texts()
    generator = GeneratorModule(
        tiny_generator.build_model(tokenizer), tokenizer, max_length=tiny_generator.MAX_LENGTH, generation=SETTINGS
    )
    for module, name, task in ((classifier, "reviews", "classify"), (generator, "writer", "generate")):
        folder = base / name / "1"
        tf.saved_model.save(
            module, os.fspath(folder), signatures={one.name: one.function for one in module.signatures().values()}
        )
        manifest = {
            **TASKS[task].manifest_facts(),
            "num_parameters": 1,
            "target": "2.20",
            "batch_sizes": [1, 2, 4, 8],
            "dtype": "float32",
            "weights": "float32",
            "identity": name,
            "versions": {"tensorflow": ""},
        }
        (folder / "manifest.json").write_text(json.dumps(manifest))
    shutil.copytree(base / "reviews" / "1", base / "reviews" / "2")
    answers = text_function(classifier)(TEXTS)
    drawn = {**GREEDY, "temperature": [0.0, 0.7, 1.0, 1.5], "seed": [1, 2, 3, 2**62], "max_new_tokens": 8}
    expected = {
        "labels": [label.decode() for label in answers["label"]],
        "probabilities": answers["probabilities"],
        "defaults": generator.signatures()["defaults"]({"prompt": tf.constant(PROMPTS)}),
        "drawn": generator.signatures()["serving_default"](tiny_generator.request(PROMPTS, **drawn)),
    }
    return base, expected


@pytest.fixture(scope="module")
def folder(models):
    base, _ = models
    names = [str(base / "reviews"), str(base / "writer")]
    render_deployment(names, output=str(base / "served"), stable=["reviews:1"], canary=["reviews:2"])
    return base / "served"


class Running:
    """A server that was started by the flags of a deployment folder: the double, or TensorFlow Serving in Docker."""

    def __init__(self, base, folder):
        self.base, self.folder = base, folder
        service = yaml.safe_load((folder / "docker-compose.yml").read_text())["services"]["server"]
        self.flags, self.image = service["command"], service["image"]
        self.ports = {"grpc": _free_port(), "http": _free_port()}
        self.name = f"aigc_tf-serve-check-{uuid.uuid4().hex[:8]}"
        self.log = open(base / "server.log", "w+")  # noqa: SIM115  closed with the server

    def start(self):
        if IN_DOCKER:
            folders = {"/config": self.folder / "server"}
            folders |= {f"/models/{name}": self.base / name for name in ("reviews", "writer")}
            ports = {self.ports["grpc"]: 8500, self.ports["http"]: 8501}
            command = ["docker", "run", "--detach", f"--name={self.name}"]
            command += ["--user=65534:65534", "--read-only", "--tmpfs=/tmp"]
            command += [f"--publish=127.0.0.1:{outside}:{inside}" for outside, inside in ports.items()]
            command += [f"--mount=type=bind,source={source},target={name},readonly" for name, source in folders.items()]
            command += ["--entrypoint=/usr/bin/tensorflow_model_server", self.image, *self.flags]
            subprocess.run(command, check=True, stdout=subprocess.DEVNULL, timeout=600)
        else:
            self._start_double()
        self._wait()

    def _start_double(self):
        config = (self.folder / "server" / "models.config").read_text()
        (self.base / "models.config").write_text(config.replace('"/models/', f'"{self.base}/'))
        here = {
            "--port": self.ports["grpc"],
            "--rest_api_port": self.ports["http"],
            "--model_config_file": self.base / "models.config",
            "--batching_parameters_file": self.folder / "server" / "batching.config",
        }
        flags = [f"{name}={here.get(name, value)}" for name, _, value in (flag.partition("=") for flag in self.flags)]
        command = [sys.executable, "-m", "aigc_tf.serving.double", *flags]
        self.process = subprocess.Popen(command, cwd=ROOT, stdout=self.log, stderr=self.log)

    def _wait(self):
        for _ in range(1200):
            if self.check_health().returncode == 0:
                return
            if not IN_DOCKER and self.process.poll() is not None:
                break
            time.sleep(0.1)
        pytest.fail(f"The server does not start: {self._log()}")

    def _log(self):
        if IN_DOCKER:
            return subprocess.run(["docker", "logs", self.name], capture_output=True, text=True).stderr[-3000:]
        self.log.seek(0)
        return self.log.read()[-3000:]

    def check_health(self):
        script = self.folder / "server" / "healthcheck.sh"
        command = ["bash", script, "127.0.0.1", str(self.ports["http"])]
        if IN_DOCKER:
            command = ["docker", "exec", self.name, "bash", "/config/healthcheck.sh"]
        return subprocess.run(command, capture_output=True, timeout=30)

    def stop_and_start(self):
        if IN_DOCKER:
            subprocess.run(["docker", "kill", self.name], check=True, stdout=subprocess.DEVNULL, timeout=60)
            subprocess.run(["docker", "start", self.name], check=True, stdout=subprocess.DEVNULL, timeout=60)
        else:
            self.process.kill()
            self.process.wait()
            self._start_double()

    def close(self):
        if IN_DOCKER:
            subprocess.run(["docker", "rm", "--force", self.name], stdout=subprocess.DEVNULL, timeout=60)
        else:
            self.process.terminate()
            self.process.wait(30)
        self.log.close()


def _free_port():
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        return unused.getsockname()[1]


@pytest.fixture(scope="module")
def running(models, folder):
    started = Running(models[0], folder)
    try:
        started.start()
        yield started
    finally:
        started.close()


@pytest.fixture(scope="module")
def server(models, running):
    urls = {kind: f"{kind}://127.0.0.1:{port}" for kind, port in running.ports.items()}
    return Server(urls=urls, expected=models[1])


# The double takes long over what is large or starts anew, and behind both protocols it is the same.
SLOW_PROTOCOLS = ["http", "grpc"] if IN_DOCKER else ["http"]


@pytest.mark.parametrize(
    ("case", "protocol"),
    [
        pytest.param(case, protocol, id=f"{case.__name__}-{protocol}")
        for case in CASES
        for protocol in (SLOW_PROTOCOLS if case is a_prompt_of_ten_megabytes_is_cut_from_the_left else ["http", "grpc"])
    ],
)
def test_a_client_gets_what_the_model_answers(server, case, protocol):
    case(server, protocol)


@pytest.mark.parametrize(("body", "status"), MALFORMED, ids=lambda value: repr(value)[:30])
def test_a_malformed_request_gets_an_error_and_the_server_goes_on(server, body, status):
    check_malformed(server, body, status)


def test_the_health_check_of_the_folder_sees_the_models(running, tmp_path):
    assert running.check_health().returncode == 0
    script = (running.folder / "server" / "healthcheck.sh").read_text()
    (tmp_path / "other.sh").write_text(script.replace("labels/stable", "labels/beta"))
    arguments = ["127.0.0.1", str(running.ports["http"])]
    assert subprocess.run(["bash", tmp_path / "other.sh", *arguments], capture_output=True).returncode == 1


@pytest.mark.parametrize("protocol", ["http", "grpc"])
def test_ask_prints_what_the_model_answers(server, protocol, capsys):
    asked = {"timeout": 60, "settings": {}}
    asking_server.ask(server.urls[protocol], "reviews", {"text": TEXTS * 3}, label="stable", **asked)
    rows = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [row["text"] for row in rows] == TEXTS * 3
    assert [row["label"] for row in rows] == server.expected["labels"] * 3
    assert set(rows[0]["probabilities"]) == set(LABELS)
    asking_server.ask(server.urls[protocol], "writer", {"prompt": PROMPTS[:1]}, **asked)
    assert capsys.readouterr().out == f"{PROMPTS[0]}{server.expected['defaults']['text'][0].decode()}\n"


@pytest.mark.parametrize("protocol", SLOW_PROTOCOLS)
def test_a_server_that_is_killed_and_comes_back_is_found_by_the_next_request(server, running, protocol):
    with server.connect(protocol, "reviews", label="stable") as client:
        before = client.predict({"text": ["a b c"]})
        running.stop_and_start()
        assert client.predict({"text": ["a b c"]}) == before


def test_without_docker_the_check_of_the_real_server_says_so_and_checks_nothing(tmp_path):
    (tmp_path / "docker").write_text("#!/bin/sh\nexit 1\n")
    (tmp_path / "docker").chmod(0o755)
    # Not those that this make gives to a make that it starts: the tests may be run by one.
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("MAKE", "MFLAGS"))}
    environment["PATH"] = f"{tmp_path}:{os.environ['PATH']}"
    done = subprocess.run(
        ["make", "serve-check"], cwd=ROOT, env=environment, capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 2
    assert done.stdout == ""
    assert done.stderr.splitlines()[0] == (
        "error: Docker does not run here (docker info fails), so nothing was checked; "
        "make test runs the same cases against the double."
    )
