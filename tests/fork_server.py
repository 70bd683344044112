"""Training processes that start in a moment: TensorFlow is imported once, and each process is forked from there.

A process runs scripts/train.py's command with arguments and environment of its own, and can be killed like any other.
"""

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

SERVER = """
import json, os, sys
sys.path.insert(0, os.getcwd())
os.environ["TF_CPP_MIN_LOG_LEVEL"] = "3"
from aigc_tf.cli import running
from aigc_tf.cli import scripts as cli
from aigc_tf.commands import train  # not initialised yet: that happens in each child

def train(arguments, environment, log):
    os.setsid()
    os.environ.update(environment)
    for number in (1, 2):
        os.dup2(os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND), number)
    sys.stdin = open(os.devnull)
    sys.argv = ["scripts/train.py", *arguments]
    try:
        running.run(cli.train, flags=("config", "workdir", "dry_run", "device"), description="Trains.")
    except SystemExit as end:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(end.code or 0)

for line in sys.stdin:
    request = json.loads(line)
    if "wait" in request:
        _, status = os.waitpid(request["wait"], 0)
        print(os.waitstatus_to_exitcode(status), flush=True)
        continue
    child = os.fork()
    if not child:
        train(**request)
    print(child, flush=True)
"""


class Training:
    """A training process."""

    def __init__(self, server, pid, log):
        self._server, self.pid, self.log = server, pid, Path(log)

    def kill(self, signal_number=signal.SIGKILL):
        with contextlib.suppress(ProcessLookupError):
            os.kill(self.pid, signal_number)

    def wait(self):
        """Returns the exit status once the process has ended: negative for a signal."""
        return self._server.ask({"wait": self.pid})


class ForkServer:
    """Starts training processes. A context manager; it takes about as long to start as TensorFlow takes to import."""

    def __enter__(self):
        self._process = subprocess.Popen(
            [sys.executable, "-c", SERVER],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env={name: value for name, value in os.environ.items() if name != "TF_CONFIG"},
        )
        return self

    def __exit__(self, *error):
        self._process.stdin.close()
        self._process.terminate()
        self._process.wait()

    def ask(self, request):
        self._process.stdin.write(json.dumps(request) + "\n")
        self._process.stdin.flush()
        return int(self._process.stdout.readline())

    def train(self, *arguments, log, **environment):
        return Training(self, self.ask({"arguments": arguments, "environment": environment, "log": str(log)}), log)


def wait_for(condition, what, *, training=None, seconds=240):
    """Waits until a condition holds; fails with the process' log where it does not within some time."""
    deadline = time.monotonic() + seconds
    while not condition():
        said = training.log.read_text()[-3000:] if training and training.log.exists() else ""
        assert time.monotonic() < deadline, f"no {what} within {seconds} s: {said}"
        time.sleep(0.005)


def free_ports(count):
    sockets = [socket.socket() for _ in range(count)]
    for one in sockets:
        one.bind(("127.0.0.1", 0))
    ports = [one.getsockname()[1] for one in sockets]
    for one in sockets:
        one.close()
    return ports


def start(server, folder, name, *, workers=1, **flags):
    """Starts the training of `folder/config.json` into `folder/name`, as one process or several workers."""
    arguments = [f"--config={folder}/config.json", f"--workdir={folder / name}"]
    arguments += [f"--config.training.{field}={value}" for field, value in flags.items()]
    if workers == 1:
        return [server.train(*arguments, log=folder / f"{name}.log")]
    hosts = [f"127.0.0.1:{port}" for port in free_ports(workers)]
    clusters = [{"cluster": {"worker": hosts}, "task": {"type": "worker", "index": i}} for i in range(workers)]
    return [
        server.train(*arguments, log=folder / f"{name}-{i}.log", TF_CONFIG=json.dumps(cluster))
        for i, cluster in enumerate(clusters)
    ]


def finish(trainings):
    """Waits until all have ended; fails with the first one's log where one failed."""
    statuses = [training.wait() for training in trainings]
    assert statuses == [0] * len(trainings), trainings[0].log.read_text()[-3000:]
