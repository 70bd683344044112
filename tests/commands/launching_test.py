"""The launcher, with commands that cost nothing: what each worker is told, how their ends become one status."""

import json
import os
import signal
import subprocess
import sys
import time

import pytest

from aigc_tf.cli import flags as flag_parsing
from aigc_tf.cli import scripts as cli
from aigc_tf.commands import launching
from aigc_tf.errors import InputError

# Shorter waits than a user gets, so that the test of an unwilling worker is short.
LAUNCH = """
import sys
from aigc_tf.commands import launching
launching.PATIENCE_SECONDS, launching.KILL_SECONDS = 0.3, 0.3
sys.exit(launching.launch([sys.executable, "-c", sys.argv[2]], int(sys.argv[1])))
"""
INDEX = "import json, os, sys, time; index = json.loads(os.environ['TF_CONFIG'])['task']['index']; "


def start(num_workers, program):
    return subprocess.Popen(
        [sys.executable, "-c", LAUNCH, str(num_workers), INDEX + program],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def run(num_workers, program):
    process = start(num_workers, program)
    output, errors = process.communicate(timeout=60)
    return process.returncode, output, errors


def test_each_worker_is_told_its_place_and_its_share():
    told = "json.dumps([index, os.environ['TF_CONFIG'], os.environ['OMP_NUM_THREADS']])"
    program = f"os.write(1, ({told} + chr(10)).encode())"  # whole lines, or those of two workers mix
    status, output, errors = run(3, program)
    assert (status, errors) == (0, "")
    lines = output.splitlines()
    assert sorted(line[:11] for line in lines if line.startswith("[worker ")) == ["[worker 1] ", "[worker 2] "]
    told = sorted(json.loads(line[line.index("] ") + 2 :] if line.startswith("[worker") else line) for line in lines)
    assert [index for index, _, _ in told] == [0, 1, 2]
    clusters = [json.loads(description)["cluster"] for _, description, _ in told]
    assert clusters[0] == clusters[1] == clusters[2]
    assert len(set(clusters[0]["worker"])) == 3
    assert {threads for _, _, threads in told} == {str(max(1, len(os.sched_getaffinity(0)) // 3))}


def test_gpus_are_shared_out_evenly_or_refused():
    shares = launching.worker_environments(2, {"CUDA_VISIBLE_DEVICES": "0,1,4,5"})
    assert [share["CUDA_VISIBLE_DEVICES"] for share in shares] == ["0,1", "4,5"]
    assert all(share["CUDA_VISIBLE_DEVICES"] == "" for share in launching.worker_environments(2, no_gpus()))
    with pytest.raises(InputError, match=r"^3 GPU\(s\) cannot be shared out evenly among 2 workers"):
        launching.worker_environments(2, {"CUDA_VISIBLE_DEVICES": "0,1,2"})


def no_gpus():
    return {"CUDA_VISIBLE_DEVICES": ""}


def test_what_the_user_has_set_of_threads_stays():
    [own] = launching.worker_environments(1, no_gpus() | {"OMP_NUM_THREADS": "7"})
    assert own["OMP_NUM_THREADS"] == "7"
    assert own["TF_NUM_INTRAOP_THREADS"] == str(len(os.sched_getaffinity(0)))


def test_the_status_is_that_of_the_first_worker_to_fail_and_the_others_are_ended():
    started = time.monotonic()
    status, _, errors = run(3, "time.sleep(0.2) or sys.exit(7) if index == 1 else time.sleep(100)")
    assert status == 7
    assert "worker 1 ended with status 7" in errors
    assert time.monotonic() - started < 50


def test_a_worker_that_ignores_sigterm_is_killed():
    stubborn = "import signal; signal.signal(signal.SIGTERM, signal.SIG_IGN); time.sleep(100)"
    status, _, errors = run(2, f"os.kill(os.getpid(), 9) if index else exec({stubborn!r})")
    assert status == 128 + 9
    assert "worker 1 was ended by SIGKILL" in errors


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_goes_to_all_and_none_is_hurried(number):
    """One worker leaves at once, the other takes longer than a failure's patience: it has a checkpoint to write."""
    program = (
        "import signal; say = lambda text: os.write(1, (text + chr(10)).encode()); "
        "leave = lambda number, _: (time.sleep(0 if index else 1.5), say(f'left {index}'), os._exit(128 + number)); "
        "signal.signal(signal.SIGTERM, leave); signal.signal(signal.SIGINT, leave); say('up'); time.sleep(100)"
    )
    process = start(2, program)
    for _ in range(2):
        assert process.stdout.readline().endswith("up\n")
    process.send_signal(number)
    output, _ = process.communicate(timeout=60)
    assert process.returncode == 128 + number
    assert sorted(output.splitlines()) == ["[worker 1] left 1", "left 0"]


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ([], "--num_workers is missing"),
        (["--num_workers=0", "--", "x"], "--num_workers is 0; give the number of processes to start, at least 1"),
        (["--num_workers=two", "--", "x"], "a whole number such as 1000 fits here"),
        (["--num_workers=2"], "There is no command to run; it comes after --"),
        (["--num_workers=2", "python", "x.py"], "after a separate --"),
        (["--num_workers=2", "--", "no-such-program"], "There is no program 'no-such-program'"),
    ],
)
def test_what_does_not_fit_is_one_sentence(arguments, sentence):
    with pytest.raises(InputError, match=sentence):
        cli.launch(flag_parsing.parse(["launch.py", *arguments], names=["num_workers", "command"], description=""))


def test_the_command_keeps_its_own_flags():
    given = ["launch.py", "--num_workers=2", "--", "python", "scripts/train.py", "--num_workers=5", "--", "x"]
    options = flag_parsing.parse(given, names=["num_workers", "command"], description="")
    assert (options.num_workers, options.command) == (2, given[3:])
