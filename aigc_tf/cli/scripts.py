"""What each script does before its command: it reads flags and checks them.

TensorFlow takes seconds to import, so it is imported only after flags, config and sources are checked.
"""

import glob
import importlib
import os
import sys

from aigc_tf import storage
from aigc_tf.cli.flags import Options
from aigc_tf.cli.known_flags import BOOLEANS, HELP
from aigc_tf.cli.path_flags import check_no_file, optional_path, required_path
from aigc_tf.cli.tensorflow_start import heavy_room
from aigc_tf.commands.launching import launch as launch_workers
from aigc_tf.commands.search_space import check_space, parse_search
from aigc_tf.config import ExperimentConfig
from aigc_tf.config.files import load_config
from aigc_tf.config.shell import shell_line
from aigc_tf.data.sources.sources import check_tables, find_sources
from aigc_tf.errors import InputError
from aigc_tf.tasks import TASKS, check_config, shown_config


def prepare(options: Options) -> None:
    """Makes the prepared data set of an experiment."""
    config = _checked_config(options)
    sources = find_sources(config.data)
    check_tables(sources, TASKS[config.task].schema(config).source_columns(config.data))
    if options.dry_run:
        print(shown_config(config))
        print("\nfiles")
        print("\n".join(f"  {source.uri}  {source.format}  {source.split}".rstrip() for source in sources))
        return
    heavy_room("commands.prepare").prepare(config, overwrite=options.overwrite)
    print(f"Train on it:   python scripts/train.py {_typed_without('overwrite', 'debug')} --workdir=runs/{config.name}")


def train(options: Options) -> None:
    """Trains an experiment into its run folder, or resumes it."""
    config = _checked_config(options)
    workdir = required_path(options, "workdir")
    _check_prepared(config)
    if options.device and not options.dry_run:
        raise InputError("--device names the device that --dry_run checks; give both or neither.")
    heavy_room("commands.train").train(config, workdir, dry_run=options.dry_run, device=options.device)


def sweep(options: Options) -> None:
    """Trains an experiment several times with other values of some fields, and prints the best."""
    config = _checked_config(options)
    workdir = required_path(options, "workdir")
    space = parse_search(options.search or [])
    check_space(config, space)
    if options.trials < 1:
        raise InputError(f"--trials is {options.trials}; it must be at least 1.")
    if storage.is_remote(workdir):
        raise InputError(f"--workdir {workdir} is on an object store; a sweep keeps its study on a disk.")
    if os.environ.get("TF_CONFIG"):
        raise InputError("TF_CONFIG is set, but a sweep trains on one host; unset it.")
    _check_prepared(config)
    if options.dry_run:
        print(shown_config(config))
        print("\n".join(["", "search", *(f"  {dimension}" for dimension in space), f"  {options.trials} trials"]))
        return
    train_script = os.path.join(os.path.dirname(os.path.abspath(sys.argv[0])), "train.py")
    # Not through heavy_room: TensorFlow would hold a TPU that the trials need.
    room = importlib.import_module("aigc_tf.commands.sweep")
    room.sweep(config, workdir, space=space, num_trials=options.trials, train_script=train_script)


def _check_prepared(config: ExperimentConfig) -> None:
    prepared = storage.join(config.data.prepared_dir, config.name)
    if not storage.exists(storage.join(prepared, "dataset.json")):
        typed = _typed_without("workdir", "search", "trials", "device", "dry_run", "debug")
        raise InputError(f"There is no prepared data set {prepared}; make it with: python scripts/prepare.py {typed}")


def evaluate(options: Options) -> None:
    """Evaluates a run's weights on its validation and test data."""
    workdir, config = _run_folder(options)
    if options.dry_run:
        print(shown_config(config or load_config(storage.join(workdir, "config.json"))))
        return
    heavy_room("commands.evaluate").evaluate(workdir, config=config, checkpoint=options.checkpoint)


def inspect_examples(options: Options) -> None:
    """Shows the examples of a bad step of a run as text."""
    workdir, config = _run_folder(options)
    if options.step < 0:
        raise InputError(f"--step is {options.step}; steps are counted from 1, and 0 is the last bad one.")
    heavy_room("commands.inspect_examples").inspect_examples(workdir, config=config, step=options.step)


def export(options: Options) -> None:
    """Publishes a run's weights as a SavedModel."""
    workdir, config = _run_folder(options)
    if options.dry_run:
        print(shown_config(config or load_config(storage.join(workdir, "config.json"))))
        return
    heavy_room("commands.export").export(workdir, config=config, checkpoint=options.checkpoint)


def render_deployment(options: Options) -> None:
    """Writes the files needed to serve exported models."""
    output = options.deployment or ""
    if not output:
        raise InputError(f"--output is missing: {HELP['deployment']}")
    check_no_file("--output", output)
    folders = options.exports or []
    for folder in folders:
        if not storage.exists(folder):
            raise InputError(f"There is no model {folder}.{storage.nearest_path(folder)}")
    batching = optional_path(options, "batching")
    if batching and not os.path.isfile(batching):
        raise InputError(f"There is no file {batching}.{storage.nearest_path(batching)}")
    room = importlib.import_module(
        "aigc_tf.serving.deployment.deployment"
    )  # imported here, since only this script needs its libraries
    done = room.render_deployment(
        folders,
        output=output,
        stable=options.stable or [],
        canary=options.canary or [],
        batching=batching,
        overwrite=options.overwrite,
    )
    print(done)


def check_servable(options: Options) -> None:
    """Prints whether a stock TensorFlow Serving serves a SavedModel."""
    folder = options.folder
    if not folder:
        raise InputError("The folder is missing: python scripts/check_servable.py saved_models/NAME")
    check_no_file("The argument", folder)
    if not storage.exists(folder):
        raise InputError(f"There is no folder {folder}.{storage.nearest_path(folder)}")
    # Not through heavy_room: nothing is run, so TensorFlow is not needed.
    importlib.import_module("aigc_tf.serving.gate.op_gate").report(folder, target=options.target)


def launch(options: Options) -> None:
    """Runs a command as several workers on this host and ends with the status of the first that fails."""
    if options.num_workers is None or options.num_workers < 1:
        given = "missing" if options.num_workers is None else options.num_workers
        raise InputError(f"--num_workers is {given}; give the number of processes to start, at least 1.")
    if not options.command:
        raise InputError(
            "There is no command to run; it comes after --: "
            "python scripts/launch.py --num_workers=2 -- python scripts/train.py --config=... --workdir=..."
        )
    raise SystemExit(launch_workers(options.command, options.num_workers))


def _typed_without(*names: str) -> str:
    """Returns the arguments of this command without some flags, quoted for a shell: for the next command."""
    kept, is_value = [], False
    for argument in sys.argv[1:]:
        name, is_joined, _ = argument.lstrip("-").partition("=")
        is_dropped = argument.startswith("-") and name in names
        if not is_value and not is_dropped:
            kept.append(argument)
        is_value = not is_value and is_dropped and name not in BOOLEANS and not is_joined
    return shell_line(*kept)


def _checked_config(options: Options) -> ExperimentConfig:
    if options.config is None:
        raise InputError(f"--config is missing: the Python file of an experiment.{_known_configs()}")
    check_config(options.config)
    config: ExperimentConfig = options.config
    check_no_file("data.prepared_dir", config.data.prepared_dir)
    check_no_file("export.directory", config.export.directory)
    return config


def _run_folder(options: Options) -> tuple[str, ExperimentConfig | None]:
    """Returns a run's folder, and the config if one is given too."""
    workdir = required_path(options, "workdir")
    if not storage.exists(storage.join(workdir, "config.json")):
        raise InputError(f"{workdir} is not a run: it has no config.json.{storage.nearest_path(workdir)}")
    if options.config is not None:
        check_config(options.config)
    return workdir, options.config


def _known_configs() -> str:
    there = sorted(glob.glob("configs/*.py"))
    return f" There are: {', '.join(there)}." if there else ""
