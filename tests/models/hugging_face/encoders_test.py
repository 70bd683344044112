"""Encoders of Hugging Face folders: every setting is computed as a forward in NumPy computes it, or refused."""

import json
import logging

import keras
import keras_nlp
import numpy as np
import pytest
import safetensors.numpy

from aigc_tf.config import ModelConfig
from aigc_tf.errors import InputError
from aigc_tf.models.building import dtype_policy
from aigc_tf.models.classifiers.classifier import (
    build_classifier,
    clone_classifier,
    describe_classifier,
    rebuild_classifier,
)
from aigc_tf.models.hugging_face.encoders import ENCODER_TYPES, read_encoder, tensor_names, to_tensor
from aigc_tf.models.hugging_face.settings import MODEL_TYPES
from aigc_tf.models.layer_settings import epsilon_of
from aigc_tf.models.weights import weights_by_path

SIZES = {"vocabulary_size": 20, "num_layers": 2, "hidden_dim": 16, "num_heads": 2, "intermediate_dim": 24}
POSITIONS = 12
BERT = {
    "model_type": "bert",
    "vocab_size": 20,
    "num_hidden_layers": 2,
    "hidden_size": 16,
    "num_attention_heads": 2,
    "intermediate_size": 24,
    "max_position_embeddings": POSITIONS,
    "hidden_act": "gelu_new",
}
CONFIGS = {
    "bert": BERT,
    "albert": {
        **{**BERT, "model_type": "albert", "embedding_size": 8, "num_hidden_groups": 2, "inner_group_num": 2},
        **{"type_vocab_size": 2, "attention_probs_dropout_prob": 0.0},
    },
    "distilbert": {
        **{"model_type": "distilbert", "vocab_size": 20, "n_layers": 2, "n_heads": 2, "dim": 16, "hidden_dim": 24},
        **{"max_position_embeddings": POSITIONS, "dropout": 0.1},
    },
    "roberta": {
        **{**BERT, "model_type": "roberta", "hidden_act": "gelu", "layer_norm_eps": 1e-5},
        **{"max_position_embeddings": POSITIONS + 2, "hidden_dropout_prob": 0.1},
    },
}
CONFIGS["xlm-roberta"] = {**CONFIGS["roberta"], "model_type": "xlm-roberta"}
PREFIXES = {"xlm-roberta": "roberta."}


def make_tensors(kind, *, types=2, first_position=0):
    """Random tensors of an encoder of `SIZES`, under Hugging Face's names without a prefix."""
    cls = {name.lower(): cls for name, cls in vars(keras_nlp.models).items()}[f"{kind.replace('-', '')}backbone"]
    extra = {"num_segments": types} if kind in ("bert", "albert") else {}
    if kind == "albert":
        extra |= {"embedding_dim": 8, "num_groups": 2, "num_inner_repetitions": 2}
    backbone = cls(**SIZES, **extra, max_sequence_length=POSITIONS)
    rng = np.random.default_rng(7)
    names = tensor_names(kind, [weight.path for weight in backbone.weights])
    shapes = {names[path]: to_tensor(path, value).shape for path, value in weights_by_path(backbone).items()}
    if first_position:
        shapes["embeddings.position_embeddings.weight"] = (POSITIONS + first_position, 16)
        shapes["embeddings.token_type_embeddings.weight"] = (types, 16)
    tensors = {name: rng.normal(0, 0.3, shape).astype(np.float32) for name, shape in shapes.items()}
    return {name: value + ("LayerNorm.weight" in name) for name, value in tensors.items()}


def write_folder(folder, config, tensors, *, prefix=None):
    prefix = PREFIXES.get(config["model_type"], f"{config['model_type']}.") if prefix is None else prefix
    folder.mkdir(exist_ok=True)
    (folder / "config.json").write_text(json.dumps(config))
    named = {f"{prefix}{name}": value for name, value in tensors.items()}
    (folder / "model.safetensors").write_bytes(safetensors.numpy.save(named, metadata={"format": "pt"}))
    return folder


def read(folder):
    config = json.loads((folder / "config.json").read_text())
    return read_encoder(folder, config, dtype_policy("float32"))


def outputs_of(backbone, ids, segments):
    inputs = {"token_ids": ids, "segment_ids": segments, "padding_mask": np.ones_like(ids)}
    outputs = backbone({name: inputs[name] for name in backbone.input})
    return np.asarray(outputs["sequence_output"] if isinstance(outputs, dict) else outputs)


def forward(tensors, config, ids, segments):
    """BERT as its paper has it (Devlin et al. 2018; Vaswani et al. 2017), in float64."""
    epsilon, heads = config.get("layer_norm_eps", 1e-12), config["num_attention_heads"]
    first = config["pad_token_id"] + 1 if "pad_token_id" in config else 0

    def table(name):
        return tensors[f"embeddings.{name}_embeddings.weight"].astype(np.float64)

    def norm(x, name):
        x = (x - x.mean(-1, keepdims=True)) / np.sqrt(x.var(-1, keepdims=True) + epsilon)
        return x * tensors[f"{name}.LayerNorm.weight"] + tensors[f"{name}.LayerNorm.bias"]

    def dense(x, name):
        return x @ tensors[f"{name}.weight"].T.astype(np.float64) + tensors[f"{name}.bias"]

    def split(x):
        return x.reshape(*x.shape[:2], heads, -1).transpose(0, 2, 1, 3)

    places = first + np.arange(ids.shape[1])
    x = norm(table("word")[ids] + table("position")[places] + table("token_type")[segments], "embeddings")
    for index in range(config["num_hidden_layers"]):
        layer = f"encoder.layer.{index}"
        queries, keys, values = (split(dense(x, f"{layer}.attention.self.{n}")) for n in ("query", "key", "value"))
        scores = np.exp(queries @ keys.transpose(0, 1, 3, 2) / np.sqrt(queries.shape[-1]))
        attended = (scores / scores.sum(-1, keepdims=True)) @ values
        attended = attended.transpose(0, 2, 1, 3).reshape(x.shape)
        x = norm(x + dense(attended, f"{layer}.attention.output.dense"), f"{layer}.attention.output")
        hidden = dense(x, f"{layer}.intermediate.dense")
        hidden = 0.5 * hidden * (1 + np.tanh(np.sqrt(2 / np.pi) * (hidden + 0.044715 * hidden**3)))
        x = norm(x + dense(hidden, f"{layer}.output.dense"), f"{layer}.output")
    return x


@pytest.fixture(scope="module")
def rows():
    rng = np.random.default_rng(1)
    return rng.integers(0, 20, (3, 9)).astype(np.int32), rng.integers(0, 2, (3, 9)).astype(np.int32)


@pytest.mark.parametrize("kind", ENCODER_TYPES)
def test_every_weight_is_the_one_that_keras_nlp_converts(kind, tmp_path):
    roberta = "roberta" in kind
    tensors = make_tensors(kind, types=1 if roberta else 2, first_position=2 * roberta)
    if kind == "roberta":  # its token types, which KerasNLP leaves out
        tensors["embeddings.token_type_embeddings.weight"] *= 0
    folder = write_folder(tmp_path, CONFIGS[kind], tensors)
    theirs = keras_nlp.models.Backbone.from_preset(str(folder))
    backbone = read(folder)
    ours = weights_by_path(backbone)
    assert type(backbone) is type(theirs)
    assert backbone.get_config() == theirs.get_config() | {"name": backbone.name}
    assert epsilon_of(backbone) == epsilon_of(theirs)
    for path, value in weights_by_path(theirs).items():
        np.testing.assert_array_equal(ours[path], value, err_msg=path)


@pytest.mark.parametrize(("types", "epsilon"), [(2, 1e-12), (2, 1e-3), (1, 1e-12), (4, 0.1)])
def test_bert_computes_its_epsilon_and_its_token_types(types, epsilon, tmp_path, rows):
    tensors = make_tensors("bert", types=types)
    config = {**BERT, "layer_norm_eps": epsilon, "type_vocab_size": types}
    ids, segments = rows
    backbone = read(write_folder(tmp_path, config, tensors, prefix=""))
    segments = segments * 3 if types == 4 else segments
    expected = forward(tensors, config, ids, segments if types > 1 else 0 * segments)
    np.testing.assert_allclose(outputs_of(backbone, ids, segments), expected, atol=2e-5)
    if epsilon > 1e-12:
        usual = forward(tensors, {**config, "layer_norm_eps": 1e-12}, ids, segments)
        assert np.abs(usual - expected).max() > 1e-3


@pytest.mark.parametrize("kind", ["roberta", "xlm-roberta"])
@pytest.mark.parametrize("padding_id", [1, 3])
def test_roberta_computes_its_first_position_and_its_one_token_type(kind, padding_id, tmp_path, rows):
    tensors = make_tensors(kind, types=1, first_position=padding_id + 1)
    config = {**CONFIGS[kind], "pad_token_id": padding_id, "max_position_embeddings": POSITIONS + padding_id + 1}
    backbone = read(write_folder(tmp_path, {**config, "layer_norm_eps": 0.01}, tensors))
    expected = forward(tensors, {**config, "layer_norm_eps": 0.01}, rows[0], 0 * rows[1])
    # The forward has GELU by its tanh approximation, KerasNLP's RoBERTa has it exactly.
    np.testing.assert_allclose(outputs_of(backbone, *rows), expected, atol=3e-3)
    del config["layer_norm_eps"]  # then transformers' default, which is not KerasNLP's 1e-5
    assert epsilon_of(read(write_folder(tmp_path, config, tensors))) == 1e-12


def test_layer_norms_of_the_first_files_are_called_gamma_and_beta(tmp_path):
    tensors = make_tensors("bert")
    ends = {"LayerNorm.weight": "LayerNorm.gamma", "LayerNorm.bias": "LayerNorm.beta"}
    old = {name.replace(end, ends.get(end, "")): tensors[name] for name in tensors for end in ends if end in name}
    old |= {name: value for name, value in tensors.items() if "LayerNorm" not in name}
    backbone = read(write_folder(tmp_path, BERT, old))
    np.testing.assert_array_equal(
        backbone.get_layer("embeddings_layer_norm").gamma, tensors["embeddings.LayerNorm.weight"]
    )


@pytest.mark.parametrize("kind", ["bert", "albert", "distilbert"])
def test_two_dropouts_reach_their_layers_and_a_rebuilt_model(kind, tmp_path):
    own = {"dropout": 0.3, "attention_dropout": 0.0}
    names = own if kind == "distilbert" else {"hidden_dropout_prob": 0.3, "attention_probs_dropout_prob": 0.0}
    folder = write_folder(tmp_path, {**CONFIGS[kind], **names}, make_tensors(kind))
    sizes = {"num_outputs": 2, "vocabulary_size": 20, "max_length": POSITIONS}
    model = build_classifier(ModelConfig(source=str(folder), dropout=0.2), **sizes)
    description = json.loads(json.dumps(describe_classifier(model)))
    for built in (model, rebuild_classifier(description), clone_classifier(model, dtype="mixed_bfloat16")):
        rates = {
            attention.name: {inner.rate for inner in attention._flatten_layers() if hasattr(inner, "rate")}
            for attention in built.backbone._flatten_layers()
            if isinstance(attention, keras.layers.MultiHeadAttention)
        }
        assert set().union(*rates.values()) == {0.0}
        assert built.backbone.get_layer("embeddings_dropout").rate == 0.3
        assert built.output_dropout.rate == 0.2


def test_an_epsilon_goes_with_the_description(tmp_path, rows):
    folder = write_folder(tmp_path, {**BERT, "layer_norm_eps": 1e-3}, make_tensors("bert"))
    sizes = {"num_outputs": 2, "vocabulary_size": 20, "max_length": POSITIONS}
    model = build_classifier(ModelConfig(source=str(folder)), **sizes)
    assert describe_classifier(model)["layers"] == {"layer_norm_epsilon": 1e-3}
    clone = clone_classifier(model, dtype="float32")
    np.testing.assert_array_equal(outputs_of(clone.backbone, *rows), outputs_of(model.backbone, *rows))
    usual = write_folder(tmp_path / "usual", {**BERT, "layer_norm_eps": 1e-12}, make_tensors("bert"))
    assert "layers" not in describe_classifier(build_classifier(ModelConfig(source=str(usual)), **sizes))
    with pytest.raises(InputError, match="cannot be read"):
        rebuild_classifier({**describe_classifier(model), "layers": {"epsilon": 1}})


@pytest.mark.parametrize("kind", ["bert", "albert"])
def test_a_model_without_a_pooler_starts_from_a_random_one_and_says_so(kind, tmp_path, caplog):
    tensors = make_tensors(kind)
    whole = read(write_folder(tmp_path / "whole", CONFIGS[kind], tensors))
    bare = {name: value for name, value in tensors.items() if not name.startswith("pooler")}
    folder = write_folder(tmp_path / "bare", CONFIGS[kind], bare)
    sizes = {"num_outputs": 2, "vocabulary_size": 20, "max_length": POSITIONS}
    with caplog.at_level(logging.WARNING):
        models = [build_classifier(ModelConfig(source=str(folder)), **sizes, seed=seed) for seed in (1, 1, 2)]
    assert [record.getMessage() for record in caplog.records] == [
        f"The model in {folder} has no pooler; here it starts from random weights."
    ] * 3
    kernels = [np.asarray(model.backbone.get_layer("pooled_dense").kernel) for model in models]
    np.testing.assert_array_equal(kernels[0], kernels[1])
    assert np.abs(kernels[0] - kernels[2]).max() > 1e-3
    for path, value in weights_by_path(whole).items():
        if not path.startswith("pooled_dense"):
            np.testing.assert_array_equal(weights_by_path(models[0].backbone)[path], value)


def test_half_a_pooler_is_a_file_that_is_cut_off(tmp_path):
    tensors = make_tensors("bert")
    del tensors["pooler.dense.bias"]
    with pytest.raises(InputError, match=r"no tensor 'pooler\.dense\.bias'"):
        read(write_folder(tmp_path, BERT, tensors))


def test_settings_of_another_network_are_refused_by_name(tmp_path):
    wrong = {
        "hidden_act": "relu",
        "position_embedding_type": "relative_key",
        "is_decoder": True,
        "add_cross_attention": True,
        "is_encoder_decoder": True,
        "pruned_heads": {"0": [1]},
        "quantization_config": {"quant_method": "gptq"},
        "per_layer_config": {"0": {"hidden_size": 8}},
        "auto_map": {"AutoModel": "modeling.Mine"},
    }
    tensors = make_tensors("bert")
    for name, value in wrong.items():
        with pytest.raises(InputError, match=f"has {name} .* another network"):
            read(write_folder(tmp_path, {**BERT, name: value}, tensors))
    for name, value in {"hidden_size": 16.5, "layer_norm_eps": "small", "hidden_dropout_prob": 1.0}.items():
        with pytest.raises(InputError, match=name) as error:
            read(write_folder(tmp_path, {**BERT, name: value}, tensors))
        assert "\n" not in str(error.value)
    with pytest.raises(InputError, match="do not fit albert"):
        read(write_folder(tmp_path, {**CONFIGS["albert"], "num_hidden_groups": 3}, tensors))


def test_settings_that_change_nothing_are_taken_and_unknown_ones_are_named(tmp_path, caplog):
    known = {
        **{"architectures": ["BertModel"], "transformers_version": "5.1.0", "dtype": "bfloat16", "use_cache": True},
        **{"id2label": {"0": "a"}, "classifier_dropout": 0.5, "pad_token_id": 3, "_name_or_path": "x"},
        **{"chunk_size_feed_forward": 4, "pooler_type": "first_token_transform", "num_beams": 4},
        **{"is_decoder": False, "pruned_heads": {}, "auto_map": None, "position_embedding_type": None},
        "unknown_but_off": False,
    }
    tensors = make_tensors("bert")
    with caplog.at_level(logging.WARNING):
        read(write_folder(tmp_path, {**BERT, **known}, tensors))
    assert not caplog.records
    with caplog.at_level(logging.WARNING):
        read(write_folder(tmp_path, {**BERT, "rope_theta": 10000.0, "window": 7}, tensors))
    (record,) = caplog.records
    assert "unknown for bert and not computed: rope_theta 10000.0, window 7." in record.getMessage()


def test_no_setting_stands_twice_in_a_table():
    for kind, table in MODEL_TYPES.items():
        places = [*table.sizes, *table.computed, *table.fixed, *table.unread]
        assert len(places) == len(set(places)), kind
        assert set(table.names.values()) <= set(places), kind
