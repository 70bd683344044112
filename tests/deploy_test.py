"""The files under deploy/ hold together, and the command in them exists."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from aigc_tf.cli import flags as flag_parsing
from aigc_tf.tasks import check_config

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def kubernetes():
    return list(yaml.safe_load_all((ROOT / "deploy" / "kubernetes" / "train-job.yaml").read_text()))


def test_the_job_and_its_service_fit_together(kubernetes):
    service, job = kubernetes
    assert (service["kind"], service["apiVersion"], job["kind"], job["apiVersion"]) == (
        "Service",
        "v1",
        "Job",
        "batch/v1",
    )
    pods = job["spec"]["template"]
    assert service["spec"]["clusterIP"] == "None"
    assert service["spec"]["publishNotReadyAddresses"] is True
    assert service["spec"]["selector"].items() <= pods["metadata"]["labels"].items()
    assert service["metadata"]["name"] == pods["spec"]["subdomain"]
    assert job["spec"]["completionMode"] == "Indexed"
    [container] = pods["spec"]["containers"]
    [environment] = container["env"]
    assert job["spec"]["completions"] == job["spec"]["parallelism"] == int(environment["value"])
    assert [port["port"] for port in service["spec"]["ports"]] == [port["containerPort"] for port in container["ports"]]
    mounted = {mount["name"] for mount in container["volumeMounts"]}
    assert mounted == {volume["name"] for volume in pods["spec"]["volumes"]}


def test_the_job_ends_and_starts_again_by_the_exit_statuses_of_the_scripts(kubernetes):
    job = kubernetes[1]["spec"]
    assert job["template"]["spec"]["restartPolicy"] == "Never"  # what podFailurePolicy wants
    assert job["template"]["spec"]["terminationGracePeriodSeconds"] >= 60
    by_status = {
        status: rule["action"]
        for rule in job["podFailurePolicy"]["rules"]
        for status in rule.get("onExitCodes", {}).get("values", [])
    }
    assert by_status == {2: "FailJob", 143: "Ignore"}
    names = [rule["onExitCodes"]["containerName"] for rule in job["podFailurePolicy"]["rules"] if "onExitCodes" in rule]
    assert set(names) == {job["template"]["spec"]["containers"][0]["name"]}


def test_the_script_of_a_pod_gives_the_worker_its_place_and_a_command_that_exists(kubernetes, tmp_path, monkeypatch):
    service, job = kubernetes
    [container] = job["spec"]["template"]["spec"]["containers"]
    replaced = tmp_path / "python"  # passes -c on, and shows what else it is asked to run
    shown = 'import json, os, sys; print(json.dumps([os.environ["TF_CONFIG"], sys.argv[1:]]))'
    replaced.write_text(
        f'#!/bin/sh\nif [ "$1" = -c ]; then exec {sys.executable} "$@"; fi\nexec {sys.executable} -c \'{shown}\' "$@"\n'
    )
    replaced.chmod(0o755)
    done = subprocess.run(
        [*container["command"], *container["args"]],
        env={
            "PATH": f"{tmp_path}:{os.environ['PATH']}",
            "JOB_COMPLETION_INDEX": "2",
            **{one["name"]: one["value"] for one in container["env"]},
        },
        capture_output=True,
        text=True,
        check=True,
    )
    place, (script, *flags) = json.loads(done.stdout)
    host = f"{job['metadata']['name']}-{{}}.{service['metadata']['name']}:{service['spec']['ports'][0]['port']}"
    assert json.loads(place) == {
        "cluster": {"worker": [host.format(index) for index in range(job["spec"]["completions"])]},
        "task": {"type": "worker", "index": 2},
    }
    assert (ROOT / script).exists()
    monkeypatch.chdir(ROOT)
    options = flag_parsing.parse([script, *flags], names=["config", "workdir"], description="")
    check_config(options.config)
