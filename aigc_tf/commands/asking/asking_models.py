"""Asks a model in this process, from a run or an export."""

import dataclasses
import sys
from collections.abc import Mapping, Sequence

from aigc_tf import storage
from aigc_tf.commands.asking.answering import answer_questions
from aigc_tf.commands.asking.answers import check_no_overwriting
from aigc_tf.commands.runs import CONFIG, config_of_run, door_of, load_model
from aigc_tf.data.prepared.facts import read_facts
from aigc_tf.errors import InputError
from aigc_tf.serving.local.answerer import Answerer, Settings
from aigc_tf.serving.local.exported import exported_answerer
from aigc_tf.serving.versions import latest_version, read_manifest
from aigc_tf.tasks import spec_of


def ask_model(
    model: str,
    given: Mapping[str, Sequence[str]],
    *,
    script: str,
    settings: Settings | None = None,
    input_path: str = "",
    output_path: str = "",
    checkpoint: str = "best",
) -> None:
    """Asks a run or an exported model; see `answering.answer_questions`.

    Args:
        model: Run folder, or folder of an exported model.
        given: The values of each input in all questions, by its name.
        script: The script that the user runs.
        settings: Fields of GenerationConfig that differ from the run's or the export's.
        input_path: File of questions.
        output_path: JSONL file of the answers.
        checkpoint: For a run, one of `known_flags.CHECKPOINTS`.
    """
    settings = settings or {}
    check_no_overwriting(input_path, output_path)
    is_run = storage.exists(storage.join(model, CONFIG))
    folder = model if is_run else latest_version(model)
    if not is_run and checkpoint != "best":
        raise InputError(f"--checkpoint={checkpoint} is for runs; the exported model {model} has one set of weights.")
    manifest = {} if is_run else read_manifest(folder)
    ask = dataclasses.asdict(spec_of(config_of_run(model, None)).ask) if is_run else manifest["ask"]
    if ask["script"] != script:
        raise InputError(
            f"scripts/{script}.py does not ask {model}; scripts/{ask['script']}.py asks it, with --{ask['inputs'][0]}."
        )
    if sys.stderr.isatty():
        print(f"Loading {model} ...", file=sys.stderr)
    answerer = _run_answerer(model, checkpoint) if is_run else exported_answerer(folder, manifest, settings)
    answer_questions(
        dataclasses.replace(answerer, name=model),
        given,
        settings=settings,
        input_path=input_path,
        output_path=output_path,
    )


def _run_answerer(workdir: str, checkpoint: str) -> Answerer:
    config = config_of_run(workdir, None)
    model, _ = load_model(workdir, config, checkpoint=checkpoint, dtype="float32")
    return door_of(config).answerer(model, config, read_facts(workdir))
