"""A rendered deployment folder: every file is read by the tool it is for, and what several files say is the same.

The exports are folders with a manifest and a file of a given size: rendering reads nothing else of them.
"""

import dataclasses
import fcntl
import http.server
import json
import os
import re
import runpy
import shutil
import socket
import subprocess
import sys
import tempfile
import threading
from pathlib import Path

import kubernetes_validate
import pytest
import yaml
from google.protobuf import text_format
from tensorflow_serving.config import model_server_config_pb2

from aigc_tf.config import SERVERS
from aigc_tf.errors import InputError
from aigc_tf.serving.deployment.deployment import (
    RELEASES,
    Version,
    render_deployment,
    required_memory,
    server_version,
    slug,
)
from aigc_tf.serving.deployment.server_configs import read_batching, read_monitoring

ROOT = Path(__file__).parents[3]
MIB = 2**20
FLOAT32 = {"dtype": "float32", "weights": "float32"}
GENERATES = {"task": "generate", "latency_seconds": 30, "timeout_seconds": 120}


def write_export(base, name, version, *, num_bytes=1000, **changes):
    """Writes what rendering reads of an exported version; a value of None takes a key away."""
    folder = Path(base) / name / str(version)
    folder.mkdir(parents=True)
    (folder / "saved_model.pb").write_bytes(b"\0" * num_bytes)
    manifest = {
        "name": name,
        "version": version,
        "task": "classify",
        "latency_seconds": 1,
        "timeout_seconds": 30,
        "target": "2.20",
        "batch_sizes": [1, 2, 4, 8],
        **FLOAT32,
        "num_parameters": 1234567,
        "identity": f"{name}-{version}",
        "versions": {"tensorflow": "2.21.0"},
        **changes,
    }
    manifest = {key: value for key, value in manifest.items() if value is not None}
    (folder / "manifest.json").write_text(json.dumps(manifest))
    return str(Path(base) / name)


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    """Exported models in a folder with a name that every file format has to quote."""
    folder = tmp_path_factory.mktemp("models") / 'o\'ne "two" $HOME: #三 \\ {{x}}'
    write_export(folder, "reviews", 1, batch_sizes=[1, 4, 16])
    write_export(folder, "reviews", 2, batch_sizes=[1, 2, 4])
    write_export(folder, "Größe-1.0_b", 3, batch_sizes=[4, 1], **GENERATES)
    return folder


@pytest.fixture(scope="module")
def rendered(base):
    output = base / "out" / "Two models"
    models = [str(base / "reviews"), f"{base / 'Größe-1.0_b'}/"]
    line = render_deployment(models, output=str(output), stable=["reviews:1"], canary=["reviews:2"])
    assert line == (
        f"{output} is for TensorFlow Serving 2.20.0: reviews, stable 1, canary 2; Größe-1.0_b, stable 3. "
        "Its README.md says how to start it."
    )
    return output


@pytest.fixture(scope="session")
def promtool():
    """Prometheus' own checker: of the PATH, or unpacked from Debian's package into the cache, once."""
    found = shutil.which("promtool")
    if found:
        return found
    if not shutil.which("apt-get") or not shutil.which("dpkg"):
        pytest.skip("there is no promtool on the PATH, and no apt to fetch it with")
    folder = Path(os.environ.get("AIGC_TF_CACHE") or Path.home() / ".cache" / "aigc_tf") / "tools"
    folder.mkdir(parents=True, exist_ok=True)
    with open(folder / ".promtool.lock", "w") as lock, tempfile.TemporaryDirectory() as scratch:
        fcntl.flock(lock, fcntl.LOCK_EX)  # tests run in several processes
        if not (folder / "promtool").exists():
            command = ["apt-get", "download", "--quiet", "prometheus"]
            done = subprocess.run(command, cwd=scratch, capture_output=True, text=True, timeout=120)
            if done.returncode:
                pytest.skip(f"there is no promtool on the PATH, and apt fetches none: {done.stderr.strip()[-200:]}")
            [package] = Path(scratch).glob("*.deb")
            subprocess.run(["dpkg", "--extract", package, f"{scratch}/package"], check=True, timeout=60)
            shutil.copy(f"{scratch}/package/usr/bin/promtool", folder / "promtool.partial")
            (folder / "promtool.partial").rename(folder / "promtool")
    return str(folder / "promtool")


# ----------------------------------------------------------------------------------------- one linter for each format


def lint_server(folder):
    text = (folder / "server" / "models.config").read_text(encoding="utf-8")
    config = text_format.Parse(text, model_server_config_pb2.ModelServerConfig())
    for model in config.model_config_list.config:
        assert model.base_path == f"/models/{model.name}"
        assert set(model.version_labels.values()) == set(model.model_version_policy.specific.versions)
    read_batching((folder / "server" / "batching.config").read_text(), name="batching.config")
    monitoring = read_monitoring((folder / "server" / "monitoring.config").read_text(), name="monitoring.config")
    assert monitoring.prometheus_config.enable


def lint_compose(folder):
    command = [sys.executable, "-m", "check_jsonschema", "--builtin-schema", "vendor.compose-spec"]
    files = [folder / "docker-compose.yml", folder / "docker-compose.gpu.yml"]
    done = subprocess.run([*command, *files], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stdout


def lint_kubernetes(folder):
    kustomization = yaml.safe_load((folder / "kustomization.yaml").read_text())
    assert set(kustomization) == {"apiVersion", "kind", "resources", "images", "configMapGenerator"}
    named = [*kustomization["resources"], *(f for one in kustomization["configMapGenerator"] for f in one["files"])]
    assert all((folder / name).is_file() for name in named)
    for name in kustomization["resources"]:
        for document in yaml.safe_load_all((folder / name).read_text()):
            kubernetes_validate.validate(document, "1.37", strict=True)


def lint_prometheus(folder, promtool):
    for arguments in (("check", "config", "prometheus.yml"), ("check", "rules"), ("test", "rules")):
        file = {"check": "alerts.yml", "test": "alerts.test.yml"}[arguments[0]]
        command = [promtool, *arguments] if len(arguments) == 3 else [promtool, *arguments, file]
        done = subprocess.run(command, cwd=folder / "prometheus", capture_output=True, text=True, timeout=60)
        assert done.returncode == 0, done.stdout + done.stderr


def lint_script(folder):
    subprocess.run(["bash", "-n", folder / "server" / "healthcheck.sh"], check=True, timeout=10)


def dockerfile(folder):
    """Returns the instructions of a Dockerfile: pairs of word and rest, lines joined."""
    lines = (folder / "Dockerfile.model").read_text(encoding="utf-8").replace("\\\n", " ").splitlines()
    return [tuple(line.split(maxsplit=1)) for line in lines if line and not line.startswith("#")]


def lint_dockerfile(folder):
    instructions = dockerfile(folder)
    assert [word for word, _ in instructions if word != "COPY"] == ["FROM", "USER", "HEALTHCHECK", "ENTRYPOINT", "CMD"]
    for word, rest in instructions:
        if word in ("COPY", "ENTRYPOINT", "CMD"):
            assert all(isinstance(item, str) for item in json.loads(rest[rest.index("[") :]))


def test_every_file_is_what_its_reader_takes(rendered):
    lint_server(rendered)
    lint_compose(rendered)
    lint_kubernetes(rendered)
    lint_script(rendered)
    lint_dockerfile(rendered)


def test_alerts_fire_when_they_should_and_only_then(rendered, promtool):
    lint_prometheus(rendered, promtool)


@pytest.mark.parametrize(
    ("lint", "file", "right", "wrong"),
    [
        (lint_server, "server/models.config", "base_path", "base_pth"),
        (lint_server, "server/models.config", "value: 2", "value: 7"),
        (lint_server, "server/batching.config", "allowed_batch_sizes: 4", "allowed_batch_sizes: 3"),
        (lint_server, "server/batching.config", "batch_timeout_micros", "batch_timeout_millis"),
        (lint_server, "server/monitoring.config", "enable: true", 'enable: "yes"'),
        (lint_compose, "docker-compose.yml", "read_only: true\n    tmpfs", "read_olny: true\n    tmpfs"),
        (lint_kubernetes, "kubernetes/deployment.yaml", "readinessProbe", "readynessProbe"),
        (lint_kubernetes, "kustomization.yaml", "server/healthcheck.sh", "server/health.sh"),
        (lint_script, "server/healthcheck.sh", "answers() {", "answers( {"),
        (lint_dockerfile, "Dockerfile.model", '"--port=8500",', "'--port=8500',"),
        (lint_prometheus, "prometheus/prometheus.yml", "scrape_configs", "scrape_config"),
        (lint_prometheus, "prometheus/alerts.yml", "[5m]", "[5x]"),
        (lint_prometheus, "prometheus/alerts.yml", ',API!=""', ""),
        (lint_prometheus, "prometheus/alerts.yml", "|INVALID_ARGUMENT", ""),
        (lint_prometheus, "prometheus/alerts.yml", "unless", "and"),
    ],
)
def test_a_broken_file_is_noticed(rendered, tmp_path, promtool, lint, file, right, wrong):
    broken = tmp_path / "broken"
    shutil.copytree(rendered, broken)
    text = (broken / file).read_text(encoding="utf-8")
    assert right in text
    (broken / file).write_text(text.replace(right, wrong), encoding="utf-8")
    with pytest.raises(
        (
            AssertionError,
            InputError,
            text_format.ParseError,
            ValueError,
            subprocess.CalledProcessError,
            kubernetes_validate.ValidationError,
        )
    ):
        lint(broken, promtool) if lint is lint_prometheus else lint(broken)


# ----------------------------------------------------------------------------- what several files say is one thing


def test_the_configs_name_models_versions_labels_and_the_batch_sizes_that_all_were_warmed_up_for(rendered):
    text = (rendered / "server" / "models.config").read_text(encoding="utf-8")
    parsed = text_format.Parse(text, model_server_config_pb2.ModelServerConfig())
    served = {model.name: dict(model.version_labels) for model in parsed.model_config_list.config}
    assert served == {"reviews": {"stable": 1, "canary": 2}, "Größe-1.0_b": {"stable": 3}}
    batching = read_batching((rendered / "server" / "batching.config").read_text(), name="batching.config")
    assert list(batching.allowed_batch_sizes) == [1, 4]  # of 1 4 16, 1 2 4 and 4 1
    assert batching.max_batch_size.value == 4
    monitoring = read_monitoring((rendered / "server" / "monitoring.config").read_text(), name="monitoring.config")
    scraped = yaml.safe_load((rendered / "prometheus" / "prometheus.yml").read_text())["scrape_configs"][0]
    assert monitoring.prometheus_config.path == scraped["metrics_path"]


def test_the_server_gets_the_same_flags_everywhere_and_the_readme_explains_each(rendered):
    compose = yaml.safe_load((rendered / "docker-compose.yml").read_text(encoding="utf-8"))["services"]["server"]
    [container] = _pod(rendered)["containers"]
    by_word = dict(dockerfile(rendered))
    assert compose["command"] == container["args"] == json.loads(by_word["CMD"])
    assert compose["entrypoint"] == container["command"] == json.loads(by_word["ENTRYPOINT"])
    assert by_word["FROM"] == compose["image"] == "tensorflow/serving:2.20.0"
    gpu = yaml.safe_load((rendered / "docker-compose.gpu.yml").read_text())["services"]["server"]
    assert gpu["image"] == "tensorflow/serving:2.20.0-gpu"
    readme = (rendered / "README.md").read_text(encoding="utf-8")
    files = dict(flag.removeprefix("--").split("=", 1) for flag in compose["command"])
    for flag in compose["command"]:
        assert f"| `{flag}` | " in readme
    for name in ("model_config_file", "batching_parameters_file", "monitoring_config_file"):
        assert (rendered / "server" / files[name].removeprefix("/config/")).is_file()
    assert files["rest_api_timeout_in_ms"] == "120000"  # there is a generator


def test_the_readme_names_every_file_and_leaves_no_placeholder(rendered):
    readme = (rendered / "README.md").read_text(encoding="utf-8")
    for path in rendered.rglob("*"):
        if path.is_file():
            name = path.relative_to(rendered).as_posix()
            assert f"`{name}`" in readme or f"`{path.parent.name}/`" in readme or name == "README.md", name
            assert "${{" not in path.read_text(encoding="utf-8")
            assert "{%" not in path.read_text(encoding="utf-8")
    assert "| reviews | canary | 2 | classify | float32 | 0 MiB | 1,234,567 | 2.21.0 |" in readme


def test_containers_see_the_models_whatever_their_folder_is_called(rendered, base):
    compose = yaml.safe_load((rendered / "docker-compose.yml").read_text(encoding="utf-8"))["services"]["server"]
    mounted = {volume["target"]: volume for volume in compose["volumes"]}
    assert all(volume["read_only"] for volume in compose["volumes"])
    for name in ("reviews", "Größe-1.0_b"):
        source = mounted[f"/models/{name}"]["source"].replace("$$", "$")  # Compose takes $ for a variable
        assert (rendered / source).resolve() == (base / name).resolve()
    copied = [rest for word, rest in dockerfile(rendered) if word == "COPY"]
    targets = [json.loads(rest[rest.index("[") :])[1] for rest in copied]
    assert targets == ["/models/reviews/1/", "/models/reviews/2/", "/models/Größe-1.0_b/3/", "/config/"]
    [build] = [
        line
        for line in (rendered / "README.md").read_text(encoding="utf-8").splitlines()
        if line.startswith("docker build")
    ]
    shown = 'docker() { for a in "$@"; do echo "$a"; done; }; ' + build  # as a shell hands it over
    handed = subprocess.run(["bash", "-c", shown], cwd=rendered, capture_output=True, text=True, check=True).stdout
    contexts = re.findall(r"^model\d=(.*)$", handed, flags=re.M)
    assert [(rendered / context).resolve() for context in contexts] == [base / "reviews", base / "Größe-1.0_b"]


def _pod(folder):
    return yaml.safe_load((folder / "kubernetes" / "deployment.yaml").read_text())["spec"]["template"]["spec"]


def test_pods_are_probed_by_the_answer_drain_and_have_few_rights(rendered):
    pod = _pod(rendered)
    [container] = pod["containers"]
    check = {"command": ["bash", "/config/healthcheck.sh"]}
    assert container["startupProbe"]["exec"] == container["readinessProbe"]["exec"] == check
    assert container["livenessProbe"]["grpc"] == {"port": 8500}
    assert "--enable_grpc_healthcheck_service=true" in container["args"]
    drained = int(container["lifecycle"]["preStop"]["exec"]["command"][1])
    assert f"--rest_api_timeout_in_ms={drained * 1000}" in container["args"]
    assert drained < pod["terminationGracePeriodSeconds"]
    assert container["resources"]["requests"]["memory"] == container["resources"]["limits"]["memory"]
    assert pod["securityContext"]["runAsNonRoot"]
    assert container["securityContext"]["readOnlyRootFilesystem"]
    mounted = {mount["name"] for mount in container["volumeMounts"]}
    assert mounted == {volume["name"] for volume in pod["volumes"]}


def test_the_parts_of_the_cluster_mean_the_same_pods(rendered):
    parts = {path.stem: yaml.safe_load(path.read_text()) for path in (rendered / "kubernetes").glob("*.yaml")}
    labels = parts["deployment"]["spec"]["template"]["metadata"]["labels"]
    assert labels == {"app.kubernetes.io/name": "two-models"}
    assert parts["deployment"]["spec"]["selector"]["matchLabels"] == labels
    assert parts["service"]["spec"]["selector"] == labels
    assert parts["disruption-budget"]["spec"]["selector"]["matchLabels"] == labels
    assert parts["network-policy"]["spec"]["podSelector"]["matchLabels"] == labels
    assert parts["autoscaler"]["spec"]["scaleTargetRef"]["name"] == parts["deployment"]["metadata"]["name"]
    ports = {port["name"] for port in parts["deployment"]["spec"]["template"]["spec"]["containers"][0]["ports"]}
    assert {port["targetPort"] for port in parts["service"]["spec"]["ports"]} == ports
    kustomization = yaml.safe_load((rendered / "kustomization.yaml").read_text())
    generated = [one["name"] for one in kustomization["configMapGenerator"]]
    sources = _pod(rendered)["volumes"][0]["projected"]["sources"]
    assert [source["configMap"]["name"] for source in sources] == generated
    assert kustomization["images"][0]["name"] == _pod(rendered)["containers"][0]["image"]


@pytest.mark.skipif(not shutil.which("kubectl"), reason="there is no kubectl to run kustomize with")
def test_kustomize_puts_the_parts_together(rendered):
    done = subprocess.run(["kubectl", "kustomize", rendered], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    documents = list(yaml.safe_load_all(done.stdout))
    for document in documents:
        kubernetes_validate.validate(document, "1.37", strict=True)
    maps = {document["metadata"]["name"]: document["data"] for document in documents if document["kind"] == "ConfigMap"}
    assert maps["two-models-models"] == {"models.config": (rendered / "server" / "models.config").read_text()}
    [settings] = [name for name in maps if name.startswith("two-models-server-")]  # a hash follows
    [deployment] = [document for document in documents if document["kind"] == "Deployment"]
    sources = deployment["spec"]["template"]["spec"]["volumes"][0]["projected"]["sources"]
    assert [source["configMap"]["name"] for source in sources] == ["two-models-models", settings]


def test_a_label_that_moves_changes_neither_image_nor_settings_of_the_server(base, tmp_path):
    for name, stable, canary in (("before", "1", "2"), ("after", "2", "1")):
        render_deployment([str(base / "reviews")], output=str(tmp_path / name / "x"), stable=[stable], canary=[canary])
    changed = {
        path.relative_to(tmp_path / "before").as_posix()
        for path in (tmp_path / "before").rglob("*")
        if path.is_file()
        and path.read_bytes() != (tmp_path / "after" / path.relative_to(tmp_path / "before")).read_bytes()
    }
    assert changed == {"x/server/models.config", "x/README.md", "x/Dockerfile.model"}


# --------------------------------------------------------------------------------------------------- the health check


@pytest.fixture
def server():
    """A server of fixed pages that answers as TensorFlow Serving does; returns its port and the pages."""
    pages = {}

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            status, page = pages.get(self.path, (404, {"error": f"Malformed request: GET {self.path}"}))
            body = json.dumps(page, indent=1).encode()
            self.send_response(status)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *args):
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as running:
        thread = threading.Thread(target=running.serve_forever, daemon=True)
        thread.start()
        yield running.server_port, pages
        running.shutdown()


STABLE = "/v1/models/reviews/labels/stable"
STABLE_B = "/v1/models/Gr%C3%B6%C3%9Fe-1.0_b/labels/stable"
# The same page in all states: HTTP 200, and the label is left out of account (get_model_status_impl.cc).
LOADING = (
    200,
    {"model_version_status": [{"version": "1", "state": "LOADING"}, {"version": "9", "state": "AVAILABLE"}]},
)
SIGNATURES = (200, {"model_spec": {"name": "x"}, "metadata": {"signature_def": {"filler": "." * 100_000}}})
NOT_LOADED = (404, {"error": "Servable not found for request: Specific(reviews, 1)"})


def check(folder, port):
    done = subprocess.run(
        ["bash", folder / "server" / "healthcheck.sh", "127.0.0.1", str(port)],
        capture_output=True,
        text=True,
        timeout=30,
    )
    return done.returncode, done.stderr


def test_the_health_check_passes_when_every_stable_label_answers(rendered, server):
    port, pages = server
    pages |= {f"{STABLE}/metadata": SIGNATURES, f"{STABLE_B}/metadata": SIGNATURES}
    assert check(rendered, port) == (0, "")


def test_the_health_check_fails_while_one_of_the_models_loads_though_its_status_page_is_fine(rendered, server):
    port, pages = server
    pages |= {STABLE: LOADING, STABLE_B: LOADING, f"{STABLE}/metadata": SIGNATURES, f"{STABLE_B}/metadata": NOT_LOADED}
    status, said = check(rendered, port)
    assert status == 1
    assert said == f"{STABLE_B}/metadata is not available\n"


def test_the_health_check_fails_when_a_page_is_200_and_says_nothing(rendered, server):
    port, pages = server
    pages |= {f"{STABLE}/metadata": (200, {}), f"{STABLE_B}/metadata": SIGNATURES}
    assert check(rendered, port)[0] == 1


def test_the_health_check_fails_when_nothing_listens(rendered):
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))  # and does not listen
        assert check(rendered, unused.getsockname()[1])[0] == 1


def test_the_health_check_fails_when_the_server_is_silent(rendered):
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        silent.listen()
        assert check(rendered, silent.getsockname()[1])[0] == 1  # after 4 s, and not never


# ---------------------------------------------------------------------------------------------------- numbers and names


def test_a_folder_whose_number_has_zeros_before_it_is_copied_as_the_version_a_server_takes_it_for(tmp_path):
    model = write_export(tmp_path, "m", "0001")
    render_deployment([model], output=str(tmp_path / "served"))
    assert '["0001/", "/models/m/1/"]' in (tmp_path / "served" / "Dockerfile.model").read_text()
    assert "versions: 1 " in (tmp_path / "served" / "server" / "models.config").read_text()


def test_memory_is_by_the_rule_of_the_page():
    classifier = Version(label="stable", number=1, folder="1", num_bytes=100 * MIB, manifest=FLOAT32)
    sizes = {"num_layers": 12, "hidden_dim": 768, "num_positions": 1024}
    generator = dataclasses.replace(
        classifier, num_bytes=500 * MIB, manifest={"architecture": {"sizes": sizes}, **FLOAT32}
    )
    # 512 + 2 * (256 + 150) = 1324, up to 1536
    assert required_memory([classifier], rows=16) == 1536 * MIB
    # keys and values: 2 * 12 * 768 * 1024 * 4 bytes = 72 MiB a row; 256 + 750 + 2 * 16 * 72 = 3310
    # 512 + 2 * 3310 = 7132, up to 7168; with the classifier's 406 more 7538, up to 7680
    assert required_memory([generator], rows=16) == 7168 * MIB
    assert required_memory([generator, classifier], rows=16) == 7680 * MIB
    # restored by each of two batches: 256 + 150 + 2 * 400 = 1206; 512 + 2 * 1206 = 2924, up to 3072
    small = {"weights": "int8", "dtype": "float32", "num_parameters": 100 * MIB}
    restoring = dataclasses.replace(classifier, manifest=small)
    assert required_memory([restoring], rows=16, batches=2) == 3072 * MIB
    unchanged = dataclasses.replace(restoring, manifest=small | {"weights": "bfloat16", "dtype": "bfloat16"})
    assert required_memory([unchanged], rows=16, batches=2) == 1536 * MIB


def test_the_newest_target_decides_the_server():
    assert set(RELEASES) == set(SERVERS)
    assert server_version(["2.19"]) == "2.19.1"
    assert server_version(["2.20", "2.19"]) == "2.20.0"
    with pytest.raises(InputError, match=r"exported for the target '2\.3'; known are 2\.19, 2\.20, 2\.21\."):
        server_version(["2.3"])


@pytest.mark.parametrize(
    ("name", "plain"),
    [("Two models", "two-models"), ("中文", "serving"), ("3b", "serving-3b"), ("a" * 50, "a" * 40), ("x_", "x")],
)
def test_names_become_what_kubernetes_takes(name, plain):
    assert slug(name) == plain


def test_a_dollar_in_a_path_is_no_variable_of_compose(tmp_path):
    write_export(tmp_path / "a $HOME ü", "m", 1)
    render_deployment([str(tmp_path / "a $HOME ü" / "m")], output=str(tmp_path / "serving"))
    compose = yaml.safe_load((tmp_path / "serving" / "docker-compose.yml").read_text(encoding="utf-8"))
    assert "../a $$HOME ü/m" in [volume["source"] for volume in compose["services"]["server"]["volumes"]]


def test_without_labels_the_newest_version_is_stable_and_eight_rows_are_a_batch(tmp_path):
    for version in (2, 10, 9):
        write_export(tmp_path, "m", version)
    render_deployment([str(tmp_path / "m")], output=str(tmp_path / "out"))
    text = (tmp_path / "out" / "server" / "models.config").read_text()
    assert 'specific { versions: 10 } }\n    version_labels { key: "stable" value: 10 }\n' in text
    batching = read_batching((tmp_path / "out" / "server" / "batching.config").read_text(), name="x")
    assert list(batching.allowed_batch_sizes) == [1, 2, 4, 8]


def test_a_measured_batching_file_is_taken_as_it_is_and_decides_cpus_and_memory(tmp_path):
    write_export(tmp_path, "m", 1, num_bytes=MIB)
    measured = "# measured\nmax_batch_size { value: 32 }\nnum_batch_threads { value: 6 }\nallowed_batch_sizes: 32\n"
    (tmp_path / "best.config").write_text(measured)
    render_deployment([str(tmp_path / "m")], output=str(tmp_path / "out"), batching=str(tmp_path / "best.config"))
    assert (tmp_path / "out" / "server" / "batching.config").read_text() == measured
    assert _pod(tmp_path / "out")["containers"][0]["resources"]["requests"]["cpu"] == "6"
    assert "twice the keys and values of 6 batches of 32" in (tmp_path / "out" / "README.md").read_text()


# ------------------------------------------------------------------------------------------------------- the script


def test_the_script_renders_what_its_flags_say_and_tells_what_is_mistyped(tmp_path, monkeypatch, capsys):
    for name in ("a", "b"):
        for version in (1, 2):
            write_export(tmp_path, name, version)
    monkeypatch.chdir(tmp_path)

    def run(*arguments):
        monkeypatch.setattr(sys, "argv", ["scripts/render_deployment.py", *arguments])
        with pytest.raises(SystemExit) as stopped:
            runpy.run_path(str(ROOT / "scripts" / "render_deployment.py"), run_name="__main__")
        return int(stopped.value.code or 0), *capsys.readouterr()

    labels = ["--stable=a:1", "--canary", "a:2", "--stable=b:2"]
    assert run("--model=a", "--model=b/", *labels, "--output=out/x") == (
        0,
        "out/x is for TensorFlow Serving 2.20.0: a, stable 1, canary 2; b, stable 2. "
        "Its README.md says how to start it.\n",
        "",
    )
    status, shown, _ = run("--help")
    assert status == 0
    assert "--model=FOLDER" in shown
    assert "--output=FOLDER" in shown
    for flags, sentence in (
        (["--model=a"], "--output is missing: Folder to write, such as deploy/reviews"),
        (["--output=y"], "--model is missing: a folder of an exported model"),
        (["--model=c", "--output=y"], "There is no model c."),
        (["--model=a", "--output=y", "--batching=z"], "There is no file z."),
        (["--model=a", "--outptu=y"], "There is no flag --outptu. Did you mean --output?"),
        (["--model=a", "--output=out/x"], "out/x is there already; nothing was overwritten."),
    ):
        status, shown, said = run(*flags)
        assert (status, shown) == (2, "")
        assert said.startswith(f"error: {sentence}")
        assert said.count("\n") == 1


# ------------------------------------------------------------------------------------------------------ what is wrong


@pytest.mark.parametrize(
    ("models", "options", "sentence"),
    [
        ([], {}, "--model is missing: a folder of an exported model such as saved_models/bert_sentiment."),
        (["good/1"], {}, "good/1 holds no version of an exported model; give the folder above the version numbers"),
        (["good", "more/good"], {}, "Two of the models are called 'good', and a server needs unique names"),
        (["gs://bucket/m"], {}, "gs://bucket/m is on an object store; copy the model to a disk"),
        (["a b"], {}, "The model's name is 'a b'; a name has only letters, digits, '_', '-' and '.'"),
        (["a:b"], {}, "The model's name is 'a:b'; a name has only letters, digits, '_', '-' and '.'"),
        (["in\nside/m"], {}, "has a character that config files cannot hold; rename the folder."),
        (["good"], {"stable": ["3"]}, "--stable: good has no version 3; it has 1, 2."),
        (["good"], {"stable": ["x"]}, "--stable=x: give a version such as 3, or NAME:3 if there are several models."),
        (["good"], {"stable": ["-1"]}, "--stable=-1: give a version such as 3"),
        (["good"], {"stable": ["2"], "canary": ["2"]}, "The labels stable and canary of good are both version 2"),
        (["good"], {"canary": ["2"]}, "(without --stable that is the newest)"),
        (["good"], {"canary": ["1", "2"]}, "--canary is given twice for good; a label belongs to one version."),
        (["good", "other"], {"stable": ["1"]}, "--stable=1 does not name the model; write --stable=good:1."),
        (["good"], {"stable": ["bad:1"]}, "--stable=bad:1: there is no model 'bad' among good."),
        (["good"], {"output": "gs://bucket/out"}, "--output gs://bucket/out is on an object store"),
        (["good"], {"output": "."}, "--output . gives the deployment no name"),
        (["good"], {"output": "../", "overwrite": True}, "--output ../ gives the deployment no name"),
        (["good"], {"output": "good"}, "good is there already; nothing was overwritten."),
        (["good"], {"batching": "good"}, "--batching good cannot be read"),
        (["none"], {}, "There is no file none/1/manifest.json."),
        (["old"], {}, "old/1/manifest.json lacks 'task'; export the model again."),
        (["list"], {}, "list/1/manifest.json lacks 'task'; export the model again."),
        (["earlier"], {}, "earlier/1/manifest.json lacks 'latency_seconds'; export the model again."),
        (["mixed"], {"canary": ["1"]}, "The versions of mixed are of the tasks classify and generate"),
        (["good", "apart"], {}, "The models have no common batch size"),
        (["future"], {}, "A model is exported for the target '9.9'; known are 2.19, 2.20, 2.21."),
    ],
)
def test_what_does_not_fit_is_one_sentence_and_nothing_is_written(tmp_path, monkeypatch, models, options, sentence):
    monkeypatch.chdir(tmp_path)
    for name in ("good", "more/good", "other", "a b", "a:b", "in\nside/m"):
        for version in (1, 2):
            write_export(tmp_path, name, version)
    write_export(tmp_path, "old", 1, task=None)
    write_export(tmp_path, "earlier", 1, latency_seconds=None)
    write_export(tmp_path, "mixed", 1, **GENERATES)
    write_export(tmp_path, "mixed", 2)
    write_export(tmp_path, "apart", 1, batch_sizes=[3])
    write_export(tmp_path, "future", 1, target="9.9")
    write_export(tmp_path, "none", 1)
    (tmp_path / "none" / "1" / "manifest.json").unlink()
    write_export(tmp_path, "list", 1)
    (tmp_path / "list" / "1" / "manifest.json").write_text("[]")
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(InputError) as refused:
        render_deployment(models, **{"output": "out", **options})
    assert sentence in str(refused.value)
    assert "\n" not in str(refused.value)
    assert sorted(tmp_path.rglob("*")) == before


def test_a_folder_that_is_there_is_replaced_as_a_whole_with_overwrite_only(tmp_path):
    write_export(tmp_path, "m", 1)
    (tmp_path / "out").mkdir()
    model, output = [str(tmp_path / "m")], str(tmp_path / "out")
    render_deployment(model, output=output, overwrite=True)
    (tmp_path / "out" / "mine.txt").write_text("mine")
    with pytest.raises(InputError, match="Give --overwrite to replace it"):
        render_deployment(model, output=output)
    assert (tmp_path / "out" / "mine.txt").exists()
    render_deployment(model, output=output, overwrite=True)
    assert not (tmp_path / "out" / "mine.txt").exists()
    assert (tmp_path / "out" / "server" / "models.config").exists()


@pytest.mark.parametrize("output", ["work", "m"])
def test_a_folder_that_is_no_deployment_is_not_replaced_with_overwrite_either(tmp_path, monkeypatch, output):
    write_export(tmp_path, "m", 1)
    (tmp_path / "work").mkdir()
    (tmp_path / "work" / "mine.txt").write_text("mine")
    monkeypatch.chdir(tmp_path)
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(InputError, match=r"holds other files than a deployment \(no server/models.config\)"):
        render_deployment(["m"], output=output, overwrite=True)
    assert sorted(tmp_path.rglob("*")) == before


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("max_batch_sze { value: 8 }", "is not a BatchingParameters of TensorFlow Serving (1:1"),
        ("max_batch_size: 8", "is not a BatchingParameters of TensorFlow Serving"),
        ("", "has no max_batch_size of at least 1"),
        ("max_batch_size { value: 0 }", "has no max_batch_size of at least 1"),
        ("max_batch_size { value: 8 } allowed_batch_sizes: 4", "has 4 as the last of allowed_batch_sizes and 8 as"),
        ("max_batch_size { value: 2 } allowed_batch_sizes: [4, 2]", "[4, 2]; they must ascend and start at 1 or more."),
        ("max_batch_size { value: 2 } allowed_batch_sizes: [0, 2]", "[0, 2]; they must ascend and start at 1 or more."),
        (
            "max_batch_size { value: 2 } num_batch_threads { value: 0 }",
            "has num_batch_threads 0; it must be at least",
        ),
        (
            "max_batch_size { value: 8 } allowed_batch_sizes: 8 enable_large_batch_splitting { value: true }",
            "has max_execution_batch_size 0;",
        ),
    ],
)
def test_a_batching_file_that_the_server_would_refuse_is_refused(text, sentence):
    with pytest.raises(InputError, match=re.escape(sentence)):
        read_batching(text, name="best.config")


def test_rendering_needs_no_tensorflow_and_the_package_brings_the_templates(tmp_path):
    code = (
        "import sys; from aigc_tf.serving import deployment; "
        "assert not {'tensorflow', 'keras', 'numpy'} & set(sys.modules), sorted(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True, timeout=60)
    build = [
        sys.executable,
        "setup.py",
        "-q",
        "build",
        "--build-base",
        tmp_path / "b",
        "egg_info",
        "--egg-base",
        tmp_path,
    ]
    subprocess.run(build, cwd=ROOT, check=True, timeout=60, capture_output=True)
    templates = ROOT / "aigc_tf" / "serving" / "deployment" / "deployment_templates"
    packed = tmp_path / "b" / "lib" / "aigc_tf" / "serving" / "deployment" / "deployment_templates"
    assert {path.relative_to(templates) for path in templates.rglob("*")} == {
        path.relative_to(packed) for path in packed.rglob("*")
    }
