"""Runs that train an adapter beside the weights of another run, through the functions behind the scripts."""

import dataclasses
import json

import keras_nlp
import numpy as np
import pytest

from aigc_tf.commands.runs import config_of_run, load_model
from aigc_tf.config import AdapterConfig
from aigc_tf.errors import InputError
from aigc_tf.evaluation.report import read_report
from aigc_tf.models.adapters.adapters import is_adapter_path
from aigc_tf.tasks import check_config
from aigc_tf.training import checkpoints
from tests import scripts_behind as commands
from tests.commands import generator_commands_test
from tests.commands import train_test as commands_test
from tests.training_fields import training_with


def with_adapter(config, source, **adapter):
    """The config of a run that goes on from the run `source`, in three calls of five steps."""
    config = dataclasses.replace(
        config,
        model=dataclasses.replace(config.model, source=str(source)),
        adapter=AdapterConfig(enabled=True, **adapter),
        training=training_with(
            config.training,
            num_steps=15,
            warmup_steps=2,
            learning_rate=2e-2,
            steps_per_call=5,
            checkpoint_every=10,
            evaluate_every=15,
        ),
        evaluation=dataclasses.replace(config.evaluation, sample_prompts=()),
    )
    check_config(config)
    return config


def changed(before, after):
    """Paths whose weights the second run has otherwise than the first, or alone."""
    return {path for path, value in after.items() if path not in before or not np.array_equal(value, before[path])}


def last_weights(run):
    return checkpoints.load_named(str(run), "last").weights


@pytest.fixture(scope="module")
def classifier(tmp_path_factory):
    """A run, and one with LoRA that begins with its backbone, exported."""
    folder = tmp_path_factory.mktemp("classifier")
    commands_test.write_reviews(folder / "reviews.csv", count=200)
    config = commands_test.tiny_config(folder)
    config.training.num_steps = 20
    commands.prepare(config)
    commands.train(config, str(folder / "base"))
    config = with_adapter(config, folder / "base", rank=2)
    commands.train(config, str(folder / "run"))
    commands.export(str(folder / "run"))
    return folder, config


@pytest.fixture(scope="module")
def generator(tmp_path_factory):
    """A run, and one with a prefix that begins with its weights, exported."""
    folder = tmp_path_factory.mktemp("generator")
    generator_commands_test.write_texts(folder)
    config = generator_commands_test.tiny_config(folder)
    config.training.num_steps, config.evaluation.sample_prompts = 10, ()
    commands.prepare(config)
    commands.train(config, str(folder / "base"))
    config = with_adapter(config, folder / "base", kind="prefix", prefix_length=6)
    commands.train(config, str(folder / "run"))
    commands.export(str(folder / "run"))
    return folder, config


def test_of_a_classifier_adapter_and_head_alone_are_trained(classifier):
    folder, _ = classifier
    paths = changed(last_weights(folder / "base"), last_weights(folder / "run"))
    assert paths - {"logits/kernel", "logits/bias"} == {path for path in paths if is_adapter_path(path)}
    assert len(paths) == 2 + 2 * 2  # queries and values of one layer
    slots = checkpoints.load_named(str(folder / "run"), "last").slots
    assert sum("momentum" in path for path in slots) == len(paths)


def test_a_run_with_an_adapter_is_judged_and_answers_as_its_export(classifier, capsys):
    folder, config = classifier
    before = read_report(folder / "run")["metrics"]
    commands.evaluate(str(folder / "run"))
    assert read_report(folder / "run")["metrics"] == before
    texts = ["fine lovely film", "awful 電影", ""]
    from_run = commands_test.predict(capsys, folder / "run", text=texts)
    from_export = commands_test.predict(capsys, folder / "saved_models" / "tiny", text=texts)
    assert [row["label"] for row in from_run] == [row["label"] for row in from_export]
    for ours, theirs in zip(from_run, from_export, strict=True):
        assert ours["probabilities"] == pytest.approx(theirs["probabilities"], abs=1e-5)
    assert config_of_run(str(folder / "run"), None).adapter == config.adapter


def test_the_export_is_the_plain_model_with_its_adapter_beside_the_formats(classifier):
    folder, _ = classifier
    version = folder / "saved_models" / "tiny" / "1"
    manifest = json.loads((version / "manifest.json").read_text())
    assert manifest["formats"] == ["keras_nlp", "hugging_face", "adapter"]
    assert "adapter" not in manifest["architecture"]
    assert manifest["parity"]["answers"] == "identical"
    assert manifest["parity"]["logits_difference_to_training_dtype"] <= 1e-5  # merged, and beside the weights
    formats = folder / "saved_models" / "tiny-formats" / "1"
    preset = keras_nlp.models.TextClassifier.from_preset(str(formats / "keras_nlp"))
    assert not any(is_adapter_path(weight.path) for weight in preset.weights)
    settings = json.loads((formats / "adapter" / "adapter.json").read_text())
    assert settings["kind"] == "lora"
    assert settings["rank"] == 2
    assert (formats / "adapter" / "adapter.safetensors").stat().st_size < 5_000


def test_a_run_starts_from_a_saved_adapter_on_the_same_base_alone(classifier, tmp_path):
    folder, config = classifier
    source = str(folder / "saved_models" / "tiny-formats" / "1" / "adapter")
    again = dataclasses.replace(config, adapter=dataclasses.replace(config.adapter, source=source))
    again.training = training_with(config.training, num_steps=1, warmup_steps=0, learning_rate=0.0)
    commands.train(again, str(tmp_path / "again"))
    assert changed(last_weights(folder / "run"), last_weights(tmp_path / "again")) == set()
    again.model = dataclasses.replace(again.model, source=str(folder / "run"))  # merged weights are another base
    with pytest.raises(InputError, match="trained beside other weights"):
        commands.train(again, str(tmp_path / "other"))


def test_a_run_that_starts_from_a_run_with_low_ranks_has_them_merged(classifier, tmp_path):
    folder, config = classifier
    plain = dataclasses.replace(config, adapter=AdapterConfig())
    plain.model = dataclasses.replace(plain.model, source=str(folder / "run"))
    plain.training = training_with(plain.training, num_steps=1, warmup_steps=0, learning_rate=0.0)
    commands.train(plain, str(tmp_path / "plain"))
    base, run, merged = (last_weights(path) for path in (folder / "base", folder / "run", tmp_path / "plain"))
    assert set(merged) == set(base)
    layer = "transformer_layer_0/self_attention_layer/query"
    delta = 16.0 / 2 * np.tensordot(run[f"{layer}/lora_a"], run[f"{layer}/lora_b"], 1)
    assert np.abs(delta).max() > 1e-3
    np.testing.assert_allclose(merged[f"{layer}/kernel"], base[f"{layer}/kernel"] + delta, atol=1e-6)


def test_of_a_generator_the_prefix_alone_is_trained_and_lowers_the_loss(generator):
    folder, _ = generator
    paths = changed(last_weights(folder / "base"), last_weights(folder / "run"))
    assert paths == {f"block_{index}/prefix_{part}" for index in range(2) for part in ("keys", "values")}
    base, run = (read_report(folder / name)["metrics"]["test"]["loss"] for name in ("base", "run"))
    assert run < base


def test_the_export_of_a_prefix_continues_as_the_model_here(generator):
    folder, _ = generator
    manifest = json.loads((folder / "saved_models" / "tiny" / "1" / "manifest.json").read_text())
    assert manifest["formats"] == ["adapter"]  # no other format has a place for a prefix
    assert manifest["architecture"]["adapter"] == {"kind": "prefix", "prefix_length": 6}
    assert manifest["parity"]["answers"] == "identical"
    assert manifest["parity"]["logits_difference_to_training_dtype"] == 0.0  # of the run's model itself


def test_a_run_with_a_prefix_is_no_source_of_weights(generator, tmp_path):
    folder, config = generator
    other = dataclasses.replace(config, adapter=AdapterConfig())
    other.model = dataclasses.replace(config.model, source=str(folder / "run"))
    with pytest.raises(InputError, match="a run with a prefix, which cannot be merged"):
        commands.train(other, str(tmp_path / "run"))


def test_a_model_of_a_run_trains_what_its_run_trained(generator):
    folder, config = generator
    model, _ = load_model(str(folder / "run"), config, checkpoint="last", dtype="float32")
    assert all(is_adapter_path(variable.path) for variable in model.trainable_variables)
