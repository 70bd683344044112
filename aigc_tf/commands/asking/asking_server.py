"""Asks a model of a running server, see `serving.clients`. Without TensorFlow, unless the server speaks gRPC."""

import sys
from collections.abc import Mapping, Sequence

from aigc_tf.commands.asking.answering import answer_questions
from aigc_tf.commands.asking.answers import check_no_overwriting
from aigc_tf.serving.clients.client import connect
from aigc_tf.serving.clients.served_answerer import served_answerer
from aigc_tf.serving.local.answerer import Settings


def ask(
    server: str,
    model: str,
    given: Mapping[str, Sequence[str]],
    *,
    settings: Settings,
    timeout: float,
    version: int | None = None,
    label: str = "",
    input_path: str = "",
    output_path: str = "",
) -> None:
    """Asks a model of a running server, and prints its answers as `asking_models.ask_model` does.

    Args:
        server: Address, see `serving.clients.client.connect`.
        model: Its name on the server.
        given: The values of each input in all questions, by its name.
        settings: Fields of GenerationConfig; the others keep the values of the model's export. Without any, all prompts
            have one seed.
        timeout: Seconds that a request may take.
        version: Version to ask; None, and no label: the newest that is loaded.
        label: Label to ask.
        input_path: File of questions, instead of `given`.
        output_path: JSONL file of the answers.
    """
    check_no_overwriting(input_path, output_path)

    def notice(sentence: str) -> None:
        print(sentence, file=sys.stderr, flush=True)

    with connect(server, model, version=version, label=label, timeout=timeout, notice=notice) as client:
        answer_questions(
            served_answerer(client), given, settings=settings, input_path=input_path, output_path=output_path
        )
