"""From a file of raw text to an answered request, through the commands, with a tiny model."""

import csv
import dataclasses
import json
import os
import random

import numpy as np
import pytest

from aigc_tf import storage
from aigc_tf.commands.asking import asking_models as asking
from aigc_tf.config import (
    DataConfig,
    DevicesConfig,
    EvaluationConfig,
    ExperimentConfig,
    ExportConfig,
    ModelConfig,
    OptimizerConfig,
    ScheduleConfig,
    TokenizerConfig,
    TrainingConfig,
)
from aigc_tf.config.fields import to_json
from aigc_tf.errors import InputError, RunError
from aigc_tf.evaluation.report import REPORT_KEYS, read_report
from aigc_tf.models.weights import weights_sha256
from aigc_tf.tasks import check_config
from aigc_tf.training import checkpoints
from aigc_tf.training.recording.telemetry import read_metrics
from tests import scripts_behind as commands
from tests.training_fields import training_with

GOOD, BAD = ["fine", "lovely", "great", "splendid"], ["awful", "dreadful", "poor", "horrid"]


def write_reviews(path, *, count=400, pairs=False, labels=("good", "bad")):
    """Reviews whose label follows from their words, some with emoji, CJK, quotes and line breaks."""
    source = random.Random(0)
    with open(path, "w", newline="", encoding="utf-8") as file:
        rows = csv.writer(file)
        rows.writerow(["text", "answer", "label"] if pairs else ["text", "label"])
        for index in range(count):
            good = source.random() < 0.5
            words = source.sample(GOOD if good else BAD, 2) + source.sample(["film", "book", "meal 🍜", "電影"], 2)
            source.shuffle(words)
            text = " ".join(words) + f' number {index}, "quoted"' + ("\nand a second line" if index % 7 == 0 else "")
            rows.writerow([text, "yes" if good else "no", labels[0] if good else labels[1]][:: 1 if pairs else 2])
    return path


def tiny_config(tmp_path, **data):
    config = ExperimentConfig(
        name="tiny",
        task="classify",
        data=DataConfig(
            **({"sources": (str(tmp_path / "reviews.csv"),), "max_length": 32} | data),
            prepared_dir=str(tmp_path / "prepared"),
        ),
        tokenizer=TokenizerConfig(source="train", vocabulary_size=200),
        model=ModelConfig(num_layers=1, hidden_dim=32, num_heads=2, intermediate_dim=64),
        training=TrainingConfig(
            num_steps=60,
            global_batch_size=16,
            checkpoint_every=20,
            evaluate_every=30,
            optimizer=OptimizerConfig(learning_rate=3e-3),
            schedule=ScheduleConfig(warmup_steps=5),
            devices=DevicesConfig(precision="float32"),
        ),
        evaluation=EvaluationConfig(batch_size=16),
        export=ExportConfig(directory=str(tmp_path / "saved_models")),
    )
    check_config(config)
    return config


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A prepared, trained and exported experiment."""
    folder = tmp_path_factory.mktemp("experiment")
    write_reviews(folder / "reviews.csv")
    config = tiny_config(folder)
    commands.prepare(config)
    commands.train(config, str(folder / "run"))
    commands.export(str(folder / "run"))
    return folder, config


def predict(capsys, model, **arguments):
    capsys.readouterr()
    given = {name: arguments.pop(name) for name in ("text", "text_b") if name in arguments}
    asking.ask_model(str(model), given, script="predict", **arguments)
    return [json.loads(line) for line in capsys.readouterr().out.splitlines()]


def test_a_run_leaves_what_its_contract_says(trained):
    folder, _ = trained
    names = {path.name for path in (folder / "run").iterdir()}
    assert {
        "config.json",
        "architecture.json",
        "encoders",
        "facts.json",
        "metrics.jsonl",
        "logs",
        "checkpoints",
        "report.json",
    } <= names
    report = read_report(folder / "run")
    assert set(report) == set(REPORT_KEYS)
    assert report["steps"] == 60
    assert report["metrics"]["test"]["accuracy"] > 0.9
    assert report["metrics"]["test"]["macro_f1"] > 0.9
    assert report["train_seconds"] > 0
    assert report["examples_per_second"] == pytest.approx(60 * 16 / report["train_seconds"])
    last = checkpoints.load_named(str(folder / "run"), "last")
    assert report["weights_sha256"] == weights_sha256(last.weights)


def test_metrics_have_every_step_once_and_agree_with_the_report(trained):
    folder, _ = trained
    lines = read_metrics(folder / "run")
    assert [line["step"] for line in lines if "train/loss" in line] == list(range(1, 61))
    evaluated = {line["step"]: line["validation/accuracy"] for line in lines if "validation/accuracy" in line}
    assert list(evaluated) == [30, 60]
    judged = read_report(folder / "run")["metrics"]["validation"]
    assert judged["accuracy"] == evaluated[judged["step"]] == max(evaluated.values())


def test_tensorboard_shows_the_same_scalars_the_confusions_and_the_config(trained):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    folder, _ = trained
    events = EventAccumulator(str(folder / "run" / "logs"), size_guidance={"images": 0, "scalars": 0, "tensors": 0})
    events.Reload()
    tags = events.Tags()
    drawn = {tag for kind in ("scalars", "tensors", "images") for tag in tags[kind]}
    assert {
        "train/loss",
        "train/learning_rate",
        "train/gradient_norm",
        "time/examples_per_second",
        "time/input_seconds",
        "validation/accuracy",
        "validation/macro_f1",
        "validation/confusion_matrix",
    } <= drawn
    assert any("config" in tag for tag in drawn)


def test_a_finished_run_says_so_and_changes_nothing(trained, capsys):
    folder, config = trained
    before = (folder / "run" / "report.json").read_bytes()
    commands.train(config, str(folder / "run"))
    assert "This run is finished: 60 steps are done." in capsys.readouterr().out
    assert (folder / "run" / "report.json").read_bytes() == before


def test_a_run_that_stopped_early_says_so_when_it_is_asked_for_more_steps(trained, tmp_path, capsys):
    import shutil

    folder, config = trained
    shutil.copytree(folder / "run", tmp_path / "run")
    path = tmp_path / "run" / "checkpoints" / "step-00000060" / "state.json"
    state = json.loads(path.read_text())
    state["progress"] |= {"stopped_early": True, "best_step": 30, "best_value": 0.875}
    path.write_text(json.dumps(state))
    longer = dataclasses.replace(config, training=training_with(config.training, num_steps=70))
    commands.train(longer, str(tmp_path / "run"))
    said = capsys.readouterr().out
    assert "This run is finished: 60 steps are done.\n" in said
    assert "It stopped early after step 60: accuracy 0.8750 was best at step 30.\n" in said


def test_more_steps_go_on_and_another_config_is_refused_by_name(trained, tmp_path):
    import shutil

    folder, config = trained
    shutil.copytree(folder / "run", tmp_path / "run")
    longer = dataclasses.replace(config, training=training_with(config.training, num_steps=70))
    commands.train(longer, str(tmp_path / "run"))
    assert read_report(tmp_path / "run")["steps"] == 70
    other = dataclasses.replace(config, training=training_with(config.training, learning_rate=1e-4, num_steps=80))
    with pytest.raises(InputError, match=r"training\.optimizer\.learning_rate was 0\.003 and is 0\.0001"):
        commands.train(other, str(tmp_path / "run"))


def test_evaluate_gives_the_numbers_that_training_gave(trained, capsys):
    folder, _ = trained
    before = read_report(folder / "run")
    commands.evaluate(str(folder / "run"))
    after = read_report(folder / "run")
    assert after["metrics"]["test"]["accuracy"] == before["metrics"]["test"]["accuracy"]
    assert after["metrics"]["test"]["loss"] == pytest.approx(before["metrics"]["test"]["loss"], abs=1e-6)
    assert after["weights_sha256"] == before["weights_sha256"]
    assert "accuracy" in capsys.readouterr().out


def test_a_report_of_fewer_steps_is_not_taken_for_that_of_a_longer_run(trained, tmp_path):
    """A run that was extended and killed in its last evaluation has a checkpoint beyond its report."""
    import shutil

    folder, config = trained
    shutil.copytree(folder / "run", tmp_path / "run")
    stale = json.loads((tmp_path / "run" / "report.json").read_text()) | {"steps": 30}
    (tmp_path / "run" / "report.json").write_text(json.dumps(stale))
    with pytest.raises(InputError, match="is not finished: it has 60 steps and no report"):
        commands.evaluate(str(tmp_path / "run"))
    commands.train(config, str(tmp_path / "run"))
    assert read_report(tmp_path / "run")["steps"] == 60


def test_data_prepared_anew_are_not_mixed_into_an_old_report(trained, tmp_path):
    import shutil

    folder, _ = trained
    shutil.copytree(folder / "run", tmp_path / "run")
    facts = json.loads((tmp_path / "run" / "facts.json").read_text()) | {"sha256": "0" * 64}
    (tmp_path / "run" / "facts.json").write_text(json.dumps(facts))
    with pytest.raises(InputError, match="are not those of the run"):
        commands.evaluate(str(tmp_path / "run"))


def test_batches_that_cannot_be_split_are_refused_before_the_first_step(trained, tmp_path):
    _, config = trained
    odd = dataclasses.replace(
        config,
        training=training_with(config.training, strategy="mirrored"),
        evaluation=dataclasses.replace(config.evaluation, batch_size=15),
    )
    with pytest.raises(InputError, match=r"evaluation\.batch_size is 15, which cannot be split evenly over 2 replicas"):
        commands.train(odd, str(tmp_path / "run"))
    assert not (tmp_path / "run").exists()


def test_run_and_export_answer_alike_and_keep_the_order(trained, capsys):
    folder, _ = trained
    texts = ["a lovely, splendid film", "", "dreadful meal 🍜 horrid", "電影", "x " * 500]
    from_run = predict(capsys, folder / "run", text=texts)
    from_export = predict(capsys, folder / "saved_models" / "tiny", text=texts)
    assert [row["text"] for row in from_run] == texts
    assert [row["label"] for row in from_run][:3:2] == ["good", "bad"]
    for ours, theirs in zip(from_run, from_export, strict=True):
        assert ours["label"] == theirs["label"]
        assert ours["probabilities"] == pytest.approx(theirs["probabilities"], abs=1e-5)
        assert sum(ours["probabilities"].values()) == pytest.approx(1, abs=1e-5)


def test_predict_reads_lines_and_tables_and_writes_whole_files(trained, tmp_path, capsys):
    folder, _ = trained
    (tmp_path / "lines.txt").write_bytes(b"great book\r\nawful, poor meal\r\n")
    (tmp_path / "table.jsonl").write_text('{"text": "great book"}\n{"text": "awful, poor meal"}\n')
    lines = predict(capsys, folder / "run", input_path=str(tmp_path / "lines.txt"))
    table = predict(
        capsys, folder / "run", input_path=str(tmp_path / "table.jsonl"), output_path=str(tmp_path / "out.jsonl")
    )
    assert table == []
    written = [json.loads(line) for line in (tmp_path / "out.jsonl").read_text().splitlines()]
    assert written == lines
    assert [row["label"] for row in written] == ["good", "bad"]
    (tmp_path / "broken.jsonl").write_text('{"text": "fine"}\n{"text"\n')
    with pytest.raises(InputError, match="broken"):
        predict(capsys, folder / "run", input_path=str(tmp_path / "broken.jsonl"), output_path=str(tmp_path / "none"))
    assert not (tmp_path / "none").exists()


def test_the_same_export_again_writes_nothing(trained, capsys):
    folder, _ = trained
    commands.export(str(folder / "run"))
    assert "already" in capsys.readouterr().out
    assert sorted(path.name for path in (folder / "saved_models" / "tiny").iterdir()) == ["1"]


def test_a_run_can_be_the_start_of_another(trained, tmp_path):
    folder, config = trained
    again = dataclasses.replace(
        config,
        model=dataclasses.replace(config.model, source=str(folder / "run")),
        training=training_with(config.training, num_steps=1, learning_rate=0.0),
    )
    commands.train(again, str(tmp_path / "again"))
    first = checkpoints.load_named(str(folder / "run"), "best").weights
    second = checkpoints.load_named(str(tmp_path / "again"), "last").weights
    name = next(path for path in first if "token_embedding" in path)
    np.testing.assert_array_equal(first[name], second[name])


def test_a_run_answers_and_exports_where_its_data_are_not(trained, tmp_path, capsys):
    import shutil

    folder, _ = trained
    shutil.copytree(folder / "run", tmp_path / "run")
    config = json.loads((tmp_path / "run" / "config.json").read_text())
    config["data"]["prepared_dir"] = str(tmp_path / "nowhere")
    config["export"]["directory"] = str(tmp_path / "saved_models")
    (tmp_path / "run" / "config.json").write_text(json.dumps(config))
    assert [row["label"] for row in predict(capsys, tmp_path / "run", text=["a lovely, splendid film"])] == ["good"]
    commands.export(str(tmp_path / "run"))
    assert (tmp_path / "saved_models" / "tiny" / "1" / "manifest.json").exists()


def test_dry_run_prints_the_plan_and_writes_nothing(trained, tmp_path, capsys):
    _, config = trained
    commands.train(config, str(tmp_path / "dry"), dry_run=True)
    printed = capsys.readouterr().out
    assert "parameters" in printed
    assert "60 of 16 examples" in printed
    assert "num_buckets              32" in printed  # resolved, not 0
    assert not (tmp_path / "dry").exists()


def test_pairs_train_export_and_answer(tmp_path, capsys):
    write_reviews(tmp_path / "reviews.csv", count=120, pairs=True)
    config = tiny_config(tmp_path, text_b_column="answer")
    config.training.num_steps = 10
    commands.prepare(config)
    commands.train(config, str(tmp_path / "run"))
    commands.export(str(tmp_path / "run"))
    asked = dict(text=["great film", "poor book"], text_b=["yes", "no"])
    from_run = predict(capsys, tmp_path / "run", **asked)
    from_export = predict(capsys, tmp_path / "saved_models" / "tiny", **asked)
    assert [row["text_b"] for row in from_run] == ["yes", "no"]
    for ours, theirs in zip(from_run, from_export, strict=True):
        assert ours["probabilities"] == pytest.approx(theirs["probabilities"], abs=1e-5)


@pytest.mark.parametrize(
    ("problem_type", "labels", "key"),
    [("multi_label", ("kind|warm", "cold"), "labels"), ("regression", ("4.5", "-2"), "value")],
)
def test_several_labels_and_numbers_train_export_and_answer(tmp_path, capsys, problem_type, labels, key):
    write_reviews(tmp_path / "reviews.csv", count=120, labels=labels)
    config = tiny_config(tmp_path, problem_type=problem_type)
    config.training.num_steps = 10
    commands.prepare(config)
    commands.train(config, str(tmp_path / "run"))
    commands.export(str(tmp_path / "run"))
    metrics = read_report(tmp_path / "run")["metrics"]["test"]
    assert {"multi_label": "micro_f1", "regression": "mae"}[problem_type] in metrics
    from_run = predict(capsys, tmp_path / "run", text=["great film"])
    from_export = predict(capsys, tmp_path / "saved_models" / "tiny", text=["great film"])
    assert key in from_run[0]
    assert from_run[0].keys() == from_export[0].keys()


def test_one_class_and_no_held_out_example_still_train(tmp_path):
    with open(tmp_path / "reviews.csv", "w") as file:
        file.write("text,label\njust one text,good\n")  # its hash makes it training data
    config = tiny_config(tmp_path, split="given")
    config.training.num_steps = 2
    config.training.evaluate_every = 0
    commands.prepare(config)
    commands.train(config, str(tmp_path / "run"))
    assert read_report(tmp_path / "run")["metrics"] == {}


def test_texts_that_do_not_fit_the_model_are_refused(trained):
    folder, _ = trained
    with pytest.raises(InputError, match="takes --text, received --text and --text_b"):
        asking.ask_model(str(folder / "run"), {"text": ["fine"], "text_b": ["yes"]}, script="predict")


def test_a_run_that_failed_before_its_first_checkpoint_takes_another_config(trained, tmp_path):
    _, config = trained
    (tmp_path / "run").mkdir()
    failed = dataclasses.replace(config, training=training_with(config.training, learning_rate=1e30))
    (tmp_path / "run" / "config.json").write_text(to_json(failed))
    commands.train(config, str(tmp_path / "run"), dry_run=True)


def test_a_broken_config_of_a_run_is_named(tmp_path):
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(InputError, match=r"config\.json: The config is not valid JSON"):
        commands.evaluate(str(tmp_path))


def test_two_trainings_into_one_folder_do_not_run_at_once(trained, tmp_path):
    _, config = trained
    with (
        storage.locked_file(tmp_path / "run" / ".lock", busy=""),
        pytest.raises(RunError, match=r"Another process trains into .*run right now"),
    ):
        commands.train(config, str(tmp_path / "run"))
    assert os.listdir(tmp_path / "run") == [".lock"]


def test_a_mistyped_task_is_refused(tmp_path):
    config = tiny_config(tmp_path)
    config.task = "clasify"
    with pytest.raises(
        InputError, match=r"task is 'clasify'; it is one of classify, generate\. Did you mean 'classify'"
    ):
        check_config(config)
