"""An exported generator: the same text in another process, signatures that say all, nothing left of a failure."""

import json
import types
from pathlib import Path

import keras_nlp
import numpy as np
import pytest
import tensorflow as tf
from tensorflow_serving.apis import prediction_log_pb2

from aigc_tf import storage
from aigc_tf.errors import InputError, RunError
from aigc_tf.models.generators.generator_sources import wrap_backbone
from aigc_tf.serving.gate.op_gate import graph_ops
from aigc_tf.serving.local.exported_generator import ExportedGenerator
from aigc_tf.serving.local.predictor import Predictor
from aigc_tf.serving.local.text_generator import TextGenerator
from aigc_tf.serving.modules.continuer import SETTINGS
from aigc_tf.serving.modules.fields import Signature
from aigc_tf.serving.modules.generator_fields import CONTINUED, PROMPT, setting_fields
from aigc_tf.serving.process.other_process import StandIn
from aigc_tf.serving.publishing.generator_servable import generator_servable
from aigc_tf.serving.publishing.generator_trial import try_generator
from aigc_tf.serving.publishing.warmup import WARMUP_FILE
from aigc_tf.tasks import TASKS
from tests import tiny_generator
from tests.exporting import export_generator
from tests.tiny_generator import MAX_LENGTH, PROMPTS, request, settings

pytestmark = pytest.mark.slow

STOP = ("-", " j")


@pytest.fixture(scope="module")
def tokenizer():
    return tiny_generator.build_tokenizer_of_texts()


def export(model, tokenizer, directory, generation=None, **options):
    return export_generator(
        model,
        tokenizer,
        max_length=MAX_LENGTH,
        generation=generation or settings(),
        directory=directory,
        name="toy",
        **options,
    )


@pytest.fixture(scope="module")
def exported(tokenizer, tmp_path_factory):
    """One export, tried in another process."""
    directory = tmp_path_factory.mktemp("saved_models")
    model = tiny_generator.build_model(tokenizer, dtype="mixed_bfloat16")
    source = {"run": "runs/g1", "config_sha256": "00ff"}
    return model, export(model, tokenizer, directory, settings(stop=STOP), prompts=PROMPTS, source=source)


@pytest.fixture(scope="module")
def there(exported):
    """The export, loaded."""
    return ExportedGenerator(exported[1].path.removesuffix("/1"))


def names(folder):
    return sorted(path.name for path in folder.iterdir())


def test_the_manifest_says_what_the_model_is(exported, tokenizer):
    _, done = exported
    manifest = json.loads(storage.read_bytes(storage.join(done.path, "manifest.json")))
    assert manifest == json.loads(json.dumps(done.manifest))
    assert (manifest["task"], manifest["version"], manifest["max_length"]) == ("generate", 1, MAX_LENGTH)
    assert (manifest["tokenizer_kind"], manifest["vocabulary_size"], manifest["end_of_text_id"]) == (
        "sentencepiece",
        tokenizer.vocabulary_size,
        tokenizer.end_of_text_id,
    )
    assert (manifest["generation"]["stop"], manifest["long_prompt"]) == (list(STOP), "cut")
    assert (manifest["dtype"], manifest["source"]["run"]) == ("float32", "runs/g1")
    assert (manifest["target"], manifest["warnings"]) == ("2.20", [])
    assert manifest["architecture"]["class"] == "Decoder"
    parity = manifest["parity"]
    assert (parity["answers"], parity["xla"], parity["num_prompts"]) == ("identical", "off", len(PROMPTS) + 9)
    assert parity["max_difference"].keys() == {
        "log_probability",
        "token_log_probabilities",
        "log_probabilities",
        "probabilities",
    }
    assert parity["tolerance"] == dict.fromkeys(parity["max_difference"], 1e-4)
    assert max(parity["max_difference"].values()) <= 1e-4
    assert parity["num_alone"] == parity["num_alone_identical"] == 8
    assert parity["tokens_per_second"] > 0 < parity["tokens_per_second_in_process"]
    assert (parity["training_dtype"], parity["logits_difference_to_training_dtype"] > 0) == ("mixed_bfloat16", True)
    assert done.summary().startswith(f"Exported {done.path}: in a new process it continues {len(PROMPTS) + 9} prompts")


def read_warmup(path):
    records = tf.data.TFRecordDataset(storage.join(path, WARMUP_FILE))
    return [prediction_log_pb2.PredictionLog.FromString(record.numpy()) for record in records]


def test_the_warm_up_file_asks_each_signature_with_each_batch_size(exported):
    _, done = exported
    found = {}
    for log in read_warmup(done.path):
        request = log.predict_log.request
        assert request.model_spec.name == "toy"
        sizes = {value.tensor_shape.dim[0].size for value in request.inputs.values()}
        found.setdefault(request.model_spec.signature_name, []).extend(sizes)
    assert found == {name: [1, 2, 4, 8] for name in done.manifest["signatures"]}
    warmup = done.manifest["warmup"]
    assert warmup["num_requests"] == 4 * len(found)
    assert 0 < warmup["first_request_seconds"] < done.manifest["parity"]["first_request_seconds"]


def test_a_stock_server_has_its_ops_and_none_of_them_is_random(exported):
    ops = graph_ops(exported[1].path)
    assert not [
        op
        for op in ops
        if op.startswith(("Xla", "PyFunc", "EagerPyFunc", "Random", "Stateless", "Multinom"))
        and not op.startswith(("StatelessIf", "StatelessWhile"))
    ]


def test_names_of_inputs_and_outputs_are_those_of_a_request(exported):
    signatures = dict(exported[1].manifest["signatures"])
    vectors = {name: [dtype.name, [None]] for name, dtype in SETTINGS.items()}
    assert signatures["serving_default"]["inputs"] == {"prompt": ["string", [None]], **vectors}
    ids = {"prompt_ids": ["int32", [None, MAX_LENGTH]], "prompt_lengths": ["int32", [None]]}
    assert signatures["generate_ids"]["inputs"] == {**ids, **vectors}
    assert signatures["defaults"]["inputs"] == {"prompt": ["string", [None]]}
    assert signatures["generate_until"]["inputs"] == {
        "prompt": ["string", [None]],
        "stop": ["string", [None, 4]],
        **vectors,
    }
    for name, second in {"score": "continuation", "choose": "choices"}.items():
        assert signatures.pop(name)["inputs"] == {"prompt": ["string", [None]], second: ["string", [None]]}
    for signature in signatures.values():
        assert signature["outputs"] == {
            "text": ["string", [None]],
            "text_bytes": ["string", [None]],
            "token_ids": ["int32", [None, None]],
            "num_tokens": ["int32", [None]],
            "finish_reason": ["string", [None]],
            "log_probability": ["float32", [None]],
            "prompt_cut": ["int32", [None]],
        }


def test_a_request_of_another_shape_is_an_error_and_the_server_lives_on(exported):
    inputs = {name: value.numpy() for name, value in request(["a", "b"], max_new_tokens=2).items()}
    with StandIn(exported[1].path) as server:
        for shape in ([], [3, 0], [1, 1]):
            with pytest.raises(RunError, match="INVALID_ARGUMENT: Shape of tensor"):
                server.call("defaults", {"prompt": np.full(shape, b"abc", object)})
            for name in SETTINGS:
                with pytest.raises(RunError, match="INVALID_ARGUMENT: Shape of tensor"):
                    server.call("serving_default", inputs | {name: np.zeros(shape, inputs[name].dtype)})
        for name in SETTINGS:
            with pytest.raises(RunError, match=r"INVALID_ARGUMENT: .*as many rows"):
                server.call("serving_default", inputs | {name: inputs[name][:1]})
        assert server.call("serving_default", inputs)["num_tokens"].tolist() == [2, 2]


def test_every_weight_is_saved_once_and_nothing_of_the_training(exported):
    model, done = exported
    variables = tf.train.list_variables(f"{done.path}/variables/variables")
    shapes = sorted(tuple(shape) for name, shape in variables if name != "_CHECKPOINTABLE_OBJECT_GRAPH")
    assert shapes == sorted(tuple(weight.shape) for weight in model.weights)
    assert "assets/spiece.model" in done.manifest["files"]


@pytest.mark.parametrize("changes", [{}, {"stop": ("U", "f\x08")}, {"temperature": 0.0, "repetition_penalty": 1.3}])
def test_the_exported_model_says_what_the_live_one_says(changes, exported, there, tokenizer):
    model, done = exported
    live = TextGenerator(model, tokenizer, max_length=MAX_LENGTH)
    assert there.path == done.path
    prompts = [*PROMPTS, "\ud83d half", "long " * 500]
    found = list(there.generate(prompts, settings=settings(**changes), batch_size=4))
    expected = list(live.generate(prompts, settings=settings(**{**changes, "stop": (*STOP, *changes.get("stop", ()))})))
    assert 0 < sum(answer.finish_reason == "stop" for answer in expected) < len(prompts)
    for one, other in zip(found, expected, strict=True):
        assert (one.text, one.finish_reason, one.prompt_cut) == (other.text, other.finish_reason, other.prompt_cut)
        assert one.token_ids == other.token_ids
        assert one.log_probability == pytest.approx(other.log_probability, abs=1e-4)


def test_an_exported_model_generates_as_it_was_exported_to_unless_told_otherwise(there):
    assert (there.defaults, there.max_length) == (settings(stop=STOP), MAX_LENGTH)
    (default,) = there.generate(["The quick"])
    assert [default] == list(there.generate(["The quick"], settings=settings(stop=STOP)))
    assert list(there.stream("The quick")) == [(default.text, len(default.token_ids), default.finish_reason, 0)]
    assert list(there.generate([])) == []
    with pytest.raises(InputError, match="no beam search"):
        there.generate(["x"], settings=settings(num_beams=2))
    with pytest.raises(InputError, match="temperature is -1"):
        there.generate(["x"], settings=settings(temperature=-1.0))
    for stop in (("a", "b", "c", "d", "e"), ("x" * 257,)):
        with pytest.raises(InputError, match="at most 4 stop strings of 256 bytes besides those it was exported with"):
            there.generate(["x"], settings=settings(stop=stop))
    with pytest.raises(InputError, match="stop string is empty"):
        there.generate(["x"], settings=settings(stop=("",)))


def test_who_asks_a_generator_for_labels_is_told_whom_to_ask(exported, tmp_path):
    with pytest.raises(InputError, match=r"of task 'generate', which takes no text; ask it with scripts/generate\.py"):
        Predictor(exported[1].path)
    folder = tmp_path / "toy" / "1"
    folder.mkdir(parents=True)
    (folder / "saved_model.pb").write_bytes(b"")
    for task, sentence in {
        "classify": r"of task 'classify', which takes no prompt; ask it with scripts/predict\.py",
        "generate": "lacks 'generation'",
    }.items():
        (folder / "manifest.json").write_text(json.dumps(TASKS[task].manifest_facts()))
        with pytest.raises(InputError, match=sentence):
            ExportedGenerator(tmp_path / "toy")


def test_the_other_formats_hold_the_same_model(exported, tokenizer):
    _, done = exported
    folder = done.path.replace("/toy/1", "/toy-formats/1")
    assert done.manifest["formats"] == ["keras_nlp", "hugging_face"]
    preset = keras_nlp.models.CausalLM.from_preset(f"{folder}/keras_nlp", preprocessor=None)
    ids = np.array([tokenizer.encode(["The quick brown fox"])[0]])
    logits = preset({"token_ids": ids, "padding_mask": np.ones_like(ids)})
    single = tiny_generator.build_model(tokenizer)
    expected = single({"token_ids": tf.constant(ids)}, training=False)
    np.testing.assert_allclose(np.asarray(logits), expected, atol=1e-4)
    assert json.loads(storage.read_bytes(f"{folder}/hugging_face/config.json"))["model_type"] == "gpt2"


def test_neighbours_that_change_a_text_are_caught_and_in_bfloat16_counted(monkeypatch):
    """A process and a module that continue the first three of eight prompts otherwise when they are alone."""
    fields = [PROMPT, *setting_fields(MAX_LENGTH)]

    def answer(inputs):
        alone, first = len(inputs["prompt"]) == 1, inputs["prompt"] < b"3"
        ids = np.where(alone & first, 7, 8).astype(np.int32)[:, np.newaxis]
        return {"token_ids": ids, "num_tokens": np.ones(len(ids), np.int32)}

    outputs = [field for field in CONTINUED if field.name in ("token_ids", "num_tokens")]
    signature = Signature(
        name="serving_default",
        inputs={field.name: field for field in fields},
        outputs={field.name: field for field in outputs},
        function=None,
    )
    monkeypatch.setattr(Signature, "__call__", lambda self, inputs: answer(inputs))
    module = types.SimpleNamespace(signatures=lambda: {"serving_default": signature})
    process = types.SimpleNamespace(
        call=lambda name, inputs: answer(inputs), timed_call=lambda name, inputs: (answer(inputs), 0.5)
    )
    tried = {"prompts": list("01234567"), "max_length": MAX_LENGTH}
    with pytest.raises(RunError, match="3 of 8 prompts are continued differently alone than in a batch"):
        try_generator(process, module, dtype="float32", **tried)
    trial = try_generator(process, module, dtype="bfloat16", **tried)
    assert (trial.num_alone, trial.num_alone_identical, trial.tokens_per_second) == (8, 5, 16.0)


def test_weights_and_settings_decide_whether_it_is_the_same_model(tokenizer):
    def settings_of(model, generation=None):
        generation = generation or settings()
        return generator_servable(model, tokenizer, max_length=MAX_LENGTH, generation=generation).settings

    first = settings_of(tiny_generator.build_model(tokenizer))
    assert settings_of(tiny_generator.build_model(tokenizer, dtype="mixed_bfloat16")) == first  # the same weights
    assert settings_of(tiny_generator.build_model(tokenizer, seed=1)) != first
    assert settings_of(tiny_generator.build_model(tokenizer), settings(top_k=7)) != first


def test_an_object_store_serves_it_too(exported):
    for file in Path(exported[1].path).rglob("*"):
        if file.is_file():
            copy = f"ram://generators/toy/1/{file.relative_to(exported[1].path).as_posix()}"
            storage.make_folder(copy.rpartition("/")[0])
            storage.write_bytes(copy, file.read_bytes())
    assert len(list(ExportedGenerator("ram://generators/toy").generate(["a", "b"]))) == 2


def test_a_network_of_keras_nlp_is_refused_in_one_sentence(tokenizer, tmp_path):
    backbone = keras_nlp.models.GPTNeoXBackbone(
        vocabulary_size=tokenizer.vocabulary_size, num_layers=1, num_heads=2, hidden_dim=16, intermediate_dim=32
    )
    with pytest.raises(InputError, match="GPT-2 is the architecture that is served"):
        export(wrap_backbone(keras_nlp.models.GPTNeoXCausalLM, backbone), tokenizer, tmp_path)
    assert names(tmp_path) == []
