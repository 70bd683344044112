"""Workers among themselves, in threads of this process; tests/laws/workers_test.py kills a real one."""

import socket
import threading
import time

import pytest
import tensorflow as tf

from aigc_tf.errors import InputError, Preempted, RunError
from aigc_tf.training.devices import workers
from tests.fork_server import free_ports


@pytest.fixture
def addresses(monkeypatch):
    monkeypatch.setattr(workers, "BEAT_SECONDS", 0.1)
    monkeypatch.setattr(workers, "SILENT_SECONDS", 1.5)
    return [f"127.0.0.1:{port}" for port in free_ports(3)]


def run_all(addresses, blocks, facts=None, timeout=20.0):
    """Runs block i as worker i in a thread; returns what each raised, None for nothing."""
    raised = [None] * len(blocks)

    def run(index):
        given = facts[index] if facts else {}
        try:
            with workers.joined((addresses, index), given, timeout=timeout, last_step=lambda: 40) as group:
                blocks[index](group)
        except BaseException as error:
            raised[index] = error

    threads = [threading.Thread(target=run, args=(index,)) for index, block in enumerate(blocks) if block]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(timeout=60)
    assert not any(thread.is_alive() for thread in threads)
    return raised


def nothing(group):
    del group


def test_a_worker_alone_needs_no_line():
    for cluster in (None, (["nowhere:1"], 0)):
        with workers.joined(cluster, {}, timeout=1, last_step=lambda: 0) as group:
            group.compare({"anything": 1})
            with group.connecting():
                pass


def test_equal_workers_go_on_and_may_leave_one_after_the_other(addresses):
    def work(group):
        group.compare({"step": 7, "name": ("a", "b")})
        group.compare({"step": 8})

    def slow_work(group):
        work(group)
        time.sleep(0.5)

    assert run_all(addresses, [slow_work, work, work]) == [None] * 3
    assert run_all(addresses[:2], [work, slow_work]) == [None] * 2


def test_workers_that_differ_are_refused_by_name_everywhere(addresses):
    facts = [{"training.seed": 0, "data": "x"}, {"training.seed": 0, "data": "x"}, {"training.seed": 3, "data": "x"}]
    raised = run_all(addresses, [nothing] * 3, facts)
    sentence = f"Worker 2 ({addresses[2]}) is about to do something else than worker 0: training.seed is 3 there and 0"
    for error in raised:
        assert isinstance(error, InputError)
        assert str(error).startswith(sentence)


def test_workers_that_begin_to_differ_later_are_refused(addresses):
    def work_from(step):
        return lambda group: group.compare({"the last checkpoint's step": step})

    raised = run_all(addresses, [work_from(50), work_from(50), work_from(0)])
    assert all(isinstance(error, InputError) for error in raised)
    assert "the last checkpoint's step is 0 there and 50 at worker 0" in str(raised[1])


def test_two_workers_of_one_index_are_refused(addresses):
    def join(index, found):
        try:
            with workers.joined((addresses, index), {}, timeout=20, last_step=lambda: 0):
                pass
        except InputError as error:
            found.append(str(error))

    found = []
    impostor = workers._call  # says 1 whoever it is
    try:
        workers._call = lambda address, index: impostor(address, 1)
        threads = [threading.Thread(target=join, args=(index, found)) for index in range(3)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(timeout=60)
    finally:
        workers._call = impostor
    assert found == ["Two processes are worker 1; the index in TF_CONFIG must be 0 to 2, each once."] * 3


@pytest.mark.parametrize("absent", [0, 2])
def test_a_worker_that_never_comes_is_named_after_the_stated_time(addresses, absent):
    raised = run_all(addresses, [None if index == absent else nothing for index in range(3)], timeout=1)
    for index in {0, 1, 2} - {absent}:
        assert isinstance(raised[index], RunError)
        assert str(raised[index]).startswith(f"Worker {absent} ({addresses[absent]}) did not come up within 1 s")


def test_a_port_that_is_taken_is_named(addresses):
    sentence = r"^Port \d+, which TF_CONFIG gives this worker .* cannot be listened on"
    with (
        socket.create_server(("", int(addresses[0].rpartition(":")[2]))),
        pytest.raises(InputError, match=sentence),
        workers.joined((addresses, 0), {}, timeout=5, last_step=lambda: 0),
    ):
        pass


def test_another_program_at_the_port_does_not_disturb(addresses):
    def knock():
        for _ in range(100):
            try:
                host, port = addresses[0].split(":")
                with socket.create_connection((host, int(port)), timeout=5) as connection:
                    connection.sendall(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n")
                    return
            except OSError:
                time.sleep(0.02)

    thread = threading.Thread(target=knock)
    thread.start()
    time.sleep(0.1)
    assert run_all(addresses, [nothing] * 3) == [None] * 3
    thread.join(timeout=10)


def wait_in_tensorflow(group):
    """Stands for a sum over workers: TensorFlow says that something is wrong, and not what."""
    time.sleep(0.3)
    raise tf.errors.UnavailableError(None, None, "recvmsg: Connection reset by peer")


def test_the_reason_of_a_worker_that_stops_is_said_by_all(addresses):
    def fail(group):
        raise RunError("Cannot write runs/a: No space left on device.")

    raised = run_all(addresses, [wait_in_tensorflow, fail, wait_in_tensorflow])
    sentence = (
        f"Worker 1 ({addresses[1]}) stopped: Cannot write runs/a: No space left on device. "
        "Start the same command on every worker to go on after step 40."
    )
    assert str(raised[1]) == "Cannot write runs/a: No space left on device."
    for index in (0, 2):
        assert isinstance(raised[index], RunError)
        assert str(raised[index]) == sentence


@pytest.mark.parametrize("dead", [0, 1])
def test_a_worker_whose_process_ends_is_named_by_the_others(addresses, dead):
    def die(group):
        group._left.set()
        group._thread.join()
        for line in group._lines.values():
            line.socket.shutdown(socket.SHUT_RDWR)  # what the operating system does for a dead process
        group._lines = {}

    blocks = [die if index == dead else wait_in_tensorflow for index in range(3)]
    raised = run_all(addresses, blocks)
    for index in {0, 1, 2} - {dead}:
        assert str(raised[index]).startswith(f"Worker {dead} ({addresses[dead]}) is gone: its process has ended. Start")


def test_a_worker_that_falls_silent_is_named_by_the_others(addresses):
    def fall_silent(group):
        group._left.set()  # nothing is sent any more, and the lines stay open
        time.sleep(4)

    raised = run_all(addresses, [wait_in_tensorflow, fall_silent, wait_in_tensorflow])
    for index in (0, 2):
        assert str(raised[index]).startswith(f"Worker 1 ({addresses[1]}) is gone: nothing was heard of it for 1.5 s.")


def test_an_error_of_ones_own_stays_what_it_is(addresses):
    def fail(group):
        raise TypeError("a defect")

    def ask_to_end(group):
        raise Preempted

    assert [type(error) for error in run_all(addresses, [fail] * 3)] == [TypeError] * 3
    assert [type(error) for error in run_all(addresses, [ask_to_end] * 3)] == [Preempted] * 3


def test_a_worker_that_was_asked_to_end_alarms_nobody(addresses):
    """Worker 0 writes the last checkpoint for longer than the others stay."""
    seen = []

    def write_last(group):
        time.sleep(0.7)
        seen.append(group._lost)
        raise Preempted

    def leave(group):
        raise Preempted

    run_all(addresses, [write_last, leave, leave])
    assert seen == [""]


def test_a_worker_that_hangs_in_tensorflow_is_ended_with_the_sentence(addresses, monkeypatch):
    ended = []
    monkeypatch.setattr(workers, "GRACE_SECONDS", 0.3)
    monkeypatch.setattr(workers, "end_process", ended.append)

    def fail(group):
        raise RunError("Out of paper.")

    run_all(addresses[:2], [lambda group: time.sleep(1.5), fail])
    assert ended[0].startswith(f"Worker 1 ({addresses[1]}) stopped: Out of paper. Start the same command")
