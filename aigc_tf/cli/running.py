"""Runs a script: reads its flags, calls its command, prints every error as one line.

Exit status: 0 done, 1 the run failed, 2 an input does not fit, 130 interrupted (Ctrl-C), 143 asked to end (SIGTERM).
"""

import contextlib
import errno
import os
import sys
import traceback
from collections.abc import Callable, Iterator, Sequence
from typing import NoReturn

from absl import app

from aigc_tf.cli.flags import Options, parse
from aigc_tf.config.shell import shell_line
from aigc_tf.errors import InputError, Preempted, RunError


def run(command: Callable[[Options], None], *, flags: Sequence[str], description: str | None) -> NoReturn:
    """Runs a script: reads its flags, calls its command, exits.

    Args:
        command: The script's command, a function of `cli.scripts` or `cli.asking`.
        flags: The flags it reads, keys of `known_flags.HELP`; `--help` and `--debug` come with every script.
        description: The script's docstring, which `--help` prints.

    Raises:
        SystemExit: Always.
    """
    with _one_line_errors(is_debugged()):
        app.run(command, flags_parser=lambda argv: parse(argv, names=[*flags, "debug"], description=description or ""))
    raise SystemExit(0)


def is_debugged() -> bool:
    return any(argument in ("--debug", "-debug", "--debug=true") for argument in sys.argv)


@contextlib.contextmanager
def _one_line_errors(is_debugged: bool) -> Iterator[None]:
    try:
        yield
        sys.stdout.flush()
    except BrokenPipeError:  # the reader of the output, such as `head`, has ended
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)  # or Python fails again when it flushes at exit
        raise SystemExit(141) from None
    except KeyboardInterrupt:
        _fail("Interrupted. Complete files are kept; the same command can be run again.", status=130)
    except Preempted:
        _fail(
            "Asked to end: the last checkpoint has all finished steps, and the same command resumes there.", status=143
        )
    except Exception as error:  # the only place that catches everything
        if is_debugged:
            traceback.print_exc()
        message = filled(" ".join(line.strip() for line in str(error).splitlines() if line.strip()))
        if isinstance(error, InputError):
            _fail(message, status=2)
        if isinstance(error, RunError):
            _fail(message, status=1)
        kind = type(error).__name__
        if kind in ("ResourceExhaustedError", "MemoryError"):
            _fail(
                f"Out of memory. Lower training.global_batch_size, evaluation.batch_size or data.max_length, or take a "
                f"smaller model ({_shorten(message, 200)}).",
                status=1,
            )
        if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
            _fail(f"Cannot write: {error.strerror}. Free some space and run the same command again.", status=1)
        hint = "" if is_debugged else " Run again with --debug to see where."
        shown = _shorten(message)
        _fail(f"{kind}: {shown}{'' if shown.endswith('.') else '.'}{hint}", status=1)


def filled(message: str) -> str:
    """Fills the typed config into the commands of a message, so that they can be pasted."""
    typed: list[str] = []
    is_value = False
    for word in sys.argv[1:]:
        name, is_joined, _ = word.lstrip("-").partition("=")
        is_config = word.startswith("-") and name.partition(".")[0] in ("config", "noconfig")
        if is_config or (is_value and not word.startswith("-")):
            typed.append(word)
        is_value = is_config and not is_joined
    return message.replace("--config=...", shell_line(*typed)) if typed else message


def _fail(message: str, *, status: int) -> NoReturn:
    # What was printed before comes first; a closed pipe must not hide the error.
    with contextlib.suppress(OSError):
        sys.stdout.flush()
    print(f"error: {message}", file=sys.stderr, flush=True)
    raise SystemExit(status)


def _shorten(message: str, width: int = 500) -> str:
    return message if len(message) <= width else f"{message[:width]} ..."
