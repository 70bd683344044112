"""The config: every rule of validate(), its JSON, its hash, and the names it suggests."""

import dataclasses
import inspect
import json

import pytest

from aigc_tf.config import (
    OPERATIONAL_FIELDS,
    OPTIMIZERS,
    PATH_FIELDS,
    DataConfig,
    ExperimentConfig,
    ModelConfig,
    TrainingConfig,
    experiment,
)
from aigc_tf.config.checks import validate
from aigc_tf.config.fields import check_field, flatten, from_json, sha256, to_json, unknown_field, with_home
from aigc_tf.config.files import load_config
from aigc_tf.errors import InputError, suggest


def _valid():
    return ExperimentConfig(name="a", task="classify", data=DataConfig(sources=("a.csv",)))


def _set(config, path, value):
    holder = config
    *sections, name = path.split(".")
    for section in sections:
        holder = getattr(holder, section)
    setattr(holder, name, value)


def test_a_name_and_a_source_are_enough():
    validate(_valid())


@pytest.mark.parametrize("name", ["bert_sentiment", "bert_sentiment_lora", "bert_base_imdb"])
def test_the_configs_that_come_along_are_valid(name, request):
    config = load_config(str(request.config.rootpath / "configs" / f"{name}.py"))
    validate(config)
    assert config.name == name


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        (
            {"name": "senti:v2"},
            "name is 'senti:v2'; a name has only letters, digits, '_', '-' and '.', and does not start",
        ),
        (
            {"data.sources": ()},
            "data.sources is (); it must be at least one file, glob, folder, sample: or tfds: name.",
        ),
        (
            {"data.format": "cvs"},
            "data.format is 'cvs'; it is one of auto, text, document, csv, tsv, jsonl, parquet, tfrecord. Did",
        ),
        ({"data.problem_type": "multi"}, "data.problem_type is 'multi'; it is one of single_label, multi_label, regr"),
        ({"data.split": "random"}, "data.split is 'random'; it is one of hash, files, given."),
        (
            {"data.truncation": "tial"},
            "data.truncation is 'tial'; it is one of head, tail, head_tail. Did you mean 'tail'?",
        ),
        (
            {"training.schedule.name": "cosin"},
            "training.schedule.name is 'cosin'; it is one of linear, cosine, constant, inverse_sqrt, wsd. Did you "
            "mean 'cos",
        ),
        (
            {"training.optimizer.name": "adamW"},
            "training.optimizer.name is 'adamW'; it is one of adamw, adam, sgd, rmsprop, lamb, adafactor, lion, "
            "muon. Did "
            "you mean 'adamw'?",
        ),
        (
            {"training.optimizer.momentum": 0.5},
            "training.optimizer.momentum is 0.5, which the optimizer 'adamw' does not read; leave it out, or use "
            "one that does: "
            "sgd, muon.",
        ),
        (
            {"training.optimizer.name": "adam", "training.optimizer.weight_decay": 0.1},
            "training.optimizer.weight_decay is 0.1, which the optimizer 'adam' does not read;",
        ),
        (
            {"training.optimizer.momentum": 1.0, "training.optimizer.name": "sgd"},
            "training.optimizer.momentum is 1.0; it must be in [0, 1).",
        ),
        (
            {"training.optimizer.name": "lion", "training.optimizer.beta_1": 0.0},
            "training.optimizer.beta_1 is 0.0; for the optimizer 'lion'",
        ),
        (
            {"training.schedule.decay_steps": 5},
            "training.schedule.decay_steps belongs to training.schedule.name 'wsd', received 'linear'; leave it out.",
        ),
        (
            {
                "training.schedule.decay_steps": 600,
                "training.schedule.warmup_steps": 401,
                "training.schedule.name": "wsd",
            },
            "training.schedule.warmup_steps and training.schedule.decay_steps are 401 and 600, together more than "
            "training.num_ste",
        ),
        (
            {"training.schedule.final_rate_share": 0.1, "training.schedule.name": "constant"},
            "training.schedule.final_rate_share is 0.1, but the schedule 'constant' has no final rate;",
        ),
        (
            {"training.schedule.final_rate_share": 1.5},
            "training.schedule.final_rate_share is 1.5; it must be a share in [0, 1].",
        ),
        (
            {"training.optimizer.layer_decay": 0.0},
            "training.optimizer.layer_decay is 0.0; it must be in (0, 1]; 1 is one rate.",
        ),
        ({"training.loss.z_loss": -1.0}, "training.loss.z_loss is -1.0; it must be a number of at least 0."),
        ({"adapter.kind": "lore"}, "adapter.kind is 'lore'; it is one of lora, prefix. Did you mean 'lora'?"),
        ({"adapter.rank": 0}, "adapter.rank is 0; it must be a number of at least 1."),
        ({"adapter.alpha": 0.0}, "adapter.alpha is 0.0; it must be a number above 0."),
        (
            {"adapter.enabled": True},
            "adapter.enabled trains an adapter beside the weights of model.source, which is empty, and random weights "
            "would stay random; set model.source.",
        ),
        (
            {"training.devices.precision": "float16"},
            "training.devices.precision is 'float16'; it is one of auto, float32, bfloat16. Did",
        ),
        ({"training.devices.jit": "yes"}, "training.devices.jit is 'yes'; it is one of auto, on, off."),
        (
            {"training.devices.strategy": "tpus"},
            "training.devices.strategy is 'tpus'; it is one of auto, none, mirrored, multi_worker, tpu",
        ),
        ({"export.batch_sizes": (4, 2)}, "export.batch_sizes is (4, 2); it must be 1 to 64 ascending whole numbers"),
        ({"export.batch_sizes": ()}, "export.batch_sizes is (); it must be 1 to 64 ascending whole numbers from 1 on"),
        ({"export.weights": "int4"}, "export.weights is 'int4'; it is one of float32, bfloat16, int8."),
        ({"export.target": "2.18"}, "export.target is '2.18'; it is one of 2.19, 2.20, 2.21."),
        ({"export.dtype": "auto"}, "export.dtype is 'auto'; it is one of float32, bfloat16."),
        (
            {"data.column_names": ("text", "label", "text")},
            "data.column_names repeats a name: ('text', 'label', 'text').",
        ),
        ({"data.max_length": 7}, "data.max_length is 7; it must be a number of at least 8."),
        ({"data.num_buckets": -1}, "data.num_buckets is -1; it must be a number of at least 0."),
        ({"data.bucket_run_length": 0}, "data.bucket_run_length is 0; it must be a number of at least 1."),
        ({"data.max_bad_share": 1.5}, "data.max_bad_share is 1.5; it must be a share in [0, 1]."),
        ({"data.max_bad_share": -0.1}, "data.max_bad_share is -0.1; it must be a share in [0, 1]."),
        ({"tokenizer.vocabulary_size": 99}, "tokenizer.vocabulary_size is 99; it must be a number of at least 100."),
        ({"model.num_layers": 0}, "model.num_layers is 0; it must be a number of at least 1."),
        ({"model.num_heads": 0}, "model.num_heads is 0; it must be a number of at least 1."),
        ({"model.num_heads": 7}, "model.hidden_dim is 384, which is not a multiple of model.num_heads, 7."),
        ({"model.dropout": 1.0}, "model.dropout is 1.0; it must be in [0, 1)."),
        ({"training.num_steps": 0}, "training.num_steps is 0; it must be a number of at least 1."),
        ({"training.global_batch_size": 0}, "training.global_batch_size is 0; it must be a number of at least 1."),
        (
            {"training.optimizer.learning_rate": -1e-3},
            "training.optimizer.learning_rate is -0.001; it must be a number of at least 0.",
        ),
        (
            {"training.optimizer.weight_decay": -0.1},
            "training.optimizer.weight_decay is -0.1; it must be a number of at least 0.",
        ),
        (
            {"training.optimizer.epsilon": -1.0},
            "training.optimizer.epsilon is -1.0; it must be above 0, since 0 would divide 0.",
        ),
        (
            {"training.optimizer.clip_norm": -1.0},
            "training.optimizer.clip_norm is -1.0; it must be a number of at least 0.",
        ),
        ({"training.optimizer.beta_1": 1.0}, "training.optimizer.beta_1 is 1.0; it must be in [0, 1)."),
        ({"training.optimizer.beta_2": -0.1}, "training.optimizer.beta_2 is -0.1; it must be in [0, 1)."),
        ({"training.loss.label_smoothing": 1.0}, "training.loss.label_smoothing is 1.0; it must be in [0, 1)."),
        ({"training.seed": -1}, "training.seed is -1; it must be a number of at least 0."),
        ({"training.seed": 2**63}, "training.seed is 9223372036854775808; it must be below 2**63."),
        (
            {"training.devices.steps_per_call": 0},
            "training.devices.steps_per_call is 0; it must be a number of at least 1.",
        ),
        ({"training.recording.log_every": 0}, "training.recording.log_every is 0; it must be a number of at least 1."),
        ({"training.checkpoint_every": 0}, "training.checkpoint_every is 0; it must be a number of at least 1."),
        ({"training.evaluate_every": -1}, "training.evaluate_every is -1; it must be a number of at least 0."),
        ({"evaluation.batch_size": 0}, "evaluation.batch_size is 0; it must be a number of at least 1."),
        (
            {"training.schedule.warmup_steps": 1000},
            "training.schedule.warmup_steps is 1000, so the rate would never reach its peak; "
            "it must be below training.num_steps, 1000.",
        ),
        (
            {"training.early_stopping_patience": 2, "training.evaluate_every": 0},
            "training.early_stopping_patience counts evaluations; set training.evaluate_every too.",
        ),
        ({"data.split": "files"}, "data.split 'files' needs data.test_files, globs on the names of the files held out"),
        (
            {"data.test_sources": ("t.csv",)},
            "data.validation_sources and data.test_sources need data.split 'given', received 'hash'.",
        ),
        (
            {"data.validation_files": ("v*",), "data.split": "given"},
            "data.validation_files and data.test_files need data.split 'files', received 'given'.",
        ),
    ],
)
def test_validate_names_the_field_its_value_and_what_fits(changes, sentence):
    config = _valid()
    for path, value in changes.items():
        _set(config, path, value)
    with pytest.raises(InputError) as caught:
        validate(config)
    assert str(caught.value).startswith(sentence)


@pytest.mark.parametrize(
    ("path", "value", "sentence"),
    [
        ("training.num_steps", 1.5, "training.num_steps must be of type int, received 1.5."),
        ("training.num_steps", True, "training.num_steps must be of type int, received True."),
        (
            "training.optimizer.learning_rate",
            "1e-3",
            "training.optimizer.learning_rate must be of type float, received '1e-3'.",
        ),
        (
            "training.optimizer.learning_rate",
            None,
            "training.optimizer.learning_rate must be of type float, received None.",
        ),
        (
            "training.optimizer.learning_rate",
            True,
            "training.optimizer.learning_rate must be of type float, received True.",
        ),
        (
            "training.optimizer.learning_rate",
            float("nan"),
            "training.optimizer.learning_rate must be a finite number, received nan.",
        ),
        (
            "training.optimizer.learning_rate",
            float("inf"),
            "training.optimizer.learning_rate must be a finite number, received inf.",
        ),
        ("training.loss.balance_classes", 1, "training.loss.balance_classes must be of type bool, received 1."),
        ("training.loss.class_weights", [1.0], "training.loss.class_weights must be of type tuple, received [1.0]."),
        (
            "training.loss.class_weights",
            ("1",),
            "training.loss.class_weights is a tuple of finite numbers, received the item '1'.",
        ),
        (
            "training.loss.class_weights",
            (float("nan"),),
            "training.loss.class_weights is a tuple of finite numbers, received the",
        ),
        (
            "data.label_thresholds",
            (True,),
            "data.label_thresholds is a tuple of finite numbers, received the item True.",
        ),
        ("data.sources", "a.csv", "data.sources must be of type tuple, received 'a.csv'; write ('a.csv',)."),
        ("data.sources", (1,), "data.sources is a tuple of strings, received the item 1."),
        ("name", 3, "name must be of type str, received 3."),
        ("training", None, "training must be of type TrainingConfig, received None."),
        ("training", DataConfig(), "training must be of type TrainingConfig, received DataConfig("),
        ("traning", TrainingConfig(), "ExperimentConfig has no field 'traning'. Did you mean 'training'?"),
        (
            "training.learning_rte",
            1.0,
            "TrainingConfig has no field 'learning_rte'. Did you mean 'training.optimizer.learning_rate'?",
        ),
        ("model.vocabulary_size", 1, "ModelConfig has no field 'vocabulary_size'. Did you mean 'tokenizer.vocabulary"),
    ],
)
def test_a_value_of_another_type_or_a_field_that_is_none_is_refused(path, value, sentence):
    config = _valid()
    _set(config, path, value)
    with pytest.raises(InputError) as caught:
        validate(config)
    assert str(caught.value).startswith(sentence)


def test_a_whole_number_is_fine_where_a_float_is_wanted():
    config = _valid()
    config.training.optimizer.learning_rate = 1
    config.training.loss.class_weights = (1, 2)
    validate(config)


def test_json_gives_an_equal_config_back():
    config = _valid()
    config.data.sources = ("ä.csv", 'quote".csv')
    config.data.label_thresholds = (-0.5, 1e-7)
    config.data.label_names = ("a", "b", "c")
    config.training.optimizer.learning_rate = 1 / 3
    config.training.seed = 2**63 - 1
    written = to_json(config)
    assert from_json(written) == config
    assert to_json(from_json(written)) == written
    assert "ä.csv" in written


def test_json_that_lacks_a_field_takes_its_default():
    config = from_json('{"name": "a", "training": {"seed": 3}}')
    assert config.training == TrainingConfig(seed=3)
    assert config.data == DataConfig()


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        (
            "{",
            "The config is not valid JSON (Expecting property name enclosed in double quotes: line 1 column 2 ",
        ),
        ("[]", "The config must be a JSON object, received []."),
        (
            '{"training": 3}',
            "training is 3, but 'training' is a section of the config; set one of its fields, such as ",
        ),
        ('{"training": {"sed": 3}}', "TrainingConfig has no field 'sed'. Did you mean 'seed'?"),
        ('{"nam": "a"}', "ExperimentConfig has no field 'nam'. Did you mean 'name'?"),
    ],
)
def test_json_that_is_no_config_is_told_in_one_sentence(text, sentence):
    with pytest.raises(InputError) as caught:
        from_json(text)
    assert str(caught.value).startswith(sentence)


def test_the_hash_of_a_config_stays_the_same():
    """A golden value: it stands in reports and manifests, so the same config must keep it. It moves with the fields."""

    @dataclasses.dataclass
    class Part:
        b: float = 0.5
        a: tuple[str, ...] = ("ä", "x")

    @dataclasses.dataclass
    class Whole:
        part: Part = dataclasses.field(default_factory=Part)
        n: int = 3

    canonical = '{"n":3,"part":{"a":["\\u00e4","x"],"b":0.5}}'
    assert json.loads(canonical) == {"n": 3, "part": {"a": ["ä", "x"], "b": 0.5}}
    assert sha256(Whole()) == "d9a9d37c2a8b065421c477bf71bf5c0f79ad4ff48f9e40b4522cc761d28ab8e8"
    assert sha256(Whole(n=4)) != sha256(Whole())


def test_configs_that_are_equal_have_one_hash_and_others_have_another():
    assert sha256(_valid()) == sha256(from_json(to_json(_valid())))
    config = _valid()
    config.training.seed = 1
    assert sha256(config) != sha256(_valid())


def test_every_operational_field_is_a_field():
    assert set(flatten(ExperimentConfig())) >= OPERATIONAL_FIELDS


def test_every_field_has_a_type_that_flags_can_set_and_a_line_that_says_what_it_is():
    source = inspect.getsource(experiment)
    for path, value in flatten(ExperimentConfig()).items():
        assert type(value) in (str, int, float, bool, tuple), path
        name = path.rpartition(".")[2]
        if path != "name":  # the class says what it is
            line = source.split(f"\n    {name}: ", 1)[1].splitlines()[1]
            assert line.startswith('    """'), path


def test_a_field_is_looked_up_by_its_dotted_path():
    check_field("training.optimizer.learning_rate")
    check_field("name")
    for path, sentence in {
        "": "ExperimentConfig has no field ''. Known: ",
        "training.": "TrainingConfig has no field ''. Known: ",
        "traning.seed": "ExperimentConfig has no field 'traning'. Did you mean 'training'?",
        "name.x": "There is no 'name.x': 'name' is a single field.",
        "data": "'data' is a section of the config; set one of its fields, such as data.sources, ",
    }.items():
        with pytest.raises(InputError) as caught:
            check_field(path)
        assert str(caught.value).startswith(sentence)


@pytest.mark.parametrize(
    ("cls", "name", "meant"),
    [
        (TrainingConfig, "learning_rate", "training.optimizer.learning_rate"),
        (TrainingConfig, "warmup_steps", "training.schedule.warmup_steps"),
        (TrainingConfig, "decay_steps", "training.schedule.decay_steps"),
        (TrainingConfig, "z_loss", "training.loss.z_loss"),
        (TrainingConfig, "log_every", "training.recording.log_every"),
        (TrainingConfig, "on_bad_step", "training.bad_steps.policy"),
        (TrainingConfig, "learning_rte", "training.optimizer.learning_rate"),
        (TrainingConfig, "seeed", "seed"),
        (ModelConfig, "vocabulary_size", "tokenizer.vocabulary_size"),
        (ExperimentConfig, "learning_rate", "training.optimizer.learning_rate"),
    ],
)
def test_a_field_that_moved_is_named_where_it_is_now(cls, name, meant):
    assert str(unknown_field(cls, name)) == f"{cls.__name__} has no field {name!r}. Did you mean {meant!r}?"


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        (
            '{"training": {"num_steps": 5, "learning_rate": 1e-3}}',
            "TrainingConfig has no field 'learning_rate'. Did you mean 'training.optimizer.learning_rate'?",
        ),
        (
            '{"training": {"num_steps": 5, "optimizer": "adamw"}}',
            "training.optimizer is 'adamw', but 'training.optimizer' is a section of the config; set one of its "
            "fields, such as training.optimizer.name, ",
        ),
    ],
)
def test_the_config_of_a_run_before_the_sections_names_what_moved(text, sentence):
    with pytest.raises(InputError) as caught:
        from_json(text)
    assert str(caught.value).startswith(sentence)


def test_the_nearest_name_is_suggested_and_all_names_where_none_is_near():
    assert suggest("learning_rte", ["learning_rate", "seed"]) == " Did you mean 'learning_rate'?"
    assert suggest("zzz", ["b", "a"]) == " Known: a, b."
    assert suggest("zzz", []) == ""


def test_prepared_data_on_an_object_store_are_refused():
    config = ExperimentConfig(
        name="x", task="classify", data=DataConfig(sources=("a.csv",), prepared_dir="gs://bucket/prepared")
    )
    with pytest.raises(InputError, match="they must be on a disk"):
        validate(config)


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_every_optimizer_works_with_the_defaults_and_with_no_decay(optimizer):
    config = _valid()
    config.training.optimizer.name = optimizer
    validate(config)
    config.training.optimizer.weight_decay = 0.0
    validate(config)


def test_every_path_is_a_field_and_may_begin_with_the_home_folder(monkeypatch):
    monkeypatch.setenv("HOME", "/home/ada")
    assert set(flatten(ExperimentConfig())) >= PATH_FIELDS
    config = ExperimentConfig(
        name="~", task="classify", data=DataConfig(sources=("~/a", "b~", "~")), model=ModelConfig(source="~/m")
    )
    found = with_home(config)
    assert found == from_json(to_json(config)) == from_json(to_json(found))
    assert (found.name, found.data.sources, found.model.source) == (
        "~",
        ("/home/ada/a", "b~", "/home/ada"),
        "/home/ada/m",
    )
