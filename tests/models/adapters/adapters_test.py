"""Adapters: what trains, what is saved, what is refused."""

import json
import shutil

import keras
import keras_nlp
import numpy as np
import pytest
import tensorflow as tf

from aigc_tf.config import AdapterConfig, ModelConfig, TrainingConfig
from aigc_tf.errors import InputError
from aigc_tf.models.adapters import adapters
from aigc_tf.models.adapters.low_rank import find_kernels
from aigc_tf.models.classifiers.classifier import (
    build_classifier,
    clone_classifier,
    describe_classifier,
    merge_classifier,
)
from aigc_tf.models.classifiers.classifier_formats import save_hugging_face, save_keras_preset
from aigc_tf.models.generators import generator
from aigc_tf.models.generators.generator_sources import wrap_backbone
from aigc_tf.models.weights import weights_by_path
from tests import tiny_classifier

SIZES = ModelConfig(num_layers=2, hidden_dim=32, num_heads=2, intermediate_dim=64)
V, LENGTH = 60, 24
LORA = AdapterConfig(enabled=True, rank=3, alpha=6.0)
PREFIX = AdapterConfig(enabled=True, kind="prefix", prefix_length=5)


def build_generator(*, seed=1, dtype="float32"):
    return generator.build_generator(SIZES, vocabulary_size=V, max_length=LENGTH, seed=seed, dtype=dtype)


BUILD = {"classifier": tiny_classifier.build_model, "generator": build_generator}


def batch_of(model):
    if generator.is_own(model):
        return {"token_ids": np.random.default_rng(0).integers(0, V, (3, 9)).astype(np.int32)}
    return {name: tiny_classifier.make_batch()[name] for name in model.input}


def logits_of(model):
    return np.asarray(model(batch_of(model), training=False))


def shake(model, seed=0, scale=0.1):
    """Gives all that trains other values, as training does."""
    rng = np.random.default_rng(seed)
    for variable in model.trainable_variables:
        variable.assign(np.asarray(variable) + rng.normal(0, scale, variable.shape).astype(np.float32))
    return model


def own_paths(model):
    return [path for path in weights_by_path(model) if adapters.is_adapter_path(path)]


def head_paths(model):
    return {"logits/kernel", "logits/bias"} if not generator.is_own(model) else set()


@pytest.mark.parametrize("kind", BUILD)
def test_a_new_low_rank_changes_nothing_and_trains_alone_beside_the_head(kind):
    model = BUILD[kind]()
    before = logits_of(model)
    paths = {weight.path for weight in model.weights}
    assert adapters.add_adapter(model, LORA) is model
    np.testing.assert_array_equal(logits_of(model), before)
    added = {weight.path for weight in model.weights} - paths
    assert added == set(own_paths(model))
    assert {variable.path for variable in model.trainable_variables} == added | head_paths(model)
    layer = {"classifier": "transformer_layer_1/self_attention_layer/value/", "generator": "block_1/attention_inputs_"}
    assert {f"{layer[kind]}lora_a", f"{layer[kind]}lora_b"} <= added
    assert len(added) == {"classifier": 8, "generator": 4}[kind]  # queries and values; one matrix of queries to values


def test_one_step_changes_adapter_and_head_alone():
    model = adapters.add_adapter(tiny_classifier.build_model(dtype="mixed_bfloat16"), LORA)
    for variable in model.trainable_variables:
        if variable.path.endswith("lora_b"):
            variable.assign(tf.ones_like(variable) * 0.01)  # at 0 the gradient of A is 0
    before = weights_by_path(model)

    @tf.function(jit_compile=True)
    def gradients():
        with tf.GradientTape() as tape:
            loss = tf.reduce_sum(model(batch_of(model), training=True) ** 2)
        return tape.gradient(loss, [variable.value for variable in model.trainable_variables])

    optimizer = keras.optimizers.AdamW(1e-2)
    optimizer.apply(gradients(), model.trainable_variables)
    changed = {path for path, value in weights_by_path(model).items() if not np.array_equal(value, before[path])}
    assert changed == {*own_paths(model), *head_paths(model)}


def test_a_low_rank_is_computed_by_hand():
    model = keras.Sequential([keras.layers.Input([2]), keras.layers.Dense(2, name="d", activation="relu")])
    [kernel] = find_kernels(model)
    kernel.attach(1, 3.0, 0)  # alpha 3, rank 1: scale 3
    layer = model.layers[0]
    layer.kernel.assign([[1.0, 0.0], [0.0, 1.0]])
    layer.bias.assign([0.0, 0.5])
    layer.lora_a.assign([[1.0], [2.0]])
    layer.lora_b.assign([[1.0, -1.0]])
    # x = (1, 1): x W = (1, 1); x A = 3; times B and 3: (9, -9); with the bias (10, -7.5); relu.
    np.testing.assert_allclose(model(np.ones([1, 2], np.float32)), [[10.0, 0.0]])


def test_kernels_of_heads_are_the_matrices_that_they_are():
    layer = keras.layers.EinsumDense("abcd,cde->abe", output_shape=(None, 3), bias_axes="e")
    layer.build((None, 5, 2, 4))
    kernel = find_kernels(keras.Sequential([layer]))[0]
    kernel.attach(2, 2.0, 0)
    assert tuple(layer.lora_a.shape) == (2, 4, 2)
    assert tuple(layer.lora_b.shape) == (2, 3)
    rng = np.random.default_rng(0)
    layer.lora_b.assign(rng.normal(size=(2, 3)))
    x = rng.normal(size=(1, 5, 2, 4)).astype(np.float32)
    delta = np.asarray(layer.lora_a).reshape(8, 2) @ np.asarray(layer.lora_b)
    expected = x.reshape(1, 5, 8) @ (np.asarray(layer.kernel).reshape(8, 3) + delta)
    np.testing.assert_allclose(layer(x), expected, atol=1e-5)
    blocks = keras.layers.EinsumDense("abc,bcd->abd", output_shape=(5, 3))  # a kernel for each b is no matrix
    blocks.build((1, 5, 2))
    assert find_kernels(keras.Sequential([blocks])) == []


def test_what_is_drawn_follows_from_seed_and_path():
    first, again, other = (
        weights_by_path(adapters.add_adapter(build_generator(), LORA, seed=seed)) for seed in (1, 1, 2)
    )
    path = "block_0/attention_inputs_lora_a"
    np.testing.assert_array_equal(first[path], again[path])
    assert not np.array_equal(first[path], other[path])
    assert not np.array_equal(first[path], first["block_1/attention_inputs_lora_a"])
    assert np.std(first[path]) == pytest.approx(1 / np.sqrt(32), rel=0.2)


@pytest.mark.parametrize(("kind", "config"), [("classifier", LORA), ("generator", LORA), ("generator", PREFIX)])
def test_a_description_brings_the_adapter_back(kind, config):
    model = shake(adapters.add_adapter(BUILD[kind](), config))
    describe, clone = (
        (describe_classifier, clone_classifier)
        if kind == "classifier"
        else (generator.describe_generator, generator.clone_generator)
    )
    assert json.loads(json.dumps(describe(model))) == describe(model)
    again = clone(model, dtype="float32")
    assert describe(again) == describe(model)
    assert [weight.path for weight in again.weights] == [weight.path for weight in model.weights]
    assert {v.path for v in again.trainable_variables} == {v.path for v in model.trainable_variables}
    np.testing.assert_array_equal(logits_of(again), logits_of(model))


def test_a_damaged_description_is_told():
    description = generator.describe_generator(adapters.add_adapter(build_generator(), PREFIX))
    description["adapter"]["kind"] = "suffix"
    with pytest.raises(InputError, match="cannot be read"):
        generator.rebuild_generator(description)


def test_a_prefix_starts_as_tokens_that_were_read():
    model, length = build_generator(), PREFIX.prefix_length
    ids = np.random.default_rng(4).integers(0, V, (1, length)).astype(np.int32)
    _, cache = model.step(ids, model.empty_cache(1, length), tf.constant([0]), tf.constant([length]))
    adapters.add_adapter(model, PREFIX, seed=4)
    assert {variable.path for variable in model.trainable_variables} == {
        f"block_{index}/prefix_{part}" for index in range(2) for part in ("keys", "values")
    }
    for block, (keys, values) in zip(model.blocks, cache, strict=True):
        np.testing.assert_array_equal(block.prefix[0], keys[0])
        np.testing.assert_array_equal(block.prefix[1], values[0])


def test_a_prefix_is_seen_by_every_position_and_gets_a_gradient():
    model = adapters.add_adapter(build_generator(), PREFIX)
    before = logits_of(model)
    with tf.GradientTape() as tape:
        loss = tf.reduce_sum(model(batch_of(model), training=True) ** 2)
    gradients = tape.gradient(loss, [variable.value for variable in model.trainable_variables])
    assert all(np.abs(gradient).max() > 0 for gradient in gradients)
    model.blocks[0].prefix[1].assign(model.blocks[0].prefix[1] + 1.0)
    assert np.all(np.abs(logits_of(model) - before).max(axis=-1) > 0)


@pytest.mark.parametrize(("kind", "config"), [("classifier", LORA), ("generator", PREFIX)])
def test_a_saved_adapter_goes_into_the_same_base_alone(kind, config, tmp_path):
    model = shake(adapters.add_adapter(BUILD[kind](), config))
    adapters.save_adapter(model, tmp_path)
    fresh = BUILD[kind]()
    logits_of(fresh)  # paths do not depend on where a model was called before
    adapters.load_adapter(fresh, tmp_path)
    np.testing.assert_array_equal(logits_of(fresh), logits_of(model))
    again = adapters.add_adapter(BUILD[kind](), AdapterConfig(**vars(config) | {"source": str(tmp_path)}), seed=9)
    np.testing.assert_array_equal(logits_of(again), logits_of(model))
    with pytest.raises(InputError, match="trained beside other weights"):
        adapters.load_adapter(BUILD[kind](seed=7), tmp_path)
    if kind == "generator":
        longer = AdapterConfig(**vars(config) | {"source": str(tmp_path), "prefix_length": 6})
        with pytest.raises(
            InputError, match=r"prefix_length 5, this model's has 6; set adapter\.prefix_length to that"
        ):
            adapters.add_adapter(BUILD[kind](), longer)
        with pytest.raises(InputError, match="has kind 'prefix', this model's has 'lora'"):
            adapters.add_adapter(BUILD[kind](), AdapterConfig(**vars(LORA) | {"source": str(tmp_path)}))
    else:
        with pytest.raises(InputError, match="'logits/bias' of shape"):
            adapters.load_adapter(_of_other_labels(), tmp_path)


def _of_other_labels():
    model = tiny_classifier.build_model(num_outputs=2)
    for weight, value in zip(model.weights, tiny_classifier.build_model().weights, strict=True):
        if not weight.path.startswith("logits"):
            weight.assign(value)
    return model


def test_a_damaged_adapter_folder_is_told(tmp_path):
    adapters.save_adapter(adapters.add_adapter(build_generator(), LORA), tmp_path)
    for name in ("adapter.json", "adapter.safetensors"):
        shutil.copytree(tmp_path, tmp_path / name.replace(".", "_"), ignore=shutil.ignore_patterns(name, "adapter_*"))
        with pytest.raises(InputError, match=r"has no adapter\.json|There is no file"):
            adapters.load_adapter(build_generator(), tmp_path / name.replace(".", "_"))
    content = bytearray((tmp_path / "adapter.safetensors").read_bytes())
    content[-1] ^= 1
    (tmp_path / "adapter.safetensors").write_bytes(content)
    with pytest.raises(InputError, match="is not what was written beside"):
        adapters.load_adapter(build_generator(), tmp_path)
    (tmp_path / "adapter.json").write_text('{"kind": "lora"}')
    with pytest.raises(InputError, match="not what an export writes"):
        adapters.load_adapter(build_generator(), tmp_path)
    with pytest.raises(InputError, match="no adapter to save"):
        adapters.save_adapter(build_generator(), tmp_path)


def test_what_has_no_place_is_refused():
    with pytest.raises(InputError, match=r"adapter\.targets 'block_9/\*' matches no weight"):
        adapters.add_adapter(build_generator(), AdapterConfig(enabled=True, targets=("block_9/*",)))
    with pytest.raises(InputError, match="matches no weight"):  # the head trains as it is
        adapters.add_adapter(tiny_classifier.build_model(), AdapterConfig(enabled=True, targets=("logits/kernel",)))
    with pytest.raises(InputError, match=r"adapter\.rank is 33, but 'block_0/.*' has rank 32 at most; lower it"):
        adapters.add_adapter(build_generator(), AdapterConfig(enabled=True, rank=33))
    with pytest.raises(InputError, match="and this model is not a GPT-2"):
        adapters.add_adapter(tiny_classifier.build_model(), PREFIX)
    with pytest.raises(InputError, match=r"prefix_length is 25, but the model has 24 positions"):
        adapters.add_adapter(build_generator(), AdapterConfig(enabled=True, kind="prefix", prefix_length=25))
    with pytest.raises(InputError, match="has an adapter already"):
        adapters.add_adapter(adapters.add_adapter(build_generator(), LORA), PREFIX)
    assert adapters.adapter_of(adapters.add_adapter(build_generator(), AdapterConfig())) is None


def test_another_network_of_keras_nlp_takes_a_low_rank():
    backbone = keras_nlp.models.OPTBackbone(
        vocabulary_size=V, num_layers=1, num_heads=2, hidden_dim=16, intermediate_dim=32, max_sequence_length=LENGTH
    )
    model = wrap_backbone(keras_nlp.models.OPTCausalLM, backbone)
    inputs = generator.model_inputs(model, {"token_ids": tf.constant([[3, 4, 5]])})
    adapters.add_adapter(model, LORA)
    assert len(own_paths(model)) == 4
    shake(model, scale=0.5)
    expected = np.asarray(model(inputs))
    np.testing.assert_array_equal(generator.clone_generator(model, dtype="float32")(inputs), expected)
    merged = generator.merge_generator(model, dtype="float32")
    assert own_paths(merged) == []
    np.testing.assert_allclose(merged(inputs), expected, atol=1e-5)
    with pytest.raises(InputError, match="and this model is not a GPT-2"):
        adapters.add_adapter(merged, PREFIX)


def test_the_formats_of_a_classifier_with_a_low_rank_are_plain(tmp_path):
    model = shake(adapters.add_adapter(tiny_classifier.build_model(), LORA))
    batch = tiny_classifier.make_batch()
    (tmp_path / "preset").mkdir()
    save_keras_preset(model, tmp_path / "preset", tokenizer=None, max_length=16)
    loaded = keras_nlp.models.TextClassifier.from_preset(str(tmp_path / "preset"))
    assert len(loaded.weights) == len(model.weights) - 8
    np.testing.assert_allclose(tiny_classifier.logits_of(loaded, batch), logits_of(model), atol=1e-5)
    (tmp_path / "hugging_face").mkdir()
    save_hugging_face(
        model,
        tmp_path / "hugging_face",
        tokenizer_folder=tiny_classifier.write_tokenizer(tmp_path),
        label_names=("x", "y", "z"),
        problem_type="single_label",
        max_length=16,
    )
    sizes = {"num_outputs": 3, "vocabulary_size": len(tiny_classifier.VOCABULARY), "max_length": 16}
    again = build_classifier(ModelConfig(source=str(tmp_path / "hugging_face")), **sizes)
    expected = weights_by_path(merge_classifier(model, dtype="float32").backbone)
    for path, value in weights_by_path(again.backbone).items():
        np.testing.assert_allclose(value, expected[path], atol=1e-6, err_msg=path)


@pytest.mark.parametrize("config", [LORA, PREFIX])
def test_the_formats_of_a_generator_are_plain_or_refused(config, tmp_path):
    from aigc_tf.models.generators import generator_formats

    model = shake(adapters.add_adapter(build_generator(), config))
    arguments = {"tokenizer_folder": tmp_path, "end_id": 0, "max_length": LENGTH}
    for name in ("preset", "hugging_face"):
        (tmp_path / name).mkdir()
    if config is PREFIX:
        for save in (generator_formats.save_keras_preset, generator_formats.save_hugging_face):
            with pytest.raises(InputError, match="no weights of a plain GPT-2"):
                save(model, tmp_path / "preset", **arguments)
        return
    generator_formats.save_keras_preset(model, tmp_path / "preset", **arguments)
    generator_formats.save_hugging_face(model, tmp_path / "hugging_face", **arguments)
    for name in ("preset", "hugging_face"):
        source = ModelConfig(source=str(tmp_path / name))
        again = generator.build_generator(source, vocabulary_size=V, max_length=LENGTH)
        np.testing.assert_allclose(logits_of(again), logits_of(model), atol=1e-5)


def test_adapters_need_slots_for_themselves_alone():
    from aigc_tf.training.optimizers.optimizers import build_optimizer

    model = adapters.add_adapter(build_generator(), PREFIX)
    optimizer = build_optimizer(TrainingConfig(), model.trainable_variables)
    numbers = sum(int(np.prod(variable.shape)) for variable in optimizer.variables if len(variable.shape) > 1)
    assert numbers == 2 * 2 * 2 * (2 * 5 * 16)  # moments, blocks, keys and values of H, P, E
