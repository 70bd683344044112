"""The checks of a config for any task: types, ranges, combinations. Standard library only.

`tasks.check_config` calls these first, then the checks of the task.
"""

import dataclasses
import itertools
import math
from collections.abc import Collection
from typing import Any

from aigc_tf.config.experiment import (
    ADAPTER_KINDS,
    BAD_STEP_POLICIES,
    FORMATS,
    JIT_MODES,
    LONG_PROMPTS,
    OPTIMIZERS,
    PRECISIONS,
    PROBLEM_TYPES,
    SCHEDULES,
    SERVERS,
    SPLITS,
    STORED_WEIGHTS,
    STRATEGIES,
    TOKENIZER_KINDS,
    TRUNCATIONS,
    WEIGHT_KINDS,
    DataConfig,
    ExperimentConfig,
    GenerationConfig,
    OptimizerConfig,
    TrainingConfig,
)
from aigc_tf.config.fields import flatten, no_section, unknown_field
from aigc_tf.config.names import check_name
from aigc_tf.errors import InputError, nearest, suggest


def validate(config: ExperimentConfig) -> None:
    """Checks types, ranges and combinations.

    Raises:
        InputError: One sentence that names the field, its value and what fits.
    """
    check_types(config)
    data, training = config.data, config.training
    check_name(config.name)
    _require(bool(data.sources), "data.sources", data.sources, "at least one file, glob, folder, sample: or tfds: name")
    for name, value, known in (
        ("data.format", data.format, FORMATS),
        ("data.problem_type", data.problem_type, PROBLEM_TYPES),
        ("data.split", data.split, SPLITS),
        ("data.truncation", data.truncation, TRUNCATIONS),
        ("tokenizer.kind", config.tokenizer.kind, TOKENIZER_KINDS),
        ("training.schedule.name", training.schedule.name, SCHEDULES),
        ("training.optimizer.name", training.optimizer.name, OPTIMIZERS),
        ("training.devices.precision", training.devices.precision, PRECISIONS),
        ("training.devices.jit", training.devices.jit, JIT_MODES),
        ("training.devices.strategy", training.devices.strategy, STRATEGIES),
        ("training.bad_steps.policy", training.bad_steps.policy, BAD_STEP_POLICIES),
        ("evaluation.weights", config.evaluation.weights, WEIGHT_KINDS),
        ("export.dtype", config.export.dtype, ("float32", "bfloat16")),
        ("export.long_prompt", config.export.long_prompt, LONG_PROMPTS),
        ("export.target", config.export.target, SERVERS),
        ("export.weights", config.export.weights, STORED_WEIGHTS),
        ("adapter.kind", config.adapter.kind, ADAPTER_KINDS),
    ):
        if value not in known:
            near = nearest(str(value).lower(), known)
            raise InputError(f"{name} is {value!r}; it is one of {', '.join(known)}.{near}")
    sizes = config.export.batch_sizes
    rises = bool(sizes) and sizes[0] >= 1 and all(one < next_one for one, next_one in itertools.pairwise(sizes))
    _require(rises and len(sizes) <= 64, "export.batch_sizes", sizes, "1 to 64 ascending whole numbers from 1 on")
    if len(set(data.column_names)) != len(data.column_names):
        raise InputError(f"data.column_names repeats a name: {data.column_names}.")
    _validate_numbers(config)
    _validate_optimisation(training)
    validate_generation(config.generation)
    _validate_adapter(config)
    if "://" in data.prepared_dir:
        raise InputError(
            f"data.prepared_dir is {data.prepared_dir!r}; prepared data are memory-mapped, so they must be on a disk "
            "(NFS and GCSFuse also work)."
        )
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


def _validate_optimisation(training: TrainingConfig) -> None:
    """Checks the optimizer and the schedule, and that no field is set that they do not read."""
    for name in sorted({name for names in OPTIMIZERS.values() for name in names}):
        value, default = getattr(training.optimizer, name), getattr(OptimizerConfig(), name)
        if name not in OPTIMIZERS[training.optimizer.name] and value not in (default, 0.0):
            readers = ", ".join(optimizer for optimizer, names in OPTIMIZERS.items() if name in names)
            raise InputError(
                f"training.optimizer.{name} is {value!r}, which the optimizer {training.optimizer.name!r} does not "
                f"read; leave it out, or use one that does: {readers}."
            )
    if training.optimizer.name == "lion" and not training.optimizer.beta_1:
        raise InputError("training.optimizer.beta_1 is 0.0; for the optimizer 'lion' it must be above 0.")
    if training.schedule.decay_steps and training.schedule.name != "wsd":
        raise InputError(
            "training.schedule.decay_steps belongs to training.schedule.name 'wsd', received "
            f"{training.schedule.name!r}; leave it out."
        )
    if training.schedule.warmup_steps + training.schedule.decay_steps > training.num_steps:
        raise InputError(
            f"training.schedule.warmup_steps and training.schedule.decay_steps are {training.schedule.warmup_steps} "
            f"and {training.schedule.decay_steps}, together more than training.num_steps, {training.num_steps}; lower "
            "them."
        )
    if training.schedule.final_rate_share and training.schedule.name not in ("linear", "cosine", "wsd"):
        raise InputError(
            f"training.schedule.final_rate_share is {training.schedule.final_rate_share!r}, but the schedule "
            f"{training.schedule.name!r} has no final rate; leave it out, or use linear, cosine or wsd."
        )
    share = training.schedule.final_rate_share
    _require(0 <= share <= 1, "training.schedule.final_rate_share", share, "a share in [0, 1]")
    _require(
        0 < training.optimizer.layer_decay <= 1,
        "training.optimizer.layer_decay",
        training.optimizer.layer_decay,
        "in (0, 1]; 1 is one rate",
    )


def check_columns(data: DataConfig, *fields: str) -> None:
    """Checks the fields of `data` that name the columns a task reads; `text_b_column` may be empty.

    Raises:
        InputError: If one is empty, or names a column that `column_names` lacks.
    """
    for field in fields:
        column = getattr(data, field)
        _require(bool(column) or field == "text_b_column", f"data.{field}", column, "the name of a column")
        if column and data.column_names and column not in data.column_names:
            raise InputError(
                f"data.{field} is {column!r}, which data.column_names lacks.{suggest(column, data.column_names)}"
            )


def check_unread(config: ExperimentConfig, names: Collection[str], why: str) -> None:
    """Refuses fields that are set although nothing reads them, so that nobody believes they have an effect.

    Args:
        config: The config.
        names: Dotted names of fields, or of sections with a dot at their end.
        why: The reason why they are not read, as the second half of the sentence.
    Raises:
        InputError: If one of them is set.
    """
    defaults = flatten(ExperimentConfig())
    for name, value in flatten(config).items():
        if (name in names or f"{name.partition('.')[0]}." in names) and value != defaults[name]:
            raise InputError(f"{name} is {value!r}, but {why}")


def _validate_adapter(config: ExperimentConfig) -> None:
    adapter = config.adapter
    _require(0 < adapter.alpha < math.inf, "adapter.alpha", adapter.alpha, "a number above 0")
    if not adapter.enabled:
        check_unread(config, ("adapter.",), "no adapter is trained; set adapter.enabled too.")
        return
    if not config.model.source:
        raise InputError(
            "adapter.enabled trains an adapter beside the weights of model.source, which is empty, and random weights "
            "would stay random; set model.source."
        )


def validate_generation(generation: GenerationConfig, *, prefix: str = "generation.") -> None:
    """Checks the settings of generation, whose names get `prefix` in messages.

    Raises:
        InputError: One sentence that names the setting, its value and what fits.
    """
    for name, lowest in {"max_new_tokens": 0, "temperature": 0, "top_k": 0, "num_beams": 1, "seed": 0}.items():
        value = getattr(generation, name)
        _require(lowest <= value < math.inf, prefix + name, value, f"a number of at least {lowest}")
    _require(0 < generation.top_p <= 1, f"{prefix}top_p", generation.top_p, "in (0, 1]")
    _require(0 <= generation.min_p <= 1, f"{prefix}min_p", generation.min_p, "in [0, 1]")
    penalty = generation.repetition_penalty
    _require(0.01 <= penalty <= 100, f"{prefix}repetition_penalty", penalty, "in [0.01, 100]; 1 is none")
    for name, largest in {
        "max_new_tokens": 2**20,
        "temperature": 1000,
        "top_k": 2**31 - 1,
        "num_beams": 1024,
        "seed": 2**62,
    }.items():
        _require(getattr(generation, name) <= largest, prefix + name, getattr(generation, name), f"at most {largest}")
    _require(all(generation.stop), f"{prefix}stop", generation.stop, "texts that are not empty")


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
        "training.optimizer.learning_rate": 0,
        "training.schedule.warmup_steps": 0,
        "training.optimizer.weight_decay": 0,
        "training.optimizer.clip_norm": 0,
        "training.schedule.decay_steps": 0,
        "training.loss.z_loss": 0,
        "training.seed": 0,
        "training.devices.steps_per_call": 1,
        "training.recording.log_every": 1,
        "training.checkpoint_every": 1,
        "training.evaluate_every": 0,
        "training.early_stopping_patience": 0,
        "training.devices.micro_batches": 1,
        "training.bad_steps.spike_threshold": 0,
        "training.bad_steps.rollback_batches": 1,
        "training.recording.histograms_every": 0,
        "training.devices.workers_timeout": 1,
        "evaluation.batch_size": 1,
        "adapter.rank": 1,
        "adapter.prefix_length": 1,
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
    for name in (
        "model.dropout",
        "training.optimizer.beta_1",
        "training.optimizer.beta_2",
        "training.optimizer.momentum",
        "training.loss.label_smoothing",
        "training.optimizer.ema_decay",
    ):
        _require(0 <= flat[name] < 1, name, flat[name], "in [0, 1)")
    _require(0 <= config.data.max_bad_share <= 1, "data.max_bad_share", config.data.max_bad_share, "a share in [0, 1]")
    _require(config.training.seed < 2**63, "training.seed", config.training.seed, "below 2**63")
    model = config.model
    if model.hidden_dim % model.num_heads:
        raise InputError(
            f"model.hidden_dim is {model.hidden_dim}, which is not a multiple of model.num_heads, {model.num_heads}."
        )
    if config.training.schedule.warmup_steps >= config.training.num_steps:
        raise InputError(
            f"training.schedule.warmup_steps is {config.training.schedule.warmup_steps}, so the rate would never "
            f"reach its peak; it must be below training.num_steps, {config.training.num_steps}."
        )
    _require(
        config.training.optimizer.epsilon > 0,
        "training.optimizer.epsilon",
        config.training.optimizer.epsilon,
        "above 0, since 0 would divide 0",
    )
    if config.training.bad_steps.rollback_batches > 1 and config.training.bad_steps.policy != "rollback":
        raise InputError(
            "training.bad_steps.rollback_batches belongs to training.bad_steps.policy 'rollback'; set that too."
        )
    if config.evaluation.weights == "averaged" and not config.training.optimizer.ema_decay:
        raise InputError(
            "evaluation.weights is 'averaged', but no average is kept; set training.optimizer.ema_decay too."
        )
    window = config.training.recording.profile_steps
    if window and (len(window) != 2 or not 1 <= window[0] <= window[1]):
        raise InputError(
            f"training.recording.profile_steps is {window}; give the first and the last step to profile, counted "
            "from 1, such as 20,24."
        )
    if window and window[0] > config.training.num_steps:
        raise InputError(
            f"training.recording.profile_steps begins at {window[0]}, but the run ends at training.num_steps, "
            f"{config.training.num_steps}."
        )
    if config.training.early_stopping_patience and not config.training.evaluate_every:
        raise InputError("training.early_stopping_patience counts evaluations; set training.evaluate_every too.")


def check_types(config: ExperimentConfig) -> None:
    """Checks that every field exists with a value of its type, since config files, unlike flags, can assign anything.

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
    """Refuses sections of another type, and attributes that are not fields, since Python allows setting both."""
    if type(config) is not type(default):
        if prefix and isinstance(config, str | int | float):
            raise no_section(prefix.rstrip("."), config)
        where = prefix.rstrip(".") or "The config"
        raise InputError(f"{where} must be of type {type(default).__name__}, received {config!r}.")
    fields = [field.name for field in dataclasses.fields(default)]
    for name in vars(config):
        if name not in fields:
            raise unknown_field(type(default), name)
    for name in fields:
        if dataclasses.is_dataclass(getattr(default, name)):
            _check_sections(getattr(config, name), getattr(default, name), f"{prefix}{name}.")


_ITEMS: dict[str, tuple[Any, str]] = {
    "data.label_thresholds": ((int, float), "finite numbers"),
    "training.loss.class_weights": ((int, float), "finite numbers"),
    "training.recording.profile_steps": (int, "whole numbers"),
    "export.batch_sizes": (int, "whole numbers"),
}


def _check_items(name: str, value: tuple[Any, ...]) -> None:
    kinds, fits = _ITEMS.get(name, (str, "strings"))
    for item in value:
        is_endless = isinstance(item, float) and not math.isfinite(item)
        if not isinstance(item, kinds) or isinstance(item, bool) or is_endless:
            raise InputError(f"{name} is a tuple of {fits}, received the item {item!r}.")


def _require(condition: bool, name: str, value: Any, fits: str) -> None:
    if not condition:
        raise InputError(f"{name} is {value!r}; it must be {fits}.")
