"""A generator from documents to an export that is asked, through the functions behind the scripts."""

import dataclasses
import io
import json
import os
import pty
import subprocess
import sys
import time
from pathlib import Path

import keras_nlp
import numpy as np
import pytest

from aigc_tf.commands.asking import asking_models as asking
from aigc_tf.config import (
    DataConfig,
    EvaluationConfig,
    ExperimentConfig,
    ExportConfig,
    GenerationConfig,
    ModelConfig,
    TokenizerConfig,
)
from aigc_tf.errors import InputError
from aigc_tf.evaluation.report import read_report
from aigc_tf.tasks import check_config
from aigc_tf.training import checkpoints
from aigc_tf.training.recording.telemetry import read_metrics
from tests import scripts_behind as commands
from tests.training_fields import training_with

ROOT = Path(__file__).parents[2]
LINES = (
    "The cat sat on the mat.",
    "A dog ran to the red house.",
    "你好, 😀!",
    "No cat, no dog; a bird sang.",
)


def tiny_config(folder, **changes):
    config = ExperimentConfig(
        name="tiny",
        task="generate",
        data=DataConfig(
            sources=(str(folder / "texts"),),
            format="document",
            split="files",
            test_files=("test*",),
            validation_files=("valid*",),
            prepared_dir=str(folder / "prepared"),
            max_length=32,
        ),
        tokenizer=TokenizerConfig(source="train", vocabulary_size=340),
        model=ModelConfig(dropout=0.1, num_layers=2, hidden_dim=32, num_heads=2, intermediate_dim=64),
        training=training_with(
            num_steps=40,
            global_batch_size=4,
            evaluate_every=20,
            checkpoint_every=20,
            learning_rate=5e-3,
            warmup_steps=4,
            steps_per_call=5,
            precision="float32",
            **changes,
        ),
        evaluation=EvaluationConfig(batch_size=4, sample_prompts=("The cat", "")),
        generation=GenerationConfig(max_new_tokens=12, temperature=0.8, seed=3),
        export=ExportConfig(directory=str(folder / "saved_models")),
    )
    check_config(config)
    return config


def write_texts(folder):
    (folder / "texts").mkdir()
    rng = np.random.default_rng(0)
    for name, count in {"a.txt": 120, "b.txt": 80, "valid.txt": 20, "test.txt": 30}.items():
        lines = [LINES[index] for index in rng.integers(0, len(LINES), count)]
        (folder / "texts" / name).write_text("\n".join(lines) + "\n", encoding="utf-8")


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    folder = tmp_path_factory.mktemp("experiment")
    write_texts(folder)
    config = tiny_config(folder)
    commands.prepare(config)
    commands.train(config, str(folder / "run"))
    commands.export(str(folder / "run"))
    return folder, config


def ask(capsys, model, prompts=(), **arguments):
    capsys.readouterr()
    given = {"prompt": list(prompts)} if prompts else {}
    asking.ask_model(str(model), given, script="generate", **arguments)
    return capsys.readouterr()


def test_the_report_has_the_metrics_of_a_language_model(trained):
    folder, _ = trained
    report = read_report(folder / "run")
    test = report["metrics"]["test"]
    num_bytes = len((folder / "texts" / "test.txt").read_bytes())
    assert test["utf8_bytes"] == num_bytes
    assert test["bits_per_byte"] == pytest.approx(test["loss"] * test["tokens"] / np.log(2) / num_bytes)
    assert test["perplexity"] == pytest.approx(np.exp(test["loss"]))
    assert test["loss"] < 0.8 * np.log(340)  # it learned something
    assert report["tokens_per_second"] > 0
    assert set(report["metrics"]) == {"validation", "test"}


def test_samples_are_shown_while_it_trains(trained):
    folder, _ = trained
    events = b"".join(path.read_bytes() for path in (folder / "run" / "logs").rglob("*tfevents*"))
    assert b"samples/1" in events
    assert b"samples/2" in events
    tags = {tag for row in read_metrics(str(folder / "run")) for tag in row}
    assert {"validation/bits_per_byte", "time/tokens_per_second", "train/tokens"} <= tags


def test_a_run_goes_on_bit_for_bit_with_dropout(trained, tmp_path):
    folder, _ = trained
    halfway = tiny_config(folder)
    halfway.training.num_steps = 20
    halfway.training.schedule.name = "constant"
    whole = tiny_config(folder)
    whole.training.schedule.name = "constant"
    commands.train(halfway, str(tmp_path / "run"))
    commands.train(whole, str(tmp_path / "run"))
    commands.train(whole, str(tmp_path / "one"))
    weights = [checkpoints.load_named(str(tmp_path / name), "last").weights for name in ("run", "one")]
    for path, value in weights[0].items():
        assert np.array_equal(value, weights[1][path]), path


def test_the_export_says_what_the_run_says(trained, capsys):
    folder, _ = trained
    prompts = ["The cat", "", "\u4f60\u597d, ", "A dog " * 60]
    settings = {"temperature": 0.9, "top_k": 20, "top_p": 0.95, "seed": 11}
    from_run = ask(capsys, folder / "run", prompts, settings=settings)
    from_export = ask(capsys, folder / "saved_models" / "tiny", prompts, settings=settings)
    assert from_run.out == from_export.out
    assert "tokens per second" in from_run.err
    assert "1 prompt too long for the context of 32 tokens: the end was kept." in from_run.err
    assert "ended early: prompt and continuation filled the context of 32 tokens." in from_run.err


def test_files_of_prompts_give_one_line_each(trained, tmp_path, capsys):
    folder, _ = trained
    (tmp_path / "prompts.txt").write_text("The cat\nA dog\n")
    ask(capsys, folder / "run", input_path=str(tmp_path / "prompts.txt"), output_path=str(tmp_path / "out.jsonl"))
    rows = [json.loads(line) for line in (tmp_path / "out.jsonl").read_text().splitlines()]
    assert [row["prompt"] for row in rows] == ["The cat", "A dog"]
    assert all(row["finish_reason"] in ("end", "stop", "length") for row in rows)
    again = ask(capsys, folder / "run", ["The cat"])
    assert again.out == "The cat" + rows[0]["text"] + "\n"  # a row is the same alone


def test_typed_lines_are_continued_one_by_one(trained, capsys, monkeypatch):
    folder, _ = trained
    monkeypatch.setattr("sys.stdin", io.StringIO("The cat\\n\nA dog"))
    shown = ask(capsys, folder / "run").out
    assert shown.startswith("The cat\n")
    assert "A dog" in shown


def converse(folder, *, typed, wait_for):
    """Runs scripts/generate.py on a terminal of its own; types a line each time that a sign is there."""
    leader, follower = pty.openpty()
    command = [sys.executable, "scripts/generate.py", f"--model={folder}", "--max_new_tokens=8"]
    environment = os.environ | {"PYTHONPATH": str(ROOT), "TERM": "dumb"}
    process = subprocess.Popen(command, stdin=follower, stdout=follower, stderr=follower, cwd=ROOT, env=environment)
    os.close(follower)
    shown = b""
    try:
        for line, sign in zip(typed, wait_for, strict=True):
            deadline = time.monotonic() + 120
            while sign not in shown and time.monotonic() < deadline:
                shown += os.read(leader, 1 << 16)
            os.write(leader, line)
            shown = shown.replace(sign, b"")  # looked for anew
        assert process.wait(timeout=60) == 0
        return shown.decode()
    finally:
        process.kill()
        os.close(leader)


@pytest.mark.slow
def test_on_a_terminal_it_is_a_conversation(trained):
    folder, _ = trained
    shown = converse(folder / "run", typed=[b"The cat\\n\n", b"\x04"], wait_for=[b"> ", b"tokens per second.\r\n> "])
    assert "Loading" in shown
    assert "Ctrl-D ends" in shown
    assert "The cat\r\n" in shown  # with the line's end that was typed
    assert "1 continuation of" in shown


def test_lines_of_a_pipe_are_told_apart_and_need_be_no_utf_8(trained, capsys, monkeypatch):
    folder, _ = trained
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(b"The cat\n\xff dog\n"), encoding="utf-8"))
    shown = ask(capsys, folder / "run")
    first, second, end = shown.out.split("-" * 20 + "\n")
    assert first.startswith("The cat")
    assert second.startswith("\ufffd dog")
    assert not end
    assert "2 continuations of" in shown.err


@pytest.mark.parametrize("stdin", [None, io.StringIO()])
def test_nothing_to_continue_is_one_sentence(stdin, trained, monkeypatch):
    folder, _ = trained
    monkeypatch.setattr("sys.stdin", stdin)
    with pytest.raises(InputError, match="There is no prompt, and nothing on standard input"):
        asking.ask_model(str(folder / "run"), {}, script="generate")


def test_what_a_model_has_not_is_refused_before_it_is_loaded(trained):
    folder, _ = trained
    export = str(folder / "saved_models" / "tiny")
    asked = {"prompt": ["x"]}
    with pytest.raises(InputError, match=r"--num_beams is 4, but the exported model .* has no such setting"):
        asking.ask_model(export, asked, script="generate", settings={"num_beams": 4})
    with pytest.raises(InputError, match="--checkpoint=last is for runs"):
        asking.ask_model(export, asked, script="generate", checkpoint="last")
    (folder / "prompts.txt").write_text("The cat\n")
    path = str(folder / "prompts.txt")
    with pytest.raises(InputError, match="is the file of the questions"):
        asking.ask_model(export, {}, script="generate", input_path=path, output_path=path)


@pytest.mark.slow
def test_another_network_of_keras_nlp_trains_goes_on_and_is_continued(trained, tmp_path, capsys):
    folder, _ = trained
    backbone = keras_nlp.models.OPTBackbone(
        vocabulary_size=340, num_layers=1, num_heads=2, hidden_dim=16, intermediate_dim=32, max_sequence_length=32
    )
    backbone.save_to_preset(str(tmp_path / "preset"))

    def train(num_steps, name):
        config = tiny_config(folder)
        config.model.source = str(tmp_path / "preset")
        config.training.num_steps, config.training.schedule.name = num_steps, "constant"
        config.evaluation.sample_prompts = ()
        commands.train(config, str(tmp_path / name))

    train(20, "run")
    train(40, "run")
    train(40, "one")
    once = checkpoints.load_named(str(tmp_path / "one"), "last").weights
    for path, value in checkpoints.load_named(str(tmp_path / "run"), "last").weights.items():
        np.testing.assert_array_equal(value, once[path], err_msg=path)
    assert read_report(tmp_path / "run")["metrics"]["test"]["loss"] < 0.9 * np.log(340)
    shown = [ask(capsys, tmp_path / "run", ["The cat"], settings={"seed": 1}).out for _ in range(2)]
    assert shown[0] == shown[1] != "The cat\n"
    with pytest.raises(InputError, match="GPT-2 is the architecture that is served"):
        commands.export(str(tmp_path / "run"))


def test_beams_are_not_exported(trained, tmp_path):
    folder, config = trained
    changed = dataclasses.replace(config, generation=dataclasses.replace(config.generation, num_beams=2))
    with pytest.raises(InputError, match=r"has no beam search; export it with --config\.generation\.num_beams=1"):
        commands.export(str(folder / "run"), config=changed)


def test_one_document_is_trained_on_with_samples_and_nothing_to_judge(trained, tmp_path, capsys):
    (tmp_path / "texts").mkdir()
    (tmp_path / "texts" / "only.txt").write_text("\n".join(LINES * 40), encoding="utf-8")
    config = tiny_config(tmp_path)
    config.data.split, config.data.test_files, config.data.validation_files = "hash", (), ()
    commands.prepare(config)
    commands.train(config, str(tmp_path / "run"))
    shown = capsys.readouterr()
    assert "sample 1 after step 20" in shown.err
    assert "There are no metrics: the data have neither a validation nor a test split." in shown.out
    assert read_report(tmp_path / "run")["metrics"] == {}


def test_weights_of_a_run_with_another_tokenizer_are_refused(trained, tmp_path):
    folder, _ = trained
    (tmp_path / "texts").mkdir()
    for name in ("a.txt", "valid.txt", "test.txt"):
        (tmp_path / "texts" / name).write_text("\n".join(["Bird, dog and mat: " + line for line in LINES] * 30))
    config = tiny_config(tmp_path)
    commands.prepare(config)
    config.model.source = str(folder / "run")
    with pytest.raises(InputError, match="was trained with another tokenizer than"):
        commands.train(config, str(tmp_path / "run"))


def test_a_stop_string_ends_a_continuation_and_beams_draw_nothing(trained, capsys):
    folder, _ = trained
    whole = ask(capsys, folder / "run", ["The cat"]).out.removeprefix("The cat").removesuffix("\n")
    stop = whole[3:5]
    stopped = ask(capsys, folder / "run", ["The cat"], settings={"stop": (stop,)}).out
    assert stopped == f"The cat{whole[: whole.index(stop)]}\n" != f"The cat{whole}\n"
    beams = [ask(capsys, folder / "run", ["The cat"], settings={"num_beams": 3, "seed": seed}).out for seed in (1, 2)]
    assert beams[0] == beams[1]


def test_each_script_names_the_other_for_a_model_of_the_other_task(trained):
    folder, _ = trained
    with pytest.raises(InputError, match="asks it, with --prompt"):
        asking.ask_model(str(folder / "run"), {"text": ["x"]}, script="predict")
    with pytest.raises(InputError, match=r"scripts/generate\.py asks it, with --prompt"):
        asking.ask_model(str(folder / "saved_models" / "tiny"), {"text": ["x"]}, script="predict")


def test_evaluate_repeats_the_report(trained):
    folder, _ = trained
    before = read_report(folder / "run")["metrics"]
    commands.evaluate(str(folder / "run"))
    after = read_report(folder / "run")["metrics"]
    for split, metrics in before.items():
        for name, value in metrics.items():
            assert after[split][name] == pytest.approx(value, rel=1e-6), (split, name)


def test_a_dry_run_of_a_generator_prints_its_plan(trained, tmp_path, capsys):
    _, config = trained
    commands.train(config, str(tmp_path / "dry"), dry_run=True)
    assert "epochs" in capsys.readouterr().out
    assert not (tmp_path / "dry").exists()
