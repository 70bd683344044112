"""The workers of a run: they wait for each other, compare what they are about to do, and stop together.

TensorFlow carries the sums between workers. As measured with TensorFlow 2.21, it does not name the worker that is lost,
does not end the wait for a worker that never comes up, and does not notice that two workers run different things. So
each worker keeps its own TCP connection to worker 0, from before TensorFlow joins them to the end of their common work.
It uses the address that TF_CONFIG gives worker 0, before TensorFlow listens there, so no other port must be open.

Messages are JSON objects, one per line:
    {"index", "facts"}         a worker comes; worker 0 answers when all are there
    {"round", "facts"}         what a worker is about to do; worker 0 answers with {"round"} when all are the same
    {"lost": sentence}         from worker 0: which worker is gone, and why
    {"stopped": reason}        this worker ends because of an error of its own
    {"done": true}             this worker has no further part in the common work
    {}                         still here; every `BEAT_SECONDS`
"""

import contextlib
import faulthandler
import json
import os
import selectors
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import tensorflow as tf

from aigc_tf.errors import InputError, Preempted, RunError

BEAT_SECONDS = 2.0
SILENT_SECONDS = 20.0
"""Silence after which a worker counts as lost: its host may have lost power or network, or its process is stopped."""
GRACE_SECONDS = 20.0
"""Time for TensorFlow to give up a sum over workers once one of them is lost; then this module ends the process."""
CONNECT_SECONDS = 50.0
"""Time for TensorFlow to connect the workers, which are all up by then."""
_NOTE_SECONDS = 15.0  # of waiting before the first notice
_MAX_MESSAGE = 1 << 22

# A program that prints its second argument after the seconds of its first, unless its standard input ends before.
_LAST_WORD = """
import select, sys
if not select.select([sys.stdin], [], [], float(sys.argv[1]))[0]:
    print("error:", sys.argv[2], file=sys.stderr)
"""

# Errors that a sum over workers raises on the others when one is lost; each was seen, or is in TensorFlow's sources.
_NETWORK_ERRORS = (
    tf.errors.UnavailableError,
    tf.errors.AbortedError,
    tf.errors.CancelledError,
    tf.errors.DeadlineExceededError,
    tf.errors.FailedPreconditionError,
    tf.errors.InternalError,
    tf.errors.UnknownError,
)


class Workers:
    """The connections of this worker to the others. A worker alone has none; every method then returns at once."""

    def __init__(
        self, addresses: Sequence[str], index: int, lines: Mapping[int, "_Line"], last_step: Callable[[], int]
    ):
        self._addresses, self._index = addresses, index
        self._lines, self._last_step = dict(lines), last_step
        self._changed = threading.Condition()
        self._facts: dict[int, dict[int, Any]] = {}  # round -> worker -> its facts, at worker 0
        self._round = self._confirmed = 0
        self._lost, self._lost_at, self._is_refused = "", 0.0, False
        self._is_connecting = False
        self._left = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="workers", daemon=True)
        if lines:
            self._thread.start()

    def compare(self, facts: Mapping[str, Any]) -> None:
        """Returns when every worker has called it with the same facts.

        Args:
            facts: Values that must be equal everywhere, by the name that a user knows; JSON values.
        Raises:
            InputError: At every worker, if the facts of one differ from those of worker 0.
            RunError: If a worker is gone.
        """
        if not self._lines:
            return
        self._round += 1
        mine = json.loads(json.dumps(facts))
        if self._index:
            self._lines[0].send({"round": self._round, "facts": mine})
            self._wait_for(lambda: self._confirmed >= self._round)
            return
        self._wait_for(lambda: len(self._facts.get(self._round, {})) == len(self._lines))
        for index, theirs in sorted(self._facts.pop(self._round).items()):
            difference = _difference(mine, theirs, addresses=self._addresses, index=index)
            if difference:
                for line in self._lines.values():
                    line.send({"refused": difference})
                raise InputError(difference)
        for line in self._lines.values():
            line.send({"round": self._round})

    @contextlib.contextmanager
    def connecting(self) -> Iterator[None]:
        """Within it, bounds the time that TensorFlow waits for the others, since one of them may have just ended.

        TensorFlow waits without end and holds the interpreter's lock, so no Python thread can watch it. The watchdog of
        `faulthandler` needs no lock to end this process (status 1); another process prints the reason.
        """
        if not self._lines:
            yield
            return
        sentence = f"The workers were not connected within {CONNECT_SECONDS:g} s: one of them has ended meanwhile. "
        sentence += "Start the same command on every worker."
        command = [sys.executable, "-I", "-S", "-c", _LAST_WORD, str(CONNECT_SECONDS), sentence]
        self._is_connecting = True
        with subprocess.Popen(command, stdin=subprocess.PIPE) as speaker, open(os.devnull, "w") as nowhere:
            faulthandler.dump_traceback_later(CONNECT_SECONDS + 2, exit=True, file=nowhere)
            try:
                yield
            finally:
                faulthandler.cancel_dump_traceback_later()
                speaker.communicate()
                for line in self._lines.values():
                    line.heard = time.monotonic()
                self._is_connecting = False

    def leave(self, error: BaseException | None) -> None:
        """Closes the connections; if an error of this worker alone is the reason, the others are told."""
        # Workers that are asked to end have agreed on it, and worker 0 may still write a last checkpoint.
        message: dict[str, Any] = {"done": True}
        if error is not None and not isinstance(error, Preempted) and not self._lost:
            message = {"stopped": _reason(error)}
        for line in self._lines.values():
            line.send(message)
        self._left.set()
        if self._lines:
            self._thread.join(timeout=5)
        for line in self._lines.values():
            line.close()

    def cause(self, error: BaseException) -> str:
        """Returns the sentence on the worker whose end caused this one's error; empty if the error is its own."""
        if not isinstance(error, _NETWORK_ERRORS) or not self._lines:
            return ""
        with self._changed:  # TensorFlow may notice before worker 0 has named the worker
            self._changed.wait_for(lambda: self._lost, timeout=SILENT_SECONDS + 2 * BEAT_SECONDS)
        return self._sentence()

    def _wait_for(self, is_there: Callable[[], bool]) -> None:
        with self._changed:
            self._changed.wait_for(lambda: is_there() or self._lost)
            if is_there():
                return
        if self._is_refused:
            raise InputError(self._lost)
        raise RunError(self._sentence())

    def _sentence(self) -> str:
        if not self._lost:
            return ""
        step = self._last_step()
        again = f"to go on after step {step}" if step else "to begin again; there is no checkpoint yet"
        return f"{self._lost} Start the same command on every worker {again}."

    def _watch(self) -> None:
        """Exchanges signs of life with the others until `leave`, in its own thread."""
        next_beat = 0.0
        with selectors.DefaultSelector() as selector:
            for line in self._lines.values():
                line.register(selector)
            while not self._left.is_set():
                for key, _ in selector.select(timeout=min(0.5, BEAT_SECONDS)):
                    self._hear(key.data, selector)
                now = time.monotonic()
                open_lines = [line for line in self._lines.values() if line.is_open]
                if now >= next_beat:
                    next_beat = now + BEAT_SECONDS
                    for line in open_lines:
                        line.send({})
                for line in open_lines:
                    if not self._is_connecting and now - line.heard > SILENT_SECONDS:
                        self._lose(line.index, f"is gone: nothing was heard of it for {SILENT_SECONDS:g} s.")
                if self._lost and now > self._lost_at + GRACE_SECONDS:
                    end_process(self._sentence())

    def _hear(self, line: "_Line", selector: selectors.BaseSelector) -> None:
        messages = line.receive()
        if messages is None:
            selector.unregister(line.socket)
            line.is_open = False
            if not line.is_done:
                self._lose(line.index, "is gone: its process has ended.")
            return
        for message in messages:
            with self._changed:
                line.is_done |= "done" in message or "stopped" in message
                if "facts" in message:
                    self._facts.setdefault(message["round"], {})[line.index] = message["facts"]
                elif "round" in message:
                    self._confirmed = message["round"]
                self._changed.notify_all()
            if "stopped" in message:
                self._lose(line.index, f"stopped: {message['stopped']}")
            elif "refused" in message:
                self._is_refused = True
                self._set_lost(message["refused"])
            elif "lost" in message:
                self._set_lost(message["lost"])

    def _lose(self, index: int, what: str) -> None:
        sentence = f"{_named(self._addresses, index)} {what}"
        if self._set_lost(sentence) and self._index == 0:
            for line in self._lines.values():
                if line.is_open and line.index != index:
                    line.send({"lost": sentence})

    def _set_lost(self, sentence: str) -> bool:
        with self._changed:
            if self._lost:
                return False
            self._lost, self._lost_at = sentence, time.monotonic()
            self._changed.notify_all()
            return True


def end_process(sentence: str) -> None:
    """Ends this process with status 1: the main thread is inside TensorFlow and does not return."""
    sys.stdout.flush()
    print(f"error: {sentence}", file=sys.stderr, flush=True)
    os._exit(1)


@contextlib.contextmanager
def joined(
    cluster: tuple[Sequence[str], int] | None,
    facts: Mapping[str, Any],
    *,
    timeout: float,
    last_step: Callable[[], int],
) -> Iterator[Workers]:
    """Runs its block once all workers are up; if one fails or is lost, the block ends with a RunError.

    Args:
        cluster: The workers' addresses, `host:port` each, and the index of this process; None for a worker alone.
        facts: Values that must be equal at all workers, as for `Workers.compare`.
        timeout: Seconds to wait for the others.
        last_step: Returns the step from which a restarted run resumes; 0 without a checkpoint.
    Raises:
        InputError: If the facts differ, or this worker's port is taken.
        RunError: If a worker does not come up in time, or is gone.
    """
    if cluster is None or len(cluster[0]) == 1:
        yield Workers([], 0, {}, last_step)
        return
    addresses, index = cluster
    _check_port(addresses[index])
    gather = _gather if index == 0 else _report
    workers = Workers(addresses, index, gather(addresses, index, time.monotonic() + timeout, timeout), last_step)
    try:
        workers.compare({"TF_CONFIG's list of workers": list(addresses)} | dict(facts))
        yield workers
    except BaseException as error:
        cause = workers.cause(error)
        workers.leave(error)
        if cause:
            raise RunError(cause) from error
        raise
    workers.leave(None)


class _Line:
    """A connection that carries JSON objects, one per line."""

    def __init__(self, connection: socket.socket, index: int = -1):
        connection.settimeout(5)
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.socket, self.index = connection, index
        self.heard = time.monotonic()
        self.is_open, self.is_done = True, False
        self._rest = b""
        self._sending = threading.Lock()

    def register(self, selector: selectors.BaseSelector) -> None:
        self.heard = time.monotonic()
        selector.register(self.socket, selectors.EVENT_READ, self)

    def send(self, message: Mapping[str, Any]) -> None:
        """Sends a message. It does not fail if the other end is lost; receiving notices that."""
        with self._sending, contextlib.suppress(OSError):
            self.socket.sendall(json.dumps(message).encode() + b"\n")

    def receive(self) -> list[dict[str, Any]] | None:
        """Returns the messages so far, after the socket's timeout at most; None if the other end is lost or foreign."""
        try:
            content = self.socket.recv(1 << 16)
            if not content or len(self._rest) > _MAX_MESSAGE:
                return None
            *lines, self._rest = (self._rest + content).split(b"\n")
            messages = [json.loads(line) for line in lines]
        except TimeoutError:
            return []
        except (OSError, ValueError):
            return None
        if not all(isinstance(message, dict) for message in messages):
            return None
        self.heard = time.monotonic()
        return messages

    def close(self) -> None:
        self.is_open = False
        with contextlib.suppress(OSError):
            self.socket.close()


def _gather(addresses: Sequence[str], index: int, deadline: float, timeout: float) -> dict[int, _Line]:
    """Waits, at worker 0, for all others; a worker that ends meanwhile may come back."""
    del index
    lines: dict[int, _Line] = {}
    note = _Note(addresses)
    with _listen(addresses[0]) as listener, selectors.DefaultSelector() as selector:
        selector.register(listener, selectors.EVENT_READ)
        while len(lines) < len(addresses) - 1:
            missing = [index for index in range(1, len(addresses)) if index not in lines]
            if time.monotonic() > deadline:
                sentence = _absent(addresses, missing, timeout)
                for line in lines.values():
                    line.send({"absent": sentence})
                    line.close()
                raise RunError(sentence)
            note(missing)
            for key, _ in selector.select(timeout=0.5):
                if key.data is None:
                    line = _Line(listener.accept()[0])
                    selector.register(line.socket, selectors.EVENT_READ, line)
                else:
                    _admit(key.data, lines, selector, len(addresses))
    for line in lines.values():
        line.send({"all": True})
    return lines


def _admit(line: _Line, lines: dict[int, _Line], selector: selectors.BaseSelector, num_workers: int) -> None:
    messages = line.receive()
    known = lines.get(line.index) is line
    if messages is None or (messages and not known and not isinstance(messages[0].get("index"), int)):
        selector.unregister(line.socket)  # it has ended, or is not a worker of this run
        line.close()
        if known:
            del lines[line.index]
    elif messages and not known:
        index = messages[0]["index"]
        if index in lines or not 0 < index < num_workers:
            fault = f"Two processes are worker {index}" if index in lines else f"There is no worker {index}"
            sentence = f"{fault}; the index in TF_CONFIG must be 0 to {num_workers - 1}, each once."
            for other in [line, *lines.values()]:
                other.send({"refused": sentence})
                other.close()
            raise InputError(sentence)
        line.index = index
        lines[index] = line


def _report(addresses: Sequence[str], index: int, deadline: float, timeout: float) -> dict[int, _Line]:
    """Tells worker 0 that this worker is up, and waits until worker 0 says that all are."""
    note = _Note(addresses)
    while time.monotonic() < deadline:
        note([0])
        line = _call(addresses[0], index)
        while line and time.monotonic() < deadline + 10:  # worker 0 gives up first and names the missing worker
            messages = line.receive()
            if messages is None:
                line.close()
                line = None  # it ended, or another program uses its port: try again
            for message in messages or []:
                if "absent" in message:
                    raise RunError(message["absent"])
                if "refused" in message:
                    raise InputError(message["refused"])
                if "all" in message and line:
                    line.index = 0
                    return {0: line}
        time.sleep(0.5)
    raise RunError(_absent(addresses, [0], timeout))


def _call(address: str, index: int) -> _Line | None:
    try:
        line = _Line(socket.create_connection(_host_and_port(address), timeout=5))
    except OSError:
        return None  # it is not up yet, and perhaps its name is not known either
    line.send({"index": index})
    return line


class _Note:
    """Prints on standard error whom it waits for, after a while and then each minute."""

    def __init__(self, addresses: Sequence[str]):
        self._addresses, self._next = addresses, time.monotonic() + _NOTE_SECONDS

    def __call__(self, missing: Sequence[int]) -> None:
        if time.monotonic() > self._next:
            self._next = time.monotonic() + 60
            print(f"waiting for {_list(self._addresses, missing)}", file=sys.stderr, flush=True)


def _listen(address: str) -> socket.socket:
    port = _host_and_port(address)[1]
    try:
        if socket.has_dualstack_ipv6():
            return socket.create_server(("", port), family=socket.AF_INET6, dualstack_ipv6=True, backlog=1024)
        return socket.create_server(("", port), backlog=1024)
    except OSError as error:
        raise InputError(
            f"Port {port}, which TF_CONFIG gives this worker ({address}), cannot be listened on: {error.strerror}. "
            "End the process that uses it, or choose another port."
        ) from error


def _check_port(address: str) -> None:
    _listen(address).close()


def _host_and_port(address: str) -> tuple[str, int]:
    host, _, port = address.rpartition(":")
    return host.strip("[]"), int(port)


def _difference(mine: Mapping[str, Any], theirs: Any, *, addresses: Sequence[str], index: int) -> str:
    """Returns a sentence on how a worker differs from worker 0, empty if it does not."""
    if not isinstance(theirs, dict):
        theirs = {}
    names = [name for name in [*mine, *(set(theirs) - set(mine))] if mine.get(name) != theirs.get(name)]
    if not names:
        return ""
    shown = "; ".join(f"{name} is {theirs.get(name)!r} there and {mine.get(name)!r} at worker 0" for name in names[:3])
    more = f" ({len(names) - 3} more)" if len(names) > 3 else ""
    return (
        f"{_named(addresses, index)} is about to do something else than worker 0: {shown}{more}. "
        "Start the same command, with the same files, on every worker."
    )


def _absent(addresses: Sequence[str], missing: Sequence[int], timeout: float) -> str:
    shown = _list(addresses, missing)
    return (
        f"{shown[0].upper()}{shown[1:]} did not come up within {timeout:g} s; start the same command on every worker "
        "that TF_CONFIG lists, or raise training.devices.workers_timeout."
    )


def _list(addresses: Sequence[str], indices: Sequence[int]) -> str:
    shown = ", ".join(_named(addresses, index).lower() for index in indices[:3])
    return f"{shown} and {len(indices) - 3} more" if len(indices) > 3 else shown


def _named(addresses: Sequence[str], index: int) -> str:
    return f"Worker {index} ({addresses[index]})"


def _reason(error: BaseException) -> str:
    """Returns what made a worker stop, in one sentence."""
    if isinstance(error, KeyboardInterrupt):
        return "it was interrupted."
    if isinstance(error, SystemExit):
        return f"it ended with status {error.code}."
    lines = str(error).strip().splitlines() or [""]
    text = " ".join(lines) if isinstance(error, InputError | RunError) else f"{type(error).__name__}: {lines[0][:300]}"
    return text if text.endswith(".") else f"{text}."
