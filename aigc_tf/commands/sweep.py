"""A sweep: many runs of one experiment with different values of some fields, chosen by Optuna.

    runs/sweep/
      sweep.json      the config, the search space, and the metric
      study.db        Optuna's study, SQLite: the trials and their results
      trial-0007/     a run folder as scripts/train.py leaves it, with trial.json, its config, and output.log, its
                      output
      results.json    all trials, best first

Each trial trains in its own process, so that memory and devices are free when it ends. What Optuna proposes is a
function of the config's seed, the number of the trial and the results before it. So a sweep that was killed resumes the
unfinished trial in its folder, and ends as if it had never been killed.
"""

import dataclasses
import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from rich.console import Console
from rich.table import Table

from aigc_tf import storage
from aigc_tf.commands.search_space import Dimension, show, with_values
from aigc_tf.config import OPERATIONAL_FIELDS, ExperimentConfig
from aigc_tf.config.fields import flatten, from_json, to_json
from aigc_tf.config.shell import shell_line
from aigc_tf.errors import InputError, Preempted, RunError
from aigc_tf.evaluation import report
from aigc_tf.evaluation.best_metric import best_metric
from aigc_tf.tasks import check_config, spec_of

_META, _STUDY, _RESULTS = "sweep.json", "study.db", "results.json"
_TRIAL, _OUTPUT = "trial.json", "output.log"
_RANDOM_TRIALS = 10
"""Trials that are drawn at random before Optuna uses results; Optuna's default."""

Runner = Callable[[Sequence[str], str], int]
"""`run(command, output)`: runs a command to its end, appends its output to a file, returns its exit status."""


def sweep(
    config: ExperimentConfig,
    workdir: str,
    *,
    space: Sequence[Dimension],
    num_trials: int,
    train_script: str,
    run: Runner | None = None,
) -> None:
    """Runs trials until `num_trials` are done, and prints their results.

    Args:
        config: A valid config; its data are prepared.
        workdir: Folder of the sweep, on a disk.
        space: The search space; the config is valid with it (`search_space.check_space`).
        num_trials: Trials of the whole sweep, including those of earlier processes.
        train_script: Path of scripts/train.py.
        run: Replaces the process of a trial.
    Raises:
        InputError: If the sweep began with another config or space, or a trial's config does not fit.
        RunError: If another process sweeps there, optuna is not installed, or no trial has a result.
    """
    optuna = _import_optuna()
    metric, sign = best_metric(spec_of(config).metrics(config), config.evaluation.best_metric)
    _check_data(config, space)
    busy = f"Another process sweeps in {workdir} now; wait until it is done, or take another --workdir."
    with storage.locked_file(storage.join(workdir, ".lock"), busy=busy, advice="Take another --workdir."):
        # Written before the study: a study without a description would accept another search space.
        _begin(config, workdir, space, metric)
        study = optuna.create_study(
            storage=f"sqlite:///{os.path.abspath(storage.join(workdir, _STUDY))}",
            study_name="sweep",
            direction="maximize" if sign > 0 else "minimize",
            load_if_exists=True,
        )
        sweeper = _Sweeper(config, workdir, space, metric, study=study, train_script=train_script, run=run or _run)
        sweeper.go_on(num_trials)
        _write_results(workdir, study, metric)
    _print_results(workdir, study, space, metric)


def _import_optuna() -> Any:
    try:
        import optuna
    except ImportError as error:
        raise InputError(
            "A sweep needs the package optuna; install it with `pip install optuna`, or the extra `sweep`."
        ) from error
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    return optuna


def _check_data(config: ExperimentConfig, space: Sequence[Dimension]) -> None:
    """Refuses what would fail in all trials: fields of the prepared data, or data without a validation split."""
    folder = storage.join(config.data.prepared_dir, config.name)
    info = storage.read_json(storage.join(folder, "dataset.json"))
    for dimension in space:
        if dimension.field in info["config"]:
            raise InputError(
                f"--search names {dimension.field}, on which the prepared data depend; a sweep trains on one data set. "
                "Prepare others under other names and sweep on each."
            )
    if "validation" not in info["splits"]:
        raise InputError(
            f"The prepared data {folder} have no validation split, and a sweep ranks trials by the metric on it; "
            "prepare them with one."
        )


def _begin(config: ExperimentConfig, workdir: str, space: Sequence[Dimension], metric: str) -> None:
    """Writes the sweep's description, or checks that it did not change.

    Raises:
        InputError: If it began with another config or space; the message names the differences.
    """
    path = storage.join(workdir, _META)
    searched = sorted(str(dimension) for dimension in space)
    if not storage.exists(path):
        if storage.exists(storage.join(workdir, "config.json")):
            raise InputError(f"{workdir} is a run; give the sweep another --workdir.")
        content = {"config": dataclasses.asdict(config), "search": searched, "metric": metric}
        storage.write_json(path, content)
        return
    known = storage.read_json(path)
    before, now = flatten(from_json(json.dumps(known["config"]))), flatten(config)
    ignored = OPERATIONAL_FIELDS | {dimension.field for dimension in space}
    differences = [
        f"{name} was {before[name]!r} and is {now[name]!r}"
        for name in now
        if name not in ignored and now[name] != before[name]
    ]
    if known["search"] != searched:
        differences.insert(0, f"--search was {' '.join(known['search'])} and is {' '.join(searched)}")
    if differences:
        raise InputError(
            f"This sweep began with another config: {'; '.join(differences)}. "
            "Take another --workdir for another sweep, or the old values to resume this one."
        )


class _Sweeper:
    """Runs the trials of a study one after the other."""

    def __init__(
        self,
        config: ExperimentConfig,
        workdir: str,
        space: Sequence[Dimension],
        metric: str,
        *,
        study: Any,
        train_script: str,
        run: Runner,
    ):
        self._config, self._workdir, self._space, self._metric = config, workdir, space, metric
        self._study, self._train_script, self._run = study, train_script, run
        self._optuna = _import_optuna()

    def go_on(self, num_trials: int) -> None:
        """Finishes an interrupted trial, and runs more until `num_trials` are done."""
        for trial in self._study.get_trials(deepcopy=False):
            if not trial.state.is_finished():
                if len(trial.params) < len(self._space):  # killed while its values were drawn, before it ran
                    self._study.tell(trial.number, state=self._optuna.trial.TrialState.FAIL)
                else:
                    self._try(trial.number, trial.params)
        while (num_begun := self._num_begun()) < num_trials:
            # Each trial has its own sampler, so that its draws do not depend on whether the sweep was restarted.
            self._study.sampler = self._optuna.samplers.TPESampler(
                n_startup_trials=_RANDOM_TRIALS, seed=(self._config.training.seed + 1_000_003 * num_begun) % 2**32
            )
            trial = self._study.ask({dimension.field: self._distribution(dimension) for dimension in self._space})
            self._try(trial.number, trial.params)

    def _num_begun(self) -> int:
        return sum(len(trial.params) == len(self._space) for trial in self._study.get_trials(deepcopy=False))

    def _distribution(self, dimension: Dimension) -> Any:
        distributions = self._optuna.distributions
        if dimension.choices:
            return distributions.CategoricalDistribution(dimension.choices)
        if dimension.is_whole:
            return distributions.IntDistribution(int(dimension.low), int(dimension.high), log=dimension.is_log)
        return distributions.FloatDistribution(dimension.low, dimension.high, log=dimension.is_log)

    def _try(self, number: int, params: Mapping[str, Any]) -> None:
        """Trains one trial and tells the study its result."""
        folder = _folder(self._workdir, number)
        config = with_values(self._config, params)
        try:
            check_config(config)
        except InputError as error:
            raise InputError(f"Trial {number} would try {show(params)}, which does not fit: {error}") from error
        busy = f"Trial {number} still trains in {folder} from an earlier start; wait until it is done."
        # The lock is only probed here: the trial's own process takes it. A killed sweep may have left a trial running.
        with storage.locked_file(storage.join(folder, ".lock"), busy=busy):
            pass
        storage.write_bytes(storage.join(folder, _TRIAL), to_json(config).encode())
        output = storage.join(folder, _OUTPUT)
        print(f"trial {number}: {show(params)}; its output goes to {output}", flush=True)
        trial = [f"--config={storage.join(folder, _TRIAL)}", f"--workdir={folder}"]
        status = self._run([sys.executable, self._train_script, *trial], output)
        state = self._optuna.trial.TrialState
        if status == 0:
            value = _value_of(folder, self._metric)
            self._study.tell(number, value, state=state.FAIL if value is None else state.COMPLETE)
            shown = "undefined" if value is None else f"{value:.4f}"
            print(f"trial {number}: validation {self._metric} {shown}", flush=True)
        elif status == 1 or status < 0:
            self._study.tell(number, state=state.FAIL)
            print(f"trial {number}: failed: {_failure(folder, status)}", flush=True)
        elif status == 2:
            raise InputError(f"Trial {number} does not fit: {_failure(folder, status)}")
        else:
            raise RunError(f"Trial {number} ended unfinished with status {status}; the same command resumes it.")


def _folder(workdir: str, number: int) -> str:
    return storage.join(workdir, f"trial-{number:04d}")


def _value_of(folder: str, metric: str) -> float | None:
    """Returns the metric on the validation data of a trial's best weights; None if it is undefined."""
    value = report.read_report(folder)["metrics"]["validation"].get(metric)
    return None if value is None else float(value)


def _failure(folder: str, status: int | None = None) -> str:
    """Returns the last error of a trial as a sentence."""
    path = storage.join(folder, _OUTPUT)
    lines = storage.read_bytes(path).decode(errors="replace").splitlines() if storage.exists(path) else []
    errors = [line.removeprefix("error: ") for line in lines if line.startswith("error: ")]
    if status is not None and status < 0:
        return f"ended by {signal.Signals(-status).name}; for SIGKILL, the machine may be out of memory."
    return errors[-1] if errors else f"it printed no error; see {path}."


def _ended(folder: str) -> str:
    """Returns the word for the end of a trial without a result."""
    # The study calls both failed, but only a trial that was trained to its end has a report.
    return "undefined" if storage.exists(storage.join(folder, report.REPORT_NAME)) else "failed"


def _why(ranked: Sequence[Any], workdir: str, metric: str) -> str:
    """Returns the sentence on why no trial has a result; empty if there is no trial."""
    if not ranked:
        return ""
    last = _folder(workdir, ranked[-1].number)
    if _ended(last) == "failed":
        return f" The last error: {_failure(last)}"
    return f" {metric} is undefined for the validation data; take another evaluation.best_metric, or other data."


def _run(command: Sequence[str], output: str) -> int:
    """Runs a trial. Ctrl-C and SIGTERM go to the trial first, which writes a checkpoint; then they end the sweep."""
    caught: list[int] = []
    with open(output, "ab") as log:
        # In its own session, or a terminal's Ctrl-C would reach it twice.
        process = subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=log, stderr=subprocess.STDOUT, start_new_session=True
        )

    def pass_on(number: int, frame: Any) -> None:
        del frame
        caught.append(number)
        process.send_signal(number)

    handlers = {number: signal.signal(number, pass_on) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        status = process.wait()
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)
    if signal.SIGINT in caught:
        raise KeyboardInterrupt
    if caught:
        raise Preempted
    return status


def _write_results(workdir: str, study: Any, metric: str) -> None:
    results = [
        {
            "trial": trial.number,
            "state": trial.state.name.lower(),
            metric: trial.value,
            "values": trial.params,
        }
        for trial in _ranked(study)
    ]
    storage.write_json(storage.join(workdir, _RESULTS), results)


def _ranked(study: Any) -> list[Any]:
    """Returns the trials that ran, best first, then those that failed."""
    sign = -1 if study.direction.name == "MAXIMIZE" else 1
    trials = [trial for trial in study.get_trials(deepcopy=False) if trial.params]
    return sorted(trials, key=lambda trial: (trial.value is None, sign * (trial.value or 0.0), trial.number))


def _print_results(workdir: str, study: Any, space: Sequence[Dimension], metric: str) -> None:
    """Prints the table of trials, the best of them, and what to do next.

    Raises:
        RunError: If no trial has a result.
    """
    ranked = _ranked(study)
    fields = [dimension.field for dimension in space]
    table = Table(title=f"Trials of {workdir}", title_justify="left")
    for name in ("trial", metric, *(field.rpartition(".")[2] for field in fields)):
        table.add_column(name, overflow="fold")
    for trial in ranked:
        shown = _ended(_folder(workdir, trial.number)) if trial.value is None else f"{trial.value:.4f}"
        values = (show({field: trial.params[field]}).partition("=")[2] for field in fields)
        table.add_row(str(trial.number), shown, *values)
    Console().print(table)
    best = next(iter(ranked), None)
    if best is None or best.value is None:
        raise RunError(f"No trial of {workdir} has a result.{_why(ranked, workdir, metric)}")
    folder = _folder(workdir, best.number)
    print(f"\nBest: trial {best.number}, validation {metric} {best.value:.4f}")
    for field in fields:
        print(f"  {show({field: best.params[field]})}")
    trial = storage.join(folder, _TRIAL)
    print(f"\nCompare them:      {shell_line('tensorboard', f'--logdir={workdir}')}")
    print(f"Export the best:   {shell_line('python', 'scripts/export.py', f'--workdir={folder}')}")
    print(f"Train it again:    {shell_line('python', 'scripts/train.py', f'--config={trial}', '--workdir=...')}")
