"""TensorFlow's profiler around chosen steps of a run.

The trace goes to `logs/plugins/profile/`, one folder per start, where TensorBoard's Profile tab looks for it. Writing
it needs only TensorFlow; viewing it needs the package `tensorboard-plugin-profile`, or xprof.
"""

import tensorflow as tf
from absl import logging

from aigc_tf.errors import RunError


def steps_to_edge(step: int, window: tuple[int, ...]) -> list[int]:
    """Returns the numbers of steps from `step` to the start and to the stop of the profiler, if they are ahead.

    A call into the graph must end there, so that exactly the chosen steps are in the trace.

    Args:
        step: Number of finished steps.
        window: `training.recording.profile_steps`: first and last step, counted from 1, or empty.
    """
    edges = (window[0] - 1, window[1]) if window else ()
    return [edge - step for edge in edges if edge > step]


class ProfileWindow:
    """Starts and stops the profiler. A context manager, which also stops it if the run ends inside the window.

    Args:
        logs: The folder of the run's event files.
        window: `training.recording.profile_steps`.
    """

    def __init__(self, logs: str, window: tuple[int, ...]):
        self._logs, self._window = logs, window
        self._is_on = False

    def __enter__(self) -> "ProfileWindow":
        return self

    def __exit__(self, *error: object) -> None:
        self._stop()

    def after_step(self, step: int) -> None:
        """Starts the profiler if the next step is in the window, and stops it if it is not.

        Args:
            step: Number of finished steps.
        Raises:
            RunError: If the trace cannot be written.
        """
        if not self._window:
            return
        is_inside = self._window[0] <= step + 1 <= self._window[1]
        if is_inside and not self._is_on:
            try:
                tf.profiler.experimental.start(self._logs)
            except tf.errors.AlreadyExistsError:
                logging.warning("Another profiler watches this process; training.recording.profile_steps is ignored.")
                self._window = ()
                return
            self._is_on = True
        elif not is_inside:
            self._stop()

    def _stop(self) -> None:
        if not self._is_on:
            return
        self._is_on = False
        try:
            tf.profiler.experimental.stop()
        except tf.errors.OpError as error:
            raise RunError(f"Cannot write the trace of the profiler into {self._logs}: {error.message}.") from error
