"""Publishes a run's weights as a SavedModel and says what comes next."""

import os
import sys

from aigc_tf.commands.runs import (
    config_of_run,
    door_of,
    load_model,
    open_prepared_of,
    read_facts,
)
from aigc_tf.config import ExperimentConfig
from aigc_tf.config.fields import sha256
from aigc_tf.data.prepared.prepared import PreparedDataset
from aigc_tf.errors import InputError
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
        prepared: PreparedDataset | None = open_prepared_of(config)
    except InputError as error:
        print(f"Without samples of the data: {error}", file=sys.stderr)
        prepared = None
    if prepared is not None and prepared.sha256 != facts.sha256:
        print("Without samples of the data, which were prepared anew since.", file=sys.stderr)
        prepared = None
    done = door.export(model, config, facts, prepared=prepared, source=source)
    print(done.summary())
    if table := done.cost_table():
        print(f"\nWhat its weights cost:\n{table}")
    folder = os.path.dirname(done.path)
    flag = door.ask_script.partition(" ")[2]
    print(f'\nAsk it:         python scripts/{door.ask_script.replace(" ", f" --model={folder} ")}="..."')
    print(f"Serve it:       tensorflow_model_server --rest_api_port=8501 --model_name={config.name} \\")
    print(f"                    --model_base_path={os.path.abspath(folder)}")
    print(f'Ask the server: python scripts/ask.py --server=http://localhost:8501 --model={config.name} {flag}="..."')
    print(f"Deploy it:      python scripts/render_deployment.py --model={folder} --output=deploy/{config.name}")
