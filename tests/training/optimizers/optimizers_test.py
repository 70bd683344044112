"""Optimizers against their papers in NumPy, the learning rate by hand, and what each layer and each slot gets."""

import contextlib
import functools

import keras
import keras_nlp
import numpy as np
import pytest
import tensorflow as tf

from aigc_tf.config import OPTIMIZERS, OptimizerConfig, TrainingConfig
from aigc_tf.errors import InputError
from aigc_tf.models.generators.generator_sources import wrap_backbone
from aigc_tf.training import checkpoints
from aigc_tf.training.optimizers.optimizers import build_optimizer, layer_depths, layer_scales, learning_rate
from tests import tiny_classifier, tiny_generator
from tests.training_fields import training_with

KERNEL = np.array([[1.0, -2.0], [0.5, 3.0]])
BIAS = np.array([0.25, -1.0])
GRADIENTS = [np.array([[0.1, -0.2], [0.3, 0.05]]), np.array([[-0.4, 0.1], [0.2, 0.6]])]
RATES = [0.1, 0.03]
SETTINGS = {"weight_decay": 0.5, "beta_1": 0.8, "beta_2": 0.9, "epsilon": 1e-3, "momentum": 0.7}


def toy_variables():
    """A kernel and a bias of a numbered layer."""
    with keras.name_scope("block_0"):
        return [
            keras.Variable(value, dtype="float32", name=name) for name, value in (("kernel", KERNEL), ("bias", BIAS))
        ]


def toy_config(optimizer, **changes):
    settings = {name: value for name, value in SETTINGS.items() if name in OPTIMIZERS[optimizer]}
    return training_with(**settings | changes, optimizer=optimizer)


def run_steps(optimizer, variables, rates=RATES):
    for rate, gradient in zip(rates, GRADIENTS, strict=False):
        optimizer.learning_rate = rate
        optimizer.apply([tf.constant(gradient, tf.float32), tf.constant(gradient[0], tf.float32)], variables)


# The step of each optimizer: weight, gradient, slots (zeros at first), step from 1, rate -> the new weight.


def adam(w, g, slots, t, rate):
    """Kingma and Ba 2015, section 2, the efficient form that Keras has: epsilon is their epsilon hat."""
    slots["m"] = 0.8 * slots["m"] + 0.2 * g
    slots["v"] = 0.9 * slots["v"] + 0.1 * g**2
    return w - rate * np.sqrt(1 - 0.9**t) / (1 - 0.8**t) * slots["m"] / (np.sqrt(slots["v"]) + 1e-3)


def sgd(w, g, slots, t, rate):
    """Sutskever et al. 2013, equations 1 and 2."""
    slots["v"] = 0.7 * slots["v"] - rate * g
    return w + slots["v"]


def rmsprop(w, g, slots, t, rate):
    """Tieleman and Hinton 2012, slide 29."""
    slots["v"] = 0.9 * slots["v"] + 0.1 * g**2
    return w - rate * g / np.sqrt(slots["v"] + 1e-3)


def lamb(w, g, slots, t, rate):
    """You et al. 2020, algorithm 2 with the identity as phi; the decay is outside of the trust ratio."""
    slots["m"] = 0.8 * slots["m"] + 0.2 * g
    slots["v"] = 0.9 * slots["v"] + 0.1 * g**2
    r = slots["m"] / (1 - 0.8**t) / (np.sqrt(slots["v"] / (1 - 0.9**t)) + 1e-3)
    return w - rate * np.linalg.norm(w) / np.linalg.norm(r) * r


def lion(w, g, slots, t, rate):
    """Chen et al. 2023, algorithm 2."""
    update = np.sign(0.8 * slots["m"] + 0.2 * g)
    slots["m"] = 0.9 * slots["m"] + 0.1 * g
    return w - rate * update


def adafactor(w, g, slots, t, rate):
    """Shazeer and Stern 2018, algorithms 4 and 5, with the rate of the schedule for rho."""
    beta = 1 - t**-0.8
    squares = g**2 + 1e-30
    if g.ndim == 2:  # sums over each axis, as in the paper
        slots["r"] = beta * slots["r"] + (1 - beta) * squares.sum(axis=1, keepdims=True)
        slots["c"] = beta * slots["c"] + (1 - beta) * squares.sum(axis=0, keepdims=True)
        v = slots["r"] @ slots["c"] / slots["r"].sum()
    else:
        v = slots["v"] = beta * slots["v"] + (1 - beta) * squares
    u = g / np.sqrt(v)
    u /= max(1.0, np.sqrt((u**2).mean()) / 1.0)
    return w - max(1e-3, np.sqrt((w**2).mean())) * rate * u


def newton_schulz(x):
    """Jordan et al. 2024: five steps of the quintic iteration."""
    x = x / np.linalg.norm(x)
    for _ in range(5):
        a = x @ x.T
        x = 3.4445 * x + (-4.7750 * a + 2.0315 * a @ a) @ x
    return x


def muon(w, g, slots, t, rate):
    """Jordan et al. 2024 with Nesterov momentum; Liu et al. 2025, equation 4. A bias: Adam."""
    if g.ndim < 2:
        return adam(w, g, slots, t, rate)
    slots["m"] = 0.7 * slots["m"] + g
    update = newton_schulz(g + 0.7 * slots["m"])
    return w - rate * 0.2 * np.sqrt(max(g.shape)) * update


REFERENCES = dict(adamw=adam, adam=adam, sgd=sgd, rmsprop=rmsprop, lamb=lamb, adafactor=adafactor, lion=lion, muon=muon)


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_two_steps_are_those_of_the_paper(name):
    variables = toy_variables()
    optimizer = build_optimizer(toy_config(name), variables)
    run_steps(optimizer, variables)
    expected = []
    for weight, decay in ((KERNEL, 0.0 if name == "adam" else 0.5), (BIAS, 0.0)):
        slots = dict.fromkeys("mvrc", 0.0)
        for t, (gradient, rate) in enumerate(zip(GRADIENTS, RATES, strict=True), start=1):
            weight = weight - rate * decay * weight  # decoupled: before the step, whatever the gradient
            weight = REFERENCES[name](weight, gradient if weight.ndim == 2 else gradient[0], slots, t, rate)
        expected.append(weight)
    for variable, value in zip(variables, expected, strict=True):
        np.testing.assert_allclose(variable.numpy(), value, rtol=2e-5)


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_xla_computes_the_same_steps(name):
    results = []
    for jit in (False, True):
        variables = toy_variables()
        optimizer = build_optimizer(toy_config(name, layer_decay=0.5), variables)
        tf.function(functools.partial(run_steps, optimizer, variables), jit_compile=jit)()
        results.append([variable.numpy() for variable in variables])
    for plain, compiled in zip(*results, strict=True):
        np.testing.assert_allclose(compiled, plain, rtol=1e-5)


def test_every_optimizer_has_its_reference():
    assert set(REFERENCES) == set(OPTIMIZERS)


@pytest.fixture(scope="module")
def models():
    decoder = tiny_generator.build_generator(tiny_generator.CONFIG, vocabulary_size=320, max_length=16)
    return {"classifier": tiny_classifier.build_model(), "decoder": decoder}


@pytest.mark.parametrize("model_name", ["classifier", "decoder"])
@pytest.mark.parametrize("name", OPTIMIZERS)
def test_every_slot_comes_back_from_a_checkpoint(name, model_name, models, tmp_path):
    variables = models[model_name].trainable_variables
    optimizer = build_optimizer(toy_config(name), variables)
    rng = np.random.default_rng(0)
    for slot in optimizer.variables:
        slot.assign(rng.integers(1, 99, slot.shape))
    slots = checkpoints.to_host(optimizer.variables)
    assert len(slots) == len(optimizer.variables)  # none without a name of its own
    assert all(path.startswith(f"{name}/") for path in slots)
    checkpoints.save(tmp_path, checkpoints.Checkpoint(step=1, weights={}, slots=slots, progress={}))
    again = build_optimizer(toy_config(name), variables)
    checkpoints.assign(again.variables, checkpoints.load_named(tmp_path, "last").slots, what="optimizer slots")
    for path, value in checkpoints.to_host(again.variables).items():
        np.testing.assert_array_equal(value, slots[path])


def test_adafactor_keeps_the_factors_of_a_matrix_alone(models):
    variables = models["decoder"].trainable_variables
    slots = checkpoints.to_host(build_optimizer(toy_config("adafactor"), variables).variables)
    kernel = {path: value.shape for path, value in slots.items() if "block_0_feed_forward_input_kernel" in path}
    assert kernel == {
        "adafactor/block_0_feed_forward_input_kernel_rows": (32,),
        "adafactor/block_0_feed_forward_input_kernel_columns": (64,),
    }


def test_adafactor_follows_a_rate_above_the_root_of_the_step():
    """Keras 3.15 would cut it to 1 / sqrt(step) without a word."""
    variables = toy_variables()
    run_steps(build_optimizer(toy_config("adafactor", weight_decay=0.0), variables), variables, rates=[3.0])
    # The first step: u is close to the sign of a rank-1 gradient; of the bias exactly, and its RMS is 0.729.
    expected = BIAS - 3.0 * np.sqrt((BIAS**2).mean()) * np.sign(GRADIENTS[0][0])
    np.testing.assert_allclose(variables[1].numpy(), expected, rtol=1e-5)


def _moved_by_muon(model):
    slots = [variable.path for variable in build_optimizer(toy_config("muon"), model.trainable_variables).variables]
    names = {path.removesuffix("_momentum") for path in slots if path.endswith("_momentum")}
    return {name.removeprefix("muon/") for name in names - {path.removesuffix("_velocity") for path in slots}}


def test_muon_moves_the_matrices_of_the_layers_and_nothing_else(models):
    assert _moved_by_muon(models["decoder"]) == {
        f"block_{index}_{name}_kernel"
        for index in range(2)
        for name in ("attention_inputs", "attention_output", "feed_forward_input", "feed_forward_output")
    }
    attention = [f"self_attention_layer_{name}" for name in ("query", "key", "value", "attention_output")]
    dense = ["feedforward_intermediate_dense", "feedforward_output_dense"]
    assert _moved_by_muon(models["classifier"]) == {
        f"transformer_layer_{index}_{name}_kernel" for index in range(2) for name in attention + dense
    }


def test_muon_gives_the_head_steps_and_decay_of_adamw():
    heads = []
    for name in ("muon", "adamw"):
        with keras.name_scope("head"):
            heads.append(keras.Variable(KERNEL, dtype="float32", name="kernel"))
        layer, bias = toy_variables()
        fields = {field: SETTINGS[field] for field in ("weight_decay", "beta_1", "beta_2", "epsilon")}
        optimizer = build_optimizer(
            training_with(**fields, optimizer=name),
            [layer, bias, heads[-1]],
        )
        for gradient in GRADIENTS:
            optimizer.learning_rate = 0.1
            gradients = [tf.constant(value, tf.float32) for value in (gradient, gradient[0], gradient)]
            optimizer.apply(gradients, [layer, bias, heads[-1]])
    np.testing.assert_allclose(heads[0].numpy(), heads[1].numpy(), rtol=1e-6)


@pytest.mark.parametrize(
    ("path", "shape", "as_matrices", "back"),
    [
        ("block_0/attention_inputs_kernel", (4, 12), lambda x: np.split(x, 3, axis=1), lambda x: np.hstack(x)),
        ("transformer_layer_0/attention/query/kernel", (4, 2, 2), lambda x: [x.reshape(4, 4)], lambda x: x[0]),
        ("transformer_layer_0/attention/output/kernel", (2, 3, 4), lambda x: [x.reshape(6, 4)], lambda x: x[0]),
        ("transformer_layer_0/dense/kernel", (4, 6), lambda x: [x], lambda x: x[0]),
    ],
)
def test_muon_sees_a_kernel_as_the_matrices_that_it_is(path, shape, as_matrices, back):
    *scopes, name = path.split("/")
    with contextlib.ExitStack() as stack:
        for scope in scopes:
            stack.enter_context(keras.name_scope(scope))
        kernel = keras.Variable(np.zeros(shape), dtype="float32", name=name)
        bias = keras.Variable(np.zeros(4), dtype="float32", name="bias")
    rng = np.random.default_rng(1)
    optimizer = build_optimizer(toy_config("muon", weight_decay=0.0), [kernel, bias])
    gradient = rng.normal(size=shape)
    optimizer.learning_rate = 1.0
    optimizer.apply([tf.constant(gradient, tf.float32), tf.zeros([4])], [kernel, bias])
    updates = [
        0.2
        * np.sqrt(max(part.shape))
        * (newton_schulz(part) if part.shape[0] <= part.shape[1] else newton_schulz(part.T).T)
        for part in as_matrices(gradient)
    ]
    np.testing.assert_allclose(kernel.numpy(), -np.reshape(back(updates), shape), rtol=1e-4, atol=1e-5)


def test_a_model_without_numbered_layers_is_refused_where_they_matter():
    variable = keras.Variable(KERNEL, dtype="float32", name="kernel")
    for config in (toy_config("muon"), toy_config("sgd", layer_decay=0.5)):
        with pytest.raises(InputError, match="no numbered layers such as 'transformer_layer_0'"):
            build_optimizer(config, [variable])


def test_layers_are_counted_from_the_embeddings_to_the_head(models):
    def depths(model):
        paths = [variable.path.split("/")[0] for variable in model.trainable_variables]
        return dict(zip(paths, layer_depths(model.trainable_variables)[0], strict=True))

    assert depths(models["decoder"]) == {"embeddings": 0, "block_0": 1, "block_1": 2, "final_norm": 3}
    assert depths(models["classifier"]) == {
        "token_embedding": 0,
        "position_embedding": 0,
        "segment_embedding": 0,
        "embeddings_layer_norm": 0,
        "transformer_layer_0": 1,
        "transformer_layer_1": 2,
        "pooled_dense": 3,
        "logits": 3,
    }
    scales = layer_scales(models["decoder"].trainable_variables, 0.5)
    assert sorted(set(scales)) == [0.125, 0.25, 0.5, 1.0]
    assert scales[0] == 0.125
    assert scales[-1] == 1.0


class Named:
    def __init__(self, path):
        self.path = path


def test_other_networks_layers_are_found_by_their_names():
    paths = [
        "token_embedding/embeddings",  # DeBERTa's and GPT-NeoX's
        "token_embedding/reverse_embeddings",
        "conv_0/kernel",
        *(f"encoder_layer_{index}/{name}" for index in (0, 1, 10) for name in ("dense_1/kernel", "norm/scale")),
        "norm/scale",
    ]
    assert layer_depths([Named(path) for path in paths]) == ([0, 12, 0, 1, 1, 2, 2, 11, 11, 12], 11)
    frozen = [Named(path) for path in paths[7:]]  # what is below is not trained; depths stay
    assert layer_depths(frozen) == ([11, 11, 12], 11)


def test_layers_and_matrices_of_another_network_are_found():
    """Llama: an output matrix beside the embeddings, and fewer heads of keys than of queries."""
    backbone = keras_nlp.models.LlamaBackbone(
        vocabulary_size=50,
        num_layers=2,
        num_query_heads=4,
        num_key_value_heads=2,
        hidden_dim=16,
        intermediate_dim=32,
    )
    model = wrap_backbone(keras_nlp.models.LlamaCausalLM, backbone)
    depths, num_layers = layer_depths(model.trainable_variables)
    assert num_layers == 2
    found = {variable.path: depth for variable, depth in zip(model.trainable_variables, depths, strict=True)}
    assert found["token_embedding/embeddings"] == 0
    assert found["token_embedding/reverse_embeddings"] == found["sequence_output_layernorm/scale"] == 3
    attention = [f"self_attention_{name}" for name in ("query", "key", "value", "attention_output")]
    dense = [f"feedforward_{name}_dense" for name in ("intermediate", "gate", "output")]
    assert _moved_by_muon(model) == {
        f"transformer_layer_{index}_{name}_kernel" for index in range(2) for name in attention + dense
    }


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_layer_decay_scales_the_step_and_the_weight_decay(name):
    """A layer at half the rate moves as the same layer alone would with half the rate."""
    variables = toy_variables()
    with keras.name_scope("head"):
        head = keras.Variable(KERNEL, dtype="float32", name="kernel")
    optimizer = build_optimizer(toy_config(name, layer_decay=0.5), [*variables, head])
    for rate, gradient in zip(RATES, GRADIENTS, strict=True):
        optimizer.learning_rate = rate
        gradients = [tf.constant(value, tf.float32) for value in (gradient, gradient[0], gradient)]
        optimizer.apply(gradients, [*variables, head])
    alone = toy_variables()
    run_steps(build_optimizer(toy_config(name), alone), alone, rates=[0.5 * rate for rate in RATES])
    for variable, other in zip(variables, alone, strict=True):
        np.testing.assert_allclose(variable.numpy(), other.numpy(), rtol=1e-6)
    whole = toy_variables()
    run_steps(build_optimizer(toy_config("adamw" if name == "muon" else name, **_muons_adam(name)), whole), whole)
    np.testing.assert_allclose(head.numpy(), whole[0].numpy(), rtol=1e-6)


def _muons_adam(name):
    return (
        {field: SETTINGS[field] for field in ("weight_decay", "beta_1", "beta_2", "epsilon")} if name == "muon" else {}
    )


def test_without_layer_decay_the_optimizer_is_that_of_keras():
    optimizer = build_optimizer(TrainingConfig(), toy_variables())
    assert type(optimizer) is keras.optimizers.AdamW
    assert "update_step" not in vars(optimizer)
    assert "_apply_weight_decay" not in vars(optimizer)


def _rates(steps, **fields):
    config = training_with(**{"learning_rate": 1.0, "num_steps": 10} | fields)
    return [float(learning_rate(tf.constant(step, tf.int64), config)) for step in steps]


def test_warm_up_rises_to_the_peak_and_the_line_falls_to_zero():
    assert _rates(range(4), warmup_steps=4, schedule="linear") == [0.25, 0.5, 0.75, 1.0]
    assert _rates([4, 7, 10], warmup_steps=4, schedule="linear") == pytest.approx([1.0, 0.5, 0.0])
    assert _rates([0, 5, 10, 99], schedule="linear") == pytest.approx([1.0, 0.5, 0.0, 0.0])


def test_cosine_is_half_way_at_half_time():
    assert _rates([0, 5, 10], schedule="cosine") == pytest.approx([1.0, 0.5, 0.0], abs=1e-6)
    assert _rates([6], schedule="cosine", warmup_steps=2) == pytest.approx([0.5], abs=1e-6)


def test_constant_stays():
    assert _rates([0, 1, 2, 9], schedule="constant", warmup_steps=2) == [0.5, 1.0, 1.0, 1.0]


def test_a_run_that_is_all_warm_up_works():
    assert _rates([0, 9], schedule="linear", warmup_steps=10) == pytest.approx([0.1, 1.0])


def test_inverse_square_root_falls_from_the_end_of_warm_up():
    # Vaswani et al. 2017, equation 3, divided by its value at the end of warm-up: min(s / w, sqrt(w / s)).
    assert _rates([0, 3, 15], schedule="inverse_sqrt", warmup_steps=4, num_steps=99) == pytest.approx([0.25, 1.0, 0.5])
    assert _rates([0, 3, 8], schedule="inverse_sqrt") == pytest.approx([1.0, 0.5, 1 / 3])


def test_warm_up_stable_decay_falls_in_its_last_steps_alone():
    rates = _rates(range(11), schedule="wsd", warmup_steps=2, decay_steps=4)
    assert rates == pytest.approx([0.5, 1, 1, 1, 1, 1, 1, 0.75, 0.5, 0.25, 0])
    # Without decay_steps it is a tenth of the run, and at least one step.
    assert _rates([0, 17, 18, 19, 20], schedule="wsd", num_steps=20) == pytest.approx([1, 1, 1, 0.5, 0])
    assert _rates([0, 2, 3], schedule="wsd", num_steps=3) == pytest.approx([1, 1, 0])


@pytest.mark.parametrize(
    ("schedule", "expected"),
    [("linear", [0.5, 1.0, 0.6, 0.3]), ("cosine", [0.5, 1.0, 0.6, 0.2 + 0.8 * (0.5 - np.sqrt(0.5) / 2)])],
)
def test_a_rate_falls_to_its_final_share(schedule, expected):
    expected[3] = expected[3] if schedule == "cosine" else 0.2 + 0.8 * 0.25
    assert _rates([0, 1, 6, 8], schedule=schedule, warmup_steps=2, final_rate_share=0.2) == pytest.approx(
        [0.5, 1.0, 0.6, expected[3]]
    )
    assert _rates([10], schedule=schedule, warmup_steps=2, final_rate_share=0.2) == pytest.approx([0.2])
    assert _rates([9, 10], schedule="wsd", decay_steps=2, final_rate_share=0.2) == pytest.approx([0.6, 0.2])


def test_one_step_of_adamw_by_hand_with_biases_left_out_of_decay():
    model = keras.Sequential(
        [keras.Input([1]), keras.layers.Dense(1, kernel_initializer="ones", bias_initializer="ones")]
    )
    config = TrainingConfig(
        optimizer=OptimizerConfig(learning_rate=0.1, weight_decay=0.5, epsilon=1e-8),
    )
    optimizer = build_optimizer(config, model.trainable_variables)
    optimizer.apply([tf.constant([[2.0]]), tf.constant([2.0])], model.trainable_variables)
    # The first step of Adam moves by the rate whatever the gradient; decay takes another 0.1 * 0.5 of the kernel.
    kernel, bias = (variable.numpy().item() for variable in model.trainable_variables)
    np.testing.assert_allclose([kernel, bias], [1 - 0.05 - 0.1, 1 - 0.1], rtol=1e-5)
