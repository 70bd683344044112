"""The configuration of one experiment: typed dataclasses, `validate()`, and the errors every room raises.

Standard library only, so that a wrong config is reported before TensorFlow is imported.

A config file builds an `ExperimentConfig`, flags override single fields, `validate()` checks the whole; after
that nobody writes to it. Fields are str, int, float, bool or tuples of those, which is what dotted flags can
override. Each field belongs to one kind (`field_kind`): on resume only operational fields may differ.
"""

import dataclasses
import difflib
import hashlib
import json
import math
from collections.abc import Iterable
from typing import Any


class InputError(ValueError):
    """Something a user handed over does not fit. One sentence: what came, what fits, what to do. Exit status 2."""


class RunError(RuntimeError):
    """A run failed for a reason outside its input: disk full, a diverged loss, no network. Exit status 1."""


TASK_NAMES = ("classify", "generate")
PROBLEM_TYPES = ("single_label", "multi_label", "regression")
FORMATS = ("auto", "text", "document", "csv", "tsv", "jsonl", "parquet", "tfrecord")
SPLITS = ("hash", "files", "given")
TOKENIZER_KINDS = ("auto", "wordpiece", "sentencepiece")
TRUNCATIONS = ("head", "tail", "head_tail")
SCHEDULES = ("linear", "cosine", "constant")
PRECISIONS = ("auto", "float32", "bfloat16")
STRATEGIES = ("auto", "none", "mirrored", "multi_worker", "tpu")
JIT_MODES = ("auto", "on", "off")


@dataclasses.dataclass(kw_only=True)
class DataConfig:
    """Where the text comes from, what its columns mean, and how it becomes token ids."""

    sources: tuple[str, ...] = ()
    """Files, globs or folders, `sample:NAME`, or `tfds:NAME[/CONFIG][:VERSION]`."""
    validation_sources: tuple[str, ...] = ()
    """With split `given`: the sources of the validation split. Empty: taken from `sources` by the hash rule."""
    test_sources: tuple[str, ...] = ()
    """With split `given`: the sources of the test split. TFDS data sets bring their own named splits."""
    format: str = "auto"
    """One of `FORMATS`; `auto` goes by the file's ending (a trailing .gz is looked through). `document`: a file is one
    text, whereas `text` makes each of its lines one."""
    column_names: tuple[str, ...] = ()
    """Names of the columns of CSV and TSV files that have no header line. Empty: the first line is the header."""
    text_column: str = "text"
    """Column of the text."""
    text_b_column: str = ""
    """Column of the second text of a pair. Empty: single texts."""
    label_column: str = "label"
    """Column of the label; with multi_label several, separated by `label_separator` or a JSON list."""
    problem_type: str = "single_label"
    """One of `PROBLEM_TYPES`."""
    label_names: tuple[str, ...] = ()
    """Allowed labels; any other is a broken row. Empty: the labels found. With `label_thresholds`: one name a range."""
    label_separator: str = "|"
    """Between the labels of one multi_label row."""
    label_thresholds: tuple[float, ...] = ()
    """Ascending cuts that turn a numeric column into classes: class i lies above i of them (`value > cut`)."""
    label_margin: float = 0.0
    """Rows whose number is nearer than this to a threshold are left out, and counted."""
    encoding: str = "utf-8"
    """Encoding of the source files."""
    drop_duplicates: bool = False
    """Leave out each text that came before, and every text that has two different labels."""
    max_bad_share: float = 0.01
    """Share of broken rows, in [0, 1], above which preparing stops instead of going on without them."""
    split: str = "hash"
    """One of `SPLITS`: by hash of the text, by named files, or the sources' own."""
    validation_files: tuple[str, ...] = ()
    """With split `files`: globs on file names that are the validation split. Empty: by the hash rule."""
    test_files: tuple[str, ...] = ()
    """With split `files`: globs on file names that are the test split."""
    licence: str = ""
    """Licence of the sources, written into the data set's ledger."""
    prepared_dir: str = "prepared"
    """Folder of prepared data sets; this experiment's lies in `<prepared_dir>/<name>`."""
    tfds_data_dir: str = ""
    """Folder of TFDS data sets. Empty: TFDS_DATA_DIR, or ~/tensorflow_datasets."""
    tfds_download: bool = False
    """Let TFDS download a data set that is not on disk."""
    max_length: int = 128
    """Tokens of one example, special tokens included; longer ones are truncated when batches are made. For a generator
    the length of the windows it is trained on, which is how far back it looks."""
    truncation: str = "head"
    """One of `TRUNCATIONS`: which tokens of too long a text are kept."""
    num_buckets: int = 0
    """Number of padded lengths. 0: 8 where each shape is a compilation, 32 elsewhere."""
    bucket_run_length: int = 1
    """Consecutive steps of one padded length. On TPU, where a call takes steps of one shape, as `steps_per_call`."""


@dataclasses.dataclass(kw_only=True)
class TokenizerConfig:
    """Which vocabulary splits text into token ids."""

    source: str = ""
    """`train`, a vocabulary file, a Hugging Face folder, a KerasNLP preset, `sample:NAME`. Empty: the model's own."""
    kind: str = "auto"
    """With source `train`, one of `TOKENIZER_KINDS`; `auto` is wordpiece to classify, sentencepiece to generate."""
    vocabulary_size: int = 30522
    """With source `train`: entries of the vocabulary, special tokens included."""
    lowercase: bool = True
    """WordPiece with source `train` or a vocabulary file: lower-case and strip accents, as BERT's uncased models do."""


@dataclasses.dataclass(kw_only=True)
class ModelConfig:
    """The network and where its weights start."""

    source: str = ""
    """A KerasNLP preset (name or folder), a Hugging Face folder, `sample:NAME`, a run folder. Empty: random weights."""
    dropout: float = 0.1
    """Dropout before the classification head, and of the whole network where it starts from random weights."""
    num_layers: int = 6
    """Random weights only: transformer layers."""
    hidden_dim: int = 384
    """Random weights only: width; a multiple of `num_heads`."""
    num_heads: int = 12
    """Random weights only: attention heads."""
    intermediate_dim: int = 1536
    """Random weights only: width of the feed-forward layer."""


@dataclasses.dataclass(kw_only=True)
class TrainingConfig:
    """The optimisation, and how it is watched and kept."""

    num_steps: int = 1000
    """Optimizer steps of the whole run."""
    global_batch_size: int = 32
    """Examples of one step over all workers and replicas; for a generator windows of `data.max_length` tokens."""
    learning_rate: float = 5e-5
    """Peak rate, reached after warm-up."""
    warmup_steps: int = 0
    """Steps of linear warm-up from 0."""
    schedule: str = "linear"
    """One of `SCHEDULES`: what the rate does after warm-up, down to 0 at `num_steps`."""
    weight_decay: float = 0.01
    """Decoupled weight decay of AdamW; biases and normalisation weights are excluded."""
    beta_1: float = 0.9
    """Decay of AdamW's first moment, in [0, 1)."""
    beta_2: float = 0.999
    """Decay of AdamW's second moment, in [0, 1)."""
    epsilon: float = 1e-8
    """AdamW's epsilon."""
    clip_norm: float = 1.0
    """Global norm the gradient is clipped to. 0: no clipping."""
    label_smoothing: float = 0.0
    """Share of the target spread over all classes, in [0, 1)."""
    class_weights: tuple[float, ...] = ()
    """One loss weight a label, in the sorted order of the labels. Empty: 1 each."""
    balance_classes: bool = False
    """Weight the classes by n / (num_classes * count), as scikit-learn's `balanced` does."""
    seed: int = 0
    """Seed of order, dropout and random weights."""
    precision: str = "auto"
    """One of `PRECISIONS`; `auto` is bfloat16 (mixed) where the hardware multiplies it, else float32."""
    jit: str = "auto"
    """One of `JIT_MODES`: compile forward and backward with XLA; `auto` is on for GPU and TPU, off for CPU."""
    strategy: str = "auto"
    """One of `STRATEGIES`; `auto`: multi_worker under TF_CONFIG, tpu on a TPU, mirrored on several GPUs, else none."""
    deterministic: bool = False
    """Make every op deterministic on GPU; on CPU they are so anyway."""
    steps_per_call: int = 10
    """Steps of one call into the graph. Intervals below are cut at exactly their step all the same."""
    log_every: int = 10
    """Steps between two records in TensorBoard and the progress bar; metrics.jsonl has them all."""
    checkpoint_every: int = 500
    """Steps between two checkpoints. The last step always has one."""
    evaluate_every: int = 500
    """Steps between two evaluations on the validation split. 0: only at the end."""
    early_stopping_patience: int = 0
    """Stop after this many evaluations without a better one. 0: never."""


@dataclasses.dataclass(kw_only=True)
class EvaluationConfig:
    """How a model is judged."""

    batch_size: int = 64
    """Examples of one evaluation batch over all workers and replicas."""
    best_metric: str = "auto"
    """Metric of the validation split that names the best checkpoint; `auto`: accuracy, micro_f1 or mse by problem,
    for a generator loss."""
    sample_prompts: tuple[str, ...] = ("",)
    """Generators: what is continued after each evaluation, for people to read. Empty: nothing is."""


@dataclasses.dataclass(kw_only=True)
class GenerationConfig:
    """How text is generated where nothing else is asked for: in samples, by scripts/generate.py, by a server."""

    max_new_tokens: int = 128
    """Longest continuation; it ends earlier at an end of text, a stop string, or where the context is full."""
    temperature: float = 1.0
    """Divides the logits. 0: always the likeliest token."""
    top_k: int = 0
    """Draw from that many likeliest tokens. 0: from all."""
    top_p: float = 1.0
    """Draw from the fewest likeliest tokens that have this share of the probability, in (0, 1]."""
    min_p: float = 0.0
    """Draw from tokens with at least this share of the likeliest one's probability, in [0, 1]."""
    repetition_penalty: float = 1.0
    """Divides positive logits of tokens that are there already, and multiplies negative ones. 1: none."""
    stop: tuple[str, ...] = ()
    """Text before which a continuation ends."""
    num_beams: int = 1
    """More than 1: beam search, which draws nothing."""
    seed: int = 0
    """Row i of a batch draws by seed + i."""


@dataclasses.dataclass(kw_only=True)
class ExportConfig:
    """The SavedModel."""

    directory: str = "saved_models"
    """The model goes to `<directory>/<name>/<version>`."""
    dtype: str = "float32"
    """Data type the exported model computes in: float32 or bfloat16."""


@dataclasses.dataclass(kw_only=True)
class ExperimentConfig:
    """One experiment. `name` names its prepared data and its exported model."""

    name: str = ""
    task: str = "classify"
    """A key of `tasks.TASKS`."""
    data: DataConfig = dataclasses.field(default_factory=DataConfig)
    tokenizer: TokenizerConfig = dataclasses.field(default_factory=TokenizerConfig)
    model: ModelConfig = dataclasses.field(default_factory=ModelConfig)
    training: TrainingConfig = dataclasses.field(default_factory=TrainingConfig)
    evaluation: EvaluationConfig = dataclasses.field(default_factory=EvaluationConfig)
    generation: GenerationConfig = dataclasses.field(default_factory=GenerationConfig)
    export: ExportConfig = dataclasses.field(default_factory=ExportConfig)


# Fields that change how a run is watched, kept or spread over machines, not what it computes (docs/config.md).
OPERATIONAL_FIELDS = frozenset(
    {
        "data.prepared_dir",
        "data.tfds_data_dir",
        "data.tfds_download",
        "training.jit",
        "training.strategy",
        "training.steps_per_call",
        "training.log_every",
        "training.checkpoint_every",
        "training.evaluate_every",
        "evaluation.batch_size",
        "evaluation.sample_prompts",
        "export.directory",
        "export.dtype",
    }
    | {f"generation.{field.name}" for field in dataclasses.fields(GenerationConfig)}
)


def flatten(config: Any, prefix: str = "") -> dict[str, Any]:
    """Returns `{"training.seed": 0, ...}` for a config dataclass, in field order."""
    fields: dict[str, Any] = {}
    for field in dataclasses.fields(config):
        value = getattr(config, field.name)
        if dataclasses.is_dataclass(value):
            fields.update(flatten(value, f"{prefix}{field.name}."))
        else:
            fields[prefix + field.name] = value
    return fields


def table(config: ExperimentConfig) -> str:
    """Returns the config as aligned lines, one field a line, a group a section."""
    fields = flatten(config)
    width = max(len(path.rpartition(".")[2]) for path in fields)
    lines, last_section = [], ""
    for path, value in fields.items():
        section, _, name = path.rpartition(".")
        if section != last_section:
            lines += ["", section]
            last_section = section
        lines.append(f"{'  ' if section else ''}{name:<{width}}  {value!r}".rstrip())
    return "\n".join(lines)


def to_json(config: Any) -> str:
    """Returns the config as indented JSON; `from_json` gives an equal config back."""
    return json.dumps(dataclasses.asdict(config), indent=2, ensure_ascii=False) + "\n"


def from_json(text: str) -> ExperimentConfig:
    """Reads what `to_json` wrote.

    Raises:
        InputError: If the text is no JSON object or has a field this version does not know.
    """
    try:
        return _from_dict(ExperimentConfig, json.loads(text), "")
    except json.JSONDecodeError as error:
        raise InputError(
            f"The config is not valid JSON ({error}); scripts/train.py writes it as config.json."
        ) from error


def _from_dict(cls: type, values: Any, prefix: str) -> Any:
    if not isinstance(values, dict):
        where = f"The config's section {prefix.rstrip('.')!r}" if prefix else "The config"
        raise InputError(f"{where} must be a JSON object, received {values!r}.")
    fields = {field.name: field for field in dataclasses.fields(cls)}
    arguments = {}
    for name, value in values.items():
        if name not in fields:
            raise unknown_field(cls, name)
        default = fields[name].default_factory
        if default is not dataclasses.MISSING and dataclasses.is_dataclass(default):
            value = _from_dict(default, value, f"{prefix}{name}.")
        arguments[name] = tuple(value) if isinstance(value, list) else value
    return cls(**arguments)


def sha256(config: Any) -> str:
    """Returns the sha256 of the config's canonical JSON (sorted keys, no spaces)."""
    canonical = json.dumps(dataclasses.asdict(config), sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(canonical.encode()).hexdigest()


def unknown_field(cls: type, name: str) -> InputError:
    """Returns the error of a field that a config dataclass does not have, with the nearest field that there is."""
    fields = [field.name for field in dataclasses.fields(cls)]
    elsewhere = [path for path in flatten(ExperimentConfig()) if path.rpartition(".")[2] == name]
    if elsewhere and not difflib.get_close_matches(name, fields, n=1):
        return InputError(f"{cls.__name__} has no field {name!r}. Did you mean {elsewhere[0]!r}?")
    return InputError(f"{cls.__name__} has no field {name!r}.{suggest(name, fields)}")


def check_field(path: str) -> None:
    """Checks that a dotted path, such as `training.learning_rate`, names a field of the config.

    Raises:
        InputError: If it names nothing, or a whole section.
    """
    holder: Any = ExperimentConfig()
    for name in path.split("."):
        if not dataclasses.is_dataclass(holder):
            raise InputError(f"There is no {path!r}: {path.removesuffix('.' + name)!r} is a single field.")
        if name not in {field.name for field in dataclasses.fields(holder)}:
            raise unknown_field(type(holder), name)
        holder = getattr(holder, name)
    if dataclasses.is_dataclass(holder):
        fields = ", ".join(f"{path}.{field.name}" for field in dataclasses.fields(holder)[:3])
        raise InputError(f"{path!r} is a section of the config; set one of its fields, such as {fields}.")


def suggest(name: str, known: Iterable[str]) -> str:
    """Returns ` Did you mean 'x'?` for the nearest known name, else ` Known: ...`."""
    known = sorted(known)
    near = difflib.get_close_matches(name, known, n=1)
    if near:
        return f" Did you mean {near[0]!r}?"
    return f" Known: {', '.join(known)}." if known else ""


def validate(config: ExperimentConfig) -> None:
    """Checks types, ranges and combinations.

    Raises:
        InputError: One sentence that names the field, its value and what fits.
    """
    check_types(config)
    data, training = config.data, config.training
    _require(bool(config.name), "name", config.name, "a name without spaces or slashes, such as 'bert_sentiment'")
    plain = not set(config.name) & set(" /\\") and config.name[:1] != "."
    _require(plain, "name", config.name, "without spaces, slashes or a leading dot")
    _require(bool(data.sources), "data.sources", data.sources, "at least one file, glob, folder, sample: or tfds: name")
    for name, value, known in (
        ("task", config.task, TASK_NAMES),
        ("data.format", data.format, FORMATS),
        ("data.problem_type", data.problem_type, PROBLEM_TYPES),
        ("data.split", data.split, SPLITS),
        ("data.truncation", data.truncation, TRUNCATIONS),
        ("training.schedule", training.schedule, SCHEDULES),
        ("training.precision", training.precision, PRECISIONS),
        ("training.jit", training.jit, JIT_MODES),
        ("training.strategy", training.strategy, STRATEGIES),
        ("export.dtype", config.export.dtype, ("float32", "bfloat16")),
    ):
        if value not in known:
            raise InputError(f"{name} is {value!r}; it is one of {', '.join(known)}.{_near(value, known)}")
    _validate_columns(data)
    _validate_labels(data)
    _validate_numbers(config)
    if training.class_weights and (min(training.class_weights) < 0 or not any(training.class_weights)):
        raise InputError(
            f"training.class_weights is {training.class_weights}; weights are 0 or more, and at least one is above 0."
        )
    if "://" in data.prepared_dir:
        raise InputError(
            f"data.prepared_dir is {data.prepared_dir!r}; prepared data are read by memory map, so they lie on a disk "
            "(NFS and GCSFuse fit too)."
        )
    if training.class_weights and training.balance_classes:
        raise InputError(
            "training.class_weights and training.balance_classes both weight the classes; set one of them."
        )
    if (training.class_weights or training.balance_classes) and data.problem_type != "single_label":
        raise InputError(
            f"Class weights fit data.problem_type 'single_label', received {data.problem_type!r}; remove them."
        )
    if training.label_smoothing and data.problem_type == "regression":
        raise InputError("training.label_smoothing has no meaning for data.problem_type 'regression'; set it to 0.")
    if data.split == "files" and not data.test_files:
        raise InputError(
            "data.split 'files' needs data.test_files, globs on the names of the files held out for testing."
        )
    if data.split != "given" and (data.validation_sources or data.test_sources):
        raise InputError(
            f"data.validation_sources and data.test_sources need data.split 'given', received {data.split!r}."
        )
    if data.split != "files" and (data.validation_files or data.test_files):
        raise InputError(f"data.validation_files and data.test_files need data.split 'files', received {data.split!r}.")


def _validate_columns(data: DataConfig) -> None:
    for field in ("text_column", "text_b_column", "label_column"):
        column = getattr(data, field)
        if column and data.column_names and column not in data.column_names:
            raise InputError(
                f"data.{field} is {column!r}, which data.column_names lacks.{suggest(column, data.column_names)}"
            )
    _require(bool(data.text_column), "data.text_column", "", "the name of a column")
    _require(bool(data.label_column), "data.label_column", "", "the name of a column")
    if len(set(data.column_names)) != len(data.column_names):
        raise InputError(f"data.column_names repeats a name: {data.column_names}.")


def _validate_labels(data: DataConfig) -> None:
    thresholds = data.label_thresholds
    if thresholds:
        if data.problem_type != "single_label":
            raise InputError(
                f"data.label_thresholds make classes; data.problem_type {data.problem_type!r} must be 'single_label'."
            )
        if list(thresholds) != sorted(set(thresholds)):
            raise InputError(f"data.label_thresholds must ascend, received {thresholds}.")
        if len(data.label_names) != len(thresholds) + 1:
            raise InputError(
                f"{len(thresholds)} data.label_thresholds make {len(thresholds) + 1} classes, "
                f"but data.label_names has {len(data.label_names)}; name each range, lowest first."
            )
    if len(set(data.label_names)) != len(data.label_names):
        raise InputError(f"data.label_names repeats a name: {data.label_names}.")
    if data.label_names and data.problem_type == "regression":
        raise InputError("data.label_names has no meaning for data.problem_type 'regression'; remove it.")
    if data.label_margin and not thresholds:
        raise InputError("data.label_margin is a distance to data.label_thresholds, which is empty.")


def _validate_numbers(config: ExperimentConfig) -> None:
    at_least = {
        "data.max_length": 8,
        "data.num_buckets": 0,
        "data.bucket_run_length": 1,
        "data.label_margin": 0,
        "tokenizer.vocabulary_size": 100,
        "model.num_layers": 1,
        "model.hidden_dim": 1,
        "model.num_heads": 1,
        "model.intermediate_dim": 1,
        "training.num_steps": 1,
        "training.global_batch_size": 1,
        "training.learning_rate": 0,
        "training.warmup_steps": 0,
        "training.weight_decay": 0,
        "training.epsilon": 0,
        "training.clip_norm": 0,
        "training.seed": 0,
        "training.steps_per_call": 1,
        "training.log_every": 1,
        "training.checkpoint_every": 1,
        "training.evaluate_every": 0,
        "training.early_stopping_patience": 0,
        "evaluation.batch_size": 1,
    }
    flat = flatten(config)
    for name, lowest in at_least.items():
        _require(flat[name] >= lowest, name, flat[name], f"a number of at least {lowest}")
    at_most = {
        "data.max_length": 2**20,
        "training.num_steps": 2**31 - 1,
        "training.global_batch_size": 2**20,
        "evaluation.batch_size": 2**20,
    }
    for name, highest in at_most.items():
        _require(flat[name] <= highest, name, flat[name], f"at most {highest}")
    for name in ("model.dropout", "training.beta_1", "training.beta_2", "training.label_smoothing"):
        _require(0 <= flat[name] < 1, name, flat[name], "in [0, 1)")
    _require(0 <= config.data.max_bad_share <= 1, "data.max_bad_share", config.data.max_bad_share, "a share in [0, 1]")
    _require(config.training.seed < 2**63, "training.seed", config.training.seed, "below 2**63")
    model = config.model
    if model.hidden_dim % model.num_heads:
        raise InputError(
            f"model.hidden_dim is {model.hidden_dim}, which is no multiple of model.num_heads, {model.num_heads}."
        )
    if config.training.warmup_steps >= config.training.num_steps:
        raise InputError(
            f"training.warmup_steps is {config.training.warmup_steps}, so the rate would never reach its peak; "
            f"it must be below training.num_steps, {config.training.num_steps}."
        )
    if config.training.early_stopping_patience and not config.training.evaluate_every:
        raise InputError("training.early_stopping_patience counts evaluations; set training.evaluate_every too.")


def check_types(config: ExperimentConfig) -> None:
    """Checks that every field is there, with a value of its type: config files can assign anything, flags cannot.

    Raises:
        InputError: One sentence that names the field.
    """
    _check_sections(config, ExperimentConfig(), "")
    defaults = flatten(ExperimentConfig())
    for name, value in flatten(config).items():
        default = defaults[name]
        fits = isinstance(value, type(default)) and (isinstance(default, bool) or not isinstance(value, bool))
        if isinstance(default, float) and isinstance(value, int) and not isinstance(value, bool):
            fits = True
        if not fits:
            hint = f"; write ({value!r},)" if isinstance(default, tuple) and isinstance(value, str) else ""
            raise InputError(f"{name} must be of type {type(default).__name__}, received {value!r}{hint}.")
        if isinstance(value, tuple):
            _check_items(name, value)
        elif isinstance(value, float) and not math.isfinite(value):
            raise InputError(f"{name} must be a finite number, received {value!r}.")


def _check_sections(config: Any, default: Any, prefix: str) -> None:
    """Finds sections replaced by something else, and attributes that are no fields, which Python lets anyone set."""
    if type(config) is not type(default):
        where = prefix.rstrip(".") or "The config"
        raise InputError(f"{where} must be of type {type(default).__name__}, received {config!r}.")
    fields = [field.name for field in dataclasses.fields(default)]
    for name in vars(config):
        if name not in fields:
            raise unknown_field(type(default), name)
    for name in fields:
        if dataclasses.is_dataclass(getattr(default, name)):
            _check_sections(getattr(config, name), getattr(default, name), f"{prefix}{name}.")


def _check_items(name: str, value: tuple[Any, ...]) -> None:
    numbers = name in ("data.label_thresholds", "training.class_weights")
    kinds: Any = (int, float) if numbers else str
    for item in value:
        if not isinstance(item, kinds) or isinstance(item, bool) or (numbers and not math.isfinite(item)):
            kind = "finite numbers" if numbers else "strings"
            raise InputError(f"{name} is a tuple of {kind}, received the item {item!r}.")


def _require(condition: bool, name: str, value: Any, fits: str) -> None:
    if not condition:
        raise InputError(f"{name} is {value!r}; it must be {fits}.")


def _near(value: str, known: Iterable[str]) -> str:
    near = difflib.get_close_matches(str(value), list(known), n=1)
    return f" Did you mean {near[0]!r}?" if near else ""
