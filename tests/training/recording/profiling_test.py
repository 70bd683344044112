"""Exactly the chosen steps are profiled, and TensorBoard finds the trace."""

import pytest
import tensorflow as tf

from aigc_tf.training.recording import profiling
from aigc_tf.training.recording.profiling import ProfileWindow, steps_to_edge


@pytest.mark.parametrize(
    ("step", "expected"), [(0, [19, 24]), (18, [1, 6]), (19, [5]), (23, [1]), (24, []), (1000, [])]
)
def test_calls_end_before_the_first_step_and_after_the_last(step, expected):
    assert steps_to_edge(step, (20, 24)) == expected


def test_a_window_from_the_first_step_on_starts_with_the_run():
    assert steps_to_edge(0, (1, 3)) == [3]
    assert steps_to_edge(0, ()) == []


@pytest.fixture
def switched(monkeypatch):
    """What is done to the profiler, step by step."""
    done = []
    monkeypatch.setattr(profiling.tf.profiler.experimental, "start", lambda logs: done.append("start"))
    monkeypatch.setattr(profiling.tf.profiler.experimental, "stop", lambda: done.append("stop"))
    return done


def test_it_is_on_during_the_window_alone(switched):
    with ProfileWindow("logs", (3, 4)) as window:
        for step in range(10):
            window.after_step(step)
            switched.append(step)
    assert switched == [0, 1, "start", 2, 3, "stop", 4, 5, 6, 7, 8, 9]


def test_a_run_that_ends_inside_of_the_window_stops_it(switched):
    with ProfileWindow("logs", (1, 9)) as window:
        window.after_step(0)
    assert switched == ["start", "stop"]


def test_a_run_that_goes_on_behind_the_window_has_none(switched):
    with ProfileWindow("logs", (3, 4)) as window:
        window.after_step(4)
    assert switched == []


def test_the_trace_is_where_tensorboard_looks(tmp_path):
    with ProfileWindow(str(tmp_path), (1, 1)) as window:
        window.after_step(0)
        tf.reduce_sum(tf.ones([8])).numpy()
        window.after_step(1)
    (trace,) = (tmp_path / "plugins" / "profile").glob("*/*.xplane.pb")
    assert trace.stat().st_size > 0
