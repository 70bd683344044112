"""Prints the examples of a bad step of a run."""

import numpy as np

from aigc_tf.commands.runs import (
    config_of_run,
    door_of,
    open_prepared_of,
)
from aigc_tf.config import ExperimentConfig
from aigc_tf.data.prepared.facts import DataFacts, read_facts
from aigc_tf.errors import InputError
from aigc_tf.training import skipping
from aigc_tf.training.devices import strategy


def inspect_examples(workdir: str, *, config: ExperimentConfig | None = None, step: int = 0) -> None:
    """Prints the examples of a bad step of a run, with their losses, the highest first."""
    config = config_of_run(workdir, config)
    facts = read_facts(workdir)
    step, rows = skipping.read_examples(workdir, step)
    prepared = open_prepared_of(config)
    if prepared.sha256 != facts.sha256:
        raise InputError(f"The prepared data {prepared.folder} are not those of the run {workdir}; prepare them again.")
    source = door_of(config).build(config, prepared, strategy.build_devices("none")).train
    print(f"Step {step} of {workdir}, {skipping.examples_path(workdir, step)}: {len(rows)} rows, the worst first.")
    for row in rows:
        print(f"\nloss {row['loss']}, weight {row['weight']:g}")
        for example_id in row["example_ids"]:
            _print_example(example_id, source.example(example_id), facts)


def _print_example(example_id: int, columns: dict[str, np.ndarray], facts: DataFacts) -> None:
    shown = {name: facts.encoder(name).decode(value) for name, value in columns.items()}
    texts = facts.schema.text_names
    named = "".join(f", {name} {value}" for name, value in shown.items() if name not in texts)
    print(f"  example {example_id}{named}")
    for name in texts:
        print("\n".join(f"    {line}" for line in shown.get(name, "").splitlines()) or "    (empty)")
