"""Building generators: determinism, dtypes, every kind of source, and what is said of a broken one."""

import contextlib
import functools
import json
import math
import random
from pathlib import Path

import keras
import keras_nlp
import numpy as np
import pytest
import safetensors.numpy
import tensorflow as tf

from aigc_tf.config import ModelConfig
from aigc_tf.errors import InputError, RunError
from aigc_tf.generation.decoding import generate
from aigc_tf.generation.sampling import make_settings
from aigc_tf.models.building import ARCHITECTURE_FILE
from aigc_tf.models.generators.generator import (
    build_generator,
    clone_generator,
    computing_in,
    decoder_step,
    describe_generator,
    empty_cache,
    is_own,
    keras_generate,
    model_inputs,
    rebuild_generator,
)
from aigc_tf.models.gpt2.gpt2_weights import hugging_face_names
from aigc_tf.models.weights import weights_by_path
from aigc_tf.training.step.step import seed_generators, stateless_seeds

TINY = ModelConfig(num_layers=2, hidden_dim=32, num_heads=4, intermediate_dim=48)
SIZES = {"vocabulary_size": 60, "max_length": 24}
_SHAPE = {"vocabulary_size": 60, "num_layers": 2, "hidden_dim": 16, "intermediate_dim": 32}
_GROUPED = {**_SHAPE, "num_query_heads": 2, "num_key_value_heads": 1}
BACKBONES = {
    "OPTBackbone": {**_SHAPE, "num_heads": 2, "max_sequence_length": 24},
    "LlamaBackbone": _GROUPED,
    "GemmaBackbone": {**_GROUPED, "head_dim": 8},
}


def make_batch(rows=3, length=11, seed=0):
    return {"token_ids": np.random.default_rng(seed).integers(0, 60, (rows, length)).astype(np.int32)}


@contextlib.contextmanager
def eager_generation(model):
    """KerasNLP's generation without a compilation, which takes seconds."""
    model.sampler_key, model.causal_lm.run_eagerly = None, True
    try:
        yield
    finally:
        model.sampler_key, model.causal_lm.run_eagerly = None, False


def logits_of(model, batch=None):
    return model(model_inputs(model, batch or make_batch()), training=False).numpy()


def enlarge(model, factor=8.0):
    """Random weights are small; larger ones let every part of the network matter."""
    rng = np.random.default_rng(0)
    for weight in model.weights:
        noise = rng.normal(0, 0.02 * factor, weight.shape)
        weight.assign(np.asarray(weight) + noise.astype(np.float32))
    return model


def assert_same_weights(first, second):
    ours, theirs = weights_by_path(first), weights_by_path(second)
    assert list(ours) == list(theirs)
    for path, value in ours.items():
        np.testing.assert_array_equal(value, theirs[path], err_msg=path)


def refusal(source, **sizes):
    with pytest.raises(InputError) as caught:
        build_generator(ModelConfig(source=str(source)), **{**SIZES, **sizes})
    assert "\n" not in str(caught.value)
    return str(caught.value)


def write_hugging_face(folder, model, *, prefix="transformer.", changes=None, extra=None, dtype=np.float32):
    """A folder as transformers' GPT2LMHeadModel, or GPT2Model without the prefix, writes it."""
    folder.mkdir(exist_ok=True)
    sizes = model.sizes
    config = {
        "model_type": "gpt2",
        "vocab_size": sizes["vocabulary_size"],
        "n_positions": sizes["num_positions"],
        "n_embd": sizes["hidden_dim"],
        "n_layer": sizes["num_layers"],
        "n_head": sizes["num_heads"],
        "n_inner": sizes["intermediate_dim"],
        "activation_function": "gelu_new",
    }
    weights = weights_by_path(model)
    tensors = {prefix + name: weights[path].astype(dtype) for path, name in hugging_face_names(2).items()}
    (folder / "config.json").write_text(json.dumps({**config, **(changes or {})}))
    (folder / "model.safetensors").write_bytes(safetensors.numpy.save({**tensors, **(extra or {})}))
    return folder


def write_run(folder, model, *, pointers=("best", "last"), step=7):
    checkpoint = folder / "checkpoints" / f"step-{step:08d}"
    checkpoint.mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps({"name": "x", "model": {}, "training": {}}))
    (folder / ARCHITECTURE_FILE).write_text(json.dumps(describe_generator(model)))
    (checkpoint / "weights.safetensors").write_bytes(safetensors.numpy.save(weights_by_path(model)))
    for pointer in pointers:
        (folder / "checkpoints" / f"{pointer}.json").write_text(json.dumps({"folder": checkpoint.name}))
    return folder


def numpy_gpt2(weights, token_ids, *, num_layers, num_heads):
    """The reference: GPT-2 in float64, of Hugging Face's names, one row."""

    def norm(x, name):
        x = (x - x.mean(-1, keepdims=True)) / np.sqrt(x.var(-1, keepdims=True) + 1e-5)
        return x * weights[f"{name}.weight"] + weights[f"{name}.bias"]

    def dense(x, name):
        return x @ weights[f"{name}.weight"] + weights[f"{name}.bias"]

    x = weights["wte.weight"][token_ids] + weights["wpe.weight"][: len(token_ids)]
    hidden = np.triu(np.full([len(token_ids)] * 2, -np.inf), 1)
    for index in range(num_layers):
        heads = []
        inputs = np.split(dense(norm(x, f"h.{index}.ln_1"), f"h.{index}.attn.c_attn"), 3, axis=-1)
        for query, key, value in zip(*(np.split(part, num_heads, axis=-1) for part in inputs), strict=True):
            scores = np.exp(query @ key.T / math.sqrt(query.shape[-1]) + hidden)
            heads.append(scores / scores.sum(-1, keepdims=True) @ value)
        x = x + dense(np.concatenate(heads, axis=-1), f"h.{index}.attn.c_proj")
        y = dense(norm(x, f"h.{index}.ln_2"), f"h.{index}.mlp.c_fc")
        y = 0.5 * y * (1 + np.tanh(math.sqrt(2 / math.pi) * (y + 0.044715 * y**3)))
        x = x + dense(y, f"h.{index}.mlp.c_proj")
    return norm(x, "ln_f") @ weights["wte.weight"].T


def test_weights_are_a_function_of_the_seed_alone():
    keras.utils.set_random_seed(1)
    random.seed(11)
    expected = random.random()
    random.seed(11)
    first = build_generator(TINY, **SIZES, seed=3)
    assert random.random() == expected
    keras.utils.set_random_seed(2)
    assert_same_weights(first, build_generator(TINY, **SIZES, seed=3))
    other = build_generator(TINY, **SIZES, seed=4)
    assert np.abs(first.embeddings.tokens.numpy() - other.embeddings.tokens.numpy()).max() > 1e-3


def test_random_weights_are_spread_as_those_of_gpt2():
    config = ModelConfig(num_layers=8, hidden_dim=128, num_heads=4, intermediate_dim=512)
    model = build_generator(config, vocabulary_size=1000, max_length=128)
    for path, value in weights_by_path(model).items():
        if "norm_scale" in path:
            assert (value == 1).all()
        elif value.ndim == 1:
            assert (value == 0).all()
        else:
            expected = 0.02 / 4 if "output_kernel" in path else 0.02  # sqrt of twice 8 layers
            assert value.std() == pytest.approx(expected, rel=0.03), path


def test_paths_are_unique_and_the_same_in_every_model():
    first, second = build_generator(TINY, **SIZES), build_generator(TINY, **SIZES)
    paths = [weight.path for weight in first.weights]
    assert paths == [weight.path for weight in second.weights]
    assert len(set(paths)) == len(paths)
    assert paths[0] == "embeddings/tokens"


def test_logits_are_those_of_the_reference():
    model = enlarge(build_generator(TINY, **SIZES))
    ours = weights_by_path(model)
    weights = {name: ours[path].astype(np.float64) for path, name in hugging_face_names(2).items()}
    batch = make_batch()
    for row, logits in zip(batch["token_ids"], logits_of(model, batch), strict=True):
        expected = numpy_gpt2(weights, row, num_layers=2, num_heads=4)
        assert np.abs(expected).max() > 1
        np.testing.assert_allclose(logits, expected, atol=2e-5)


def test_mixed_precision_keeps_weights_and_logits_in_float32():
    policy = keras.config.dtype_policy().name
    model = build_generator(TINY, **SIZES, dtype="mixed_bfloat16")
    graph = tf.function(lambda inputs: model(inputs, training=False))(make_batch())
    assert (model(make_batch()).dtype, graph.dtype) == (tf.float32, tf.float32)
    assert {weight.dtype for weight in model.weights} == {"float32"}
    assert keras.config.dtype_policy().name == policy
    assert 0 < np.abs(logits_of(clone_generator(model, dtype="float32")) - logits_of(model)).max() < 1e-2
    with pytest.raises(ValueError, match="float16"):
        build_generator(TINY, **SIZES, dtype="float16")


@pytest.mark.parametrize("name", ["ours", "OPTBackbone"])
def test_a_forward_is_computed_in_another_dtype_with_the_same_variables(name, tmp_path):
    config = TINY
    if name != "ours":
        getattr(keras_nlp.models, name)(**BACKBONES[name]).save_to_preset(str(tmp_path))
        config = ModelConfig(source=str(tmp_path))
    model = build_generator(config, **SIZES, dtype="mixed_bfloat16")
    expected = logits_of(clone_generator(model, dtype="float32"))
    rounded = logits_of(model)
    with computing_in(model, "float32"):
        traced = tf.function(lambda batch: model(model_inputs(model, batch)))
        np.testing.assert_array_equal(logits_of(model), expected)
        np.testing.assert_allclose(traced(make_batch()), expected, atol=1e-6)
    np.testing.assert_array_equal(logits_of(model), rounded)
    np.testing.assert_allclose(traced(make_batch()), expected, atol=1e-6)
    assert np.abs(rounded - expected).max() > 1e-6


@pytest.mark.parametrize("jit", [False, True])
def test_a_step_compiles_and_its_dropout_is_a_function_of_the_key(jit):
    model = build_generator(TINY, **SIZES, dtype="mixed_bfloat16")
    generators = seed_generators(model)
    assert len(generators) == 3

    @tf.function(jit_compile=jit)
    def gradients(batch, key):
        with stateless_seeds(generators, key), tf.GradientTape() as tape:
            loss = tf.reduce_mean(tf.square(model(batch, training=True)))
        return [tf.convert_to_tensor(gradient) for gradient in tape.gradient(loss, model.trainable_variables)]

    first, again, other = (gradients(make_batch(), tf.constant(key)) for key in ([1, 2], [1, 2], [1, 3]))
    assert all(np.abs(gradient).max() > 0 for gradient in first)
    np.testing.assert_array_equal(first[0], again[0])
    assert np.abs(first[0] - other[0]).max() > 0


def test_no_dropout_is_drawn_where_it_is_off():
    config = ModelConfig(num_layers=1, hidden_dim=8, num_heads=2, intermediate_dim=8, dropout=0.0)
    model = build_generator(config, **SIZES)
    np.testing.assert_array_equal(model(make_batch(), training=True), model(make_batch(), training=False))


def test_a_description_survives_json_and_needs_no_source():
    model = build_generator(TINY, **SIZES, dtype="mixed_bfloat16", seed=1)
    description = json.loads(json.dumps(describe_generator(model)))
    again = rebuild_generator(description, dtype="float32", seed=1)
    assert_same_weights(model, again)
    assert describe_generator(again) == description
    assert is_own(again)


@pytest.mark.parametrize(
    "spoilt",
    [
        {"class": "os.system"},
        {"class": "BertTextClassifier", "backbone": {}},
        {"sizes": None},
        {"sizes": {"layers": 3}},
        {"class": "OPTCausalLM", "backbone": {"num_layers": 2}},
    ],
)
def test_a_spoilt_description_is_refused_in_a_sentence(spoilt):
    description = describe_generator(build_generator(TINY, **SIZES))
    with pytest.raises(InputError, match="cannot be read"):
        rebuild_generator({**description, **spoilt})
    with pytest.raises(InputError, match="cannot be read"):
        rebuild_generator({})


def test_a_model_of_two_replicas_is_cloned_to_a_plain_one():
    strategy = tf.distribute.MirroredStrategy(["CPU:0", "CPU:1"])
    with strategy.scope():
        model = build_generator(TINY, **SIZES, seed=6)
    clone = clone_generator(model, dtype="float32")
    assert_same_weights(clone, build_generator(TINY, **SIZES, seed=6))
    assert logits_of(clone).shape == (3, 11, 60)


def test_a_keras_preset_of_gpt2_becomes_our_network(tmp_path):
    backbone = keras_nlp.models.GPT2Backbone(
        vocabulary_size=60,
        num_layers=2,
        num_heads=4,
        hidden_dim=32,
        intermediate_dim=48,
        max_sequence_length=30,
        dropout=0.4,
    )
    theirs = keras_nlp.models.GPT2CausalLM(enlarge(backbone), preprocessor=None)
    theirs.save_to_preset(str(tmp_path))
    model = build_generator(ModelConfig(source=str(tmp_path), dropout=0.2), **SIZES)
    assert is_own(model)
    assert (model.sizes["num_positions"], model.sizes["dropout"]) == (30, 0.2)
    batch = make_batch()
    expected = theirs({**batch, "padding_mask": np.ones_like(batch["token_ids"])}).numpy()
    assert np.abs(expected).max() > 1
    np.testing.assert_allclose(logits_of(model, batch), expected, atol=1e-4)


@pytest.mark.parametrize("prefix", ["transformer.", ""])
@pytest.mark.parametrize("dtype", [np.float32, np.float16])
def test_a_hugging_face_folder_becomes_our_network(prefix, dtype, tmp_path):
    original = enlarge(build_generator(TINY, **SIZES))
    masks = {f"{prefix}h.0.attn.bias": np.ones([1, 1, 24, 24], np.uint8), "lm_head.weight": None}
    masks["lm_head.weight"] = original.embeddings.tokens.numpy().astype(dtype)
    folder = write_hugging_face(tmp_path, original, prefix=prefix, dtype=dtype, extra=masks)
    model = build_generator(ModelConfig(source=str(folder)), vocabulary_size=60, max_length=8)
    assert model.sizes == original.sizes
    for path, value in weights_by_path(original).items():
        np.testing.assert_array_equal(weights_by_path(model)[path], value.astype(dtype).astype(np.float32))


def test_bfloat16_weights_in_several_files_are_read(tmp_path):
    original = build_generator(TINY, **SIZES)
    folder = write_hugging_face(tmp_path, original)
    tensors = safetensors.numpy.load((folder / "model.safetensors").read_bytes())
    (folder / "model.safetensors").unlink()
    parts = {"a.safetensors": sorted(tensors)[:9], "b.safetensors": sorted(tensors)[9:]}
    for file, names in parts.items():
        header, data = {}, b""
        for name in names:
            upper_halves = (tensors[name].view(np.uint32) >> 16).astype("<u2").tobytes()
            place = [len(data), len(data) + len(upper_halves)]
            header[name] = {"dtype": "BF16", "shape": tensors[name].shape, "data_offsets": place}
            data += upper_halves
        text = json.dumps(header).encode()
        (folder / file).write_bytes(len(text).to_bytes(8, "little") + text + data)
    weight_map = {name: file for file, names in parts.items() for name in names}
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))
    model = build_generator(ModelConfig(source=str(folder)), **SIZES)
    for path, value in weights_by_path(original).items():
        np.testing.assert_allclose(weights_by_path(model)[path], value, rtol=2**-7, atol=0)
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": {"x": "../a.safetensors"}}))
    assert "does not name the files" in refusal(folder)


def test_logits_and_greedy_tokens_of_a_folder_are_those_that_transformers_computes():
    folder = Path(__file__).parent / "transformers_gpt2"  # written by transformers
    model = build_generator(ModelConfig(source=str(folder)), vocabulary_size=32, max_length=16)
    rows = json.loads((folder / "expected.json").read_text())["rows"]
    for row in rows:
        found = logits_of(model, {"token_ids": np.array([row["prompt"]], np.int32)})
        np.testing.assert_allclose(found[0], row["logits"], atol=1e-4, rtol=0)
    lengths = np.array([len(row["prompt"]) for row in rows], np.int32)
    ids = np.zeros([len(rows), max(lengths)], np.int32)
    for padded, row in zip(ids, rows, strict=True):
        padded[: len(row["prompt"])] = row["prompt"]
    settings = make_settings(len(rows), max_new_tokens=8, temperature=0.0)
    step = functools.partial(decoder_step, model)
    done = generate(step, ids, lengths, empty_cache(model, len(rows), 16), settings, capacity=16, end_id=-1)
    np.testing.assert_array_equal(done.token_ids, [row["greedy"] for row in rows])


def test_a_run_folder_gives_the_model_of_its_best_checkpoint(tmp_path):
    best, last = build_generator(TINY, **SIZES, seed=1), build_generator(TINY, **SIZES, seed=2)
    write_run(tmp_path, best, pointers=("best",), step=3)
    write_run(tmp_path / "other", last, pointers=("last",), step=8)
    (tmp_path / "checkpoints" / "last.json").write_text(json.dumps({"folder": "step-00000008"}))
    model = build_generator(ModelConfig(source=str(tmp_path), dropout=0.3), vocabulary_size=60, max_length=9)
    assert_same_weights(model, best)
    assert (model.sizes["dropout"], model.sizes["num_positions"]) == (0.3, 24)
    assert_same_weights(build_generator(ModelConfig(source=str(tmp_path / "other")), **SIZES), last)


def test_a_run_of_another_task_or_without_architecture_is_refused(tmp_path):
    write_run(tmp_path, build_generator(TINY, **SIZES))
    (tmp_path / ARCHITECTURE_FILE).write_text(json.dumps({"class": "BertTextClassifier", "head": {}, "backbone": {}}))
    assert "of another task" in refusal(tmp_path)
    (tmp_path / ARCHITECTURE_FILE).unlink()
    assert ARCHITECTURE_FILE in refusal(tmp_path)


@pytest.mark.parametrize("name", BACKBONES)
def test_other_causal_language_models_of_keras_nlp_train_as_they_are(name, tmp_path):
    backbone = enlarge(getattr(keras_nlp.models, name)(**BACKBONES[name]), 3.0)
    backbone.save_to_preset(str(tmp_path))
    model = build_generator(ModelConfig(source=str(tmp_path)), **SIZES, dtype="mixed_bfloat16")
    assert not is_own(model)
    ours = weights_by_path(model)
    for path, value in weights_by_path(backbone).items():
        np.testing.assert_array_equal(value, ours[path], err_msg=path)
    batch = {**make_batch(), "labels": np.ones([3, 11])}
    with tf.GradientTape() as tape:
        logits = model(model_inputs(model, batch), training=True)
        loss = tf.reduce_mean(tf.nn.sparse_softmax_cross_entropy_with_logits(batch["token_ids"], logits))
    gradients = tape.gradient(loss, model.trainable_variables)
    assert (logits.dtype, logits.shape) == (tf.float32, (3, 11, 60))
    assert all(gradient is not None for gradient in gradients)
    description = json.loads(json.dumps(describe_generator(model)))
    again = rebuild_generator(description)
    assert list(weights_by_path(again)) == list(ours)
    assert describe_generator(again) == description
    clone = clone_generator(model, dtype="float32")
    assert 0 < np.abs(logits_of(clone) - logits_of(model)).max() < 0.1 * np.abs(logits_of(clone)).max()


def test_keras_nlp_continues_prompts_of_several_lengths(tmp_path):
    enlarge(keras_nlp.models.OPTBackbone(**BACKBONES["OPTBackbone"]), 20.0).save_to_preset(str(tmp_path))
    model = build_generator(ModelConfig(source=str(tmp_path)), **SIZES)
    prompts, lengths = make_batch(length=6)["token_ids"], np.array([6, 2, 4])
    expected = []
    for prompt, length in zip(prompts, lengths, strict=True):
        row = prompt[:length].tolist()
        for _ in range(6):
            row.append(int(logits_of(model, {"token_ids": np.array([row], np.int32)})[0, -1].argmax()))
        expected.append(row[length:])
    end_id = expected[1][3]
    ids, counts = keras_generate(model, prompts, lengths, max_new_tokens=6, max_length=24, end_id=end_id)
    cut = [row[: row.index(end_id)] if end_id in row else row for row in expected]
    assert [row[:count].tolist() for row, count in zip(ids, counts, strict=True)] == cut
    ids, counts = keras_generate(model, prompts[:, :5], lengths - 1, max_new_tokens=7, max_length=24, end_id=end_id)
    assert model.causal_lm.generate_function.experimental_get_tracing_count() == 1
    with eager_generation(model):
        ids, counts = keras_generate(model, prompts, lengths, max_new_tokens=6, max_length=24, end_id=61)
    assert ids.tolist() == expected
    assert counts.tolist() == [6, 6, 6]


def test_keras_nlp_draws_by_the_seed_whatever_was_drawn_before(tmp_path):
    keras_nlp.models.OPTBackbone(**BACKBONES["OPTBackbone"]).save_to_preset(str(tmp_path))
    model = build_generator(ModelConfig(source=str(tmp_path)), **SIZES)

    def draw(seed, **settings):
        with eager_generation(model):
            prompts = make_batch(rows=1, length=3)["token_ids"]
            options = {"max_new_tokens": 20, "max_length": 23, "end_id": 61, "temperature": 1.0, **settings}
            return keras_generate(model, prompts, np.array([3]), seed=seed, **options)[0].tolist()

    first = draw(1)
    assert draw(2) != first
    assert draw(1) == first
    assert draw(1, top_k=2) != first
    assert draw(1, top_p=0.5) == draw(1, top_p=0.5) != draw(2, top_p=0.5)
    assert draw(1, temperature=0.0) == draw(2, temperature=0.0) != first
    assert draw(1) == first


@pytest.mark.parametrize(
    ("source", "words"),
    [
        ("gpt2_base_em", "Did you mean 'gpt2_base_en'"),
        ("no_such_model_at_all", "names like 'gpt2_base_en'"),
        ("./no_such_folder", "not a folder on this machine"),
        (__file__, "is a file"),
    ],
)
def test_a_source_that_is_nothing_is_refused_in_a_sentence(source, words):
    assert words in refusal(source)


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ({}, "neither a KerasNLP preset"),
        ({"model_type": "bert"}, "can start from gpt2"),
        ({"model_type": "gpt2"}, "no model.safetensors"),
        ({"registered_name": "keras_hub>NoSuchBackbone"}, "does not have"),
        ({"registered_name": "keras_hub>BertBackbone"}, "no causal language model on BertBackbone"),
        ({"registered_name": "keras_hub>GPT2Backbone"}, "no model.weights.h5"),
    ],
)
def test_a_folder_that_is_no_model_is_refused_in_a_sentence(content, words, tmp_path):
    (tmp_path / "config.json").write_text(json.dumps(content))
    assert words in refusal(tmp_path)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"activation_function": "relu"}, "'relu'"),
        ({"activation_function": "gelu"}, "'gelu'"),
        ({"scale_attn_by_inverse_layer_idx": True}, "scale_attn_by_inverse_layer_idx"),
        ({"reorder_and_upcast_attn": True}, "reorder_and_upcast_attn"),
        ({"scale_attn_weights": False}, "scale_attn_weights"),
        ({"add_cross_attention": True}, "add_cross_attention"),
        ({"layer_norm_epsilon": 1e-6}, "layer_norm_epsilon"),
        ({"n_head": 5}, "a width of 32, which is not a multiple of its 5 attention heads"),
        ({"n_embd": None}, "has None as n_embd; it must be a positive whole number"),
        ({"n_inner": "wide"}, "has 'wide' as n_inner, not a whole number"),
        ({"n_layer": 3}, "no tensor 'h.2.ln_1.weight'"),
        ({"vocab_size": 61}, "has shape (60, 32), the model needs (61, 32)"),
    ],
)
def test_a_hugging_face_folder_of_another_network_is_refused(changes, words, tmp_path):
    write_hugging_face(tmp_path, build_generator(TINY, **SIZES), changes=changes)
    assert words in refusal(tmp_path)


def test_weights_that_are_broken_are_refused(tmp_path):
    model = build_generator(TINY, **SIZES)
    own = {"lm_head.weight": np.ones([60, 32], np.float32)}
    assert "output matrix of its own" in refusal(write_hugging_face(tmp_path / "head", model, extra=own))
    folder = write_hugging_face(tmp_path / "cut", model)
    content = (folder / "model.safetensors").read_bytes()
    for size in (0, 5, 1000, len(content) - 1):
        (folder / "model.safetensors").write_bytes(content[:size])
        assert "cannot be read" in refusal(folder)
    whole = write_hugging_face(tmp_path / "integers", model, extra={"lm_head.weight": np.ones([60, 32], np.int32)})
    assert "of type I32" in refusal(whole)


def test_a_vocabulary_or_length_that_does_not_fit_the_model_is_refused(tmp_path):
    folder = write_hugging_face(tmp_path, build_generator(TINY, vocabulary_size=2000, max_length=24))
    assert "The tokenizer has 2001 tokens, but the model" in refusal(folder, vocabulary_size=2001)
    assert "embeds 2000" in refusal(folder, vocabulary_size=900)
    assert "data.max_length is 25" in refusal(folder, vocabulary_size=2000, max_length=25)
    # Some models have more embeddings than their tokenizer has tokens.
    build_generator(ModelConfig(source=str(folder)), vocabulary_size=1990, max_length=8)


def test_a_model_that_reads_more_than_text_is_refused(tmp_path):
    keras_nlp.models.BartBackbone(
        vocabulary_size=60, num_layers=1, num_heads=2, hidden_dim=8, intermediate_dim=8, max_sequence_length=24
    ).save_to_preset(str(tmp_path))
    assert "no causal language model on BartBackbone" in refusal(tmp_path)


def test_a_preset_without_network_is_one_sentence_and_no_fault_of_the_input(monkeypatch):
    def fail(*args, **kwargs):
        raise ConnectionError("HTTPSConnectionPool(host='api.kaggle.com', port=443): Max retries exceeded ...")

    monkeypatch.setattr(keras_nlp.models.Backbone, "from_preset", fail)
    with pytest.raises(RunError, match=r"'gpt2_base_en' is not on this machine .*\(ConnectionError\)"):
        build_generator(ModelConfig(source="gpt2_base_en"), **SIZES)
