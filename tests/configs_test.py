"""configs/bert_base_imdb.py end to end without a network: a small preset and a small TFDS data set, both made here."""

import importlib.util
from pathlib import Path

import keras_nlp
import pytest

from aigc_tf import commands
from aigc_tf.config_checks import validate
from aigc_tf.data.prepared import open_prepared
from aigc_tf.evaluation.report import read_report

CONFIG = Path(__file__).parent.parent / "configs" / "bert_base_imdb.py"
WORDS = ["a", "film", "good", "bad", "very", "not", "##s"]


def load(path):
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


@pytest.mark.slow
def test_the_imdb_config_prepares_trains_and_exports(tmp_path):
    save_preset(tmp_path / "preset")
    store_imdb(tmp_path / "tfds")
    config = load(CONFIG)
    config.data.tfds_data_dir = str(tmp_path / "tfds")
    config.data.prepared_dir = str(tmp_path / "prepared")
    config.model.source = str(tmp_path / "preset")
    config.training.num_steps, config.training.warmup_steps = 4, 1
    config.training.global_batch_size = config.evaluation.batch_size = 8
    config.export.directory = str(tmp_path / "saved_models")
    validate(config)
    commands.prepare(config)
    data = open_prepared(tmp_path / "prepared" / "bert_base_imdb")
    assert data.label_names == ("neg", "pos")
    assert data.splits["test"].num_examples == 20
    assert data.splits["train"].num_examples + data.splits["validation"].num_examples == 60
    commands.train(config, str(tmp_path / "run"))
    assert read_report(tmp_path / "run")["metrics"]["test"]["num_examples"] == 20
    commands.export(str(tmp_path / "run"))
    assert (tmp_path / "saved_models" / "bert_base_imdb" / "1" / "saved_model.pb").exists()
