"""Several workers on one host: the same command several times, each with its own TF_CONFIG; standard library only.

The first worker writes to the terminal as if it ran alone. Each line of the others gets their number as a prefix. A
signal to end goes to all workers. If one fails, the others have `PATIENCE_SECONDS` to notice and stop by themselves, as
`training.devices.workers` makes them do; then this module ends them.
"""

import contextlib
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from typing import IO, Any

from aigc_tf.errors import InputError

PATIENCE_SECONDS = 30.0
"""Between the failure of one worker and SIGTERM to the others."""
KILL_SECONDS = 10.0
"""Between SIGTERM and SIGKILL."""
_ASKED_TO_END = 128 + signal.SIGTERM
_THREAD_LIMITS = ("TF_NUM_INTRAOP_THREADS", "TF_NUM_INTEROP_THREADS", "OMP_NUM_THREADS")


def launch(command: Sequence[str], num_workers: int) -> int:
    """Runs a command as that many workers and waits for them.

    Args:
        command: Program and arguments; a first word that ends in .py is run by this Python.
        num_workers: At least 1.
    Returns:
        The exit status: 0, or that of the worker that failed first (128 + n if signal n ended it).
    Raises:
        InputError: If there is no such program, or the GPUs cannot be shared out evenly.
    """
    if command[0].endswith(".py"):
        command = [sys.executable, *command]
    if shutil.which(command[0]) is None:
        raise InputError(f"There is no program {command[0]!r} to run; give one that is on PATH, or its path.")
    environments = worker_environments(num_workers, os.environ)
    with _forwarded_signals() as group:
        for index, environment in enumerate(environments):
            pipe = subprocess.PIPE if index else None
            group.processes.append(
                subprocess.Popen(
                    command,
                    env=environment,
                    stdin=subprocess.DEVNULL,
                    stdout=pipe,
                    stderr=pipe,
                    process_group=0,  # Ctrl-C reaches the workers once, through this process
                )
            )
        try:
            readers = [_copy_lines(index, process) for index, process in enumerate(group.processes) if index]
            status = _wait(group)
        finally:
            group.send(signal.SIGKILL)
    for reader in [thread for pair in readers for thread in pair]:
        reader.join(timeout=5)
    return status


def worker_environments(num_workers: int, environment: Mapping[str, str]) -> list[dict[str, str]]:
    """Returns the environment variables of each worker: TF_CONFIG, its GPUs, its share of the cores.

    Raises:
        InputError: If the GPUs cannot be shared out evenly.
    """
    addresses = [f"127.0.0.1:{port}" for port in _free_ports(num_workers)]
    gpus = _gpus(environment)
    if len(gpus) % num_workers:
        raise InputError(
            f"{len(gpus)} GPU(s) cannot be shared out evenly among {num_workers} workers; take another --num_workers, "
            "or name the GPUs in CUDA_VISIBLE_DEVICES (empty: none)."
        )
    share = len(gpus) // num_workers
    threads = str(max(1, len(os.sched_getaffinity(0)) // num_workers))
    environments = []
    for index in range(num_workers):
        own = {name: threads for name in _THREAD_LIMITS} | dict(environment)  # the user's own settings stay
        place = {"cluster": {"worker": addresses}, "task": {"type": "worker", "index": index}}
        own["TF_CONFIG"] = json.dumps(place)
        if gpus:
            own["CUDA_VISIBLE_DEVICES"] = ",".join(gpus[index * share : (index + 1) * share])
        environments.append(own)
    return environments


def _gpus(environment: Mapping[str, str]) -> list[str]:
    """Returns the ids of the GPUs that the workers may use."""
    given = environment.get("CUDA_VISIBLE_DEVICES")
    if given is not None:
        return [gpu.strip() for gpu in given.split(",") if gpu.strip() not in ("", "-1")]
    command = ["nvidia-smi", "--query-gpu=index", "--format=csv,noheader"]
    try:
        found = subprocess.run(command, capture_output=True, text=True, check=False)
    except OSError:
        return []  # no NVIDIA driver
    return found.stdout.split() if found.returncode == 0 else []


def _free_ports(count: int) -> list[int]:
    with contextlib.ExitStack() as stack:
        # All sockets stay open until each has its port: the system could give a port that was closed to the next one.
        sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
        for one in sockets:
            one.bind(("127.0.0.1", 0))
        return [one.getsockname()[1] for one in sockets]


class _Group:
    """The workers' processes, and whether a signal was passed on to them."""

    def __init__(self) -> None:
        self.processes: list[subprocess.Popen[bytes]] = []
        self.is_asked_to_end = False

    def pass_on(self, number: int, frame: Any) -> None:
        del frame
        self.is_asked_to_end = True
        self.send(number)

    def send(self, number: int) -> None:
        """Sends a signal to each worker that still runs, and to the processes that it started."""
        for process in self.processes:
            if process.poll() is None:
                with contextlib.suppress(ProcessLookupError):
                    os.killpg(process.pid, number)


@contextlib.contextmanager
def _forwarded_signals() -> Iterator[_Group]:
    group = _Group()
    before = {number: signal.signal(number, group.pass_on) for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)}
    try:
        yield group
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _wait(group: _Group) -> int:
    """Waits until all workers have ended, and ends them if one has failed."""
    status, failed_at, sent = 0, 0.0, 0
    while True:
        running = [process for process in group.processes if process.poll() is None]
        failed = [(index, process.returncode) for index, process in enumerate(group.processes) if process.returncode]
        if failed and not failed_at:
            status, failed_at = _note_failure(*failed[0]), time.monotonic()
        if not running:
            return status
        # A worker that was asked to end may finish before another has written the last checkpoint.
        if failed and not group.is_asked_to_end and status != _ASKED_TO_END:
            waited = time.monotonic() - failed_at
            if waited > PATIENCE_SECONDS + KILL_SECONDS:
                group.send(signal.SIGKILL)
            elif waited > PATIENCE_SECONDS and not sent:
                sent = signal.SIGTERM
                group.send(sent)
        time.sleep(0.1)


def _note_failure(index: int, code: int) -> int:
    """Prints how a worker ended; returns its exit status by the shell's rule."""
    if code > 0:
        print(f"worker {index} ended with status {code}", file=sys.stderr, flush=True)
        return code
    with contextlib.suppress(ValueError):
        print(f"worker {index} was ended by {signal.Signals(-code).name}", file=sys.stderr, flush=True)
    return 128 - code


def _copy_lines(index: int, process: subprocess.Popen[bytes]) -> list[threading.Thread]:
    """Starts to copy a worker's output, with the worker's number before each line."""
    threads = []
    for source, target in ((process.stdout, sys.stdout), (process.stderr, sys.stderr)):
        thread = threading.Thread(target=_prefix_lines, args=(f"[worker {index}] ", source, target), daemon=True)
        thread.start()
        threads.append(thread)
    return threads


def _prefix_lines(prefix: str, source: IO[bytes], target: IO[str]) -> None:
    with contextlib.suppress(OSError):  # the reader is gone
        for line in source:
            target.write(f"{prefix}{line.decode(errors='replace').rstrip()}\n")
            target.flush()
