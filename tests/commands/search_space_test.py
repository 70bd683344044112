"""What `--search` takes, and the sentence for each thing that it does not."""

import pytest

from aigc_tf.commands.search_space import Dimension, check_space, parse_search, show, with_values
from aigc_tf.config import DataConfig, ExperimentConfig
from aigc_tf.errors import InputError


def _config(**training):
    config = ExperimentConfig(name="a", task="classify", data=DataConfig(sources=("a.csv",)))
    for name, value in training.items():
        setattr(config.training, name, value)
    return config


def test_ranges_and_choices_are_read_by_the_type_of_their_field():
    texts = [
        "training.optimizer.learning_rate=log:1e-5..1e-3",
        "config.training.schedule.warmup_steps=0..100",
        "training.schedule.name=linear|cosine",
        "training.loss.balance_classes=true|false",
        "training.global_batch_size=16|32",
    ]
    rate, warmup, schedule, balance, batch = parse_search(texts)
    assert rate == Dimension(field="training.optimizer.learning_rate", low=1e-5, high=1e-3, is_log=True)
    assert warmup == Dimension(field="training.schedule.warmup_steps", low=0, high=100, is_whole=True)
    assert schedule.choices == ("linear", "cosine")
    assert balance.choices == (True, False)
    assert batch.choices == (16, 32)
    assert [str(dimension) for dimension in parse_search([str(rate), str(warmup)])] == [
        "training.optimizer.learning_rate=log:1e-05..0.001",
        "training.schedule.warmup_steps=0..100",
    ]


@pytest.mark.parametrize(
    ("texts", "sentence"),
    [
        (
            [],
            "--search is missing: a field and the values to try, such as "
            "'training.optimizer.learning_rate=log:1e-5..1e-3",
        ),
        (
            ["training.optimizer.learning_rate"],
            "--search is 'training.optimizer.learning_rate'; give a field and its values, such as",
        ),
        (
            ["training.optimizer.learning_rate= "],
            "--search is 'training.optimizer.learning_rate= '; give a field and its values",
        ),
        (
            ["training.learning_rte=1..2"],
            "TrainingConfig has no field 'learning_rte'. Did you mean 'training.optimizer.learning_rate'?",
        ),
        (["training=1..2"], "'training' is a section of the config; set one of its fields, such as training.num_steps"),
        (
            ["training.recording.log_every=1..9"],
            "--search names training.recording.log_every, which does not change the result of training;",
        ),
        (["name=a|b"], "--search names name, which does not change the result of training;"),
        (
            ["training.loss.class_weights=1|2"],
            "--search names training.loss.class_weights, which holds several values;",
        ),
        (
            ["training.optimizer.beta_1=0.9"],
            "--search 'training.optimizer.beta_1=0.9' has one value; give a range LOW..HIGH or choices A|B, or set "
            "--config.training.optimizer.beta_1=0.9.",
        ),
        (["training.optimizer.beta_1=0.9|0.9"], "--search names a value of training.optimizer.beta_1 twice: 0.9|0.9."),
        (
            ["training.schedule.name=a..b"],
            "--search gives a range for training.schedule.name, which is not a number; give choices",
        ),
        (
            ["training.loss.balance_classes=0..1"],
            "--search gives a range for training.loss.balance_classes, which is not a number;",
        ),
        (
            ["training.loss.balance_classes=yes|no"],
            "--search gives training.loss.balance_classes the value 'yes'; true|false",
        ),
        (
            ["training.num_steps=1.5..3"],
            "--search gives training.num_steps the value '1.5'; a whole number such as 100",
        ),
        (
            ["training.optimizer.beta_1=0..inf"],
            "--search gives training.optimizer.beta_1 the value 'inf'; a number such as 5e-5 fits here.",
        ),
        (
            ["training.optimizer.beta_1=0.9..0.1"],
            "--search training.optimizer.beta_1=0.9..0.1 must go from the lower to the higher number.",
        ),
        (
            ["training.optimizer.beta_1=log:0..1"],
            "--search training.optimizer.beta_1=log:0..1 must start above 0, since a logarithmic",
        ),
        (
            ["training.optimizer.beta_1=0..0.5", "training.optimizer.beta_1=0.6|0.7"],
            "--search names training.optimizer.beta_1 twice;",
        ),
    ],
)
def test_what_does_not_fit_is_one_sentence(texts, sentence):
    with pytest.raises(InputError) as caught:
        parse_search(texts)
    assert str(caught.value).startswith(sentence)


def test_values_are_set_on_a_copy():
    config = _config()
    changed = with_values(config, {"training.optimizer.learning_rate": 0.5, "name": "b"})
    assert (changed.training.optimizer.learning_rate, changed.name) == (0.5, "b")
    assert (config.training.optimizer.learning_rate, config.name) == (5e-5, "a")


def test_combinations_that_no_trial_could_run_are_refused_before_any_does():
    check_space(_config(), parse_search(["training.schedule.warmup_steps=0..100", "training.num_steps=200|300"]))
    with pytest.raises(
        InputError, match=r"would try training.schedule.warmup_steps=100, training.num_steps=50, which does not"
    ):
        check_space(_config(), parse_search(["training.schedule.warmup_steps=0..100", "training.num_steps=200|50"]))
    with pytest.raises(
        InputError, match=r"would try training.schedule.name=cosin, which does not fit: training.schedule.name is"
    ):
        check_space(_config(), parse_search(["training.schedule.name=linear|cosin"]))


def test_values_are_shown_as_they_are_typed():
    values = {
        "training.optimizer.learning_rate": 1.23456e-5,
        "training.loss.balance_classes": True,
        "training.schedule.name": "wsd",
    }
    assert (
        show(values)
        == "training.optimizer.learning_rate=1.235e-05, training.loss.balance_classes=true, training.schedule.name=wsd"
    )
