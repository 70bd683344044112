"""Prints the examples of a bad step of a run."""

import numpy as np

from aigc_tf.commands.runs import (
    config_of_run,
    door_of,
    open_prepared_of,
    read_facts,
)
from aigc_tf.config import ExperimentConfig
from aigc_tf.data.tokenizers.tokenizers import load_tokenizer
from aigc_tf.errors import InputError
from aigc_tf.tasks.door import DataFacts
from aigc_tf.training import skipping
from aigc_tf.training.devices import strategy


def inspect_examples(workdir: str, *, config: ExperimentConfig | None = None, step: int = 0) -> None:
    """Prints the examples of a bad step of a run, the worst first, with their losses."""
    config = config_of_run(workdir, config)
    facts = read_facts(workdir)
    step, rows = skipping.read_examples(workdir, step)
    prepared = open_prepared_of(config)
    if prepared.sha256 != facts.sha256:
        raise InputError(f"The prepared data {prepared.folder} are not those of the run {workdir}; prepare them again.")
    source = door_of(config).build(config, prepared, strategy.build_devices("none")).train
    tokenizer = load_tokenizer(facts.tokenizer_folder)
    print(f"Step {step} of {workdir}, {skipping.examples_path(workdir, step)}: {len(rows)} rows, the worst first.")
    for row in rows:
        print(f"\nloss {row['loss']}, weight {row['weight']:g}")
        for example_id in row["example_ids"]:
            parts, label = source.example(example_id)
            named = "" if label is None else f", label {_shown_label(label, facts)}"
            print(f"  example {example_id}{named}")
            for part in parts:
                print("\n".join(f"    {line}" for line in tokenizer.decode(part).splitlines()) or "    (empty)")


def _shown_label(label: np.ndarray, facts: DataFacts) -> str:
    if facts.problem_type == "single_label":
        return facts.label_names[int(label)]
    if facts.problem_type == "multi_label":
        return "|".join(name for name, is_set in zip(facts.label_names, label, strict=True) if is_set) or "none"
    return f"{float(label):g}"
