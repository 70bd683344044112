"""The scripts: what a user types, mistypes, and reads. TensorFlow is not needed for any of it, which is tested too."""

import dataclasses
import json
import os
import shlex
import signal
import subprocess
import sys
import textwrap
import types
from pathlib import Path

import pytest

import aigc_tf
from aigc_tf.cli import asking, running
from aigc_tf.cli import flags as flag_parsing
from aigc_tf.cli import scripts as cli
from aigc_tf.cli.known_flags import question_flags
from aigc_tf.config import DataConfig, ExperimentConfig
from aigc_tf.config import files as config_files
from aigc_tf.config.fields import flatten, table, to_json
from aigc_tf.errors import InputError, RunError
from aigc_tf.tasks import TASKS

ROOT = Path(__file__).parents[2]
CONFIGS = ", ".join(sorted(f"configs/{path.name}" for path in (ROOT / "configs").glob("*.py")))
CONFIG = "configs/bert_sentiment.py"
SCRIPTS = ("prepare", "train", "evaluate", "predict", "generate", "export", "sweep")
ASKING = ("predict", "generate")
FLAGS = {
    "prepare": ("config", "overwrite", "dry_run"),
    "train": ("config", "workdir", "dry_run", "device"),
    "sweep": ("config", "workdir", "search", "trials", "dry_run"),
    "evaluate": ("workdir", "checkpoint", "config", "dry_run"),
    "export": ("workdir", "checkpoint", "config", "dry_run"),
    "predict": ("model", "text", "text_b", "input", "output", "overwrite", "checkpoint"),
    "generate": (
        "model",
        "prompt",
        "max_new_tokens",
        "temperature",
        "top_k",
        "top_p",
        "min_p",
        "repetition_penalty",
        "stop",
        "num_beams",
        "seed",
        "input",
        "output",
        "overwrite",
        "checkpoint",
    ),
}


@pytest.fixture
def calls(monkeypatch):
    """Stands in for the heavy rooms and collects how they are called."""
    made = []
    rooms = types.ModuleType("aigc_tf.commands")
    for name in (*SCRIPTS, "ask_model"):
        monkeypatch.setattr(
            rooms, name, lambda *args, name=name, **kwargs: made.append((name, args, kwargs)), raising=False
        )
    monkeypatch.setattr(cli, "heavy_room", lambda name: rooms)
    monkeypatch.setattr(asking, "heavy_room", lambda name: rooms)
    return made


@pytest.fixture
def run(monkeypatch, capsys, tmp_path):
    """Runs a script's command in this process, in an empty folder; returns exit status, stdout and stderr."""
    (tmp_path / "configs").symlink_to(ROOT / "configs")
    monkeypatch.chdir(tmp_path)

    def run_command(name, *arguments):
        monkeypatch.setattr(sys, "argv", [f"scripts/{name}.py", *arguments])
        with pytest.raises(SystemExit) as stopped:
            running.run(
                getattr(asking, name, None) or getattr(cli, name), flags=FLAGS[name], description=f"What {name} does."
            )
        written = capsys.readouterr()
        return int(stopped.value.code or 0), written.out, written.err

    return run_command


@pytest.fixture
def texts(tmp_path):
    (tmp_path / "a.csv").write_text("text,label\ngood,1\nbad,0\n")
    (tmp_path / "b.csv").write_text("text,label\nfine,1\npoor,0\n")
    return tmp_path


@pytest.fixture
def config_file(tmp_path):
    """Writes a config file and returns its name."""

    def write(body, name="mine.py"):
        source = "from aigc_tf.config import *\n" + textwrap.dedent(body)
        (tmp_path / name).write_text(source, encoding="utf-8")
        return name

    return write


def _run_folder(tmp_path, name="runs/s1"):
    folder = tmp_path / name
    folder.mkdir(parents=True)
    config = ExperimentConfig(name="s1", task="classify", data=DataConfig(sources=("a.csv",)))
    (folder / "config.json").write_text(to_json(config))
    return name


def _prepared(tmp_path, name="bert_sentiment"):
    folder = tmp_path / "prepared" / name
    folder.mkdir(parents=True)
    (folder / "dataset.json").write_text("{}")


# ------------------------------------------------------------------------------------------------------ what is right


def test_prepare_gets_the_config_with_its_overrides(run, calls, texts):
    status, shown, _ = run(
        "prepare",
        f"--config={CONFIG}",
        "--config.data.sources=a.csv,b.csv",
        "--config.data.format=auto",
        "--config.data.column_names=",
        "--config.data.label_column=label",
        "--config.data.max_length",
        "64",
        "--overwrite",
    )
    assert status == 0
    assert shown == (
        f"Train on it:   python scripts/train.py --config={CONFIG} --config.data.sources=a.csv,b.csv "
        "--config.data.format=auto --config.data.column_names= --config.data.label_column=label "
        "--config.data.max_length 64 --workdir=runs/bert_sentiment\n"
    )
    [(name, (config,), kwargs)] = calls
    assert name == "prepare"
    assert kwargs == {"overwrite": True}
    assert config.data.sources == ("a.csv", "b.csv")
    assert config.data.column_names == ()
    assert config.data.max_length == 64


@pytest.mark.parametrize(
    ("flags", "field", "value"),
    [
        (["--config.training.optimizer.learning_rate=1e-3"], "optimizer.learning_rate", 1e-3),
        (["--config.training.optimizer.learning_rate=1"], "optimizer.learning_rate", 1.0),
        (["--config.training.num_steps", "2000"], "num_steps", 2000),
        (["--config.training.loss.balance_classes"], "loss.balance_classes", True),
        (["--noconfig.training.loss.balance_classes"], "loss.balance_classes", False),
        (["--config.training.loss.balance_classes=true"], "loss.balance_classes", True),
        (["-config.training.seed=7"], "seed", 7),
        (["--config.training.seed=1", "--config.training.seed=2"], "seed", 2),
        (["--config.training.loss.class_weights=1,2"], "loss.class_weights", (1.0, 2.0)),
        (["--config.training.loss.class_weights=(1, 2.5)"], "loss.class_weights", (1.0, 2.5)),
        (
            ["--config.training.loss.class_weights=1", "--config.training.loss.class_weights=3"],
            "loss.class_weights",
            (1.0, 3.0),
        ),
        (["--config.training.loss.class_weights="], "loss.class_weights", ()),
    ],
)
def test_an_override_has_the_type_of_its_field(run, calls, tmp_path, flags, field, value):
    _prepared(tmp_path)
    status, _, errors = run("train", f"--config={CONFIG}", "--workdir=runs/s1", *flags)
    assert (status, errors) == (0, "")
    [(_, (config, workdir), kwargs)] = calls
    received = flatten(config.training)[field]
    assert received == value
    assert type(received) is type(value)
    assert (workdir, kwargs) == ("runs/s1", {"dry_run": False, "device": None})


@pytest.mark.parametrize(
    ("typed", "value"),
    [
        ("a b.csv", ("a b.csv",)),
        ("2024,x", ("2024", "x")),
        ("('a,b.csv', 'c')", ("a,b.csv", "c")),
        ("['a']", ("a",)),
        ("tfds:imdb_reviews", ("tfds:imdb_reviews",)),
        ("data/*.csv", ("data/*.csv",)),
        ("", ()),
    ],
)
def test_a_tuple_of_texts_reads_as_a_shell_user_writes_it(tmp_path, monkeypatch, typed, value):
    options = flag_parsing.parse(
        ["prepare.py", f"--config={ROOT / CONFIG}", f"--config.data.sources={typed}"], names=["config"], description=""
    )
    assert options.config.data.sources == value


def test_overrides_may_stand_before_the_config(run, calls, tmp_path):
    _prepared(tmp_path)
    assert run("train", "--config.training.seed=5", "--workdir", "runs/s1", "--config", CONFIG)[0] == 0
    assert calls[0][1][0].training.seed == 5


def test_flags_can_come_from_a_file(run, calls, tmp_path):
    _prepared(tmp_path)
    (tmp_path / "my.flags").write_text(f"--config={CONFIG}\n--config.training.seed=9\n")
    assert run("train", "--flagfile=my.flags", "--workdir=runs/s1")[0] == 0
    assert calls[0][1][0].training.seed == 9


def test_the_config_of_a_run_starts_another_run(run, calls, tmp_path):
    _prepared(tmp_path, "s1")
    workdir = _run_folder(tmp_path)
    assert run("train", f"--config={workdir}/config.json", "--workdir=runs/s2", "--config.training.seed=3")[0] == 0
    [(_, (config, folder), _)] = calls
    assert (config.name, config.training.seed, folder) == ("s1", 3, "runs/s2")


@pytest.mark.parametrize("name", ["evaluate", "export"])
def test_a_run_folder_is_enough_to_evaluate_and_export(run, calls, tmp_path, name):
    workdir = _run_folder(tmp_path)
    assert run(name, f"--workdir={workdir}")[0] == 0
    assert calls == [(name, (workdir,), {"config": None, "checkpoint": "best"})]


def test_fields_set_without_a_config_are_set_in_that_of_the_run(run, calls, tmp_path):
    workdir = _run_folder(tmp_path)
    status, _, _ = run("evaluate", f"--workdir={workdir}", "--config.evaluation.batch_size=7", "--checkpoint=last")
    assert status == 0
    config = calls[0][2]["config"]
    assert (config.name, config.evaluation.batch_size, calls[0][2]["checkpoint"]) == ("s1", 7, "last")


def test_predict_hands_over_its_texts(run, calls, tmp_path):
    workdir = _run_folder(tmp_path)
    assert run("predict", f"--model={workdir}", "--text=a", "--text", "--b", "--text_b=c", "--text_b=")[0] == 0
    wanted = {"settings": {}, "input_path": "", "output_path": "", "checkpoint": "best", "script": "predict"}
    assert calls == [("ask_model", (workdir, {"text": ["a", "--b"], "text_b": ["c", ""]}), wanted)]


def test_generate_hands_over_its_prompts_and_the_settings_that_were_given(run, calls, tmp_path):
    name = _run_folder(tmp_path)
    flags = ["--prompt=a", "--prompt=", "--stop=x", "--stop=y", "--temperature=0", "--max_new_tokens=0", "--seed=7"]
    assert run("generate", f"--model={name}", *flags)[0] == 0
    [(_, args, kwargs)] = calls
    assert (args, kwargs["script"]) == ((name, {"prompt": ["a", ""]}), "generate")
    assert kwargs["settings"] == {"stop": ("x", "y"), "temperature": 0.0, "max_new_tokens": 0, "seed": 7}


def test_the_values_of_a_question_of_somebody_elses_task_are_flags_too(run, calls, tmp_path, monkeypatch):
    ask = dataclasses.replace(TASKS["classify"].ask, inputs=("x", "y"))
    monkeypatch.setitem(TASKS, "line", dataclasses.replace(TASKS["classify"], name="line", ask=ask))
    monkeypatch.setitem(
        FLAGS, "predict", (*FLAGS["predict"], *(set(question_flags("predict")) - set(FLAGS["predict"])))
    )
    name = _run_folder(tmp_path)
    assert run("predict", f"--model={name}", "--x=1.5", "--y=2")[0] == 0
    assert calls[0][1] == (name, {"x": ["1.5"], "y": ["2"]})
    status, _, errors = run("predict", f"--model={name}", "--x=1", "--text=a")
    assert (status, errors.partition(" (once")[0]) == (2, "error: Give the questions with --text or --x")


def test_a_home_folder_is_found_behind_the_equals_sign(run, calls, tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    _run_folder(tmp_path)
    assert run("evaluate", "--workdir=~/runs/s1")[0] == 0
    assert calls[0][1] == (f"{tmp_path}/runs/s1",)


def test_a_home_folder_is_found_in_every_path_of_the_config(run, calls, tmp_path, monkeypatch, config_file):
    monkeypatch.setenv("HOME", str(tmp_path))
    body = (
        "def get_config():\n"
        "  return ExperimentConfig(name='a', task='classify', data=DataConfig(sources=('~/a.csv', 'tfds:b')),"
        " model=ModelConfig(source='~/bert'), tokenizer=TokenizerConfig(source='sample:minilm'))"
    )
    _prepared(tmp_path, "a")
    home = ["--config.data.prepared_dir=~/prepared", "--config.export.directory=~/saved"]
    status, _, errors = run("train", f"--config={config_file(body)}", "--workdir=~/runs/a", *home)
    assert (status, errors) == (0, "")
    [(_, (config, workdir), _)] = calls
    assert workdir == f"{tmp_path}/runs/a"
    assert config.data.sources == (f"{tmp_path}/a.csv", "tfds:b")
    assert (config.model.source, config.tokenizer.source) == (f"{tmp_path}/bert", "sample:minilm")
    assert (config.data.prepared_dir, config.export.directory) == (f"{tmp_path}/prepared", f"{tmp_path}/saved")


def test_bytes_that_are_no_utf8_are_replaced_in_texts_and_refused_elsewhere(run, calls, tmp_path):
    name = _run_folder(tmp_path)
    latin = "caf\udce9"  # what Python makes of the byte E9 of a command line
    assert run("predict", f"--model={name}", f"--text={latin}")[0] == 0
    assert run("generate", f"--model={name}", "--prompt", latin, f"--stop={latin}")[0] == 0
    assert calls[0][1] == (name, {"text": ["caf\ufffd"]})
    assert calls[1][1] == (name, {"prompt": ["caf\ufffd"]})
    assert calls[1][2]["settings"]["stop"] == ("caf\ufffd",)
    wanted = "not UTF-8 at \ufffd; write it in UTF-8.\n"
    for flags in (
        [f"--config={CONFIG}", f"--workdir={latin}"],
        [f"--config={CONFIG}", f"--config.data.licence={latin}"],
        [f"--config={latin}.py"],
    ):
        status, _, errors = run("train", *flags)
        assert status == 2
        assert errors.endswith(wanted)


def test_the_command_that_prepares_can_be_pasted(run, config_file, tmp_path):
    (tmp_path / "my configs").mkdir()
    name = config_file(
        "def get_config():\n  return ExperimentConfig(name='a', task='classify', data=DataConfig(sources=('a.csv',)))"
    )
    (tmp_path / name).rename(tmp_path / "my configs" / "it's (1).py")
    for others in (["--workdir=runs/s1"], ["--workdir", "runs/s1", "--device", "H100", "--dry_run"]):
        status, _, errors = run("train", "--config=my configs/it's (1).py", *others)
        assert status == 2
        command = errors.rpartition("make it with: ")[2]
        assert shlex.split(command) == ["python", "scripts/prepare.py", "--config=my configs/it's (1).py"]


def test_dry_run_of_prepare_prints_config_and_files_and_prepares_nothing(run, calls, texts):
    flags = ["--config.data.sources=*.csv", "--config.data.format=auto", "--config.data.column_names="]
    status, out, _ = run("prepare", f"--config={CONFIG}", *flags, "--config.data.label_column=label", "--dry_run")
    assert status == 0
    assert calls == []
    assert "\ntraining\n" in out
    assert "  learning_rate            5e-05\n" in out
    assert out.endswith("files\n  a.csv  csv\n  b.csv  csv\n")


def test_dry_run_of_train_leaves_the_resolved_config_and_the_plan_to_the_rooms(run, calls, tmp_path):
    _prepared(tmp_path)
    status, _, _ = run("train", f"--config={CONFIG}", "--workdir=runs/s1", "--dry_run")
    assert status == 0
    assert calls[0][2] == {"dry_run": True, "device": None}


@pytest.mark.parametrize("name", ["evaluate", "export"])
def test_dry_run_on_a_run_prints_its_config(run, calls, tmp_path, name):
    status, out, _ = run(name, f"--workdir={_run_folder(tmp_path)}", "--dry_run")
    assert (status, calls) == (0, [])
    assert "sources                  ('a.csv',)" in out


def test_the_printed_config_has_every_field_once():
    printed = table(ExperimentConfig(name="x", task="classify"))
    names = [line.split()[0] for line in printed.splitlines() if line and line != line.split()[0]]
    assert len(names) == len(flatten(ExperimentConfig()))
    assert printed.startswith("name                     'x'\n")


# ------------------------------------------------------------------------------------------------------ what is wrong

WITH_CONFIG = [f"--config={CONFIG}", "--workdir=runs/s1"]


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (
            [*WITH_CONFIG, "--config.training.learning_rte=1e-3"],
            "TrainingConfig has no field 'learning_rte'. Did you mean 'training.optimizer.learning_rate'?",
        ),
        (
            [*WITH_CONFIG, "--config.trainig.seed=1"],
            "ExperimentConfig has no field 'trainig'. Did you mean 'training'?",
        ),
        (
            [*WITH_CONFIG, "--config.learning_rate=1"],
            "ExperimentConfig has no field 'learning_rate'. Did you mean 'training.optimizer.learning_rate'?",
        ),
        (
            [*WITH_CONFIG, "--noconfig.training.balance_clases"],
            "TrainingConfig has no field 'balance_clases'. Did you mean 'training.loss.balance_classes'?",
        ),
        (
            [*WITH_CONFIG, "--config.training.seed.x=1"],
            "There is no 'training.seed.x': 'training.seed' is a single field.",
        ),
        (
            [*WITH_CONFIG, "--config.training=1"],
            "'training' is a section of the config; set one of its fields, such as training.num_steps, "
            "training.global_batch_size, training.seed.",
        ),
        (
            [*WITH_CONFIG, "--config.training.learning_rate=1e-3"],
            "TrainingConfig has no field 'learning_rate'. Did you mean 'training.optimizer.learning_rate'?",
        ),
        (
            [*WITH_CONFIG, "--config.training.optimizer=adam"],
            "'training.optimizer' is a section of the config; set one of its fields, such as training.optimizer.name, "
            "training.optimizer.learning_rate, training.optimizer.weight_decay.",
        ),
        (
            [*WITH_CONFIG, "--optimizer=adam"],
            "There is no flag --optimizer. Did you mean --config.training.optimizer.name?",
        ),
        (
            [*WITH_CONFIG, "--config.training.num_steps=1e3"],
            "flag --config.training.num_steps=1e3: a whole number such as 1000 fits here.",
        ),
        (
            [*WITH_CONFIG, "--config.training.optimizer.learning_rate=fast"],
            "flag --config.training.optimizer.learning_rate=fast: a number such as 5e-5 fits here.",
        ),
        (
            [*WITH_CONFIG, "--config.training.optimizer.learning_rate=nan"],
            "training.optimizer.learning_rate must be a finite number, received nan.",
        ),
        (
            [*WITH_CONFIG, "--config.training.loss.balance_classes=maybe"],
            "flag --config.training.loss.balance_classes=maybe: true or false fits here.",
        ),
        (
            [*WITH_CONFIG, "--config.training.loss.class_weights=1,x"],
            "flag --config.training.loss.class_weights=1,x: a list of numbers such as 0.5,1 fits here.",
        ),
        (
            [*WITH_CONFIG, "--config.data.sources=('a',"],
            "flag --config.data.sources=('a',: a list such as a,b or ('a','b') fits here.",
        ),
        (
            [*WITH_CONFIG, "--config.training.loss.balance_classes", "false"],
            "The argument 'false' belongs to no flag; values are given as --name=value. "
            "Join a switch and its value: --name=false.",
        ),
        (
            [*WITH_CONFIG, "--config.training.schedule.name=cosin"],
            "training.schedule.name is 'cosin'; it is one of linear, cosine, constant, inverse_sqrt, wsd. Did you mean "
            "'cosine'?",
        ),
        (["--config.training.seed=1"], "--config.training.seed sets a field of a config, so --config is needed too."),
        ([f"--config={CONFIG}", f"--config={CONFIG}"], "--config is given twice; a run has one config."),
        (["--config"], "Missing value for flag --config."),
        (["--config="], None),
        ([*WITH_CONFIG, "--workdri=x"], "There is no flag --workdri. Did you mean --workdir?"),
        ([*WITH_CONFIG, "--zzz"], "There is no flag --zzz. Known: config, debug, device, dry_run, workdir."),
        (
            [*WITH_CONFIG, "--learning_rate=1"],
            "There is no flag --learning_rate. Did you mean --config.training.optimizer.learning_rate?",
        ),
        ([*WITH_CONFIG, "--nodry_run=1"], "--nodry_run=1 does not take an argument."),
        ([*WITH_CONFIG, "--dry_run=perhaps"], None),
        ([*WITH_CONFIG, "--flagfile=none.flags"], None),
        (
            [CONFIG, "--workdir=runs/s1"],
            f"The argument {CONFIG!r} belongs to no flag; values are given as --name=value. "
            f"Did you mean --config={CONFIG}?",
        ),
        (
            ["--workdir=runs/s1"],
            f"--config is missing: the Python file of an experiment. There are: {CONFIGS}.",
        ),
        (
            [f"--config={CONFIG}"],
            "--workdir is missing: Folder of the run, such as runs/s1; local or gs://.",
        ),
        ([f"--config={CONFIG}", "--workdir="], None),
        (
            ["--config=configs/bert_sentimnet.py"],
            "There is no config file 'configs/bert_sentimnet.py'; give a Python file with get_config(). "
            "Did you mean 'configs/bert_sentiment.py'?",
        ),
        (
            ["--config=conf/bert_sentiment.py"],
            "There is no config file 'conf/bert_sentiment.py'; give a Python file with get_config(). "
            "Did you mean 'configs/bert_sentiment.py'?",
        ),
        (
            ["--config=configs"],
            f"configs is a folder; give a Python file with get_config(). There are: {CONFIGS}.",
        ),
        (
            WITH_CONFIG,
            "There is no prepared data set prepared/bert_sentiment; "
            f"make it with: python scripts/prepare.py --config={CONFIG}",
        ),
    ],
)
def test_a_typo_is_told_in_one_sentence(run, calls, arguments, sentence):
    status, out, errors = run("train", *arguments)
    assert status == 2
    assert (out, calls) == ("", [])
    assert errors.startswith("error: ")
    assert errors.count("\n") == 1
    assert "Traceback" not in errors
    if sentence is not None:
        assert errors == f"error: {sentence}\n"


@pytest.mark.parametrize(
    ("body", "sentence"),
    [
        ("def get_confg(): pass", "mine.py has no function get_config(); define one that returns an ExperimentConfig."),
        ("get_config = 3", "mine.py has no function get_config(); define one that returns an ExperimentConfig."),
        ("def get_config(:\n  pass", "mine.py line 2: invalid syntax."),
        ("def get_config():\n  return 1 / 0", "mine.py line 3 raised ZeroDivisionError: division by zero."),
        ("import no_such_module", "mine.py line 2 raised ModuleNotFoundError: No module named 'no_such_module'."),
        (
            "def get_config():\n  return ExperimentConfig(nam='x')",
            "mine.py line 3 raised TypeError: ExperimentConfig has no field 'nam'. Did you mean 'name'?",
        ),
        (
            "def get_config():\n  return ExperimentConfig(training=TrainingConfig(\n    learning_rte=1))",
            "mine.py line 3 raised TypeError: TrainingConfig has no field 'learning_rte'. "
            "Did you mean 'training.optimizer.learning_rate'?",
        ),
        (
            "def get_config():\n  config = ExperimentConfig()\n  config.training.learning_rte = 1\n  return config",
            "mine.py: TrainingConfig has no field 'learning_rte'. Did you mean 'training.optimizer.learning_rate'?",
        ),
        (
            "def get_config():\n  return ExperimentConfig(training=TrainingConfig(optimizer='adam'))",
            "mine.py: training.optimizer is 'adam', but 'training.optimizer' is a section of the config; set one of "
            "its fields, such as training.optimizer.name, training.optimizer.learning_rate, "
            "training.optimizer.weight_decay.",
        ),
        (
            "def get_config():\n  ExperimentConfig()",
            "get_config() of mine.py must return an aigc_tf.config.ExperimentConfig, received None; "
            "is its return statement missing?",
        ),
        (
            "def get_config():\n  return {}",
            "get_config() of mine.py must return an aigc_tf.config.ExperimentConfig, received {}.",
        ),
        ("def get_config(size):\n  return ExperimentConfig()", None),
        (
            "def get_config():\n  return ExperimentConfig(training=TrainingConfig(num_steps='many'))",
            "mine.py: training.num_steps must be of type int, received 'many'.",
        ),
        (
            "def get_config():\n  return ExperimentConfig(data=DataConfig(sources='a.csv'))",
            "mine.py: data.sources must be of type tuple, received 'a.csv'; write ('a.csv',).",
        ),
        (
            "def get_config():\n  return ExperimentConfig(training=None)",
            "mine.py: training must be of type TrainingConfig, received None.",
        ),
        ("'\x00'", None),
    ],
)
def test_a_broken_config_file_is_told_in_one_sentence(run, calls, config_file, body, sentence):
    status, _, errors = run("train", f"--config={config_file(body)}", "--config.training.num_steps=3")
    assert status == 2
    assert calls == []
    assert errors.startswith("error: ")
    assert errors.count("\n") == 1
    if sentence is not None:
        assert errors == f"error: {sentence}\n"


def test_a_broken_config_json_is_told_in_one_sentence(run, tmp_path):
    (tmp_path / "config.json").write_text('{"name": "x", "trainig": {}}')
    status, _, errors = run("train", "--config=config.json")
    assert (status, errors) == (
        2,
        "error: config.json: ExperimentConfig has no field 'trainig'. Did you mean 'training'?\n",
    )
    (tmp_path / "config.json").write_bytes(b"\xff\xfe{")
    assert run("train", "--config=config.json")[0] == 2


def test_a_config_file_may_take_an_argument_and_import_its_parent(config_file, tmp_path):
    config_file(
        "def get_config():\n  return ExperimentConfig(name='parent', task='classify')", name="cli_test_parent.py"
    )
    variant = config_file(
        """
        import cli_test_parent
        def get_config(seed="1"):
            config = cli_test_parent.get_config()
            config.training.seed = int(seed)
            return config
        """
    )
    path = list(sys.path)
    config = config_files.load_config(f"{tmp_path / variant}:4")
    assert (config.name, config.training.seed) == ("parent", 4)
    assert config_files.load_config(str(tmp_path / variant)).training.seed == 1
    assert sys.path == path


def test_a_config_file_is_read_anew_each_time(config_file, tmp_path):
    for seed in (1, 2, 3):  # of one length and within one second, so that no clock and no size tells them apart
        name = config_file(f"def get_config():\n  return ExperimentConfig(training=TrainingConfig(seed={seed}))")
        assert config_files.load_config(str(tmp_path / name)).training.seed == seed
    assert not (tmp_path / "__pycache__").exists()


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["--text=a"], "--model is missing: Run folder, or folder of an exported model such as "),
        (["--model=m"], "Give the texts with --text (once for each), or a file with --input, and not both."),
        (["--model=m", "--text=a", "--input=a.csv"], "Give the texts with --text (once for each), or a file"),
        (["--model=m", "--input=a.cvs"], "There is no file a.cvs. Did you mean 'a.csv'?"),
        (["--model=m", "--text=a"], "There is no model m."),
        (["--model=runs/s2", "--text=a"], "There is no model runs/s2. The folder runs has s1."),
        (
            ["--model=m", "--text=a", "--text_b=b", "--text_b=c"],
            "Give one --text_b for each --text; there are 1 --text",
        ),
        (["--model=m", "--input=a.csv", "--text_b=b"], "Give one --text_b for each --text; there are 0 --text and 1"),
        (["--model=runs/s1", "--text=a", "--output=a.csv"], "a.csv is there already; nothing was overwritten. "),
        (["--model=runs/s1", "--text=a", "--checkpoint=bets"], "flag --checkpoint=bets: value should be one of <best|"),
        (["--model=runs/s1", "--text=a", "--config=x"], "There is no flag --config."),
    ],
)
def test_predict_says_what_does_not_fit(run, calls, texts, arguments, sentence):
    _run_folder(texts)
    status, _, errors = run("predict", *arguments)
    assert status == 2
    assert calls == []
    assert errors.startswith(f"error: {sentence}")
    assert errors.count("\n") == 1


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["--prompt=a"], "--model is missing: Run folder, or folder of an exported model such as "),
        (["--model=m", "--prompt=a", "--input=a.csv"], "Give the prompts with --prompt (once for each), or a file"),
        (["--model=m", "--output=new.jsonl"], "--output needs questions. Give the prompts with --prompt (once for"),
        (["--model=m", "--input=a.cvs"], "There is no file a.cvs. Did you mean 'a.csv'?"),
        (["--model=runs/s2", "--prompt=a"], "There is no model runs/s2. The folder runs has s1."),
        (["--model=runs/s1", "--prompt=a", "--output=a.csv"], "a.csv is there already; nothing was overwritten. "),
        (["--model=runs/s1", "--prompt=a", "--temperature=-1"], "--temperature is -1.0; it must be a number of at "),
        (["--model=runs/s1", "--prompt=a", "--temperature=nan"], "--temperature is nan; it must be "),
        (["--model=runs/s1", "--prompt=a", "--top_p=0"], "--top_p is 0.0; it must be in (0, 1]."),
        (["--model=runs/s1", "--prompt=a", "--top_k=x"], "flag --top_k=x: "),
        (["--model=runs/s1", "--prompt=a", "--max_new_tokens=-1"], "--max_new_tokens is -1; it must be a number of"),
        (["--model=runs/s1", "--prompt=a", "--stop="], "--stop is ('',); it must be texts that are not empty."),
        (["--model=runs/s1", "--text=a"], "There is no flag --text."),
    ],
)
def test_generate_says_what_does_not_fit(run, calls, texts, arguments, sentence):
    _run_folder(texts)
    status, _, errors = run("generate", *arguments)
    assert status == 2
    assert calls == []
    assert errors.startswith(f"error: {sentence}")
    assert errors.count("\n") == 1


def test_a_folder_without_a_config_is_no_run(run, calls, tmp_path):
    _run_folder(tmp_path)
    wanted = (2, "", "error: runs/s11 is not a run: it has no config.json. Did you mean 'runs/s1'?\n")
    assert run("evaluate", "--workdir=runs/s11") == wanted
    status, _, errors = run("evaluate", "--workdir=runs/s2", "--config.evaluation.batch_size=3")
    assert (status, errors) == (2, "error: runs/s2 is not a run: it has no config.json.\n")


def test_a_missing_source_is_told_before_anything_heavy(run, calls):
    status, _, errors = run("prepare", f"--config={CONFIG}", "--config.data.sources=none.csv")
    assert status == 2
    assert calls == []
    assert errors.startswith("error: There is no none.csv.")


# -------------------------------------------------------------------------------------------------- how failures end


@pytest.mark.parametrize(
    ("error", "status", "line"),
    [
        (InputError("It does not\n  fit."), 2, "error: It does not fit.\n"),
        (RunError("The disk is full."), 1, "error: The disk is full.\n"),
        (KeyError("x"), 1, "error: KeyError: 'x'. Run again with --debug to see where.\n"),
        (
            MemoryError("no room"),
            1,
            "error: Out of memory. Lower training.global_batch_size, evaluation.batch_size or data.max_length, or take "
            "a smaller model (no room).\n",
        ),
        (
            OSError(28, "No space left on device"),
            1,
            "error: Cannot write: No space left on device. Free some space and run the same command again.\n",
        ),
        (ValueError("y" * 900), 1, f"error: ValueError: {'y' * 500} ... Run again with --debug to see where.\n"),
        (
            KeyboardInterrupt(),
            130,
            "error: Interrupted. Complete files are kept; the same command can be run again.\n",
        ),
    ],
)
def test_every_failure_ends_in_one_line_and_its_status(run, monkeypatch, tmp_path, error, status, line):
    def fail(name):
        raise error

    monkeypatch.setattr(cli, "heavy_room", fail)
    assert run("evaluate", f"--workdir={_run_folder(tmp_path)}") == (status, "", line)


@pytest.mark.parametrize(("error", "status"), [(InputError("no"), 2), (RunError("no"), 1), (KeyError("no"), 1)])
def test_debug_shows_the_traceback(run, monkeypatch, tmp_path, error, status):
    def fail(name):
        raise error

    monkeypatch.setattr(cli, "heavy_room", fail)
    received, _, errors = run("evaluate", f"--workdir={_run_folder(tmp_path)}", "--debug")
    assert received == status
    assert errors.startswith("Traceback")
    assert errors.splitlines()[-1].startswith("error: ")
    assert "--debug" not in errors


def test_a_sweep_gets_its_space_and_the_script_beside_its_own(run, monkeypatch, tmp_path):
    made = []
    monkeypatch.setattr("aigc_tf.commands.sweep.sweep", lambda *args, **kwargs: made.append((args, kwargs)))
    (tmp_path / "prepared" / "bert_sentiment").mkdir(parents=True)
    (tmp_path / "prepared" / "bert_sentiment" / "dataset.json").write_text("{}")
    arguments = [f"--config={CONFIG}", "--workdir=s", "--search=training.optimizer.beta_1=0.5..0.9", "--trials=3"]
    status, out, _ = run("sweep", *arguments, "--search", "training.schedule.name=linear|wsd", "--dry_run")
    assert status == 0
    assert out.endswith(
        "search\n  training.optimizer.beta_1=0.5..0.9\n  training.schedule.name=linear|wsd\n  3 trials\n"
    )
    assert not made
    assert run("sweep", *arguments, "--config.training.seed=5")[0] == 0
    [((config, workdir), rest)] = made
    assert (config.training.seed, workdir, rest["num_trials"]) == (5, "s", 3)
    assert [str(dimension) for dimension in rest["space"]] == ["training.optimizer.beta_1=0.5..0.9"]
    assert rest["train_script"] == str(tmp_path / "scripts" / "train.py")


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (
            ["--search=training.optimizer.beta_1=0..0.5"],
            "There is no prepared data set prepared/bert_sentiment; make it with: ",
        ),
        ([], "--search is missing"),
        (["--search=training.optimizer.beta_1=0..0.5", "--trials=0"], "--trials is 0; it must be at least 1."),
        (
            ["--search=training.optimizer.beta_1=0..0.5", "--trials=x"],
            "flag --trials=x: a whole number such as 1000 fits here.",
        ),
        (
            ["--search=training.optimizer.beta_1=0..1"],
            "The search would try training.optimizer.beta_1=1, which does not fit",
        ),
        (
            ["--search=training.optimizer.beta_1=0..0.5", "--workdir=gs://b/s"],
            "--workdir gs://b/s is on an object store;",
        ),
    ],
)
def test_a_sweep_that_cannot_be_is_refused(run, arguments, sentence):
    status, _, errors = run("sweep", f"--config={CONFIG}", "--workdir=s", *arguments)
    assert status == 2
    assert errors.startswith(f"error: {sentence}")
    if "prepare.py" in errors:
        assert errors == f"error: {sentence}python scripts/prepare.py --config={CONFIG}\n"


def test_a_sweep_stays_on_one_host(run, monkeypatch):
    monkeypatch.setenv("TF_CONFIG", "{}")
    status, _, errors = run("sweep", f"--config={CONFIG}", "--workdir=s", "--search=training.optimizer.beta_1=0..0.5")
    assert (status, errors) == (2, "error: TF_CONFIG is set, but a sweep trains on one host; unset it.\n")


def _python(code, *, stdin=None):
    """Runs Python code in a process of its own, with this repository importable."""
    environment = {key: value for key, value in os.environ.items() if key != "TF_CPP_MIN_LOG_LEVEL"}
    return subprocess.run(
        [sys.executable, "-c", code],
        cwd=ROOT,
        env=environment | {"PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=60,
        stdin=stdin,
        check=False,
    )


@pytest.mark.parametrize("name", SCRIPTS)
def test_help_of_a_script_names_its_flags_only_and_needs_no_tensorflow(name):
    code = f"""
import runpy, sys
sys.argv = ["scripts/{name}.py", "--help"]
try:
    runpy.run_path(sys.argv[0], run_name="__main__")
except SystemExit as stopped:
    assert not stopped.code
heavy = {{"tensorflow", "keras", "sklearn", "matplotlib", "pyarrow"}} & set(sys.modules)
assert not heavy, heavy
"""
    done = _python(code)
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    assert f"python scripts/{name}.py" in done.stdout
    flags = [line.split("=")[0].split()[0] for line in done.stdout.splitlines() if line.startswith("  --")]
    assert [flag.removeprefix("--").removeprefix("[no]") for flag in flags] == [*FLAGS[name], "debug"]
    assert max(map(len, done.stdout.splitlines())) <= 120


def test_a_script_ends_with_the_status_of_its_error():
    arguments = [sys.executable, "scripts/train.py", f"--config={CONFIG}", "--config.training.learning_rte=1e-3"]
    done = subprocess.run(
        arguments,
        cwd=ROOT,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 2
    assert (
        done.stderr
        == "error: TrainingConfig has no field 'learning_rte'. Did you mean 'training.optimizer.learning_rate'?\n"
    )


def test_the_scripts_are_doors_of_less_than_25_lines():
    for name in SCRIPTS:
        assert len((ROOT / "scripts" / f"{name}.py").read_text().splitlines()) < 25


def test_startup_noise_is_left_out_and_all_else_passes_also_when_the_process_dies():
    code = """
import os, sys
from aigc_tf.cli import tensorflow_start
with tensorflow_start._filtered_stderr():
    os.write(2, b"I0000 00:00:17 cudart_stub.cc:31] Could not find cuda drivers on your machine\\n")
    os.write(2, b"WARNING: All log messages before absl::InitializeLog() is called are written to STDERR\\n")
    os.write(2, b"E0000 00:00:17 something.cc:1] a real error\\n")
    print("a warning of Python", file=sys.stderr)
os.write(2, b"I0000 after the start\\n")
with tensorflow_start._filtered_stderr():
    os.write(2, b"F0000 00:00:17 check.cc:1] last words\\n")
    os.abort()
"""
    done = _python(code)
    assert done.returncode == -signal.SIGABRT
    lines = [line for line in done.stderr.splitlines() if "0000" in line or "warning" in line]
    assert lines == [
        "E0000 00:00:17 something.cc:1] a real error",
        "a warning of Python",
        "I0000 after the start",
        "F0000 00:00:17 check.cc:1] last words",
    ]


def test_a_reader_that_has_enough_is_no_error():
    code = """
import sys
from aigc_tf.cli.running import run
def talk(options):
    while True:
        print("x" * 1000)
sys.argv = ["talk.py"]
run(talk, flags=(), description="Talks.")
"""
    talking = subprocess.Popen(
        [sys.executable, "-c", code],
        cwd=ROOT,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    talking.stdout.readline()
    talking.stdout.close()
    assert talking.wait(timeout=60) == 141
    assert talking.stderr.read() == b""
    talking.stderr.close()


def test_the_package_has_a_version():
    assert aigc_tf.__version__.count(".") == 2
    assert json.dumps(aigc_tf.__doc__)
