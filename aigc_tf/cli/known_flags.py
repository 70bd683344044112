"""The flags of the scripts: what each means and takes. Each script has some of them."""

import dataclasses

from aigc_tf.config import SERVERS, ExportConfig, GenerationConfig
from aigc_tf.tasks import TASKS

TYPED = {"exports": "model", "served": "model", "deployment": "output"}
"""The typed names of flags that have another meaning, or cannot be repeated, in other scripts."""

HELP: dict[str, str] = {
    "config": "Python file whose get_config() describes the experiment, or the config.json of a run.",
    "workdir": "Folder of the run, such as runs/s1; local or gs://.",
    "dry_run": "Print the resolved config and the plan, and change nothing.",
    "device": "With --dry_run: report whether the run fits this device, such as H100, A100-80GB, L4 or TPU-v5e.",
    "overwrite": "Replace what is there.",
    "checkpoint": "Weights of the run: the best on the validation data, or the last; _raw: without averaging.",
    "model": "Run folder, or folder of an exported model such as saved_models/bert_sentiment.",
    "text": "Text to answer; give it once for each text.",
    "text_b": "Second text of a pair; once for each --text.",
    "input": "File of texts: one per line, or CSV, TSV, JSONL or Parquet with the column text (pairs: and text_b).",
    "output": "JSONL file of the answers; the terminal if left out.",
    "prompt": "Text to continue; give it once for each. Without it and --input, prompts are lines of standard input. "
    "In a shell, type a prompt with a new line as $'one\\ntwo'.",
    "max_new_tokens": "Longest continuation in tokens.",
    "temperature": "Divides the logits; 0: always the likeliest token.",
    "top_k": "Draw from that many likeliest tokens; 0: from all.",
    "top_p": "Draw from the fewest likeliest tokens that have this share of the probability.",
    "min_p": "Draw from tokens with at least this share of the likeliest one's probability.",
    "repetition_penalty": "Above 1: tokens that already occur become less likely.",
    "stop": "Text before which a continuation ends; give it once for each.",
    "num_beams": "More than 1: beam search, which draws nothing.",
    "seed": "Seed of the draws; prompt i draws by seed + i.",
    "search": "Field of the config and the values to try: LOW..HIGH, log:LOW..HIGH, or A|B|C in quotes; once for each.",
    "trials": "Number of trials of the whole sweep.",
    "step": "The bad step, counted from 1; 0: the last one.",
    "server": "Address of the server: http://host:8501 (or https) for REST, grpc://host:8500 for gRPC.",
    "served": "Name of the model on the server.",
    "version": "Version to ask; without version and label, the newest that is loaded.",
    "label": "Label to ask, such as stable.",
    "timeout": "Seconds that a request may take, including all tries.",
    "exports": "Folder of an exported model, such as saved_models/bert_sentiment; once for each to serve.",
    "deployment": "Folder to write, such as deploy/reviews; its last part names the deployment.",
    "stable": "Version behind the label stable, or NAME:VERSION of one of several models; the newest if left out.",
    "canary": "The same for the label canary; no such label if left out.",
    "batching": "Batching file of TensorFlow Serving to use instead of a rendered one.",
    "num_workers": "Processes to start, at least 1.",
    "command": "Command that each process runs.",
    "folder": "Folder of a SavedModel, or of numbered versions; then the newest is checked.",
    "target": "Version of TensorFlow Serving that must load it.",
    "debug": "Show the traceback of an error.",
}
CHECKPOINTS = ("best", "last", "best_raw", "last_raw")

VALUE_NAMES = {name: "FILE" for name in ("config", "input", "output", "batching")}
VALUE_NAMES |= {name: "N" for name in ("max_new_tokens", "top_k", "num_beams", "seed", "trials", "step", "num_workers")}
VALUE_NAMES |= {name: "X" for name in ("temperature", "top_p", "min_p", "repetition_penalty")}
VALUE_NAMES |= {
    "workdir": "FOLDER",
    "model": "FOLDER",
    "server": "URL",
    "served": "NAME",
    "version": "N",
    "label": "NAME",
    "timeout": "SECONDS",
    "exports": "FOLDER",
    "deployment": "FOLDER",
    "stable": "VERSION",
    "canary": "VERSION",
    "device": "NAME",
    "text_b": "TEXT",
    "prompt": "TEXT",
    "stop": "TEXT",
    "search": "FIELD=VALUES",
    "checkpoint": "|".join(CHECKPOINTS),
    "target": "|".join(SERVERS),
}
PATHS = ("workdir", "model", "input", "output", "exports", "deployment", "batching", "folder")
"""Flags of files and folders: a shell does not expand the ~ of --workdir=~/runs."""
BOOLEANS = ("dry_run", "overwrite", "debug")
REPEATED = ("stop", "search", "exports", "stable", "canary")
"""Flags that may be given several times, besides those of questions."""
COUNTS = {"trials": 20, "step": 0, "num_workers": None, "version": None}
SECONDS = {"timeout": 60.0}
SETTING_FLAGS = tuple(field.name for field in dataclasses.fields(GenerationConfig))
SETTINGS = {field.name: field.default for field in dataclasses.fields(GenerationConfig) if field.name != "stop"}
CHOICES = {"checkpoint": (CHECKPOINTS[0], CHECKPOINTS), "target": (ExportConfig().target, SERVERS)}


def typed(name: str) -> str:
    """Returns the flag's name, as typed, for a key of `HELP`."""
    return TYPED.get(name, name)


def question_inputs(script: str = "") -> list[tuple[str, ...]]:
    """Returns the inputs of a question for each task that a script asks, or for every task."""
    return [spec.ask.inputs for spec in TASKS.values() if script in ("", spec.ask.script)]


def question_flags(script: str = "") -> tuple[str, ...]:
    """Returns the flags of a question's values, for one script or for all."""
    return tuple(dict.fromkeys(name for inputs in question_inputs(script) for name in inputs))


def help_of(name: str) -> str:
    """Returns the line of `--help` on a flag; an input of a task defined elsewhere needs no entry in `HELP`."""
    return HELP.get(name, f"Value of {name} in a question; give it once for each.")
