"""What a stock server cannot serve is named, with the place, before anything is published; good models pass."""

import functools
import json
import shutil
import subprocess
import sys

import keras
import keras_nlp
import pytest
import tensorflow as tf

from aigc_tf.errors import InputError, RunError
from aigc_tf.serving.gate.findings import REFUSED, WARNED, as_text
from aigc_tf.serving.gate.op_gate import check_servable, find_problems, graph_ops, report
from aigc_tf.serving.gate.saved_model_protos import saved_model_pb2
from aigc_tf.serving.gate.server_ops import load_server_ops
from aigc_tf.serving.modules.fields import Field, build_signature
from aigc_tf.serving.publishing.publishing import publish
from aigc_tf.serving.publishing.servable import Servable

VECTOR = [tf.TensorSpec([None], tf.float32, name="x")]
TEXTS = [tf.TensorSpec([None], tf.string, name="text")]


def save(function, folder, specs=VECTOR, *, name="serving_default", held=(), **options):
    """Saves a function as a signature; `held` is what it reads."""
    module = tf.Module()
    module.held = list(held)
    module.serve = tf.function(function, input_signature=specs, **options)
    tf.saved_model.save(module, str(folder), signatures={name: module.serve})
    return folder


def found(folder, target="2.20"):
    """The findings as `grade: what`."""
    return [f"{finding.grade}: {finding.what}" for finding in find_problems(folder, target=target)]


def answer(x):
    return {"y": x}


@pytest.fixture(scope="module")
def plain(tmp_path_factory):
    """A good model with a variable and an asset; copy it before changing it."""
    folder = tmp_path_factory.mktemp("plain")
    words = folder / "words.txt"
    words.write_text("a\nb\n")
    initializer = tf.lookup.TextFileInitializer(
        str(words), tf.string, tf.lookup.TextFileIndex.WHOLE_LINE, tf.int64, tf.lookup.TextFileIndex.LINE_NUMBER
    )
    table, weight = tf.lookup.StaticHashTable(initializer, -1), tf.Variable([2.0])
    inner = tf.function(lambda x: tf.math.erf(x) * weight)
    return save(
        lambda text: {"y": inner(tf.cast(table.lookup(text), tf.float32))}, folder / "1", TEXTS, held=[table, weight]
    )


def test_a_good_model_passes_on_every_server_and_ops_of_inner_functions_are_found(plain):
    for target in ("2.19", "2.20", "2.21"):
        assert found(plain, target) == []
    ops = graph_ops(plain)
    assert {"Erf", "LookupTableFindV2", "Placeholder"} <= set(ops)
    assert ops == sorted(set(ops))


def test_a_python_op_is_refused_and_its_place_is_named(tmp_path):
    save(lambda x: {"y": tf.numpy_function(lambda value: value, [x], tf.float32)}, tmp_path)
    [python_op, *rest] = sorted(find_problems(tmp_path, target="2.20"), key=lambda finding: finding.what)
    assert (python_op.what, python_op.grade) == ("Python op PyFunc", REFUSED)
    assert python_op.where[0].startswith("signature serving_default, function __inference_")
    assert python_op.where[0].endswith(", PyFunc")
    assert [finding.what for finding in rest] == ["inputs or outputs without a batch axis"]  # of unknown rank
    with pytest.raises(RunError, match=r"Serving 2.20 cannot serve this model: Python op PyFunc \(signature serving"):
        check_servable(tmp_path, target="2.20")


def test_what_xla_must_compile_is_refused_only_if_a_signature_runs_it(tmp_path):
    compiled = tf.function(lambda x: {"y": x * 2.0}, jit_compile=True)
    assert found(save(lambda x: compiled(x), tmp_path / "run")) == ["refused: a function that XLA must compile"]

    module = tf.Module()
    module.serve = tf.function(answer, input_signature=VECTOR)
    module.other = tf.function(lambda x: x * 2.0, input_signature=VECTOR, jit_compile=True)
    tf.saved_model.save(module, str(tmp_path / "idle"), signatures=module.serve)
    assert found(tmp_path / "idle") == ["warned: a function that XLA must compile"]


def test_functions_of_branches_and_loops_are_looked_into(tmp_path):
    def serve(x):
        drawn = tf.cond(x[0] > 0, lambda: tf.random.uniform(tf.shape(x)), lambda: x)
        gamma = functools.partial(tf.raw_ops.RandomGamma, shape=tf.zeros([0], tf.int32))  # no seed, whoever set one
        drawn = tf.switch_case(tf.size(x), [lambda: drawn, lambda: gamma(alpha=drawn), lambda: -drawn])
        [_, y] = tf.while_loop(
            lambda i, y: i < 3, lambda i, y: (i + 1, y + tf.random.normal(tf.shape(y), seed=7)), (0, drawn)
        )
        return {"y": y}

    findings = find_problems(save(serve, tmp_path), target="2.20")
    assert [finding.what for finding in findings] == [
        "random op RandomGamma",
        "random op RandomStandardNormal",
        "random op RandomUniform",
    ]
    assert all(finding.grade == WARNED for finding in findings)
    assert findings[0].why.startswith("It draws from the server's own state")
    assert findings[1].why.startswith("Its seed is in the graph")


def test_an_op_that_tensorflow_replaces_needs_no_kernel(tmp_path):
    one = tf.ones([1])
    assert found(save(lambda x: {"y": x + tf.raw_ops.AccumulateNV2(inputs=[one, one], shape=[1])}, tmp_path)) == []


def test_a_table_that_requests_write_to_is_refused_and_one_that_is_filled_at_the_start_is_not(tmp_path):
    def growing(text):
        table.insert(text, tf.strings.length(text))
        return {"y": table.lookup(text)}

    table = tf.lookup.experimental.MutableHashTable(tf.string, tf.int32, -1)
    assert found(save(growing, tmp_path / "growing", TEXTS, held=[table])) == [
        "refused: a table that requests write to (LookupTableInsertV2)"
    ]
    filled = tf.lookup.experimental.MutableHashTable(tf.string, tf.int32, -1)
    filled.insert(["a"], [1])
    assert found(save(lambda text: {"y": filled.lookup(text)}, tmp_path / "filled", TEXTS, held=[filled])) == []


def test_a_variable_that_requests_change_is_told(tmp_path):
    counter = tf.Variable(0.0)
    assert found(save(lambda x: {"y": x + counter.assign_add(1.0)}, tmp_path, held=[counter])) == [
        "warned: requests change a variable (AssignAddVariableOp)"
    ]


def test_paths_of_this_machine_are_told_apart_from_assets_and_from_text(tmp_path):
    file = tmp_path / "file.txt"
    file.write_text("content")
    path = str(file)
    for number, copied in enumerate((tf.constant, lambda path: tf.identity(tf.identity(path)))):
        read = functools.partial(lambda copied, x: {"y": tf.repeat(tf.io.read_file(copied(path)), tf.size(x))}, copied)
        assert found(save(read, tmp_path / f"read {number}")) == [f"refused: the file {path!r} is opened by its path"]
    read_of = tf.function(tf.io.read_file)
    assert found(save(lambda x: {"y": tf.repeat(read_of(tf.constant(path)), tf.size(x))}, tmp_path / "handed")) == [
        "warned: requests open files of the server",
        f"warned: the text {path!r} looks like the path of a file",
    ]
    texts = "a/b", "/", "//", "^/a/b$", "1/2/3", "http://a.b/c", "\\s/\\s/", "/n\n/n"
    assert found(save(lambda x: {text: tf.repeat(text, tf.size(x)) for text in texts}, tmp_path / "text")) == []


def test_scalars_open_lengths_unknown_ranks_and_missing_names_are_told(tmp_path):
    specs = [
        tf.TensorSpec([], tf.float32, name="temperature"),
        tf.TensorSpec([None, None], tf.int32, name="token_ids"),
        tf.TensorSpec([2, 8], tf.int32, name="pair"),
        tf.TensorSpec(None, tf.float32, name="anything"),
    ]
    save(lambda *inputs: tf.cast(inputs[1], tf.float32) * inputs[0], tmp_path, specs)
    findings = {finding.what: finding.where for finding in find_problems(tmp_path, target="2.20")}
    assert findings == {
        "inputs or outputs without a batch axis": (
            "signature serving_default, input anything of unknown rank",
            "signature serving_default, input pair (2, 8)",
            "signature serving_default, input temperature ()",
        ),
        "inputs without a fixed length": ("signature serving_default, input token_ids (?, ?)",),
        "inputs or outputs without a name": ("signature serving_default, output output_0 (?, ?)",),
    }


def test_ragged_and_sparse_outputs_are_refused_and_told_once(tmp_path):
    save(lambda text: {"words": tf.strings.split(text), "size": tf.strings.length(text)}, tmp_path, TEXTS)
    [finding] = find_problems(tmp_path, target="2.20")
    assert (finding.grade, finding.what) == (REFUSED, "inputs or outputs of several tensors (ragged or sparse)")
    assert finding.where == ("signature serving_default, output words",)


def test_types_without_json_a_missing_default_and_a_misnamed_classify_are_told(tmp_path):
    save(lambda x: {"scores": tf.cast(x, tf.bfloat16)[:, tf.newaxis]}, tmp_path, name="other")
    assert found(tmp_path) == [
        "warned: there is no signature serving_default",
        "warned: inputs or outputs without a JSON type",
        "warned: outputs of the Classify API with other inputs",
    ]
    numbers = [tf.TensorSpec([None], tf.float32, name="inputs")]
    assert found(save(lambda inputs: {"scores": inputs[:, tf.newaxis]}, tmp_path / "numbers", numbers)) == [
        "warned: outputs of the Classify API with other inputs"
    ]
    tf.saved_model.save(tf.Module(), str(tmp_path / "none"))
    assert found(tmp_path / "none") == ["refused: there is no signature"]


def change(plain, folder, edit):
    """Copies a model and edits its MetaGraphDef."""
    shutil.copytree(plain, folder)
    path = folder / "saved_model.pb"
    saved_model = saved_model_pb2.SavedModel.FromString(path.read_bytes())
    edit(saved_model.meta_graphs[0])
    path.write_bytes(saved_model.SerializeToString())
    return folder


def test_what_a_server_is_too_old_for_is_refused_there_and_passes_on_a_newer_one(plain, tmp_path):
    def with_node(op, **attributes):
        def edit(meta_graph):
            node = meta_graph.graph_def.library.function[0].node_def.add(name="added", op=op)
            for name, value in attributes.items():
                node.attr[name].type = value

        return edit

    webp = change(plain, tmp_path / "op", with_node("DecodeWebP"))
    assert found(webp, "2.19") == ["refused: op DecodeWebP is unknown to this server"]
    assert found(webp, "2.20") == []
    assert "tensorflow-cpu 2.19.1" in find_problems(webp, target="2.19")[0].why
    utf8 = change(plain, tmp_path / "text", with_node("TFText>Utf8Binarize"))
    assert found(utf8, "2.19") == ["refused: op TFText>Utf8Binarize is unknown to this server"]
    assert found(utf8, "2.20") == []
    assert "tensorflow-text 2.12.1" in find_problems(utf8, target="2.19")[0].why
    shape = change(plain, tmp_path / "attribute", with_node("TensorListGetItem", Tshape=9))
    assert found(shape, "2.20")[0].endswith("attribute Tshape of op TensorListGetItem is unknown to this server")
    assert found(shape, "2.21") == []
    range_of = change(plain, tmp_path / "type", with_node("Range", Tidx=tf.uint64.as_datatype_enum))
    assert found(range_of, "2.19")[0].endswith("DT_UINT64 as Tidx of op Range is unknown to this server")
    assert found(range_of, "2.20") == []
    custom = change(plain, tmp_path / "custom", with_node("Addons>Skip"))
    assert all(
        found(custom, target) == ["refused: op Addons>Skip is unknown to this server"] for target in ("2.19", "2.21")
    )
    forest = change(plain, tmp_path / "forest", with_node("SimpleMLInferenceOp"))
    assert found(forest, "2.20") == []
    gpu = change(plain, tmp_path / "gpu", lambda graph: graph.graph_def.node.add(name="rnn", op="CudnnRNNV3"))
    assert found(gpu) == []  # nothing runs it


def test_graphs_for_newer_readers_and_without_the_tag_are_refused(plain, tmp_path):
    def edit(meta_graph):
        meta_graph.graph_def.versions.min_consumer = 2200
        meta_graph.meta_info_def.tags[:] = ["train"]

    changed = change(plain, tmp_path / "1", edit)
    newer, tag = (
        "refused: a graph for readers of GraphDef version 2200 or newer",
        "refused: no graph with the tag `serve`",
    )
    assert found(changed, "2.19") == [newer, tag]
    assert found(changed, "2.20") == [tag]

    def forbid(meta_graph):
        meta_graph.graph_def.versions.bad_consumers.append(load_server_ops("2.20").graph_def_version)

    forbidden = change(plain, tmp_path / "2", forbid)
    assert [what.partition(" GraphDef")[0] for what in found(forbidden, "2.20")] == ["refused: a graph for readers of"]
    assert found(forbidden, "2.19") == []


def test_missing_damaged_and_changed_files_are_refused(plain, tmp_path):
    def broken(name, edit):
        folder = tmp_path / name
        shutil.copytree(plain, folder)
        edit(folder)
        return [(finding.grade, finding.where) for finding in find_problems(folder, target="2.20")]

    shard, index = "variables/variables.data-00000-of-00001", "variables/variables.index"
    assert broken("shard", lambda folder: (folder / shard).unlink()) == [(REFUSED, (shard,))]
    assert broken("all", lambda folder: shutil.rmtree(folder / "variables")) == [(REFUSED, (index,))]
    content = (plain / shard).read_bytes()
    assert broken("short", lambda folder: (folder / shard).write_bytes(content[:-1])) == [(REFUSED, (shard,))]
    assert broken("asset", lambda folder: (folder / "assets/words.txt").unlink()) == [(REFUSED, ("assets/words.txt",))]
    cut = (plain / index).read_bytes()[:-9]
    assert broken("cut", lambda folder: (folder / index).write_bytes(cut)) == [(REFUSED, (index,))]

    def changed(folder):
        (folder / "manifest.json").write_text(json.dumps({"files": {shard: "0" * 64}}))

    assert broken("changed", changed) == [(REFUSED, (shard,))]
    (tmp_path / "shard/saved_model.pb").write_bytes((plain / "saved_model.pb").read_bytes()[:-5])
    with pytest.raises(RunError, match="cannot be read as a SavedModel"):
        find_problems(tmp_path / "shard", target="2.20")


def test_kerasnlps_own_export_of_generate_is_refused(tmp_path):
    keras.utils.set_random_seed(0)
    vocabulary = {word: number for number, word in enumerate(["a", "b", "Ġ", "ab", "<|endoftext|>"])}
    tokenizer = keras_nlp.models.GPT2Tokenizer(vocabulary=vocabulary, merges=["a b"])
    preprocessor = keras_nlp.models.GPT2CausalLMPreprocessor(tokenizer, sequence_length=6)
    backbone = keras_nlp.models.GPT2Backbone(
        vocabulary_size=5, num_layers=1, num_heads=1, hidden_dim=4, intermediate_dim=4, max_sequence_length=6
    )
    model = keras_nlp.models.GPT2CausalLM(backbone, preprocessor)
    model.compile(sampler="top_k")
    archive = keras.export.ExportArchive()
    archive.track(model)
    archive.add_endpoint(
        "serving_default",
        lambda text: model.generate_step(preprocessor.generate_preprocess(text))["token_ids"],
        TEXTS,
    )
    archive.write_out(str(tmp_path), verbose=False)
    assert found(tmp_path) == [
        "refused: XLA op XlaDynamicUpdateSlice",
        "refused: a table that requests write to (LookupTableInsertV2)",
        "warned: requests change a variable (AssignVariableOp)",
        "warned: inputs or outputs without a name",
    ]


def test_kerasnlps_own_export_of_bert_is_refused_for_servers_before_2_20(tmp_path):
    tokenizer = keras_nlp.models.BertTokenizer(vocabulary=["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "a"])
    preprocessor = keras_nlp.models.BertTextClassifierPreprocessor(tokenizer, sequence_length=6)
    preprocessor(["a"])  # builds it
    archive = keras.export.ExportArchive()
    archive.track(preprocessor)
    archive.add_endpoint("serving_default", lambda text: preprocessor(text), TEXTS)
    archive.write_out(str(tmp_path), verbose=False)
    assert "refused: op TFText>RoundRobinTrim is unknown to this server" in found(tmp_path, "2.19")
    assert not [line for line in found(tmp_path, "2.20") if line.startswith("refused")]


class Compiled(tf.Module):
    """What an export saves, with a function that no stock server runs."""

    def signatures(self):
        x, y = (Field(name=name, dtype="float32", shape=(None,)) for name in ("x", "y"))
        compiled = tf.function(answer, input_signature=VECTOR, jit_compile=True)
        return {
            "serving_default": build_signature(
                "serving_default", lambda given: compiled(given["x"]), inputs=[x], outputs=[y]
            )
        }


def test_what_the_server_would_refuse_is_not_published(tmp_path):
    servable = Servable(
        architecture={},
        num_parameters=0,
        build_module=Compiled,
        reference=lambda *arguments: pytest.fail("the gate comes first"),
    )
    with pytest.raises(RunError, match=r"TensorFlow Serving 2\.20 cannot serve this model: a function that XLA must"):
        publish(servable, directory=tmp_path, name="compiled", task_facts={})
    assert [path for path in tmp_path.rglob("*") if path.is_file()] == [tmp_path / ".compiled.lock"]


def test_the_report_names_the_newest_version_and_a_folder_that_no_server_sees(plain, tmp_path, capsys):
    shutil.copytree(plain, tmp_path / "model/2")
    report(tmp_path / "model", target="2.20")
    assert capsys.readouterr().out == (f"A stock TensorFlow Serving 2.20 serves {tmp_path}/model/2: nothing found.\n")
    shutil.copytree(plain, tmp_path / "mine")
    (tmp_path / "mine/assets/words.txt").unlink()
    with pytest.raises(RunError, match=r"does not serve .*mine: 1 refused, 1 warned"):
        report(tmp_path / "mine", target="2.20")
    printed = capsys.readouterr().out
    assert printed.index("refused: a file that the model needs") < printed.index("warned: the folder's name 'mine'")
    with pytest.raises(InputError, match=r"2\.18"):
        find_problems(plain, target="2.18")
    with pytest.raises(InputError, match="holds no exported model"):
        report(tmp_path, target="2.20")


def test_long_lists_of_places_are_cut(tmp_path):
    def serve(x):
        for _ in range(5):
            x = x + tf.random.uniform(tf.shape(x))
        return {"y": x}

    [finding] = find_problems(save(serve, tmp_path), target="2.20")
    assert len(finding.where) == 5
    assert finding.to_json()["where"][3:] == ["and 2 more"]
    assert as_text([finding]).count("\n") == 6


def test_the_check_needs_no_tensorflow_and_leaves_none_half_loaded(plain):
    program = (
        "import sys; from aigc_tf.serving.gate.op_gate import find_problems;"
        f"assert find_problems({str(plain)!r}, target='2.20') == [];"
        "assert not [name for name in sys.modules if name.partition('.')[0] in ('tensorflow', 'keras')];"
        "import tensorflow as tf; print(tf.saved_model.load(sys.argv[1]).signatures['serving_default'].name)"
    )
    done = subprocess.run([sys.executable, "-c", program, str(plain)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "__inference_signature_wrapper" in done.stdout
