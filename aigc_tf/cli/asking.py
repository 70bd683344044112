"""The scripts that ask a model. Their inputs follow from the tasks, and are checked before TensorFlow is imported."""

import contextlib
import dataclasses
import importlib
import os
import sys
from typing import Any

from aigc_tf import storage
from aigc_tf.cli.flags import Options
from aigc_tf.cli.known_flags import HELP, question_flags, question_inputs, typed
from aigc_tf.cli.path_flags import check_output, optional_path, required_path
from aigc_tf.cli.tensorflow_start import heavy_room, quiet
from aigc_tf.config import GenerationConfig
from aigc_tf.config.checks import validate_generation
from aigc_tf.errors import InputError


def predict(options: Options) -> None:
    """Answers questions with a run or an exported model."""
    with quiet():
        _ask_model(options, predict.__name__, must_have_questions=True)


def generate(options: Options) -> None:
    """Continues texts with a run or an exported model. Without prompts it reads standard input or converses."""
    _ask_model(options, generate.__name__, must_have_questions=False)


def _ask_model(options: Options, script: str, *, must_have_questions: bool) -> None:
    """Asks a model; `script` is the script's name, as in a task's `AskSpec`."""
    model = required_path(options, "model")
    given = _questions(options, script, must_have=must_have_questions)
    source, target = _files(options)
    if target and not (given or source):
        raise InputError(f"--output needs questions. {_give_questions(script)}")
    if not storage.exists(model):
        raise InputError(f"There is no model {model}.{storage.nearest_path(model)}")
    settings = _generation_settings(options)
    heavy_room("commands.asking.asking_models").ask_model(
        model,
        given,
        script=script,
        settings=settings,
        input_path=source,
        output_path=target,
        checkpoint=options.checkpoint,
    )


def ask(options: Options) -> None:
    """Asks a running server."""
    for name in ("server", "served"):
        if not getattr(options, name):
            raise InputError(f"--{typed(name)} is missing: {HELP[name]}")
    given = _questions(options, must_have=sys.stdin is None or sys.stdin.isatty())
    source, target = _files(options)
    settings = _generation_settings(options)
    # Only gRPC needs TensorFlow; REST answers before TensorFlow would be loaded.
    needs_tensorflow = options.server.startswith("grpc")
    room = (
        heavy_room("commands.asking.asking_server")
        if needs_tensorflow
        else importlib.import_module("aigc_tf.commands.asking.asking_server")
    )
    with quiet() if needs_tensorflow else contextlib.nullcontext():
        room.ask(
            options.server,
            options.served,
            given,
            version=options.version,
            label=options.label or "",
            timeout=options.timeout,
            settings=settings,
            input_path=source,
            output_path=target,
        )


def _questions(options: Options, script: str = "", *, must_have: bool) -> dict[str, list[str]]:
    """Returns the values of the questions by flag, equally many of each.

    Raises:
        InputError: If their numbers differ, they belong to several tasks, a file is given besides, or there are neither
            questions nor a file although `must_have` is set.
    """
    named = ((name, getattr(options, name, None)) for name in question_flags(script))
    given = {name: values for name, values in named if values}
    for first, *others in question_inputs(script):
        for name in others:
            counts = len(given.get(first, [])), len(given.get(name, []))
            if name in given and counts[0] != counts[1]:
                raise InputError(
                    f"Give one --{name} for each --{first}; there are {counts[0]} --{first} and {counts[1]} --{name}."
                )
    has_file = options.input is not None
    is_mixed = not any(set(given) <= set(inputs) for inputs in question_inputs(script))
    if is_mixed or (given and has_file) or (must_have and not given and not has_file):
        raise InputError(_give_questions(script))
    return given


def _give_questions(script: str = "") -> str:
    firsts = list(dict.fromkeys(inputs[0] for inputs in question_inputs(script)))
    what, flags = f"{firsts[0]}s" if len(firsts) == 1 else "questions", " or ".join(f"--{name}" for name in firsts)
    return f"Give the {what} with {flags} (once for each), or a file with --input, and not both."


def _files(options: Options) -> tuple[str, str]:
    """Returns the files of the questions and of the answers, checked; empty where a flag is left out."""
    source, target = optional_path(options, "input"), optional_path(options, "output")
    if source and not os.path.exists(source):
        raise InputError(f"There is no file {source}.{storage.nearest_path(source)}")
    check_output(target, overwrite=options.overwrite)
    return source, target


def _generation_settings(options: Options) -> dict[str, Any]:
    """Returns the fields of GenerationConfig that flags set, after checking them."""
    given = {field.name: getattr(options, field.name, None) for field in dataclasses.fields(GenerationConfig)}
    settings: dict[str, Any] = {
        name: tuple(value) if name == "stop" else value for name, value in given.items() if value is not None
    }
    validate_generation(GenerationConfig(**settings), prefix="--")
    return settings
