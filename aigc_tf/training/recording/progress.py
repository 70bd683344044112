"""Progress of a run on standard error: a bar on a terminal, a plain line at intervals in a log."""

import collections
import time
from collections.abc import Callable, Mapping
from types import TracebackType
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn

_WINDOW_SECONDS = 60.0  # recent time from which the time left is estimated


class ProgressBar:
    """Shows steps, loss, speed and time left of a run. A context manager; call it with the record of a step.

    On a terminal it is one moving bar; elsewhere, such as in a log file, it is one line at the first step, one at the
    last, and at most one every `line_seconds` between.

    >>> with ProgressBar(num_steps=1000, first_step=500) as progress:
    ...     progress({"step": 501, "train/loss": 0.31, "time/examples_per_second": 412.0})
    ...     progress.note("Evaluated validation: accuracy 0.8731.")
    """

    def __init__(
        self,
        *,
        num_steps: int,
        first_step: int = 0,
        rate: str = "examples_per_second",
        enabled: bool = True,
        console: Console | None = None,
        line_seconds: float = 10.0,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Prepares the bar; nothing is shown before the first record.

        Args:
            num_steps: Steps of the whole run.
            first_step: Steps done before this process began.
            rate: Which speed of a record is shown: `examples_per_second` or `tokens_per_second`.
            enabled: False on all workers except the chief: nothing is shown.
            console: Where to write; standard error by default.
            line_seconds: Without a terminal, the least seconds between two lines.
            clock: Returns the time in seconds; tests pass their own.
        """
        self._num_steps, self._first_step, self._enabled = num_steps, first_step, enabled
        self._rate, self._unit = f"time/{rate}", rate.removesuffix("_per_second")
        self._console = console or Console(stderr=True)
        self._line_seconds, self._clock = line_seconds, clock
        self._next_line = clock()
        self._shown_step = first_step
        # (time, step): the first entry is before this process' first step, so that one step gives a speed.
        self._past = collections.deque([(clock(), first_step)])
        self._bar: Progress | None = None
        if enabled and self._console.is_terminal:
            self._bar = Progress(
                TextColumn("{task.fields[steps]}"),
                BarColumn(bar_width=None),
                TextColumn("{task.fields[facts]}"),
                console=self._console,
                expand=True,
            )
            self._task = self._bar.add_task("", total=num_steps, completed=first_step, steps="", facts="")

    def __enter__(self) -> "ProgressBar":
        self._past[0] = (self._clock(), self._first_step)
        if self._bar is not None:
            self._bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._bar is not None:
            self._bar.stop()

    def __call__(self, record: Mapping[str, Any], *, parts: Mapping[str, float] | None = None) -> None:
        """Shows a step.

        Args:
            record: `step`; `train/loss` and the speed if known. If one call into the graph takes several steps, the
                record of the last one.
            parts: Parts of the loss by name, shown beside it.
        """
        if not self._enabled:
            return
        step, now = int(record["step"]), self._clock()
        self._past.append((now, step))
        while len(self._past) > 2 and self._past[1][0] < now - _WINDOW_SECONDS:
            self._past.popleft()
        if self._bar is not None:
            self._bar.update(
                self._task, completed=step, steps=self._steps(step), facts=self._facts(record, parts or {})
            )
        elif now >= self._next_line or step >= self._num_steps > self._shown_step:
            self._next_line, self._shown_step = now + self._line_seconds, step
            self._print(f"step {self._steps(step)}  {self._facts(record, parts or {})}")

    def note(self, message: str) -> None:
        """Prints one line above the bar, such as the result of an evaluation."""
        if self._enabled:
            self._print(message)

    def _print(self, line: str) -> None:
        # Neither markup nor colours nor line breaks: a label may be called [red], and logs are searched by line.
        self._console.print(line, markup=False, highlight=False, emoji=False, soft_wrap=True)

    def _steps(self, step: int) -> str:
        return f"{step}/{self._num_steps} ({100 * step // max(self._num_steps, 1)} %)"

    def _facts(self, record: Mapping[str, Any], parts: Mapping[str, float]) -> str:
        facts = []
        loss, rate = record.get("train/loss"), record.get(self._rate)
        if loss is not None:
            facts.append(f"loss {loss:.4f}")
        facts += [f"{name} {value:.4g}" for name, value in parts.items()]
        if rate is not None:
            facts.append(f"{rate:,.1f} {self._unit}/s" if rate < 100 else f"{rate:,.0f} {self._unit}/s")
        facts.append(self._left())
        return "  ".join(facts)

    def _left(self) -> str:
        """The time left at the speed of the last minute, evaluations and checkpoints included."""
        (began, first), (now, step) = self._past[0], self._past[-1]
        if step >= self._num_steps:
            return "done"
        if step <= first or now <= began:
            return "? left"
        seconds = round((now - began) / (step - first) * (self._num_steps - step))
        minutes, seconds = divmod(seconds, 60)
        hours, minutes = divmod(minutes, 60)
        return f"{hours}:{minutes:02}:{seconds:02} left" if hours else f"{minutes}:{seconds:02} left"
