"""Packed training through the commands: pairs of prompt and response for a generator, and a classifier."""

import dataclasses
import json
import random

import numpy as np
import pytest

from aigc_tf.commands.asking import asking_models as asking
from aigc_tf.config import (
    DataConfig,
    DevicesConfig,
    EvaluationConfig,
    ExperimentConfig,
    GenerationConfig,
    ModelConfig,
    OptimizerConfig,
    ScheduleConfig,
    TokenizerConfig,
    TrainingConfig,
)
from aigc_tf.data.prepared.prepared import open_prepared
from aigc_tf.data.preparing.preparation import prepare_sha256
from aigc_tf.errors import InputError
from aigc_tf.evaluation.report import read_report
from aigc_tf.tasks import check_config
from aigc_tf.training import checkpoints
from aigc_tf.training.recording.telemetry import read_metrics
from tests import scripts_behind as commands
from tests.commands.train_test import tiny_config, write_reviews
from tests.training_fields import training_with

QUESTIONS = {"How many legs has a cat?\n": "Four.", "Wie heißt du? 😀\n": "Anna, und du?", "And a bird?\n": "Two legs."}


def turns_config(folder, *, name="turns", source="turns.jsonl", **data):
    fields = {"text_column": "prompt", "text_b_column": "response", "packing": True, "max_length": 48} | data
    config = ExperimentConfig(
        name=name,
        task="generate",
        data=DataConfig(sources=(str(folder / source),), prepared_dir=str(folder / "prepared"), **fields),
        tokenizer=TokenizerConfig(source="train", vocabulary_size=320),
        model=ModelConfig(dropout=0.1, num_layers=1, hidden_dim=32, num_heads=2, intermediate_dim=64),
        training=TrainingConfig(
            num_steps=60,
            global_batch_size=4,
            evaluate_every=0,
            optimizer=OptimizerConfig(learning_rate=1e-2),
            schedule=ScheduleConfig(warmup_steps=4),
            devices=DevicesConfig(steps_per_call=20, precision="float32"),
        ),
        evaluation=EvaluationConfig(batch_size=4, sample_prompts=("And a bird?\n",)),
        generation=GenerationConfig(max_new_tokens=24, temperature=0.0),
    )
    check_config(config)
    return config


def write_turns(path):
    """Questions with their answers, a number before each question so that none is the copy of another."""
    source = random.Random(0)
    with open(path, "w", encoding="utf-8") as file:
        for number in range(200):
            question, answer = source.choice(list(QUESTIONS.items()))
            row = {"response": answer, "id": number, "prompt": f"{number}. {question}"}
            file.write(json.dumps(row, ensure_ascii=False) + "\n")
        file.write('{"prompt": "Silence?\\n", "response": ""}\n')


@pytest.fixture(scope="module")
def turns(tmp_path_factory):
    folder = tmp_path_factory.mktemp("turns")
    write_turns(folder / "turns.jsonl")
    config = turns_config(folder)
    commands.prepare(config)
    commands.train(config, str(folder / "run"))
    return folder, config


def test_pairs_are_prepared_as_prompt_and_response_and_accounted_for(turns):
    prepared = open_prepared(turns[0] / "prepared" / "turns")
    assert [column.name for column in prepared.schema.columns] == ["text", "response"]
    split = prepared.splits["test"]
    assert (split.column("text").lengths > 0).all()
    assert (split.column("response").lengths > 0).all()
    stages = {stage["name"]: stage for stage in prepared.info["stages"]}
    assert stages["pairs"]["kept"] == 200
    assert stages["pairs"]["dropped"] == {"empty response": 1}
    assert sum(prepared.splits[name].num_examples for name in prepared.splits) == 200
    texts = [json.loads(line) for line in (turns[0] / "turns.jsonl").read_text(encoding="utf-8").splitlines()]
    num_bytes = sum(len(row["response"].encode()) for row in texts)
    assert sum(prepared.learnt_utf8_bytes(name) for name in prepared.splits) == num_bytes
    num_bytes += sum(len(row["prompt"].encode()) for row in texts if row["response"])
    assert sum(prepared.utf8_bytes(name) for name in prepared.splits) == num_bytes


def test_metrics_count_responses_and_their_ends_alone(turns):
    folder, _ = turns
    prepared, test = open_prepared(folder / "prepared" / "turns"), read_report(folder / "run")["metrics"]["test"]
    split = prepared.splits["test"]
    assert test["tokens"] == (split.column("response").lengths + 1).sum()
    assert test["utf8_bytes"] == prepared.learnt_utf8_bytes("test")
    assert test["bits_per_byte"] == pytest.approx(test["loss"] * test["tokens"] / np.log(2) / test["utf8_bytes"])
    assert test["loss"] < 0.3  # three answers are soon known; the numbers of the prompts, were they counted, are not
    useful = [row["train/useful_share"] for row in read_metrics(str(folder / "run")) if "train/useful_share" in row]
    assert np.mean(useful) > 0.9


def test_a_prompt_gets_the_response(turns, capsys):
    capsys.readouterr()
    asking.ask_model(str(turns[0] / "run"), {"prompt": ["7. And a bird?\n"]}, script="generate")
    assert "Two legs." in capsys.readouterr().out


def test_pairs_outside_of_packed_rows_and_of_plain_text_are_refused(tmp_path):
    with pytest.raises(InputError, match=r"data\.text_b_column is 'response'.*set data\.packing to True"):
        turns_config(tmp_path, packing=False)
    (tmp_path / "turns.txt").write_text("a\nb\n")
    with pytest.raises(InputError, match=r"turns\.txt is read as plain text, which has no column for data\.text_b"):
        commands.prepare(turns_config(tmp_path, source="turns.txt"))


def test_pairs_of_a_table_without_header_can_be_named(tmp_path):
    rows = "".join(f"{question.strip()}\t{answer}\n" for question, answer in QUESTIONS.items())
    (tmp_path / "turns.tsv").write_text(rows * 20, encoding="utf-8")
    config = turns_config(tmp_path, source="turns.tsv", column_names=("prompt", "response"))
    commands.prepare(config)
    assert open_prepared(tmp_path / "prepared" / "turns").splits["train"].num_examples >= 20


def test_a_network_that_cannot_be_packed_is_refused_before_training(turns, tmp_path):
    import keras_nlp

    folder, config = turns
    vocabulary_size = open_prepared(folder / "prepared" / "turns").facts.encoder("text").vocabulary_size
    backbone = keras_nlp.models.OPTBackbone(
        vocabulary_size=vocabulary_size, num_layers=1, num_heads=2, hidden_dim=8, intermediate_dim=8
    )
    keras_nlp.models.OPTCausalLM(backbone).save_to_preset(str(tmp_path / "preset"))
    config = dataclasses.replace(config, model=ModelConfig(source=str(tmp_path / "preset")))
    with pytest.raises(InputError, match=r"data\.packing works with BERT and GPT-2.*OPTBackbone"):
        commands.train(config, str(tmp_path / "run"))


@pytest.fixture(scope="module")
def reviews(tmp_path_factory):
    folder = tmp_path_factory.mktemp("reviews")
    write_reviews(folder / "reviews.csv", pairs=True)
    config = tiny_config(folder, text_b_column="answer", packing=True, max_length=96)
    config.model.dropout = 0.0
    config.training.global_batch_size, config.training.num_steps = 4, 60
    config.training.loss.balance_classes = True
    commands.prepare(config)
    return folder, config


def test_a_classifier_learns_from_packed_rows_and_is_judged_on_unpacked_ones(reviews):
    folder, config = reviews
    commands.train(config, str(folder / "run"))
    test = read_report(folder / "run")["metrics"]["test"]
    assert test["num_examples"] == open_prepared(folder / "prepared" / "tiny").splits["test"].num_examples
    assert test["accuracy"] > 0.9
    rows = [row for row in read_metrics(str(folder / "run")) if "train/weight" in row]
    assert np.mean([row["train/useful_share"] for row in rows]) > 0.85
    assert np.mean([row["train/weight"] for row in rows]) > 2 * 4  # examples a step


def test_two_replicas_train_on_packed_rows_like_one_with_micro_batches_too(reviews):
    folder, config = reviews

    def weights(strategy, **more):
        training = training_with(
            config.training, num_steps=4, evaluate_every=0, strategy=strategy, epsilon=1e-6, warmup_steps=1, **more
        )
        run = folder / strategy
        commands.train(dataclasses.replace(config, training=training), str(run))
        return checkpoints.load_named(str(run), "last").weights

    one, two = weights("none"), weights("mirrored", micro_batches=2)
    assert max(float(np.abs(one[path] - two[path]).max()) for path in one) < 1e-5


def test_packing_changes_nothing_that_is_prepared(reviews):
    _, config = reviews
    unpacked = dataclasses.replace(config, data=dataclasses.replace(config.data, packing=False))
    assert prepare_sha256(unpacked) == prepare_sha256(config)


def test_the_plan_counts_rows(reviews, tmp_path, capsys):
    commands.train(reviews[1], str(tmp_path / "dry"), dry_run=True)
    printed = capsys.readouterr().out
    assert "60 of 4 rows" in printed
    assert "training rows" in printed
