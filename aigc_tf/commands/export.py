"""Publishes a run's weights as a SavedModel and prints the next commands."""

import os
import sys

from aigc_tf.commands.runs import (
    config_of_run,
    door_of,
    load_model,
    open_prepared_of,
)
from aigc_tf.config import ExperimentConfig
from aigc_tf.config.fields import sha256
from aigc_tf.config.shell import shell_line
from aigc_tf.data.prepared.facts import read_facts
from aigc_tf.data.prepared.prepared import PreparedDataset
from aigc_tf.errors import InputError
from aigc_tf.serving.publishing.publishing import publish
from aigc_tf.tasks import TASKS
from aigc_tf.tasks.door import policy_of


def export(workdir: str, *, config: ExperimentConfig | None = None, checkpoint: str = "best") -> None:
    """Publishes a run's weights as a SavedModel."""
    config = config_of_run(workdir, config)
    door, facts = door_of(config), read_facts(workdir)
    model, step = load_model(workdir, config, checkpoint=checkpoint, dtype=policy_of(config.training.devices.precision))
    source = {
        "run": os.fspath(workdir),
        "checkpoint": checkpoint,
        "step": step,
        "config_sha256": sha256(config),
        "data_sha256": facts.sha256,
    }
    try:
        # A run can be exported where its data are missing: samples only widen the trial of the export.
        prepared: PreparedDataset | None = open_prepared_of(config)
    except InputError as error:
        print(f"Exporting without samples of the data: {error}", file=sys.stderr)
        prepared = None
    if prepared is not None and prepared.sha256 != facts.sha256:
        print("Exporting without samples of the data, which were prepared again since the training.", file=sys.stderr)
        prepared = None
    done = publish(
        door.servable(model, config, facts, prepared=prepared),
        directory=config.export.directory,
        name=config.name,
        task_facts=TASKS[config.task].manifest_facts(),
        target=config.export.target,
        batch_sizes=config.export.batch_sizes,
        source=source,
    )
    print(done.summary())
    if table := done.cost_table():
        print(f"\nCost of its weights:\n{table}")
    folder = os.path.dirname(done.path)
    _print_what_comes_next(folder, config)


def _print_what_comes_next(folder: str, config: ExperimentConfig) -> None:
    """Prints the commands that ask, serve and deploy the model in `folder`, ready to be pasted."""
    spec, name = TASKS[config.task], config.name
    question = " ".join(f'--{one}="..."' for one in spec.asked_inputs(config))
    model, server = f"--model={folder}", "--server=http://localhost:8501"
    base_path = shell_line(f"--model_base_path={os.path.abspath(folder)}")
    deploy = shell_line("python", "scripts/render_deployment.py", model, f"--output=deploy/{name}")
    print(f"\nAsk it:         {shell_line('python', f'scripts/{spec.ask.script}.py', model)} {question}")
    print(f"Serve it:       {shell_line('tensorflow_model_server', '--rest_api_port=8501', f'--model_name={name}')} \\")
    print(f"                    {base_path}")
    print(f"Ask the server: {shell_line('python', 'scripts/ask.py', server, f'--model={name}')} {question}")
    print(f"Deploy it:      {deploy}")
