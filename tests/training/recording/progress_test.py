"""The bar of a terminal and the lines of a log, with a clock that the test moves."""

import io
import re

import pytest
from rich.console import Console

from aigc_tf.training.recording.progress import ProgressBar


class Clock:
    def __init__(self):
        self.now = 1000.0

    def __call__(self):
        return self.now


def log_console():
    return Console(file=io.StringIO(), width=40)


def run(progress, clock, steps, *, seconds=1.0, **record):
    for step in steps:
        clock.now += seconds
        progress({"step": step, **record})


def test_a_log_gets_the_first_and_the_last_step_and_few_lines_between():
    console, clock = log_console(), Clock()
    with ProgressBar(num_steps=100, console=console, clock=clock) as progress:
        run(progress, clock, range(1, 101), **{"train/loss": 0.51239, "time/examples_per_second": 1234.4})
    assert console.file.getvalue().splitlines()[:2] == [
        "step 1/100 (1 %)  loss 0.5124  1,234 examples/s  1:39 left",
        "step 11/100 (11 %)  loss 0.5124  1,234 examples/s  1:29 left",
    ]
    assert len(console.file.getvalue().splitlines()) == 11
    assert console.file.getvalue().endswith("step 100/100 (100 %)  loss 0.5124  1,234 examples/s  done\n")


def test_a_run_shorter_than_a_line_interval_still_ends_with_its_last_step():
    console, clock = log_console(), Clock()
    with ProgressBar(num_steps=3, console=console, clock=clock) as progress:
        run(progress, clock, range(1, 4), seconds=0.01)
    assert [line.split()[1] for line in console.file.getvalue().splitlines()] == ["1/3", "3/3"]


def test_a_resumed_run_guesses_the_time_left_from_its_own_steps_only():
    console, clock = log_console(), Clock()
    with ProgressBar(num_steps=1000, first_step=900, console=console, clock=clock) as progress:
        run(progress, clock, [910], seconds=20.0)
    assert console.file.getvalue() == "step 910/1000 (91 %)  3:00 left\n"


def test_time_left_follows_the_last_minute_not_a_slow_first_step():
    console, clock = log_console(), Clock()
    with ProgressBar(num_steps=10_000, console=console, clock=clock, line_seconds=0.0) as progress:
        run(progress, clock, [1], seconds=600.0)  # compilation
        run(progress, clock, range(2, 202), seconds=1.0)
    left = console.file.getvalue().splitlines()
    assert left[0].endswith("1666:30:00 left")
    assert left[-1].endswith("2:43:19 left")  # 9,799 steps of one second


def test_a_nan_loss_and_an_unknown_one_are_shown_as_such():
    console, clock = log_console(), Clock()
    with ProgressBar(num_steps=9, console=console, clock=clock, line_seconds=0.0) as progress:
        run(progress, clock, [1], **{"train/loss": float("nan"), "time/examples_per_second": 0.26})
        run(progress, clock, [2], **{"train/loss": None})
    first, second = console.file.getvalue().splitlines()
    assert "loss nan  0.3 examples/s" in first
    assert "loss" not in second


def test_notes_are_printed_as_they_are_on_one_line():
    console = log_console()
    with ProgressBar(num_steps=9, console=console) as progress:
        progress.note("Evaluated [red]:smile: " + "long " * 30)
    assert console.file.getvalue() == "Evaluated [red]:smile: " + "long " * 30 + "\n"


def test_a_log_has_no_escape_sequences():
    console, clock = log_console(), Clock()
    with ProgressBar(num_steps=5, console=console, clock=clock, line_seconds=0.0) as progress:
        run(progress, clock, range(1, 6), **{"train/loss": 1.0})
        progress.note("done")
    assert "\x1b" not in console.file.getvalue()


def test_a_terminal_gets_a_bar_that_starts_where_the_run_resumes():
    console, clock = Console(file=io.StringIO(), width=100, force_terminal=True), Clock()
    with ProgressBar(num_steps=100, first_step=50, console=console, clock=clock) as progress:
        run(progress, clock, range(51, 101), **{"train/loss": 0.25})
        progress.note("Evaluated validation: accuracy 0.9.")
    text = re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]", "", console.file.getvalue())
    assert "100/100 (100 %)" in text
    assert "loss 0.2500  done" in text
    assert "Evaluated validation: accuracy 0.9." in text


def test_workers_other_than_the_chief_show_nothing():
    for terminal in (False, True):
        console = Console(file=io.StringIO(), force_terminal=terminal)
        with ProgressBar(num_steps=5, enabled=False, console=console) as progress:
            progress({"step": 1, "train/loss": 0.5})
            progress.note("hidden")
        assert console.file.getvalue() == ""


def test_the_bar_gives_the_terminal_back_when_training_fails():
    console = Console(file=io.StringIO(), force_terminal=True)
    progress = ProgressBar(num_steps=5, console=console)

    def fail():
        with progress:
            progress({"step": 1})
            raise RuntimeError("diverged")

    with pytest.raises(RuntimeError):
        fail()
    assert console.file.getvalue().endswith("\x1b[?25h")  # the cursor is shown again
