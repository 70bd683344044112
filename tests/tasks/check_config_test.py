"""What a config must be for its task: fields that fit, sections that are read, a metric that there is."""

import dataclasses

import pytest

from aigc_tf import tasks
from aigc_tf.config import DataConfig, ExperimentConfig
from aigc_tf.config.fields import replace_fields
from aigc_tf.errors import InputError
from aigc_tf.tasks import TASKS, check_config, shown_config

VALID = ExperimentConfig(name="x", task="classify", data=DataConfig(sources=("a.csv",)))


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        (
            {"training.loss.z_loss": 1e-4, "data.problem_type": "multi_label"},
            "training.loss.z_loss needs a softmax, which data.problem_type 'multi_label' lacks; set it to 0.",
        ),
        (
            {"adapter.enabled": True, "model.source": "sample:minilm", "adapter.kind": "prefix"},
            "adapter.kind 'prefix' is for task 'generate', received task 'classify'; take 'lora'.",
        ),
        ({"data.text_column": ""}, "data.text_column is ''; it must be the name of a column."),
        ({"data.label_column": ""}, "data.label_column is ''; it must be the name of a column."),
        (
            {"data.column_names": ("txt", "label")},
            "data.text_column is 'text', which data.column_names lacks. Did you mean 'txt'?",
        ),
        (
            {"data.column_names": ("text", "label"), "data.text_b_column": "b"},
            "data.text_b_column is 'b', which data.column_names lacks. Known: label, text.",
        ),
        ({"data.label_thresholds": (0.0,)}, "1 data.label_thresholds make 2 classes, but data.label_names has 0;"),
        (
            {"data.label_thresholds": (1.0, 0.0), "data.label_names": ("a", "b", "c")},
            "data.label_thresholds must ascend, received (1.0, 0.0).",
        ),
        (
            {"data.label_thresholds": (1.0, 1.0), "data.label_names": ("a", "b", "c")},
            "data.label_thresholds must ascend, received (1.0, 1.0).",
        ),
        (
            {"data.label_thresholds": (1.0,), "data.problem_type": "regression"},
            "data.label_thresholds make classes; data.problem_type 'regression' must be 'single_label'.",
        ),
        ({"data.label_names": ("a", "a")}, "data.label_names repeats a name: ('a', 'a')."),
        (
            {"data.label_names": ("a", "b"), "data.problem_type": "regression"},
            "data.label_names has no meaning for data.problem_type 'regression'; remove it.",
        ),
        ({"data.label_margin": 0.5}, "data.label_margin is a distance to data.label_thresholds, which is empty."),
        (
            {"training.loss.class_weights": (1.0,), "training.loss.balance_classes": True},
            "training.loss.class_weights and training.loss.balance_classes both weight the classes; set one of them.",
        ),
        (
            {"training.loss.balance_classes": True, "data.problem_type": "multi_label"},
            "Class weights fit data.problem_type 'single_label', received 'multi_label'; remove them.",
        ),
        (
            {"training.loss.class_weights": (1.0,), "data.problem_type": "regression"},
            "Class weights fit data.problem_type 'single_label', received 'regression'; remove them.",
        ),
        (
            {"training.loss.label_smoothing": 0.1, "data.problem_type": "regression"},
            "training.loss.label_smoothing has no meaning for data.problem_type 'regression'; set it to 0.",
        ),
        (
            {"training.loss.class_weights": (-1.0, 1.0)},
            "training.loss.class_weights is (-1.0, 1.0); weights are 0 or more, and at least one is above 0.",
        ),
        ({"training.loss.class_weights": (0.0, 0.0)}, "training.loss.class_weights is (0.0, 0.0); weights are 0 or"),
        (
            {"evaluation.best_metric": "acuracy"},
            "evaluation.best_metric is 'acuracy', which is not a metric of this task.",
        ),
        (
            {"generation.temperature": 0.5},
            "generation.temperature is 0.5, but task 'classify' does not read that section; leave it out.",
        ),
        ({"task": "clasify"}, "task is 'clasify'; it is one of classify, generate. Did you mean 'classify'?"),
        (
            {"task": "generate", "tokenizer.kind": "wordpiece"},
            "tokenizer.kind is 'wordpiece'; it must be 'sentencepiece' for a generator, which keeps text.",
        ),
        (
            {"task": "generate", "data.label_margin": 0.5},
            "data.label_margin is 0.5, but task 'generate' has no labels and cuts nothing; leave it out.",
        ),
        (
            {"task": "generate", "data.label_separator": ";"},
            "data.label_separator is ';', but task 'generate' has no labels and cuts nothing; leave it out.",
        ),
        (
            {"task": "generate", "data.text_b_column": "answer"},
            "data.text_b_column is 'answer', so that an example is a prompt and a response;",
        ),
        ({"task": "generate", "evaluation.best_metric": "accurcy"}, "evaluation.best_metric is 'accurcy', which is no"),
    ],
)
def test_what_does_not_fit_the_task_is_one_sentence(changes, sentence):
    with pytest.raises(InputError) as caught:
        check_config(replace_fields(VALID, changes))
    assert str(caught.value).startswith(sentence)


@pytest.mark.parametrize("name", TASKS)
def test_every_task_takes_the_defaults_and_knows_its_metrics(name):
    config = replace_fields(VALID, {"task": name})
    check_config(config)
    assert set(TASKS[name].metrics(config).values()) <= {1, -1}
    assert set(TASKS[name].sections) <= {field.name for field in dataclasses.fields(config)}


def test_sections_that_the_task_does_not_read_are_not_printed():
    shown = shown_config(VALID).splitlines()
    assert "training.optimizer" in shown
    assert "generation" not in shown
    assert "generation" in shown_config(replace_fields(VALID, {"task": "generate"})).splitlines()


def test_a_task_of_somebody_elses_is_one_more_entry(monkeypatch):
    spec = dataclasses.replace(TASKS["classify"], name="line", sections=("data", "training"), check=lambda config: None)
    monkeypatch.setitem(tasks.TASKS, "line", spec)
    config = replace_fields(VALID, {"task": "line", "data.column_names": ("x", "y")})
    check_config(config)
    with pytest.raises(InputError, match="task 'line' does not read that section"):
        check_config(replace_fields(config, {"model.num_layers": 2}))
