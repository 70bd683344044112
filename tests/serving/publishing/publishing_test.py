"""Versions of an exported model: whole, numbered, never overwritten. The model is one that adds a number."""

import numpy as np
import pytest
import tensorflow as tf

from aigc_tf import storage
from aigc_tf.errors import InputError, RunError
from aigc_tf.serving.local.loading import load_exported
from aigc_tf.serving.modules.fields import Field, build_signature
from aigc_tf.serving.publishing import publishing
from aigc_tf.serving.publishing.publishing import publish
from aigc_tf.serving.publishing.servable import Servable
from aigc_tf.serving.versions import latest_version

pytestmark = pytest.mark.slow


class Adder(tf.Module):
    def __init__(self, number):
        super().__init__()
        self.number = tf.Variable(number)

    def total(self, value):
        return value + self.number

    def signatures(self):
        value = Field(name="value", dtype="float32", shape=(None,), warmup=(1.0,), hostile=(0.0, float("nan")))
        total = Field(name="total", dtype="float32", shape=(None,), tolerance=1e-6)
        add = build_signature(
            "serving_default", lambda inputs: {"total": self.total(inputs["value"])}, inputs=[value], outputs=[total]
        )
        return {"serving_default": add}


TASK = {"task": "add", "ask": {"script": "add", "inputs": ["value"]}, "latency_seconds": 1, "timeout_seconds": 2}


def servable(number=1.0, **changes):
    def write_formats(folder):
        (folder / "plain").mkdir()
        (folder / "plain" / "number.txt").write_text(str(number))
        return ["plain"]

    fields = {
        "settings": {"number": number},
        "architecture": {"class": "Adder"},
        "num_parameters": 1,
        "build_module": lambda: Adder(number),
        "save_assets": lambda folder: (folder / "number.txt").write_text(str(number)),
        "write_formats": write_formats,
    }
    return Servable(**{**fields, **changes})


def run(directory, number=1.0, *, name="toy", target="2.20", **changes):
    done = publish(
        servable(number, **changes),
        directory=directory,
        name=name,
        task_facts=TASK,
        target=target,
        batch_sizes=(1, 3),
    )
    return done.version, done.created


def names(folder):
    return sorted(path.name for path in folder.iterdir())


def test_the_same_model_again_writes_nothing_and_another_takes_the_next_number(tmp_path):
    assert run(tmp_path) == (1, True)
    before = (tmp_path / "toy" / "1" / "manifest.json").read_bytes()
    assert run(tmp_path) == (1, False)
    assert (tmp_path / "toy" / "1" / "manifest.json").read_bytes() == before
    assert run(tmp_path, 2.0) == (2, True)
    assert run(tmp_path) == (3, True)  # the server serves the newest: going back is a new version
    assert run(tmp_path, architecture={"class": "Other"}) == (4, True)
    assert run(tmp_path, architecture={"class": "Other"}, target="2.21") == (5, True)
    assert names(tmp_path / "toy") == names(tmp_path / "toy-formats") == ["1", "2", "3", "4", "5"]
    assert (tmp_path / "toy-formats" / "2" / "plain" / "number.txt").read_text() == "2.0"


def test_who_waits_is_told_what_is_done(tmp_path, capsys):
    run(tmp_path)
    assert capsys.readouterr().err.splitlines() == [
        "Writing the SavedModel ...",
        "Trying it in another process ...",
        "Warming it up ...",
        "Writing the other formats ...",
    ]


def test_a_request_that_fails_while_the_model_warms_up_fails_the_export(tmp_path):
    class Picky(Adder):
        def total(self, value):
            few = tf.debugging.assert_less(tf.size(value), 3, "too many rows")
            with tf.control_dependencies([few]):
                return value + self.number

    with pytest.raises(RunError, match="too many rows"):
        run(tmp_path, build_module=lambda: Picky(1.0))
    assert names(tmp_path / "toy") == []


def test_a_damaged_version_is_not_taken_for_the_same_model(tmp_path):
    assert run(tmp_path) == (1, True)
    (tmp_path / "toy" / "1" / "variables" / "variables.data-00000-of-00001").write_bytes(b"")
    assert run(tmp_path) == (2, True)
    (tmp_path / "toy" / "2" / "manifest.json").write_text("{")
    assert run(tmp_path) == (3, True)


def test_a_model_that_answers_otherwise_is_not_published(tmp_path):
    def another(signature, inputs, found):
        return {"total": inputs["value"] + 3}

    with pytest.raises(
        RunError, match=r"total by 2\.00e\+00 \(bound 1e-06\) of serving_default; nothing was published"
    ):
        run(tmp_path, reference=another)
    assert names(tmp_path / "toy") == []


def test_what_is_special_to_a_task_is_tried_in_the_other_process_and_kept_in_the_manifest(tmp_path):
    def measure(process, module):
        return {"sum": process.call("serving_default", {"value": np.float32([2])})["total"].tolist()}

    done = publish(servable(measure=measure), directory=tmp_path, name="toy", task_facts=TASK)
    parity = done.manifest["parity"]
    assert parity["sum"] == [3.0]
    assert (parity["num_calls"], parity["num_rows"], parity["answers"]) == (2, 2, "identical")
    assert (parity["tolerance"], parity["max_difference"]) == ({"total": 1e-6}, {"total": 0.0})
    assert {key: done.manifest[key] for key in TASK} == TASK
    assert done.summary().endswith("in a new process it answers 2 rows in 2 calls as in this one.")


def test_a_signature_that_computes_something_else_than_its_fields_say_is_not_published(tmp_path):
    class Wrong(Adder):
        def total(self, value):
            return tf.cast(value, tf.int32)

    with pytest.raises(
        RunError, match=r"computes \{'total': 'int32 \(None,\)'\}, but its fields say \{'total': 'float32"
    ):
        run(tmp_path, build_module=lambda: Wrong(1.0))
    assert names(tmp_path / "toy") == []


def test_a_folder_whose_number_has_zeros_before_it_is_the_version_a_server_takes_it_for(tmp_path):
    assert run(tmp_path) == (1, True)
    (tmp_path / "toy" / "1").rename(tmp_path / "toy" / "0001")
    assert run(tmp_path) == (1, False)
    assert latest_version(tmp_path / "toy") == str(tmp_path / "toy" / "0001")
    assert run(tmp_path, 2.0) == (2, True)


def test_what_a_killed_export_left_is_cleaned(tmp_path):
    leftovers = [tmp_path / "toy" / ".1.partial" / "assets", tmp_path / "toy-formats" / "1" / "old"]
    for folder in leftovers:
        folder.mkdir(parents=True)
    assert run(tmp_path) == (1, True)
    assert names(tmp_path / "toy") == ["1"]
    assert names(tmp_path / "toy-formats" / "1") == ["plain"]


def test_an_object_store_gets_the_manifest_last_and_reuses_the_number_of_a_killed_export():
    base = "ram://bucket/toy"
    storage.make_folder(f"{base}/1/variables")
    storage.write_bytes(f"{base}/1/variables/left", b"x")
    done = publish(servable(), directory="ram://bucket", name="toy", task_facts=TASK)
    assert (done.path, done.version) == (f"{base}/1", 1)
    assert not storage.exists(f"{base}/1/variables/left")
    again = publish(servable(), directory="ram://bucket", name="toy", task_facts=TASK)
    assert (again.version, again.created) == (1, False)
    assert again.summary() == f"{base}/1 is this very model already; nothing was written."
    model = load_exported(latest_version(base))
    assert model.signatures["serving_default"](value=tf.constant([2.0]))["total"].numpy().tolist() == [3.0]
    written = [
        publishing.upload_order(storage.Path(name)) for name in ("manifest.json", "saved_model.pb", "variables/x")
    ]
    assert sorted(written, reverse=True) == written


def test_two_exports_of_one_name_do_not_run_at_once(tmp_path):
    with storage.locked_file(tmp_path / ".toy.lock", busy=""):
        with pytest.raises(RunError, match="Another process is exporting 'toy'"):
            run(tmp_path)
        assert run(tmp_path, name="other") == (1, True)
    assert run(tmp_path) == (1, True)


@pytest.mark.parametrize("name", ["", "a/b", "a:b", ".a", "toy-formats"])
def test_a_name_that_is_no_folder_of_its_own_is_refused(name, tmp_path):
    with pytest.raises(InputError, match=r"^name is "):
        run(tmp_path, name=name)


def test_a_place_that_cannot_be_written_is_one_sentence(tmp_path):
    (tmp_path / "toy").write_text("a file where the folder should be")
    with pytest.raises(RunError, match="Cannot write"):
        run(tmp_path)
